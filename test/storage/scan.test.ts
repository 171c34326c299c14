import { execFile } from 'node:child_process';
import { mkdtemp, open, readdir, readlink, rm, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { FaultPlan, FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { openDevice } from '../../lib/storage/open-device.ts';
import { type ScanBatch, type ScanOptions, scanDevice } from '../../lib/storage/scan.ts';
import { pattern } from '../conformance/block-device.ts';
import { engines } from './engines.ts';

const mebibyte = 1024 * 1024;
const sizeBytes = 96 * mebibyte;
const program = fileURLToPath(new URL('./scan-worker.mjs', import.meta.url));
const run = promisify(execFile);
let folder: string;
let path: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-scan-'));
  path = join(folder, 'device');
  await using file = await open(path, 'w');
  for (let offset = 0; offset < sizeBytes; offset += mebibyte)
    await file.write(pattern(mebibyte, offset), 0, mebibyte, offset);
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true });
});

function code(errorCode: string): unknown {
  return expect.objectContaining({ name: 'HoldfastError', code: errorCode });
}

async function scanAll(device: BlockDevice, options: ScanOptions): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const batch of scanDevice(device, options)) parts.push(batch.checksums);
  return Buffer.concat(parts);
}

async function memoryCopy(): Promise<MemoryDevice> {
  await using file = await openDevice(path, { readOnly: true });
  const device = new MemoryDevice({ sizeBytes });
  const bytes = new Uint8Array(mebibyte);
  for (let offset = 0; offset < sizeBytes; offset += mebibyte) {
    await file.read(offset, bytes);
    await device.write(offset, bytes);
  }
  return device;
}

/** The files that this process has open, the scanned one among them. */
async function openings(): Promise<number> {
  const links = await Promise.all(
    (await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')),
  );
  return links.filter((link) => link === path).length;
}

test('many batches over a file are the same as over memory', async () => {
  const options = { blockBytes: 512 };
  const expected = await scanAll(await memoryCopy(), options);
  expect(expected.byteLength).toBe((sizeBytes / 512) * 4);
  for (const engine of engines) {
    for (const direct of ['auto', 'off'] as const) {
      await using device = await openDevice(path, { engine, direct, readOnly: true });
      expect(Buffer.compare(await scanAll(device, options), expected)).toBe(0);
    }
  }
});

test.each(['deferred', 'cooperative', 'plain'])('completions that come in %s', async (style) => {
  if (!engines.includes('io_uring')) return;
  vi.stubEnv('HOLDFAST_IO_URING_STYLE', style);
  await using device = await openDevice(path, { engine: 'io_uring', capacity: 16, readOnly: true });
  vi.unstubAllEnvs();
  expect(Buffer.compare(await scanAll(device, {}), await scanAll(await memoryCopy(), {}))).toBe(0);
});

for (const engine of engines) {
  describe(`a scan of a file by ${engine}`, () => {
    const openIt = () => openDevice(path, { engine, readOnly: true });

    test('counts what it reads', async () => {
      await using device = await openIt();
      const before = device.stats();
      await scanAll(device, { offset: 4096, length: 10 * mebibyte });
      const after = device.stats();
      expect(after.readBytes - before.readBytes).toBe(10 * mebibyte);
      expect(after.reads).toBeGreaterThan(before.reads);
    });

    test('who does not ask for more stops the reading', async () => {
      await using device = await openIt();
      const scan = scanDevice(device, { blockBytes: 512 });
      const iterator = scan[Symbol.asyncIterator]();
      await iterator.next();
      // What may be ahead: four finished batches of 16 MiB beside the one that was taken.
      await vi.waitFor(() => expect(scan.progress().doneBytes).toBe(80 * mebibyte), { timeout: 20_000 });
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(scan.progress().doneBytes).toBe(80 * mebibyte);
      await iterator.return();
    });

    test('a rate holds it back, and a higher one lets it go on', async () => {
      await using device = await openIt();
      const scan = scanDevice(device, { bytesPerSecond: 1024 });
      const done = (async () => {
        let blocks = 0;
        for await (const batch of scan) blocks += batch.blocks;
        return blocks;
      })();
      await vi.waitFor(() => expect(scan.progress().doneBytes).toBeGreaterThan(0), { timeout: 20_000 });
      await new Promise((resolve) => setTimeout(resolve, 100));
      expect(scan.progress().doneBytes).toBeLessThan(sizeBytes / 2);
      expect(scan.progress().remainingMs).toBeGreaterThan(0);
      scan.bytesPerSecond = Number.POSITIVE_INFINITY;
      expect(await done).toBe(sizeBytes / 65_536);
    });

    test('cancelled while it waits for its rate', async () => {
      await using device = await openIt();
      const before = await openings();
      const scan = scanDevice(device, { bytesPerSecond: 1024, signal: AbortSignal.timeout(50) });
      await expect(scan[Symbol.asyncIterator]().next()).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
      expect(await openings()).toBe(before);
    });

    test('a device that is closed ends the scan, whether or not anybody asks for more', async () => {
      const before = await openings();
      const device = await openIt();
      const asking = scanDevice(device, { bytesPerSecond: 1024 })[Symbol.asyncIterator]().next();
      const idle = scanDevice(device)[Symbol.asyncIterator]();
      await idle.next();
      const [outcome] = await Promise.allSettled([asking, device.close()]);
      expect(outcome).toMatchObject({ status: 'rejected', reason: code('ERR_HOLDFAST_CLOSED') });
      await expect(idle.next()).rejects.toEqual(code('ERR_HOLDFAST_CLOSED'));
      expect(await openings()).toBe(before);
    });

    test.each([
      [
        'in the middle',
        20,
        [
          [0, 16, 256],
          [16, 4, 64],
        ],
      ],
      [
        'in the last batch',
        36,
        [
          [0, 16, 256],
          [16, 16, 256],
          [32, 4, 64],
        ],
      ],
      [
        'between two batches',
        32,
        [
          [0, 16, 256],
          [16, 16, 256],
        ],
      ],
    ])('a file that has become smaller is told with the place: %s', async (_, leftMebibytes, given) => {
      const small = join(folder, `small-${engine}`);
      await using file = await open(small, 'w');
      await file.truncate(40 * mebibyte);
      await using device = await openDevice(small, { engine, readOnly: true });
      await truncate(small, leftMebibytes * mebibyte);
      const seen: ScanBatch[] = [];
      const scan = async () => {
        for await (const batch of scanDevice(device)) seen.push(batch);
      };
      await expect(scan()).rejects.toThrow(
        expect.objectContaining({
          code: 'ERR_HOLDFAST_IO',
          message: expect.stringMatching(
            new RegExp(`read of \\d+ at ${leftMebibytes * mebibyte} met the device's end`),
          ),
        }),
      );
      expect(seen.map(({ offset, length, blocks }) => [offset / mebibyte, length / mebibyte, blocks])).toEqual(given);
    });

    // Processes start slowly under the sanitizers.
    test('an open scan keeps neither a worker nor the process', { timeout: 120_000 }, async () => {
      expect((await run(process.execPath, [program, 'terminate', engine, path])).stdout).toBe('4 ended\n');
      expect((await run(process.execPath, [program, 'abandon', engine, path])).stdout).toBe('done\n');
    });
  });
}

describe('a scan of a device without a file', () => {
  test.each([0, 32, 40, 95])(
    'a read that fails at %i MiB ends it with the error, after what is before it',
    async (at) => {
      const plan = new FaultPlan();
      plan.inject({ action: { kind: 'error' }, on: 'read', within: { offset: at * mebibyte, length: 512 } });
      const device = new FaultyDevice(await memoryCopy(), { plan });
      let offset = 0;
      const scan = async () => {
        for await (const batch of scanDevice(device)) offset = batch.offset + batch.length;
      };
      await expect(scan()).rejects.toEqual(code('ERR_HOLDFAST_IO'));
      expect(offset).toBe(at * mebibyte);
    },
  );

  test('who does not ask for more stops the reading', async () => {
    const device = await memoryCopy();
    const iterator = scanDevice(device)[Symbol.asyncIterator]();
    const before = device.stats().readBytes;
    await iterator.next();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(device.stats().readBytes - before).toBeLessThan(32 * mebibyte);
    await iterator.return();
  });

  test('a rate is kept by the clock that it is given', async () => {
    let nowMs = 0;
    const clock = {
      nowMs: () => nowMs,
      wallMs: () => nowMs,
      setTimer(delayMs: number, callback: () => void) {
        queueMicrotask(() => {
          nowMs += delayMs;
          callback();
        });
        return { cancel: () => {} };
      },
    };
    const scan = scanDevice(await memoryCopy(), { bytesPerSecond: 8 * mebibyte, clock });
    for await (const batch of scan) expect(batch.blocks).toBe(256);
    // The last piece need not be waited for, and a delay may be made up for once.
    expect(nowMs).toBeGreaterThan(11_800);
    expect(nowMs).toBeLessThanOrEqual(12_000);
  });

  test('a rate so low that no timer lasts as long is waited for in parts', async () => {
    const controller = new AbortController();
    const delays: number[] = [];
    let nowMs = 0;
    const clock = {
      nowMs: () => nowMs,
      wallMs: () => nowMs,
      setTimer(delayMs: number, callback: () => void) {
        delays.push(delayMs);
        if (delays.length === 3) controller.abort();
        nowMs += delayMs;
        queueMicrotask(callback);
        return { cancel: () => {} };
      },
    };
    const device = new MemoryDevice({ sizeBytes: 32 * mebibyte });
    const scan = scanDevice(device, { bytesPerSecond: 0.01, signal: controller.signal, clock });
    await expect(scan[Symbol.asyncIterator]().next()).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
    expect(delays).toEqual([60_000, 60_000, 60_000]);
  });

  test('cancelled while it waits for its rate', async () => {
    const device = new MemoryDevice({ sizeBytes: 4 * mebibyte });
    const scan = scanDevice(device, { bytesPerSecond: 1024, signal: AbortSignal.timeout(20) });
    await expect(scan[Symbol.asyncIterator]().next()).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
  });
});

test('what makes no sense is refused before anything is read', () => {
  const device = new MemoryDevice({ sizeBytes: mebibyte });
  for (const options of [
    { blockBytes: 0 },
    { blockBytes: 511 },
    { blockBytes: 1000.5 },
    { blockBytes: 16 * mebibyte + 1 },
    { algorithm: 'crc32' as 'crc32c' },
    { algorithm: 'toString' as 'crc32c' },
    { bytesPerSecond: 0 },
    { bytesPerSecond: Number.NaN },
  ]) {
    expect(() => scanDevice(device, options)).toThrow(code('ERR_HOLDFAST_BAD_ARGUMENT'));
  }
  expect(device.stats().reads).toBe(0);
});

test('a scan is gone through once', async () => {
  const scan = scanDevice(new MemoryDevice({ sizeBytes: mebibyte }));
  for await (const batch of scan) expect(batch.hex(0)).toMatch(/^[0-9a-f]{8}$/);
  await expect(scan[Symbol.asyncIterator]().next()).rejects.toEqual(code('ERR_HOLDFAST_BAD_ARGUMENT'));
});

test('a CRC in hexadecimal is the number', async () => {
  const device = new MemoryDevice({ sizeBytes: 512 });
  for await (const batch of scanDevice(device)) expect(Number.parseInt(batch.hex(0), 16)).toBe(batch.crc32c()[0]);
});
