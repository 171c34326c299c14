/**
 * What the demo's client writes, and what must be on the volume because of it.
 *
 * Each write has a number, and its content is made from that number, so that the whole content of the volume can be
 * foretold: the input, then zeros, and over them the last acknowledged write of every block.
 */
import type { Clock } from '../base/clock.ts';
import type { Random } from '../base/random.ts';
import type { BlockDevice } from '../storage/block-device.ts';

export const BLOCK_BYTES = 4096;

/** Fills a block with what write `number` of it writes: never zeros, different for every number and place. */
export function fillBlock(block: Uint8Array, index: number, number: number): void {
  const words = new Uint32Array(block.buffer, block.byteOffset, block.length / 4);
  let state = (Math.imul(index + 1, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b)) | 1;
  for (let word = 0; word < words.length; word++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[word] = state;
  }
}

export interface WorkloadOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly volumeBytes: number;
  /** Requests in flight. */
  readonly depth: number;
  /** Writes go to this many windows of `windowBytes`, spread over the volume: as a database's do to its hot pages. */
  readonly windows: number;
  readonly windowBytes: number;
}

/** Overwrites blocks at random until it is told to stop. */
export class Workload {
  /** Number of the last acknowledged write of each block that was written. */
  readonly written = new Map<number, number>();
  acknowledged = 0;
  /** The longest time that a write took, in ms. */
  longestMs = 0;
  readonly #options: WorkloadOptions;
  readonly #windowStarts: number[];
  #running: Promise<void> | undefined;
  #stopped = false;

  constructor(options: WorkloadOptions) {
    this.#options = options;
    const places = Math.floor(options.volumeBytes / options.windowBytes);
    const starts = new Set<number>();
    while (starts.size < Math.min(options.windows, places))
      starts.add((options.random.below(places) * options.windowBytes) / BLOCK_BYTES);
    this.#windowStarts = [...starts];
  }

  /** Distinct bytes that were written. */
  get dirtyBytes(): number {
    return this.written.size * BLOCK_BYTES;
  }

  /** The same, rounded up to whole grains. */
  dirtyGrainBytes(grainBytes: number): number {
    const grains = new Set<number>();
    for (const index of this.written.keys()) grains.add(Math.floor((index * BLOCK_BYTES) / grainBytes));
    return grains.size * grainBytes;
  }

  start(device: BlockDevice): void {
    const lanes = Array.from({ length: this.#options.depth }, (_, lane) => this.#lane(device, lane));
    this.#running = Promise.all(lanes).then(() => {});
    // Seen by `stop`.
    this.#running.catch(() => {});
  }

  /** Waits for the writes in flight. Throws if one failed. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  /** Puts over `chunk`, which stands at `offset`, what was written. */
  overlay(offset: number, chunk: Uint8Array): void {
    const first = offset / BLOCK_BYTES;
    for (let place = 0; place < chunk.length / BLOCK_BYTES; place++) {
      const number = this.written.get(first + place);
      if (number === undefined) continue;
      const block = new Uint8Array(BLOCK_BYTES);
      fillBlock(block, first + place, number);
      chunk.set(block, place * BLOCK_BYTES);
    }
  }

  /** Each lane has blocks of its own, so that of two writes of a block it is always known which was the last. */
  async #lane(device: BlockDevice, lane: number): Promise<void> {
    const { clock, random, depth, windowBytes } = this.#options;
    const blocksOfLane = Math.floor(windowBytes / BLOCK_BYTES / depth);
    const block = new Uint8Array(BLOCK_BYTES);
    for (let number = 0; !this.#stopped; number++) {
      const start = this.#windowStarts[random.below(this.#windowStarts.length)]!;
      const index = start + random.below(blocksOfLane) * depth + lane;
      fillBlock(block, index, number);
      const before = clock.nowMs();
      await device.write(index * BLOCK_BYTES, block);
      this.longestMs = Math.max(this.longestMs, clock.nowMs() - before);
      this.written.set(index, number);
      this.acknowledged++;
    }
  }
}
