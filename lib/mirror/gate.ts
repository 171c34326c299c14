/**
 * The gate that every client request passes: closed while the volume may not serve (requests wait), else open to the
 * local mirror engine or to the session with the member that has access. `epoch` grows with every change, so that a
 * read that was under way during one can be told.
 *
 * Bounded: more than `maxWaiting` requests behind a closed gate are refused with ERR_HOLDFAST_BUSY.
 */
import { HoldfastError } from '../base/errors.ts';
import type { PeerSession } from '../peer/peer.ts';

export type GateState =
  | { readonly mode: 'closed'; readonly reason: string }
  | { readonly mode: 'local' }
  | { readonly mode: 'forward'; readonly session: PeerSession };

export type OpenGate = Exclude<GateState, { mode: 'closed' }>;

interface Waiter {
  readonly open: (state: OpenGate) => void;
  readonly fail: (error: HoldfastError) => void;
}

export class Gate {
  #state: GateState = { mode: 'closed', reason: 'starting' };
  #epoch = 0;
  #end: HoldfastError | undefined;
  readonly #waiters = new Set<Waiter>();
  readonly #maxWaiting: number;

  constructor(maxWaiting: number) {
    this.#maxWaiting = maxWaiting;
  }

  get state(): GateState {
    return this.#state;
  }

  get epoch(): number {
    return this.#epoch;
  }

  set(state: GateState): void {
    this.#state = state;
    this.#epoch += 1;
    if (state.mode === 'closed') return;
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const waiter of waiters) waiter.open(state);
  }

  /** Fails every request that waits, and all later ones. */
  shut(error: HoldfastError): void {
    this.set({ mode: 'closed', reason: error.message });
    this.#end = error;
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const waiter of waiters) waiter.fail(error);
  }

  /** The open gate, now or when it opens. What can be told at once it returns, or throws. */
  enter(signal: AbortSignal | undefined): OpenGate | Promise<OpenGate> {
    if (this.#end !== undefined) throw this.#end;
    if (signal?.aborted) throw abortedError(signal);
    if (this.#state.mode !== 'closed') return this.#state;
    return this.#wait(signal);
  }

  #wait(signal: AbortSignal | undefined): Promise<OpenGate> {
    if (this.#waiters.size >= this.#maxWaiting) {
      throw new HoldfastError(
        'ERR_HOLDFAST_BUSY',
        `${this.#waiters.size} requests already wait for the volume to serve again; send fewer at a time`,
      );
    }
    return new Promise((resolve, reject) => {
      const aborted = () => settle(() => reject(abortedError(signal)));
      const waiter: Waiter = {
        open: (state) => settle(() => resolve(state)),
        fail: (error) => settle(() => reject(error)),
      };
      const settle = (finish: () => void) => {
        this.#waiters.delete(waiter);
        signal?.removeEventListener('abort', aborted);
        finish();
      };
      signal?.addEventListener('abort', aborted);
      this.#waiters.add(waiter);
    });
  }
}

function abortedError(signal: AbortSignal | undefined): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_ABORTED', 'a request was cancelled while it waited for the volume to serve', {
    cause: signal?.reason,
  });
}
