/**
 * Scans an open file or block device by native threads of its own (native/scan): no JavaScript runs per block or per
 * read, only per batch.
 *
 * The file is lent by its device. When the device is being closed, the scan lets go of the file by itself, whether or
 * not anybody asks it for its next batch.
 */
import { availableParallelism } from 'node:os';
import { HoldfastError } from '../base/errors.ts';
import { type NativeScanHandle, native } from '../native.ts';
import type { BlockDevice } from './block-device.ts';
import { crc32cKernel } from './checksum.ts';
import { digestBytes } from './digest.ts';
import { type FileLender, type LentFile, lendFile } from './direct-device.ts';
import { type EngineReport, errnoName, styles } from './ring.ts';
import type { ScanEngine, ScanPlan } from './scan-plan.ts';

/** Finished batches that may wait to be taken. */
const batchesAhead = 4;
/** Threads for what takes longer to compute than to read. */
const lanesMax = 4;
/** Of the native side, beside errnos. */
const resultEndedEarly = 1;
const resultDigestFailed = 2;

export class FileScan implements ScanEngine {
  readonly #device: BlockDevice & FileLender;
  readonly #plan: ScanPlan;
  readonly #signal: AbortSignal | undefined;
  #bytesPerSecond: number;
  #handle: NativeScanHandle | undefined;
  #file: LentFile | undefined;
  #stopped: HoldfastError | undefined;
  #finished: Promise<void> | undefined;
  /** Each looks again after every call from the native side, which comes after every change there. */
  readonly #waiters: (() => void)[] = [];

  constructor(
    device: BlockDevice & FileLender,
    plan: ScanPlan,
    bytesPerSecond: number,
    signal: AbortSignal | undefined,
  ) {
    this.#device = device;
    this.#plan = plan;
    this.#bytesPerSecond = bytesPerSecond;
    this.#signal = signal;
  }

  doneBytes(): number {
    return this.#handle === undefined ? 0 : native().scan.doneBytes(this.#handle);
  }

  setRate(bytesPerSecond: number): void {
    this.#bytesPerSecond = bytesPerSecond;
    if (this.#handle !== undefined) native().scan.setRate(this.#handle, bytesPerSecond);
  }

  async *batches(): AsyncGenerator<Uint8Array, void, void> {
    const plan = this.#plan;
    const scan = native().scan;
    const handle = this.#start();
    const onAbort = () => this.#stop(this.#aborted());
    this.#signal?.addEventListener('abort', onAbort, { once: true });
    try {
      for (let batch = 0; batch < plan.batches; batch++) {
        const checksums = await this.#next(handle, batch);
        if (this.#stopped !== undefined) throw this.#stopped;
        yield checksums;
        if (checksums.byteLength < plan.checksumBytesOf(batch)) throw this.#failure(handle);
      }
    } finally {
      this.#signal?.removeEventListener('abort', onAbort);
      scan.cancel(handle);
      await this.#finish(handle);
    }
  }

  #start(): NativeScanHandle {
    const { offset, length, blockBytes, pieceBlocks, batchPieces, depth, algorithm, key } = this.#plan;
    crc32cKernel(); // Selects the kernel that the environment asks for, before the threads use it.
    const file = this.#device[lendFile](() => {
      this.#stop(new HoldfastError('ERR_HOLDFAST_CLOSED', `${this.#device.name} was closed while it was scanned`));
      if (this.#handle !== undefined) void this.#finish(this.#handle);
    });
    try {
      this.#file = file;
      const { fd, alignmentBytes, engine } = file;
      this.#handle = native().scan.start(
        {
          ...{ fd, offset, length, blockBytes, pieceBlocks, batchPieces, depth, alignmentBytes, algorithm, key },
          batches: batchesAhead,
          lanes: algorithm === 'crc32c' ? 1 : Math.min(lanesMax, availableParallelism()),
          engine: engineNumber(engine),
          bytesPerSecond: this.#bytesPerSecond,
        },
        () => this.#onChange(),
      );
    } catch (cause) {
      file.release();
      throw new HoldfastError(
        'ERR_HOLDFAST_IO',
        `${this.#device.name}: the scan could not be started; it needs a few threads and a few MiB of memory`,
        { cause },
      );
    }
    native().scan.keepAlive(this.#handle, false);
    return this.#handle;
  }

  /** A batch, also the short one before a failure. Throws the failure when that has been given. */
  async #next(handle: NativeScanHandle, batch: number): Promise<Uint8Array> {
    const scan = native().scan;
    const checksums = new Uint8Array(this.#plan.checksumBytesOf(batch));
    while (this.#stopped === undefined) {
      // In this order: what was finished before the end can be taken after it.
      const ended = scan.ended(handle);
      const blocks = scan.take(handle, checksums);
      if (blocks > 0) {
        const bytes = Math.min(blocks * this.#plan.blockBytes, this.#plan.rangeOf(batch).length);
        this.#file?.count(Math.ceil(bytes / this.#plan.pieceBytes), bytes);
        return checksums.subarray(0, blocks * digestBytes[this.#plan.algorithm]);
      }
      if (ended) throw this.#failure(handle);
      await this.#change(handle);
    }
    throw this.#stopped;
  }

  /** Waits until something has happened. Meanwhile the event loop stays alive. */
  #change(handle: NativeScanHandle): Promise<void> {
    native().scan.keepAlive(handle, true);
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  #onChange(): void {
    if (this.#handle !== undefined) native().scan.keepAlive(this.#handle, false);
    for (const resume of this.#waiters.splice(0)) resume();
  }

  #stop(reason: HoldfastError): void {
    this.#stopped ??= reason;
    if (this.#handle !== undefined) native().scan.cancel(this.#handle);
    this.#onChange();
  }

  /** Waits for its end, and gives the file back. */
  #finish(handle: NativeScanHandle): Promise<void> {
    this.#finished ??= (async () => {
      while (!native().scan.ended(handle)) await this.#change(handle);
      native().scan.close(handle);
      this.#file?.release();
    })();
    return this.#finished;
  }

  #aborted(): HoldfastError {
    const cause: unknown = this.#signal?.reason;
    return new HoldfastError('ERR_HOLDFAST_ABORTED', `the scan of ${this.#device.name} was cancelled`, { cause });
  }

  #failure(handle: NativeScanHandle): HoldfastError {
    const { name } = this.#device;
    const failure = native().scan.failure(handle);
    if (failure === undefined) return new HoldfastError('ERR_HOLDFAST_INTERNAL', `the scan of ${name} ended too early`);
    const where = `${name}: read of ${failure.length} at ${failure.offset}`;
    if (failure.result === resultEndedEarly)
      return new HoldfastError(
        'ERR_HOLDFAST_IO',
        `${where} met the device's end; it has become smaller: open it again`,
      );
    if (failure.result === resultDigestFailed)
      return new HoldfastError('ERR_HOLDFAST_INTERNAL', `${name}: OpenSSL failed to compute a ${this.#plan.algorithm}`);
    const errno = errnoName(failure.result);
    return new HoldfastError(
      'ERR_HOLDFAST_IO',
      `${where} failed: ${errno}; check the device and the kernel's log. A scan can go on behind it, with offset`,
      { errno },
    );
  }
}

/** As the native side numbers them: the engine of the device's own ring, and io_uring's completions as they come in there. */
function engineNumber({ engine, features }: EngineReport): number {
  if (engine === 'threads') return 0;
  return (
    1 +
    Math.max(
      0,
      styles.findIndex((style) => features.includes(style)),
    )
  );
}
