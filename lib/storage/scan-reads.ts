/**
 * Scans a device of any kind by reading it: a window of reads in flight, each checksummed as its turn comes. For devices
 * that have no file of their own to lend (memory, mirrored volume, NBD client …).
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { throwIfAborted } from '../base/errors.ts';
import type { BlockDevice, IoOptions } from './block-device.ts';
import { digestBlocks } from './digest.ts';
import type { ScanEngine, ScanPlan } from './scan-plan.ts';

/** What a rate may make up for after a delay. */
const burstMs = 50;
/** Then it looks again: timers do not take any time. */
const sleepMaxMs = 60_000;

/** When the next bytes may be read, so that no more than a rate is. */
class Pacer {
  readonly #clock: Clock;
  #msPerByte = 0;
  #nextMs = Number.NEGATIVE_INFINITY;
  #sleeper: { readonly timer: TimerHandle; readonly resume: () => void } | undefined;

  constructor(clock: Clock, bytesPerSecond: number) {
    this.#clock = clock;
    this.setRate(bytesPerSecond);
  }

  setRate(bytesPerSecond: number): void {
    this.#msPerByte = 1000 / bytesPerSecond;
    this.#nextMs = Number.NEGATIVE_INFINITY;
    this.wake();
  }

  delayMs(): number {
    return this.#msPerByte === 0 ? 0 : Math.max(0, this.#nextMs - this.#clock.nowMs());
  }

  take(bytes: number): void {
    this.#nextMs = Math.max(this.#nextMs, this.#clock.nowMs() - burstMs) + bytes * this.#msPerByte;
  }

  /** Waits until bytes may be read, a minute at most, or until it is woken. */
  async sleep(): Promise<void> {
    await new Promise<void>((resume) => {
      this.#sleeper = { timer: this.#clock.setTimer(Math.min(sleepMaxMs, this.delayMs()), resume), resume };
    });
    this.#sleeper = undefined;
  }

  wake(): void {
    this.#sleeper?.timer.cancel();
    this.#sleeper?.resume();
  }
}

export class ReadingScan implements ScanEngine {
  readonly #device: BlockDevice;
  readonly #plan: ScanPlan;
  readonly #signal: AbortSignal | undefined;
  readonly #readOptions: IoOptions;
  readonly #pacer: Pacer;
  readonly #buffers: Uint8Array[] = [];
  /** In the order of the range. */
  readonly #reading: Promise<Uint8Array>[] = [];
  #nextOffset: number;
  #doneBytes = 0;

  constructor(
    device: BlockDevice,
    plan: ScanPlan,
    bytesPerSecond: number,
    signal: AbortSignal | undefined,
    clock: Clock,
  ) {
    this.#device = device;
    this.#plan = plan;
    this.#signal = signal;
    this.#readOptions = signal === undefined ? {} : { signal };
    this.#nextOffset = plan.offset;
    this.#pacer = new Pacer(clock, bytesPerSecond);
  }

  doneBytes(): number {
    return this.#doneBytes;
  }

  setRate(bytesPerSecond: number): void {
    this.#pacer.setRate(bytesPerSecond);
  }

  async *batches(): AsyncGenerator<Uint8Array, void, void> {
    const onAbort = () => this.#pacer.wake();
    this.#signal?.addEventListener('abort', onAbort, { once: true });
    try {
      for (let batch = 0; batch < this.#plan.batches; batch++) {
        const checksums = new Uint8Array(this.#plan.checksumBytesOf(batch));
        for (let filled = 0; filled < checksums.byteLength; ) {
          let piece: Uint8Array;
          try {
            piece = await this.#nextPiece();
          } catch (error) {
            if (filled > 0 && !this.#signal?.aborted) yield checksums.subarray(0, filled);
            throw error;
          }
          checksums.set(piece, filled);
          filled += piece.byteLength;
        }
        yield checksums;
      }
    } finally {
      this.#signal?.removeEventListener('abort', onAbort);
      await Promise.allSettled(this.#reading);
    }
  }

  async #nextPiece(): Promise<Uint8Array> {
    for (;;) {
      throwIfAborted(this.#signal, `the scan of ${this.#device.name}`);
      this.#readAhead();
      const piece = this.#reading.shift();
      if (piece !== undefined) return piece;
      await this.#pacer.sleep();
    }
  }

  #readAhead(): void {
    const { offset, length, pieceBytes, depth } = this.#plan;
    const end = offset + length;
    while (this.#reading.length < depth && this.#nextOffset < end && this.#pacer.delayMs() === 0) {
      const pieceLength = Math.min(pieceBytes, end - this.#nextOffset);
      this.#pacer.take(pieceLength);
      const reading = this.#read(this.#nextOffset, pieceLength);
      // Whoever takes it sees its failure; nobody may, if an earlier one fails.
      reading.catch(() => {});
      this.#reading.push(reading);
      this.#nextOffset += pieceLength;
    }
  }

  async #read(offset: number, length: number): Promise<Uint8Array> {
    const { pieceBytes, blockBytes, algorithm, key } = this.#plan;
    const buffer = this.#buffers.pop() ?? new Uint8Array(new SharedArrayBuffer(pieceBytes));
    const bytes = buffer.subarray(0, length);
    await this.#device.read(offset, bytes, this.#readOptions);
    const checksums = await digestBlocks(bytes, blockBytes, algorithm, key);
    this.#buffers.push(buffer);
    this.#doneBytes += length;
    return checksums;
  }
}
