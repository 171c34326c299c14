/**
 * Who decides about a view where the members alone may not: a register with one value, which changes by compare-and-swap
 * only. The embedded one (register.ts) is held by a majority of voters; others can stand behind the same face.
 */

/** A proposal's place in the order of all: no two proposers ever use the same one. */
export interface Ballot {
  readonly counter: number;
  /** The proposer's place in the volume's configuration. */
  readonly node: number;
}

export const NO_BALLOT: Ballot = { counter: 0, node: 0 };

/** What a voter holds durably. It never takes any of it back. */
export interface VoterState {
  /** It takes part in no proposal below this one. */
  readonly promised: Ballot;
  /** The last proposal that it has accepted, and its value. */
  readonly accepted: Ballot;
  /** At most VALUE_MAX_BYTES of printable ASCII; empty: nothing yet. */
  readonly value: string;
}

export const NEW_VOTER: VoterState = { promised: NO_BALLOT, accepted: NO_BALLOT, value: '' };

export const VALUE_MAX_BYTES = 128;

/** Where a voter's state lies. */
export interface VoterStore {
  readonly voter: VoterState;
  /** Durable when resolved. One call at a time. */
  writeVoter(state: VoterState): Promise<void>;
}

/** What became of a compare-and-swap: done, or the value that stands instead. */
export type SwapResult = { readonly swapped: true } | { readonly swapped: false; readonly current: string };

/**
 * A register with one value that changes by compare-and-swap only: it decides who serves when the members alone may
 * not.
 */
export interface Arbiter {
  /**
   * Puts `next` in the place of `expected` (empty: nothing yet), durably. If the value is `next` already, that is a
   * success too: the answer to an earlier attempt may have been lost. If it is anything else, that value is the answer,
   * and it is durable; it does not follow that `next` never was the value, only that it is not any more. A value
   * that comes back later would make a lost answer look like success: let each carry something unique.
   *
   * @throws HoldfastError ERR_HOLDFAST_NO_MAJORITY when too few voters answer in time: then it may have happened, or
   *   happen later. ERR_HOLDFAST_ABORTED.
   */
  compareAndSwap(expected: string, next: string, signal?: AbortSignal): Promise<SwapResult>;
}
