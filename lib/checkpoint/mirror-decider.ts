/**
 * The register of a mirrored region for those who are no voters: they ask a peer that is one, usually the managers of the
 * two units. Number 70.
 *
 * Invariants:
 * - Who may write the region may change its register, in its own name alone, and only as the rules of mirror-standing.ts
 *   allow; who may read it may ask whether a value still stands.
 * - Asked again elsewhere, because an answer did not come, a change happens once: no value is used twice.
 */
import { z } from 'zod';
import type { Clock, TimerHandle } from '../base/clock.ts';
import { EitherSignal } from '../base/either-signal.ts';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import { type Arbiter, type SwapResult, VALUE_MAX_BYTES } from '../peer/arbiter.ts';
import type { Method, PeerNode, PeerSession } from '../peer/peer.ts';
import { isSoundChange, parseStanding } from './mirror-standing.ts';
import type { Right } from './one-sided.ts';
import { Waiters } from './waiters.ts';

const DEADLINE_MS = 5000;
const ASK_AGAIN_MS = 100;
/** Who has not answered by then may be unable to: another one is asked as well. */
const LATE_MS = 500;

const value = z
  .string()
  .max(VALUE_MAX_BYTES)
  .regex(/^[\x20-\x7e]*$/);
const question = z.strictObject({ register: z.string().regex(/^[0-9a-f]{32}$/), expected: value, next: value });
const answer: z.ZodType<SwapResult> = z.union([
  z.strictObject({ swapped: z.literal(true) }),
  z.strictObject({ swapped: z.literal(false), current: value }),
]);

export const regionDecideMethod: Method<z.infer<typeof question>, SwapResult> = {
  id: 70,
  name: 'region-decide',
  channel: 'control',
  request: question,
  response: answer,
  maxRequestDataBytes: 0,
  maxResponseDataBytes: 0,
};

/** A register that this node decides for others. */
export interface DecidedRegister {
  /** 32 hexadecimal digits. */
  readonly registerId: string;
  readonly arbiter: Arbiter;
  /** Whether the peer has the right to all of the region. Throws ERR_HOLDFAST_BUSY if that is not known yet. */
  readonly allows: (peer: string, right: Right) => boolean;
}

/** Answers the peers of this node. Before the node starts. */
export function serveRegisters(node: PeerNode, registers: readonly DecidedRegister[]): void {
  const byId = new Map(registers.map((register) => [register.registerId, register]));
  node.handle(regionDecideMethod, async ({ control }, session) => {
    const { register: id, expected, next } = control;
    const peer = session.peer.name;
    const register = byId.get(id);
    const right = expected === next ? 'read' : 'write';
    if (register === undefined || !register.allows(peer, right))
      throw new HoldfastError(
        'ERR_HOLDFAST_ACCESS',
        `${peer} may not ${right} what register ${id} is for, or it is not decided here; check its access list and the register's id`,
      );
    if (right === 'write') checkChange(expected, next, peer);
    return { control: await register.arbiter.compareAndSwap(expected, next) };
  });
}

function checkChange(expected: string, next: string, peer: string): void {
  const before = expected === '' ? undefined : parseStanding(expected);
  const after = parseStanding(next);
  const isKnown = expected === '' || before !== undefined;
  if (isKnown && after !== undefined && isSoundChange(before, after, peer)) return;
  throw new HoldfastError('ERR_HOLDFAST_REFUSED', `${peer} may not put ${next} in the place of ${expected}`);
}

/** Who decides, and over which node they are asked. */
export interface RemoteArbiterOptions {
  /** This process among its peers. */
  readonly node: PeerNode;
  readonly clock: Clock;
  readonly registerId: string;
  /** Names of the peers that decide, in the order in which they are asked. */
  readonly deciders: readonly string[];
  /** How long one compare-and-swap may take. Default 5 s. */
  readonly deadlineMs?: number;
  /** Fires when the node is closed: nobody is asked any more. */
  readonly closed?: AbortSignal;
}

/** The register, by way of whoever of its deciders answers. */
export class RemoteArbiter implements Arbiter {
  readonly #options: RemoteArbiterOptions;
  readonly #sessions: Waiters;
  /** Name of the decider that has answered last. */
  #quickest: string | undefined;

  constructor(options: RemoteArbiterOptions) {
    this.#options = options;
    this.#sessions = sessionsOf(options.node);
  }

  /** As Arbiter.compareAndSwap; also ERR_HOLDFAST_REFUSED by a decider, ERR_HOLDFAST_ACCESS by all that answer, ERR_HOLDFAST_CLOSED. */
  async compareAndSwap(expected: string, next: string, signal?: AbortSignal): Promise<SwapResult> {
    throwIfAborted(signal, 'the compare-and-swap');
    const { clock, deadlineMs = DEADLINE_MS, closed } = this.#options;
    const deadline = new AbortController();
    const timer = clock.setTimer(deadlineMs, () => deadline.abort());
    using either = new EitherSignal(deadline.signal, signal, closed);
    const both = either.signal;
    let last: unknown;
    try {
      for (;;) {
        let refusals = 0;
        const result = await this.#askInTurn(expected, next, both, (error) => {
          last = error;
          if (isHoldfastError(error, 'ERR_HOLDFAST_ACCESS')) refusals += 1;
        });
        if (result !== undefined) return result;
        if (refusals === this.#options.deciders.length) throw last;
        await this.#pause(both);
      }
    } catch (error) {
      throwIfAborted(signal, 'the compare-and-swap');
      if (closed?.aborted)
        throw new HoldfastError('ERR_HOLDFAST_CLOSED', 'the connection was closed here', { cause: error });
      if (!deadline.signal.aborted) throw error;
      if (isHoldfastError(last, 'ERR_HOLDFAST_ACCESS')) throw last;
      throw new HoldfastError(
        'ERR_HOLDFAST_NO_MAJORITY',
        `none of ${this.#options.deciders.join(', ')} has decided within ${deadlineMs} ms; bring back enough of them`,
        { cause: last },
      );
    } finally {
      timer.cancel();
    }
  }

  /** Who has answered last comes first. */
  #reachable(): PeerSession[] {
    const { node, deciders } = this.#options;
    const inOrder = [...deciders].sort((a, b) => Number(b === this.#quickest) - Number(a === this.#quickest));
    return inOrder.flatMap((name) => node.session(name) ?? []);
  }

  /**
   * The next one when the one before fails, or is late: it may hang, or be cut off from the other voters. Whoever answers
   * first is believed. Undefined if all have failed in a way that may pass.
   */
  async #askInTurn(
    expected: string,
    next: string,
    signal: AbortSignal,
    onFailed: (error: unknown) => void,
  ): Promise<SwapResult | undefined> {
    const over = new AbortController();
    using both = new EitherSignal(signal, over.signal);
    const either = both.signal;
    let late: TimerHandle | undefined;
    try {
      return await new Promise((resolve, reject) => {
        const sessions = this.#reachable();
        let failures = 0;
        const askFrom = (turn: number): void => {
          late?.cancel();
          const session = sessions[turn];
          if (session === undefined) return;
          let isNewest = true;
          const goOn = (): void => {
            if (isNewest) askFrom(turn + 1);
            isNewest = false;
          };
          late = this.#options.clock.setTimer(LATE_MS, goOn);
          const answered = (result: SwapResult): void => {
            if (!either.aborted) this.#quickest = session.peer.name;
            resolve(result);
          };
          const failed = (error: unknown): void => {
            const mayPass = !either.aborted && isWorthAnother(error);
            if (mayPass) onFailed(error);
            failures += 1;
            if (!mayPass) reject(error);
            else if (failures === sessions.length) resolve(undefined);
            else goOn();
          };
          this.#ask(session, expected, next, either).then(answered, failed);
        };
        if (sessions.length === 0) resolve(undefined);
        else askFrom(0);
      });
    } finally {
      late?.cancel();
      over.abort();
    }
  }

  async #ask(session: PeerSession, expected: string, next: string, signal: AbortSignal): Promise<SwapResult> {
    const asked = { register: this.#options.registerId, expected, next };
    return (await session.request(regionDecideMethod, asked, [], { signal })).control;
  }

  /** Until a session comes up, or those that are up may have an answer. */
  async #pause(signal: AbortSignal): Promise<void> {
    const over = new AbortController();
    using both = new EitherSignal(signal, over.signal);
    const timer = this.#options.clock.setTimer(ASK_AGAIN_MS, () => over.abort());
    try {
      await this.#sessions.wait(both.signal);
    } catch (error) {
      if (signal.aborted || !over.signal.aborted) throw error;
    } finally {
      timer.cancel();
    }
  }
}

/** One subscription for all regions that are used over a node. */
const waitersByNode = new WeakMap<PeerNode, Waiters>();

function sessionsOf(node: PeerNode): Waiters {
  let waiters = waitersByNode.get(node);
  if (waiters === undefined) {
    const created = new Waiters('a session with one of the deciders');
    node.subscribe({ onSessionUp: () => created.resolveAll(), onSessionDown: () => {} });
    waitersByNode.set(node, created);
    waiters = created;
  }
  return waiters;
}

const WORTH_ANOTHER = [
  // A manager whose unit has lost its memory does not know who may what.
  'ERR_HOLDFAST_ACCESS',
  'ERR_HOLDFAST_BUSY',
  'ERR_HOLDFAST_CLOSED',
  'ERR_HOLDFAST_NO_MAJORITY',
  'ERR_HOLDFAST_PEER_LOST',
] as const;

function isWorthAnother(error: unknown): boolean {
  return WORTH_ANOTHER.some((code) => isHoldfastError(error, code));
}
