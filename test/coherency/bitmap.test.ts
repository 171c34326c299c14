import fc from 'fast-check';
import { expect, test } from 'vitest';
import { DirtyBitmap } from '../../lib/coherency/bitmap.ts';

const grain = 4096;

test('a range marks every grain that it touches', () => {
  const bitmap = new DirtyBitmap(10 * grain, grain);
  bitmap.mark(grain - 1, 2);
  expect([bitmap.has(0), bitmap.has(1), bitmap.has(2)]).toEqual([true, true, false]);
  expect(bitmap.count).toBe(2);
  bitmap.mark(5 * grain, 0);
  expect(bitmap.count).toBe(2);
});

test('a range touches the grains that are set in it', () => {
  const bitmap = new DirtyBitmap(10 * grain, grain);
  expect(bitmap.touches(0, 10 * grain)).toBe(false);
  bitmap.mark(4 * grain, 1);
  expect(bitmap.touches(0, 4 * grain)).toBe(false);
  expect(bitmap.touches(0, 4 * grain + 1)).toBe(true);
  expect(bitmap.touches(5 * grain - 1, 1)).toBe(true);
  expect(bitmap.touches(5 * grain, 5 * grain)).toBe(false);
  expect(bitmap.touches(4 * grain, 0)).toBe(false);
});

test('the last grain may be short', () => {
  const bitmap = new DirtyBitmap(3 * grain + 100, grain);
  bitmap.markAll();
  expect(bitmap.dirtyBytes).toBe(3 * grain + 100);
  bitmap.clearGrain(3);
  expect(bitmap.dirtyBytes).toBe(3 * grain);
});

test('a range outside the volume is a broken invariant', () => {
  expect(() => new DirtyBitmap(grain, grain).mark(grain - 1, 2)).toThrow(/inside the volume/);
});

test('it behaves as a set of grains', () => {
  const grains = 100;
  const operation = fc.oneof(
    fc.record({ kind: fc.constant('mark' as const), at: fc.nat(grains - 1), length: fc.integer({ min: 1, max: 9 }) }),
    fc.record({ kind: fc.constant('clear' as const), at: fc.nat(grains - 1), length: fc.constant(1) }),
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
      const bitmap = new DirtyBitmap(grains * grain, grain);
      const model = new Set<number>();
      for (const { kind, at, length } of operations) {
        if (kind === 'mark') {
          const end = Math.min(grains, at + length);
          bitmap.mark(at * grain, (end - at) * grain);
          for (let one = at; one < end; one += 1) model.add(one);
        } else {
          bitmap.clearGrain(at);
          model.delete(at);
        }
      }
      const found: number[] = [];
      for (let at = bitmap.next(0); at >= 0; at = bitmap.next(at + 1)) found.push(at);
      expect(found).toEqual([...model].sort((a, b) => a - b));
      expect(bitmap.count).toBe(model.size);
      const copy = new DirtyBitmap(grains * grain, grain);
      copy.mergeBytes(bitmap.toBytes());
      expect(copy.toBytes()).toEqual(bitmap.toBytes());
      expect(copy.count).toBe(model.size);
      const merged = new DirtyBitmap(grains * grain, grain);
      merged.merge(bitmap);
      expect(merged.count).toBe(model.size);
    }),
  );
});

test('bytes of another shape, or with bits beyond the end, are refused', () => {
  const bitmap = new DirtyBitmap(10 * grain, grain);
  expect(() => bitmap.mergeBytes(new Uint8Array(3))).toThrow(/fit/);
  expect(() => bitmap.mergeBytes(Uint8Array.of(0, 0b100))).toThrow(/fit/);
  bitmap.mergeBytes(Uint8Array.of(1, 0b10));
  expect([bitmap.has(0), bitmap.has(9)]).toEqual([true, true]);
});
