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
        region.bytes.fill(Math.min(i, 255), 8192, 16384);
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
    expect(first === second || first === second + 1).toBe(true);
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

describe('means', () => {
  test('are chosen by what the file allows, and can be forced', async () => {
    await using plain = await openRegion(path, { sizeBytes: 4096, create: true, means: 'msync' });
    expect(plain.means).toBe('msync');
    await plain.close();
    await using vouched = await openRegion(path, { means: 'cache-flush' });
    expect(vouched.means).toBe('cache-flush');
    vouched.bytes[7] = 7;
    await vouched.persist();
    await vouched.persist(4095, 1);
    expect(readFileSync(path)[7]).toBe(7);
  });

  test('that the file does not allow are refused, and leave no file', async (context) => {
    const options = { sizeBytes: 4096, create: true, means: 'map-sync' } as const;
    const opened = await openRegion(path, options).catch((error: unknown) => error);
    if (!(opened instanceof Error)) return context.skip('the kernel maps this folder as persistent memory');
    expect(opened).toEqual(failsWith('ERR_HOLDFAST_NOT_SUPPORTED'));
    expect(opened.message).toContain('offers persistent memory');
    expect(existsSync(path)).toBe(false);
  });

  test('that do not exist are refused', async () => {
    const open = openRegion(path, { sizeBytes: 1, create: true, means: 'hope' as 'auto' });
    await expect(open).rejects.toEqual(failsWith('ERR_HOLDFAST_BAD_ARGUMENT'));
  });
});

describe.each(['msync', 'cache-flush'] as const)('write by %s', (means) => {
  test('puts bytes of any length anywhere, and nothing beside them', async () => {
    await using region = await openRegion(path, { sizeBytes: 1 << 16, create: true, means });
    const source = Uint8Array.from({ length: 4096 }, (_, i) => (i * 7 + 1) & 0xff);
    for (const length of [0, 1, 7, 8, 63, 64, 65, 127, 128, 129, 200, 4096]) {
      for (const offset of [0, 1, 15, 16, 63, 64, 4095, (1 << 16) - length]) {
        region.bytes.fill(0xee);
        await region.write(offset, source.subarray(0, length));
        const expected = Buffer.alloc(1 << 16, 0xee);
        expected.set(source.subarray(0, length), offset);
        expect(expected.equals(region.bytes)).toBe(true);
      }
    }
  });

  test('copies before it returns', async () => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true, means });
    const bytes = Uint8Array.of(1, 2, 3);
    const written = region.write(10, bytes);
    bytes.fill(9);
    await written;
    expect([...readFileSync(path).subarray(9, 14)]).toEqual([0, 1, 2, 3, 0]);
  });

  test.each([
    ['down', 100, 40],
    ['up', 40, 100],
    ['nowhere', 64, 64],
  ])('moves the own bytes %s, although they overlap', async (_, from, to) => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true, means });
    for (let i = 0; i < 4096; i++) region.bytes[i] = i & 0xff;
    const expected = Buffer.from(region.bytes);
    expected.copyWithin(to, from, from + 1000);
    await region.write(to, region.bytes.subarray(from, from + 1000));
    expect(expected.equals(region.bytes)).toBe(true);
  });

  test('outside of the region is refused, with nothing changed', async () => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true, means });
    await expect(region.write(4090, new Uint8Array(7).fill(1))).rejects.toEqual(failsWith('ERR_HOLDFAST_OUT_OF_RANGE'));
    await expect(region.write(-1, new Uint8Array(1))).rejects.toEqual(failsWith('ERR_HOLDFAST_OUT_OF_RANGE'));
    expect(region.bytes.every((byte) => byte === 0)).toBe(true);
    await region.close();
    await expect(region.write(0, new Uint8Array(1))).rejects.toEqual(failsWith('ERR_HOLDFAST_CLOSED'));
  });
});

describe('publish', () => {
  test('stores 8 bytes, the lowest first', async () => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true });
    await region.publish(4088, 0x0807060504030201n);
    expect([...region.bytes.subarray(4080)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    await region.publish(4088, 2n ** 64n - 1n);
    expect([...region.bytes.subarray(4088)]).toEqual(new Array(8).fill(255));
  });

  test.each<[number, bigint, string]>([
    [4, 1n, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    [0, -1n, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    [0, 2n ** 64n, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    [4096, 1n, 'ERR_HOLDFAST_OUT_OF_RANGE'],
    [0.5, 1n, 'ERR_HOLDFAST_OUT_OF_RANGE'],
  ])('refuses at %s the value %s', async (offset, value, code) => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true });
    await expect(region.publish(offset, value)).rejects.toEqual(failsWith(code));
    expect(region.bytes.every((byte) => byte === 0)).toBe(true);
  });
});

describe('growing', () => {
  test.each(['msync', 'cache-flush'] as const)('by %s keeps the bytes and adds zeros', async (means) => {
    await using region = await openRegion(path, { sizeBytes: 8192, create: true, means });
    region.bytes.fill(7);
    await region.grow(20_000);
    expect([region.sizeBytes, region.bytes.length, statSync(path).size]).toEqual([20_480, 20_480, 20_480]);
    expect(statSync(path).blocks * 512).toBeGreaterThanOrEqual(20_480);
    expect(region.bytes.every((byte, i) => byte === (i < 8192 ? 7 : 0))).toBe(true);
    expect(region.means).toBe(means);
    await region.write(20_000, Uint8Array.of(5));
    await region.persist();
    expect(readFileSync(path)[20_000]).toBe(5);
  });

  test('takes the memory out of the old view, and shows in it until then what is stored', async () => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true });
    const old = region.bytes;
    const growth = region.grow(8192);
    expect(region.bytes).toBe(old);
    old[100] = 42;
    await growth;
    expect([old.length, old.buffer.byteLength, region.bytes[100]]).toEqual([0, 0, 42]);
    expect(region.bytes).toBe(region.bytes);
  });

  test('to what it has does nothing', async () => {
    await using region = await openRegion(path, { sizeBytes: 8192, create: true });
    const { bytes } = region;
    await region.grow(1);
    await region.grow(8192);
    expect(region.bytes).toBe(bytes);
    expect(bytes.length).toBe(8192);
  });

  test('asked for at once ends at the largest, and leaves no mapping behind', () => {
    const script = `const region = await openRegion(path, { sizeBytes: 4096, create: true });
      const maps = () => readFileSync('/proc/self/maps', 'utf8').split(path).length - 1;
      await Promise.all([8192, 65536, 16384, 4096, 32768].map((size) => region.grow(size)));
      for (let size = 70000; size < 300000; size += 4096) await region.grow(size);
      await collect();
      print([region.sizeBytes, maps()]);`;
    expect(runChild(script, ['--expose-gc'])).toEqual([303_104, 1]);
  });

  test('goes on beside what is being persisted and written', async () => {
    await using region = await openRegion(path, { sizeBytes: 1 << 16, create: true });
    const work: Promise<void>[] = [];
    for (let i = 1; i <= 8; i++) {
      region.bytes.fill(i);
      work.push(region.persist(), region.grow((1 << 16) * (i + 1)), region.write(i, Uint8Array.of(100 + i)));
    }
    await Promise.all(work);
    expect(region.sizeBytes).toBe(9 << 16);
    expect([...readFileSync(path).subarray(8, 10)]).toEqual([108, 8]);
  });

  test('keeps the file locked', async () => {
    const region = await openRegion(path, { sizeBytes: 4096, create: true });
    await region.grow(8192);
    await expect(openRegion(path)).rejects.toEqual(failsWith('ERR_HOLDFAST_DEVICE_BUSY'));
    await region.close();
    await (await openRegion(path)).close();
  });

  test.each<[unknown, string]>([
    [0, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    [4096.5, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    [Number.NaN, 'ERR_HOLDFAST_BAD_ARGUMENT'],
    ['8192', 'ERR_HOLDFAST_BAD_ARGUMENT'],
    [regionBytesMax + 1, 'ERR_HOLDFAST_OUT_OF_RANGE'],
  ])('to %s is refused, with nothing changed', async (sizeBytes, code) => {
    await using region = await openRegion(path, { sizeBytes: 4096, create: true });
    const { bytes } = region;
    await expect(region.grow(sizeBytes as number)).rejects.toEqual(failsWith(code));
    expect([region.bytes, bytes.length, statSync(path).size]).toEqual([bytes, 4096, 4096]);
  });

  test('is waited for by close, and refused after it', async () => {
    const region = await openRegion(path, { sizeBytes: 4096, create: true });
    const ended: string[] = [];
    await Promise.all([
      region.grow(8192).then(() => ended.push('grow')),
      region.close().then(() => ended.push('close')),
    ]);
    expect(ended).toEqual(['grow', 'close']);
    await expect(region.grow(16_384)).rejects.toEqual(failsWith('ERR_HOLDFAST_CLOSED'));
    expect(statSync(path).size).toBe(8192);
    await (await openRegion(path)).close();
  });

  test('remembers a failed persist', async () => {
    const region = await openRegion(path, { sizeBytes: 4096, create: true, means: 'msync' });
    const lost = Object.assign(new Error('msync'), { code: 'EIO' });
    const spy = vi.spyOn(native().region, 'persist').mockRejectedValue(lost);
    await expect(region.persist()).rejects.toEqual(failsWith('ERR_HOLDFAST_FLUSH_FAILED'));
    spy.mockRestore();
    await region.grow(8192);
    await expect(region.persist()).rejects.toEqual(failsWith('ERR_HOLDFAST_FLUSH_FAILED'));
    await expect(region.write(0, new Uint8Array(1))).rejects.toEqual(failsWith('ERR_HOLDFAST_FLUSH_FAILED'));
    await expect(region.publish(0, 1n)).rejects.toEqual(failsWith('ERR_HOLDFAST_FLUSH_FAILED'));
    expect(region.bytes[0]).toBe(0);
    await region.close();
  });

  test('on a full disk is refused, and the region goes on as it was', (context) => {
    const script = `mount -t tmpfs -o size=1m none ${folder} && exec "$@"`;
    const child = `import { openRegion } from ${JSON.stringify(distRegion)};
      import { statSync } from 'node:fs';
      const path = ${JSON.stringify(path)};
      const region = await openRegion(path, { sizeBytes: 1 << 19, create: true });
      region.bytes.fill(3);
      await region.grow(2 << 20).catch((error) => console.log(error.code));
      await region.persist();
      console.log(region.bytes.length, region.bytes.at(-1), statSync(path).size);`;
    const { stdout, stderr, status } = spawnSync(
      'unshare',
      ['--user', '--map-root-user', '--mount', 'sh', '-c', script, 'sh'].concat([
        process.execPath,
        '--input-type=module',
        '-e',
        child,
      ]),
      { encoding: 'utf8' },
    );
    if (status !== 0) return context.skip(`the kernel permits no mount of our own here: ${stderr?.trim()}`);
    expect(stdout.trim().split('\n')).toEqual(['ERR_HOLDFAST_NO_SPACE', `${1 << 19} 3 ${1 << 19}`]);
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

  test('that was transferred away before it grew stays mapped with its new owner, and shows the same bytes', () => {
    const script = `const region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      let stolen = new Uint8Array(region.bytes.buffer.transfer());
      await region.grow(2 << 20);
      stolen[5] = 42;
      const seen = region.bytes[5];
      await region.close();
      await collect();
      stolen[6] = 43;
      const kept = [seen, isMapped(), readFileSync(path)[6]];
      stolen = undefined;
      await collect();
      print([...kept, isMapped()]);`;
    expect(runChild(script, ['--expose-gc', ...transferFlags])).toEqual([42, true, 43, false]);
  });

  test('of a region that is dropped after it grew is unmapped and unlocked once it is collected', () => {
    const script = `let region = await openRegion(path, { sizeBytes: 1 << 20, create: true });
      const old = region.bytes;
      await region.grow(2 << 20);
      region = undefined;
      await collect();
      await (await openRegion(path)).close();
      await collect();
      print([old.length, isMapped()]);`;
    expect(runChild(script, ['--expose-gc'])).toEqual([0, false]);
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
      for (;;) { busy.fill(1); await region.open(path, 4096, 4096, true, 'auto').catch(() => {}); }
    `)}
      for (let i = 0; i < 3; i++) {
        const worker = start();
        await message(worker);
        await worker.terminate();
      }
      print('alive');`;
    expect(runChild(script)).toBe('alive');
  });

  test('may be terminated while it grows', () => {
    const script = `${inWorker(`
      const region = await openRegion(path, { sizeBytes: 4096, create: true });
      parentPort.postMessage('growing');
      for (let size = 8192; ; size += 4096) {
        await region.grow(size);
        region.bytes.fill(1);
        await region.persist(0, 4096);
      }
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
