import { afterEach, expect, test } from 'vitest';
import { PLANTED_MIRRORED_BUGS, plantBug } from '../../lib/base/planted-bug.ts';
import { simulateMirroredUnits } from '../../lib/testing/mirrored-units-simulation.ts';

const SEEDS = 30;

afterEach(() => plantBug(undefined));

test(`a mirrored region over real sessions under faults, seeds 1 to ${SEEDS}`, async () => {
  const seen = { operations: 0, unended: 0, takeOvers: 0, rebuilds: 0, backupReads: 0 };
  for (let seed = 1; seed <= SEEDS; seed++) {
    const result = await simulateMirroredUnits(seed);
    expect(result.failure, `seed ${seed}, plan ${JSON.stringify(result.plan)}`).toBeUndefined();
    seen.operations += result.operations;
    seen.unended += result.unended;
    seen.takeOvers += result.takeOvers;
    seen.rebuilds += result.rebuilds;
    seen.backupReads += result.backupReads;
  }
  // It has been through what it is for.
  expect(seen.operations).toBeGreaterThan(1000 * SEEDS);
  expect(seen.unended).toBeGreaterThan(5 * SEEDS);
  expect(seen.takeOvers).toBeGreaterThan(2 * SEEDS);
  expect(seen.rebuilds).toBeGreaterThan(2 * SEEDS);
  expect(seen.backupReads).toBeGreaterThan(50 * SEEDS);
});

test('the same seed gives the same trace, whether its lines are kept or not', async () => {
  const first = await simulateMirroredUnits(3);
  const second = await simulateMirroredUnits(3, 50);
  expect(second.traceHash).toBe(first.traceHash);
  expect(second.trace.length).toBe(50);
  expect((await simulateMirroredUnits(4)).traceHash).not.toBe(first.traceHash);
});

const FIRST_SEED: Readonly<Record<(typeof PLANTED_MIRRORED_BUGS)[number], number>> = {
  'acknowledged-before-swap': 23,
  'stale-leg-admitted': 1,
  'take-over-without-compare': 32,
  'mirror-read-not-persisted': 24,
  'unit-answers-before-persist': 1,
};

test.each(PLANTED_MIRRORED_BUGS)('%s is found', async (bug) => {
  const first = FIRST_SEED[bug];
  plantBug(bug);
  for (let seed = first; seed < first + 100; seed++) {
    const { failure } = await simulateMirroredUnits(seed);
    if (failure === undefined) continue;
    plantBug(undefined);
    expect((await simulateMirroredUnits(seed)).failure, `seed ${seed} without the bug`).toBeUndefined();
    return;
  }
  expect.fail(`${bug} is not found by seeds from ${first}`);
});
