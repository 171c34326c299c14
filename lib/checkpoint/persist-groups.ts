/**
 * Persists by a system call, a group at a time, which costs about as much as one by itself: all who ask while a group is
 * being persisted are in the next one.
 *
 * Clients that wait for their answers fall into halves, each of which asks while the other is persisted, so that each
 * group is half as large as it could be. Hence, when a group has ended, the next one holds a moment for those who were
 * just answered to come back: no longer than a quarter of what a group takes, and only where that is long enough to
 * matter. If they do not come back, it is not tried again for some groups. (Gather writes of
 * transaction logs: Helland et al., "Group Commit Timers and High Volume Transaction Systems", HPTS 1987.)
 *
 * Invariant: one group at a time; one that failed does not keep the next from running.
 */
import type { Clock } from '../base/clock.ts';

/** What takes less than this is over before a timer would be. */
const HOLD_FROM_MS = 1;
const HOLD_SHARE = 0.25;
const SKIPPED_MAX = 64;

export class PersistGroups {
  readonly #run: (offset: number, length: number) => Promise<void>;
  readonly #clock: Clock;
  /** The last group that was begun or is to begin. */
  #last: Promise<void> = Promise.resolve();
  #running = false;
  /** Of the last group that has ended: how many were in it, how many waited then, how long it took, and until when. */
  #lastCount = 0;
  #lastWaiting = 0;
  #lastMs = 0;
  #lastEndMs = 0;
  /** The group that takes those who come now. */
  #next: Promise<void> | undefined;
  #nextCount = 0;
  #nextStart = Number.POSITIVE_INFINITY;
  #nextEnd = 0;
  /** A group holds until it has so many. */
  #heldFor = Number.POSITIVE_INFINITY;
  #release: () => void = () => {};
  /** Groups that will not hold, and how many that are the next time. */
  #toSkip = 0;
  #skipped = 1;

  constructor(run: (offset: number, length: number) => Promise<void>, clock: Clock) {
    this.#run = run;
    this.#clock = clock;
  }

  /** Resolves when all that was stored in the range before is durable. */
  persist(offset: number, length: number): Promise<void> {
    this.#nextCount += 1;
    this.#nextStart = Math.min(this.#nextStart, offset);
    this.#nextEnd = Math.max(this.#nextEnd, offset + length);
    if (this.#next === undefined) {
      this.#next = this.#begin(this.#last);
      this.#last = this.#next;
    } else if (this.#nextCount >= this.#heldFor) this.#release();
    return this.#next;
  }

  /** Resolves when nothing runs and nobody waits. */
  async idle(): Promise<void> {
    while (this.#next !== undefined || this.#running) await this.#last.catch(() => {});
  }

  /** Those who come in the same turn of the event loop are in one group in any case. */
  async #begin(previous: Promise<void>): Promise<void> {
    await previous.catch(() => {});
    await this.#hold();
    const start = this.#nextStart;
    const length = this.#nextEnd - start;
    const count = this.#nextCount;
    this.#next = undefined;
    this.#nextCount = 0;
    this.#nextStart = Number.POSITIVE_INFINITY;
    this.#nextEnd = 0;
    this.#running = true;
    const begunMs = this.#clock.nowMs();
    try {
      await this.#run(start, length);
    } finally {
      this.#running = false;
      this.#lastCount = count;
      this.#lastWaiting = this.#nextCount;
      this.#lastEndMs = this.#clock.nowMs();
      this.#lastMs = this.#lastEndMs - begunMs;
    }
  }

  async #hold(): Promise<void> {
    const untilMs = this.#lastEndMs + Math.max(HOLD_FROM_MS, this.#lastMs * HOLD_SHARE);
    const expected = this.#lastCount + this.#lastWaiting;
    const nowMs = this.#clock.nowMs();
    if (this.#lastMs < HOLD_FROM_MS || this.#nextCount >= expected || nowMs >= untilMs) return;
    if (this.#toSkip > 0) {
      this.#toSkip -= 1;
      return;
    }
    this.#heldFor = expected;
    await new Promise<void>((resolve) => {
      const timer = this.#clock.setTimer(untilMs - nowMs, resolve);
      this.#release = () => {
        timer.cancel();
        resolve();
      };
    });
    this.#heldFor = Number.POSITIVE_INFINITY;
    const cameBack = (this.#nextCount - this.#lastWaiting) * 2 >= this.#lastCount;
    this.#skipped = cameBack ? 1 : Math.min(SKIPPED_MAX, this.#skipped * 2);
    this.#toSkip = cameBack ? 0 : this.#skipped;
  }
}
