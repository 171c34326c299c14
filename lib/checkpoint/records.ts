/**
 * A series of checkpoints: records that follow each other in a ring, each of which names the checksum of the one
 * before. The records themselves say how far the chain goes; nothing else has to be stored when one is appended. Pure.
 *
 * A record begins at a multiple of 64 bytes and takes a whole number of 64 bytes; it never goes over the ring's end. Its
 * header, little-endian:
 *
 *   offset  size  field
 *        0     4  magic, "HFCR"
 *        4     1  version of this format, 1
 *        5     1  kind: 1 record; 2 wrap, the rest of the ring is not used and the next record is at its start
 *        6     2  length of this header, 64
 *        8     8  sequence number, from 1; a wrap has that of the record after it
 *       16     8  epoch of its writer
 *       24     4  length of the checkpoint, bytes; a wrap's is 0
 *       28     4  CRC-32C of the checkpoint
 *       32     4  the last field of the header before it (of a record or a wrap)
 *       36     4  the first 4 bytes of the identifier of the region's format
 *       40     8  sequence number up to which all was durable when this header was made
 *       48    12  reserved, 0
 *       60     4  CRC-32C of bytes 0 to 59
 *       64     n  the checkpoint, then anything up to the next multiple of 64
 *
 * What counts as the next record of the chain: a whole header with the sequence number that is expected, the checksum
 * of the header before, an epoch not below that of the record before nor (from the newest writer's first record on)
 * below that writer's, and a checkpoint with the right checksum. So neither records of an earlier lap, nor of a fenced
 * writer, nor half of one that was cut off, continue it.
 */
import { crc32c, crc32cCopy } from '../base/checksum.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { LINE_BYTES, type RegionRecord, type RingPosition } from './layout.ts';

export const RECORD_HEADER_BYTES = 64;
const MAGIC = 0x5243_4648; // "HFCR"
const VERSION = 1;
const RECORD = 1;
const WRAP = 2;
const WORD = 0x1_0000_0000;

/** What a record with so many bytes takes in the ring. */
export function recordBytes(payloadBytes: number): number {
  return RECORD_HEADER_BYTES + Math.ceil(payloadBytes / LINE_BYTES) * LINE_BYTES;
}

/**
 * The longest checkpoint of a ring: half of it, so that there is room for it wherever the tail of an empty ring is; and
 * below 2 GiB.
 */
export function payloadBytesMax(ringBytes: number): number {
  return Math.floor(Math.min(ringBytes / 2, 2 ** 31) / LINE_BYTES) * LINE_BYTES - RECORD_HEADER_BYTES;
}

/** The same for all headers of one writer. */
export interface RecordStamp {
  readonly formatWord: number;
  readonly epoch: number;
}

export function formatWord(formatId: string): number {
  return Buffer.from(formatId.slice(0, 8), 'hex').readUInt32LE(0);
}

/** Fills `target` at `at` with a header, and gives its last field. `target` is a view of the same bytes as `bytes`. */
function encodeHeader(
  bytes: Uint8Array,
  target: DataView,
  at: number,
  stamp: RecordStamp,
  kind: number,
  sequence: number,
  payloadBytes: number,
  payloadChecksum: number,
  previousChecksum: number,
  durable: number,
): number {
  target.setUint32(at, MAGIC, true);
  target.setUint32(at + 4, VERSION | (kind << 8) | (RECORD_HEADER_BYTES << 16), true);
  setNumber(target, at + 8, sequence);
  setNumber(target, at + 16, stamp.epoch);
  target.setUint32(at + 24, payloadBytes, true);
  target.setUint32(at + 28, payloadChecksum, true);
  target.setUint32(at + 32, previousChecksum, true);
  target.setUint32(at + 36, stamp.formatWord, true);
  setNumber(target, at + 40, durable);
  target.setUint32(at + 48, 0, true);
  target.setUint32(at + 52, 0, true);
  target.setUint32(at + 56, 0, true);
  const checksum = crc32c(bytes.subarray(at, at + 60));
  target.setUint32(at + 60, checksum, true);
  return checksum;
}

function setNumber(target: DataView, at: number, value: number): void {
  target.setUint32(at, value >>> 0, true);
  target.setUint32(at + 4, Math.floor(value / WORD), true);
}

/** Fills one batch of a writer's records, one after the other. Lean: each append of a primary comes through here. */
export class RecordEncoder {
  readonly #stamp: RecordStamp;
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(stamp: RecordStamp, bytes: Uint8Array) {
    this.#stamp = stamp;
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** How much is filled. */
  get lengthBytes(): number {
    return this.#at;
  }

  /** Copies the checkpoint, and gives the checksum that the next header names. */
  record(sequence: number, previousChecksum: number, durable: number, payload: Uint8Array): number {
    const at = this.#at;
    const end = at + recordBytes(payload.length);
    const filled = at + RECORD_HEADER_BYTES + payload.length;
    const checksum = crc32cCopy(payload, this.bytes.subarray(at + RECORD_HEADER_BYTES, filled));
    if (filled < end) this.bytes.fill(0, filled, end);
    this.#at = end;
    const { bytes } = this;
    const stamp = this.#stamp;
    return encodeHeader(
      bytes,
      this.#view,
      at,
      stamp,
      RECORD,
      sequence,
      payload.length,
      checksum,
      previousChecksum,
      durable,
    );
  }

  wrap(sequence: number, previousChecksum: number, durable: number): number {
    const at = this.#at;
    this.#at = at + RECORD_HEADER_BYTES;
    return encodeHeader(this.bytes, this.#view, at, this.#stamp, WRAP, sequence, 0, 0, previousChecksum, durable);
  }
}

export interface RecordHeader {
  readonly kind: 'record' | 'wrap';
  readonly sequence: number;
  readonly epoch: number;
  readonly payloadBytes: number;
  readonly payloadChecksum: number;
  readonly previousChecksum: number;
  readonly formatWord: number;
  /** All up to this sequence number was durable. */
  readonly durable: number;
  readonly checksum: number;
}

/** Undefined unless 64 whole bytes of a header begin at `at`. */
export function decodeRecordHeader(bytes: Uint8Array, at = 0): RecordHeader | undefined {
  if (bytes.length - at < RECORD_HEADER_BYTES) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, RECORD_HEADER_BYTES);
  if (view.getUint32(0, true) !== MAGIC) return undefined;
  const checksum = view.getUint32(60, true);
  if (checksum !== crc32c(bytes.subarray(at, at + 60))) return undefined;
  const kind = view.getUint8(5);
  if (view.getUint8(4) !== VERSION || (kind !== RECORD && kind !== WRAP) || view.getUint16(6, true) !== 64)
    return undefined;
  const [sequence, epoch, durable] = [getNumber(view, 8), getNumber(view, 16), getNumber(view, 40)];
  if (sequence === undefined || epoch === undefined || durable === undefined || sequence === 0) return undefined;
  return {
    kind: kind === RECORD ? 'record' : 'wrap',
    sequence,
    epoch,
    payloadBytes: view.getUint32(24, true),
    payloadChecksum: view.getUint32(28, true),
    previousChecksum: view.getUint32(32, true),
    formatWord: view.getUint32(36, true),
    durable,
    checksum,
  };
}

function getNumber(view: DataView, at: number): number | undefined {
  const high = view.getUint32(at + 4, true);
  return high < 0x20_0000 ? high * WORD + view.getUint32(at, true) : undefined;
}

/** One checkpoint of a series, as it stands in the region. */
export interface RawRecord {
  readonly sequence: number;
  readonly epoch: number;
  readonly payload: Uint8Array;
}

/** What a look at one place of the chain gives. `more`: so many bytes are needed to say. */
export type ChainStep =
  | { readonly kind: 'record'; readonly record: RawRecord; readonly after: RingPosition; readonly takenBytes: number }
  | { readonly kind: 'wrap'; readonly after: RingPosition; readonly takenBytes: number }
  | { readonly kind: 'more'; readonly neededBytes: number }
  | { readonly kind: 'end' };

const END: ChainStep = { kind: 'end' };

/** Looks at the place, where `bytes` begin. They may end anywhere; beyond the ring's end there is nothing. */
export function stepChain(
  region: Pick<RegionRecord, 'formatId' | 'dataBytes' | 'epoch' | 'firstSequence'>,
  word: number,
  place: RingPosition,
  bytes: Uint8Array,
): ChainStep {
  const restBytes = region.dataBytes - place.offset;
  if (bytes.length < RECORD_HEADER_BYTES) return { kind: 'more', neededBytes: RECORD_HEADER_BYTES };
  const header = decodeRecordHeader(bytes);
  if (header === undefined || !continues(region, word, place, header)) return END;
  const { sequence, epoch, payloadBytes, checksum } = header;
  if (header.kind === 'wrap') {
    if (place.offset === 0 || payloadBytes !== 0) return END;
    const after = { sequence, offset: 0, previousChecksum: checksum, epoch };
    return { kind: 'wrap', after, takenBytes: restBytes };
  }
  const takenBytes = recordBytes(payloadBytes);
  if (takenBytes > restBytes || payloadBytes > payloadBytesMax(region.dataBytes)) return END;
  if (bytes.length < takenBytes) return { kind: 'more', neededBytes: takenBytes };
  const payload = bytes.subarray(RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + payloadBytes);
  if (crc32c(payload) !== header.payloadChecksum && !isPlanted('record-checksum-unchecked')) return END;
  const offset = (place.offset + takenBytes) % region.dataBytes;
  const after = { sequence: sequence + 1, offset, previousChecksum: checksum, epoch };
  return { kind: 'record', record: { sequence, epoch, payload }, after, takenBytes };
}

function continues(
  region: Pick<RegionRecord, 'epoch' | 'firstSequence'>,
  word: number,
  place: RingPosition,
  header: RecordHeader,
): boolean {
  const { sequence, epoch, previousChecksum } = header;
  if (sequence !== place.sequence || previousChecksum !== place.previousChecksum || header.formatWord !== word)
    return false;
  return epoch >= place.epoch && (sequence < region.firstSequence || epoch >= region.epoch);
}
