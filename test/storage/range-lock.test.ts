import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RangeGrant, RangeLock, type RangeMode } from '../../lib/storage/range-lock.ts';

function makeLock() {
  const lock = new RangeLock();
  const granted: string[] = [];
  const acquire = (name: string, offset: number, length: number, mode: RangeMode): RangeGrant =>
    lock.acquire(offset, length, mode, () => granted.push(name));
  return { lock, granted, acquire };
}

test('ranges that do not overlap are granted at once', () => {
  const { lock, granted, acquire } = makeLock();
  acquire('a', 0, 10, 'exclusive');
  acquire('b', 10, 10, 'exclusive');
  expect(granted).toEqual(['a', 'b']);
  expect(lock.waiting).toBe(0);
});

test('shared ranges overlap, an exclusive one waits for all of them', () => {
  const { granted, acquire } = makeLock();
  const first = acquire('a', 0, 10, 'shared');
  const second = acquire('b', 5, 10, 'shared');
  acquire('w', 8, 4, 'exclusive');
  expect(granted).toEqual(['a', 'b']);
  first.release();
  expect(granted).toEqual(['a', 'b']);
  second.release();
  expect(granted).toEqual(['a', 'b', 'w']);
});

test('a later reader does not overtake a waiting writer', () => {
  const { granted, acquire } = makeLock();
  const reader = acquire('r1', 0, 10, 'shared');
  const writer = acquire('w', 0, 10, 'exclusive');
  acquire('r2', 0, 10, 'shared');
  expect(granted).toEqual(['r1']);
  reader.release();
  expect(granted).toEqual(['r1', 'w']);
  writer.release();
  expect(granted).toEqual(['r1', 'w', 'r2']);
});

test('those set free together are called in the order in which they came', () => {
  const { granted, acquire } = makeLock();
  const others = ['x', 'y', 'z'].map((name, index) => acquire(name, 100 + index, 1, 'exclusive'));
  const writer = acquire('w', 0, 10, 'exclusive');
  for (const name of ['a', 'b', 'c', 'd']) acquire(name, 0, 10, 'shared');
  others[0]!.release();
  writer.release();
  expect(granted.slice(4)).toEqual(['a', 'b', 'c', 'd']);
});

test('a cancelled waiter is never called and lets the next ones through', () => {
  const { lock, granted, acquire } = makeLock();
  const reader = acquire('r1', 0, 10, 'shared');
  const writer = acquire('w', 0, 10, 'exclusive');
  acquire('r2', 5, 10, 'shared');
  writer.release();
  expect(granted).toEqual(['r1', 'r2']);
  reader.release();
  expect(granted).toEqual(['r1', 'r2']);
  expect(lock.size).toBe(1);
});

test('a zero-length range blocks nothing and is blocked by nothing', () => {
  const { granted, acquire } = makeLock();
  acquire('w', 0, 10, 'exclusive');
  acquire('empty', 5, 0, 'exclusive');
  acquire('empty at the edge', 0, 0, 'exclusive');
  expect(granted).toEqual(['w', 'empty', 'empty at the edge']);
});

test('the grant is there inside the callback', () => {
  const lock = new RangeLock();
  let seen: RangeGrant | undefined;
  const grant = lock.acquire(0, 1, 'exclusive', (given) => {
    seen = given;
    expect(given.held).toBe(true);
  });
  expect(seen).toBe(grant);
});

test('releasing twice is a broken invariant', () => {
  const { acquire } = makeLock();
  const grant = acquire('a', 0, 1, 'exclusive');
  grant.release();
  expect(() => grant.release()).toThrow(/released once/);
});

test('a long queue whose callbacks release at once does not grow the stack', () => {
  const lock = new RangeLock();
  const first = lock.acquire(0, 1, 'exclusive', () => {});
  let served = 0;
  for (let index = 0; index < 3_000; index++) {
    lock.acquire(0, 1, 'exclusive', (grant) => {
      served++;
      grant.release();
    });
  }
  first.release();
  expect(served).toBe(3_000);
  expect(lock.size).toBe(0);
});

test('a granted one that is released by another callback before its own turn is not called', () => {
  const lock = new RangeLock();
  const called: string[] = [];
  const writer = lock.acquire(0, 10, 'exclusive', () => {});
  lock.acquire(0, 5, 'shared', () => {
    called.push('first');
    second.release();
  });
  const second = lock.acquire(0, 10, 'shared', () => called.push('second'));
  writer.release();
  expect(called).toEqual(['first']);
});

interface ModelRange {
  readonly name: number;
  readonly start: number;
  readonly end: number;
  readonly mode: RangeMode;
}

/** The rule itself, without any counting: everyone held who conflicts with nobody earlier. */
function heldByRule(ranges: readonly ModelRange[]): number[] {
  const conflict = (left: ModelRange, right: ModelRange) =>
    left.start < right.end &&
    right.start < left.end &&
    left.start < left.end &&
    right.start < right.end &&
    (left.mode === 'exclusive' || right.mode === 'exclusive');
  return ranges
    .filter((range, index) => !ranges.slice(0, index).some((earlier) => conflict(earlier, range)))
    .map((range) => range.name);
}

test('it always holds exactly those whom the rule lets hold', () => {
  const step = fc.oneof(
    fc.record({
      kind: fc.constant('acquire' as const),
      offset: fc.nat(40),
      length: fc.nat(20),
      mode: fc.constantFrom<RangeMode>('shared', 'exclusive'),
    }),
    fc.record({ kind: fc.constant('release' as const), pick: fc.nat(1000) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const lock = new RangeLock();
      const held = new Set<number>();
      const live: (ModelRange & { grant: RangeGrant })[] = [];
      let name = 0;
      for (const item of steps) {
        if (item.kind === 'acquire') {
          const mine = name++;
          const grant = lock.acquire(item.offset, item.length, item.mode, () => held.add(mine));
          live.push({ name: mine, start: item.offset, end: item.offset + item.length, mode: item.mode, grant });
        } else if (live.length > 0) {
          const [gone] = live.splice(item.pick % live.length, 1);
          held.delete(gone!.name);
          gone!.grant.release();
        }
        expect([...held].sort((left, right) => left - right)).toEqual(heldByRule(live));
        expect(lock.size).toBe(live.length);
        expect(lock.waiting).toBe(live.length - held.size);
        for (const range of live) expect(range.grant.held).toBe(held.has(range.name));
      }
    }),
    { numRuns: 300 },
  );
});

test('hold gives the grant at once when nothing is in the way, else a promise of it', async () => {
  const lock = new RangeLock();
  const first = lock.hold(0, 10, 'exclusive');
  expect(first).toBeInstanceOf(RangeGrant);
  const second = lock.hold(5, 10, 'exclusive');
  expect(second).toBeInstanceOf(Promise);
  let held = false;
  void Promise.resolve(second).then(() => {
    held = true;
  });
  await Promise.resolve();
  expect(held).toBe(false);
  (await first).release();
  expect((await second).held).toBe(true);
  expect(lock.size).toBe(1);
});
