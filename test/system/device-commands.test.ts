/** `holdfast scan` and `holdfast bench` on a real block device (loop over a file), beside fio. Needs root and losetup. */
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { pattern } from '../conformance/block-device.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const content = Buffer.from(pattern(5 * 1024 * 1024 + 512, 1));
let folder: string;
let file: string;
let device: string;

function run(command: string, ...args: string[]) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  return { status, stdout, stderr };
}

const holdfast = (...args: string[]) => run(process.execPath, main, ...args);

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-commands-'));
  file = join(folder, 'image');
  writeFileSync(file, content);
  const { status, stdout, stderr } = run('losetup', '--find', '--show', file);
  expect(status, stderr).toBe(0);
  device = stdout.trim();
});
afterAll(() => {
  run('losetup', '--detach', device);
  rmSync(folder, { recursive: true });
});

test('a scan of a device lists what a scan of its file lists; the last block is short', () => {
  const lists = [device, file].map((path) => holdfast('scan', path, '--list', '--algorithm', 'sha1', '--block', '1M'));
  expect(lists[0]!.stderr).toContain('past the page cache');
  expect(lists[0]!.stdout).toBe(lists[1]!.stdout);
  const last = createHash('sha1').update(content.subarray(5 * 1024 * 1024));
  expect(lists[0]!.stdout.split('\n').slice(-2)).toEqual([`${last.digest('hex')}  ${5 * 1024 * 1024}`, '']);
});

test.each(['randread', 'read'])('bench --compare runs fio on the same device: %s', (rw) => {
  const { status, stdout, stderr } = holdfast('bench', device, '--rw', rw, '--seconds', '0.6', '--compare', '--json');
  expect([status, stderr]).toEqual([0, '']);
  const { requestsPerSecond, fio, ratio } = JSON.parse(stdout);
  expect(requestsPerSecond).toBeGreaterThan(0);
  expect(fio.requestsPerSecond).toBeGreaterThan(0);
  expect(fio.latencyMicroseconds.p99).toBeGreaterThanOrEqual(fio.latencyMicroseconds.p50);
  expect(fio.latencyMicroseconds.p50).toBeGreaterThan(0);
  expect(ratio).toBeGreaterThan(0);
  expect(Buffer.compare(readFileSync(file), content)).toBe(0);
});

test('without fio, bench --compare says so and measures', () => {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [main, 'bench', device, '--seconds', '0.3', '--compare', '--json'],
    { encoding: 'utf8', env: { PATH: folder } },
  );
  expect([status, stderr]).toEqual([0, 'holdfast: fio is not installed; this is measured without it\n']);
  expect(JSON.parse(stdout)).not.toHaveProperty('fio');
});

test('bench --compare that is stopped while fio runs gives what it has', async () => {
  const child = spawn(process.execPath, [main, 'bench', device, '--seconds', '9', '--compare', '--json']);
  let stdout = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  // fio is a child of ours from the end of the first round on.
  const children = () => readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim();
  await vi.waitFor(() => expect(children()).not.toBe(''), { timeout: 60_000, interval: 100 });
  child.kill('SIGINT');
  const [status] = await once(child, 'close');
  expect(status).toBe(130);
  expect(JSON.parse(stdout).requests).toBeGreaterThan(0);
});

test('fio cannot make bench write where nothing may be written', () => {
  const { status, stderr } = holdfast('bench', device, '--rw', 'randwrite', '--seconds', '0.3', '--compare');
  expect([status, stderr]).toEqual([5, expect.stringContaining('say --destroy')]);
  expect(Buffer.compare(readFileSync(file), content)).toBe(0);
});
