import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { assertMayOverwrite, isShownBlank } from '../../lib/storage/guard.ts';
import { ioMemory } from '../../lib/storage/io-memory.ts';
import { openDevice } from '../../lib/storage/open-device.ts';
import { SuperblockPair } from '../../lib/storage/superblock-pair.ts';
import { conformance, conformanceSizeBytes, pattern } from '../conformance/block-device.ts';

let folder = '';
let files = 0;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-open-'));
});
afterAll(() => rm(folder, { recursive: true }));

const freshPath = () => join(folder, `device-${files++}`);
const create = { sizeBytes: conformanceSizeBytes };

conformance('an opened file', async () => {
  const path = freshPath();
  return {
    device: await openDevice(path, { create }),
    reopenReadOnly: () => openDevice(path, { readOnly: true }),
    lease: async (lengthBytes: number) => ioMemory().lease(lengthBytes),
    cleanUp: () => rm(path),
  };
}, ['reopenReadOnly', 'lease']);

test('it tells by which engine it is served, and why', async () => {
  await using device = await openDevice(freshPath(), { create, engine: 'threads', direct: 'off' });
  const report = device.report();
  expect(report).toMatchObject({ engine: 'threads', direct: false });
  expect(report.reason).not.toBe('');
  expect(report.directReason).not.toBe('');
});

test('scattered memory of any length and place is one range, beside unaligned writes too', async () => {
  await using device = await openDevice(freshPath(), { create });
  const whole = [pattern(4096, 1), pattern(8192, 2)];
  await device.writeVectored(4096, whole);
  const broken = [pattern(100, 3), pattern(5000, 4), pattern(1, 5)];
  await Promise.all([device.writeVectored(4096 + 12_288 + 77, broken), device.writeVectored(0, [pattern(4096, 6)])]);
  await device.writeVectored(4096, whole);
  const into = [Buffer.alloc(12_288), Buffer.alloc(3), Buffer.alloc(5175)];
  await device.readVectored(4096, into);
  const expected = Buffer.concat([...whole, Buffer.alloc(77), ...broken]);
  expect(Buffer.concat(into).subarray(0, expected.length).equals(expected)).toBe(true);
  expect(device.ioStatistics().writes.operations).toBeGreaterThan(3);
});

test('what was written survives closing and opening', async () => {
  const path = freshPath();
  {
    await using device = await openDevice(path, { create });
    await device.write(12_345, pattern(6789, 1));
  }
  await using device = await openDevice(path);
  const found = new Uint8Array(6789);
  await device.read(12_345, found);
  expect(Buffer.compare(found, pattern(6789, 1))).toBe(0);
});

test('a device that was just made is blank; once it has a superblock of ours it may not be overwritten', async () => {
  const path = freshPath();
  await using device = await openDevice(path, { create });
  await assertMayOverwrite(path);
  expect(await isShownBlank(path)).toBe(true);
  const layout = { copyOffsets: [conformanceSizeBytes - 8192, conformanceSizeBytes - 4096], copyBytes: 4096 } as const;
  await SuperblockPair.create(device, { name: 'test', version: 1 }, layout, pattern(100, 1));
  expect(await isShownBlank(path)).toBe(false);
  await expect(assertMayOverwrite(path)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_DEVICE_NOT_BLANK',
    message: expect.stringContaining('Holdfast metadata ("test")'),
  });
});
