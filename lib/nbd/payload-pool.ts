/**
 * The memory that payloads live in between the socket and the device, shared by all connections of a server. What is
 * leased at a time is bounded; who does not get its share waits its turn. Buffers given back are kept for the next
 * request, up to the same bound.
 */
import { assert } from '../base/errors.ts';

export interface PayloadLease {
  /** Exactly the length asked for. */
  readonly bytes: Uint8Array;
  /** Once, when neither the device nor the network can still touch the bytes. */
  release(): void;
}

const SMALLEST_BYTES = 4096;

class PooledLease implements PayloadLease {
  bytes: Uint8Array;
  leased = false;
  readonly whole: Uint8Array;
  readonly home: PooledLease[];
  readonly #pool: PayloadPool;

  constructor(whole: Uint8Array, home: PooledLease[], pool: PayloadPool) {
    this.whole = whole;
    this.bytes = whole;
    this.home = home;
    this.#pool = pool;
  }

  release(): void {
    this.#pool.takeBack(this);
  }
}

export class PayloadPool {
  readonly limitBytes: number;
  #usedBytes = 0;
  #keptBytes = 0;
  /** By power of two. */
  readonly #free: PooledLease[][] = [];
  /** First come, first served; one entry for each connection at most. */
  readonly #waiting = new Set<() => void>();

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** Undefined if the bound is reached: `wait`, then try again. */
  tryLease(length: number): PayloadLease | undefined {
    const order = 32 - Math.clz32(Math.max(length, SMALLEST_BYTES) - 1);
    const bytes = 2 ** order;
    if (this.#usedBytes + bytes > this.limitBytes) return undefined;
    this.#usedBytes += bytes;
    this.#free[order] ??= [];
    const home = this.#free[order];
    let lease = home.pop();
    if (lease === undefined) lease = new PooledLease(new Uint8Array(bytes), home, this);
    else this.#keptBytes -= bytes;
    lease.leased = true;
    if (lease.bytes.length !== length) lease.bytes = lease.whole.subarray(0, length);
    return lease;
  }

  /** Calls back once, when a lease has been given back. */
  wait(retry: () => void): void {
    this.#waiting.add(retry);
  }

  forget(retry: () => void): void {
    this.#waiting.delete(retry);
  }

  takeBack(lease: PooledLease): void {
    assert(lease.leased, 'a lease is released once');
    lease.leased = false;
    const bytes = lease.whole.length;
    this.#usedBytes -= bytes;
    if (this.#usedBytes + this.#keptBytes + bytes <= this.limitBytes) {
      this.#keptBytes += bytes;
      lease.home.push(lease);
    }
    for (const retry of this.#waiting) {
      this.#waiting.delete(retry);
      retry();
      // Whoever asked again goes to the end of the line, and there is nothing left for those behind it.
      if (this.#waiting.has(retry)) return;
    }
  }
}
