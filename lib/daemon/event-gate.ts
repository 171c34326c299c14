/**
 * Lets events through at a bounded rate: whoever is refused a million times makes no million lines. The first of a
 * burst all pass; what is left out is counted in the next event that passes.
 */
import type { Clock } from '../base/clock.ts';
import type { DaemonEvent } from './daemon.ts';

const BURST = 100;
const PER_SECOND = 10;

export class EventGate {
  readonly #clock: Clock;
  readonly #emit: (event: DaemonEvent) => void;
  #tokens = BURST;
  #filledMs: number;
  #omitted = 0;

  constructor(clock: Clock, emit: (event: DaemonEvent) => void) {
    this.#clock = clock;
    this.#emit = emit;
    this.#filledMs = clock.nowMs();
  }

  tell(event: DaemonEvent): void {
    const nowMs = this.#clock.nowMs();
    this.#tokens = Math.min(BURST, this.#tokens + ((nowMs - this.#filledMs) / 1000) * PER_SECOND);
    this.#filledMs = nowMs;
    if (this.#tokens < 1) {
      this.#omitted += 1;
      return;
    }
    this.#tokens -= 1;
    this.#emit(this.#omitted === 0 ? event : { ...event, omitted: this.#omitted });
    this.#omitted = 0;
  }
}
