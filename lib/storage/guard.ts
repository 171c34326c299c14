/**
 * The guard before a device is overwritten (BA-1): what carries a known signature, our own included, and a file that is
 * not blank, is left alone unless the caller names it. File systems, partition tables and the like are recognised by
 * libblkid (signatures.ts); where that is not installed, nothing is taken to be free.
 *
 * This guards creation. On an attached volume a client's own file system stands at offset 0, and that is as it should be.
 */
import { type FileHandle, open, stat } from 'node:fs/promises';
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import { native } from '../native.ts';
import { probeSignatures, type Signature } from './signatures.ts';
import { decodeSuperblock, printable, superblockAlignmentBytes, superblockMagic } from './superblock-pair.ts';
import { errnoOf, systemError } from './system-error.ts';

/** A superblock of ours is looked for so far from either end of a device: every format keeps one copy there. */
export const superblockSearchBytes = 1024 * 1024;
const readPieceBytes = 1024 * 1024;
/** So much of a file without signatures is read to see whether it is nothing but zeros. */
const zerosReadBytesMax = 256 * 1024 * 1024;

/** Whether the caller has agreed to an overwrite by name. */
export interface OverwriteConsent {
  /** The path of the one device that may be overwritten whatever is on it: exactly `path`. */
  readonly consent?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Which range is looked at, in bytes, and how hard. */
export interface BlankOptions {
  /** Default 0. */
  readonly offset?: number;
  /** Default: to the end. */
  readonly length?: number;
  /**
   * How many bytes may be read to find zeros where the file system knows of no hole. Default 0: only holes count, and a
   * block device is never shown to be blank.
   */
  readonly readBytesMax?: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Resolves if the block device or file may be overwritten: nothing is recognised on it (and a file holds nothing but
 * zeros), or the caller has named it.
 *
 * @throws HoldfastError ERR_HOLDFAST_DEVICE_NOT_BLANK if something is recognised, ERR_HOLDFAST_DEVICE_HAS_DATA for a
 *   file with data that nothing is known about, ERR_HOLDFAST_NOT_SUPPORTED if libblkid is missing; and what opening and
 *   reading throws.
 */
export async function assertMayOverwrite(path: string, options: OverwriteConsent = {}): Promise<void> {
  await using handle = await openForReading(path);
  if (options.consent === path) return;
  const found = await handle.stat();
  if (found.isFile() && found.size === 0) return;
  const mend =
    options.consent === undefined
      ? `to overwrite it, name it as the device that may be overwritten`
      : `the device that was named is ${options.consent}, not this one`;
  const signs = [...(await holdfastSuperblocks(path, handle)), ...(await probeSignatures(path)).map(describe)];
  if (signs.length > 0)
    throw new HoldfastError('ERR_HOLDFAST_DEVICE_NOT_BLANK', `${path} carries ${signs.join(' and ')}; ${mend}`);
  if (found.isFile() && !(await isBlank(path, handle, { readBytesMax: zerosReadBytesMax, signal: options.signal })))
    throw new HoldfastError('ERR_HOLDFAST_DEVICE_HAS_DATA', `${path} is a file that holds data; ${mend}`);
}

/**
 * True if the range is shown to be all zeros: holes of a file, and what has been read within `readBytesMax`. False says
 * nothing about the data.
 */
export async function isShownBlank(path: string, options: BlankOptions = {}): Promise<boolean> {
  await using handle = await openForReading(path);
  return await isBlank(path, handle, options);
}

async function openForReading(path: string): Promise<FileHandle> {
  let isUsable: boolean;
  try {
    const found = await stat(path);
    isUsable = found.isFile() || found.isBlockDevice();
    // Anything else (a pipe, a terminal) could block for ever when it is opened.
    if (isUsable) return await open(path, 'r');
  } catch (error) {
    throw systemError(path, 'opening it', error);
  }
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `${path} is neither a block device nor a regular file; name one of these`,
  );
}

async function isBlank(path: string, handle: FileHandle, options: BlankOptions): Promise<boolean> {
  const { offset = 0, readBytesMax = 0, signal } = options;
  const sizeBytes = await deviceSize(handle);
  const end = options.length === undefined ? sizeBytes : offset + options.length;
  if (offset < 0 || end < offset || end > sizeBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `${path}: bytes ${offset} to ${end} are outside; it has ${sizeBytes} bytes`,
    );
  let readBytes = 0;
  for (let at = nextData(path, handle, offset); at < end; ) {
    throwIfAborted(signal, `looking whether ${path} is blank`);
    const piece = Math.min(readPieceBytes, end - at);
    readBytes += piece;
    if (readBytes > readBytesMax) return false;
    if (!isZero(await readAt(path, handle, at, piece))) return false;
    at = nextData(path, handle, at + piece);
  }
  return true;
}

/** A block device's size is where its end is: its stat says 0. */
async function deviceSize(handle: FileHandle): Promise<number> {
  const found = await handle.stat();
  return found.isFile() ? found.size : native().identify.deviceGeometry(handle.fd).sizeBytes;
}

/** Infinity if only a hole is left. A block device has no holes, and says EINVAL when it is asked for them. */
function nextData(path: string, handle: FileHandle, offset: number): number {
  try {
    const at = native().identify.seekData(handle.fd, offset);
    return at < 0 ? Number.POSITIVE_INFINITY : at;
  } catch (error) {
    if (errnoOf(error) === 'EINVAL') return offset;
    throw systemError(path, 'looking for its data', error);
  }
}

/** As many bytes as there are. */
async function readAt(path: string, handle: FileHandle, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  let done = 0;
  while (done < length) {
    const { bytesRead } = await handle.read(bytes, done, length - done, offset + done).catch((error: unknown) => {
      throw systemError(path, `reading ${length} bytes at ${offset}`, error);
    });
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return bytes.subarray(0, done);
}

const zeroPiece = Buffer.alloc(readPieceBytes);

function isZero(bytes: Buffer): boolean {
  return bytes.equals(zeroPiece.subarray(0, bytes.byteLength));
}

/** Ours, near either end of the device, in words. */
async function holdfastSuperblocks(path: string, handle: FileHandle): Promise<string[]> {
  const sizeBytes = await deviceSize(handle);
  const lastStart = Math.max(0, sizeBytes - superblockSearchBytes);
  const starts = new Set([0, lastStart - (lastStart % superblockAlignmentBytes)]);
  const found = new Set<string>();
  for (const start of starts) {
    const bytes = await readAt(path, handle, start, Math.min(sizeBytes - start, 2 * superblockSearchBytes));
    for (let at = 0; at < bytes.byteLength; at += superblockAlignmentBytes) {
      if (!bytes.subarray(at, at + superblockMagic.byteLength).equals(superblockMagic)) continue;
      const { frame } = decodeSuperblock(bytes.subarray(at), start + at);
      found.add(
        frame === undefined ? 'damaged Holdfast metadata' : `Holdfast metadata ("${printable(frame.formatName)}")`,
      );
    }
  }
  return [...found];
}

function describe({ type, usage, label }: Signature): string {
  const name = label === undefined || label === '' ? '' : `, labelled "${label}"`;
  return `${type} (${usage}${name})`;
}
