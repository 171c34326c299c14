/**
 * Bytes in memory that cost only what has been written: chunks that were never written, or were zeroed as a whole, are
 * not there and read as zeros. The caller checks ranges.
 */

export class SparseMemory {
  readonly #chunkBytes: number;
  readonly #chunks = new Map<number, Uint8Array>();

  /** @param chunkBytes the grain of allocation, in bytes. */
  constructor(chunkBytes: number) {
    this.#chunkBytes = chunkBytes;
  }

  get allocatedBytes(): number {
    return this.#chunks.size * this.#chunkBytes;
  }

  read(offset: number, into: Uint8Array): void {
    this.#eachChunk(offset, into.byteLength, (index, start, length, done) => {
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) into.fill(0, done, done + length);
      else into.set(chunk.subarray(start, start + length), done);
    });
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#eachChunk(offset, bytes.byteLength, (index, start, length, done) => {
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        chunk = new Uint8Array(this.#chunkBytes);
        this.#chunks.set(index, chunk);
      }
      chunk.set(bytes.subarray(done, done + length), start);
    });
  }

  zero(offset: number, length: number): void {
    this.#eachChunk(offset, length, (index, start, part) => {
      if (part === this.#chunkBytes) this.#chunks.delete(index);
      else this.#chunks.get(index)?.fill(0, start, start + part);
    });
  }

  /** Takes over a range of `from`, which has the same grain. */
  copyFrom(from: SparseMemory, offset: number, length: number): void {
    this.#eachChunk(offset, length, (index, start, part) => {
      const chunk = from.#chunks.get(index);
      const at = index * this.#chunkBytes + start;
      if (chunk === undefined) this.zero(at, part);
      else this.write(at, chunk.subarray(start, start + part));
    });
  }

  clear(): void {
    this.#chunks.clear();
  }

  #eachChunk(
    offset: number,
    length: number,
    visit: (index: number, start: number, length: number, done: number) => void,
  ): void {
    let done = 0;
    while (done < length) {
      const index = Math.floor((offset + done) / this.#chunkBytes);
      const start = offset + done - index * this.#chunkBytes;
      const part = Math.min(length - done, this.#chunkBytes - start);
      visit(index, start, part, done);
      done += part;
    }
  }
}
