/** A mirrored region over real sessions: two units with a manager each, three voters, writers that are no voters. */
import { describe, expect, test } from 'vitest';
import { CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import { MemoryManager } from '../../lib/checkpoint/manager.ts';
import { MemoryClient } from '../../lib/checkpoint/manager-client.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { admitByRegister } from '../../lib/checkpoint/mirror-admission.ts';
import { RemoteArbiter, serveRegisters } from '../../lib/checkpoint/mirror-decider.ts';
import { managedLegs } from '../../lib/checkpoint/mirror-legs.ts';
import { type Leg, parseStanding } from '../../lib/checkpoint/mirror-standing.ts';
import { MirroredAccess, type MirrorLegs } from '../../lib/checkpoint/mirrored-access.ts';
import { MirroredReader } from '../../lib/checkpoint/mirrored-reader.ts';
import { formatCheckpointRegion } from '../../lib/checkpoint/region-record.ts';
import { createMemoryUnit } from '../../lib/checkpoint/unit.ts';
import { NEW_VOTER, type VoterState, type VoterStore } from '../../lib/peer/arbiter.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { PeerNode } from '../../lib/peer/peer.ts';
import { RegisterArbiter } from '../../lib/peer/register-driver.ts';
import { SimulatedCluster } from '../../lib/testing/simulated-cluster.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { codeOf } from './mirror-stage.ts';

const MIB = 1024 * 1024;
const REGION_BYTES = 256 * 1024;
const REGISTER = 'd'.repeat(32);
const UNITS = ['unit-a', 'unit-b'] as const;
const VOTERS = ['unit-a', 'unit-b', 'tie'];
const NAMES = [...VOTERS, 'w1', 'w2', 'stranger'];

/** A voter's state that outlives its process. */
class Kept implements VoterStore {
  voter: VoterState = NEW_VOTER;

  async writeVoter(state: VoterState): Promise<void> {
    this.voter = state;
  }
}

class Site {
  readonly cluster = new SimulatedCluster({ seed: 3, names: NAMES });
  readonly memories = UNITS.map(
    (name) => new SimulatedMemory({ random: new SimulatedRandom(3, name), sizeBytes: 4 * MIB }),
  );
  readonly votes = new Map(VOTERS.map((name) => [name, new Kept()]));
  readonly clients = new Map<string, readonly [MemoryClient, MemoryClient]>();
  readonly arbiters = new Map<string, RemoteArbiter>();

  async start(): Promise<this> {
    const tie = this.#newNode('tie');
    this.#arbiterOf(tie);
    await this.until(tie.start());
    for (const leg of [0, 1] as const) await this.startUnit(leg, true);
    for (const name of ['w1', 'w2', 'stranger']) await this.startClient(name);
    for (const client of this.clients.get('w1')!) {
      await this.until(client.create('state', REGION_BYTES));
      await this.until(client.allow('state', { peer: 'w2', rights: ['read', 'write'] }));
    }
    return this;
  }

  async startUnit(leg: Leg, isNew = false): Promise<void> {
    const name = UNITS[leg];
    const node = this.#newNode(name);
    const { environment, process } = this.cluster.node(name);
    const memory = this.memories[leg]!.open((answer) => process.run(answer));
    const unit = createMemoryUnit({ name, node, memory, clock: environment.clock });
    if (isNew) await this.until(MemoryManager.format(unit, { blank: true }));
    const arbiter = this.#arbiterOf(node);
    const manager = new MemoryManager({
      environment,
      control: unit,
      admit: admitByRegister([{ region: 'state', leg, arbiter }]),
    });
    manager.serve(node);
    const allows = (peer: string, right: 'read' | 'write') => manager.allows(peer, 'state', right);
    serveRegisters(node, [{ registerId: REGISTER, arbiter, allows }]);
    await this.until(Promise.all([node.start(), manager.open()]));
  }

  async startClient(name: string): Promise<void> {
    const node = this.#newNode(name);
    const { clock } = this.cluster.node(name).environment;
    const client = (unit: string) => new MemoryClient({ node, clock, manager: unit, unit, transport: openAccess });
    this.clients.set(name, [client(UNITS[0]), client(UNITS[1])]);
    this.arbiters.set(name, new RemoteArbiter({ node, clock, registerId: REGISTER, deciders: UNITS }));
    await this.until(node.start());
  }

  /** As a power cut of the unit's machine. */
  kill(leg: Leg): void {
    this.cluster.node(UNITS[leg]).kill();
    this.memories[leg]!.crash();
  }

  open(name: string): Promise<MirroredAccess> {
    return this.until(
      MirroredAccess.open({
        environment: this.cluster.node(name).environment,
        legs: this.#legsOf(name),
        arbiter: this.arbiters.get(name)!,
        writer: name,
        chunkBytes: 64 * 1024,
      }),
    );
  }

  openReader(name: string): Promise<MirroredReader> {
    const { clock } = this.cluster.node(name).environment;
    return this.until(
      MirroredReader.open({ clock, legs: this.#legsOf(name), arbiter: this.arbiters.get(name)!, legMs: 500 }),
    );
  }

  async stands(name = 'w1'): Promise<string> {
    const result = await this.until(this.arbiters.get(name)!.compareAndSwap('', ''));
    return result.swapped ? '' : result.current;
  }

  async inSync(access: MirroredAccess): Promise<void> {
    const { scheduler } = this.cluster;
    const limitMs = scheduler.nowMs + 60_000;
    const isSo = (): boolean => access.status.legs.every(({ state }) => state === 'in-sync');
    await scheduler.run(() => isSo() || scheduler.nowMs > limitMs);
    expect(access.status.legs.map(({ state }) => state)).toEqual(['in-sync', 'in-sync']);
  }

  until<Result>(work: Promise<Result>): Promise<Result> {
    return this.cluster.scheduler.runUntil(work, 60_000);
  }

  #legsOf(name: string): MirrorLegs {
    const [first, second] = this.clients.get(name)!;
    return managedLegs([
      { unit: UNITS[0], client: first, region: 'state' },
      { unit: UNITS[1], client: second, region: 'state' },
    ]);
  }

  #arbiterOf(node: PeerNode): RegisterArbiter {
    const { environment } = this.cluster.node(node.name);
    const store = this.votes.get(node.name)!;
    const self = VOTERS.indexOf(node.name);
    return new RegisterArbiter({ environment, node, registerId: REGISTER, voters: VOTERS, self, store });
  }

  #newNode(name: string): PeerNode {
    const machine = this.cluster.node(name);
    if (!machine.process.alive) machine.restart();
    return createPeerNode({
      environment: machine.environment,
      name,
      clusterId: 'mirrored',
      key: new Uint8Array(32),
      link: 'dedicated',
      listen: { kind: 'tcp', host: name, port: 7000 },
      peers: NAMES.filter((other) => other !== name).map((other) => ({
        name: other,
        addresses: [{ kind: 'tcp', host: other, port: 7000 }],
      })),
    });
  }
}

async function rejection(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'no error',
    (error: unknown) => codeOf(error),
  );
}

function filled(value: number, length = 4096): Uint8Array[] {
  return [new Uint8Array(length).fill(value)];
}

async function firstByte(site: Site, access: MirroredAccess, address: number): Promise<number> {
  const bytes = new Uint8Array(1);
  await site.until(access.readConfirmed(address, bytes));
  return bytes[0]!;
}

describe('over sessions', () => {
  test('one unit loses power, is rebuilt, and is the copy when the other one is gone', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    await site.until(access.write(0, filled(1), { persist: true }));
    site.kill(1);
    await site.until(access.write(4096, filled(2), { persist: true }));
    expect(parseStanding(await site.stands())).toMatchObject({ inSync: 1, writer: 'w1' });
    await site.startUnit(1);
    await site.inSync(access);
    await site.until(access.write(8192, filled(3), { persist: true }));
    site.kill(0);
    await site.until(access.write(12_288, filled(4), { persist: true }));
    for (const [index, value] of [1, 2, 3, 4].entries())
      expect(await firstByte(site, access, 4096 * index)).toBe(value);
  });

  test('another writer takes over: the first one is fenced, and the state goes on', async () => {
    const site = await new Site().start();
    const first = await site.open('w1');
    await site.until(first.write(0, filled(1), { persist: true }));
    const second = await site.open('w2');
    expect(second.epoch).toBe(first.epoch + 1);
    expect(await firstByte(site, second, 0)).toBe(1);
    await site.until(second.write(0, filled(2), { persist: true }));
    expect(await site.until(rejection(first.write(0, filled(9), { persist: true })))).toBe('ERR_HOLDFAST_FENCED');
    expect(await firstByte(site, second, 0)).toBe(2);
  });

  test('a stale unit gives no key for what it has, to nobody', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    site.kill(1);
    await site.until(access.write(0, filled(1), { persist: true }));
    await access.close();
    await site.startUnit(1);
    const [, stale] = site.clients.get('w2')!;
    const asked = [
      stale.open('state', { rights: ['read'] }),
      stale.takeOver('state'),
      stale.open('state', { rights: ['read', 'write'] }),
      stale.rebuild('state'),
    ];
    const codes = await site.until(Promise.all(asked.map(rejection)));
    expect(codes).toEqual([
      'ERR_HOLDFAST_INCONSISTENT',
      'ERR_HOLDFAST_INCONSISTENT',
      'ERR_HOLDFAST_ACCESS',
      'ERR_HOLDFAST_FENCED',
    ]);
    site.kill(0);
    expect(await rejection(site.open('w2'))).toBe('ERR_HOLDFAST_NO_UP_TO_DATE_COPY');
    await site.startUnit(0);
    const next = await site.open('w2');
    expect(await firstByte(site, next, 0)).toBe(1);
    await site.inSync(next);
  });

  test('a take-over ends also what the same peer could write before', async () => {
    const site = await new Site().start();
    const [leg] = site.clients.get('w1')!;
    const before = await site.until(leg.takeOver('state'));
    await site.until(leg.takeOver('state'));
    expect(await site.until(rejection(before.access.write(0, filled(1))))).toBe('ERR_HOLDFAST_KEY_INVALID');
  });
});

describe('checkpoints', () => {
  const bytes = (value: number) => new Uint8Array(512).fill(value);
  const values = (checkpoints: readonly { readonly value: Uint8Array }[]) => checkpoints.map(({ value }) => value[0]);
  const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

  test('are appended while a unit is lost, and resumed by another writer from the other unit', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    await site.until(formatCheckpointRegion(access, { mode: 'append' }));
    const writer = await site.until(CheckpointWriter.open(access));
    await site.until(Promise.all(numbers(1, 20).map((value) => writer.append(bytes(value)))));
    site.kill(0);
    await site.until(Promise.all(numbers(21, 40).map((value) => writer.append(bytes(value)))));
    await site.startUnit(0);
    await site.inSync(access);
    site.kill(1);
    await site.until(Promise.all(numbers(41, 60).map((value) => writer.append(bytes(value)))));
    const backup = await site.openReader('w2');
    const reader = await site.until(CheckpointReader.open(backup));
    expect(values(await site.until(reader.readAll()))).toEqual(numbers(1, 60));
    const taken = await site.open('w2');
    const next = await site.until(CheckpointWriter.open(taken));
    await site.until(next.append(bytes(61)));
    expect(await site.until(rejection(writer.append(bytes(99))))).toBe('ERR_HOLDFAST_FENCED');
    expect(values(await site.until(reader.tail()))).toEqual([61]);
  });
});

describe('the register, for those who are no voters', () => {
  test('is changed by who may write, in its own name, by the rules', async () => {
    const site = await new Site().start();
    await (await site.open('w1')).close();
    const value = await site.stands();
    const standing = parseStanding(value)!;
    const other = site.arbiters.get('w2')!;
    const attempts = [
      value.replace(/ w1 .*/, ` w1 ${standing.nonce} ${standing.change + 1}`).replace(' ab ', ' a '),
      value.replace(' w1 ', ' w2 '),
      'nonsense',
      '',
    ];
    for (const next of attempts)
      expect(await site.until(rejection(other.compareAndSwap(value, next)))).toBe('ERR_HOLDFAST_REFUSED');
    expect(await site.stands()).toBe(value);
  });

  test('is closed to strangers', async () => {
    const site = await new Site().start();
    const stranger = site.arbiters.get('stranger')!;
    expect(await site.until(rejection(stranger.compareAndSwap('', '')))).toBe('ERR_HOLDFAST_ACCESS');
    expect(await site.stands()).toBe('');
  });

  test('is asked of the other one when the first one is away, and in vain without a majority', async () => {
    const site = await new Site().start();
    await (await site.open('w1')).close();
    const value = await site.stands();
    site.kill(0);
    expect(await site.stands()).toBe(value);
    site.cluster.node('tie').kill();
    expect(await site.until(rejection(site.arbiters.get('w1')!.compareAndSwap('', '')))).toBe(
      'ERR_HOLDFAST_NO_MAJORITY',
    );
    const controller = new AbortController();
    const given = rejection(site.arbiters.get('w1')!.compareAndSwap('', '', controller.signal));
    controller.abort();
    expect(await site.until(given)).toBe('ERR_HOLDFAST_ABORTED');
  });
});
