/** The demo, as a newcomer starts it, and what is left behind however it ends. */
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
/** What the demo's clients may write over: 48 windows of 64 KiB, anywhere. */
const HOT_BYTES = 48 * 64 * 1024;
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'hd-'));
});

afterEach(() => rmSync(folder, { recursive: true }));

const environment = () => ({ ...process.env, TMPDIR: folder });

/** Command lines of processes that mention the folder. */
function processes(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        return [readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')];
      } catch {
        return [];
      }
    })
    .filter((line) => line.includes(folder));
}

async function gone(): Promise<void> {
  for (let round = 0; processes().length > 0 && round < 500; round++) await wait(20);
  expect(processes()).toEqual([]);
}

test('each server is killed in turn, every comparison holds, only what could be missed is sent, and nothing is left behind', async () => {
  const input = fileURLToPath(new URL('../../package-lock.json', import.meta.url));
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, 'demo', '--json', '--input', input], {
    encoding: 'utf8',
    env: environment(),
  });
  expect([stderr, status]).toEqual(['', 0]);
  const result = JSON.parse(stdout.trimEnd().split('\n').at(-1)!);
  expect(result).toMatchObject({ ok: true, bytes: readFileSync(input).length, mismatches: 0, wrongReads: 0 });
  expect(result.reads).toBeGreaterThan(100);
  expect(result.resyncLimitBytes).toBeLessThanOrEqual(result.volumeBytes / 4);
  expect(result.takeovers.map((takeover: { killed: string }) => takeover.killed)).toEqual(['a', 'b']);
  for (const takeover of result.takeovers) {
    expect(takeover.writesWithout).toBeGreaterThan(0);
    expect(takeover.movedClientWaitedMs).toBeGreaterThan(0);
    expect(takeover.missedBytes).toBeGreaterThan(0);
    expect(takeover.resyncBytes).toBeGreaterThanOrEqual(takeover.missedBytes);
    expect(takeover.resyncBytes).toBeLessThanOrEqual(result.resyncLimitBytes);
  }
  for (const name of ['a', 'b']) expect(stdout).toMatch(new RegExp(`Killed server ${name} \\(kill -9 \\d+\\)`));
  expect(readdirSync(folder)).toEqual([]);
  await gone();
});

test('a file that is not there: told with its mend, and as JSON', () => {
  const words = [main, 'demo', '--json', '--input', join(folder, 'none')];
  const { status, stdout, stderr } = spawnSync(process.execPath, words, { encoding: 'utf8', env: environment() });
  expect([status, stderr]).toEqual([2, expect.stringContaining('give --input a file that exists')]);
  expect(JSON.parse(stdout)).toMatchObject({ ok: false, error: { code: 'ERR_HOLDFAST_USAGE' } });
});

test.each([
  ['SIGINT', 130],
  ['SIGTERM', 130],
  ['SIGKILL', null],
] as const)('%s in the middle leaves no server behind', async (signal, code) => {
  const child = spawn(process.execPath, [main, 'demo'], { env: environment(), stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  const ended = new Promise((resolve) => child.once('close', resolve));
  await new Promise<void>((resolve) => {
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      if (text.includes('Three servers run')) resolve();
    });
    ended.then(() => resolve());
  });
  expect(processes().length).toBeGreaterThanOrEqual(3);
  child.kill(signal);
  expect(await ended).toBe(code);
  await gone();
  if (signal !== 'SIGKILL') expect(readdirSync(folder)).toEqual([]);
});

test('--keep leaves devices and configuration, which serve again', async () => {
  const input = join(folder, 'input');
  const bytes = randomBytes(2 * HOT_BYTES);
  writeFileSync(input, bytes);
  const words = [main, 'demo', '--keep', '--input', input];
  expect(spawnSync(process.execPath, words, { env: environment() }).status).toBe(0);
  const kept = join(folder, readdirSync(folder).find((name) => name !== 'input')!);
  expect(readdirSync(kept).toSorted()).toEqual(['a.img', 'b.img', 'demo.jsonc', 'demo.key', 'tie.vote']);
  const [a, b] = ['a.img', 'b.img'].map((name) => readFileSync(join(kept, name)).subarray(0, bytes.length));
  expect(a!.equals(b!)).toBe(true);
  expect(equalBytes(a!, bytes)).toBeGreaterThanOrEqual(bytes.length - HOT_BYTES);
  await gone();

  const config = join(kept, 'demo.jsonc');
  const serve = (node: string) => spawn(process.execPath, [main, 'serve', config, '--node', node], { stdio: 'ignore' });
  const servers = ['a', 'b', 'tie'].map(serve);
  try {
    const check = () =>
      spawnSync(process.execPath, [main, 'status', '--config', config, '--node', 'a', '--check']).status;
    await expect.poll(check, { timeout: 20_000, interval: 200 }).toBe(0);
  } finally {
    for (const server of servers) server.kill('SIGTERM');
  }
  await gone();
});

/** How much of the two is the same, counted in the demo's blocks. */
function equalBytes(one: Buffer, other: Buffer): number {
  let equal = 0;
  for (let at = 0; at < one.length; at += 4096)
    if (one.subarray(at, at + 4096).equals(other.subarray(at, at + 4096))) equal += 4096;
  return equal;
}
