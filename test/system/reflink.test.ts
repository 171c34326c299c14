/** Copies between files of an XFS that shares blocks: whether they do is seen in the map of their extents. */
import { spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { copyRange } from '../../lib/storage/copy-range.ts';
import { type OpenedDevice, openDevice } from '../../lib/storage/open-device.ts';

const sizeBytes = 24 << 20;
const content = randomFillSync(Buffer.alloc(sizeBytes));

let folder: string;
let mounted: string;
const opened: OpenedDevice[] = [];

function run(command: string, ...parameters: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, parameters, { encoding: 'utf8' });
  expect(status, `${command} ${parameters.join(' ')}: ${error?.message ?? stderr}`).toBe(0);
  return stdout;
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-xfs-'));
  mounted = join(folder, 'mounted');
  mkdirSync(mounted);
  const image = join(folder, 'image');
  writeFileSync(image, '');
  truncateSync(image, 512 << 20);
  run('mkfs.xfs', '-q', '-m', 'reflink=1', image);
  run('mount', '-o', 'loop', image, mounted);
});

afterEach(async () => {
  for (const device of opened.splice(0)) await device.close();
});

afterAll(() => {
  run('umount', mounted);
  rmSync(folder, { recursive: true });
});

async function file(path: string, bytes: Buffer): Promise<OpenedDevice> {
  rmSync(path, { force: true });
  writeFileSync(path, bytes, { flush: true });
  const device = await openDevice(path);
  opened.push(device);
  return device;
}
const source = () => file(join(mounted, 'source'), content);
const target = () => file(join(mounted, 'target'), Buffer.alloc(sizeBytes));

/** Bytes of a file in extents that are shared with another one. */
function sharedBytes(name: string): number {
  const lines = run('filefrag', '-v', '-b1', join(mounted, name)).split('\n');
  const shared = lines.filter((line) => /^\s*\d+:/.test(line) && /\bshared\b/.test(line));
  return shared.reduce((sum, line) => sum + Number(line.split(':')[3]), 0);
}

test('all of a file is shared, and stays as it was when the other one is written to', async () => {
  const [from, to] = [await source(), await target()];
  const result = await copyRange(from, 0, to, 0, sizeBytes);
  expect(result).toEqual({ bytes: sizeBytes, method: 'reflink', bytesBy: { reflink: sizeBytes }, declined: [] });
  await to.flush();
  expect([sharedBytes('source'), sharedBytes('target')]).toEqual([sizeBytes, sizeBytes]);
  const read = Buffer.alloc(sizeBytes);
  await to.read(0, read);
  expect(Buffer.compare(read, content)).toBe(0);
  await to.write(8192, Buffer.alloc(4096, 1));
  await to.flush();
  expect(Buffer.compare(readFileSync(join(mounted, 'source')), content)).toBe(0);
  expect(sharedBytes('source')).toBeLessThan(sizeBytes);
});

test('what was written just before, past the cache or through it, is in the copy', async () => {
  const [from, to] = [await source(), await target()];
  await from.write(4096, Buffer.alloc(4096, 0xaa));
  await from.write(100, Buffer.from('not a block'));
  await to.write(4096, Buffer.alloc(8192, 0xbb));
  expect((await copyRange(from, 0, to, 0, sizeBytes)).method).toBe('reflink');
  const read = Buffer.alloc(8192);
  await to.read(0, read);
  expect(read.subarray(100, 111).toString()).toBe('not a block');
  expect(read.subarray(4096).every((byte) => byte === 0xaa)).toBe(true);
});

test('the ends that are no blocks are read and written', async () => {
  const [from, to] = [await source(), await target()];
  const result = await copyRange(from, 4096 + 700, to, 65_536 + 700, (2 << 20) + 900);
  const whole = (2 << 20) - 4096;
  expect(result.bytesBy).toEqual({ reflink: whole, ring: (2 << 20) + 900 - whole });
  await to.flush();
  expect(sharedBytes('target')).toBe(whole);
  const read = Buffer.alloc(sizeBytes);
  await to.read(0, read);
  const expected = Buffer.alloc(sizeBytes);
  content.copy(expected, 65_536 + 700, 4096 + 700, 4096 + 700 + (2 << 20) + 900);
  expect(Buffer.compare(read, expected)).toBe(0);
});

test('ranges of one file are shared too', async () => {
  const device = await source();
  const result = await copyRange(device, 0, device, sizeBytes / 2, sizeBytes / 2, { method: 'reflink' });
  expect(result.bytesBy).toEqual({ reflink: sizeBytes / 2 });
  await device.flush();
  expect(sharedBytes('source')).toBe(sizeBytes);
  const bytes = readFileSync(join(mounted, 'source'));
  expect(Buffer.compare(bytes.subarray(sizeBytes / 2), content.subarray(0, sizeBytes / 2))).toBe(0);
});

test('by the ring nothing is shared', async () => {
  const [from, to] = [await source(), await target()];
  await copyRange(from, 0, to, 0, sizeBytes, { method: 'ring' });
  await to.flush();
  expect([sharedBytes('source'), sharedBytes('target')]).toEqual([0, 0]);
  expect(Buffer.compare(readFileSync(join(mounted, 'target')), content)).toBe(0);
});

test('copy_file_range shares what it can, as the kernel likes', async () => {
  const [from, to] = [await source(), await target()];
  const result = await copyRange(from, 0, to, 0, sizeBytes, { method: 'copy-file-range' });
  expect(result.method).toBe('copy-file-range');
  await to.flush();
  expect(sharedBytes('target')).toBe(sizeBytes);
});

test('from another file system it is the ring, or a refusal by name', async () => {
  const from = await file(join(folder, 'elsewhere'), content);
  const to = await target();
  expect((await copyRange(from, 0, to, 0, sizeBytes)).method).toBe('ring');
  expect(Buffer.compare(readFileSync(join(mounted, 'target')), content)).toBe(0);
  const byName = copyRange(from, 0, to, 0, sizeBytes, { method: 'reflink' });
  await expect(byName).rejects.toThrow(/by reflink: the files are on different file systems/);
});
