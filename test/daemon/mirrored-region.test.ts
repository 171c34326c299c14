import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { connectMirroredMemory, type MirroredMemoryConnection } from '../../lib/checkpoint/connect-mirrored-memory.ts';
import { loadKey } from '../../lib/daemon/config-file.ts';
import { ControlClient } from '../../lib/daemon/control-client.ts';
import type { Daemon } from '../../lib/daemon/daemon.ts';
import { createMemoryFile } from '../../lib/daemon/memory.ts';
import { createVote } from '../../lib/daemon/mirrored-region.ts';
import {
  type DaemonStatus,
  daemonStatusSchema,
  isHealthy,
  type MemoryListing,
  type MirroredRegionStatus,
} from '../../lib/daemon/status.ts';
import { freePort } from '../free-port.ts';
import { Office, type ServerName } from './office.ts';

const KIB = 1024;
const ID = '5b0f3c52-8a5e-4f0e-9d6c-2f6c1d9e7a10';
const registerId = ID.replaceAll('-', '');
const SERVERS = ['a', 'b', 'tie'] as const;
/** The id as the configuration has it. */
const ORDERS = { name: 'orders', registerId: ID };

let office: Office;
const connections: MirroredMemoryConnection[] = [];

/** Nodes a and b have a unit each, tie a vote, p is a client. */
beforeEach(async () => {
  office = await Office.make({ tieBreaker: true });
  const { config } = office;
  config.volumes = [];
  for (const node of config.nodes) node.exports = [];
  const [a, b] = config.nodes;
  for (const node of [a, b]) node.memoryUnit = { file: `${node.name}.memory`, sizeBytes: '4 MiB' };
  config.nodes.push({ name: 'p' });
  config.mirroredRegions = [
    {
      name: 'orders',
      id: ID,
      units: ['a', 'b'].map((unit) => ({ unit, stateFile: `${unit}.vote` })),
      tieBreaker: { node: 'tie', stateFile: 'tie.vote' },
    },
  ];
  office.save();
});

afterEach(async () => {
  for (const connection of connections.splice(0)) await connection.close();
  await office.remove();
});

const file = (name: string) => join(office.folder, name);

const refused = (step: Promise<unknown>) =>
  step.then(
    () => expect.fail('it was not refused'),
    (error: { code: string; message: string }) => error,
  );

async function create(name: ServerName): Promise<void> {
  const config = await office.load(name);
  if (config.memoryUnit !== undefined) await createMemoryFile(config, systemEnvironment.clock);
  await createVote(config, config.mirroredRegions[0]!);
}

async function ask(name: ServerName, method: string, request: object = {}): Promise<unknown> {
  await using control = await ControlClient.connect(systemEnvironment.network, file(`${name}.sock`));
  return await control.call(method, request);
}

const statusOf = async (name: ServerName): Promise<DaemonStatus> => daemonStatusSchema.parse(await ask(name, 'status'));

/** Waits until the region stands as wanted, as a server says. */
async function stands(name: ServerName, wanted: (region: MirroredRegionStatus) => boolean): Promise<DaemonStatus> {
  for (let round = 0; round < 1000; round++) {
    const status = await statusOf(name);
    if (wanted(status.mirroredRegions[0]!)) return status;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`in vain; the last status: ${JSON.stringify((await statusOf(name)).mirroredRegions, null, 2)}`);
}

const isIn = (state: MirroredRegionStatus['state']) => (region: MirroredRegionStatus) => region.state === state;
const isComplete = (region: MirroredRegionStatus) => region.voters.every(({ inReach }) => inReach);
const codes = (status: DaemonStatus) => status.mirroredRegions[0]!.problems.map(({ code }) => code);
const inSync = (status: DaemonStatus) => status.mirroredRegions[0]!.units.map((unit) => unit.inSync);

/** All three, and the region, which p may use. */
async function startAll(sizeBytes?: number): Promise<Map<ServerName, Daemon>> {
  for (const name of SERVERS) await create(name);
  const daemons = await Promise.all(SERVERS.map((name) => office.start(name)));
  await stands('a', isComplete);
  for (const name of ['a', 'b'] as const) await createRegion(name, sizeBytes);
  return new Map(SERVERS.map((name, index) => [name, daemons[index]!]));
}

async function createRegion(manager: ServerName, sizeBytes = 64 * KIB): Promise<void> {
  await ask(manager, 'memory-create-region', { name: 'orders', sizeBytes });
  await ask(manager, 'memory-allow', { name: 'orders', peer: 'p', rights: ['read', 'write'] });
}

async function connect(managerOfA = 'a'): Promise<MirroredMemoryConnection> {
  const { cluster, peers, heartbeatMs, leaseMs, keyFile } = await office.load('p');
  const peer = (name: string) => peers.find((each) => each.name === name)!;
  const self = { name: 'p', clusterId: cluster, key: await loadKey(keyFile!), heartbeatMs, leaseMs };
  const units = [{ unit: peer('a'), manager: peer(managerOfA) }, { unit: peer('b') }] as const;
  const connection = await connectMirroredMemory({ ...self, units });
  connections.push(connection);
  return connection;
}

describe('the file of a vote', () => {
  it('is made once, and never made anew', async () => {
    await create('tie');
    const before = readFileSync(file('tie.vote'));
    expect(before.length).toBe(64 * KIB);
    const { code, message } = await refused(create('tie'));
    expect([code, message]).toEqual(['ERR_HOLDFAST_DEVICE_EXISTS', expect.stringContaining('must not forget')]);
    expect(readFileSync(file('tie.vote')).equals(before)).toBe(true);
  });

  it.each(['a', 'tie'] as const)(
    'of %s that is not there is told with its mend before anything starts',
    async (name) => {
      const config = await office.load(name);
      if (name === 'a') await createMemoryFile(config, systemEnvironment.clock);
      const { code, message } = await refused(office.start(name));
      expect(code).toBe('ERR_HOLDFAST_METADATA_MISSING');
      expect(message).toContain(`if the region is new, run: holdfast memory create ${office.path} --node ${name}`);
      expect(existsSync(file(`${name}.sock`))).toBe(false);
    },
  );

  it('of another region, or that is none, is not gone by', async () => {
    await create('tie');
    office.config.mirroredRegions[0].id = ID.replace('5b0f', '6b0f');
    office.save();
    expect((await refused(office.start('tie'))).code).toBe('ERR_HOLDFAST_METADATA_MISMATCH');
    writeFileSync(file('tie.vote'), 'no vote');
    expect((await refused(office.start('tie'))).message).toMatch(/tie\.vote/);
  });
});

it('units that change places in the configuration are found out: the stale one would be taken for the one in sync', async () => {
  await create('tie');
  office.config.mirroredRegions[0].units.reverse();
  office.save();
  const { code, message } = await refused(office.start('tie'));
  expect([code, message]).toEqual([
    'ERR_HOLDFAST_METADATA_MISMATCH',
    expect.stringContaining('the units of "orders" were not b, a, in this order'),
  ]);
});

describe('a mirrored region', () => {
  it('is shown from its first writer on, as its units go and come back', async () => {
    const daemons = await startAll();
    expect((await stands('b', isIn('New'))).mirroredRegions[0]).toMatchObject({ writer: null, problems: [] });
    const memory = await connect();
    await using orders = await memory.openWriter(ORDERS, { retryMs: 100 });
    await orders.write(0, [Buffer.from('one')], { persist: true });
    for (const name of ['a', 'b'] as const) {
      const status = await stands(name, (region) => isIn('Online')(region) && isComplete(region));
      expect(status.mirroredRegions).toMatchObject([
        { name: 'orders', id: registerId, role: 'manager', isCurrent: true, writer: 'p', epoch: 1, problems: [] },
      ]);
      expect([inSync(status), isHealthy(status)]).toEqual([[true, true], true]);
    }

    await daemons.get('b')!.close();
    await orders.write(3, [Buffer.from('two')], { persist: true });
    const degraded = await stands('a', isIn('Degraded'));
    expect([inSync(degraded), codes(degraded), isHealthy(degraded)]).toEqual([
      [true, false],
      ['HOLDFAST-VOTER-AWAY', 'HOLDFAST-UNIT-OUT'],
      false,
    ]);

    await office.start('b');
    await stands('b', isIn('Online'));
    await daemons.get('a')!.close();
    await orders.write(6, [Buffer.from('six')], { persist: true });
    expect(inSync(await stands('b', isIn('Degraded')))).toEqual([false, true]);
    const found = Buffer.alloc(9);
    await orders.readConfirmed(0, found);
    expect(found.toString()).toBe('onetwosix');
  });

  it('that a unit has lost with its memory is not told as healthy there, and how it comes back', async () => {
    const daemons = await startAll();
    const memory = await connect();
    await (await memory.openWriter(ORDERS)).close();
    await stands('b', isIn('Online'));
    await daemons.get('b')!.close();
    rmSync(file('b.memory'));
    await createMemoryFile(await office.load('b'), systemEnvironment.clock);
    await office.start('b');
    const blank = await stands('b', (region) => isIn('Online')(region) && isComplete(region));
    expect([codes(blank), isHealthy(blank)]).toEqual([['HOLDFAST-UNIT-BLANK'], false]);
    expect(blank.mirroredRegions[0]!.problems[0]!.message).toContain('although it was in sync');

    await using orders = await memory.openWriter(ORDERS, { retryMs: 100 });
    expect(codes(await stands('b', isIn('Degraded')))).toEqual(['HOLDFAST-UNIT-BLANK']);
    await createRegion('b');
    await orders.write(0, [Buffer.from('one')], { persist: true });
    const healed = await stands('b', (region) => isIn('Online')(region) && isComplete(region));
    expect([codes(healed), isHealthy(healed)]).toEqual([[], true]);
  });

  it('is shown as the voters said last while somebody else has them asked again', async () => {
    const daemon = (await startAll()).get('a')!;
    await (await (await connect()).openWriter(ORDERS)).close();
    await stands('a', isIn('Online'));
    let isOver = false;
    const asked = statusOf('a').finally(() => {
      isOver = true;
    });
    const shown = new Set<string>();
    while (!isOver) {
      shown.add(daemon.status().mirroredRegions[0]!.state);
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect([...shown]).toEqual(['Online']);
    expect(isHealthy(await asked)).toBe(true);
  });

  it('of less than a word goes on when a unit is lost, and when it is back', async () => {
    const daemons = await startAll(4);
    await using orders = await (await connect()).openWriter(ORDERS, { retryMs: 100 });
    await daemons.get('b')!.close();
    // Nobody stores: the writer notices it by itself.
    await stands('a', isIn('Degraded'));
    await orders.write(0, [Buffer.from('one')], { persist: true });
    await office.start('b');
    await stands('b', isIn('Online'));
    expect(orders.open).toBe(true);
  });

  it('is listed by the manager of each unit, also before it is created there', async () => {
    for (const name of SERVERS) await create(name);
    await Promise.all(SERVERS.map((name) => office.start(name)));
    await stands('a', isComplete);
    expect(await ask('a', 'memory-list')).toMatchObject({ regions: [], mirrored: [{ name: 'orders', state: 'New' }] });
    await createRegion('a');
    const { regions, mirrored } = (await ask('a', 'memory-list')) as MemoryListing;
    expect([regions, mirrored]).toMatchObject([[{ name: 'orders' }], [{ name: 'orders', state: 'New' }]]);
  });

  it('whose voters cannot be asked is told as this node knew it last, and is neither made nor opened', async () => {
    const daemons = await startAll();
    const memory = await connect();
    await (await memory.openWriter(ORDERS)).close();
    await stands('b', isIn('Online'));
    await Promise.all((['a', 'tie'] as const).map((name) => daemons.get(name)!.close()));
    const status = await stands('b', isIn('Unknown'));
    expect(status.mirroredRegions[0]).toMatchObject({ isCurrent: false, writer: 'p', epoch: 1 });
    expect([inSync(status), codes(status), isHealthy(status)]).toEqual([[true, true], ['HOLDFAST-NO-QUORUM'], false]);
    const vain = [ask('b', 'memory-delete-region', { name: 'orders' }), memory.openWriter(ORDERS)];
    const failures = await Promise.all(vain.map(refused));
    expect(failures.map(({ code }) => code)).toEqual(['ERR_HOLDFAST_NO_MAJORITY', 'ERR_HOLDFAST_NO_MAJORITY']);
    // The manager has other regions, whose users wait meanwhile.
    expect(failures[0]!.message).toContain('within 1000 ms');
  });

  it('is not used in one unit alone, nor deleted where it is in sync', async () => {
    await startAll();
    const memory = await connect();
    const alone = await refused(memory.clients[0].open('orders'));
    expect([alone.code, alone.message]).toEqual([
      'ERR_HOLDFAST_ACCESS',
      expect.stringContaining('orders is mirrored over two units'),
    ]);
    await (await memory.openWriter(ORDERS)).close();
    expect((await refused(memory.clients[1].takeOver('orders'))).code).toBe('ERR_HOLDFAST_ACCESS');
    expect((await refused(ask('a', 'memory-delete-region', { name: 'orders' }))).code).toBe('ERR_HOLDFAST_REFUSED');
  });

  it('at its tie-breaker is shown as that one has voted last', async () => {
    const daemons = await startAll();
    const memory = await connect();
    await (await memory.openWriter(ORDERS)).close();
    // Two of three decide, and the third may hear of it later.
    const status = await stands('tie', (region) => region.units.every((unit) => unit.inSync === true));
    expect(status.mirroredRegions).toMatchObject([
      { role: 'tie-breaker', state: 'Voting', isCurrent: false, writer: 'p' },
    ]);
    await daemons.get('a')!.close();
    const alone = await stands('tie', (region) => !isComplete(region));
    expect(alone.mirroredRegions[0]!.voters).toMatchObject([{ inReach: false }, { inReach: true }, { inReach: true }]);
    expect(alone.mirroredRegions[0]!.state).toBe('Voting');
  });

  it('has the vote of a unit at its manager, if that runs apart', async () => {
    const [a] = office.config.nodes;
    a.memoryUnit.manager = 'm';
    office.config.nodes.push({ name: 'm', addresses: [`127.0.0.1:${await freePort()}`], control: 'm.sock' });
    office.save();
    await createMemoryFile(await office.load('a'), systemEnvironment.clock);
    const m = await office.load('m');
    await createVote(m, m.mirroredRegions[0]!);
    expect(existsSync(file('a.vote'))).toBe(true);
    for (const name of ['b', 'tie'] as const) await create(name);
    const servers = [...SERVERS, 'm'] as const;
    const daemons = await Promise.all(servers.map((name) => office.start(name)));
    expect((await statusOf('a')).mirroredRegions).toEqual([]);
    await stands('m', isComplete);
    for (const name of ['m', 'b'] as const) await createRegion(name);
    const memory = await connect('m');
    await using orders = await memory.openWriter(ORDERS);
    await orders.write(0, [Buffer.from('one')], { persist: true });
    await daemons[0]!.close();
    await orders.write(3, [Buffer.from('two')], { persist: true });
    const status = await stands('m', isIn('Degraded'));
    // The vote is at the manager, and that is there.
    expect([inSync(status), codes(status)]).toEqual([[false, true], ['HOLDFAST-UNIT-OUT']]);
  });
});
