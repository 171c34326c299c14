import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedDisk, type SimulatedDiskOptions } from '../../lib/testing/simulated-disk.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { conformance, conformanceSizeBytes, pattern } from '../conformance/block-device.ts';

conformance('a simulated disk', async () => {
  const latencyMs = [0, 0] as const;
  const disk = new SimulatedDisk({
    clock: systemClock,
    random: new SimulatedRandom(7),
    sizeBytes: conformanceSizeBytes,
    readLatencyMs: latencyMs,
    writeLatencyMs: latencyMs,
    flushLatencyMs: latencyMs,
  });
  return { device: disk.open(), reopenReadOnly: async () => disk.open({ readOnly: true }) };
}, ['reopenReadOnly']);

function makeDisk(seed: number, options: Partial<SimulatedDiskOptions> = {}) {
  const scheduler = new Scheduler();
  const clock = new SimulatedClock(scheduler, new SimulatedProcess('world'), 0);
  const disk = new SimulatedDisk({
    clock,
    random: new SimulatedRandom(seed),
    sizeBytes: 1024 * 1024,
    ...options,
  });
  const done = <T>(promise: Promise<T>): Promise<T> => scheduler.runUntil(promise, 60_000);
  return { scheduler, disk, done };
}

function content(disk: SimulatedDisk, offset: number, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  disk.peek(offset, bytes);
  return bytes;
}

const seeds = Array.from({ length: 60 }, (_, seed) => seed);

/** For each sector: 'new', 'old', or what else it is. */
function sectors(found: Uint8Array, old: Uint8Array, young: Uint8Array): string[] {
  return Array.from({ length: found.byteLength / 512 }, (_, index) => {
    const at = (bytes: Uint8Array) => Buffer.from(bytes.subarray(index * 512, index * 512 + 512));
    if (at(found).equals(at(young))) return 'new';
    return at(found).equals(at(old)) ? 'old' : 'neither';
  });
}

/** Gathers over all seeds what a write of 8 sectors has become. */
async function outcomes(run: (seed: number) => Promise<{ disk: SimulatedDisk }>): Promise<Set<string>> {
  const seen = new Set<string>();
  for (const seed of seeds) {
    const { disk } = await run(seed);
    const states = new Set(sectors(content(disk, 4096, 4096), pattern(4096, 1), pattern(4096, 2)));
    seen.add(states.size === 2 ? 'torn' : [...states][0]!);
    expect(states).not.toContain('neither');
  }
  return seen;
}

test('a power cut keeps, loses or tears what was not flushed, and nothing else', async () => {
  const seen = await outcomes(async (seed) => {
    const { disk, done } = makeDisk(seed);
    const device = disk.open();
    await done(device.write(4096, pattern(4096, 1)));
    await done(device.flush());
    await done(device.write(4096, pattern(4096, 2)));
    disk.crash();
    return { disk };
  });
  expect([...seen].sort()).toEqual(['new', 'old', 'torn']);
});

test('a power cut takes nothing that was flushed or written with force unit access', async () => {
  const seen = await outcomes(async (seed) => {
    const { disk, done } = makeDisk(seed);
    const device = disk.open();
    await done(device.write(4096, pattern(4096, 1)));
    if (seed % 2 === 0) {
      await done(device.write(4096, pattern(4096, 2)));
      await done(device.flush());
    } else {
      await done(device.write(4096, pattern(4096, 2), { fua: true }));
    }
    disk.crash();
    return { disk };
  });
  expect([...seen]).toEqual(['new']);
});

test('an older write in the cache never comes over a newer one with force unit access', async () => {
  for (const seed of seeds) {
    const { disk, done } = makeDisk(seed);
    const device = disk.open();
    await done(device.write(0, pattern(16_384, 1)));
    await done(device.write(4096, pattern(4096, 2), { fua: true }));
    if (seed % 2 === 0) await done(device.flush());
    disk.crash();
    expect(Buffer.compare(content(disk, 4096, 4096), pattern(4096, 2))).toBe(0);
  }
});

test('a flush covers what had resolved before it, not what came during it', async () => {
  const seen = new Set<boolean>();
  for (const seed of seeds) {
    const { disk, done } = makeDisk(seed, { flushLatencyMs: [10, 20], writeLatencyMs: [1, 2] });
    const device = disk.open();
    await done(device.write(0, pattern(512, 1)));
    const flushing = device.flush();
    await done(device.write(512, pattern(512, 2)));
    await done(flushing);
    disk.crash();
    expect(content(disk, 0, 512)).toEqual(pattern(512, 1));
    seen.add(content(disk, 512, 512)[0] !== 0);
  }
  expect([...seen].sort()).toEqual([false, true]);
});

test('the death of a process keeps what completed; what was in flight happens, does not, or does in part', async () => {
  const seen = await outcomes(async (seed) => {
    const { disk, done } = makeDisk(seed);
    const device = disk.open();
    await done(device.write(4096, pattern(4096, 1)));
    await done(device.write(0, pattern(4096, 3)));
    void device.write(4096, pattern(4096, 2));
    disk.kill();
    expect(content(disk, 0, 4096)).toEqual(pattern(4096, 3));
    return { disk };
  });
  expect([...seen].sort()).toEqual(['new', 'old', 'torn']);
});

test('nothing that a dead face was asked for ever ends, and the disk can be opened again', async () => {
  const { scheduler, disk, done } = makeDisk(1);
  const device = disk.open();
  let settled = 0;
  const count = () => settled++;
  await done(device.write(0, pattern(512, 1)));
  const ask = (face: BlockDevice) => {
    face.read(0, new Uint8Array(512)).then(count, count);
    face.write(1, pattern(3, 1)).then(count, count);
    face.flush().then(count, count);
  };
  ask(device);
  expect(() => disk.open()).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_DEVICE_BUSY' }));
  disk.crash();
  ask(device);
  await scheduler.runFor(1000);
  expect(settled).toBe(0);
  const reopened = disk.open();
  await done(reopened.write(512, pattern(512, 2)));
  await done(reopened.close());
  await done(disk.open({ readOnly: true }).read(0, new Uint8Array(512)));
});

test('the data of a write moves when it completes: a buffer changed in flight is found out', async () => {
  const { disk, done } = makeDisk(1);
  const device = disk.open();
  const buffer = pattern(512, 1);
  const writing = device.write(0, buffer);
  buffer.fill(9);
  await done(writing);
  expect(content(disk, 0, 512)[0]).toBe(9);
});

test('requests overtake each other', async () => {
  const { disk, done } = makeDisk(1);
  const device = disk.open();
  const order: number[] = [];
  await done(
    Promise.all(
      Array.from({ length: 20 }, (_, index) =>
        device.write(index * 512, pattern(512, index)).then(() => order.push(index)),
      ),
    ),
  );
  expect(order).not.toEqual([...order].sort((left, right) => left - right));
});

test('the cache is bounded', async () => {
  const { disk, done } = makeDisk(1, { cacheBytes: 8192 });
  const device = disk.open();
  for (let index = 0; index < 10; index++) await done(device.write(index * 4096, pattern(4096, index)));
  expect(disk.unflushedBytes).toBe(8192);
  await done(device.flush());
  expect(disk.unflushedBytes).toBe(0);
});

test('a disk without a cache loses nothing that completed', async () => {
  for (const seed of seeds) {
    const { disk, done } = makeDisk(seed, { cacheBytes: 0 });
    const device = disk.open();
    await done(device.write(0, pattern(4096, 1)));
    disk.crash();
    expect(content(disk, 0, 4096)).toEqual(pattern(4096, 1));
  }
});

test('a stopped process hears of its writes later; the disk did them in time', async () => {
  const { scheduler, disk } = makeDisk(1);
  const process = new SimulatedProcess('a');
  const device = disk.open({ run: (answer) => process.run(answer) });
  let heard = false;
  void device.write(0, pattern(512, 1)).then(() => {
    heard = true;
  });
  process.pause();
  await scheduler.runFor(100);
  expect(heard).toBe(false);
  expect(content(disk, 0, 512)).toEqual(pattern(512, 1));
  process.resume();
  await scheduler.runFor(1);
  expect(heard).toBe(true);
});

test('faults are injected below the read-modify-write and stay through a crash', async () => {
  const { disk, done } = makeDisk(1);
  const fault = disk.faults.inject({ action: { kind: 'error' }, on: 'read', within: { offset: 512, length: 512 } });
  await expect(done(disk.open().write(600, pattern(3, 1)))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  disk.crash();
  const device = disk.open();
  await expect(done(device.read(512, new Uint8Array(512)))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  fault.remove();
  await done(device.read(512, new Uint8Array(512)));
});

test('a crash says whether it has cost anything', async () => {
  const seen = new Set<string>();
  for (const seed of seeds) {
    const { disk, done } = makeDisk(seed);
    const device = disk.open();
    await done(device.write(0, pattern(512, 1), { fua: true }));
    if (seed % 2 === 0) await done(device.write(0, pattern(512, 2)));
    const hasLost = disk.crash();
    const isNew = content(disk, 0, 512)[0] === pattern(512, seed % 2 === 0 ? 2 : 1)[0];
    expect(hasLost).toBe(!isNew);
    seen.add(`${seed % 2} ${hasLost}`);
  }
  expect([...seen].sort()).toEqual(['0 false', '0 true', '1 false']);
});

test('a bit that rots turns over in the cache and on the medium, for good', async () => {
  for (const flushed of [false, true]) {
    const { disk, done } = makeDisk(3);
    const device = disk.open();
    await done(device.write(0, pattern(1024, 1), { fua: flushed }));
    disk.rot(700, 3);
    const rotten = pattern(1024, 1);
    rotten[700]! ^= 8;
    expect(content(disk, 0, 1024)).toEqual(rotten);
    await done(device.flush());
    expect(disk.crash()).toBe(false);
    expect(content(disk, 0, 1024)).toEqual(rotten);
  }
});

test('another disk in its place is empty and well', async () => {
  const { disk, done } = makeDisk(1);
  await done(disk.open().write(0, pattern(512, 1)));
  disk.faults.inject({ action: { kind: 'error' } });
  disk.replace();
  expect(content(disk, 0, 512)).toEqual(new Uint8Array(512));
  await done(disk.open().write(0, pattern(512, 1)));
});

/** Random work with crashes; the trace says what happened when. */
async function tracedRun(seed: number): Promise<string> {
  const { scheduler, disk, done } = makeDisk(seed);
  const random = new SimulatedRandom(seed, 'work');
  const hash = createHash('sha256');
  let device = disk.open();
  for (let step = 0; step < 60; step++) {
    const requests = Array.from({ length: 8 }, (_, index) => {
      const offset = random.below(1000) * 777;
      const note = () => hash.update(`${step} ${index} ${scheduler.nowUs};`);
      return device.write(offset, pattern(1 + random.below(5000), step * 8 + index)).then(note);
    });
    if (random.below(3) === 0) {
      await scheduler.runFor(0.3);
      if (random.below(2) === 0) disk.crash();
      else disk.kill();
      device = disk.open();
    } else {
      await done(Promise.all(requests));
      if (random.below(2) === 0) await done(device.flush());
    }
  }
  return hash.update(content(disk, 0, 1024 * 1024)).digest('hex');
}

test('the same seed gives the same run, another seed another', async () => {
  expect(await tracedRun(5)).toBe(await tracedRun(5));
  expect(await tracedRun(6)).not.toBe(await tracedRun(5));
});
