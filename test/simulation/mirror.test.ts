/**
 * Seeds of the whole simulation. What a seed draws changes with the simulation's code: a failing one is mended and then
 * becomes a test of its own at the place where it went wrong, with its cause for a name.
 */
import { describe, expect, test } from 'vitest';
import { simulateMirror } from '../../lib/testing/mirror-simulation.ts';

const SEEDS = Array.from({ length: 150 }, (_, index) => index + 1);

describe('a mirrored volume in the simulation', () => {
  test.each(SEEDS)('seed %i', async (seed) => {
    const result = await simulateMirror(seed);
    expect(result.failure, `plan ${JSON.stringify(result.plan)}`).toBeUndefined();
    expect(result.operations).toBeGreaterThan(30);
  });

  test('the same seed gives the same trace, whether its lines are kept or not', async () => {
    const first = await simulateMirror(11);
    const second = await simulateMirror(11, { keepLines: 50 });
    expect(second.traceHash).toBe(first.traceHash);
    expect(second.trace.length).toBe(50);
    expect((await simulateMirror(12)).traceHash).not.toBe(first.traceHash);
  });
});
