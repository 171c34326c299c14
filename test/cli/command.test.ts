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
