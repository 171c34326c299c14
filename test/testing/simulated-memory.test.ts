import { expect, test } from 'vitest';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const seeds = Array.from({ length: 60 }, (_, seed) => seed);
const filled = (value: number, length = 64) => new Uint8Array(length).fill(value);

function makeMemory(seed: number) {
  const scheduler = new Scheduler();
  const clock = new SimulatedClock(scheduler, new SimulatedProcess('world'), 0);
  const memory = new SimulatedMemory({ random: new SimulatedRandom(seed), sizeBytes: 4096, clock });
  const done = <T>(promise: Promise<T>): Promise<T> => scheduler.runUntil(promise, 60_000);
  return { memory, done, scheduler };
}

/** The first byte of each of the first lines, after the power came back. */
function lines(memory: SimulatedMemory, count: number): number[] {
  const bytes = new Uint8Array(4096);
  memory.open().read(0, bytes);
  const first = Array.from({ length: count }, (_, line) => bytes[line * 64]!);
  for (let at = 0; at < count * 64; at += 1) expect(bytes[at]).toBe(first[at >> 6]);
  return first;
}

test('what was persisted survives the power cut; of the rest each line is kept or lost by itself', async () => {
  const seen = new Set<string>();
  for (const seed of seeds) {
    const { memory, done } = makeMemory(seed);
    const face = memory.open();
    face.write(0, filled(1, 256));
    await done(face.persist(0, 256));
    face.write(64, filled(2, 192));
    await done(face.persist(64, 64));
    memory.crash();
    const found = lines(memory, 4);
    expect(found.slice(0, 2)).toEqual([1, 2]);
    seen.add(found.slice(2).join());
  }
  expect([...seen].sort()).toEqual(['1,1', '1,2', '2,1', '2,2']);
});

test('a line can come back as it was in between, but never older than it was persisted', async () => {
  const seen = new Set<number>();
  for (const seed of seeds) {
    const { memory, done } = makeMemory(seed);
    const face = memory.open();
    face.write(0, filled(1));
    await done(face.persist(0, 64));
    for (const value of [2, 3, 4]) face.write(0, filled(value));
    memory.crash();
    seen.add(lines(memory, 1)[0]!);
  }
  expect([...seen].sort()).toEqual([1, 2, 3, 4]);
});

test('what is stored while a persist runs is not taken back by it, and is not promised by it', async () => {
  const seen = new Set<number>();
  for (const seed of seeds) {
    const { memory, done } = makeMemory(seed);
    const face = memory.open();
    face.write(0, filled(1));
    const first = face.persist(0, 64);
    face.write(0, filled(2));
    const second = face.persist(0, 64);
    face.write(0, filled(3));
    await done(first);
    const durable = new Uint8Array(1);
    memory.peekDurable(0, durable);
    expect(durable[0]).toBeGreaterThanOrEqual(1);
    if (seed % 2 === 0) {
      await done(second);
      memory.peekDurable(0, durable);
      expect(durable[0]).toBeGreaterThanOrEqual(2);
    }
    memory.crash();
    const [found] = lines(memory, 1);
    expect(found).toBeGreaterThanOrEqual(durable[0]!);
    seen.add(found!);
  }
  expect([...seen].sort()).toEqual([1, 2, 3]);
});

test('the power goes in the middle of the nth store: words of it have happened or not, and the process is heard no more', async () => {
  const seen = new Set<string>();
  for (const seed of seeds) {
    const { memory, done } = makeMemory(seed);
    const face = memory.open();
    face.write(0, filled(1));
    await done(face.persist(0, 64));
    let crashes = 0;
    memory.crashAtStore(2, () => {
      crashes += 1;
    });
    face.write(64, filled(7));
    expect(crashes).toBe(0);
    face.write(4, filled(2, 56));
    expect(crashes).toBe(1);
    face.write(0, filled(3));
    await expect(done(face.persist(0, 64))).rejects.toThrow('waits in vain');
    const bytes = new Uint8Array(64);
    memory.open().read(0, bytes);
    const words = [0, 1, 2, 3, 4, 5, 6, 7].map((word) => [...bytes.subarray(word * 8, word * 8 + 8)].join(''));
    expect(['11111111', '11112222']).toContain(words[0]);
    expect(['11111111', '22221111']).toContain(words[7]);
    for (const word of words.slice(1, 7)) expect(['11111111', '22222222']).toContain(word);
    seen.add(words.join());
  }
  expect(seen.size).toBeGreaterThan(10);
});

test('a persist that failed fails all after it, until the memory is opened again', async () => {
  const { memory, done } = makeMemory(1);
  const face = memory.open();
  face.write(0, filled(1));
  memory.failPersists();
  await expect(done(face.persist(0, 64))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED', errno: 'EIO' });
  await expect(done(face.persist(128, 64))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED' });
  expect(face.failure).toMatchObject({ code: 'ERR_HOLDFAST_FLUSH_FAILED' });
  memory.kill();
  const again = memory.open();
  await done(again.persist(0, 64));
  expect(again.failure).toBeUndefined();
  memory.crash();
  expect(lines(memory, 1)).toEqual([1]);
});

test('a persist that hangs ends when it is let go, and never if the process is dead by then', async () => {
  const { memory, done, scheduler } = makeMemory(2);
  const face = memory.open();
  face.write(0, filled(1));
  memory.hangPersists();
  let ended = 0;
  const count = () => {
    ended += 1;
  };
  void face.persist(0, 64).then(count);
  await scheduler.runFor(100);
  expect(ended).toBe(0);
  memory.resumePersists();
  await done(face.persist(0, 64));
  expect(ended).toBe(1);
  memory.hangPersists();
  void face.persist(0, 64).then(count);
  memory.kill();
  memory.resumePersists();
  await done(memory.open().persist(0, 64));
  expect(ended).toBe(1);
});

test('the death of the process loses nothing; two processes do not have the memory at once', () => {
  const { memory } = makeMemory(1);
  const face = memory.open();
  expect(() => memory.open()).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_DEVICE_BUSY' }));
  face.write(8, filled(5, 8));
  memory.kill();
  const again = memory.open();
  face.write(8, filled(6, 8));
  expect(again.load(8)).toBe(0x0505050505050505n);
  expect(again.compareAndSwap(8, 1n, 2n)).toBe(0x0505050505050505n);
  expect(again.compareAndSwap(8, 0x0505050505050505n, 2n ** 64n - 2n)).toBe(0x0505050505050505n);
  expect(again.load(8)).toBe(2n ** 64n - 2n);
});
