/**
 * Memory in layers, and a device over it: one crash state of a recorded device costs only what it changes over the
 * layer below. Reads fall through; writes stay in the layer that takes them.
 */
import { BaseDevice } from '../storage/base-device.ts';
import type { Geometry } from '../storage/block-device.ts';

const CHUNK_BYTES = 4096;

export class LayeredMemory {
  readonly #below: LayeredMemory | undefined;
  readonly #chunks = new Map<number, Uint8Array>();

  constructor(below?: LayeredMemory) {
    this.#below = below;
  }

  /** Without the layers below. */
  get ownBytes(): number {
    return this.#chunks.size * CHUNK_BYTES;
  }

  read(offset: number, into: Uint8Array): void {
    eachChunk(offset, into.length, (index, start, length, done) => {
      const chunk = this.#find(index);
      if (chunk === undefined) into.fill(0, done, done + length);
      else into.set(chunk.subarray(start, start + length), done);
    });
  }

  write(offset: number, bytes: Uint8Array): void {
    eachChunk(offset, bytes.length, (index, start, length, done) => {
      this.#own(index).set(bytes.subarray(done, done + length), start);
    });
  }

  zero(offset: number, length: number): void {
    eachChunk(offset, length, (index, start, part) => {
      if (this.#find(index) !== undefined) this.#own(index).fill(0, start, start + part);
    });
  }

  /** Every chunk that differs from the layer below, by its number, ascending. */
  *differences(): Generator<readonly [index: number, chunk: Uint8Array]> {
    for (const index of [...this.#chunks.keys()].sort((one, other) => one - other)) {
      const chunk = this.#chunks.get(index)!;
      if (Buffer.compare(chunk, this.#findBelow(index) ?? ZEROS) !== 0) yield [index, chunk];
    }
  }

  #find(index: number): Uint8Array | undefined {
    return this.#chunks.get(index) ?? this.#findBelow(index);
  }

  #findBelow(index: number): Uint8Array | undefined {
    return this.#below === undefined ? undefined : this.#below.#find(index);
  }

  #own(index: number): Uint8Array {
    let chunk = this.#chunks.get(index);
    if (chunk === undefined) {
      chunk = new Uint8Array(CHUNK_BYTES);
      const below = this.#findBelow(index);
      if (below !== undefined) chunk.set(below);
      this.#chunks.set(index, chunk);
    }
    return chunk;
  }
}

const ZEROS = new Uint8Array(CHUNK_BYTES);

function eachChunk(
  offset: number,
  length: number,
  visit: (index: number, start: number, length: number, done: number) => void,
): void {
  for (let done = 0; done < length; ) {
    const index = Math.floor((offset + done) / CHUNK_BYTES);
    const start = offset + done - index * CHUNK_BYTES;
    const part = Math.min(length - done, CHUNK_BYTES - start);
    visit(index, start, part, done);
    done += part;
  }
}

/** What a crash left on a device. It can be written to: each state is its own. */
export class CrashImage extends BaseDevice {
  readonly kind = 'crash-image';
  readonly geometry: Geometry;
  readonly #memory: LayeredMemory;

  constructor(name: string, geometry: Geometry, memory: LayeredMemory) {
    super(name, false);
    this.geometry = { ...geometry, volatileCache: false };
    this.#memory = memory;
  }

  protected async performRead(offset: number, buffer: Uint8Array): Promise<void> {
    this.#memory.read(offset, buffer);
  }

  protected async performWrite(offset: number, buffer: Uint8Array): Promise<void> {
    this.#memory.write(offset, buffer);
  }

  protected async performFlush(): Promise<void> {}

  protected async performDiscard(offset: number, length: number): Promise<void> {
    this.#memory.zero(offset, length);
  }

  protected async performWriteZeroes(offset: number, length: number): Promise<void> {
    this.#memory.zero(offset, length);
  }

  protected async performClose(): Promise<void> {}
}
