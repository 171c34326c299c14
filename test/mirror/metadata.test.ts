import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { DirtyBitmap } from '../../lib/coherency/bitmap.ts';
import { checkFits, type MemberShape, Metadata, metadataBytes } from '../../lib/mirror/metadata.ts';
import { decodeMember, encodeMember, RECORD_BYTES, type StoredMember } from '../../lib/mirror/record-format.ts';
import { enterView, type MemberRecord } from '../../lib/mirror/view.ts';
import { NEW_VOTER, type VoterState } from '../../lib/peer/arbiter.ts';
import { FaultPlan, FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { SuperblockPair } from '../../lib/storage/superblock-pair.ts';
import { viewId } from './record-text.ts';

const MIB = 1024 * 1024;
const shape: MemberShape = {
  volumeId: '00112233445566778899aabbccddeeff',
  sizeBytes: 16 * MIB,
  grainBytes: 65_536,
  activityLogExtentBytes: MIB,
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
  sinceMs: 1_790_000_000_123,
};
const voter: VoterState = {
  promised: { counter: 0x0102030405, node: 3 },
  accepted: { counter: 0x0102030404, node: 2 },
  value: 'generation 7: a b',
};
const logId = '0f1e2d3c4b5a69788796a5b4c3d2e1f0';
const stored: StoredMember = { ...shape, logId, bitmapCrc: 0xdeadbeef, record, voter };
/** How far below the end of the device: one block for each copy of the log, one for the bitmap. */
const LOG_0 = 65_536 + 3 * 4096;
const BITMAP = 65_536 + 2 * 4096;
const LOG_1 = 65_536 + 4096;

async function newDevice(): Promise<MemoryDevice> {
  const device = new MemoryDevice({ sizeBytes: 17 * MIB });
  await Metadata.create(device, shape);
  return device;
}

test('the golden record is read and written as it was', () => {
  const golden = new Uint8Array(readFileSync(new URL('golden/member-record-2.bin', import.meta.url)));
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
  expect(spoilt((bytes) => bytes.fill(0, 16, 24))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeBigUInt64LE(2n ** 50n, 16))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt32LE(MIB + 1, 1700))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt32LE(0, 1700))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.fill(0xff, 1720, 1728))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.fill(0xff, 1728, 1736))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt16LE(129, 1752))).toThrow(damaged);
  expect(spoilt((bytes) => bytes.writeUInt8(0x80, 1754))).toThrow(damaged);
});

test('a name that does not fit is refused before anything is written', () => {
  expect(() => encodeMember({ ...stored, memberName: 'x'.repeat(65) })).toThrow(
    expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }),
  );
});

test('what is written is read back, and the data area is untouched', async () => {
  const device = await newDevice();
  const opened = await Metadata.open(device);
  expect(opened).toMatchObject({ ...shape, savedMarks: undefined, voter: NEW_VOTER });
  expect([...opened.log.named(), ...opened.log.damage]).toEqual([]);
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
  const plan = new FaultPlan();
  const within = { offset: device.geometry.sizeBytes - BITMAP, length: 4096 };
  plan.inject({ action: { kind: 'error' }, on: 'read', within });
  expect((await Metadata.open(new FaultyDevice(device, { plan }))).savedMarks).toBeUndefined();
  const end = device.geometry.sizeBytes;
  await device.write(end - BITMAP, Uint8Array.of(0xff));
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
      message: expect.stringContaining(String(16 * MIB + metadataBytes(shape.sizeBytes, shape.grainBytes, MIB))),
    }),
  );
});

test('a grain or an extent that is too small for the volume is refused with one that fits', () => {
  expect(() => metadataBytes(2 ** 43, 65_536, 4 * MIB)).toThrow(/grain of at least 131072 bytes/);
  expect(metadataBytes(2 ** 43, 131_072, 4 * MIB)).toBe(8 * MIB + 65_536 + 2 * 4096 * 66);
  expect(() => metadataBytes(2 ** 46, 1 * MIB, 4 * MIB)).toThrow(/activity log extents of at least 8388608 bytes/);
  expect(metadataBytes(2 ** 53 - 4096, 128 * MIB, 1024 * MIB)).toBe(8 * MIB + 65_536 + 2 * 4096 * 261);
});

test('metadata of version 1 is refused by its version', async () => {
  const device = new MemoryDevice({ sizeBytes: 17 * MIB });
  const end = device.geometry.sizeBytes;
  const places = { copyOffsets: [end - 65_536, end - 4096], copyBytes: 4096 } as const;
  await SuperblockPair.create(device, { name: 'mirror-member', version: 1 }, places, new Uint8Array(1700));
  await expect(Metadata.open(device)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_METADATA_VERSION',
    message: expect.stringContaining('of version 1, and this Holdfast reads 2'),
  });
});

test('records and voter states that are written at the same time do not undo each other', async () => {
  const device = await newDevice();
  const opened = await Metadata.open(device);
  const open = { ...record, clean: false };
  const promised = { ...NEW_VOTER, promised: voter.promised };
  await Promise.all([opened.writeVoter(promised), opened.write(open), opened.writeVoter(voter)]);
  expect(opened.voter).toEqual(voter);
  const again = await Metadata.open(device);
  expect([again.record, again.voter]).toEqual([open, voter]);
  const marks = new Uint8Array(32).fill(0x55);
  await Promise.all([again.writeClean(record, marks), again.writeVoter(promised)]);
  await again.writeVoter(voter);
  const clean = await Metadata.open(device);
  expect([clean.record, clean.voter, clean.savedMarks]).toEqual([record, voter, marks]);
});

test('a voter state that failed to be written is not shown as held', async () => {
  const memory = await newDevice();
  const device = new FaultyDevice(memory);
  const opened = await Metadata.open(device);
  const told: unknown[] = [];
  opened.onVoterFailure((error) => told.push(error));
  const fault = device.inject({ action: { kind: 'error' }, on: 'write' });
  await expect(opened.writeVoter(voter)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  expect(opened.voter).toEqual(NEW_VOTER);
  expect(told).toEqual([expect.objectContaining({ code: 'ERR_HOLDFAST_IO' })]);
  fault.remove();
  await opened.write({ ...record, clean: false });
  expect((await Metadata.open(memory)).record).toEqual({ ...record, clean: false });
});

test('the log counts until a clean stop, and again after the next record', async () => {
  const device = await newDevice();
  const first = await Metadata.open(device);
  await first.write({ ...record, clean: false });
  await first.log.enter(3 * MIB, 4096);
  const crashed = await Metadata.open(device);
  expect([...crashed.log.named()]).toEqual([{ offset: 3 * MIB, length: MIB }]);
  await crashed.writeClean(record, new Uint8Array(32));
  const stopped = await Metadata.open(device);
  expect([...stopped.log.named()]).toEqual([]);
  await stopped.write({ ...record, clean: false });
  await stopped.log.enter(5 * MIB, 4096);
  expect([...(await Metadata.open(device)).log.named()]).toEqual([{ offset: 5 * MIB, length: MIB }]);
});

test('a log of an earlier member in the same place never counts', async () => {
  const device = await newDevice();
  const earlier = await Metadata.open(device);
  await earlier.log.enter(3 * MIB, 4096);
  const end = device.geometry.sizeBytes;
  const old = new Uint8Array(4096);
  await device.read(end - LOG_0, old);
  await Metadata.create(device, shape);
  await device.write(end - LOG_0, old);
  const { log } = await Metadata.open(device);
  expect([...log.named()]).toEqual([]);
  expect(log.damage).toMatchObject([{ block: 0, lost: false, reason: 'it is of another log' }]);
});

test('both copies of the log lie where the layout says, and a damaged one is mended when asked for', async () => {
  const device = await newDevice();
  const opened = await Metadata.open(device);
  await opened.log.enter(0, 1);
  const end = device.geometry.sizeBytes;
  const block = (below: number) => {
    const bytes = new Uint8Array(4096);
    return device.read(end - below, bytes).then(() => bytes);
  };
  expect((await block(LOG_0))[64]).toBe(1);
  expect((await block(LOG_1))[64]).toBe(1);
  await device.write(end - LOG_1 + 64, Uint8Array.of(3));
  const again = await Metadata.open(device);
  expect(again.log.damage).toMatchObject([{ lost: false }]);
  expect((await block(LOG_1))[64]).toBe(3);
  await again.repair();
  expect((await Metadata.open(device)).log.damage).toEqual([]);
});
