import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { openDevice } from '../../lib/storage/open-device.ts';
import { temporaryDevice } from '../../lib/testing/temporary-device.ts';

test('a temporary device can be used, opened again by its path, and leaves nothing behind', async () => {
  let path = '';
  {
    await using temporary = await temporaryDevice({ sizeBytes: 65_536 });
    path = temporary.path;
    await temporary.device.write(1, Uint8Array.of(1, 2, 3));
    await temporary.device.close();
    await using again = await openDevice(path, { readOnly: true });
    const found = new Uint8Array(5);
    await again.read(0, found);
    expect([...found]).toEqual([0, 1, 2, 3, 0]);
  }
  expect(existsSync(dirname(path))).toBe(false);
});

test('one that cannot be made leaves nothing behind', async () => {
  const parent = mkdtempSync(join(tmpdir(), 'holdfast-parent-'));
  await expect(temporaryDevice({ sizeBytes: 1, parent })).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  expect(readdirSync(parent)).toEqual([]);
  rmSync(parent, { recursive: true });
});
