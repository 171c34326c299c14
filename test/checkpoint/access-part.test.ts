import { expect, test } from 'vitest';
import { accessPart } from '../../lib/checkpoint/access-part.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';

const BYTES = 64 * 1024;

test('addresses of a part count from its start, the guard too', async () => {
  const whole = new StoreRecorder(new Uint8Array(BYTES)).access();
  const part = accessPart(whole, 8192, 4096);
  expect(part.range).toEqual({ base: 0, lengthBytes: 4096 });
  await part.write(64, [Uint8Array.of(7), Uint8Array.of(8, 9)], { persist: true });
  const found = new Uint8Array(3);
  await whole.read(8192 + 64, found);
  expect([...found]).toEqual([7, 8, 9]);

  expect(await part.compareAndSwap(0, 0n, 5n)).toBe(0n);
  await part.write(128, [Uint8Array.of(1)], { guard: { address: 0, expected: 5n } });
  const late = part.write(128, [Uint8Array.of(2)], { guard: { address: 0, expected: 4n } });
  await expect(late).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FENCED' });
  await part.read(128, found.subarray(0, 1));
  expect(found[0]).toBe(1);
});

test.each([
  ['before it', -1, 1],
  ['beyond its end', 4095, 2],
  ['beyond its end by far', 1e15, 1],
])('nothing %s can be reached', async (_where, address, lengthBytes) => {
  const part = accessPart(new StoreRecorder(new Uint8Array(BYTES)).access(), 8192, 4096);
  const outside = { code: 'ERR_HOLDFAST_OUT_OF_RANGE' };
  const bytes = new Uint8Array(lengthBytes);
  await expect(part.read(address, bytes)).rejects.toMatchObject(outside);
  await expect(part.write(address, [bytes])).rejects.toMatchObject(outside);
  await expect(part.persist(address, lengthBytes)).rejects.toMatchObject(outside);
  await expect(part.watch(address, lengthBytes, 0)).rejects.toMatchObject(outside);
  await expect(part.write(0, [bytes], { guard: { address: 4089, expected: 0n } })).rejects.toMatchObject(outside);
});
