/** The register's machine, in every order of events within bounds; and the same machine spoilt, which must be found. */
import { describe, expect, test } from 'vitest';
import { NO_BALLOT } from '../../lib/peer/arbiter.ts';
import { compareBallots, type Proposer, prepare, propose, step } from '../../lib/peer/register.ts';
import { type Bounds, explore, PARTS, type Parts } from './register-explorer.ts';

const NO_CRASHES = [0, 0, 0] as const;

describe('in every order of events, what is chosen is one chain of swaps and what is answered is right', () => {
  const cases: readonly (readonly [string, Bounds, { states: number; depth: number }])[] = [
    [
      'one swap each, one attempt: all there is',
      { swaps: [1, 1], counterMax: 1, crashes: NO_CRASHES, slowWrites: false },
      { states: 4_894, depth: 20 },
    ],
    [
      'one swap each, with a second attempt: all there is',
      { swaps: [1, 1], counterMax: 2, crashes: NO_CRASHES, slowWrites: false },
      { states: 87_873, depth: 29 },
    ],
    [
      'two swaps each, three attempts, each proposer crashes once: all of up to 12 events',
      { swaps: [2, 2], counterMax: 3, crashes: [1, 1, 0], slowWrites: false, depthMax: 12 },
      { states: 97_773, depth: 12 },
    ],
    [
      'two swaps against one, every process crashes once, also while its voter writes: all of up to 16 events',
      { swaps: [2, 1], counterMax: 2, crashes: [1, 1, 1], slowWrites: true, depthMax: 16 },
      { states: 49_989, depth: 16 },
    ],
  ];
  for (const [what, bounds, found] of cases) {
    test(what, () => {
      const { violation, states, depth, answers } = explore(bounds);
      expect(violation).toBeUndefined();
      expect({ states, depth }).toEqual(found);
      expect(answers.swapped).toBeGreaterThan(0);
    }, 120_000);
  }
});

describe('a spoilt machine is found', () => {
  const bounds: Bounds = { swaps: [2, 1], counterMax: 2, crashes: [1, 0, 0], slowWrites: false, depthMax: 20 };
  const slow: Bounds = { ...bounds, crashes: [1, 0, 1], slowWrites: true };

  function found(spoilt: Partial<Parts>, within: Bounds = bounds): string {
    return explore(within, { ...PARTS, ...spoilt }).violation?.what ?? 'nothing';
  }

  test('a voter accepts below its promise', () => {
    const spoilt: Parts['accept'] = (state, ballot, value) => ({
      state: { ...state, accepted: ballot, value },
      answer: { granted: true },
    });
    expect(found({ accept: spoilt })).toMatch(/below its promise/);
  });

  test('a voter takes a promise back', () => {
    const spoilt: Parts['prepare'] = (state, ballot) => {
      const { promised: _, ...held } = state;
      return prepare({ ...held, promised: NO_BALLOT }, ballot);
    };
    expect(found({ prepare: spoilt })).toMatch(/promise was taken back/);
  });

  test('a voter answers before its state is written', () => {
    expect(found({ writesFirst: false }, slow)).toMatch(/one ballot, two proposals/);
  });

  test('a proposer answers what stood in the way without having it accepted', () => {
    const spoilt: Parts['step'] = (state, event) => {
      const after = step(state, event);
      const proposal = after.effects.find((effect) => effect.kind === 'accept');
      if (proposal === undefined || proposal.value === state.swap.next) return after;
      const result = { swapped: false, current: proposal.value } as const;
      return { state: { ...after.state, phase: 'done' }, effects: [{ kind: 'done', result }] };
    };
    expect(found({ step: spoilt })).toMatch(/was answered, and no majority holds it/);
  });

  test('a proposer that finds its value there takes it for chosen', () => {
    const spoilt: Parts['step'] = (state, event) => {
      const after = step(state, event);
      const isFound = after.state.phase === 'accept' && after.state.found.value === state.swap.next;
      if (!isFound || state.phase === 'accept') return after;
      return { state: { ...after.state, phase: 'done' }, effects: [{ kind: 'done', result: { swapped: true } }] };
    };
    expect(found({ step: spoilt })).toMatch(/was answered, and no majority holds it/);
  });

  test('a proposer takes a ballot again after a restart', () => {
    expect(found({ propose: (swap) => propose(swap, NO_BALLOT) })).toMatch(/one ballot, two proposals/);
  });

  test('a proposer asks the others before its own voter has promised', () => {
    const spoilt: Parts['propose'] = (swap, promised) => {
      const { state, effects } = propose(swap, promised);
      const { ballot } = state;
      const early = [0, 1, 2].filter((voter) => voter !== swap.self);
      return { state, effects: [...effects, ...early.map((voter) => ({ kind: 'prepare', voter, ballot }) as const)] };
    };
    expect(found({ propose: spoilt })).toMatch(/one ballot, two proposals/);
  });

  test('a proposer goes by the first accepted value that it hears of, not by the highest', () => {
    const spoilt: Parts['step'] = (state, event) => {
      const known = compareBallots(state.found.accepted, NO_BALLOT) > 0;
      if (event.kind !== 'promised' || !known) return step(state, event);
      return step(state, { ...event, accepted: NO_BALLOT, value: '' });
    };
    const oneEach: Bounds = { swaps: [1, 1], counterMax: 2, crashes: NO_CRASHES, slowWrites: false };
    expect(found({ step: spoilt }, oneEach)).toMatch(/does not follow/);
  });

  test('a proposer counts an answer twice', () => {
    const spoilt: Parts['step'] = (state, event) => {
      const once = step(state, event);
      if (event.kind !== 'promised' || once.state.phase !== 'prepare') return once;
      const twice = step(once.state, { ...event, voter: (event.voter + 1) % 3 });
      return { state: twice.state, effects: [...once.effects, ...twice.effects] };
    };
    expect(found({ step: spoilt })).toMatch(/does not follow/);
  });

  test('a proposer answers when one voter has accepted', () => {
    const spoilt: Parts['step'] = (state: Proposer, event) => {
      const after = step(state, event);
      if (event.kind !== 'accepted' || after.state.phase !== 'accept') return after;
      return step(after.state, { ...event, voter: (event.voter + 1) % 3 });
    };
    expect(found({ step: spoilt })).toMatch(/no majority holds it/);
  });
});
