/** Each bug that is planted in a mirrored region is found, here from a seed near one that finds it. */
import { afterEach, expect, test } from 'vitest';
import { PLANTED_REGION_BUGS, plantBug } from '../../lib/base/planted-bug.ts';
import { simulateMirroredRegion } from '../../lib/testing/mirrored-region-simulation.ts';

const SEEDS = 300;

const FIRST_SEED: Readonly<Record<(typeof PLANTED_REGION_BUGS)[number], number>> = {
  'acknowledged-before-swap': 17,
  'stale-leg-admitted': 1,
  'store-into-chunk': 1,
  'take-over-without-compare': 8,
  'mirror-read-not-persisted': 200,
};

afterEach(() => plantBug(undefined));

test.each(PLANTED_REGION_BUGS)('%s is found', async (bug) => {
  const first = FIRST_SEED[bug];
  plantBug(bug);
  for (let seed = first; seed < first + SEEDS; seed++) {
    const { failure } = await simulateMirroredRegion(seed);
    if (failure === undefined) continue;
    plantBug(undefined);
    expect((await simulateMirroredRegion(seed)).failure, `seed ${seed} without the bug`).toBeUndefined();
    return;
  }
  expect.fail(`${bug} is not found by seeds ${first} to ${first + SEEDS - 1}`);
});
