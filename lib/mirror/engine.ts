/**
 * The mirror engine of one member: it executes reads and writes on the own device and sends a copy of each write to the
 * other member's engine, and it applies what the other's engine sends. It decides nothing about who may serve: the
 * controller tells it which peer it replicates to and whether that peer's copy is required.
 *
 * Invariants, at the member that has access:
 * - Overlapping requests are ordered by a range lock until all copies have answered, so that no read returns what
 *   could still be lost and receivers never see two overlapping writes at once.
 * - A write resolves only when the own device has it and the peer has it, or the peer is not required and the range
 *   is marked.
 * - `marks` holds every grain in which the copies may differ, but for what is under way to a live peer; `unflushed`
 *   what a live peer has acknowledged since its last flush and could lose in a power cut. Losing the peer adds the
 *   second to the first.
 * - The data is copied once before it fans out, unless the caller has promised that it will not change.
 */
import { assert, HoldfastError, isHoldfastError } from '../base/errors.ts';
import { DirtyBitmap } from '../coherency/bitmap.ts';
import type { PeerSession } from '../peer/peer.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { type RangeGrant, RangeLock, type RangeMode } from '../storage/range-lock.ts';
import { SharedRun } from '../storage/shared-run.ts';

import { flushMethod, writeMethod, zeroMethod } from './protocol.ts';

/** What has become of a write that the required peer has not confirmed. */
type Settlement = 'peer-left' | 'outcome-unknown';

export interface MirrorEngineOptions {
  readonly volumeId: string;
  readonly device: BlockDevice;
  readonly sizeBytes: number;
  readonly grainBytes: number;
  /** The own device failed a request. Resolves to true when the peer has taken over. */
  readonly onDeviceFailure: (error: HoldfastError) => Promise<boolean>;
  /** The peer's device failed a request, or its engine refused one: its copy no longer follows. */
  readonly onPeerFailure: (session: PeerSession, error: unknown) => void;
}

export interface WriteFlags {
  readonly fua: boolean;
  /** The bytes will not change until the write has resolved: they need not be copied. */
  readonly stable: boolean;
}

interface Replica {
  readonly session: PeerSession;
  /** A write is not acknowledged without it. */
  required: boolean;
  readonly flush: SharedRun;
}

export class MirrorEngine {
  readonly device: BlockDevice;
  readonly marks: DirtyBitmap;
  #unflushed: DirtyBitmap;
  #flushing: DirtyBitmap;
  readonly #locks = new RangeLock();
  readonly #localFlush: SharedRun;
  readonly #options: MirrorEngineOptions;
  #replica: Replica | undefined;
  /**
   * `open`: requests are executed. `held`: a required peer is gone; what it has not confirmed waits in `#waiting` and
   * what has not begun goes back to the gate. `sealed`: this member has no access.
   */
  #mode: 'open' | 'held' | 'sealed' = 'sealed';
  #waiting: ((settlement: Settlement) => void)[] = [];
  #takenOver: Promise<boolean> = Promise.resolve(false);
  #requests = 0;
  #applies = 0;
  #idle: (() => void)[] = [];

  constructor(options: MirrorEngineOptions) {
    this.#options = options;
    this.device = options.device;
    this.marks = new DirtyBitmap(options.sizeBytes, options.grainBytes);
    this.#unflushed = new DirtyBitmap(options.sizeBytes, options.grainBytes);
    this.#flushing = new DirtyBitmap(options.sizeBytes, options.grainBytes);
    this.#localFlush = new SharedRun(() => this.device.flush());
  }

  // --- what the controller says

  /** From now on every write is sent to this peer as well. */
  attach(session: PeerSession, required: boolean): void {
    assert(this.#replica === undefined && this.#waiting.length === 0, 'one replica at a time, and nothing held');
    this.#mode = 'open';
    this.#replica = { session, required, flush: new SharedRun(() => this.#sendFlush(session)) };
  }

  /** The peer's copy becomes one without which nothing is acknowledged. */
  require(): void {
    assert(this.#replica !== undefined, 'only an attached peer can be required');
    this.#replica.required = true;
  }

  /**
   * The peer no longer follows. If it was required, writes that it has not confirmed wait until `open` or `seal`.
   * What it has not flushed is marked.
   */
  detach(): void {
    if (this.#replica === undefined) return;
    if (this.#replica.required) this.#mode = 'held';
    this.#replica = undefined;
    this.marks.merge(this.#unflushed);
    this.marks.merge(this.#flushing);
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

  /** Resolves when no request of this member's clients is under way. */
  async requestsDone(): Promise<void> {
    while (this.#requests > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** Resolves when no write of the peer's is being applied. */
  async appliesDone(): Promise<void> {
    while (this.#applies > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  // --- requests, at the member that has access

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    const grant = await this.#lock(offset, buffer.length, 'shared');
    try {
      this.#checkOpen();
      await this.#local(this.device.read(offset, buffer)).catch((error) => this.#orTakenOver(error));
    } finally {
      this.#unlock(grant);
    }
  }

  async write(offset: number, data: Uint8Array, flags: WriteFlags): Promise<void> {
    const bytes = flags.stable ? data : new Uint8Array(data);
    await this.#mirrored(
      offset,
      bytes.length,
      flags.fua,
      () => this.device.write(offset, bytes, { fua: flags.fua }),
      (session) => this.#send(session, offset, bytes, flags.fua),
    );
  }

  async writeZeroes(offset: number, length: number, fua: boolean, mayUnmap: boolean): Promise<void> {
    const volume = this.#options.volumeId;
    await this.#mirrored(
      offset,
      length,
      fua,
      () => this.device.writeZeroes(offset, length, { fua, mayUnmap }),
      (session) => session.request(zeroMethod, { volume, offset, length, fua, mayUnmap }),
    );
  }

  /** All copies without which nothing is acknowledged have made durable what was acknowledged before the call. */
  async flush(): Promise<void> {
    this.#checkOpen();
    this.#requests += 1;
    try {
      const replica = this.#replica;
      const [local, confirmed] = await Promise.all([
        settledResult(this.#local(this.#localFlush.run())),
        replica !== undefined && this.#confirmed(replica, replica.flush.run()),
      ]);
      if (local !== undefined) await this.#orElse(local, confirmed);
      else if (!confirmed) await this.#settled();
    } finally {
      this.#requests -= 1;
      this.#wake();
    }
  }

  /** Sends the marked part of one piece to the peer; the range is locked meanwhile. True if the peer has it. */
  async resyncPiece(session: PeerSession, offset: number, buffer: Uint8Array): Promise<boolean> {
    const grant = await this.#lock(offset, buffer.length, 'exclusive');
    try {
      await this.#local(this.device.read(offset, buffer));
      if (this.#replica?.session !== session) return false;
      await this.#send(session, offset, buffer, false);
      if (this.#replica?.session !== session) return false;
      this.#unflushed.mark(offset, buffer.length);
      this.#clearMarks(offset, buffer.length);
      return true;
    } finally {
      this.#unlock(grant);
    }
  }

  // --- what the other member's engine sends

  async apply(action: (device: BlockDevice) => Promise<void>): Promise<void> {
    this.#applies += 1;
    try {
      await this.#local(action(this.device));
    } finally {
      this.#applies -= 1;
      this.#wake();
    }
  }

  async #mirrored(
    offset: number,
    length: number,
    fua: boolean,
    write: () => Promise<void>,
    send: (session: PeerSession) => Promise<unknown>,
  ): Promise<void> {
    const grant = await this.#lock(offset, length, 'exclusive');
    try {
      this.#checkOpen();
      const replica = this.#replica;
      if (replica === undefined) this.marks.mark(offset, length);
      const remote = replica !== undefined && this.#replicated(replica, send(replica.session), offset, length, fua);
      const [local, confirmed] = await Promise.all([settledResult(this.#local(write())), remote]);
      if (local !== undefined) {
        this.marks.mark(offset, length);
        await this.#orElse(local, confirmed);
      } else if (!confirmed) await this.#settled();
    } finally {
      this.#unlock(grant);
    }
  }

  /**
   * The range is accounted for as soon as the peer's answer is known, not when the own device has answered as well:
   * the peer can be back before a slow device.
   */
  async #replicated(
    replica: Replica,
    answer: Promise<unknown>,
    offset: number,
    length: number,
    fua: boolean,
  ): Promise<boolean> {
    const confirmed = await this.#confirmed(replica, answer);
    if (confirmed && fua) return true;
    const follows = confirmed && this.#replica === replica;
    (follows ? this.#unflushed : this.marks).mark(offset, length);
    return confirmed;
  }

  /** True if the peer did it. A peer that did not do it is out: the controller hears of it and detaches it. */
  async #confirmed(replica: Replica, answer: Promise<unknown>): Promise<boolean> {
    try {
      await answer;
      return true;
    } catch (error) {
      if (this.#replica === replica) this.#options.onPeerFailure(replica.session, error);
      assert(this.#replica !== replica, 'a peer that failed a request is detached at once');
      return false;
    }
  }

  /** Returns when an acknowledgement that the peer has not confirmed is allowed. */
  async #settled(): Promise<void> {
    if (this.#mode === 'open') return;
    const settlement =
      this.#mode === 'sealed'
        ? 'outcome-unknown'
        : await new Promise<Settlement>((resolve) => this.#waiting.push(resolve));
    if (settlement === 'outcome-unknown') throw outcomeUnknown();
  }

  #release(settlement: Settlement): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const settle of waiting) settle(settlement);
  }

  /** A request that has not begun goes back to the gate when this member may not execute it (now). */
  #checkOpen(): void {
    if (this.#mode !== 'open') throw notOpen();
  }

  #send(session: PeerSession, offset: number, bytes: Uint8Array, fua: boolean): Promise<unknown> {
    return session.request(writeMethod, { volume: this.#options.volumeId, offset, fua }, [bytes]);
  }

  async #sendFlush(session: PeerSession): Promise<void> {
    // One flush at a time, and an empty bitmap after each: they change places.
    assert(this.#flushing.isEmpty, 'what the last flush covered is settled');
    [this.#flushing, this.#unflushed] = [this.#unflushed, this.#flushing];
    await session.request(flushMethod, { volume: this.#options.volumeId });
    if (this.#replica?.session === session) this.#flushing.clear();
  }

  async #local(request: Promise<void>): Promise<void> {
    try {
      await request;
    } catch (error) {
      const failure = isHoldfastError(error)
        ? error
        : new HoldfastError('ERR_HOLDFAST_IO', `${this.device.name} failed: ${String(error)}`, { cause: error });
      this.#takenOver = this.#options.onDeviceFailure(failure);
      throw failure;
    }
  }

  /** The own device has failed a write or a flush: it is done all the same if the peer did it and has taken over. */
  async #orElse(failure: unknown, confirmed: boolean): Promise<void> {
    if (!(confirmed && (await this.#takenOver))) throw failure;
  }

  /** The own device has failed a read: it goes back to the gate if the peer has taken over. */
  async #orTakenOver(failure: unknown): Promise<void> {
    if (await this.#takenOver) throw notOpen();
    throw failure;
  }

  #clearMarks(offset: number, length: number): void {
    const { grainBytes } = this.marks;
    for (let at = offset; at < offset + length; at += grainBytes) this.marks.clearGrain(Math.floor(at / grainBytes));
  }

  #lock(offset: number, length: number, mode: RangeMode): Promise<RangeGrant> {
    this.#requests += 1;
    return new Promise((resolve) => this.#locks.acquire(offset, length, mode, resolve));
  }

  #unlock(grant: RangeGrant): void {
    grant.release();
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
    'access went to another member while a write was under way: it may or may not have happened; read the range before you write it again',
  );
}

function settledResult(promise: Promise<void>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (error: unknown) => error,
  );
}
