/** The demo of a process pair, as a newcomer starts it, and what is left behind however it ends. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'hp-'));
});

afterEach(() => rmSync(folder, { recursive: true }));

const environment = () => ({ ...process.env, TMPDIR: folder });

/** Processes that have the folder for their temporary one. */
function left(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && name !== String(process.pid))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'utf8').includes(`TMPDIR=${folder}`);
      } catch {
        return false;
      }
    });
}

async function gone(): Promise<void> {
  for (let round = 0; left().length > 0 && round < 500; round++) await wait(20);
  expect(left()).toEqual([]);
  expect(readdirSync(folder)).toEqual([]);
}

test('both processes of the pair and its unit are killed in turn, and no acknowledged order is lost', async () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, 'demo-pair', '--json'], {
    encoding: 'utf8',
    env: environment(),
  });
  expect([stderr, status]).toEqual(['', 0]);
  const result = JSON.parse(stdout.trimEnd().split('\n').at(-1)!);
  expect(result).toMatchObject({ ok: true, missing: 0, unacknowledged: 0 });
  expect(result.acknowledged).toBeGreaterThan(50);
  for (const waitedMs of Object.values(result.waitedMs)) expect(waitedMs).toBeGreaterThan(0);
  await gone();
});

test.each(['SIGINT', 'SIGKILL'] as const)('%s in the middle of it leaves no process behind', async (signal) => {
  const demo = spawn(process.execPath, [main, 'demo-pair'], { env: environment(), stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = new Promise<number | null>((resolve) => demo.once('close', resolve));
  let text = '';
  await new Promise<void>((resolve) => {
    demo.stdout.on('data', (chunk: Buffer) => {
      text += chunk;
      if (text.includes('clients order')) resolve();
    });
  });
  demo.kill(signal);
  expect(await ended).not.toBe(0);
  for (let round = 0; left().length > 0 && round < 500; round++) await wait(20);
  expect(left()).toEqual([]);
  if (signal === 'SIGINT') expect(readdirSync(folder)).toEqual([]);
});
