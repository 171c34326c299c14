/**
 * A machine of the simulated cluster with a disk, and the process that runs on it: what servers and tie-breakers have in
 * common. It dies, loses power, is started again.
 */
import { createPeerNode } from '../peer/node.ts';
import type { PeerNode } from '../peer/peer.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import type { SimulatedNode } from './simulated-cluster.ts';
import { SimulatedDisk } from './simulated-disk.ts';
import { tell, type World } from './simulation-world.ts';

export const VOLUME_ID = 'c0ffee00c0ffee00c0ffee00c0ffee00';
export const OPERATOR_DELAY_MS = 300;
const CLUSTER_KEY = new Uint8Array(32).fill(7);
const PORT = 7000;

export abstract class SimulatedMachine {
  readonly name: string;
  readonly node: SimulatedNode;
  readonly disk: SimulatedDisk;
  /** Resolves when the process that runs now is gone. */
  gone: Promise<void> = Promise.resolve();
  clockRate = 1;
  /** What it has written of its own state was damaged since: it may refuse to start. */
  isRotten = false;
  protected readonly world: World;
  #sayGone: () => void = () => {};

  protected constructor(world: World, name: string, diskBytes: number) {
    this.name = name;
    this.world = world;
    this.node = world.cluster.node(name);
    const { logicalBlockBytes, cacheBytes, diskFactor } = world.plan;
    this.disk = new SimulatedDisk({
      clock: world.clock,
      random: world.random(`disk ${name}`),
      sizeBytes: diskBytes,
      name,
      logicalBlockBytes,
      cacheBytes,
      readLatencyMs: [0.05 * diskFactor, 0.5 * diskFactor],
      writeLatencyMs: [0.05 * diskFactor, diskFactor],
      flushLatencyMs: [0.2 * diskFactor, 3 * diskFactor],
    });
  }

  get isAlive(): boolean {
    return this.node.process.alive;
  }

  /** Where on the disk it keeps what it must not forget. */
  abstract readonly stateArea: { readonly offset: number; readonly length: number };
  /** Where in it there is something: the blocks of 4 KiB, by their offsets on the disk. */
  abstract readonly stateBlocks: readonly number[];
  /** Those of them that are there twice, and are written together. */
  abstract readonly superblocks: readonly number[];

  /** Writes what it needs to start, as an operator does. */
  abstract create(): Promise<void>;

  /** Starts a process. The promise settles when it is open; never, if the process dies before. */
  async start(): Promise<void> {
    if (!this.isAlive) this.node.restart();
    const { process, environment } = this.node;
    environment.clock.setRate(this.clockRate);
    this.gone = new Promise((resolve) => {
      this.#sayGone = resolve;
    });
    try {
      await this.open(this.disk.open({ run: (answer) => process.run(answer) }));
    } catch (error) {
      if (this.node.process !== process || !process.alive) return;
      this.world.note(`${this.name} does not start: ${String(error)}`);
      this.kill();
      this.startFailed(error);
    }
  }

  startIfDead(): void {
    if (!this.isAlive) void this.start();
  }

  kill(): void {
    if (!this.isAlive) return;
    this.node.kill();
    this.disk.kill();
    this.#isGone();
  }

  /** True if the disk has lost what it had completed. */
  cutPower(): boolean {
    this.node.cutPower();
    const hasLost = this.disk.crash();
    this.#isGone();
    return hasLost;
  }

  describe(): string {
    const process = this.isAlive ? (this.node.process.paused ? 'paused' : 'running') : 'dead';
    return `${this.name}: ${process}`;
  }

  /** What the process does with the disk until it is open. */
  protected abstract open(device: BlockDevice): Promise<void>;

  protected abstract startFailed(error: unknown): void;

  protected makePeerNode(): PeerNode {
    const { plan, machines } = this.world;
    const peers = machines.filter((machine) => machine !== this);
    return createPeerNode({
      environment: this.node.environment,
      name: this.name,
      clusterId: 'simulation',
      key: CLUSTER_KEY,
      link: 'dedicated',
      listen: { kind: 'tcp', host: this.name, port: PORT },
      peers: peers.map(({ name }) => ({ name, addresses: [{ kind: 'tcp', host: name, port: PORT }] })),
      leaseMs: plan.leaseMs,
      heartbeatMs: plan.leaseMs / 5,
    });
  }

  protected forget(): void {}

  #isGone(): void {
    this.forget();
    this.#sayGone();
    tell(this.world.onEvent);
  }
}
