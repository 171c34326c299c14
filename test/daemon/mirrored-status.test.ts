import { expect, it } from 'vitest';
import { parseStanding } from '../../lib/checkpoint/mirror-standing.ts';
import { type MirroredRegionView, mirroredRegionStatus, type RebuildHeard } from '../../lib/daemon/mirrored-status.ts';

const NONCE = '0123456789abcdef';
const reach = (name: string, isInReach = true) => ({ name, isInReach, problem: undefined });
const healthy: MirroredRegionView = {
  region: {
    name: 'orders',
    id: 'd'.repeat(32),
    units: [
      { unit: 'a', manager: 'a', stateFile: 'a.vote' },
      { unit: 'b', manager: 'b', stateFile: 'b.vote' },
    ],
    tieBreaker: { node: 'tie', stateFile: 'tie.vote' },
  },
  self: 'a',
  stateFile: '/a.vote',
  isTieBreaker: false,
  isCurrent: true,
  isCreated: true,
  isForeign: false,
  standing: parseStanding(`HFM1 3 ab till ${NONCE} 2`),
  voters: [reach('a'), reach('b'), reach('tie')],
  rebuild: undefined,
  nowMs: 10_000,
};
const degraded: MirroredRegionView = { ...healthy, standing: parseStanding(`HFM1 3 a till ${NONCE} 3`) };
const rebuild: RebuildHeard = {
  peer: 'till',
  leg: 1,
  doneBytes: 3000,
  totalBytes: 10_000,
  firstMs: 8000,
  firstBytes: 1000,
  lastMs: 9000,
};
const failedVote = { code: 'ERR_HOLDFAST_IO', message: 'it could not be written; check its file' } as const;

it.each<readonly [string, string, Partial<MirroredRegionView>, readonly string[], readonly string[]]>([
  ['Online', 'both are in sync', {}, [], ['in', 'in']],
  ['New', 'nobody has written it', { standing: undefined }, [], ['?', '?']],
  [
    'Degraded',
    'only b is in sync',
    { standing: parseStanding(`HFM1 3 b till ${NONCE} 3`) },
    ['HOLDFAST-UNIT-OUT Unit a does not have all that was acknowledged: only b is a copy.'],
    ['out', 'in'],
  ],
  [
    'TakingOver',
    'a new writer makes them alike',
    { standing: parseStanding(`HFM1 4 a~b shop ${NONCE} 1`) },
    ['HOLDFAST-TAKE-OVER shop takes the region over: both units are made alike before anything is acknowledged.'],
    ['in', 'in'],
  ],
  [
    'Online',
    'a voter is away',
    { voters: [reach('a'), reach('b'), reach('tie', false)] },
    ['HOLDFAST-VOTER-AWAY tie is away, and has no vote.'],
    ['in', 'in'],
  ],
  [
    'Unknown',
    'two voters are away',
    { isCurrent: false, voters: [reach('a'), reach('b', false), reach('tie', false)] },
    [
      'HOLDFAST-NO-QUORUM No majority of a, b, tie says how the region stands: nobody opens it, and its writer waits if it loses a unit.',
    ],
    ['in', 'in'],
  ],
  [
    'Failed',
    'this node cannot keep its vote',
    { voters: [{ name: 'a', isInReach: false, problem: failedVote }, reach('b'), reach('tie')] },
    ['ERR_HOLDFAST_IO it could not be written'],
    ['in', 'in'],
  ],
  [
    'Failed',
    'the register holds something else',
    { isForeign: true, standing: undefined },
    [`ERR_HOLDFAST_METADATA_MISMATCH The register ${'d'.repeat(32)} holds no record of a mirrored region.`],
    ['?', '?'],
  ],
  [
    'Online',
    'this unit has lost its memory, and nobody has noticed',
    { isCreated: false },
    ['HOLDFAST-UNIT-BLANK Unit a has no region orders, although it was in sync.'],
    ['in', 'in'],
  ],
  [
    'Degraded',
    'this unit is a new one',
    { isCreated: false, standing: parseStanding(`HFM1 3 b till ${NONCE} 3`) },
    ['HOLDFAST-UNIT-BLANK Unit a has no region orders.'],
    ['out', 'in'],
  ],
  ['New', 'it is nowhere yet', { isCreated: false, standing: undefined }, [], ['?', '?']],
  ['Voting', 'this node only votes', { self: 'tie', isTieBreaker: true, isCurrent: false }, [], ['in', 'in']],
])('%s: %s', (state, _what, change, problems, units) => {
  const status = mirroredRegionStatus({ ...healthy, ...change });
  expect(status.state).toBe(state);
  expect(status.problems.map(({ code, message }) => `${code} ${message}`)).toEqual(problems);
  const word = (inSync: boolean | null) => (inSync === null ? '?' : inSync ? 'in' : 'out');
  expect(status.units.map(({ inSync }) => word(inSync))).toEqual(units);
});

it.each<[string, boolean, boolean, RegExp]>([
  ['that is away is to be brought back', true, false, /^Bring unit b back/],
  [
    'that is there is not to be brought back: a writer has to be there',
    true,
    true,
    /^If unit b is there.* if there is no writer, open/,
  ],
  ['is of no use while the only copy is away', false, true, /^Bring unit a back: nobody can use/],
  ['is of no use while the only copy is away, too', false, false, /^Bring unit a back: nobody can use/],
])('a unit out of sync %s', (_what, hasA, hasB, action) => {
  const { problems } = mirroredRegionStatus({
    ...degraded,
    voters: [reach('a', hasA), reach('b', hasB), reach('tie')],
  });
  expect(problems.find(({ code }) => code === 'HOLDFAST-UNIT-OUT')!.action).toMatch(action);
});

it('a rebuild is told with its rate, and is no longer asked of anybody', () => {
  const status = mirroredRegionStatus({ ...degraded, rebuild });
  expect(status.rebuild).toEqual({
    unit: 'b',
    doneBytes: 3000,
    totalBytes: 10_000,
    bytesPerSecond: 2000,
    toGoMs: 3500,
  });
  expect(status.problems).toEqual([
    { code: 'HOLDFAST-RESYNC', message: 'till rebuilds unit b: until then only a is a copy.', action: '' },
  ]);
  const first = mirroredRegionStatus({ ...degraded, rebuild: { ...rebuild, firstMs: 9000 } });
  expect(first.rebuild).toMatchObject({ bytesPerSecond: 0, toGoMs: null });
});

it.each<[string, Partial<MirroredRegionView>]>([
  ['that nobody has told of for long', { nowMs: 20_000, rebuild }],
  ['by somebody who is not the writer', { rebuild: { ...rebuild, peer: 'shop' } }],
  ['of a unit that is in sync', { standing: healthy.standing, rebuild }],
])('a rebuild %s is not shown', (_what, change) => {
  expect(mirroredRegionStatus({ ...degraded, ...change }).rebuild).toBeNull();
});
