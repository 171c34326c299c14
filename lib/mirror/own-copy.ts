/**
 * The own copy of a member: its device behind the activity log and a watch. What its clients write and what the other
 * member's engine sends both go through here.
 *
 * Invariants:
 * - A range is in the log, durably, before a write to it begins (`enter`), here and before the other copy hears of it:
 *   whatever one copy may have and the other not is in the log of one of them.
 * - The log hears of every flush that has succeeded, and of nothing else that makes data durable.
 * - Every failure is told; a request that takes longer than `timeoutMs` is one. A late write is then failed;
 *   a late read is left to end by itself, since the device may still fill the caller's buffer.
 */
import type { Clock } from '../base/clock.ts';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { SharedRun } from '../storage/shared-run.ts';
import type { ActivityLog } from './activity-log.ts';
import { Watch } from './watch.ts';

export interface OwnCopyOptions {
  readonly device: BlockDevice;
  readonly log: ActivityLog;
  readonly clock: Clock;
  readonly timeoutMs: number;
  /** The device has failed a request. Called for every failure. */
  readonly onFailure: (error: HoldfastError) => void;
}

/** What throws at once fails as what fails later. */
function started(action: () => Promise<void>): Promise<void> {
  try {
    return action();
  } catch (error) {
    return Promise.reject(error);
  }
}

export class OwnCopy {
  readonly device: BlockDevice;
  readonly log: ActivityLog;
  readonly #options: OwnCopyOptions;
  readonly #watch: Watch;
  readonly #flush: SharedRun;
  readonly #changing = new Set<(error: HoldfastError) => void>();

  constructor(options: OwnCopyOptions) {
    this.#options = options;
    this.device = options.device;
    this.log = options.log;
    this.#watch = new Watch(options.clock, options.timeoutMs, () => this.#late());
    this.#flush = new SharedRun(() => this.#flushNow());
  }

  /**
   * A write to the range may begin when this has resolved; at once if it is undefined. `leave` it when the write has
   * ended. If it rejects there is nothing to leave.
   */
  enter(offset: number, length: number): Promise<void> | undefined {
    const named = this.log.enter(offset, length);
    return named && this.attempt(() => named);
  }

  leave(offset: number, length: number): void {
    this.log.leave(offset, length);
  }

  /** Enters the range, changes it, leaves it. */
  change(offset: number, length: number, action: (device: BlockDevice) => Promise<void>): Promise<void> {
    const named = this.enter(offset, length);
    const run = () => this.#attempt(() => action(this.device), offset, length);
    return named === undefined ? run() : named.then(run);
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    const request = this.#watch.begin();
    try {
      await this.device.read(offset, buffer);
    } catch (error) {
      throw this.#failed(error);
    } finally {
      this.#watch.end(request);
    }
  }

  /** A write, or zeroes, to a range that has been entered. */
  write(action: (device: BlockDevice) => Promise<void>): Promise<void> {
    return this.attempt(() => action(this.device));
  }

  /** Makes durable what was written before the call. */
  flush(): Promise<void> {
    return isPlanted('dropped-flush') ? Promise.resolve() : this.#flush.run();
  }

  /** The last request has ended: nothing is watched any more, and nothing is taken out of the log. */
  async close(): Promise<void> {
    this.#watch.stop();
    await this.log.close();
  }

  async #flushNow(): Promise<void> {
    const mark = this.log.flushBegins();
    await this.attempt(() => this.device.flush());
    this.log.flushSucceeded(mark);
  }

  /** Anything else that changes the device. It fails when it takes too long, as a write does. */
  attempt(action: () => Promise<void>): Promise<void> {
    return this.#attempt(action, 0, 0);
  }

  /** Leaves the range when it has ended, if there is one. */
  #attempt(action: () => Promise<void>, offset: number, length: number): Promise<void> {
    const request = this.#watch.begin();
    return new Promise<void>((resolve, reject) => {
      this.#changing.add(reject);
      const ended = () => {
        this.#watch.end(request);
        this.#changing.delete(reject);
        if (length > 0) this.log.leave(offset, length);
      };
      started(action).then(
        () => {
          ended();
          resolve();
        },
        (error: unknown) => {
          ended();
          reject(this.#failed(error));
        },
      );
    });
  }

  #late(): void {
    const error = new HoldfastError(
      'ERR_HOLDFAST_TIMEOUT',
      `${this.device.name} has not answered for ${this.#options.timeoutMs / 1000} s; look at the device and its cables`,
    );
    this.#options.onFailure(error);
    for (const giveUp of [...this.#changing]) giveUp(error);
  }

  #failed(error: unknown): HoldfastError {
    const failure = isHoldfastError(error)
      ? error
      : new HoldfastError('ERR_HOLDFAST_IO', `${this.device.name} failed: ${String(error)}`, { cause: error });
    this.#options.onFailure(failure);
    return failure;
  }
}
