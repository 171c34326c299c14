import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { expect, onTestFinished, test } from 'vitest';
import { plantBug } from '../../lib/base/planted-bug.ts';
import { ActivityLog, type LogLayout, logBytes } from '../../lib/mirror/activity-log.ts';
import {
  allNamed,
  BITS_BYTES,
  decodeLogBlock,
  EXTENTS_PER_BLOCK,
  encodeLogBlock,
  LOG_BLOCK_BYTES,
} from '../../lib/mirror/log-format.ts';
import { FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';

const MIB = 1024 * 1024;
const EXTENT = 4 * MIB;
const logId = '00112233445566778899aabbccddeeff';

interface Bench {
  readonly memory: MemoryDevice;
  readonly device: FaultyDevice;
  readonly layout: LogLayout;
  readonly log: ActivityLog;
  readonly scheduler: Scheduler;
  readonly pinned: Set<number>;
  readonly failures: unknown[];
  flushesWanted: number;
  /** What a crash now would find. */
  onDevice(): Promise<string[]>;
  writes(): number;
}

/** Extents as `2` or `4-6`. */
function extentsOf(log: ActivityLog): string[] {
  return [...log.named()].map(({ offset, length }) => {
    const first = offset / EXTENT;
    const last = Math.ceil((offset + length) / EXTENT) - 1;
    return first === last ? `${first}` : `${first}-${last}`;
  });
}

async function makeLog(options: { sizeBytes?: number; maxActive?: number; started?: boolean } = {}): Promise<Bench> {
  const sizeBytes = options.sizeBytes ?? 100 * EXTENT;
  const room = logBytes(sizeBytes, EXTENT);
  const layout: LogLayout = { sizeBytes, extentBytes: EXTENT, logId, copyOffsets: [4096, 4096 + room + 8192] };
  const memory = new MemoryDevice({ sizeBytes: 2 * room + 65_536, name: 'log' });
  await ActivityLog.create(memory, layout);
  const device = new FaultyDevice(memory);
  const log = await ActivityLog.open(device, layout, false);
  const scheduler = new Scheduler();
  const pinned = new Set<number>();
  const bench: Bench = {
    memory,
    device,
    layout,
    log,
    scheduler,
    pinned,
    failures: [],
    flushesWanted: 0,
    onDevice: async () => extentsOf(await ActivityLog.open(memory, layout, false)),
    writes: () => device.stats().writes,
  };
  if (options.started ?? true) startLog(bench, options.maxActive);
  return bench;
}

function startLog(bench: Bench, maxActive?: number): void {
  bench.log.start({
    clock: new SimulatedClock(bench.scheduler, new SimulatedProcess('member'), 0),
    isPinned: (offset) => bench.pinned.has(offset / EXTENT),
    flushWanted: () => {
      bench.flushesWanted += 1;
    },
    onFailure: (error) => bench.failures.push(error),
    ...(maxActive !== undefined && { maxActive }),
    idleMs: 1000,
  });
}

/** A whole write: into the log, done, out. */
async function write(log: ActivityLog, extent: number, length = 4096): Promise<void> {
  await log.enter(extent * EXTENT, length);
  log.leave(extent * EXTENT, length);
}

function flush(log: ActivityLog): void {
  log.flushSucceeded(log.flushBegins());
}

test('an extent is durably named by both copies before its write may begin, then costs nothing', async () => {
  const bench = await makeLog();
  const { log, memory, layout } = bench;
  const entered = log.enter(7 * EXTENT - 1, 2);
  expect(entered).toBeInstanceOf(Promise);
  expect(await bench.onDevice()).toEqual([]);
  await entered;
  for (const [copy, offset] of layout.copyOffsets.entries()) {
    const bytes = new Uint8Array(LOG_BLOCK_BYTES);
    await memory.read(offset, bytes);
    const decoded = decodeLogBlock(bytes, { logId, index: 0, offset, extents: 100 });
    expect([decoded.sequence, decoded.bits?.[0]], `copy ${copy}`).toEqual([2, 0b1100_0000]);
  }
  expect(log.enter(6 * EXTENT, 2 * EXTENT)).toBeUndefined();
  expect(log.activeExtents).toBe(2);
  expect(log.activeBytes).toBe(2 * EXTENT);
});

test('who comes while a block is being written shares that write or the next, and no write is for one alone', async () => {
  const { log, device } = await makeLog();
  const entered: Promise<void>[] = [];
  for (let extent = 0; extent < 20; extent += 1) entered.push(log.enter(extent * EXTENT, 4096)!);
  await Promise.all(entered);
  expect(device.stats().writes).toBe(2);
  const gate = device.inject({ action: { kind: 'hang' }, on: 'write', times: 1 });
  const first = log.enter(30 * EXTENT, 4096)!;
  await Promise.resolve();
  await Promise.resolve();
  const same = log.enter(30 * EXTENT + MIB, 4096)!;
  const later = [31, 32, 33].map((extent) => log.enter(extent * EXTENT, 4096)!);
  gate.remove();
  await Promise.all([first, same, ...later]);
  expect(device.stats().writes).toBe(6);
});

test('both copies are written at one sequence, each durable before the next begins', async () => {
  const { log, memory, layout } = await makeLog();
  const told: string[] = [];
  const { write: writeDevice } = memory;
  memory.write = async (offset, bytes, options) => {
    told.push(`begin ${offset} fua ${options?.fua}`);
    await writeDevice.call(memory, offset, bytes, options);
    told.push(`end ${offset}`);
  };
  await log.enter(0, 1);
  const [first, second] = layout.copyOffsets;
  expect(told).toEqual([`begin ${first} fua true`, `end ${first}`, `begin ${second} fua true`, `end ${second}`]);
});

test('an extent is taken out only when no write is in flight, a flush began after the last one, and nothing pins it', async () => {
  const bench = await makeLog();
  const { log } = bench;
  await log.enter(0, 4096);
  const flushBeforeTheEnd = log.flushBegins();
  log.leave(0, 4096);
  log.flushSucceeded(flushBeforeTheEnd);
  await log.clear();
  expect(await bench.onDevice()).toEqual(['0']);

  const flushAfter = log.flushBegins();
  await log.clear();
  expect(await bench.onDevice()).toEqual(['0']);
  await log.enter(0, 4096);
  log.flushSucceeded(flushAfter);
  await log.clear();
  expect(await bench.onDevice()).toEqual(['0']);
  log.leave(0, 4096);
  await log.clear();
  expect(await bench.onDevice()).toEqual(['0']);

  bench.pinned.add(0);
  flush(log);
  await log.clear();
  expect(await bench.onDevice()).toEqual(['0']);
  bench.pinned.delete(0);
  await log.clear();
  expect(await bench.onDevice()).toEqual([]);
  expect(log.activeExtents).toBe(0);
});

test('a flush that fails takes nothing out', async () => {
  const bench = await makeLog();
  await write(bench.log, 3);
  bench.log.flushBegins();
  await bench.log.clear();
  expect(await bench.onDevice()).toEqual(['3']);
});

test('nothing is taken out before the engine has started it', async () => {
  const bench = await makeLog({ started: false });
  await write(bench.log, 3);
  flush(bench.log);
  await bench.log.clear();
  expect(await bench.onDevice()).toEqual(['3']);
});

test('idle extents go after a while, busy ones stay, and the timer ends with them', async () => {
  const bench = await makeLog();
  const { log, scheduler } = bench;
  await write(log, 1);
  await write(log, 2);
  flush(log);
  await scheduler.runFor(1100);
  await write(log, 2);
  flush(log);
  await scheduler.runFor(1000);
  expect(await bench.onDevice()).toEqual(['2']);
  await scheduler.runFor(2000);
  expect(await bench.onDevice()).toEqual([]);
  const before = bench.writes();
  await scheduler.runFor(100_000);
  expect(bench.writes()).toBe(before);
});

test('extents that are idle and wait only for a flush ask for one', async () => {
  const bench = await makeLog();
  await write(bench.log, 1);
  await bench.scheduler.runFor(3100);
  expect(bench.flushesWanted).toBeGreaterThan(0);
  const asked = bench.flushesWanted;
  flush(bench.log);
  await bench.scheduler.runFor(3000);
  expect([bench.flushesWanted, ...(await bench.onDevice())]).toEqual([asked]);
});

test('an extent that is clean and pinned asks for a flush when it comes to rest, and not again', async () => {
  const bench = await makeLog();
  bench.pinned.add(1);
  await write(bench.log, 1);
  flush(bench.log);
  await bench.scheduler.runFor(2100);
  expect(bench.flushesWanted).toBe(1);
  await bench.scheduler.runFor(20_000);
  expect(bench.flushesWanted).toBe(1);
  // The flush of the other copy has come, and nothing was written meanwhile.
  bench.pinned.clear();
  await bench.scheduler.runFor(1100);
  expect(await bench.onDevice()).toEqual([]);
});

test('when too many are active, the ones that have rested longest make room, along with the next write', async () => {
  const bench = await makeLog({ maxActive: 8 });
  const { log, scheduler } = bench;
  for (let extent = 0; extent < 4; extent += 1) await write(log, extent);
  flush(log);
  await scheduler.runFor(1001);
  for (let extent = 4; extent < 8; extent += 1) await write(log, extent);
  flush(log);
  const before = bench.writes();
  expect(log.activeExtents).toBe(8);
  await write(log, 8);
  expect(bench.writes()).toBe(before + 2);
  expect(log.activeExtents).toBe(6);
  expect(await bench.onDevice()).toEqual(['3-8']);
});

test('pinned extents stay however many they are, and a long search for room is not made for each write', async () => {
  const bench = await makeLog({ maxActive: 8 });
  let asked = 0;
  const { has } = bench.pinned;
  bench.pinned.has = (extent) => {
    asked += 1;
    return has.call(bench.pinned, extent);
  };
  for (let extent = 0; extent < 64; extent += 1) {
    bench.pinned.add(extent);
    await write(bench.log, extent);
    flush(bench.log);
  }
  expect(await bench.onDevice()).toEqual(['0-63']);
  expect(asked).toBeLessThan(64 * 64);
});

test('an extent that was taken out in memory and not yet on the device comes back without a write', async () => {
  const bench = await makeLog({ maxActive: 4 });
  const { log } = bench;
  for (let extent = 0; extent < 4; extent += 1) await write(log, extent);
  flush(log);
  const entered = log.enter(4 * EXTENT, 4096)!;
  expect(log.activeExtents).toBe(3);
  expect(log.enter(0, 4096)).toBeUndefined();
  await entered;
  expect(await bench.onDevice()).toContain('0');
});

test('an extent that the write under way takes out waits for the next one', async () => {
  const bench = await makeLog();
  const { log, device } = bench;
  await write(log, 1);
  await write(log, 2);
  flush(log);
  const gate = device.inject({ action: { kind: 'hang' }, on: 'write', times: 1 });
  const cleared = log.clear();
  await Promise.resolve();
  await Promise.resolve();
  const entered = log.enter(EXTENT, 4096);
  expect(entered).toBeInstanceOf(Promise);
  gate.remove();
  await Promise.all([cleared, entered]);
  expect(await bench.onDevice()).toEqual(['1']);
});

test('what it names at open stays active until the copies are equal and flushed', async () => {
  const bench = await makeLog();
  await write(bench.log, 5);
  await write(bench.log, 99);
  const reopened = { ...bench, log: await ActivityLog.open(bench.device, bench.layout, false) };
  expect(extentsOf(reopened.log)).toEqual(['5', '99']);
  startLog(reopened);
  bench.pinned.add(5).add(99);
  flush(reopened.log);
  await reopened.log.clear();
  expect(await bench.onDevice()).toEqual(['5', '99']);
  bench.pinned.clear();
  await reopened.log.clear();
  expect(await bench.onDevice()).toEqual([]);
});

test('everything can be named; the last extent may be a short one', async () => {
  const sizeBytes = 2 * EXTENTS_PER_BLOCK * EXTENT + EXTENT / 2;
  const bench = await makeLog({ sizeBytes });
  await bench.log.name(EXTENT, EXTENT + 1);
  expect(await bench.onDevice()).toEqual(['1-2']);
  await bench.log.nameAll();
  const reopened = await ActivityLog.open(bench.memory, bench.layout, false);
  expect([...reopened.named()]).toEqual([{ offset: 0, length: sizeBytes }]);
  expect(reopened.activeBytes).toBe(sizeBytes);
});

test('a write across blocks waits for all of them', async () => {
  const bench = await makeLog({ sizeBytes: 3 * EXTENTS_PER_BLOCK * EXTENT });
  const border = EXTENTS_PER_BLOCK * EXTENT;
  await bench.log.enter(border - 1, 2);
  expect(bench.writes()).toBe(4);
  expect(await bench.onDevice()).toEqual([`${EXTENTS_PER_BLOCK - 1}-${EXTENTS_PER_BLOCK}`]);
});

test('a log that cannot be written lets no write begin, and forgets nothing', async () => {
  for (const skip of [0, 1]) {
    const bench = await makeLog();
    await write(bench.log, 9);
    const fault = bench.device.inject({ action: { kind: 'error' }, on: 'write', skip });
    await expect(bench.log.enter(0, 4096)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
    expect(await bench.onDevice()).toContain('9');
    await expect(bench.log.enter(0, 4096)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
    fault.remove();
    await bench.log.enter(0, 4096);
    const { damage } = await ActivityLog.open(bench.memory, bench.layout, false);
    expect([await bench.onDevice(), damage]).toEqual([['0', '9'], []]);
    bench.log.leave(0, 4096);
    flush(bench.log);
    await bench.log.clear();
    expect(await bench.onDevice()).toEqual([]);
  }
});

test('a failure of a write that nobody waits for is told', async () => {
  const bench = await makeLog();
  await write(bench.log, 1);
  flush(bench.log);
  bench.device.inject({ action: { kind: 'error' }, on: 'write' });
  await bench.scheduler.runFor(2100);
  expect(bench.failures).toMatchObject([{ code: 'ERR_HOLDFAST_IO' }]);
});

test('one damaged copy takes nothing away, and nothing new depends on the other alone', async () => {
  for (const copy of [0, 1] as const) {
    const bench = await makeLog();
    await write(bench.log, 5);
    await bench.memory.write(bench.layout.copyOffsets[copy] + 100, Uint8Array.of(0xff));
    const log = await ActivityLog.open(bench.device, bench.layout, false);
    expect(extentsOf(log)).toEqual(['5']);
    expect(log.damage).toEqual([{ block: 0, lost: false, reason: 'its checksum is wrong' }]);
    const entered = log.enter(5 * EXTENT, 4096);
    expect(entered, 'named by one copy only').toBeInstanceOf(Promise);
    await entered;
    expect((await ActivityLog.open(bench.memory, bench.layout, false)).damage).toEqual([]);
  }
});

test('the copy in doubt is written first, so that the good one is there until the other is', async () => {
  const bench = await makeLog();
  await write(bench.log, 5);
  await bench.memory.write(bench.layout.copyOffsets[1], Uint8Array.of(0));
  const log = await ActivityLog.open(bench.device, bench.layout, false);
  bench.device.inject({ action: { kind: 'error', when: 'after' }, on: 'write' });
  await expect(log.enter(0, 1)).rejects.toThrow();
  await bench.memory.write(bench.layout.copyOffsets[1], Uint8Array.of(0));
  expect(await bench.onDevice()).toEqual(['5']);
});

test('a block of which no copy is whole names all of its extents, and says so', async () => {
  const sizeBytes = (EXTENTS_PER_BLOCK + 50) * EXTENT;
  const bench = await makeLog({ sizeBytes });
  await write(bench.log, 3);
  for (const offset of bench.layout.copyOffsets)
    await bench.memory.write(offset + LOG_BLOCK_BYTES + 8, Uint8Array.of(9));
  const log = await ActivityLog.open(bench.device, bench.layout, false);
  expect(extentsOf(log)).toEqual(['3', `${EXTENTS_PER_BLOCK}-${EXTENTS_PER_BLOCK + 49}`]);
  expect(log.damage).toMatchObject([{ block: 1, lost: true, reason: expect.stringContaining('the second: ') }]);
  expect(log.enter(EXTENTS_PER_BLOCK * EXTENT, 1), 'not durable before it is written').toBeInstanceOf(Promise);
});

test('a block that cannot be read is lost alone', async () => {
  const bench = await makeLog({ sizeBytes: 2 * EXTENTS_PER_BLOCK * EXTENT });
  await write(bench.log, 3);
  for (const offset of bench.layout.copyOffsets)
    bench.device.inject({
      action: { kind: 'error' },
      on: 'read',
      within: { offset: offset + LOG_BLOCK_BYTES, length: LOG_BLOCK_BYTES },
    });
  const log = await ActivityLog.open(bench.device, bench.layout, false);
  expect(extentsOf(log)).toEqual(['3', `${EXTENTS_PER_BLOCK}-${2 * EXTENTS_PER_BLOCK - 1}`]);
  expect(log.damage).toMatchObject([{ block: 1, lost: true, reason: expect.stringContaining('cannot be read') }]);
});

test('a crash between the two copies leaves the newer one, which names more or what was flushed less', async () => {
  const bench = await makeLog();
  await write(bench.log, 1);
  bench.device.inject({ action: { kind: 'error' }, on: 'write', skip: 1 });
  await expect(bench.log.enter(2 * EXTENT, 1)).rejects.toThrow();
  expect(await bench.onDevice()).toEqual(['1-2']);
});

test('the planted bug takes extents out without a flush', async () => {
  onTestFinished(() => plantBug(undefined));
  plantBug('log-retired-before-flush');
  const bench = await makeLog();
  await write(bench.log, 1);
  await bench.log.clear();
  expect(await bench.onDevice()).toEqual([]);
});

test('whatever is written, flushed and pinned in whatever order, the device names every extent that may differ', async () => {
  const extents = 12;
  const step = fc.oneof(
    fc.record({ do: fc.constant('begin' as const), extent: fc.nat({ max: extents - 1 }) }),
    fc.record({ do: fc.constantFrom('end' as const, 'flush' as const, 'wait' as const, 'settle' as const) }),
    fc.record({ do: fc.constantFrom('pin' as const, 'unpin' as const), extent: fc.nat({ max: extents - 1 }) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const bench = await makeLog({ sizeBytes: extents * EXTENT, maxActive: 3 });
      const { log } = bench;
      const writing: number[] = [];
      const unflushed = new Set<number>();
      for (const one of steps) {
        if (one.do === 'begin') {
          await log.enter(one.extent * EXTENT, 4096);
          writing.push(one.extent);
        } else if (one.do === 'end' && writing.length > 0) {
          const extent = writing.shift()!;
          unflushed.add(extent);
          log.leave(extent * EXTENT, 4096);
        } else if (one.do === 'flush') {
          flush(log);
          unflushed.clear();
        } else if (one.do === 'wait') await bench.scheduler.runFor(600);
        else if (one.do === 'settle') await log.clear();
        else if (one.do === 'pin' && log.activeExtents > 0) {
          const first = [...log.named()][0]!.offset / EXTENT;
          bench.pinned.add(first);
        } else if (one.do === 'unpin') bench.pinned.delete(one.extent);
        const named = new Set([...(await ActivityLog.open(bench.memory, bench.layout, false)).named()].flatMap(spread));
        for (const extent of [...writing, ...unflushed, ...bench.pinned]) expect(named).toContain(extent);
      }
    }),
    { numRuns: 200 },
  );
});

function spread({ offset, length }: { offset: number; length: number }): number[] {
  return Array.from({ length: Math.ceil(length / EXTENT) }, (_, index) => offset / EXTENT + index);
}

// --- the format

const place = { logId, index: 7, offset: 0x11000, extents: 1001 };

function goldenBits(): Uint8Array {
  const bits = new Uint8Array(BITS_BYTES);
  bits[0] = 0b1000_0001;
  bits[125] = 1;
  return bits;
}

test('the format on the device is the one in the golden file', () => {
  const golden = new Uint8Array(readFileSync(new URL('golden/activity-log-1.bin', import.meta.url)));
  expect(Buffer.compare(encodeLogBlock(place, 0x0102030405, goldenBits()), golden)).toBe(0);
  expect(decodeLogBlock(golden, place)).toEqual({ sequence: 0x0102030405, bits: goldenBits(), reason: undefined });
});

test('every single bit that turns over in a block is told', () => {
  const bytes = encodeLogBlock(place, 3, goldenBits());
  for (let bit = 0; bit < LOG_BLOCK_BYTES * 8; bit += 1) {
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    if (decodeLogBlock(bytes, place).bits !== undefined) expect.fail(`bit ${bit} is not told`);
    bytes[bit >> 3]! ^= 1 << (bit & 7);
  }
  expect(decodeLogBlock(bytes, place).sequence).toBe(3);
});

test('a block that is torn at any byte is told, over zeros and over an older block', () => {
  const bytes = encodeLogBlock(place, 4, goldenBits());
  const older = encodeLogBlock(place, 3, allNamed(1001));
  for (const below of [new Uint8Array(LOG_BLOCK_BYTES), older]) {
    for (let length = 0; length < LOG_BLOCK_BYTES; length += 1) {
      const torn = new Uint8Array(below);
      torn.set(bytes.subarray(0, length));
      const { sequence } = decodeLogBlock(torn, place);
      const whole = Buffer.compare(torn, bytes) === 0 ? 4 : Buffer.compare(torn, older) === 0 ? 3 : 0;
      if (sequence !== whole) expect.fail(`torn at ${length}: sequence ${sequence}`);
    }
  }
  for (let length = 0; length < LOG_BLOCK_BYTES; length += 1)
    if (decodeLogBlock(bytes.subarray(0, length), place).bits !== undefined) expect.fail(`cut to ${length}`);
});

test('a block in another place, of another log or of another shape does not count', () => {
  const bytes = encodeLogBlock(place, 3, goldenBits());
  const reason = (changed: object) => decodeLogBlock(bytes, { ...place, ...changed }).reason;
  expect(reason({ offset: 0x12000 })).toBe('it was written for offset 69632');
  expect(reason({ index: 8 })).toBe('it is block 7');
  expect(reason({ logId: 'ff'.repeat(16) })).toBe('it is of another log');
  expect(reason({ extents: 1000 })).toBe('it speaks for 1001 extents');
  const beyond = goldenBits();
  beyond[125] = 2;
  expect(decodeLogBlock(encodeLogBlock(place, 3, beyond), place).reason).toBe('it names extents beyond the volume');
});

test('whatever the bytes are, reading a block ends in bits or a reason', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 0, maxLength: LOG_BLOCK_BYTES }), (bytes) => {
      const padded = new Uint8Array(LOG_BLOCK_BYTES);
      padded.set(bytes);
      Buffer.from('HFACTLOG').copy(padded);
      expect(decodeLogBlock(padded, place).reason).toMatch(/./);
    }),
  );
});
