/**
 * Measures a device: keeps `depth` requests in flight for a time, and counts how many complete and how long each takes.
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
  readonly durationMs: number;
  readonly clock: Clock;
  readonly random: Random;
  /** A buffer for each request in flight; memory that the device reads into without a copy, where there is such. */
  readonly buffer: (lengthBytes: number) => Uint8Array;
  readonly signal?: AbortSignal;
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

/**
 * Runs the measurement. A write overwrites what is on the device.
 * Throws ERR_HOLDFAST_BAD_ARGUMENT if not one block fits, and what the device throws.
 */
export async function benchDevice(device: BlockDevice, options: BenchOptions): Promise<BenchResult> {
  const { pattern, blockBytes, depth, clock, random } = options;
  const blocks = Math.floor(device.geometry.sizeBytes / blockBytes);
  if (blocks === 0)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${device.name} has ${device.geometry.sizeBytes} bytes, less than one block of ${blockBytes}; choose a smaller --bs or a larger device`,
    );
  const nextBlock = pattern.startsWith('rand') ? randomBlocks(random, blocks) : sequentialBlocks(blocks);
  const latencies = new Histogram();
  const startMs = clock.nowMs();
  const endMs = startMs + options.durationMs;
  let stopped = false;
  const lane = async (): Promise<void> => {
    const buffer = options.buffer(blockBytes);
    const write = isWrite(pattern);
    // Zeros, or the same bytes again, would flatter devices that compress.
    if (write) random.fill(buffer);
    while (!stopped) {
      const offset = nextBlock() * blockBytes;
      const before = clock.nowMs();
      if (write) await device.write(offset, buffer);
      else await device.read(offset, buffer);
      const now = clock.nowMs();
      latencies.record((now - before) * 1e6);
      if (now >= endMs || options.signal?.aborted) stopped = true;
    }
  };
  await allOrStop(
    Array.from({ length: depth }, () => lane()),
    () => {
      stopped = true;
    },
  );
  return resultOf(latencies, blockBytes, clock.nowMs() - startMs);
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

function resultOf(latencies: Histogram, blockBytes: number, elapsedMs: number): BenchResult {
  const microseconds = (nanoseconds: number) => Math.round(nanoseconds / 10) / 100;
  const at = (percent: number) => microseconds(latencies.percentile(percent));
  const requests = latencies.count;
  return {
    requests,
    bytes: requests * blockBytes,
    elapsedMs: Math.round(elapsedMs * 100) / 100,
    requestsPerSecond: Math.round((requests * 1000) / elapsedMs),
    bytesPerSecond: Math.round((requests * blockBytes * 1000) / elapsedMs),
    latencyMicroseconds: {
      min: microseconds(latencies.min),
      mean: microseconds(latencies.mean),
      p50: at(50),
      p90: at(90),
      p99: at(99),
      p999: at(99.9),
      max: microseconds(latencies.max),
    },
  };
}
