import { expect, it } from 'vitest';
import { statusText } from '../../lib/cli/status-text.ts';
import {
  type DaemonStatus,
  daemonStatusSchema,
  isHealthy,
  type MirroredRegionStatus,
} from '../../lib/daemon/status.ts';

const healthy: DaemonStatus = {
  holdfast: 1,
  release: '0.1.0',
  cluster: 'office',
  node: 'a',
  pid: 7,
  upMs: 3_700_000,
  engine: { name: 'io_uring', reason: 'probed' },
  links: [{ peer: 'b', client: false, state: 'Connected', path: '10.0.0.2:7700', roundTripMs: 0.214, problem: null }],
  volumes: [
    {
      name: 'data',
      id: '0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c11',
      sizeBytes: 100 * 1024 ** 3,
      state: 'Online',
      problems: [],
      copies: [
        { node: 'a', local: true, disk: 'UpToDate', device: '/dev/nvme0n1', outOfSyncBytes: 0 },
        { node: 'b', local: false, disk: 'UpToDate', device: null, outOfSyncBytes: 0 },
      ],
      resync: null,
      voters: [],
      serving: ['a', 'b'],
      resyncedBytes: 0,
    },
  ],
  tieBreakers: [],
  mirroredRegions: [],
  exports: [{ name: 'data', address: 'unix:/run/data.nbd', target: 'volume data', readOnly: false, connections: 2 }],
  memory: null,
};

it('a server in full health', () => {
  expect(isHealthy(healthy)).toBe(true);
  expect(`\n${statusText(healthy)}`).toBe(`
  node: a of office, up 1 h 1 min, io_uring (probed)
  links: b  Connected at 10.0.0.2:7700, 0.21 ms
exports: data at unix:/run/data.nbd, volume data, 2 clients

 volume: data, 100 GiB, served by a and b
  state: Online
 copies: a  UpToDate  /dev/nvme0n1
         b  UpToDate
`);
});

it('a server whose peer is away says what is wrong, what to do and under which code', () => {
  const status: DaemonStatus = {
    ...healthy,
    links: [
      {
        peer: 'b',
        client: false,
        state: 'Connecting',
        path: null,
        roundTripMs: null,
        problem: { code: 'ERR_HOLDFAST_CONNECT_FAILED', message: '10.0.0.2:7700 refuses connections' },
      },
    ],
    volumes: [
      {
        ...healthy.volumes[0]!,
        state: 'Degraded',
        problems: [
          {
            code: 'HOLDFAST_PEER_AWAY',
            message: 'b is away; this node serves alone.',
            action: 'Bring b back; it is resynchronised by itself.',
          },
        ],
        copies: [
          { node: 'a', local: true, disk: 'UpToDate', device: '/dev/nvme0n1', outOfSyncBytes: 0 },
          { node: 'b', local: false, disk: 'Outdated', device: null, outOfSyncBytes: 5 * 1024 ** 2 },
        ],
      },
    ],
  };
  expect(isHealthy(status)).toBe(false);
  expect(daemonStatusSchema.parse(JSON.parse(JSON.stringify(status)))).toEqual(status);
  expect(`\n${statusText(status)}`).toBe(`
  node: a of office, up 1 h 1 min, io_uring (probed)
  links: b  Connecting: 10.0.0.2:7700 refuses connections (ERR_HOLDFAST_CONNECT_FAILED)
exports: data at unix:/run/data.nbd, volume data, 2 clients

 volume: data, 100 GiB, served by a and b
  state: Degraded
 status: b is away; this node serves alone.
 action: Bring b back; it is resynchronised by itself.
    see: HOLDFAST_PEER_AWAY
 copies: a  UpToDate  /dev/nvme0n1
         b  Outdated, 5 MiB out of sync
`);
});

it('voters, and a volume that this node has only a vote in', () => {
  const [volume] = healthy.volumes;
  const problem = { code: 'ERR_HOLDFAST_NO_SUCH_VOLUME', message: 'tie is no voter' };
  const voters = [
    { node: 'a', inReach: true, problem: null },
    { node: 'b', inReach: false, problem: null },
    { node: 'tie', inReach: false, problem },
  ];
  const tieBreaker = {
    volume: 'home',
    id: '0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c12',
    stateFile: '/var/lib/home.vote',
    members: [
      { node: 'b', connected: true },
      { node: 'c', connected: false },
    ],
    problem: null,
  };
  const status: DaemonStatus = { ...healthy, volumes: [{ ...volume!, voters }], tieBreakers: [tieBreaker] };
  expect(daemonStatusSchema.parse(JSON.parse(JSON.stringify(status)))).toEqual(status);
  expect(isHealthy({ ...healthy, volumes: [{ ...volume!, voters }] })).toBe(false);
  expect(isHealthy({ ...healthy, tieBreakers: [tieBreaker] })).toBe(true);
  expect(statusText(status)).toContain(` voters: a  in reach
         b  out of reach
         tie  out of reach: tie is no voter (ERR_HOLDFAST_NO_SUCH_VOLUME)

 volume: home, no copy here: this node is its tie-breaker
  state: Voting
   file: /var/lib/home.vote
members: b  Connected
         c  Connecting
`);
  const failed = { ...tieBreaker, problem: { code: 'ERR_HOLDFAST_IO', message: 'it could not write' } };
  expect(isHealthy({ ...healthy, tieBreakers: [failed] })).toBe(false);
  expect(statusText({ ...healthy, tieBreakers: [failed] })).toContain(
    '  state: Failed\n status: it could not write\n    see: ERR_HOLDFAST_IO\n',
  );
});

it('a resync shows its direction, progress, rate and time to go', () => {
  const volume = healthy.volumes[0]!;
  const resync = {
    role: 'SyncSource' as const,
    peer: 'b',
    doneBytes: 30 * 1024 ** 2,
    totalBytes: 40 * 1024 ** 2,
    bytesPerSecond: 10 * 1024 ** 2,
    toGoMs: 1000,
  };
  expect(statusText({ ...healthy, volumes: [{ ...volume, resync }] })).toContain(
    ' resync: SyncSource, to b: 75.0 %, 30 MiB of 40 MiB, 10 MiB/s, 1 s to go\n',
  );
  expect(statusText({ ...healthy, volumes: [{ ...volume, resync: { ...resync, toGoMs: null } }] })).toContain(
    'time to go not known yet',
  );
  // A target said "100.0 %, 0 B of 0 B" all the time.
  const target = {
    ...resync,
    role: 'SyncTarget' as const,
    doneBytes: 0,
    totalBytes: 0,
    bytesPerSecond: 0,
    toGoMs: null,
  };
  expect(statusText({ ...healthy, volumes: [{ ...volume, resync: target }] })).toContain(
    ' resync: SyncTarget, from b; how far it is, is known there\n',
  );
});

it('a memory unit whose disk has failed, and who was refused', () => {
  const unit = {
    ...{ name: 'a', file: '/srv/a.memory', sizeBytes: 1024 ** 3, means: 'msync' as const, regions: 2, keys: 1 },
    ...{ reads: 9, readBytes: 9, writes: 9, writtenBytes: 9, persists: 9, refused: 4, plane: null },
    failure: { code: 'ERR_HOLDFAST_FLUSH_FAILED', message: 'the region could not be made durable' },
  };
  const space = { freeBytes: 512 * 1024 ** 2, erasingBytes: 65_536, regionBytes: 0 };
  const refusal = (peer: string | null, count: number) => ({
    ...{ peer, region: peer && 'log', code: 'ERR_HOLDFAST_ACCESS', reason: 'by the manager' },
    ...{ firstMs: 1, lastMs: 2, count },
  });
  const memory = {
    unit,
    manager: { unit: 'a', regions: 2, space, problem: null },
    refusals: [refusal('b', 3), refusal(null, 1)],
  };
  const status: DaemonStatus = {
    ...{ ...healthy, volumes: [], exports: [] },
    links: [{ ...healthy.links[0]!, client: true, state: 'Connecting', path: null, roundTripMs: null }],
    memory,
  };
  expect(isHealthy(status)).toBe(false);
  expect(isHealthy({ ...status, memory: { ...memory, unit: { ...unit, failure: null } } })).toBe(true);
  expect(daemonStatusSchema.parse(JSON.parse(JSON.stringify(status)))).toEqual(status);
  expect(`\n${statusText(status)}`).toBe(`
  node: a of office, up 1 h 1 min, io_uring (probed)
  links: b  client, away

 memory: unit a, 1 GiB by msync, 1 key  /srv/a.memory
  state: Failed
 status: the region could not be made durable
    see: ERR_HOLDFAST_FLUSH_FAILED
manager: of unit a: 2 regions, 512 MiB free, 64 KiB being zeroed
refused: b at region log: by the manager (ERR_HOLDFAST_ACCESS), 3 times
         nobody known: by the manager (ERR_HOLDFAST_ACCESS)
`);
});

it('a mirrored region without one of its units, at a manager and at the tie-breaker', () => {
  const region: MirroredRegionStatus = {
    name: 'orders',
    id: '5b0f3c528a5e4f0e9d6c2f6c1d9e7a10',
    role: 'manager',
    state: 'Degraded',
    problems: [{ code: 'HOLDFAST-UNIT-OUT', message: 'Only a is a copy.', action: 'Bring unit b back.' }],
    isCurrent: true,
    rebuild: { unit: 'b', doneBytes: 2 ** 28, totalBytes: 2 ** 30, bytesPerSecond: 2 ** 28, toGoMs: 3000 },
    writer: 'till',
    epoch: 3,
    units: [
      { unit: 'a', manager: 'a', inSync: true },
      { unit: 'b', manager: 'b', inSync: false },
    ],
    voters: ['a', 'b', 'tie'].map((node) => ({ node, inReach: node !== 'b', problem: null })),
    stateFile: '/var/lib/holdfast/orders.vote',
  };
  const voting: MirroredRegionStatus = {
    ...region,
    role: 'tie-breaker',
    state: 'Voting',
    problems: [],
    isCurrent: false,
    rebuild: null,
  };
  const status = (mirrored: MirroredRegionStatus): DaemonStatus =>
    daemonStatusSchema.parse({ ...healthy, volumes: [], exports: [], links: [], mirroredRegions: [mirrored] });
  const text = (mirrored: MirroredRegionStatus) => statusText(status(mirrored)).split('\n').slice(2).join('\n');
  expect(text(region)).toBe(` region: orders, mirrored over a and b
  state: Degraded
 status: Only a is a copy.
 action: Bring unit b back.
    see: HOLDFAST-UNIT-OUT
rebuild: of b: 25.0 %, 256 MiB of 1 GiB, 256 MiB/s, 3 s to go
  units: a in sync
         b out of sync
 writer: till, epoch 3
 voters: a  in reach
         b  out of reach
         tie  in reach
   file: /var/lib/holdfast/orders.vote
`);
  expect(text(voting)).toContain(` region: orders, mirrored over a and b: this node is its tie-breaker
  state: Voting
  units: a in sync when this node voted last
         b out of sync when this node voted last
`);
  expect(isHealthy(status(region))).toBe(false);
  expect(isHealthy(status(voting))).toBe(true);
});
