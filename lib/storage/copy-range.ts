/**
 * Copies a range from one BlockDevice to another by the best way that both have: without moving bytes at all where two
 * files can share blocks, within the storage where the disks or a file server can copy, else through memory.
 *
 * Invariants:
 * - What a method left undone the next one does, from where it stopped; the last is to read and to write, which every
 *   device can. A method that was asked for by name is not replaced by another.
 * - Bytes are copied from the lower end upwards; what `onProgress` has told is copied.
 * - Ranges that overlap are refused, as far as can be known: devices that are the same object, the same file, the same
 *   disk (also by its partitions). Layers above a file hide it, and so do two paths to one disk.
 * - Memory is bounded, for all copies together.
 * - As after `write`, `flush` of the target makes it durable.
 */
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import { native } from '../native.ts';
import { checkRange } from './base-device.ts';
import type { BlockDevice } from './block-device.ts';
import { type CopyEnd, type CopyMethod, describeEnd, methodsFor, overlaps, whyNot } from './copy-end.ts';
import { Declined, ExtendedCopy } from './extended-copy.ts';
import { IoMemory } from './io-memory.ts';
import { isFileBacked, type LocalFile, useFile } from './local-file.ts';
import { errnoOf } from './system-error.ts';

/** How far a copy has come. */
export interface CopyProgress {
  readonly copiedBytes: number;
  readonly totalBytes: number;
  /** By which it goes on at present. */
  readonly method: CopyMethod;
}

/** How a range is copied. */
export interface CopyRangeOptions {
  /** `auto` (default) tries what both ends can, best first. By name: this one or an error. */
  readonly method?: 'auto' | CopyMethod;
  /** Stops between two steps. What was copied by then stays. */
  readonly signal?: AbortSignal;
  /** Called after each step. */
  readonly onProgress?: (progress: CopyProgress) => void;
}

/** What was copied, and by which methods. */
export interface CopyRangeResult {
  readonly bytes: number;
  /** The one that copied the most. */
  readonly method: CopyMethod;
  /** Each that copied something. */
  readonly bytesBy: { readonly [method in CopyMethod]?: number };
  /** What was tried before, and why it did not do (all of) it. */
  readonly declined: readonly { readonly method: CopyMethod; readonly reason: string }[];
}

const methods: readonly string[] = ['auto', 'reflink', 'copy-file-range', 'extended-copy', 'ring'];
const pieceBytes = 512 * 1024;
const piecesAtOnce = 8;
/** One call of the kernel's; short enough that who cancels or closes does not wait long. */
const reflinkStepBytes = 1024 * 1024 * 1024;
const copyFileRangeStepBytes = 64 * 1024 * 1024;
const maxWaiters = 4096;
const noSpace = new Set(['ENOSPC', 'EDQUOT']);
const notSupported = new Set(['EXDEV', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'ENOTTY', 'EINVAL', 'ETXTBSY', 'EPERM']);

let memory: IoMemory | undefined;

function copyMemory(): IoMemory {
  memory ??= new IoMemory({ totalBytes: 32 * 1024 * 1024, maxWaiters });
  return memory;
}

/**
 * Copies `length` bytes. The ranges must not overlap.
 *
 * ```ts
 * const { method } = await copyRange(source, 0, target, 0, source.geometry.sizeBytes);
 * await target.flush();
 * ```
 *
 * | method | both ends | how |
 * | --- | --- | --- |
 * | `extended-copy` | SCSI disks of one array | EXTENDED COPY; needs CAP_SYS_RAWIO |
 * | `reflink` | files of one file system that can (XFS, btrfs) | they share blocks until one is written to |
 * | `copy-file-range` | files of one file system | copy_file_range: a file server's, or the kernel's page cache |
 * | `ring` | any | reads and writes |
 *
 * Reflink, copy-file-range and extended-copy do whole blocks (of the file system, of the disk). `auto` reads and writes
 * the ends that are not; by name they are refused.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT (overlap; a method that does not exist, or not for these ranges),
 *   _OUT_OF_RANGE, _READ_ONLY, _NOT_SUPPORTED (the method, by name), _ABORTED, _OUTCOME_UNKNOWN (the disks may still be
 *   copying), and what reading and writing throw. Then a part may have been copied: what progress told, and perhaps more.
 */
export async function copyRange(
  source: BlockDevice,
  sourceOffset: number,
  target: BlockDevice,
  targetOffset: number,
  length: number,
  options: CopyRangeOptions = {},
): Promise<CopyRangeResult> {
  const { method = 'auto', signal } = options;
  if (!methods.includes(method))
    throw badArgument(`the method of a copy is "${String(method)}"; it must be one of ${methods.join(', ')}`);
  checkRange(source.name, source.geometry.sizeBytes, sourceOffset, length);
  checkRange(target.name, target.geometry.sizeBytes, targetOffset, length);
  if (target.readOnly)
    throw new HoldfastError('ERR_HOLDFAST_READ_ONLY', `${target.name} is open read-only; open it for writing`);
  throwIfAborted(signal, `a copy to ${target.name}`);
  const from: Side = { device: source, end: await describeEnd(source), offset: sourceOffset };
  const to: Side = { device: target, end: await describeEnd(target), offset: targetOffset };
  if (overlaps(from, to, length))
    throw badArgument(
      `${length} bytes at ${sourceOffset} of ${source.name} and at ${targetOffset} of ${target.name} overlap; ` +
        'copy to elsewhere, or in pieces that do not overlap',
    );
  return new RangeCopy(from, to, length, options).run(method);
}

function badArgument(message: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
}

interface Side {
  readonly device: BlockDevice;
  readonly end: CopyEnd | undefined;
  readonly offset: number;
}

/** Moves whole grains. */
interface Mover {
  readonly grainBytes: number;
  readonly stepBytes: number;
  /** Copies from `position` of the range; says how many bytes, or throws `Declined`. */
  move(position: number, bytes: number): Promise<number>;
}

class RangeCopy {
  readonly #source: Side;
  readonly #target: Side;
  readonly #length: number;
  readonly #options: CopyRangeOptions;
  readonly #bytesBy: { [method in CopyMethod]?: number } = {};
  /** All before it has been copied. */
  #position = 0;

  constructor(source: Side, target: Side, length: number, options: CopyRangeOptions) {
    this.#source = source;
    this.#target = target;
    this.#length = length;
    this.#options = options;
  }

  async run(asked: 'auto' | CopyMethod): Promise<CopyRangeResult> {
    const declined: { method: CopyMethod; reason: string }[] = [];
    const byName = asked !== 'auto';
    const tried = byName ? [asked] : methodsFor(this.#source.end, this.#target.end);
    for (const method of tried) {
      try {
        await this.#copyBy(method, byName);
        break;
      } catch (error) {
        if (!(error instanceof Declined)) throw error;
        if (byName) throw this.#refused(method, error);
        declined.push({ method, reason: error.message });
      }
    }
    const used = Object.entries(this.#bytesBy) as [CopyMethod, number][];
    const [most] = used.sort(([, a], [, b]) => b - a)[0] ?? [tried.at(-1)!];
    return { bytes: this.#position, method: most, bytesBy: this.#bytesBy, declined };
  }

  async #copyBy(method: CopyMethod, byName: boolean): Promise<void> {
    const reason = whyNot(method, this.#source.end, this.#target.end);
    if (reason !== undefined) throw new Declined(reason);
    if (method === 'ring') return this.#readAndWrite(this.#length);
    if (this.#position === this.#length) return;
    const mover = await this.#moverOf(method);
    const { start, end } = this.#wholeGrains(mover.grainBytes, byName);
    await this.#readAndWrite(start);
    while (this.#position < end) {
      throwIfAborted(this.#options.signal, `a copy to ${this.#target.device.name}`);
      const bytes = await mover.move(this.#position, Math.min(mover.stepBytes, end - this.#position));
      this.#advance(bytes, method);
    }
    await this.#readAndWrite(this.#length);
  }

  /** The part of what is left that begins and ends with a grain on both sides. */
  #wholeGrains(grainBytes: number, byName: boolean): { start: number; end: number } {
    const from = this.#source.offset + this.#position;
    const to = this.#target.offset + this.#position;
    const left = this.#length - this.#position;
    const start = this.#position + ((grainBytes - (from % grainBytes)) % grainBytes);
    const end = start + Math.floor((this.#length - start) / grainBytes) * grainBytes;
    const alike = (from - to) % grainBytes === 0;
    if (byName && !(alike && from % grainBytes === 0 && left % grainBytes === 0))
      throw new Declined(`it copies whole blocks of ${grainBytes} bytes`, 'ERR_HOLDFAST_BAD_ARGUMENT');
    if (!alike) throw new Declined(`the ranges do not lie alike in blocks of ${grainBytes} bytes`);
    if (end <= start) throw new Declined(`there is no whole block of ${grainBytes} bytes in it`);
    return { start, end };
  }

  #advance(bytes: number, method: CopyMethod): void {
    this.#position += bytes;
    this.#bytesBy[method] = (this.#bytesBy[method] ?? 0) + bytes;
    this.#options.onProgress?.({ copiedBytes: this.#position, totalBytes: this.#length, method });
  }

  #refused(method: CopyMethod, { code, message, cause }: Declined): HoldfastError {
    return new HoldfastError(
      code,
      `${this.#source.device.name} cannot be copied to ${this.#target.device.name} by ${method}: ${message}; ` +
        'take another method, or auto',
      { cause },
    );
  }

  // ── By the kernel or the disks ───────────────────────────────────────────────────────────────────────────────────

  #moverOf(method: Exclude<CopyMethod, 'ring'>): Promise<Mover> {
    switch (method) {
      case 'reflink':
        return Promise.resolve(this.#fileMover('cloneRange', reflinkStepBytes));
      case 'copy-file-range':
        return Promise.resolve(this.#fileMover('copyFileRange', copyFileRangeStepBytes));
      default:
        return this.#scsiMover();
    }
  }

  #fileMover(call: 'cloneRange' | 'copyFileRange', stepBytes: number): Mover {
    const source = this.#source.end!;
    const target = this.#target.end!;
    const logicalBytes = Math.max(source.logicalBlockBytes, target.logicalBlockBytes);
    const grainBytes = call === 'cloneRange' ? Math.max(logicalBytes, target.fileSystem!.blockBytes) : logicalBytes;
    const from = this.#source.offset;
    const to = this.#target.offset;
    const move = async (position: number, bytes: number): Promise<number> => {
      const copied = await this.#withFiles(position, bytes, (sourceFile, targetFile) =>
        native()
          .copy[call](sourceFile.fd, from + position, targetFile.fd, to + position, bytes)
          .catch(declineErrno),
      );
      // What does not fill a block is copied again.
      const whole = copied - (copied % grainBytes);
      if (whole === 0) throw new Declined('the kernel copies no further, and does not say why', 'ERR_HOLDFAST_IO');
      return whole;
    };
    return { grainBytes, stepBytes: Math.max(grainBytes, stepBytes), move };
  }

  async #scsiMover(): Promise<Mover> {
    const source = this.#source.end!;
    const target = this.#target.end!;
    const devices = { source: this.#source.device, target: this.#target.device };
    const copy = await ExtendedCopy.open(
      (end, command, data, bytes, timeoutMs) =>
        useWhole(devices[end], 0, 0, false, ({ fd }) => native().copy.scsi(fd, command, data, bytes, timeoutMs)),
      source.logicalBlockBytes,
      source.unit === target.unit,
    );
    const from = this.#source.offset;
    const to = this.#target.offset;
    const drop = ({ fd }: LocalFile, offset: number, bytes: number): Promise<void> =>
      native().copy.dropCache(fd, offset, bytes).catch(declineErrno);
    const move = (position: number, bytes: number): Promise<number> =>
      this.#withFiles(position, bytes, async (sourceFile, targetFile) => {
        await drop(sourceFile, from + position, bytes);
        await drop(targetFile, to + position, bytes);
        await copy.copy(source.startBytes + from + position, target.startBytes + to + position, bytes);
        await drop(targetFile, to + position, bytes);
        return bytes;
      });
    return { grainBytes: copy.grainBytes, stepBytes: copy.stepBytes, move };
  }

  #withFiles<T>(
    position: number,
    bytes: number,
    work: (source: LocalFile, target: LocalFile) => Promise<T>,
  ): Promise<T> {
    const { device: source, offset: from } = this.#source;
    const { device: target, offset: to } = this.#target;
    return useWhole(source, from + position, bytes, false, (sourceFile) =>
      useWhole(target, to + position, bytes, true, (targetFile) => work(sourceFile, targetFile)),
    );
  }

  // ── Through memory ───────────────────────────────────────────────────────────────────────────────────────────────

  /** Up to `end` of the range, several pieces at a time. Settles when none is in flight. */
  async #readAndWrite(end: number): Promise<void> {
    const pieces: { readonly bytes: number; readonly copied: Promise<void> }[] = [];
    let next = this.#position;
    try {
      while (this.#position < end) {
        throwIfAborted(this.#options.signal, `a copy to ${this.#target.device.name}`);
        for (; next < end && pieces.length < piecesAtOnce; next += pieces.at(-1)!.bytes) {
          const toBorder = pieceBytes - ((this.#target.offset + next) % pieceBytes);
          const bytes = Math.min(end - next, toBorder);
          const copied = this.#copyPiece(next, bytes);
          copied.catch(() => {});
          pieces.push({ bytes, copied });
        }
        await pieces[0]!.copied;
        this.#advance(pieces.shift()!.bytes, 'ring');
      }
    } finally {
      await Promise.allSettled(pieces.map(({ copied }) => copied));
    }
  }

  async #copyPiece(position: number, bytes: number): Promise<void> {
    using lease = await copyMemory().leaseWhenFree(bytes, { signal: this.#options.signal });
    await this.#source.device.read(this.#source.offset + position, lease.bytes);
    await this.#target.device.write(this.#target.offset + position, lease.bytes, { stable: true });
  }
}

function useWhole<T>(
  device: BlockDevice,
  offset: number,
  length: number,
  changes: boolean,
  work: (file: LocalFile) => Promise<T>,
): Promise<T> {
  if (!isFileBacked(device)) throw new Declined(`${device.name} is no file of this machine`);
  return device[useFile]({ offset, length, changes }, work);
}

function declineErrno(error: unknown): never {
  const errno = errnoOf(error);
  if (errno === undefined) throw error;
  const code = noSpace.has(errno) ? 'ERR_HOLDFAST_NO_SPACE' : notSupported.has(errno) ? undefined : 'ERR_HOLDFAST_IO';
  throw new Declined(`the kernel says ${errno}`, code, error);
}
