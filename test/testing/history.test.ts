import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checkFlushed, checkLinearizable, INITIAL_VALUE, type Operation } from '../../lib/testing/history.ts';

const write = (value: number, start: number, end: number, durable?: number): Operation =>
  durable === undefined ? { kind: 'write', value, start, end } : { kind: 'write', value, start, end, durable };
const read = (value: number, start: number, end: number): Operation => ({ kind: 'read', value, start, end });
const NEVER = Number.POSITIVE_INFINITY;

/** Tries every order that respects real time. Writes that never ended may be left out. */
function bruteForce(history: readonly Operation[]): boolean {
  const pending = history.filter((operation) => operation.kind === 'write' || operation.end !== NEVER);
  const search = (left: readonly Operation[], current: number): boolean => {
    if (left.every(({ end }) => end === NEVER)) return true;
    const firstEnd = Math.min(...left.map(({ end }) => end));
    return left.some((next) => {
      if (next.start > firstEnd) return false;
      if (next.kind === 'read' && next.value !== current) return false;
      const rest = left.filter((other) => other !== next);
      return search(rest, next.kind === 'write' ? next.value : current);
    });
  };
  return search(pending, INITIAL_VALUE);
}

describe('linearizability of one block', () => {
  test('a stale read after a newer one is found', () => {
    const history = [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)];
    expect(checkLinearizable(history)?.rule).toBe('zone-inside-zone');
  });

  test('an overwritten value that comes back is found', () => {
    const history = [write(1, 0, NEVER), read(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)];
    expect(checkLinearizable(history)).toBeDefined();
  });

  test('an acknowledged write that was lost is found', () => {
    expect(checkLinearizable([write(1, 0, 1), read(INITIAL_VALUE, 2, 3)])).toBeDefined();
  });

  test('a write that never ended may have happened, late or not at all', () => {
    expect(checkLinearizable([write(1, 0, NEVER), read(INITIAL_VALUE, 1, 2), read(1, 3, 4)])).toBeUndefined();
    expect(checkLinearizable([write(1, 0, NEVER), read(INITIAL_VALUE, 1, 2)])).toBeUndefined();
  });

  test('a value that nobody wrote, and one that was read too early, are found', () => {
    expect(checkLinearizable([read(7, 0, 1)])?.rule).toBe('unknown-value');
    expect(checkLinearizable([read(7, 0, 1), write(7, 2, 3)])?.rule).toBe('read-before-write');
  });

  test('it agrees with brute force', () => {
    const operation = fc.record({ read: fc.boolean(), pick: fc.nat(3), ended: fc.nat(4) });
    const outcomes = { yes: 0, no: 0 };
    fc.assert(
      fc.property(
        fc.array(operation, { minLength: 1, maxLength: 6 }),
        fc.infiniteStream(fc.nat(1_000_000)),
        (operations, draws) => {
          const times = operations.flatMap((_, index) => [index, index]);
          const order = times.map((index) => ({ index, key: draws.next().value! })).sort((a, b) => a.key - b.key);
          const history = operations.map(({ read: isRead, pick, ended }, index): Operation => {
            const start = order.findIndex((slot) => slot.index === index);
            const end = order.findLastIndex((slot) => slot.index === index);
            const kind = isRead ? 'read' : 'write';
            return { kind, value: isRead ? pick : index + 1, start, end: ended === 0 ? NEVER : end };
          });
          const expected = bruteForce(history);
          outcomes[expected ? 'yes' : 'no'] += 1;
          expect(checkLinearizable(history) === undefined).toBe(expected);
        },
      ),
      { numRuns: 3000, seed: 1 },
    );
    expect(Math.min(outcomes.yes, outcomes.no)).toBeGreaterThan(200);
  });
});

describe('after power cuts', () => {
  test('what was flushed must not be lost', () => {
    expect(checkFlushed([write(1, 0, 1, 2), read(INITIAL_VALUE, 3, 4)])?.rule).toBe('older-than-flushed');
    expect(checkFlushed([write(1, 0, 1), write(2, 2, 3, 4), read(1, 5, 6)])?.rule).toBe('older-than-flushed');
  });

  test('what was not flushed may be', () => {
    expect(checkFlushed([write(1, 0, 1), read(INITIAL_VALUE, 3, 4)])).toBeUndefined();
    expect(checkFlushed([write(1, 0, 3), write(2, 1, 2, 4), read(1, 5, 6)])).toBeUndefined();
  });
});
