/** A process pair over a region in memory: what the seeded simulation (test/simulation/pair.test.ts) is too gentle for. */
import { afterEach, expect, test } from 'vitest';
import type { Clock } from '../../lib/base/clock.ts';
import { HoldfastError } from '../../lib/base/errors.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { bytesCodec } from '../../lib/checkpoint/codec.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { type PairMemory, type PairRole, type ProcessPair, runProcessPair } from '../../lib/checkpoint/process-pair.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';
import { settle } from './checkpoint-helpers.ts';

const KIB = 1024;

/** A clock that stands still until it is told to fire what was set. */
class HandClock implements Clock {
  readonly #timers = new Set<() => void>();
  nowMs = () => 0;
  wallMs = () => 0;
  setTimer(_delayMs: number, callback: () => void) {
    this.#timers.add(callback);
    return { cancel: () => void this.#timers.delete(callback) };
  }
  fire(): void {
    for (const timer of [...this.#timers]) {
      this.#timers.delete(timer);
      timer();
    }
  }
}

type Counter = { count: number; bytes: number };
type Pair = ProcessPair<Counter, Uint8Array, number>;

let pairs: Pair[] = [];
afterEach(async () => {
  for (const pair of pairs) await pair.close();
  pairs = [];
});

/** The primary of a pair of one. */
async function primary(
  access: RegionAccess,
  options: { updatesMax?: number; memory?: PairMemory } = {},
): Promise<Pair> {
  const clock = new HandClock();
  let working = () => {};
  const works = new Promise<void>((resolve) => {
    working = resolve;
  });
  const pair: Pair = runProcessPair<Counter, Uint8Array, number>({
    environment: { ...systemEnvironment, clock, random: new SimulatedRandom(1, 'pair') },
    memory: { follow: async () => access, takeOver: async () => access },
    initialState: () => ({ count: 0, bytes: 0 }),
    apply: (state, update) => {
      state.bytes += update.length;
      return ++state.count;
    },
    updateCodec: bytesCodec,
    ...options,
    onRole: (role) => void (role === 'primary' && working()),
  });
  pairs.push(pair);
  await settle();
  clock.fire();
  await works;
  return pair;
}

test.each([
  [1, 'one byte'],
  [20, 'as an object with a number'],
  [4000, 'a page'],
])('updates of %i bytes, one after the other, go round the ring: %s', async (lengthBytes) => {
  const recorder = new StoreRecorder(new Uint8Array(128 * KIB));
  const pair = await primary(recorder.access());
  for (let each = 1; each <= 1500; each++) expect(await pair.update(new Uint8Array(lengthBytes))).toBe(each);
  const next = await primary(recorder.access());
  expect(await next.query(({ count }) => count)).toBe(1500);
});

test.each([1, 4000, 12_000])(
  'a burst of updates of %i bytes that is longer than the ring is answered',
  async (lengthBytes) => {
    const recorder = new StoreRecorder(new Uint8Array(128 * KIB));
    const pair = await primary(recorder.access());
    const updates = Array.from({ length: 1000 }, () => pair.update(new Uint8Array(lengthBytes)));
    expect(await Promise.all(updates)).toEqual(Array.from({ length: 1000 }, (_, index) => index + 1));
    const next = await primary(recorder.access());
    expect(await next.query(({ count, bytes }) => [count, bytes])).toEqual([1000, 1000 * lengthBytes]);
  },
);

test('more updates at once than a log takes by itself do not cost the primary its part', async () => {
  const recorder = new StoreRecorder(new Uint8Array(4096 * KIB));
  const pair = await primary(recorder.access(), { updatesMax: 6000 });
  const updates = Array.from({ length: 6000 }, () => pair.update(new Uint8Array(1)));
  await expect(pair.update(new Uint8Array(1))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_QUEUE_FULL' });
  expect((await Promise.all(updates)).at(-1)).toBe(6000);
});

test('queries that wait are bounded, as updates are', async () => {
  const access = new StoreRecorder(new Uint8Array(128 * KIB)).access();
  let held: (() => void)[] | undefined;
  const write: RegionAccess['write'] = async (...given) => {
    if (held !== undefined) await new Promise<void>((resolve) => held?.push(resolve));
    return access.write(...given);
  };
  const pair = await primary({ ...access, write }, { updatesMax: 3 });
  await pair.update(new Uint8Array(1));
  held = [];
  const queries = Array.from({ length: 3 }, () => pair.query(({ count }) => count));
  await expect(pair.query(({ count }) => count)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_QUEUE_FULL' });
  for (const release of held.splice(0)) release();
  held = undefined;
  expect(await Promise.all(queries)).toEqual([1, 1, 1]);
  expect(await pair.query(({ count }) => count)).toBe(1);
});

test.each(['close', 'handOver'] as const)(
  '%s in the middle of a burst: each update is answered, or has not happened',
  async (how) => {
    const recorder = new StoreRecorder(new Uint8Array(128 * KIB));
    const pair = await primary(recorder.access());
    const updates = Array.from({ length: 1000 }, () => pair.update(new Uint8Array(4000)));
    const outcomes = Promise.allSettled(updates);
    await pair[how]();
    const done = (await outcomes).filter(({ status }) => status === 'fulfilled').length;
    for (const outcome of await outcomes)
      if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'ERR_HOLDFAST_NOT_PRIMARY' });
    expect(done).toBeGreaterThan(0);
    expect(done).toBeLessThan(1000);
    const next = await primary(recorder.access());
    expect(await next.query(({ count }) => count)).toBe(done);
  },
);

test('a pair that has been closed says so, also one that had to end', async () => {
  const access = new StoreRecorder(new Uint8Array(128 * KIB)).access();
  const pair = await primary(access);
  expect(pair.role).toBe('primary');
  await pair.close();
  expect(pair.role).toBe('closed');
  const roles: PairRole[] = [];
  const refused = new HoldfastError('ERR_HOLDFAST_NOT_FOUND', 'there is no such region');
  const ending = runProcessPair({
    environment: { ...systemEnvironment, clock: new HandClock() },
    memory: { follow: () => Promise.reject(refused), takeOver: () => Promise.reject(refused) },
    initialState: () => 0,
    apply: () => 0,
    onRole: (role) => void roles.push(role),
  });
  await expect(ending.closed).rejects.toBe(refused);
  expect([ending.role, roles]).toEqual(['closed', ['backup', 'closed']]);
});

test('the unit fails in the middle of a burst: what was answered is there, and what has not happened says so', async () => {
  const recorder = new StoreRecorder(new Uint8Array(128 * KIB));
  const access = recorder.access();
  let storesLeft = Number.POSITIVE_INFINITY;
  const write: RegionAccess['write'] = async (...given) => {
    storesLeft -= 1;
    if (storesLeft < 0) throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'the unit is gone');
    return access.write(...given);
  };
  let takeOvers = 0;
  const memory = {
    follow: async () => access,
    takeOver: async () => {
      takeOvers += 1;
      return takeOvers > 9 ? new Promise<never>(() => {}) : { ...access, write };
    },
  };
  const pair = await primary(access, { memory });
  storesLeft = 20;
  const outcomes = await Promise.allSettled(Array.from({ length: 1000 }, () => pair.update(new Uint8Array(4000))));
  const codes = outcomes.map((outcome) => (outcome.status === 'fulfilled' ? 'done' : outcome.reason.code));
  const count = (code: string) => codes.filter((each) => each === code).length;
  expect(new Set(codes)).toEqual(new Set(['done', 'ERR_HOLDFAST_OUTCOME_UNKNOWN', 'ERR_HOLDFAST_NOT_PRIMARY']));
  // The region can be read still: nobody tries to take over again and again without a pause.
  await settle();
  expect(takeOvers).toBe(1);
  const next = await primary(access);
  const found = await next.query((state) => state.count);
  expect(found).toBeGreaterThanOrEqual(count('done'));
  expect(found).toBeLessThanOrEqual(count('done') + count('ERR_HOLDFAST_OUTCOME_UNKNOWN'));
});
