/**
 * A disk for the simulation: a device behind the clock and the random that it is given, and behind nothing else, so
 * that one seed gives one run.
 *
 * How it misbehaves, all within what real disks may do:
 * - A request takes a random time, so requests overtake each other. Its data moves when it completes: a caller that
 *   changes a buffer in flight is found out.
 * - Completed writes sit in a volatile cache, bounded; `flush` and force unit access make them durable.
 * - `crash()`, a power cut: requests in flight never end; each unflushed write is kept, lost or torn by sectors.
 * - `kill()`, the death of the process: completed writes stay, each one in flight happened, did not, or did in part.
 * - A discarded range becomes zeros, or not.
 * - What a `FaultPlan` injects: errors, hangs, delays, single bits, writes that go astray.
 * - `rot()`: a bit turns over where it lies.
 *
 * The disk outlives the faces that `open` gives; there is one at a time. After `crash` or `kill` the old face is dead:
 * nothing that it was asked for ever ends.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { BaseDevice } from '../storage/base-device.ts';
import type { BlockDevice, Geometry, WriteOptions } from '../storage/block-device.ts';
import { FaultPlan, FaultyDevice } from '../storage/faulty-device.ts';
import { UnalignedDevice } from '../storage/unaligned.ts';
import { type Change, SimulatedMedia } from './simulated-media.ts';

/** Least and most, in milliseconds; each request's time is drawn evenly from between. */
export type LatencyRange = readonly [leastMs: number, mostMs: number];

/** Size, speed and cache of a simulated disk. */
export interface SimulatedDiskOptions {
  /** The world's, not one process's: a disk goes on when a process stands still. */
  readonly clock: Clock;
  readonly random: Random;
  readonly sizeBytes: number;
  /** For messages, default `disk`. */
  readonly name?: string;
  /** Default 512. A write is torn at multiples of this. */
  readonly logicalBlockBytes?: number;
  readonly readLatencyMs?: LatencyRange;
  readonly writeLatencyMs?: LatencyRange;
  readonly flushLatencyMs?: LatencyRange;
  /** What the volatile cache holds before it writes back the oldest; default 4 MiB. 0: there is no such cache. */
  readonly cacheBytes?: number;
}

/** How a process opens a simulated disk. */
export interface SimulatedOpenOptions {
  readonly readOnly?: boolean;
  /** How an answer reaches the process that opens: now, later or never. Default: now. */
  readonly run?: (answer: () => void) => void;
}

interface Latencies {
  readonly read: LatencyRange;
  readonly write: LatencyRange;
  readonly flush: LatencyRange;
}

interface PendingRequest {
  readonly timer: TimerHandle;
  /** What it would change; the bytes are the caller's buffer. */
  readonly change: Change | undefined;
}

/**
 * A disk in virtual time that does what real ones may: requests overtake each other, completed writes sit in a volatile
 * cache, a power cut keeps, loses or tears each of them. It outlives the processes that open it, one at a time.
 */
export class SimulatedDisk {
  readonly name: string;
  readonly geometry: Geometry;
  /** Faults to inject; they stay through crashes and opens until removed. */
  readonly faults: FaultPlan;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #latencies: Latencies;
  readonly #media: SimulatedMedia;
  #face: SimulatedFace | undefined;

  constructor(options: SimulatedDiskOptions) {
    const { sizeBytes, logicalBlockBytes = 512, cacheBytes = 4 * 1024 * 1024 } = options;
    if (sizeBytes % logicalBlockBytes !== 0)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `sizeBytes ${sizeBytes} must be a multiple of logicalBlockBytes ${logicalBlockBytes}`,
      );
    this.name = options.name ?? 'disk';
    this.#clock = options.clock;
    this.#random = options.random;
    this.#latencies = {
      read: options.readLatencyMs ?? [0.05, 0.5],
      write: options.writeLatencyMs ?? [0.05, 1],
      flush: options.flushLatencyMs ?? [0.2, 3],
    };
    this.#media = new SimulatedMedia(options.random, logicalBlockBytes, cacheBytes);
    this.faults = new FaultPlan(options.random);
    this.geometry = {
      sizeBytes,
      logicalBlockBytes,
      physicalBlockBytes: Math.max(4096, logicalBlockBytes),
      optimalIoBytes: 65_536,
      rotational: false,
      discard: true,
      writeZeroes: true,
      volatileCache: cacheBytes > 0,
    };
  }

  /**
   * Opens the disk.
   *
   * @throws HoldfastError ERR_HOLDFAST_DEVICE_BUSY while it is open: close that face, `kill` or `crash` first.
   */
  open(options: SimulatedOpenOptions = {}): BlockDevice {
    if (this.#face !== undefined)
      throw new HoldfastError('ERR_HOLDFAST_DEVICE_BUSY', `${this.name} is already open; close it first`);
    const face = new SimulatedFace({
      name: this.name,
      readOnly: options.readOnly ?? false,
      geometry: this.geometry,
      media: this.#media,
      clock: this.#clock,
      random: this.#random,
      latencies: this.#latencies,
      run: options.run ?? ((answer) => answer()),
      onClose: () => {
        this.#face = undefined;
      },
    });
    this.#face = face;
    return new UnalignedDevice(new FaultyDevice(face, { plan: this.faults, clock: this.#clock }));
  }

  /** The process that has the disk open dies. */
  kill(): void {
    const face = this.#face;
    this.#face = undefined;
    face?.die();
  }

  /**
   * The power goes: with it the process, and what was only in the volatile cache. True if a write that had completed is
   * not there any more, or not whole.
   */
  crash(): boolean {
    this.kill();
    return this.#media.losePower();
  }

  /** One bit of what lies at this byte turns over, for good. */
  rot(offset: number, bit: number): void {
    this.#media.rot(offset, bit);
  }

  /** A new disk, all zeros, in this one's place. The process that had it open is gone. */
  replace(): void {
    this.kill();
    this.faults.clear();
    this.#media.clear();
  }

  /** Looks at the content as a read would find it now, without taking time: for checkers. */
  peek(offset: number, into: Uint8Array): void {
    this.#media.read(offset, into);
  }

  /** Bytes that a power cut now could take back. */
  get unflushedBytes(): number {
    return this.#media.unflushedBytes;
  }
}

interface FaceOptions {
  readonly name: string;
  readonly readOnly: boolean;
  readonly geometry: Geometry;
  readonly media: SimulatedMedia;
  readonly clock: Clock;
  readonly random: Random;
  readonly latencies: Latencies;
  readonly run: (answer: () => void) => void;
  readonly onClose: () => void;
}

/** What one process has of the disk, from `open` until it closes or dies. */
class SimulatedFace extends BaseDevice {
  readonly kind = 'simulated';
  readonly geometry: Geometry;
  readonly #options: FaceOptions;
  readonly #media: SimulatedMedia;
  readonly #pending = new Set<PendingRequest>();
  #dead = false;

  constructor(options: FaceOptions) {
    super(options.name, options.readOnly);
    this.geometry = options.geometry;
    this.#options = options;
    this.#media = options.media;
  }

  die(): void {
    this.#dead = true;
    for (const { timer, change } of this.#pending) {
      timer.cancel();
      if (change !== undefined) this.#media.applyPerhaps(change);
    }
    this.#pending.clear();
  }

  protected performRead(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#later('read', undefined, () => this.#media.read(offset, buffer));
  }

  protected performWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    return this.#change({ offset, length: buffer.byteLength, data: buffer }, options);
  }

  protected performFlush(): Promise<void> {
    const mark = this.#media.mark();
    return this.#later('flush', undefined, () => this.#media.flushUpTo(mark));
  }

  protected performDiscard(offset: number, length: number): Promise<void> {
    return this.#later('write', undefined, () => {
      if (this.#options.random.below(2) === 0) this.#media.apply({ offset, length, data: undefined }, false);
    });
  }

  protected performWriteZeroes(offset: number, length: number, options: WriteOptions | undefined): Promise<void> {
    return this.#change({ offset, length, data: undefined }, options);
  }

  protected async performClose(): Promise<void> {
    if (this.#dead) return new Promise(() => {});
    this.#options.onClose();
  }

  #change(change: Change, options: WriteOptions | undefined): Promise<void> {
    return this.#later('write', change, () => this.#media.apply(change, options?.fua ?? false));
  }

  #later(kind: keyof Latencies, change: Change | undefined, complete: () => void): Promise<void> {
    if (this.#dead) return new Promise(() => {});
    const { clock, random, latencies, run } = this.#options;
    const [leastMs, mostMs] = latencies[kind];
    const delayMs = leastMs + ((mostMs - leastMs) * random.below(65_536)) / 65_536;
    return new Promise((resolve) => {
      const timer = clock.setTimer(delayMs, () => {
        this.#pending.delete(request);
        complete();
        run(resolve);
      });
      const request: PendingRequest = { timer, change };
      this.#pending.add(request);
    });
  }
}
