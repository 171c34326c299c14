/**
 * How a region holds checkpoints, so that one-sided commands suffice: nobody at the unit knows anything of this. Pure.
 *
 * All that is rare is in pairs of superblocks (storage/superblock-pair.ts); a page is 4096 bytes, numbers are
 * little-endian, addresses count from the start of the region:
 *
 *   page  0, 1    the region itself: superblock pair "HFCHECKPOINT", version 1
 *   page  2       at 0 the fence, 8 bytes; at 8 the formatting word, 8 bytes; 64 to 127 are left alone here, a process
 *                 pair may have its pulse there; else zeros
 *   page  3+2i    the cursor of backup i, and the page after it: superblock pair "HFCURSOR", version 1
 *   then          the data: two slots (slots.ts) or a ring of records (records.ts)
 *
 * The fence is the epoch of the writer that may write. Every store of a writer is conditional on it (write-if-valid), so
 * that from the moment at which the next writer has raised it, by compare-and-swap, nothing of an older one counts or
 * even arrives. It never goes down, not even when the region is formatted anew.
 *
 * The formatting word is 1 from before the first byte of a formatting until all of it is durable, else 0: what was cut
 * short in between is no checkpoint region. From the formatting on every cursor is there, retired, so that one that is
 * damaged is never taken for one that is new.
 *
 * Payload of "HFCHECKPOINT", 80 bytes:
 *
 *   offset  size  field
 *        0    16  identifier of this format: random, new with every formatting
 *       16     1  mode: 1 overwrite, 2 append
 *       17     1  reserved, 0
 *       18     2  number of cursors, 0 to 64
 *       20     4  reserved, 0
 *       24     8  address of the data
 *       32     8  length of the ring, or of one slot: whole pages
 *       40     8  epoch of the newest writer
 *       48     8  first sequence number of that writer's own checkpoints
 *       56     8  head: sequence number of the oldest record that is kept
 *       64     8  head: where it is, bytes from the start of the ring, a multiple of 64
 *       72     4  head: checksum that it names as the one before it
 *       76     4  reserved, 0
 *
 * Payload of "HFCURSOR", 128 bytes:
 *
 *   offset  size  field
 *        0    16  identifier of the format that it belongs to
 *       16     2  which cursor it is
 *       18     1  state: 1 registered, 2 retired
 *       19     1  length of the name, 1 to 64
 *       20     4  reserved, 0
 *       24     8  sequence number up to which all is cleared
 *       32     8  a place to read on from, at or before the record after it: its sequence number,
 *       40     8    offset in the ring,
 *       48     4    checksum of the record before
 *       52     4  reserved, 0
 *       56     8    and epoch of the record before
 *       64    64  name of the backup, printable ASCII, filled up with zeros
 */
import { crc32c } from '../base/checksum.ts';
import type { SuperblockFormat, SuperblockLayout } from '../storage/superblock-pair.ts';

export const PAGE_BYTES = 4096;
/** Everything in the ring begins at a multiple of this: a line of the processor's cache. */
export const LINE_BYTES = 64;
/** Where the fence is. */
export const FENCE_ADDRESS = 2 * PAGE_BYTES;
/** Where the formatting word is. */
export const FORMATTING_ADDRESS = FENCE_ADDRESS + 8;
/** 64 bytes that no checkpoint ever touches. */
export const PULSE_ADDRESS = FENCE_ADDRESS + LINE_BYTES;
export const CURSORS_MAX = 64;
/** Longer pieces are read and written by several commands. */
export const COMMAND_BYTES_MAX = 1024 * 1024;

export const REGION_FORMAT: SuperblockFormat = { name: 'HFCHECKPOINT', version: 1 };
export const CURSOR_FORMAT: SuperblockFormat = { name: 'HFCURSOR', version: 1 };
export const PAIR_BYTES = 2 * PAGE_BYTES;
export const PAIR_LAYOUT: SuperblockLayout = { copyOffsets: [0, PAGE_BYTES], copyBytes: PAGE_BYTES };

const REGION_PAYLOAD_BYTES = 80;
const CURSOR_PAYLOAD_BYTES = 128;
const NAME_BYTES_MAX = 64;
const NAME = /^[\x21-\x7e]{1,64}$/;

/** `overwrite`: the newest checkpoint replaces the one before. `append`: a series, kept until every backup has it. */
export type CheckpointMode = 'overwrite' | 'append';

/** A place in the chain of records. */
export interface RingPosition {
  /** Of the record that is there, or will be. */
  readonly sequence: number;
  /** From the start of the ring, below its length. */
  readonly offset: number;
  /** Checksum of the header before it. */
  readonly previousChecksum: number;
  /** Of the record before: no later one has a lower epoch. */
  readonly epoch: number;
}

export interface RegionRecord {
  /** 32 hexadecimal digits. */
  readonly formatId: string;
  readonly mode: CheckpointMode;
  readonly cursorCount: number;
  readonly dataAddress: number;
  /** Of the ring, or of one slot. */
  readonly dataBytes: number;
  readonly epoch: number;
  readonly firstSequence: number;
  readonly head: { readonly sequence: number; readonly offset: number; readonly previousChecksum: number };
}

export interface CursorRecord {
  readonly formatId: string;
  readonly index: number;
  readonly state: 'registered' | 'retired';
  readonly name: string;
  /** All up to this sequence number may be dropped for this backup's sake. */
  readonly cleared: number;
  readonly readOn: RingPosition;
}

/** Where the two pages of a cursor are: the key of its backup need reach no further to write. */
export function cursorAddress(index: number): number {
  return (3 + 2 * index) * PAGE_BYTES;
}

export function dataAddressAfter(cursorCount: number): number {
  return cursorAddress(cursorCount);
}

/** What the first record of a format names as the one before it. */
export function seedChecksum(formatId: string): number {
  return crc32c(Buffer.from(formatId, 'hex'));
}

export function headPosition(record: RegionRecord): RingPosition {
  return { ...record.head, epoch: 0 };
}

/** Whether a checkpoint is one of the writer that may write, or older than its first one: else it has come too late. */
export function isOfChain(record: RegionRecord, sequence: number, epoch: number): boolean {
  return sequence < record.firstSequence || epoch >= record.epoch;
}

export function isBackupName(name: string): boolean {
  return NAME.test(name);
}

export function encodeRegion(record: RegionRecord): Uint8Array {
  const bytes = Buffer.alloc(REGION_PAYLOAD_BYTES);
  bytes.write(record.formatId, 0, 'hex');
  bytes.writeUInt8(record.mode === 'overwrite' ? 1 : 2, 16);
  bytes.writeUInt16LE(record.cursorCount, 18);
  bytes.writeBigUInt64LE(BigInt(record.dataAddress), 24);
  bytes.writeBigUInt64LE(BigInt(record.dataBytes), 32);
  bytes.writeBigUInt64LE(BigInt(record.epoch), 40);
  bytes.writeBigUInt64LE(BigInt(record.firstSequence), 48);
  bytes.writeBigUInt64LE(BigInt(record.head.sequence), 56);
  bytes.writeBigUInt64LE(BigInt(record.head.offset), 64);
  bytes.writeUInt32LE(record.head.previousChecksum, 72);
  return bytes;
}

/** Undefined unless all of it can be right, in a region (or what one key opens of it) of so many bytes. */
export function decodeRegion(payload: Uint8Array, regionBytes: number): RegionRecord | undefined {
  if (payload.length !== REGION_PAYLOAD_BYTES) return undefined;
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.length);
  const numbers = [24, 32, 40, 48, 56, 64].map((at) => readNumber(bytes, at));
  const [dataAddress, dataBytes, epoch, firstSequence, sequence, offset] = numbers as number[] as SixNumbers;
  const mode = ([undefined, 'overwrite', 'append'] as const)[bytes.readUInt8(16)];
  const cursorCount = bytes.readUInt16LE(18);
  const isZero = bytes.readUInt8(17) === 0 && bytes.readUInt32LE(20) === 0 && bytes.readUInt32LE(76) === 0;
  if (mode === undefined || !isZero || cursorCount > CURSORS_MAX || numbers.includes(undefined)) return undefined;
  if (dataAddress !== dataAddressAfter(cursorCount) || dataBytes === 0 || dataBytes % PAGE_BYTES !== 0)
    return undefined;
  if (dataAddress + dataBytes * (mode === 'overwrite' ? 2 : 1) > regionBytes) return undefined;
  if (epoch === 0 || firstSequence === 0 || sequence === 0) return undefined;
  if (offset >= dataBytes || offset % LINE_BYTES !== 0) return undefined;
  const head = { sequence, offset, previousChecksum: bytes.readUInt32LE(72) };
  return {
    formatId: bytes.toString('hex', 0, 16),
    mode,
    cursorCount,
    dataAddress,
    dataBytes,
    epoch,
    firstSequence,
    head,
  };
}

type SixNumbers = [number, number, number, number, number, number];

export function encodeCursor(record: CursorRecord): Uint8Array {
  const bytes = Buffer.alloc(CURSOR_PAYLOAD_BYTES);
  bytes.write(record.formatId, 0, 'hex');
  bytes.writeUInt16LE(record.index, 16);
  bytes.writeUInt8(record.state === 'registered' ? 1 : 2, 18);
  bytes.writeUInt8(record.name.length, 19);
  bytes.writeBigUInt64LE(BigInt(record.cleared), 24);
  bytes.writeBigUInt64LE(BigInt(record.readOn.sequence), 32);
  bytes.writeBigUInt64LE(BigInt(record.readOn.offset), 40);
  bytes.writeUInt32LE(record.readOn.previousChecksum, 48);
  bytes.writeBigUInt64LE(BigInt(record.readOn.epoch), 56);
  bytes.write(record.name, 64, 'ascii');
  return bytes;
}

/** Undefined unless it is cursor `index` of this region, and can be right. Its place to read on is the backup's affair. */
export function decodeCursor(payload: Uint8Array, region: RegionRecord, index: number): CursorRecord | undefined {
  if (payload.length !== CURSOR_PAYLOAD_BYTES) return undefined;
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.length);
  const numbers = [24, 32, 40, 56].map((at) => readNumber(bytes, at));
  const [cleared, sequence, offset, epoch] = numbers as [number, number, number, number];
  const state = ([undefined, 'registered', 'retired'] as const)[bytes.readUInt8(18)];
  const nameBytes = bytes.readUInt8(19);
  if (bytes.toString('hex', 0, 16) !== region.formatId || bytes.readUInt16LE(16) !== index) return undefined;
  if (state === undefined || nameBytes > NAME_BYTES_MAX || numbers.includes(undefined)) return undefined;
  const name = bytes.toString('latin1', 64, 64 + nameBytes);
  const isZero = bytes.readUInt32LE(20) === 0 && bytes.readUInt32LE(52) === 0;
  if (!isZero || !isBackupName(name) || bytes.subarray(64 + nameBytes).some((byte) => byte !== 0)) return undefined;
  if (sequence === 0 || sequence > cleared + 1 || offset >= region.dataBytes || offset % LINE_BYTES !== 0)
    return undefined;
  const readOn = { sequence, offset, previousChecksum: bytes.readUInt32LE(48), epoch };
  return { formatId: region.formatId, index, state, name, cleared, readOn };
}

/** Undefined if JavaScript cannot count so far. */
function readNumber(bytes: Buffer, at: number): number | undefined {
  const high = bytes.readUInt32LE(at + 4);
  return high < 0x20_0000 ? high * 0x1_0000_0000 + bytes.readUInt32LE(at) : undefined;
}
