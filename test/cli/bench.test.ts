import { describe, expect, it } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import { systemRandom } from '../../lib/base/random.ts';
import { type BenchOptions, type BenchPattern, type BenchResult, DeviceBench } from '../../lib/cli/bench.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';

const blockBytes = 4096;
const options = {
  blockBytes,
  depth: 4,
  clock: systemClock,
  random: systemRandom,
  cpu: () => process.cpuUsage(),
  buffer: (length: number) => new Uint8Array(length),
};

async function benchDevice(device: BlockDevice, asked: BenchOptions & { durationMs?: number }): Promise<BenchResult> {
  const bench = new DeviceBench(device, asked);
  await bench.run(asked.durationMs ?? 20);
  return bench.result();
}

/** A device that notes where it was touched, and how many requests were in flight. */
class NotingDevice extends MemoryDevice {
  readonly offsets: number[] = [];
  inFlight = 0;
  mostInFlight = 0;

  protected override async performRead(offset: number, buffer: Uint8Array): Promise<void> {
    this.offsets.push(offset);
    this.mostInFlight = Math.max(this.mostInFlight, ++this.inFlight);
    await new Promise((resolve) => setImmediate(resolve));
    this.inFlight--;
    return super.performRead(offset, buffer);
  }
}

it('counts what completed and orders the percentiles', async () => {
  const device = new NotingDevice({ sizeBytes: 64 * blockBytes });
  const result = await benchDevice(device, { ...options, pattern: 'randread' });
  expect(result.requests).toBe(device.offsets.length);
  expect(result.bytes).toBe(result.requests * blockBytes);
  expect(device.mostInFlight).toBe(4);
  const { min, p50, p90, p99, p999, max } = result.latencyMicroseconds;
  const ordered = [min, p50, p90, p99, p999, max];
  expect(ordered).toEqual(ordered.toSorted((a, b) => a - b));
  expect(min).toBeGreaterThan(0);
});

it('several parts add up, and the result can be looked at on the way', async () => {
  let user = 0;
  const cpu = () => {
    user += 1000;
    return { user, system: 0 };
  };
  const device = new NotingDevice({ sizeBytes: 64 * blockBytes });
  const bench = new DeviceBench(device, { ...options, cpu, pattern: 'randread' });
  expect(bench.result()).toMatchObject({ requests: 0, requestsPerSecond: 0, latencyHistogram: [] });
  const running = bench.run(20);
  // Time passes before anything else runs: a timer could come when it is over.
  for (const start = performance.now(); performance.now() < start + 1; );
  expect(bench.running).toBe(true);
  expect(bench.result().elapsedMs).toBeGreaterThan(0);
  await running;
  expect(bench.running).toBe(false);
  const first = bench.result();
  await bench.run(20);
  const second = bench.result();
  expect(second.requests).toBe(device.offsets.length);
  expect(second.requests).toBeGreaterThan(first.requests);
  expect(second.elapsedMs).toBeGreaterThanOrEqual(first.elapsedMs + 20);
  // By this processor's clock the first part and the look at it took 2 ms, the second part 1 ms.
  const { user: perRequest } = second.cpuMicrosecondsPerRequest;
  expect(perRequest).toBeCloseTo(3000 / second.requests, 1);
});

it('the histogram has every request, in ranges without gaps', async () => {
  const device = new NotingDevice({ sizeBytes: 64 * blockBytes });
  const { requests, latencyHistogram } = await benchDevice(device, { ...options, pattern: 'randread' });
  expect(latencyHistogram.reduce((sum, range) => sum + range.requests, 0)).toBe(requests);
  expect(latencyHistogram[0]!.requests).toBeGreaterThan(0);
  expect(latencyHistogram.at(-1)!.requests).toBeGreaterThan(0);
  latencyHistogram.forEach((range, at) => {
    expect(range.toMicroseconds).toBeGreaterThan(range.fromMicroseconds);
    if (at > 0) expect(range.fromMicroseconds).toBe(latencyHistogram[at - 1]!.toMicroseconds);
  });
});

it('random requests are whole blocks all over the device', async () => {
  const device = new NotingDevice({ sizeBytes: 8 * blockBytes });
  await benchDevice(device, { ...options, pattern: 'randread', durationMs: 100 });
  expect([...new Set(device.offsets)].toSorted((a, b) => a - b)).toEqual(
    Array.from({ length: 8 }, (_, block) => block * blockBytes),
  );
});

it('sequential requests go round', async () => {
  const device = new NotingDevice({ sizeBytes: 3 * blockBytes + 512 });
  await benchDevice(device, { ...options, pattern: 'read', depth: 1 });
  expect(device.offsets.slice(0, 5)).toEqual([0, 1, 2, 0, 1].map((block) => block * blockBytes));
});

describe('what it does to the content', () => {
  it.each<[BenchPattern, boolean]>([
    ['randread', false],
    ['read', false],
    ['randwrite', true],
    ['write', true],
  ])('%s changes it: %s', async (pattern, changes) => {
    const device = new MemoryDevice({ sizeBytes: 4 * blockBytes });
    await benchDevice(device, { ...options, pattern });
    expect(device.stats().writes > 0).toBe(changes);
    expect(device.stats().reads > 0).toBe(!changes);
  });
});

it('a failing device ends the measurement with its error', async () => {
  const device = new MemoryDevice({ sizeBytes: blockBytes, readOnly: true });
  await expect(benchDevice(device, { ...options, pattern: 'write' })).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_READ_ONLY',
  });
});

it('a device smaller than one block is refused', async () => {
  const device = new MemoryDevice({ sizeBytes: 512 });
  await expect(benchDevice(device, { ...options, pattern: 'read' })).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_BAD_ARGUMENT',
    message: expect.stringContaining('choose a smaller --bs'),
  });
});

it('cancelled, it stops early and gives what it has', async () => {
  const device = new NotingDevice({ sizeBytes: blockBytes });
  const result = await benchDevice(device, {
    ...options,
    pattern: 'read',
    durationMs: 60_000,
    signal: AbortSignal.timeout(30),
  });
  expect(result.elapsedMs).toBeLessThan(30_000);
  expect(result.requests).toBeGreaterThan(0);
});
