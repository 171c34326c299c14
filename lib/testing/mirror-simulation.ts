/**
 * A mirrored volume in the seeded simulation: two servers with a disk each, clients on both, and whatever faults the
 * seed draws. A safety phase with faults is followed by one in which all is healed, the members must meet and every
 * client must get its answers. Then the histories are judged and the two copies compared byte for byte.
 *
 * Where the seed draws no power cut, every block's history must be linearizable; where it does, nothing that was
 * flushed may be lost.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { Metadata } from '../mirror/metadata.ts';
import type { OnLostPeer } from '../mirror/standing.ts';
import { MirroredVolume } from '../mirror/volume.ts';
import { createPeerNode } from '../peer/node.ts';
import type { PeerNode } from '../peer/peer.ts';
import { checkFlushed, checkLinearizable, INITIAL_VALUE, type Operation } from './history.ts';
import { SimulatedClock, SimulatedProcess } from './simulated-clock.ts';
import { SimulatedCluster, type SimulatedNode } from './simulated-cluster.ts';
import { SimulatedDisk } from './simulated-disk.ts';
import type { SimulatedRandom } from './simulated-random.ts';

/** The disks' logical block: what a crash never tears, and so the unit of the histories. */
const BLOCK_BYTES = 4096;
const GRAIN_BYTES = 4 * BLOCK_BYTES;
const LOG_EXTENT_BYTES = 4 * GRAIN_BYTES;
const VOLUME_BYTES = 32 * GRAIN_BYTES;
const DISK_BYTES = VOLUME_BYTES + 128 * 1024;
const VOLUME_ID = 'c0ffee00c0ffee00c0ffee00c0ffee00';
const NAMES = ['a', 'b'] as const;
const CLUSTER_KEY = new Uint8Array(32).fill(7);
/** Clients meet on these blocks: neighbours, grain edges, and far apart. */
const HOT_BLOCKS = [0, 1, 2, 3, 4, 7, 8, 60, 61, 126, 127];
const HEAL_LIMIT_MS = 120_000;

/** What a seed draws. */
export interface SimulationPlan {
  readonly onLostPeer: OnLostPeer;
  readonly blank: boolean;
  readonly clients: number;
  readonly faultMs: number;
  readonly kills: boolean;
  readonly powerCuts: boolean;
  readonly cleanStops: boolean;
  readonly partitions: boolean;
  readonly pauses: boolean;
  readonly lossyLink: boolean;
  readonly slowLink: boolean;
}

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
  /** The last lines of what happened. */
  readonly trace: readonly string[];
}

export function drawPlan(random: SimulatedRandom): SimulationPlan {
  const policies: readonly OnLostPeer[] = [
    { kind: 'suspend' },
    { kind: 'preferred', member: 0 },
    { kind: 'preferred', member: 1 },
  ];
  return {
    onLostPeer: policies[random.below(policies.length)]!,
    blank: random.chance(0.5),
    clients: 1 + random.below(4),
    faultMs: 5_000 + random.below(40_000),
    kills: random.chance(0.6),
    powerCuts: random.chance(0.3),
    cleanStops: random.chance(0.4),
    partitions: random.chance(0.5),
    pauses: random.chance(0.4),
    lossyLink: random.chance(0.3),
    slowLink: random.chance(0.3),
  };
}

/** Runs one seed. Throws nothing that a fault could bring about: what went wrong is in the result. */
export async function simulateMirror(seed: number): Promise<SimulationResult> {
  const simulation = new MirrorSimulation(seed);
  const failure = await simulation.run().catch((error: unknown) => `the simulation broke: ${describe(error)}`);
  return simulation.result(failure);
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

export interface MutableOperation extends Operation {
  /** How many power cuts there had been when it began. */
  readonly cuts: number;
  end: number;
  value: number;
  durable?: number;
}

export class Histories {
  readonly blocks = new Map<number, MutableOperation[]>();
  #time = 0;
  #stamp = INITIAL_VALUE;
  #cuts = 0;
  #acknowledged = new Set<MutableOperation>();

  tick(): number {
    this.#time += 1;
    return this.#time;
  }

  begin(kind: 'read' | 'write', block: number): MutableOperation {
    const value = kind === 'write' ? this.#nextStamp() : INITIAL_VALUE;
    const operation = { kind, value, cuts: this.#cuts, start: this.tick(), end: Number.POSITIVE_INFINITY };
    const history = this.blocks.get(block) ?? [];
    history.push(operation);
    this.blocks.set(block, history);
    return operation;
  }

  endWrite(operation: MutableOperation, fua: boolean): void {
    operation.end = this.tick();
    if (fua) operation.durable = operation.end;
    else if (operation.cuts === this.#cuts) this.#acknowledged.add(operation);
  }

  /** The writes that a flush which begins now covers. */
  coveredByFlush(): readonly MutableOperation[] {
    return [...this.#acknowledged];
  }

  flushed(covered: readonly MutableOperation[]): void {
    const now = this.tick();
    for (const operation of covered) {
      if (this.#acknowledged.delete(operation)) operation.durable = now;
    }
  }

  /** What was not flushed may be lost: a later flush does not bring it back. */
  powerCut(): void {
    this.#cuts += 1;
    this.#acknowledged.clear();
  }

  get operations(): MutableOperation[] {
    return [...this.blocks.values()].flat();
  }

  #nextStamp(): number {
    this.#stamp += 1;
    return this.#stamp;
  }
}

/** A block carries its value at every 8 bytes: a torn one is told at once. */
export function stamp(bytes: Uint8Array, value: number): void {
  new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8).fill(value);
}

export function readStamp(bytes: Uint8Array): number {
  const words = new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8);
  const [value = Number.NaN] = words;
  for (const word of words) if (word !== value) return Number.NaN;
  return value;
}

class SimulatedServer {
  readonly name: string;
  readonly node: SimulatedNode;
  readonly disk: SimulatedDisk;
  volume: MirroredVolume | undefined;
  /** Resolves when the process that runs now is gone. */
  gone: Promise<void> = Promise.resolve();
  resyncs = 0;
  readonly #simulation: MirrorSimulation;
  #peerNode: PeerNode | undefined;
  #sayGone: () => void = () => {};

  constructor(simulation: MirrorSimulation, name: string, disk: SimulatedDisk) {
    this.name = name;
    this.#simulation = simulation;
    this.node = simulation.cluster.node(name);
    this.disk = disk;
  }

  async start(): Promise<void> {
    if (!this.node.process.alive) this.node.restart();
    const { plan, cluster } = this.#simulation;
    const { process, environment } = this.node;
    this.gone = new Promise((resolve) => {
      this.#sayGone = resolve;
    });
    const device = this.disk.open({ run: (answer) => process.run(answer) });
    const store = await Metadata.open(device);
    const node = createPeerNode({
      environment,
      name: this.name,
      clusterId: 'simulation',
      key: CLUSTER_KEY,
      link: 'dedicated',
      listen: { kind: 'tcp', host: this.name, port: 7000 },
      peers: NAMES.filter((name) => name !== this.name).map((name) => ({
        name,
        addresses: [{ kind: 'tcp', host: name, port: 7000 }],
      })),
    });
    const volume = await MirroredVolume.open({
      environment,
      node,
      name: 'vol',
      volumeId: VOLUME_ID,
      memberNames: NAMES,
      onLostPeer: plan.onLostPeer,
      device,
      store,
      isBlank: async () => plan.blank,
      policingExtentBytes: 2 * GRAIN_BYTES,
      resyncWindow: 3,
      resyncPieceBytes: 2 * GRAIN_BYTES,
      onEvent: (event) => {
        if (event.kind === 'resync-finished') this.resyncs += 1;
        cluster.trace.add(`${cluster.scheduler.nowUs} ${this.name} ${JSON.stringify(event)}`);
      },
    });
    await node.start();
    this.#peerNode = node;
    this.volume = volume;
  }

  kill(power: boolean): void {
    if (power) {
      this.node.cutPower();
      this.disk.crash();
    } else {
      this.node.kill();
      this.disk.kill();
    }
    this.#isGone();
  }

  async stop(): Promise<void> {
    const { volume } = this;
    const { process } = this.node;
    this.volume = undefined;
    await volume?.close();
    await this.#peerNode?.close();
    if (!process.alive) return;
    this.node.kill();
    this.#isGone();
  }

  #isGone(): void {
    this.volume = undefined;
    this.#sayGone();
  }
}

class MirrorSimulation {
  readonly seed: number;
  readonly plan: SimulationPlan;
  readonly cluster: SimulatedCluster;
  readonly histories = new Histories();
  readonly #random: SimulatedRandom;
  readonly #servers: readonly SimulatedServer[];
  #faults = 0;
  #clientsMayGoOn = true;

  constructor(seed: number) {
    this.seed = seed;
    this.cluster = new SimulatedCluster({ seed, names: NAMES });
    this.#random = this.cluster.random.fork('mirror');
    this.plan = drawPlan(this.cluster.random.fork('plan'));
    // Disks go on while a process stands still: they have a clock of the world.
    const worldClock = new SimulatedClock(this.cluster.scheduler, new SimulatedProcess('world'), 0);
    this.#servers = NAMES.map((name) => {
      const random = this.cluster.random.fork(`disk ${name}`);
      return new SimulatedServer(
        this,
        name,
        new SimulatedDisk({ clock: worldClock, random, sizeBytes: DISK_BYTES, name, logicalBlockBytes: BLOCK_BYTES }),
      );
    });
    this.#setLinks();
  }

  result(failure: string | undefined): SimulationResult {
    const operations = this.histories.operations;
    return {
      seed: this.seed,
      plan: this.plan,
      failure,
      traceHash: this.cluster.trace.hash(),
      operations: operations.length,
      unended: operations.filter(({ end }) => end === Number.POSITIVE_INFINITY).length,
      faults: this.#faults,
      resyncs: this.#servers.reduce((sum, { resyncs }) => sum + resyncs, 0),
      trace: this.cluster.trace.lastLines(),
    };
  }

  async run(): Promise<string | undefined> {
    const { scheduler } = this.cluster;
    for (const [member, server] of this.#servers.entries()) await this.#format(server, member === 0 ? 0 : 1);
    await this.#within(Promise.all(this.#servers.map((server) => server.start())), 'both servers start');
    const clients = Array.from({ length: this.plan.clients }, (_, index) => this.#client(index));
    await this.#injectFaults(scheduler.nowMs + this.plan.faultMs);
    await this.#heal();
    this.#clientsMayGoOn = false;
    await this.#within(Promise.all(clients), 'every client gets its answers');
    return (await this.#readAll()) ?? this.#compareCopies() ?? this.#judge();
  }

  #setLinks(): void {
    const { lossyLink, slowLink } = this.plan;
    const { network } = this.cluster;
    if (slowLink) network.setAllLinks({ delayMinMs: 1, delayMaxMs: 60, bytesPerMs: 2_000 });
    if (lossyLink) network.setAllLinks({ dropRate: 0.002, duplicateRate: 0.002, reorderRate: 0.002, resetRate: 0.001 });
  }

  async #format(server: SimulatedServer, member: 0 | 1): Promise<void> {
    const device = server.disk.open();
    const grains = { grainBytes: GRAIN_BYTES, activityLogExtentBytes: LOG_EXTENT_BYTES };
    const shape = { volumeId: VOLUME_ID, sizeBytes: VOLUME_BYTES, ...grains, member } as const;
    const create = Metadata.create(device, { ...shape, memberName: server.name, deviceIdentity: server.name });
    await this.#within(
      create.then(() => device.close()),
      `${server.name} is created`,
    );
  }

  async #within<Result>(promise: Promise<Result>, what: string): Promise<Result> {
    try {
      return await this.cluster.scheduler.runUntil(promise, HEAL_LIMIT_MS);
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_TIMEOUT')) throw error;
      const states = this.#servers.map(({ name, volume }) => `${name}: ${JSON.stringify(volume?.status)}`);
      throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', `not in time: ${what}\n${states.join('\n')}`);
    }
  }

  // --- clients

  /** Works on one server for as long as it may. When the server's process dies, what was under way has no end. */
  async #client(index: number): Promise<void> {
    const server = this.#servers[index % this.#servers.length]!;
    const random = this.cluster.random.fork(`client ${index}`);
    while (this.#clientsMayGoOn) {
      await this.#pause(random.between(0.1, 40));
      const { volume, gone } = server;
      if (volume !== undefined) await Promise.race([this.#operate(volume, random), gone]);
    }
  }

  async #operate(volume: MirroredVolume, random: SimulatedRandom): Promise<void> {
    const draw = random.below(100);
    const block = HOT_BLOCKS[random.below(HOT_BLOCKS.length)]!;
    const count = Math.min(1 + random.below(3), VOLUME_BYTES / BLOCK_BYTES - block);
    if (draw < 45) await this.#write(volume, block, count, random.chance(0.2));
    else if (draw < 90) await this.#read(volume, block, count);
    else await this.#flush(volume);
  }

  async #write(volume: MirroredVolume, block: number, count: number, fua: boolean): Promise<void> {
    const bytes = new Uint8Array(count * BLOCK_BYTES);
    const operations = Array.from({ length: count }, (_, index) => this.histories.begin('write', block + index));
    for (const [index, { value }] of operations.entries()) {
      stamp(bytes.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES), value);
    }
    if (!(await this.#answered(volume.write(block * BLOCK_BYTES, bytes, { fua })))) return;
    for (const operation of operations) this.histories.endWrite(operation, fua);
    // What a caller does with its memory afterwards is no one's business.
    bytes.fill(0xee);
  }

  async #read(volume: MirroredVolume, block: number, count: number): Promise<void> {
    const bytes = new Uint8Array(count * BLOCK_BYTES);
    const operations = Array.from({ length: count }, (_, index) => this.histories.begin('read', block + index));
    if (!(await this.#answered(volume.read(block * BLOCK_BYTES, bytes)))) return;
    for (const [index, operation] of operations.entries()) {
      operation.value = readStamp(bytes.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES));
      operation.end = this.histories.tick();
    }
  }

  async #flush(volume: MirroredVolume): Promise<void> {
    const covered = this.histories.coveredByFlush();
    if (await this.#answered(volume.flush())) this.histories.flushed(covered);
  }

  /** False if it is not known what became of the request; any other error is a failure of the run. */
  async #answered(request: Promise<void>): Promise<boolean> {
    try {
      await request;
      return true;
    } catch (error) {
      const codes = ['ERR_HOLDFAST_OUTCOME_UNKNOWN', 'ERR_HOLDFAST_CLOSED'] as const;
      if (codes.some((code) => isHoldfastError(error, code))) return false;
      this.#clientError ??= describe(error);
      return false;
    }
  }

  #clientError: string | undefined;

  #pause(durationMs: number): Promise<void> {
    return new Promise((resolve) => {
      this.cluster.scheduler.schedule(durationMs * 1000, resolve);
    });
  }

  // --- faults

  async #injectFaults(untilMs: number): Promise<void> {
    const { scheduler } = this.cluster;
    const faults = this.#drawnFaults();
    while (scheduler.nowMs < untilMs) {
      await scheduler.runFor(this.#random.between(50, 6_000));
      if (faults.length === 0) continue;
      this.#faults += 1;
      faults[this.#random.below(faults.length)]!();
    }
  }

  #drawnFaults(): (() => void)[] {
    const { kills, powerCuts, cleanStops, partitions, pauses } = this.plan;
    const faults: (() => void)[] = [];
    const server = () => this.#servers[this.#random.below(2)]!;
    if (kills) faults.push(() => this.#kill(server(), false));
    if (powerCuts) faults.push(() => this.#kill(server(), true));
    if (cleanStops) faults.push(() => void this.#stopAndStart(server()));
    if (partitions) faults.push(() => this.#partition());
    if (pauses) faults.push(() => this.#pauseServer(server()));
    return faults;
  }

  #kill(server: SimulatedServer, power: boolean): void {
    if (!server.node.process.alive) return;
    server.kill(power);
    if (power) this.histories.powerCut();
    this.#later(this.#random.between(10, 8_000), () => this.#restart(server));
  }

  #restart(server: SimulatedServer): void {
    if (!server.node.process.alive) void server.start();
  }

  async #stopAndStart(server: SimulatedServer): Promise<void> {
    if (server.volume === undefined) return;
    const delayMs = this.#random.between(10, 5_000);
    await Promise.race([server.stop(), server.gone]);
    this.#later(delayMs, () => this.#restart(server));
  }

  #partition(): void {
    const { network } = this.cluster;
    const ways = [['a', 'b'] as const, ['b', 'a'] as const];
    const cut = this.#random.chance(0.5) ? ways : [ways[this.#random.below(2)]!];
    for (const [from, to] of cut) network.block(from, to);
    this.#later(this.#random.between(100, 10_000), () => {
      for (const [from, to] of cut) network.unblock(from, to);
    });
  }

  #pauseServer({ node }: SimulatedServer): void {
    if (!node.process.alive || node.process.paused) return;
    const { process } = node;
    node.pause();
    this.#later(this.#random.between(100, 8_000), () => {
      if (process.alive && process.paused && node.process === process) node.resume();
    });
  }

  #later(delayMs: number, action: () => void): void {
    this.cluster.scheduler.schedule(delayMs * 1000, action);
  }

  /** Every fault ends; the members must meet and serve. */
  async #heal(): Promise<void> {
    const { scheduler, network } = this.cluster;
    // The last of the faults has its end scheduled within this time.
    await scheduler.runFor(12_000);
    network.setAllLinks({ dropRate: 0, duplicateRate: 0, reorderRate: 0, resetRate: 0 });
    const paired = () => this.#servers.every(({ volume }) => volume?.status.role === 'paired');
    const limitMs = scheduler.nowMs + HEAL_LIMIT_MS;
    await scheduler.run(() => paired() || scheduler.nowMs >= limitMs);
    if (!paired()) await this.#within(new Promise(() => {}), 'both members are in sync');
  }

  // --- judgement

  async #readAll(): Promise<string | undefined> {
    for (const { volume } of this.#servers) {
      if (volume === undefined) return 'a server is gone after the faults have ended';
      for (const block of HOT_BLOCKS) await this.#within(this.#read(volume, block, 1), `block ${block} is read`);
      await this.#within(volume.flush(), 'a flush at the end');
    }
    return this.#clientError;
  }

  #compareCopies(): string | undefined {
    const [first, second] = this.#servers.map(({ disk }) => {
      const bytes = new Uint8Array(VOLUME_BYTES);
      disk.peek(0, bytes);
      return Buffer.from(bytes.buffer);
    });
    if (first!.equals(second!)) return undefined;
    const differs = Array.from({ length: VOLUME_BYTES / BLOCK_BYTES }, (_, block) => block).filter((block) => {
      const [from, to] = [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES];
      return !first!.subarray(from, to).equals(second!.subarray(from, to));
    });
    return `the copies differ in blocks ${differs.join(', ')}`;
  }

  #judge(): string | undefined {
    for (const [block, history] of this.histories.blocks) {
      const violation = this.plan.powerCuts ? checkFlushed(history) : checkLinearizable(history);
      if (violation === undefined) continue;
      const about = new Set(violation.operations.map(({ value }) => value));
      const lines = history.filter(({ value }) => about.has(value)).map((operation) => JSON.stringify(operation));
      return `block ${block}: ${violation.rule}\n${lines.join('\n')}`;
    }
    return undefined;
  }
}
