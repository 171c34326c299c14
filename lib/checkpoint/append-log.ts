/**
 * The writer's end of a ring of records: batches in flight, acknowledgements in order, and the room in the ring.
 *
 * Invariants:
 * - An append is acknowledged when it and all before it are durable.
 * - What is appended in one turn of the event loop goes out together: one store, one persist.
 * - The first store that fails ends the log: what has not been acknowledged by then never is. Some of it may be in the
 *   chain all the same, up to a point; the next writer sees how far.
 * - Space is written to anew only when the head behind it is durable.
 * - Bounded: what is in flight, and what waits.
 */
import { assert, HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { SuperblockPair } from '../storage/superblock-pair.ts';
import type { WriterLimits } from './checkpoint-writer.ts';
import { writeRange, writerError } from './commands.ts';
import { cursorsBytes, readCursors } from './cursors.ts';
import {
  COMMAND_BYTES_MAX,
  cursorAddress,
  encodeRegion,
  FENCE_ADDRESS,
  LINE_BYTES,
  type RegionRecord,
  type RingPosition,
} from './layout.ts';
import type { Guard, RegionAccess } from './one-sided.ts';
import { formatWord, payloadBytesMax, RecordEncoder, type RecordStamp, recordBytes } from './records.ts';
import { droppable, type RingSpace } from './ring-space.ts';

/**
 * What happens to an append when the ring is full: `block` waits until every backup has cleared enough; `drop-drained`
 * gives up what at least one backup has cleared, although others have not (they get ERR_HOLDFAST_GAP), and waits if
 * there is no such; `error` rejects with ERR_HOLDFAST_NO_SPACE.
 */
export type WhenFull = 'block' | 'drop-drained' | 'error';

interface Append {
  readonly payload: Uint8Array;
  readonly resolve: (sequence: number) => void;
  readonly reject: (error: unknown) => void;
  /** Of the record. */
  readonly takenBytes: number;
}

interface Batch {
  readonly appends: readonly Append[];
  readonly firstSequence: number;
  readonly takenBytes: number;
  outcome: 'pending' | 'durable' | 'failed';
}

type Plan =
  | { readonly kind: 'send'; readonly count: number; readonly takenBytes: number; readonly wrapBytes: number }
  | { readonly kind: 'full' }
  | { readonly kind: 'limited' };

/** After so much of the ring the log looks whether space can be given back, before it is full. */
const LOOKS_A_LAP = 16;

export class AppendLog {
  readonly #access: RegionAccess;
  readonly #pair: SuperblockPair;
  readonly #limits: WriterLimits;
  readonly #whenFull: WhenFull;
  readonly #space: RingSpace;
  readonly #guard: Guard;
  readonly #stamp: RecordStamp;
  #region: RegionRecord;
  readonly #waiting: Append[] = [];
  #waitingBytes = 0;
  readonly #inFlight: Batch[] = [];
  #inFlightRecords = 0;
  #inFlightBytes = 0;
  #durable: number;
  #flushSoon = false;
  #reclaiming: Promise<void> | undefined;
  /** Bytes given out since it was last looked whether some can be given back. */
  #sinceLook = 0;
  #failure: { readonly error: unknown } | undefined;
  /** Nothing is waited for any more. */
  readonly #closing = new AbortController();
  #closed: Promise<void> | undefined;
  #onIdle: (() => void) | undefined;

  constructor(
    access: RegionAccess,
    pair: SuperblockPair,
    region: RegionRecord,
    space: RingSpace,
    whenFull: WhenFull,
    limits: WriterLimits,
  ) {
    this.#access = access;
    this.#pair = pair;
    this.#region = region;
    this.#space = space;
    this.#whenFull = whenFull;
    this.#limits = limits;
    this.#guard = { address: FENCE_ADDRESS, expected: BigInt(region.epoch) };
    this.#stamp = { formatWord: formatWord(region.formatId), epoch: region.epoch };
    this.#durable = space.tail.sequence - 1;
  }

  get durable(): number {
    return this.#durable;
  }

  append(payload: Uint8Array, signal: AbortSignal | undefined): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#check(payload);
      const append = { payload, takenBytes: recordBytes(payload.length), resolve, reject };
      this.#waiting.push(signal === undefined ? append : this.#cancellable(append, signal));
      this.#waitingBytes += payload.length;
      if (this.#flushSoon) return;
      this.#flushSoon = true;
      queueMicrotask(() => {
        this.#flushSoon = false;
        this.#pump();
      });
    });
  }

  #check(payload: Uint8Array): void {
    if (this.#failure !== undefined) throw this.#failure.error;
    if (this.#closed !== undefined) throw closedError();
    const mostBytes = payloadBytesMax(this.#region.dataBytes);
    if (payload.length > mostBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `a checkpoint of ${payload.length} bytes is too long for this region; it takes ${mostBytes}, half of the ring`,
      );
    const { waitingRecordsMax, waitingBytesMax } = this.#limits;
    const isFull = this.#waiting.length >= waitingRecordsMax || this.#waitingBytes >= waitingBytesMax;
    if (isFull)
      throw new HoldfastError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${this.#waiting.length} checkpoints of ${this.#waitingBytes} bytes wait already; await some of them first`,
      );
  }

  #cancellable(append: Append, signal: AbortSignal): Append {
    const cancel = () => {
      const place = this.#waiting.indexOf(cancellable);
      if (place >= 0) {
        this.#waiting.splice(place, 1);
        this.#waitingBytes -= append.payload.length;
      }
      append.reject(
        new HoldfastError(
          'ERR_HOLDFAST_ABORTED',
          place >= 0 ? 'an append was cancelled' : 'an append was cancelled under way: it may be in the region',
          { cause: signal.reason },
        ),
      );
      this.#tellIdle();
    };
    const over = () => signal.removeEventListener('abort', cancel);
    const cancellable: Append = {
      ...append,
      resolve: (sequence) => {
        over();
        append.resolve(sequence);
      },
      reject: (error) => {
        over();
        append.reject(error);
      },
    };
    if (signal.aborted)
      throw new HoldfastError('ERR_HOLDFAST_ABORTED', 'an append was cancelled', { cause: signal.reason });
    signal.addEventListener('abort', cancel, { once: true });
    return cancellable;
  }

  /** Sends what waits, as far as the ring and the limits allow. */
  #pump(): void {
    while (this.#waiting.length > 0 && this.#failure === undefined) {
      const plan = this.#plan();
      if (plan.kind === 'limited') return;
      if (plan.kind === 'full') {
        this.#reclaiming ??= this.#reclaim();
        return;
      }
      this.#send(plan.count, plan.takenBytes, plan.wrapBytes);
    }
    this.#tellIdle();
  }

  /** How many of those that wait go out next. `wrapBytes`: the rest of the ring that is left unused after them. */
  #plan(): Plan {
    const { inFlightBytesMax, inFlightRecordsMax } = this.#limits;
    const restBytes = this.#space.ringBytes - this.#space.tail.offset;
    const freeBytes = this.#space.ringBytes - this.#space.usedBytes;
    let takenBytes = 0;
    let count = 0;
    for (const append of this.#waiting) {
      const more = takenBytes + append.takenBytes;
      const isAlone = count === 0 && this.#inFlight.length === 0;
      const isOver =
        this.#inFlightRecords + count >= inFlightRecordsMax || this.#inFlightBytes + more > inFlightBytesMax;
      if (isOver && !isAlone) return count > 0 ? send(0) : { kind: 'limited' };
      if (more > restBytes) {
        if (restBytes + append.takenBytes <= freeBytes) return send(restBytes - takenBytes);
        return count > 0 ? send(0) : { kind: 'full' };
      }
      if (more > freeBytes) return count > 0 ? send(0) : { kind: 'full' };
      if (more > COMMAND_BYTES_MAX && count > 0) return send(0);
      takenBytes = more;
      count++;
    }
    return send(0);

    function send(wrapBytes: number) {
      return { kind: 'send', count, takenBytes, wrapBytes } as const;
    }
  }

  #send(count: number, takenBytes: number, wrapBytes: number): void {
    const appends = this.#waiting.splice(0, count);
    const { sequence: firstSequence, offset } = this.#space.tail;
    const bytes = Buffer.allocUnsafe(takenBytes + (wrapBytes > 0 ? LINE_BYTES : 0));
    this.#encode(new RecordEncoder(this.#stamp, bytes), appends, takenBytes, wrapBytes);
    const batch: Batch = { appends, firstSequence, takenBytes, outcome: 'pending' };
    this.#inFlight.push(batch);
    this.#inFlightRecords += count;
    this.#inFlightBytes += takenBytes;
    const persist = !isPlanted('append-acknowledged-before-persist');
    writeRange(this.#access, this.#region.dataAddress + offset, bytes, this.#guard, persist).then(
      () => this.#ended(batch, 'durable'),
      (error: unknown) => {
        this.#failure ??= { error: writerError(this.#access, error) };
        this.#ended(batch, 'failed');
      },
    );
    this.#sinceLook += takenBytes + wrapBytes;
    if (this.#sinceLook >= this.#space.ringBytes / LOOKS_A_LAP && this.#space.usedBytes * 2 >= this.#space.ringBytes)
      this.#reclaiming ??= this.#reclaim();
  }

  #encode(encoder: RecordEncoder, appends: readonly Append[], takenBytes: number, wrapBytes: number): void {
    const { tail, ringBytes } = this.#space;
    const { epoch } = this.#stamp;
    let { sequence, previousChecksum } = tail;
    for (const { payload } of appends) {
      previousChecksum = encoder.record(sequence++, previousChecksum, this.#durable, payload);
      this.#waitingBytes -= payload.length;
    }
    const offset = (tail.offset + takenBytes) % ringBytes;
    if (appends.length > 0) this.#space.advance(takenBytes, { sequence, offset, previousChecksum, epoch });
    if (wrapBytes === 0) return;
    previousChecksum = encoder.wrap(sequence, previousChecksum, this.#durable);
    this.#space.advance(wrapBytes, { sequence, offset: 0, previousChecksum, epoch });
  }

  /** Acknowledges what is durable without a gap. */
  #ended(batch: Batch, outcome: 'durable' | 'failed'): void {
    batch.outcome = outcome;
    let first = this.#inFlight[0];
    while (first?.outcome === 'durable') {
      this.#inFlight.shift();
      this.#inFlightRecords -= first.appends.length;
      this.#inFlightBytes -= first.takenBytes;
      this.#durable = first.firstSequence + first.appends.length - 1;
      let sequence = first.firstSequence;
      for (const { resolve } of first.appends) resolve(sequence++);
      first = this.#inFlight[0];
    }
    const isOver = first === undefined || first.outcome === 'failed';
    if (this.#failure !== undefined && isOver) this.#giveUp();
    else this.#pump();
    this.#tellIdle();
  }

  /** What comes after the gap is never acknowledged. */
  #giveUp(): void {
    assert(this.#failure !== undefined, 'a log gives up for a reason');
    const { error } = this.#failure;
    this.#closing.abort();
    for (const { appends } of this.#inFlight.splice(0)) for (const { reject } of appends) reject(error);
    this.#refuseWaiting(error);
  }

  #refuseWaiting(error: unknown): void {
    this.#waitingBytes = 0;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
    this.#tellIdle();
  }

  // --- space

  /** Gives space back if it can. If an append needs it and there is none: as `whenFull` says. */
  async #reclaim(): Promise<void> {
    try {
      await this.#reclaimOnce();
    } catch (error) {
      if (!this.#closing.signal.aborted) {
        this.#failure ??= { error: writerError(this.#access, error) };
        if (this.#inFlight.length === 0) this.#giveUp();
      }
    } finally {
      this.#reclaiming = undefined;
    }
    if (!this.#closing.signal.aborted) this.#pump();
    this.#tellIdle();
  }

  async #reclaimOnce(): Promise<void> {
    const { signal } = this.#closing;
    const address = cursorAddress(0);
    const lengthBytes = cursorsBytes(this.#region);
    let change = await this.#access.watch(address, lengthBytes, 0, { signal });
    for (;;) {
      this.#sinceLook = 0;
      const head = await this.#freeable();
      if (head !== undefined) return this.#moveHead(head);
      const first = this.#waiting[0];
      if (first === undefined || this.#space.fits(first.takenBytes)) return;
      if (this.#whenFull === 'error') return this.#refuseFirst();
      change = await this.#access.watch(address, lengthBytes, change, { signal });
    }
  }

  async #freeable(): Promise<RingPosition | undefined> {
    const cleared = (await readCursors(this.#access, this.#region, this.#closing.signal)).map(
      (cursor) => cursor.cleared,
    );
    const head = this.#space.freeable(droppable(cleared, false));
    if (head !== undefined || this.#whenFull !== 'drop-drained') return head;
    const first = this.#waiting[0];
    if (first === undefined || this.#space.fits(first.takenBytes)) return undefined;
    return this.#space.freeable(droppable(cleared, true));
  }

  async #moveHead(head: RingPosition): Promise<void> {
    const { sequence, offset, previousChecksum } = head;
    this.#region = { ...this.#region, head: { sequence, offset, previousChecksum } };
    if (isPlanted('head-moved-before-durable')) {
      this.#space.release(head);
      this.#pump();
    }
    await this.#pair.write(encodeRegion(this.#region));
    if (!isPlanted('head-moved-before-durable')) this.#space.release(head);
  }

  #refuseFirst(): void {
    while (this.#waiting.length > 0 && !this.#space.fits(this.#waiting[0]!.takenBytes)) {
      const { payload, reject } = this.#waiting.shift()!;
      this.#waitingBytes -= payload.length;
      reject(
        new HoldfastError(
          'ERR_HOLDFAST_NO_SPACE',
          `the ring of ${this.#space.ringBytes} bytes is full of checkpoints that a backup has not cleared; let them ` +
            'be cleared, retire a backup that is gone, or make the region larger',
        ),
      );
    }
  }

  // --- the end

  /** Waits for what is in flight; what waits for space is rejected. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#pump();
    while (this.#inFlight.length > 0) await this.#idle();
    this.#closing.abort();
    this.#refuseWaiting(closedError());
    await this.#reclaiming;
  }

  #idle(): Promise<void> {
    return new Promise((resolve) => {
      this.#onIdle = resolve;
    });
  }

  #tellIdle(): void {
    if (this.#inFlight.length > 0) return;
    this.#onIdle?.();
    this.#onIdle = undefined;
  }
}

function closedError(): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_CLOSED', 'the checkpoint writer is closed; open another one');
}
