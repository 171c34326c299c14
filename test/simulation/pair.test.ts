import { afterEach, expect, test } from 'vitest';
import { PLANTED_PAIR_BUGS, plantBug } from '../../lib/base/planted-bug.ts';
import { simulatePair } from '../../lib/testing/pair-simulation.ts';

const SEEDS = 120;

afterEach(() => plantBug(undefined));

test(`a process pair under faults, seeds 1 to ${SEEDS}`, async () => {
  const seen = { operations: 0, unended: 0, takeOvers: 0 };
  for (let seed = 1; seed <= SEEDS; seed++) {
    const { failure, plan, operations, unended, takeOvers } = await simulatePair(seed);
    expect(failure, `seed ${seed}, plan ${JSON.stringify(plan)}`).toBeUndefined();
    seen.operations += operations;
    seen.unended += unended;
    seen.takeOvers += takeOvers;
  }
  // It has been through what it is for.
  expect(seen.operations).toBeGreaterThan(50 * SEEDS);
  expect(seen.unended).toBeGreaterThan(SEEDS);
  expect(seen.takeOvers).toBeGreaterThan(1.5 * SEEDS);
});

test.each([
  [1205, 'a formatting that a power cut ended was taken for damage, and nobody became primary'],
  [1240, 'so was the first cursor of a region'],
])('seed %i: %s', async (seed) => {
  expect((await simulatePair(seed)).failure).toBeUndefined();
});

test('the same seed gives the same trace, whether its lines are kept or not', async () => {
  const first = await simulatePair(3);
  const second = await simulatePair(3, { keepLines: 50 });
  expect(second.traceHash).toBe(first.traceHash);
  expect(second.trace.length).toBe(50);
  expect((await simulatePair(4)).traceHash).not.toBe(first.traceHash);
});

const FIRST_SEED: Readonly<Record<(typeof PLANTED_PAIR_BUGS)[number], number>> = {
  'update-answered-before-safe': 1,
  'query-unconfirmed': 350,
  'unit-answers-before-persist': 1,
};

test.each(PLANTED_PAIR_BUGS)('%s is found', async (bug) => {
  const first = FIRST_SEED[bug];
  plantBug(bug);
  for (let seed = first; seed < first + 1000; seed++) {
    const { failure } = await simulatePair(seed);
    if (failure === undefined) continue;
    plantBug(undefined);
    expect((await simulatePair(seed)).failure, `seed ${seed} without the bug`).toBeUndefined();
    return;
  }
  expect.fail(`${bug} is not found by seeds from ${first}`);
});
