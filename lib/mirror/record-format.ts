/**
 * The payload of a member's superblock: one volume's MemberRecord and what binds it to volume, member and device.
 * Pure. Written twice, framed and checksummed by storage/superblock-pair.ts; this payload is its version 1.
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
 *     1700        end
 */
import { assert, HoldfastError } from '../base/errors.ts';
import { type DataState, HISTORY_LENGTH, type MemberIndex, type MemberRecord, type ViewId } from './view.ts';

export const RECORD_FORMAT_VERSION = 1;
export const RECORD_BYTES = 1700;
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
  readonly bitmapCrc: number;
  readonly record: MemberRecord;
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
  return bytes;
}

/** Checks every field: the bytes come from a disk. Throws ERR_HOLDFAST_METADATA_DAMAGED. */
export function decodeMember(payload: Uint8Array): StoredMember {
  if (payload.length !== RECORD_BYTES) throw damaged(`it has ${payload.length} bytes instead of ${RECORD_BYTES}`);
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.length);
  const dataState = DATA_STATES[bytes.readUInt8(29)];
  if (dataState === undefined) throw damaged('its data state is unknown');
  const historyCount = bytes.readUInt16LE(58);
  if (historyCount > HISTORY_LENGTH) throw damaged('its history is too long');
  return {
    volumeId: readId(bytes, 0),
    sizeBytes: readSize(bytes, 16),
    grainBytes: readGrain(bytes, 24),
    member: readMember(bytes, 28),
    memberName: readText(bytes, 1634, NAME_MAX_BYTES),
    deviceIdentity: readText(bytes, 1120, IDENTITY_MAX_BYTES),
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
    },
  };
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

function readGrain(bytes: Buffer, at: number): number {
  const grain = bytes.readUInt32LE(at);
  if (grain < 4096 || (grain & (grain - 1)) !== 0)
    throw damaged('its bitmap grain is not a power of two of at least 4096');
  return grain;
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
