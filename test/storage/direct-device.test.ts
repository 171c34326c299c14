import { mkdtemp, open, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { DirectDevice, type DirectDeviceOptions, openDirectDevice } from '../../lib/storage/direct-device.ts';
import { IoMemory } from '../../lib/storage/io-memory.ts';
import { type Ring, RingOperation, type RingRequest } from '../../lib/storage/ring.ts';
import { UnalignedDevice } from '../../lib/storage/unaligned.ts';
import { conformance, conformanceSizeBytes, pattern } from '../conformance/block-device.ts';
import { engines } from './engines.ts';

const mebibyte = 1024 * 1024;
const os = constants.errno;
let folder: string;
let nextFile = 0;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-direct-'));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

function freshPath(): string {
  return join(folder, `device-${nextFile++}`);
}

function makeDevice(options: DirectDeviceOptions = {}) {
  return openDirectDevice(freshPath(), { create: { sizeBytes: 16 * mebibyte }, ...options });
}

for (const engine of engines) {
  for (const direct of ['auto', 'off'] as const) {
    conformance(`a file by ${engine}, direct ${direct}`, () => makeTarget({ engine, direct }), [
      'reopenReadOnly',
      'lease',
    ]);
  }
}

async function makeTarget(options: DirectDeviceOptions) {
  const path = freshPath();
  const create = { sizeBytes: conformanceSizeBytes };
  const memory = new IoMemory();
  return {
    device: new UnalignedDevice(await openDirectDevice(path, { ...options, create })),
    reopenReadOnly: async () => new UnalignedDevice(await openDirectDevice(path, { ...options, readOnly: true })),
    lease: async (lengthBytes: number) => memory.lease(lengthBytes),
    cleanUp: () => rm(path),
  };
}

describe.each(engines)('with the engine %s', (engine) => {
  test('leased memory goes to the device and comes back, without a copy', async () => {
    await using device = await makeDevice({ engine });
    expect(device.engineReport().engine).toBe(engine);
    const memory = new IoMemory();
    const lease = memory.lease(8192);
    lease.bytes.set(pattern(8192, 1));
    await device.write(4096, lease.bytes);
    lease.bytes.fill(0);
    await device.read(4096, lease.bytes);
    expect(lease.bytes.equals(pattern(8192, 1))).toBe(true);
    lease.release();
    memory.close();
  });

  test('memory of the caller, of any size, comes back whole', async () => {
    await using device = await makeDevice({ engine });
    for (const length of [4096, 512 * 1024, 5 * mebibyte + 4096]) {
      const bytes = pattern(length, length);
      await device.write(mebibyte, bytes);
      const found = new Uint8Array(length);
      await device.read(mebibyte, found);
      expect(Buffer.compare(found, bytes)).toBe(0);
    }
    const { reads, readBytes, writes } = device.stats();
    expect([reads, readBytes, writes]).toEqual([3, 4096 + 512 * 1024 + 5 * mebibyte + 4096, 3]);
  });

  test('more requests than the ring holds wait for their turn', async () => {
    await using device = await makeDevice({ engine, capacity: 4, maxQueued: 1000 });
    const blocks = Array.from({ length: 500 }, (_, index) => pattern(4096, index));
    await Promise.all(blocks.map((bytes, index) => device.write(index * 4096, bytes)));
    const found = await Promise.all(
      blocks.map(async (_, index) => {
        const bytes = new Uint8Array(4096);
        await device.read(index * 4096, bytes);
        return bytes;
      }),
    );
    expect(Buffer.compare(Buffer.concat(found), Buffer.concat(blocks))).toBe(0);
  });

  test('beyond the queue a request is refused at once', async () => {
    await using device = await makeDevice({ engine, capacity: 1, maxQueued: 2 });
    const outcomes = await Promise.allSettled(
      Array.from({ length: 10 }, (_, index) => device.write(index * 4096, pattern(4096, index))),
    );
    const refused = outcomes.filter((outcome) => outcome.status === 'rejected');
    expect(refused).toHaveLength(7);
    for (const { reason } of refused) expect(reason).toMatchObject({ code: 'ERR_HOLDFAST_QUEUE_FULL' });
    await device.write(0, pattern(4096, 1));
  });

  test('a big request that has begun ends whole, however full the queue is', async () => {
    await using device = await makeDevice({ engine, capacity: 1, maxQueued: 1 });
    const bytes = pattern(5 * mebibyte, 1);
    const writing = device.write(0, bytes);
    // Its first pieces are handed to the ring in microtasks, in which none of them can end.
    for (let turn = 0; turn < 20; turn++) await null;
    await expect(device.write(0, new Uint8Array(512))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_QUEUE_FULL' });
    await writing;
    const found = new Uint8Array(bytes.length);
    await device.read(0, found);
    expect(Buffer.compare(found, bytes)).toBe(0);
  });

  test('a parked request can be cancelled; one handed over is cancelled or whole', async () => {
    await using device = await makeDevice({ engine, capacity: 1, maxQueued: 2 });
    const controller = new AbortController();
    const { signal } = controller;
    const first = device.write(0, pattern(4096, 1), { signal });
    const second = device.write(4096, pattern(4096, 2), { signal });
    controller.abort();
    await expect(second).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
    const [outcome] = await Promise.allSettled([first]);
    const found = new Uint8Array(8192);
    await device.read(0, found);
    const expected = outcome.status === 'fulfilled' ? pattern(4096, 1) : Buffer.alloc(4096);
    if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
    expect(Buffer.compare(found.subarray(0, 4096), expected)).toBe(0);
    expect(found.subarray(4096).every((byte) => byte === 0)).toBe(true);
  });

  test('many requests that are cancelled at any moment are each whole or not begun', async () => {
    await using device = await makeDevice({ engine, capacity: 16 });
    const outcomes = await Promise.allSettled(
      Array.from({ length: 400 }, async (_, index) => {
        const controller = new AbortController();
        setTimeout(() => controller.abort(), index % 4);
        await device.write(index * 4096, Buffer.alloc(4096, 1), { signal: controller.signal });
      }),
    );
    const found = Buffer.alloc(400 * 4096);
    await device.read(0, found);
    outcomes.forEach((outcome, index) => {
      if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
      const byte = outcome.status === 'fulfilled' ? 1 : 0;
      expect(found.subarray(index * 4096, (index + 1) * 4096).every((value) => value === byte)).toBe(true);
    });
    expect(device.ioStatistics().inFlight).toBe(0);
  });

  test('scattered memory is written and read as one range, leased or not, more pieces than one operation takes', async () => {
    await using device = await makeDevice({ engine });
    const memory = new IoMemory();
    const leases = Array.from({ length: 150 }, (_, index) => memory.lease(4096 * (1 + (index % 3))));
    const buffers: Buffer[] = leases.map((lease) => lease.bytes);
    buffers.splice(70, 0, Buffer.alloc(8192));
    const lengthBytes = buffers.reduce((sum, bytes) => sum + bytes.length, 0);
    const expected = pattern(lengthBytes, 1);
    let at = 0;
    for (const bytes of buffers) {
      bytes.set(expected.subarray(at, at + bytes.length));
      at += bytes.length;
    }
    await device.writeVectored(4096, buffers, { fua: true });
    const found = new Uint8Array(lengthBytes);
    await device.read(4096, found);
    expect(Buffer.compare(found, expected)).toBe(0);
    for (const bytes of buffers) bytes.fill(0);
    await device.readVectored(4096, buffers);
    expect(Buffer.concat(buffers).equals(expected)).toBe(true);
    // 70 leased ones in two operations, the foreign one, 80 in two more.
    expect(device.ioStatistics().reads.operations).toBe(1 + Math.ceil(lengthBytes / (512 * 1024)) - 1 + 5);
    await expect(device.readVectored(0, [Buffer.alloc(512), Buffer.alloc(100)])).rejects.toMatchObject({
      code: 'ERR_HOLDFAST_BAD_ARGUMENT',
    });
    await expect(device.readVectored(16 * mebibyte - 4096, buffers)).rejects.toMatchObject({
      code: 'ERR_HOLDFAST_OUT_OF_RANGE',
    });
    for (const lease of leases) lease.release();
    memory.close();
  });

  test('what is done is counted, with its time', async () => {
    await using device = await makeDevice({ engine, capacity: 32 });
    const before = device.ioStatistics();
    await Promise.all(Array.from({ length: 100 }, (_, index) => device.write(index * 4096, pattern(4096, index))));
    await device.flush();
    await device.writeZeroes(0, 8192, { mayUnmap: false });
    await truncate(device.name, 4096);
    await expect(device.read(8192, new Uint8Array(4096))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
    const { reads, writes, flushes, ranges, inFlight, inFlightMax } = device.ioStatistics();
    expect(before.writes.operations).toBe(0);
    expect(before.writes.quantileNs(0.5)).toBe(0);
    expect([writes.operations, writes.errors, writes.bytes]).toEqual([100, 0, 409_600]);
    expect([reads.operations, reads.errors, reads.bytes]).toEqual([1, 1, 0]);
    expect(flushes.operations).toBe(1);
    expect(ranges.operations).toBe(1);
    expect([inFlight, inFlightMax]).toEqual([0, 32]);
    const counted = writes.histogram();
    expect(counted.reduce((sum, { operations }) => sum + operations, 0)).toBe(100);
    expect(writes.meanNs).toBeGreaterThan(0);
    expect(writes.quantileNs(0.5)).toBeLessThanOrEqual(writes.quantileNs(0.99));
    expect(writes.quantileNs(1)).toBe(writes.maxNs);
  });

  test("what a device has done is still told when it is closed, and its place in the ring is another one's", async () => {
    const device = await makeDevice({ engine, capacity: 31 });
    await device.write(0, pattern(4096, 1));
    await device.close();
    await using other = await makeDevice({ engine, capacity: 31 });
    await other.write(0, pattern(8192, 1));
    await other.write(0, pattern(8192, 1));
    expect(device.ioStatistics().writes).toMatchObject({ operations: 1, bytes: 4096 });
  });

  test('a request that is waited for without the loop has the same outcome, and the loop still gets its turn', async () => {
    await using device = await makeDevice({ engine, pollMicroseconds: 500 });
    const bytes = pattern(4096, 1);
    await device.write(4096, bytes);
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const found = new Uint8Array(4096);
    while (turns < 3) await device.read(4096, found);
    clearInterval(timer);
    expect(Buffer.compare(found, bytes)).toBe(0);
    await Promise.all(Array.from({ length: 50 }, (_, index) => device.write(index * 4096, bytes)));
  });

  test('with many requests in flight all the time, which the ring looks out for, the loop still gets its turn', async () => {
    await using device = await makeDevice({ engine });
    const bytes = pattern(32 * 4096, 1);
    await device.write(0, bytes);
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const lane = async (index: number) => {
      const found = new Uint8Array(4096);
      while (turns < 3) await device.read(index * 4096, found);
      expect(Buffer.compare(found, bytes.subarray(index * 4096, (index + 1) * 4096))).toBe(0);
    };
    await Promise.all(Array.from({ length: 32 }, (_, index) => lane(index)));
    clearInterval(timer);
  });

  test('zeroes, with and without giving the space back', async () => {
    await using device = await makeDevice({ engine });
    const bytes = pattern(mebibyte, 1);
    await device.write(0, bytes);
    await device.writeZeroes(4096, 8192);
    await device.writeZeroes(65_536, 131_072, { mayUnmap: false, fua: true });
    bytes.fill(0, 4096, 12_288);
    bytes.fill(0, 65_536, 196_608);
    const found = new Uint8Array(mebibyte);
    await device.read(0, found);
    expect(Buffer.compare(found, bytes)).toBe(0);
  });

  test('an unaligned request is refused by the aligned core', async () => {
    await using device = await makeDevice({ engine });
    await expect(device.read(1, new Uint8Array(512))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  });

  test('a buffer that is transferred away fails its own request, and no other', async () => {
    await using device = await makeDevice({ engine });
    await device.write(0, pattern(2 * mebibyte, 1));
    for (const length of [4096, 2 * mebibyte]) {
      const gone = new Uint8Array(length);
      const kept = new Uint8Array(length);
      const outcomes = Promise.allSettled([device.read(0, gone), device.read(0, kept)]);
      structuredClone(gone.buffer, { transfer: [gone.buffer] });
      const [first, second] = await outcomes;
      expect(first).toMatchObject({ status: 'rejected', reason: { code: 'ERR_HOLDFAST_BAD_ARGUMENT' } });
      expect(second.status).toBe('fulfilled');
      expect(Buffer.compare(kept, pattern(2 * mebibyte, 1).subarray(0, length))).toBe(0);
    }
    const gone = new Uint8Array(5 * mebibyte);
    const writing = device.write(0, gone);
    structuredClone(gone.buffer, { transfer: [gone.buffer] });
    await expect(writing).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  });

  test('a device that became smaller is an error, not old memory', async () => {
    const path = freshPath();
    await using device = await openDirectDevice(path, { engine, create: { sizeBytes: mebibyte } });
    await truncate(path, 512 * 1024);
    await expect(device.read(512 * 1024, new Uint8Array(4096))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
    expect(device.stats().errors).toBe(1);
  });
});

test('a second exclusive opening finds it busy, and gets it after the first is closed', async () => {
  const path = freshPath();
  const first = await openDirectDevice(path, { create: { sizeBytes: mebibyte } });
  await expect(openDirectDevice(path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_DEVICE_BUSY' });
  await (await openDirectDevice(path, { readOnly: true })).close();
  await first.close();
  await (await openDirectDevice(path)).close();
});

test('readers that hold it keep writers out', async () => {
  const path = freshPath();
  await (await openDirectDevice(path, { create: { sizeBytes: mebibyte } })).close();
  await using one = await openDirectDevice(path, { readOnly: true, exclusive: true });
  await using two = await openDirectDevice(path, { readOnly: true, exclusive: true });
  expect(one.readOnly && two.readOnly).toBe(true);
  await expect(openDirectDevice(path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_DEVICE_BUSY' });
});

test('what is there is never created over', async () => {
  const path = freshPath();
  await writeFile(path, 'mine');
  await expect(openDirectDevice(path, { create: { sizeBytes: mebibyte } })).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_DEVICE_EXISTS',
  });
  expect((await stat(path)).size).toBe(4);
});

test('without direct I/O it works through the page cache, and says so', async () => {
  await using device = await makeDevice({ direct: 'off' });
  expect(device.engineReport()).toMatchObject({ direct: false, directReason: 'switched off by the option direct' });
  expect(device.geometry.logicalBlockBytes).toBe(512);
  await device.write(512, pattern(1024, 1));
  await device.flush();
  const found = new Uint8Array(1024);
  await device.read(512, found);
  expect(Buffer.compare(found, pattern(1024, 1))).toBe(0);
});

test('bad input is refused with a code before anything is made', async () => {
  const missing = freshPath();
  await expect(openDirectDevice(missing)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NOT_FOUND' });
  await expect(openDirectDevice(folder)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  const bad: DirectDeviceOptions[] = [
    { create: { sizeBytes: 1000 } },
    { create: { sizeBytes: -4096 } },
    { create: { sizeBytes: 4096 }, readOnly: true },
    { create: { sizeBytes: 4096 }, direct: 'perhaps' as 'auto' },
    { create: { sizeBytes: 4096 }, engine: 'steam' as 'auto' },
    { create: { sizeBytes: 4096 }, capacity: 0 },
  ];
  for (const options of bad) {
    await expect(openDirectDevice(missing, options)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  }
  await expect(stat(missing)).rejects.toMatchObject({ code: 'ENOENT' });
});

test('a file that is not whole blocks can be read to its last byte, through the page cache', async () => {
  const path = freshPath();
  const bytes = pattern(10_001, 1);
  await writeFile(path, bytes);
  for (const engine of engines) {
    await using device = await openDirectDevice(path, { engine, readOnly: true });
    expect(device.geometry).toMatchObject({ sizeBytes: 10_001, logicalBlockBytes: 1 });
    expect(device.engineReport().directReason).toMatch(/its 10001 bytes are not whole blocks|no direct I\/O/);
    const into = new Uint8Array(5001);
    await device.read(5000, into);
    expect(Buffer.compare(into, bytes.subarray(5000))).toBe(0);
  }
  await expect(openDirectDevice(path, { readOnly: true, direct: 'required' })).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_NOT_SUPPORTED',
  });
});

test('a file that is empty or not whole blocks is refused for writing, and left as it is', async () => {
  const path = freshPath();
  await (await open(path, 'wx')).close();
  await expect(openDirectDevice(path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  await truncate(path, 10_001);
  await expect(openDirectDevice(path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  expect((await stat(path)).size).toBe(10_001);
});

describe('what the operating system says becomes an error that names what to do', () => {
  /** Answers every request with a result that the test chooses. */
  class AnsweringRing {
    answer = 0;
    readonly sent: number[] = [];
    readonly lengths: number[] = [];
    addFile(): number {
      return 0;
    }
    removeFile(): void {}
    fileStatistics(): void {}
    knowsMemory = true;
    arenaIndex(): number {
      if (this.knowsMemory) return 0;
      throw new HoldfastError('ERR_HOLDFAST_MEMORY_EXHAUSTED', 'too many arenas');
    }
    admit(): void {}
    cancel(): void {}
    withdraw(): boolean {
      return false;
    }
    submit(request: RingRequest): boolean {
      this.sent.push(request.operation);
      this.lengths.push(request.length);
      const { answer } = this;
      queueMicrotask(() => request.settle(answer));
      return true;
    }
  }

  async function openAnswering({ direct = true, flushesForFua = false, sizeBytes = mebibyte } = {}) {
    const path = freshPath();
    await (await openDirectDevice(path, { create: { sizeBytes: mebibyte } })).close();
    const ring = new AnsweringRing();
    const device = new DirectDevice(
      path,
      false,
      {
        handle: await open(path, 'r+'),
        isBlockDevice: false,
        direct,
        directReason: '',
        memoryAlignmentBytes: 512,
        flushesForFua,
        geometry: {
          sizeBytes,
          logicalBlockBytes: 512,
          physicalBlockBytes: 4096,
          optimalIoBytes: 4096,
          rotational: false,
          discard: true,
          writeZeroes: true,
          volatileCache: true,
        },
      },
      ring as unknown as Ring,
    );
    return { device, ring };
  }

  const block = new Uint8Array(512);

  test.each([
    [os.EIO, 'ERR_HOLDFAST_IO', 'EIO'],
    [os.ENOSPC, 'ERR_HOLDFAST_NO_SPACE', 'ENOSPC'],
    [os.EDQUOT, 'ERR_HOLDFAST_NO_SPACE', 'EDQUOT'],
  ])('errno %d of a write', async (errno, code, name) => {
    const { device, ring } = await openAnswering();
    ring.answer = -errno;
    await expect(device.write(1024, block)).rejects.toMatchObject({
      code,
      errno: name,
      message: expect.stringMatching(/device-\d+: write of 512 at 1024/),
    });
    expect(device.stats()).toMatchObject({ errors: 1, writes: 0 });
    ring.answer = 0;
    await device.write(1024, block);
    await device.close();
  });

  test('after a failed flush no later one can succeed, no change is taken, and nothing is tried again', async () => {
    const { device, ring } = await openAnswering();
    ring.answer = -os.EIO;
    const refusal = { code: 'ERR_HOLDFAST_FLUSH_FAILED' };
    await expect(device.flush()).rejects.toMatchObject({ ...refusal, errno: 'EIO' });
    ring.answer = 0;
    ring.sent.length = 0;
    await expect(device.flush()).rejects.toMatchObject(refusal);
    await expect(device.write(0, block)).rejects.toMatchObject(refusal);
    await expect(device.write(0, block, { fua: true })).rejects.toMatchObject(refusal);
    await expect(device.writeZeroes(0, 512)).rejects.toMatchObject(refusal);
    await expect(device.discard(0, 512)).rejects.toMatchObject(refusal);
    expect(ring.sent).toEqual([]);
    await device.read(0, new Uint8Array(512));
    await device.close();
  });

  test('a failure that only one of several flushes at once is told of fails them all', async () => {
    const { device, ring } = await openAnswering();
    const waiting: RingRequest[] = [];
    ring.submit = (request) => waiting.push(request) > 0;
    const outcomes = Promise.allSettled([device.flush(), device.flush(), device.write(0, block, { fua: true })]);
    // The kernel reports a lost page to the first who asks, and calls the others good.
    for (let told = false; waiting.length > 0; await new Promise(setImmediate)) {
      const request = waiting.pop()!;
      request.settle(told ? 0 : -os.EIO);
      told = true;
    }
    for (const outcome of await outcomes)
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ERR_HOLDFAST_FLUSH_FAILED' } });
    await device.close();
  });

  test('flushes that are asked for while one is under way share the next one', async () => {
    const { device, ring } = await openAnswering();
    const waiting: RingRequest[] = [];
    ring.submit = (request) => waiting.push(request) > 0;
    const ended: number[] = [];
    const flushes = [1, 2, 3].map((index) => device.flush().then(() => ended.push(index)));
    expect(waiting).toHaveLength(1);
    waiting.shift()!.settle(0);
    await new Promise(setImmediate);
    expect(ended).toEqual([1]);
    expect(waiting).toHaveLength(1);
    waiting.shift()!.settle(0);
    await Promise.all(flushes);
    expect(device.stats().flushes).toBe(3);
    await device.close();
  });

  test('through the page cache, force unit access is a write and a flush that others share', async () => {
    const { device, ring } = await openAnswering({ direct: false });
    await device.write(0, block, { fua: true });
    expect(ring.sent).toEqual([RingOperation.write, RingOperation.flush]);
    ring.sent.length = 0;
    await Promise.all([device.flush(), device.write(0, block, { fua: true }), device.write(512, block, { fua: true })]);
    expect(ring.sent.filter((operation) => operation === RingOperation.flush)).toHaveLength(2);
    ring.answer = -os.EIO;
    await expect(device.flush()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED' });
    ring.answer = 0;
    await expect(device.write(0, block, { fua: true })).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED' });
    await device.close();
  });

  test('a failed write with force unit access is a failed flush, unless it found no space', async () => {
    const { device, ring } = await openAnswering();
    ring.answer = -os.ENOSPC;
    await expect(device.write(0, block, { fua: true })).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NO_SPACE' });
    ring.answer = 0;
    await device.flush();
    ring.answer = -os.EIO;
    await expect(device.write(0, block, { fua: true })).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED' });
    ring.answer = 0;
    await expect(device.flush()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED' });
    await device.close();
  });

  test('on a device without force unit access it is a write with a flush behind it', async () => {
    const { device, ring } = await openAnswering({ flushesForFua: true });
    await device.write(0, block, { fua: true });
    expect(ring.sent).toEqual([RingOperation.writeThenFlush]);
    expect(device.stats()).toMatchObject({ writes: 1, writtenBytes: 512 });
    ring.answer = -os.EIO;
    await expect(device.write(0, block, { fua: true })).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED' });
    await device.close();
  });

  test('scattered memory of 4 GiB and more goes in several operations', async () => {
    const { device, ring } = await openAnswering({ sizeBytes: 2 ** 33 });
    const arenaBytes = 2 ** 26;
    const memory = new IoMemory({ arenaBytes, totalBytes: arenaBytes });
    const { bytes } = memory.lease(arenaBytes);
    await device.readVectored(4096, new Array<Buffer>(64).fill(bytes));
    expect(ring.lengths).toEqual([63 * arenaBytes, arenaBytes]);
    await device.close();
  });

  test("a write whose memory the ring cannot know fails, and stands in nobody's way", async () => {
    const { device: core, ring } = await openAnswering();
    const device = new UnalignedDevice(core);
    const leased = new IoMemory().lease(512).bytes;
    ring.knowsMemory = false;
    for (const bytes of [block, leased])
      await expect(device.write(0, bytes)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_MEMORY_EXHAUSTED' });
    ring.knowsMemory = true;
    await device.write(1, new Uint8Array(10));
    await device.close();
  });

  test('a request that ends cancelled was aborted by its signal, or failed', async () => {
    const { device, ring } = await openAnswering();
    ring.answer = -os.ECANCELED;
    const controller = new AbortController();
    const reading = device.read(0, new Uint8Array(512), { signal: controller.signal });
    controller.abort();
    await expect(reading).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
    await expect(device.read(0, new Uint8Array(512))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
    await device.close();
  });

  test('a device that cannot zero is written with zeros, and not asked again; discarding is then nothing', async () => {
    const { device, ring } = await openAnswering();
    const submit = ring.submit.bind(ring);
    ring.submit = (request) => {
      ring.answer = request.operation > RingOperation.flush ? -os.EOPNOTSUPP : 0;
      return submit(request);
    };
    const { punchHole, zeroRange, write } = RingOperation;
    await device.writeZeroes(0, mebibyte);
    expect(ring.sent).toEqual([punchHole, zeroRange, write, write]);
    await device.writeZeroes(0, 4096, { mayUnmap: false });
    await device.discard(0, 4096);
    expect(ring.sent.slice(4)).toEqual([write]);
    expect(device.stats()).toMatchObject({ writes: 2, writtenBytes: mebibyte + 4096, discards: 1, errors: 0 });
    await device.close();
  });
});
