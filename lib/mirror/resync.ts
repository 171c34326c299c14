/**
 * Resync, at the source: sends every marked grain to the target while clients go on. A window of pieces is under way
 * at a time; each piece is read and sent under a range lock, so that it never overwrites newer data.
 *
 * Ends when nothing is marked: while the target follows, live writes mark nothing.
 */
import type { Clock } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';
import type { PeerSession } from '../peer/peer.ts';
import type { MirrorEngine } from './engine.ts';

/** The target flushes after so much. */
const FLUSH_EVERY_BYTES = 32 * 1024 * 1024;

export interface ResyncOptions {
  readonly engine: MirrorEngine;
  readonly session: PeerSession;
  readonly clock: Clock;
  /** Pieces under way at a time. */
  readonly window: number;
  /** Neighbouring marked grains are sent together up to this many bytes; a multiple of the grain. */
  readonly pieceBytes: number;
}

/** How far a resync is. What clients write meanwhile does not count. */
export interface ResyncProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly elapsedMs: number;
  /** Bytes a second since the start. */
  readonly rate: number;
  /** Milliseconds to go at that rate; undefined before there is one. */
  readonly etaMs: number | undefined;
}

export class Resync {
  readonly #options: ResyncOptions;
  readonly #startedMs: number;
  readonly #totalBytes: number;
  #doneBytes = 0;
  #unflushedBytes = 0;
  #endedMs: number | undefined;
  #cursor = 0;
  #stopped = false;

  constructor(options: ResyncOptions) {
    this.#options = options;
    this.#startedMs = options.clock.nowMs();
    this.#totalBytes = options.engine.marks.dirtyBytes;
  }

  progress(): ResyncProgress {
    const elapsedMs = (this.#endedMs ?? this.#options.clock.nowMs()) - this.#startedMs;
    const rate = elapsedMs > 0 ? (this.#doneBytes * 1000) / elapsedMs : 0;
    const left = this.#totalBytes - this.#doneBytes;
    return {
      doneBytes: this.#doneBytes,
      totalBytes: this.#totalBytes,
      elapsedMs,
      rate,
      etaMs: left === 0 ? 0 : rate > 0 ? (left * 1000) / rate : undefined,
    };
  }

  stop(): void {
    this.#stopped = true;
  }

  /** Resolves when nothing is marked any more; rejects with ERR_HOLDFAST_PEER_LOST when the target is gone. */
  async run(): Promise<void> {
    const { engine, window } = this.#options;
    while (!engine.marks.isEmpty) {
      this.#cursor = 0;
      await Promise.all(Array.from({ length: window }, () => this.#worker()));
    }
    this.#endedMs = this.#options.clock.nowMs();
  }

  async #worker(): Promise<void> {
    const buffer = new Uint8Array(this.#options.pieceBytes);
    for (let piece = this.#take(); piece !== undefined; piece = this.#take()) {
      const { offset, length } = piece;
      const sent = await this.#options.engine.resyncPiece(this.#options.session, offset, buffer.subarray(0, length));
      if (!sent || this.#stopped) throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'the resync target is gone');
      this.#doneBytes += length;
      await this.#flushNowAndThen(length);
    }
  }

  /** What the target has flushed need not be sent again if the resync breaks off. */
  async #flushNowAndThen(length: number): Promise<void> {
    this.#unflushedBytes += length;
    if (this.#unflushedBytes < FLUSH_EVERY_BYTES) return;
    this.#unflushedBytes = 0;
    await this.#options.engine.flushReplica();
  }

  /** The next run of marked grains that no worker has taken. */
  #take(): { offset: number; length: number } | undefined {
    const { marks } = this.#options.engine;
    const first = marks.next(this.#cursor);
    if (first < 0) return undefined;
    const most = Math.max(1, Math.floor(this.#options.pieceBytes / marks.grainBytes));
    let end = first + 1;
    while (end < first + most && end < marks.grains && marks.has(end)) end += 1;
    this.#cursor = end;
    const offset = first * marks.grainBytes;
    return { offset, length: Math.min(end * marks.grainBytes, marks.sizeBytes) - offset };
  }
}
