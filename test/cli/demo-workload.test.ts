import { expect, it } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import { systemRandom } from '../../lib/base/random.ts';
import { BLOCK_BYTES, fillBlock, Workload } from '../../lib/cli/demo-workload.ts';
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

async function ranFor(ms: number, device: MemoryDevice): Promise<Workload> {
  const workload = new Workload(options);
  workload.start(device);
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

it('a write that fails is told by stop', async () => {
  const workload = new Workload(options);
  workload.start(new MemoryDevice({ sizeBytes: options.volumeBytes, readOnly: true }));
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
