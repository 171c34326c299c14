/** What a copy's two ends are, as far as it decides which ways of copying there are. */
import { fstat } from 'node:fs';
import { readFile, readlink, realpath, statfs } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { promisify } from 'node:util';
import type { BlockDevice } from './block-device.ts';
import { blockFolder } from './identity.ts';
import { isFileBacked, type LocalFile, useFile } from './local-file.ts';

/**
 * A way of copying. `reflink`: two files share blocks. `copy-file-range`: the kernel or a file server copies.
 * `extended-copy`: the disks do, by SCSI. `ring`: read and write.
 */
export type CopyMethod = 'reflink' | 'copy-file-range' | 'extended-copy' | 'ring';

/** A file or block device of this machine. */
export interface CopyEnd {
  /** What holds the bytes: a disk or a file. Two ends of one unit may overlap. */
  readonly unit: string;
  /** Where it begins on the unit: a partition's start. */
  readonly startBytes: number;
  /** Of a file. */
  readonly fileSystem: FileSystem | undefined;
  /** A disk that takes SCSI commands. */
  readonly scsi: boolean;
  /** Requests go past the page cache. */
  readonly direct: boolean;
  readonly logicalBlockBytes: number;
}

export interface FileSystem {
  readonly id: string;
  readonly blockBytes: number;
  /** Served by another program or machine, which may copy by itself. */
  readonly served: boolean;
}

const sectorBytes = 512;
/** From the kernel's linux/magic.h: NFS, SMB, CIFS, SMB2, Ceph, FUSE. */
const servedTypes = new Set([0x6969, 0x517b, 0xff534d42, 0xfe534d42, 0x00c36400, 0x65735546]);
const statOf = promisify(fstat);

/** Undefined for what is neither file nor block device: memory, a volume, a remote export. */
export async function describeEnd(device: BlockDevice): Promise<CopyEnd | undefined> {
  if (!isFileBacked(device)) return undefined;
  const { logicalBlockBytes } = device.geometry;
  return device[useFile]({ offset: 0, length: 0, changes: false }, async (file) => ({
    ...(file.isBlockDevice ? await describeDisk(file) : await describeFile(file)),
    direct: file.direct,
    logicalBlockBytes,
  }));
}

type Place = Pick<CopyEnd, 'unit' | 'startBytes' | 'fileSystem' | 'scsi'>;

async function describeFile({ fd }: LocalFile): Promise<Place> {
  const { dev, ino } = await statOf(fd, { bigint: true });
  // Where /proc is not mounted nothing is known of it, and the ring is left.
  const found = await statfs(`/proc/self/fd/${fd}`).catch(() => undefined);
  const fileSystem = found && { id: String(dev), blockBytes: found.bsize, served: servedTypes.has(found.type) };
  return { unit: `file ${dev}:${ino}`, startBytes: 0, fileSystem, scsi: false };
}

async function describeDisk({ fd }: LocalFile): Promise<Place> {
  const { rdev } = await statOf(fd, { bigint: true });
  const shown = blockFolder('/sys', rdev);
  const folder = await realpath(shown).catch(() => shown);
  const start = await attribute(`${folder}/start`);
  // Only a partition has a start, and its disk is the folder around it.
  const disk = start === undefined ? folder : dirname(folder);
  const scsi = basename(await readlink(`${disk}/device/subsystem`).catch(() => '')) === 'scsi';
  const unit = `disk ${(await attribute(`${disk}/dev`)) ?? basename(shown)}`;
  return { unit, startBytes: Number(start ?? 0) * sectorBytes, fileSystem: undefined, scsi };
}

async function attribute(path: string): Promise<string | undefined> {
  const text = await readFile(path, 'utf8').catch(() => undefined);
  return text?.trim();
}

/** Why the ends cannot be copied this way; undefined if it is worth trying. */
export function whyNot(
  method: CopyMethod,
  source: CopyEnd | undefined,
  target: CopyEnd | undefined,
): string | undefined {
  if (method === 'ring') return undefined;
  if (source === undefined || target === undefined) return 'both ends must be files or block devices of this machine';
  if (method === 'extended-copy') {
    if (!source.scsi || !target.scsi) return 'both ends must be SCSI disks';
    if (source.logicalBlockBytes !== target.logicalBlockBytes) return 'the disks have blocks of different sizes';
    return undefined;
  }
  if (source.fileSystem === undefined || target.fileSystem === undefined) return 'both ends must be files';
  if (source.fileSystem.id !== target.fileSystem.id) return 'the files are on different file systems';
  return undefined;
}

/** What is tried if nobody says how, best first. The last can always. */
export function methodsFor(source: CopyEnd | undefined, target: CopyEnd | undefined): CopyMethod[] {
  const all: readonly CopyMethod[] = ['extended-copy', 'reflink', 'copy-file-range', 'ring'];
  return all.filter((method) => {
    if (whyNot(method, source, target) !== undefined) return false;
    // Where nobody else can do it the kernel copies through the page cache, which is no gain past it.
    return method !== 'copy-file-range' || source!.fileSystem!.served || !(source!.direct || target!.direct);
  });
}

/** Whether two ranges of the same length have bytes in common, as far as can be known. */
export function overlaps(
  source: { readonly device: BlockDevice; readonly end: CopyEnd | undefined; readonly offset: number },
  target: { readonly device: BlockDevice; readonly end: CopyEnd | undefined; readonly offset: number },
  length: number,
): boolean {
  const known = source.end !== undefined && target.end !== undefined;
  const same = source.device === target.device || (known && source.end.unit === target.end.unit);
  if (!same) return false;
  const from = source.offset + (source.end?.startBytes ?? 0);
  const to = target.offset + (target.end?.startBytes ?? 0);
  return Math.abs(from - to) < length;
}
