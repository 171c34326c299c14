/**
 * Explores the register (lib/peer/register.ts) exhaustively: three voters, of which the first two live in the processes
 * of two proposers, and whatever order of events there can be. Breadth first; every state is visited once.
 *
 * - A message that was sent stays in the air: it may be delivered next, again, or never. So loss, repetition and
 *   reordering need no moves of their own.
 * - A voter's answer leaves when its state is written. Until then a crash takes both; a state that is written stays.
 * - A proposer may give up at any time (its deadline), and then tries the same swap again; or its process crashes and
 *   starts anew, with what its voter has on disk, and goes on with the next swap. What it expects is what it was last told.
 *
 * What is bounded is in `Bounds`; within them nothing is left out, except that the air is kept clean of messages that
 * no longer change anything: questions and answers of attempts that their proposer has left.
 */
import type { Ballot, SwapResult, VoterState } from '../../lib/peer/arbiter.ts';
import { NEW_VOTER, NO_BALLOT } from '../../lib/peer/arbiter.ts';
import {
  accept,
  compareBallots,
  type Proposer,
  type ProposerEffect,
  type ProposerEvent,
  prepare,
  propose,
  step,
} from '../../lib/peer/register.ts';

const VOTERS = 3;
const NO_ATTEMPT = -1;
const PROPOSERS = 2;
/** What each proposer tries to set, in turn. */
const VALUES = ['ab', 'xy'];

/** The parts that a test can spoil. */
export interface Parts {
  readonly prepare: typeof prepare;
  readonly accept: typeof accept;
  readonly propose: typeof propose;
  readonly step: typeof step;
  /** Whether an answer leaves only when what it says is written. */
  readonly writesFirst: boolean;
}

export const PARTS: Parts = { prepare, accept, propose, step, writesFirst: true };

export interface Bounds {
  /** How many swaps each proposer tries; those that it gave up count. */
  readonly swaps: readonly [number, number];
  /** No ballot has a higher counter. */
  readonly counterMax: number;
  /** Crashes of each process: of the first proposer's, the second's, and the third voter's. */
  readonly crashes: readonly [number, number, number];
  /** No way is longer. */
  readonly depthMax?: number;
  /** Whether a write takes time, so that a crash can come between a question and its answer. */
  readonly slowWrites: boolean;
}

export interface Exploration {
  readonly states: number;
  /** Events on the longest of the shortest ways to a state. */
  readonly depth: number;
  readonly answers: { readonly swapped: number; readonly refused: number };
  /** The first thing that went wrong, and the events that led to it; undefined if all held. */
  readonly violation: { readonly what: string; readonly events: readonly string[] } | undefined;
}

interface Proposal {
  readonly kind: 'accept';
  readonly ballot: Ballot;
  readonly value: string;
  /** What the proposal is based on, and the swap behind it: for the judge. */
  readonly found: Ballot;
  readonly expected: string;
  readonly next: string;
}
type Question = { readonly kind: 'prepare'; readonly ballot: Ballot } | Proposal;
type Answer = Exclude<ProposerEvent, { kind: 'due' } | { kind: 'reachable' }>;
type Message =
  | { readonly to: 'voter'; readonly voter: number; readonly question: Question }
  | { readonly to: 'proposer'; readonly proposer: number; readonly answer: Answer };

interface Voter {
  readonly disk: VoterState;
  /** What the process goes by: what is on disk, unless it answers before it has written. */
  readonly memory: VoterState;
  readonly writing: { readonly state: VoterState; readonly answer: Answer } | undefined;
  readonly crashes: number;
  /** The highest promise that has left. For the judge. */
  readonly promisedAloud: Ballot;
}

interface Client {
  readonly proposer: Proposer | undefined;
  readonly known: string;
  readonly tried: number;
  readonly nextValue: number;
}

interface World {
  readonly voters: readonly number[];
  readonly clients: readonly number[];
  /** Sorted. */
  readonly air: readonly number[];
}

class Violation extends Error {}

/** Gives equal things the same small number, and keeps what is asked of them often. */
class Interned<T, Facts> {
  readonly facts: Facts[] = [];
  readonly #numbers = new Map<string, number>();
  readonly #things: T[] = [];
  readonly #factsOf: (thing: T) => Facts;

  constructor(factsOf: (thing: T) => Facts) {
    this.#factsOf = factsOf;
  }

  number(thing: T): number {
    const key = JSON.stringify(thing);
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.#things.length;
      this.#numbers.set(key, number);
      this.#things.push(thing);
      this.facts.push(this.#factsOf(thing));
    }
    return number;
  }

  thing(number: number): T {
    return this.#things[number]!;
  }
}

const NEW_VOTER_PROCESS: Voter = {
  disk: NEW_VOTER,
  memory: NEW_VOTER,
  writing: undefined,
  crashes: 0,
  promisedAloud: NO_BALLOT,
};
const NEW_CLIENT: Client = { proposer: undefined, known: '', tried: 0, nextValue: 0 };
const FINISHED: Client = { proposer: undefined, known: '', tried: Number.MAX_SAFE_INTEGER, nextValue: 0 };

export function explore(bounds: Bounds, parts: Parts = PARTS): Exploration {
  return new Explorer(bounds, parts).run();
}

class Explorer {
  readonly #bounds: Bounds;
  readonly #parts: Parts;
  readonly #voters = new Interned(({ memory }: Voter) => ballotNumber(memory.promised));
  readonly #clients = new Interned(({ proposer }: Client) =>
    proposer === undefined || proposer.phase === 'waiting' ? NO_ATTEMPT : ballotNumber(proposer.ballot),
  );
  readonly #messages = new Interned(factsOfMessage);
  readonly #seen = new Set<string>();
  readonly #worlds: World[] = [];
  readonly #cameFrom: { readonly world: number; readonly event: () => string }[] = [];
  readonly #asked = new Map<number, { readonly voter: number; readonly sent: readonly number[] }>();
  readonly #told = new Map<number, { readonly client: number; readonly effects: readonly ProposerEffect[] }>();
  #swapped = 0;
  #refused = 0;
  #current = 0;

  constructor(bounds: Bounds, parts: Parts) {
    this.#bounds = bounds;
    this.#parts = parts;
  }

  run(): Exploration {
    const voter = this.#voters.number(NEW_VOTER_PROCESS);
    const client = this.#clients.number(NEW_CLIENT);
    this.#reach({ voters: Array(VOTERS).fill(voter), clients: Array(PROPOSERS).fill(client), air: [] }, () => '');
    let depth = 0;
    let layerEnd = 1;
    try {
      for (; this.#current < this.#worlds.length; this.#current++) {
        if (this.#current === layerEnd) {
          depth++;
          layerEnd = this.#worlds.length;
          if (depth === this.#bounds.depthMax) break;
        }
        this.#expand(this.#worlds[this.#current]!);
      }
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      return this.#exploration(depth, { what: error.message, events: this.#wayTo(this.#current) });
    }
    return this.#exploration(depth, undefined);
  }

  #exploration(depth: number, violation: Exploration['violation']): Exploration {
    const answers = { swapped: this.#swapped, refused: this.#refused };
    return { states: this.#worlds.length, depth, answers, violation };
  }

  #wayTo(last: number): string[] {
    const events: string[] = [];
    for (let at = last; at > 0; at = this.#cameFrom[at]!.world) events.unshift(this.#cameFrom[at]!.event());
    return events;
  }

  #reach(world: World, event: () => string): void {
    const clean = { ...world, air: this.#clean(world) };
    const numbers = [...clean.voters, ...clean.clients, ...clean.air];
    const key = String.fromCharCode(...numbers);
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.#worlds.push(clean);
    this.#cameFrom.push({ world: this.#current, event });
  }

  /** Takes out what can change nothing any more. Accepted proposals and their answers stay: the judge looks at them. */
  #clean({ voters, clients, air }: World): readonly number[] {
    return air.filter((number) => {
      const { kind, ballot, voter, promised } = this.#messages.facts[number]!;
      if (kind === 'accept' || kind === 'accepted') return true;
      const proposer = ballot % PROPOSERS;
      const isCurrent = this.#clients.facts[clients[proposer]!] === ballot;
      if (kind === 'prepare') return isCurrent || ballot > this.#voters.facts[voters[voter]!]!;
      if (!isCurrent || kind === 'promised') return isCurrent;
      const ownCounter = Math.floor(this.#voters.facts[voters[proposer]!]! / PROPOSERS);
      return Math.max(promised, ownCounter) < this.#bounds.counterMax;
    });
  }

  // What can happen next

  #expand(world: World): void {
    for (const number of world.air) {
      const message = this.#messages.thing(number);
      if (message.to === 'voter') this.#ask(world, number, message.voter);
      else if (message.answer.kind !== 'accepted') this.#tell(world, number, message.proposer, message.answer);
    }
    for (let voter = 0; voter < VOTERS; voter++) this.#write(world, voter);
    for (let voter = 0; voter < VOTERS; voter++) this.#crash(world, voter);
    for (let proposer = 0; proposer < PROPOSERS; proposer++) this.#act(world, proposer);
  }

  /** A question reaches a voter. */
  #ask(world: World, number: number, voter: number): void {
    const before = world.voters[voter]!;
    const key = before * 65_536 + number;
    let outcome = this.#asked.get(key);
    if (outcome === undefined) {
      outcome = this.#vote(before, number);
      this.#asked.set(key, outcome);
    }
    if (outcome.voter === before && outcome.sent.every((sent) => world.air.includes(sent))) return;
    const event = () => `${voterName(voter)} is asked: ${describe(this.#messages.thing(number))}`;
    const next = this.#sent({ ...world, voters: world.voters.with(voter, outcome.voter) }, outcome.sent);
    const [answer] = outcome.sent;
    if (answer === undefined || !this.#isOwnPromise(next, answer)) this.#reach(next, event);
    else this.#tell(next, answer, voter, (this.#messages.thing(answer) as Message & { to: 'proposer' }).answer);
  }

  /** What the own voter says to a proposer is heard at once: all that follows is a message, and can be late as such. */
  #isOwnPromise({ clients }: World, answer: number): boolean {
    const { kind, ballot, voter } = this.#messages.facts[answer]!;
    return kind === 'promised' && ballot % PROPOSERS === voter && this.#clients.facts[clients[voter]!] === ballot;
  }

  #vote(before: number, number: number): { voter: number; sent: readonly number[] } {
    const voter = this.#voters.thing(before);
    const message = this.#messages.thing(number);
    if (voter.writing !== undefined || message.to !== 'voter') return { voter: before, sent: [] };
    const { state, answer } = this.#answer(voter.memory, message);
    if (compareBallots(state.promised, voter.memory.promised) < 0) throw new Violation('a promise was taken back');
    if (compareBallots(state.accepted, voter.memory.accepted) < 0) throw new Violation('a voter went back');
    if (answer.kind === 'accepted' && compareBallots(answer.ballot, voter.promisedAloud) < 0)
      throw new Violation('a voter accepted below its promise');
    const writes = state !== voter.memory;
    const after = this.#parts.writesFirst ? voter : { ...voter, memory: state };
    if (writes && this.#bounds.slowWrites) {
      const writing = { state, answer };
      if (this.#parts.writesFirst) return { voter: this.#voters.number({ ...after, writing }), sent: [] };
      return this.#saidAloud({ ...after, writing }, answer);
    }
    return this.#saidAloud({ ...after, memory: state, disk: state }, answer);
  }

  #saidAloud(voter: Voter, answer: Answer): { voter: number; sent: readonly number[] } {
    const isHigher = answer.kind === 'promised' && compareBallots(answer.ballot, voter.promisedAloud) > 0;
    const after = isHigher ? { ...voter, promisedAloud: answer.ballot } : voter;
    const message: Message = { to: 'proposer', proposer: answer.ballot.node, answer };
    return { voter: this.#voters.number(after), sent: [this.#messages.number(message)] };
  }

  #answer(state: VoterState, message: Message & { to: 'voter' }): { state: VoterState; answer: Answer } {
    const { voter, question } = message;
    const { ballot } = question;
    if (question.kind === 'prepare') {
      const vote = this.#parts.prepare(state, ballot);
      const { answer } = vote;
      if (!answer.granted)
        return { state: vote.state, answer: { kind: 'refused', voter, ballot, promised: answer.promised } };
      const { accepted, value } = answer;
      return { state: vote.state, answer: { kind: 'promised', voter, ballot, accepted, value } };
    }
    const { state: after, answer } = this.#parts.accept(state, ballot, question.value);
    if (answer.granted) return { state: after, answer: { kind: 'accepted', voter, ballot } };
    return { state: after, answer: { kind: 'refused', voter, ballot, promised: answer.promised } };
  }

  /** What a voter was writing is on its disk. */
  #write(world: World, voter: number): void {
    const before = this.#voters.thing(world.voters[voter]!);
    if (before.writing === undefined) return;
    const { state, answer } = before.writing;
    const written = { ...before, disk: state, memory: state, writing: undefined };
    const after = this.#parts.writesFirst
      ? this.#saidAloud(written, answer)
      : { voter: this.#voters.number(written), sent: [] };
    const next = this.#sent({ ...world, voters: world.voters.with(voter, after.voter) }, after.sent);
    this.#reach(next, () => `${voterName(voter)} has written`);
  }

  /** A process crashes and is there again: the first two with a proposer in it. */
  #crash(world: World, process: number): void {
    const before = this.#voters.thing(world.voters[process]!);
    if (before.crashes >= this.#bounds.crashes[process]!) return;
    const after = { ...before, memory: before.disk, writing: undefined, crashes: before.crashes + 1 };
    let { clients } = world;
    if (process < PROPOSERS) {
      const client = this.#clients.thing(clients[process]!);
      const isIdle =
        client.proposer === undefined || !this.#hasMore(process, { ...client, nextValue: client.nextValue + 1 });
      if (isIdle && before.writing === undefined) return;
      const nextValue = client.proposer === undefined ? client.nextValue : client.nextValue + 1;
      clients = clients.with(process, this.#clients.number(this.#idle(process, { ...client, nextValue })));
    } else if (before.writing === undefined) return;
    const voters = world.voters.with(process, this.#voters.number(after));
    this.#reach({ ...world, voters, clients }, () => `the process of ${voterName(process)} crashes`);
  }

  /** A proposer begins a swap, tries again, or gives up. */
  #act(world: World, proposer: number): void {
    const before = this.#clients.thing(world.clients[proposer]!);
    const own = this.#voters.thing(world.voters[proposer]!).memory.promised;
    const name = proposerName(proposer);
    if (before.proposer === undefined) {
      const next = VALUES[proposer]![before.nextValue];
      if (next === undefined || !this.#hasMore(proposer, before)) return;
      const swap = { self: proposer, voters: VOTERS, expected: before.known, next };
      const { state, effects } = this.#parts.propose(swap, own);
      if (state.ballot.counter > this.#bounds.counterMax) return;
      const client = { ...before, proposer: state, tried: before.tried + 1 };
      this.#perform(world, proposer, client, effects, () => `${name} begins: ${swap.expected || '-'} to ${next}`);
      return;
    }
    if (before.proposer.phase === 'accept') this.#hearAcceptances(world, proposer, before.proposer);
    if (this.#hasMore(proposer, before)) {
      const givenUp = this.#clients.number(this.#idle(proposer, before));
      this.#reach({ ...world, clients: world.clients.with(proposer, givenUp) }, () => `${name} gives up`);
    }
    if (before.proposer.phase !== 'waiting') return;
    const { state, effects } = this.#parts.step(before.proposer, { kind: 'due', promised: own });
    if (state.ballot.counter > this.#bounds.counterMax) return;
    this.#perform(world, proposer, { ...before, proposer: state }, effects, () => `${name} tries again`);
  }

  /** An answer reaches a proposer. */
  #tell(world: World, number: number, proposer: number, answer: Answer): void {
    const before = world.clients[proposer]!;
    const key = before * 65_536 + number;
    let outcome = this.#told.get(key);
    if (outcome === undefined) {
      const client = this.#clients.thing(before);
      if (client.proposer === undefined) return;
      const { state, effects } = this.#parts.step(client.proposer, answer);
      outcome = { client: this.#clients.number({ ...client, proposer: state }), effects };
      this.#told.set(key, outcome);
    }
    if (outcome.client === before && outcome.effects.length === 0) return;
    const event = () => `${proposerName(proposer)} hears: ${describe(this.#messages.thing(number))}`;
    this.#perform(world, proposer, this.#clients.thing(outcome.client), outcome.effects, event);
  }

  /** Acceptances are heard all at once: hearing fewer of them changes nothing that anyone else could see. */
  #hearAcceptances(world: World, proposer: number, before: Proposer): void {
    let state = before;
    for (const number of world.air) {
      const message = this.#messages.thing(number);
      if (message.to !== 'proposer' || message.answer.kind !== 'accepted') continue;
      const heard = this.#parts.step(state, message.answer);
      state = heard.state;
      if (heard.effects.length === 0) continue;
      const client = { ...this.#clients.thing(world.clients[proposer]!), proposer: state };
      const event = () => `${proposerName(proposer)} hears of a majority`;
      this.#perform(world, proposer, client, heard.effects, event);
      return;
    }
  }

  /** Whether there is another swap to try. */
  #hasMore(proposer: number, { tried, nextValue }: Client): boolean {
    return tried < this.#bounds.swaps[proposer]! && nextValue < VALUES[proposer]!.length;
  }

  #idle(proposer: number, client: Client): Client {
    return this.#hasMore(proposer, client) ? { ...client, proposer: undefined } : FINISHED;
  }

  #perform(
    world: World,
    proposer: number,
    client: Client,
    effects: readonly ProposerEffect[],
    event: () => string,
  ): void {
    let after = client;
    const sent: number[] = [];
    for (const effect of effects) {
      if (effect.kind === 'done') after = this.#done(world, after, effect.result);
      else if (effect.kind !== 'wait') sent.push(this.#question(world, client, effect));
    }
    const clients = world.clients.with(proposer, this.#clients.number(after));
    this.#reach(this.#sent({ ...world, clients }, sent), event);
  }

  #question(world: World, { proposer }: Client, effect: ProposerEffect & { kind: 'prepare' | 'accept' }): number {
    const { voter, ballot } = effect;
    if (effect.kind === 'prepare')
      return this.#messages.number({ to: 'voter', voter, question: { kind: 'prepare', ballot } });
    const { found, swap } = proposer!;
    const { expected, next } = swap;
    const question: Question = { kind: 'accept', ballot, value: effect.value, found: found.accepted, expected, next };
    this.#judgeProposal(world, question);
    return this.#messages.number({ to: 'voter', voter, question });
  }

  #sent(world: World, sent: readonly number[]): World {
    const fresh = sent.filter((number) => !world.air.includes(number));
    if (fresh.length === 0) return world;
    const after = { ...world, air: [...world.air, ...fresh].sort((a, b) => a - b) };
    if (fresh.some((number) => this.#isNowChosen(after, number))) this.#judgeChain(after);
    return after;
  }

  #isNowChosen({ air }: World, number: number): boolean {
    const { kind, ballot } = this.#messages.facts[number]!;
    if (kind !== 'accepted') return false;
    let count = 0;
    for (const other of air) {
      const facts = this.#messages.facts[other]!;
      if (facts.kind === 'accepted' && facts.ballot === ballot) count++;
    }
    return count * 2 > VOTERS;
  }

  // The judge

  #proposals(world: World): Map<string, Proposal> {
    const proposals = new Map<string, Proposal>();
    for (const number of world.air) {
      const message = this.#messages.thing(number);
      if (message.to === 'voter' && message.question.kind === 'accept')
        proposals.set(ballotText(message.question.ballot), message.question);
    }
    return proposals;
  }

  /** What a majority has accepted, in the order of the ballots. */
  #chosen(world: World): Proposal[] {
    const counts = new Map<string, number>();
    for (const number of world.air) {
      const message = this.#messages.thing(number);
      if (message.to !== 'proposer' || message.answer.kind !== 'accepted') continue;
      const ballot = ballotText(message.answer.ballot);
      counts.set(ballot, (counts.get(ballot) ?? 0) + 1);
    }
    const proposals = this.#proposals(world);
    const chosen = [...counts].filter(([, count]) => count * 2 > VOTERS).map(([ballot]) => proposals.get(ballot)!);
    return chosen.sort((a, b) => compareBallots(a.ballot, b.ballot));
  }

  #judgeProposal(world: World, question: Proposal): void {
    const proposals = this.#proposals(world);
    const other = proposals.get(ballotText(question.ballot));
    if (other !== undefined && JSON.stringify(other) !== JSON.stringify(question))
      throw new Violation(`one ballot, two proposals: ${other.value || '-'} and ${question.value || '-'}`);
    const base = proposals.get(ballotText(question.found))?.value ?? '';
    const isChange = base === question.expected && question.value === question.next;
    if (!isChange && question.value !== base) throw new Violation(`${base || '-'} became ${question.value} by no swap`);
  }

  /** Every chosen value has every one that was chosen before it among its ancestors, and no swap happens twice. */
  #judgeChain(world: World): void {
    const proposals = this.#proposals(world);
    const chosen = this.#chosen(world);
    const last = chosen.at(-1);
    if (last === undefined) return;
    const ancestors = new Set<string>();
    const changes: string[] = [];
    for (let at: Proposal | undefined = last; at !== undefined; at = proposals.get(ballotText(at.found))) {
      ancestors.add(ballotText(at.ballot));
      if ((proposals.get(ballotText(at.found))?.value ?? '') !== at.value) changes.push(at.value);
    }
    for (const { ballot, value } of chosen)
      if (!ancestors.has(ballotText(ballot)))
        throw new Violation(`${value || '-'} was chosen, and ${last.value || '-'} does not follow from it`);
    if (new Set(changes).size !== changes.length) throw new Violation(`a swap happened twice: ${changes.reverse()}`);
  }

  #done(world: World, client: Client, result: SwapResult): Client {
    const { ballot, swap } = client.proposer!;
    const value = result.swapped ? swap.next : result.current;
    const chosen = this.#chosen(world).find((each) => sameBallot(each.ballot, ballot));
    if (chosen === undefined) throw new Violation(`${value || '-'} was answered, and no majority holds it`);
    if (chosen.value !== value)
      throw new Violation(`${value || '-'} was answered, and ${chosen.value || '-'} was chosen`);
    if (!result.swapped && (value === swap.expected || value === swap.next))
      throw new Violation(`${value || '-'} was no reason to refuse`);
    if (result.swapped) this.#swapped++;
    else this.#refused++;
    return this.#idle(swap.self, { ...client, known: value, nextValue: client.nextValue + 1 });
  }
}

/** Ballots of two proposers as numbers in the same order; the lowest bit is the proposer. */
function ballotNumber({ counter, node }: Ballot): number {
  return counter * PROPOSERS + node;
}

function factsOfMessage(message: Message): { kind: string; ballot: number; voter: number; promised: number } {
  if (message.to === 'voter') {
    const { voter, question } = message;
    return { kind: question.kind, ballot: ballotNumber(question.ballot), voter, promised: 0 };
  }
  const { kind, ballot, voter } = message.answer;
  const promised = message.answer.kind === 'refused' ? message.answer.promised.counter : 0;
  return { kind, ballot: ballotNumber(ballot), voter, promised };
}

function sameBallot(a: Ballot, b: Ballot): boolean {
  return compareBallots(a, b) === 0;
}

function ballotText({ counter, node }: Ballot): string {
  return `${counter}.${node}`;
}

function voterName(voter: number): string {
  return `voter ${voter}`;
}

function proposerName(proposer: number): string {
  return `proposer ${proposer}`;
}

function describe(message: Message): string {
  if (message.to === 'voter') {
    const { question } = message;
    return `${question.kind} ${ballotText(question.ballot)}${question.kind === 'accept' ? ` ${question.value || '-'}` : ''}`;
  }
  const { answer } = message;
  const held = answer.kind === 'promised' ? `, holds ${answer.value || '-'}` : '';
  return `voter ${answer.voter} ${answer.kind} ${ballotText(answer.ballot)}${held}`;
}
