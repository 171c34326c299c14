/**
 * DirectDevice: a block device or a file, read and written past the page cache, through the ring.
 *
 * It is the aligned core: offsets and lengths are whole logical blocks, and anything else is refused. `openDevice`
 * (open-device.ts) serves unaligned requests on top of it.
 *
 * Memory: bytes leased from I/O memory (io-memory.ts) go to the device as they are; any other buffer is copied through a
 * bounded pool of this module, big ones piece by piece.
 *
 * After a failed flush (or a failed write with force unit access) the kernel may have dropped what it could not write,
 * and a second flush would find nothing to complain about (Rebello et al., USENIX ATC 2020). So this opening is done
 * with writing: every later flush and change is refused with ERR_HOLDFAST_FLUSH_FAILED, reads go on, and what was
 * written since the last good flush counts as lost. Flushes that are asked for at once share one (shared-run.ts).
 */
import { constants } from 'node:fs';
import { type FileHandle, open, readFile, stat, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import { native } from '../native.ts';
import { type CountedStats, checkRange, isAligned, newStats, totalLength } from './base-device.ts';
import type {
  BlockDevice,
  DeviceStats,
  Geometry,
  IoOptions,
  VectoredDevice,
  WriteOptions,
  WriteZeroesOptions,
} from './block-device.ts';
import { blockFolder } from './identity.ts';
import { InFlight, type WatchedWriter, watchedWrite } from './in-flight.ts';
import { arenaOf, type IoArena, type IoLease, IoMemory } from './io-memory.ts';
import type { IoStatistics } from './io-statistics.ts';
import { type FileUse, type LocalFile, useFile } from './local-file.ts';
import {
  type EngineReport,
  errnoName,
  type MemoryPiece,
  maxPieces,
  maxRequestBytes,
  type Ring,
  RingOperation,
  type RingOptions,
  RingRequest,
  type RingStatistics,
  resultEndedEarly,
  sharedRing,
} from './ring.ts';
import { SharedRun } from './shared-run.ts';
import { errnoOf, systemError } from './system-error.ts';

/** How a block device or file is opened. */
export interface DirectDeviceOptions extends RingOptions {
  /** Past the page cache: `auto` (default) where the file system lets us; `required`; or `off`. */
  readonly direct?: 'auto' | 'required' | 'off';
  readonly readOnly?: boolean;
  /** Refuse to open what is mounted or held by others, and hold it. Default: when opened for writing. */
  readonly exclusive?: boolean;
  /** Make the file, which must not exist. Its blocks are allocated as they are written. */
  readonly create?: { readonly sizeBytes: number };
}

/** How a device is served. */
export interface DirectReport extends EngineReport {
  /** Requests go past the page cache. */
  readonly direct: boolean;
  /** Why so, in words. */
  readonly directReason: string;
}

/** The open file in the hands of a native pipeline that reads it by itself. */
export interface LentFile {
  readonly fd: number;
  /** Offsets and lengths of its reads are multiples of this. */
  readonly alignmentBytes: number;
  readonly engine: EngineReport;
  /** Counts reads that were done. */
  count(reads: number, bytes: number): void;
  /** Nothing reads it any more. */
  release(): void;
}

export const lendFile = Symbol('lendFile');

/** What can lend its file. */
export interface FileLender {
  /** `onClosing` is called when the device is being closed, which waits for `release`. */
  [lendFile](onClosing: () => void): LentFile;
}

/** What was found when it was opened. */
interface Opened {
  readonly handle: FileHandle;
  readonly isBlockDevice: boolean;
  readonly direct: boolean;
  readonly directReason: string;
  /** Addresses of memory must be multiples of this. */
  readonly memoryAlignmentBytes: number;
  /** The device has no write with force unit access: a flush follows each write that asks for it. */
  readonly flushesForFua: boolean;
  readonly geometry: Geometry;
}

const pieceBytes = 512 * 1024;
const piecesAtOnce = 4;
/** New requests are refused beyond it. Those that have begun may still wait, each with its few pieces. */
const maxCopiesWaiting = 16_384;
/** Zeroing and discarding go in steps, so that closing never waits for a whole disk. */
const rangeStepBytes = 256 * 1024 * 1024;
/** Of our own making, beside the ring's results. */
const resultAborted = 2;
const notSupported = new Set(['EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'ENOTTY']);
const noSpace = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);
const operationNames: Record<number, string> = {
  [RingOperation.read]: 'read',
  [RingOperation.write]: 'write',
  [RingOperation.writeFua]: 'write with force unit access',
  [RingOperation.writeThenFlush]: 'write with force unit access',
  [RingOperation.punchHole]: 'punching a hole',
  [RingOperation.zeroRange]: 'zeroing',
  [RingOperation.blockDiscard]: 'discard',
  [RingOperation.blockZeroOut]: 'zeroing',
};

let copies: IoMemory | undefined;

/** Where foreign buffers pass through. Separate from what applications lease, so that they cannot starve it. */
function copyMemory(): IoMemory {
  copies ??= new IoMemory({ totalBytes: 32 * 1024 * 1024, maxWaiters: maxCopiesWaiting * (piecesAtOnce + 1) });
  return copies;
}

/** A request on its way, kept in a free list of its device. */
class DeviceRequest extends RingRequest {
  readonly #device: DirectDevice;
  resolve: () => void = nothing;
  reject: (error: HoldfastError) => void = nothing;
  /** Who wants to know that it is over, besides. */
  over: () => void = nothing;
  /** Memory in between, and the buffer that it stands for. */
  lease: IoLease | undefined;
  target: Uint8Array | undefined;
  signal: AbortSignal | undefined;
  onAbort: (() => void) | undefined;
  /** Of a bigger request, which counts itself. */
  part = false;

  constructor(device: DirectDevice) {
    super();
    this.#device = device;
  }

  settle(result: number): void {
    this.#device[settled](this, result);
  }
}

function nothing(): void {}

function isFuaWrite(operation: number): boolean {
  return operation === RingOperation.writeFua || operation === RingOperation.writeThenFlush;
}

const settled = Symbol('settled');

// A promise's executor that allocates no closure: the constructor calls it at once, and the caller picks these up.
let lastResolve: () => void = nothing;
let lastReject: (error: HoldfastError) => void = nothing;
const pickUp = (resolve: () => void, reject: (error: HoldfastError) => void) => {
  lastResolve = resolve;
  lastReject = reject;
};

/**
 * A block device or file under direct I/O, as its engine serves it; see `openDirectDevice`. `openDevice` is for most.
 */
export class DirectDevice implements BlockDevice, VectoredDevice, WatchedWriter, FileLender {
  readonly kind = 'direct';
  readonly name: string;
  readonly readOnly: boolean;
  readonly geometry: Geometry;
  readonly #opened: Opened;
  readonly #ring: Ring;
  readonly #slot: number;
  readonly #sizeBytes: number;
  readonly #blockMask: number;
  readonly #memoryMask: number;
  readonly #fuaWrite: number;
  readonly #stats: CountedStats = newStats();
  readonly #freeRequests: DeviceRequest[] = [];
  /** Operations, and requests of several steps. */
  readonly #inFlight = new InFlight();
  /** Told when it is being closed. */
  readonly #borrowers = new Set<() => void>();
  #closing: Promise<void> | undefined;
  #lastStatistics: IoStatistics | undefined;
  #flushFailure: HoldfastError | undefined;
  readonly #flushes = new SharedRun(() => this.#flushNow());
  /** Range operations that the device has been found not to do. */
  readonly #unsupported = new Set<number>();

  /** Made by `openDirectDevice`. @internal */
  constructor(path: string, readOnly: boolean, opened: Opened, ring: Ring) {
    this.name = path;
    this.readOnly = readOnly;
    this.geometry = opened.geometry;
    this.#opened = opened;
    this.#ring = ring;
    this.#slot = ring.addFile(opened.handle.fd);
    this.#sizeBytes = opened.geometry.sizeBytes;
    this.#blockMask = opened.geometry.logicalBlockBytes - 1;
    this.#memoryMask = opened.memoryAlignmentBytes - 1;
    this.#fuaWrite = opened.flushesForFua ? RingOperation.writeThenFlush : RingOperation.writeFua;
  }

  /** Which engine serves it and whether past the page cache, with the reasons. */
  engineReport(): DirectReport {
    const { direct, directReason } = this.#opened;
    return { ...this.#ring.report(), direct, directReason };
  }

  read(offset: number, buffer: Uint8Array, options?: IoOptions): Promise<void> {
    return this.#transfer(RingOperation.read, offset, buffer, options?.signal);
  }

  write(offset: number, buffer: Uint8Array, options?: WriteOptions): Promise<void> {
    return this[watchedWrite](offset, buffer, options, nothing);
  }

  /** @internal */
  [watchedWrite](
    offset: number,
    buffer: Uint8Array,
    options: WriteOptions | undefined,
    over: () => void,
  ): Promise<void> {
    const signal = options?.signal;
    if (options?.fua !== true) return this.#transfer(RingOperation.write, offset, buffer, signal, over);
    if (this.#opened.direct) return this.#transfer(this.#fuaWrite, offset, buffer, signal, over);
    return this.#writeThenFlush(offset, buffer, signal, over);
  }

  /** Apart, because the function that this makes would keep what it needs on the heap for every write. */
  #writeThenFlush(
    offset: number,
    buffer: Uint8Array,
    signal: AbortSignal | undefined,
    over: () => void,
  ): Promise<void> {
    return this.#thenFlush(() => this.#transfer(RingOperation.write, offset, buffer, signal, over));
  }

  /** As `read` into one buffer after the other; one operation for every 64 of them that are leased from I/O memory. */
  readVectored(offset: number, buffers: readonly Uint8Array[], options?: IoOptions): Promise<void> {
    return this.#vectored(RingOperation.read, offset, buffers, options?.signal);
  }

  /** As `write` of one buffer after the other; one operation for every 64 of them that are leased from I/O memory. */
  writeVectored(offset: number, buffers: readonly Uint8Array[], options?: WriteOptions): Promise<void> {
    const { fua = false, signal } = options ?? {};
    if (!fua) return this.#vectored(RingOperation.write, offset, buffers, signal);
    if (this.#opened.direct) return this.#vectored(this.#fuaWrite, offset, buffers, signal);
    return this.#thenFlush(() => this.#vectored(RingOperation.write, offset, buffers, signal));
  }

  /** Through the page cache: a write with force unit access could be told of the failure that is another flush's. */
  #thenFlush(write: () => Promise<void>): Promise<void> {
    return this.#inFlight.hold(async () => {
      await write();
      await this.#flushes.run();
    });
  }

  async flush(options?: IoOptions): Promise<void> {
    this.#admit(RingOperation.read, 0, 0, options?.signal);
    if (this.#flushFailure !== undefined) throw this.#flushFailed();
    if (!this.readOnly) await this.#inFlight.hold(() => this.#flushes.run());
    this.#stats.flushes++;
  }

  async #flushNow(): Promise<void> {
    if (this.#flushFailure !== undefined) throw this.#flushFailed();
    await this.#send(RingOperation.flush, 0, 0);
  }

  async discard(offset: number, length: number, options?: IoOptions): Promise<void> {
    this.#admit(RingOperation.write, offset, length, options?.signal);
    const operation = this.#opened.isBlockDevice ? RingOperation.blockDiscard : RingOperation.punchHole;
    if (this.geometry.discard) {
      await this.#inFlight.hold(async () => {
        await this.#tryRange(operation, offset, length);
      });
    }
    this.#stats.discards++;
  }

  async writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): Promise<void> {
    this.#admit(RingOperation.write, offset, length, options?.signal);
    await this.#inFlight.hold(async () => {
      await this.#zero(offset, length, options?.mayUnmap ?? true);
      if (options?.fua === true) await this.#flushes.run();
    });
    this.#stats.writes++;
    this.#stats.writtenBytes += length;
  }

  /** @internal */
  async [useFile]<T>(use: FileUse, work: (file: LocalFile) => Promise<T>): Promise<T> {
    const operation = use.changes ? RingOperation.write : RingOperation.read;
    this.#admit(operation, use.offset, use.length, undefined);
    const { handle, isBlockDevice, direct } = this.#opened;
    return this.#inFlight.hold(() => work({ fd: handle.fd, isBlockDevice, direct }));
  }

  stats(): DeviceStats {
    return { ...this.#stats };
  }

  /** What the ring has counted of this device's operations: how many, how long, how many at once. */
  ioStatistics(): IoStatistics {
    return this.#lastStatistics ?? this.#ring.fileStatistics(this.#slot);
  }

  /** What the ring has counted that it shares with the other devices of this thread that were opened with its settings. */
  ringStatistics(): RingStatistics {
    return this.#ring.statistics();
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @internal */
  [lendFile](onClosing: () => void): LentFile {
    this.#admit(RingOperation.read, 0, 0, undefined);
    this.#borrowers.add(onClosing);
    this.#inFlight.enter();
    return {
      fd: this.#opened.handle.fd,
      alignmentBytes: this.#blockMask + 1,
      engine: this.#ring.report(),
      count: (reads, bytes) => {
        this.#stats.reads += reads;
        this.#stats.readBytes += bytes;
      },
      release: () => {
        if (this.#borrowers.delete(onClosing)) this.#inFlight.leave();
      },
    };
  }

  async #close(): Promise<void> {
    for (const onClosing of this.#borrowers) onClosing();
    await this.#inFlight.drained();
    // The place in the ring is another file's next.
    this.#lastStatistics = this.#ring.fileStatistics(this.#slot);
    this.#ring.removeFile(this.#slot);
    await this.#opened.handle.close();
  }

  // ── Admission ────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Throws what is wrong with a request, before anything is done. */
  #admit(operation: number, offset: number, length: number, signal: AbortSignal | undefined): void {
    if (this.#closing !== undefined)
      throw new HoldfastError('ERR_HOLDFAST_CLOSED', `${this.name} is closed; open it again`);
    checkRange(this.name, this.#sizeBytes, offset, length);
    if (operation !== RingOperation.read) {
      if (this.readOnly)
        throw new HoldfastError('ERR_HOLDFAST_READ_ONLY', `${this.name} is open read-only; open it for writing`);
      if (this.#flushFailure !== undefined) throw this.#flushFailed();
    }
    throwIfAborted(signal, `a request to ${this.name}`);
    this.#ring.admit();
    this.#checkAligned(offset, length);
  }

  #checkAligned(offset: number, length: number): void {
    if (length === 0 || isAligned(offset, length, this.#blockMask + 1)) return;
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${this.name}: ${length} bytes at ${offset} are not whole blocks of ${this.#blockMask + 1}; open it with openDevice`,
    );
  }

  #flushFailed(): HoldfastError {
    return new HoldfastError(
      'ERR_HOLDFAST_FLUSH_FAILED',
      `${this.name}: a flush failed, so what was written since the last good one counts as lost; ` +
        'check the device, open it again and restore from another copy',
      { cause: this.#flushFailure },
    );
  }

  // ── Reads and writes ─────────────────────────────────────────────────────────────────────────────────────────────

  #transfer(
    operation: number,
    offset: number,
    buffer: Uint8Array,
    signal: AbortSignal | undefined,
    over: () => void = nothing,
  ): Promise<void> {
    const length = buffer.byteLength;
    let request: DeviceRequest | undefined;
    try {
      this.#admit(operation, offset, length, signal);
      if (length > 0) request = this.#requestAtOnce(operation, offset, buffer);
    } catch (error) {
      over();
      return Promise.reject(error);
    }
    if (request !== undefined) {
      request.over = over;
      return this.#submit(request, signal);
    }
    if (length === 0) {
      this.#count(operation, 0);
      over();
      return Promise.resolve();
    }
    const later =
      length > pieceBytes
        ? this.#transferInPieces(operation, offset, buffer)
        : this.#copyLater(operation, offset, buffer, signal);
    if (over !== nothing) later.then(over, over);
    return later;
  }

  /** A request on the memory itself, if the device can reach it, or on a copy; undefined if that has to be waited for. */
  #requestAtOnce(operation: number, offset: number, buffer: Uint8Array): DeviceRequest | undefined {
    const length = buffer.byteLength;
    const arena = arenaOf(buffer);
    const at = arena === undefined ? -1 : buffer.byteOffset - arena.start;
    if (arena !== undefined && (at & this.#memoryMask) === 0) {
      const index = this.#ring.arenaIndex(arena);
      const request = this.#newRequest(operation, offset, length);
      request.arena = index;
      request.arenaOffset = at;
      return request;
    }
    const lease = length <= pieceBytes ? copyMemory().tryLease(length) : undefined;
    return lease === undefined ? undefined : this.#copyRequest(operation, offset, buffer, lease);
  }

  async #vectored(
    operation: number,
    offset: number,
    buffers: readonly Uint8Array[],
    signal: AbortSignal | undefined,
  ): Promise<void> {
    this.#admit(operation, offset, totalLength(buffers), signal);
    for (const { byteLength } of buffers) this.#checkAligned(offset, byteLength);
    await this.#inFlight.hold(async () => {
      const parts: Promise<void>[] = [];
      let at = offset;
      for (const run of this.#piecewise(buffers)) {
        parts.push(
          run.pieces === undefined
            ? this.#transfer(operation, at, run.buffer, signal)
            : this.#sendPieces(operation, at, run.length, run.pieces, signal),
        );
        at += run.length;
      }
      const bad = (await Promise.allSettled(parts)).find((outcome) => outcome.status === 'rejected');
      if (bad !== undefined) throw bad.reason;
    });
  }

  /** Puts neighbours that the device can reach together, as many as one operation takes; a foreign one stands alone. */
  *#piecewise(
    buffers: readonly Uint8Array[],
  ): Iterable<{ length: number; pieces: MemoryPiece[] } | { length: number; pieces: undefined; buffer: Uint8Array }> {
    let pieces: MemoryPiece[] = [];
    let together = 0;
    for (const buffer of buffers) {
      const length = buffer.byteLength;
      if (length === 0) continue;
      const arena = arenaOf(buffer);
      const arenaOffset = arena === undefined ? -1 : buffer.byteOffset - arena.start;
      const reachable = arena !== undefined && (arenaOffset & this.#memoryMask) === 0;
      const isFull = pieces.length === maxPieces || together + length > maxRequestBytes;
      if (pieces.length > 0 && (!reachable || isFull)) {
        yield { length: together, pieces };
        pieces = [];
        together = 0;
      }
      if (reachable) {
        pieces.push({ arena: this.#ring.arenaIndex(arena), arenaOffset, length });
        together += length;
      } else yield { length, pieces: undefined, buffer };
    }
    if (pieces.length > 0) yield { length: together, pieces };
  }

  #sendPieces(
    operation: number,
    offset: number,
    length: number,
    pieces: readonly MemoryPiece[],
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const request = this.#newRequest(operation, offset, length);
    request.pieces = pieces;
    return this.#submit(request, signal);
  }

  #copyRequest(operation: number, offset: number, buffer: Uint8Array, lease: IoLease): DeviceRequest {
    const arena = arenaOf(lease.bytes)!;
    const index = this.#indexOrRelease(lease, arena);
    const request = this.#newRequest(operation, offset, buffer.byteLength);
    request.arena = index;
    request.arenaOffset = lease.bytes.byteOffset - arena.start;
    request.lease = lease;
    if (operation === RingOperation.read) request.target = buffer;
    else lease.bytes.set(buffer);
    return request;
  }

  /** Releases the lease if the ring cannot know its memory. */
  #indexOrRelease(lease: IoLease, arena: IoArena): number {
    try {
      return this.#ring.arenaIndex(arena);
    } catch (error) {
      lease.release();
      throw error;
    }
  }

  async #copyLater(
    operation: number,
    offset: number,
    buffer: Uint8Array,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    await this.#inFlight.hold(async () => {
      if (copyMemory().usage().waiting >= maxCopiesWaiting) throw this.#tooManyCopies();
      const lease = await this.#leaseFor(operation, offset, buffer, signal);
      await this.#submit(this.#copyRequest(operation, offset, buffer, lease), signal);
    });
  }

  /** A few pieces at a time. Waits for all of them even if one fails: the buffer is the caller's again afterwards. */
  #transferInPieces(operation: number, offset: number, buffer: Uint8Array): Promise<void> {
    return this.#inFlight.hold(async () => {
      if (copyMemory().usage().waiting >= maxCopiesWaiting) throw this.#tooManyCopies();
      const length = buffer.byteLength;
      let next = 0;
      let failed = false;
      const worker = async () => {
        while (next < length && !failed) {
          const start = next;
          next += pieceBytes;
          try {
            if (buffer.byteLength !== length) throw this.#bufferGone(operation, offset, length);
            await this.#copyPiece(operation, offset + start, buffer.subarray(start, start + pieceBytes));
          } catch (error) {
            failed = true;
            throw error;
          }
        }
      };
      const outcomes = await Promise.allSettled(Array.from({ length: piecesAtOnce }, worker));
      const bad = outcomes.find((outcome) => outcome.status === 'rejected');
      if (bad !== undefined) throw bad.reason;
      this.#count(operation, length);
    });
  }

  /** Waits for memory to copy through. The caller's own memory may be gone by then. */
  async #leaseFor(
    operation: number,
    offset: number,
    buffer: Uint8Array,
    signal: AbortSignal | undefined,
  ): Promise<IoLease> {
    const length = buffer.byteLength;
    const lease = await copyMemory().leaseWhenFree(length, { signal });
    if (buffer.byteLength === length) return lease;
    lease.release();
    throw this.#bufferGone(operation, offset, length);
  }

  #bufferGone(operation: number, offset: number, length: number): HoldfastError {
    return new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${this.name}: the buffer of a ${operationNames[operation]} of ${length} at ${offset} was transferred away ` +
        'or resized meanwhile; keep it as it is until the promise has settled',
    );
  }

  #tooManyCopies(): HoldfastError {
    return new HoldfastError(
      'ERR_HOLDFAST_QUEUE_FULL',
      `${this.name}: ${maxCopiesWaiting} requests wait to be copied; wait for some to finish, or lease the memory from ioMemory()`,
    );
  }

  async #copyPiece(operation: number, offset: number, piece: Uint8Array): Promise<void> {
    const lease = await this.#leaseFor(operation, offset, piece, undefined);
    const request = this.#copyRequest(operation, offset, piece, lease);
    request.part = true;
    await this.#submit(request, undefined);
  }

  // ── Zeroing and discarding ───────────────────────────────────────────────────────────────────────────────────────

  async #zero(offset: number, length: number, mayUnmap: boolean): Promise<void> {
    if (length === 0) return;
    const { isBlockDevice } = this.#opened;
    if (mayUnmap && (await this.#tryRange(RingOperation.punchHole, offset, length))) return;
    const keeping = isBlockDevice ? RingOperation.blockZeroOut : RingOperation.zeroRange;
    if (await this.#tryRange(keeping, offset, length)) return;
    await this.#writeZerosByHand(offset, length);
  }

  /** False if the device does not do this; it is not asked again. */
  async #tryRange(operation: number, offset: number, length: number): Promise<boolean> {
    if (this.#unsupported.has(operation)) return false;
    for (let done = 0; done < length; done += rangeStepBytes) {
      try {
        await this.#send(operation, offset + done, Math.min(rangeStepBytes, length - done));
      } catch (error) {
        if (!isHoldfastError(error, 'ERR_HOLDFAST_NOT_SUPPORTED')) throw error;
        this.#unsupported.add(operation);
        return false;
      }
    }
    return true;
  }

  async #writeZerosByHand(offset: number, length: number): Promise<void> {
    const lease = await copyMemory().leaseWhenFree(Math.min(length, pieceBytes));
    try {
      lease.bytes.fill(0);
      const arena = arenaOf(lease.bytes)!;
      for (let done = 0; done < length; done += pieceBytes) {
        const request = this.#newRequest(RingOperation.write, offset + done, Math.min(pieceBytes, length - done));
        request.arena = this.#ring.arenaIndex(arena);
        request.arenaOffset = lease.bytes.byteOffset - arena.start;
        request.part = true;
        await this.#submit(request, undefined);
      }
    } finally {
      lease.release();
    }
  }

  // ── One operation ────────────────────────────────────────────────────────────────────────────────────────────────

  /** Of an operation without memory. */
  #send(operation: number, offset: number, length: number): Promise<void> {
    return this.#submit(this.#newRequest(operation, offset, length), undefined);
  }

  #newRequest(operation: number, offset: number, length: number): DeviceRequest {
    const request = this.#freeRequests.pop() ?? new DeviceRequest(this);
    request.slot = this.#slot;
    request.operation = operation;
    request.offset = offset;
    request.length = length;
    return request;
  }

  #submit(request: DeviceRequest, signal: AbortSignal | undefined): Promise<void> {
    const promise = new Promise<void>(pickUp);
    request.resolve = lastResolve;
    request.reject = lastReject;
    this.#inFlight.enter();
    this.#ring.submit(request);
    if (signal !== undefined) {
      request.signal = signal;
      request.onAbort = () => {
        if (this.#ring.withdraw(request)) request.settle(resultAborted);
        else this.#ring.cancel(request);
      };
      signal.addEventListener('abort', request.onAbort, { once: true });
    }
    return promise;
  }

  /** @internal */
  [settled](request: DeviceRequest, result: number): void {
    const { operation, length, resolve, reject } = request;
    const error = result === 0 ? this.#lateErrorOf(request) : this.#errorOf(request, result);
    if (error === undefined) {
      if (request.target !== undefined) request.target.set(request.lease!.bytes);
      if (!request.part) this.#count(operation, length);
      this.#finish(request);
      resolve();
      return;
    }
    if (error.code === 'ERR_HOLDFAST_FLUSH_FAILED') this.#flushFailure ??= error;
    if (error.code !== 'ERR_HOLDFAST_ABORTED' && error.code !== 'ERR_HOLDFAST_NOT_SUPPORTED') this.#stats.errors++;
    this.#finish(request);
    reject(error);
  }

  #finish(request: DeviceRequest): void {
    if (request.signal !== undefined) {
      request.signal.removeEventListener('abort', request.onAbort!);
      request.signal = undefined;
      request.onAbort = undefined;
    }
    if (request.lease !== undefined) {
      request.lease.release();
      request.lease = undefined;
      request.target = undefined;
    }
    request.pieces = undefined;
    request.part = false;
    request.resolve = nothing;
    request.reject = nothing;
    const { over } = request;
    request.over = nothing;
    this.#freeRequests.push(request);
    this.#inFlight.leave();
    over();
  }

  #count(operation: number, length: number): void {
    const stats = this.#stats;
    if (operation === RingOperation.read) {
      stats.reads++;
      stats.readBytes += length;
    } else if (operation <= RingOperation.writeThenFlush) {
      stats.writes++;
      stats.writtenBytes += length;
    }
  }

  /** What stands against believing a success. */
  #lateErrorOf({ operation, offset, length, target }: DeviceRequest): HoldfastError | undefined {
    if (target !== undefined && target.byteLength !== length) return this.#bufferGone(operation, offset, length);
    const makesDurable = operation === RingOperation.flush || isFuaWrite(operation);
    return makesDurable && this.#flushFailure !== undefined ? this.#flushFailed() : undefined;
  }

  #errorOf(request: DeviceRequest, result: number): HoldfastError {
    const { operation, offset, length, signal } = request;
    const where =
      operation === RingOperation.flush ? 'flush' : `${operationNames[operation]} of ${length} at ${offset}`;
    const what = `${this.name}: ${where}`;
    const errno = errnoName(result);
    if (result === resultAborted || (errno === 'ECANCELED' && signal?.aborted === true))
      return new HoldfastError('ERR_HOLDFAST_ABORTED', `${what} was cancelled`, { cause: signal?.reason });
    if (result === resultEndedEarly)
      return new HoldfastError('ERR_HOLDFAST_IO', `${what} met the device's end; it has become smaller: open it again`);
    const losesWrites = operation === RingOperation.flush || (isFuaWrite(operation) && !noSpace.has(errno));
    if (losesWrites)
      return new HoldfastError(
        'ERR_HOLDFAST_FLUSH_FAILED',
        `${what} failed: ${errno}; what was written since the last good flush counts as lost: ` +
          'check the device, open it again and restore from another copy',
        { errno },
      );
    if (noSpace.has(errno))
      return new HoldfastError('ERR_HOLDFAST_NO_SPACE', `${what} failed: ${errno}; free space below it`, { errno });
    if (operation > RingOperation.flush && notSupported.has(errno))
      return new HoldfastError('ERR_HOLDFAST_NOT_SUPPORTED', `${what}: the device does not do this`, { errno });
    return new HoldfastError('ERR_HOLDFAST_IO', `${what} failed: ${errno}; check the device and the kernel's log`, {
      errno,
    });
  }
}

// ── Opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const assumedBlockBytes = 4096;
const plainBlockBytes = 512;
const preferredIoBytes = 128 * 1024;

function badArgument(message: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
}

/**
 * Opens a block device or a file for direct I/O; see DirectDeviceOptions.
 *
 * @throws HoldfastError ERR_HOLDFAST_NOT_FOUND, _ACCESS, _READ_ONLY, _DEVICE_BUSY (mounted, or held by another opening),
 *   _DEVICE_EXISTS (`create`), _NO_SPACE, _NOT_SUPPORTED (`direct: 'required'`, an engine that cannot be had),
 *   _BAD_ARGUMENT (neither device nor file; for writing, a size that is not whole blocks), _IO.
 */
export async function openDirectDevice(path: string, options: DirectDeviceOptions = {}): Promise<DirectDevice> {
  checkOptions(path, options);
  const ring = sharedRing(options);
  if (options.create !== undefined) await createFile(path, options.create.sizeBytes);
  try {
    return await openExisting(path, options, ring);
  } catch (error) {
    if (options.create !== undefined) await unlink(path).catch(nothing);
    throw error;
  }
}

function checkOptions(path: string, options: DirectDeviceOptions): void {
  const { direct = 'auto', create } = options;
  if (!['auto', 'required', 'off'].includes(direct))
    throw badArgument(`direct is "${String(direct)}"; it must be auto, required or off`);
  if (create === undefined) return;
  if (options.readOnly === true) throw badArgument(`${path}: create and readOnly exclude each other`);
  const { sizeBytes } = create;
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % assumedBlockBytes !== 0)
    throw badArgument(`${path}: create.sizeBytes ${sizeBytes} must be a multiple of ${assumedBlockBytes}, not zero`);
}

/** The file's name is durable when this returns. */
async function createFile(path: string, sizeBytes: number): Promise<void> {
  let made = false;
  try {
    await using file = await open(path, 'wx', 0o600);
    made = true;
    await file.truncate(sizeBytes);
    await file.sync();
    await using folder = await open(dirname(path), 'r');
    await folder.sync();
  } catch (error) {
    if (made) await unlink(path).catch(nothing);
    throw systemError(path, 'creating it', error);
  }
}

async function openExisting(path: string, options: DirectDeviceOptions, ring: Ring): Promise<DirectDevice> {
  const readOnly = options.readOnly ?? false;
  const exclusive = options.exclusive ?? !readOnly;
  const direct = options.direct ?? 'auto';
  const found = await stat(path).catch((error: unknown) => {
    throw systemError(path, 'opening it', error);
  });
  if (!found.isBlockDevice() && !found.isFile())
    throw badArgument(`${path} is neither a block device nor a regular file; name one of these`);
  const isBlockDevice = found.isBlockDevice();
  const flags =
    (readOnly ? constants.O_RDONLY : constants.O_RDWR) | (isBlockDevice && exclusive ? constants.O_EXCL : 0);
  const offered = direct === 'off' ? notDirect('switched off by the option direct') : await tryDirect(path, flags);
  const access = readOnly && found.isFile() ? withOddEnd(found.size, offered) : offered;
  if (direct === 'required' && !access.direct)
    throw new HoldfastError('ERR_HOLDFAST_NOT_SUPPORTED', `${path}: ${access.reason}; use direct: 'auto'`);
  const handle = await openFile(path, access.direct ? flags | constants.O_DIRECT : flags);
  try {
    if (!isBlockDevice && exclusive) lock(path, handle, !readOnly);
    const geometry = await readGeometry(path, handle, isBlockDevice, access.blockBytes, readOnly ? undefined : ring);
    const opened: Opened = {
      handle,
      isBlockDevice,
      direct: access.direct,
      directReason: access.reason,
      memoryAlignmentBytes: access.memoryBytes,
      flushesForFua: isBlockDevice && geometry.volatileCache && !(await hasFua(handle)),
      geometry,
    };
    return new DirectDevice(path, readOnly, opened, ring);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function openFile(path: string, flags: number): Promise<FileHandle> {
  try {
    return await open(path, flags);
  } catch (error) {
    throw systemError(path, 'opening it', error);
  }
}

interface Access {
  readonly direct: boolean;
  readonly reason: string;
  readonly blockBytes: number;
  readonly memoryBytes: number;
}

function notDirect(reason: string): Access {
  return { direct: false, reason, blockBytes: plainBlockBytes, memoryBytes: 1 };
}

/** A file that does not end at a block's border can still be read: through the page cache, byte by byte. */
function withOddEnd(sizeBytes: number, access: Access): Access {
  if (sizeBytes % access.blockBytes === 0) return access;
  const reason = access.direct ? `its ${sizeBytes} bytes are not whole blocks of ${access.blockBytes}` : access.reason;
  return { ...notDirect(reason), blockBytes: 1 };
}

/** Whether the file can be read past the page cache, shown by doing it. */
async function tryDirect(path: string, flags: number): Promise<Access> {
  let handle: FileHandle;
  try {
    handle = await open(path, flags | constants.O_DIRECT);
  } catch (error) {
    if (errnoOf(error) !== 'EINVAL') throw systemError(path, 'opening it', error);
    return notDirect('the file system has no direct I/O (open with O_DIRECT says EINVAL)');
  }
  try {
    const { blockBytes, memoryBytes } = await directAlignment(handle);
    if (blockBytes === 0) return notDirect('the file system has no direct I/O for this file (statx says so)');
    using lease = await copyMemory().leaseWhenFree(blockBytes);
    await handle.read(lease.bytes, 0, blockBytes, 0);
    return { direct: true, reason: 'the file system offers it', blockBytes, memoryBytes };
  } catch (error) {
    if (errnoOf(error) !== 'EINVAL') throw systemError(path, 'reading its first block', error);
    return notDirect('the file system refuses a direct read (EINVAL)');
  } finally {
    await handle.close();
  }
}

/** What the kernel tells; before kernel 6.1, what the disk below needs. */
async function directAlignment(handle: FileHandle): Promise<{ blockBytes: number; memoryBytes: number }> {
  const { fd } = handle;
  const found = await handle.stat({ bigint: true });
  if (found.isBlockDevice()) {
    const { logicalBlockBytes } = native().identify.deviceGeometry(fd);
    return { blockBytes: logicalBlockBytes, memoryBytes: Math.min(logicalBlockBytes, 4096) };
  }
  const told = native().ring.directAlignment(fd);
  if (told !== undefined)
    return { blockBytes: told.offsetBytes === 0 ? 0 : Math.max(512, told.offsetBytes), memoryBytes: told.memoryBytes };
  const below = Number(await readQueue(found.dev, 'logical_block_size'));
  const blockBytes = Number.isInteger(Math.log2(below)) ? Math.max(512, below) : assumedBlockBytes;
  return { blockBytes, memoryBytes: blockBytes };
}

function lock(path: string, handle: FileHandle, forWriting: boolean): void {
  const result = native().ring.lockFile(handle.fd, forWriting);
  if (result === 0) return;
  const errno = errnoName(-result);
  if (errno === 'EAGAIN' || errno === 'EACCES')
    throw new HoldfastError(
      'ERR_HOLDFAST_DEVICE_BUSY',
      `${path} is held by another program or another opening; close that first (lsof ${path} shows who)`,
      { errno },
    );
  throw new HoldfastError('ERR_HOLDFAST_NOT_SUPPORTED', `${path} cannot be locked (${errno}); use exclusive: false`, {
    errno,
  });
}

/** An attribute of the disk's queue; undefined where the kernel does not tell. A partition asks its disk. */
async function readQueue(device: bigint, attribute: string): Promise<string | undefined> {
  const folder = blockFolder('/sys', device);
  for (const queue of ['queue', '../queue']) {
    try {
      return (await readFile(`${folder}/${queue}/${attribute}`, 'utf8')).trim();
    } catch {
      // The next place.
    }
  }
  return undefined;
}

async function readGeometry(
  path: string,
  handle: FileHandle,
  isBlockDevice: boolean,
  blockBytes: number,
  ring: Ring | undefined,
): Promise<Geometry> {
  const geometry = isBlockDevice ? await readBlockGeometry(handle) : await readFileGeometry(handle, blockBytes, ring);
  const { sizeBytes, logicalBlockBytes } = geometry;
  if (sizeBytes === 0) throw badArgument(`${path} is empty; give it a size (truncate -s), or remove it and use create`);
  if (sizeBytes % logicalBlockBytes !== 0)
    throw badArgument(
      `${path} has ${sizeBytes} bytes, which are not whole blocks of ${logicalBlockBytes}; ` +
        `make it a multiple (truncate -s %${logicalBlockBytes}, on a copy if the end must stay)`,
    );
  return geometry;
}

async function readBlockGeometry(handle: FileHandle): Promise<Geometry> {
  const told = native().identify.deviceGeometry(handle.fd);
  const { rdev } = await handle.stat({ bigint: true });
  const physicalBlockBytes = Math.max(told.physicalBlockBytes, told.logicalBlockBytes);
  // Where the kernel does not tell: ask for it and see, and flush.
  return {
    sizeBytes: told.sizeBytes,
    logicalBlockBytes: told.logicalBlockBytes,
    physicalBlockBytes,
    optimalIoBytes: roundUp(told.optimalIoBytes || preferredIoBytes, physicalBlockBytes),
    rotational: told.rotational,
    discard: (await readQueue(rdev, 'discard_max_bytes')) !== '0',
    writeZeroes: (await readQueue(rdev, 'write_zeroes_max_bytes')) !== '0',
    volatileCache: (await readQueue(rdev, 'write_cache')) !== 'write through',
  };
}

/** Where the kernel does not tell, it is asked for it as if there were. */
async function hasFua(handle: FileHandle): Promise<boolean> {
  const { rdev } = await handle.stat({ bigint: true });
  return (await readQueue(rdev, 'fua')) !== '0';
}

async function readFileGeometry(handle: FileHandle, blockBytes: number, ring: Ring | undefined): Promise<Geometry> {
  const found = await handle.stat({ bigint: true });
  const sizeBytes = Number(found.size);
  const preferred = Number(found.blksize);
  const isPowerOfTwo = Number.isInteger(Math.log2(preferred)) && preferred <= 65_536;
  const physicalBlockBytes = Math.max(blockBytes, isPowerOfTwo ? preferred : assumedBlockBytes);
  const punches = ring !== undefined && (await canPunchHoles(ring, handle.fd, roundUp(sizeBytes, physicalBlockBytes)));
  return {
    sizeBytes,
    logicalBlockBytes: blockBytes,
    physicalBlockBytes,
    optimalIoBytes: roundUp(preferredIoBytes, physicalBlockBytes),
    rotational: (await readQueue(found.dev, 'rotational')) === '1',
    discard: punches,
    writeZeroes: punches,
    volatileCache: true,
  };
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

class ProbeRequest extends RingRequest {
  readonly over: Promise<number>;
  #resolve: (result: number) => void = nothing;

  constructor() {
    super();
    this.over = new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  settle(result: number): void {
    this.#resolve(result);
  }
}

/** Asked beyond the file's end, where there is nothing to lose. */
async function canPunchHoles(ring: Ring, fd: number, offset: number): Promise<boolean> {
  const slot = ring.addFile(fd);
  try {
    const request = new ProbeRequest();
    request.operation = RingOperation.punchHole;
    request.slot = slot;
    request.offset = offset;
    request.length = assumedBlockBytes;
    ring.submit(request);
    return (await request.over) === 0;
  } finally {
    ring.removeFile(slot);
  }
}
