/**
 * The mirror engine of one member: it executes its clients' reads and writes on the own copy and sends a copy of each
 * write to the other member's engine (which applies it: applier.ts). It decides nothing about who may serve: the
 * controller tells it which peer it replicates to and whether that peer's copy is required.
 *
 * Invariants:
 * - A request begins when this member has access to its extents, and gives nothing back before all copies have answered:
 *   access is handed over only once replicated.
 * - Overlapping requests are ordered by a range lock until all copies have answered, so that no read returns what
 *   could still be lost and receivers never see two overlapping writes at once.
 * - A write resolves only when the own device has it and the peer has it, or the peer is not required and the range
 *   is marked. One that a lost peer has not confirmed is sent once more when both go on in the same view.
 * - `marks` holds every grain in which the copies may differ, but for what is under way to a live peer; `unflushed`
 *   what a live peer has acknowledged since its last flush and could lose in a power cut. Losing the peer adds the
 *   second to the first. What is in either stays in the activity log.
 * - The data is copied once before it fans out, unless the caller has promised that it will not change.
 */
import type { Clock } from '../base/clock.ts';
import { assert, HoldfastError, isHoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { DirtyBitmap } from '../coherency/bitmap.ts';
import type { PeerSession } from '../peer/peer.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { RangeGrant, RangeLock, type RangeMode } from '../storage/range-lock.ts';
import { SharedRun } from '../storage/shared-run.ts';
import type { Access } from './access.ts';
import type { OwnCopy } from './own-copy.ts';
import { flushMethod, writeMethod, zeroMethod } from './protocol.ts';
import { Watch } from './watch.ts';

export interface MirrorEngineOptions {
  readonly volumeId: string;
  readonly own: OwnCopy;
  readonly access: Access;
  readonly sizeBytes: number;
  readonly grainBytes: number;
  readonly clock: Clock;
  /** A peer that does not answer a request for so long no longer follows. */
  readonly peerTimeoutMs: number;
  /** The number of the view that this member is in. */
  readonly viewNumber: () => number;
  /** The own device has failed. Resolves to true when the peer has taken over. */
  readonly takenOver: () => Promise<boolean>;
  /** The peer's device failed a request, or its engine refused one: its copy no longer follows. */
  readonly onPeerFailure: (session: PeerSession, error: unknown) => void;
}

export interface WriteFlags {
  readonly fua: boolean;
  /** The bytes will not change until the write has resolved: they need not be copied. */
  readonly stable: boolean;
  readonly signal?: AbortSignal | undefined;
}

interface Replica {
  readonly session: PeerSession;
  /** A write is not acknowledged without it. */
  required: boolean;
  readonly flush: SharedRun;
  readonly watch: Watch;
}

/**
 * What becomes of a request that the required peer has not confirmed: it is over without the peer, it is sent again to
 * the same peer, or nobody knows.
 */
type Settlement = 'peer-left' | 'outcome-unknown' | Replica;

export class MirrorEngine {
  readonly own: OwnCopy;
  readonly access: Access;
  readonly marks: DirtyBitmap;
  /** Wall time (ms) of the last write of this member's clients, 0 if there was none. */
  changedAtMs = 0;
  #unflushed: DirtyBitmap;
  #flushing: DirtyBitmap;
  readonly #locks = new RangeLock();
  readonly #options: MirrorEngineOptions;
  #replica: Replica | undefined;
  /**
   * `open`: requests are executed. `held`: a required peer is gone; what it has not confirmed waits in `#waiting` and
   * what has not begun goes back to the gate. `sealed`: this member has no access.
   */
  #mode: 'open' | 'held' | 'sealed' = 'sealed';
  #waiting: ((settlement: Settlement) => void)[] = [];
  #requests = 0;
  /** Those of them that read. */
  #reads = 0;
  #idle: (() => void)[] = [];

  constructor(options: MirrorEngineOptions) {
    const { sizeBytes, grainBytes } = options;
    this.#options = options;
    this.own = options.own;
    this.access = options.access;
    this.marks = new DirtyBitmap(sizeBytes, grainBytes);
    this.#unflushed = new DirtyBitmap(sizeBytes, grainBytes);
    this.#flushing = new DirtyBitmap(sizeBytes, grainBytes);
  }

  // --- what the controller says

  /** From now on every write is sent to this peer as well. */
  attach(session: PeerSession, required: boolean): void {
    assert(this.#replica === undefined && this.#waiting.length === 0, 'one replica at a time, and nothing held');
    this.#mode = 'open';
    this.#replica = this.#newReplica(session, required);
  }

  /**
   * As `attach`, after both have gone on in the view in which the session broke, with nothing lost: what the peer had
   * confirmed it still has, and what it had not is sent once more.
   */
  reattach(session: PeerSession): void {
    assert(this.#replica === undefined, 'one replica at a time');
    this.#unflushed.merge(this.marks);
    this.marks.clear();
    this.#mode = 'open';
    this.#replica = this.#newReplica(session, true);
    this.#release(this.#replica);
  }

  /** The peer's copy becomes one without which nothing is acknowledged. */
  require(): void {
    assert(this.#replica !== undefined, 'only an attached peer can be required');
    this.#replica.required = true;
  }

  /**
   * The peer no longer follows. If it was required, writes that it has not confirmed wait until `open`, `reattach` or
   * `seal`. What it has not flushed is marked.
   */
  detach(): void {
    if (this.#replica === undefined) return;
    if (this.#replica.required) {
      this.access.suspend();
      this.#mode = 'held';
    }
    this.#replica.watch.stop();
    this.#replica = undefined;
    // The log of the other side names these, too: the planted bug takes away both (controller.ts).
    if (!isPlanted('bitmap-seeded-with-in-flight-only')) {
      this.marks.merge(this.#unflushed);
      this.marks.merge(this.#flushing);
    }
    this.#unflushed.clear();
    this.#flushing.clear();
  }

  /** Requests may be executed without a peer: a durable view names this member alone. */
  open(): void {
    this.#mode = 'open';
    this.#release('peer-left');
  }

  /** This member has no access any more. What the lost peer has not confirmed is of unknown outcome. */
  seal(): void {
    this.#mode = 'sealed';
    this.#release('outcome-unknown');
  }

  /** As `seal`, if requests are held; else what is under way may end. */
  giveUpHeld(): void {
    if (this.#mode === 'held') this.seal();
  }

  /** Has the attached peer make durable what it has acknowledged, so that losing it later marks less. */
  async flushReplica(): Promise<void> {
    await this.#replica?.flush.run();
  }

  /** The attached peer has made durable all that it has acknowledged. */
  peerFlushed(): void {
    this.#unflushed.clear();
    this.#flushing.clear();
  }

  /** The copies may differ here, or could after a power cut of the peer: it stays in the activity log. */
  isPinned(offset: number, length: number): boolean {
    return [this.marks, this.#unflushed, this.#flushing].some((bitmap) => bitmap.touches(offset, length));
  }

  /** Resolves when nothing that this member's clients have asked for can change the own copy any more. */
  async changesDone(): Promise<void> {
    while (this.#requests > this.#reads) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** Resolves when no request of this member's clients is under way. */
  async requestsDone(): Promise<void> {
    while (this.#requests > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  // --- requests of this member's clients

  async read(offset: number, buffer: Uint8Array, signal?: AbortSignal): Promise<void> {
    const { length } = buffer;
    const granted = this.access.acquire(offset, length, 'shared', signal);
    if (granted !== undefined) await granted;
    this.#reads += 1;
    const held = this.#lock(offset, length, 'shared');
    const grant = held instanceof RangeGrant ? held : await held;
    try {
      this.#checkOpen();
      await this.own.read(offset, buffer);
    } catch (error) {
      await this.#orTakenOver(error);
    } finally {
      this.#reads -= 1;
      this.#unlock(grant);
      this.access.release(offset, length, 'shared');
    }
  }

  write(offset: number, data: Uint8Array, flags: WriteFlags): Promise<void> {
    const bytes = flags.stable ? data : new Uint8Array(data);
    return this.#mirrored(offset, bytes.length, flags, {
      local: (device) => device.write(offset, bytes, { fua: flags.fua }),
      remote: (session) => this.#send(session, offset, bytes, flags.fua),
    });
  }

  writeZeroes(
    offset: number,
    length: number,
    flags: { readonly fua: boolean; readonly mayUnmap: boolean; readonly signal?: AbortSignal | undefined },
  ): Promise<void> {
    const { fua, mayUnmap } = flags;
    return this.#mirrored(offset, length, flags, {
      local: (device) => device.writeZeroes(offset, length, { fua, mayUnmap }),
      remote: (session) => session.request(zeroMethod, { ...this.#fence(), offset, length, fua, mayUnmap }),
    });
  }

  /** All copies without which nothing is acknowledged have made durable what was acknowledged before the call. */
  async flush(): Promise<void> {
    this.#checkOpen();
    this.#requests += 1;
    try {
      const local = settledResult(this.own.flush());
      const confirmed = await this.#untilConfirmed(({ flush }) => flush.run(), 0, 0, false);
      const failure = await local;
      if (failure !== undefined) await this.#orElse(failure, confirmed);
    } finally {
      this.#requests -= 1;
      this.#wake();
    }
  }

  /** Sends the marked part of one piece to the peer; the range is locked meanwhile. True if the peer has it. */
  async resyncPiece(session: PeerSession, offset: number, buffer: Uint8Array): Promise<boolean> {
    const grant = await this.#lock(offset, buffer.length, 'exclusive');
    // Planted: as if the lock were not held while the piece is on its way.
    if (isPlanted('resync-over-newer-data')) grant.release();
    try {
      await this.own.read(offset, buffer);
      const replica = this.#replica;
      if (replica?.session !== session) return false;
      const request = replica.watch.begin();
      await this.#send(session, offset, buffer, false).finally(() => replica.watch.end(request));
      if (this.#replica !== replica) return false;
      this.#unflushed.mark(offset, buffer.length);
      this.#clearMarks(offset, buffer.length);
      return true;
    } finally {
      if (isPlanted('resync-over-newer-data')) this.#ended();
      else this.#unlock(grant);
    }
  }

  /** The way of every change: access, order, log, then both copies. */
  async #mirrored(
    offset: number,
    length: number,
    flags: { readonly fua: boolean; readonly signal?: AbortSignal | undefined },
    change: {
      readonly local: (device: BlockDevice) => Promise<void>;
      readonly remote: (session: PeerSession) => Promise<unknown>;
    },
  ): Promise<void> {
    const granted = this.access.acquire(offset, length, 'exclusive', flags.signal);
    if (granted !== undefined) await granted;
    const held = this.#lock(offset, length, 'exclusive');
    const grant = held instanceof RangeGrant ? held : await held;
    try {
      this.#checkOpen();
      const named = this.own.enter(offset, length);
      if (named !== undefined) await named.catch((error) => this.#orTakenOver(error));
      if (isPlanted('overlap-unordered-at-receiver')) this.#unlock(grant);
      try {
        // Access may have gone while the log was written.
        this.#checkOpen();
        await this.#onBoth(offset, length, flags.fua, change.local, change.remote);
      } finally {
        this.own.leave(offset, length);
      }
    } finally {
      // Planted: overlapping writes leave as soon as they have their place in the queue to the own device.
      if (!isPlanted('overlap-unordered-at-receiver')) this.#unlock(grant);
      if (!isPlanted('access-before-replicated')) this.access.release(offset, length, 'exclusive');
    }
  }

  async #onBoth(
    offset: number,
    length: number,
    fua: boolean,
    local: (device: BlockDevice) => Promise<void>,
    remote: (session: PeerSession) => Promise<unknown>,
  ): Promise<void> {
    this.changedAtMs = Math.floor(this.#options.clock.wallMs());
    if (this.#replica === undefined) this.marks.mark(offset, length);
    const own = settledResult(this.own.write(local));
    const copied = this.#untilConfirmed(({ session }) => remote(session), offset, length, fua);
    if (isPlanted('acknowledged-before-peer')) {
      copied.catch(() => {});
      await own;
      return;
    }
    if (isPlanted('access-before-replicated')) void own.then(() => this.access.release(offset, length, 'exclusive'));
    let confirmed: boolean;
    try {
      confirmed = await copied;
    } catch (error) {
      // What is of unknown outcome has not ended either, here, before the own device has let go of it.
      await own;
      throw error;
    }
    const failure = await own;
    if (failure === undefined) return;
    this.marks.mark(offset, length);
    await this.#orElse(failure, confirmed);
  }

  /**
   * Asks the peer, and whichever comes to be attached in its place, until one has done it. False if there is none
   * without which nothing may be acknowledged. Throws ERR_HOLDFAST_OUTCOME_UNKNOWN.
   * The range is accounted for as soon as the peer has answered: the peer can be ahead of a slow own device.
   */
  async #untilConfirmed(
    ask: (replica: Replica) => Promise<unknown>,
    offset: number,
    length: number,
    fua: boolean,
  ): Promise<boolean> {
    for (let replica = this.#replica; replica !== undefined; ) {
      const request = replica.watch.begin();
      try {
        await ask(replica);
        if (this.#replica !== replica) this.marks.mark(offset, length);
        else if (!fua) this.#unflushed.mark(offset, length);
        return true;
      } catch (error) {
        this.#peerFailed(replica, error);
        this.marks.mark(offset, length);
      } finally {
        replica.watch.end(request);
      }
      const settlement = await this.#settled();
      if (settlement === 'outcome-unknown') throw outcomeUnknown();
      if (settlement === 'peer-left') return false;
      replica = settlement;
    }
    return false;
  }

  /** A peer that did not do what it was asked is out: the controller hears of it and detaches it. */
  #peerFailed(replica: Replica, error: unknown): void {
    if (this.#replica === replica) this.#options.onPeerFailure(replica.session, error);
    assert(this.#replica !== replica, 'a peer that failed a request is detached at once');
  }

  async #settled(): Promise<Settlement> {
    if (this.#mode === 'open') return this.#replica ?? 'peer-left';
    if (this.#mode === 'sealed') return 'outcome-unknown';
    return new Promise<Settlement>((resolve) => this.#waiting.push(resolve));
  }

  #release(settlement: Settlement): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const settle of waiting) settle(settlement);
  }

  #newReplica(session: PeerSession, required: boolean): Replica {
    const { clock, peerTimeoutMs, onPeerFailure } = this.#options;
    const watch = new Watch(clock, peerTimeoutMs, () =>
      onPeerFailure(session, new Error(`no answer for ${peerTimeoutMs / 1000} s`)),
    );
    return { session, required, watch, flush: new SharedRun(() => this.#sendFlush(session)) };
  }

  /** A request that has not begun goes back to the gate when this member may not execute it (now). */
  #checkOpen(): void {
    if (this.#mode !== 'open') throw notOpen();
  }

  #fence(): { volume: string; view: number } {
    return { volume: this.#options.volumeId, view: this.#options.viewNumber() };
  }

  #send(session: PeerSession, offset: number, bytes: Uint8Array, fua: boolean): Promise<unknown> {
    const { volumeId: volume, viewNumber } = this.#options;
    return session.request(writeMethod, { volume, view: viewNumber(), offset, fua }, [bytes]);
  }

  async #sendFlush(session: PeerSession): Promise<void> {
    if (isPlanted('dropped-flush')) return;
    // One flush at a time, and an empty bitmap after each: they change places.
    assert(this.#flushing.isEmpty, 'what the last flush covered is settled');
    [this.#flushing, this.#unflushed] = [this.#unflushed, this.#flushing];
    await session.request(flushMethod, this.#fence());
    if (this.#replica?.session === session) this.#flushing.clear();
  }

  /** The own device has failed a write or a flush: it is done all the same if the peer did it and has taken over. */
  async #orElse(failure: unknown, confirmed: boolean): Promise<void> {
    if (!(confirmed && (await this.#options.takenOver()))) throw failure;
  }

  /** Nothing has been done: back to the gate, if the own device has failed and the peer has taken over. */
  async #orTakenOver(failure: unknown): Promise<never> {
    if (isHoldfastError(failure, 'ERR_HOLDFAST_OUT_OF_STEP')) throw failure;
    throw (await this.#options.takenOver()) ? notOpen() : failure;
  }

  #clearMarks(offset: number, length: number): void {
    const { grainBytes } = this.marks;
    for (let at = offset; at < offset + length; at += grainBytes) this.marks.clearGrain(Math.floor(at / grainBytes));
  }

  #lock(offset: number, length: number, mode: RangeMode): RangeGrant | Promise<RangeGrant> {
    this.#requests += 1;
    return this.#locks.hold(offset, length, mode);
  }

  #unlock(grant: RangeGrant): void {
    grant.release();
    this.#ended();
  }

  #ended(): void {
    this.#requests -= 1;
    this.#wake();
  }

  #wake(): void {
    const idle = this.#idle;
    if (idle.length === 0) return;
    this.#idle = [];
    for (const resolve of idle) resolve();
  }
}

function notOpen(): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_OUT_OF_STEP', 'this member has no access now');
}

export function outcomeUnknown(): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_OUTCOME_UNKNOWN',
    'the other member has gone on alone, or its process was replaced, while a write was under way: it may or may not have happened; read the range before you write it again',
  );
}

function settledResult(promise: Promise<void>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (error: unknown) => error,
  );
}
