import { spawnSync } from 'node:child_process';
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { assertMayOverwrite, isShownBlank } from '../../lib/storage/guard.ts';
import { encodeSuperblock } from '../../lib/storage/superblock-pair.ts';

const mebibyte = 1024 * 1024;
let folder = '';
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-guard-'));
});
afterEach(() => rm(folder, { recursive: true }));

/** A sparse file with these bytes in it. */
async function image(sizeBytes: number, parts: Record<number, Uint8Array> = {}): Promise<string> {
  const path = join(folder, 'image');
  await using file = await open(path, 'w');
  await file.truncate(sizeBytes);
  for (const [offset, bytes] of Object.entries(parts)) await file.write(bytes, 0, bytes.byteLength, Number(offset));
  return path;
}

const notBlank = (words: RegExp) =>
  expect.objectContaining({ code: 'ERR_HOLDFAST_DEVICE_NOT_BLANK', message: expect.stringMatching(words) });

/** A swap area's header (include/linux/swap.h), which libblkid knows. */
function swapHeader(sizeBytes: number): Uint8Array {
  const page = Buffer.alloc(4096);
  page.writeUInt32LE(1, 1024);
  page.writeUInt32LE(sizeBytes / 4096 - 1, 1028);
  page.fill(7, 1036, 1052);
  page.write('SWAPSPACE2', 4086, 'latin1');
  return page;
}

/** A master boot record with one partition. */
function partitionTable(): Uint8Array {
  const sector = Buffer.alloc(512);
  sector.writeUInt8(0x83, 446 + 4);
  sector.writeUInt32LE(2048, 446 + 8);
  sector.writeUInt32LE(8192, 446 + 12);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

test('a sparse, an empty and a zero-filled file may be overwritten', async () => {
  await assertMayOverwrite(await image(64 * mebibyte));
  await assertMayOverwrite(await image(0));
  await assertMayOverwrite(await image(3 * mebibyte + 5, { 0: new Uint8Array(3 * mebibyte + 5) }));
});

test.each([
  ['at its very end', 64 * mebibyte - 1],
  ['in its middle', 20 * mebibyte + 777],
  ['at its start', 0],
])('a file with one byte of data %s is refused', async (_, at) => {
  const path = await image(64 * mebibyte, { [at]: Uint8Array.of(1) });
  await expect(assertMayOverwrite(path)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_DEVICE_HAS_DATA',
    message: expect.stringContaining(path),
  });
  await assertMayOverwrite(path, { consent: path });
});

test('a small file of text is refused', async () => {
  const path = join(folder, 'letter');
  await writeFile(path, 'Dear');
  await expect(assertMayOverwrite(path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_DEVICE_HAS_DATA' });
});

test('what libblkid knows is refused and named, and not changed', async () => {
  const path = await image(16 * mebibyte, { 0: swapHeader(16 * mebibyte) });
  const before = await readFile(path);
  await expect(assertMayOverwrite(path)).rejects.toEqual(
    notBlank(/image carries swap \(other\); to overwrite it, name it/),
  );
  expect(Buffer.compare(await readFile(path), before)).toBe(0);
  await expect(assertMayOverwrite(await image(16 * mebibyte, { 0: partitionTable() }))).rejects.toEqual(
    notBlank(/carries dos \(partition table\)/),
  );
});

test('only the device that is named may be overwritten', async () => {
  const path = await image(16 * mebibyte, { 0: swapHeader(16 * mebibyte) });
  await expect(assertMayOverwrite(path, { consent: join(folder, 'other') })).rejects.toEqual(
    notBlank(/the device that was named is .*other, not this one/),
  );
  await assertMayOverwrite(path, { consent: path });
});

test.each([
  ['at the start', 4096],
  ['at the end', 64 * mebibyte - mebibyte],
  ['at the end of one that is no multiple of 4096', 64 * mebibyte - 8192],
])('another Holdfast volume is recognised by its superblock %s', async (_, offset) => {
  const frame = { formatName: 'mirror', formatVersion: 9, sequence: 3, payload: new Uint8Array(100_000).fill(5) };
  const copy = encodeSuperblock(frame, offset, 102_400);
  const path = await image(64 * mebibyte + 512, { [offset]: copy.subarray(0, 64 * mebibyte + 512 - offset) });
  const isWhole = offset + 100_064 <= 64 * mebibyte + 512;
  await expect(assertMayOverwrite(path)).rejects.toEqual(
    notBlank(isWhole ? /carries Holdfast metadata \("mirror"\)/ : /carries damaged Holdfast metadata/),
  );
});

test('a damaged Holdfast superblock is still one', async () => {
  const frame = { formatName: 'mirror', formatVersion: 1, sequence: 3, payload: Uint8Array.of(1) };
  const copy = encodeSuperblock(frame, 0, 4096);
  copy[64] = 2;
  await expect(assertMayOverwrite(await image(mebibyte, { 0: copy }))).rejects.toEqual(
    notBlank(/damaged Holdfast metadata/),
  );
});

test('a client’s file system together with our metadata: both are named', async () => {
  const frame = { formatName: 'mirror', formatVersion: 1, sequence: 3, payload: Uint8Array.of(1) };
  const size = 16 * mebibyte;
  const path = await image(size, {
    0: swapHeader(size),
    [size - 4096]: encodeSuperblock(frame, size - 4096, 4096),
  });
  await expect(assertMayOverwrite(path)).rejects.toEqual(notBlank(/Holdfast metadata \("mirror"\) and swap/));
});

test('what is no device and no file is refused, a pipe without waiting for its writer', async () => {
  await expect(assertMayOverwrite(folder)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  await expect(assertMayOverwrite(join(folder, 'none'))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NOT_FOUND' });
  const pipe = join(folder, 'pipe');
  expect(spawnSync('mkfifo', [pipe]).status).toBe(0);
  await expect(assertMayOverwrite(pipe)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
});

test('holes show a range to be blank, written zeros only if they may be read', async () => {
  const path = await image(64 * mebibyte, { [32 * mebibyte]: new Uint8Array(2 * mebibyte) });
  expect(await isShownBlank(path)).toBe(false);
  expect(await isShownBlank(path, { length: 32 * mebibyte })).toBe(true);
  expect(await isShownBlank(path, { offset: 34 * mebibyte })).toBe(true);
  expect(await isShownBlank(path, { offset: 33 * mebibyte, length: 4096 })).toBe(false);
  expect(await isShownBlank(path, { readBytesMax: mebibyte })).toBe(false);
  expect(await isShownBlank(path, { readBytesMax: 64 * mebibyte })).toBe(true);
});

test('a range with data is never shown blank, and one outside is an error', async () => {
  const path = await image(8 * mebibyte, { [mebibyte]: Uint8Array.of(1) });
  expect(await isShownBlank(path, { readBytesMax: Number.POSITIVE_INFINITY })).toBe(false);
  expect(await isShownBlank(path, { offset: mebibyte, length: 1, readBytesMax: 1 })).toBe(false);
  expect(await isShownBlank(path, { offset: mebibyte, length: 0 })).toBe(true);
  await expect(isShownBlank(path, { offset: 8 * mebibyte, length: 1 })).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_OUT_OF_RANGE',
  });
  await expect(
    isShownBlank(path, { readBytesMax: Number.POSITIVE_INFINITY, signal: AbortSignal.abort() }),
  ).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
});
