import { once } from 'node:events';
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { connectMemory } from '../../lib/checkpoint/connect-memory.ts';
import { MemoryClient } from '../../lib/checkpoint/manager-client.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { loadKey } from '../../lib/daemon/config-file.ts';
import { ControlClient } from '../../lib/daemon/control-client.ts';
import type { Daemon } from '../../lib/daemon/daemon.ts';
import { createMemoryFile } from '../../lib/daemon/memory.ts';
import { type DaemonStatus, isHealthy, type MemoryListing } from '../../lib/daemon/status.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { PeerNode } from '../../lib/peer/peer.ts';
import { freePort } from '../free-port.ts';
import { MIB, Office, type ServerName, until } from './office.ts';

const KIB = 1024;
let office: Office;
const clients: PeerNode[] = [];

/** Node a has the unit, b is a client, tie is another one until it is the manager. */
beforeEach(async () => {
  office = await Office.make({ tieBreaker: true });
  const [a, b, tie] = office.config.nodes;
  office.config.volumes = [];
  for (const node of office.config.nodes) node.exports = [];
  a.memoryUnit = { file: 'a.memory', sizeBytes: '8 MiB' };
  for (const node of [b, tie]) node.addresses = [];
  office.save();
});

afterEach(async () => {
  for (const client of clients.splice(0)) await client.close();
  await office.remove();
});

const file = () => join(office.folder, 'a.memory');
const create = async () => createMemoryFile(await office.load('a'), systemEnvironment.clock);

const refused = (step: Promise<unknown>) =>
  step.then(
    () => expect.fail('it was not refused'),
    (error: { code: string; message: string }) => error,
  );

async function client(name: ServerName): Promise<MemoryClient> {
  const { cluster, peers, heartbeatMs, leaseMs, keyFile } = await office.load(name);
  const key = await loadKey(keyFile!);
  const environment = systemEnvironment;
  const node = createPeerNode({ environment, name, clusterId: cluster, key, peers, heartbeatMs, leaseMs });
  clients.push(node);
  const manager = office.config.nodes[0].memoryUnit.manager ?? 'a';
  const memory = new MemoryClient({ node, clock: environment.clock, manager, unit: 'a', transport: openAccess });
  await node.start();
  return memory;
}

const operator = (name: ServerName) =>
  ControlClient.connect(systemEnvironment.network, join(office.folder, `${name}.sock`));

const kinds = (name: ServerName) => office.events[name].map(({ kind }) => kind);
const isServed = (status: DaemonStatus) => status.memory?.manager?.space != null;

describe('the file of a unit', () => {
  it('is made once, and never made anew', async () => {
    expect(await create()).toBe('msync');
    expect([statSync(file()).size, statSync(file()).mode & 0o777]).toEqual([8 * MIB, 0o600]);
    const before = readFileSync(file());
    const { code, message } = await refused(create());
    expect(code).toBe('ERR_HOLDFAST_DEVICE_EXISTS');
    expect(message).toContain(`${file()} is there already`);
    expect(readFileSync(file()).equals(before)).toBe(true);
  });

  it('that cannot be made leaves nothing behind', async () => {
    office.config.nodes[0].memoryUnit.means = 'map-sync';
    office.save();
    expect((await refused(create())).code).toBe('ERR_HOLDFAST_NOT_SUPPORTED');
    expect(existsSync(file())).toBe(false);
  });

  it('that is not there is told with its mend, before anything starts', async () => {
    const { code, message } = await refused(office.start('a'));
    expect(code).toBe('ERR_HOLDFAST_METADATA_MISSING');
    expect(message).toContain(`run: holdfast memory create ${office.path} --node a`);
    expect([existsSync(file()), existsSync(join(office.folder, 'a.sock'))]).toEqual([false, false]);
  });

  it.each([
    ['empty', 0],
    ['short', 100],
    ['of something else', 3 * MIB],
  ])('that is %s is refused and left as it is', async (_what, sizeBytes) => {
    writeFileSync(file(), Buffer.alloc(sizeBytes, 'precious '));
    const before = readFileSync(file());
    const { code, message } = await refused(office.start('a'));
    expect(code).toBe('ERR_HOLDFAST_METADATA_MISSING');
    expect(message).toContain(`${file()} is not the memory of a unit`);
    expect(readFileSync(file()).equals(before)).toBe(true);
  });

  const startWith = (sizeBytes: string) => {
    office.config.nodes[0].memoryUnit.sizeBytes = sizeBytes;
    office.save();
    return office.start('a');
  };

  it('grows with the configuration: regions keep what they hold, and get of the new space', async () => {
    await create();
    let a = await office.start('a');
    const b = await client('b');
    await b.create('log', 100 * KIB);
    const old = await b.open('log');
    await old.access.write(0, [Buffer.from('hold fast')], { persist: true });
    await a.close();
    a = await startWith('10 MiB');
    await until(a, ({ memory }) => memory?.manager?.space?.erasingBytes === 0);
    expect(a.status().memory).toMatchObject({
      unit: { sizeBytes: 10 * MIB },
      manager: { space: { freeBytes: 9 * MIB - 128 * KIB } },
    });
    await b.grow('log', 9 * MIB);
    const { access } = await b.open('log');
    const end = 9 * MIB - 9;
    const found = Buffer.alloc(9, 'x');
    await access.read(end, found);
    expect(found).toEqual(Buffer.alloc(9));
    await access.write(end, [Buffer.from('and again')], { persist: true });
    await a.close();
    a = await office.start('a');
    const again = await b.open('log');
    const texts: string[] = [];
    for (const address of [0, end]) {
      await again.access.read(address, found);
      texts.push(found.toString());
    }
    expect(texts).toEqual(['hold fast', 'and again']);
  });

  it('is not cut: less memory than its regions may be in is refused, and nothing is changed', async () => {
    await create();
    await (await startWith('10 MiB')).close();
    const before = readFileSync(file());
    const { code, message } = await refused(startWith('8 MiB'));
    expect(code).toBe('ERR_HOLDFAST_METADATA_MISMATCH');
    expect(message).toContain(`cannot be made smaller, its regions may be anywhere in ${10 * MIB} bytes`);
    expect(readFileSync(file()).equals(before)).toBe(true);
    await startWith('10 MiB');
  });

  it('that a killed server has made longer, and no more, serves as large as before, or as large as it is', async () => {
    await create();
    truncateSync(file(), 10 * MIB);
    const before = await startWith('8 MiB');
    await until(before, ({ memory }) => memory?.manager?.space?.freeBytes === 7 * MIB);
    await before.close();
    const after = await startWith('10 MiB');
    await until(after, ({ memory }) => memory?.manager?.space?.freeBytes === 9 * MIB);
  });
});

describe('a unit with its manager', () => {
  let a: Daemon;

  beforeEach(async () => {
    await create();
    a = await office.start('a');
  });

  it('serves clients that only dial, and what they made durable is there after a restart', async () => {
    const before = await client('b');
    await before.create('log', 100 * KIB);
    const { access } = await before.open('log');
    await access.write(5000, [Buffer.from('hold fast')], { persist: true });
    expect(a.status().memory).toMatchObject({
      unit: { name: 'a', file: file(), means: 'msync', regions: 1, keys: 1, writes: 1, writtenBytes: 9, failure: null },
      manager: { unit: 'a', regions: 1, problem: null },
      refusals: [],
    });
    await a.close();
    a = await office.start('a');
    const again = await before.open('log');
    const found = Buffer.alloc(9);
    await again.access.read(5000, found);
    expect(found.toString()).toBe('hold fast');
    expect(kinds('a')).toContain('memory-region-created');
    expect(kinds('a')).toContain('memory-granted');
  });

  it('has a data plane on a dedicated link, also with a rate, which clients use; and none where links are secret', async () => {
    expect(a.status().memory?.unit?.plane).toBe(null);
    await a.close();
    Object.assign(office.config, { link: 'dedicated' });
    Object.assign(office.config.nodes[0].memoryUnit, { commandsPerSecond: 1e6 });
    office.save();
    a = await office.start('a');
    const { cluster, peers, keyFile } = await office.load('b');
    const unit = peers.find(({ name }) => name === 'a')!;
    const key = await loadKey(keyFile!);
    await using memory = await connectMemory({ name: 'b', clusterId: cluster, key, link: 'dedicated', unit });
    await memory.client.create('log', 100 * KIB);
    const { access } = await memory.client.open('log');
    await access.write(0, [Buffer.from('hold fast')], { persist: true });
    expect(a.status().memory?.unit).toMatchObject({ writes: 1, plane: { host: '127.0.0.1', connections: 1 } });
  });

  it('has its data plane at the port of the configuration, where clients reach it by the first address', async () => {
    await a.close();
    const port = await freePort();
    Object.assign(office.config, { link: 'dedicated' });
    const [node] = office.config.nodes;
    Object.assign(node.memoryUnit, { planePort: port });
    Object.assign(node, { listen: node.addresses[0], addresses: ['192.0.2.1:7700'] });
    office.save();
    a = await office.start('a');
    expect(a.status().memory?.unit?.plane).toMatchObject({ host: '192.0.2.1', port });
    const socket = connect(port, '127.0.0.1');
    await once(socket, 'connect');
    socket.destroy();
  });

  it('is in full health although no client is there', async () => {
    await until(a, isServed);
    expect(a.status().links).toMatchObject([
      { peer: 'b', client: true, state: 'Connecting' },
      { peer: 'tie', client: true, state: 'Connecting' },
    ]);
    expect(isHealthy(a.status())).toBe(true);
  });

  it('tells whom it has refused, by the manager and by the unit', async () => {
    const owner = await client('b');
    await owner.create('log', 64 * KIB);
    const stranger = await client('tie');
    expect((await refused(stranger.open('log'))).code).toBe('ERR_HOLDFAST_ACCESS');
    expect((await refused(stranger.takeOver('log'))).code).toBe('ERR_HOLDFAST_ACCESS');
    const { access, context } = await owner.open('log', { rights: ['read'] });
    expect((await refused(access.write(0, [Buffer.alloc(8)]))).code).toBe('ERR_HOLDFAST_ACCESS');
    const { memory } = a.status();
    expect(memory!.unit!.refused).toBe(1);
    // They may have come in one millisecond.
    const refusals = memory!.refusals.toSorted((one, other) => other.count - one.count);
    expect(refusals).toMatchObject([
      { peer: 'tie', region: 'log', code: 'ERR_HOLDFAST_ACCESS', count: 2 },
      { peer: 'b', region: context.region, code: 'ERR_HOLDFAST_ACCESS', count: 1 },
    ]);
    expect(kinds('a').filter((kind) => kind === 'memory-refused')).toHaveLength(3);
    expect(JSON.stringify([memory, office.events.a])).not.toContain(context.key);
  });

  it('keeps what it has refused to others, however many names of regions somebody makes up', async () => {
    const [owner, stranger] = [await client('b'), await client('tie')];
    await owner.create('log', 64 * KIB);
    expect((await refused(stranger.open('log'))).code).toBe('ERR_HOLDFAST_ACCESS');
    for (let number = 0; number < 120; number++)
      expect((await refused(owner.open(`log-${number}`))).code).toBe('ERR_HOLDFAST_NOT_FOUND');
    const { refusals } = a.status().memory!;
    expect(refusals).toMatchObject([
      { peer: 'tie', region: 'log', code: 'ERR_HOLDFAST_ACCESS', count: 1 },
      { peer: 'b', code: 'ERR_HOLDFAST_NOT_FOUND', count: 120 },
    ]);
  });

  it('lets only those create regions that are named, and administrators change what they do not own', async () => {
    await a.close();
    Object.assign(office.config.nodes[0].memoryUnit, { creators: ['b'], administrators: ['tie'] });
    office.save();
    a = await office.start('a');
    const [b, tie] = [await client('b'), await client('tie')];
    expect((await refused(tie.create('log', KIB))).code).toBe('ERR_HOLDFAST_ACCESS');
    await b.create('log', KIB);
    expect(await tie.grow('log', 70 * KIB)).toMatchObject({ owner: 'b', sizeBytes: 70 * KIB });
  });

  it('does by the control socket what an operator asks', async () => {
    await using control = await operator('a');
    await control.call('memory-create-region', { name: 'log', sizeBytes: 64 * KIB });
    await control.call('memory-grow-region', { name: 'log', sizeBytes: 128 * KIB });
    await control.call('memory-allow', { name: 'log', peer: 'b', rights: ['read', 'write'] });
    const b = await client('b');
    const { access } = await b.takeOver('log');
    await access.write(0, [Buffer.from('x')]);
    expect(await control.call('memory-list')).toMatchObject({
      unit: 'a',
      regions: [{ name: 'log', sizeBytes: 128 * KIB, owner: 'a', epoch: 2, access: [{ peer: 'b' }] }],
    });
    await control.call('memory-deny', { name: 'log', peer: 'b', rights: ['write'] });
    expect((await refused(access.write(0, [Buffer.from('y')]))).code).toBe('ERR_HOLDFAST_KEY_INVALID');
    expect((await refused(control.call('memory-create-region', { name: '../x', sizeBytes: 1 }))).code).toBe(
      'ERR_HOLDFAST_BAD_ARGUMENT',
    );
    await control.call('memory-delete-region', { name: 'log' });
    expect(await control.call('memory-list')).toEqual({ unit: 'a', regions: [], mirrored: [] });
  });

  it('lists more regions than fit into one answer of the manager', async () => {
    await using control = await operator('a');
    const names = Array.from({ length: 70 }, (_, index) => `r${index}`);
    for (const name of names) await control.call('memory-create-region', { name, sizeBytes: 1 });
    const { regions } = (await control.call('memory-list')) as MemoryListing;
    expect(regions.map(({ name }) => name)).toEqual(names.sort());
  });
});

describe('a manager on another node than its unit', () => {
  beforeEach(async () => {
    const [a, , tie] = office.config.nodes;
    a.memoryUnit.manager = 'tie';
    tie.addresses = [`127.0.0.1:${await freePort()}`];
    office.save();
    await create();
  });

  it('serves clients, and again when either was away', async () => {
    const manager = await office.start('tie');
    expect(manager.status().memory).toMatchObject({ unit: null, manager: { unit: 'a', space: null } });
    const unit = await office.start('a');
    await until(manager, isServed);
    expect(unit.status().memory).toMatchObject({ unit: { name: 'a' }, manager: null });
    const b = await client('b');
    await b.create('log', KIB);
    await (await b.open('log')).access.write(0, [Buffer.from('one')], { persist: true });
    await unit.close();
    const unitAgain = await office.start('a');
    const { access } = await b.open('log');
    await manager.close();
    // The unit serves the keys that are there; a new one has to wait for the manager.
    await access.write(3, [Buffer.from('two')], { persist: true });
    await office.start('tie');
    const found = Buffer.alloc(6);
    await (await b.open('log')).access.read(0, found);
    expect(found.toString()).toBe('onetwo');
    await until(unitAgain, ({ memory }) => memory!.unit!.regions === 1);
  });

  it('gives out what a unit that has been made larger has more, and a unit refuses by itself to be made smaller', async () => {
    const manager = await office.start('tie');
    const before = await office.start('a');
    await until(manager, ({ memory }) => memory?.manager?.space?.freeBytes === 7 * MIB);
    await before.close();
    const [a] = office.config.nodes;
    a.memoryUnit.sizeBytes = '10 MiB';
    office.save();
    const larger = await office.start('a');
    await until(manager, ({ memory }) => memory?.manager?.space?.freeBytes === 9 * MIB);
    await larger.close();
    a.memoryUnit.sizeBytes = '8 MiB';
    office.save();
    expect((await refused(office.start('a'))).code).toBe('ERR_HOLDFAST_METADATA_MISMATCH');
  });

  it('is the one to be asked by an operator', async () => {
    await office.start('a');
    await using control = await operator('a');
    const { code, message } = await refused(control.call('memory-list'));
    expect([code, message]).toEqual(['ERR_HOLDFAST_NOT_FOUND', expect.stringContaining('ask there: --node tie')]);
  });

  it('that the unit does not know as its manager is refused, says so, and begins once it does', async () => {
    const manager = await office.start('tie');
    const [a, b] = office.config.nodes;
    a.memoryUnit.manager = 'b';
    b.addresses = [`127.0.0.1:${await freePort()}`];
    office.save();
    const unit = await office.start('a');
    const { memory } = await until(manager, (status) => status.memory!.manager!.problem !== null);
    expect(memory!.manager).toMatchObject({ space: null, problem: { code: 'ERR_HOLDFAST_REFUSED' } });
    expect(isHealthy(manager.status())).toBe(false);
    expect(unit.status().memory!.refusals).toMatchObject([{ peer: 'tie', code: 'ERR_HOLDFAST_REFUSED' }]);
    await unit.close();
    a.memoryUnit.manager = 'tie';
    b.addresses = [];
    office.save();
    await office.start('a');
    await until(manager, isServed);
    expect(manager.status().memory!.manager!.problem).toBeNull();
  });
});
