import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import {
  decodeVoter,
  encodeVoter,
  type StoredVoter,
  VOTER_FILE_BYTES,
  VoterFile,
} from '../../lib/coherency/voter-file.ts';
import { NEW_VOTER } from '../../lib/peer/arbiter.ts';
import { FaultPlan, FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { SuperblockPair } from '../../lib/storage/superblock-pair.ts';

const owner = { registerId: '00112233445566778899aabbccddeeff', nodeName: 'tie' };
const state = { promised: { counter: 0x0102_0304_0506, node: 1 }, accepted: { counter: 7, node: 0 }, value: 'view 3' };
const stored: StoredVoter = { ...owner, state };
const SECOND = VOTER_FILE_BYTES - 4096;

async function newFile(): Promise<MemoryDevice> {
  const device = new MemoryDevice({ sizeBytes: VOTER_FILE_BYTES });
  await VoterFile.create(device, owner);
  return device;
}

const withCode = (code: string, message: RegExp) =>
  expect.objectContaining({ code: `ERR_HOLDFAST_METADATA_${code}`, message: expect.stringMatching(message) });

test('the golden state is read and written as it was', () => {
  const golden = new Uint8Array(readFileSync(new URL('golden/voter-1.bin', import.meta.url)));
  expect(decodeVoter(golden)).toEqual(stored);
  expect(encodeVoter(stored)).toEqual(Buffer.from(golden));
});

test('a state that cannot be right is refused', () => {
  const spoilt = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.from(encodeVoter(stored));
    change(bytes);
    return () => decodeVoter(bytes);
  };
  expect(() => decodeVoter(new Uint8Array(229))).toThrow(withCode('DAMAGED', /229 bytes/));
  expect(spoilt((bytes) => bytes.fill(0xff, 16, 24))).toThrow(withCode('DAMAGED', /ballot is out of range/));
  expect(spoilt((bytes) => bytes.writeUInt8(16, 33))).toThrow(withCode('DAMAGED', /ballot is out of range/));
  expect(spoilt((bytes) => bytes.writeBigUInt64LE(2n ** 47n, 24))).toThrow(withCode('DAMAGED', /accepted more/));
  expect(spoilt((bytes) => bytes.writeUInt16LE(129, 34))).toThrow(withCode('DAMAGED', /too long/));
  expect(spoilt((bytes) => bytes.writeUInt8(0x80, 36))).toThrow(withCode('DAMAGED', /not printable/));
  expect(spoilt((bytes) => bytes.writeUInt16LE(65, 164))).toThrow(withCode('DAMAGED', /too long/));
});

test('what does not fit is refused before anything is written', async () => {
  const file = await VoterFile.open(await newFile(), owner);
  const tooLong = file.writeVoter({ ...state, value: 'x'.repeat(129) });
  await expect(tooLong).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  expect(file.voter).toEqual(NEW_VOTER);
});

test('a new file has promised nothing; what is written is read back', async () => {
  const device = await newFile();
  const file = await VoterFile.open(device, owner);
  expect(file.voter).toEqual(NEW_VOTER);
  await file.writeVoter(state);
  expect(file.voter).toEqual(state);
  expect((await VoterFile.open(device, owner)).voter).toEqual(state);
});

test('the state of another register or another node is not gone by, nor touched', async () => {
  const device = await newFile();
  await device.write(100, Uint8Array.of(1));
  const before = new Uint8Array(VOTER_FILE_BYTES);
  await device.read(0, before);
  const otherRegister = VoterFile.open(device, { ...owner, registerId: 'f'.repeat(32) });
  await expect(otherRegister).rejects.toEqual(withCode('MISMATCH', /the register is 0011.* there, not ffff/));
  const otherNode = VoterFile.open(device, { ...owner, nodeName: 'other' });
  await expect(otherNode).rejects.toEqual(withCode('MISMATCH', /the node is tie there, not other/));
  const after = new Uint8Array(VOTER_FILE_BYTES);
  await device.read(0, after);
  expect(after).toEqual(before);
});

test('one damaged copy is mended, two are an error that says what to do', async () => {
  const device = await newFile();
  await (await VoterFile.open(device, owner)).writeVoter(state);
  await device.write(100, Uint8Array.of(1));
  expect((await VoterFile.open(device, owner)).voter).toEqual(state);
  await device.write(SECOND + 100, Uint8Array.of(1));
  expect((await VoterFile.open(device, owner)).voter).toEqual(state);
  await device.write(100, Uint8Array.of(1));
  await device.write(SECOND + 100, Uint8Array.of(1));
  await expect(VoterFile.open(device, owner)).rejects.toEqual(withCode('DAMAGED', /neither copy.*make it anew/));
});

test('what is no state, or one of a newer version, is told', async () => {
  const blank = new MemoryDevice({ sizeBytes: VOTER_FILE_BYTES });
  await expect(VoterFile.open(blank, owner)).rejects.toEqual(withCode('MISSING', /no Holdfast metadata/));
  const short = new MemoryDevice({ sizeBytes: 4096 });
  await expect(VoterFile.open(short, owner)).rejects.toEqual(withCode('MISSING', /too few/));
  const newer = new MemoryDevice({ sizeBytes: VOTER_FILE_BYTES });
  const layout = { copyOffsets: [0, SECOND], copyBytes: 4096 } as const;
  await SuperblockPair.create(newer, { name: 'tie-breaker', version: 2 }, layout, encodeVoter(stored));
  await expect(VoterFile.open(newer, owner)).rejects.toEqual(withCode('VERSION', /version 2/));
});

test.each([
  ['first', 0, state],
  ['second', 1, { ...state, value: 'view 4' }],
])('a write that fails at the %s copy leaves the old state or the new one', async (_, skip, found) => {
  const device = await newFile();
  const plan = new FaultPlan();
  const file = await VoterFile.open(new FaultyDevice(device, { plan }), owner);
  await file.writeVoter(state);
  plan.inject({ action: { kind: 'error' }, on: 'write', skip });
  await expect(file.writeVoter({ ...state, value: 'view 4' })).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  expect(file.voter).toEqual(state);
  expect((await VoterFile.open(device, owner)).voter).toEqual(found);
});
