/**
 * What was asked of some devices, in the order in which it began and ended: writes with their data, and when each
 * became durable. The devices share one count of events, so that a crash is one moment for all of them.
 *
 * A write is durable when it ended before a flush of its device began that has succeeded, or when it ended and was made
 * with force unit access; where only a process dies, when it ended. One that failed, or never ended, may have happened
 * for ever after, and is never durable. A discard counts as a write of zeros.
 */
import { HoldfastError } from '../base/errors.ts';
import { BaseDevice } from '../storage/base-device.ts';
import type { BlockDevice, Geometry, IoOptions, WriteOptions, WriteZeroesOptions } from '../storage/block-device.ts';
import { LayeredMemory } from './crash-image.ts';

/** A change of a recorded device, and when it began, ended and was durable. */
export interface RecordedWrite {
  /** Counts all writes of the recording, by when they began. */
  readonly index: number;
  /** Which of the recorded devices, by when they were given. */
  readonly device: number;
  readonly kind: 'write' | 'zeroes' | 'discard';
  readonly offset: number;
  readonly length: number;
  readonly fua: boolean;
  /** Moments: the count of events. Infinite: has not happened. */
  readonly begun: number;
  readonly ended: number;
  readonly durable: number;
  /** Undefined: zeros. */
  readonly data: Uint8Array | undefined;
}

type OpenWrite = { -readonly [Key in keyof RecordedWrite]: RecordedWrite[Key] };

/** What a crash takes from a device: all that was not flushed, or only the process and with it what was in flight. */
export type CrashKind = 'power-cut' | 'process-death';

export interface RecordedDevice {
  readonly crash: CrashKind;
  readonly name: string;
  readonly geometry: Geometry;
  /** What was on it when the recording began. */
  readonly base: LayeredMemory;
}

interface Note {
  readonly moment: number;
  readonly value: unknown;
}

const PIECE_BYTES = 1024 * 1024;
const CHUNK_BYTES = 4096;
const ZEROS = new Uint8Array(CHUNK_BYTES);

export class CrashRecording {
  readonly devices: RecordedDevice[] = [];
  readonly writes: RecordedWrite[] = [];
  readonly #notes: Note[] = [];
  readonly #memoryBytesMax: number;
  /** Ended, and not durable yet, by device. */
  readonly #volatile: Set<OpenWrite>[] = [];
  /** Moments at which something became durable. */
  readonly #turns: number[] = [];
  #moment = 0;
  #bytes = 0;

  constructor(memoryBytesMax: number) {
    this.#memoryBytesMax = memoryBytesMax;
  }

  /** The moments just before which a crash is worth trying: until one of them no state gets lost that was possible. */
  get turns(): readonly number[] {
    return [...this.#turns, this.#moment + 1];
  }

  get bytes(): number {
    return this.#bytes;
  }

  note(value: unknown): void {
    this.#notes.push({ moment: this.#next(), value });
  }

  notesBefore(moment: number): unknown[] {
    return this.#notes.filter((note) => note.moment < moment).map(({ value }) => value);
  }

  /** Takes in what is on the device now. */
  async add(device: BlockDevice, crash: CrashKind): Promise<number> {
    const base = new LayeredMemory();
    const { sizeBytes } = device.geometry;
    for (let offset = 0; offset < sizeBytes; offset += PIECE_BYTES) {
      const piece = new Uint8Array(Math.min(PIECE_BYTES, sizeBytes - offset));
      await device.read(offset, piece);
      for (let at = 0; at < piece.length; at += CHUNK_BYTES) {
        const chunk = piece.subarray(at, at + CHUNK_BYTES);
        if (Buffer.compare(chunk, ZEROS.subarray(0, chunk.length)) === 0) continue;
        this.#account(chunk.length);
        base.write(offset + at, chunk);
      }
    }
    this.#volatile.push(new Set());
    return this.devices.push({ crash, name: device.name, geometry: device.geometry, base }) - 1;
  }

  begin(wanted: Pick<RecordedWrite, 'device' | 'kind' | 'offset' | 'length' | 'fua' | 'data'>): OpenWrite {
    this.#account(wanted.data?.length ?? 0);
    const never = Number.POSITIVE_INFINITY;
    const write = { ...wanted, index: this.writes.length, begun: this.#next(), ended: never, durable: never };
    this.writes.push(write);
    return write;
  }

  end(write: OpenWrite): void {
    write.ended = this.#next();
    const stays = write.fua || this.devices[write.device]!.crash === 'process-death';
    if (stays) this.#turn([write], write.ended);
    else this.#volatile[write.device]!.add(write);
  }

  flushBegins(): number {
    return this.#next();
  }

  flushEnds(device: number, begun: number): void {
    const moment = this.#next();
    this.#turn(
      [...this.#volatile[device]!].filter(({ ended }) => ended < begun),
      moment,
    );
  }

  #turn(writes: readonly OpenWrite[], moment: number): void {
    if (writes.length === 0) return;
    this.#turns.push(moment);
    for (const write of writes) {
      write.durable = moment;
      this.#volatile[write.device]!.delete(write);
    }
  }

  #next(): number {
    this.#moment += 1;
    return this.#moment;
  }

  #account(bytes: number): void {
    this.#bytes += bytes;
    if (this.#bytes > this.#memoryBytesMax)
      throw new HoldfastError(
        'ERR_HOLDFAST_MEMORY_EXHAUSTED',
        `the recording would take more than ${this.#memoryBytesMax} bytes; record less, or raise memoryBytesMax`,
      );
  }
}

/** Does what the device below does, and writes it down. */
export class RecordingDevice extends BaseDevice {
  readonly kind = 'recording';
  readonly geometry: Geometry;
  readonly #next: BlockDevice;
  readonly #recording: CrashRecording;
  readonly #device: number;

  constructor(next: BlockDevice, recording: CrashRecording, device: number) {
    super(next.name, next.readOnly);
    this.geometry = next.geometry;
    this.#next = next;
    this.#recording = recording;
    this.#device = device;
  }

  protected performRead(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Promise<void> {
    return this.#next.read(offset, buffer, options);
  }

  protected async performWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    const data = new Uint8Array(buffer);
    const range = { offset, length: data.length, fua: options?.fua ?? false };
    const write = this.#recording.begin({ device: this.#device, kind: 'write', ...range, data });
    await this.#next.write(offset, data, options);
    this.#recording.end(write);
  }

  protected async performFlush(options: IoOptions | undefined): Promise<void> {
    const begun = this.#recording.flushBegins();
    await this.#next.flush(options);
    this.#recording.flushEnds(this.#device, begun);
  }

  protected async performDiscard(offset: number, length: number, options: IoOptions | undefined): Promise<void> {
    const range = { offset, length, fua: false, data: undefined };
    const write = this.#recording.begin({ device: this.#device, kind: 'discard', ...range });
    await this.#next.discard(offset, length, options);
    this.#recording.end(write);
  }

  protected async performWriteZeroes(
    offset: number,
    length: number,
    options: WriteZeroesOptions | undefined,
  ): Promise<void> {
    const range = { offset, length, fua: options?.fua ?? false, data: undefined };
    const write = this.#recording.begin({ device: this.#device, kind: 'zeroes', ...range });
    await this.#next.writeZeroes(offset, length, options);
    this.#recording.end(write);
  }

  protected performClose(): Promise<void> {
    return this.#next.close();
  }
}
