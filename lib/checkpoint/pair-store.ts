/**
 * What a process pair keeps in its region: in the first half the newest whole state that was saved (two slots), in the
 * second half the updates since then (a ring of records). Each half is a checkpoint region of its own (layout.ts), whole
 * pages; the pulse is in the first one.
 *
 * A saved state, little-endian:
 *
 *   offset  size  field
 *        0     4  magic, "HFPS"
 *        4     2  version of this format, 1
 *        6     2  reserved, 0
 *        8     8  sequence number of the last update that it contains
 *       16     n  the state
 *
 * Invariants:
 * - A state is saved only when all updates in it are durable: else the next primary could number others the same.
 * - Updates are dropped only when a saved state contains them. For that the primary has the cursor of the ring, "state".
 * - No update waits for room in the ring: a state that contains it could not be saved then, and room is made by nothing
 *   else. One is appended only if `hasRoom`.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { accessPart } from './access-part.ts';
import { CheckpointReader } from './checkpoint-reader.ts';
import { CheckpointWriter } from './checkpoint-writer.ts';
import { Cursor } from './cursors.ts';
import { headPosition, PAGE_BYTES, type RegionRecord } from './layout.ts';
import type { RegionAccess } from './one-sided.ts';
import { payloadBytesMax, recordBytes } from './records.ts';
import { formatCheckpointRegion, readRegionRecord } from './region-record.ts';

const HEADER_BYTES = 16;
const MAGIC = Buffer.from('HFPS', 'ascii');
const VERSION = 1;
/** Of the ring: when updates take so much of it the state is saved. */
const SAVED_SHARE = 1 / 4;
/**
 * Of the ring, which updates that no saved state contains may take. The rest is for what may lie behind the last saved
 * one and is given back in steps (ring-space.ts), less than 9/64.
 */
const UNSAVED_SHARE_MAX = 3 / 4;

/** Of what waits in a log: the pair itself bounds it, by the number of its updates and by `hasRoom`. */
const NO_LIMITS = { waitingRecordsMax: Number.MAX_SAFE_INTEGER, waitingBytesMax: Number.MAX_SAFE_INTEGER };

export interface SavedState {
  /** Of the last update in it. */
  readonly sequence: number;
  readonly bytes: Uint8Array;
}

export interface StoredUpdate {
  readonly sequence: number;
  readonly bytes: Uint8Array;
}

interface Halves {
  readonly state: RegionAccess;
  readonly log: RegionAccess;
}

function halvesOf(access: RegionAccess): Halves {
  const halfBytes = Math.floor(access.range.lengthBytes / 2 / PAGE_BYTES) * PAGE_BYTES;
  return { state: accessPart(access, 0, halfBytes), log: accessPart(access, halfBytes, halfBytes) };
}

export function encodeSavedState(sequence: number, state: Uint8Array): Uint8Array {
  const bytes = Buffer.alloc(HEADER_BYTES + state.length);
  MAGIC.copy(bytes);
  bytes.writeUInt16LE(VERSION, 4);
  bytes.writeBigUInt64LE(BigInt(sequence), 8);
  bytes.set(state, HEADER_BYTES);
  return bytes;
}

/** @throws HoldfastError ERR_HOLDFAST_METADATA_VERSION or ERR_HOLDFAST_METADATA_DAMAGED. */
export function decodeSavedState(raw: Uint8Array): SavedState {
  const bytes = Buffer.from(raw.buffer, raw.byteOffset, raw.length);
  if (bytes.length < HEADER_BYTES || !bytes.subarray(0, 4).equals(MAGIC)) throw damaged();
  const version = bytes.readUInt16LE(4);
  if (version !== VERSION)
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_VERSION',
      `the saved state has version ${version} of its format, this release knows ${VERSION}; use a newer release`,
    );
  const sequence = bytes.readBigUInt64LE(8);
  if (sequence > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged();
  return { sequence: Number(sequence), bytes: raw.subarray(HEADER_BYTES) };
}

function damaged(): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    'what was saved in the region is no state of a process pair; give the pair a region of its own',
  );
}

async function readSaved(state: RegionAccess, signal: AbortSignal): Promise<SavedState | undefined> {
  const reader = await CheckpointReader.open(state);
  const newest = await reader.latest({ signal });
  return newest === undefined ? undefined : decodeSavedState(newest.value);
}

/** Updates after `after`; ERR_HOLDFAST_GAP if the first of them has been dropped. */
function checkFirst(found: number, after: number): void {
  if (found > after + 1)
    throw new HoldfastError('ERR_HOLDFAST_GAP', `updates ${after + 1} to ${found - 1} are in a later saved state`);
}

/** The backup's end. */
export class PairFollower {
  readonly #halves: Halves;

  /** `access` opens all of the region to read. */
  constructor(access: RegionAccess) {
    this.#halves = halvesOf(access);
  }

  /** The newest saved state; undefined if there is none. ERR_HOLDFAST_METADATA_MISSING as long as the region is blank. */
  saved(signal: AbortSignal): Promise<SavedState | undefined> {
    return readSaved(this.#halves.state, signal);
  }

  /** Every update after that one, as it comes, until the signal fires. ERR_HOLDFAST_GAP if some were dropped. */
  async *updates(after: number, signal: AbortSignal): AsyncGenerator<StoredUpdate, void, void> {
    const reader = await CheckpointReader.open(this.#halves.log);
    let last = after;
    for await (const { sequence, value } of reader.follow({ signal })) {
      if (sequence <= last) continue;
      checkFirst(sequence, last);
      last = sequence;
      yield { sequence, bytes: value };
    }
  }

  /** Resolves when something in the region has changed, or at once. */
  async changed(since: number, signal: AbortSignal): Promise<number> {
    const { state } = this.#halves;
    return state.watch(0, state.range.lengthBytes, since, { signal });
  }
}

/** The primary's end. */
export class PairStore {
  /** All of the region. */
  readonly access: RegionAccess;
  /** The newest saved state when the store was opened. */
  readonly saved: SavedState | undefined;
  readonly #halves: Halves;
  readonly #state: CheckpointWriter;
  readonly #log: CheckpointWriter;
  readonly #cursor: Cursor;
  readonly #ringBytes: number;
  /** In the ring, of all updates since the start, and of those that the newest saved state contains. */
  #givenBytes = 0;
  #savedBytes = 0;
  #last: Promise<number> = Promise.resolve(0);

  private constructor(
    access: RegionAccess,
    halves: Halves,
    parts: { state: CheckpointWriter; log: CheckpointWriter; cursor: Cursor; region: RegionRecord },
    saved: SavedState | undefined,
  ) {
    this.access = access;
    this.saved = saved;
    this.#halves = halves;
    this.#state = parts.state;
    this.#log = parts.log;
    this.#cursor = parts.cursor;
    this.#ringBytes = parts.region.dataBytes;
  }

  /** Fences the primary before, if it is there still. Formats a blank region. `access` opens all of it to write. */
  static async open(access: RegionAccess, random: Random, signal: AbortSignal): Promise<PairStore> {
    const halves = halvesOf(access);
    const state = await openWriter(halves.state, 'overwrite', random, signal);
    const log = await openWriter(halves.log, 'append', random, signal);
    const region = await readRegionRecord(halves.log);
    const readOn = headPosition(region);
    const start = { cleared: readOn.sequence - 1, readOn };
    const cursor = await Cursor.open(halves.log, region, { index: 0, name: 'state', restart: false }, start);
    const saved = await readSaved(halves.state, signal);
    return new PairStore(access, halves, { state, log, cursor, region }, saved);
  }

  /** Updates after that one, to the end. */
  async *updates(after: number, signal: AbortSignal): AsyncGenerator<StoredUpdate, void, void> {
    const reader = await CheckpointReader.open(this.#halves.log);
    let last = after;
    for (;;) {
      const portion = await reader.drain({ signal });
      if (portion.length === 0) return;
      for (const { sequence, value } of portion) {
        this.#givenBytes += recordBytes(value.length);
        if (sequence <= last) continue;
        checkFirst(sequence, last);
        last = sequence;
        yield { sequence, bytes: value };
      }
    }
  }

  /** ERR_HOLDFAST_BAD_ARGUMENT if an update is too long for the region. */
  check(update: Uint8Array): void {
    const mostBytes = payloadBytesMax(this.#ringBytes);
    if (update.length > mostBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `an update of ${update.length} bytes is too long for the pair's region; it takes ${mostBytes}`,
      );
  }

  /** Resolves with the update's sequence number when it is durable, and all before it are. */
  append(update: Uint8Array): Promise<number> {
    this.#givenBytes += recordBytes(update.length);
    this.#last = this.#log.append(update);
    return this.#last;
  }

  /** Resolves when all that has been appended up to this sequence number is durable. */
  async durable(sequence: number): Promise<void> {
    if (this.#log.durableSequence < sequence) await this.#last;
  }

  /** Whether the update can be appended before a state has been saved. */
  hasRoom(update: Uint8Array): boolean {
    const unsavedBytes = this.#givenBytes - this.#savedBytes;
    // The rest of the ring is left unused if the update does not fit in there: less than the update takes.
    const mostBytes = 2 * recordBytes(update.length);
    return unsavedBytes === 0 || unsavedBytes + mostBytes <= this.#ringBytes * UNSAVED_SHARE_MAX;
  }

  get saveIsDue(): boolean {
    return this.#givenBytes - this.#savedBytes >= this.#ringBytes * SAVED_SHARE;
  }

  /** Saves a state that contains all updates, of which this is the last one; then they need not be kept any more. */
  async save(sequence: number, state: Uint8Array): Promise<void> {
    const givenBytes = this.#givenBytes;
    await this.durable(sequence);
    await this.#state.overwrite(encodeSavedState(sequence, state));
    await this.#cursor.write({ cleared: sequence });
    this.#savedBytes = givenBytes;
  }

  async close(): Promise<void> {
    await Promise.allSettled([this.#log.close(), this.#state.close()]);
  }
}

async function openWriter(
  access: RegionAccess,
  mode: 'overwrite' | 'append',
  random: Random,
  signal: AbortSignal,
): Promise<CheckpointWriter> {
  try {
    return await CheckpointWriter.open(access, { ...NO_LIMITS, signal });
  } catch (error) {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISSING')) throw error;
  }
  await formatCheckpointRegion(access, { mode, cursors: 1, random });
  return CheckpointWriter.open(access, { ...NO_LIMITS, signal });
}
