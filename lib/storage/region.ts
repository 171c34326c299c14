/**
 * Region: a file mapped into memory, whose bytes a program reads and writes directly and makes durable by `persist`.
 *
 * Invariants:
 * - `persist` resolved: the range, as it was when it was called, survives a power cut. By which means the region says:
 *   `map-sync` (persistent memory: the processor's caches are written back) or `msync` (the page cache is).
 * - A persist that failed is never retried: the kernel has dropped what it could not write. From then on every persist
 *   of the region fails.
 * - The file is as long as the region and allocated in full, so that a store does not meet a full disk. It is locked
 *   against a second Region, in this process or another, as long as this one is open.
 * - No use after unmap: `close` takes the memory out of every view of it (they have no bytes then). Memory that was
 *   moved away before (`transfer()`) stays mapped until its new owner has let it go.
 *
 * Whoever hands a part of `bytes` to an asynchronous system call waits for its end before `close`.
 */
import { constants } from 'node:buffer';
import { assert, HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';
import { type NativeOpenRegion, native } from '../native.ts';
import { SharedRun } from './shared-run.ts';

export interface RegionOptions {
  /** Rounded up to whole pages; a shorter file grows. Without it: as long as the file is. */
  readonly sizeBytes?: number;
  /** Make the file if it does not exist (mode 0600). Needs `sizeBytes`. Default false. */
  readonly create?: boolean;
}

/** How `persist` makes bytes durable. */
export type PersistMeans = 'map-sync' | 'msync';

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
  const { sizeBytes, create = false } = options;
  checkOptions(path, sizeBytes, create);
  let opened: NativeOpenRegion;
  try {
    opened = await native().region.open(path, sizeBytes ?? 0, regionBytesMax, create);
  } catch (cause) {
    throw openError(path, cause);
  }
  return new Region(path, opened);
}

function checkOptions(path: string, sizeBytes: number | undefined, create: boolean): void {
  if (path === '' || path.includes('\0') || Buffer.byteLength(path) > 4095) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'the path of a region has 1 to 4095 bytes and no NUL');
  }
  if (sizeBytes !== undefined && (!Number.isInteger(sizeBytes) || sizeBytes < 1)) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a region has at least one byte, not ${sizeBytes}`);
  }
  if (sizeBytes !== undefined && sizeBytes > regionBytesMax) {
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `a region has at most ${regionBytesMax} bytes, not ${sizeBytes}`,
    );
  }
  if (sizeBytes === undefined && create) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'a region that is created needs a size; give sizeBytes');
  }
}

const openErrors: { readonly [errno: string]: readonly [HoldfastErrorCode, string] } = {
  EAGAIN: ['ERR_HOLDFAST_DEVICE_BUSY', 'it is open as a region already; close that one first'],
  EDQUOT: ['ERR_HOLDFAST_NO_SPACE', 'the quota is used up; make room'],
  EFBIG: ['ERR_HOLDFAST_OUT_OF_RANGE', `it is too large; the limit is ${regionBytesMax} bytes here`],
  EINVAL: ['ERR_HOLDFAST_BAD_ARGUMENT', 'the file is empty; give sizeBytes'],
  ENODEV: ['ERR_HOLDFAST_NOT_SUPPORTED', 'it is not a regular file; a region needs one'],
  ENOENT: ['ERR_HOLDFAST_IO', 'there is no such file; check the path, or give create: true'],
  ENOSPC: ['ERR_HOLDFAST_NO_SPACE', 'the file system is full; make room'],
  ENOTSUP: ['ERR_HOLDFAST_NOT_SUPPORTED', 'this runtime does not allow memory of others in a buffer; use Node.js'],
  EOPNOTSUPP: ['ERR_HOLDFAST_NOT_SUPPORTED', 'its file system cannot allocate space in advance; use another one'],
};

function openError(path: string, cause: unknown): HoldfastError {
  const errno = errnoOf(cause);
  const known = errno === undefined ? undefined : openErrors[errno];
  const [code, text] = known ?? ['ERR_HOLDFAST_IO', cause instanceof Error ? cause.message : String(cause)];
  return new HoldfastError(code, `${path} cannot be mapped: ${text}`, { cause, ...(errno && { errno }) });
}

function errnoOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' && /^E[A-Z0-9]+$/.test(code) ? code : undefined;
}

/** Made by `openRegion`. */
export class Region implements AsyncDisposable {
  readonly path: string;
  readonly sizeBytes: number;
  readonly means: PersistMeans;
  readonly #handle: object;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #persists = new SharedRun(() => this.#persistAsked());
  /** What the next run of `#persists` covers. */
  #askedStart = Number.POSITIVE_INFINITY;
  #askedEnd = 0;
  #failure: HoldfastError | undefined;
  #closing: Promise<void> | undefined;

  constructor(path: string, opened: NativeOpenRegion) {
    assert(opened.buffer.byteLength === opened.sizeBytes, 'the buffer of a region spans all of it');
    this.path = path;
    this.sizeBytes = opened.sizeBytes;
    this.means = opened.means;
    this.#handle = opened.handle;
    this.#bytes = new Uint8Array(opened.buffer);
  }

  /**
   * The memory. Always the same view.
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

  /** Waits for what is being persisted, then takes the memory back. Persists nothing by itself. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#persists.idle().then(() => native().region.close(this.#handle));
    return this.#closing;
  }

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
