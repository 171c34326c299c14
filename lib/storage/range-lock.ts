/**
 * An interval lock over byte ranges: what orders overlapping requests. Pure: no clock, no promise; a grant is a callback.
 *
 * Invariants:
 * - Two granted ranges overlap only if both are shared.
 * - First come, first served among ranges that conflict: a request waits for every conflicting one that came before it,
 *   granted or waiting, so that nobody starves. Requests that conflict with nothing never wait.
 * - Zero-length ranges overlap nothing.
 *
 * A request counts the earlier ones that it conflicts with (`blockers`); each of them that goes takes one off, and at
 * zero the request is granted. The table is a few flat arrays that are scanned from end to end: at the tens to hundreds
 * of ranges that are ever in flight this is cheaper than a tree, and it allocates nothing but the grant. A range is kept
 * as its middle and half its length, so that "overlap" is one comparison, which is nearly always false and foreseen by
 * the processor (exact below 4 PiB, and for even lengths up to 8 PiB). The table's size is bounded by what its users have in flight; they hold the limit.
 */
import { assert } from '../base/errors.ts';

export type RangeMode = 'shared' | 'exclusive';

export type RangeCallback = (grant: RangeGrant) => void;

const initialSlots = 64;

/** A place in the lock: waiting until its callback has been called, then held until `release`. */
export class RangeGrant {
  readonly offset: number;
  readonly length: number;
  readonly mode: RangeMode;
  /** Position in the lock's table; -1 once released. */
  slot = -1;
  /** Orders the requests by arrival. */
  readonly ordinal: number;
  /** Earlier requests that still stand in the way. */
  blockers = 0;
  readonly #lock: RangeLock;
  readonly granted: RangeCallback;

  /** Made by `RangeLock.acquire`. */
  constructor(
    lock: RangeLock,
    offset: number,
    length: number,
    mode: RangeMode,
    ordinal: number,
    granted: RangeCallback,
  ) {
    this.#lock = lock;
    this.offset = offset;
    this.length = length;
    this.mode = mode;
    this.ordinal = ordinal;
    this.granted = granted;
  }

  /** The range is held. */
  get held(): boolean {
    return this.slot >= 0 && this.blockers === 0;
  }

  /** Gives the range back; one that still waits is cancelled, and its callback is never called. Once only. */
  release(): void {
    this.#lock.release(this);
  }
}

export class RangeLock {
  #middles = new Float64Array(initialSlots);
  /** Half of each length; -Infinity for an empty range, which overlaps nothing. */
  #halves = new Float64Array(initialSlots);
  #exclusive = new Uint8Array(initialSlots);
  readonly #grants: RangeGrant[] = [];
  #waiting = 0;
  #nextOrdinal = 0;
  /** Granted, callback not yet called. Emptied by one loop, so that callbacks that release never nest. */
  readonly #ready: RangeGrant[] = [];
  #draining = false;

  /** Ranges held and waiting. */
  get size(): number {
    return this.#grants.length;
  }

  /** Ranges that wait. */
  get waiting(): number {
    return this.#waiting;
  }

  /**
   * Asks for a range of bytes. `granted` is called with the grant as soon as the range is held: before `acquire`
   * returns if nothing is in the way, else out of the `release` of the last one that was. It must not throw.
   */
  acquire(offset: number, length: number, mode: RangeMode, granted: RangeCallback): RangeGrant {
    const grant = new RangeGrant(this, offset, length, mode, this.#nextOrdinal++, granted);
    if (length > 0) grant.blockers = this.#countConflicts(offset, length, mode === 'exclusive');
    this.#insert(grant);
    if (grant.blockers === 0) granted(grant);
    else this.#waiting++;
    return grant;
  }

  /** As `acquire`: the grant itself if nothing is in the way, else a promise of it. */
  hold(offset: number, length: number, mode: RangeMode): RangeGrant | Promise<RangeGrant> {
    let resolve: RangeCallback | undefined;
    const grant = this.acquire(offset, length, mode, (granted) => resolve?.(granted));
    if (grant.held) return grant;
    return new Promise((wake) => {
      resolve = wake;
    });
  }

  /** Same as `grant.release()`. */
  release(grant: RangeGrant): void {
    assert(grant.slot >= 0, 'a range is released once');
    if (grant.blockers > 0) this.#waiting--;
    this.#remove(grant);
    if (this.#waiting > 0 && grant.length > 0) this.#unblock(grant);
    if (this.#ready.length > 0 && !this.#draining) this.#drain();
  }

  #countConflicts(offset: number, length: number, exclusive: boolean): number {
    const count = this.#grants.length;
    const middles = this.#middles;
    const halves = this.#halves;
    const half = length / 2;
    const middle = offset + half;
    let conflicts = 0;
    for (let slot = 0; slot < count; slot++) {
      if (Math.abs(middles[slot]! - middle) >= halves[slot]! + half) continue;
      if (exclusive || this.#exclusive[slot] === 1) conflicts++;
    }
    return conflicts;
  }

  #unblock(gone: RangeGrant): void {
    const half = gone.length / 2;
    const middle = gone.offset + half;
    const firstReady = this.#ready.length;
    for (let slot = 0; slot < this.#grants.length; slot++) {
      if (Math.abs(this.#middles[slot]! - middle) >= this.#halves[slot]! + half) continue;
      const grant = this.#grants[slot]!;
      if (grant.blockers === 0 || grant.ordinal < gone.ordinal) continue;
      if (gone.mode === 'shared' && grant.mode === 'shared') continue;
      if (--grant.blockers > 0) continue;
      this.#waiting--;
      this.#ready.push(grant);
    }
    if (this.#ready.length - firstReady > 1) {
      const found = this.#ready.splice(firstReady).sort((left, right) => left.ordinal - right.ordinal);
      this.#ready.push(...found);
    }
  }

  #drain(): void {
    this.#draining = true;
    try {
      for (let next = 0; next < this.#ready.length; next++) {
        const grant = this.#ready[next]!;
        if (grant.slot >= 0) grant.granted(grant);
      }
    } finally {
      this.#ready.length = 0;
      this.#draining = false;
    }
  }

  #insert(grant: RangeGrant): void {
    const slot = this.#grants.length;
    if (slot === this.#middles.length) this.#grow();
    const half = grant.length / 2;
    this.#middles[slot] = grant.offset + half;
    this.#halves[slot] = half > 0 ? half : Number.NEGATIVE_INFINITY;
    this.#exclusive[slot] = grant.mode === 'exclusive' ? 1 : 0;
    grant.slot = slot;
    this.#grants.push(grant);
  }

  #remove(grant: RangeGrant): void {
    const slot = grant.slot;
    const last = this.#grants.length - 1;
    if (slot !== last) {
      const moved = this.#grants[last]!;
      this.#grants[slot] = moved;
      this.#middles[slot] = this.#middles[last]!;
      this.#halves[slot] = this.#halves[last]!;
      this.#exclusive[slot] = this.#exclusive[last]!;
      moved.slot = slot;
    }
    this.#grants.pop();
    grant.slot = -1;
  }

  #grow(): void {
    const slots = this.#middles.length * 2;
    const middles = new Float64Array(slots);
    const halves = new Float64Array(slots);
    const exclusive = new Uint8Array(slots);
    middles.set(this.#middles);
    halves.set(this.#halves);
    exclusive.set(this.#exclusive);
    this.#middles = middles;
    this.#halves = halves;
    this.#exclusive = exclusive;
  }
}
