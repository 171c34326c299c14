/** What only real block devices have: holders, geometry, discards that reach below. Loop devices over files. Needs root, losetup (util-linux) and mke2fs (e2fsprogs). */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { openDevice } from '../../lib/storage/open-device.ts';
import { conformanceSizeBytes, pattern } from '../conformance/block-device.ts';

const folder = mkdtempSync(join(tmpdir(), 'holdfast-block-'));
let nextDisk = 0;

afterAll(() => rmSync(folder, { recursive: true }));

function run(command: string, ...argumentList: string[]): string {
  return execFileSync(command, argumentList, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();
}

/** A loop device over a new file of zeros. */
async function attach(sectorBytes: number) {
  const backing = join(folder, `disk-${nextDisk++}`);
  await writeFile(backing, '');
  await truncate(backing, conformanceSizeBytes);
  const path = run('losetup', '--find', '--show', '--sector-size', String(sectorBytes), backing);
  return { path, detach: () => run('losetup', '--detach', path) };
}

describe('a block device', () => {
  test('has the geometry that the kernel tells', async () => {
    const { path, detach } = await attach(4096);
    try {
      await using device = await openDevice(path);
      expect(device.geometry).toMatchObject({
        sizeBytes: conformanceSizeBytes,
        logicalBlockBytes: 4096,
        physicalBlockBytes: 4096,
        discard: true,
        volatileCache: true,
      });
    } finally {
      detach();
    }
  });

  test('is refused while it is mounted, and while another opening holds it; reading beside is allowed', async () => {
    const { path, detach } = await attach(512);
    const mountPoint = join(folder, 'mounted');
    try {
      run('mke2fs', '-q', '-F', path);
      mkdirSync(mountPoint);
      run('mount', path, mountPoint);
      try {
        await expect(openDevice(path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_DEVICE_BUSY' });
        await (await openDevice(path, { readOnly: true })).close();
      } finally {
        run('umount', mountPoint);
      }
      const first = await openDevice(path);
      await expect(openDevice(path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_DEVICE_BUSY' });
      await first.close();
      await (await openDevice(path)).close();
    } finally {
      detach();
    }
  });

  test('a discard gives the space below back', async () => {
    const { path, detach } = await attach(512);
    const backing = run('losetup', '--noheadings', '--output', 'BACK-FILE', path);
    const allocated = () => Number(run('stat', '--format', '%b', backing));
    try {
      await using device = await openDevice(path);
      await device.write(0, pattern(4 * 1024 * 1024, 1), { fua: true });
      const before = allocated();
      await device.discard(0, 4 * 1024 * 1024);
      await device.flush();
      expect(allocated()).toBeLessThan(before - 4 * 1024);
    } finally {
      detach();
    }
  });
});
