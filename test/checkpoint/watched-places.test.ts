/** Several places, watched as one. */
import { expect, test } from 'vitest';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { WatchedPlaces } from '../../lib/checkpoint/watched-places.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';
import { settle } from './checkpoint-helpers.ts';

const word = [new Uint8Array(8).fill(1)];
const { signal } = new AbortController();

function setUp() {
  const [first, second] = [1, 2].map(() => new StoreRecorder(new Uint8Array(4096)).access()) as [
    RegionAccess,
    RegionAccess,
  ];
  const places = [first, second].map((access) => ({ access, address: 0, lengthBytes: 64 }));
  return { first, second, places, watched: new WatchedPlaces() };
}

/** The number from which on both are quiet. */
async function quiet(watched: WatchedPlaces, places: ReturnType<typeof setUp>['places']): Promise<number> {
  let number = 0;
  for (let times = 0; times < 2; times += 1) number = await watched.watch(places, number, signal);
  return number;
}

test('a change of either is told, and one that came before the watch, too', async () => {
  const { first, second, places, watched } = setUp();
  let number = await quiet(watched, places);
  for (const access of [first, second, second, first]) {
    let isTold = false;
    const told = watched.watch(places, number, signal).then((next) => {
      isTold = true;
      return next;
    });
    await settle();
    expect(isTold).toBe(false);
    await access.write(0, word);
    expect(await told).toBeGreaterThan(number);
    number = await told;
  }
  await first.write(0, word);
  expect(await watched.watch(places, number, signal)).toBeGreaterThan(number);
});

test('an old number, or none, is answered at once', async () => {
  const { first, places, watched } = setUp();
  let number = await quiet(watched, places);
  const old = number;
  for (let times = 0; times < 70; times += 1) {
    await first.write(0, word);
    number = await watched.watch(places, number, signal);
  }
  expect(await watched.watch(places, old, signal)).toBeGreaterThan(number);
});

test('one place that fails is told of, and all of them end the watch', async () => {
  const { first, second, places, watched } = setUp();
  const number = await quiet(watched, places);
  const lost = new Error('lost');
  const broken = { ...places[0]!, access: { ...first, watch: () => Promise.reject(lost) } };
  const failed: unknown[] = [];
  const told = watched.watch([broken, places[1]!], number, signal, (place, error) => failed.push(place, error));
  await settle();
  expect(failed).toEqual([broken, lost]);
  await second.write(0, word);
  await told;
  await expect(watched.watch([broken], 0, signal)).rejects.toBe(lost);
  const controller = new AbortController();
  const cancelled = watched.watch([places[0]!], number, controller.signal);
  controller.abort();
  await expect(cancelled).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
});
