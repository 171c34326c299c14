/**
 * A mirrored volume in the seeded simulation: its servers with a disk each, a tie-breaker where a majority decides,
 * clients on both servers, and whatever the seed draws (simulation-plan.ts). A safety phase with faults is followed by
 * one of liveness: all is healed, the members must meet and serve clients that want the same blocks; then, in some runs,
 * one machine is lost for good, and the others have to go on where the policy lets them. Then all is judged
 * (simulation-judge.ts).
 *
 * One seed decides everything: the same seed leaves the same trace.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { Clients } from './simulated-clients.ts';
import { Faults } from './simulated-faults.ts';
import type { SimulatedServer } from './simulated-server.ts';
import type { SimulatedTieBreaker } from './simulated-tie-breaker.ts';
import { compareCopies, judgeHistories } from './simulation-judge.ts';
import type { SimulationPlan } from './simulation-plan.ts';
import { World } from './simulation-world.ts';

/** In which everything that must come must have come once the faults are over. */
const LIVENESS_LIMIT_MS = 60_000;
const CONTENTION_ROUNDS = 6;
/** Units that are read at once in the end. */
const RUN_MOST = 256;

/** How much a run tells. */
export interface SimulationOptions {
  /** How many of the last lines of the trace are kept. Default 0: they cost time. */
  readonly keepLines?: number;
}

/** What became of one seed. */
export interface SimulationResult {
  readonly seed: number;
  readonly plan: SimulationPlan;
  /** Undefined if all held. */
  readonly failure: string | undefined;
  /** Same seed, same hash. */
  readonly traceHash: string;
  readonly operations: number;
  readonly unended: number;
  readonly faults: number;
  readonly resyncs: number;
  /** What was not flushed may have been lost. */
  readonly lost: boolean;
  /** The last lines of what happened. */
  readonly trace: readonly string[];
}

/** Runs one seed. Throws nothing that a fault could bring about: what went wrong is in the result. */
export async function simulateMirror(seed: number, options: SimulationOptions = {}): Promise<SimulationResult> {
  const simulation = new MirrorSimulation(seed, options.keepLines ?? 0);
  const failure = await simulation.run().catch((error: unknown) => `the simulation broke: ${describe(error)}`);
  return simulation.result(failure);
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

/** Neighbouring units, in runs. */
function runs(units: Iterable<number>): { unit: number; count: number }[] {
  const found: { unit: number; count: number }[] = [];
  for (const unit of [...units].sort((a, b) => a - b)) {
    const last = found.at(-1);
    if (last !== undefined && last.unit + last.count === unit && last.count < RUN_MOST) last.count += 1;
    else found.push({ unit, count: 1 });
  }
  return found;
}

class MirrorSimulation {
  readonly #seed: number;
  readonly #world: World;
  readonly #clients: Clients;
  readonly #faults: Faults;

  constructor(seed: number, keepLines: number) {
    this.#seed = seed;
    this.#world = new World(seed, keepLines);
    this.#clients = new Clients(this.#world);
    this.#faults = new Faults(this.#world);
  }

  result(failure: string | undefined): SimulationResult {
    const { plan, cluster, histories, losses, servers } = this.#world;
    const operations = new Set([...histories.blocks.values()].flat());
    return {
      seed: this.#seed,
      plan,
      failure: this.#world.failure ?? failure,
      traceHash: cluster.trace.hash(),
      operations: histories.operations,
      unended: [...operations].filter(({ end }) => end === Number.POSITIVE_INFINITY).length,
      faults: this.#faults.count,
      resyncs: servers.reduce((sum, { resyncs }) => sum + resyncs, 0),
      lost: losses.any,
      trace: cluster.trace.lastLines(),
    };
  }

  async run(): Promise<string | undefined> {
    const { servers, machines, plan, tieBreaker } = this.#world;
    for (const machine of machines) await this.#within(machine.create(), `${machine.name} is created`);
    for (const machine of machines) void machine.start();
    await this.#until(() => this.#world.isPaired, 'the members pair for the first time');
    this.#clients.start();
    await this.#faults.run();
    await this.#faults.heal();
    await this.#meet();
    if (this.#world.refused || this.#world.failure !== undefined) return judgeHistories(this.#world);
    await this.#serve(servers);
    const differ = compareCopies(this.#world);
    if (differ !== undefined) return differ;
    if (plan.lostAtEnd === 'tie-breaker') await this.#goOnWithoutVoter(tieBreaker);
    else if (plan.lostAtEnd !== undefined) await this.#goOnWithout(servers[plan.lostAtEnd]);
    return judgeHistories(this.#world);
  }

  /** The members are in sync again; after a split brain, once an operator has given up one of the copies. */
  async #meet(): Promise<void> {
    const { losses } = this.#world;
    const isSettled = () => this.#world.isPaired || this.#world.refused;
    // A server that has just been started may be found to have gone on alone before it died.
    await this.#until(() => losses.isSplit || isSettled(), 'the members are in sync after all is healed');
    if (losses.isSplit) {
      const bothStop = () => this.#world.servers.every((server) => server.hasSplitBrain && !server.serves);
      await this.#until(bothStop, 'both members see the split brain, and stop');
      const victim = this.#world.servers[this.#world.random('operator').below(2)]!;
      victim.kill();
      await this.#within(victim.createAnew(), `${victim.name} is created anew`);
    }
    await this.#until(isSettled, 'the members are in sync after all is healed');
  }

  /** Every client gets its answers, also where all want the same; then all is read and flushed. */
  async #serve(servers: readonly SimulatedServer[]): Promise<void> {
    await this.#within(this.#clients.stop(), 'every client gets its answers');
    await this.#within(this.#clients.contend(servers, CONTENTION_ROUNDS), 'clients that contend are all served');
    for (const server of servers) await this.#within(this.#readAll(server), `${server.name} reads all and flushes`);
  }

  async #readAll(server: SimulatedServer): Promise<void> {
    if (server.volume === undefined) {
      this.#world.fail(`${server.name} is gone after the faults have ended`);
      return;
    }
    await Promise.all(
      runs(this.#world.histories.blocks.keys()).map(({ unit, count }) => this.#clients.read(server, unit, count)),
    );
    await this.#clients.flush(server);
  }

  /** One server is lost for good. Where the policy lets the other go on, it must. */
  async #goOnWithout(lost: SimulatedServer): Promise<void> {
    const survivor = lost.other;
    const { onLostPeer } = this.#world.plan;
    const wasPaired = this.#world.isPaired;
    this.#world.note(`${lost.name} is lost for good`);
    this.#world.losses.begin(lost);
    if (this.#world.random('end').chance(0.5)) lost.kill();
    else if (lost.cutPower()) this.#world.losses.powerCut(lost, wasPaired);
    const isSuspended = onLostPeer.kind === 'preferred' && onLostPeer.member !== survivor.member;
    if (onLostPeer.kind !== 'suspend' && !isSuspended) await this.#serve([survivor]);
  }

  /** The members are a majority without the tie-breaker; also if one of them has been away. */
  async #goOnWithoutVoter(lost: SimulatedTieBreaker | undefined): Promise<void> {
    if (lost === undefined) return;
    this.#world.note(`${lost.name} is lost for good`);
    lost.kill();
    const server = this.#world.servers[this.#world.random('end').below(2)]!;
    this.#world.losses.begin(server);
    server.kill();
    server.startIfDead();
    await this.#until(() => this.#world.isPaired, 'the members are in sync without the tie-breaker');
    this.#world.losses.end(server);
    await this.#serve(this.#world.servers);
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const { scheduler } = this.#world.cluster;
    const limitMs = scheduler.nowMs + LIVENESS_LIMIT_MS;
    await scheduler.run(() => condition() || scheduler.nowMs >= limitMs || this.#world.failure !== undefined);
    if (this.#world.failure === undefined && !condition()) this.#late(what);
  }

  async #within<Result>(promise: Promise<Result>, what: string): Promise<Result> {
    try {
      return await this.#world.cluster.scheduler.runUntil(promise, LIVENESS_LIMIT_MS);
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_TIMEOUT')) throw error;
      return this.#late(what);
    }
  }

  #late(what: string): never {
    throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', `not in time: ${what}\n${this.#world.describeMachines()}`);
  }
}
