/**
 * The payload of a member's superblock: one volume's MemberRecord and what binds it to volume, member and device.
 * Pure. Written twice, framed and checksummed by storage/superblock-pair.ts; this payload is its version 2
 * (version 1 was never released).
 *
 * Little-endian. Identifiers are 16 raw bytes.
 *
 *   offset  size  field
 *        0    16  volume identifier
 *       16     8  volume size, bytes
 *       24     4  bitmap grain, bytes
 *       28     1  member index (0, 1)
 *       29     1  data state (0 created, 1 up-to-date, 2 inconsistent)
 *       30     1  clean (0, 1): the saved bitmap is valid
 *       31     1  known view: in-sync members, bit n = member n
 *       32     8  known view: number
 *       40    16  known view: identifier
 *       56     1  known view: access holder (0, 1)
 *       57     1  data view: access holder (0, 1)
 *       58     2  history: count, at most 64
 *       60     4  CRC-32C of the saved bitmap, 0 if not clean
 *       64    16  data identifier
 *       80    16  base identifier
 *       96  1024  history: identifiers, newest first, unused ones 0
 *     1120     2  length of the device's identity, at most 512
 *     1122   512  the device's identity, UTF-8, unused bytes 0
 *     1634     2  length of the member's name, at most 64
 *     1636    64  the member's name, UTF-8, unused bytes 0
 *     1700     4  activity log extent, bytes
 *     1704    16  the activity log's identifier
 *     1720     8  when the known view was entered, whole milliseconds since 1970, 0 if it is not known
 *     1728     8  voter: counter of the ballot that was promised
 *     1736     8  voter: counter of the ballot that was accepted
 *     1744     4  voter: node of the ballot that was promised
 *     1748     4  voter: node of the ballot that was accepted
 *     1752     2  voter: length of the accepted value, at most 128
 *     1754   128  voter: the accepted value, ASCII, unused bytes 0
 *     1882        end
 */
import { assert, HoldfastError } from '../base/errors.ts';
import { type Ballot, VALUE_MAX_BYTES, type VoterState } from '../peer/arbiter.ts';
import { MAX_EXTENTS } from './active-extents.ts';
import { MAX_BITMAP_BYTES } from './protocol.ts';
import { type DataState, HISTORY_LENGTH, type MemberIndex, type MemberRecord, type ViewId } from './view.ts';

export const RECORD_FORMAT_VERSION = 2;
export const RECORD_BYTES = 1882;
const IDENTITY_MAX_BYTES = 512;
const NAME_MAX_BYTES = 64;
const DATA_STATES: readonly DataState[] = ['created', 'up-to-date', 'inconsistent'];

export interface StoredMember {
  readonly volumeId: string;
  readonly sizeBytes: number;
  readonly grainBytes: number;
  readonly member: MemberIndex;
  readonly memberName: string;
  readonly deviceIdentity: string;
  readonly activityLogExtentBytes: number;
  /** 32 lower-case hexadecimal digits: a log of an earlier member in the same place never counts. */
  readonly logId: string;
  readonly bitmapCrc: number;
  readonly record: MemberRecord;
  readonly voter: VoterState;
}

export function encodeMember(stored: StoredMember): Uint8Array {
  const bytes = Buffer.alloc(RECORD_BYTES);
  const { record } = stored;
  bytes.write(stored.volumeId, 0, 'hex');
  bytes.writeBigUInt64LE(BigInt(stored.sizeBytes), 16);
  bytes.writeUInt32LE(stored.grainBytes, 24);
  bytes.writeUInt8(stored.member, 28);
  bytes.writeUInt8(DATA_STATES.indexOf(record.dataState), 29);
  bytes.writeUInt8(record.clean ? 1 : 0, 30);
  bytes.writeUInt8(record.known.inSync, 31);
  bytes.writeBigUInt64LE(BigInt(record.known.number), 32);
  bytes.write(record.known.id, 40, 'hex');
  bytes.writeUInt8(record.known.holder, 56);
  bytes.writeUInt8(record.dataHolder, 57);
  assert(record.history.length <= HISTORY_LENGTH, 'the history fits its place');
  bytes.writeUInt16LE(record.history.length, 58);
  bytes.writeUInt32LE(stored.bitmapCrc >>> 0, 60);
  bytes.write(record.dataId, 64, 'hex');
  bytes.write(record.baseId, 80, 'hex');
  for (const [index, id] of record.history.entries()) bytes.write(id, 96 + index * 16, 'hex');
  writeText(bytes, 1120, stored.deviceIdentity, IDENTITY_MAX_BYTES, "the device's identity");
  writeText(bytes, 1634, stored.memberName, NAME_MAX_BYTES, "the member's name");
  bytes.writeUInt32LE(stored.activityLogExtentBytes, 1700);
  bytes.write(stored.logId, 1704, 'hex');
  bytes.writeBigUInt64LE(BigInt(record.sinceMs), 1720);
  writeVoter(bytes, stored.voter);
  return bytes;
}

function writeVoter(bytes: Buffer, voter: VoterState): void {
  bytes.writeBigUInt64LE(BigInt(voter.promised.counter), 1728);
  bytes.writeBigUInt64LE(BigInt(voter.accepted.counter), 1736);
  bytes.writeUInt32LE(voter.promised.node, 1744);
  bytes.writeUInt32LE(voter.accepted.node, 1748);
  assert(isAscii(voter.value), "a voter's value is ASCII");
  writeText(bytes, 1752, voter.value, VALUE_MAX_BYTES, "a voter's value");
}

/** Checks every field: the bytes come from a disk. Throws ERR_HOLDFAST_METADATA_DAMAGED. */
export function decodeMember(payload: Uint8Array): StoredMember {
  if (payload.length !== RECORD_BYTES) throw damaged(`it has ${payload.length} bytes instead of ${RECORD_BYTES}`);
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.length);
  const dataState = DATA_STATES[bytes.readUInt8(29)];
  if (dataState === undefined) throw damaged('its data state is unknown');
  const sizeBytes = readSize(bytes, 16);
  const grainBytes = readPowerOfTwo(bytes, 24, 'bitmap grain');
  const activityLogExtentBytes = readPowerOfTwo(bytes, 1700, 'activity log extent');
  if (
    sizeBytes === 0 ||
    sizeBytes > grainBytes * MAX_BITMAP_BYTES * 8 ||
    sizeBytes > activityLogExtentBytes * MAX_EXTENTS
  )
    throw damaged('its size does not go with its bitmap grain and activity log extent');
  const historyCount = bytes.readUInt16LE(58);
  if (historyCount > HISTORY_LENGTH) throw damaged('its history is too long');
  return {
    volumeId: readId(bytes, 0),
    sizeBytes,
    grainBytes,
    member: readMember(bytes, 28),
    memberName: readText(bytes, 1634, NAME_MAX_BYTES),
    deviceIdentity: readText(bytes, 1120, IDENTITY_MAX_BYTES),
    activityLogExtentBytes,
    logId: readId(bytes, 1704),
    bitmapCrc: bytes.readUInt32LE(60),
    record: {
      known: {
        number: readSize(bytes, 32),
        id: readId(bytes, 40),
        inSync: readInSync(bytes, 31),
        holder: readMember(bytes, 56),
      },
      dataId: readId(bytes, 64),
      dataHolder: readMember(bytes, 57),
      baseId: readId(bytes, 80),
      history: Array.from({ length: historyCount }, (_, index) => readId(bytes, 96 + index * 16)),
      dataState,
      clean: bytes.readUInt8(30) === 1,
      sinceMs: readSize(bytes, 1720),
    },
    voter: readVoter(bytes),
  };
}

function readVoter(bytes: Buffer): VoterState {
  const ballot = (counterAt: number, nodeAt: number): Ballot => ({
    counter: readSize(bytes, counterAt),
    node: bytes.readUInt32LE(nodeAt),
  });
  const value = readText(bytes, 1752, VALUE_MAX_BYTES);
  if (!isAscii(value)) throw damaged("its voter's value is not ASCII");
  return { promised: ballot(1728, 1744), accepted: ballot(1736, 1748), value };
}

function isAscii(text: string): boolean {
  return /^[\x20-\x7e]*$/.test(text);
}

function writeText(bytes: Buffer, at: number, text: string, maxBytes: number, what: string): void {
  const length = Buffer.byteLength(text);
  if (length > maxBytes) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${what} has ${length} bytes; at most ${maxBytes} fit`);
  }
  bytes.writeUInt16LE(length, at);
  bytes.write(text, at + 2, 'utf8');
}

function readText(bytes: Buffer, at: number, maxBytes: number): string {
  const length = bytes.readUInt16LE(at);
  if (length > maxBytes) throw damaged('a text is too long');
  return bytes.toString('utf8', at + 2, at + 2 + length);
}

function readId(bytes: Buffer, at: number): ViewId {
  return bytes.toString('hex', at, at + 16);
}

function readSize(bytes: Buffer, at: number): number {
  const value = bytes.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged('a number is too large');
  return Number(value);
}

function readPowerOfTwo(bytes: Buffer, at: number, what: string): number {
  const value = bytes.readUInt32LE(at);
  if (value < 4096 || (value & (value - 1)) !== 0) throw damaged(`its ${what} is not a power of two of at least 4096`);
  return value;
}

function readMember(bytes: Buffer, at: number): MemberIndex {
  const member = bytes.readUInt8(at);
  if (member !== 0 && member !== 1) throw damaged('a member index is neither 0 nor 1');
  return member;
}

function readInSync(bytes: Buffer, at: number): number {
  const mask = bytes.readUInt8(at);
  if (mask > 3) throw damaged('its in-sync members are unknown ones');
  return mask;
}

function damaged(what: string): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    `the volume's metadata cannot be right although its checksum is: ${what}. Take the copy of another member: create this one anew with --overwrite`,
  );
}
