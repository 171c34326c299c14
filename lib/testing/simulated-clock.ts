/**
 * A process of the simulation and its clock. Everything that happens inside a process (a timer, a chunk that arrives, a
 * disk that answers) goes through `SimulatedProcess.run`, which is how a process is stopped, killed or slow.
 *
 * Invariants: nothing runs in a dead process, so its promises never settle; a paused process runs what has come due, in
 * order, when it goes on; a clock never goes back, and a timer never fires before its time on that clock.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { assert } from '../base/errors.ts';
import type { Scheduler } from './scheduler.ts';

/** A process starts at this wall time: 2026-01-01 UTC. */
const WALL_START_MS = 1_767_225_600_000;

/** A process of the simulation. Nothing runs in it once it is dead; while it is paused, what comes due waits. */
export class SimulatedProcess {
  readonly name: string;
  #alive = true;
  #paused = false;
  #deferred: (() => void)[] = [];
  readonly #atDeath: (() => void)[] = [];

  constructor(name: string) {
    this.name = name;
  }

  /** False once it was killed. */
  get alive(): boolean {
    return this.#alive;
  }

  /** True between `pause` and `resume`. */
  get paused(): boolean {
    return this.#paused;
  }

  /** Runs the callback in this process: now, when it goes on, or never. */
  run(callback: () => void): void {
    if (!this.#alive) return;
    if (this.#paused) this.#deferred.push(callback);
    else callback();
  }

  /** As SIGSTOP does: time goes on, the process does not. */
  pause(): void {
    this.#paused = true;
  }

  /** As SIGCONT does: what has come due runs, in order. */
  resume(): void {
    this.#paused = false;
    const due = this.#deferred;
    this.#deferred = [];
    for (const callback of due) this.run(callback);
  }

  /** As SIGKILL does. */
  kill(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.#deferred = [];
    for (const callback of this.#atDeath) callback();
  }

  /** Called when the process dies: what the machine does for it then. */
  atDeath(callback: () => void): void {
    this.#atDeath.push(callback);
  }
}

/** The clock of one simulated process: virtual time, at a rate of its own. */
export class SimulatedClock implements Clock {
  readonly #scheduler: Scheduler;
  readonly #process: SimulatedProcess;
  #baseUs: number;
  #baseLocalUs: number;
  #rate = 1;
  #wallOffsetMs = 0;

  /** `startMs` is what the monotonic clock shows now: arbitrary, and different on each machine. */
  constructor(scheduler: Scheduler, process: SimulatedProcess, startMs: number) {
    this.#scheduler = scheduler;
    this.#process = process;
    this.#baseUs = scheduler.nowUs;
    this.#baseLocalUs = Math.round(startMs * 1000);
  }

  nowMs(): number {
    return this.#localUs() / 1000;
  }

  wallMs(): number {
    return WALL_START_MS + this.#scheduler.nowMs + this.#wallOffsetMs;
  }

  setTimer(delayMs: number, callback: () => void): TimerHandle {
    const dueLocalUs = this.#localUs() + Math.max(0, delayMs) * 1000;
    let handle: TimerHandle;
    let cancelled = false;
    const fire = (): void => {
      if (cancelled) return;
      // The clock may have become slower since.
      if (this.#localUs() < dueLocalUs) handle = this.#scheduler.schedule(this.#untilUs(dueLocalUs), due);
      else callback();
    };
    const due = (): void => this.#process.run(fire);
    handle = this.#scheduler.schedule(this.#untilUs(dueLocalUs), due);
    return {
      cancel() {
        cancelled = true;
        handle.cancel();
      },
    };
  }

  /** From now on this clock runs at `rate` times the true speed (1.001 is fast by one part in a thousand). */
  setRate(rate: number): void {
    assert(rate > 0, 'a clock does not go back');
    this.#baseLocalUs = this.#localUs();
    this.#baseUs = this.#scheduler.nowUs;
    this.#rate = rate;
  }

  /** Makes the wall clock jump; the monotonic one does not. */
  jumpWall(offsetMs: number): void {
    this.#wallOffsetMs += offsetMs;
  }

  #localUs(): number {
    return this.#baseLocalUs + Math.floor((this.#scheduler.nowUs - this.#baseUs) * this.#rate);
  }

  #untilUs(dueLocalUs: number): number {
    return Math.max(1, Math.ceil((dueLocalUs - this.#localUs()) / this.#rate));
  }
}
