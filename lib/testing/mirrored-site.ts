/**
 * Two memory units with a mirrored region, as they are in earnest, on machines of a simulated cluster: each unit with its
 * manager (in its process, or on a machine of its own), a voter of the region's register beside each manager, and a
 * tie-breaker. Everything between them and their users goes over real sessions; voters keep their state on disks, units
 * in memories, which lose what was not durable.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { connectMirroredMemory, type MirroredMemoryConnection } from '../checkpoint/connect-mirrored-memory.ts';
import { MemoryManager } from '../checkpoint/manager.ts';
import { admitByRegister } from '../checkpoint/mirror-admission.ts';
import { serveRegisters } from '../checkpoint/mirror-decider.ts';
import { LEGS, type Leg } from '../checkpoint/mirror-standing.ts';
import { SPACE_UNIT_BYTES } from '../checkpoint/region-directory.ts';
import { RemoteUnit, serveRemoteManager } from '../checkpoint/remote-unit.ts';
import { createMemoryUnit } from '../checkpoint/unit.ts';
import { VOTER_FILE_BYTES, VoterFile, type VoterFileOwner } from '../coherency/voter-file.ts';
import { createPeerNode } from '../peer/node.ts';
import type { PeerNode } from '../peer/peer.ts';
import { RegisterArbiter } from '../peer/register-driver.ts';
import type { SimulatedCluster, SimulatedNode } from './simulated-cluster.ts';
import { SimulatedDisk } from './simulated-disk.ts';
import { addressOf, nodeOptions, SimulatedUnit, worldClock } from './simulated-unit.ts';

export const REGION = { name: 'state', registerId: 'd'.repeat(32) };
export const UNITS = ['unit-a', 'unit-b'] as const;
const MANAGERS = ['manager-a', 'manager-b'] as const;
const TIE_BREAKER = 'tie';
const OWNER = 'owner';
const RECORDS_BYTES = 64 * 1024;
/** How long a voter asks the others. */
const DECISION_MS = 1000;

/** Machines of a site, beside those of its users. */
export const SITE_MACHINES: readonly string[] = [...UNITS, ...MANAGERS, TIE_BREAKER, OWNER];

export interface MirroredSiteOptions {
  readonly cluster: SimulatedCluster;
  /** Machines that use the region: name, and whether it may write. */
  readonly users: ReadonlyMap<string, boolean>;
  readonly regionBytes: number;
  /** The managers run on machines of their own. */
  readonly isApart: boolean;
  /** A persist takes a tenth of this, up to this. */
  readonly persistMs: number;
  /** What runs on a machine cannot start. */
  readonly onFailedStart: (machine: SiteMachine, error: unknown) => void;
}

/** A machine on which some of it runs; a manager's in a unit's process is the unit's. */
export interface SiteMachine {
  readonly name: string;
  readonly node: SimulatedNode;
  kill(withPower: boolean): void;
  /** After `kill`. */
  restart(): void;
}

export class MirroredSite {
  readonly units: readonly [SimulatedUnit, SimulatedUnit];
  readonly machines: readonly SiteMachine[];
  /** Names of the nodes of both managers. */
  readonly managers: readonly [string, string];
  readonly #options: MirroredSiteOptions;
  readonly #cluster: SimulatedCluster;
  readonly #disks = new Map<string, SimulatedDisk>();

  constructor(options: MirroredSiteOptions) {
    const { cluster, isApart, regionBytes, persistMs } = options;
    this.#options = options;
    this.#cluster = cluster;
    this.managers = isApart ? MANAGERS : UNITS;
    const unit = (leg: Leg) => {
      const sizeBytes = RECORDS_BYTES + Math.ceil(regionBytes / SPACE_UNIT_BYTES) * SPACE_UNIT_BYTES;
      return new SimulatedUnit(cluster, UNITS[leg], { sizeBytes, persistMs, label: `memory of ${UNITS[leg]}` });
    };
    this.units = [unit(0), unit(1)];
    for (const name of this.voters) this.#disks.set(name, this.#newDisk(name));
    this.machines = [...UNITS, ...(isApart ? MANAGERS : []), TIE_BREAKER].map((name) => this.#machine(name));
  }

  /** In the order in which they vote. */
  get voters(): readonly string[] {
    return [...this.managers, TIE_BREAKER];
  }

  machine(name: string): SiteMachine {
    return this.machines.find((machine) => machine.name === name)!;
  }

  /** The power of a unit goes in the middle of its nth store from now on (1: the next one). */
  cutPowerAtStore(leg: Leg, count: number, onCut: () => void): void {
    this.units[leg].cutPowerAtStore(count, () => {
      this.#disks.get(UNITS[leg])?.crash();
      onCut();
    });
  }

  /** Formats all, and makes the region, as an operator does. */
  async create(): Promise<void> {
    for (const [name, disk] of this.#disks) {
      const device = disk.open();
      await VoterFile.create(device, ownerOf(name));
      await device.close();
    }
    await Promise.all(this.machines.map(({ name }) => this.#start(name, true)));
    await this.#createRegion(LEGS);
  }

  /** A blank memory in the place of what a unit had: its machine and its manager's must be dead. */
  async replace(leg: Leg): Promise<void> {
    const names = new Set([UNITS[leg], this.managers[leg]]);
    this.units[leg].replaceMemory();
    for (const name of names) this.#cluster.node(name).restart();
    await Promise.all([...names].map((name) => this.#start(name, true)));
    await this.#createRegion([leg]);
  }

  /** As a process of this name, which is a user's. */
  connect(name: string): Promise<MirroredMemoryConnection> {
    const peer = (machine: string) => ({ name: machine, addresses: [addressOf(machine)] });
    const unit = (leg: Leg) => ({ unit: peer(UNITS[leg]), manager: peer(this.managers[leg]) });
    const { environment } = this.#cluster.node(name);
    return connectMirroredMemory({ ...nodeOptions(environment, name), units: [unit(0), unit(1)] });
  }

  async #createRegion(legs: readonly Leg[]): Promise<void> {
    const { users, regionBytes } = this.#options;
    await using connection = await this.connect(OWNER);
    for (const leg of legs) {
      const client = connection.clients[leg];
      await this.#patiently(() => client.create(REGION.name, regionBytes));
      for (const [peer, mayWrite] of users)
        await client.allow(REGION.name, { peer, rights: mayWrite ? ['read', 'write'] : ['read'] });
    }
  }

  /** As long as too few voters answer. */
  async #patiently<Result>(ask: () => Promise<Result>): Promise<Result> {
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        if (!isHoldfastError(error, 'ERR_HOLDFAST_NO_MAJORITY')) throw error;
      }
    }
  }

  // Machines

  #machine(name: string): SiteMachine {
    const node = this.#cluster.node(name);
    const unit = this.units.find(({ machine }) => machine === node);
    const disk = this.#disks.get(name);
    return {
      name,
      node,
      kill: (withPower) => {
        if (!node.process.alive) return;
        if (unit !== undefined) unit.kill(withPower);
        else if (withPower) node.cutPower();
        else node.kill();
        if (withPower) disk?.crash();
        else disk?.kill();
      },
      restart: () => {
        if (node.process.alive) return;
        node.restart();
        const { process } = node;
        this.#start(name, false).catch((error: unknown) => {
          if (process.alive) this.#options.onFailedStart(this.machine(name), error);
        });
      },
    };
  }

  #newDisk(name: string): SimulatedDisk {
    return new SimulatedDisk({
      clock: worldClock(this.#cluster),
      random: this.#cluster.random.fork(`disk of ${name}`),
      sizeBytes: VOTER_FILE_BYTES,
      name: `disk of ${name}`,
    });
  }

  /** What runs on the machine. */
  async #start(name: string, isFirst: boolean): Promise<void> {
    const node = this.#newNode(name);
    const leg = LEGS.find((each) => UNITS[each] === name);
    const managed = LEGS.find((each) => this.managers[each] === name);
    const arbiter = await this.#voter(name, node);
    const unit = leg === undefined ? undefined : this.#unit(leg, node);
    if (managed === undefined) {
      await node.start();
      return;
    }
    const control = unit ?? new RemoteUnit({ node, unit: UNITS[managed] });
    const manager = new MemoryManager({
      environment: this.#cluster.node(name).environment,
      control,
      admit: admitByRegister([{ region: REGION.name, registerId: REGION.registerId, leg: managed, arbiter: arbiter! }]),
    });
    manager.serve(node);
    const allows = (peer: string, right: 'read' | 'write') => manager.allows(peer, REGION.name, right);
    serveRegisters(node, [{ registerId: REGION.registerId, arbiter: arbiter!, allows }]);
    await node.start();
    if (isFirst) await MemoryManager.format(control, { blank: true });
    await this.#openManager(manager);
  }

  /** A unit that is apart may be lost meanwhile: then it is asked again. */
  async #openManager(manager: MemoryManager): Promise<void> {
    for (;;) {
      try {
        await manager.open();
        return;
      } catch (error) {
        if (!(this.#options.isApart && error instanceof HoldfastError)) throw error;
      }
    }
  }

  #unit(leg: Leg, node: PeerNode) {
    const { clock } = this.#cluster.node(UNITS[leg]).environment;
    const memory = this.units[leg].open();
    const unit = createMemoryUnit({ name: UNITS[leg], memory, clock, node, recordsBytes: RECORDS_BYTES });
    if (this.#options.isApart) serveRemoteManager({ node, control: unit, manager: this.managers[leg] });
    return unit;
  }

  async #voter(name: string, node: PeerNode): Promise<RegisterArbiter | undefined> {
    const disk = this.#disks.get(name);
    if (disk === undefined) return undefined;
    const { process, environment } = this.#cluster.node(name);
    const store = await VoterFile.open(disk.open({ run: (answer) => process.run(answer) }), ownerOf(name));
    const { voters } = this;
    return new RegisterArbiter({
      environment,
      node,
      registerId: REGION.registerId,
      voters,
      self: voters.indexOf(name),
      store,
      deadlineMs: DECISION_MS,
    });
  }

  #newNode(name: string): PeerNode {
    const others = [...this.machines.map((machine) => machine.name), ...this.#options.users.keys(), OWNER];
    const isInside = (other: string) => SITE_MACHINES.includes(other);
    return createPeerNode({
      ...nodeOptions(this.#cluster.node(name).environment, name),
      listen: addressOf(name),
      peers: others
        .filter((other) => other !== name)
        .map((other) => ({ name: other, addresses: isInside(other) ? [addressOf(other)] : [] })),
    });
  }
}

function ownerOf(nodeName: string): VoterFileOwner {
  return { registerId: REGION.registerId, nodeName };
}
