import { execFile, spawnSync } from 'node:child_process';
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { openDevice } from '../../lib/storage/open-device.ts';
import { openRing, RingOperation, RingRequest } from '../../lib/storage/ring.ts';
import { engines } from './engines.ts';

const run = promisify(execFile);
const program = fileURLToPath(new URL('./ring-worker.mjs', import.meta.url));
const denier = fileURLToPath(new URL('./deny-io-uring.py', import.meta.url));
const unshareMounts = ['--user', '--map-root-user', '--mount'];
let folder: string;

/** Needs user namespaces, and a kernel that has the setting (6.6). */
function canLayFiles(): boolean {
  const script = 'mount --bind /proc/sys/kernel/io_uring_disabled /proc/sys/kernel/io_uring_disabled';
  return spawnSync('unshare', [...unshareMounts, 'sh', '-c', script]).status === 0;
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-ring-'));
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true });
});

describe('the choice of the engine', () => {
  test('is reported with its reason', () => {
    const ring = openRing({ engine: 'threads', threads: 2, capacity: 8 });
    expect(ring.report()).toEqual({
      engine: 'threads',
      reason: 'asked for by the option engine',
      capacity: 8,
      threads: 2,
      features: [],
    });
    ring.close();
  });

  test('HOLDFAST_ENGINE says what `auto` is, and an option goes before it', () => {
    vi.stubEnv('HOLDFAST_ENGINE', 'threads');
    const ring = openRing();
    expect(ring.report()).toMatchObject({ engine: 'threads', reason: 'asked for by HOLDFAST_ENGINE' });
    ring.close();
    vi.stubEnv('HOLDFAST_ENGINE', 'steam');
    expect(() => openRing()).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }));
    const other = openRing({ engine: 'threads' });
    expect(other.report().engine).toBe('threads');
    other.close();
    vi.unstubAllEnvs();
  });

  test.each([
    ['EPERM', /^io_uring is (denied|switched off) \(io_uring_setup says EPERM\)/],
    ['ENOSYS', /^the kernel has no io_uring/],
    ['ENOMEM', /ulimit -l/],
  ])(
    'where io_uring answers %s, threads serve and the reason is told; asked for by name it is an error',
    async (errno, reason) => {
      const { stdout } = await run('python3', [denier, errno, process.execPath, program, 'denied']);
      expect(JSON.parse(stdout)).toEqual({
        engine: 'threads',
        reason: expect.stringMatching(reason),
        refusal: { code: 'ERR_HOLDFAST_NOT_SUPPORTED', errno },
      });
    },
  );

  // The real file of this setting is the whole machine's; another one is laid over it for one process.
  test.runIf(canLayFiles()).each([
    ['1', /kernel\.io_uring_disabled is 1, .*kernel\.io_uring_group/],
    ['2', /kernel\.io_uring_disabled is 2, .*for everybody/],
  ])('where kernel.io_uring_disabled is %s, the reason says so and what to do', async (value, reason) => {
    const setting = join(folder, `disabled-${value}`);
    await writeFile(setting, `${value}\n`);
    const script = 'mount --bind "$0" /proc/sys/kernel/io_uring_disabled && exec "$@"';
    const denied = ['python3', denier, 'EPERM', process.execPath, program, 'denied'];
    const { stdout } = await run('unshare', [...unshareMounts, 'sh', '-c', script, setting, ...denied]);
    expect(JSON.parse(stdout)).toMatchObject({ engine: 'threads', reason: expect.stringMatching(reason) });
  });
});

describe.each(engines)('with the engine %s', (engine) => {
  test('an idle ring does not keep the process alive', async () => {
    const { stdout } = await run(process.execPath, [program, 'idle', engine, join(folder, `idle-${engine}`)], {
      timeout: 20_000,
    });
    expect(stdout).toBe('done\n');
  });

  // A flag that the kernel had raised late for work already done once kept the ring, idle, in its loop for ever.
  test('a ring that falls idle again and again gives the loop back each time', async () => {
    const device = await openDevice(join(folder, `bursts-${engine}`), { engine, create: { sizeBytes: 1024 * 1024 } });
    const buffers = Array.from({ length: 32 }, () => new Uint8Array(4096));
    for (let burst = 0; burst < 500; burst += 1) {
      const reads = buffers.slice(0, 1 + (burst % 32)).map((buffer, index) => device.read(index * 4096, buffer));
      await Promise.all(reads);
      await nextTurn();
    }
    expect(device.stats().errors).toBe(0);
    await device.close();
  });

  test('workers that end with requests in flight end cleanly, again and again', async () => {
    const { stdout } = await run(process.execPath, [program, 'terminate', engine, join(folder, `end-${engine}`)], {
      timeout: 60_000,
    });
    expect(stdout).toBe('10 workers ended\n');
  });

  // The smallest object of the heap has 16 bytes, so less means none for each operation: what is left is for each batch.
  test('an operation with a callback allocates nothing, one with a promise at most 300 bytes', async () => {
    const flags = ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64'];
    const { stdout } = await run(process.execPath, [
      ...flags,
      program,
      'allocations',
      engine,
      join(folder, `heap-${engine}`),
    ]);
    const { callback, read, write } = JSON.parse(stdout) as Record<string, number>;
    expect(callback).toBeLessThan(16);
    expect(read).toBeLessThan(300);
    expect(write).toBeLessThan(300);
  });

  test('a ring that is closed gives back its descriptors and threads', async () => {
    const { stdout } = await run(process.execPath, [program, 'close', engine], { timeout: 20_000 });
    const { before, after } = JSON.parse(stdout) as { before: number[]; after: number[] };
    expect(after).toEqual(before);
  });
});

test('a ring counts what it does, over all files', async () => {
  const ring = openRing({ capacity: 2, maxQueued: 10, engine: 'threads' });
  class Flush extends RingRequest {
    readonly over = new Promise<number>((resolve) => {
      this.settle = resolve;
    });
    settle(_result: number): void {}
  }
  await using file = await open(join(folder, 'counted'), 'w');
  const slot = ring.addFile(file.fd);
  const requests = Array.from({ length: 5 }, () => new Flush());
  for (const request of requests) {
    request.operation = RingOperation.flush;
    request.slot = slot;
    ring.submit(request);
  }
  expect(ring.statistics()).toMatchObject({ queued: 3, queuedMax: 3 });
  for (const request of requests) expect(await request.over).toBe(0);
  ring.removeFile(slot);
  const { flushes, inFlight, inFlightMax, queued, handOvers, batches } = ring.statistics();
  expect([flushes.operations, inFlight, inFlightMax, queued]).toEqual([5, 0, 2, 0]);
  expect(handOvers).toBeGreaterThanOrEqual(3);
  expect(batches).toBeLessThanOrEqual(5);
  ring.close();
});

// In a user namespace nobody is above the limit: 1 MiB is enough for rings (newer Nodes have one too), for an arena not.
test.runIf(engines.includes('io_uring') && canLayFiles())(
  'memory that may not be locked serves as well, and the refusal is told',
  async () => {
    const path = join(folder, 'lock');
    const unlocked = ['--memlock=1048576', 'unshare', '--user', '--map-root-user'];
    const { stdout } = await run('prlimit', [...unlocked, process.execPath, program, 'lock', 'io_uring', path]);
    expect(JSON.parse(stdout)).toEqual({
      read: 7,
      arenasRegistered: 0,
      arenasRefused: 1,
      arenasRefusedReason: expect.stringMatching(/ENOMEM; .*ulimit -l/),
    });
  },
);

describe.runIf(engines.includes('io_uring'))('io_uring on older kernels', () => {
  test.each(['deferred', 'cooperative', 'plain'])('serves the %s way', async (style) => {
    const path = join(folder, `style-${style}`);
    const { stdout } = await run(process.execPath, [program, 'verify', 'io_uring', path], {
      timeout: 20_000,
      env: { ...process.env, HOLDFAST_IO_URING_STYLE: style },
    });
    expect(JSON.parse(stdout)).toEqual({ features: expect.arrayContaining([style]), mismatches: 0 });
  });

  test('a way that is none is refused', () => {
    vi.stubEnv('HOLDFAST_IO_URING_STYLE', 'loud');
    expect(() => openRing({ engine: 'io_uring' })).toThrow(
      expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }),
    );
    vi.unstubAllEnvs();
  });
});
