import { mkdir, mkdtemp, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { blockIdentity, deviceIdentity, deviceIdentityAmong } from '../../lib/storage/identity.ts';

let folder = '';
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-identity-'));
});
afterEach(() => rm(folder, { recursive: true }));

/** A device as /sys shows it, with these attributes. */
async function device(name: string, attributes: Record<string, string>): Promise<string> {
  const path = join(folder, 'sys/devices', name);
  for (const [attribute, text] of Object.entries(attributes)) {
    await mkdir(dirname(join(path, attribute)), { recursive: true });
    await writeFile(join(path, attribute), text);
  }
  return path;
}

test.each([
  ['a device-mapper device by its UUID', 'dm-0', { 'dm/uuid': 'LVM-abc\n' }, 'dm:LVM-abc', true],
  ['an md device by its UUID', 'md0', { 'md/uuid': 'd00d\n' }, 'md:d00d', true],
  ['an NVMe disk by its world-wide name', 'nvme0n1', { wwid: 'eui.0025\n' }, 'wwid:eui.0025', true],
  [
    'a SCSI disk by its world-wide name',
    'sda',
    { 'device/wwid': 'naa.5000\n', 'device/model': 'x' },
    'wwid:naa.5000',
    true,
  ],
  ['a virtio disk by its serial number', 'vda', { serial: 'disk-17\n' }, 'serial::disk-17', true],
  [
    'a disk by model and serial',
    'sdb',
    { 'device/serial': ' S1 ', 'device/model': 'BIG   DISK\n' },
    'serial:BIG DISK:S1',
    true,
  ],
  [
    'a loop device by the file behind it',
    'loop3',
    { 'loop/backing_file': '/images/a.img\n', 'loop/offset': '4096\n' },
    'loop:/images/a.img:offset=4096',
    true,
  ],
  [
    'a loop device over a removed file',
    'loop4',
    { 'loop/backing_file': '/a (deleted)\n' },
    'loop:/a (deleted):offset=0',
    false,
  ],
  ['a device without any mark by its name only', 'zram0', { size: '8\n' }, 'name:zram0', false],
  ['a mark with control characters', 'sdc', { serial: '\u0000\u001b[31mx\n' }, 'serial::[31mx', true],
] as const)('%s is known', async (_, name, attributes, id, stable) => {
  expect(await blockIdentity(await device(name, attributes))).toEqual({ id, stable });
});

test('files behind loop devices are told apart by every character of their paths', async () => {
  const ids = new Set<string>();
  const paths = ['/images/ä.img', '/images/ö.img', '/images/%C3%A4.img', '/images/a b', '/images/a  b'];
  for (const long of ['x', 'y']) paths.push(`/${'long/'.repeat(200)}${long}`);
  for (const [index, path] of paths.entries()) {
    const { id } = await blockIdentity(await device(`loop${index}`, { 'loop/backing_file': `${path}\n` }));
    expect(id).toMatch(/^[\x20-\x7e]{1,512}$/);
    ids.add(id);
  }
  expect(ids.size).toBe(paths.length);
});

test('a partition is known by its disk and where it begins', async () => {
  await device('vda', { serial: 'disk-17' });
  const partition = await device('vda/vda2', { partition: '2', start: '2048', size: '100' });
  expect(await blockIdentity(partition)).toEqual({ id: 'serial::disk-17:start=2048', stable: true });
});

test('a file keeps its identity when it is renamed or grows, and another file has another', async () => {
  const path = join(folder, 'a');
  await writeFile(path, 'some');
  const first = await deviceIdentity(path);
  expect(first).toMatchObject({ kind: 'file', sizeBytes: 4 });
  await rename(path, join(folder, 'b'));
  await writeFile(join(folder, 'b'), 'some more');
  await symlink('b', join(folder, 'link'));
  const second = await deviceIdentity(join(folder, 'link'));
  expect(second.id).toBe(first.id);
  expect(second.sizeBytes).toBe(9);
  await writeFile(path, 'some');
  expect((await deviceIdentity(path)).id).not.toBe(first.id);
});

test('a file on a disk that udev does not know is known by the disk', async () => {
  const path = join(folder, 'a');
  await writeFile(path, '');
  const { dev, ino } = await stat(path, { bigint: true });
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
  const sys = join(folder, 'sys');
  const places = { sys, byUuid: join(folder, 'none') };
  expect(await deviceIdentityAmong(places, path)).toMatchObject({ id: `file:dev=${dev}:inode=${ino}`, stable: false });
  await mkdir(join(sys, 'dev/block'), { recursive: true });
  await symlink(await device('vda', { serial: 'disk-17' }), join(sys, `dev/block/${major}:${minor}`));
  expect(await deviceIdentityAmong(places, path)).toMatchObject({
    id: `file:on=serial::disk-17:inode=${ino}`,
    stable: true,
  });
});

test('what is no device and no file has no identity', async () => {
  await expect(deviceIdentity(folder)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  await expect(deviceIdentity('/dev/null')).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  await expect(deviceIdentity(join(folder, 'none'))).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_NOT_FOUND',
    errno: 'ENOENT',
  });
});
