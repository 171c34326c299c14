/**
 * A key to one leg of a mirrored region, with the commands that are under way by it: whether the leg answers, and that
 * nothing of them is left once the leg has been given up.
 *
 * Invariants:
 * - A session executes its commands in the order of the calls. So it is the oldest one that counts, from when it has
 *   become the oldest: a long queue on a slow line is no hang.
 * - Time is counted in ticks of the caller's: a process that stood still has missed one, however long it was. What came
 *   for it meanwhile is seen before the next.
 * - Once given up, what has not been sent is not sent any more, and no answer is written into a reader's bytes.
 */
import { setMaxListeners } from 'node:events';
import type { HoldfastError } from '../base/errors.ts';
import type { RegionAccess } from './one-sided.ts';

/** A command has this many ticks, whole ones, for each LENGTH_BYTES that it is about. */
export const TICKS = 4;
const LENGTH_BYTES = 16 * 1024 * 1024;

/** Commands are given the access, and the signal that ends when the leg is given up. */
export type LegCommand<Result> = (access: RegionAccess, signal: AbortSignal) => Promise<Result>;

interface UnderWay {
  readonly lengthBytes: number;
}

export class LegLink {
  readonly access: RegionAccess;
  readonly #onBusy: () => void;
  readonly #end = new AbortController();
  /** In the order of the calls. */
  readonly #underWay = new Set<UnderWay>();
  #oldest: UnderWay | undefined;
  /** Ticks that `#oldest` has seen. */
  #ticks = 0;
  #failure: HoldfastError | undefined;

  /** `onBusy`: from now on something is under way. */
  constructor(access: RegionAccess, onBusy: () => void) {
    this.access = access;
    this.#onBusy = onBusy;
    // One for each command under way: how many there are, the gate bounds.
    setMaxListeners(0, this.#end.signal);
  }

  /** Why it has been given up. */
  get failure(): HoldfastError | undefined {
    return this.#failure;
  }

  get isBusy(): boolean {
    return this.#underWay.size > 0;
  }

  /** A command that the leg answers as soon as it can. Rejects with `failure` if the leg is given up meanwhile. */
  run<Result>(lengthBytes: number, command: LegCommand<Result>): Promise<Result> {
    const underWay = { lengthBytes };
    this.#underWay.add(underWay);
    if (this.#underWay.size === 1) this.#onBusy();
    return this.#give(command, () => this.#underWay.delete(underWay));
  }

  /** A command that may take any time. */
  wait<Result>(command: LegCommand<Result>): Promise<Result> {
    return this.#give(command, () => {});
  }

  /** Some time has passed. True if the oldest command has been without an answer for too long. */
  tick(): boolean {
    const [oldest] = this.#underWay;
    this.#ticks = oldest === this.#oldest ? this.#ticks + 1 : 0;
    this.#oldest = oldest;
    if (oldest === undefined) return false;
    return this.#ticks >= TICKS * Math.max(1, Math.ceil(oldest.lengthBytes / LENGTH_BYTES));
  }

  /** Nobody waits for its commands any more. */
  giveUp(failure: HoldfastError): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    this.#end.abort(failure);
  }
  /** One promise for each command and no more: there are many. */
  #give<Result>(command: LegCommand<Result>, over: () => void): Promise<Result> {
    const given = this.#failure === undefined ? command(this.access, this.#end.signal) : Promise.reject(this.#failure);
    return given.then(
      (result) => {
        over();
        return result;
      },
      (error: unknown) => {
        over();
        throw this.#failure ?? error;
      },
    );
  }
}
