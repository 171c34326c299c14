/**
 * Makes one leg of a mirrored region like the other one while stores go on, several chunks at a time.
 *
 * Invariants:
 * - No store into a chunk is sent from when its reading begins until its bytes are on their way to the target. A session
 *   executes its commands in the order of the calls: so what was sent before is read at the source and overwritten with
 *   itself at the target, and what is sent after comes after it there, too. A target that hangs holds up no store.
 * - No chunk begins while another command is between its read and its store.
 * - Each lane has one chunk at a time, and memory of its own for it.
 * - Once a leg has failed nothing more is stored.
 */

import { assert } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { LegCommand, LegLink } from './mirror-link.ts';
import type { Leg } from './mirror-standing.ts';
import type { AddressRange } from './one-sided.ts';

/** A leg, by the key that it is read or written with. */
export interface CopyEnd {
  readonly leg: Leg;
  readonly link: LegLink;
}

export interface LegCopyOptions {
  readonly from: CopyEnd;
  readonly to: CopyEnd;
  readonly range: AddressRange;
  /** Both at least 1, and whole. */
  readonly chunkBytes: number;
  readonly chunksAhead: number;
  /** The target is read first, and stored only where it differs. */
  readonly compare: boolean;
  /** What a chunk has to wait for before it begins, if anything. */
  readonly obstacle: () => Promise<void> | undefined;
  /** Stores may be sent where they could not. */
  readonly onFree: () => void;
  /** `doneBytes` has grown. */
  readonly onProgress: () => void;
  readonly onFailed: (end: CopyEnd, error: unknown) => void;
}

export class LegCopy {
  readonly #options: LegCopyOptions;
  readonly #reading = new Set<AddressRange>();
  #next = 0;
  #doneBytes = 0;
  #isStopped = false;

  constructor(options: LegCopyOptions) {
    this.#options = options;
  }

  get doneBytes(): number {
    return this.#doneBytes;
  }

  /** True when all is copied, false if it was stopped. */
  async run(): Promise<boolean> {
    const { range, chunkBytes, chunksAhead } = this.#options;
    const lanes = Math.min(chunksAhead, Math.ceil(range.lengthBytes / chunkBytes));
    await Promise.all(Array.from({ length: lanes }, () => this.#lane()));
    assert(this.#isStopped || this.#doneBytes === range.lengthBytes, 'a leg is given all of the other one');
    return !this.#isStopped;
  }

  stop(): void {
    this.#isStopped = true;
    this.#reading.clear();
  }

  /** Whether no store may be sent into the range now. */
  holds(address: number, lengthBytes: number): boolean {
    if (isPlanted('store-into-chunk')) return false;
    for (const chunk of this.#reading) if (overlaps(chunk, { base: address, lengthBytes })) return true;
    return false;
  }

  async #lane(): Promise<void> {
    const { range, chunkBytes, compare, obstacle } = this.#options;
    const bytes = new Uint8Array(chunkBytes);
    const old = compare ? new Uint8Array(chunkBytes) : undefined;
    for (;;) {
      for (let wait = obstacle(); wait !== undefined; wait = obstacle()) await wait;
      const at = this.#next;
      if (this.#isStopped || at >= range.lengthBytes) return;
      const lengthBytes = Math.min(chunkBytes, range.lengthBytes - at);
      this.#next = at + lengthBytes;
      const chunk = { base: range.base + at, lengthBytes };
      await this.#copyChunk(chunk, bytes.subarray(0, lengthBytes), old?.subarray(0, lengthBytes));
      if (this.#isStopped) return;
      this.#doneBytes += lengthBytes;
      this.#options.onProgress();
    }
  }

  async #copyChunk(chunk: AddressRange, bytes: Uint8Array, old: Uint8Array | undefined): Promise<void> {
    const { from, to } = this.#options;
    const { base } = chunk;
    this.#reading.add(chunk);
    const reads = [this.#attempt(from, bytes.length, (access, signal) => access.read(base, bytes, { signal }))];
    if (old !== undefined)
      reads.push(this.#attempt(to, old.length, (access, signal) => access.read(base, old, { signal })));
    await Promise.all(reads);
    if (this.#isStopped) return;
    const isAlike = old !== undefined && Buffer.compare(bytes, old) === 0;
    const stored = isAlike
      ? undefined
      : this.#attempt(to, bytes.length, (access, signal) => access.write(base, [bytes], { signal }));
    this.#reading.delete(chunk);
    this.#options.onFree();
    await stored;
  }

  async #attempt(end: CopyEnd, lengthBytes: number, command: LegCommand<void>): Promise<void> {
    try {
      await end.link.run(lengthBytes, command);
    } catch (error) {
      this.#options.onFailed(end, error);
    }
  }
}

/** No bytes overlap nothing. */
export function overlaps(first: AddressRange, second: AddressRange): boolean {
  if (first.lengthBytes === 0 || second.lengthBytes === 0) return false;
  return first.base < second.base + second.lengthBytes && second.base < first.base + first.lengthBytes;
}
