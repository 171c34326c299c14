import { expect, test } from 'vitest';
import { PersistGroups } from '../../lib/checkpoint/persist-groups.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';

/** Groups whose run takes so long; what each covered, and when it began. */
function world(takesMs: number) {
  const scheduler = new Scheduler();
  const clock = new SimulatedClock(scheduler, new SimulatedProcess('unit'), 0);
  const runs: { start: number; length: number; count: number; atMs: number }[] = [];
  const failures: Error[] = [];
  let asked = 0;
  let inFlight = 0;
  const groups = new PersistGroups(async (start, length) => {
    expect(inFlight).toBe(0);
    inFlight += 1;
    runs.push({ start, length, count: asked, atMs: Math.round(scheduler.nowMs * 10) / 10 });
    asked = 0;
    await new Promise<void>((resolve) => clock.setTimer(takesMs, resolve));
    inFlight -= 1;
    const failure = failures.shift();
    if (failure !== undefined) throw failure;
  }, clock);
  const persist = (offset: number, length = 1): Promise<void> => {
    asked += 1;
    return groups.persist(offset, length);
  };
  /** A client that waits for each answer before it asks again, a while later. */
  const client = async (offset: number, times: number, thinksMs: number): Promise<void> => {
    for (let count = 0; count < times; count += 1) {
      await persist(offset);
      await new Promise<void>((resolve) => clock.setTimer(thinksMs, resolve));
    }
  };
  const done = <T>(promise: Promise<T>): Promise<T> => scheduler.runUntil(promise, 60_000);
  return { scheduler, runs, failures, groups, persist, client, done };
}

test('those of one turn are one group; those who come while it runs are the next, which covers all of them', async () => {
  const { runs, persist, done, scheduler } = world(0.5);
  const first = [persist(100, 10), persist(300, 20)];
  await scheduler.runFor(0.1);
  const second = [persist(50, 5), persist(1000, 24), persist(200)];
  await done(Promise.all([...first, ...second]));
  expect(runs).toMatchObject([
    { start: 100, length: 220, count: 2 },
    { start: 50, length: 974, count: 3 },
  ]);
});

test('a group that failed fails for those in it, and the next one runs', async () => {
  const { runs, failures, persist, done, scheduler, groups } = world(0.5);
  failures.push(new Error('as told'));
  const failed = [persist(1), persist(2)].map((promise) => expect(promise).rejects.toThrow('as told'));
  await scheduler.runFor(0.1);
  const good = persist(3);
  await done(Promise.all([...failed, good]));
  await done(groups.idle());
  expect(runs.length).toBe(2);
});

test('clients in two halves come together: a group holds for those who were just answered', async () => {
  const { runs, client, done, scheduler } = world(8);
  const clients = Array.from({ length: 8 }, (_, index) => client(index, 6, 0.2));
  await scheduler.runFor(4);
  clients.push(...Array.from({ length: 8 }, (_, index) => client(100 + index, 6, 0.2)));
  await done(Promise.all(clients));
  expect(runs.slice(0, 5).map(({ count }) => count)).toEqual([8, 16, 16, 16, 16]);
  // It went on when all were there, not when its time was over.
  for (let index = 1; index < 5; index += 1) expect(runs[index]!.atMs - runs[index - 1]!.atMs).toBeLessThan(8.6);
});

test('those who do not come back are waited for a quarter of the time, and not again for some groups', async () => {
  const { runs, persist, done, scheduler } = world(8);
  const all: Promise<void>[] = [];
  // Each asks once, while the one before it is persisted.
  for (let count = 0; count < 12; count += 1) {
    all.push(persist(count));
    await scheduler.runFor(1);
    while (runs.length <= count) await scheduler.runFor(0.5);
  }
  await done(Promise.all(all));
  const heldMs = runs.slice(1).map(({ atMs }, index) => Math.round((atMs - runs[index]!.atMs - 8) * 10) / 10);
  expect(heldMs).toEqual([2, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0]);
});

test('what takes less than a millisecond is not held', async () => {
  const { runs, client, done, scheduler } = world(0.9);
  const clients = [client(1, 5, 0.1)];
  await scheduler.runFor(0.5);
  clients.push(client(2, 5, 0.1));
  await done(Promise.all(clients));
  for (let index = 1; index < runs.length; index += 1)
    expect(runs[index]!.atMs - runs[index - 1]!.atMs).toBeLessThan(1.1);
});
