import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { volumeStatus } from '../../lib/daemon/volume-status.ts';
import type { ControllerStatus } from '../../lib/mirror/controller.ts';
import { CREATED_RECORD } from '../../lib/mirror/view.ts';
import type { VoterReach } from '../../lib/peer/register-driver.ts';

const config = {
  name: 'data',
  id: '0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c11',
  sizeBytes: 1024 ** 3,
  ackMode: 'durable',
  onLostPeer: 'suspend',
  tieBreaker: undefined,
  members: [
    { node: 'a', device: '/dev/one', metadata: 'internal' },
    { node: 'b', device: '/dev/two', metadata: 'internal' },
  ],
  policingExtentBytes: 1024 ** 2,
  activityLogExtentBytes: 4 * 1024 ** 2,
  bitmapGrainBytes: 64 * 1024,
} as const;

const paired: ControllerStatus = {
  role: 'paired',
  record: {
    ...CREATED_RECORD,
    known: { number: 3, id: '1'.repeat(32), inSync: 3, holder: 1 },
    dataState: 'up-to-date',
  },
  ownState: 'UpToDate',
  peerState: 'UpToDate',
  gate: { mode: 'local', reason: undefined },
  markedBytes: 0,
  resync: undefined,
  problem: undefined,
};

const said = (status: Partial<ControllerStatus>, linked = true) =>
  volumeStatus({ config, node: 'a', linked, status: { ...paired, ...status }, resyncedBytes: 5, voters: [] });

it('both copies in order', () => {
  expect(said({})).toEqual({
    name: 'data',
    id: config.id,
    sizeBytes: 1024 ** 3,
    state: 'Online',
    problems: [],
    copies: [
      { node: 'a', local: true, disk: 'UpToDate', device: '/dev/one', outOfSyncBytes: 0 },
      { node: 'b', local: false, disk: 'UpToDate', device: null, outOfSyncBytes: 0 },
    ],
    resync: null,
    voters: [],
    serving: ['a', 'b'],
    resyncedBytes: 5,
  });
});

it('a resync from here', () => {
  const resync = { doneBytes: 10, totalBytes: 30, elapsedMs: 5, rate: 2000, etaMs: 10 };
  const status = said({ role: 'source', peerState: 'Inconsistent', resync, markedBytes: 20 });
  expect(status.state).toBe('Degraded');
  expect(status.resync).toEqual({
    role: 'SyncSource',
    peer: 'b',
    doneBytes: 10,
    totalBytes: 30,
    bytesPerSecond: 2000,
    toGoMs: 10,
  });
  expect(status.problems.map((problem) => problem.code)).toEqual(['HOLDFAST-RESYNC']);
  expect(status.copies[1]).toMatchObject({ disk: 'Inconsistent', outOfSyncBytes: 20 });
});

describe('why requests wait, by the rule of the controller', () => {
  it.each([
    ['created', 'HOLDFAST-NEW'],
    ['inconsistent', 'HOLDFAST-INCONSISTENT'],
    ['outdated', 'HOLDFAST-OUTDATED'],
    ['suspend', 'HOLDFAST-SUSPENDED'],
    ['peer-is-preferred', 'HOLDFAST-NOT-PREFERRED'],
    ['the link to the peer is lost', 'HOLDFAST-WAITING'],
    ['constructor', 'HOLDFAST-WAITING'],
  ])('%s is told as %s', (reason, code) => {
    const status = said({ role: 'none', gate: { mode: 'closed', reason } });
    expect([status.state, status.serving]).toEqual(['Suspended', []]);
    expect(status.problems.map((problem) => problem.code)).toEqual([code]);
  });
});

it('a refusal is told once, with its mend as the action', () => {
  const problem = { code: 'ERR_HOLDFAST_SPLIT_BRAIN', message: 'both copies have changed; choose the one to keep' };
  const status = said({ role: 'none', gate: { mode: 'closed', reason: 'split brain' }, problem });
  expect(status.problems).toEqual([
    { code: 'ERR_HOLDFAST_SPLIT_BRAIN', message: 'both copies have changed', action: 'Choose the one to keep' },
  ]);
});

it('a peer that is away is told from one whose copy has left', () => {
  const alone = { role: 'none', peerState: 'Outdated', markedBytes: 4096 } as const;
  expect(said(alone, false).problems.map((problem) => problem.code)).toEqual(['HOLDFAST-PEER-AWAY']);
  expect(said(alone, true).problems.map((problem) => problem.code)).toEqual(['HOLDFAST-PEER-LEFT']);
  expect(said(alone).copies[1]).toMatchObject({ disk: 'Outdated', outOfSyncBytes: 4096 });
});

it('a failed device while the peer serves, and while nobody does', () => {
  const problem = { code: 'ERR_HOLDFAST_DEVICE_FAILED', message: 'EIO' };
  const failed = { ownState: 'Failed', role: 'none', peerState: 'DUnknown', markedBytes: 4096, problem } as const;
  const forwarding = said({ ...failed, gate: { mode: 'forward', reason: undefined } });
  expect(forwarding.state).toBe('Degraded');
  expect(forwarding.copies[1]).toMatchObject({ disk: 'UpToDate', outOfSyncBytes: 0 });
  expect(forwarding.problems.map(({ code }) => code)).toEqual(['ERR_HOLDFAST_DEVICE_FAILED', 'HOLDFAST-NO-OWN-COPY']);
  expect(said({ ...failed, gate: { mode: 'closed', reason: 'the own device has failed' } }).state).toBe('Failed');
});

describe('where a majority decides', () => {
  const away = { name: 'tie', isInReach: false, problem: undefined };
  const facts = (tieBreaker: VoterReach, status: Partial<ControllerStatus> = {}) =>
    volumeStatus({
      config: { ...config, onLostPeer: 'majority', tieBreaker: { node: 'tie', stateFile: 'data.vote' } },
      node: 'a',
      linked: true,
      status: { ...paired, ...status },
      resyncedBytes: 0,
      voters: [
        { name: 'a', isInReach: true, problem: undefined },
        { name: 'b', isInReach: status.gate === undefined, problem: undefined },
        tieBreaker,
      ],
    });

  it('all voters are shown, and nothing is wrong while they can be asked', () => {
    const status = facts({ ...away, isInReach: true });
    expect(status.problems).toEqual([]);
    expect(status.voters.map(({ node, inReach }) => [node, inReach])).toEqual([
      ['a', true],
      ['b', true],
      ['tie', true],
    ]);
  });

  it('a tie-breaker that is away is told, also while everything serves', () => {
    const status = facts(away);
    expect(status.state).toBe('Online');
    expect(status.problems).toMatchObject([
      {
        code: 'HOLDFAST-VOTER-AWAY',
        message: 'The tie-breaker tie is away.',
        action: expect.stringMatching(/^Bring tie/),
      },
    ]);
    const problem = { code: 'ERR_HOLDFAST_IO', message: 'tie: its disk has failed' };
    expect(facts({ ...away, problem }).problems[0]!.message).toBe(
      'The tie-breaker tie does not vote: tie: its disk has failed.',
    );
  });

  it('without a majority requests wait, and it is told who is missing', () => {
    const status = facts(away, { role: 'none', gate: { mode: 'closed', reason: 'no-majority' } });
    expect(status.state).toBe('Suspended');
    expect(status.problems[0]).toMatchObject({
      code: 'HOLDFAST-NO-QUORUM',
      message: expect.stringContaining('(away: b, tie)'),
      action: expect.stringContaining('Bring one of b, tie back'),
    });
  });
});

it('docs/cli.md lists every code', () => {
  const docs = readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8');
  const source = readFileSync(new URL('../../lib/daemon/volume-status.ts', import.meta.url), 'utf8');
  const codes = new Set(source.match(/HOLDFAST-[A-Z-]+/g));
  expect(codes.size).toBeGreaterThan(5);
  for (const code of codes) expect(docs).toContain(`\`${code}\``);
});
