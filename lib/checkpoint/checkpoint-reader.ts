/**
 * CheckpointReader: a backup's end of a region with checkpoints, while a writer is at work or after it has gone.
 *
 * Invariants:
 * - What a reader gives is whole, durable (it makes it so itself, or a power cut of the unit could take back what has
 *   had its effect), and in the order of its sequence numbers, each once and without a gap.
 * - What a backup has not cleared is kept for it, unless the writer may drop it (`drop-drained`): then the reader says
 *   so with ERR_HOLDFAST_GAP, and never goes on in silence.
 * - Nothing is polled.
 */
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { scanChain } from './chain-scan.ts';
import { bytesCodec, type Codec } from './codec.ts';
import { Cursor, retireCursor } from './cursors.ts';
import { type CheckpointMode, headPosition, isBackupName, type RegionRecord, type RingPosition } from './layout.ts';
import type { RegionAccess } from './one-sided.ts';
import type { RawRecord } from './records.ts';
import { readRegionRecord } from './region-record.ts';
import { findNewest } from './slot-look.ts';

/** Ends of records that were given and not cleared: of more of them, only the newest are remembered. */
const ENDS_MAX = 1024;
const PORTION_BYTES = 8 * 1024 * 1024;
/** What has come is made durable while the rest of a portion comes, from so much on. */
const PERSIST_BYTES = 1024 * 1024;

/** One checkpoint as a backup gets it. */
export interface Checkpoint<T = Uint8Array> {
  /** From 1; in a series each is the one before plus 1. */
  readonly sequence: number;
  /** Of its writer. */
  readonly epoch: number;
  readonly value: T;
}

/** Who reads, and how checkpoints become values. */
export interface CheckpointReaderOptions<T = Uint8Array> {
  /** As the writer's; default bytes. */
  readonly codec?: Codec<T>;
  /**
   * Name of the backup, 1 to 64 printable ASCII characters: its cursor is registered, and what it has not cleared is kept
   * for it. Without a name it looks on, and what it has not read may be dropped. Only for `append`.
   */
  readonly name?: string;
  /** Which cursor is its own, from 0; default 0. Two backups never share one. */
  readonly cursor?: number;
  /** Opens the cursor's pages (`cursorAddress`) to write, if `access` does not. */
  readonly cursorAccess?: RegionAccess;
  /** Begins with the oldest record that is kept, whatever this backup has had before: after ERR_HOLDFAST_GAP. */
  readonly restart?: boolean;
}

/** How much of a series is taken at a time. */
export interface DrainOptions {
  /** About so many bytes of checkpoints, and at least one if there is any; default 8 MiB. */
  readonly maxBytes?: number;
  /**
   * Memory of the caller's for the portion: no more is taken than fits, but for the first checkpoint. Values that are
   * bytes are views of it, good until it is used again. Default: new memory each time, which costs a fast reader about
   * as much as the reading.
   */
  readonly into?: Uint8Array | undefined;
  readonly signal?: AbortSignal;
}

interface PortionOptions {
  readonly into?: Uint8Array | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Reads the checkpoints of a region. */
export class CheckpointReader<T = Uint8Array> {
  readonly mode: CheckpointMode;
  readonly #access: RegionAccess;
  readonly #codec: Codec<T>;
  readonly #cursor: Cursor | undefined;
  #region: RegionRecord;
  /** Where the next record is looked for. */
  #place: RingPosition;
  /** The next one to be given is the one after. */
  #given: number;
  #cleared: number;
  /** After records that were given and not cleared, ascending. */
  #ends: RingPosition[] = [];
  #reading = false;
  /** The last portion was as long as it was allowed to be, or could be: there is more. */
  #isMuch = false;
  #wantsCleared: number;
  #clearing: Promise<void> | undefined;

  private constructor(access: RegionAccess, region: RegionRecord, codec: Codec<T>, cursor: Cursor | undefined) {
    this.mode = region.mode;
    this.#access = access;
    this.#codec = codec;
    this.#cursor = cursor;
    this.#region = region;
    this.#cleared = cursor?.record.cleared ?? region.head.sequence - 1;
    this.#wantsCleared = this.#cleared;
    this.#given = this.#cleared;
    this.#place = this.#start();
  }

  /**
   * The key must have the right to read all of the region.
   *
   * @throws HoldfastError ERR_HOLDFAST_METADATA_MISSING if the region has not been formatted, ERR_HOLDFAST_BUSY if the
   *   cursor is another backup's, ERR_HOLDFAST_BAD_ARGUMENT, ERR_HOLDFAST_METADATA_DAMAGED, and what the commands throw.
   */
  static open(access: RegionAccess, options?: CheckpointReaderOptions): Promise<CheckpointReader>;
  static open<T>(
    access: RegionAccess,
    options: CheckpointReaderOptions<T> & { readonly codec: Codec<T> },
  ): Promise<CheckpointReader<T>>;
  static async open(
    access: RegionAccess,
    options: CheckpointReaderOptions<unknown> = {},
  ): Promise<CheckpointReader<unknown>> {
    const codec = options.codec ?? (bytesCodec as Codec<unknown>);
    let region = await readRegionRecord(access);
    const wanted = wantedCursor(region, options);
    if (wanted === undefined) return new CheckpointReader(access, region, codec, undefined);
    const start = ({ head }: RegionRecord) => ({ cleared: head.sequence - 1, readOn: { ...head, epoch: 0 } });
    const cursor = await Cursor.open(options.cursorAccess ?? access, region, wanted, start(region));
    // What was dropped before the cursor was seen was not dropped behind this backup's back.
    for (let isNew = cursor.isNew; isNew; ) {
      const found = await readRegionRecord(access);
      isNew = found.head.sequence !== region.head.sequence;
      region = found;
      if (isNew) await cursor.write(start(region));
    }
    return new CheckpointReader(access, region, codec, cursor);
  }

  /**
   * Nothing is kept any more for the backup with this cursor. True if there was one.
   *
   * @throws HoldfastError what the commands throw; the key must have the right to write the cursor's pages.
   */
  static async retire(access: RegionAccess, cursor: number, cursorAccess: RegionAccess = access): Promise<boolean> {
    const region = await readRegionRecord(access);
    checkIndex(region, cursor);
    return retireCursor(cursorAccess, region, cursor);
  }

  /** Sequence number up to which this backup has cleared, durably. */
  get clearedSequence(): number {
    return this.#cleared;
  }

  /** Sequence number of the last checkpoint that this reader has given. */
  get readSequence(): number {
    return this.#given;
  }

  /**
   * The newest checkpoint of a region for `overwrite`; undefined if there is none yet.
   *
   * @throws HoldfastError ERR_HOLDFAST_METADATA_DAMAGED if none is whole, ERR_HOLDFAST_BAD_ARGUMENT for a region for
   *   `append`.
   */
  async latest(options: { readonly signal?: AbortSignal } = {}): Promise<Checkpoint<T> | undefined> {
    if (this.mode !== 'overwrite') throw wrongMode(this.mode);
    const found = await findNewest(this.#access, this.#region, options.signal);
    if (found === undefined) return undefined;
    const { sequence, epoch, checkpoint } = found;
    return { sequence, epoch, value: this.#codec.decode(checkpoint) };
  }

  /**
   * All that has not been cleared, from the first on; `drain` goes on after it.
   *
   * @throws HoldfastError as `drain`.
   */
  async readAll(options: { readonly signal?: AbortSignal } = {}): Promise<Checkpoint<T>[]> {
    return this.#exclusively(async () => {
      this.#place = this.#start();
      this.#given = this.#cleared;
      this.#ends = [];
      return this.#rest(options.signal);
    });
  }

  /**
   * The next portion: empty if nothing has come since the last one.
   *
   * @throws HoldfastError ERR_HOLDFAST_GAP if records that come next have been dropped, ERR_HOLDFAST_BUSY while another
   *   call reads, ERR_HOLDFAST_METADATA_MISMATCH if the region was formatted anew, ERR_HOLDFAST_BAD_FRAME (codec),
   *   ERR_HOLDFAST_BAD_ARGUMENT, ERR_HOLDFAST_ABORTED, and what the commands throw.
   */
  async drain(options: DrainOptions = {}): Promise<Checkpoint<T>[]> {
    const { maxBytes = PORTION_BYTES } = options;
    if (!(maxBytes > 0)) throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `maxBytes is ${maxBytes}; use 1 or more`);
    return this.#exclusively(() => this.#portion(maxBytes, options));
  }

  /**
   * After the primary's failure: all that is left, to the end of the chain. That this is the end is certain only when no
   * writer can add to it: after the keys have been revoked, or a CheckpointWriter has been opened.
   *
   * @throws HoldfastError as `drain`.
   */
  async tail(options: { readonly signal?: AbortSignal } = {}): Promise<Checkpoint<T>[]> {
    return this.#exclusively(() => this.#rest(options.signal));
  }

  /**
   * Each checkpoint as it comes, until the signal fires (ERR_HOLDFAST_ABORTED) or the caller breaks off.
   *
   * @throws HoldfastError as `drain`.
   */
  async *follow(options: { readonly signal?: AbortSignal } = {}): AsyncGenerator<Checkpoint<T>, never, void> {
    const { signal } = options;
    const { dataAddress, dataBytes } = this.#region;
    const watch = (since: number) => this.#access.watch(dataAddress, dataBytes, since, signal && { signal });
    let change = await watch(0);
    for (;;) {
      throwIfAborted(signal, 'following checkpoints');
      const portion = await this.drain(options);
      if (portion.length > 0) yield* portion;
      else change = await watch(change);
    }
  }

  /**
   * This backup has applied, durably, all up to this one: they need not be kept for it any more. Durable when resolved.
   *
   * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT for what has not been given yet, or without a name.
   */
  async clear(sequence: number): Promise<void> {
    const cursor = this.#cursor;
    if (cursor === undefined)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        'a reader without a name has no cursor; open it with a name',
      );
    if (!Number.isSafeInteger(sequence) || sequence > this.#given)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `checkpoint ${sequence} has not been read yet, the last one was ${this.#given}; clear what has been applied`,
      );
    this.#wantsCleared = Math.max(this.#wantsCleared, sequence);
    // Of those that come while the cursor is written only the last one counts.
    while (this.#cleared < sequence) {
      this.#clearing ??= this.#writeCursor(cursor).finally(() => {
        this.#clearing = undefined;
      });
      await this.#clearing;
    }
  }

  async #writeCursor(cursor: Cursor): Promise<void> {
    await Promise.resolve();
    const cleared = this.#wantsCleared;
    const readOn = this.#ends.findLast((end) => end.sequence <= cleared + 1) ?? cursor.record.readOn;
    await cursor.write({ cleared, readOn });
    this.#cleared = cleared;
    this.#ends = this.#ends.filter((end) => end.sequence > cleared + 1);
  }

  // --- reading

  /** Where to begin: the cursor's place, if that is not before the oldest record that is kept. */
  #start(): RingPosition {
    const head = headPosition(this.#region);
    const readOn = this.#cursor?.record.readOn;
    return readOn !== undefined && readOn.sequence > head.sequence ? readOn : head;
  }

  async #exclusively<R>(work: () => Promise<R>): Promise<R> {
    if (this.mode !== 'append') throw wrongMode(this.mode);
    if (this.#reading)
      throw new HoldfastError('ERR_HOLDFAST_BUSY', 'this reader is reading already; await that, or open another one');
    this.#reading = true;
    try {
      return await work();
    } finally {
      this.#reading = false;
    }
  }

  async #rest(signal: AbortSignal | undefined): Promise<Checkpoint<T>[]> {
    const all: Checkpoint<T>[] = [];
    for (;;) {
      const portion = await this.#portion(this.#region.dataBytes, { signal });
      if (portion.length === 0) return all;
      for (const checkpoint of portion) all.push(checkpoint);
    }
  }

  async #portion(maxBytes: number, { into, signal }: PortionOptions): Promise<Checkpoint<T>[]> {
    for (;;) {
      throwIfAborted(signal, 'reading checkpoints');
      const from = this.#place;
      const behind = new PersistBehind(from, (start, end) => this.#persist(start, end, signal));
      const records: RawRecord[] = [];
      const ends: RingPosition[] = [];
      let bytes = 0;
      const visit = (record: RawRecord, after: RingPosition) => {
        if (record.sequence <= this.#given) return true;
        records.push(record);
        ends.push(after);
        bytes += record.payload.length;
        behind.hasCome(after, bytes);
        return bytes < maxBytes;
      };
      const options = { expectedBytes: maxBytes, isMuch: this.#isMuch, into, ...(signal !== undefined && { signal }) };
      const after = await scanChain(this.#access, this.#region, from, visit, options);
      // The next one may not have fitted into the memory that was given.
      this.#isMuch = bytes >= Math.min(maxBytes, into === undefined ? maxBytes : into.length / 2);
      if (records.length > 0) {
        if (records[0]!.sequence !== this.#given + 1) throw this.#gap(records[0]!.sequence);
        await behind.end(after);
        const codec = this.#codec;
        const portion = records.map(({ sequence, epoch, payload }) => ({
          sequence,
          epoch,
          value: codec.decode(payload),
        }));
        this.#remember(ends);
        this.#place = after;
        this.#given = after.sequence - 1;
        return portion;
      }
      this.#place = after;
      if (after.sequence === from.sequence && !(await this.#lookForMore())) return [];
    }
  }

  #remember(ends: readonly RingPosition[]): void {
    if (this.#cursor === undefined) return;
    this.#ends = [...this.#ends, ...ends].slice(-ENDS_MAX);
  }

  /** What was read is durable afterwards: a writer's own persist of it may still be under way. */
  async #persist(from: RingPosition, after: RingPosition, signal: AbortSignal | undefined): Promise<void> {
    if (isPlanted('read-before-durable')) return;
    const { dataAddress, dataBytes } = this.#region;
    const persist = (start: number, end: number) =>
      start < end ? this.#access.persist(dataAddress + start, end - start, signal && { signal }) : Promise.resolve();
    if (after.offset > from.offset) return persist(from.offset, after.offset);
    await Promise.all([persist(from.offset, dataBytes), persist(0, after.offset)]);
  }

  /** The chain breaks off here: at its end, or because what comes next was dropped, or goes on under a newer writer. */
  async #lookForMore(): Promise<boolean> {
    const known = this.#region;
    const found = await readRegionRecord(this.#access);
    if (found.formatId !== known.formatId)
      throw new HoldfastError(
        'ERR_HOLDFAST_METADATA_MISMATCH',
        `the region on ${this.#access.unit} was formatted anew; open the reader again`,
      );
    this.#region = found;
    const { head } = found;
    const place = this.#place;
    if (head.sequence > this.#given + 1) throw this.#gap(head.sequence);
    // The same place, or beyond a wrap; or all that lies between has been cleared.
    const isElsewhere =
      head.sequence > place.sequence || (head.sequence === place.sequence && head.offset !== place.offset);
    if (isElsewhere) this.#place = headPosition(found);
    return isElsewhere || found.epoch !== known.epoch;
  }

  #gap(oldest: number): HoldfastError {
    return new HoldfastError(
      'ERR_HOLDFAST_GAP',
      `checkpoints ${this.#given + 1} to ${oldest - 1} were dropped before this backup had read them; bring it up to date from ` +
        'elsewhere, then open the reader with restart',
    );
  }
}

/** Makes what is read durable while more is being read, a part at a time. */
class PersistBehind {
  readonly #persist: (from: RingPosition, after: RingPosition) => Promise<void>;
  #from: RingPosition;
  #fromBytes = 0;
  #last: Promise<void> = Promise.resolve();
  #isUnderWay = false;

  constructor(from: RingPosition, persist: (from: RingPosition, after: RingPosition) => Promise<void>) {
    this.#from = from;
    this.#persist = persist;
  }

  hasCome(after: RingPosition, bytes: number): void {
    if (this.#isUnderWay || bytes - this.#fromBytes < PERSIST_BYTES) return;
    this.#isUnderWay = true;
    this.#fromBytes = bytes;
    this.#last = this.#begin(after).finally(() => {
      this.#isUnderWay = false;
    });
    this.#last.catch(() => {});
  }

  /** All that has come is durable. */
  async end(after: RingPosition): Promise<void> {
    await Promise.all([this.#last, this.#begin(after)]);
  }

  async #begin(after: RingPosition): Promise<void> {
    const from = this.#from;
    this.#from = after;
    if (from.sequence !== after.sequence) await this.#persist(from, after);
  }
}

function wantedCursor(region: RegionRecord, options: CheckpointReaderOptions<unknown>) {
  const { name, cursor: index = 0, restart = false } = options;
  if (name === undefined) return undefined;
  if (region.mode !== 'append') throw wrongMode(region.mode);
  if (!isBackupName(name))
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${JSON.stringify(name)} cannot name a backup; use 1 to 64 printable ASCII characters without spaces`,
    );
  checkIndex(region, index);
  return { index, name, restart };
}

function checkIndex(region: RegionRecord, index: number): void {
  if (Number.isInteger(index) && index >= 0 && index < region.cursorCount) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `there is no cursor ${index}; the region has ${region.cursorCount}, from 0 on`,
  );
}

function wrongMode(mode: CheckpointMode): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `the region was formatted to ${mode}; ${mode === 'append' ? 'drain it' : 'it has one checkpoint, without cursors: ask for the latest'}`,
  );
}
