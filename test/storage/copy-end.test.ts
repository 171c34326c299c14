import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type CopyEnd, describeEnd, methodsFor, overlaps, whyNot } from '../../lib/storage/copy-end.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { openDevice } from '../../lib/storage/open-device.ts';

const file = (id: string, changes: Partial<CopyEnd> = {}, served = false): CopyEnd => ({
  unit: `file ${id}`,
  startBytes: 0,
  fileSystem: { id: id.split(':')[0]!, blockBytes: 4096, served },
  scsi: false,
  direct: true,
  logicalBlockBytes: 512,
  ...changes,
});
const disk = (number: string, changes: Partial<CopyEnd> = {}): CopyEnd => ({
  unit: `disk ${number}`,
  startBytes: 0,
  fileSystem: undefined,
  scsi: true,
  direct: true,
  logicalBlockBytes: 512,
  ...changes,
});

test.each<[string, CopyEnd | undefined, CopyEnd | undefined, string]>([
  ['memory to memory', undefined, undefined, 'ring'],
  ['memory to a file', undefined, file('1:1'), 'ring'],
  ['two files past the cache', file('1:1'), file('1:2'), 'reflink ring'],
  [
    'two files through the cache',
    file('1:1', { direct: false }),
    file('1:2', { direct: false }),
    'reflink copy-file-range ring',
  ],
  ['one of each', file('1:1', { direct: false }), file('1:2'), 'reflink ring'],
  ['two files of a server', file('1:1', {}, true), file('1:2', {}, true), 'reflink copy-file-range ring'],
  ['files of two file systems', file('1:1'), file('2:1'), 'ring'],
  ['two SCSI disks', disk('8:0'), disk('8:16'), 'extended-copy ring'],
  ['two partitions of one', disk('8:0', { startBytes: 1 << 20 }), disk('8:0'), 'extended-copy ring'],
  ['SCSI disks with other blocks', disk('8:0'), disk('8:16', { logicalBlockBytes: 4096 }), 'ring'],
  ['a SCSI disk to another kind', disk('8:0'), disk('259:0', { scsi: false }), 'ring'],
  ['a file to a disk', file('1:1'), disk('8:0'), 'ring'],
])('%s: which methods', (_, source, target, methods) => {
  expect(methodsFor(source, target).join(' ')).toBe(methods);
  for (const method of methods.split(' ') as ReturnType<typeof methodsFor>)
    expect(whyNot(method, source, target)).toBeUndefined();
});

const device = new MemoryDevice({ sizeBytes: 1 << 20 });
const other = new MemoryDevice({ sizeBytes: 1 << 20 });
type Place = { device: MemoryDevice; end: CopyEnd | undefined; offset: number };
const at = (place: MemoryDevice, offset: number, end?: CopyEnd): Place => ({ device: place, end, offset });

test.each<[string, Place, Place, number, boolean]>([
  ['the same range', at(device, 0), at(device, 0), 1, true],
  ['the same place, nothing', at(device, 0), at(device, 0), 0, false],
  ['one byte in common', at(device, 0), at(device, 99), 100, true],
  ['one byte in common, the other way', at(device, 99), at(device, 0), 100, true],
  ['neighbours', at(device, 0), at(device, 100), 100, false],
  ['two devices', at(device, 0), at(other, 0), 100, false],
  ['two openings of one file', at(device, 0, file('1:1')), at(other, 0, file('1:1')), 100, true],
  ['two files', at(device, 0, file('1:1')), at(other, 0, file('1:2')), 100, false],
  [
    'a partition and its disk',
    at(device, 0, disk('8:0', { startBytes: 4096 })),
    at(other, 4000, disk('8:0')),
    100,
    true,
  ],
  ['beside a partition', at(device, 0, disk('8:0', { startBytes: 4096 })), at(other, 3996, disk('8:0')), 100, false],
  ['partitions of two disks', at(device, 0, disk('8:0')), at(other, 0, disk('8:16')), 100, false],
])('overlap: %s', (_, source, target, length, expected) => {
  expect(overlaps(source, target, length)).toBe(expected);
});

test('a file is described by what the kernel says of it; memory is not', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-end-'));
  const path = join(folder, 'file');
  await using opened = await openDevice(path, { create: { sizeBytes: 1 << 20 } });
  const { dev, ino } = statSync(path);
  const end = await describeEnd(opened);
  expect(end).toMatchObject({ unit: `file ${dev}:${ino}`, startBytes: 0, scsi: false, direct: opened.report().direct });
  expect(end!.fileSystem).toMatchObject({ id: String(dev) });
  expect(Number.isInteger(Math.log2(end!.fileSystem!.blockBytes))).toBe(true);
  expect(await describeEnd(device)).toBeUndefined();
  rmSync(folder, { recursive: true });
});
