import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { native } from '../../lib/native.ts';
import { openRegion, type Region, regionBytesMax } from '../../lib/storage/region.ts';

const distRegion = new URL('../../dist/storage/region.js', import.meta.url).href;
const distNative = new URL('../../dist/native.js', import.meta.url).href;
/** ArrayBuffer.prototype.transfer needs a flag in Node 20. */
const transferFlags = 'transfer' in ArrayBuffer.prototype ? [] : ['--harmony-rab-gsab-transfer'];

let folder: string;
let path: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-region-'));
  path = join(folder, 'region');
});

afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** What a child prints, as JSON. The child has `openRegion`, `path`, `isMapped()`, `collect()`, `print(value)`. */
function runChild(script: string, flags: string[] = []): unknown {
  const prelude = `
    import { openRegion } from ${JSON.stringify(distRegion)};
    import { readFileSync } from 'node:fs';
    const path = ${JSON.stringify(path)};
    const print = (value) => console.log(JSON.stringify(value));
    const isMapped = () => readFileSync('/proc/self/maps', 'utf8').includes(path);
    const collect = async () => {
      for (let i = 0; i < 10; i++) { gc(); await new Promise((resolve) => setImmediate(resolve)); }
    };`;
  const child = spawnSync(process.execPath, [...flags, '--input-type=module', '-e', prelude + script], {
    encoding: 'utf8',
  });
  expect(child.stderr).toBe('');
  expect({ status: child.status, signal: child.signal }).toEqual({ status: 0, signal: null });
  return JSON.parse(child.stdout);
}

const failsWith = (code: string) => expect.objectContaining({ name: 'HoldfastError', code });

describe('opening', () => {
  test('makes a file of whole pages, with zeros in it', async () => {
    await using region = await openRegion(path, { sizeBytes: 10_000, create: true });
    expect(region.sizeBytes).toBe(12_288);
    expect(region.bytes.length).toBe(12_288);
    expect(region.bytes.every((byte) => byte === 0)).toBe(true);
    expect(['map-sync', 'msync']).toContain(region.means);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  test('allocates all of the file, so that no store can meet a full disk', async () => {
    await using _region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
    expect(statSync(path).blocks * 512).toBeGreaterThanOrEqual(1 << 20);
  });

  test('without a size takes all of the file, and keeps its content', async () => {
    writeFileSync(path, Buffer.alloc(8192, 7));
    await using region = await openRegion(path);
    expect(region.sizeBytes).toBe(8192);
    expect(region.bytes.every((byte) => byte === 7)).toBe(true);
  });

  test('grows a file, and never shrinks one', async () => {
    writeFileSync(path, Buffer.alloc(100, 7));
    await using grown = await openRegion(path, { sizeBytes: 8192 });
    expect([grown.bytes[99], grown.bytes[100], statSync(path).size]).toEqual([7, 0, 8192]);
    await grown.close();
    await using part = await openRegion(path, { sizeBytes: 4096 });
    expect([part.sizeBytes, statSync(path).size]).toEqual([4096, 8192]);
  });

  test('shows the bytes that a write to the file puts there, and the other way round', async () => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true });
    region.bytes.set([1, 2, 3], 10);
    expect([...readFileSync(path).subarray(10, 13)]).toEqual([1, 2, 3]);
    const fd = openSync(path, 'r+');
    writeFileSync(fd, 'abc');
    closeSync(fd);
    expect(Buffer.from(region.bytes.subarray(0, 3)).toString()).toBe('abc');
  });

  test('is refused while the file is a region already, here or in another process', async () => {
    const first = await openRegion(path, { sizeBytes: 4096, create: true });
    await expect(openRegion(path)).rejects.toEqual(failsWith('ERR_HOLDFAST_DEVICE_BUSY'));
    const there = runChild(`await openRegion(path).then(() => print('open'), (error) => print(error.code));`);
    expect(there).toBe('ERR_HOLDFAST_DEVICE_BUSY');
    await first.close();
    await (await openRegion(path)).close();
  });

  test.each<[string, () => Promise<Region>, string, RegExp]>([
    ['a file that is not there', () => openRegion(path), 'ERR_HOLDFAST_IO', /no such file.*create: true/],
    ['a folder', () => openRegion(folder), 'ERR_HOLDFAST_IO', /EISDIR|illegal operation on a directory/],
    ['a device', () => openRegion('/dev/zero', { sizeBytes: 1 }), 'ERR_HOLDFAST_NOT_SUPPORTED', /regular file/],
    ['no size for a new file', () => openRegion(path, { create: true }), 'ERR_HOLDFAST_BAD_ARGUMENT', /sizeBytes/],
    [
      'a size of 0',
      () => openRegion(path, { sizeBytes: 0, create: true }),
      'ERR_HOLDFAST_BAD_ARGUMENT',
      /at least one/,
    ],
    ['half a byte', () => openRegion(path, { sizeBytes: 0.5 }), 'ERR_HOLDFAST_BAD_ARGUMENT', /at least one/],
    ['a NUL in the path', () => openRegion(`${path}\0x`), 'ERR_HOLDFAST_BAD_ARGUMENT', /NUL/],
    ['a path that is too long', () => openRegion('x'.repeat(5000)), 'ERR_HOLDFAST_BAD_ARGUMENT', /4095/],
    [
      'more than one buffer can be',
      () => openRegion(path, { sizeBytes: regionBytesMax + 1, create: true }),
      'ERR_HOLDFAST_OUT_OF_RANGE',
      /at most/,
    ],
  ])('refuses %s, and leaves no file', async (_, open, code, message) => {
    const error = await open().catch((error: unknown) => error);
    expect(error).toEqual(failsWith(code));
    expect((error as Error).message).toMatch(message);
    expect(existsSync(path)).toBe(false);
  });

  test('refuses an empty file without a size', async () => {
    writeFileSync(path, '');
    await expect(openRegion(path)).rejects.toEqual(failsWith('ERR_HOLDFAST_BAD_ARGUMENT'));
  });

  test('on a full disk is refused before anything is changed', (context) => {
    const script = `mount -t tmpfs -o size=1m none ${folder} && exec "$@"`;
    const inNamespace = ['--user', '--map-root-user', '--mount', 'sh', '-c', script, 'sh'];
    const child = `import { openRegion } from ${JSON.stringify(distRegion)};
      import { existsSync } from 'node:fs';
      const path = ${JSON.stringify(path)};
      await openRegion(path, { sizeBytes: 2 << 20, create: true }).catch((error) => console.log(error.code));
      console.log(existsSync(path));`;
    const { stdout, stderr, status } = spawnSync(
      'unshare',
      [...inNamespace, process.execPath, '--input-type=module', '-e', child],
      { encoding: 'utf8' },
    );
    if (status !== 0) return context.skip(`the kernel permits no mount of our own here: ${stderr?.trim()}`);
    expect(stdout.trim().split('\n')).toEqual(['ERR_HOLDFAST_NO_SPACE', 'false']);
  });
});

describe('persist', () => {
  test('what is persisted outlives a killed process', async () => {
    const script = `import { openRegion } from ${JSON.stringify(distRegion)};
      const region = await openRegion(${JSON.stringify(path)}, { sizeBytes: 1 << 16, create: true });
      for (let i = 0; ; i++) {
        region.bytes.fill(i & 0xff, 8192, 16384);
        await region.persist(8192, 8192);
        if (i === 40) console.log('persisted');
      }`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    child.kill('SIGKILL');
    await once(child, 'exit');
    const [first, second] = [readFileSync(path)[8192]!, readFileSync(path)[16383]!];
    // The last fill may have been cut short by the kill, but nothing older is left.
    expect(first === second || first === ((second + 1) & 0xff)).toBe(true);
    expect(first).toBeGreaterThanOrEqual(40);
    await (await openRegion(path)).close();
  });

  test('takes any range, and many at once', async () => {
    await using region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
    await region.persist();
    await region.persist(4095, 2);
    await region.persist(1 << 20);
    await region.persist(0, 0);
    await Promise.all(Array.from({ length: 64 }, (_, i) => region.persist(i * 1000, 5000)));
  });

  test('a failure that only one of several at once is told of fails them all, and every later one', async () => {
    const region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
    const answers: ((error?: Error) => void)[] = [];
    const spy = vi.spyOn(native().region, 'persist').mockImplementation((_handle, offset, length) => {
      ranges.push([offset, length]);
      return new Promise((resolve, reject) => {
        answers.push((error) => (error === undefined ? resolve() : reject(error)));
      });
    });
    const ranges: [number, number][] = [];
    const first = region.persist(0, 4096);
    const others = [region.persist(8192, 100), region.persist(4096, 4096)];
    expect(ranges).toEqual([[0, 4096]]);
    answers[0]!();
    await first;
    await new Promise(setImmediate);
    expect(ranges).toEqual([
      [0, 4096],
      [4096, 4196],
    ]);
    others.push(region.persist());
    const outcomes = Promise.allSettled(others);
    // The kernel reports a lost page to the first who asks, and calls the others good.
    answers[1]!(Object.assign(new Error('msync'), { code: 'EIO' }));
    await new Promise(setImmediate);
    for (const answer of answers.slice(2)) answer();
    for (const outcome of await outcomes)
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ERR_HOLDFAST_FLUSH_FAILED' } });
    await expect(region.persist()).rejects.toEqual(failsWith('ERR_HOLDFAST_FLUSH_FAILED'));
    spy.mockRestore();
    await region.close();
  });

  test.each([
    [-1, 1],
    [0, 4097],
    [4096, 1],
    [0.5, 1],
    [0, Number.NaN],
    [0, 2 ** 53],
  ])('refuses offset %s, length %s', async (offset, length) => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true });
    await expect(region.persist(offset, length)).rejects.toEqual(failsWith('ERR_HOLDFAST_OUT_OF_RANGE'));
  });
});

describe('closing', () => {
  test('takes the memory out of every view, and refuses later use', async () => {
    const region = await openRegion(path, { sizeBytes: 4096, create: true });
    const { bytes } = region;
    const view = new DataView(bytes.buffer, 100, 8);
    bytes[0] = 1;
    await Promise.all([region.close(), region.close()]);
    expect([bytes.length, bytes[0], bytes.buffer.byteLength]).toEqual([0, undefined, 0]);
    expect(() => view.getUint8(0)).toThrow(TypeError);
    expect(() => region.bytes).toThrow(failsWith('ERR_HOLDFAST_CLOSED'));
    await expect(region.persist()).rejects.toEqual(failsWith('ERR_HOLDFAST_CLOSED'));
  });

  test('waits for what is being persisted', async () => {
    const region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
    region.bytes.fill(1);
    const ended: string[] = [];
    await Promise.all([
      region.persist().then(() => ended.push('persist')),
      region.close().then(() => ended.push('close')),
    ]);
    expect(ended).toEqual(['persist', 'close']);
  });

  test('unmaps the file', () => {
    const script = `const region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      const before = isMapped();
      await region.close();
      await collect();
      print([before, isMapped()]);`;
    expect(runChild(script, ['--expose-gc'])).toEqual([true, false]);
  });
});

describe('memory', () => {
  test('that is dropped without close is unmapped and unlocked once it is collected', () => {
    const script = `let region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      region = undefined;
      await collect();
      const mapped = isMapped();
      await (await openRegion(path)).close();
      print(mapped);`;
    expect(runChild(script, ['--expose-gc'])).toBe(false);
  });

  test('stays as long as a view of it, even if the region is dropped', () => {
    const script = `let region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      let bytes = region.bytes.subarray(5);
      region = undefined;
      await collect();
      bytes[0] = 42;
      const kept = [isMapped(), readFileSync(path)[5]];
      bytes = undefined;
      await collect();
      print([...kept, isMapped()]);`;
    expect(runChild(script, ['--expose-gc'])).toEqual([true, 42, false]);
  });

  test('that was transferred away stays mapped until its new owner lets go', () => {
    const script = `const region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      let stolen = region.bytes.buffer.transfer();
      let code;
      try { region.bytes } catch (error) { code = error.code; }
      await region.persist();
      await region.close();
      await collect();
      new Uint8Array(stolen)[5] = 42;
      const kept = [code, isMapped(), readFileSync(path)[5]];
      stolen = undefined;
      await collect();
      print([...kept, isMapped()]);`;
    const flags = ['--expose-gc', ...transferFlags];
    expect(runChild(script, flags)).toEqual(['ERR_HOLDFAST_DETACHED', true, 42, false]);
  });

  test('cannot be moved by structuredClone: a copy or a refusal, never a loss', () => {
    const script = `const region = await openRegion(path, { sizeBytes: 4096, create: true });
      region.bytes[5] = 42;
      let clone;
      try { clone = new Uint8Array(structuredClone(region.bytes.buffer, { transfer: [region.bytes.buffer] }))[5]; }
      catch (error) { clone = error.name; }
      const after = region.bytes[5];
      await region.close();
      print([clone, after]);`;
    const [clone, after] = runChild(script) as [unknown, number];
    expect([42, 'DataCloneError']).toContain(clone);
    expect(after).toBe(42);
  });
});

describe('a worker', () => {
  const inWorker = (script: string) => `
    import { Worker } from 'node:worker_threads';
    const source = ${JSON.stringify(`
      import { parentPort, workerData } from 'node:worker_threads';
      import { openRegion } from ${JSON.stringify(distRegion)};
      const path = workerData;
      ${script}`)};
    const start = () => {
      const url = new URL('data:text/javascript,' + encodeURIComponent(source));
      return new Worker(url, { workerData: path });
    };
    const message = (worker) => new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });`;

  test('may be terminated while it persists', () => {
    const script = `${inWorker(`
      const region = await openRegion(path, { sizeBytes: 1 << 22, create: true });
      for (let i = 0; i < 8; i++) (async () => { for (;;) { region.bytes.fill(i); await region.persist(); } })();
      await region.persist();
      parentPort.postMessage('persisting');
    `)}
      for (let i = 0; i < 10; i++) {
        const worker = start();
        await message(worker);
        await worker.terminate();
      }
      await (await openRegion(path)).close();
      print('alive');`;
    expect(runChild(script)).toBe('alive');
  });

  // A call without a JavaScript function around it is the first to meet the end. Seen by the sanitizers' run only.
  test('gets no stale memory for a promise when it ends as it asks for one', () => {
    const script = `${inWorker(`
      const { native } = await import(${JSON.stringify(distNative)});
      const { region } = native();
      const busy = new Uint8Array(1 << 26);
      parentPort.postMessage('busy');
      for (;;) { busy.fill(1); await region.open(path, 4096, 4096, true).catch(() => {}); }
    `)}
      for (let i = 0; i < 3; i++) {
        const worker = start();
        await message(worker);
        await worker.terminate();
      }
      print('alive');`;
    expect(runChild(script)).toBe('alive');
  });

  test('that has closed its region leaves nothing behind', () => {
    const script = `${inWorker(`
      const region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      await region.close();
      parentPort.postMessage('closed');
    `)}
      const worker = start();
      await message(worker);
      await worker.terminate();
      print(isMapped());`;
    expect(runChild(script)).toBe(false);
  });

  test('may end while it opens and closes', () => {
    const script = `${inWorker(`
      parentPort.postMessage('started');
      for (;;) await (await openRegion(path, { sizeBytes: 4096, create: true })).close();
    `)}
      for (let i = 0; i < 10; i++) {
        const worker = start();
        await message(worker);
        await worker.terminate();
      }
      print('alive');`;
    expect(runChild(script)).toBe('alive');
  });

  test('that gave its memory to another thread takes none of it along when it ends', () => {
    const script = `${inWorker(`
      const region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      const stolen = region.bytes.buffer.transfer();
      new Uint8Array(stolen)[5] = 42;
      parentPort.postMessage(stolen, [stolen]);
    `)}
      const worker = start();
      const bytes = new Uint8Array(await message(worker));
      await worker.terminate();
      await collect();
      bytes[6] = 43;
      print([bytes[5], readFileSync(path)[6]]);`;
    expect(runChild(script, ['--expose-gc', ...transferFlags])).toEqual([42, 43]);
  });
});
