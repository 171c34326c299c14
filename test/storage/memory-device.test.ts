import { expect, test } from 'vitest';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { conformance, conformanceSizeBytes } from '../conformance/block-device.ts';

conformance('memory', async () => ({ device: new MemoryDevice({ sizeBytes: conformanceSizeBytes }) }));
conformance('memory with blocks of one byte', async () => ({
  device: new MemoryDevice({ sizeBytes: conformanceSizeBytes + 3, logicalBlockBytes: 1 }),
}));
conformance('memory with blocks of 4096 bytes', async () => ({
  device: new MemoryDevice({ sizeBytes: conformanceSizeBytes, logicalBlockBytes: 4096 }),
}));

test('only what was written takes memory, and zeroing gives it back', async () => {
  await using device = new MemoryDevice({ sizeBytes: 2 ** 50 });
  await device.write(2 ** 49, new Uint8Array(4096).fill(1));
  expect(device.allocatedBytes).toBe(64 * 1024);
  await device.writeZeroes(0, 2 ** 20);
  expect(device.allocatedBytes).toBe(64 * 1024);
  await device.discard(2 ** 49, 64 * 1024);
  expect(device.allocatedBytes).toBe(0);
});

test.each([
  { sizeBytes: -1 },
  { sizeBytes: 1.5 },
  { sizeBytes: 1000 },
  { sizeBytes: 4096, logicalBlockBytes: 3 },
  { sizeBytes: 4096, logicalBlockBytes: 0 },
  { sizeBytes: 8192, logicalBlockBytes: 8192, physicalBlockBytes: 4096 },
])('a size that is none is refused: %o', (options) => {
  expect(() => new MemoryDevice(options)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }));
});

test('a read-only one refuses changes', async () => {
  await using device = new MemoryDevice({ sizeBytes: 4096, readOnly: true });
  await expect(device.write(0, new Uint8Array(1))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_READ_ONLY' });
});
