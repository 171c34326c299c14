import { beforeEach, expect, test } from 'vitest';
import { Watch } from '../../lib/mirror/watch.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';

let scheduler: Scheduler;
let process: SimulatedProcess;
let watch: Watch;
let late: number;

beforeEach(() => {
  scheduler = new Scheduler();
  process = new SimulatedProcess('p');
  late = 0;
  watch = new Watch(new SimulatedClock(scheduler, process, 0), 100, () => {
    late += 1;
  });
});

test('a request that ends in time is not told', async () => {
  const request = watch.begin();
  await scheduler.runFor(90);
  watch.end(request);
  await scheduler.runFor(5_000);
  expect(late).toBe(0);
});

test('a request that hangs is told once, after a second look', async () => {
  watch.begin();
  await scheduler.runFor(90);
  expect(late).toBe(0);
  await scheduler.runFor(10_000);
  expect(late).toBe(1);
});

test('each request has its own time, also under a flow of others', async () => {
  for (let round = 0; round < 50; round += 1) {
    const request = watch.begin();
    await scheduler.runFor(80);
    watch.end(request);
  }
  expect(late).toBe(0);
  watch.begin();
  await scheduler.runFor(1_250);
  expect(late).toBe(1);
});

test('a process that was stopped finds its answers before anything counts as late', async () => {
  const request = watch.begin();
  process.pause();
  await scheduler.runFor(60_000);
  process.resume();
  await scheduler.runFor(10);
  watch.end(request);
  await scheduler.runFor(5_000);
  expect(late).toBe(0);
});

test('nothing is told after the stop', async () => {
  watch.begin();
  watch.stop();
  watch.begin();
  await scheduler.runFor(5_000);
  expect(late).toBe(0);
});
