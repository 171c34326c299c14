/** Two units with a manager each, three voters, and clients that are no voters, on machines of their own in simulation. */
import { expect } from 'vitest';
import {
  connectMirroredMemory,
  type MirroredMemoryConnection,
  type MirroredRegion,
} from '../../lib/checkpoint/connect-mirrored-memory.ts';
import { MemoryManager } from '../../lib/checkpoint/manager.ts';
import type { MemoryClient } from '../../lib/checkpoint/manager-client.ts';
import { admitByRegister } from '../../lib/checkpoint/mirror-admission.ts';
import { serveRegisters } from '../../lib/checkpoint/mirror-decider.ts';
import type { Leg } from '../../lib/checkpoint/mirror-standing.ts';
import type { MirroredAccess } from '../../lib/checkpoint/mirrored-access.ts';
import type { MirroredReader } from '../../lib/checkpoint/mirrored-reader.ts';
import type { Right } from '../../lib/checkpoint/one-sided.ts';
import { type LegRebuild, serveRebuildReports } from '../../lib/checkpoint/rebuild-report.ts';
import { createMemoryUnit, type MemoryUnit } from '../../lib/checkpoint/unit.ts';
import { NEW_VOTER, type VoterState, type VoterStore } from '../../lib/peer/arbiter.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { PeerNode } from '../../lib/peer/peer.ts';
import { RegisterArbiter } from '../../lib/peer/register-driver.ts';
import { SimulatedCluster } from '../../lib/testing/simulated-cluster.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const MIB = 1024 * 1024;
export const REGION_BYTES = 256 * 1024;
export const STATE: MirroredRegion = { name: 'state', registerId: 'd'.repeat(32) };
export const UNITS = ['unit-a', 'unit-b'] as const;
const VOTERS = ['unit-a', 'unit-b', 'tie'];
const CLIENTS = ['w1', 'w2', 'stranger'] as const;
const KEY = new Uint8Array(32);
export type ClientName = (typeof CLIENTS)[number];

/** A voter's state that outlives its process. */
class Kept implements VoterStore {
  voter: VoterState = NEW_VOTER;

  async writeVoter(state: VoterState): Promise<void> {
    this.voter = state;
  }
}

export class MirroredSite {
  readonly cluster = new SimulatedCluster({ seed: 3, names: [...VOTERS, ...CLIENTS] });
  readonly regions: readonly MirroredRegion[];
  readonly units = new Map<string, MemoryUnit>();
  /** What those who decide have heard. */
  readonly rebuilds: (LegRebuild & { readonly at: string; readonly peer: string })[] = [];
  readonly #memories = UNITS.map(newMemory);
  readonly #hangs = new Map<Leg, Promise<void>>();
  readonly #votes = new Map<string, Kept>();
  readonly #connections = new Map<string, MirroredMemoryConnection>();

  constructor(regions: readonly MirroredRegion[] = [STATE]) {
    this.regions = regions;
  }

  /** All of them; w1 has made the regions, which w2 may use, too. */
  async start(): Promise<this> {
    await this.startTieBreaker();
    for (const leg of [0, 1] as const) await this.startUnit(leg, true);
    for (const name of CLIENTS) await this.startClient(name);
    for (const client of this.connection('w1').clients)
      for (const { name } of this.regions) await this.#create(client, name);
    return this;
  }

  async startTieBreaker(): Promise<void> {
    const node = this.#newNode('tie');
    for (const { registerId } of this.regions) this.#arbiterOf(node, registerId);
    await this.until(node.start());
  }

  async startUnit(leg: Leg, isNew = false): Promise<void> {
    const name = UNITS[leg];
    const node = this.#newNode(name);
    const { environment, process } = this.cluster.node(name);
    const memory = this.#memories[leg]!.open((answer) => process.run(answer));
    const persist = memory.persist.bind(memory);
    memory.persist = async (offset, length) => {
      await this.#hangs.get(leg);
      await persist(offset, length);
    };
    const unit = createMemoryUnit({ name, node, memory, clock: environment.clock });
    this.units.set(name, unit);
    if (isNew) await this.until(MemoryManager.format(unit, { blank: true }));
    const decided = this.regions.map((region) => ({ ...region, arbiter: this.#arbiterOf(node, region.registerId) }));
    const manager = new MemoryManager({
      environment,
      control: unit,
      admit: admitByRegister(decided.map(({ name: region, ...register }) => ({ ...register, region, leg }))),
    });
    manager.serve(node);
    const registers = decided.map(({ name: region, registerId, arbiter }) => ({
      registerId,
      arbiter,
      allows: (peer: string, right: Right) => manager.allows(peer, region, right),
      onRebuild: (peer: string, rebuild: LegRebuild) => void this.rebuilds.push({ at: name, peer, ...rebuild }),
    }));
    serveRegisters(node, registers);
    serveRebuildReports(node, registers);
    await this.until(Promise.all([node.start(), manager.open()]));
  }

  async startClient(name: ClientName): Promise<void> {
    const machine = this.cluster.node(name);
    if (!machine.process.alive) machine.restart();
    const [a, b] = UNITS.map((unit) => ({ unit: { name: unit, addresses: [addressOf(unit)] } }));
    const { environment } = machine;
    const options = { environment, name, clusterId: 'mirrored', key: KEY, link: 'dedicated' as const };
    this.#connections.set(name, await this.until(connectMirroredMemory({ ...options, units: [a!, b!] })));
  }

  connection(name: ClientName): MirroredMemoryConnection {
    return this.#connections.get(name)!;
  }

  /** The unit's process is gone, with what was not durable. */
  kill(leg: Leg): void {
    this.cluster.node(UNITS[leg]).kill();
    this.#memories[leg]!.crash();
  }

  /** Nothing becomes durable there any more, and nothing fails, until the returned function is called. */
  hang(leg: Leg): () => void {
    let goOn!: () => void;
    const over = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    this.#hangs.set(leg, over);
    return () => {
      this.#hangs.delete(leg);
      goOn();
    };
  }

  /** As `kill`; and all that the unit has had is lost. */
  replace(leg: Leg): void {
    this.kill(leg);
    this.#memories[leg] = newMemory(UNITS[leg]);
  }

  /** As `kill`, and the others hear nothing. */
  cutPower(leg: Leg): void {
    this.cluster.node(UNITS[leg]).cutPower();
    this.#memories[leg]!.crash();
  }

  open(name: ClientName, region = STATE): Promise<MirroredAccess> {
    return this.until(this.connection(name).openWriter(region, { chunkBytes: 64 * 1024 }));
  }

  openReader(name: ClientName, region = STATE): Promise<MirroredReader> {
    return this.until(this.connection(name).openReader(region, { legMs: 500 }));
  }

  async stands(name: ClientName = 'w1', region = STATE): Promise<string> {
    const result = await this.until(this.connection(name).register(region).compareAndSwap('', ''));
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

  pass(durationMs: number): Promise<void> {
    return this.cluster.scheduler.runFor(durationMs);
  }

  async #create(client: MemoryClient, name: string): Promise<void> {
    await this.until(client.create(name, REGION_BYTES));
    await this.until(client.allow(name, { peer: 'w2', rights: ['read', 'write'] }));
  }

  #arbiterOf(node: PeerNode, registerId: string): RegisterArbiter {
    const { environment } = this.cluster.node(node.name);
    const place = `${node.name} ${registerId}`;
    const store = this.#votes.get(place) ?? new Kept();
    this.#votes.set(place, store);
    const self = VOTERS.indexOf(node.name);
    return new RegisterArbiter({ environment, node, registerId, voters: VOTERS, self, store });
  }

  #newNode(name: string): PeerNode {
    const machine = this.cluster.node(name);
    if (!machine.process.alive) machine.restart();
    const voters = VOTERS.filter((other) => other !== name);
    return createPeerNode({
      environment: machine.environment,
      name,
      clusterId: 'mirrored',
      key: KEY,
      link: 'dedicated',
      listen: addressOf(name),
      peers: [
        ...voters.map((other) => ({ name: other, addresses: [addressOf(other)] })),
        ...CLIENTS.map((client) => ({ name: client, addresses: [] })),
      ],
    });
  }
}

function newMemory(unit: string): SimulatedMemory {
  return new SimulatedMemory({ random: new SimulatedRandom(3, unit), sizeBytes: 4 * MIB });
}

function addressOf(host: string) {
  return { kind: 'tcp', host, port: 7000 } as const;
}
