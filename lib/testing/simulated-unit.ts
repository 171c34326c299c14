/**
 * A memory unit of the simulated cluster: its machine, its memory that outlives the processes on it, and how it dies. What
 * the simulations of process pairs and of mirrored units have in common.
 */
import type { Environment } from '../base/environment.ts';
import type { Address } from '../base/network.ts';
import type { UnitMemory } from '../checkpoint/unit-memory.ts';
import { SimulatedClock, SimulatedProcess } from './simulated-clock.ts';
import type { SimulatedCluster, SimulatedNode } from './simulated-cluster.ts';
import { SimulatedMemory } from './simulated-memory.ts';
import { FAULTLESS_LINK, type LinkOptions } from './simulated-network.ts';

export const LEASE_MS = 300;
const CLUSTER_KEY = new Uint8Array(32).fill(9);
const PORT = 7000;
/** A network with which units and their users have to live. */
export const LOSSY_LINK: LinkOptions = {
  ...FAULTLESS_LINK,
  delayMaxMs: 10,
  dropRate: 0.001,
  duplicateRate: 0.001,
  reorderRate: 0.001,
  resetRate: 0.001,
  stallRate: 0.01,
};

/** Where a machine of the simulation listens. */
export function addressOf(machine: string): Address {
  return { kind: 'tcp', host: machine, port: PORT };
}

/** What all nodes of the simulation have in common. */
export function nodeOptions(environment: Environment, name: string) {
  return {
    environment,
    name,
    clusterId: 'simulation',
    key: CLUSTER_KEY,
    link: 'dedicated',
    leaseMs: LEASE_MS,
    heartbeatMs: LEASE_MS / 5,
  } as const;
}

/** The clock of memories and disks: they go on while a process stands still. */
export function worldClock(cluster: SimulatedCluster): SimulatedClock {
  return new SimulatedClock(cluster.scheduler, new SimulatedProcess('world'), 0);
}

/** Size and speed of a unit's memory. */
export interface SimulatedUnitOptions {
  readonly sizeBytes: number;
  /** A persist takes a tenth of this, up to this. */
  readonly persistMs: number;
  /** Of its random stream. */
  readonly label: string;
}

export class SimulatedUnit {
  readonly machine: SimulatedNode;
  readonly #cluster: SimulatedCluster;
  readonly #options: SimulatedUnitOptions;
  #memory: SimulatedMemory;
  #memories = 0;

  /** On the machine of this name. */
  constructor(cluster: SimulatedCluster, name: string, options: SimulatedUnitOptions) {
    this.machine = cluster.node(name);
    this.#cluster = cluster;
    this.#options = options;
    this.#memory = this.#newMemory();
  }

  get memory(): SimulatedMemory {
    return this.#memory;
  }

  /** As the process that runs now opens it. */
  open(): UnitMemory {
    const { process } = this.machine;
    return this.#memory.open((answer) => process.run(answer));
  }

  /** The process dies, and with the power what was not durable may be lost. */
  kill(withPower: boolean): void {
    if (withPower) {
      this.machine.cutPower();
      this.#memory.crash();
    } else {
      this.machine.kill();
      this.#memory.kill();
    }
  }

  /** The power goes in the middle of the nth store from now on (1: the next one). */
  cutPowerAtStore(count: number, onCut: () => void): void {
    this.#memory.crashAtStore(count, () => {
      this.machine.cutPower();
      onCut();
    });
  }

  /** No power cut in the middle of a store any more. */
  spare(): void {
    this.#memory.crashAtStore(Number.MAX_SAFE_INTEGER, () => {});
  }

  /** Another memory in the place of this one, blank. The process must be dead. */
  replaceMemory(): void {
    this.#memory = this.#newMemory();
  }

  #newMemory(): SimulatedMemory {
    const { sizeBytes, persistMs, label } = this.#options;
    this.#memories += 1;
    return new SimulatedMemory({
      random: this.#cluster.random.fork(this.#memories === 1 ? label : `${label} ${this.#memories}`),
      sizeBytes,
      clock: worldClock(this.#cluster),
      persistLatencyMs: [persistMs / 10, persistMs],
    });
  }
}
