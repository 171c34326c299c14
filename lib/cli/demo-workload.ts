/**
 * What the demo's clients write and read, and what must be on the volume because of it.
 *
 * Each write of a block has a number, and its content is made from that number, so that the whole content of the volume
 * can be foretold: the input, then zeros, and over them the last acknowledged write of every block.
 *
 * A block has one writer and many readers. So a history of reads and writes is right (one copy could have answered like
 * that) exactly if no read finds less than what was acknowledged, or found by another read, before it began, and none
 * finds what was not written yet.
 */
import type { Clock } from '../base/clock.ts';
import type { Random } from '../base/random.ts';

export const BLOCK_BYTES = 4096;
/** One of so many requests is a read. */
const READ_EVERY = 3;

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

/** Somebody who writes and reads: bytes are in place, or have been read, when it resolves. */
export interface WorkloadClient {
  write(offset: number, bytes: Uint8Array): Promise<void>;
  read(offset: number, bytes: Uint8Array): Promise<void>;
}

export interface WorkloadOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly volumeBytes: number;
  /** Requests in flight, of all clients together. */
  readonly depth: number;
  /** Writes go to this many windows of `windowBytes`, spread over the volume: as a database's do to its hot pages. */
  readonly windows: number;
  readonly windowBytes: number;
}

/** What has become of one block. */
interface BlockHistory {
  /** Numbers of its writes, in order; the last may be under way. */
  readonly begun: number[];
  /** The newest number that was acknowledged, or found by a read: from then on no read may find less. */
  known: number;
}

/** Overwrites blocks at random, and reads what others overwrite, until it is told to stop. */
export class Workload {
  /** Number of the last acknowledged write of each block that was written. */
  readonly written = new Map<number, number>();
  acknowledged = 0;
  reads = 0;
  /** Reads that found what they must not: older than what was known before, or never written. */
  wrongReads = 0;
  readonly #options: WorkloadOptions;
  readonly #windowStarts: number[];
  readonly #histories = new Map<number, BlockHistory>();
  /** Blocks that have been written, for readers to choose from. */
  readonly #places: number[] = [];
  /** By client: the longest time that a request took, in ms. */
  readonly #longestMs: number[] = [];
  #marked: Set<number> | undefined;
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

  start(clients: readonly WorkloadClient[]): void {
    this.#longestMs.push(...clients.map(() => 0));
    const lanes = Array.from({ length: this.#options.depth }, (_, lane) => {
      const number = lane % clients.length;
      return this.#lane(clients[number]!, number, lane);
    });
    this.#running = Promise.all(lanes).then(() => {});
    // Seen by `stop`.
    this.#running.catch(() => {});
  }

  /** Waits for what is in flight. Throws if a request failed. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  /** By client: the longest time that a request took since the last call, in ms. */
  takeLongestMs(): number[] {
    const longestMs = [...this.#longestMs];
    this.#longestMs.fill(0);
    return longestMs;
  }

  /** From now on counts what is written. */
  mark(): void {
    this.#marked = new Set();
  }

  /** Distinct bytes of which the writing began, and was acknowledged, since `mark`; ends the count. */
  takeMarkedBytes(): number {
    const bytes = (this.#marked?.size ?? 0) * BLOCK_BYTES;
    this.#marked = undefined;
    return bytes;
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

  async #lane(client: WorkloadClient, clientNumber: number, lane: number): Promise<void> {
    const { clock } = this.#options;
    for (let number = 0; !this.#stopped; number++) {
      const before = clock.nowMs();
      if (number % READ_EVERY === READ_EVERY - 1) await this.#read(client);
      else await this.#write(client, this.#ownBlock(lane), number);
      this.#longestMs[clientNumber] = Math.max(this.#longestMs[clientNumber]!, clock.nowMs() - before);
    }
  }

  /** Each lane has blocks of its own to write, so that of two writes of a block it is always known which was the last. */
  #ownBlock(lane: number): number {
    const { random, depth, windowBytes } = this.#options;
    const blocksOfLane = Math.floor(windowBytes / BLOCK_BYTES / depth);
    const start = this.#windowStarts[random.below(this.#windowStarts.length)]!;
    return start + random.below(blocksOfLane) * depth + lane;
  }

  async #write(client: WorkloadClient, index: number, number: number): Promise<void> {
    const history = this.#history(index);
    history.begun.push(number);
    const marked = this.#marked;
    const block = new Uint8Array(BLOCK_BYTES);
    fillBlock(block, index, number);
    await client.write(index * BLOCK_BYTES, block);
    history.known = Math.max(history.known, number);
    marked?.add(index);
    if (!this.written.has(index)) this.#places.push(index);
    this.written.set(index, number);
    this.acknowledged++;
  }

  async #read(client: WorkloadClient): Promise<void> {
    const index = this.#places[this.#options.random.below(Math.max(1, this.#places.length))];
    if (index === undefined) return;
    const history = this.#history(index);
    const { known } = history;
    const block = new Uint8Array(BLOCK_BYTES);
    await client.read(index * BLOCK_BYTES, block);
    this.reads++;
    const found = history.begun.findLast((number) => number >= known && isWrite(block, index, number));
    if (found === undefined) this.wrongReads++;
    else history.known = Math.max(history.known, found);
  }

  #history(index: number): BlockHistory {
    let history = this.#histories.get(index);
    if (history === undefined) {
      history = { begun: [], known: -1 };
      this.#histories.set(index, history);
    }
    return history;
  }
}

function isWrite(block: Uint8Array, index: number, number: number): boolean {
  const expected = new Uint8Array(BLOCK_BYTES);
  fillBlock(expected, index, number);
  return Buffer.compare(block, expected) === 0;
}
