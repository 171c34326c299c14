/**
 * Which device is this? An identity that stays with the device, not with the path by which it is found today: what
 * binds a separate metadata file to its device.
 *
 * A block device is known by what the kernel shows of it under /sys/dev/block/MAJOR:MINOR: the UUID of a device-mapper
 * or md device, the file behind a loop device, a world-wide name, a serial number; a partition by its disk and where it
 * begins. A file is known by its file system and its inode. Where there is nothing of the kind, only a kernel name is
 * left, and the identity says that it may not survive a restart.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { HoldfastError } from '../base/errors.ts';
import { systemError } from './system-error.ts';

/** What tells one device or file from all others, by whatever path it is named. */
export interface DeviceIdentity {
  readonly kind: 'block' | 'file';
  /** Two identities are of one device if this is equal. At most 512 ASCII characters. */
  readonly id: string;
  readonly sizeBytes: number;
  /** The id stays when the machine restarts. */
  readonly stable: boolean;
}

/** Where to look; for tests. */
export interface IdentityPlaces {
  readonly sys?: string;
  readonly byUuid?: string;
}

interface Known {
  readonly id: string;
  readonly stable: boolean;
}

const idCharactersMax = 512;
const pathCharactersMax = 256;
const sectorBytes = 512;

/**
 * The identity of the block device or file at `path`; links are followed.
 *
 * @throws HoldfastError ERR_HOLDFAST_NOT_FOUND, ERR_HOLDFAST_ACCESS, or ERR_HOLDFAST_BAD_ARGUMENT if it is neither a
 *   block device nor a regular file.
 */
export function deviceIdentity(path: string): Promise<DeviceIdentity> {
  return deviceIdentityAmong({}, path);
}

/** The same, as found in these places. */
export async function deviceIdentityAmong(places: IdentityPlaces, path: string): Promise<DeviceIdentity> {
  const { sys = '/sys', byUuid = '/dev/disk/by-uuid' } = places;
  const found = await stat(path, { bigint: true }).catch((error: unknown) => {
    throw systemError(path, 'looking at it', error);
  });
  if (found.isBlockDevice()) {
    const folder = await realpath(blockFolder(sys, found.rdev)).catch((error: unknown) => {
      throw systemError(path, 'finding it under /sys', error);
    });
    const { id, stable } = await blockIdentity(folder);
    const sizeBytes = Number((await attribute(folder, 'size')) ?? 0) * sectorBytes;
    return { kind: 'block', id: clip(id), sizeBytes, stable };
  }
  if (!found.isFile())
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${path} is neither a block device nor a regular file; name one of these`,
    );
  const fileSystem = await fileSystemIdentity(sys, byUuid, found.dev);
  return {
    kind: 'file',
    id: clip(`file:${fileSystem.id}:inode=${found.ino}`),
    sizeBytes: Number(found.size),
    stable: fileSystem.stable,
  };
}

/** Where a device is shown under /sys. `dev_t` as glibc's `major` and `minor` take it apart. */
export function blockFolder(sys: string, device: bigint): string {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn);
  const minor = (device & 0xffn) | ((device >> 12n) & ~0xffn);
  return join(sys, 'dev', 'block', `${major}:${minor}`);
}

/** `folder` is the device's own in /sys, links resolved. */
export async function blockIdentity(folder: string): Promise<Known> {
  if ((await attribute(folder, 'partition')) !== undefined) {
    const disk = await blockIdentity(dirname(folder));
    return { id: `${disk.id}:start=${await attribute(folder, 'start')}`, stable: disk.stable };
  }
  for (const [label, ...paths] of [
    ['dm', 'dm/uuid'],
    ['md', 'md/uuid'],
    ['wwid', 'wwid', 'device/wwid'],
  ] as const) {
    for (const path of paths) {
      const value = await attribute(folder, path);
      if (value !== undefined) return { id: `${label}:${value}`, stable: true };
    }
  }
  return (await loopIdentity(folder)) ?? (await serialIdentity(folder)) ?? nameIdentity(folder);
}

async function loopIdentity(folder: string): Promise<Known | undefined> {
  const path = await readFile(join(folder, 'loop/backing_file'), 'latin1').catch(() => '');
  if (path === '') return undefined;
  const file = asciiPath(path.replace(/\n$/, ''));
  const offset = (await attribute(folder, 'loop/offset')) ?? '0';
  return { id: `loop:${file}:offset=${offset}`, stable: !file.endsWith('(deleted)') };
}

async function serialIdentity(folder: string): Promise<Known | undefined> {
  const serial = (await attribute(folder, 'serial')) ?? (await attribute(folder, 'device/serial'));
  if (serial === undefined) return undefined;
  const model = (await attribute(folder, 'device/model')) ?? '';
  return { id: `serial:${model}:${serial}`, stable: true };
}

/** Any path (`bytes`: one character a byte) in short printable ASCII, two different ones never as the same. */
function asciiPath(bytes: string): string {
  const ascii = bytes.replace(/[^\x20-\x24\x26-\x7e]/g, (byte) => `%${Buffer.from(byte, 'latin1').toString('hex')}`);
  if (ascii.length <= pathCharactersMax) return ascii;
  return `%${createHash('sha256').update(bytes, 'latin1').digest('hex')}${ascii.slice(-pathCharactersMax / 2)}`;
}

function nameIdentity(folder: string): Known {
  return { id: `name:${basename(folder)}`, stable: false };
}

/** By the file system's UUID if udev has found one, else by the device that it is on, else by a mere number. */
async function fileSystemIdentity(sys: string, byUuid: string, device: bigint): Promise<Known> {
  const uuid = await fileSystemUuid(byUuid, device);
  if (uuid !== undefined) return { id: `fs=${uuid}`, stable: true };
  const folder = await realpath(blockFolder(sys, device)).catch(() => undefined);
  if (folder !== undefined) {
    const below = await blockIdentity(folder);
    return { id: `on=${below.id}`, stable: below.stable };
  }
  return { id: `dev=${device}`, stable: false };
}

async function fileSystemUuid(byUuid: string, device: bigint): Promise<string | undefined> {
  const names = await readdir(byUuid).catch(() => []);
  for (const name of names) {
    const found = await stat(join(byUuid, name), { bigint: true }).catch(() => undefined);
    if (found?.isBlockDevice() && found.rdev === device) return name;
  }
  return undefined;
}

/** One line from /sys, fit to be kept and shown; undefined if it is not there or empty. */
async function attribute(folder: string, path: string): Promise<string | undefined> {
  const text = await readFile(join(folder, path), 'utf8').catch(() => '');
  const line = text
    .replace(/[^\x20-\x7e]+/g, ' ')
    .trim()
    .replace(/ +/g, ' ');
  return line === '' ? undefined : line;
}

function clip(id: string): string {
  return id.slice(0, idCharactersMax);
}
