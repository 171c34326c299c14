/**
 * Scan: the checksum of every block of a range of a device, in order, batch by batch.
 *
 * Where the device has a file of its own (`openDevice`), native threads read and checksum it; any other kind is read
 * through its own `read`. What comes out is the same.
 *
 * Invariants:
 * - Memory is bounded, whatever the size of the device: a few dozen MiB of reads in flight, a few batches of checksums.
 *   Who does not ask for the next batch stops the reading.
 * - Blocks count from `offset`; only the last one may be short. Batches come in order. When a read fails, what is before
 *   it has been given, to the last 512 KiB or block, and the error names the place: a scan can go on behind it.
 * - A block's checksum is of bytes that were on the device at some moment of the scan. Writes during a scan are not
 *   held off: blocks written meanwhile may be seen before or after, or torn.
 * - A scan never writes.
 */
import { type Clock, systemClock } from '../base/clock.ts';
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import { checkRange } from './base-device.ts';
import type { BlockDevice } from './block-device.ts';
import { checkDigest, type DigestAlgorithm, digestBytes } from './digest.ts';
import { type FileLender, lendFile } from './direct-device.ts';
import { FileScan } from './scan-file.ts';
import { type ScanEngine, ScanPlan } from './scan-plan.ts';
import { ReadingScan } from './scan-reads.ts';

/** The smallest block of a scan, in bytes. */
export const scanBlockBytesMin = 512;
/** The largest block of a scan, in bytes. */
export const scanBlockBytesMax = 16 * 1024 * 1024;

/** What is scanned, by which checksum, and how fast. */
export interface ScanOptions {
  /** Where the range begins, in bytes; default 0. */
  readonly offset?: number;
  /** Its length in bytes; default up to the device's end. */
  readonly length?: number;
  /** 512 bytes to 16 MiB, default 64 KiB. Whole blocks of the device are the fastest. */
  readonly blockBytes?: number;
  /** Default `crc32c`. */
  readonly algorithm?: DigestAlgorithm;
  /** 32 random bytes, for `gmac` and `blake2b`: the same on both sides of a comparison, new for each. */
  readonly key?: Uint8Array;
  /** The most to read in a second; default as fast as it goes. `DeviceScan.bytesPerSecond` changes it on the way. */
  readonly bytesPerSecond?: number;
  /** Ends the scan with ERR_HOLDFAST_ABORTED. */
  readonly signal?: AbortSignal;
  /** By which the rate and the time to go are measured. */
  readonly clock?: Clock;
}

/** How far a scan is. */
export interface ScanProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** Since it was begun; 0 as long as it is not known. */
  readonly bytesPerSecond: number;
  /** Time to go at this rate; undefined as long as it is not known. */
  readonly remainingMs: number | undefined;
}

/** The checksums of consecutive blocks. */
export class ScanBatch {
  /** Of the first block, in bytes on the device. */
  readonly offset: number;
  /** Of all its blocks, in bytes. */
  readonly length: number;
  readonly blockBytes: number;
  readonly algorithm: DigestAlgorithm;
  /** One after the other, `checksumBytes` each. CRC-32C stands little-endian. */
  readonly checksums: Uint8Array;
  readonly checksumBytes: number;

  /** @internal */
  constructor(plan: ScanPlan, batch: number, checksums: Uint8Array) {
    const { offset, length } = plan.rangeOf(batch);
    const blocks = checksums.byteLength / digestBytes[plan.algorithm];
    this.offset = offset;
    this.length = Math.min(length, blocks * plan.blockBytes);
    this.blockBytes = plan.blockBytes;
    this.algorithm = plan.algorithm;
    this.checksums = checksums;
    this.checksumBytes = digestBytes[plan.algorithm];
  }

  /** How many blocks the batch is of. */
  get blocks(): number {
    return this.checksums.byteLength / this.checksumBytes;
  }

  /** The checksum of the block at `index` in this batch, as bytes. */
  checksum(index: number): Uint8Array {
    return this.checksums.subarray(index * this.checksumBytes, (index + 1) * this.checksumBytes);
  }

  /** The same as people write it: in hexadecimal, a CRC with its highest digit first. */
  hex(index: number): string {
    const checksum = Buffer.from(this.checksum(index));
    return (this.algorithm === 'crc32c' ? checksum.reverse() : checksum).toString('hex');
  }

  /** The checksums as numbers, as `crc32cBlocks` gives them. Throws ERR_HOLDFAST_BAD_ARGUMENT for a digest. */
  crc32c(): Uint32Array {
    if (this.algorithm !== 'crc32c')
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a ${this.algorithm} is no number; use checksum(index)`);
    const { buffer, byteOffset } = this.checksums;
    return new Uint32Array(buffer, byteOffset, this.blocks);
  }
}

/**
 * Scans a device or a part of it.
 *
 * ```ts
 * const scan = scanDevice(device, { blockBytes: 64 * 1024 });
 * for await (const batch of scan) {
 *   for (let index = 0; index < batch.blocks; index++) console.log(batch.offset + index * batch.blockBytes, batch.hex(index));
 * }
 * ```
 *
 * It begins when it is iterated, and what it holds is released when the loop ends, also by `break` or an error. What
 * the loop throws: ERR_HOLDFAST_ABORTED (`signal`), ERR_HOLDFAST_CLOSED (the device was closed meanwhile), and what
 * reading throws: ERR_HOLDFAST_IO names the place, and the checksums before it have been given.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT, ERR_HOLDFAST_OUT_OF_RANGE (the range is not inside the device),
 *   ERR_HOLDFAST_NOT_SUPPORTED (this process's OpenSSL does not do the algorithm).
 */
export function scanDevice(device: BlockDevice, options: ScanOptions = {}): DeviceScan {
  return new DeviceScan(device, options);
}

function checkRate(bytesPerSecond: number): void {
  if (bytesPerSecond > 0) return;
  throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `bytesPerSecond ${bytesPerSecond} must be more than 0`);
}

function planOf(device: BlockDevice, options: ScanOptions): ScanPlan {
  const { offset = 0, blockBytes = 64 * 1024, algorithm = 'crc32c', key } = options;
  const length = options.length ?? Math.max(0, device.geometry.sizeBytes - offset);
  checkRange(device.name, device.geometry.sizeBytes, offset, length);
  if (!Number.isSafeInteger(blockBytes) || blockBytes < scanBlockBytesMin || blockBytes > scanBlockBytesMax)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `blockBytes ${blockBytes} must be a whole number from ${scanBlockBytesMin} to ${scanBlockBytesMax}`,
    );
  checkDigest(algorithm, key);
  return new ScanPlan({ offset, length, blockBytes, algorithm, key });
}

function lendsFile(device: BlockDevice): device is BlockDevice & FileLender {
  return lendFile in device;
}

/** Made by `scanDevice`. */
export class DeviceScan implements AsyncIterable<ScanBatch> {
  readonly #plan: ScanPlan;
  readonly #engine: ScanEngine;
  readonly #signal: AbortSignal | undefined;
  readonly #clock: Clock;
  readonly #what: string;
  #bytesPerSecond: number;
  #startedMs: number | undefined;

  constructor(device: BlockDevice, options: ScanOptions) {
    const { bytesPerSecond = Number.POSITIVE_INFINITY, signal, clock = systemClock } = options;
    checkRate(bytesPerSecond);
    this.#plan = planOf(device, options);
    this.#bytesPerSecond = bytesPerSecond;
    this.#signal = signal;
    this.#clock = clock;
    this.#what = `the scan of ${device.name}`;
    this.#engine = lendsFile(device)
      ? new FileScan(device, this.#plan, bytesPerSecond, signal)
      : new ReadingScan(device, this.#plan, bytesPerSecond, signal, clock);
  }

  /** The most to read in a second; Infinity for as fast as it goes. May be set at any time. */
  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  /** Takes effect at once. */
  set bytesPerSecond(bytesPerSecond: number) {
    checkRate(bytesPerSecond);
    this.#bytesPerSecond = bytesPerSecond;
    this.#engine.setRate(bytesPerSecond);
  }

  /** May be asked at any time, also between batches. */
  progress(): ScanProgress {
    const doneBytes = this.#engine.doneBytes();
    const totalBytes = this.#plan.length;
    const elapsedMs = this.#startedMs === undefined ? 0 : this.#clock.nowMs() - this.#startedMs;
    const bytesPerSecond = elapsedMs > 0 ? (doneBytes * 1000) / elapsedMs : 0;
    const remainingMs = bytesPerSecond > 0 ? ((totalBytes - doneBytes) * 1000) / bytesPerSecond : undefined;
    return { doneBytes, totalBytes, bytesPerSecond, remainingMs };
  }

  /** Scans, and gives the checksums in the order of the blocks. Once. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ScanBatch, void, void> {
    if (this.#startedMs !== undefined)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `${this.#what} has begun already; scan again for another pass`,
      );
    throwIfAborted(this.#signal, this.#what);
    this.#startedMs = this.#clock.nowMs();
    if (this.#plan.length === 0) return;
    let batch = 0;
    for await (const checksums of this.#engine.batches()) yield new ScanBatch(this.#plan, batch++, checksums);
  }
}
