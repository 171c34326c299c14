/** A unit, its manager and two users, each on a machine of its own in the simulation. */

import { type ManagerAuditEvent, MemoryManager } from '../../lib/checkpoint/manager.ts';
import { MemoryClient } from '../../lib/checkpoint/manager-client.ts';
import type { AddressContext, RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { SPACE_UNIT_BYTES } from '../../lib/checkpoint/region-directory.ts';
import { RemoteUnit, serveRemoteManager } from '../../lib/checkpoint/remote-unit.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { PeerNode, PeerSession } from '../../lib/peer/peer.ts';
import type { SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedCluster, type SimulatedEnvironment } from '../../lib/testing/simulated-cluster.ts';
import { FakeControl, FakeMemory, FakeUnit, RECORDS_BYTES } from './fake-unit.ts';

export const NAMES = ['unit', 'manager', 'ann', 'ben'] as const;
export type Name = (typeof NAMES)[number];

/** Stands for the commands, which are not what is tried here: tells only whether the unit knows the key. */
export interface FakeAccess extends RegionAccess {
  readonly key: string;
}

export class Apart {
  readonly cluster: SimulatedCluster;
  readonly memory = new FakeMemory(RECORDS_BYTES + 16 * SPACE_UNIT_BYTES);
  readonly nodes = new Map<Name, PeerNode>();
  readonly clients = new Map<Name, MemoryClient>();
  readonly refused: string[] = [];
  readonly events: ManagerAuditEvent[] = [];
  unit!: FakeUnit;
  control!: FakeControl;
  remote!: RemoteUnit;
  manager!: MemoryManager;

  constructor(seed = 1) {
    this.cluster = new SimulatedCluster({ seed, names: NAMES });
  }

  /** All of them, over memory that was formatted. */
  async start(): Promise<this> {
    await MemoryManager.format(new FakeControl(new FakeUnit(this.memory)), { blank: true });
    await this.startUnit();
    await this.until(this.startManager());
    for (const name of ['ann', 'ben'] as const) await this.startClient(name);
    return this;
  }

  /** `manager` is whom the unit's configuration names. */
  async startUnit(
    manager = 'manager',
    wrap: (control: FakeControl) => FakeControl = (control) => control,
  ): Promise<void> {
    const node = this.#newNode('unit');
    const unit = new FakeUnit(this.memory);
    const control = wrap(new FakeControl(unit));
    node.subscribe({
      onSessionUp: ({ peer }) => void unit.sessions.add(peer.name),
      onSessionDown: ({ peer }) => {
        unit.sessions.delete(peer.name);
        for (const [key, grant] of unit.keys) if (grant.peer === peer.name) unit.keys.delete(key);
      },
    });
    serveRemoteManager({ node, control, manager, onRefused: (peer, method) => this.refused.push(`${peer} ${method}`) });
    this.unit = unit;
    this.control = control;
    await this.until(node.start());
  }

  async startManager(): Promise<void> {
    const node = this.#newNode('manager');
    this.remote = new RemoteUnit({ node, unit: 'unit' });
    const { environment } = this.cluster.node('manager');
    this.manager = new MemoryManager({
      environment,
      control: this.remote,
      audit: (event) => this.events.push(event),
    });
    this.manager.serve(node);
    await node.start();
    await this.manager.open();
  }

  /** Only its node: says what it is told to. */
  async startBare(name: Name): Promise<PeerNode> {
    const node = this.#newNode(name);
    await this.until(node.start());
    return node;
  }

  async startClient(name: 'ann' | 'ben'): Promise<void> {
    const node = this.#newNode(name);
    const { clock } = this.cluster.node(name).environment;
    this.clients.set(name, new MemoryClient({ node, clock, manager: 'manager', unit: 'unit', transport: fakeAccess }));
    await this.until(node.start());
  }

  client(name: 'ann' | 'ben'): MemoryClient {
    return this.clients.get(name)!;
  }

  kill(name: Name): void {
    this.cluster.node(name).kill();
    if (name === 'unit') this.control.dead = true;
  }

  until<Result>(work: Promise<Result>, limitMs = 60_000): Promise<Result> {
    return this.cluster.scheduler.runUntil(work, limitMs);
  }

  pass(durationMs: number): Promise<void> {
    return this.cluster.scheduler.runFor(durationMs);
  }

  opens(access: RegionAccess): boolean {
    return this.unit.keys.has((access as FakeAccess).key);
  }

  #newNode(name: Name): PeerNode {
    const machine = this.cluster.node(name);
    if (!machine.process.alive) machine.restart();
    const { environment }: { environment: SimulatedEnvironment; process: SimulatedProcess } = machine;
    const node = createPeerNode({
      environment,
      name,
      clusterId: 'apart',
      key: new Uint8Array(32),
      link: 'dedicated',
      listen: { kind: 'tcp', host: name, port: 7000 },
      peers: NAMES.filter((other) => other !== name).map((other) => ({
        name: other,
        addresses: [{ kind: 'tcp', host: other, port: 7000 }],
      })),
    });
    this.nodes.set(name, node);
    return node;
  }
}

function fakeAccess(session: PeerSession, { key, unit, range, epoch }: AddressContext): FakeAccess {
  const no = () => Promise.reject(new Error('no commands here'));
  const commands = { read: no, write: no, persist: no, compareAndSwap: no, watch: no };
  return {
    key,
    unit,
    range,
    epoch,
    get open() {
      return session.open;
    },
    ...commands,
  };
}
