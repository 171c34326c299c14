/**
 * One suite over every kind of BlockDevice: what block-device.ts promises, seen from outside. A kind's own test calls
 * `conformance(name, make)`; `make` is called once for each test.
 */
import { afterEach, describe, expect, test } from 'vitest';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { crc32c } from '../../lib/storage/checksum.ts';
import { type ScanOptions, scanDevice } from '../../lib/storage/scan.ts';

export interface ConformanceTarget {
  /** Writable, at least `conformanceSizeBytes` big, all zeros. Closed by the suite. */
  readonly device: BlockDevice;
  /** Another face over the same content that refuses changes; called once the writable one is closed. */
  readonly reopenReadOnly?: () => Promise<BlockDevice>;
  /** Memory that the kind itself hands out (an arena), for requests that are not copied. */
  readonly lease?: (lengthBytes: number) => Promise<{ readonly bytes: Uint8Array; release(): void }>;
  /** Takes down what `make` set up, after both are closed. */
  readonly cleanUp?: () => Promise<void>;
}

export type MakeTarget = () => Promise<ConformanceTarget>;

/** What a kind need not have: tests that need it exist only where it is named. */
export type ConformanceFeature = 'reopenReadOnly' | 'lease';

export const conformanceSizeBytes = 16 * 1024 * 1024;

const mebibyte = 1024 * 1024;

/** Bytes that say where they belong, so that a misplaced one shows. */
export function pattern(lengthBytes: number, stamp: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  let state = (stamp + 1) * 0x9e3779b1;
  for (let index = 0; index < lengthBytes; index++) {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    bytes[index] = (state >>> 11) | 1;
  }
  return bytes;
}

function zeros(lengthBytes: number): Uint8Array {
  return new Uint8Array(lengthBytes);
}

async function readBytes(device: BlockDevice, offset: number, lengthBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(lengthBytes).fill(0xee);
  await device.read(offset, bytes);
  return bytes;
}

/** `expect(...).toEqual` over megabytes takes seconds; this says the same. */
function expectSame(actual: Uint8Array, expected: Uint8Array): void {
  if (Buffer.compare(actual, expected) === 0) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  expect.fail(`byte ${at} of ${expected.byteLength} is ${actual[at]}, not ${expected[at]}`);
}

function code(errorCode: string): unknown {
  return expect.objectContaining({ name: 'HoldfastError', code: errorCode });
}

export function conformance(name: string, make: MakeTarget, features: readonly ConformanceFeature[] = []): void {
  describe(`${name} is a block device`, () => {
    let target: ConformanceTarget | undefined;
    const open = async (): Promise<BlockDevice> => {
      target = await make();
      return target.device;
    };
    afterEach(async () => {
      await target?.device.close();
      await target?.cleanUp?.();
      target = undefined;
    });

    describeGeometry(open);
    describeContent(open);
    describeUnaligned(open);
    describeZeroing(open);
    describeConcurrency(open);
    describeRefusals(open);
    describeCancelling(open);
    describeClosing(open);
    describeStats(open);
    describeScanning(open);

    if (features.includes('lease')) describeLeasedMemory(open, (lengthBytes) => target!.lease!(lengthBytes));
    if (features.includes('reopenReadOnly')) describeReadOnly(open, () => target!.reopenReadOnly!());
  });
}

type Open = () => Promise<BlockDevice>;

type Lease = NonNullable<ConformanceTarget['lease']>;

function describeLeasedMemory(open: Open, lease: Lease): void {
  test('memory of the device itself and memory of the caller serve alike', async () => {
    const device = await open();
    const held = await lease(8192);
    held.bytes.set(pattern(8192, 1));
    await device.write(4096, held.bytes);
    expectSame(await readBytes(device, 4096, 8192), pattern(8192, 1));
    held.bytes.fill(0);
    await device.read(4096, held.bytes);
    expectSame(held.bytes, pattern(8192, 1));
    await device.write(1001, held.bytes.subarray(3, 777));
    expectSame(await readBytes(device, 1001, 774), pattern(8192, 1).subarray(3, 777));
    held.release();
  });
}

function describeReadOnly(open: Open, reopen: Open): void {
  test('a read-only face reads, flushes and refuses every change', async () => {
    const device = await open();
    await device.write(4096, pattern(4096, 1));
    await device.flush();
    await device.close();
    await using readOnly = await reopen();
    expect(readOnly.readOnly).toBe(true);
    const refusal = code('ERR_HOLDFAST_READ_ONLY');
    await expect(readOnly.write(4096, zeros(4096))).rejects.toEqual(refusal);
    await expect(readOnly.write(4096, zeros(10), { fua: true })).rejects.toEqual(refusal);
    await expect(readOnly.discard(4096, 4096)).rejects.toEqual(refusal);
    await expect(readOnly.writeZeroes(4096, 4096)).rejects.toEqual(refusal);
    await readOnly.flush();
    expectSame(await readBytes(readOnly, 4096, 4096), pattern(4096, 1));
  });
}

function describeGeometry(open: Open): void {
  test('its geometry makes sense', async () => {
    const { geometry, kind, name: deviceName, readOnly } = await open();
    const isPowerOfTwo = (value: number) => Number.isInteger(Math.log2(value));
    expect(kind).not.toBe('');
    expect(deviceName).not.toBe('');
    expect(readOnly).toBe(false);
    expect(geometry.sizeBytes).toBeGreaterThanOrEqual(conformanceSizeBytes);
    expect(geometry.logicalBlockBytes).toSatisfy(isPowerOfTwo);
    expect(geometry.physicalBlockBytes).toSatisfy(isPowerOfTwo);
    expect(geometry.physicalBlockBytes).toBeGreaterThanOrEqual(geometry.logicalBlockBytes);
    expect(geometry.optimalIoBytes % geometry.physicalBlockBytes).toBe(0);
    expect(geometry.optimalIoBytes).toBeGreaterThan(0);
    for (const flag of ['rotational', 'discard', 'writeZeroes', 'volatileCache'] as const)
      expect(typeof geometry[flag]).toBe('boolean');
  });
}

function describeContent(open: Open): void {
  test('it reads back what was written, and nothing else changes', async () => {
    const device = await open();
    await device.write(8192, pattern(4096, 1));
    expectSame(await readBytes(device, 4096, 4096), zeros(4096));
    expectSame(await readBytes(device, 8192, 4096), pattern(4096, 1));
    expectSame(await readBytes(device, 12288, 4096), zeros(4096));
  });

  test('the first and the last byte are there', async () => {
    const device = await open();
    const { sizeBytes } = device.geometry;
    await device.write(0, pattern(1, 1));
    await device.write(sizeBytes - 1, pattern(1, 2));
    await device.write(sizeBytes - 8192, pattern(4096, 3));
    expectSame(await readBytes(device, 0, 1), pattern(1, 1));
    expectSame(await readBytes(device, sizeBytes - 1, 1), pattern(1, 2));
    expectSame(await readBytes(device, sizeBytes - 8192, 4096), pattern(4096, 3));
  });

  test('it takes requests of several mebibytes', async () => {
    const device = await open();
    const bytes = pattern(5 * mebibyte + 4096, 7);
    await device.write(mebibyte, bytes);
    expectSame(await readBytes(device, mebibyte, bytes.byteLength), bytes);
    const odd = pattern(3 * mebibyte + 333, 8);
    await device.write(2 * mebibyte + 77, odd);
    expectSame(await readBytes(device, 2 * mebibyte + 77, odd.byteLength), odd);
    expectSame(await readBytes(device, mebibyte, mebibyte + 77), bytes.subarray(0, mebibyte + 77));
  });

  test('writes with force unit access and after a flush read back', async () => {
    const device = await open();
    await device.write(0, pattern(4096, 1), { fua: true });
    await device.write(4099, pattern(100, 2), { fua: true });
    await device.flush();
    await device.flush();
    expectSame(await readBytes(device, 0, 4096), pattern(4096, 1));
    expectSame(await readBytes(device, 4099, 100), pattern(100, 2));
  });

  test('a part of a bigger buffer is used as such', async () => {
    const device = await open();
    const big = pattern(10_000, 1);
    await device.write(4096, big.subarray(1001, 1001 + 4096));
    const into = new Uint8Array(10_000);
    await device.read(4096, into.subarray(501, 501 + 4096));
    const expected = new Uint8Array(10_000);
    expected.set(big.subarray(1001, 1001 + 4096), 501);
    expectSame(into, expected);
  });

  test('a buffer over shared memory serves too', async () => {
    const device = await open();
    const shared = new Uint8Array(new SharedArrayBuffer(4096));
    shared.set(pattern(4096, 4));
    await device.write(4096, shared);
    shared.fill(0);
    await device.read(4096, shared);
    expectSame(shared, pattern(4096, 4));
  });

  test('a zero-length request succeeds everywhere inside', async () => {
    const device = await open();
    for (const offset of [0, 1, 4096, device.geometry.sizeBytes]) {
      await device.read(offset, zeros(0));
      await device.write(offset, zeros(0));
      await device.write(offset, zeros(0), { fua: true });
      await device.discard(offset, 0);
      await device.writeZeroes(offset, 0);
    }
  });
}

function describeUnaligned(open: Open): void {
  test('requests at every odd edge keep their neighbours', async () => {
    const device = await open();
    const { logicalBlockBytes } = device.geometry;
    const spanBytes = Math.max(4 * logicalBlockBytes, 4096);
    const mirror = pattern(spanBytes, 1);
    await device.write(0, mirror);
    const edges = [0, 1, logicalBlockBytes - 1, logicalBlockBytes, logicalBlockBytes + 1, 2 * logicalBlockBytes - 1];
    const lengths = [1, 2, logicalBlockBytes - 1, logicalBlockBytes, logicalBlockBytes + 1, 2 * logicalBlockBytes + 1];
    let stamp = 2;
    for (const offset of edges) {
      for (const length of lengths.filter((some) => some > 0)) {
        const bytes = pattern(length, stamp++);
        mirror.set(bytes, offset);
        await device.write(offset, bytes);
        expectSame(await readBytes(device, offset, length), bytes);
        expectSame(await readBytes(device, 0, spanBytes), mirror);
      }
    }
  });

  test('neighbours inside one block, written at once, all survive', async () => {
    const device = await open();
    const expected = new Uint8Array(4096);
    const writes: Promise<void>[] = [];
    for (let offset = 0, stamp = 1; offset < 4096; stamp++) {
      const length = Math.min(1 + ((stamp * 37) % 150), 4096 - offset);
      const bytes = pattern(length, stamp);
      expected.set(bytes, offset);
      writes.push(device.write(offset, bytes));
      offset += length;
    }
    await Promise.all(writes);
    expectSame(await readBytes(device, 0, 4096), expected);
  });

  test('an unaligned write never undoes an aligned one beside it', async () => {
    const device = await open();
    const blockBytes = device.geometry.logicalBlockBytes;
    for (let round = 0; round < 20; round++) {
      const before = pattern(2 * blockBytes, round);
      const after = pattern(blockBytes, 1000 + round);
      await device.write(0, before);
      // The aligned one covers the first block, the other ends one byte before it: they meet in no byte, but the
      // unaligned one starts in the second block.
      const tail = pattern(Math.max(1, blockBytes - 1), 2000 + round);
      const order =
        round % 2 === 0
          ? [device.write(0, after), device.write(blockBytes, tail)]
          : [device.write(blockBytes, tail), device.write(0, after)];
      await Promise.all(order);
      expectSame(await readBytes(device, 0, blockBytes), after);
      expectSame(await readBytes(device, blockBytes, tail.byteLength), tail);
    }
  });
}

function describeZeroing(open: Open): void {
  test('a zeroed range reads as zeros, and its neighbours stay', async () => {
    const device = await open();
    const mirror = pattern(mebibyte, 1);
    await device.write(0, mirror);
    const ranges: [number, number, { fua?: boolean; mayUnmap?: boolean }][] = [
      [4096, 8192, {}],
      [65_536, 65_536, { mayUnmap: false }],
      [200_000, 1, {}],
      [300_001, 70_001, { fua: true }],
      [mebibyte - 5, 5, { mayUnmap: false, fua: true }],
    ];
    for (const [offset, length, options] of ranges) {
      mirror.fill(0, offset, offset + length);
      await device.writeZeroes(offset, length, options);
    }
    expectSame(await readBytes(device, 0, mebibyte), mirror);
  });

  test('a discarded range reads as old data or zeros, keeps its neighbours, and can be written again', async () => {
    const device = await open();
    const mirror = pattern(mebibyte, 1);
    await device.write(0, mirror);
    for (const [offset, length] of [
      [65_536, 131_072],
      [400_001, 70_001],
    ] as const) {
      await device.discard(offset, length);
      const found = await readBytes(device, 0, mebibyte);
      for (let at = offset; at < offset + length; at++) {
        if (found[at] !== 0 && found[at] !== mirror[at]) expect.fail(`byte ${at} is neither old nor zero`);
      }
      expectSame(found.subarray(0, offset), mirror.subarray(0, offset));
      expectSame(found.subarray(offset + length), mirror.subarray(offset + length));
      await device.write(offset, mirror.subarray(offset, offset + length));
      expectSame(await readBytes(device, 0, mebibyte), mirror);
    }
  });
}

function describeConcurrency(open: Open): void {
  test('hundreds of requests at once each find their own data', async () => {
    const device = await open();
    const blocks = 300;
    await Promise.all(Array.from({ length: blocks }, (_, block) => device.write(block * 4096, pattern(4096, block))));
    const found = await Promise.all(
      Array.from({ length: blocks }, (_, block) => readBytes(device, block * 4096, 4096)),
    );
    found.forEach((bytes, block) => {
      expectSame(bytes, pattern(4096, block));
    });
  });

  test('of overlapping writes at once, each block holds one of them', async () => {
    const device = await open();
    const versions = Array.from({ length: 24 }, (_, stamp) => pattern(16_384, stamp));
    await Promise.all(versions.map((bytes) => device.write(4096, bytes)));
    const found = await readBytes(device, 4096, 16_384);
    const blockBytes = device.geometry.logicalBlockBytes;
    for (let offset = 0; offset < 16_384; offset += blockBytes) {
      const block = Buffer.from(found.subarray(offset, offset + blockBytes));
      const winner = versions.find((bytes) => block.equals(bytes.subarray(offset, offset + blockBytes)));
      expect(winner, `the block at ${offset} is from one of the writes`).toBeDefined();
    }
  });

  test('what a read found, a later read finds too', async () => {
    const device = await open();
    for (let round = 0; round < 20; round++) {
      const [old, young] = [pattern(4096, 2 * round), pattern(4096, 2 * round + 1)];
      await device.write(4096, old);
      const writing = device.write(4096, young);
      const first = await readBytes(device, 4096, 4096);
      const second = await readBytes(device, 4096, 4096);
      await writing;
      const strange = first.findIndex((byte, at) => byte !== old[at] && byte !== young[at]);
      const back = second.findIndex((byte, at) => byte !== young[at] && (byte !== old[at] || first[at] !== old[at]));
      expect({ strange, back }).toEqual({ strange: -1, back: -1 });
      expectSame(await readBytes(device, 4096, 4096), young);
    }
  });
}

function describeRefusals(open: Open): void {
  test('a request outside is refused before anything changes', async () => {
    const device = await open();
    const { sizeBytes } = device.geometry;
    const refusal = code('ERR_HOLDFAST_OUT_OF_RANGE');
    const marks = pattern(4096, 1);
    await device.write(sizeBytes - 4096, marks);
    await device.write(0, marks);
    for (const [offset, length] of [
      [sizeBytes, 1],
      [sizeBytes - 1, 2],
      [sizeBytes - 4096, 8192],
      [-1, 1],
      [-4096, 8192],
      [2 ** 52, 4096],
      [Number.MAX_SAFE_INTEGER, 4096],
    ] as const) {
      await expect(device.read(offset, zeros(length))).rejects.toEqual(refusal);
      await expect(device.write(offset, pattern(length, 9))).rejects.toEqual(refusal);
      await expect(device.discard(offset, length)).rejects.toEqual(refusal);
      await expect(device.writeZeroes(offset, length)).rejects.toEqual(refusal);
    }
    await expect(device.discard(0, sizeBytes + 1)).rejects.toEqual(refusal);
    await expect(device.writeZeroes(4096, -4096)).rejects.toEqual(refusal);
    expectSame(await readBytes(device, sizeBytes - 4096, 4096), marks);
    expectSame(await readBytes(device, 0, 4096), marks);
  });

  test('an offset that is no whole number is refused', async () => {
    const device = await open();
    const refusal = code('ERR_HOLDFAST_BAD_ARGUMENT');
    for (const offset of [0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60]) {
      await expect(device.read(offset, zeros(1))).rejects.toEqual(refusal);
      await expect(device.write(offset, zeros(1))).rejects.toEqual(refusal);
      await expect(device.discard(offset, 1)).rejects.toEqual(refusal);
      await expect(device.writeZeroes(0, offset)).rejects.toEqual(refusal);
    }
  });
}

function describeCancelling(open: Open): void {
  test('a request whose signal has fired is refused before anything changes', async () => {
    const device = await open();
    await device.write(0, pattern(4096, 1));
    const signal = AbortSignal.abort();
    const refusal = code('ERR_HOLDFAST_ABORTED');
    await expect(device.read(0, zeros(4096), { signal })).rejects.toEqual(refusal);
    await expect(device.write(0, zeros(4096), { signal })).rejects.toEqual(refusal);
    await expect(device.write(1, zeros(10), { signal })).rejects.toEqual(refusal);
    await expect(device.flush({ signal })).rejects.toEqual(refusal);
    await expect(device.discard(0, 4096, { signal })).rejects.toEqual(refusal);
    await expect(device.writeZeroes(0, 4096, { signal })).rejects.toEqual(refusal);
    expectSame(await readBytes(device, 0, 4096), pattern(4096, 1));
  });

  test('a request cancelled on its way settles one way or the other, and its bytes are whole', async () => {
    const device = await open();
    for (let round = 0; round < 10; round++) {
      const old = pattern(4096, round);
      const young = pattern(4096, 100 + round);
      await device.write(round * 4096, old);
      const controller = new AbortController();
      const writing = device.write(round * 4096, young, { signal: controller.signal });
      controller.abort();
      const done = await writing.then(
        () => true,
        (error: unknown) => {
          expect(error).toEqual(code('ERR_HOLDFAST_ABORTED'));
          return false;
        },
      );
      expectSame(await readBytes(device, round * 4096, 4096), done ? young : old);
    }
  });
}

function describeClosing(open: Open): void {
  test('close lets requests in flight finish and refuses later ones', async () => {
    const device = await open();
    const bytes = pattern(65_536, 1);
    const into = zeros(65_536);
    await device.write(0, bytes);
    let settled = 0;
    const count = () => {
      settled++;
    };
    const inFlight = [
      device.read(0, into).then(count),
      device.write(mebibyte, bytes).then(count),
      device.write(2 * mebibyte + 1, bytes).then(count),
      device.flush().then(count),
      device.writeZeroes(3 * mebibyte, 65_536).then(count),
    ];
    await device.close();
    expect(settled).toBe(inFlight.length);
    await Promise.all(inFlight);
    expectSame(into, bytes);
    const refusal = code('ERR_HOLDFAST_CLOSED');
    await expect(device.read(0, into)).rejects.toEqual(refusal);
    await expect(device.read(1, zeros(3))).rejects.toEqual(refusal);
    await expect(device.write(0, into)).rejects.toEqual(refusal);
    await expect(device.flush()).rejects.toEqual(refusal);
    await expect(device.discard(0, 4096)).rejects.toEqual(refusal);
    await expect(device.writeZeroes(0, 4096)).rejects.toEqual(refusal);
  });

  test('close can be called again, and at once', async () => {
    const device = await open();
    await Promise.all([device.close(), device.close()]);
    await device.close();
    await device[Symbol.asyncDispose]();
  });
}

function describeStats(open: Open): void {
  test('it counts its requests', async () => {
    const device = await open();
    const before = device.stats();
    await device.write(0, pattern(8192, 1));
    await device.write(8192, pattern(4096, 1), { fua: true });
    await device.read(0, zeros(4096));
    await device.flush();
    await device.discard(0, 65_536);
    const after = device.stats();
    expect(after.writes - before.writes).toBe(2);
    expect(after.writtenBytes - before.writtenBytes).toBe(12_288);
    expect(after.reads - before.reads).toBe(1);
    expect(after.readBytes - before.readBytes).toBe(4096);
    expect(after.flushes - before.flushes).toBe(1);
    expect(after.discards - before.discards).toBe(1);
    expect(after.errors).toBe(before.errors);
    expect(after.unalignedRequests).toBe(before.unalignedRequests);
  });

  test('it counts unaligned requests where it has blocks', async () => {
    const device = await open();
    const before = device.stats().unalignedRequests;
    await device.write(1, pattern(10, 1));
    await device.read(3, zeros(4));
    await device.writeZeroes(5, 7);
    expect(device.stats().unalignedRequests - before).toBe(device.geometry.logicalBlockBytes > 1 ? 3 : 0);
  });
}

function describeScanning(open: Open): void {
  test.each<[string, ScanOptions]>([
    ['all of it', {}],
    ['small blocks', { blockBytes: 512, offset: mebibyte, length: mebibyte }],
    ['a short last block', { blockBytes: 65_536, offset: 4096, length: 3 * mebibyte + 512 }],
    ['odd ends', { blockBytes: 1000, offset: 777, length: 300_001 }],
    ['one block, longer than what is read at once', { blockBytes: 5 * mebibyte + 3, offset: 1 }],
    ['nothing', { offset: 4096, length: 0 }],
  ])('a scan gives the checksum of every block: %s', async (_, options) => {
    const device = await open();
    const { sizeBytes } = device.geometry;
    const content = new Uint8Array(sizeBytes);
    for (let offset = 0; offset < sizeBytes; offset += 4 * mebibyte) {
      const bytes = pattern(Math.min(mebibyte, sizeBytes - offset), offset / mebibyte);
      content.set(bytes, offset);
      await device.write(offset, bytes);
    }
    const { offset = 0, length = sizeBytes - offset, blockBytes = 65_536 } = options;
    const found: number[] = [];
    const scan = scanDevice(device, options);
    for await (const batch of scan) {
      expect(batch.offset).toBe(offset + found.length * blockBytes);
      expect(batch.length).toBe(Math.min(batch.blocks * blockBytes, offset + length - batch.offset));
      found.push(...batch.crc32c());
    }
    const range = content.subarray(offset, offset + length);
    const expected = Array.from({ length: Math.ceil(length / blockBytes) }, (_, block) =>
      crc32c(range.subarray(block * blockBytes, (block + 1) * blockBytes)),
    );
    expect(found).toEqual(expected);
    expect(scan.progress()).toMatchObject({ doneBytes: length, totalBytes: length });
  });

  test('a scan that is left early, or cancelled, leaves a device that serves and closes', async () => {
    const device = await open();
    const controller = new AbortController();
    for await (const batch of scanDevice(device, { blockBytes: 4096, length: 4 * mebibyte })) {
      expect(batch.blocks).toBeGreaterThan(0);
      break;
    }
    const scan = scanDevice(device, { signal: controller.signal });
    controller.abort();
    await expect(scan[Symbol.asyncIterator]().next()).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
    await device.write(0, pattern(4096, 1));
    expectSame(await readBytes(device, 0, 4096), pattern(4096, 1));
    await device.close();
    await expect(scanDevice(device)[Symbol.asyncIterator]().next()).rejects.toEqual(code('ERR_HOLDFAST_CLOSED'));
  });

  test('a scan outside is refused', async () => {
    const device = await open();
    const { sizeBytes } = device.geometry;
    const refusal = code('ERR_HOLDFAST_OUT_OF_RANGE');
    expect(() => scanDevice(device, { offset: sizeBytes, length: 1 })).toThrow(refusal);
    expect(() => scanDevice(device, { offset: -1 })).toThrow(refusal);
    expect(() => scanDevice(device, { offset: sizeBytes + 1 })).toThrow(refusal);
  });
}
