import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  checkFlushed,
  checkLinearizable,
  checkLinearizableSince,
  INITIAL_VALUE,
  type Operation,
} from '../../lib/testing/history.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

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

/** As the rule says it, each read against each write. */
function flushedByBruteForce(history: readonly Operation[]): boolean {
  const writes = history.filter(({ kind }) => kind === 'write');
  return history.every((read) => {
    if (read.kind === 'write' || read.end === NEVER) return true;
    const source = writes.find(({ value }) => value === read.value);
    if (source === undefined && read.value !== INITIAL_VALUE) return false;
    if (source !== undefined && read.end < source.start) return false;
    const replaced = source?.end ?? -1;
    return !writes.some(({ start, durable = NEVER }) => start > replaced && durable < read.start);
  });
}

/** Which outcome a checker and brute force have agreed on, over many small histories. */
function agree(
  draw: (random: SimulatedRandom) => Operation[],
  check: (history: readonly Operation[]) => boolean,
  brute: (history: readonly Operation[]) => boolean,
): { yes: number; no: number } {
  const outcomes = { yes: 0, no: 0 };
  for (let seed = 0; seed < 6000; seed++) {
    const history = draw(new SimulatedRandom(seed, 'history'));
    const expected = brute(history);
    outcomes[expected ? 'yes' : 'no'] += 1;
    expect(check(history), JSON.stringify(history)).toBe(expected);
  }
  return outcomes;
}

/** Operations at drawn places in one order of events; reads give any value. */
function drawHistory(random: SimulatedRandom, mayBeDurable: boolean): Operation[] {
  const count = 1 + random.below(7);
  const times = Array.from({ length: 3 * count }, (_, time) => ({ time, key: random.word() }));
  times.sort((a, b) => a.key - b.key);
  const place = (index: number) => times.slice(3 * index, 3 * index + 3).map(({ time }) => time);
  return Array.from({ length: count }, (_, index) => {
    const [start, end, durable] = place(index).sort((a, b) => a - b) as [number, number, number];
    const ended = random.chance(0.8) ? end : NEVER;
    if (random.chance(0.5)) return read(random.below(count + 1), start, ended);
    return mayBeDurable && ended !== NEVER && random.chance(0.5)
      ? write(index + 1, start, ended, durable)
      : write(index + 1, start, ended);
  });
}

/** A block that does what it is told, from which a draw may take back what was not flushed; then one read is changed. */
function runBlock(random: SimulatedRandom): { history: Operation[]; lossAt: number } {
  const history: Operation[] = [];
  const values = [INITIAL_VALUE];
  let [time, lossAt, durableIndex] = [0, -1, 0];
  for (let step = 0; step < 8; step++) {
    const draw = random.below(10);
    if (draw < 4) {
      values.push(step + 1);
      history.push(write(step + 1, time++, random.chance(0.9) ? time++ : NEVER));
    } else if (draw < 8) history.push(read(values.at(-1)!, time++, time++));
    else if (draw < 9) durableIndex = flushAll(history, values, lossAt, time++);
    else {
      lossAt = time++;
      values.splice(durableIndex + 1 + random.below(values.length - durableIndex));
    }
  }
  return { history, lossAt };
}

/** Durable is what was acknowledged since the last loss; the value in place is the one that stays. */
function flushAll(history: Operation[], values: readonly number[], lossAt: number, time: number): number {
  for (const [index, operation] of history.entries()) {
    const { kind, start, end, durable } = operation;
    const isCovered = kind === 'write' && start > lossAt && end !== NEVER && durable === undefined;
    if (isCovered) history[index] = { ...operation, durable: time };
  }
  return values.length - 1;
}

describe('after power cuts', () => {
  test('the check of what was flushed agrees with brute force', () => {
    const draw = (random: SimulatedRandom) => drawHistory(random, true);
    const outcomes = agree(draw, (history) => checkFlushed(history) === undefined, flushedByBruteForce);
    expect(Math.min(outcomes.yes, outcomes.no)).toBeGreaterThan(500);
  });

  test('a block that loses only what was not flushed passes, also from the loss on', () => {
    let losses = 0;
    for (let seed = 0; seed < 3000; seed++) {
      const { history, lossAt } = runBlock(new SimulatedRandom(seed, 'block'));
      expect(checkFlushed(history), JSON.stringify(history)).toBeUndefined();
      if (lossAt < 0) continue;
      losses += 1;
      expect(checkLinearizableSince(history, lossAt), JSON.stringify({ history, lossAt })).toBeUndefined();
    }
    expect(losses).toBeGreaterThan(500);
  });

  test('from a loss on, the check agrees with brute force', () => {
    const since = 6;
    /** Every write from before may happen once more, at any time. */
    const bruteSince = (history: readonly Operation[]): boolean => {
      const rest = history.filter(({ start }) => start > since);
      const before = history.filter(({ kind, start }) => kind === 'write' && start <= since);
      return bruteForce([...before.map(({ value }) => write(value, since, NEVER)), ...rest]);
    };
    const draw = (random: SimulatedRandom) => drawHistory(random, false);
    const outcomes = agree(draw, (history) => checkLinearizableSince(history, since) === undefined, bruteSince);
    expect(Math.min(outcomes.yes, outcomes.no)).toBeGreaterThan(500);
  });

  test('what comes back after the loss is over is found', () => {
    const history = [write(1, 0, 1), write(2, 3, 4), read(1, 6, 7), read(2, 8, 9), read(1, 10, 11)];
    expect(checkLinearizableSince(history, 5)).toBeDefined();
    expect(checkLinearizableSince(history.slice(0, 4), 5)).toBeUndefined();
  });

  test('what was flushed must not be lost', () => {
    expect(checkFlushed([write(1, 0, 1, 2), read(INITIAL_VALUE, 3, 4)])?.rule).toBe('older-than-flushed');
    expect(checkFlushed([write(1, 0, 1), write(2, 2, 3, 4), read(1, 5, 6)])?.rule).toBe('older-than-flushed');
  });

  test('what was not flushed may be', () => {
    expect(checkFlushed([write(1, 0, 1), read(INITIAL_VALUE, 3, 4)])).toBeUndefined();
    expect(checkFlushed([write(1, 0, 3), write(2, 1, 2, 4), read(1, 5, 6)])).toBeUndefined();
  });
});
