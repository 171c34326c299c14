/**
 * The activity log of one member: which extents of the volume may differ from the other copies after this member has
 * crashed. A bitmap on the device, as Linux md's write-intent bitmap and not a ring as DRBD's: an extent can stay in it
 * for as long as the peer is away. What may be taken out when is active-extents.ts; a block's bytes are log-format.ts.
 *
 * Invariants:
 * - A write begins only when every extent that it touches is named on the device by both copies of its block: `enter`
 *   has answered or resolved. So it is on receivers, too.
 * - The two copies of a block are written at one sequence, one after the other, each durable before the next begins, and
 *   the one in doubt first: at every moment one of them is whole, and rot of either takes nothing away that counts.
 * - At one time at most one write of a block goes on. Who comes meanwhile shares the next one, or this one if it
 *   already names what he needs.
 * - A block of which no copy is whole names all of its extents.
 * - Taking out is lazy, so that a moving load costs few writes: only when more than `maxActive` extents are active, or
 *   when an extent has been idle for `idleMs`; what is taken out rides along with the next write of its block.
 *
 * Cost: `enter` and `leave` of an extent that is in the log already allocate nothing and wait for nothing. Bounds:
 * MAX_EXTENTS extents, 8 KiB on the device for each 32 256 of them, one timer.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { assert, HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { ActiveExtents, blockOf, type ExtentTest, MAX_EXTENTS } from './active-extents.ts';
import {
  allNamed,
  type DecodedLogBlock,
  decodeLogBlock,
  EXTENTS_PER_BLOCK,
  encodeLogBlock,
  LOG_BLOCK_BYTES,
  type LogBlockPlace,
} from './log-format.ts';

const DEFAULT_MAX_ACTIVE = 256;
const DEFAULT_IDLE_MS = 10_000;

export interface LogLayout {
  readonly sizeBytes: number;
  /** A power of two. */
  readonly extentBytes: number;
  /** 32 hexadecimal digits, in the member's record too. */
  readonly logId: string;
  /** Where the two copies of the log begin on the device; each has `logBytes` of room. */
  readonly copyOffsets: readonly [number, number];
}

export interface LogRange {
  readonly offset: number;
  readonly length: number;
}

/** What `open` found wrong with a block. */
export interface LogDamage {
  readonly block: number;
  /** No copy was whole: all of its extents are named. */
  readonly lost: boolean;
  readonly reason: string;
}

export interface LogStart {
  readonly clock: Clock;
  /** The copies are known to differ somewhere in this range, or may: it stays in the log. Called often; cheap. */
  readonly isPinned: (offset: number, length: number) => boolean;
  /** Idle extents wait for a flush, of this copy or another, and nobody asks for one: a good time for it. */
  readonly flushWanted?: () => void;
  /** A write of the log that nobody waits for has failed: the device has. */
  readonly onFailure: (error: unknown) => void;
  /** More active extents than this are too many; default 256. */
  readonly maxActive?: number;
  /** Default 10 000. */
  readonly idleMs?: number;
}

interface BlockRun {
  /** Set when the block's bytes are settled; what comes later needs another run. */
  image: Uint8Array | undefined;
  readonly done: Promise<void>;
}

interface BlockState {
  readonly places: readonly [LogBlockPlace, LogBlockPlace];
  sequence: number;
  /** Which copies are whole and the newest. */
  readonly good: [boolean, boolean];
  running: BlockRun | undefined;
  next: Promise<void> | undefined;
}

/**
 * How much room one copy of the log takes. Throws ERR_HOLDFAST_BAD_ARGUMENT if the extent is too small for the volume.
 */
export function logBytes(sizeBytes: number, extentBytes: number): number {
  const extents = Math.ceil(sizeBytes / extentBytes);
  if (extents > MAX_EXTENTS) {
    const least = 2 ** Math.ceil(Math.log2(sizeBytes / MAX_EXTENTS));
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `a volume of ${sizeBytes} bytes needs activity log extents of at least ${least} bytes, not ${extentBytes}`,
    );
  }
  return Math.ceil(extents / EXTENTS_PER_BLOCK) * LOG_BLOCK_BYTES;
}

export class ActivityLog {
  readonly extentBytes: number;
  readonly sizeBytes: number;
  /** What was found wrong when it was opened, and is not mended yet. */
  readonly damage: readonly LogDamage[];
  readonly #device: BlockDevice;
  readonly #extents: ActiveExtents;
  readonly #blocks: readonly BlockState[];
  #start: LogStart | undefined;
  #maxActive = DEFAULT_MAX_ACTIVE;
  #timer: TimerHandle | undefined;
  /** Too many are active from here on; grows while those that are too many cannot be taken out. */
  #tooMany = DEFAULT_MAX_ACTIVE;
  #closed = false;

  private constructor(device: BlockDevice, layout: LogLayout, extents: ActiveExtents, found: readonly FoundBlock[]) {
    this.#device = device;
    this.sizeBytes = layout.sizeBytes;
    this.extentBytes = layout.extentBytes;
    this.#extents = extents;
    this.#blocks = found.map(({ sequence, good }, index) => ({
      places: placesOf(layout, index),
      sequence,
      good,
      running: undefined,
      next: undefined,
    }));
    this.damage = found.flatMap(({ damage }) => damage ?? []);
  }

  /** Writes an empty log. Durable when resolved. */
  static async create(device: BlockDevice, layout: LogLayout): Promise<void> {
    const blocks = logBytes(layout.sizeBytes, layout.extentBytes) / LOG_BLOCK_BYTES;
    const empty = new Uint8Array(allNamed(0).length);
    for (const copy of [0, 1] as const) {
      const area = new Uint8Array(blocks * LOG_BLOCK_BYTES);
      for (let index = 0; index < blocks; index += 1)
        area.set(encodeLogBlock(placesOf(layout, index)[copy], 1, empty), index * LOG_BLOCK_BYTES);
      await device.write(layout.copyOffsets[copy], area);
      await device.flush();
    }
  }

  /**
   * Reads the log. Changes nothing. What it names stays active. With `ignored` it names nothing: the member was stopped
   * cleanly, and what is still written there is of no meaning.
   */
  static async open(device: BlockDevice, layout: LogLayout, ignored: boolean): Promise<ActivityLog> {
    const extents = new ActiveExtents(Math.ceil(layout.sizeBytes / layout.extentBytes));
    const areas = [
      await readArea(device, layout.copyOffsets[0], extents.blocks),
      await readArea(device, layout.copyOffsets[1], extents.blocks),
    ] as const;
    const found: FoundBlock[] = [];
    for (let block = 0; block < extents.blocks; block += 1) {
      const [first, second] = placesOf(layout, block);
      const read = findBlock(block, first.extents, areas[0](first), areas[1](second));
      // What only one copy says may go with it: nothing can depend on it until the block has been written again.
      if (read.good[0] && read.good[1]) extents.written(block, read.bits);
      if (!ignored) extents.activateBits(block, read.bits);
      found.push(read);
    }
    return new ActivityLog(device, layout, extents, found);
  }

  /** From now on extents may be taken out again. Before that the log only grows. */
  start(options: LogStart): void {
    this.#start = options;
    this.#maxActive = options.maxActive ?? DEFAULT_MAX_ACTIVE;
    this.#tooMany = this.#maxActive;
    this.#armTimer();
  }

  get activeExtents(): number {
    return this.#extents.activeCount;
  }

  /** The last extent may be a short one. */
  get activeBytes(): number {
    const last = this.#extents.extents - 1;
    const short = this.#extents.extents * this.extentBytes - this.sizeBytes;
    return this.activeExtents * this.extentBytes - (this.#extents.isActive(last) ? short : 0);
  }

  // --- writes

  /**
   * A write to this range is about to begin. Undefined: it may begin now. Else it may when the promise has resolved; if
   * that rejects the write must not begin, the device has failed, and `leave` is not called for it.
   */
  enter(offset: number, length: number): Promise<void> | undefined {
    if (length === 0) return undefined;
    const first = Math.floor(offset / this.extentBytes);
    const last = Math.floor((offset + length - 1) / this.extentBytes);
    assert(last < this.#extents.extents, 'a write lies inside the volume');
    if (this.#timer === undefined) this.#armTimer();
    if (this.#extents.enter(first, last)) return undefined;
    return this.#enterNew(first, last);
  }

  /** The write has ended, well or not. */
  leave(offset: number, length: number): void {
    if (length === 0) return;
    const first = Math.floor(offset / this.extentBytes);
    const last = Math.floor((offset + length - 1) / this.extentBytes);
    this.#extents.leave(first, last);
    if (isPlanted('log-retired-before-flush')) this.clear().catch(() => {});
  }

  /** A flush of the data device begins. Give the answer to `flushSucceeded`, if it does; a failed one is never told. */
  flushBegins(): number {
    return this.#extents.flushBegins();
  }

  flushSucceeded(mark: number): void {
    this.#extents.flushSucceeded(mark);
  }

  // --- what it names

  /** The active extents, neighbours together, ascending. Before the first write: what was read when it was opened. */
  *named(): Generator<LogRange> {
    const { extentBytes, sizeBytes } = this;
    for (let first = this.#extents.next(0); first >= 0; ) {
      let end = first + 1;
      while (end < this.#extents.extents && this.#extents.isActive(end)) end += 1;
      yield { offset: first * extentBytes, length: Math.min(end * extentBytes, sizeBytes) - first * extentBytes };
      first = this.#extents.next(end);
    }
  }

  /** Names this range: durable when resolved. It is taken out again by the same rules as what was written. */
  async name(offset: number, length: number): Promise<void> {
    const first = Math.floor(offset / this.extentBytes);
    const last = Math.floor((offset + length - 1) / this.extentBytes);
    for (let extent = first; extent <= last; extent += 1) this.#extents.activate(extent);
    await this.#durable(first, last);
    this.#armTimer();
  }

  nameAll(): Promise<void> {
    return this.name(0, this.sizeBytes);
  }

  /**
   * Takes out all that may be taken out, without waiting for it to be idle: durable when resolved. For a clean stop, and
   * for when the copies have become equal.
   */
  async clear(): Promise<void> {
    if (this.#start !== undefined) this.#retire(() => true);
    await Promise.all(this.#writeStale());
  }

  /** Makes both copies of every block whole again. Nothing is written if they are. */
  async repair(): Promise<void> {
    const doubtful = this.#blocks.filter(({ good }) => !good[0] || !good[1]);
    await Promise.all(doubtful.map((block) => this.#write(block)));
  }

  /** Writes that go on end; nothing is taken out any more. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#timer?.cancel();
    this.#timer = undefined;
    await Promise.allSettled(this.#blocks.map(({ running, next }) => next ?? running?.done));
  }

  // --- taking out

  #armTimer(): void {
    if (this.#timer !== undefined || this.#start === undefined || this.#closed) return;
    const { clock, idleMs = DEFAULT_IDLE_MS } = this.#start;
    this.#timer = clock.setTimer(idleMs, () => {
      this.#timer = undefined;
      this.#tidy();
    });
  }

  /** What was idle all the time since the last tick goes. */
  #tidy(): void {
    const extents = this.#extents;
    this.#retire((extent) => extents.isIdle(extent));
    this.#tooMany = this.#maxActive;
    if (this.#waitsForFlush()) this.#start!.flushWanted?.();
    extents.tick();
    for (const write of this.#writeStale()) write.catch(this.#start!.onFailure);
    if (extents.activeCount > 0) this.#armTimer();
  }

  #retire(chosen: ExtentTest, limit = Number.POSITIVE_INFINITY): number {
    const { isPinned } = this.#start!;
    return this.#extents.retire(limit, chosen, (extent) => {
      if (isPlanted('log-retired-before-flush')) return false;
      const offset = extent * this.extentBytes;
      return isPinned(offset, Math.min(this.extentBytes, this.sizeBytes - offset));
    });
  }

  /** Room for new ones: those that have not been written to for longest go first, as far as ticks tell. */
  #makeRoom(): void {
    if (this.#start === undefined || this.#extents.activeCount <= this.#tooMany) return;
    const reserve = Math.ceil(this.#maxActive / 4);
    const surplus = () => this.#extents.activeCount - this.#maxActive + reserve;
    this.#retire((extent) => this.#extents.isIdle(extent), surplus());
    if (surplus() > 0) this.#retire(() => true, surplus());
    this.#tooMany = Math.max(this.#maxActive, this.#extents.activeCount + reserve);
  }

  /**
   * A flush would help: an idle extent is not clean, or it has just come to rest. Then what pins it may wait for a flush
   * of the other copy; asked for once, since it may as well be pinned for as long as the peer is away.
   */
  #waitsForFlush(): boolean {
    const extents = this.#extents;
    for (let extent = extents.next(0); extent >= 0; extent = extents.next(extent + 1)) {
      if (extents.hasComeToRest(extent) || (extents.isIdle(extent) && !extents.isClean(extent))) return true;
    }
    return false;
  }

  // --- writing blocks

  async #enterNew(first: number, last: number): Promise<void> {
    this.#makeRoom();
    try {
      await this.#durable(first, last);
    } catch (error) {
      this.#extents.cancel(first, last);
      throw error;
    }
  }

  /** Resolves when both copies of their blocks name these active extents. */
  async #durable(first: number, last: number): Promise<void> {
    const writes: Promise<void>[] = [];
    for (let block = blockOf(first); block <= blockOf(last); block += 1) {
      const from = Math.max(first, block * EXTENTS_PER_BLOCK);
      const to = Math.min(last, (block + 1) * EXTENTS_PER_BLOCK - 1);
      const write = this.#nameInBlock(this.#blocks[block]!, block * EXTENTS_PER_BLOCK, from, to);
      if (write !== undefined) writes.push(write);
    }
    await Promise.all(writes);
  }

  #nameInBlock(block: BlockState, start: number, from: number, to: number): Promise<void> | undefined {
    let missing = false;
    let coming = block.running !== undefined;
    for (let extent = from; extent <= to; extent += 1) {
      if (this.#extents.isOnDisk(extent)) continue;
      missing = true;
      const image = block.running?.image;
      const at = extent - start;
      if (image !== undefined && (image[at >>> 3]! & (1 << (at & 7))) === 0) coming = false;
    }
    if (!missing) return undefined;
    return coming ? block.running!.done : this.#write(block);
  }

  #writeStale(): Promise<void>[] {
    return this.#blocks
      .filter((block, index) => this.#extents.isStale(index) || !block.good[0] || !block.good[1])
      .map((block) => this.#write(block));
  }

  /** A write of the block that says what is active now, or later. */
  #write(block: BlockState): Promise<void> {
    if (block.next !== undefined) return block.next;
    if (block.running === undefined) return this.#begin(block);
    const begin = () => this.#begin(block);
    block.next = block.running.done.then(begin, begin);
    return block.next;
  }

  #begin(block: BlockState): Promise<void> {
    block.next = undefined;
    const run: { image: Uint8Array | undefined; done: Promise<void> } = {
      image: undefined,
      // Those who come in the same turn of the event loop share it.
      done: Promise.resolve().then(() => this.#writeCopies(block, run)),
    };
    block.running = run;
    const over = () => {
      if (block.running === run) block.running = undefined;
    };
    run.done.then(over, over);
    return run.done;
  }

  async #writeCopies(block: BlockState, run: BlockRun): Promise<void> {
    const { index } = block.places[0];
    const image = this.#extents.beginWrite(index);
    run.image = image;
    block.sequence += 1;
    const order: readonly (0 | 1)[] = block.good[1] ? [0, 1] : [1, 0];
    for (const copy of order) {
      const place = block.places[copy];
      block.good[copy] = false;
      await this.#device.write(place.offset, encodeLogBlock(place, block.sequence, image), { fua: true });
      block.good[copy] = true;
    }
    this.#extents.written(index, image);
  }
}

// --- reading

interface FoundBlock {
  readonly sequence: number;
  readonly bits: Uint8Array;
  readonly good: [boolean, boolean];
  readonly damage: LogDamage | undefined;
}

function placesOf(layout: LogLayout, index: number): readonly [LogBlockPlace, LogBlockPlace] {
  const extents = Math.ceil(layout.sizeBytes / layout.extentBytes);
  const place = (copyOffset: number): LogBlockPlace => ({
    logId: layout.logId,
    index,
    offset: copyOffset + index * LOG_BLOCK_BYTES,
    extents: Math.min(extents - index * EXTENTS_PER_BLOCK, EXTENTS_PER_BLOCK),
  });
  return [place(layout.copyOffsets[0]), place(layout.copyOffsets[1])];
}

/** A reader of blocks. An area that cannot be read as a whole is read block by block: only the bad ones are lost. */
async function readArea(
  device: BlockDevice,
  offset: number,
  blocks: number,
): Promise<(place: LogBlockPlace) => DecodedLogBlock> {
  const area = new Uint8Array(blocks * LOG_BLOCK_BYTES);
  const unreadable = new Map<number, string>();
  try {
    await device.read(offset, area);
  } catch {
    for (let index = 0; index < blocks; index += 1) {
      const block = area.subarray(index * LOG_BLOCK_BYTES, (index + 1) * LOG_BLOCK_BYTES);
      try {
        await device.read(offset + index * LOG_BLOCK_BYTES, block);
      } catch (error) {
        unreadable.set(index, `it cannot be read: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
  }
  return (place) => {
    const reason = unreadable.get(place.index);
    if (reason !== undefined) return { sequence: 0, bits: undefined, reason };
    const start = place.index * LOG_BLOCK_BYTES;
    return decodeLogBlock(area.subarray(start, start + LOG_BLOCK_BYTES), place);
  };
}

/** The newest whole copy counts: what only a newer one would name has not been written yet. */
function findBlock(block: number, extents: number, first: DecodedLogBlock, second: DecodedLogBlock): FoundBlock {
  const sequence = Math.max(first.sequence, second.sequence);
  if (first.bits === undefined && second.bits === undefined) {
    const reason = `the first copy: ${first.reason}; the second: ${second.reason}`;
    return { sequence, bits: allNamed(extents), good: [false, false], damage: { block, lost: true, reason } };
  }
  const good: [boolean, boolean] = [first.sequence === sequence, second.sequence === sequence];
  const newest = good[0] ? first : second;
  const bits = newest.bits!;
  if (good[0] && good[1]) {
    // Two whole copies of one sequence are equal. Should they not be, both count.
    for (let at = 0; at < bits.length; at += 1) bits[at]! |= second.bits![at]!;
  }
  const reason = good[0] ? second.reason : first.reason;
  return { sequence, bits, good, damage: reason === undefined ? undefined : { block, lost: false, reason } };
}
