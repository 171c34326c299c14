/**
 * Each bug that is planted is found within 1000 seeds, from wherever: here from a seed near one that finds it, so that
 * the test takes no longer than it must. `npm run simulate -- --plant BUG` looks from anywhere.
 */
import { afterEach, expect, test } from 'vitest';
import { PLANTED_BUGS, plantBug } from '../../lib/base/planted-bug.ts';
import { simulateMirror } from '../../lib/testing/mirror-simulation.ts';

const SEEDS = 1000;

const FIRST_SEED: Readonly<Record<(typeof PLANTED_BUGS)[number], number>> = {
  'acknowledged-before-peer': 1,
  'view-written-late': 31,
  'stale-member-serves': 7,
  'lease-not-checked-after-device': 7,
  'log-retired-before-flush': 77,
  'bitmap-seeded-with-in-flight-only': 4,
  'resync-over-newer-data': 8,
  'superblock-written-once': 148,
  'overlap-unordered-at-receiver': 1,
  'access-before-replicated': 1,
  'dropped-flush': 28,
  'yield-skipped': 1,
};

afterEach(() => plantBug(undefined));

test.each(PLANTED_BUGS)('%s is found', async (bug) => {
  const first = FIRST_SEED[bug];
  plantBug(bug);
  for (let seed = first; seed < first + SEEDS; seed++) {
    const { failure } = await simulateMirror(seed);
    if (failure === undefined) continue;
    plantBug(undefined);
    expect((await simulateMirror(seed)).failure, `seed ${seed} without the bug`).toBeUndefined();
    return;
  }
  expect.fail(`${bug} is not found by seeds ${first} to ${first + SEEDS - 1}`);
});
