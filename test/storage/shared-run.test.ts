import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { SharedRun } from '../../lib/storage/shared-run.ts';

test('callers during a run share the next one, and no two run at once', async () => {
  let running = 0;
  let most = 0;
  const ends: (() => void)[] = [];
  const flush = new SharedRun(async () => {
    running += 1;
    most = Math.max(most, running);
    await new Promise<void>((resolve) => ends.push(resolve));
    running -= 1;
  });
  const calls = [flush.run(), flush.run(), flush.run()];
  ends.shift()!();
  // Calls in any of the microtasks around the end of a run must not begin one beside the next.
  for (let turn = 0; turn < 10; turn += 1) {
    await Promise.resolve();
    calls.push(flush.run());
  }
  let done = false;
  const all = Promise.all(calls).then(() => {
    done = true;
  });
  while (!done) {
    ends.shift()?.();
    await nextTurn();
  }
  await all;
  expect(most).toBe(1);
});

test('a run that fails fails its callers, not the next', async () => {
  let fail = true;
  const flush = new SharedRun(async () => {
    if (fail) throw new Error('as told');
  });
  const calls = [flush.run(), flush.run()];
  for (const call of calls) await expect(call).rejects.toThrow('as told');
  fail = false;
  await expect(flush.run()).resolves.toBeUndefined();
});
