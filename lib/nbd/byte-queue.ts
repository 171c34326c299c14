/**
 * Bytes as they come from a connection, in the chunks in which they came. Fixed-size pieces are read in place; only a
 * piece that straddles two chunks is copied, and a payload is copied once, into the buffer that it is meant for.
 */
import { assert } from '../base/errors.ts';

const STRADDLE_BYTES = 64;

export class ByteQueue {
  /** Bytes queued. */
  length = 0;
  /** Where the last `take` put its bytes: read them there before the next call. */
  taken: Uint8Array = new Uint8Array(0);
  readonly #chunks: Uint8Array[] = [];
  /** Index of the first chunk that is not used up, and the first unused byte of it. */
  #first = 0;
  #position = 0;
  readonly #straddle = new Uint8Array(STRADDLE_BYTES);

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.length += chunk.length;
  }

  /** Takes `count` bytes; returns where in `taken` they begin. */
  take(count: number): number {
    assert(count > 0 && count <= this.length, 'bytes taken are there');
    const head = this.#chunks[this.#first]!;
    const at = this.#position;
    if (head.length - at >= count) {
      this.taken = head;
      this.#advance(count);
      return at;
    }
    this.taken = count <= STRADDLE_BYTES ? this.#straddle : new Uint8Array(count);
    this.#copyTo(this.taken, 0, count);
    return 0;
  }

  /** Moves as many bytes as there are, and as fit, into `target` from `at` on. Returns how many. */
  moveInto(target: Uint8Array, at: number): number {
    const count = Math.min(this.length, target.length - at);
    this.#copyTo(target, at, count);
    return count;
  }

  /** Drops up to `count` bytes. Returns how many. */
  skip(count: number): number {
    const skipped = Math.min(count, this.length);
    let left = skipped;
    while (left > 0) {
      const step = Math.min(left, this.#chunks[this.#first]!.length - this.#position);
      this.#advance(step);
      left -= step;
    }
    return skipped;
  }

  clear(): void {
    this.#chunks.length = 0;
    this.#first = 0;
    this.#position = 0;
    this.length = 0;
  }

  #copyTo(target: Uint8Array, at: number, count: number): void {
    let done = 0;
    while (done < count) {
      const head = this.#chunks[this.#first]!;
      const step = Math.min(count - done, head.length - this.#position);
      target.set(head.subarray(this.#position, this.#position + step), at + done);
      this.#advance(step);
      done += step;
    }
  }

  #advance(count: number): void {
    this.#position += count;
    this.length -= count;
    if (this.#position < this.#chunks[this.#first]!.length) return;
    this.#position = 0;
    this.#first += 1;
    if (this.#first === this.#chunks.length) {
      this.#chunks.length = 0;
      this.#first = 0;
    } else if (this.#first === 64) {
      this.#chunks.splice(0, 64);
      this.#first = 0;
    }
  }
}
