/**
 * A member's metadata on a device: the superblock pair with its record, and room for the bitmap that a clean stop
 * saves. It lies at the end of the data device, or fills a file of its own; either way it is laid out from the end:
 *
 *   end − 64 KiB − b   the saved bitmap, b = its length rounded up to 4 KiB
 *   end − 64 KiB       superblock, copy 0 (4 KiB)
 *   end −  4 KiB       superblock, copy 1 (4 KiB)
 *
 * where `end` is the device's size rounded down to 4 KiB. The bitmap has DirtyBitmap's layout; its checksum is in the
 * record (record-format.ts), and it counts only while the record says clean. Volume data begins at offset 0.
 */
import { crc32c } from '../base/checksum.ts';
import { HoldfastError } from '../base/errors.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { type SuperblockFormat, type SuperblockLayout, SuperblockPair } from '../storage/superblock-pair.ts';
import type { MemberStore } from './member-store.ts';
import { MAX_BITMAP_BYTES } from './protocol.ts';
import { decodeMember, encodeMember, RECORD_FORMAT_VERSION, type StoredMember } from './record-format.ts';
import { CREATED_RECORD, type MemberIndex, type MemberRecord } from './view.ts';

const BLOCK_BYTES = 4096;
const TAIL_BYTES = 64 * 1024;
/** The frame's name of this format: how another tool tells a mirrored volume's member from Holdfast's other formats. */
export const MEMBER_FORMAT: SuperblockFormat = { name: 'mirror-member', version: RECORD_FORMAT_VERSION };

export interface MemberShape {
  readonly volumeId: string;
  readonly sizeBytes: number;
  readonly grainBytes: number;
  readonly member: MemberIndex;
  readonly memberName: string;
  /** The data device's identity (storage/identity.ts): metadata in a file of its own is bound to it. */
  readonly deviceIdentity: string;
}

function bitmapBytes(sizeBytes: number, grainBytes: number): number {
  return Math.ceil(Math.ceil(sizeBytes / grainBytes) / 8);
}

function roundUp(bytes: number, unit: number): number {
  return Math.ceil(bytes / unit) * unit;
}

/** How much room the metadata of a volume takes. Throws ERR_HOLDFAST_BAD_ARGUMENT if the grain is too small for it. */
export function metadataBytes(sizeBytes: number, grainBytes: number): number {
  const bitmap = bitmapBytes(sizeBytes, grainBytes);
  if (bitmap > MAX_BITMAP_BYTES) {
    const least = 2 ** Math.ceil(Math.log2(sizeBytes / (MAX_BITMAP_BYTES * 8)));
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `a volume of ${sizeBytes} bytes needs a bitmap grain of at least ${least} bytes, not ${grainBytes}`,
    );
  }
  return roundUp(bitmap, BLOCK_BYTES) + TAIL_BYTES;
}

function layoutOf(device: BlockDevice): { end: number; pair: SuperblockLayout } {
  const end = device.geometry.sizeBytes - (device.geometry.sizeBytes % BLOCK_BYTES);
  if (end < TAIL_BYTES + BLOCK_BYTES) {
    throw new HoldfastError(
      'ERR_HOLDFAST_DEVICE_TOO_SMALL',
      `${device.name} has ${device.geometry.sizeBytes} bytes, too few even for a volume's metadata; use a larger one`,
    );
  }
  return { end, pair: { copyOffsets: [end - TAIL_BYTES, end - BLOCK_BYTES], copyBytes: BLOCK_BYTES } };
}

/** Throws ERR_HOLDFAST_DEVICE_TOO_SMALL unless data (and metadata, if it is `internal`) fit. */
export function checkFits(device: BlockDevice, shape: MemberShape, metadata: 'internal' | 'separate'): void {
  const room = metadata === 'internal' ? metadataBytes(shape.sizeBytes, shape.grainBytes) : 0;
  const needed = shape.sizeBytes + room;
  const { sizeBytes } = device.geometry;
  if (sizeBytes - (sizeBytes % BLOCK_BYTES) >= needed) return;
  const details = room > 0 ? ` (${shape.sizeBytes} for data, ${room} for metadata at its end)` : '';
  throw new HoldfastError(
    'ERR_HOLDFAST_DEVICE_TOO_SMALL',
    `${device.name} has ${sizeBytes} bytes, and the volume needs ${needed}${details}; use a larger device or a smaller sizeBytes`,
  );
}

export class Metadata implements MemberStore {
  readonly record: MemberRecord;
  readonly savedMarks: Uint8Array | undefined;
  readonly #device: BlockDevice;
  readonly #pair: SuperblockPair;
  readonly #shape: MemberShape;
  readonly #bitmapOffset: number;

  private constructor(device: BlockDevice, pair: SuperblockPair, stored: StoredMember, savedMarks?: Uint8Array) {
    this.#device = device;
    this.#pair = pair;
    this.#shape = stored;
    this.record = stored.record;
    this.savedMarks = savedMarks;
    this.#bitmapOffset = bitmapOffset(device, stored);
  }

  /** Writes the metadata of a new member. What was in its place is gone. */
  static async create(device: BlockDevice, shape: MemberShape): Promise<void> {
    const stored = { ...shape, bitmapCrc: 0, record: CREATED_RECORD };
    const payload = encodeMember(stored);
    await SuperblockPair.create(device, MEMBER_FORMAT, layoutOf(device).pair, payload);
  }

  /**
   * Reads the metadata. Changes nothing, since it may be another volume's: `repair` once the caller has accepted it.
   *
   * @throws HoldfastError as SuperblockPair.open.
   */
  static async open(device: BlockDevice): Promise<Metadata> {
    const pair = await SuperblockPair.open(device, MEMBER_FORMAT, layoutOf(device).pair);
    const stored = decodeMember(pair.payload);
    const marks = stored.record.clean ? await readMarks(device, stored) : undefined;
    return new Metadata(device, pair, stored, marks);
  }

  get volumeId(): string {
    return this.#shape.volumeId;
  }

  get member(): MemberIndex {
    return this.#shape.member;
  }

  get memberName(): string {
    return this.#shape.memberName;
  }

  get deviceIdentity(): string {
    return this.#shape.deviceIdentity;
  }

  get sizeBytes(): number {
    return this.#shape.sizeBytes;
  }

  get grainBytes(): number {
    return this.#shape.grainBytes;
  }

  async repair(): Promise<void> {
    await this.#pair.repair();
  }

  async write(record: MemberRecord): Promise<void> {
    // The bitmap is overwritten at a clean stop only, and a stop is the last write: its checksum stays valid until then.
    const bitmapCrc = record.clean ? this.#savedCrc() : 0;
    await this.#pair.write(encodeMember({ ...this.#shape, bitmapCrc, record }));
  }

  async writeClean(record: MemberRecord, marks: Uint8Array): Promise<void> {
    const padded = new Uint8Array(roundUp(marks.length, BLOCK_BYTES));
    padded.set(marks);
    await this.#device.write(this.#bitmapOffset, padded);
    await this.#device.flush();
    await this.#pair.write(encodeMember({ ...this.#shape, bitmapCrc: crc32c(marks), record }));
  }

  #savedCrc(): number {
    return this.savedMarks === undefined ? 0 : crc32c(this.savedMarks);
  }
}

function bitmapOffset(device: BlockDevice, shape: MemberShape): number {
  const bytes = bitmapBytes(shape.sizeBytes, shape.grainBytes);
  return layoutOf(device).end - TAIL_BYTES - roundUp(bytes, BLOCK_BYTES);
}

/** Undefined if it is damaged: then every grain may differ. */
async function readMarks(device: BlockDevice, stored: StoredMember): Promise<Uint8Array | undefined> {
  const offset = bitmapOffset(device, stored);
  if (offset < 0) throw tooShort(device);
  const marks = new Uint8Array(bitmapBytes(stored.sizeBytes, stored.grainBytes));
  await device.read(offset, marks);
  return crc32c(marks) === stored.bitmapCrc ? marks : undefined;
}

function tooShort(device: BlockDevice): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    `${device.name} is too short for the metadata that it carries; was it cut? Create this member anew`,
  );
}
