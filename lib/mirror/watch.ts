/**
 * Watch: tells when a request has been under way for longer than it may be. One timer for all requests, set for the
 * oldest one; nothing runs while nothing is under way. A request that looks late is looked at once more a little later:
 * a process that was stopped for a while finds answers waiting for it.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';

/** A request under way. */
export interface Watched {
  readonly startedMs: number;
}

const SECOND_LOOK_MS = 1000;

export class Watch {
  readonly #clock: Clock;
  readonly #limitMs: number;
  readonly #onLate: (ageMs: number) => void;
  /** In the order in which they began. */
  readonly #underWay = new Set<Watched>();
  #timer: TimerHandle | undefined;
  #suspect: Watched | undefined;
  #stopped = false;

  constructor(clock: Clock, limitMs: number, onLate: (ageMs: number) => void) {
    this.#clock = clock;
    this.#limitMs = limitMs;
    this.#onLate = onLate;
  }

  begin(): Watched {
    const request = { startedMs: this.#clock.nowMs() };
    this.#underWay.add(request);
    if (this.#timer === undefined && !this.#stopped) this.#set(this.#limitMs);
    return request;
  }

  end(request: Watched): void {
    this.#underWay.delete(request);
  }

  /** Nothing is told any more, of later requests neither. */
  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#underWay.clear();
  }

  #set(delayMs: number): void {
    this.#timer = this.#clock.setTimer(delayMs, () => this.#look());
  }

  #look(): void {
    this.#timer = undefined;
    const [oldest] = this.#underWay;
    if (oldest === undefined) return;
    const ageMs = this.#clock.nowMs() - oldest.startedMs;
    if (ageMs < this.#limitMs) this.#set(this.#limitMs - ageMs + 1);
    else if (this.#suspect === oldest) this.#onLate(ageMs);
    else {
      this.#suspect = oldest;
      this.#set(SECOND_LOOK_MS);
    }
  }
}
