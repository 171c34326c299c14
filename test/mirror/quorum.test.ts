/** Quorum over an arbiter that is one variable: what a majority's answer means to a member. */
import { expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { Quorum } from '../../lib/mirror/quorum.ts';
import {
  BOTH,
  CREATED_RECORD,
  compareWithDecided,
  decodeView,
  encodeView,
  type MemberRecord,
  maskOf,
  type View,
} from '../../lib/mirror/view.ts';
import type { Arbiter, SwapResult } from '../../lib/peer/arbiter.ts';

const view = (number: number, inSync: number, name = 'a'): View => ({
  number,
  id: name.repeat(31) + (number % 10),
  inSync,
  holder: inSync === maskOf(1) ? 1 : 0,
});
const PAIR = view(2, BOTH);

function recordOf(known: View, data = known): MemberRecord {
  return { ...CREATED_RECORD, known, dataId: data.id, dataState: 'up-to-date' };
}

class Variable implements Arbiter {
  value: string;
  fails = false;
  swaps = 0;

  constructor(value: View | undefined) {
    this.value = value === undefined ? '' : encodeView(value);
  }

  async compareAndSwap(expected: string, next: string): Promise<SwapResult> {
    this.swaps += 1;
    if (this.fails) throw new HoldfastError('ERR_HOLDFAST_NO_MAJORITY', 'too few voters');
    if (this.value !== expected && this.value !== next) return { swapped: false, current: this.value };
    this.value = next;
    return { swapped: true };
  }
}

const alone = (number: number) => () => view(number, maskOf(0), 'f');

test.each([
  ['same', PAIR],
  ['older', view(1, maskOf(1))],
  ['mine', view(3, maskOf(0), 'b')],
  ['follow', view(3, BOTH, 'b')],
  ['outdated', view(3, maskOf(1), 'b')],
  // Forced on both sides to the same number.
  ['outdated', view(2, maskOf(1), 'b')],
] as const)('to a member in sync that knows the pair, a decided view is %s', (relation, decided) => {
  expect(compareWithDecided(recordOf(PAIR), 0, decided)).toBe(relation);
});

test('a member that is not in sync is entitled to nothing, whatever was decided', () => {
  const outdated = recordOf(view(3, maskOf(1)), PAIR);
  expect(compareWithDecided(outdated, 0, view(4, maskOf(0), 'b'))).toBe('outdated');
  expect(compareWithDecided({ ...recordOf(PAIR), dataState: 'inconsistent' }, 0, view(4, BOTH, 'b'))).toBe('outdated');
});

test('views survive their encoding, and nothing else is taken for one', () => {
  for (const each of [PAIR, view(2 ** 48, maskOf(1)), CREATED_RECORD.known])
    expect(decodeView(encodeView(each))).toEqual(each);
  for (const text of ['x', '0 ', `1 ${'a'.repeat(32)} 4 0`, `1 ${'a'.repeat(31)} 1 0`, `-1 ${'a'.repeat(32)} 1 0`])
    expect(() => decodeView(text)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_METADATA_DAMAGED' }));
});

test('without an arbiter the member decides', async () => {
  const quorum = new Quorum(undefined, 0);
  expect(quorum.confirmed).toBe(true);
  expect(await quorum.decide(recordOf(PAIR), alone(3))).toEqual({ kind: 'decided', view: alone(3)() });
});

test('the first who asks goes on, the other is outdated', async () => {
  const arbiter = new Variable(PAIR);
  const first = await new Quorum(arbiter, 0).decide(recordOf(PAIR), alone(3));
  expect(first).toEqual({ kind: 'decided', view: alone(3)() });
  const other = await new Quorum(arbiter, 1).decide(recordOf(PAIR), () => view(3, maskOf(1), 'e'));
  expect(other).toEqual({ kind: 'superseded', view: alone(3)() });
});

test('a view that was decided before the process died is taken up', async () => {
  const decided = view(3, maskOf(0), 'c');
  const quorum = new Quorum(new Variable(decided), 0);
  expect(await quorum.decide(recordOf(PAIR), alone(4))).toEqual({ kind: 'decided', view: decided });
});

test('a view with both that the peer has never joined is followed', async () => {
  const arbiter = new Variable(view(4, BOTH, 'c'));
  const decision = await new Quorum(arbiter, 0).decide(recordOf(view(3, maskOf(0))), (after) =>
    alone(after.number + 1)(),
  );
  expect(decision).toEqual({ kind: 'decided', view: alone(5)() });
});

test('a forced view that no majority knows becomes the decided one', async () => {
  const arbiter = new Variable(PAIR);
  const forced = recordOf(view(5, maskOf(0), 'd'));
  expect(await new Quorum(arbiter, 0).confirm(forced)).toEqual({ kind: 'decided', view: forced.known });
  expect(arbiter.value).toBe(encodeView(forced.known));
});

test('an arbiter that knows nothing yet learns the view that a member knows', async () => {
  const arbiter = new Variable(undefined);
  expect(await new Quorum(arbiter, 0).confirm(recordOf(PAIR))).toEqual({ kind: 'decided', view: PAIR });
  expect(arbiter.value).toBe(encodeView(PAIR));
});

test('a stale member learns that it is outdated', async () => {
  const decided = view(7, maskOf(1), 'c');
  const quorum = new Quorum(new Variable(decided), 0);
  expect(await quorum.confirm(recordOf(PAIR))).toEqual({ kind: 'superseded', view: decided });
});

test('an attempt without an answer leaves the member unsure until it has one', async () => {
  const arbiter = new Variable(PAIR);
  const quorum = new Quorum(arbiter, 0);
  await quorum.confirm(recordOf(PAIR));
  expect(quorum.confirmed).toBe(true);
  arbiter.fails = true;
  await expect(quorum.decide(recordOf(PAIR), alone(3))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NO_MAJORITY' });
  expect(quorum.confirmed).toBe(false);
  arbiter.fails = false;
  await quorum.confirm(recordOf(PAIR));
  expect(quorum.confirmed).toBe(true);
});

test('a member that was never in a view has nothing to ask', async () => {
  const arbiter = new Variable(view(7, maskOf(1)));
  expect(await new Quorum(arbiter, 0).confirm(CREATED_RECORD)).toMatchObject({ kind: 'decided' });
  expect(arbiter.swaps).toBe(0);
});
