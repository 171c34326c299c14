import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';

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
