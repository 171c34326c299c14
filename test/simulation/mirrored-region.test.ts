import { expect, test } from 'vitest';
import { simulateMirroredRegion } from '../../lib/testing/mirrored-region-simulation.ts';

const SEEDS = 250;

test(`a mirrored region under faults, seeds 1 to ${SEEDS}`, async () => {
  const seen = { operations: 0, unended: 0, takeOvers: 0, rebuilds: 0, backupReads: 0 };
  for (let seed = 1; seed <= SEEDS; seed++) {
    const result = await simulateMirroredRegion(seed);
    if (result.failure !== undefined) {
      const again = await simulateMirroredRegion(seed, 200);
      expect.fail(`seed ${seed}: ${result.failure}\n${again.trace.join('\n')}`);
    }
    seen.operations += result.operations;
    seen.unended += result.unended;
    seen.takeOvers += result.takeOvers;
    seen.rebuilds += result.rebuilds;
    seen.backupReads += result.backupReads;
  }
  // It has been through what it is for.
  expect(seen.operations).toBeGreaterThan(100 * SEEDS);
  expect(seen.unended).toBeGreaterThan(10 * SEEDS);
  expect(seen.takeOvers).toBeGreaterThan(5 * SEEDS);
  expect(seen.rebuilds).toBeGreaterThan(5 * SEEDS);
  expect(seen.backupReads).toBeGreaterThan(10 * SEEDS);
});

test('the same seed gives the same trace, whether its lines are kept or not', async () => {
  const first = await simulateMirroredRegion(11);
  const second = await simulateMirroredRegion(11, 50);
  expect(second.traceHash).toBe(first.traceHash);
  expect(second.trace.length).toBe(50);
  expect((await simulateMirroredRegion(12)).traceHash).not.toBe(first.traceHash);
});
