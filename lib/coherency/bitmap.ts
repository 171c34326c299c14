/**
 * DirtyBitmap: which grains of a volume may differ between two copies. One bit a grain (64 KiB by default), in volatile
 * memory. A bit that is set too often costs a copy; one that is missing costs data: all ranges are widened to whole
 * grains.
 */
import { assert, HoldfastError } from '../base/errors.ts';

export class DirtyBitmap {
  readonly sizeBytes: number;
  readonly grainBytes: number;
  readonly grains: number;
  readonly #words: Uint32Array;
  #count = 0;

  constructor(sizeBytes: number, grainBytes: number) {
    assert(sizeBytes > 0 && grainBytes > 0, 'a bitmap covers something');
    this.sizeBytes = sizeBytes;
    this.grainBytes = grainBytes;
    this.grains = Math.ceil(sizeBytes / grainBytes);
    this.#words = new Uint32Array(Math.ceil(this.grains / 32));
  }

  /** How many grains are set. */
  get count(): number {
    return this.#count;
  }

  get isEmpty(): boolean {
    return this.#count === 0;
  }

  /** Bytes that the set grains cover; the last grain may be a short one. */
  get dirtyBytes(): number {
    const last = this.grains - 1;
    const short = this.grains * this.grainBytes - this.sizeBytes;
    return this.#count * this.grainBytes - (this.has(last) ? short : 0);
  }

  has(grain: number): boolean {
    return (this.#words[grain >>> 5]! & (1 << (grain & 31))) !== 0;
  }

  /** Sets every grain that the range touches. */
  mark(offset: number, length: number): void {
    if (length === 0) return;
    assert(offset >= 0 && offset + length <= this.sizeBytes, 'a marked range lies inside the volume');
    const last = Math.floor((offset + length - 1) / this.grainBytes);
    for (let grain = Math.floor(offset / this.grainBytes); grain <= last; grain += 1) this.#set(grain);
  }

  markAll(): void {
    for (let grain = 0; grain < this.grains; grain += 1) this.#set(grain);
  }

  clearGrain(grain: number): void {
    if (!this.has(grain)) return;
    this.#words[grain >>> 5]! &= ~(1 << (grain & 31));
    this.#count -= 1;
  }

  clear(): void {
    if (this.#count === 0) return;
    this.#words.fill(0);
    this.#count = 0;
  }

  /** Adds the grains of another bitmap of the same shape. */
  merge(other: DirtyBitmap): void {
    assert(other.grains === this.grains, 'bitmaps that are merged have one shape');
    if (other.isEmpty) return;
    for (let word = 0; word < this.#words.length; word += 1) this.#setWord(word, other.#words[word]!);
  }

  /** Whether any grain that the range touches is set. */
  touches(offset: number, length: number): boolean {
    if (this.isEmpty || length === 0) return false;
    const last = Math.floor((offset + length - 1) / this.grainBytes);
    for (let grain = Math.floor(offset / this.grainBytes); grain <= last; grain += 1) if (this.has(grain)) return true;
    return false;
  }

  /** The first set grain at or after `from`, or -1. */
  next(from: number): number {
    for (let word = from >>> 5; word < this.#words.length; word += 1) {
      const bits = word === from >>> 5 ? this.#words[word]! & (-1 << (from & 31)) : this.#words[word]!;
      if (bits !== 0) return word * 32 + trailingZeros(bits);
    }
    return -1;
  }

  /** Little-endian, bit 0 of byte 0 is grain 0. */
  toBytes(): Uint8Array {
    const bytes = new Uint8Array(this.byteLength);
    for (let byte = 0; byte < bytes.length; byte += 1) bytes[byte] = this.#words[byte >>> 2]! >>> ((byte & 3) * 8);
    return bytes;
  }

  get byteLength(): number {
    return Math.ceil(this.grains / 8);
  }

  /** Adds what `toBytes` gave. Refuses another length, and bits beyond the last grain. */
  mergeBytes(bytes: Uint8Array): void {
    const used = this.grains & 7;
    if (bytes.length !== this.byteLength || (used !== 0 && bytes[bytes.length - 1]! >>> used !== 0)) {
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        'a bitmap does not fit the volume; both sides must agree on size and grain',
      );
    }
    for (let byte = 0; byte < bytes.length; byte += 1)
      this.#setWord(byte >>> 2, (bytes[byte]! << ((byte & 3) * 8)) >>> 0);
  }

  #set(grain: number): void {
    if (this.has(grain)) return;
    this.#words[grain >>> 5]! |= 1 << (grain & 31);
    this.#count += 1;
  }

  #setWord(word: number, bits: number): void {
    const added = bits & ~this.#words[word]!;
    if (added === 0) return;
    this.#words[word]! |= bits;
    this.#count += bitsIn(added);
  }
}

function trailingZeros(bits: number): number {
  return 31 - Math.clz32(bits & -bits);
}

function bitsIn(word: number): number {
  let rest = word >>> 0;
  let count = 0;
  while (rest !== 0) {
    rest &= rest - 1;
    count += 1;
  }
  return count;
}
