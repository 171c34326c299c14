/** The cursors of a region: how far each backup has come. Each is written by its backup alone, and read by the writer. */
import { HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { decodeSuperblock, SuperblockPair } from '../storage/superblock-pair.ts';
import { readRange } from './commands.ts';
import {
  CURSOR_FORMAT,
  type CursorRecord,
  cursorAddress,
  decodeCursor,
  encodeCursor,
  PAGE_BYTES,
  PAIR_BYTES,
  PAIR_LAYOUT,
  type RegionRecord,
} from './layout.ts';
import type { Guard, RegionAccess } from './one-sided.ts';
import { RangeDevice } from './range-device.ts';
import { openWatchfully } from './region-record.ts';

const NOBODY = '-';

export function cursorsBytes(region: RegionRecord): number {
  return region.cursorCount * PAIR_BYTES;
}

/**
 * All that are registered, as they are durable: what a backup has cleared and could lose again must not be dropped.
 * A cursor that makes no sense is none.
 */
export async function readCursors(
  access: RegionAccess,
  region: RegionRecord,
  signal?: AbortSignal,
): Promise<CursorRecord[]> {
  const bytes = new Uint8Array(cursorsBytes(region));
  if (!isPlanted('cursor-read-before-durable'))
    await access.persist(cursorAddress(0), bytes.length, signal && { signal });
  await readRange(access, cursorAddress(0), bytes, signal);
  return Array.from({ length: region.cursorCount }, (_, index) => index)
    .map((index) => decodePair(bytes.subarray(index * PAIR_BYTES, (index + 1) * PAIR_BYTES), region, index))
    .filter((cursor) => cursor !== undefined && cursor.state === 'registered') as CursorRecord[];
}

/** The newer one of the two copies. While one is being written, the other one is whole. */
function decodePair(bytes: Uint8Array, region: RegionRecord, index: number): CursorRecord | undefined {
  const copies = PAIR_LAYOUT.copyOffsets.map((at) => decodeSuperblock(bytes.subarray(at, at + PAGE_BYTES), at).frame);
  const [first, second] = copies.map((frame) => (frame?.formatName === CURSOR_FORMAT.name ? frame : undefined));
  const newer = (first?.sequence ?? 0) >= (second?.sequence ?? 0) ? first : second;
  return newer === undefined ? undefined : decodeCursor(newer.payload, region, index);
}

/** The cursor of one backup, to be written by it. */
export class Cursor {
  readonly #pair: SuperblockPair;
  /** It has been registered just now. */
  readonly isNew: boolean;
  #record: CursorRecord;

  private constructor(pair: SuperblockPair, record: CursorRecord, isNew: boolean) {
    this.isNew = isNew;
    this.#pair = pair;
    this.#record = record;
  }

  /** Takes up the cursor, or registers it: with what `start` gives, durable when resolved. */
  static async open(
    access: RegionAccess,
    region: RegionRecord,
    wanted: { readonly index: number; readonly name: string; readonly restart: boolean },
    start: Pick<CursorRecord, 'cleared' | 'readOn'>,
  ): Promise<Cursor> {
    const { index, name, restart } = wanted;
    const device = cursorDevice(access, index);
    const fresh: CursorRecord = { formatId: region.formatId, index, state: 'registered', name, ...start };
    const pair = await openPair(device);
    const found = decodeCursor(pair.payload, region, index);
    if (found?.state === 'registered' && found.name !== name)
      throw new HoldfastError(
        'ERR_HOLDFAST_BUSY',
        `cursor ${index} on ${access.unit} belongs to the backup ${found.name}; take another one for ${name}, or retire it`,
      );
    const isToBeKept = found?.state === 'registered' && !restart;
    const cursor = new Cursor(pair, isToBeKept ? found : fresh, !isToBeKept);
    if (isToBeKept) await pair.repair();
    else await cursor.write(start);
    return cursor;
  }

  get record(): CursorRecord {
    return this.#record;
  }

  /** Durable when resolved. */
  async write(change: Partial<Pick<CursorRecord, 'cleared' | 'readOn' | 'state'>>): Promise<void> {
    const record = { ...this.#record, ...change };
    await this.#pair.write(encodeCursor(record));
    this.#record = record;
  }
}

/** Retires a cursor: nothing is kept for its backup any more. True if it was registered. */
export async function retireCursor(access: RegionAccess, region: RegionRecord, index: number): Promise<boolean> {
  const pair = await openPair(cursorDevice(access, index));
  const found = decodeCursor(pair.payload, region, index);
  if (found?.state !== 'registered') return false;
  await pair.write(encodeCursor({ ...found, state: 'retired' }));
  return true;
}

/** As the formatting leaves it: of no backup. */
export async function createCursor(
  access: RegionAccess,
  region: RegionRecord,
  index: number,
  guard?: Guard,
): Promise<void> {
  const { formatId, head } = region;
  const readOn = { ...head, epoch: 0 };
  const record: CursorRecord = { formatId, index, state: 'retired', name: NOBODY, cleared: head.sequence - 1, readOn };
  await SuperblockPair.create(cursorDevice(access, index, guard), CURSOR_FORMAT, PAIR_LAYOUT, encodeCursor(record));
}

/** As `createCursor`, if nothing was ever there, or that was cut short: then the second page, written last, is blank. */
export async function createCursorIfBlank(access: RegionAccess, region: RegionRecord, index: number): Promise<void> {
  const bytes = new Uint8Array(PAIR_BYTES);
  await readRange(access, cursorAddress(index), bytes);
  const isWhole = decodeSuperblock(bytes.subarray(0, PAGE_BYTES), 0).frame !== undefined;
  if (isWhole || bytes.subarray(PAGE_BYTES).some((byte) => byte !== 0)) return;
  await createCursor(access, region, index);
}

function cursorDevice(access: RegionAccess, index: number, guard?: Guard): RangeDevice {
  return new RangeDevice(access, {
    name: `cursor ${index} on ${access.unit}`,
    address: cursorAddress(index),
    lengthBytes: PAIR_BYTES,
    ...(guard && { guard }),
  });
}

function openPair(device: RangeDevice): Promise<SuperblockPair> {
  return openWatchfully(() => SuperblockPair.open(device, CURSOR_FORMAT, PAIR_LAYOUT));
}
