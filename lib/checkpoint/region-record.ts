/** The record that says how a region is laid out: reading it beside a writer that changes it, and making it. */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { type Random, systemRandom } from '../base/random.ts';
import { SuperblockPair } from '../storage/superblock-pair.ts';
import { writeRange } from './commands.ts';
import { createCursor } from './cursors.ts';
import {
  type CheckpointMode,
  CURSORS_MAX,
  cursorAddress,
  dataAddressAfter,
  decodeRegion,
  encodeRegion,
  FENCE_ADDRESS,
  FORMATTING_ADDRESS,
  LINE_BYTES,
  PAGE_BYTES,
  PAIR_BYTES,
  PAIR_LAYOUT,
  REGION_FORMAT,
  type RegionRecord,
  seedChecksum,
} from './layout.ts';
import type { Guard, RegionAccess } from './one-sided.ts';
import { RangeDevice } from './range-device.ts';

/** A reader may meet a writer at the first copy, and then at the second: not often. */
const LOOKS_MAX = 16;
const WORD_BYTES = 8;
const FORMATTING = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);

export function recordDevice(access: RegionAccess, guard?: Guard): RangeDevice {
  return new RangeDevice(access, {
    name: `the checkpoint region on ${access.unit}`,
    address: 0,
    lengthBytes: PAIR_BYTES,
    ...(guard === undefined ? { readOnly: true } : { guard }),
  });
}

/** The record as one of its copies has it, perhaps not durable yet. */
export async function readRegionRecord(access: RegionAccess): Promise<RegionRecord> {
  checkReach(access);
  const open = () => SuperblockPair.open(recordDevice(access), REGION_FORMAT, PAIR_LAYOUT);
  // In this order: a pair that is read before the word is 0 again may be the one of before the formatting.
  await checkFormatted(access);
  const pair = await openWatchfully(open);
  return decodeOrThrow(access, pair.payload);
}

async function checkFormatted(access: RegionAccess): Promise<void> {
  const word = new Uint8Array(WORD_BYTES);
  await access.read(FORMATTING_ADDRESS, word);
  if (word.every((byte) => byte === 0)) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_METADATA_MISSING',
    `the region on ${access.unit} is being formatted, or that was cut short; format it again if nobody does`,
  );
}

/** Opens a pair that another may be writing: one copy is whole at every moment, but not each at the moment of its look. */
export async function openWatchfully(open: () => Promise<SuperblockPair>): Promise<SuperblockPair> {
  for (let look = 1; ; look++) {
    try {
      return await open();
    } catch (error) {
      if (look === LOOKS_MAX || !isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED')) throw error;
    }
  }
}

export function decodeOrThrow(access: RegionAccess, payload: Uint8Array): RegionRecord {
  const record = decodeRegion(payload, access.range.lengthBytes);
  if (record !== undefined) return record;
  throw new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    `the region on ${access.unit} is laid out for checkpoints in a way that cannot be, or the key opens too little of ` +
      'it; open all of it, or format it anew',
  );
}

function checkReach(access: RegionAccess): void {
  if (access.range.base === 0 && access.range.lengthBytes >= cursorAddress(0)) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_OUT_OF_RANGE',
    `the key opens ${access.range.lengthBytes} bytes at ${access.range.base} of the region on ${access.unit}; ` +
      'checkpoints need all of it, from address 0 on',
  );
}

/** How a region is laid out for checkpoints. */
export interface CheckpointFormatOptions {
  readonly mode: CheckpointMode;
  /** How many backups can follow at one time, 1 to 64; default 8. Each takes 8 KiB. Only of use for `append`. */
  readonly cursors?: number;
  /** Room for one checkpoint, bytes; only for `overwrite`, default as much as there is. */
  readonly checkpointBytesMax?: number;
  /** Also if there are checkpoints: they are lost. Default false. */
  readonly replace?: boolean;
  readonly random?: Random;
}

/**
 * Makes a region ready for checkpoints. If this is cut short, it is as it was or no checkpoint region; a writer that
 * still works with the former one is fenced.
 *
 * @throws HoldfastError ERR_HOLDFAST_DEVICE_HAS_DATA if it is one already and `replace` is not set,
 *   ERR_HOLDFAST_BAD_ARGUMENT, ERR_HOLDFAST_DEVICE_TOO_SMALL, and what the commands throw.
 */
export async function formatCheckpointRegion(access: RegionAccess, options: CheckpointFormatOptions): Promise<void> {
  const { cursors = 8, mode, replace = false, random = systemRandom } = options;
  if (!Number.isInteger(cursors) || cursors < 1 || cursors > CURSORS_MAX)
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a region has 1 to ${CURSORS_MAX} cursors, not ${cursors}`);
  checkReach(access);
  const dataBytes = dataBytesOf(access, cursors, options);
  if (!replace) await refuseFormatted(access);
  const id = new Uint8Array(16);
  random.fill(id);
  const formatId = Buffer.from(id).toString('hex');
  const epoch = await raiseFence(access, 0);
  const guard = { address: FENCE_ADDRESS, expected: BigInt(epoch) };
  const device = recordDevice(access, guard);
  await writeRange(access, FORMATTING_ADDRESS, FORMATTING, guard, true);
  if (mode === 'overwrite') {
    const blank = new Uint8Array(LINE_BYTES);
    for (const slot of [0, 1])
      await writeRange(access, dataAddressAfter(cursors) + slot * dataBytes, blank, guard, true);
  }
  const record: RegionRecord = {
    formatId,
    mode,
    cursorCount: cursors,
    dataAddress: dataAddressAfter(cursors),
    dataBytes,
    epoch,
    firstSequence: 1,
    head: { sequence: 1, offset: 0, previousChecksum: seedChecksum(formatId) },
  };
  for (let index = 0; index < cursors; index++) await createCursor(access, record, index, guard);
  await SuperblockPair.create(device, REGION_FORMAT, PAIR_LAYOUT, encodeRegion(record));
  await writeRange(access, FORMATTING_ADDRESS, new Uint8Array(WORD_BYTES), guard, true);
}

function dataBytesOf(access: RegionAccess, cursors: number, options: CheckpointFormatOptions): number {
  const { mode, checkpointBytesMax } = options;
  const slots = mode === 'overwrite' ? 2 : 1;
  const restBytes = access.range.lengthBytes - dataAddressAfter(cursors);
  const mostBytes = Math.floor(restBytes / slots / PAGE_BYTES) * PAGE_BYTES;
  const isSize = (size: number) => Number.isSafeInteger(size) && size > 0;
  if (checkpointBytesMax !== undefined && (mode === 'append' || !isSize(checkpointBytesMax)))
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `checkpointBytesMax is ${checkpointBytesMax}; it is a whole number of bytes, for the mode overwrite only`,
    );
  const wantedBytes =
    checkpointBytesMax === undefined ? mostBytes : Math.ceil((checkpointBytesMax + 64) / PAGE_BYTES) * PAGE_BYTES;
  if (mostBytes >= PAGE_BYTES && wantedBytes <= mostBytes) return wantedBytes;
  throw new HoldfastError(
    'ERR_HOLDFAST_DEVICE_TOO_SMALL',
    `the region on ${access.unit} has ${access.range.lengthBytes} bytes, too few for checkpoints with ${cursors} ` +
      `cursors; it needs ${dataAddressAfter(cursors) + slots * Math.max(wantedBytes, PAGE_BYTES)}`,
  );
}

async function refuseFormatted(access: RegionAccess): Promise<void> {
  try {
    await readRegionRecord(access);
  } catch (error) {
    if (isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISSING')) return;
    throw error;
  }
  throw new HoldfastError(
    'ERR_HOLDFAST_DEVICE_HAS_DATA',
    `the region on ${access.unit} holds checkpoints already; set replace to lose them`,
  );
}

/**
 * Raises the fence above what it is, and above `least`. From then on no store of an older writer arrives, and durably
 * so. Gives the new epoch.
 */
export async function raiseFence(access: RegionAccess, least: number): Promise<number> {
  let found = await readFence(access);
  for (;;) {
    const newest = found > BigInt(least) ? found : BigInt(least);
    if (newest >= BigInt(Number.MAX_SAFE_INTEGER))
      throw new HoldfastError(
        'ERR_HOLDFAST_METADATA_DAMAGED',
        `the fence of the region on ${access.unit} is ${newest}, which no writer has put there; make the region anew`,
      );
    const before = await access.compareAndSwap(FENCE_ADDRESS, found, newest + 1n, { persist: true });
    if (before === found) return Number(newest + 1n);
    found = before;
  }
}

export async function readFence(access: RegionAccess): Promise<bigint> {
  const word = new Uint8Array(8);
  await access.read(FENCE_ADDRESS, word);
  return new DataView(word.buffer).getBigUint64(0, true);
}
