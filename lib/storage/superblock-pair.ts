/**
 * SuperblockPair: a small record that survives a crash at any moment and the rot of one of its two copies.
 *
 * Invariants:
 * - `write` resolves when both copies hold the new record, at the same sequence number, each flushed. The copy that is
 *   in doubt is written first, and the second only when the first is durable: at every moment one copy is whole.
 * - Nothing may depend on a record of which only one copy is known to be good: rot of that one would bring back the
 *   record before it, in silence. After `open` has told of `damage`, `repair` (or a write) comes first.
 * - What `open` gives is durable: a process that was killed may have left it in the device's volatile cache, and then
 *   the other copy may be the only one that a power cut leaves.
 * - A copy counts only at the place that it was written for.
 *
 * One copy (frame version 1), little-endian:
 *
 *   offset  size  field
 *        0     8  magic, "HOLDFAST"
 *        8     2  frame version, 1
 *       10     2  length of this header, 64
 *       12     4  version of the format in the payload
 *       16    16  name of the format, ASCII, filled up with zeros
 *       32     8  sequence number, from 1
 *       40     8  where this copy begins, bytes from the start of its device
 *       48     4  length of the payload, bytes
 *       52     8  reserved, 0
 *       60     4  CRC-32C of bytes 0 to 59, then of the payload
 *       64     n  payload
 *     64+n        zeros to the end of the copy
 */
import { crc32c } from '../base/checksum.ts';
import { assert, HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { BlockDevice } from './block-device.ts';

export const superblockMagic = Buffer.from('HOLDFAST', 'ascii');
export const superblockHeaderBytes = 64;
/** Copies begin at multiples of this within their device. */
export const superblockAlignmentBytes = 4096;
const frameVersion = 1;
const copyBytesMax = 16 * 1024 * 1024;
const waitingWritesMax = 64;

export interface SuperblockFormat {
  /** What the payload is: 1 to 16 printable ASCII characters. */
  readonly name: string;
  /** The version that is written. */
  readonly version: number;
  /** The oldest version that can be read; default: `version`. */
  readonly oldestVersion?: number;
}

export interface SuperblockLayout {
  /** Where the two copies begin: multiples of 4096 bytes. */
  readonly copyOffsets: readonly [number, number];
  /** Room for each, a multiple of 4096 bytes; the payload has 64 bytes less. */
  readonly copyBytes: number;
}

/** What is wrong with one copy while the other one is good. */
export interface SuperblockDamage {
  readonly copyOffset: number;
  readonly reason: string;
}

export interface SuperblockFrame {
  readonly formatName: string;
  readonly formatVersion: number;
  readonly sequence: number;
  readonly payload: Uint8Array;
}

/** A frame, or in words why it is none. `blank`: nothing of ours was ever here. */
type Decoded =
  | { readonly frame: SuperblockFrame }
  | {
      readonly frame: undefined;
      readonly reason: string;
      readonly blank: boolean;
      readonly error?: unknown;
      /** Where it says that it is laid out in a way that is not known here. */
      readonly frameVersion?: number;
    };

export function encodeSuperblock(frame: SuperblockFrame, copyOffset: number, copyBytes: number): Uint8Array {
  const bytes = Buffer.alloc(copyBytes);
  superblockMagic.copy(bytes);
  bytes.writeUInt16LE(frameVersion, 8);
  bytes.writeUInt16LE(superblockHeaderBytes, 10);
  bytes.writeUInt32LE(frame.formatVersion, 12);
  bytes.write(frame.formatName, 16, 'ascii');
  bytes.writeBigUInt64LE(BigInt(frame.sequence), 32);
  bytes.writeBigUInt64LE(BigInt(copyOffset), 40);
  bytes.writeUInt32LE(frame.payload.byteLength, 48);
  bytes.set(frame.payload, superblockHeaderBytes);
  bytes.writeUInt32LE(frameChecksum(bytes, frame.payload.byteLength), 60);
  return bytes;
}

function frameChecksum(bytes: Uint8Array, payloadBytes: number): number {
  const header = crc32c(bytes.subarray(0, 60));
  return crc32c(bytes.subarray(superblockHeaderBytes, superblockHeaderBytes + payloadBytes), header);
}

/** Reads one copy; `bytes` begin at `copyOffset` on the device and may go on beyond the copy's end. */
export function decodeSuperblock(bytes: Uint8Array, copyOffset: number): Decoded {
  const bad = (reason: string) => ({ frame: undefined, reason, blank: false });
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.byteLength < superblockHeaderBytes || !view.subarray(0, 8).equals(superblockMagic))
    return { frame: undefined, reason: 'it carries no magic', blank: true };
  const foundVersion = view.readUInt16LE(8);
  if (foundVersion !== frameVersion)
    return { ...bad(`its frame has version ${foundVersion}, which is not known here`), frameVersion: foundVersion };
  const payloadBytes = view.readUInt32LE(48);
  if (payloadBytes > view.byteLength - superblockHeaderBytes) return bad(`its length ${payloadBytes} is out of bounds`);
  if (frameChecksum(view, payloadBytes) !== view.readUInt32LE(60)) return bad('its checksum is wrong');
  const madeFor = view.readBigUInt64LE(40);
  if (madeFor !== BigInt(copyOffset)) return bad(`it was written for offset ${madeFor}`);
  const sequence = view.readBigUInt64LE(32);
  if (sequence === 0n || sequence > BigInt(Number.MAX_SAFE_INTEGER)) return bad(`its sequence ${sequence} is none`);
  return {
    frame: {
      formatName: view.toString('latin1', 16, 32).replace(/\0+$/, ''),
      formatVersion: view.readUInt32LE(12),
      sequence: Number(sequence),
      payload: new Uint8Array(view.subarray(superblockHeaderBytes, superblockHeaderBytes + payloadBytes)),
    },
  };
}

export class SuperblockPair {
  readonly #device: BlockDevice;
  readonly #format: SuperblockFormat;
  readonly #layout: SuperblockLayout;
  #sequence: number;
  #payload: Uint8Array;
  #damage: readonly SuperblockDamage[];
  /** For each copy: it is durable, whole, and the newest that was completed. Never both false. */
  readonly #good: [boolean, boolean];
  #lastWrite: Promise<void> = Promise.resolve();
  #waitingWrites = 0;

  private constructor(
    device: BlockDevice,
    format: SuperblockFormat,
    layout: SuperblockLayout,
    state: { readonly sequence: number; readonly payload: Uint8Array; readonly damage: readonly SuperblockDamage[] },
  ) {
    this.#device = device;
    this.#format = format;
    this.#layout = layout;
    this.#sequence = state.sequence;
    this.#payload = state.payload;
    this.#damage = state.damage;
    const isGood = (copyOffset: number) => !state.damage.some((damage) => damage.copyOffset === copyOffset);
    this.#good = [isGood(layout.copyOffsets[0]), isGood(layout.copyOffsets[1])];
  }

  /**
   * Wipes both places and writes the first record. What was there before is gone, also if this is cut short.
   *
   * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT for a layout or payload that does not fit, before anything changes.
   */
  static async create(
    device: BlockDevice,
    format: SuperblockFormat,
    layout: SuperblockLayout,
    payload: Uint8Array,
  ): Promise<SuperblockPair> {
    checkFormat(format);
    checkLayout(device, layout);
    checkPayload(layout, payload);
    const zeros = new Uint8Array(layout.copyBytes);
    for (const copyOffset of layout.copyOffsets) await device.write(copyOffset, zeros);
    await device.flush();
    const pair = new SuperblockPair(device, format, layout, { sequence: 0, payload: new Uint8Array(), damage: [] });
    await pair.write(payload);
    return pair;
  }

  /**
   * Flushes the device, reads both copies and takes the newest good one. Changes neither: look at `damage`, and `repair`
   * before anything depends on what was read.
   *
   * @throws HoldfastError ERR_HOLDFAST_METADATA_MISSING if there is no record of this format,
   *   ERR_HOLDFAST_METADATA_DAMAGED if neither copy is whole, ERR_HOLDFAST_METADATA_VERSION if it is of a version that
   *   is not known here, ERR_HOLDFAST_IO if neither copy can be read, or what the device's flush throws.
   */
  static async open(device: BlockDevice, format: SuperblockFormat, layout: SuperblockLayout): Promise<SuperblockPair> {
    checkFormat(format);
    checkLayout(device, layout);
    if (!device.readOnly) await device.flush();
    const copies: [Decoded, Decoded] = [
      await readCopy(device, layout.copyOffsets[0], layout.copyBytes),
      await readCopy(device, layout.copyOffsets[1], layout.copyBytes),
    ];
    const newest = newestFrame(device, copies);
    checkFound(device, format, newest);
    const damage = copies.flatMap((copy, index) => {
      const copyOffset = layout.copyOffsets[index]!;
      if (copy.frame === undefined) return [{ copyOffset, reason: copy.reason }];
      if (copy.frame.sequence === newest.sequence) return [];
      return [{ copyOffset, reason: `it is older: ${copy.frame.sequence} instead of ${newest.sequence}` }];
    });
    return new SuperblockPair(device, format, layout, { ...newest, damage });
  }

  /** Grows by one with every write that is tried. */
  get sequence(): number {
    return this.#sequence;
  }

  /** The newest record. Not to be changed. */
  get payload(): Uint8Array {
    return this.#payload;
  }

  /** What `open` found wrong and no write has mended yet; at most one copy. */
  get damage(): readonly SuperblockDamage[] {
    return this.#damage;
  }

  /**
   * Replaces the record. Resolved: both copies are durable. Rejected: a reader finds the old record or the new one, and
   * the next write takes care of the copy in doubt. Writes follow each other in the order of the calls.
   *
   * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if the payload does not fit.
   */
  async write(payload: Uint8Array): Promise<void> {
    checkPayload(this.#layout, payload);
    const own = payload.slice();
    await this.#inTurn(() => this.#write(own));
  }

  /** Makes both copies whole and equal again, if they are not: after damage that `open` found, or a failed write. */
  async repair(): Promise<void> {
    await this.#inTurn(async () => {
      if (!this.#good[0] || !this.#good[1]) await this.#write(this.#payload);
    });
  }

  async #inTurn(work: () => Promise<void>): Promise<void> {
    assert(this.#waitingWrites < waitingWritesMax, 'the owner of a superblock does not let its writes pile up');
    const write = this.#lastWrite.then(work);
    this.#waitingWrites++;
    this.#lastWrite = write.catch(() => {});
    try {
      await write;
    } finally {
      this.#waitingWrites--;
    }
  }

  async #write(payload: Uint8Array): Promise<void> {
    const frame: SuperblockFrame = {
      formatName: this.#format.name,
      formatVersion: this.#format.version,
      sequence: ++this.#sequence,
      payload,
    };
    const order: readonly (0 | 1)[] = this.#good[1] ? [0, 1] : [1, 0];
    for (const copy of order) {
      const copyOffset = this.#layout.copyOffsets[copy];
      this.#good[copy] = false;
      assert(this.#good[0] || this.#good[1] || this.#payload.byteLength === 0, 'one copy is whole at every moment');
      await this.#device.write(copyOffset, encodeSuperblock(frame, copyOffset, this.#layout.copyBytes));
      await this.#device.flush();
      this.#good[copy] = true;
      this.#payload = payload;
      if (isPlanted('superblock-written-once')) {
        this.#good[copy === 0 ? 1 : 0] = false;
        break;
      }
    }
    this.#damage = [];
  }
}

async function readCopy(device: BlockDevice, copyOffset: number, copyBytes: number): Promise<Decoded> {
  const bytes = new Uint8Array(copyBytes);
  try {
    await device.read(copyOffset, bytes);
  } catch (error) {
    const reason = `it cannot be read: ${error instanceof Error ? error.message : String(error)}`;
    return { frame: undefined, reason, blank: false, error };
  }
  return decodeSuperblock(bytes, copyOffset);
}

function newestFrame(device: BlockDevice, copies: readonly [Decoded, Decoded]): SuperblockFrame {
  const [first, second] = copies;
  if (first.frame === undefined && second.frame === undefined) {
    if (first.error !== undefined && second.error !== undefined) throw first.error;
    if (first.blank && second.blank)
      throw new HoldfastError(
        'ERR_HOLDFAST_METADATA_MISSING',
        `${device.name} carries no Holdfast metadata; check that it is the right one, or create it first`,
      );
    // Only both together: in one copy alone a wrong version may as well be rot.
    if (first.frameVersion !== undefined && first.frameVersion === second.frameVersion)
      throw new HoldfastError(
        'ERR_HOLDFAST_METADATA_VERSION',
        `${device.name} carries metadata in frames of version ${first.frameVersion}, and this Holdfast reads ` +
          `${frameVersion}; use the Holdfast that wrote it`,
      );
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_DAMAGED',
      `${device.name}: neither copy of the metadata is whole (the first: ${first.reason}; the second: ` +
        `${second.reason}); restore it, or create this member anew and let it be filled from its peer`,
    );
  }
  if (first.frame === undefined) return second.frame!;
  if (second.frame === undefined || first.frame.sequence > second.frame.sequence) return first.frame;
  if (second.frame.sequence > first.frame.sequence) return second.frame;
  const same =
    first.frame.formatName === second.frame.formatName &&
    first.frame.formatVersion === second.frame.formatVersion &&
    Buffer.compare(first.frame.payload, second.frame.payload) === 0;
  if (!same)
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_DAMAGED',
      `${device.name}: the two copies of the metadata are both whole and differ, at sequence ${first.frame.sequence}; ` +
        'this is not what Holdfast writes: create this member anew and let it be filled from its peer',
    );
  return first.frame;
}

function checkFound(device: BlockDevice, format: SuperblockFormat, found: SuperblockFrame): void {
  if (found.formatName !== format.name)
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_MISSING',
      `${device.name} carries Holdfast metadata of another kind ("${printable(found.formatName)}" instead of ` +
        `"${format.name}"); check that it is the right one`,
    );
  const oldest = format.oldestVersion ?? format.version;
  if (found.formatVersion < oldest || found.formatVersion > format.version)
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_VERSION',
      `${device.name} carries "${format.name}" metadata of version ${found.formatVersion}, and this Holdfast reads ` +
        `${oldest} to ${format.version}; use the Holdfast that wrote it`,
    );
}

/** A name that comes from a device, fit to be shown. */
export function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?');
}

function checkFormat(format: SuperblockFormat): void {
  assert(/^[\x21-\x7e]{1,16}$/.test(format.name), 'the name of a format is 1 to 16 printable ASCII characters');
  assert(Number.isInteger(format.version) && format.version > 0, 'the version of a format is a whole number from 1');
}

function checkLayout(device: BlockDevice, layout: SuperblockLayout): void {
  const { copyOffsets, copyBytes } = layout;
  const isWhole = (value: number) =>
    Number.isSafeInteger(value) && value >= 0 && value % superblockAlignmentBytes === 0;
  const [first, second] = copyOffsets;
  if (!isWhole(copyBytes) || copyBytes === 0 || copyBytes > copyBytesMax || !isWhole(first) || !isWhole(second))
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `two copies of ${copyBytes} bytes at ${first} and ${second}: all must be multiples of ` +
        `${superblockAlignmentBytes}, and a copy at most ${copyBytesMax}`,
    );
  if (Math.abs(first - second) < copyBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `two copies of ${copyBytes} bytes at ${first} and ${second} overlap`,
    );
  if (Math.max(first, second) + copyBytes > device.geometry.sizeBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `${device.name} has ${device.geometry.sizeBytes} bytes, too few for metadata up to ` +
        `${Math.max(first, second) + copyBytes}; use a bigger device`,
    );
}

function checkPayload(layout: SuperblockLayout, payload: Uint8Array): void {
  const room = layout.copyBytes - superblockHeaderBytes;
  if (payload.byteLength === 0 || payload.byteLength > room)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `a superblock's payload has 1 to ${room} bytes, not ${payload.byteLength}`,
    );
}
