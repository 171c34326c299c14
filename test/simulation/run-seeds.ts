/**
 * Runs a stretch of seeds as tests. What a seed draws changes with the simulation's code: a failing one is mended, and
 * becomes a test of its own at the place where it went wrong, with its cause for a name.
 */
import { describe, expect, test } from 'vitest';
import { simulateMirror } from '../../lib/testing/mirror-simulation.ts';

export function runSeeds(first: number, last: number): void {
  describe('a mirrored volume in the simulation', () => {
    test.each(Array.from({ length: last - first + 1 }, (_, index) => first + index))('seed %i', async (seed) => {
      const { failure, plan, operations } = await simulateMirror(seed);
      expect(failure, `plan ${JSON.stringify(plan)}`).toBeUndefined();
      expect(operations).toBeGreaterThan(20);
    });
  });
}
