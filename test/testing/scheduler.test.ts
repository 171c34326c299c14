import { expect, test } from 'vitest';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { Trace } from '../../lib/testing/trace.ts';

test('events run in the order of their time, then in the order in which they were scheduled', async () => {
  const scheduler = new Scheduler();
  const random = new SimulatedRandom(1);
  const ran: { at: number; order: number }[] = [];
  for (let order = 0; order < 5000; order++) {
    const at = random.below(100);
    const timer = scheduler.schedule(at, () => ran.push({ at: scheduler.nowUs, order }));
    if (random.chance(0.6)) timer.cancel();
  }
  expect(await scheduler.run(() => false)).toBe('idle');
  expect(ran.length).toBeGreaterThan(1500);
  expect(ran).toEqual(ran.toSorted((a, b) => a.at - b.at || a.order - b.order));
});

test('every microtask of an event runs before the next event', async () => {
  const scheduler = new Scheduler();
  const seen: string[] = [];
  const chain = async (name: string): Promise<void> => {
    for (let step = 0; step < 100; step++) await Promise.resolve();
    seen.push(`${name} settled`);
  };
  for (const name of ['one', 'two'])
    scheduler.schedule(5, () => {
      seen.push(name);
      void chain(name);
    });
  await scheduler.run(() => false);
  expect(seen).toEqual(['one', 'one settled', 'two', 'two settled']);
});

test('runUntil answers with the value, with the error, and tells a wait in vain', async () => {
  const scheduler = new Scheduler();
  const later = (ms: number): Promise<number> =>
    new Promise((resolve) => scheduler.schedule(ms * 1000, () => resolve(ms)));
  expect(await scheduler.runUntil(later(30), 100)).toBe(30);
  expect(scheduler.nowMs).toBe(30);
  await expect(scheduler.runUntil(Promise.reject(new Error('no')), 100)).rejects.toThrow('no');
  await expect(scheduler.runUntil(later(500), 100)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_TIMEOUT' });
  expect(scheduler.nowMs).toBe(130);
  await expect(scheduler.runUntil(new Promise(() => {}), 1000)).rejects.toThrow('in vain');
});

test('what an event throws ends the run', async () => {
  const scheduler = new Scheduler();
  scheduler.schedule(1, () => {
    throw new Error('broken');
  });
  await expect(scheduler.run(() => false)).rejects.toThrow('broken');
});

test('a timer never fires before its time on its own clock, however the clock runs', async () => {
  const scheduler = new Scheduler();
  const random = new SimulatedRandom(7);
  const clock = new SimulatedClock(scheduler, new SimulatedProcess('a'), 123_456.789);
  let fired = 0;
  for (let index = 0; index < 300; index++) {
    const due = clock.nowMs() + random.between(0, 50);
    clock.setTimer(due - clock.nowMs(), () => {
      fired++;
      expect(clock.nowMs()).toBeGreaterThanOrEqual(due - 1e-6);
      expect(clock.nowMs()).toBeLessThan(due + 150);
    });
    if (index % 10 === 0) scheduler.schedule(random.below(40_000), () => clock.setRate(random.between(0.5, 2)));
  }
  await scheduler.run(() => false);
  expect(fired).toBe(300);
});

test('a paused process wakes up late; a dead one never does', async () => {
  const scheduler = new Scheduler();
  const process = new SimulatedProcess('a');
  const clock = new SimulatedClock(scheduler, process, 0);
  const seen: string[] = [];
  clock.setTimer(10, () => seen.push(`first at ${clock.nowMs()}`));
  clock.setTimer(20, () => seen.push(`second at ${clock.nowMs()}`));
  const cancelled = clock.setTimer(15, () => seen.push('cancelled'));
  scheduler.schedule(5000, () => process.pause());
  scheduler.schedule(100_000, () => {
    cancelled.cancel();
    process.resume();
  });
  await scheduler.run(() => false);
  expect(seen).toEqual(['first at 100', 'second at 100']);
  clock.setTimer(1, () => seen.push('after death'));
  process.kill();
  await scheduler.run(() => false);
  expect(seen).toHaveLength(2);
});

test('streams of one seed repeat, and differ by label and by seed', () => {
  const words = (random: SimulatedRandom): number[] => Array.from({ length: 8 }, () => random.word());
  const one = words(new SimulatedRandom(42, 'x'));
  expect(words(new SimulatedRandom(42, 'x'))).toEqual(one);
  expect(words(new SimulatedRandom(1).fork('x'))).toEqual(words(new SimulatedRandom(1, 'x')));
  const others = [new SimulatedRandom(43, 'x'), new SimulatedRandom(42, 'y'), new SimulatedRandom(42 + 2 ** 40, 'x')];
  for (const other of others) expect(words(other)).not.toEqual(one);
});

test('draws are spread evenly', () => {
  const random = new SimulatedRandom(5);
  const counts = new Array<number>(10).fill(0);
  for (let draw = 0; draw < 100_000; draw++) counts[random.below(10)]!++;
  for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(500);
  const bytes = new Uint8Array(100_000);
  random.fill(bytes);
  const ones = bytes.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);
  expect(Math.abs(ones - 400_000)).toBeLessThan(2500);
});

test('the trace keeps the last lines, and its hash tells order and borders apart', () => {
  const trace = new Trace({ keepLines: 3 });
  for (const line of ['a', 'b', 'c', 'd']) trace.add(line);
  expect(trace.lastLines()).toEqual(['b', 'c', 'd']);
  const hashOf = (lines: string[]): string => {
    const other = new Trace();
    for (const line of lines) other.add(line);
    return other.hash();
  };
  expect(hashOf(['a', 'b', 'c', 'd'])).toBe(trace.hash());
  expect(hashOf(['b', 'a', 'c', 'd'])).not.toBe(trace.hash());
  expect(hashOf(['ab', 'c', 'd'])).not.toBe(trace.hash());
});

test('the trace of numbers tells apart what differs in any of them, kept or not', () => {
  const hashOf = (keepLines: number, ...event: [number, string, string, number, number]): string => {
    const trace = new Trace({ keepLines });
    trace.event(...event);
    return trace.hash();
  };
  const base: [number, string, string, number, number] = [5, 'a', 'sends', 7, 9];
  expect(hashOf(0, ...base)).toBe(hashOf(10, ...base));
  const others: (typeof base)[] = [
    [6, 'a', 'sends', 7, 9],
    [5 + 2 ** 40, 'a', 'sends', 7, 9],
    [5, 'b', 'sends', 7, 9],
    [5, 'a', 'gets', 7, 9],
    [5, 'a', 'sends', 9, 7],
  ];
  for (const other of others) expect(hashOf(0, ...other)).not.toBe(hashOf(0, ...base));
});
