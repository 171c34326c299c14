/**
 * One member's server in the simulation: the machine whose process serves the volume. And what an operator does for it:
 * it is started again when its device had failed, and a copy whose metadata is beyond repair is created anew, to be
 * filled from the other member.
 */
import { isHoldfastError } from '../base/errors.ts';
import type { ControllerEvent } from '../mirror/controller.ts';
import { Metadata } from '../mirror/metadata.ts';
import { maskOf, mayServe } from '../mirror/view.ts';
import { MirroredVolume } from '../mirror/volume.ts';
import type { PeerNode } from '../peer/peer.ts';
import { RegisterArbiter } from '../peer/register-driver.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { OPERATOR_DELAY_MS, SimulatedMachine, VOLUME_ID } from './simulated-machine.ts';
import { UNIT_BYTES } from './simulation-plan.ts';
import { tell, type World } from './simulation-world.ts';
import { FILL_STAMP, stamp } from './stamps.ts';

const BLOCK_BYTES = 4096;
export const MEMBER_NAMES = ['a', 'b'] as const;

export class SimulatedServer extends SimulatedMachine {
  readonly member: 0 | 1;
  readonly superblocks: readonly number[];
  /** The superblocks as often as all the rest. */
  readonly stateBlocks: readonly number[];
  readonly stateArea: { readonly offset: number; readonly length: number };
  volume: MirroredVolume | undefined;
  resyncs = 0;
  /** Its device is in trouble: the operator waits until it is well. */
  isSick = false;
  #close: (() => Promise<void>) | undefined;
  #isNew = true;
  #isBeingCreated = false;

  constructor(world: World, member: 0 | 1) {
    super(world, MEMBER_NAMES[member], world.memberDiskBytes);
    this.member = member;
    const { volumeBytes } = world.plan;
    this.stateArea = { offset: volumeBytes, length: world.memberDiskBytes - volumeBytes };
    // As metadata.ts lays them out: logs and bitmap, then the superblocks at both ends of 64 KiB.
    this.superblocks = [world.memberDiskBytes - 64 * 1024, world.memberDiskBytes - BLOCK_BYTES];
    const others: number[] = [];
    for (let at = volumeBytes; at < this.superblocks[0]!; at += BLOCK_BYTES) others.push(at);
    this.stateBlocks = [...others, ...others.flatMap(() => this.superblocks)];
  }

  get other(): SimulatedServer {
    return this.world.servers[this.member === 0 ? 1 : 0];
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

  get serves(): boolean {
    return this.volume !== undefined && this.volume.status.gate.mode !== 'closed';
  }

  get hasSplitBrain(): boolean {
    return this.volume?.status.problem?.code === 'ERR_HOLDFAST_SPLIT_BRAIN';
  }

  override describe(): string {
    return `${super.describe()}, ${JSON.stringify(this.volume?.status)}`;
  }

  /** Makes the copy as an operator does, on a disk that holds something already. */
  async create(): Promise<void> {
    const { plan } = this.world;
    const device = this.disk.open();
    if (this.#isNew && plan.content === 'filled') await fill(device, plan.volumeBytes, this.member);
    const { volumeBytes: sizeBytes, grainBytes, logExtentBytes: activityLogExtentBytes } = plan;
    const sizes = { sizeBytes, grainBytes, activityLogExtentBytes };
    const names = { volumeId: VOLUME_ID, member: this.member, memberName: this.name, deviceIdentity: this.name };
    await Metadata.create(device, { ...sizes, ...names }, this.world.random(`log of ${this.name}`));
    await device.close();
  }

  override startIfDead(): void {
    if (!this.#isBeingCreated) super.startIfDead();
  }

  /** Stops in order, then the process ends. The promise never settles if the process dies meanwhile. */
  async stop(): Promise<void> {
    const { process } = this.node;
    const close = this.#close;
    this.forget();
    await close?.();
    if (this.node.process === process) this.kill();
  }

  /** The operator puts in a new disk. */
  replaceDisk(): void {
    this.disk.replace();
    void this.createAnew();
  }

  /** The copy is given up; the other member has all of it. */
  async createAnew(): Promise<void> {
    if (this.isAlive || this.#isBeingCreated) return;
    this.#isNew = false;
    this.#isBeingCreated = true;
    while (!(await this.#isCreated()))
      await new Promise<void>((resolve) => this.world.later(OPERATOR_DELAY_MS, resolve));
    this.#isBeingCreated = false;
    this.isRotten = false;
    this.startIfDead();
  }

  /** False if the device would not: what is there now is nothing that a process could be started with. */
  async #isCreated(): Promise<boolean> {
    this.world.note(`${this.name} is created anew`);
    try {
      await this.create();
      return true;
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_IO')) throw error;
      this.disk.kill();
      return false;
    }
  }

  protected async open(device: BlockDevice): Promise<void> {
    const { plan } = this.world;
    const { environment } = this.node;
    const store = await Metadata.open(device);
    // Its last process may have died as soon as this was durable.
    this.#isInView(store.record.known.inSync);
    const node = this.makePeerNode();
    const arbiter = plan.onLostPeer.kind === 'majority' ? this.#makeArbiter(node, store) : undefined;
    const isBlank = plan.content === 'blank' && this.#isNew;
    const volume = await MirroredVolume.open({
      environment,
      node,
      name: 'vol',
      volumeId: VOLUME_ID,
      memberNames: MEMBER_NAMES,
      onLostPeer: plan.onLostPeer,
      ...(arbiter === undefined ? {} : { arbiter }),
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
    this.volume = volume;
    this.#close = async () => {
      await volume.close();
      await arbiter?.close();
      await node.close();
    };
  }

  protected startFailed(error: unknown): void {
    const isBeyondRepair =
      isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED') ||
      isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISSING');
    if (isBeyondRepair && this.isRotten) this.#giveUpCopy();
    else if (isHoldfastError(error, 'ERR_HOLDFAST_IO')) this.world.later(OPERATOR_DELAY_MS, () => this.startIfDead());
    else this.world.fail(`${this.name} does not start: ${error instanceof Error ? error.stack : String(error)}`);
  }

  protected override forget(): void {
    this.volume = undefined;
    this.#close = undefined;
  }

  #makeArbiter(node: PeerNode, store: Metadata): RegisterArbiter {
    const voters = this.world.machines.map(({ name }) => name);
    const { environment } = this.node;
    return new RegisterArbiter({
      environment,
      node,
      registerId: VOLUME_ID,
      voters,
      self: this.member,
      store,
      deadlineMs: this.world.plan.leaseMs * 2,
    });
  }

  #heard(event: ControllerEvent): void {
    if (event.kind === 'resync-finished') this.resyncs += 1;
    if (event.kind === 'device-failed') this.#restartWhenWell();
    if (event.kind === 'view') {
      // Its superblocks have been written anew: whatever was damaged in them is not any more.
      this.isRotten = false;
      this.#isInView(event.view.inSync);
    }
    this.world.note(`${this.name} ${JSON.stringify(event)}`);
    this.world.losses.look();
    tell(this.world.onEvent);
  }

  #isInView(inSync: number): void {
    this.world.losses.enteredView(this, inSync === maskOf(this.member));
  }

  #restartWhenWell(): void {
    this.world.later(OPERATOR_DELAY_MS, () => {
      if (this.isSick) this.#restartWhenWell();
      else this.restartIfFailed();
    });
  }

  /** What the operator does once the device is well again. */
  restartIfFailed(): void {
    if (this.hasFailed) this.kill();
    this.startIfDead();
  }

  /**
   * It has refused, as it should. If it was the source of a resync that did not end, no good copy is left: an operator
   * who created this one anew as well would make a volume of what is on the disks.
   */
  #giveUpCopy(): void {
    const isOtherGood = this.other.volume === undefined || this.other.isGood;
    this.world.refused ||= !isOtherGood || this.world.losses.isAlone(this);
    if (this.world.refused) return;
    this.world.later(OPERATOR_DELAY_MS, () => void this.createAnew());
  }
}

/** The first member has data; what lies on the other's disk must never be seen. */
async function fill(device: BlockDevice, sizeBytes: number, member: 0 | 1): Promise<void> {
  const bytes = new Uint8Array(sizeBytes);
  if (member === 0) stamp(bytes, FILL_STAMP);
  else for (let at = 0; at < sizeBytes; at += UNIT_BYTES) bytes.fill(1 + (at & 0x7f), at, at + 1);
  await device.write(0, bytes);
  await device.flush();
}
