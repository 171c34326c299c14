/**
 * The seeded simulation's heart: virtual time and a heap of events. One event runs at a time; the next one only after
 * every microtask that it caused has run. Code that waits on nothing but promises and this scheduler therefore runs in
 * the same order each time.
 *
 * Invariants: time never goes back; events of the same instant run in the order in which they were scheduled; time is
 * counted in whole microseconds, so that sums are exact.
 */
import type { TimerHandle } from '../base/clock.ts';
import { assert, HoldfastError } from '../base/errors.ts';

interface ScheduledEvent {
  readonly atUs: number;
  readonly order: number;
  callback: (() => void) | undefined;
}

/** Events run in one turn of the real event loop: its system call is shared, microtasks still run after each. */
const EVENTS_PER_TURN = 64;
const COMPACT_MIN_CANCELLED = 1024;

/** Why a run ended: `stop` said so, or nothing was left to happen. */
export type RunEnd = 'stopped' | 'idle';

function before(a: ScheduledEvent, b: ScheduledEvent): boolean {
  return a.atUs < b.atUs || (a.atUs === b.atUs && a.order < b.order);
}

/** Virtual time and what is to happen in it: one event at a time, each after all microtasks of the one before. */
export class Scheduler {
  #heap: ScheduledEvent[] = [];
  #nowUs = 0;
  #order = 0;
  #cancelled = 0;
  #running = false;
  #eventCount = 0;

  /** Microseconds since the start, whole. */
  get nowUs(): number {
    return this.#nowUs;
  }

  /** Milliseconds since the start. */
  get nowMs(): number {
    return this.#nowUs / 1000;
  }

  /** Events run so far. */
  get eventCount(): number {
    return this.#eventCount;
  }

  /** Runs the callback `delayUs` from now (rounded up to a whole microsecond). */
  schedule(delayUs: number, callback: () => void): TimerHandle {
    assert(delayUs >= 0, 'an event lies in the future');
    const event: ScheduledEvent = { atUs: this.#nowUs + Math.ceil(delayUs), order: this.#order++, callback };
    this.#push(event);
    return { cancel: () => this.#cancel(event) };
  }

  /**
   * Runs events until `stop` answers true (asked after each event and its microtasks) or nothing is left to happen.
   * Rejects with what an event throws.
   */
  run(stop: () => boolean): Promise<RunEnd> {
    assert(!this.#running, 'a scheduler runs once at a time');
    this.#running = true;
    return new Promise((resolve, reject) => {
      let over = false;
      const finish = (settle: () => void): void => {
        over = true;
        this.#running = false;
        settle();
      };
      const step = (): void => {
        if (over) return;
        try {
          if (stop()) finish(() => resolve('stopped'));
          else if (!this.#runOne()) finish(() => resolve('idle'));
        } catch (error) {
          finish(() => reject(error));
        }
      };
      const lastStep = (): void => {
        step();
        if (!over) turn();
      };
      const turn = (): void => {
        for (let index = 1; index < EVENTS_PER_TURN; index++) setImmediate(step);
        setImmediate(lastStep);
      };
      turn();
    });
  }

  /** Lets this much virtual time pass. */
  async runFor(durationMs: number): Promise<void> {
    let passed = false;
    this.schedule(durationMs * 1000, () => {
      passed = true;
    });
    await this.run(() => passed);
  }

  /**
   * Runs until the promise settles, and answers with what it settles to. Throws ERR_HOLDFAST_TIMEOUT once `limitMs` of
   * virtual time have passed, or if nothing is left to happen.
   */
  async runUntil<T>(promise: Promise<T>, limitMs: number): Promise<T> {
    let settled = false;
    const settle = (): void => {
      settled = true;
    };
    promise.then(settle, settle);
    const limitUs = this.#nowUs + limitMs * 1000;
    const timer = this.schedule(limitMs * 1000, () => {});
    const end = await this.run(() => settled || this.#nowUs >= limitUs);
    timer.cancel();
    if (settled) return promise;
    const why = end === 'idle' ? 'nothing is left to happen' : `${limitMs} ms of virtual time have passed`;
    throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', `the simulation waits in vain; ${why}`);
  }

  #runOne(): boolean {
    for (;;) {
      const event = this.#pop();
      if (event === undefined) return false;
      const { callback } = event;
      if (callback === undefined) {
        this.#cancelled--;
        continue;
      }
      event.callback = undefined;
      this.#nowUs = event.atUs;
      this.#eventCount++;
      callback();
      return true;
    }
  }

  #cancel(event: ScheduledEvent): void {
    if (event.callback === undefined) return;
    event.callback = undefined;
    this.#cancelled++;
    if (this.#cancelled < COMPACT_MIN_CANCELLED || this.#cancelled * 2 < this.#heap.length) return;
    const live = this.#heap.filter((kept) => kept.callback !== undefined);
    this.#heap = [];
    this.#cancelled = 0;
    for (const kept of live) this.#push(kept);
  }

  #push(event: ScheduledEvent): void {
    const heap = this.#heap;
    let index = heap.length;
    heap.push(event);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = event;
  }

  #pop(): ScheduledEvent | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined || heap.length === 0) return top;
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (!before(heap[child]!, last)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = last;
    return top;
  }
}
