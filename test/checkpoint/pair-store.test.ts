/** What a process pair keeps in its region: the format of a saved state, and what a cut of the formatting leaves. */
import { expect, test } from 'vitest';
import { decodeSavedState, encodeSavedState, PairStore } from '../../lib/checkpoint/pair-store.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';

const REGION_BYTES = 256 * 1024;
const { signal } = new AbortController();
const random = new SimulatedRandom(1, 'store');

test('golden bytes of a saved state, version 1', () => {
  const bytes = encodeSavedState(258, Buffer.from('state'));
  expect(Buffer.from(bytes).toString('hex')).toBe('48465053010000000201000000000000' + '7374617465');
  expect(decodeSavedState(bytes)).toEqual({ sequence: 258, bytes: Buffer.from('state') });
});

test('a saved state of another version, or none at all, is refused', () => {
  const later = encodeSavedState(1, new Uint8Array(4));
  later[4] = 2;
  expect(() => decodeSavedState(later)).toThrow('version 2 of its format, this release knows 1');
  for (const none of [new Uint8Array(15), new Uint8Array(64)])
    expect(() => decodeSavedState(none)).toThrow('is no state of a process pair');
});

async function updatesOf(store: PairStore, after: number): Promise<string[]> {
  const found: string[] = [];
  for await (const { sequence, bytes } of store.updates(after, signal)) found.push(`${sequence} ${Buffer.from(bytes)}`);
  return found;
}

test('the next primary finds what the last one left, and fences it', async () => {
  const access = new StoreRecorder(new Uint8Array(REGION_BYTES)).access();
  const first = await PairStore.open(access, random, signal);
  expect(first.saved).toBeUndefined();
  await Promise.all(['one', 'two', 'three'].map((text) => first.append(Buffer.from(text))));
  await first.save(2, Buffer.from('one and two'));

  const second = await PairStore.open(access, random, signal);
  expect(second.saved?.sequence).toBe(2);
  expect(Buffer.from(second.saved!.bytes).toString()).toBe('one and two');
  expect(await updatesOf(second, 2)).toEqual(['3 three']);
  await expect(first.append(Buffer.from('late'))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FENCED' });
  expect(await second.append(Buffer.from('four'))).toBe(4);
  expect(await updatesOf(second, 2)).toEqual(['3 three', '4 four']);
  await second.close();
});

test('an update that is too long is refused before anything is changed', async () => {
  const store = await PairStore.open(new StoreRecorder(new Uint8Array(REGION_BYTES)).access(), random, signal);
  expect(() => store.check(new Uint8Array(REGION_BYTES / 2))).toThrow('too long');
  expect(() => store.check(new Uint8Array(1000))).not.toThrow();
});
