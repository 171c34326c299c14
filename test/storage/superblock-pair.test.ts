import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { expect, onTestFinished, test } from 'vitest';
import { plantBug } from '../../lib/base/planted-bug.ts';
import { FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import {
  decodeSuperblock,
  encodeSuperblock,
  type SuperblockFormat,
  SuperblockPair,
} from '../../lib/storage/superblock-pair.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedDisk } from '../../lib/testing/simulated-disk.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const format: SuperblockFormat = { name: 'test', version: 3, oldestVersion: 2 };
const layout = { copyOffsets: [8192, 32_768], copyBytes: 4096 } as const;
const text = (words: string) => new TextEncoder().encode(words);
const words = (pair: SuperblockPair) => new TextDecoder().decode(pair.payload);

function makeDevice() {
  const memory = new MemoryDevice({ sizeBytes: 65_536, name: 'meta' });
  return { memory, device: new FaultyDevice(memory) };
}

async function damage(memory: MemoryDevice, copyOffset: number, at = 64): Promise<void> {
  const byte = new Uint8Array(1);
  await memory.read(copyOffset + at, byte);
  byte[0]! ^= 0x10;
  await memory.write(copyOffset + at, byte);
}

test('it reads back the newest record', async () => {
  const { device } = makeDevice();
  const pair = await SuperblockPair.create(device, format, layout, text('one'));
  await pair.write(text('two'));
  await pair.write(text('three, longer'));
  const opened = await SuperblockPair.open(device, format, layout);
  expect(words(opened)).toBe('three, longer');
  expect(opened.sequence).toBe(3);
  expect(opened.damage).toEqual([]);
});

test('both copies are written at the same sequence, with a flush after each', async () => {
  const { memory, device } = makeDevice();
  const log: string[] = [];
  const pair = await SuperblockPair.create(device, format, layout, text('one'));
  const { write, flush } = memory;
  memory.write = (offset, bytes, options) => {
    const { frame } = decodeSuperblock(bytes, offset);
    log.push(`write ${offset} sequence ${frame?.sequence}`);
    return write.call(memory, offset, bytes, options);
  };
  memory.flush = (options) => {
    log.push('flush');
    return flush.call(memory, options);
  };
  await pair.write(text('two'));
  expect(log).toEqual(['write 8192 sequence 2', 'flush', 'write 32768 sequence 2', 'flush']);
});

test('the planted bug writes one copy at a time, so that rot of the newest brings back the one before', async () => {
  onTestFinished(() => plantBug(undefined));
  for (const bug of [undefined, 'superblock-written-once'] as const) {
    plantBug(bug);
    const { memory, device } = makeDevice();
    const pair = await SuperblockPair.create(device, format, layout, text('one'));
    await pair.write(text('two'));
    await pair.write(text('three'));
    await damage(memory, layout.copyOffsets[0]);
    expect(words(await SuperblockPair.open(device, format, layout))).toBe(bug === undefined ? 'three' : 'two');
  }
});

test.each([0, 1])('one rotten copy (%i) is told, and the next write mends it', async (copy) => {
  const { memory, device } = makeDevice();
  await (await SuperblockPair.create(device, format, layout, text('one'))).write(text('two'));
  await damage(memory, layout.copyOffsets[copy]!);
  const opened = await SuperblockPair.open(device, format, layout);
  expect(words(opened)).toBe('two');
  expect(opened.damage).toEqual([{ copyOffset: layout.copyOffsets[copy], reason: 'its checksum is wrong' }]);
  await opened.repair();
  expect(opened.damage).toEqual([]);
  const again = await SuperblockPair.open(device, format, layout);
  expect(words(again)).toBe('two');
  expect(again.damage).toEqual([]);
});

test('every single bit that turns over in a copy is found', async () => {
  const bytes = encodeSuperblock(
    { formatName: 'test', formatVersion: 3, sequence: 9, payload: text('payload') },
    8192,
    4096,
  );
  for (let bit = 0; bit < (64 + 7) * 8; bit++) {
    const rotten = bytes.slice();
    rotten[bit >> 3]! ^= 1 << (bit & 7);
    expect(decodeSuperblock(rotten, 8192).frame, `bit ${bit}`).toBeUndefined();
  }
});

test('whatever the bytes are, reading them ends in a frame or a reason', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (bytes, withMagic) => {
      if (withMagic) Buffer.from('HOLDFAST').copy(bytes);
      const decoded = decodeSuperblock(bytes, 0);
      expect(decoded.frame === undefined && decoded.reason.length > 0).toBe(true);
    }),
  );
});

test('the copy that is in doubt is written first, so that a good one is always left', async () => {
  const { memory, device } = makeDevice();
  await SuperblockPair.create(device, format, layout, text('one'));
  await damage(memory, layout.copyOffsets[1]);
  const opened = await SuperblockPair.open(device, format, layout);
  const fault = device.inject({ action: { kind: 'error' }, on: 'write' });
  await expect(opened.write(text('two'))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  expect(fault.hits).toBe(1);
  fault.remove();
  // The second copy was the one that failed: had it been the first, nothing would be left.
  expect(words(await SuperblockPair.open(device, format, layout))).toBe('one');
  await opened.write(text('three'));
  expect(words(await SuperblockPair.open(device, format, layout))).toBe('three');
});

test('a failed write or flush leaves the old record or the new one, and the next write goes on', async () => {
  for (const on of ['write', 'flush'] as const) {
    for (const skip of [0, 1]) {
      for (const when of ['before', 'after'] as const) {
        const { device } = makeDevice();
        const pair = await SuperblockPair.create(device, format, layout, text('one'));
        device.inject({ action: { kind: 'error', when }, on, skip, times: 1 });
        await expect(pair.write(text('two'))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
        expect(['one', 'two']).toContain(words(await SuperblockPair.open(device, format, layout)));
        await pair.write(text('three'));
        const opened = await SuperblockPair.open(device, format, layout);
        expect([words(opened), opened.damage.length]).toEqual(['three', 0]);
      }
    }
  }
});

test('after a failed write, repair makes both copies whole and equal', async () => {
  for (const skip of [0, 1]) {
    const { memory, device } = makeDevice();
    const pair = await SuperblockPair.create(device, format, layout, text('one'));
    device.inject({ action: { kind: 'error' }, on: 'write', skip, times: 1 });
    await expect(pair.write(text('two'))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
    await pair.repair();
    const { writes } = device.stats();
    await pair.repair();
    expect(device.stats().writes).toBe(writes);
    for (const copy of layout.copyOffsets) {
      const opened = await SuperblockPair.open(device, format, layout);
      expect([words(opened), opened.damage]).toEqual([words(pair), []]);
      await damage(memory, copy);
      expect(words(await SuperblockPair.open(device, format, layout))).toBe(words(pair));
      await pair.write(pair.payload);
    }
  }
});

test('writes follow each other in the order of the calls', async () => {
  const { device } = makeDevice();
  const pair = await SuperblockPair.create(device, format, layout, text('one'));
  const mine = text('two');
  const writes = [pair.write(mine), pair.write(text('three')), pair.write(text('four'))];
  mine.fill(0);
  await Promise.all(writes);
  expect(words(pair)).toBe('four');
  expect(pair.sequence).toBe(4);
});

test('a device without metadata, or with that of another kind, is told apart', async () => {
  const { device } = makeDevice();
  const missing = expect.objectContaining({ code: 'ERR_HOLDFAST_METADATA_MISSING' });
  await expect(SuperblockPair.open(device, format, layout)).rejects.toEqual(missing);
  await SuperblockPair.create(device, { name: 'other', version: 3 }, layout, text('one'));
  await expect(SuperblockPair.open(device, format, layout)).rejects.toEqual(missing);
  await expect(SuperblockPair.open(device, format, layout)).rejects.toThrow(/"other" instead of "test"/);
});

test('half-written metadata is a clear error, and nothing is changed', async () => {
  const { memory, device } = makeDevice();
  await SuperblockPair.create(device, format, layout, text('one'));
  await damage(memory, layout.copyOffsets[0], 63);
  await memory.write(layout.copyOffsets[1], new Uint8Array(4096));
  const before = device.stats().writes;
  await expect(SuperblockPair.open(device, format, layout)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_METADATA_DAMAGED',
    message: expect.stringMatching(/^meta: neither copy .* checksum is wrong.* no magic.*create this member anew/),
  });
  expect(device.stats().writes).toBe(before);
});

test('an unknown version is refused, an older known one is read', async () => {
  const { device } = makeDevice();
  const refused = expect.objectContaining({ code: 'ERR_HOLDFAST_METADATA_VERSION' });
  for (const [version, readable] of [
    [1, false],
    [2, true],
    [3, true],
    [4, false],
  ] as const) {
    await SuperblockPair.create(device, { name: 'test', version }, layout, text('one'));
    const opening = SuperblockPair.open(device, format, layout);
    if (readable) expect(words(await opening)).toBe('one');
    else await expect(opening).rejects.toEqual(refused);
  }
});

test('a frame of a later version is refused as that, and never called damaged', async () => {
  const { memory, device } = makeDevice();
  await SuperblockPair.create(device, format, layout, text('one'));
  const later = async (copyOffset: number) => {
    const bytes = Buffer.alloc(layout.copyBytes, 0x5a);
    bytes.write('HOLDFAST', 'latin1');
    bytes.writeUInt16LE(2, 8);
    await memory.write(copyOffset, bytes);
  };
  await later(layout.copyOffsets[1]);
  // One copy alone may as well be rot.
  expect((await SuperblockPair.open(device, format, layout)).damage).toMatchObject([
    { copyOffset: layout.copyOffsets[1], reason: expect.stringContaining('version 2') },
  ]);
  await later(layout.copyOffsets[0]);
  await expect(SuperblockPair.open(device, format, layout)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_METADATA_VERSION',
  });
});

test('a newer version on one copy is not passed over in favour of an older one on the other', async () => {
  const { memory, device } = makeDevice();
  await SuperblockPair.create(device, format, layout, text('one'));
  const newer = { formatName: 'test', formatVersion: 4, sequence: 2, payload: text('two') };
  await memory.write(8192, encodeSuperblock(newer, 8192, 4096));
  await expect(SuperblockPair.open(device, format, layout)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_METADATA_VERSION',
  });
});

test('a copy that was written for another place does not count', async () => {
  const { memory, device } = makeDevice();
  await SuperblockPair.create(device, format, layout, text('one'));
  const misdirected = { formatName: 'test', formatVersion: 3, sequence: 7, payload: text('seven') };
  await memory.write(32_768, encodeSuperblock(misdirected, 8192, 4096));
  const opened = await SuperblockPair.open(device, format, layout);
  expect(words(opened)).toBe('one');
  expect(opened.damage).toEqual([{ copyOffset: 32_768, reason: 'it was written for offset 8192' }]);
});

test('two whole copies that differ at one sequence are not believed', async () => {
  const { memory, device } = makeDevice();
  await SuperblockPair.create(device, format, layout, text('one'));
  const forged = { formatName: 'test', formatVersion: 3, sequence: 1, payload: text('two') };
  await memory.write(32_768, encodeSuperblock(forged, 32_768, 4096));
  await expect(SuperblockPair.open(device, format, layout)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_METADATA_DAMAGED',
  });
});

test('a copy that cannot be read is told; if neither can, the error is the device’s', async () => {
  const { device } = makeDevice();
  await SuperblockPair.create(device, format, layout, text('one'));
  device.inject({ action: { kind: 'error' }, on: 'read', within: { offset: 8192, length: 4096 } });
  const opened = await SuperblockPair.open(device, format, layout);
  expect(words(opened)).toBe('one');
  expect(opened.damage).toMatchObject([{ copyOffset: 8192, reason: expect.stringContaining('cannot be read') }]);
  device.inject({ action: { kind: 'error' }, on: 'read' });
  await expect(SuperblockPair.open(device, format, layout)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
});

test('what does not fit is refused before anything changes', async () => {
  const { device } = makeDevice();
  const bad = expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  const small = expect.objectContaining({ code: 'ERR_HOLDFAST_OUT_OF_RANGE' });
  const create = (copyOffsets: [number, number], copyBytes: number, payloadBytes: number) =>
    SuperblockPair.create(device, format, { copyOffsets, copyBytes }, new Uint8Array(payloadBytes));
  await expect(create([0, 4096], 4096, 4096 - 63)).rejects.toEqual(bad);
  await expect(create([0, 4096], 4096, 0)).rejects.toEqual(bad);
  await expect(create([0, 4096], 8192, 10)).rejects.toEqual(bad);
  await expect(create([0, 100], 4096, 10)).rejects.toEqual(bad);
  await expect(create([0, 65_536], 4096, 10)).rejects.toEqual(small);
  await expect(create([0, 2 ** 40], 2 ** 30, 10)).rejects.toEqual(bad);
  expect(device.stats().writes).toBe(0);
});

test('creating anew never lets an older record with a higher sequence come back', async () => {
  const { device } = makeDevice();
  const old = await SuperblockPair.create(device, format, layout, text('old'));
  for (let index = 0; index < 5; index++) await old.write(text('old'));
  device.inject({ action: { kind: 'error' }, on: 'write', skip: 3 });
  await expect(SuperblockPair.create(device, format, layout, text('new'))).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_IO',
  });
  expect(words(await SuperblockPair.open(device, format, layout))).toBe('new');
});

/** Copies of several blocks, which a power cut tears. */
const wide = { copyOffsets: [0, 16_384], copyBytes: 16_384 } as const;
const record = (count: number) => new Uint8Array(10_000).fill(count);

function simulated(seed: number) {
  const scheduler = new Scheduler();
  const clock = new SimulatedClock(scheduler, new SimulatedProcess('world'), 0);
  const disk = new SimulatedDisk({ clock, random: new SimulatedRandom(seed), sizeBytes: 65_536 });
  const done = <T>(promise: Promise<T>) => scheduler.runUntil(promise, 60_000);
  return { random: new SimulatedRandom(seed, 'cut'), scheduler, disk, done };
}

test('through power cuts at any moment, what was acknowledged is there', async () => {
  for (let seed = 0; seed < 200; seed++) {
    const { random, scheduler, disk, done } = simulated(seed);
    let pair = await done(SuperblockPair.create(disk.open(), format, wide, record(0)));
    let acknowledged = 0;
    let tried = 0;
    for (let round = 0; round < 6; round++) {
      void (async () => {
        const mine = pair;
        for (;;) {
          tried++;
          const count = tried;
          await mine.write(record(count));
          acknowledged = count;
        }
      })();
      await scheduler.runFor(random.below(2000) / 100);
      disk.crash();
      pair = await done(SuperblockPair.open(disk.open(), format, wide));
      const found = pair.payload[0]!;
      expect(Buffer.compare(pair.payload, record(found))).toBe(0);
      expect(found).toBeGreaterThanOrEqual(acknowledged);
      expect(found).toBeLessThanOrEqual(tried);
      await done(pair.repair());
      expect(pair.damage).toEqual([]);
      tried = found;
      acknowledged = found;
    }
  }
});

test('the process is killed, and the power cut while the next one repairs: what that one had read was not durable', async () => {
  for (let seed = 0; seed < 300; seed++) {
    const { random, scheduler, disk, done } = simulated(seed);
    const first = await done(SuperblockPair.create(disk.open(), format, wide, record(1)));
    void first.write(record(2));
    await scheduler.runFor(random.below(600) / 100);
    disk.kill();
    const second = await done(SuperblockPair.open(disk.open(), format, wide));
    const found = second.payload[0]!;
    void second.write(record(3));
    await scheduler.runFor(random.below(600) / 100);
    disk.crash();
    const third = await done(SuperblockPair.open(disk.open(), format, wide));
    expect([found, 3]).toContain(third.payload[0]!);
  }
});

test('the format on the disk is the one in the golden file', () => {
  const golden = readFileSync(new URL('golden/superblock-v1.bin', import.meta.url));
  const frame = { formatName: 'golden', formatVersion: 7, sequence: 0x0102030405, payload: text('what is kept') };
  expect(Buffer.compare(encodeSuperblock(frame, 0x11000, 4096), golden)).toBe(0);
  expect(decodeSuperblock(golden, 0x11000)).toEqual({ frame });
});
