/**
 * The writer's end of two slots: one checkpoint is under way at a time. While it is, only the newest of those that come
 * is kept: it stands for all that came before it, and whoever waits for one of them is told when it is durable.
 *
 * The first store that fails ends the log, as in append-log.ts.
 */
import { HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { WriterLimits } from './checkpoint-writer.ts';
import { writeRange, writerError } from './commands.ts';
import { FENCE_ADDRESS, type RegionRecord } from './layout.ts';
import type { Guard, RegionAccess } from './one-sided.ts';
import { encodeSlot, SLOT_HEADER_BYTES, slotAddress, slotOf } from './slots.ts';

interface Waiter {
  readonly resolve: (sequence: number) => void;
  readonly reject: (error: unknown) => void;
}

export class SlotLog {
  readonly #access: RegionAccess;
  readonly #region: RegionRecord;
  readonly #limits: WriterLimits;
  readonly #guard: Guard;
  /** Of the last checkpoint that was begun, and of the last one that is durable. */
  #sequence: number;
  #durable: number;
  #next: Uint8Array | undefined;
  #waiters: Waiter[] = [];
  #running: Promise<void> | undefined;
  #failure: { readonly error: unknown } | undefined;
  #closed = false;

  /** `sequence`: of the newest checkpoint that is there, 0 if there is none. */
  constructor(access: RegionAccess, region: RegionRecord, sequence: number, limits: WriterLimits) {
    this.#access = access;
    this.#region = region;
    this.#limits = limits;
    this.#sequence = sequence;
    this.#durable = sequence;
    this.#guard = { address: FENCE_ADDRESS, expected: BigInt(region.epoch) };
  }

  get durable(): number {
    return this.#durable;
  }

  overwrite(checkpoint: Uint8Array, signal: AbortSignal | undefined): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#check(checkpoint, signal);
      const waiter = signal === undefined ? { resolve, reject } : cancellable({ resolve, reject }, signal);
      this.#next = checkpoint;
      this.#waiters.push(waiter);
      this.#running ??= this.#run();
    });
  }

  #check(checkpoint: Uint8Array, signal: AbortSignal | undefined): void {
    if (this.#failure !== undefined) throw this.#failure.error;
    if (this.#closed)
      throw new HoldfastError('ERR_HOLDFAST_CLOSED', 'the checkpoint writer is closed; open another one');
    const mostBytes = this.#region.dataBytes - SLOT_HEADER_BYTES;
    if (checkpoint.length > mostBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `a checkpoint of ${checkpoint.length} bytes is too long for this region; it takes ${mostBytes}`,
      );
    if (this.#waiters.length >= this.#limits.waitingRecordsMax)
      throw new HoldfastError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${this.#waiters.length} wait already for their checkpoints; await some of them first`,
      );
    if (signal?.aborted)
      throw new HoldfastError('ERR_HOLDFAST_ABORTED', 'an overwrite was cancelled', { cause: signal.reason });
  }

  async #run(): Promise<void> {
    // What comes in the same turn of the event loop is one checkpoint.
    await Promise.resolve();
    while (this.#next !== undefined && this.#failure === undefined) {
      const checkpoint = this.#next;
      const waiters = this.#waiters;
      this.#next = undefined;
      this.#waiters = [];
      const sequence = ++this.#sequence;
      try {
        await this.#store(sequence, checkpoint);
        this.#durable = sequence;
        for (const { resolve } of waiters) resolve(sequence);
      } catch (error) {
        this.#failure = { error: writerError(this.#access, error) };
        for (const { reject } of [...waiters, ...this.#waiters.splice(0)]) reject(this.#failure.error);
      }
    }
    this.#running = undefined;
  }

  async #store(sequence: number, checkpoint: Uint8Array): Promise<void> {
    const address = slotAddress(this.#region, slotOf(sequence));
    const bytes = encodeSlot(this.#region, sequence, this.#region.epoch, checkpoint);
    const persist = !isPlanted('slot-reused-before-persist');
    await writeRange(this.#access, address, bytes, this.#guard, persist);
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#running;
  }
}

/** Who has cancelled waits no more; the checkpoint may be written all the same. */
function cancellable(waiter: Waiter, signal: AbortSignal): Waiter {
  const cancel = () =>
    waiter.reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'an overwrite was cancelled', { cause: signal.reason }));
  signal.addEventListener('abort', cancel, { once: true });
  const over = () => signal.removeEventListener('abort', cancel);
  return {
    resolve: (sequence) => {
      over();
      waiter.resolve(sequence);
    },
    reject: (error) => {
      over();
      waiter.reject(error);
    },
  };
}
