/**
 * A cluster in a simulation: machines that each run one process at a time, with a clock, a random stream and a network
 * of its own. One seed decides everything that happens.
 */
import type { Environment } from '../base/environment.ts';
import { assert, HoldfastError } from '../base/errors.ts';
import { Scheduler } from './scheduler.ts';
import { SimulatedClock, SimulatedProcess } from './simulated-clock.ts';
import { type LinkOptions, SimulatedNetwork } from './simulated-network.ts';
import { SimulatedRandom } from './simulated-random.ts';
import { Trace, type TraceOptions } from './trace.ts';

/** Machines have been up for different times: monotonic clocks of two machines have nothing in common. */
const UPTIME_MAX_MS = 1e9;

/** What a simulated process is given in place of `systemEnvironment`. */
export interface SimulatedEnvironment extends Environment {
  readonly clock: SimulatedClock;
  readonly random: SimulatedRandom;
}

/** A machine of the cluster, which runs one process at a time. */
export class SimulatedNode {
  readonly name: string;
  readonly #cluster: SimulatedCluster;
  readonly #uptimeMs: number;
  #process!: SimulatedProcess;
  #environment!: SimulatedEnvironment;
  #starts = 0;

  constructor(cluster: SimulatedCluster, name: string) {
    this.name = name;
    this.#cluster = cluster;
    this.#uptimeMs = cluster.random.fork(`uptime of ${name}`).between(0, UPTIME_MAX_MS);
    this.#boot();
  }

  /** What the process that runs now is given. A new one after every restart. */
  get environment(): SimulatedEnvironment {
    return this.#environment;
  }

  /** The process that runs now, or ran last. */
  get process(): SimulatedProcess {
    return this.#process;
  }

  /** As SIGKILL: the machine resets the connections; timers never fire, promises never settle. */
  kill(): void {
    this.#cluster.network.note(`kill ${this.name}`);
    this.#process.kill();
  }

  /** The machine stops with the process: the others hear nothing. */
  cutPower(): void {
    this.#cluster.network.note(`power cut ${this.name}`);
    this.#cluster.network.setMachineDown(this.name, true);
    this.#process.kill();
  }

  /** A new process after `kill` or `cutPower`. */
  restart(): SimulatedEnvironment {
    assert(!this.#process.alive, 'a process that runs is not restarted');
    this.#cluster.network.note(`restart ${this.name}`);
    this.#cluster.network.setMachineDown(this.name, false);
    this.#boot();
    return this.#environment;
  }

  /** As SIGSTOP: the machine goes on, the process does not. */
  pause(): void {
    this.#cluster.network.note(`pause ${this.name}`);
    this.#process.pause();
  }

  /** As SIGCONT. */
  resume(): void {
    this.#cluster.network.note(`resume ${this.name}`);
    this.#process.resume();
  }

  #boot(): void {
    const { scheduler, network, random } = this.#cluster;
    const process = new SimulatedProcess(this.name);
    process.atDeath(() => network.processDied(process));
    this.#process = process;
    this.#environment = {
      clock: new SimulatedClock(scheduler, process, this.#uptimeMs + scheduler.nowMs),
      random: random.fork(`${this.name} ${this.#starts++}`),
      network: network.endpoint(process),
    };
  }
}

/** The seed that decides everything, the machines' names, the links between them. */
export interface SimulatedClusterOptions {
  readonly seed: number;
  readonly names: readonly string[];
  readonly link?: Partial<LinkOptions>;
  readonly trace?: TraceOptions;
}

/**
 * A cluster in virtual time.
 *
 * ```ts
 * const cluster = new SimulatedCluster({ seed: 42, names: ['a', 'b'] });
 * const server = new Server(cluster.node('a').environment);
 * await cluster.scheduler.runUntil(server.ready(), 10_000);
 * cluster.network.partition('a', 'b');
 * cluster.node('b').kill();
 * cluster.node('b').restart();
 * ```
 */
export class SimulatedCluster {
  readonly seed: number;
  readonly scheduler = new Scheduler();
  readonly random: SimulatedRandom;
  readonly trace: Trace;
  readonly network: SimulatedNetwork;
  readonly #nodes = new Map<string, SimulatedNode>();

  constructor(options: SimulatedClusterOptions) {
    this.seed = options.seed;
    this.random = new SimulatedRandom(options.seed, 'cluster');
    this.trace = new Trace(options.trace);
    this.network = new SimulatedNetwork(this.scheduler, this.random.fork('network'), this.trace);
    if (options.link !== undefined) this.network.setAllLinks(options.link);
    for (const name of options.names) this.#nodes.set(name, new SimulatedNode(this, name));
  }

  /** The machine of that name. Throws ERR_HOLDFAST_BAD_ARGUMENT if there is none. */
  node(name: string): SimulatedNode {
    const node = this.#nodes.get(name);
    if (node === undefined)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `there is no node ${name} in this simulation`);
    return node;
  }

  /** All machines, in the order of their names' list. */
  nodes(): SimulatedNode[] {
    return [...this.#nodes.values()];
  }
}
