/**
 * The embedded register, pure: what a voter answers, and how a proposer carries one compare-and-swap through. Paxos for
 * one value that changes, without a log: D. Rystsov, "CASPaxos: Replicated State Machines without logs" (2018),
 * sections 2.1 and 2.2, with compare-and-swap as the only change. register-driver.ts performs the effects.
 *
 * Invariants:
 * - A voter takes part in nothing below its promise, and never takes a promise or an accepted value back; what it
 *   answers is durable before the answer leaves.
 * - A ballot belongs to one attempt of one proposer, for ever: the proposer's own voter promises it, durably, before
 *   anyone else hears of it, and the next attempt, also after a restart, goes above that promise.
 * - What a compare-and-swap answers has been accepted by a majority under one ballot: success as well as the value that
 *   stood in the way. So the values that were ever chosen form one chain, each the `next` of a compare-and-swap that
 *   expected the one before.
 */
import { assert, HoldfastError } from '../base/errors.ts';
import { type Ballot, NO_BALLOT, type SwapResult, VALUE_MAX_BYTES, type VoterState } from './arbiter.ts';

/** Far below 2^53. A counter beyond it is not taken from anyone: it would leave no room for the ballots after it. */
export const COUNTER_MAX = 2 ** 48;
export const VOTERS_MAX = 16;
const BACK_OFF_FIRST_MS = 10;
const BACK_OFF_MOST_MS = 500;

export function compareBallots(a: Ballot, b: Ballot): number {
  return a.counter - b.counter || a.node - b.node;
}

export function isValue(text: string): boolean {
  return text.length <= VALUE_MAX_BYTES && /^[\x20-\x7e]*$/.test(text);
}

/** @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT */
export function checkValue(text: string): void {
  if (isValue(text)) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `${JSON.stringify(text.slice(0, 40))} cannot be a register's value; it holds at most ${VALUE_MAX_BYTES} characters of ASCII`,
  );
}

// The voter

export interface Refused {
  readonly granted: false;
  readonly promised: Ballot;
}
export type PrepareAnswer = { readonly granted: true; readonly accepted: Ballot; readonly value: string } | Refused;
export type AcceptAnswer = { readonly granted: true } | Refused;

export interface Vote<Answer> {
  /** To be durable before the answer leaves. The same object if nothing has changed. */
  readonly state: VoterState;
  readonly answer: Answer;
}

/** Phase 1. A question that comes twice is answered twice. */
export function prepare(state: VoterState, ballot: Ballot): Vote<PrepareAnswer> {
  const { promised, accepted, value } = state;
  const order = compareBallots(ballot, promised);
  if (order < 0) return { state, answer: { granted: false, promised } };
  return { state: order === 0 ? state : { ...state, promised: ballot }, answer: { granted: true, accepted, value } };
}

/** Phase 2. */
export function accept(state: VoterState, ballot: Ballot, value: string): Vote<AcceptAnswer> {
  const { promised } = state;
  if (compareBallots(ballot, promised) < 0) return { state, answer: { granted: false, promised } };
  const known = compareBallots(ballot, state.accepted) === 0 && value === state.value;
  return { state: known ? state : { promised: ballot, accepted: ballot, value }, answer: { granted: true } };
}

/** What a voter has accepted last, durably. */
export type Look = Pick<VoterState, 'accepted' | 'value'>;

/**
 * What a majority of the voters has accepted under one ballot, if the looks show that: nothing newer had been chosen
 * when the first of them was taken, for its majority would have had a voter in common with this one, which has gone
 * beyond the ballot then and never goes back. So the value was the register's at that moment or later, and nobody has
 * been asked for a promise, nor has anything been written.
 *
 * @param looks one of each voter that has answered
 * @param voters how many there are
 */
export function agreed(looks: readonly Look[], voters: number): Look | undefined {
  return looks.find(({ accepted }) => {
    const alike = looks.filter((look) => compareBallots(look.accepted, accepted) === 0).length;
    return alike * 2 > voters;
  });
}

// The proposer

export interface Swap {
  /** The proposer's own voter. */
  readonly self: number;
  /** How many voters there are. */
  readonly voters: number;
  readonly expected: string;
  readonly next: string;
}

export interface Proposer {
  readonly swap: Swap;
  /** `waiting`: another proposer was ahead; the next attempt begins when the wait is over. */
  readonly phase: 'prepare' | 'accept' | 'waiting' | 'done';
  readonly ballot: Ballot;
  readonly attempt: number;
  /** Who has granted this phase: bit n = voter n. */
  readonly granted: number;
  /** The highest proposal that those who promised have accepted, and its value. */
  readonly found: { readonly accepted: Ballot; readonly value: string };
  /** What is proposed in phase 2. */
  readonly value: string;
  /** The highest counter that a voter refused for. */
  readonly highest: number;
}

export type ProposerEvent =
  | {
      readonly kind: 'promised';
      readonly voter: number;
      readonly ballot: Ballot;
      readonly accepted: Ballot;
      readonly value: string;
    }
  | { readonly kind: 'accepted'; readonly voter: number; readonly ballot: Ballot }
  | { readonly kind: 'refused'; readonly voter: number; readonly ballot: Ballot; readonly promised: Ballot }
  /** The wait is over. `promised`: what the own voter has promised, durably. */
  | { readonly kind: 'due'; readonly promised: Ballot }
  /** A voter that may have missed what it was asked can be asked again. */
  | { readonly kind: 'reachable'; readonly voter: number };

export type ProposerEffect =
  | { readonly kind: 'prepare'; readonly voter: number; readonly ballot: Ballot }
  | { readonly kind: 'accept'; readonly voter: number; readonly ballot: Ballot; readonly value: string }
  /** Step `due` after a random time of up to this. */
  | { readonly kind: 'wait'; readonly mostMs: number }
  | { readonly kind: 'done'; readonly result: SwapResult };

export interface ProposerStep {
  readonly state: Proposer;
  readonly effects: readonly ProposerEffect[];
}

/** Begins. `promised`: what the own voter has promised, durably. */
export function propose(swap: Swap, promised: Ballot): ProposerStep {
  assert(swap.voters >= 1 && swap.voters <= VOTERS_MAX && swap.self < swap.voters, 'a proposer is one of the voters');
  return begin({ swap, phase: 'waiting', attempt: 0, highest: 0, ...NOTHING_YET }, promised);
}

export function step(state: Proposer, event: ProposerEvent): ProposerStep {
  switch (event.kind) {
    case 'promised':
      return answers(state, 'prepare', event) ? promised(state, event) : { state, effects: [] };
    case 'accepted':
      return answers(state, 'accept', event) ? accepted(state, event.voter) : { state, effects: [] };
    case 'refused':
      return refused(state, event);
    case 'due':
      return state.phase === 'waiting' ? begin(state, event.promised) : { state, effects: [] };
    case 'reachable':
      return { state, effects: ask(state, [event.voter]) };
  }
}

const NOTHING_YET = { ballot: NO_BALLOT, granted: 0, found: { accepted: NO_BALLOT, value: '' }, value: '' };

function begin(state: Proposer, ownPromise: Ballot): ProposerStep {
  const counter = Math.max(ownPromise.counter, state.highest) + 1;
  if (counter > COUNTER_MAX) throw new HoldfastError('ERR_HOLDFAST_INTERNAL', 'a register has no ballots left');
  const { self } = state.swap;
  const ballot = { counter, node: self };
  const begun: Proposer = { ...state, ...NOTHING_YET, phase: 'prepare', attempt: state.attempt + 1, ballot };
  // The others only once the own voter has it durably: a restart must not take this ballot again.
  return { state: begun, effects: ask(begun, [self]) };
}

/** Whether this answers what is being asked now, for the first time. */
function answers(state: Proposer, phase: Proposer['phase'], event: { voter: number; ballot: Ballot }): boolean {
  if (state.phase !== phase || compareBallots(event.ballot, state.ballot) !== 0) return false;
  return event.voter < state.swap.voters && !has(state.granted, event.voter);
}

function promised(before: Proposer, event: ProposerEvent & { kind: 'promised' }): ProposerStep {
  const { swap, found } = before;
  const isNewer = compareBallots(event.accepted, found.accepted) > 0;
  const state = {
    ...before,
    granted: before.granted | (1 << event.voter),
    found: isNewer ? { accepted: event.accepted, value: event.value } : found,
  };
  if (isMajority(state)) return propagate(state);
  return { state, effects: event.voter === swap.self ? ask(state, others(swap)) : [] };
}

/** Phase 2, whatever was found: it may be on a minority only, and an answer that is based on it must not be undone. */
function propagate(before: Proposer): ProposerStep {
  const { swap, found } = before;
  const value = found.value === swap.expected ? swap.next : found.value;
  const state: Proposer = { ...before, phase: 'accept', granted: 0, value };
  return { state, effects: ask(state, [swap.self, ...others(swap)]) };
}

function accepted(before: Proposer, voter: number): ProposerStep {
  const { value, swap } = before;
  const state = { ...before, granted: before.granted | (1 << voter) };
  if (!isMajority(state)) return { state, effects: [] };
  const result: SwapResult = value === swap.next ? { swapped: true } : { swapped: false, current: value };
  return { state: { ...state, phase: 'done' }, effects: [{ kind: 'done', result }] };
}

function refused(before: Proposer, event: ProposerEvent & { kind: 'refused' }): ProposerStep {
  const isAsking = before.phase === 'prepare' || before.phase === 'accept';
  if (!isAsking || compareBallots(event.ballot, before.ballot) !== 0) return { state: before, effects: [] };
  const highest = Math.max(before.highest, event.promised.counter);
  const mostMs = Math.min(BACK_OFF_FIRST_MS * 2 ** (before.attempt - 1), BACK_OFF_MOST_MS);
  return { state: { ...before, phase: 'waiting', highest }, effects: [{ kind: 'wait', mostMs }] };
}

/** What the voters are to be asked now, without those who have answered. */
function ask(state: Proposer, voters: readonly number[]): ProposerEffect[] {
  const { phase, ballot, value, granted, swap } = state;
  if (phase !== 'prepare' && phase !== 'accept') return [];
  const isReserved = phase === 'accept' || has(granted, swap.self);
  return voters
    .filter((voter) => !has(granted, voter) && (isReserved || voter === swap.self))
    .map((voter) =>
      phase === 'prepare' ? { kind: 'prepare', voter, ballot } : { kind: 'accept', voter, ballot, value },
    );
}

function others(swap: Swap): number[] {
  return Array.from({ length: swap.voters }, (_, voter) => voter).filter((voter) => voter !== swap.self);
}

function has(granted: number, voter: number): boolean {
  return (granted & (1 << voter)) !== 0;
}

function isMajority({ granted, swap }: Proposer): boolean {
  let count = 0;
  for (let voter = 0; voter < swap.voters; voter++) if (has(granted, voter)) count++;
  return count * 2 > swap.voters;
}
