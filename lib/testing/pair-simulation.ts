/**
 * A process pair in the seeded simulation: a memory unit with its manager on one machine, two processes of the pair on
 * two others, over a network that is slow, lossy and cut; clients that ask whichever process answers to set and get
 * keys. Processes are killed, stand still (and are slow primaries when they go on), the unit is killed or loses its
 * power with what it had not made durable. Then all is healed, and the pair must work.
 *
 * Judged: the history of each key is linearizable, over every take-over; so nothing that was acknowledged is lost, and no
 * slow primary answers from a state that is over. No update is applied twice to one state: it knows which it has had.
 *
 * One seed decides everything: the same seed leaves the same trace.
 */
import { isHoldfastError } from '../base/errors.ts';
import { MemoryManager } from '../checkpoint/manager.ts';
import { MemoryClient } from '../checkpoint/manager-client.ts';
import { openAccess } from '../checkpoint/memory-session.ts';
import { pairMemory } from '../checkpoint/pair-memory.ts';
import { type ProcessPair, runProcessPair } from '../checkpoint/process-pair.ts';
import { createMemoryUnit } from '../checkpoint/unit.ts';
import { createPeerNode } from '../peer/node.ts';
import type { PeerNode } from '../peer/peer.ts';
import { checkLinearizable, INITIAL_VALUE, type Operation } from './history.ts';
import { SimulatedCluster, type SimulatedEnvironment, type SimulatedNode } from './simulated-cluster.ts';
import { FAULTLESS_LINK } from './simulated-network.ts';
import type { SimulatedRandom } from './simulated-random.ts';
import { addressOf, LOSSY_LINK, nodeOptions, SimulatedUnit } from './simulated-unit.ts';

const UNIT = 'unit';
const NAMES = ['a', 'b'] as const;
const REGION = 'pair';
const KIB = 1024;
const MEMORY_BYTES = 1024 * KIB;
const RECORDS_BYTES = 64 * KIB;
const KEYS = 3;
const CLIENTS = 3;
/** In which everything that must come must have come once the faults are over. */
const LIVENESS_LIMIT_MS = 60_000;
const CLIENT_PATIENCE_MS = 2000;

type Update = readonly [key: number, value: number, filling: string];
interface State {
  /** Of each key. */
  readonly values: number[];
  /** All that were ever set. */
  readonly applied: Set<number>;
}
type Pair = ProcessPair<State, Update, number>;

/** What the seed draws. */
export interface PairPlan {
  readonly heartbeatMs: number;
  readonly takeOverAfterMs: number;
  /** Of the pair's region: a small one wraps, and saves its state, often. */
  readonly regionBytes: number;
  /** Longest filling of an update, characters. */
  readonly fillingMax: number;
  readonly faults: number;
  readonly lossy: boolean;
  readonly persistMs: number;
}

/** What became of one seed. */
export interface PairSimulationResult {
  readonly seed: number;
  readonly plan: PairPlan;
  /** Undefined if all held. */
  readonly failure: string | undefined;
  /** Same seed, same hash. */
  readonly traceHash: string;
  readonly operations: number;
  readonly unended: number;
  readonly faults: number;
  readonly takeOvers: number;
  /** The last lines of what happened. */
  readonly trace: readonly string[];
}

/** Runs one seed. Throws nothing that a fault could bring about: what went wrong is in the result. */
export async function simulatePair(seed: number, options: { keepLines?: number } = {}): Promise<PairSimulationResult> {
  const simulation = new PairSimulation(seed, options.keepLines ?? 0);
  const failure = await simulation
    .run()
    .catch((error: unknown) => `the simulation broke: ${error instanceof Error ? error.stack : String(error)}`);
  return simulation.result(failure);
}

function drawPlan(random: SimulatedRandom): PairPlan {
  const heartbeatMs = random.between(20, 200);
  return {
    heartbeatMs,
    takeOverAfterMs: heartbeatMs * random.between(3, 10),
    regionBytes: random.chance(0.5) ? 128 * KIB : 512 * KIB,
    fillingMax: random.chance(0.5) ? 50 : 3000,
    faults: Math.floor(random.between(2, 9)),
    lossy: random.chance(0.5),
    persistMs: random.between(0.05, 3),
  };
}

class PairSimulation {
  readonly #seed: number;
  readonly #cluster: SimulatedCluster;
  readonly #random: SimulatedRandom;
  readonly #plan: PairPlan;
  readonly #unit: SimulatedUnit;
  readonly #pairs = new Map<string, Pair>();
  readonly #history: Operation[][] = Array.from({ length: KEYS }, () => []);
  #time = 0;
  #lastValue = INITIAL_VALUE;
  #takeOvers = 0;
  #faults = 0;
  #clientsStop = false;
  #broken: string | undefined;

  constructor(seed: number, keepLines: number) {
    this.#seed = seed;
    this.#cluster = new SimulatedCluster({ seed, names: [UNIT, ...NAMES], trace: { keepLines } });
    this.#random = this.#cluster.random.fork('pair');
    this.#plan = drawPlan(this.#random);
    const { persistMs } = this.#plan;
    this.#unit = new SimulatedUnit(this.#cluster, UNIT, { sizeBytes: MEMORY_BYTES, persistMs, label: 'memory' });
  }

  result(failure: string | undefined): PairSimulationResult {
    const operations = this.#history.flat();
    return {
      seed: this.#seed,
      plan: this.#plan,
      failure: this.#broken ?? failure,
      traceHash: this.#cluster.trace.hash(),
      operations: operations.length,
      unended: operations.filter(({ end }) => end === Number.POSITIVE_INFINITY).length,
      faults: this.#faults,
      takeOvers: this.#takeOvers,
      trace: this.#cluster.trace.lastLines(),
    };
  }

  async run(): Promise<string | undefined> {
    const { scheduler } = this.#cluster;
    await scheduler.runUntil(this.#startUnit(true), LIVENESS_LIMIT_MS);
    await scheduler.runUntil(this.#createRegion(), LIVENESS_LIMIT_MS);
    if (this.#plan.lossy) this.#cluster.network.setAllLinks(LOSSY_LINK);
    for (const name of NAMES) this.#startProcess(name);
    const clients = Array.from({ length: CLIENTS }, (_, index) => this.#client(index));
    for (let fault = 0; fault < this.#plan.faults; fault += 1) {
      await scheduler.runFor(this.#random.between(1, 3 * this.#plan.takeOverAfterMs));
      if (this.#broken !== undefined) return this.#broken;
      this.#strike();
    }
    await scheduler.runFor(this.#random.between(1, 1000));
    this.#heal();
    await scheduler.runUntil(this.#works(), LIVENESS_LIMIT_MS);
    this.#clientsStop = true;
    await scheduler.runUntil(Promise.all(clients), LIVENESS_LIMIT_MS);
    return this.#judge();
  }

  #note(line: string): void {
    this.#cluster.network.note(line);
  }

  // Machines

  async #startUnit(isFirst: boolean): Promise<void> {
    const { environment } = this.#unit.machine;
    const memory = this.#unit.open();
    const node = createPeerNode({
      ...nodeOptions(environment, UNIT),
      listen: addressOf(UNIT),
      peers: [...NAMES, 'owner'].map((name) => ({ name, addresses: [] })),
    });
    const unit = createMemoryUnit({ name: UNIT, memory, clock: environment.clock, node, recordsBytes: RECORDS_BYTES });
    if (isFirst) await MemoryManager.format(unit, { blank: true });
    const manager = new MemoryManager({ environment, control: unit });
    manager.serve(node);
    await manager.open();
    await node.start();
  }

  #connect(name: string, environment: SimulatedEnvironment): { node: PeerNode; client: MemoryClient } {
    const node = createPeerNode({
      ...nodeOptions(environment, name),
      peers: [{ name: UNIT, addresses: [addressOf(UNIT)] }],
    });
    const { clock } = environment;
    return { node, client: new MemoryClient({ node, clock, manager: UNIT, unit: UNIT, transport: openAccess }) };
  }

  async #createRegion(): Promise<void> {
    const { environment } = this.#cluster.node('a');
    const { node, client } = this.#connect('owner', environment);
    await node.start();
    await client.create(REGION, this.#plan.regionBytes);
    for (const peer of NAMES) await client.allow(REGION, { peer, rights: ['read', 'write'] });
    await node.close();
  }

  #startProcess(name: string): void {
    const { process, environment } = this.#cluster.node(name);
    const { node, client } = this.#connect(name, environment);
    void node.start();
    const { heartbeatMs, takeOverAfterMs } = this.#plan;
    const pair: Pair = runProcessPair<State, Update, number>({
      environment,
      memory: pairMemory(client, REGION),
      initialState: () => ({ values: new Array<number>(KEYS).fill(INITIAL_VALUE), applied: new Set() }),
      apply: ({ values, applied }, [key, value]) => {
        if (applied.has(value)) throw new Error(`${value} is applied a second time`);
        applied.add(value);
        const before = values[key] ?? INITIAL_VALUE;
        values[key] = value;
        return before;
      },
      onRole: (role) => {
        if (!process.alive) return;
        this.#note(`${name} is ${role}`);
        if (role === 'primary') this.#takeOvers += 1;
      },
      heartbeatMs,
      takeOverAfterMs,
    });
    pair.closed.catch((error: unknown) => {
      if (process.alive) this.#broken ??= `${name} gave up: ${error instanceof Error ? error.stack : String(error)}`;
    });
    this.#pairs.set(name, pair);
  }

  // Faults

  #strike(): void {
    this.#faults += 1;
    const name = NAMES[this.#random.below(NAMES.length)]!;
    const machine = this.#cluster.node(name);
    switch (this.#random.below(8)) {
      case 0:
      case 1:
        this.#kill(machine);
        return;
      case 2:
      case 3:
        this.#standStill(machine);
        return;
      case 4:
        this.#killUnit(false);
        return;
      case 5:
        this.#killUnit(true);
        return;
      case 6:
        this.#cutLink(name);
        return;
      case 7:
        this.#cutInTheMiddleOfAStore();
    }
  }

  #later(delayMs: number, action: () => void): void {
    this.#cluster.scheduler.schedule(delayMs * 1000, action);
  }

  #kill(machine: SimulatedNode): void {
    if (!machine.process.alive) return;
    machine.kill();
    this.#later(this.#random.between(1, 2000), () => this.#restart(machine));
  }

  #restart(machine: SimulatedNode): void {
    if (machine.process.alive) return;
    machine.restart();
    this.#startProcess(machine.name);
  }

  /** As a long pause of the garbage collector, or a virtual machine that is moved. */
  #standStill({ process, name }: SimulatedNode): void {
    if (!process.alive || process.paused) return;
    this.#note(`pause ${name}`);
    process.pause();
    this.#later(this.#random.between(1, 6 * this.#plan.takeOverAfterMs), () => process.resume());
  }

  #killUnit(withPower: boolean): void {
    if (!this.#unit.machine.process.alive) return;
    this.#unit.kill(withPower);
    this.#later(this.#random.between(1, 1000), () => this.#restartUnit());
  }

  #cutInTheMiddleOfAStore(): void {
    this.#unit.cutPowerAtStore(1 + this.#random.below(40), () => {
      this.#later(this.#random.between(1, 1000), () => this.#restartUnit());
    });
  }

  #restartUnit(): void {
    const { machine } = this.#unit;
    if (machine.process.alive) return;
    machine.restart();
    const { process } = machine;
    this.#startUnit(false).catch((error: unknown) => {
      if (process.alive) this.#broken ??= `the unit does not start: ${(error as Error).stack}`;
    });
  }

  #cutLink(name: string): void {
    const { network } = this.#cluster;
    if (this.#random.chance(0.3)) network.block(name, UNIT);
    else if (this.#random.chance(0.4)) network.block(UNIT, name);
    else network.partition(name, UNIT);
    this.#later(this.#random.between(1, 4 * this.#plan.takeOverAfterMs), () => network.heal(name, UNIT));
  }

  #heal(): void {
    const { network } = this.#cluster;
    network.setAllLinks(FAULTLESS_LINK);
    for (const name of NAMES) {
      network.heal(name, UNIT);
      const machine = this.#cluster.node(name);
      if (machine.process.paused) machine.process.resume();
      this.#restart(machine);
    }
    this.#unit.spare();
    this.#restartUnit();
    this.#note('healed');
  }

  // Clients

  async #client(index: number): Promise<void> {
    const random = this.#cluster.random.fork(`client ${index}`);
    while (!this.#clientsStop && this.#broken === undefined) {
      const name = NAMES[random.below(NAMES.length)]!;
      const key = random.below(KEYS);
      if (random.chance(0.5)) await this.#set(name, key, random.below(this.#plan.fillingMax));
      else await this.#get(name, key);
      await this.#sleep(random.between(0.1, 20));
    }
  }

  #sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => this.#later(delayMs, resolve));
  }

  /** Resolves with what became of it; undefined if nothing is known after a while. */
  #ask<T>(name: string, work: (pair: Pair) => Promise<T>): Promise<{ value: T } | { error: unknown } | undefined> {
    const { process } = this.#cluster.node(name);
    const pair = this.#pairs.get(name);
    return new Promise((resolve) => {
      this.#later(CLIENT_PATIENCE_MS, () => resolve(undefined));
      if (pair === undefined) return;
      process.run(() => {
        work(pair).then(
          (value) => process.run(() => resolve({ value })),
          (error: unknown) => process.run(() => resolve({ error })),
        );
      });
    });
  }

  async #set(name: string, key: number, filling: number): Promise<boolean> {
    this.#lastValue += 1;
    const value = this.#lastValue;
    const operation = { kind: 'write' as const, value, start: ++this.#time, end: Number.POSITIVE_INFINITY };
    this.#history[key]!.push(operation);
    const result = await this.#ask(name, (pair) => pair.update([key, value, 'x'.repeat(filling)]));
    const end = ++this.#time;
    if (result === undefined) return false;
    if ('value' in result) {
      operation.end = end;
      return true;
    }
    if (isHoldfastError(result.error, 'ERR_HOLDFAST_NOT_PRIMARY')) {
      this.#history[key] = this.#history[key]!.filter((each) => each !== operation);
      return false;
    }
    if (!isHoldfastError(result.error, 'ERR_HOLDFAST_OUTCOME_UNKNOWN'))
      this.#broken ??= `an update failed: ${(result.error as Error).stack}`;
    return false;
  }

  async #get(name: string, key: number): Promise<boolean> {
    const start = ++this.#time;
    const result = await this.#ask(name, (pair) => pair.query(({ values }) => values[key] ?? INITIAL_VALUE));
    const end = ++this.#time;
    if (result === undefined) return false;
    if ('value' in result) {
      this.#history[key]!.push({ kind: 'read', value: result.value, start, end });
      return true;
    }
    if (!isHoldfastError(result.error, 'ERR_HOLDFAST_NOT_PRIMARY'))
      this.#broken ??= `a query failed: ${(result.error as Error).stack}`;
    return false;
  }

  /** Resolves when each key has been set and read once more. */
  async #works(): Promise<void> {
    for (let key = 0; key < KEYS; key += 1) {
      while (!(await this.#byEither((name) => this.#set(name, key, 1)))) await this.#sleep(20);
      while (!(await this.#byEither((name) => this.#get(name, key)))) await this.#sleep(20);
    }
  }

  async #byEither(work: (name: string) => Promise<boolean>): Promise<boolean> {
    for (const name of NAMES) if (this.#broken !== undefined || (await work(name))) return true;
    return false;
  }

  #judge(): string | undefined {
    if (this.#broken !== undefined) return this.#broken;
    for (const [key, history] of this.#history.entries()) {
      const violation = checkLinearizable(history);
      if (violation !== undefined) return `key ${key} is not linearizable: ${JSON.stringify(violation)}`;
    }
    return undefined;
  }
}
