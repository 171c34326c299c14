/**
 * A member's metadata on a device: the superblock pair with its record, the activity log, and room for the bitmap that a
 * clean stop saves. It lies at the end of the data device, or fills a file of its own; either way it is laid out from
 * the end:
 *
 *   end − 64 KiB − 2·l − b   activity log, copy 0; l = 4 KiB for each 32 256 extents of the volume
 *   end − 64 KiB − l − b     the saved bitmap; b = its length rounded up to 4 KiB
 *   end − 64 KiB − l         activity log, copy 1
 *   end − 64 KiB             superblock, copy 0 (4 KiB)
 *   end −  4 KiB             superblock, copy 1 (4 KiB)
 *
 * where `end` is the device's size rounded down to 4 KiB. The bitmap has DirtyBitmap's layout; its checksum is in the
 * record (record-format.ts), and it counts only while the record says clean. The log (log-format.ts) counts only while
 * it does not. Volume data begins at offset 0.
 *
 * Records, voter states and clean stops are written one after the other, in the order of the calls; each write carries
 * the newest of the others.
 */
import { crc32c } from '../base/checksum.ts';
import { assert, HoldfastError } from '../base/errors.ts';
import { type Random, systemRandom } from '../base/random.ts';
import { NEW_VOTER, type VoterState } from '../peer/arbiter.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { type SuperblockFormat, type SuperblockLayout, SuperblockPair } from '../storage/superblock-pair.ts';
import { ActivityLog, type LogLayout, logBytes } from './activity-log.ts';
import type { MemberStore } from './member-store.ts';
import { MAX_BITMAP_BYTES } from './protocol.ts';
import { decodeMember, encodeMember, RECORD_FORMAT_VERSION, type StoredMember } from './record-format.ts';
import { CREATED_RECORD, type MemberIndex, type MemberRecord } from './view.ts';

const BLOCK_BYTES = 4096;
const TAIL_BYTES = 64 * 1024;
const WAITING_MAX = 64;
/** The frame's name of this format: how another tool tells a mirrored volume's member from Holdfast's other formats. */
export const MEMBER_FORMAT: SuperblockFormat = { name: 'mirror-member', version: RECORD_FORMAT_VERSION };

/** What is settled when a member is created, and never changes. */
export interface MemberShape {
  /** 32 hexadecimal digits, the same on both members. */
  readonly volumeId: string;
  /** Of the volume, without metadata. */
  readonly sizeBytes: number;
  /** What one bit of the bitmap stands for; a power of two of at least 4096. */
  readonly grainBytes: number;
  /** A power of two of at least 4096, as the grain. */
  readonly activityLogExtentBytes: number;
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

/**
 * How much room the metadata of a volume takes. Throws ERR_HOLDFAST_BAD_ARGUMENT if the grain or the activity log's
 * extent is too small for it.
 */
export function metadataBytes(sizeBytes: number, grainBytes: number, activityLogExtentBytes: number): number {
  const bitmap = bitmapBytes(sizeBytes, grainBytes);
  if (bitmap > MAX_BITMAP_BYTES) {
    const least = 2 ** Math.ceil(Math.log2(sizeBytes / (MAX_BITMAP_BYTES * 8)));
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `a volume of ${sizeBytes} bytes needs a bitmap grain of at least ${least} bytes, not ${grainBytes}`,
    );
  }
  return 2 * logBytes(sizeBytes, activityLogExtentBytes) + roundUp(bitmap, BLOCK_BYTES) + TAIL_BYTES;
}

function endOf(device: BlockDevice): number {
  return device.geometry.sizeBytes - (device.geometry.sizeBytes % BLOCK_BYTES);
}

function pairLayout(device: BlockDevice): SuperblockLayout {
  const end = endOf(device);
  if (end < TAIL_BYTES + BLOCK_BYTES) {
    throw new HoldfastError(
      'ERR_HOLDFAST_DEVICE_TOO_SMALL',
      `${device.name} has ${device.geometry.sizeBytes} bytes, too few even for a volume's metadata; use a larger one`,
    );
  }
  return { copyOffsets: [end - TAIL_BYTES, end - BLOCK_BYTES], copyBytes: BLOCK_BYTES };
}

interface Places {
  readonly bitmapOffset: number;
  readonly log: LogLayout;
}

/** Where bitmap and log lie; the first offset is negative if the device has no room for them. */
function placesOf(device: BlockDevice, shape: MemberShape, logId: string): Places {
  const { sizeBytes, grainBytes, activityLogExtentBytes: extentBytes } = shape;
  const log = logBytes(sizeBytes, extentBytes);
  const secondLog = endOf(device) - TAIL_BYTES - log;
  const bitmapOffset = secondLog - roundUp(bitmapBytes(sizeBytes, grainBytes), BLOCK_BYTES);
  return { bitmapOffset, log: { sizeBytes, extentBytes, logId, copyOffsets: [bitmapOffset - log, secondLog] } };
}

/** Throws ERR_HOLDFAST_DEVICE_TOO_SMALL unless data (and metadata, if it is `internal`) fit. */
export function checkFits(device: BlockDevice, shape: MemberShape, metadata: 'internal' | 'separate'): void {
  const room = metadata === 'internal' ? roomFor(shape) : 0;
  const needed = shape.sizeBytes + room;
  const { sizeBytes } = device.geometry;
  if (sizeBytes - (sizeBytes % BLOCK_BYTES) >= needed) return;
  throw tooSmall(device, needed, room > 0 ? ` (${shape.sizeBytes} for data, ${room} for metadata at its end)` : '');
}

function tooSmall(device: BlockDevice, needed: number, details: string): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_DEVICE_TOO_SMALL',
    `${device.name} has ${device.geometry.sizeBytes} bytes, and the volume needs ${needed}${details}; use a larger device or a smaller sizeBytes`,
  );
}

function roomFor(shape: MemberShape): number {
  return metadataBytes(shape.sizeBytes, shape.grainBytes, shape.activityLogExtentBytes);
}

/**
 * A member's metadata on a device: who it is, what it knows of the volume, what differs from its peer. `create` it once,
 * `open` it at each start, and give it to `MirroredVolume.open`. The head of lib/mirror/metadata.ts has the layout.
 */
export class Metadata implements MemberStore {
  readonly record: MemberRecord;
  readonly savedMarks: Uint8Array | undefined;
  /** @internal */
  readonly log: ActivityLog;
  readonly #device: BlockDevice;
  readonly #pair: SuperblockPair;
  readonly #bitmapOffset: number;
  /** What the next write carries. */
  #stored: StoredMember;
  /** Of what lies in the bitmap's place. */
  #bitmapCrc: number;
  #voter: VoterState;
  #lastTurn: Promise<void> = Promise.resolve();
  #waiting = 0;
  #tellVoterFailure: (error: unknown) => void = () => {};

  private constructor(device: BlockDevice, pair: SuperblockPair, stored: StoredMember, parts: StoredParts) {
    this.#device = device;
    this.#pair = pair;
    this.#stored = stored;
    this.#bitmapCrc = stored.bitmapCrc;
    this.#voter = stored.voter;
    this.#bitmapOffset = parts.bitmapOffset;
    this.record = stored.record;
    this.savedMarks = parts.savedMarks;
    this.log = parts.log;
  }

  /**
   * Writes the metadata of a new member. What was in its place is gone.
   *
   * @param random makes the activity log's identifier
   */
  static async create(device: BlockDevice, shape: MemberShape, random: Random = systemRandom): Promise<void> {
    const logId = Buffer.alloc(16);
    random.fill(logId);
    const stored: StoredMember = {
      ...shape,
      logId: logId.toString('hex'),
      bitmapCrc: 0,
      record: CREATED_RECORD,
      voter: NEW_VOTER,
    };
    const payload = encodeMember(stored);
    const { log } = placesOf(device, shape, stored.logId);
    const pair = pairLayout(device);
    if (log.copyOffsets[0] < 0) throw tooSmall(device, roomFor(shape), '');
    await ActivityLog.create(device, log);
    await SuperblockPair.create(device, MEMBER_FORMAT, pair, payload);
  }

  /**
   * Reads the metadata. Changes nothing, since it may be another volume's: `repair` once the caller has accepted it.
   *
   * @throws HoldfastError as SuperblockPair.open.
   */
  static async open(device: BlockDevice): Promise<Metadata> {
    const pair = await SuperblockPair.open(device, MEMBER_FORMAT, pairLayout(device));
    const stored = decodeMember(pair.payload);
    const places = placesOf(device, stored, stored.logId);
    if (places.log.copyOffsets[0] < 0) throw tooShort(device);
    const { clean } = stored.record;
    const savedMarks = clean ? await readMarks(device, stored, places.bitmapOffset) : undefined;
    const log = await ActivityLog.open(device, places.log, clean);
    return new Metadata(device, pair, stored, { bitmapOffset: places.bitmapOffset, savedMarks, log });
  }

  /** Of the volume: 32 hexadecimal digits. */
  get volumeId(): string {
    return this.#stored.volumeId;
  }

  /** The member's place in the volume's configuration. */
  get member(): MemberIndex {
    return this.#stored.member;
  }

  /** The name of the member's node. */
  get memberName(): string {
    return this.#stored.memberName;
  }

  /** The `id` of the data device when the member was created. */
  get deviceIdentity(): string {
    return this.#stored.deviceIdentity;
  }

  /** Of the volume, without metadata. */
  get sizeBytes(): number {
    return this.#stored.sizeBytes;
  }

  /** What one bit of the bitmap stands for. */
  get grainBytes(): number {
    return this.#stored.grainBytes;
  }

  /** What one entry of the activity log stands for. */
  get activityLogExtentBytes(): number {
    return this.#stored.activityLogExtentBytes;
  }

  /** The newest that is durable. */
  get voter(): VoterState {
    return this.#voter;
  }

  repair(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#pair.repair();
      await this.log.repair();
    });
  }

  write(record: MemberRecord): Promise<void> {
    return this.#inTurn(() => this.#put({ record }));
  }

  writeClean(record: MemberRecord, marks: Uint8Array): Promise<void> {
    return this.#inTurn(async () => {
      const padded = new Uint8Array(roundUp(marks.length, BLOCK_BYTES));
      padded.set(marks);
      await this.#device.write(this.#bitmapOffset, padded);
      await this.#device.flush();
      this.#bitmapCrc = crc32c(marks);
      await this.#put({ record });
    });
  }

  writeVoter(voter: VoterState): Promise<void> {
    const write = this.#inTurn(async () => {
      await this.#put({ voter });
      this.#voter = voter;
    });
    // Whoever votes is told by the promise; the member would not hear of it.
    write.catch((error: unknown) => this.#tellVoterFailure(error));
    return write;
  }

  onVoterFailure(listener: (error: unknown) => void): void {
    this.#tellVoterFailure = listener;
  }

  /** What was tried counts even if it failed: it may be what is on the device. */
  async #put(changed: Partial<Pick<StoredMember, 'record' | 'voter'>>): Promise<void> {
    const next = { ...this.#stored, ...changed };
    const stored = { ...next, bitmapCrc: next.record.clean ? this.#bitmapCrc : 0 };
    const payload = encodeMember(stored);
    this.#stored = stored;
    await this.#pair.write(payload);
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    assert(this.#waiting < WAITING_MAX, 'those who write metadata wait for their writes');
    this.#waiting += 1;
    const turn = this.#lastTurn.then(work).finally(() => {
      this.#waiting -= 1;
    });
    this.#lastTurn = turn.catch(() => {});
    return turn;
  }
}

interface StoredParts {
  readonly bitmapOffset: number;
  readonly savedMarks: Uint8Array | undefined;
  readonly log: ActivityLog;
}

/** Undefined if it is damaged, or cannot be read: then every grain may differ. */
async function readMarks(device: BlockDevice, stored: StoredMember, offset: number): Promise<Uint8Array | undefined> {
  const marks = new Uint8Array(bitmapBytes(stored.sizeBytes, stored.grainBytes));
  try {
    await device.read(offset, marks);
  } catch {
    return undefined;
  }
  return crc32c(marks) === stored.bitmapCrc ? marks : undefined;
}

function tooShort(device: BlockDevice): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    `${device.name} is too short for the metadata that it carries; was it cut? Create this member anew`,
  );
}
