/**
 * I/O memory: what devices read into and write from without a copy. Page-aligned arenas of shared memory, cut into
 * slots; a lease is one slot, held until it is released.
 *
 * Invariants:
 * - An arena is a SharedArrayBuffer, so nobody can transfer it away while a device works on it, and each ring that
 *   knows it keeps it alive.
 * - The sum of all arenas never exceeds `totalBytes`; who waits for a lease stands in one queue, first come first
 *   served, and the queue is bounded.
 * - An arena serves one slot size at a time (a power of two from a page to the whole arena); once all its slots are back
 *   it may be cut anew for another size.
 *
 * A lease comes with whatever its last holder left in it.
 */
import { assert, HoldfastError, throwIfAborted } from '../base/errors.ts';
import { native } from '../native.ts';

const pageBytes = 4096;

/** How much memory, and in which pieces. */
export interface IoMemoryOptions {
  /** All the memory that it may take; default 128 MiB. Taken arena by arena, as needed. */
  readonly totalBytes?: number;
  /** Also the biggest lease: a power of two, default 4 MiB. */
  readonly arenaBytes?: number;
  /** How many callers may wait at once; default 16384. */
  readonly maxWaiters?: number;
}

/** What is taken now. */
export interface IoMemoryUsage {
  readonly totalBytes: number;
  readonly allocatedBytes: number;
  /** In slots held, each counted whole. */
  readonly leasedBytes: number;
  readonly waiting: number;
}

/** One piece of memory that rings know by an index of their own. */
export class IoArena {
  readonly bytes: Uint8Array;
  /** Where it begins in its SharedArrayBuffer. */
  readonly start: number;
  readonly lengthBytes: number;
  /** By ring ordinal: the arena's index in that ring. Kept by lib/storage/ring.ts. */
  readonly ringIndexes: (number | undefined)[] = [];
  /** Called when the arena goes. */
  readonly detachers: (() => void)[] = [];
  /** Slot size it is cut for; 0 when it is not cut. */
  slotBytes = 0;
  leased = 0;

  constructor(lengthBytes: number) {
    const memory: SharedArrayBuffer & Marked = new SharedArrayBuffer(lengthBytes + pageBytes);
    const rest = native().ring.misalignment(new Uint8Array(memory), pageBytes);
    this.start = rest === 0 ? 0 : pageBytes - rest;
    this.lengthBytes = lengthBytes;
    this.bytes = new Uint8Array(memory, this.start, lengthBytes);
    memory[arenaMark] = this;
  }

  /** The rings forget it, and views of it that are left are memory like any other. */
  close(): void {
    (this.bytes.buffer as Marked)[arenaMark] = undefined;
    for (const detach of this.detachers) detach();
  }
}

const arenaMark = Symbol('holdfast.arena');
interface Marked {
  [arenaMark]?: IoArena | undefined;
}

/** The arena that these bytes lie in, whole; undefined for any other memory. */
export function arenaOf(bytes: Uint8Array): IoArena | undefined {
  const arena = (bytes.buffer as Marked)[arenaMark];
  if (arena === undefined) return undefined;
  const at = bytes.byteOffset - arena.start;
  return at >= 0 && at + bytes.byteLength <= arena.lengthBytes ? arena : undefined;
}

class Slot {
  readonly arena: IoArena;
  readonly offset: number;
  #view: Buffer | undefined;

  constructor(arena: IoArena, offset: number) {
    this.arena = arena;
    this.offset = offset;
  }

  view(length: number): Buffer {
    const { arena } = this;
    if (length !== arena.slotBytes) return Buffer.from(arena.bytes.buffer, arena.start + this.offset, length);
    this.#view ??= Buffer.from(arena.bytes.buffer, arena.start + this.offset, length);
    return this.#view;
  }
}

/** A slot held. `bytes` must not be used after `release`. */
export class IoLease implements Disposable {
  /** Page-aligned, exactly as long as was asked for. */
  readonly bytes: Buffer;
  readonly #memory: IoMemory;
  #slot: Slot | undefined;

  /** Made by `IoMemory.lease`. @internal */
  constructor(memory: IoMemory, slot: Slot, length: number) {
    this.#memory = memory;
    this.#slot = slot;
    this.bytes = slot.view(length);
  }

  /** Gives the memory back. Not while a request on it is in flight. Further calls do nothing. */
  release(): void {
    const slot = this.#slot;
    if (slot === undefined) return;
    this.#slot = undefined;
    this.#memory[giveBack](slot);
  }

  /** Same as `release`, for `using`. */
  [Symbol.dispose](): void {
    this.release();
  }
}

const giveBack = Symbol('giveBack');

interface Waiter {
  readonly length: number;
  readonly resolve: (lease: IoLease) => void;
  readonly reject: (error: HoldfastError) => void;
}

/**
 * Page-aligned memory that devices read and write without a copy, leased in slots of powers of two. Bounded: who wants
 * more than there is waits, or is refused.
 *
 * ```ts
 * using lease = ioMemory().lease(65_536);
 * await device.read(0, lease.bytes);
 * ```
 */
export class IoMemory {
  readonly #totalBytes: number;
  readonly #arenaBytes: number;
  readonly #maxWaiters: number;
  readonly #arenas: IoArena[] = [];
  /** Free slots, by slot size: index 0 is a page, each next one twice as big. */
  readonly #free: Slot[][] = [];
  #waiters: Waiter[] = [];
  #leasedBytes = 0;
  #closed = false;

  /** Throws ERR_HOLDFAST_BAD_ARGUMENT if the sizes make no sense. */
  constructor(options: IoMemoryOptions = {}) {
    this.#totalBytes = options.totalBytes ?? 128 * 1024 * 1024;
    this.#arenaBytes = options.arenaBytes ?? 4 * 1024 * 1024;
    this.#maxWaiters = options.maxWaiters ?? 16_384;
    const arenaIsPowerOfTwo = Number.isInteger(Math.log2(this.#arenaBytes));
    if (!arenaIsPowerOfTwo || this.#arenaBytes < pageBytes || this.#arenaBytes > 2 ** 30)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `arenaBytes ${this.#arenaBytes} must be a power of two from ${pageBytes} to ${2 ** 30}`,
      );
    if (!Number.isSafeInteger(this.#totalBytes) || this.#totalBytes < this.#arenaBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `totalBytes ${this.#totalBytes} must be a whole number, at least arenaBytes (${this.#arenaBytes})`,
      );
    for (let size = pageBytes; size <= this.#arenaBytes; size *= 2) this.#free.push([]);
  }

  /** The biggest lease. */
  get maxLeaseBytes(): number {
    return this.#arenaBytes;
  }

  /** How much is allocated, leased and waited for. */
  usage(): IoMemoryUsage {
    return {
      totalBytes: this.#totalBytes,
      allocatedBytes: this.#arenas.length * this.#arenaBytes,
      leasedBytes: this.#leasedBytes,
      waiting: this.#waiters.length,
    };
  }

  /**
   * Page-aligned memory of `length` bytes, at once.
   *
   * @throws HoldfastError ERR_HOLDFAST_MEMORY_EXHAUSTED if all of it is held or others wait; ERR_HOLDFAST_BAD_ARGUMENT if
   *   it is more than `maxLeaseBytes`.
   */
  lease(length: number): IoLease {
    const lease = this.tryLease(length);
    if (lease !== undefined) return lease;
    throw new HoldfastError(
      'ERR_HOLDFAST_MEMORY_EXHAUSTED',
      `all ${this.#totalBytes} bytes of I/O memory are in use; wait with leaseWhenFree, release leases, or raise totalBytes`,
    );
  }

  /** As `lease`, but undefined instead of ERR_HOLDFAST_MEMORY_EXHAUSTED. */
  tryLease(length: number): IoLease | undefined {
    this.#check(length);
    return this.#waiters.length > 0 ? undefined : this.#take(length);
  }

  /**
   * As `lease`, but waits until enough is released, in order of arrival.
   *
   * @throws HoldfastError ERR_HOLDFAST_QUEUE_FULL beyond `maxWaiters`; ERR_HOLDFAST_ABORTED; ERR_HOLDFAST_CLOSED.
   */
  async leaseWhenFree(length: number, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<IoLease> {
    const { signal } = options;
    throwIfAborted(signal, 'waiting for I/O memory');
    const lease = this.tryLease(length);
    if (lease !== undefined) return lease;
    if (this.#waiters.length >= this.#maxWaiters)
      throw new HoldfastError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${this.#maxWaiters} callers wait for I/O memory already; send less at once, or raise maxWaiters`,
      );
    return this.#wait(length, signal);
  }

  #wait(length: number, signal: AbortSignal | undefined): Promise<IoLease> {
    return new Promise<IoLease>((resolve, reject) => {
      const settled = () => signal?.removeEventListener('abort', onAbort);
      const waiter: Waiter = {
        length,
        resolve(lease) {
          settled();
          resolve(lease);
        },
        reject(error) {
          settled();
          reject(error);
        },
      };
      const onAbort = () => {
        this.#waiters = this.#waiters.filter((other) => other !== waiter);
        this.#serveWaiters();
        const cause: unknown = signal?.reason;
        waiter.reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'waiting for I/O memory was cancelled', { cause }));
      };
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#waiters.push(waiter);
    });
  }

  /** Refuses further leases and lets go of the arenas. Throws ERR_HOLDFAST_INTERNAL while leases are held. */
  close(): void {
    assert(this.#leasedBytes === 0, 'I/O memory is closed once all leases are back');
    this.#closed = true;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.reject(this.#closedError());
    for (const arena of this.#arenas) arena.close();
    this.#arenas.length = 0;
    for (const slots of this.#free) slots.length = 0;
  }

  /** @internal */
  [giveBack](slot: Slot): void {
    const { arena } = slot;
    arena.leased--;
    this.#leasedBytes -= arena.slotBytes;
    this.#free[this.#classOf(arena.slotBytes)]!.push(slot);
    if (this.#waiters.length > 0) this.#serveWaiters();
  }

  #check(length: number): void {
    if (this.#closed) throw this.#closedError();
    if (Number.isSafeInteger(length) && length >= 0 && length <= this.#arenaBytes) return;
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `a lease of ${length} bytes: it must be a whole number, at most ${this.#arenaBytes}; use several`,
    );
  }

  #closedError(): HoldfastError {
    return new HoldfastError('ERR_HOLDFAST_CLOSED', 'this I/O memory is closed; make another');
  }

  #classOf(length: number): number {
    return length <= pageBytes ? 0 : 32 - Math.clz32((length - 1) >>> 12);
  }

  #take(length: number): IoLease | undefined {
    const free = this.#free[this.#classOf(length)]!;
    if (free.length === 0 && !this.#cutArena(this.#classOf(length))) return undefined;
    const slot = free.pop()!;
    slot.arena.leased++;
    this.#leasedBytes += slot.arena.slotBytes;
    return new IoLease(this, slot, length);
  }

  /** Finds an arena for slots of this size: a new one, or one of which nothing is held. */
  #cutArena(sizeClass: number): boolean {
    let arena: IoArena | undefined;
    if ((this.#arenas.length + 1) * this.#arenaBytes <= this.#totalBytes) {
      arena = new IoArena(this.#arenaBytes);
      this.#arenas.push(arena);
    } else {
      arena = this.#arenas.find((candidate) => candidate.leased === 0);
      if (arena === undefined) return false;
      const old = this.#classOf(arena.slotBytes);
      this.#free[old] = this.#free[old]!.filter((slot) => slot.arena !== arena);
    }
    const slotBytes = pageBytes * 2 ** sizeClass;
    arena.slotBytes = slotBytes;
    const free = this.#free[sizeClass]!;
    for (let offset = arena.lengthBytes - slotBytes; offset >= 0; offset -= slotBytes)
      free.push(new Slot(arena, offset));
    return true;
  }

  #serveWaiters(): void {
    while (this.#waiters.length > 0) {
      const lease = this.#take(this.#waiters[0]!.length);
      if (lease === undefined) return;
      this.#waiters.shift()!.resolve(lease);
    }
  }
}

let shared: IoMemory | undefined;

/** The I/O memory of this thread that applications lease from. Made at first use, with the default settings. */
export function ioMemory(): IoMemory {
  shared ??= new IoMemory();
  return shared;
}
