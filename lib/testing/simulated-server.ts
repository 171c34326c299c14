/**
 * One member's server in the simulation: a machine with a disk, and the process that serves the volume from it. And
 * what an operator does for it: it is started again when it has died or its device had failed, and a copy whose
 * metadata is beyond repair is created anew, to be filled from the other member.
 */
import { isHoldfastError } from '../base/errors.ts';
import type { ControllerEvent } from '../mirror/controller.ts';
import { Metadata } from '../mirror/metadata.ts';
import { mayServe } from '../mirror/view.ts';
import { MirroredVolume } from '../mirror/volume.ts';
import { createPeerNode } from '../peer/node.ts';
import type { PeerNode } from '../peer/peer.ts';
import type { SimulatedNode } from './simulated-cluster.ts';
import { SimulatedDisk } from './simulated-disk.ts';
import { UNIT_BYTES } from './simulation-plan.ts';
import { tell, type World } from './simulation-world.ts';
import { FILL_STAMP, stamp } from './stamps.ts';

export const MEMBER_NAMES = ['a', 'b'] as const;
const VOLUME_ID = 'c0ffee00c0ffee00c0ffee00c0ffee00';
const CLUSTER_KEY = new Uint8Array(32).fill(7);
const OPERATOR_DELAY_MS = 300;

export class SimulatedServer {
  readonly member: 0 | 1;
  readonly name: string;
  readonly node: SimulatedNode;
  readonly disk: SimulatedDisk;
  volume: MirroredVolume | undefined;
  /** Resolves when the process that runs now is gone. */
  gone: Promise<void> = Promise.resolve();
  resyncs = 0;
  clockRate = 1;
  /** Its metadata were damaged since it was created: it may refuse to start, and is then created anew. */
  isRotten = false;
  /** Its device is in trouble: the operator waits until it is well. */
  isSick = false;
  readonly #world: World;
  #peerNode: PeerNode | undefined;
  #sayGone: () => void = () => {};
  #isNew = true;
  #isBeingCreated = false;

  constructor(world: World, member: 0 | 1) {
    this.member = member;
    this.name = MEMBER_NAMES[member];
    this.#world = world;
    this.node = world.cluster.node(this.name);
    const { logicalBlockBytes, cacheBytes, diskFactor } = world.plan;
    this.disk = new SimulatedDisk({
      clock: world.clock,
      random: world.random(`disk ${this.name}`),
      sizeBytes: world.diskBytes,
      name: this.name,
      logicalBlockBytes,
      cacheBytes,
      readLatencyMs: [0.05 * diskFactor, 0.5 * diskFactor],
      writeLatencyMs: [0.05 * diskFactor, diskFactor],
      flushLatencyMs: [0.2 * diskFactor, 3 * diskFactor],
    });
  }

  get other(): SimulatedServer {
    return this.#world.servers[this.member === 0 ? 1 : 0];
  }

  get isAlive(): boolean {
    return this.node.process.alive;
  }

  get isPaired(): boolean {
    return this.volume?.controller.role === 'paired';
  }

  /** The volume has given up the device, and serves from it no more in this process. */
  get hasFailed(): boolean {
    return this.volume?.status.ownState === 'Failed';
  }

  /** Its copy is up to date in the newest view that it knows. */
  get isGood(): boolean {
    const record = this.volume?.controller.record;
    return record !== undefined && mayServe(record, this.member);
  }

  describe(): string {
    const process = this.isAlive ? (this.node.process.paused ? 'paused' : 'running') : 'dead';
    return `${this.name}: ${process}, ${JSON.stringify(this.volume?.status)}`;
  }

  /** Makes the copy as an operator does, on a disk that holds something already. */
  async create(): Promise<void> {
    const { plan } = this.#world;
    const device = this.disk.open();
    if (this.#isNew && plan.content === 'filled') await fill(device, plan.volumeBytes, this.member);
    const { volumeBytes: sizeBytes, grainBytes, logExtentBytes: activityLogExtentBytes } = plan;
    const sizes = { sizeBytes, grainBytes, activityLogExtentBytes };
    const names = { volumeId: VOLUME_ID, member: this.member, memberName: this.name, deviceIdentity: this.name };
    await Metadata.create(device, { ...sizes, ...names }, this.#world.random(`log of ${this.name}`));
    await device.close();
  }

  /** Starts a process. The promise settles when the volume is open; never, if the process dies before. */
  async start(): Promise<void> {
    if (!this.isAlive) this.node.restart();
    const { process, environment } = this.node;
    environment.clock.setRate(this.clockRate);
    this.gone = new Promise((resolve) => {
      this.#sayGone = resolve;
    });
    try {
      await this.#open();
    } catch (error) {
      if (this.node.process === process && process.alive) this.#startFailed(error);
    }
  }

  kill(): void {
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

  /** Stops in order, then the process ends. The promise never settles if the process dies meanwhile. */
  async stop(): Promise<void> {
    const { volume } = this;
    const { process } = this.node;
    this.volume = undefined;
    await volume?.close();
    await this.#peerNode?.close();
    if (!process.alive || this.node.process !== process) return;
    this.node.kill();
    this.disk.kill();
    this.#isGone();
  }

  async #open(): Promise<void> {
    const { plan } = this.#world;
    const { process, environment } = this.node;
    const device = this.disk.open({ run: (answer) => process.run(answer) });
    const store = await Metadata.open(device);
    const node = createPeerNode({
      environment,
      name: this.name,
      clusterId: 'simulation',
      key: CLUSTER_KEY,
      link: 'dedicated',
      listen: { kind: 'tcp', host: this.name, port: 7000 },
      peers: [{ name: this.other.name, addresses: [{ kind: 'tcp', host: this.other.name, port: 7000 }] }],
      leaseMs: plan.leaseMs,
      heartbeatMs: plan.leaseMs / 5,
    });
    const isBlank = plan.content === 'blank' && this.#isNew;
    const volume = await MirroredVolume.open({
      environment,
      node,
      name: 'vol',
      volumeId: VOLUME_ID,
      memberNames: MEMBER_NAMES,
      onLostPeer: plan.onLostPeer,
      device,
      store,
      isBlank: async () => isBlank,
      policingExtentBytes: plan.policingExtentBytes,
      deviceTimeoutMs: plan.deviceTimeoutMs,
      startupWaitMs: plan.leaseMs * 1.6,
      resyncWindow: 3,
      resyncPieceBytes: 2 * plan.grainBytes,
      onEvent: (event) => this.#heard(event),
    });
    await node.start();
    this.#peerNode = node;
    this.volume = volume;
  }

  #heard(event: ControllerEvent): void {
    if (event.kind === 'resync-finished') this.resyncs += 1;
    if (event.kind === 'device-failed') this.#restartWhenWell();
    this.#world.note(`${this.name} ${JSON.stringify(event)}`);
    this.#world.losses.look();
    tell(this.#world.onEvent);
  }

  #startFailed(error: unknown): void {
    this.#world.note(`${this.name} does not start: ${String(error)}`);
    this.kill();
    const isBeyondRepair =
      isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED') ||
      isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISSING');
    if (isBeyondRepair && this.isRotten) this.#giveUpCopy();
    else if (isHoldfastError(error, 'ERR_HOLDFAST_IO')) this.#world.later(OPERATOR_DELAY_MS, () => this.startIfDead());
    else this.#world.fail(`${this.name} does not start: ${error instanceof Error ? error.stack : String(error)}`);
  }

  /** It has refused, as it should. If it was the source of a resync that did not end, no good copy is left. */
  #giveUpCopy(): void {
    if (this.other.volume !== undefined && !this.other.isGood) this.#world.refused = true;
    this.#world.later(OPERATOR_DELAY_MS, () => void this.createAnew());
  }

  #restartWhenWell(): void {
    this.#world.later(OPERATOR_DELAY_MS, () => {
      if (this.isSick) return this.#restartWhenWell();
      if (this.isAlive && this.hasFailed) this.kill();
      this.startIfDead();
    });
  }

  startIfDead(): void {
    if (!this.isAlive && !this.#isBeingCreated) void this.start();
  }

  /** The operator puts in a new disk. */
  replaceDisk(): void {
    this.disk.replace();
    void this.createAnew();
  }

  /** The copy is given up; the other member has all of it. */
  async createAnew(): Promise<void> {
    if (this.isAlive || this.#isBeingCreated) return;
    this.#world.note(`${this.name} is created anew`);
    this.#isNew = false;
    this.#isBeingCreated = true;
    try {
      await this.create();
      this.isRotten = false;
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_IO')) throw error;
      this.disk.kill();
      this.#world.later(OPERATOR_DELAY_MS, () => void this.createAnew());
      return;
    } finally {
      this.#isBeingCreated = false;
    }
    this.startIfDead();
  }

  #isGone(): void {
    this.volume = undefined;
    this.#sayGone();
    tell(this.#world.onEvent);
  }
}

/** The first member has data; what lies on the other's disk must never be seen. */
async function fill(
  device: { write(offset: number, bytes: Uint8Array): Promise<void>; flush(): Promise<void> },
  sizeBytes: number,
  member: 0 | 1,
): Promise<void> {
  const bytes = new Uint8Array(sizeBytes);
  if (member === 0) stamp(bytes, FILL_STAMP);
  else for (let at = 0; at < sizeBytes; at += UNIT_BYTES) bytes.fill(1 + (at & 0x7f), at, at + 1);
  await device.write(0, bytes);
  await device.flush();
}
