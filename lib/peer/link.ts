/**
 * The link to one peer: when to dial which address, which authenticated connection becomes the session, and what is
 * wrong if there is none. Pure: events in, effects out; node.ts has the sockets and the timers.
 *
 * Both ends dial. Of two authenticated connections the chooser (see handshake.ts) decides by these rules:
 * - no session: accept;
 * - a session with another incarnation of the peer: that one has died; it is superseded, and the new one accepted;
 * - a session with this incarnation that was heard within two heartbeats: refuse, the peer is just late to know of it;
 * - a session with this incarnation that has fallen silent: the peer has lost it already; supersede, and accept;
 * - an incarnation that was superseded by the one in session: two processes run under one name; refuse.
 * The other end takes what the chooser accepts, in place of what it has.
 *
 * Invariants: at most one session, at most one dial; no dial while there is a session. Terminal state: stopped.
 */

export const BACKOFF_MIN_MS = 100;
export const BACKOFF_MAX_MS = 2000;
/** A problem told by a handshake outranks "cannot connect" for this long: it says more. */
const HANDSHAKE_PROBLEM_MS = 10_000;
const SUPERSEDED_MAX = 8;

export interface Problem {
  readonly code: string;
  readonly message: string;
}

export interface LinkOptions {
  readonly addressCount: number;
  readonly heartbeatMs: number;
}

/** `connection` is the driver's number for one. */
export type LinkEvent =
  | { readonly kind: 'start' }
  | { readonly kind: 'dial-due' }
  | { readonly kind: 'dial-failed'; readonly problem: Problem; readonly nowMs: number; readonly jitter: number }
  /** A handshake failed. `dialled`: on the connection that our dial has made. */
  | {
      readonly kind: 'handshake-failed';
      readonly problem: Problem | undefined;
      readonly dialled: boolean;
      readonly nowMs: number;
      readonly jitter: number;
    }
  /** The peer is authenticated, and we are the chooser. */
  | {
      readonly kind: 'choose';
      readonly connection: number;
      readonly incarnation: string;
      /** When the present session, if any, was last heard. */
      readonly heardMs: number;
      readonly nowMs: number;
    }
  | { readonly kind: 'established'; readonly connection: number; readonly incarnation: string }
  | { readonly kind: 'session-ended'; readonly connection: number; readonly jitter: number }
  | { readonly kind: 'stop' };

export type LinkEffect =
  | { readonly kind: 'dial'; readonly address: number }
  | { readonly kind: 'cancel-dial' }
  | { readonly kind: 'dial-in'; readonly delayMs: number }
  | { readonly kind: 'accept'; readonly connection: number }
  | { readonly kind: 'refuse'; readonly connection: number; readonly reason: 'session-exists' | 'duplicate-name' }
  | { readonly kind: 'end-session'; readonly connection: number; readonly reason: string };

export class Link {
  readonly #options: LinkOptions;
  #state: 'new' | 'waiting' | 'dialling' | 'connected' | 'stopped' = 'new';
  #address = 0;
  #failures = 0;
  #session: { readonly connection: number; readonly incarnation: string } | undefined;
  readonly #superseded: string[] = [];
  #handshakeProblem: { readonly problem: Problem; readonly atMs: number } | undefined;
  #dialProblem: Problem | undefined;

  constructor(options: LinkOptions) {
    this.#options = options;
  }

  get state(): 'Connected' | 'Connecting' | 'StandAlone' {
    if (this.#session !== undefined) return 'Connected';
    return this.#state === 'new' || this.#state === 'stopped' ? 'StandAlone' : 'Connecting';
  }

  /** With a session too, for a while: someone else may have been turned away under the peer's name. */
  problem(nowMs: number): Problem | undefined {
    const told = this.#handshakeProblem;
    if (told !== undefined && nowMs - told.atMs < HANDSHAKE_PROBLEM_MS) return told.problem;
    if (this.#session !== undefined) return undefined;
    return this.#dialProblem ?? told?.problem;
  }

  step(event: LinkEvent): LinkEffect[] {
    if (this.#state === 'stopped') return this.#stopped(event);
    switch (event.kind) {
      case 'start':
      case 'dial-due':
        return this.#dial();
      case 'dial-failed':
        this.#dialProblem = event.problem;
        return this.#retry(event.jitter);
      case 'handshake-failed':
        if (event.problem !== undefined) this.#handshakeProblem = { problem: event.problem, atMs: event.nowMs };
        // The address answered: what else was wrong with reaching it is past.
        if (event.dialled) this.#dialProblem = undefined;
        return event.dialled ? this.#retry(event.jitter) : [];
      case 'choose':
        return this.#choose(event.connection, event.incarnation, event.nowMs - event.heardMs);
      case 'established':
        return this.#establish(event.connection, event.incarnation);
      case 'session-ended':
        if (this.#session?.connection !== event.connection) return [];
        this.#session = undefined;
        // What has superseded others was perhaps the last word of a process that is dead, and came late.
        this.#superseded.length = 0;
        this.#state = 'waiting';
        return [{ kind: 'dial-in', delayMs: backoffMs(0, event.jitter) }];
      case 'stop':
        return this.#stop();
    }
  }

  #dial(): LinkEffect[] {
    if (this.#state === 'dialling' || this.#state === 'connected' || this.#options.addressCount === 0) {
      if (this.#state === 'new') this.#state = 'waiting';
      return [];
    }
    this.#state = 'dialling';
    return [{ kind: 'dial', address: this.#address }];
  }

  #retry(jitter: number): LinkEffect[] {
    if (this.#state !== 'dialling') return [];
    this.#state = 'waiting';
    this.#address = (this.#address + 1) % this.#options.addressCount;
    return [{ kind: 'dial-in', delayMs: backoffMs(this.#failures++, jitter) }];
  }

  #choose(connection: number, incarnation: string, silenceMs: number): LinkEffect[] {
    if (this.#superseded.includes(incarnation)) return [{ kind: 'refuse', connection, reason: 'duplicate-name' }];
    const present = this.#session;
    if (present === undefined) return [{ kind: 'accept', connection }];
    if (present.incarnation === incarnation && silenceMs < 2 * this.#options.heartbeatMs)
      return [{ kind: 'refuse', connection, reason: 'session-exists' }];
    return [...this.#supersede(present, incarnation), { kind: 'accept', connection }];
  }

  #establish(connection: number, incarnation: string): LinkEffect[] {
    const effects = this.#session === undefined ? [] : this.#supersede(this.#session, incarnation);
    if (this.#state === 'dialling') effects.push({ kind: 'cancel-dial' });
    this.#session = { connection, incarnation };
    this.#state = 'connected';
    this.#failures = 0;
    this.#handshakeProblem = undefined;
    this.#dialProblem = undefined;
    return effects;
  }

  #supersede(present: { connection: number; incarnation: string }, incarnation: string): LinkEffect[] {
    const restarted = present.incarnation !== incarnation;
    if (restarted) {
      this.#superseded.push(present.incarnation);
      if (this.#superseded.length > SUPERSEDED_MAX) this.#superseded.shift();
    }
    this.#session = undefined;
    const reason = restarted ? 'the peer was restarted' : 'the peer made a new connection';
    return [{ kind: 'end-session', connection: present.connection, reason }];
  }

  #stop(): LinkEffect[] {
    const effects: LinkEffect[] = [];
    if (this.#state === 'dialling') effects.push({ kind: 'cancel-dial' });
    if (this.#session !== undefined)
      effects.push({ kind: 'end-session', connection: this.#session.connection, reason: 'this node is closing' });
    this.#session = undefined;
    this.#state = 'stopped';
    return effects;
  }

  /** A handshake that ends after the stop still has to be told. */
  #stopped(event: LinkEvent): LinkEffect[] {
    if (event.kind === 'choose') return [{ kind: 'refuse', connection: event.connection, reason: 'session-exists' }];
    if (event.kind === 'established')
      return [{ kind: 'end-session', connection: event.connection, reason: 'this node is closing' }];
    return [];
  }
}

/** Doubles up to the cap; the jitter (0 … 1) takes up to half of it away, so that two that collide part ways. */
function backoffMs(failures: number, jitter: number): number {
  return Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** Math.min(failures, 16)) * (0.5 + 0.5 * jitter);
}
