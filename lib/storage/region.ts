/**
 * Region: a file mapped into memory, whose bytes a program reads and writes directly and makes durable by `persist`.
 *
 * Invariants:
 * - `persist` resolved: the range, as it was when it was called, survives a power cut. By which means the region says
 *   (`PersistMeans`).
 * - A persist that failed is never retried: the kernel has dropped what it could not write. From then on every persist
 *   of the region fails.
 * - The file is as long as the region and allocated in full, so that a store does not meet a full disk. It is locked
 *   against a second Region, in this process or another, as long as this one is open.
 * - No use after unmap: `close` takes the memory out of every view of it (they have no bytes then). Memory that was
 *   moved away before (`transfer()`) stays mapped until its new owner has let it go.
 * - `grow` maps the file anew, all of it, and takes the old memory out of every view as `close` does. Up to then both
 *   show the same bytes.
 *
 * Whoever hands a part of `bytes` to an asynchronous system call waits for its end before `grow` and `close`.
 */
import { constants } from 'node:buffer';
import { assert, HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';
import { type NativeOpenRegion, native } from '../native.ts';
import { SharedRun } from './shared-run.ts';

/** How a file is mapped. */
export interface RegionOptions {
  /** Rounded up to whole pages; a shorter file grows. Without it: as long as the file is. */
  readonly sizeBytes?: number;
  /** Make the file if it does not exist (mode 0600). Needs `sizeBytes`. Default false. */
  readonly create?: boolean;
  /**
   * `auto` (default): `map-sync` where the file allows it, else `msync`. Or one of them, or an error. `cache-flush` is
   * never chosen by itself.
   */
  readonly means?: 'auto' | PersistMeans;
}

/**
 * How `persist` makes bytes durable:
 * - `map-sync`: the file is on persistent memory (DAX) and mapped with MAP_SYNC; the processor's caches are written back
 *   (CLWB, CLFLUSHOPT, CLFLUSH; DC CVAP on arm64), without a system call.
 * - `msync`: the page cache is written to the disk.
 * - `cache-flush`: as `map-sync`, but the kernel vouches for nothing: the caller does, because the memory below has a
 *   battery, say. On any other memory nothing survives a power cut.
 */
export type PersistMeans = 'map-sync' | 'msync' | 'cache-flush';

/** The longest region, in bytes: one buffer of this version of Node (4 GiB in Node 20). */
export const regionBytesMax: number = constants.MAX_LENGTH;

/**
 * Maps a file.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT (options), ERR_HOLDFAST_OUT_OF_RANGE (larger than `regionBytesMax`),
 *   ERR_HOLDFAST_DEVICE_BUSY (mapped elsewhere), ERR_HOLDFAST_NO_SPACE, ERR_HOLDFAST_NOT_SUPPORTED (this runtime has no
 *   external buffers; not a regular file), ERR_HOLDFAST_IO (anything else, with `errno`).
 */
export async function openRegion(path: string, options: RegionOptions = {}): Promise<Region> {
  const { sizeBytes, create = false, means = 'auto' } = options;
  checkOptions(path, sizeBytes, create, means);
  let opened: NativeOpenRegion;
  try {
    opened = await native().region.open(path, sizeBytes ?? 0, regionBytesMax, create, means);
  } catch (cause) {
    throw mapError(path, cause);
  }
  return new Region(path, opened);
}

function checkOptions(path: string, sizeBytes: number | undefined, create: boolean, means: string): void {
  if (path === '' || path.includes('\0') || Buffer.byteLength(path) > 4095) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'the path of a region has 1 to 4095 bytes and no NUL');
  }
  if (!['auto', 'map-sync', 'msync', 'cache-flush'].includes(means)) {
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `means is "${means}"; it must be auto, map-sync, msync or cache-flush`,
    );
  }
  if (sizeBytes !== undefined) checkSize(sizeBytes);
  if (sizeBytes === undefined && create) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'a region that is created needs a size; give sizeBytes');
  }
}

function checkSize(sizeBytes: number): void {
  if (!Number.isInteger(sizeBytes) || sizeBytes < 1) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a region has at least one byte, not ${sizeBytes}`);
  }
  if (sizeBytes > regionBytesMax) {
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `a region has at most ${regionBytesMax} bytes, not ${sizeBytes}`,
    );
  }
}

const mapErrors: { readonly [errno: string]: readonly [HoldfastErrorCode, string] } = {
  EAGAIN: ['ERR_HOLDFAST_DEVICE_BUSY', 'it is open as a region already; close that one first'],
  EDQUOT: ['ERR_HOLDFAST_NO_SPACE', 'the quota is used up; make room'],
  EFBIG: ['ERR_HOLDFAST_OUT_OF_RANGE', `it is too large; the limit is ${regionBytesMax} bytes here`],
  EINVAL: ['ERR_HOLDFAST_BAD_ARGUMENT', 'the file is empty; give sizeBytes'],
  ENODEV: ['ERR_HOLDFAST_NOT_SUPPORTED', 'it is not a regular file; a region needs one'],
  ENOENT: ['ERR_HOLDFAST_IO', 'there is no such file; check the path, or give create: true'],
  ENOSPC: ['ERR_HOLDFAST_NO_SPACE', 'the file system is full; make room'],
};

/** By the call that says ENOTSUP; `napi`: the runtime itself. */
const notSupported = {
  mmap: 'neither it nor this processor offers persistent memory; use means: auto',
  fallocate: 'its file system cannot allocate space in advance; use another one',
  napi: 'this runtime does not allow memory of others in a buffer; use Node.js',
};

function mapError(path: string, cause: unknown): HoldfastError {
  const message = cause instanceof Error ? cause.message : String(cause);
  const errno = errnoOf(cause);
  let [code, text]: readonly [HoldfastErrorCode, string] = mapErrors[errno ?? ''] ?? ['ERR_HOLDFAST_IO', message];
  if (errno === 'ENOTSUP') {
    const call = message.startsWith('mmap') ? 'mmap' : message.startsWith('fallocate') ? 'fallocate' : 'napi';
    [code, text] = ['ERR_HOLDFAST_NOT_SUPPORTED', notSupported[call]];
  }
  return new HoldfastError(code, `${path} cannot be mapped: ${text}`, { cause, ...(errno && { errno }) });
}

const wordBytes = 8;

function viewOf(opened: NativeOpenRegion): Uint8Array<ArrayBuffer> {
  assert(opened.buffer.byteLength === opened.sizeBytes, 'the buffer of a region spans all of it');
  return new Uint8Array(opened.buffer);
}

function errnoOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' && /^E[A-Z0-9]+$/.test(code) ? code : undefined;
}

/** Made by `openRegion`. */
export class Region implements AsyncDisposable {
  readonly path: string;
  readonly means: PersistMeans;
  #handle: object;
  #sizeBytes: number;
  #bytes: Uint8Array<ArrayBuffer>;
  readonly #persists = new SharedRun(() => this.#persistAsked());
  /** What the next run of `#persists` covers. */
  #askedStart = Number.POSITIVE_INFINITY;
  #askedEnd = 0;
  #failure: HoldfastError | undefined;
  readonly #growths = new SharedRun(() => this.#growAsAsked());
  /** What the next run of `#growths` makes of it. */
  #askedSizeBytes = 0;
  #closing: Promise<void> | undefined;

  /** @internal */
  constructor(path: string, opened: NativeOpenRegion) {
    this.path = path;
    this.means = opened.means;
    this.#handle = opened.handle;
    this.#sizeBytes = opened.sizeBytes;
    this.#bytes = viewOf(opened);
  }

  /**
   * For native code that uses the memory too: good until the region grows or is closed.
   *
   * @internal
   */
  get handle(): object {
    this.#checkOpen();
    return this.#handle;
  }

  /** Whole pages. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /**
   * The memory. The same view until the region grows.
   *
   * @throws HoldfastError ERR_HOLDFAST_CLOSED, or ERR_HOLDFAST_DETACHED if it was transferred away.
   */
  get bytes(): Uint8Array<ArrayBuffer> {
    this.#checkOpen();
    if (this.#bytes.length === 0) {
      throw new HoldfastError(
        'ERR_HOLDFAST_DETACHED',
        `the memory of the region ${this.path} was transferred to another buffer; use that one, or open it again`,
      );
    }
    return this.#bytes;
  }

  /**
   * Makes `length` bytes from `offset` durable: resolved, they survive a power cut.
   *
   * @throws HoldfastError ERR_HOLDFAST_OUT_OF_RANGE, ERR_HOLDFAST_CLOSED, or ERR_HOLDFAST_FLUSH_FAILED: what was written
   *   since the last good persist counts as lost, and so does this region until it is opened again.
   */
  async persist(offset = 0, length = this.sizeBytes - offset): Promise<void> {
    this.#checkOpen();
    this.#checkRange(offset, length);
    if (this.#failure) throw this.#failure;
    if (native().region.persistDirect(this.#handle, offset, length)) return;
    this.#askedStart = Math.min(this.#askedStart, offset);
    this.#askedEnd = Math.max(this.#askedEnd, offset + length);
    await this.#persists.run();
  }

  /**
   * Copies `bytes` in at `offset` and makes them durable. The copy is made before this returns. On persistent memory it
   * goes past the processor's caches, which is faster than to set `bytes` and `persist`.
   *
   * @throws HoldfastError as `persist` does.
   */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#checkOpen();
    this.#checkRange(offset, bytes.byteLength);
    if (this.#failure) throw this.#failure;
    if (native().region.write(this.#handle, offset, bytes)) return;
    await this.persist(offset, bytes.byteLength);
  }

  /**
   * Stores 8 bytes at `offset`, a multiple of 8, as one: who reads them, here, in another process or after a power cut,
   * finds the old value or the new one, never a part of each. Little-endian, as Atomics on a BigUint64Array over the
   * memory. Resolved, they are durable. With `msync` a power cut can tear them only if the disk tears a sector.
   *
   * What the value stands for is made durable first:
   *
   * ```ts
   * await region.write(8192, record);
   * await region.publish(0, 8192n);
   * ```
   *
   * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT (not a multiple of 8, not 64 bits), ERR_HOLDFAST_DETACHED, and as
   *   `persist` does.
   */
  async publish(offset: number, value: bigint): Promise<void> {
    const { buffer } = this.bytes;
    this.#checkRange(offset, wordBytes);
    if (offset % wordBytes !== 0 || BigInt.asUintN(64, value) !== value) {
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `${value} cannot be published at ${offset}; the offset is a multiple of 8, the value has 64 bits and no sign`,
      );
    }
    if (this.#failure) throw this.#failure;
    Atomics.store(new BigUint64Array(buffer, offset, 1), 0, value);
    await this.persist(offset, wordBytes);
  }

  /**
   * Makes the region, and its file, at least `sizeBytes` long; the new bytes are zeros. Durable when resolved. `bytes` is
   * a new view from then on, and the old one has no bytes. Does nothing if the region is as long already. What is asked
   * for at once is done, and fails, as one.
   *
   * @throws HoldfastError as `openRegion` does, with nothing changed; but if the disk failed to take what was written
   *   before, every later persist fails.
   */
  async grow(sizeBytes: number): Promise<void> {
    this.#checkOpen();
    checkSize(sizeBytes);
    this.#askedSizeBytes = Math.max(this.#askedSizeBytes, sizeBytes);
    await this.#growths.run();
  }

  async #growAsAsked(): Promise<void> {
    const sizeBytes = this.#askedSizeBytes;
    this.#askedSizeBytes = 0;
    if (sizeBytes <= this.#sizeBytes) return;
    let grown: NativeOpenRegion;
    try {
      grown = await native().region.grow(this.#handle, sizeBytes, regionBytesMax);
    } catch (cause) {
      throw mapError(this.path, cause);
    }
    const outgrown = this.#handle;
    this.#handle = grown.handle;
    this.#sizeBytes = grown.sizeBytes;
    this.#bytes = viewOf(grown);
    // What is being persisted by the old mapping keeps that one until it is over.
    native().region.close(outgrown);
  }

  async #persistAsked(): Promise<void> {
    if (this.#failure) throw this.#failure;
    const start = this.#askedStart;
    const length = this.#askedEnd - start;
    this.#askedStart = Number.POSITIVE_INFINITY;
    this.#askedEnd = 0;
    await native()
      .region.persist(this.#handle, start, length)
      .catch((cause: unknown) => this.#fail(cause));
  }

  /** Waits for what is being persisted and for growth, then takes the memory back. Persists nothing by itself. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.#growths.idle();
    await this.#persists.idle();
    native().region.close(this.#handle);
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #checkOpen(): void {
    if (this.#closing)
      throw new HoldfastError('ERR_HOLDFAST_CLOSED', `the region ${this.path} is closed; open it again`);
  }

  #checkRange(offset: number, length: number): void {
    const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
    if (whole && offset >= 0 && length >= 0 && offset + length <= this.sizeBytes) return;
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `${length} bytes from ${offset} are not inside the region ${this.path} of ${this.sizeBytes} bytes`,
    );
  }

  #fail(cause: unknown): never {
    const errno = errnoOf(cause);
    this.#failure ??= new HoldfastError(
      'ERR_HOLDFAST_FLUSH_FAILED',
      `the region ${this.path} could not be made durable (${errno ?? cause}): what was written since the last good ` +
        'persist counts as lost; check the device below, then open the region again and restore it',
      { cause, ...(errno && { errno }) },
    );
    throw this.#failure;
  }
}
