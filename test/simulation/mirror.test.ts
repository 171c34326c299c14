import { expect, test } from 'vitest';
import { simulateMirror } from '../../lib/testing/mirror-simulation.ts';
import { runSeeds } from './run-seeds.ts';

runSeeds(1, 250);

test('the same seed gives the same trace, whether its lines are kept or not', async () => {
  const first = await simulateMirror(11);
  const second = await simulateMirror(11, { keepLines: 50 });
  expect(second.traceHash).toBe(first.traceHash);
  expect(second.trace.length).toBe(50);
  expect((await simulateMirror(12)).traceHash).not.toBe(first.traceHash);
});
