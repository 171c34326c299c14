/**
 * RegisterArbiter: carries compare-and-swaps through among the voters of a register. Thin: register.ts decides; here its
 * effects meet sessions, the own voter and timers.
 *
 * A swap of a value with itself is a question. It is answered without a ballot where a majority is seen to agree: else
 * those who only ask, often, would take the ballots from those who want to change something.
 *
 * A voter without a session just does not answer; it is asked again when its session comes up, and after a while if it
 * could not answer for another reason.
 */
import type { TimerHandle } from '../base/clock.ts';
import type { Environment } from '../base/environment.ts';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import type { Arbiter, SwapResult } from './arbiter.ts';
import type { LinkProblem, PeerNode, PeerSession } from './peer.ts';
import {
  type AcceptAnswer,
  agreed,
  checkValue,
  type Look,
  type PrepareAnswer,
  type Proposer,
  type ProposerEffect,
  type ProposerEvent,
  type ProposerStep,
  propose,
  step,
} from './register.ts';
import {
  acceptMethod,
  lookMethod,
  prepareMethod,
  RegisterService,
  type Voter,
  type VoterOptions,
} from './register-service.ts';

const DEADLINE_MS = 5000;
/** After this, a voter that has a session and could not answer is asked again. */
const ASK_AGAIN_MS = 200;
/** So long a look waits for voters that do not answer, where the others do not agree. */
const LOOK_MS = 200;
const WAITING_MAX = 16;

/** A register, its voters, and this node among them. */
export interface RegisterArbiterOptions extends VoterOptions {
  readonly environment: Environment;
  /** Not started yet. */
  readonly node: PeerNode;
  /** How long one compare-and-swap may take. Default 5 s. */
  readonly deadlineMs?: number;
}

/** A voter as this node sees it. */
export interface VoterReach {
  readonly name: string;
  readonly isInReach: boolean;
  /** Why it does not vote although there is a session with it, as far as is known. */
  readonly problem: LinkProblem | undefined;
}

/**
 * The arbiter that needs no other service: a majority of voters, each with a durable state, agrees by ballots. The
 * algorithm is CASPaxos (D. Rystsov, "CASPaxos: Replicated State Machines without logs", 2018).
 */
export class RegisterArbiter implements Arbiter {
  readonly #options: RegisterArbiterOptions;
  readonly #voter: Voter;
  readonly #problems = new Map<string, LinkProblem>();
  #attempt: Attempt | undefined;
  #last: Promise<void> = Promise.resolve();
  #waiting = 0;
  #isClosed = false;

  /** Registers this node's own voter too. */
  constructor(options: RegisterArbiterOptions) {
    this.#options = options;
    this.#voter = RegisterService.of(options.node).add(options);
    options.node.subscribe({
      onSessionUp: (session) => this.#sessionUp(session),
      onSessionDown: (session) => void this.#problems.delete(session.peer.name),
    });
  }

  /** Which voters can be asked now. A majority of them decides. */
  get reach(): readonly VoterReach[] {
    const { voters, self, node } = this.#options;
    return voters.map((name, index) => {
      const problem = index === self ? problemOf(this.#voter.failure) : this.#problems.get(name);
      const isConnected = index === self || node.session(name)?.open === true;
      return { name, isInReach: isConnected && problem === undefined, problem };
    });
  }

  /** One at a time; others wait, within their own deadlines. See Arbiter. */
  async compareAndSwap(expected: string, next: string, signal?: AbortSignal): Promise<SwapResult> {
    checkValue(expected);
    checkValue(next);
    throwIfAborted(signal, 'the compare-and-swap');
    if (this.#isClosed) throw new HoldfastError('ERR_HOLDFAST_CLOSED', 'the arbiter is closed');
    if (this.#waiting >= WAITING_MAX)
      throw new HoldfastError('ERR_HOLDFAST_BUSY', `${WAITING_MAX} compare-and-swaps wait already`);
    this.#waiting++;
    const attempt = new Attempt(this.#options, this.#voter, this.#problems, expected, next);
    const turn = this.#last.then(() => this.#begin(attempt));
    this.#last = turn;
    const abort = () => attempt.fail(new HoldfastError('ERR_HOLDFAST_ABORTED', 'the compare-and-swap was cancelled'));
    signal?.addEventListener('abort', abort, { once: true });
    try {
      return await attempt.result;
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#waiting--;
    }
  }

  /** The own voter answers no more, and what is under way fails. Resolves when the store is no longer in use. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#attempt?.fail(new HoldfastError('ERR_HOLDFAST_CLOSED', 'the arbiter is closed'));
    await this.#voter.close();
  }

  async #begin(attempt: Attempt): Promise<void> {
    this.#attempt = attempt;
    if (this.#isClosed) attempt.fail(new HoldfastError('ERR_HOLDFAST_CLOSED', 'the arbiter is closed'));
    attempt.begin();
    await attempt.result.catch(() => {});
    this.#attempt = undefined;
  }

  #sessionUp(session: PeerSession): void {
    const voter = this.#options.voters.indexOf(session.peer.name);
    if (voter < 0) return;
    this.#problems.delete(session.peer.name);
    this.#attempt?.reachable(voter);
  }
}

/** One compare-and-swap. */
class Attempt {
  readonly result: Promise<SwapResult>;
  readonly #options: RegisterArbiterOptions;
  readonly #own: Voter;
  readonly #problems: Map<string, LinkProblem>;
  readonly #expected: string;
  readonly #next: string;
  readonly #timers = new Set<TimerHandle>();
  readonly #toAskAgain = new Set<number>();
  readonly #looks: Look[] = [];
  #proposer: Proposer | undefined;
  #isOver = false;
  #resolve!: (result: SwapResult) => void;
  #reject!: (error: Error) => void;

  /** Its time runs from here. */
  constructor(
    options: RegisterArbiterOptions,
    own: Voter,
    problems: Map<string, LinkProblem>,
    expected: string,
    next: string,
  ) {
    this.#options = options;
    this.#own = own;
    this.#problems = problems;
    this.#expected = expected;
    this.#next = next;
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    const deadlineMs = options.deadlineMs ?? DEADLINE_MS;
    this.#after(deadlineMs, () => this.fail(this.#noMajority(`did not answer within ${deadlineMs} ms`)));
  }

  begin(): void {
    if (this.#isOver) return;
    if (this.#expected === this.#next) void this.#look();
    else this.#propose();
  }

  /** Asks what there is; proposes it if that is not clear. */
  async #look(): Promise<void> {
    const { voters } = this.#options;
    const late = new Promise<void>((resolve) => this.#after(LOOK_MS, resolve));
    const looks = Promise.all(voters.map((_, voter) => this.#lookAt(voter).catch((error) => this.#tell(voter, error))));
    await Promise.race([looks, late, this.result.catch(() => {})]);
    if (!this.#isOver) this.#propose();
  }

  async #lookAt(voter: number): Promise<void> {
    const { registerId, voters, self, node } = this.#options;
    const name = voters[voter]!;
    const session = node.session(name);
    if (voter === self) this.#looks.push(await this.#own.look());
    else if (session === undefined) return;
    else this.#looks.push((await session.request(lookMethod, { register: registerId, voters: [...voters] })).control);
    this.#problems.delete(name);
    const found = agreed(this.#looks, voters.length);
    if (found !== undefined)
      this.#done(found.value === this.#next ? { swapped: true } : { swapped: false, current: found.value });
  }

  #propose(): void {
    const { self, voters } = this.#options;
    const swap = { self, voters: voters.length, expected: this.#expected, next: this.#next };
    try {
      this.#perform(propose(swap, this.#own.state.promised));
    } catch (error) {
      this.fail(error as Error);
    }
  }

  reachable(voter: number): void {
    this.#step({ kind: 'reachable', voter });
  }

  fail(error: Error): void {
    if (this.#isOver) return;
    this.#end();
    this.#reject(error);
  }

  #done(result: SwapResult): void {
    if (this.#isOver) return;
    this.#end();
    this.#resolve(result);
  }

  #end(): void {
    this.#isOver = true;
    for (const timer of this.#timers) timer.cancel();
    this.#timers.clear();
  }

  #step(event: ProposerEvent): void {
    if (this.#isOver || this.#proposer === undefined) return;
    try {
      this.#perform(step(this.#proposer, event));
    } catch (error) {
      this.fail(error as Error);
    }
  }

  #perform({ state, effects }: ProposerStep): void {
    this.#proposer = state;
    for (const effect of effects) this.#do(effect);
  }

  #do(effect: ProposerEffect): void {
    switch (effect.kind) {
      case 'prepare':
      case 'accept':
        void this.#ask(effect);
        break;
      case 'wait': {
        const delayMs = this.#options.environment.random.below(effect.mostMs + 1);
        this.#after(delayMs, () => this.#step({ kind: 'due', promised: this.#own.state.promised }));
        break;
      }
      case 'done':
        this.#done(effect.result);
    }
  }

  async #ask(question: Question): Promise<void> {
    const name = this.#options.voters[question.voter]!;
    let event: ProposerEvent | undefined;
    try {
      event =
        question.voter === this.#options.self ? await this.#askOwn(question) : await this.#askPeer(question, name);
    } catch (error) {
      this.#unanswered(question.voter, error);
      return;
    }
    if (event === undefined) return;
    this.#problems.delete(name);
    this.#step(event);
  }

  async #askOwn(question: Question): Promise<ProposerEvent> {
    const { kind, ballot } = question;
    if (kind === 'prepare') return promiseEvent(question, await this.#own.prepare(ballot));
    return acceptanceEvent(question, await this.#own.accept(ballot, question.value));
  }

  /** Undefined without a session: then `reachable` comes with the next one. */
  async #askPeer(question: Question, name: string): Promise<ProposerEvent | undefined> {
    const session = this.#options.node.session(name);
    if (session === undefined) return undefined;
    const { registerId, voters } = this.#options;
    const { kind, ballot } = question;
    const asked = { register: registerId, voters: [...voters], ballot };
    if (kind === 'prepare') return promiseEvent(question, (await session.request(prepareMethod, asked)).control);
    const { control } = await session.request(acceptMethod, { ...asked, value: question.value });
    return acceptanceEvent(question, control);
  }

  #unanswered(voter: number, error: unknown): void {
    if (voter === this.#options.self) {
      this.fail(this.#noMajority('cannot be asked while the own voter is out', error));
      return;
    }
    if (isHoldfastError(error, 'ERR_HOLDFAST_PEER_LOST')) return;
    this.#tell(voter, error);
    if (this.#toAskAgain.has(voter)) return;
    this.#toAskAgain.add(voter);
    this.#after(ASK_AGAIN_MS, () => {
      this.#toAskAgain.delete(voter);
      this.reachable(voter);
    });
  }

  #tell(voter: number, error: unknown): void {
    const problem = problemOf(error);
    const isGone = isHoldfastError(error, 'ERR_HOLDFAST_PEER_LOST');
    if (problem !== undefined && !isGone) this.#problems.set(this.#options.voters[voter]!, problem);
  }

  #after(delayMs: number, action: () => void): void {
    if (this.#isOver) return;
    const timer = this.#options.environment.clock.setTimer(delayMs, () => {
      this.#timers.delete(timer);
      action();
    });
    this.#timers.add(timer);
  }

  #noMajority(what: string, cause?: unknown): HoldfastError {
    const { voters, node } = this.#options;
    const away = voters.filter((name) => name !== node.name && node.session(name) === undefined);
    const detail = away.length === 0 ? '' : ` (no session with ${away.join(', ')})`;
    return new HoldfastError(
      'ERR_HOLDFAST_NO_MAJORITY',
      `a majority of ${voters.join(', ')} ${what}${detail}; bring back enough of them`,
      cause === undefined ? {} : { cause },
    );
  }
}

type Question = ProposerEffect & { kind: 'prepare' | 'accept' };

function promiseEvent({ voter, ballot }: Question, answer: PrepareAnswer): ProposerEvent {
  if (!answer.granted) return { kind: 'refused', voter, ballot, promised: answer.promised };
  return { kind: 'promised', voter, ballot, accepted: answer.accepted, value: answer.value };
}

function acceptanceEvent({ voter, ballot }: Question, answer: AcceptAnswer): ProposerEvent {
  if (!answer.granted) return { kind: 'refused', voter, ballot, promised: answer.promised };
  return { kind: 'accepted', voter, ballot };
}

function problemOf(error: unknown): LinkProblem | undefined {
  if (error === undefined) return undefined;
  const code = isHoldfastError(error) ? error.code : 'ERR_HOLDFAST_INTERNAL';
  return { code, message: error instanceof Error ? error.message : String(error) };
}
