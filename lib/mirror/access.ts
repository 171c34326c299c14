/**
 * Access: the driver of policing.ts for one member. A request acquires its extents before it begins and releases them
 * when all copies have answered; what the machine has to say to the other member goes out in batches, in order.
 *
 * Invariants:
 * - While there is no session nothing is given or asked for. Requests that wait then go back to the gate; those under
 *   way keep their extents, into the next session too: both members begin it from the same claims.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { PeerSession } from '../peer/peer.ts';
import { Policing, type PolicingEffect } from './policing.ts';
import { type AccessMode, MAX_POLICING_MESSAGES, type PolicingMessage } from './policing-wire.ts';
import { accessMethod } from './protocol.ts';
import { type MemberIndex, otherMember } from './view.ts';

/** Batches of messages on their way at a time; what comes meanwhile goes into the next one. */
const BATCHES_MAX = 8;

export interface AccessOptions {
  readonly volumeId: string;
  readonly self: MemberIndex;
  readonly sizeBytes: number;
  readonly extentBytes: number;
  readonly viewNumber: () => number;
  readonly onPeerFailure: (session: PeerSession, error: unknown) => void;
}

interface Waiter {
  readonly start: () => void;
  readonly fail: (error: HoldfastError) => void;
}

export class Access {
  readonly #options: AccessOptions;
  readonly #policing: Policing;
  readonly #waiters = new Map<number, Waiter>();
  #nextId = 1;
  #session: PeerSession | undefined;
  #suspended = true;
  #outbox: PolicingMessage[] = [];
  #batches = 0;

  constructor(options: AccessOptions) {
    const { self, sizeBytes, extentBytes } = options;
    this.#options = options;
    this.#policing = new Policing({ self, nodes: 2, extents: Math.ceil(sizeBytes / extentBytes), first: self });
  }

  get extentBytes(): number {
    return this.#options.extentBytes;
  }

  // --- what the controller says

  /** All access is here, and nobody asks for it. */
  beginAlone(): void {
    this.#begin(this.#options.self, [], [], undefined);
  }

  /**
   * All access is at `first`, but for what either side has claimed. Both sides begin from the same three: what this side
   * claims is what it has told, even if some of it has ended meanwhile.
   */
  begin(session: PeerSession, first: MemberIndex, mine: readonly number[], theirs: readonly number[]): void {
    this.#begin(first, mine, theirs, session);
  }

  #begin(
    first: MemberIndex,
    mine: readonly number[],
    theirs: readonly number[],
    session: PeerSession | undefined,
  ): void {
    const { self } = this.#options;
    this.#suspended = false;
    this.#session = session;
    this.#outbox = [];
    this.#policing.restart(first, [
      { node: self, extents: mine },
      { node: otherMember(self), extents: theirs },
    ]);
  }

  /** The session from which the other member may ask for access, while all of it is here. */
  connect(session: PeerSession): void {
    this.#session = session;
  }

  /** The session is over: what waits goes back to the gate, and so does what comes, until access begins anew. */
  suspend(): void {
    this.#suspended = true;
    this.#session = undefined;
    this.#outbox = [];
    const waiters = [...this.#waiters.values()];
    this.#waiters.clear();
    this.#policing.forgetWaiting();
    for (const { fail } of waiters) fail(moved());
  }

  /** The extents of writes under way. */
  claims(): number[] {
    return this.#policing.inUse();
  }

  // --- requests

  /** Undefined: the request may begin. Else it may when the promise has resolved. */
  acquire(offset: number, length: number, mode: AccessMode, signal?: AbortSignal): Promise<void> | undefined {
    // Also of what is here: the claims for the next session may have been told already.
    if (this.#suspended) return Promise.reject(moved());
    if (length === 0) return undefined;
    const { extentBytes } = this.#options;
    const first = Math.floor(offset / extentBytes);
    const last = Math.floor((offset + length - 1) / extentBytes);
    return this.#policing.tryStart(first, last, mode) ? undefined : this.#wait(first, last, mode, signal);
  }

  release(offset: number, length: number, mode: AccessMode): void {
    if (length === 0) return;
    const { extentBytes } = this.#options;
    const first = Math.floor(offset / extentBytes);
    const last = Math.floor((offset + length - 1) / extentBytes);
    this.#perform(this.#policing.finish(first, last, mode));
  }

  /** What the other member says. Throws if it cannot be right. */
  receive(session: PeerSession, messages: readonly PolicingMessage[]): void {
    if (session !== this.#session) throw moved();
    const from = otherMember(this.#options.self);
    for (const message of messages) this.#perform(this.#policing.receive(from, message));
  }

  async #wait(first: number, last: number, mode: AccessMode, signal: AbortSignal | undefined): Promise<void> {
    if (signal?.aborted) throw aborted(signal);
    const id = this.#nextId;
    this.#nextId += 1;
    let onAbort = () => {};
    try {
      await new Promise<void>((resolve, reject) => {
        this.#waiters.set(id, { start: resolve, fail: reject });
        onAbort = () => {
          if (!this.#waiters.delete(id)) return;
          reject(aborted(signal));
          this.#perform(this.#policing.cancel(id));
        };
        signal?.addEventListener('abort', onAbort);
        this.#perform(this.#policing.request(id, first, last, mode, 0));
      });
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  #perform(effects: readonly PolicingEffect[]): void {
    for (const effect of effects) {
      if (effect.kind === 'send') this.#send(effect.message);
      else {
        const waiter = this.#waiters.get(effect.id);
        this.#waiters.delete(effect.id);
        waiter?.start();
      }
    }
  }

  // --- messages

  #send(message: PolicingMessage): void {
    if (this.#session === undefined) return;
    this.#outbox.push(message);
    // Those of one turn of the event loop go together.
    if (this.#outbox.length === 1) queueMicrotask(() => this.#sendBatch());
  }

  #sendBatch(): void {
    const session = this.#session;
    if (session === undefined || this.#batches >= BATCHES_MAX || this.#outbox.length === 0) return;
    const messages = this.#outbox.splice(0, MAX_POLICING_MESSAGES);
    const { volumeId, viewNumber, onPeerFailure } = this.#options;
    this.#batches += 1;
    const ended = () => {
      this.#batches -= 1;
      this.#sendBatch();
    };
    session.request(accessMethod, { volume: volumeId, view: viewNumber(), messages }).then(ended, (error: unknown) => {
      ended();
      // Over by itself; the session's end says so to everybody.
      if (!isHoldfastError(error, 'ERR_HOLDFAST_PEER_LOST')) onPeerFailure(session, error);
    });
    this.#sendBatch();
  }
}

function moved(): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_OUT_OF_STEP', 'access to the volume moves just now');
}

function aborted(signal: AbortSignal | undefined): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_ABORTED', 'a request was cancelled while it waited for access', {
    cause: signal?.reason,
  });
}
