/** What the parts of one simulation share: the cluster, the machines, the histories, and what has gone wrong first. */
import { metadataBytes } from '../mirror/metadata.ts';
import { Losses } from './losses.ts';
import { SimulatedClock, SimulatedProcess } from './simulated-clock.ts';
import { SimulatedCluster } from './simulated-cluster.ts';
import type { SimulatedMachine } from './simulated-machine.ts';
import type { SimulatedRandom } from './simulated-random.ts';
import { MEMBER_NAMES, SimulatedServer } from './simulated-server.ts';
import { SimulatedTieBreaker } from './simulated-tie-breaker.ts';
import { drawPlan, type SimulationPlan } from './simulation-plan.ts';
import { Histories } from './stamps.ts';

const TIE_BREAKER_NAME = 'c';

export class World {
  readonly plan: SimulationPlan;
  readonly cluster: SimulatedCluster;
  readonly histories: Histories;
  readonly losses: Losses;
  readonly servers: readonly [SimulatedServer, SimulatedServer];
  /** Where a majority decides. */
  readonly tieBreaker: SimulatedTieBreaker | undefined;
  /** Disks go on while a process stands still: they have a clock of the world. */
  readonly clock: SimulatedClock;
  /** Requests to the volume that have begun; whoever waits for one is called. */
  readonly onRequest = new Set<() => void>();
  /** The same for what the volumes tell of themselves. */
  readonly onEvent = new Set<() => void>();
  /** The volume has refused to serve for damage that leaves no good copy. Nothing more is asked of it. */
  refused = false;
  #failure: string | undefined;

  constructor(seed: number, keepLines: number) {
    const names = [...MEMBER_NAMES, TIE_BREAKER_NAME];
    this.cluster = new SimulatedCluster({ seed, names, trace: { keepLines } });
    this.plan = drawPlan(this.random('plan'));
    this.histories = new Histories({ filled: this.plan.content === 'filled' });
    this.clock = new SimulatedClock(this.cluster.scheduler, new SimulatedProcess('world'), 0);
    this.servers = [new SimulatedServer(this, 0), new SimulatedServer(this, 1)];
    const isVoted = this.plan.onLostPeer.kind === 'majority';
    this.tieBreaker = isVoted ? new SimulatedTieBreaker(this, TIE_BREAKER_NAME) : undefined;
    this.losses = new Losses(this);
  }

  random(label: string): SimulatedRandom {
    return this.cluster.random.fork(label);
  }

  /** In the order in which they vote. */
  get machines(): readonly SimulatedMachine[] {
    return this.tieBreaker === undefined ? this.servers : [...this.servers, this.tieBreaker];
  }

  get memberDiskBytes(): number {
    const { volumeBytes, grainBytes, logExtentBytes } = this.plan;
    return volumeBytes + metadataBytes(volumeBytes, grainBytes, logExtentBytes);
  }

  /** Both copies are in sync, as both servers say. */
  get isPaired(): boolean {
    return this.servers.every((server) => server.isPaired);
  }

  get failure(): string | undefined {
    return this.#failure;
  }

  /** The first failure counts: what follows is often its consequence. */
  fail(what: string): void {
    this.#failure ??= what;
    this.note(`FAILURE ${what}`);
  }

  note(line: string): void {
    this.cluster.network.note(line);
  }

  later(delayMs: number, action: () => void): void {
    this.cluster.scheduler.schedule(delayMs * 1000, action);
  }

  pause(durationMs: number): Promise<void> {
    return new Promise((resolve) => this.later(durationMs, resolve));
  }

  /** For messages: what each machine says of itself. */
  describeMachines(): string {
    return this.machines.map((machine) => machine.describe()).join('\n');
  }
}

export function tell(listeners: Set<() => void>): void {
  const told = [...listeners];
  listeners.clear();
  for (const listener of told) listener();
}
