/** Time, as the one seam through which all of the library sees it. */

export interface TimerHandle {
  cancel(): void;
}

export interface Clock {
  /** Monotonic milliseconds (fractions allowed) since an arbitrary start. For durations, deadlines and leases. */
  nowMs(): number;
  /** Milliseconds since 1970-01-01 UTC. For showing to people only: it can jump. */
  wallMs(): number;
  /** Calls back once, not before `delayMs` have passed. */
  setTimer(delayMs: number, callback: () => void): TimerHandle;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  wallMs: () => Date.now(),
  setTimer(delayMs, callback) {
    const timer = setTimeout(callback, delayMs);
    return { cancel: () => clearTimeout(timer) };
  },
};
