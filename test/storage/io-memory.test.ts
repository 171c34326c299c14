import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { native } from '../../lib/native.ts';
import { arenaOf, type IoLease, IoMemory } from '../../lib/storage/io-memory.ts';

const kibibyte = 1024;
const mebibyte = 1024 * 1024;

describe('a lease', () => {
  test('is page-aligned, as long as was asked for, and lies in an arena', () => {
    const memory = new IoMemory();
    for (const length of [0, 1, 512, 4096, 4097, 100_000, 4 * mebibyte]) {
      const lease = memory.lease(length);
      expect(lease.bytes).toHaveLength(length);
      expect(arenaOf(lease.bytes)).toBeDefined();
      if (length > 0) expect(native().ring.misalignment(lease.bytes, 4096)).toBe(0);
      lease.release();
    }
  });

  test('cannot be transferred away', () => {
    const memory = new IoMemory();
    using lease = memory.lease(4096);
    expect(() => structuredClone(lease.bytes, { transfer: [lease.bytes.buffer as unknown as ArrayBuffer] })).toThrow();
    expect(lease.bytes.byteLength).toBe(4096);
  });

  test('released twice gives nothing away that another holds by then', () => {
    const memory = new IoMemory({ totalBytes: 64 * kibibyte, arenaBytes: 64 * kibibyte });
    const first = memory.lease(64 * kibibyte);
    first.release();
    const second = memory.lease(64 * kibibyte);
    first.release();
    expect(memory.usage().leasedBytes).toBe(64 * kibibyte);
    expect(memory.tryLease(1)).toBeUndefined();
    second.release();
    expect(memory.usage().leasedBytes).toBe(0);
  });

  test('leases held at the same time never overlap, and the bound holds', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.boolean(), fc.nat(300 * kibibyte)), { maxLength: 200 }), (steps) => {
        const memory = new IoMemory({ totalBytes: mebibyte, arenaBytes: 256 * kibibyte });
        const held: IoLease[] = [];
        for (const [release, size] of steps) {
          if (release && held.length > 0) {
            const [lease] = held.splice(size % held.length, 1);
            lease!.release();
            continue;
          }
          if (size > memory.maxLeaseBytes) continue;
          const lease = memory.tryLease(size);
          if (lease === undefined) continue;
          const start = lease.bytes.byteOffset;
          for (const other of held) {
            if (other.bytes.buffer !== lease.bytes.buffer || size === 0 || other.bytes.length === 0) continue;
            const apart =
              start + size <= other.bytes.byteOffset || other.bytes.byteOffset + other.bytes.length <= start;
            expect(apart).toBe(true);
          }
          held.push(lease);
          expect(memory.usage().allocatedBytes).toBeLessThanOrEqual(mebibyte);
        }
        for (const lease of held) lease.release();
        expect(memory.usage().leasedBytes).toBe(0);
        // Everything is back: the biggest leases fit again, whatever the arenas were cut for.
        const big = Array.from({ length: 4 }, () => memory.lease(256 * kibibyte));
        for (const lease of big) lease.release();
      }),
      { numRuns: 100 },
    );
  });
});

describe('when all of it is held', () => {
  const make = (maxWaiters = 3) => new IoMemory({ totalBytes: 64 * kibibyte, arenaBytes: 64 * kibibyte, maxWaiters });

  test('a lease at once is refused; one that waits comes in order of arrival', async () => {
    const memory = make();
    const first = memory.lease(64 * kibibyte);
    expect(() => memory.lease(1)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_MEMORY_EXHAUSTED' }));
    const order: string[] = [];
    const big = memory.leaseWhenFree(64 * kibibyte).then((lease) => {
      order.push('big');
      return lease;
    });
    const small = memory.leaseWhenFree(10).then((lease) => {
      order.push('small');
      return lease;
    });
    first.release();
    (await big).release();
    (await small).release();
    expect(order).toEqual(['big', 'small']);
    expect(memory.usage().waiting).toBe(0);
  });

  test('a lease at once does not overtake those that wait', async () => {
    const memory = make();
    const half = memory.lease(32 * kibibyte);
    const waiting = memory.leaseWhenFree(64 * kibibyte);
    expect(memory.tryLease(1)).toBeUndefined();
    half.release();
    (await waiting).release();
  });

  test('the queue is bounded', async () => {
    const memory = make(1);
    const all = memory.lease(64 * kibibyte);
    const waiting = memory.leaseWhenFree(1);
    await expect(memory.leaseWhenFree(1)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_QUEUE_FULL' });
    all.release();
    (await waiting).release();
  });

  test('one that waits can be cancelled, and those behind it go on', async () => {
    const memory = make();
    const half = memory.lease(32 * kibibyte);
    const controller = new AbortController();
    const cancelled = memory.leaseWhenFree(64 * kibibyte, { signal: controller.signal });
    const behind = memory.leaseWhenFree(32 * kibibyte);
    controller.abort();
    await expect(cancelled).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
    (await behind).release();
    half.release();
  });

  test('memory that was let go by closing is nobody else’s arena', async () => {
    const memory = make();
    const lease = memory.lease(4096);
    const { bytes } = lease;
    expect(arenaOf(bytes)).toBeDefined();
    lease.release();
    memory.close();
    expect(arenaOf(bytes)).toBeUndefined();
  });

  test('closing refuses those that wait', async () => {
    const memory = make();
    const all = memory.lease(64 * kibibyte);
    expect(() => memory.close()).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_INTERNAL' }));
    all.release();
    memory.close();
    await expect(memory.leaseWhenFree(1)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_CLOSED' });
  });
});

test.each([
  { arenaBytes: 1000 },
  { arenaBytes: 2048 },
  { arenaBytes: 2 ** 31 },
  { totalBytes: 4096, arenaBytes: 8192 },
  { totalBytes: Number.NaN },
])('sizes that make no sense are refused: %o', (options) => {
  expect(() => new IoMemory(options)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }));
});

test.each([-1, 1.5, Number.NaN, 4 * mebibyte + 1])('a lease of %d bytes is refused', (length) => {
  expect(() => new IoMemory().lease(length)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }));
});
