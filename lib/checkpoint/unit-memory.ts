/**
 * The memory of a unit: bytes that are read and stored at once, and durable after `persist`.
 *
 * Invariants of every kind:
 * - Offsets and lengths are the unit's own, checked by its tables: inside 0 … sizeBytes. Those of words are multiples of 8.
 * - Reads and stores happen before the call returns, in the order of the calls. No aligned 8 bytes are ever seen half.
 * - `persist` resolved: what was stored in the range before the call survives a power cut. One that failed is never
 *   tried again; from then on every persist fails.
 */
import type { Clock } from '../base/clock.ts';
import type { HoldfastError } from '../base/errors.ts';
import type { PersistMeans, Region } from '../storage/region.ts';
import { PersistGroups } from './persist-groups.ts';

/** Memory that can be made durable, as a unit uses it. */
export interface UnitMemory extends AsyncDisposable {
  readonly sizeBytes: number;
  readonly means: PersistMeans;
  /** Why nothing can be made durable any more. */
  readonly failure: HoldfastError | undefined;
  /** Fills all of `target`. */
  read(offset: number, target: Uint8Array): void;
  /** Stores the bytes; durable once a persist that covers them has ended. */
  write(offset: number, bytes: Uint8Array): void;
  /** 8 bytes, little-endian. */
  load(offset: number): bigint;
  /** Of 8 bytes, little-endian. Gives what was there before. */
  compareAndSwap(offset: number, expected: bigint, desired: bigint): bigint;
  /** What was stored in the range before the call is durable when it resolves. */
  persist(offset: number, length: number): Promise<void>;
  /** Waits for what is being persisted. Idempotent. */
  close(): Promise<void>;
}

/** Memory on a mapped file, or on persistent memory. The region is the memory's from here on: `close` closes it. */
export function mappedMemory(region: Region, clock: Clock): UnitMemory {
  return new MappedMemory(region, clock);
}

const WORD_BYTES = 8;

class MappedMemory implements UnitMemory {
  readonly sizeBytes: number;
  readonly means: PersistMeans;
  readonly #region: Region;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #words: BigUint64Array;
  #failure: HoldfastError | undefined;
  readonly #groups: PersistGroups;

  constructor(region: Region, clock: Clock) {
    this.#groups = new PersistGroups((offset, length) => this.#run(offset, length), clock);
    this.#region = region;
    this.#bytes = region.bytes;
    this.#words = new BigUint64Array(region.bytes.buffer, 0, region.sizeBytes / WORD_BYTES);
    this.sizeBytes = region.sizeBytes;
    this.means = region.means;
  }

  get failure(): HoldfastError | undefined {
    return this.#failure;
  }

  read(offset: number, target: Uint8Array): void {
    target.set(this.#bytes.subarray(offset, offset + target.length));
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#bytes.set(bytes, offset);
  }

  load(offset: number): bigint {
    return Atomics.load(this.#words, offset / WORD_BYTES);
  }

  compareAndSwap(offset: number, expected: bigint, desired: bigint): bigint {
    return Atomics.compareExchange(this.#words, offset / WORD_BYTES, expected, desired);
  }

  /** Without a system call each by itself: it is over at once. */
  persist(offset: number, length: number): Promise<void> {
    return this.means === 'msync' ? this.#groups.persist(offset, length) : this.#run(offset, length);
  }

  #run(offset: number, length: number): Promise<void> {
    return this.#region.persist(offset, length).catch((error: HoldfastError) => {
      if (error.code === 'ERR_HOLDFAST_FLUSH_FAILED') this.#failure ??= error;
      throw error;
    });
  }

  async close(): Promise<void> {
    await this.#groups.idle();
    await this.#region.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
