/**
 * CheckpointWriter: the primary's end of a region with checkpoints.
 *
 * Invariants:
 * - There is one writer: opening one fences the one before, whether its key has been revoked or not. What the former
 *   one has been told is durable the new one finds; what it still tries arrives nowhere.
 * - A checkpoint is acknowledged when it survives the power cut of the unit, and all before it do.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { SuperblockPair } from '../storage/superblock-pair.ts';
import { AppendLog, type WhenFull } from './append-log.ts';
import { findWitness, scanChain } from './chain-scan.ts';
import { bytesCodec, type Codec } from './codec.ts';
import { writerError } from './commands.ts';
import {
  type CheckpointMode,
  encodeRegion,
  FENCE_ADDRESS,
  headPosition,
  PAIR_LAYOUT,
  REGION_FORMAT,
  type RegionRecord,
} from './layout.ts';
import type { RegionAccess } from './one-sided.ts';
import { decodeOrThrow, raiseFence, readFence, readRegionRecord, recordDevice } from './region-record.ts';
import { RingSpace } from './ring-space.ts';
import { SlotLog } from './slot-log.ts';
import { findNewest } from './slot-look.ts';

export interface WriterLimits {
  readonly inFlightRecordsMax: number;
  readonly inFlightBytesMax: number;
  readonly waitingRecordsMax: number;
  readonly waitingBytesMax: number;
}

const MIB = 1024 * 1024;
const DEFAULT_LIMITS: WriterLimits = {
  inFlightRecordsMax: 512,
  inFlightBytesMax: 4 * MIB,
  waitingRecordsMax: 4096,
  waitingBytesMax: 64 * MIB,
};

/** How values become checkpoints, what happens when the region is full, and how much may be under way. */
export interface CheckpointWriterOptions<T = Uint8Array> {
  /** What a checkpoint is; default bytes. */
  readonly codec?: Codec<T>;
  /** Default `block`. */
  readonly whenFull?: WhenFull;
  /** Sent and not acknowledged, together; defaults 512 records and 4 MiB. */
  readonly inFlightRecordsMax?: number;
  readonly inFlightBytesMax?: number;
  /** Of those that wait to be sent; one more is refused with ERR_HOLDFAST_QUEUE_FULL. Defaults 4096 and 64 MiB. */
  readonly waitingRecordsMax?: number;
  readonly waitingBytesMax?: number;
  /**
   * Opens a series of which checkpoints that were acknowledged are damaged: they are lost, and all after them. Default
   * false.
   */
  readonly acceptLoss?: boolean;
  /** Cancels the opening. */
  readonly signal?: AbortSignal;
}

/** How one checkpoint is given. */
export interface CheckpointOptions {
  /** Cancels the waiting; a checkpoint that is under way may be there all the same. */
  readonly signal?: AbortSignal;
}

/** Writes checkpoints to a region that `formatCheckpointRegion` has made ready. */
export class CheckpointWriter<T = Uint8Array> implements AsyncDisposable {
  readonly mode: CheckpointMode;
  /** Of this writer; every later one has a higher one. */
  readonly epoch: number;
  readonly #log: AppendLog | SlotLog;
  readonly #codec: Codec<T>;

  private constructor(region: RegionRecord, log: AppendLog | SlotLog, codec: Codec<T>) {
    this.mode = region.mode;
    this.epoch = region.epoch;
    this.#log = log;
    this.#codec = codec;
  }

  /**
   * Takes the region over: fences the writer before, reads to the end of what it has left, and makes that durable. The
   * key must have the right to write all of the region.
   *
   * @throws HoldfastError ERR_HOLDFAST_METADATA_MISSING if the region has not been formatted,
   *   ERR_HOLDFAST_METADATA_DAMAGED (also if an acknowledged checkpoint is), ERR_HOLDFAST_FENCED if another one opens at the same time, ERR_HOLDFAST_BAD_ARGUMENT
   *   (limits), and what the commands throw.
   */
  static open(access: RegionAccess, options?: CheckpointWriterOptions): Promise<CheckpointWriter>;
  static open<T>(
    access: RegionAccess,
    options: CheckpointWriterOptions<T> & { readonly codec: Codec<T> },
  ): Promise<CheckpointWriter<T>>;
  static async open(
    access: RegionAccess,
    options: CheckpointWriterOptions<unknown> = {},
  ): Promise<CheckpointWriter<unknown>> {
    const limits = limitsOf(options);
    try {
      return await CheckpointWriter.#open(access, options, limits);
    } catch (error) {
      throw writerError(access, error);
    }
  }

  static async #open(
    access: RegionAccess,
    options: CheckpointWriterOptions<unknown>,
    limits: WriterLimits,
  ): Promise<CheckpointWriter<unknown>> {
    const before = await readRegionRecord(access);
    const epoch = isPlanted('fence-not-raised') ? before.epoch : await raiseFence(access, before.epoch);
    try {
      return await CheckpointWriter.#takeOver(access, epoch, options, limits);
    } catch (error) {
      // What seems to be damage may be what the next writer does meanwhile.
      if (isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED') && (await readFence(access)) !== BigInt(epoch))
        throw new HoldfastError('ERR_HOLDFAST_FENCED', `the fence is above ${epoch}`, { cause: error });
      throw error;
    }
  }

  static async #takeOver(
    access: RegionAccess,
    epoch: number,
    options: CheckpointWriterOptions<unknown>,
    limits: WriterLimits,
  ): Promise<CheckpointWriter<unknown>> {
    const { signal, whenFull = 'block', codec = bytesCodec as Codec<unknown> } = options;
    const guard = { address: FENCE_ADDRESS, expected: BigInt(epoch) };
    // Now nobody else changes it.
    const pair = await SuperblockPair.open(recordDevice(access, guard), REGION_FORMAT, PAIR_LAYOUT);
    const left = decodeOrThrow(access, pair.payload);
    if (left.mode === 'overwrite') {
      const newest = await findNewest(access, left, signal);
      const sequence = newest?.sequence ?? 0;
      const region = { ...left, epoch, firstSequence: sequence + 1 };
      await pair.write(encodeRegion(region));
      return new CheckpointWriter(region, new SlotLog(access, region, sequence, limits), codec);
    }
    const space = await findTail(access, left, signal);
    if (options.acceptLoss !== true) await refuseLoss(access, left, space);
    const region = { ...left, epoch, firstSequence: space.tail.sequence };
    await pair.write(encodeRegion(region));
    return new CheckpointWriter(region, new AppendLog(access, pair, region, space, whenFull, limits), codec);
  }

  /** Sequence number of the newest checkpoint that is known to be durable; 0 if there is none. */
  get durableSequence(): number {
    return this.#log.durable;
  }

  /**
   * Adds a checkpoint to the series. Resolves with its sequence number when it is durable, and all before it are. Bytes
   * are left unchanged until then; a value is taken as it is now.
   *
   * @throws HoldfastError ERR_HOLDFAST_FENCED (another writer has taken over), ERR_HOLDFAST_NO_SPACE (only with
   *   `whenFull: 'error'`), ERR_HOLDFAST_QUEUE_FULL, ERR_HOLDFAST_BAD_ARGUMENT (too long; a region for `overwrite`),
   *   ERR_HOLDFAST_ABORTED, ERR_HOLDFAST_CLOSED; ERR_HOLDFAST_PEER_LOST or ERR_HOLDFAST_FLUSH_FAILED if it may be there
   *   or not: every later one fails the same way then, and the writer is to be opened anew.
   */
  append(value: T, options?: CheckpointOptions): Promise<number> {
    const log = this.#log;
    if (!(log instanceof AppendLog)) return Promise.reject(this.#wrongMode('append'));
    return this.#give(value, (bytes) => log.append(bytes, options?.signal));
  }

  /**
   * Replaces the checkpoint. Resolves with its sequence number when it, or a later one that came meanwhile and replaces
   * it too, is durable. Bytes are left unchanged until then.
   *
   * @throws HoldfastError as `append`, but for ERR_HOLDFAST_NO_SPACE.
   */
  overwrite(value: T, options?: CheckpointOptions): Promise<number> {
    const log = this.#log;
    if (!(log instanceof SlotLog)) return Promise.reject(this.#wrongMode('overwrite'));
    return this.#give(value, (bytes) => log.overwrite(bytes, options?.signal));
  }

  #give(value: T, give: (bytes: Uint8Array) => Promise<number>): Promise<number> {
    try {
      return give(this.#codec.encode(value));
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #wrongMode(wanted: CheckpointMode): HoldfastError {
    return new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `the region was formatted to ${this.mode}, not to ${wanted}; use ${this.mode}(), or format another region`,
    );
  }

  /** Waits for what is under way; what waits for space is rejected with ERR_HOLDFAST_CLOSED. */
  close(): Promise<void> {
    return this.#log.close();
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Everything in the ring is made durable, then the chain is followed to its end: nothing of it goes away any more. */
async function findTail(access: RegionAccess, region: RegionRecord, signal?: AbortSignal): Promise<RingSpace> {
  await access.persist(region.dataAddress, region.dataBytes, signal && { signal });
  const space = new RingSpace(region.dataBytes, headPosition(region));
  const visit = (_record: unknown, after: Parameters<RingSpace['advance']>[1], takenBytes: number) => {
    space.advance(takenBytes, after);
    return true;
  };
  await scanChain(access, region, headPosition(region), visit, signal && { signal });
  return space;
}

/** A series that was cut short by damage must not go on as if nothing had been there. */
async function refuseLoss(access: RegionAccess, region: RegionRecord, { tail }: RingSpace): Promise<void> {
  const witness = await findWitness(access, region, tail);
  if (witness === undefined) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    `checkpoint ${tail.sequence} on ${access.unit} was acknowledged, as checkpoint ${witness.sequence} says, and is ` +
      'damaged; take the region from another copy, or set acceptLoss to lose it and all after it',
  );
}

function limitsOf(options: CheckpointWriterOptions<unknown>): WriterLimits {
  const limits = { ...DEFAULT_LIMITS };
  for (const name of Object.keys(limits) as (keyof WriterLimits)[]) {
    const limit = options[name];
    if (limit === undefined) continue;
    if (!Number.isSafeInteger(limit) || limit < 1)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${name} is ${limit}; it must be a whole number from 1`);
    limits[name] = limit;
  }
  return limits;
}
