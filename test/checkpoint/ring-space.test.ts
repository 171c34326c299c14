import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { RingPosition } from '../../lib/checkpoint/layout.ts';
import { droppable, RingSpace } from '../../lib/checkpoint/ring-space.ts';

const start: RingPosition = { sequence: 1, offset: 0, previousChecksum: 7, epoch: 1 };
const RING = 64 * 64;

/** As a writer does it: with a wrap where the record does not fit in the rest. */
function give(space: RingSpace, takenBytes: number): boolean {
  if (!space.fits(takenBytes)) return false;
  const { sequence, offset, epoch } = space.tail;
  const restBytes = space.ringBytes - offset;
  const begin = takenBytes <= restBytes ? offset : 0;
  const after = { sequence: sequence + 1, offset: (begin + takenBytes) % space.ringBytes, previousChecksum: 0, epoch };
  space.advance(space.neededBytes(takenBytes), after);
  return true;
}

test('nothing is free for a backup that has cleared nothing, nor without any backup', () => {
  const space = new RingSpace(RING, start);
  while (give(space, 128));
  expect(space.usedBytes).toBe(RING);
  expect(droppable([], true)).toBe(0);
  expect(droppable([5, 3], false)).toBe(3);
  expect(droppable([5, 3], true)).toBe(5);
  expect(space.freeable(0)).toBeUndefined();
});

test('the head goes on in steps of an eighth of the ring, or to the tail', () => {
  const space = new RingSpace(RING, start);
  for (let each = 0; each < 20; each++) give(space, 128);
  expect(space.freeable(3)).toBeUndefined();
  expect(space.freeable(4)).toMatchObject({ sequence: 5, offset: 512 });
  space.release(space.freeable(18)!);
  expect(space.head).toMatchObject({ sequence: 19, offset: 18 * 128 });
  expect(space.freeable(19), 'too little').toBeUndefined();
  expect(space.freeable(20), 'all that is there').toMatchObject({ sequence: 21 });
  expect(space.freeable(Number.MAX_SAFE_INTEGER), 'a backup that lies').toMatchObject({ sequence: 21 });
  space.release(space.freeable(20)!);
  expect(space.usedBytes).toBe(0);
  expect(space.freeable(20)).toBeUndefined();
});

test('a record of half the ring fits into an empty one, wherever its tail is', () => {
  for (let offset = 0; offset < RING; offset += 64) {
    const space = new RingSpace(RING, { ...start, offset });
    expect(give(space, RING / 2), `at ${offset}`).toBe(true);
  }
});

test('what is given out never overlaps what is kept', () => {
  const moves = fc.array(
    fc.oneof(
      fc.record({ bytes: fc.integer({ min: 1, max: 32 }).map((lines) => lines * 64) }),
      fc.record({ cleared: fc.nat(30) }),
    ),
    { maxLength: 200 },
  );
  fc.assert(
    fc.property(moves, (all) => {
      const space = new RingSpace(RING, start);
      const kept = new Map<number, readonly [from: number, to: number]>();
      let cleared = 0;
      for (const move of all) {
        if ('cleared' in move) {
          cleared = Math.min(cleared + move.cleared, space.tail.sequence - 1);
          const head = space.freeable(cleared);
          if (head === undefined) continue;
          expect(head.sequence).toBeLessThanOrEqual(cleared + 1);
          space.release(head);
          for (const sequence of kept.keys()) if (sequence < head.sequence) kept.delete(sequence);
          continue;
        }
        const { sequence } = space.tail;
        if (!give(space, move.bytes)) continue;
        const to = space.tail.offset === 0 ? RING : space.tail.offset;
        const own = [to - move.bytes, to] as const;
        for (const [from, end] of kept.values()) expect(own[0] >= end || own[1] <= from).toBe(true);
        kept.set(sequence, own);
      }
    }),
  );
});
