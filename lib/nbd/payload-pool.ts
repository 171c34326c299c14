/**
 * The memory that payloads live in between the socket and the device, shared by all connections of a server, and the
 * places at the device. Both are bounded: each request takes a place and a lease, an empty one if it has no payload. Who
 * does not get its share waits its turn. Buffers given back are kept for the next request, up to the same bound. They
 * are I/O memory, which a direct device takes as it is; the biggest, and those for which no I/O memory is free, are
 * plain memory.
 */
import { assert } from '../base/errors.ts';
import { IoMemory } from '../storage/io-memory.ts';

export interface PayloadLease {
  /** Exactly the length asked for. */
  readonly bytes: Uint8Array;
  /** Once, when neither the device nor the network can still touch the bytes. */
  release(): void;
}

const SMALLEST_BYTES = 4096;
const ARENA_BYTES = 4 * 1024 * 1024;

interface Backing {
  readonly bytes: Uint8Array;
  release(): void;
}

class PooledLease implements PayloadLease {
  bytes: Uint8Array;
  leased = false;
  readonly backing: Backing;
  readonly home: PooledLease[];
  readonly #pool: PayloadPool;

  constructor(backing: Backing, home: PooledLease[], pool: PayloadPool) {
    this.backing = backing;
    this.bytes = backing.bytes;
    this.home = home;
    this.#pool = pool;
  }

  release(): void {
    this.#pool.takeBack(this);
  }
}

export class PayloadPool {
  readonly limitBytes: number;
  readonly #limitRequests: number;
  readonly #memory: IoMemory;
  readonly #arenaBytes: number;
  #usedBytes = 0;
  #requests = 0;
  #keptBytes = 0;
  #closed = false;
  /** By power of two. */
  readonly #free: PooledLease[][] = [];
  /** First come, first served: who waits, for how many bytes. One entry for each connection at most. */
  readonly #waiting = new Map<() => void, number>();
  /** Whose turn it is. */
  #turn: (() => void) | undefined;

  constructor(limitBytes: number, limitRequests: number) {
    this.limitBytes = limitBytes;
    this.#limitRequests = limitRequests;
    const arenaBytes = Math.min(ARENA_BYTES, 2 ** Math.floor(Math.log2(limitBytes)));
    this.#memory = new IoMemory({ totalBytes: limitBytes, arenaBytes });
    this.#arenaBytes = arenaBytes;
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }

  /**
   * Takes a place too, until `finishRequest`. Undefined if a bound is reached or others wait: `retry` is called when it
   * is time to ask once more.
   */
  lease(length: number, retry: () => void): PayloadLease | undefined {
    const order = length === 0 ? 0 : 32 - Math.clz32(Math.max(length, SMALLEST_BYTES) - 1);
    const bytes = length === 0 ? 0 : 2 ** order;
    const mayGo = this.#waiting.size === 0 || this.#turn === retry;
    if (!mayGo || !this.#hasRoom(bytes)) {
      this.#waiting.set(retry, bytes);
      return undefined;
    }
    this.#turn = undefined;
    this.#usedBytes += bytes;
    this.#requests += 1;
    this.#free[order] ??= [];
    const home = this.#free[order];
    let lease = home.pop();
    if (lease !== undefined) this.#keptBytes -= bytes;
    else {
      if (this.#usedBytes + this.#keptBytes > this.limitBytes) this.#dropKept();
      lease = new PooledLease(this.#backing(bytes), home, this);
    }
    lease.leased = true;
    if (lease.bytes.length !== length) lease.bytes = lease.backing.bytes.subarray(0, length);
    return lease;
  }

  /** A request for which `lease` was called is over. The lease may go on, until the reply has left. */
  finishRequest(): void {
    this.#requests -= 1;
    this.#serve();
  }

  /** Gives up its place in the line. */
  forget(retry: () => void): void {
    if (this.#waiting.delete(retry)) this.#serve();
  }

  takeBack(lease: PooledLease): void {
    assert(lease.leased, 'a lease is released once');
    lease.leased = false;
    const bytes = lease.backing.bytes.length;
    this.#usedBytes -= bytes;
    if (this.#usedBytes + this.#keptBytes + bytes <= this.limitBytes) {
      this.#keptBytes += bytes;
      lease.home.push(lease);
    } else lease.backing.release();
    if (this.#closed) this.#letGo();
    this.#serve();
  }

  /** The first in line may have to wait for much: those behind it wait too, or it would wait for ever. */
  #serve(): void {
    for (const [retry, bytes] of this.#waiting) {
      if (!this.#hasRoom(bytes)) return;
      this.#waiting.delete(retry);
      this.#turn = retry;
      retry();
      this.#turn = undefined;
    }
  }

  #hasRoom(bytes: number): boolean {
    return this.#requests < this.#limitRequests && this.#usedBytes + bytes <= this.limitBytes;
  }

  /** Lets go of the memory, as soon as all leases are back. */
  close(): void {
    this.#closed = true;
    this.#letGo();
  }

  #dropKept(): void {
    for (const home of this.#free) for (const lease of home?.splice(0) ?? []) lease.backing.release();
    this.#keptBytes = 0;
  }

  #letGo(): void {
    this.#dropKept();
    if (this.#usedBytes === 0) this.#memory.close();
  }

  #backing(bytes: number): Backing {
    const lease = bytes > 0 && bytes <= this.#arenaBytes ? this.#memory.tryLease(bytes) : undefined;
    return lease ?? { bytes: new Uint8Array(bytes), release: () => {} };
  }
}
