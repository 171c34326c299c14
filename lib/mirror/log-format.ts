/**
 * One block of the activity log as it lies on a device: 4 KiB, whole in itself. Pure.
 *
 * Little-endian:
 *
 *   offset  size  field
 *        0     8  magic, "HFACTLOG"
 *        8     2  version of this format, 1
 *       10     2  length of this header, 64
 *       12     4  which block of the log this is, from 0
 *       16     8  sequence number, from 1
 *       24    16  the log's identifier, as in the member's record: a log of an earlier member never counts
 *       40     8  where this copy begins, bytes from the start of its device: a misdirected block never counts
 *       48     4  how many extents this block speaks for, at most 32 256
 *       52     8  reserved, 0
 *       60     4  CRC-32C of bytes 0 to 59, then of bytes 64 to 4095
 *       64  4032  one bit an extent, bit 0 of byte 0 is the block's first extent; unused bits 0
 */
import { crc32c } from '../base/checksum.ts';
import { assert } from '../base/errors.ts';

export const LOG_BLOCK_BYTES = 4096;
const HEADER_BYTES = 64;
export const BITS_BYTES = LOG_BLOCK_BYTES - HEADER_BYTES;
export const EXTENTS_PER_BLOCK = BITS_BYTES * 8;
const MAGIC = Buffer.from('HFACTLOG', 'ascii');
const VERSION = 1;

/** What a block must say to count: which log, which block, which place, how many extents. */
export interface LogBlockPlace {
  /** 32 hexadecimal digits. */
  readonly logId: string;
  readonly index: number;
  readonly offset: number;
  readonly extents: number;
}

export type DecodedLogBlock =
  | { readonly sequence: number; readonly bits: Uint8Array; readonly reason: undefined }
  | { readonly sequence: 0; readonly bits: undefined; readonly reason: string };

/** @param bits 4032 bytes */
export function encodeLogBlock(place: LogBlockPlace, sequence: number, bits: Uint8Array): Uint8Array {
  assert(bits.length === BITS_BYTES && sequence > 0, "a block's bits fill it, and its sequence counts from 1");
  const bytes = Buffer.alloc(LOG_BLOCK_BYTES);
  MAGIC.copy(bytes);
  bytes.writeUInt16LE(VERSION, 8);
  bytes.writeUInt16LE(HEADER_BYTES, 10);
  bytes.writeUInt32LE(place.index, 12);
  bytes.writeBigUInt64LE(BigInt(sequence), 16);
  bytes.write(place.logId, 24, 'hex');
  bytes.writeBigUInt64LE(BigInt(place.offset), 40);
  bytes.writeUInt32LE(place.extents, 48);
  bytes.set(bits, HEADER_BYTES);
  bytes.writeUInt32LE(checksumOf(bytes), 60);
  return bytes;
}

/** Checks every field: the bytes come from a device. What is wrong is said in words. */
export function decodeLogBlock(raw: Uint8Array, place: LogBlockPlace): DecodedLogBlock {
  if (raw.length !== LOG_BLOCK_BYTES) return bad(`it has ${raw.length} bytes`);
  const bytes = Buffer.from(raw.buffer, raw.byteOffset, raw.length);
  if (!bytes.subarray(0, 8).equals(MAGIC)) return bad('it carries no magic');
  if (checksumOf(bytes) !== bytes.readUInt32LE(60)) return bad('its checksum is wrong');
  const version = bytes.readUInt16LE(8);
  if (version !== VERSION) return bad(`its version ${version} is not known here`);
  if (bytes.toString('hex', 24, 40) !== place.logId) return bad('it is of another log');
  const offset = bytes.readBigUInt64LE(40);
  if (offset !== BigInt(place.offset)) return bad(`it was written for offset ${offset}`);
  if (bytes.readUInt32LE(12) !== place.index) return bad(`it is block ${bytes.readUInt32LE(12)}`);
  if (bytes.readUInt32LE(48) !== place.extents) return bad(`it speaks for ${bytes.readUInt32LE(48)} extents`);
  const sequence = bytes.readBigUInt64LE(16);
  if (sequence === 0n || sequence > BigInt(Number.MAX_SAFE_INTEGER)) return bad(`its sequence ${sequence} is none`);
  const bits = bytes.subarray(HEADER_BYTES);
  if (!areBeyondClear(bits, place.extents)) return bad('it names extents beyond the volume');
  return { sequence: Number(sequence), bits: new Uint8Array(bits), reason: undefined };
}

/** All of the block's extents named. */
export function allNamed(extents: number): Uint8Array {
  const bits = new Uint8Array(BITS_BYTES);
  const whole = extents >>> 3;
  bits.fill(0xff, 0, whole);
  if ((extents & 7) !== 0) bits[whole] = (1 << (extents & 7)) - 1;
  return bits;
}

function checksumOf(bytes: Uint8Array): number {
  return crc32c(bytes.subarray(HEADER_BYTES), crc32c(bytes.subarray(0, 60)));
}

function areBeyondClear(bits: Uint8Array, extents: number): boolean {
  const allowed = allNamed(extents);
  return bits.every((byte, index) => (byte & ~allowed[index]!) === 0);
}

function bad(reason: string): DecodedLogBlock {
  return { sequence: 0, bits: undefined, reason };
}
