/**
 * Watch: tells when a request has been under way for longer than it may be: some time between `limitMs` and twice that.
 * Requests are counted by generations, so that one costs two additions; a timer runs only while something is under way.
 *
 * What looks late is looked at once more a little later: a process that was stopped for a while finds answers waiting
 * for it.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';

const SECOND_LOOK_MS = 1000;

export class Watch {
  readonly #clock: Clock;
  readonly #limitMs: number;
  readonly #onLate: () => void;
  #generation = 0;
  /** Requests under way that began in this generation, and those that began in the one before. */
  #young = 0;
  #old = 0;
  #suspected = false;
  #timer: TimerHandle | undefined;
  #stopped = false;

  constructor(clock: Clock, limitMs: number, onLate: () => void) {
    this.#clock = clock;
    this.#limitMs = limitMs;
    this.#onLate = onLate;
  }

  /** A request begins. `end` it with the answer. */
  begin(): number {
    this.#young += 1;
    if (this.#timer === undefined) this.#set(this.#limitMs);
    return this.#generation;
  }

  end(generation: number): void {
    if (generation === this.#generation) this.#young -= 1;
    else this.#old -= 1;
  }

  /** Nothing is told any more, of later requests neither. */
  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #set(delayMs: number): void {
    if (!this.#stopped) this.#timer = this.#clock.setTimer(delayMs, () => this.#look());
  }

  #look(): void {
    this.#timer = undefined;
    if (this.#old > 0 && this.#suspected) {
      this.#onLate();
      return;
    }
    this.#suspected = this.#old > 0;
    if (this.#suspected) {
      this.#set(SECOND_LOOK_MS);
      return;
    }
    this.#generation += 1;
    this.#old = this.#young;
    this.#young = 0;
    if (this.#old > 0) this.#set(this.#limitMs);
  }
}
