import { expect, test } from 'vitest';
import { RangeDevice } from '../../lib/checkpoint/range-device.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';
import { conformance, conformanceSizeBytes } from '../conformance/block-device.ts';

const ADDRESS = 8192;
const place = { name: 'range', address: ADDRESS, lengthBytes: conformanceSizeBytes };

conformance('a range of a region', async () => {
  const recorder = new StoreRecorder(new Uint8Array(ADDRESS + conformanceSizeBytes), 0);
  return {
    device: new RangeDevice(recorder.access(), place),
    reopenReadOnly: async () => new RangeDevice(recorder.access({ writes: false }), { ...place, readOnly: true }),
  };
}, ['reopenReadOnly']);

test('a write happens only while its guard holds', async () => {
  const recorder = new StoreRecorder(new Uint8Array(2 * 8192));
  const guard = { address: 0, expected: 0n };
  const device = new RangeDevice(recorder.access(), { name: 'range', address: ADDRESS, lengthBytes: 4096, guard });
  await device.write(0, new Uint8Array(8).fill(1));
  await recorder.access().compareAndSwap(0, 0n, 1n);
  await expect(device.write(0, new Uint8Array(8).fill(2))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FENCED' });
  const found = new Uint8Array(8);
  await device.read(0, found);
  expect(found).toEqual(new Uint8Array(8).fill(1));
});
