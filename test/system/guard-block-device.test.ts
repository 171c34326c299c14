/** What only root can show: the guard and the identity on real block devices (loop). Needs losetup and mkswap. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { assertMayOverwrite, isShownBlank } from '../../lib/storage/guard.ts';
import { deviceIdentity } from '../../lib/storage/identity.ts';

const sizeBytes = 16 * 1024 * 1024;
let folder = '';
let file = '';
let device = '';

function run(command: string, ...parameters: string[]): string {
  const { status, stdout, stderr } = spawnSync(command, parameters, { encoding: 'utf8' });
  expect(status, `${command} ${parameters.join(' ')}: ${stderr}`).toBe(0);
  return stdout.trim();
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-guard-'));
  file = join(folder, 'image');
  writeFileSync(file, '');
  truncateSync(file, sizeBytes);
  device = run('losetup', '--find', '--show', file);
});
afterEach(() => {
  run('losetup', '--detach', device);
  rmSync(folder, { recursive: true });
});

test('a blank block device may be overwritten, and is shown blank only by reading all of it', async () => {
  await assertMayOverwrite(device);
  expect(await isShownBlank(device)).toBe(false);
  expect(await isShownBlank(device, { readBytesMax: sizeBytes - 1 })).toBe(false);
  expect(await isShownBlank(device, { readBytesMax: sizeBytes })).toBe(true);
});

test('a block device with a signature is refused unless it is named', async () => {
  run('mkswap', device);
  await expect(assertMayOverwrite(device)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_DEVICE_NOT_BLANK',
    message: expect.stringContaining(`${device} carries swap`),
  });
  expect(await isShownBlank(device, { readBytesMax: sizeBytes })).toBe(false);
  await assertMayOverwrite(device, { consent: device });
});

test('a loop device is known by the file behind it', async () => {
  expect(await deviceIdentity(device)).toEqual({
    kind: 'block',
    id: `loop:${file}:offset=0`,
    sizeBytes,
    stable: true,
  });
});
