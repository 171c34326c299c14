/** A unit's memory on a mapped file: what a unit does with it is in unit.test.ts. */
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import { createMemoryUnit } from '../../lib/checkpoint/unit.ts';
import { mappedMemory } from '../../lib/checkpoint/unit-memory.ts';
import { openRegion } from '../../lib/storage/region.ts';
import { temporaryDevice } from '../../lib/testing/temporary-device.ts';

const SIZE = 1024 * 1024;
const REGION = 'a'.repeat(32);

test('what is written, swapped and persisted is in the file, and there again when it is mapped anew', async () => {
  await using file = await temporaryDevice({ sizeBytes: SIZE });
  const unitOver = async () =>
    createMemoryUnit({
      name: 'unit',
      memory: mappedMemory(await openRegion(file.path, { means: 'msync' }), systemClock),
      clock: systemClock,
      recordsBytes: 4096,
    });
  const open = async (unit: Awaited<ReturnType<typeof unitOver>>, key: string) => {
    await unit.install([{ region: REGION, extents: [{ startBytes: 8192, lengthBytes: SIZE / 2 }] }]);
    const range = { base: 0, lengthBytes: SIZE / 2 };
    return unit.localAccess({ key, region: REGION, range, rights: ['read', 'write'], peer: 'ann', epoch: 1 });
  };
  {
    await using unit = await unitOver();
    expect([unit.means, unit.sizeBytes]).toEqual(['msync', SIZE]);
    const access = await open(unit, '1'.repeat(32));
    const writes = Array.from({ length: 32 }, (_, page) =>
      access.write(page * 4096, [Buffer.alloc(4096, page + 1)], { persist: true }),
    );
    await Promise.all(writes);
    expect(await access.compareAndSwap(8, 0x0101010101010101n, 0x0807060504030201n, { persist: true })).toBe(
      0x0101010101010101n,
    );
    expect(await access.compareAndSwap(8, 0n, 1n)).toBe(0x0807060504030201n);
    await access.write(0, [Buffer.from('guarded')], {
      guard: { address: 8, expected: 0x0807060504030201n },
      persist: true,
    });
    await unit.records.write(0, Buffer.from('records'));
    await unit.records.flush();
  }
  const bytes = await readFile(file.path);
  expect(bytes.subarray(0, 7).toString()).toBe('records');
  expect(bytes.subarray(8192, 8192 + 18).toString('latin1')).toBe(
    'guarded\x01\x01\x02\x03\x04\x05\x06\x07\x08\x01\x01',
  );
  for (let page = 1; page < 32; page += 1) expect(bytes[8192 + page * 4096 + 4095]).toBe(page + 1);
  await using again = await unitOver();
  const target = Buffer.alloc(7);
  await (await open(again, '2'.repeat(32))).read(0, target);
  expect(target.toString()).toBe('guarded');
});
