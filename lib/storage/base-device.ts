/**
 * What every kind of BlockDevice has to do around the work itself: check a request before anything is changed, count
 * it, and let `close` wait for what is in flight. A kind that has no need of a hot path of its own extends this and
 * fills in the `perform…` methods, which see only requests that are inside the device, not empty, and allowed.
 *
 * Checks go in this order: closed, not a number of bytes, out of range, read-only, cancelled.
 */
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import type {
  BlockDevice,
  DeviceStats,
  Geometry,
  IoOptions,
  WriteOptions,
  WriteZeroesOptions,
} from './block-device.ts';
import { InFlight } from './in-flight.ts';

/** Throws unless the range is whole bytes inside the device. */
export function checkRange(device: string, sizeBytes: number, offset: number, length: number): void {
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length))
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${device}: offset ${offset} and length ${length} must be whole numbers of bytes`,
    );
  if (offset < 0 || length < 0 || offset > sizeBytes - length)
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `${device}: ${length} bytes at ${offset} are outside the device; it has ${sizeBytes} bytes`,
    );
}

/**
 * True if offset and length are whole blocks. `blockBytes` is a power of two up to 2^31: bitwise operators drop all but
 * the low 32 bits, which are the ones that count.
 */
export function isAligned(offset: number, length: number, blockBytes: number): boolean {
  return ((offset | length) & (blockBytes - 1)) === 0;
}

/** Of buffers that stand for one range, in bytes. */
export function totalLength(buffers: readonly Uint8Array[]): number {
  return buffers.reduce((sum, buffer) => sum + buffer.byteLength, 0);
}

export interface CountedStats {
  reads: number;
  readBytes: number;
  writes: number;
  writtenBytes: number;
  flushes: number;
  discards: number;
  errors: number;
  unalignedRequests: number;
}

export function newStats(): CountedStats {
  return {
    reads: 0,
    readBytes: 0,
    writes: 0,
    writtenBytes: 0,
    flushes: 0,
    discards: 0,
    errors: 0,
    unalignedRequests: 0,
  };
}

export abstract class BaseDevice implements BlockDevice {
  abstract readonly kind: string;
  abstract readonly geometry: Geometry;
  readonly name: string;
  readonly readOnly: boolean;
  protected readonly counted: CountedStats = newStats();
  readonly #inFlight = new InFlight();
  // Made once, not for each request.
  readonly #done = () => this.#inFlight.leave();
  readonly #failed = (error: unknown) => {
    this.counted.errors++;
    this.#inFlight.leave();
    throw error;
  };
  #closing: Promise<void> | undefined;

  protected constructor(name: string, readOnly: boolean) {
    this.name = name;
    this.readOnly = readOnly;
  }

  protected abstract performRead(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Promise<void>;
  protected abstract performWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void>;
  protected abstract performFlush(options: IoOptions | undefined): Promise<void>;
  protected abstract performDiscard(offset: number, length: number, options: IoOptions | undefined): Promise<void>;
  protected abstract performWriteZeroes(
    offset: number,
    length: number,
    options: WriteZeroesOptions | undefined,
  ): Promise<void>;
  /** Releases what is held. Called once, with nothing in flight. */
  protected abstract performClose(): Promise<void>;

  async read(offset: number, buffer: Uint8Array, options?: IoOptions): Promise<void> {
    const length = buffer.byteLength;
    this.#admit(offset, length, false, options);
    if (length > 0) await this.#run(this.performRead(offset, buffer, options));
    this.counted.reads++;
    this.counted.readBytes += length;
  }

  async write(offset: number, buffer: Uint8Array, options?: WriteOptions): Promise<void> {
    const length = buffer.byteLength;
    this.#admit(offset, length, true, options);
    if (length > 0) await this.#run(this.performWrite(offset, buffer, options));
    this.counted.writes++;
    this.counted.writtenBytes += length;
  }

  async flush(options?: IoOptions): Promise<void> {
    this.#admit(0, 0, false, options);
    if (!this.readOnly) await this.#run(this.performFlush(options));
    this.counted.flushes++;
  }

  async discard(offset: number, length: number, options?: IoOptions): Promise<void> {
    this.#admit(offset, length, true, options);
    if (length > 0) await this.#run(this.performDiscard(offset, length, options));
    this.counted.discards++;
  }

  async writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): Promise<void> {
    this.#admit(offset, length, true, options);
    if (length > 0) await this.#run(this.performWriteZeroes(offset, length, options));
    this.counted.writes++;
    this.counted.writtenBytes += length;
  }

  stats(): DeviceStats {
    return { ...this.counted };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#inFlight.drained();
    await this.performClose();
  }

  #admit(offset: number, length: number, changes: boolean, options: IoOptions | undefined): void {
    if (this.#closing !== undefined)
      throw new HoldfastError('ERR_HOLDFAST_CLOSED', `${this.name} is closed; open it again`);
    checkRange(this.name, this.geometry.sizeBytes, offset, length);
    if (changes && this.readOnly)
      throw new HoldfastError('ERR_HOLDFAST_READ_ONLY', `${this.name} is open read-only; open it for writing`);
    throwIfAborted(options?.signal, `a request to ${this.name}`);
    if (length > 0 && !isAligned(offset, length, this.geometry.logicalBlockBytes)) this.counted.unalignedRequests++;
  }

  #run(work: Promise<void>): Promise<void> {
    this.#inFlight.enter();
    return work.then(this.#done, this.#failed);
  }
}
