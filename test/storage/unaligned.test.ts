import fc from 'fast-check';
import { expect, test } from 'vitest';
import { BaseDevice, isAligned } from '../../lib/storage/base-device.ts';
import type { Geometry } from '../../lib/storage/block-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { UnalignedDevice } from '../../lib/storage/unaligned.ts';
import { conformance, conformanceSizeBytes, pattern } from '../conformance/block-device.ts';

type Held = { readonly what: string; readonly go: () => void };

/** Whole blocks only, as direct I/O is; each request waits until the test lets it go, if the test says so. */
class WholeBlockDevice extends BaseDevice {
  readonly kind = 'whole-block';
  readonly geometry: Geometry;
  readonly next: MemoryDevice;
  readonly held: Held[] = [];
  hold = false;
  mostHeld = 0;

  constructor(sizeBytes: number, blockBytes: number) {
    super('whole-block', false);
    this.next = new MemoryDevice({ sizeBytes, logicalBlockBytes: blockBytes });
    this.geometry = this.next.geometry;
  }

  protected performRead(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#later(`read ${offset}+${buffer.byteLength}`, offset, buffer.byteLength, () =>
      this.next.read(offset, buffer),
    );
  }

  protected performWrite(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#later(`write ${offset}+${buffer.byteLength}`, offset, buffer.byteLength, () =>
      this.next.write(offset, buffer),
    );
  }

  protected performFlush(): Promise<void> {
    return this.next.flush();
  }

  protected performDiscard(offset: number, length: number): Promise<void> {
    return this.#later(`discard ${offset}+${length}`, offset, length, () => this.next.discard(offset, length));
  }

  protected performWriteZeroes(offset: number, length: number): Promise<void> {
    return this.#later(`zero ${offset}+${length}`, offset, length, () => this.next.writeZeroes(offset, length));
  }

  protected performClose(): Promise<void> {
    return this.next.close();
  }

  async #later(what: string, offset: number, length: number, perform: () => Promise<void>): Promise<void> {
    if (!isAligned(offset, length, this.geometry.logicalBlockBytes)) throw new Error(`not whole blocks: ${what}`);
    if (this.hold) {
      await new Promise<void>((resolve) => {
        this.held.push({ what, go: resolve });
        this.mostHeld = Math.max(this.mostHeld, this.held.length);
      });
    }
    await perform();
  }
}

const settleTurn = () => new Promise<void>((resolve) => setImmediate(resolve));

function open(blockBytes = 512) {
  const core = new WholeBlockDevice(conformanceSizeBytes, blockBytes);
  return { core, device: new UnalignedDevice(core) };
}

/** Lets one held request go, chosen by the test; returns once the device has moved on. */
async function letGo(core: WholeBlockDevice, index = 0): Promise<void> {
  core.held.splice(index, 1)[0]!.go();
  await settleTurn();
}

conformance('a device of whole blocks of 512 bytes, made to serve any request,', async () => open(512));
conformance('a device of whole blocks of 4096 bytes, made to serve any request,', async () => open(4096));

test('whole blocks pass straight through', async () => {
  const { core, device } = open();
  core.hold = true;
  void device.write(512, pattern(1024, 1));
  void device.read(0, new Uint8Array(4096));
  expect(core.held.map(({ what }) => what)).toEqual(['write 512+1024', 'read 0+4096']);
});

test('an unaligned write reads and writes its two broken ends, and the middle as it is', async () => {
  const { core, device } = open();
  core.hold = true;
  const log: string[] = [];
  const writing = device.write(500, pattern(1600, 1));
  await settleTurn();
  while (core.held.length > 0) {
    log.push(core.held[0]!.what);
    await letGo(core);
  }
  await writing;
  expect(log.sort()).toEqual(['read 0+512', 'read 2048+512', 'write 0+512', 'write 2048+512', 'write 512+1536']);
  expect(device.stats().unalignedRequests).toBe(1);
});

test('a whole-block write that is under way is waited for by an unaligned one in its block', async () => {
  const { core, device } = open();
  core.hold = true;
  const whole = device.write(0, pattern(512, 1));
  const broken = device.write(10, pattern(5, 2));
  await settleTurn();
  expect(core.held.map(({ what }) => what)).toEqual(['write 0+512']);
  await letGo(core);
  await whole;
  expect(core.held.map(({ what }) => what)).toEqual(['read 0+512']);
  await letGo(core);
  const later = device.write(0, pattern(512, 3));
  await settleTurn();
  expect(core.held.map(({ what }) => what)).toEqual(['write 0+512']);
  await letGo(core);
  await broken;
  expect(core.held.map(({ what }) => what)).toEqual(['write 0+512']);
  await letGo(core);
  await later;
  const found = new Uint8Array(512);
  core.hold = false;
  await device.read(0, found);
  expect(found).toEqual(pattern(512, 3));
});

test('a write that waits for its block can be cancelled, and changes nothing', async () => {
  const { core, device } = open();
  await device.write(0, pattern(512, 1));
  core.hold = true;
  const first = device.write(1, pattern(3, 2));
  const controller = new AbortController();
  const second = device.write(100, pattern(3, 3), { signal: controller.signal });
  const third = device.write(0, pattern(512, 4), { signal: controller.signal });
  await settleTurn();
  controller.abort();
  await expect(second).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
  await expect(third).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
  await letGo(core);
  await letGo(core);
  await first;
  core.hold = false;
  const found = new Uint8Array(512);
  await device.read(0, found);
  const expected = pattern(512, 1);
  expected.set(pattern(3, 2), 1);
  expect(found).toEqual(expected);
});

test('from close on every request is refused, also while one is still under way', async () => {
  const { core, device } = open();
  core.hold = true;
  const writing = device.write(1, pattern(3, 1));
  await settleTurn();
  const closing = device.close();
  const closed = expect.objectContaining({ code: 'ERR_HOLDFAST_CLOSED' });
  core.hold = false;
  await expect(device.write(0, pattern(512, 2))).rejects.toEqual(closed);
  await expect(device.writeZeroes(0, 512)).rejects.toEqual(closed);
  await expect(device.read(0, new Uint8Array(512))).rejects.toEqual(closed);
  await expect(device.discard(0, 512)).rejects.toEqual(closed);
  await expect(device.flush()).rejects.toEqual(closed);
  await letGo(core);
  await writing;
  await closing;
});

test('requests that wait for a block are bounded in number', async () => {
  const { core, device } = open();
  core.hold = true;
  const writes = [device.write(1, pattern(3, 1))];
  for (let index = 0; index < 16_384; index++) writes.push(device.write(0, pattern(512, 2)));
  const outcome = Promise.allSettled(writes);
  await expect(device.write(0, pattern(512, 3))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_QUEUE_FULL' });
  core.hold = false;
  await letGo(core);
  expect((await outcome).filter(({ status }) => status === 'rejected')).toHaveLength(1);
  await device.write(0, pattern(512, 4));
});

test('a failed part fails the request only once the other parts are over', async () => {
  const core = new WholeBlockDevice(8192, 512);
  const device = new UnalignedDevice(core);
  core.hold = true;
  let settled = false;
  const reading = device.read(100, new Uint8Array(2048)).finally(() => {
    settled = true;
  });
  reading.catch(() => {});
  await settleTurn();
  expect(core.held).toHaveLength(3);
  core.next.read = () => Promise.reject(new Error('broken'));
  await letGo(core);
  await letGo(core);
  expect(settled).toBe(false);
  await letGo(core);
  await expect(reading).rejects.toThrow('broken');
});

test('an unaligned discard forgets whole blocks only', async () => {
  const { core, device } = open();
  core.hold = true;
  void device.discard(100, 2000);
  void device.discard(100, 500);
  await settleTurn();
  expect(core.held.map(({ what }) => what)).toEqual(['discard 512+1536']);
});

test('whatever order the device works in, disjoint writes at once all survive', async () => {
  const size = 4096;
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(fc.nat(size), { minLength: 2, maxLength: 24 }),
      fc.array(fc.nat(1000), { minLength: 1, maxLength: 200 }),
      fc.boolean(),
      async (cuts, choices, zeroes) => {
        const core = new WholeBlockDevice(size, 512);
        const device = new UnalignedDevice(core);
        await device.write(0, pattern(size, 99));
        core.hold = true;
        const borders = [...new Set([...cuts, 512, 1024])].sort((left, right) => left - right);
        const expected = pattern(size, 99);
        const writes = borders.slice(1).map((end, index) => {
          const start = borders[index]!;
          const isZero = zeroes && index % 3 === 0;
          const bytes = isZero ? new Uint8Array(end - start) : pattern(end - start, index);
          expected.set(bytes, start);
          return isZero ? device.writeZeroes(start, end - start) : device.write(start, bytes);
        });
        await settleTurn();
        for (let step = 0; core.held.length > 0; step++)
          await letGo(core, choices[step % choices.length]! % core.held.length);
        await Promise.all(writes);
        core.hold = false;
        const found = new Uint8Array(size);
        await device.read(0, found);
        expect(Buffer.compare(found, expected)).toBe(0);
      },
    ),
    { numRuns: 150 },
  );
});
