/** Time, as the one seam through which all of the library sees it. */

/** A timer that has not fired yet, or has. */
export interface TimerHandle {
  /** It will not call back any more. Does nothing once it has fired. */
  cancel(): void;
}

/** Time as the library sees it. */
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
