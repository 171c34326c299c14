/**
 * Measures a device: keeps `depth` requests in flight for a time, and counts how many complete, how long each takes and
 * what it costs the processor.
 * Every request goes through the public BlockDevice face, as a user's would. Device, clock and random come from outside.
 */
import type { Clock } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';
import { Histogram } from '../base/histogram.ts';
import type { Random } from '../base/random.ts';
import type { BlockDevice } from '../storage/block-device.ts';

export type BenchPattern = 'randread' | 'randwrite' | 'read' | 'write';

export interface BenchOptions {
  readonly pattern: BenchPattern;
  readonly blockBytes: number;
  /** Requests in flight. */
  readonly depth: number;
  readonly clock: Clock;
  readonly random: Random;
  /** The processor time that this process has used. */
  readonly cpu: () => CpuMicroseconds;
  /** A buffer for each request in flight; memory that the device reads into without a copy, where there is such. */
  readonly buffer: (lengthBytes: number) => Uint8Array;
  readonly signal?: AbortSignal;
}

/** As process.cpuUsage() tells it. */
export interface CpuMicroseconds {
  /** In user mode, and in the kernel on behalf of this process. */
  readonly user: number;
  readonly system: number;
}

export interface LatencyRange {
  /** Above this, … */
  readonly fromMicroseconds: number;
  /** … and not above this. */
  readonly toMicroseconds: number;
  readonly requests: number;
}

export interface BenchResult {
  readonly requests: number;
  readonly bytes: number;
  readonly elapsedMs: number;
  readonly requestsPerSecond: number;
  readonly bytesPerSecond: number;
  readonly latencyMicroseconds: {
    readonly min: number;
    readonly mean: number;
    readonly p50: number;
    readonly p90: number;
    readonly p99: number;
    readonly p999: number;
    readonly max: number;
  };
  /** From the fastest request's range to the slowest one's. */
  readonly latencyHistogram: readonly LatencyRange[];
  readonly cpuMicrosecondsPerRequest: CpuMicroseconds;
}

export function isWrite(pattern: BenchPattern): boolean {
  return pattern === 'randwrite' || pattern === 'write';
}

/** Cheap random block numbers (xorshift32, Marsaglia 2003, two words each): the system's would cost more than a read. */
function randomBlocks(random: Random, blocks: number): () => number {
  const seed = new Uint32Array(1);
  random.fill(new Uint8Array(seed.buffer));
  let state = seed[0]! | 1;
  const word = (): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
  return () => Math.floor(((word() + (word() >>> 11) / 2 ** 21) / 2 ** 32) * blocks);
}

function sequentialBlocks(blocks: number): () => number {
  let next = 0;
  return () => {
    const block = next;
    next = next + 1 === blocks ? 0 : next + 1;
    return block;
  };
}

/** One measurement; it may be run in several parts, which add up. Its result can be looked at on the way. */
export class DeviceBench {
  readonly #device: BlockDevice;
  readonly #options: BenchOptions;
  readonly #nextBlock: () => number;
  readonly #latencies = new Histogram();
  readonly #buffers: Uint8Array[] = [];
  #elapsedMs = 0;
  #cpu = { user: 0, system: 0 };
  #running: { readonly startMs: number; readonly cpu: CpuMicroseconds } | undefined;

  /** Throws ERR_HOLDFAST_BAD_ARGUMENT if not one block fits. */
  constructor(device: BlockDevice, options: BenchOptions) {
    const { pattern, blockBytes, random } = options;
    const blocks = Math.floor(device.geometry.sizeBytes / blockBytes);
    if (blocks === 0)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `${device.name} has ${device.geometry.sizeBytes} bytes, less than one block of ${blockBytes}; choose a smaller --bs or a larger device`,
      );
    this.#device = device;
    this.#options = options;
    this.#nextBlock = pattern.startsWith('rand') ? randomBlocks(random, blocks) : sequentialBlocks(blocks);
  }

  /** Measures for a time. A write overwrites what is on the device. Throws what the device throws. */
  async run(durationMs: number): Promise<void> {
    const { pattern, blockBytes, clock, cpu, depth } = this.#options;
    const write = isWrite(pattern);
    const startMs = clock.nowMs();
    this.#running = { startMs, cpu: cpu() };
    let stopped = false;
    const lane = async (index: number): Promise<void> => {
      const buffer = this.#bufferOf(index);
      while (!stopped) {
        const offset = this.#nextBlock() * blockBytes;
        const before = clock.nowMs();
        if (write) await this.#device.write(offset, buffer);
        else await this.#device.read(offset, buffer);
        const now = clock.nowMs();
        this.#latencies.record((now - before) * 1e6);
        if (now >= startMs + durationMs || this.#options.signal?.aborted) stopped = true;
      }
    };
    try {
      await allOrStop(
        Array.from({ length: depth }, (_, index) => lane(index)),
        () => {
          stopped = true;
        },
      );
    } finally {
      this.#elapsedMs = this.#elapsed();
      this.#cpu = this.#cpuUsed();
      this.#running = undefined;
    }
  }

  get running(): boolean {
    return this.#running !== undefined;
  }

  result(): BenchResult {
    return resultOf(this.#latencies, this.#options.blockBytes, this.#elapsed(), this.#cpuUsed());
  }

  #bufferOf(index: number): Uint8Array {
    const { buffer, blockBytes, pattern, random } = this.#options;
    let bytes = this.#buffers[index];
    if (bytes !== undefined) return bytes;
    bytes = buffer(blockBytes);
    this.#buffers[index] = bytes;
    // Zeros, or the same bytes again, would flatter devices that compress.
    if (isWrite(pattern)) random.fill(bytes);
    return bytes;
  }

  #elapsed(): number {
    return this.#elapsedMs + (this.#running === undefined ? 0 : this.#options.clock.nowMs() - this.#running.startMs);
  }

  #cpuUsed(): CpuMicroseconds {
    if (this.#running === undefined) return this.#cpu;
    const now = this.#options.cpu();
    const { cpu } = this.#running;
    return { user: this.#cpu.user + now.user - cpu.user, system: this.#cpu.system + now.system - cpu.system };
  }
}

/** Waits for all of them, also after one has failed: buffers are free again only then. */
async function allOrStop(lanes: readonly Promise<void>[], stop: () => void): Promise<void> {
  let failure: { error: unknown } | undefined;
  const settle = (lane: Promise<void>) =>
    lane.catch((error: unknown) => {
      failure ??= { error };
      stop();
    });
  await Promise.all(lanes.map(settle));
  if (failure) throw failure.error;
}

/** 1, 2, 5, 10, 20, 50 … microseconds, in nanoseconds: edges that people read. */
const EDGES = Array.from({ length: 24 }, (_, step) => [1, 2, 5][step % 3]! * 10 ** Math.floor(step / 3) * 1000);

function latencyRanges(latencies: Histogram): LatencyRange[] {
  const ranges: LatencyRange[] = [];
  let before = 0;
  let from = 0;
  for (const edge of [...EDGES, Number.POSITIVE_INFINITY]) {
    const to = Number.isFinite(edge) ? edge : latencies.max;
    const upTo = latencies.countUpTo(to);
    if (upTo > 0) ranges.push({ fromMicroseconds: from / 1000, toMicroseconds: to / 1000, requests: upTo - before });
    if (upTo === latencies.count) break;
    before = upTo;
    from = to;
  }
  return ranges;
}

function resultOf(latencies: Histogram, blockBytes: number, elapsedMs: number, cpu: CpuMicroseconds): BenchResult {
  const microseconds = (nanoseconds: number) => Math.round(nanoseconds / 10) / 100;
  const at = (percent: number) => microseconds(latencies.percentile(percent));
  const requests = latencies.count;
  const perSecond = (amount: number) => (elapsedMs > 0 ? Math.round((amount * 1000) / elapsedMs) : 0);
  const perRequest = (amount: number) => (requests > 0 ? Math.round((amount * 100) / requests) / 100 : 0);
  return {
    requests,
    bytes: requests * blockBytes,
    elapsedMs: Math.round(elapsedMs * 100) / 100,
    requestsPerSecond: perSecond(requests),
    bytesPerSecond: perSecond(requests * blockBytes),
    latencyMicroseconds: {
      min: microseconds(latencies.min),
      mean: microseconds(latencies.mean),
      p50: at(50),
      p90: at(90),
      p99: at(99),
      p999: at(99.9),
      max: microseconds(latencies.max),
    },
    latencyHistogram: latencyRanges(latencies),
    cpuMicrosecondsPerRequest: { user: perRequest(cpu.user), system: perRequest(cpu.system) },
  };
}
