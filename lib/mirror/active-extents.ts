/**
 * Which extents of a member's volume are in its activity log, and which may be taken out. Pure: the driver
 * (activity-log.ts) writes the blocks and has the clock.
 *
 * An extent is *active* from the first write to it on. It is taken out only when all of these hold:
 * - no write is in flight in it;
 * - a flush that began after its last write had ended has succeeded;
 * - nothing pins it: the mirror engine has no mark in it any more that says that the copies differ.
 *
 * Two bitmaps, one bit an extent: `active`, what the next write of a block will say, and `onDisk`, what both copies
 * of the block say now. While a block is being written, `onDisk` holds only what the old and the new image have in
 * common. A data write may begin while its extents are in both.
 *
 * Bounds: 12.25 bytes an extent, MAX_EXTENTS at most; the system gives real memory only to what has been touched.
 */
import { assert } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { BITS_BYTES, EXTENTS_PER_BLOCK } from './log-format.ts';

/** Bounds the volume's size divided by its extent: 32 TiB of 4 MiB extents. */
export const MAX_EXTENTS = 8 * 1024 * 1024;

export type ExtentTest = (extent: number) => boolean;

export class ActiveExtents {
  readonly extents: number;
  readonly blocks: number;
  /** Writes under way, or waiting for the log. */
  readonly #inFlight: Uint32Array;
  /** The moment (see `#moment`) at which the last write ended. */
  readonly #lastEnd: Float64Array;
  readonly #active: Uint8Array;
  readonly #onDisk: Uint8Array;
  #activeCount = 0;
  /** Counts flushes that began, and ticks: enough of a clock to say what was before what. */
  #moment = 1;
  /** The latest moment at which a flush began that has succeeded. */
  #flushedAt = 0;
  #lastTickAt = 0;
  #tickBeforeAt = 0;

  constructor(extents: number) {
    assert(extents > 0 && extents <= MAX_EXTENTS, 'a log has 1 to MAX_EXTENTS extents');
    this.extents = extents;
    this.blocks = Math.ceil(extents / EXTENTS_PER_BLOCK);
    this.#inFlight = new Uint32Array(extents);
    this.#lastEnd = new Float64Array(extents);
    this.#active = new Uint8Array(this.blocks * BITS_BYTES);
    this.#onDisk = new Uint8Array(this.blocks * BITS_BYTES);
  }

  get activeCount(): number {
    return this.#activeCount;
  }

  isActive(extent: number): boolean {
    return (this.#active[extent >>> 3]! & (1 << (extent & 7))) !== 0;
  }

  isOnDisk(extent: number): boolean {
    return (this.#onDisk[extent >>> 3]! & (1 << (extent & 7))) !== 0;
  }

  /** A write begins, or waits to: true if its extents are durably in the log. */
  enter(first: number, last: number): boolean {
    let durable = true;
    for (let extent = first; extent <= last; extent += 1) {
      this.#inFlight[extent]! += 1;
      const bit = 1 << (extent & 7);
      if ((this.#active[extent >>> 3]! & this.#onDisk[extent >>> 3]! & bit) === 0) {
        this.activate(extent);
        durable &&= this.isOnDisk(extent);
      }
    }
    return durable;
  }

  /** A write has ended, well or not. */
  leave(first: number, last: number): void {
    for (let extent = first; extent <= last; extent += 1) {
      assert(this.#inFlight[extent]! > 0, 'a write ends that has begun');
      this.#inFlight[extent]! -= 1;
      this.#lastEnd[extent] = this.#moment;
    }
  }

  /** A write that has not begun does not come: the log could not be written. */
  cancel(first: number, last: number): void {
    for (let extent = first; extent <= last; extent += 1) {
      assert(this.#inFlight[extent]! > 0, 'a write is given up that was announced');
      this.#inFlight[extent]! -= 1;
    }
  }

  activate(extent: number): void {
    if (this.isActive(extent)) return;
    this.#active[extent >>> 3]! |= 1 << (extent & 7);
    this.#activeCount += 1;
  }

  /** A flush begins; tell `flushSucceeded` of it by the mark that this gives. */
  flushBegins(): number {
    this.#moment += 1;
    return this.#moment;
  }

  flushSucceeded(mark: number): void {
    this.#flushedAt = Math.max(this.#flushedAt, mark);
  }

  /** Time passes: what is not written to until the next tick is idle. */
  tick(): void {
    this.#moment += 1;
    this.#tickBeforeAt = this.#lastTickAt;
    this.#lastTickAt = this.#moment;
  }

  /** Was not written to since the last tick. */
  isIdle(extent: number): boolean {
    return this.#inFlight[extent] === 0 && this.#lastEnd[extent]! < this.#lastTickAt;
  }

  /** Is idle, and was not at the last tick. */
  hasComeToRest(extent: number): boolean {
    return this.isIdle(extent) && this.#lastEnd[extent]! >= this.#tickBeforeAt;
  }

  /** Nothing stands in the way of taking it out but, perhaps, a pin. */
  isClean(extent: number): boolean {
    const flushed = this.#lastEnd[extent]! < this.#flushedAt || isPlanted('log-retired-before-flush');
    return this.#inFlight[extent] === 0 && flushed;
  }

  /** Takes out at most `limit` extents that are clean, not pinned, and `chosen`. Says how many. */
  retire(limit: number, chosen: ExtentTest, isPinned: ExtentTest): number {
    let retired = 0;
    for (let extent = this.next(0); extent >= 0 && retired < limit; extent = this.next(extent + 1)) {
      if (!this.isClean(extent) || !chosen(extent) || isPinned(extent)) continue;
      this.#active[extent >>> 3]! &= ~(1 << (extent & 7));
      this.#activeCount -= 1;
      retired += 1;
    }
    return retired;
  }

  /** The first active extent at or after `from`, or -1. */
  next(from: number): number {
    for (let at = from >>> 3; at < this.#active.length; at += 1) {
      const bits = at === from >>> 3 ? this.#active[at]! & (0xff << (from & 7)) : this.#active[at]!;
      if (bits !== 0) return at * 8 + (31 - Math.clz32(bits & -bits));
    }
    return -1;
  }

  // --- blocks

  /** Everything that the block's bits name becomes active. */
  activateBits(block: number, bits: Uint8Array): void {
    const start = block * EXTENTS_PER_BLOCK;
    for (const [at, byte] of bits.entries()) {
      if (byte === 0) continue;
      for (let bit = 0; bit < 8; bit += 1) if ((byte & (1 << bit)) !== 0) this.activate(start + at * 8 + bit);
    }
  }

  /** The image that is now written. Until `written` only what it has in common with the old one is sure. */
  beginWrite(block: number): Uint8Array {
    const start = block * BITS_BYTES;
    const image = this.#active.slice(start, start + BITS_BYTES);
    for (let at = 0; at < BITS_BYTES; at += 1) this.#onDisk[start + at]! &= image[at]!;
    return image;
  }

  /** Both copies of the block say this now. */
  written(block: number, image: Uint8Array): void {
    this.#onDisk.set(image, block * BITS_BYTES);
  }

  /** The block on the device says something else than it should. */
  isStale(block: number): boolean {
    const start = block * BITS_BYTES;
    return (
      Buffer.compare(
        this.#active.subarray(start, start + BITS_BYTES),
        this.#onDisk.subarray(start, start + BITS_BYTES),
      ) !== 0
    );
  }
}

export function blockOf(extent: number): number {
  return Math.floor(extent / EXTENTS_PER_BLOCK);
}
