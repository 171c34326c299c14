import { describe, expect, test } from 'vitest';
import { simulateMirror } from '../../lib/testing/mirror-simulation.ts';

const SEEDS = Array.from({ length: 80 }, (_, index) => index + 1);
/** Seeds that once failed, and what they found. */
const REGRESSIONS: readonly (readonly [number, string])[] = [
  [1036, 'a source made its view before the target had given up its own: both went on alone'],
  [1075, 'the same, with the other member preferred'],
  [20411, 'two members that stopped at once waited for each other for ever'],
];

describe('a mirrored volume in the simulation', () => {
  test.each(SEEDS)('seed %i', async (seed) => {
    const result = await simulateMirror(seed);
    expect(result.failure, `plan ${JSON.stringify(result.plan)}`).toBeUndefined();
    expect(result.operations).toBeGreaterThan(50);
  });

  test.each(REGRESSIONS)('seed %i: %s', async (seed) => {
    expect((await simulateMirror(seed)).failure).toBeUndefined();
  });

  test('the same seed gives the same trace', async () => {
    const first = await simulateMirror(11);
    const second = await simulateMirror(11);
    expect(second.traceHash).toBe(first.traceHash);
    expect((await simulateMirror(12)).traceHash).not.toBe(first.traceHash);
  });
});
