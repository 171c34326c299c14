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
 * of ranges that are ever in flight this is cheaper than a tree, and it allocates nothing but the grant. Its size is
 * bounded by what its users have in flight; they hold the limit.
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
  #starts = new Float64Array(initialSlots);
  #ends = new Float64Array(initialSlots);
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
    grant.blockers = length === 0 ? 0 : this.#countConflicts(offset, offset + length, mode === 'exclusive');
    this.#insert(grant);
    if (grant.blockers === 0) granted(grant);
    else this.#waiting++;
    return grant;
  }

  /** Same as `grant.release()`. */
  release(grant: RangeGrant): void {
    assert(grant.slot >= 0, 'a range is released once');
    if (grant.blockers > 0) this.#waiting--;
    this.#remove(grant);
    if (this.#waiting > 0 && grant.length > 0) this.#unblock(grant);
    if (this.#ready.length > 0 && !this.#draining) this.#drain();
  }

  #countConflicts(start: number, end: number, exclusive: boolean): number {
    const count = this.#grants.length;
    const starts = this.#starts;
    const ends = this.#ends;
    const exclusives = this.#exclusive;
    let conflicts = 0;
    for (let slot = 0; slot < count; slot++) {
      if (starts[slot]! < end && start < ends[slot]! && (exclusive || exclusives[slot] === 1)) conflicts++;
    }
    return conflicts;
  }

  #unblock(gone: RangeGrant): void {
    const start = gone.offset;
    const end = gone.offset + gone.length;
    const firstReady = this.#ready.length;
    for (let slot = 0; slot < this.#grants.length; slot++) {
      if (this.#starts[slot]! >= end || start >= this.#ends[slot]!) continue;
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
    if (slot === this.#starts.length) this.#grow();
    this.#starts[slot] = grant.offset;
    // An end at or before the start overlaps nothing.
    this.#ends[slot] = grant.length === 0 ? -1 : grant.offset + grant.length;
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
      this.#starts[slot] = this.#starts[last]!;
      this.#ends[slot] = this.#ends[last]!;
      this.#exclusive[slot] = this.#exclusive[last]!;
      moved.slot = slot;
    }
    this.#grants.pop();
    grant.slot = -1;
  }

  #grow(): void {
    const slots = this.#starts.length * 2;
    const starts = new Float64Array(slots);
    const ends = new Float64Array(slots);
    const exclusive = new Uint8Array(slots);
    starts.set(this.#starts);
    ends.set(this.#ends);
    exclusive.set(this.#exclusive);
    this.#starts = starts;
    this.#ends = ends;
    this.#exclusive = exclusive;
  }
}
