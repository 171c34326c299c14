import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { native } from '../../lib/native.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { type CopyProgress, type CopyRangeOptions, copyRange } from '../../lib/storage/copy-range.ts';
import { openDirectDevice } from '../../lib/storage/direct-device.ts';
import { FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { type OpenDeviceOptions, openDevice } from '../../lib/storage/open-device.ts';

const sizeBytes = 6 << 20;
const content = Buffer.alloc(
  sizeBytes,
  Uint8Array.from({ length: 4099 }, (_, i) => (i * 11 + 3) & 0xff),
);
const failsWith = (code: string) => expect.objectContaining({ name: 'HoldfastError', code });

let folder: string;
let opened: BlockDevice[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-copy-'));
  opened = [];
});

afterEach(async () => {
  vi.restoreAllMocks();
  await Promise.all(opened.map((device) => device.close()));
  rmSync(folder, { recursive: true });
});

async function file(name: string, options: OpenDeviceOptions = {}): Promise<BlockDevice> {
  writeFileSync(join(folder, name), name === 'source' ? content : Buffer.alloc(sizeBytes));
  const device = await openDevice(join(folder, name), options);
  opened.push(device);
  return device;
}

async function memory(bytes?: Uint8Array): Promise<MemoryDevice> {
  const device = new MemoryDevice({ sizeBytes });
  if (bytes !== undefined) await device.write(0, bytes);
  return device;
}

async function bytesOf(device: BlockDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(device.geometry.sizeBytes);
  await device.read(0, bytes);
  return bytes;
}

/** What the target holds after `length` bytes from `from` were copied to `to` over zeros. */
function expected(from: number, to: number, length: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  content.copy(bytes, to, from, from + length);
  return bytes;
}

const real = native().copy.copyFileRange;

/** Answers of the kernel, in turn: an errno, or the most bytes that it copies. Then it does as asked. */
function kernelSays(call: 'cloneRange' | 'copyFileRange', ...answers: (string | number)[]): { calls: number[] } {
  const calls: number[] = [];

  vi.spyOn(native().copy, call).mockImplementation(async (sourceFd, from, targetFd, to, length) => {
    calls.push(length);
    const answer = answers.shift() ?? length;
    if (typeof answer === 'string') throw Object.assign(new Error(`${call}: ${answer}`), { code: answer });
    let copied = 0;
    const wanted = Math.min(answer, length);
    while (copied < wanted) copied += await real(sourceFd, from + copied, targetFd, to + copied, wanted - copied);
    return copied;
  });
  return { calls };
}

describe.each<[string, () => Promise<BlockDevice>, () => Promise<BlockDevice>]>([
  ['memory to memory', () => memory(content), () => memory()],
  ['memory to a file', () => memory(content), () => file('target')],
  ['a file to memory', () => file('source'), () => memory()],
  ['a file to a file', () => file('source'), () => file('target')],
  [
    'a file to a file, through the cache',
    () => file('source', { direct: 'off' }),
    () => file('target', { direct: 'off' }),
  ],
  ['a cached file to a direct one', () => file('source', { direct: 'off' }), () => file('target')],
  [
    'a file to a file, by threads',
    () => file('source', { engine: 'threads' }),
    () => file('target', { engine: 'threads' }),
  ],
])('%s', (_, makeSource, makeTarget) => {
  test.each([
    ['all of it', 0, 0, sizeBytes],
    ['whole blocks, moved', 1 << 20, 8192, 3 << 20],
    ['ends that are no blocks', 4096 + 700, (2 << 20) + 700, (2 << 20) + 1000],
    ['ranges that do not lie alike', 513, 7, (1 << 20) + 13],
    ['less than a block', 1000, 3000, 100],
    ['nothing', 100, 200, 0],
    ['the last byte', sizeBytes - 1, sizeBytes - 1, 1],
  ])('copies %s, and changes nothing beside', async (_case, from, to, length) => {
    const [source, target] = [await makeSource(), await makeTarget()];
    const told: CopyProgress[] = [];
    const result = await copyRange(source, from, target, to, length, { onProgress: (progress) => told.push(progress) });
    expect(result.bytes).toBe(length);
    const sum = Object.values(result.bytesBy).reduce((total, bytes) => total + bytes, 0);
    expect(sum).toBe(length);
    expect(Buffer.compare(await bytesOf(target), expected(from, to, length))).toBe(0);
    expect(Buffer.compare(await bytesOf(source), content)).toBe(0);
    const steps = told.map(({ copiedBytes }) => copiedBytes);
    expect(steps).toEqual([...steps].sort((a, b) => a - b));
    if (length > 0)
      expect(told.at(-1)).toEqual({ copiedBytes: length, totalBytes: length, method: told.at(-1)!.method });
  });
});

describe('by its own right', () => {
  test('a device is copied within, where the ranges do not overlap', async () => {
    const device = await file('source');
    await copyRange(device, 0, device, 3 << 20, 3 << 20);
    const bytes = await bytesOf(device);
    expect(Buffer.compare(bytes.subarray(3 << 20), content.subarray(0, 3 << 20))).toBe(0);
    expect(Buffer.compare(bytes.subarray(0, 3 << 20), content.subarray(0, 3 << 20))).toBe(0);
  });

  test.each<[string, number, number, number]>([
    ['forwards', 0, 4096, 8192],
    ['backwards', 4096, 0, 8192],
    ['onto itself', 4096, 4096, 512],
    ['by one byte', 0, 8191, 8192],
  ])('ranges that overlap %s are refused, also between two openings', async (_, from, to, length) => {
    const device = await file('source', { exclusive: false });
    const again = await openDevice(join(folder, 'source'), { readOnly: true, exclusive: false });
    opened.push(again);
    for (const source of [device, again]) {
      await expect(copyRange(source, from, device, to, length)).rejects.toEqual(failsWith('ERR_HOLDFAST_BAD_ARGUMENT'));
    }
    expect(Buffer.compare(await bytesOf(device), content)).toBe(0);
  });

  test.each<[string, number, number, number, CopyRangeOptions | undefined, string]>([
    ['beyond the source', 1, 0, sizeBytes, undefined, 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['beyond the target', 0, 1, sizeBytes, undefined, 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['before the start', -1, 0, 1, undefined, 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['of a negative length', 0, 0, -1, undefined, 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['of half a byte', 0, 0, 0.5, undefined, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    ['by a method that there is not', 0, 0, 1, { method: 'hope' as 'ring' }, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    ['that is cancelled already', 0, 0, 1, { signal: AbortSignal.abort() }, 'ERR_HOLDFAST_ABORTED'],
  ])('a copy %s is refused', async (_, from, to, length, options, code) => {
    const [source, target] = [await memory(content), await memory()];
    await expect(copyRange(source, from, target, to, length, options)).rejects.toEqual(failsWith(code));
    expect((await bytesOf(target)).every((byte) => byte === 0)).toBe(true);
  });

  test('a copy to a read-only device, or a closed one, is refused', async () => {
    const source = await memory(content);
    const readOnly = new MemoryDevice({ sizeBytes, readOnly: true });
    await expect(copyRange(source, 0, readOnly, 0, 1)).rejects.toEqual(failsWith('ERR_HOLDFAST_READ_ONLY'));
    const target = await file('target');
    await target.close();
    await expect(copyRange(source, 0, target, 0, 1)).rejects.toEqual(failsWith('ERR_HOLDFAST_CLOSED'));
  });

  test('a block that cannot be read ends it, and nothing is in flight after', async () => {
    const broken = new FaultyDevice(await memory(content));
    const target = await memory();
    broken.inject({ action: { kind: 'error' }, on: 'read', within: { offset: 3 << 20, length: 512 } });
    let last = 0;
    const copy = copyRange(broken, 0, target, 0, sizeBytes, { onProgress: ({ copiedBytes }) => (last = copiedBytes) });
    await expect(copy).rejects.toEqual(failsWith('ERR_HOLDFAST_IO'));
    expect(last).toBe(3 << 20);
    const bytes = await bytesOf(target);
    expect(Buffer.compare(bytes.subarray(0, last), content.subarray(0, last))).toBe(0);
    const { writes } = target.stats();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(target.stats().writes).toBe(writes);
  });

  test('a cancelled one stops in the middle, with what was told copied', async () => {
    const [source, target] = [await file('source'), await file('target')];
    const controller = new AbortController();
    let last = 0;
    const onProgress = ({ copiedBytes }: CopyProgress): void => {
      last = copiedBytes;
      if (copiedBytes >= 1 << 20) controller.abort();
    };
    const copy = copyRange(source, 0, target, 0, sizeBytes, { method: 'ring', signal: controller.signal, onProgress });
    await expect(copy).rejects.toEqual(failsWith('ERR_HOLDFAST_ABORTED'));
    expect(last).toBe(1 << 20);
    const bytes = await bytesOf(target);
    expect(Buffer.compare(bytes.subarray(0, last), content.subarray(0, last))).toBe(0);
  });

  test('many at once share their memory', async () => {
    const source = await memory(content);
    const targets = await Promise.all(Array.from({ length: 40 }, () => memory()));
    await Promise.all(targets.map((target) => copyRange(source, 0, target, 0, 2 << 20)));
    for (const target of targets) expect(Buffer.compare(await bytesOf(target), expected(0, 0, 2 << 20))).toBe(0);
  });
});

describe('the kernel', () => {
  test.each(['EXDEV', 'EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'EINVAL', 'ENOTTY', 'EPERM', 'ENOSPC', 'EIO'])(
    'that says %s is not asked again: the next way is taken',
    async (errno) => {
      const [source, target] = [await file('source', { direct: 'off' }), await file('target', { direct: 'off' })];
      const clone = kernelSays('cloneRange', errno);
      const copy = kernelSays('copyFileRange', errno);
      const result = await copyRange(source, 0, target, 0, sizeBytes);
      expect([clone.calls.length, copy.calls.length]).toEqual([1, 1]);
      expect(result).toMatchObject({ method: 'ring', bytesBy: { ring: sizeBytes } });
      expect(result.declined).toEqual([
        { method: 'reflink', reason: `the kernel says ${errno}` },
        { method: 'copy-file-range', reason: `the kernel says ${errno}` },
      ]);
      expect(Buffer.compare(await bytesOf(target), content)).toBe(0);
    },
  );

  test.each([
    ['EXDEV', 'ERR_HOLDFAST_NOT_SUPPORTED'],
    ['ENOTSUP', 'ERR_HOLDFAST_NOT_SUPPORTED'],
    ['ENOSPC', 'ERR_HOLDFAST_NO_SPACE'],
    ['EIO', 'ERR_HOLDFAST_IO'],
  ])('that says %s fails a copy by name', async (errno, code) => {
    const [source, target] = [await file('source'), await file('target')];
    for (const [method, call] of [
      ['reflink', 'cloneRange'],
      ['copy-file-range', 'copyFileRange'],
    ] as const) {
      kernelSays(call, errno);
      const error = await copyRange(source, 0, target, 0, 4096, { method }).catch((caught: unknown) => caught);
      expect(error).toEqual(failsWith(code));
      expect((error as Error).message).toMatch(
        new RegExp(`by ${method}: the kernel says ${errno}; take another method`),
      );
    }
    expect((await bytesOf(target)).every((byte) => byte === 0)).toBe(true);
  });

  test('that copies less is asked for the rest', async () => {
    const [source, target] = [await file('source', { direct: 'off' }), await file('target', { direct: 'off' })];
    const { calls } = kernelSays('copyFileRange', 4096, 1 << 20, 700_000, 1 << 20);
    const result = await copyRange(source, 0, target, 0, sizeBytes, { method: 'copy-file-range' });
    const block = source.geometry.logicalBlockBytes;
    const third = 700_000 - (700_000 % block);
    const left = [0, 4096, 1 << 20, third, 1 << 20].map(
      (
        (done) => (bytes: number) =>
          (done += bytes)
      )(0),
    );
    expect(calls).toEqual(left.map((done) => sizeBytes - done));
    expect(result).toMatchObject({ bytes: sizeBytes, method: 'copy-file-range', declined: [] });
    expect(Buffer.compare(await bytesOf(target), content)).toBe(0);
  });

  test('that copies nothing, or less than a block, is left in the middle', async () => {
    for (const dribble of [0, 100]) {
      const [source, target] = [await file('source', { direct: 'off' }), await file('target', { direct: 'off' })];
      kernelSays('cloneRange', 'ENOTSUP');
      kernelSays('copyFileRange', 1 << 20, dribble);
      const result = await copyRange(source, 0, target, 0, sizeBytes);
      expect(result.bytesBy).toEqual({ 'copy-file-range': 1 << 20, ring: sizeBytes - (1 << 20) });
      expect(result.method).toBe('ring');
      expect(Buffer.compare(await bytesOf(target), content)).toBe(0);
      kernelSays('copyFileRange', dribble);
      const byName = copyRange(source, 0, target, 0, sizeBytes, { method: 'copy-file-range' });
      await expect(byName).rejects.toEqual(failsWith('ERR_HOLDFAST_IO'));
      await Promise.all(opened.splice(0).map((device) => device.close()));
    }
  });

  test('is asked for whole blocks only, and the ends are read and written', async () => {
    const [source, target] = [await file('source'), await file('target')];
    const { calls } = kernelSays('cloneRange');
    const result = await copyRange(source, 4096 + 700, target, 8192 + 700, 20_000);
    const { reflink: shared = 0, ring = 0 } = result.bytesBy;
    expect([calls, shared + ring, result.declined]).toEqual([[shared], 20_000, []]);
    expect(shared % source.geometry.logicalBlockBytes).toBe(0);
    expect(shared).toBeGreaterThan(0);
    expect(Buffer.compare(await bytesOf(target), expected(4096 + 700, 8192 + 700, 20_000))).toBe(0);
  });

  test.each<[string, number, number, number]>([
    ['begins inside of a block', 700, 700, 8192],
    ['ends inside of a block', 0, 0, 8193],
    ['does not lie alike', 0, 512, 1 << 20],
  ])('is not asked by name for a range that %s', async (_, from, to, length) => {
    const [source, target] = [await file('source'), await file('target')];
    const { calls } = kernelSays('cloneRange');
    const copy = copyRange(source, from, target, to, length, { method: 'reflink' });
    await expect(copy).rejects.toEqual(failsWith('ERR_HOLDFAST_BAD_ARGUMENT'));
    expect(calls).toEqual([]);
  });

  test('is not asked about what is no file', async () => {
    const [source, target] = [await memory(content), await file('target')];
    for (const method of ['reflink', 'copy-file-range', 'extended-copy'] as const) {
      const error = await copyRange(source, 0, target, 0, 4096, { method }).catch((caught: unknown) => caught);
      expect(error).toEqual(failsWith('ERR_HOLDFAST_NOT_SUPPORTED'));
    }
    const files = copyRange(await file('source'), 0, target, 0, 4096, { method: 'extended-copy' });
    await expect(files).rejects.toThrow('both ends must be SCSI disks');
  });

  test('does it in the background: close waits, a cancelled copy stops at the next step', async () => {
    const [source, target] = [await file('source'), await file('target')];
    let release = (): void => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    vi.spyOn(native().copy, 'copyFileRange').mockImplementation(async (_s, _f, _t, _o, length) => {
      await held;
      return Math.min(length, 1 << 20);
    });
    const controller = new AbortController();
    const { signal } = controller;
    const ended: string[] = [];
    const copy = copyRange(source, 0, target, 0, sizeBytes, { method: 'copy-file-range', signal }).catch((error) => {
      ended.push(error.code);
    });
    while (vi.mocked(native().copy.copyFileRange).mock.calls.length === 0) await new Promise(setImmediate);
    const closed = Promise.all([source.close(), target.close()]).then(() => ended.push('closed'));
    controller.abort();
    await new Promise(setImmediate);
    expect(ended).toEqual([]);
    release();
    await Promise.all([copy, closed]);
    expect(ended.sort()).toEqual(['ERR_HOLDFAST_ABORTED', 'closed']);
    expect(native().copy.copyFileRange).toHaveBeenCalledTimes(1);
  });

  test('keeps its order with a write of a part of a block', async () => {
    const [source, target] = [await file('source'), await file('target')];
    await target.write(1, Uint8Array.of(1));
    let release = (): void => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    vi.spyOn(native().copy, 'copyFileRange').mockImplementation(async (_s, _f, _t, _o, length) => {
      await held;
      return length;
    });
    const ended: string[] = [];
    const copy = copyRange(source, 0, target, 0, 8192, { method: 'copy-file-range' }).then(() => ended.push('copy'));
    while (vi.mocked(native().copy.copyFileRange).mock.calls.length === 0) await new Promise(setImmediate);
    const write = target.write(5000, Uint8Array.of(7)).then(() => ended.push('write'));
    const elsewhere = target.write(1 << 20, new Uint8Array(4096)).then(() => ended.push('elsewhere'));
    await elsewhere;
    release();
    await Promise.all([copy, write]);
    expect(ended).toEqual(['elsewhere', 'copy', 'write']);
    expect((await bytesOf(target))[5000]).toBe(7);
  });
});

test('a direct device that serves whole blocks only is copied, and says so of the rest', async () => {
  writeFileSync(join(folder, 'source'), content);
  writeFileSync(join(folder, 'target'), Buffer.alloc(sizeBytes));
  const source = await openDirectDevice(join(folder, 'source'));
  const target = await openDirectDevice(join(folder, 'target'));
  opened.push(source, target);
  await copyRange(source, 4096, target, 0, 1 << 20);
  expect(Buffer.compare(readFileSync(join(folder, 'target')), expected(4096, 0, 1 << 20))).toBe(0);
});

describe('the binding', () => {
  const cdb = Uint8Array.of(0x12, 0, 0, 0, 36, 0);
  const none = new Uint8Array(0);

  test.each<[string, () => unknown]>([
    ['a command that is too short', () => native().copy.scsi(0, new Uint8Array(5), none, 0, 1)],
    ['a command that is too long', () => native().copy.scsi(0, new Uint8Array(17), none, 0, 1)],
    ['data both ways', () => native().copy.scsi(0, cdb, new Uint8Array(1), 1, 1)],
    ['too much to receive', () => native().copy.scsi(0, cdb, none, 65_537, 1)],
    ['too much to send', () => native().copy.scsi(0, cdb, new Uint8Array(65_537), 0, 1)],
    ['a time that is none', () => native().copy.scsi(0, cdb, none, 0, 2 ** 32)],
    ['no descriptor', () => native().copy.scsi(-1, cdb, none, 0, 1)],
    ['a negative offset', () => native().copy.copyFileRange(0, -1, 0, 0, 1)],
    ['half a byte', () => native().copy.cloneRange(0, 0, 0, 0, 0.5)],
    ['no length', () => native().copy.dropCache(0, 0, undefined as unknown as number)],
  ])('refuses %s', (_, call) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG_TYPE' }));
  });

  test('says what the kernel says, in the background', async () => {
    const fd = openSync(join(folder, 'file'), 'w+');
    await expect(native().copy.scsi(fd, cdb, none, 36, 1000)).rejects.toMatchObject({ code: 'ENOTTY' });
    await expect(native().copy.copyFileRange(fd, 0, 1_000_000, 0, 1)).rejects.toMatchObject({ code: 'EBADF' });
    // It has descriptors of its own: closing this one does not touch the work.
    const dropped = native().copy.dropCache(fd, 0, 4096);
    closeSync(fd);
    await dropped;
  });
});
