import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { crc32c } from '../../lib/base/checksum.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-cli-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function holdfast(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8', cwd: folder });
  return { status, stdout, stderr };
}

it('--help names every command and exit code', () => {
  const { status, stdout } = holdfast('--help');
  expect(status).toBe(0);
  const docs = readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8');
  const commands = [...docs.matchAll(/^\| `([a-z-]+)[ `]/gm)].map((match) => match[1]!);
  expect(commands).toContain('status');
  for (const command of commands) expect(stdout).toMatch(new RegExp(`^  ${command}\\b`, 'm'));
  expect(stdout).toContain('Exit codes: 0 done');
});

it('--version is the package’s', () => {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  expect(holdfast('--version').stdout.trim()).toBe(version);
});

it('a misspelt command or option is a usage error that names the right one', () => {
  const misspelt = holdfast('statsu');
  expect([misspelt.status, misspelt.stderr]).toEqual([2, expect.stringContaining('Did you mean status?')]);
  const option = holdfast('status', '--jsn');
  expect([option.status, option.stderr]).toEqual([2, expect.stringContaining('--json')]);
});

it('status without a server says which socket is silent, and what to do', () => {
  const { status, stderr, stdout } = holdfast('status', '--control', join(folder, 'none.sock'));
  expect([status, stdout]).toEqual([4, '']);
  expect(stderr).toMatch(
    /^holdfast: no server answers on the control socket .*none\.sock; start one by `holdfast serve/,
  );
  expect(stderr).toMatch(/\nholdfast: code ERR_HOLDFAST_NOT_RUNNING\n$/);
});

it('a stack trace is shown with --debug only', () => {
  expect(holdfast('status', '--control', 'none.sock').stderr).not.toMatch(/^\s+at /m);
  expect(holdfast('status', '--debug', '--control', 'none.sock').stderr).toMatch(/^\s+at .*\n[\s\S]*caused by/m);
});

it('a configuration that is missing or wrong is named with its place', () => {
  const missing = holdfast('status', '--config', 'none.jsonc');
  expect([missing.status, missing.stderr]).toEqual([
    3,
    expect.stringContaining('cannot be read (ENOENT); check the path'),
  ]);
  writeFileSync(join(folder, 'wrong.jsonc'), '{\n  "clutser": "x"\n}\n');
  const wrong = holdfast('status', '--config', 'wrong.jsonc');
  expect(wrong.status).toBe(3);
  expect(wrong.stderr).toContain('wrong.jsonc:2:3: clutser: unknown setting "clutser"; did you mean "cluster"?');
});

it('make-key makes a key for its owner alone, and never overwrites one', () => {
  expect(holdfast('make-key', 'office.key').status).toBe(0);
  const path = join(folder, 'office.key');
  expect(statSync(path).mode & 0o777).toBe(0o600);
  const key = readFileSync(path, 'utf8');
  expect(key).toMatch(/^[0-9a-f]{64}\n$/);
  const again = holdfast('make-key', 'office.key');
  expect([again.status, again.stderr]).toEqual([3, expect.stringContaining('exists already')]);
  expect(readFileSync(path, 'utf8')).toBe(key);
});

describe('scan', () => {
  const bytes = Buffer.from(Array.from({ length: 200_001 }, (_, at) => (at * 7919) >> 3));

  it('lists the checksum of every block, and tells the same digest for the same content', () => {
    const [one, other] = ['scan-a.img', 'scan-b.img'].map((name) => join(folder, name)) as [string, string];
    for (const path of [one, other]) writeFileSync(path, bytes);
    const list = holdfast('scan', one, '--list', '--block', '64k', '--algorithm', 'sha256');
    const expected = [0, 65_536, 131_072, 196_608].map((offset) => {
      const hash = createHash('sha256').update(bytes.subarray(offset, offset + 65_536));
      return `${hash.digest('hex')}  ${offset}\n`;
    });
    expect([list.status, list.stdout]).toEqual([0, expected.join('')]);
    const digest = (path: string) => /^ {2}digest {4}([0-9a-f]{64}) /m.exec(holdfast('scan', path).stdout)![1];
    const first = digest(one);
    expect(digest(other)).toBe(first);
    bytes[200_000]! ^= 1;
    writeFileSync(other, bytes);
    expect(digest(other)).not.toBe(first);
  });

  it('as JSON: an object for every block, and the result at the end', () => {
    const path = join(folder, 'scan.img');
    writeFileSync(path, bytes);
    const { stdout, stderr } = holdfast('scan', path, '--json', '--list', '--offset', '65536', '--length', '100000');
    expect(stderr).toBe('');
    const lines = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(lines.slice(0, -1)).toEqual([
      { offset: 65_536, length: 65_536, checksum: hex(crc32c(bytes.subarray(65_536, 131_072))) },
      { offset: 131_072, length: 34_464, checksum: hex(crc32c(bytes.subarray(131_072, 165_536))) },
    ]);
    expect(lines.at(-1)).toMatchObject({
      ...{ path, sizeBytes: 200_001, algorithm: 'crc32c', blockBytes: 65_536, direct: false },
      ...{ offset: 65_536, length: 100_000, blocks: 2, digest: expect.stringMatching(/^[0-9a-f]{64}$/) },
    });
  });

  const hex = (checksum: number) => checksum.toString(16).padStart(8, '0');

  it('of what is not there, or is none', () => {
    const missing = holdfast('scan', join(folder, 'none.img'));
    expect([missing.status, missing.stderr]).toEqual([1, expect.stringContaining('none.img')]);
    expect(holdfast('scan', folder).stderr).toContain('neither');
    expect(holdfast('scan', 'x', '--block', '3').status).toBe(2);
    expect(holdfast('scan', 'x', '--algorithm', 'crc').stderr).toContain('crc32c');
    const path = join(folder, 'scan-outside.img');
    writeFileSync(path, bytes);
    expect(holdfast('scan', path, '--offset', '1M').stderr).toContain('outside the device');
  });

  it('stopped by Ctrl-C, it says where to go on', async () => {
    const path = join(folder, 'scan-stopped.img');
    writeFileSync(path, '');
    truncateSync(path, 64 * 1024 * 1024);
    const child = spawn(process.execPath, [main, 'scan', path, '--rate', '1M']);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      if (stderr === '') child.kill('SIGINT');
      stderr += text;
    });
    const [status] = await once(child, 'close');
    expect(status).toBe(130);
    expect(stderr).toMatch(/the scan was stopped; 0 B of 64 MiB are done, --offset 0 goes on from there/);
  });
});

it('bench reads a file, and writes one only if it may be destroyed', () => {
  const path = join(folder, 'bench.img');
  writeFileSync(path, Buffer.alloc(1024 * 1024, 'precious '));
  const before = readFileSync(path);
  const read = holdfast('bench', path, '--seconds', '0.1', '--json');
  expect(read.stderr).toBe('');
  const result = JSON.parse(read.stdout);
  expect(result).toMatchObject({ path, rw: 'randread', blockBytes: 4096, depth: 32, sizeBytes: 1024 * 1024 });
  expect(['io_uring', 'threads']).toContain(result.engine);
  expect(result.requests).toBeGreaterThan(0);
  expect(result.cpuMicrosecondsPerRequest.user).toBeGreaterThan(0);
  const refused = holdfast('bench', path, '--rw', 'randwrite', '--seconds', '0.1');
  expect([refused.status, refused.stderr]).toEqual([5, expect.stringContaining('say --destroy')]);
  expect(Buffer.compare(readFileSync(path), before)).toBe(0);
  const write = holdfast('bench', path, '--rw', 'write', '--bs', '64k', '--seconds', '0.1', '--destroy');
  expect([write.status, write.stdout]).toEqual([0, expect.stringMatching(/\n {2}latency {3}p50 /)]);
  expect(Buffer.compare(readFileSync(path), before)).not.toBe(0);
});

it('bench by the engine that was asked for', () => {
  const path = join(folder, 'bench-threads.img');
  writeFileSync(path, Buffer.alloc(1024 * 1024));
  const { stdout } = holdfast('bench', path, '--seconds', '0.1', '--engine', 'threads', '--direct', 'off', '--json');
  expect(JSON.parse(stdout)).toMatchObject({ engine: 'threads', direct: false });
});

it('bench on what is not there, or is none', () => {
  const missing = holdfast('bench', join(folder, 'none.img'));
  expect([missing.status, missing.stderr]).toEqual([1, expect.stringContaining('none.img')]);
  expect(holdfast('bench', folder).stderr).toContain('neither');
  expect(holdfast('bench', 'x', '--rw', 'scan').status).toBe(2);
  expect(holdfast('bench', 'x', '--bs', '3.5').status).toBe(2);
  expect(holdfast('bench', 'x', '--depth', '4096', '--bs', '16M').stderr).toContain('lower one of them');
});
