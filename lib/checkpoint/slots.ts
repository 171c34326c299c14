/**
 * Checkpoints that overwrite each other: two slots in turn, so that the one before is whole while the next is written.
 * Pure.
 *
 * Invariant of the writer: it touches a slot only when the checkpoint in the other one is durable.
 *
 * A slot, little-endian; the first one begins where the region's data begin, the second one right after it:
 *
 *   offset  size  field
 *        0     8  magic, "HFCKSLOT"
 *        8     2  version of this format, 1
 *       10     2  length of this header, 64
 *       12     4  reserved, 0
 *       16     8  sequence number, from 1; odd ones are in the second slot
 *       24     8  epoch of its writer
 *       32     8  length of the checkpoint, bytes
 *       40     4  CRC-32C of the checkpoint
 *       44    16  identifier of the region's format: a slot of an earlier one never counts
 *       60     4  CRC-32C of bytes 0 to 59
 *       64     n  the checkpoint
 */
import { crc32c, crc32cCopy } from '../base/checksum.ts';
import { assert } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { isOfChain, type RegionRecord } from './layout.ts';

export const SLOT_HEADER_BYTES = 64;
const MAGIC = Buffer.from('HFCKSLOT', 'ascii');
const VERSION = 1;

export type Slot = 0 | 1;

/** What is needed of a region's record; `dataBytes` is the room for header and checkpoint. */
export type SlotRegion = Pick<RegionRecord, 'formatId' | 'dataAddress' | 'dataBytes' | 'epoch' | 'firstSequence'>;

export interface SlotHeader {
  readonly sequence: number;
  readonly epoch: number;
  readonly lengthBytes: number;
  readonly checksum: number;
}

/** Which slot a checkpoint belongs in. */
export function slotOf(sequence: number): Slot {
  return sequence % 2 === 0 ? 0 : 1;
}

export function slotAddress(region: SlotRegion, slot: Slot): number {
  return region.dataAddress + slot * region.dataBytes;
}

/** Header and checkpoint as they are stored. */
export function encodeSlot(region: SlotRegion, sequence: number, epoch: number, checkpoint: Uint8Array): Uint8Array {
  assert(SLOT_HEADER_BYTES + checkpoint.length <= region.dataBytes, 'a checkpoint fits its slot');
  const bytes = Buffer.allocUnsafe(SLOT_HEADER_BYTES + checkpoint.length).fill(0, 0, SLOT_HEADER_BYTES);
  const checksum = crc32cCopy(checkpoint, bytes.subarray(SLOT_HEADER_BYTES));
  MAGIC.copy(bytes);
  bytes.writeUInt16LE(VERSION, 8);
  bytes.writeUInt16LE(SLOT_HEADER_BYTES, 10);
  bytes.writeBigUInt64LE(BigInt(sequence), 16);
  bytes.writeBigUInt64LE(BigInt(epoch), 24);
  bytes.writeBigUInt64LE(BigInt(checkpoint.length), 32);
  bytes.writeUInt32LE(checksum, 40);
  bytes.write(region.formatId, 44, 'hex');
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 60)), 60);
  return bytes;
}

/**
 * Undefined unless it is whole, belongs in this slot and is not of a writer that came too late; whether the checkpoint
 * is whole, only its checksum tells.
 */
export function decodeSlotHeader(raw: Uint8Array, region: SlotRegion, slot: Slot): SlotHeader | undefined {
  if (raw.length < SLOT_HEADER_BYTES) return undefined;
  const bytes = Buffer.from(raw.buffer, raw.byteOffset, SLOT_HEADER_BYTES);
  if (!bytes.subarray(0, 8).equals(MAGIC) || bytes.readUInt32LE(60) !== crc32c(bytes.subarray(0, 60))) return undefined;
  if (bytes.readUInt16LE(8) !== VERSION || bytes.readUInt16LE(10) !== SLOT_HEADER_BYTES) return undefined;
  if (bytes.toString('hex', 44, 60) !== region.formatId) return undefined;
  const [sequence, epoch, length] = [16, 24, 32].map((at) => bytes.readBigUInt64LE(at)) as [bigint, bigint, bigint];
  const isNumber = [sequence, epoch].every((each) => each > 0n && each <= BigInt(Number.MAX_SAFE_INTEGER));
  if (!isNumber || length > BigInt(region.dataBytes - SLOT_HEADER_BYTES)) return undefined;
  if (slotOf(Number(sequence)) !== slot || !isOfChain(region as RegionRecord, Number(sequence), Number(epoch)))
    return undefined;
  return {
    sequence: Number(sequence),
    epoch: Number(epoch),
    lengthBytes: Number(length),
    checksum: bytes.readUInt32LE(40),
  };
}

/** Whether the bytes behind the header are the checkpoint that it speaks of. */
export function isWhole(header: SlotHeader, checkpoint: Uint8Array): boolean {
  if (isPlanted('slot-checksum-unchecked')) return true;
  return checkpoint.length === header.lengthBytes && crc32c(checkpoint) === header.checksum;
}

/** What one look at a slot has found. */
export interface SlotView {
  readonly header: SlotHeader | undefined;
  /** The checkpoint has been read too, and is whole. */
  readonly whole: boolean;
  /** Where the header would be are zeros, as formatting left them: nothing was ever stored here. */
  readonly blank: boolean;
}

export type SlotViews = readonly [SlotView, SlotView];

/** What to do after a look at both slots: return the checkpoint of one, look at both again, or there is none. */
export type SlotVerdict =
  | { readonly kind: 'take'; readonly slot: Slot }
  | { readonly kind: 'look-again' }
  | { readonly kind: 'none' };

/**
 * Which slot a reader takes, from looks at both: the first slot's header, the second one's, then the checkpoint with
 * the higher number, or the other one if that is not whole. `before` is the look before. While a reader looks, the
 * writer may fill both anew.
 *
 * Since the writer touches no slot whose checkpoint is the newest durable one, a checkpoint is the newest if it is whole
 * and the other slot, in between, had the number before it: then the next one had not been acknowledged. The same if it
 * is there in two looks: then the other slot stood between them without the next one, or with a torn one. There is none
 * if nothing was ever stored in the first slot, and what the second one had before was not whole.
 */
export function judgeSlots(before: SlotViews | undefined, now: SlotViews): SlotVerdict {
  const newest = newestWhole(now);
  if (newest !== undefined && isRightAfter(now[newest], now[other(newest)])) return { kind: 'take', slot: newest };
  if (isPlanted('slots-looked-at-once'))
    return newest === undefined ? { kind: 'none' } : { kind: 'take', slot: newest };
  if (before === undefined) return { kind: 'look-again' };
  if (newest === undefined) return { kind: !before[1].whole && now[0].blank ? 'none' : 'look-again' };
  const isSame = before[newest].whole && before[newest].header?.sequence === now[newest].header?.sequence;
  return isSame ? { kind: 'take', slot: newest } : { kind: 'look-again' };
}

function isRightAfter(newer: SlotView, older: SlotView): boolean {
  return older.header !== undefined && older.header.sequence + 1 === newer.header?.sequence;
}

function newestWhole([first, second]: SlotViews): Slot | undefined {
  const [one, two] = [first, second].map(({ whole, header }) => (whole ? (header?.sequence ?? 0) : 0)) as [
    number,
    number,
  ];
  if (one === 0 && two === 0) return undefined;
  return one > two ? 0 : 1;
}

function other(slot: Slot): Slot {
  return slot === 0 ? 1 : 0;
}
