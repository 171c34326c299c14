import fc from 'fast-check';
import { expect, it } from 'vitest';
import { Histogram } from '../../lib/base/histogram.ts';

it('knows nothing when nothing was recorded', () => {
  const histogram = new Histogram();
  expect([histogram.count, histogram.min, histogram.max, histogram.mean, histogram.percentile(99)]).toEqual([
    0, 0, 0, 0, 0,
  ]);
});

it('is exact for small values', () => {
  const histogram = new Histogram();
  for (let value = 1; value <= 100; value++) histogram.record(value);
  expect([50, 90, 99, 100].map((percent) => histogram.percentile(percent))).toEqual([50, 90, 99, 100]);
  expect(histogram.mean).toBe(50.5);
});

it('gives the percentile of the sorted values, at most 1/64 too high and never too low', () => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof(fc.nat(), fc.integer({ min: 0, max: 2 ** 43 - 1 })), { minLength: 1, maxLength: 200 }),
      fc.double({ min: 0, max: 100, noNaN: true }),
      (values, percent) => {
        const histogram = new Histogram();
        for (const value of values) histogram.record(value);
        const sorted = values.toSorted((a, b) => a - b);
        const exact = sorted[Math.max(1, Math.ceil((percent / 100) * sorted.length)) - 1]!;
        const shown = histogram.percentile(percent);
        expect(shown).toBeGreaterThanOrEqual(exact);
        expect(shown).toBeLessThanOrEqual(exact + exact / 64);
        expect(histogram.max).toBe(sorted.at(-1));
        expect(histogram.min).toBe(sorted[0]);
      },
    ),
  );
});

it('counts up to a value, at most those beyond that share its bucket too many', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 2 ** 43 - 1 }), { maxLength: 100 }),
      fc.integer({ min: 0, max: 2 ** 44 }),
      (values, limit) => {
        const histogram = new Histogram();
        for (const value of values) histogram.record(value);
        const found = histogram.countUpTo(limit);
        expect(found).toBeGreaterThanOrEqual(values.filter((value) => value <= limit).length);
        expect(found).toBeLessThanOrEqual(values.filter((value) => value <= limit + limit / 64).length);
      },
    ),
  );
});

it('takes values beyond its range as its largest', () => {
  const histogram = new Histogram();
  histogram.record(2 ** 50);
  histogram.record(-5);
  expect([histogram.min, histogram.percentile(100)]).toEqual([0, 2 ** 43 - 1]);
});
