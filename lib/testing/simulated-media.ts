/**
 * What a simulated disk holds: the content that a read finds, the content that survives a power cut, and between the
 * two the changes in the volatile cache, in order. No time passes here; the disk (simulated-disk.ts) has the clock.
 *
 * Invariant: the two contents differ only where a change in the cache says so.
 */
import type { Random } from '../base/random.ts';
import { SparseMemory } from '../storage/sparse-memory.ts';

/** A change of content. No data means zeros. */
export interface Change {
  readonly offset: number;
  readonly length: number;
  readonly data: Uint8Array | undefined;
}

interface CachedChange extends Change {
  readonly ordinal: number;
}

const memoryGrainBytes = 4096;
const cachedChangesMax = 16_384;
/** A long change is torn in so many pieces at most. */
const tearPiecesMax = 128;

export class SimulatedMedia {
  readonly #random: Random;
  readonly #sectorBytes: number;
  readonly #cacheBytesMax: number;
  readonly #current = new SparseMemory(memoryGrainBytes);
  readonly #durable = new SparseMemory(memoryGrainBytes);
  #cache: CachedChange[] = [];
  #cachedBytes = 0;
  #nextOrdinal = 0;

  /**
   * @param sectorBytes writes are torn at multiples of this
   * @param cacheBytesMax what the volatile cache holds before it writes back the oldest; 0: there is none
   */
  constructor(random: Random, sectorBytes: number, cacheBytesMax: number) {
    this.#random = random;
    this.#sectorBytes = sectorBytes;
    this.#cacheBytesMax = cacheBytesMax;
  }

  /** Bytes that a power cut now could take back. */
  get unflushedBytes(): number {
    return this.#cachedBytes;
  }

  read(offset: number, into: Uint8Array): void {
    this.#current.read(offset, into);
  }

  /** Makes a change, durable at once if `durably`. */
  apply(change: Change, durably: boolean): void {
    put(this.#current, change);
    if (durably || this.#cacheBytesMax === 0) {
      put(this.#durable, change);
      this.#supersede(change);
      return;
    }
    const data = change.data?.slice();
    this.#cache.push({ offset: change.offset, length: change.length, data, ordinal: this.#nextOrdinal++ });
    this.#cachedBytes += change.length;
    while (this.#cachedBytes > this.#cacheBytesMax || this.#cache.length > cachedChangesMax) this.#writeBackOldest();
  }

  /** A change that was caught on its way by the death of the process: happens, does not, or in part. */
  applyPerhaps(change: Change): void {
    for (const kept of this.#remains(change, 2)) this.apply(kept, false);
  }

  /** Marks all changes so far, for `flushUpTo`. */
  mark(): number {
    return this.#nextOrdinal;
  }

  /** Makes every change before the mark durable. */
  flushUpTo(mark: number): void {
    while (this.#cache.length > 0 && this.#cache[0]!.ordinal < mark) this.#writeBackOldest();
  }

  /** A power cut: each change in the cache is kept, lost, or torn by sectors. True if any was not kept whole. */
  losePower(): boolean {
    // From a cut that loses everything to one that loses nothing: both ends are rare if each change is drawn alone.
    const keepOfFour = this.#random.below(5);
    const cache = this.#cache;
    this.#cache = [];
    this.#cachedBytes = 0;
    let hasLost = false;
    for (const change of cache) {
      const remains = this.#remains(change, keepOfFour);
      hasLost ||= remains.reduce((length, kept) => length + kept.length, 0) < change.length;
      for (const kept of remains) put(this.#durable, kept);
    }
    for (const { offset, length } of cache) this.#current.copyFrom(this.#durable, offset, length);
    return hasLost;
  }

  /** One bit turns over where it lies, in the cache and on the medium. */
  rot(offset: number, bit: number): void {
    const data = new Uint8Array(1);
    this.read(offset, data);
    data[0]! ^= 1 << bit;
    this.apply({ offset, length: 1, data }, true);
  }

  /** Another medium in this one's place: it reads as zeros. */
  clear(): void {
    this.#current.clear();
    this.#durable.clear();
    this.#cache = [];
    this.#cachedBytes = 0;
  }

  #writeBackOldest(): void {
    const oldest = this.#cache.shift()!;
    this.#cachedBytes -= oldest.length;
    put(this.#durable, oldest);
  }

  /** Durable now: an older change in the cache must not come over it when it is written back. */
  #supersede(by: Change): void {
    const end = by.offset + by.length;
    this.#cache = this.#cache.flatMap((cached) => {
      const cachedEnd = cached.offset + cached.length;
      if (cached.offset >= end || by.offset >= cachedEnd) return [cached];
      return [part(cached, cached.offset, by.offset), part(cached, end, cachedEnd)]
        .filter((piece) => piece.length > 0)
        .map((piece) => ({ ...piece, ordinal: cached.ordinal }));
    });
    this.#cachedBytes = this.#cache.reduce((sum, { length }) => sum + length, 0);
  }

  #remains(change: Change, keepOfFour: number): Change[] {
    const isTorn = keepOfFour > 0 && keepOfFour < 4 && this.#random.below(4) === 0;
    if (!isTorn) return this.#random.below(4) < keepOfFour ? [change] : [];
    const pieceBytes = Math.ceil(change.length / this.#sectorBytes / tearPiecesMax) * this.#sectorBytes;
    const changeEnd = change.offset + change.length;
    const kept: Change[] = [];
    for (let offset = change.offset; offset < changeEnd; offset += pieceBytes) {
      if (this.#random.below(2) === 0) kept.push(part(change, offset, Math.min(offset + pieceBytes, changeEnd)));
    }
    return kept;
  }
}

/** The part of a change from `offset` to `end`; empty if there is none. */
function part(change: Change, offset: number, end: number): Change {
  const start = offset - change.offset;
  const length = Math.max(0, end - offset);
  return { offset, length, data: change.data?.subarray(start, start + length) };
}

function put(memory: SparseMemory, change: Change): void {
  if (change.data === undefined) memory.zero(change.offset, change.length);
  else memory.write(change.offset, change.data);
}
