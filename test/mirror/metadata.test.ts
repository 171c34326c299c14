import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { DirtyBitmap } from '../../lib/coherency/bitmap.ts';
import { checkFits, type MemberShape, Metadata, metadataBytes } from '../../lib/mirror/metadata.ts';
import { decodeMember, encodeMember, RECORD_BYTES, type StoredMember } from '../../lib/mirror/record-format.ts';
import { enterView, type MemberRecord } from '../../lib/mirror/view.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { viewId } from './record-text.ts';

const MIB = 1024 * 1024;
const shape: MemberShape = {
  volumeId: '00112233445566778899aabbccddeeff',
  sizeBytes: 16 * MIB,
  grainBytes: 65_536,
  member: 1,
  memberName: 'bravo',
  deviceIdentity: 'file 1234 on 42, 17 MiB',
};
const record: MemberRecord = {
  known: { number: 7, id: viewId('v7'), inSync: 2, holder: 1 },
  dataId: viewId('v7'),
  dataHolder: 1,
  history: [viewId('v6'), viewId('v5'), viewId('v1')],
  baseId: viewId('v6'),
  dataState: 'up-to-date',
  clean: true,
};
const stored: StoredMember = { ...shape, bitmapCrc: 0xdeadbeef, record };

async function newDevice(): Promise<MemoryDevice> {
  const device = new MemoryDevice({ sizeBytes: 17 * MIB });
  await Metadata.create(device, shape);
  return device;
}

test('the golden record is read and written as it was', () => {
  const golden = new Uint8Array(readFileSync(new URL('golden/member-record-1.bin', import.meta.url)));
  expect(decodeMember(golden)).toEqual(stored);
  expect(encodeMember(stored)).toEqual(Buffer.from(golden));
});

test('a record that cannot be right is refused', () => {
  const spoilt = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.from(encodeMember(stored));
    change(bytes);
    return () => decodeMember(bytes);
  };
  const damaged = expect.objectContaining({ code: 'ERR_HOLDFAST_METADATA_DAMAGED' });
  expect(() => decodeMember(new Uint8Array(RECORD_BYTES - 1))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt8(2, 28))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt8(3, 29))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt8(4, 31))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt16LE(65, 58))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt32LE(65_537, 24))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt16LE(513, 1120))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.fill(0xff, 16, 24))).toThrow(damaged);
});

test('a name that does not fit is refused before anything is written', () => {
  expect(() => encodeMember({ ...stored, memberName: 'x'.repeat(65) })).toThrow(
    expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }),
  );
});

test('what is written is read back, and the data area is untouched', async () => {
  const device = await newDevice();
  const opened = await Metadata.open(device);
  expect(opened).toMatchObject({ ...shape, savedMarks: undefined });
  expect(opened.record.dataState).toBe('created');
  const entered = enterView(opened.record, record.known, record.baseId);
  await opened.write(entered);
  expect((await Metadata.open(device)).record).toEqual(entered);
  const data = new Uint8Array(shape.sizeBytes);
  await device.read(0, data);
  expect(data.every((byte) => byte === 0)).toBe(true);
});

test('the saved bitmap counts while the record says clean, and only if it is whole', async () => {
  const device = await newDevice();
  const marks = new DirtyBitmap(shape.sizeBytes, shape.grainBytes);
  marks.mark(5 * 65_536, 1);
  await (await Metadata.open(device)).writeClean(record, marks.toBytes());
  const clean = await Metadata.open(device);
  expect(clean.savedMarks).toEqual(marks.toBytes());
  const end = device.geometry.sizeBytes;
  await device.write(end - 65_536 - 4096, Uint8Array.of(0xff));
  expect((await Metadata.open(device)).savedMarks).toBeUndefined();
  await clean.write({ ...record, clean: false });
  expect((await Metadata.open(device)).savedMarks).toBeUndefined();
});

test('half-written metadata is told from none', async () => {
  const device = await newDevice();
  const end = device.geometry.sizeBytes;
  await device.write(end - 65_536 + 100, Uint8Array.of(1, 2, 3));
  expect((await Metadata.open(device)).volumeId).toBe(shape.volumeId);
  await device.write(end - 4096 + 100, Uint8Array.of(1, 2, 3));
  await expect(Metadata.open(device)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_METADATA_DAMAGED' });
  await expect(Metadata.open(new MemoryDevice({ sizeBytes: MIB }))).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_METADATA_MISSING',
  });
});

test('a damaged copy is mended when the opener asks for it, and not before', async () => {
  const device = await newDevice();
  const end = device.geometry.sizeBytes;
  const tail = async () => {
    const bytes = new Uint8Array(65_536);
    await device.read(end - bytes.length, bytes);
    return bytes;
  };
  await device.write(end - 65_536 + 100, Uint8Array.of(1, 2, 3));
  const damaged = await tail();
  const metadata = await Metadata.open(device);
  expect(await tail()).toEqual(damaged);
  await metadata.repair();
  await device.write(end - 4096 + 100, Uint8Array.of(1, 2, 3));
  expect((await Metadata.open(device)).record).toEqual(metadata.record);
});

test('a device that is too small is refused with what it would take', () => {
  const device = new MemoryDevice({ sizeBytes: 16 * MIB });
  expect(() => checkFits(device, shape, 'separate')).not.toThrow();
  expect(() => checkFits(device, shape, 'internal')).toThrow(
    expect.objectContaining({
      code: 'ERR_HOLDFAST_DEVICE_TOO_SMALL',
      message: expect.stringContaining(String(16 * MIB + metadataBytes(shape.sizeBytes, shape.grainBytes))),
    }),
  );
});

test('a grain that is too small for the volume is refused with one that fits', () => {
  expect(() => metadataBytes(2 ** 43, 65_536)).toThrow(/at least 131072 bytes/);
  expect(metadataBytes(2 ** 43, 131_072)).toBe(8 * MIB + 65_536);
});
