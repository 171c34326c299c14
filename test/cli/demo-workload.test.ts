import { describe, expect, it } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import { systemRandom } from '../../lib/base/random.ts';
import { BLOCK_BYTES, fillBlock, Workload, type WorkloadClient } from '../../lib/cli/demo-workload.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';

const MIB = 1024 * 1024;
const options = {
  clock: systemClock,
  random: systemRandom,
  volumeBytes: 8 * MIB,
  depth: 8,
  windows: 4,
  windowBytes: 64 * 1024,
};

const asClient = (device: MemoryDevice): WorkloadClient => ({
  write: (offset, bytes) => device.write(offset, bytes),
  read: (offset, bytes) => device.read(offset, bytes),
});

async function ranFor(ms: number, device: MemoryDevice): Promise<Workload> {
  const workload = new Workload(options);
  workload.start([asClient(device)]);
  await new Promise((resolve) => setTimeout(resolve, ms));
  await workload.stop();
  return workload;
}

/** Gives the event loop a turn with every write. */
class YieldingDevice extends MemoryDevice {
  protected override async performWrite(offset: number, buffer: Uint8Array): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    return super.performWrite(offset, buffer);
  }
}

it('what must be on the volume is foretold to the byte', async () => {
  const device = new YieldingDevice({ sizeBytes: options.volumeBytes });
  const workload = await ranFor(50, device);
  expect(workload.acknowledged).toBeGreaterThan(workload.written.size);
  const held = new Uint8Array(options.volumeBytes);
  await device.read(0, held);
  const expected = new Uint8Array(options.volumeBytes);
  for (let offset = 0; offset < expected.length; offset += MIB)
    workload.overlay(offset, expected.subarray(offset, offset + MIB));
  expect(Buffer.compare(held, expected)).toBe(0);
});

it('dirty bytes are distinct ones, and grains are never fewer', async () => {
  const workload = await ranFor(50, new YieldingDevice({ sizeBytes: options.volumeBytes }));
  expect(workload.dirtyBytes).toBe(workload.written.size * BLOCK_BYTES);
  expect(workload.dirtyBytes).toBeLessThanOrEqual(workload.dirtyGrainBytes(64 * 1024));
  expect(workload.dirtyGrainBytes(64 * 1024)).toBeLessThanOrEqual(4 * 64 * 1024);
});

it('of clients that read what others write, each is given its longest wait', async () => {
  const device = new YieldingDevice({ sizeBytes: options.volumeBytes });
  const slow: WorkloadClient = {
    ...asClient(device),
    write: async (offset, bytes) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      await device.write(offset, bytes);
    },
  };
  const workload = new Workload(options);
  workload.start([asClient(device), slow]);
  await new Promise((resolve) => setTimeout(resolve, 100));
  const [, longest] = workload.takeLongestMs();
  expect(longest).toBeGreaterThanOrEqual(19);
  await workload.stop();
  expect(workload.reads).toBeGreaterThan(0);
  expect(workload.wrongReads).toBe(0);
});

it('what is written between mark and take is counted once for each block', async () => {
  const workload = new Workload({ ...options, windows: 1 });
  workload.start([asClient(new YieldingDevice({ sizeBytes: options.volumeBytes }))]);
  await new Promise((resolve) => setTimeout(resolve, 20));
  workload.mark();
  expect(workload.takeMarkedBytes()).toBe(0);
  workload.mark();
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(workload.takeMarkedBytes()).toBe(16 * BLOCK_BYTES);
  expect(workload.takeMarkedBytes()).toBe(0);
  await workload.stop();
});

describe('a read that no single copy would have answered so is counted', () => {
  const wrongAfter = async (spoil: (device: MemoryDevice) => WorkloadClient): Promise<number> => {
    const device = new YieldingDevice({ sizeBytes: options.volumeBytes });
    const workload = new Workload({ ...options, windows: 1 });
    workload.start([asClient(device), spoil(device)]);
    await new Promise((resolve) => setTimeout(resolve, 100));
    await workload.stop();
    return workload.wrongReads;
  };

  it('one of a copy that has missed writes', async () => {
    const stale = new MemoryDevice({ sizeBytes: options.volumeBytes });
    const spoil = (device: MemoryDevice) => ({ ...asClient(device), read: asClient(stale).read });
    expect(await wrongAfter(spoil)).toBeGreaterThan(0);
  });

  it('one that comes late', async () => {
    const seen = new Map<number, Uint8Array>();
    const spoil = (device: MemoryDevice): WorkloadClient => ({
      ...asClient(device),
      read: async (offset, bytes) => {
        const before = seen.get(offset);
        await device.read(offset, bytes);
        if (before === undefined) seen.set(offset, bytes.slice());
        else bytes.set(before);
      },
    });
    expect(await wrongAfter(spoil)).toBeGreaterThan(0);
  });

  it('one that mixes two writes', async () => {
    const spoil = (device: MemoryDevice): WorkloadClient => ({
      ...asClient(device),
      read: async (offset, bytes) => {
        await device.read(offset, bytes);
        bytes[BLOCK_BYTES - 1]! ^= 1;
      },
    });
    expect(await wrongAfter(spoil)).toBeGreaterThan(0);
  });
});

it('a write that fails is told by stop', async () => {
  const workload = new Workload(options);
  workload.start([asClient(new MemoryDevice({ sizeBytes: options.volumeBytes, readOnly: true }))]);
  await expect(workload.stop()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_READ_ONLY' });
});

it('no two writes have the same content', () => {
  const seen = new Set<string>();
  for (let index = 0; index < 32; index++)
    for (let number = 0; number < 32; number++) {
      const block = new Uint8Array(BLOCK_BYTES);
      fillBlock(block, index, number);
      seen.add(Buffer.from(block).toString('latin1'));
    }
  expect(seen.size).toBe(32 * 32);
});
