/**
 * A node's member of a volume, from the configuration: its creation, with the guard against overwriting what is there,
 * and its opening, which checks that device, metadata and configuration belong together.
 */
import type { Environment } from '../base/environment.ts';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { ControllerEvent } from '../mirror/controller.ts';
import { checkFits, type MemberShape, Metadata, metadataBytes } from '../mirror/metadata.ts';
import type { OnLostPeer } from '../mirror/standing.ts';
import type { MemberIndex } from '../mirror/view.ts';
import { MirroredVolume } from '../mirror/volume.ts';
import type { PeerNode } from '../peer/peer.ts';
import { RegisterArbiter } from '../peer/register-driver.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { assertMayOverwrite, isShownBlank } from '../storage/guard.ts';
import { deviceIdentity } from '../storage/identity.ts';
import { openDevice } from '../storage/open-device.ts';
import type { NodeConfig, VolumeConfig } from './config.ts';
import { Held } from './held.ts';
import type { VolumeStatus } from './status.ts';
import { volumeStatus } from './volume-status.ts';

export interface Volume {
  readonly device: BlockDevice;
  status(): VolumeStatus;
  /** Makes this node's copy the good one, by an operator's word. */
  force(acceptInconsistent: boolean): Promise<void>;
  /** Leaves in order and releases the device. Idempotent. */
  close(): Promise<void>;
}

/** The volume's identifier without dashes, as peers and metadata carry it. */
export function volumeIdOf(volume: VolumeConfig): string {
  return volume.id.replaceAll('-', '');
}

function memberIndexOf(config: NodeConfig, volume: VolumeConfig): MemberIndex {
  return volume.members.findIndex((member) => member.node === config.name) === 0 ? 0 : 1;
}

/** Who has a vote, in the same order on every node: ballots name voters by their place. */
export function votersOf(volume: VolumeConfig): string[] {
  const members = volume.members.map((member) => member.node);
  return volume.tieBreaker === undefined ? members : [...members, volume.tieBreaker.node];
}

/** How the volume's loss of its peer is settled, by member. */
function onLostPeerOf(volume: VolumeConfig): OnLostPeer {
  const { onLostPeer } = volume;
  if (typeof onLostPeer === 'string') return { kind: onLostPeer };
  return { kind: 'preferred', member: volume.members[0]!.node === onLostPeer.preferred ? 0 : 1 };
}

// --- creation

export interface CreateOptions {
  /** Paths that may be overwritten, named by the operator. */
  readonly overwrite: readonly string[];
}

/**
 * Makes this node's member of a volume: writes its metadata. Nothing is written before everything has been checked.
 *
 * @throws HoldfastError ERR_HOLDFAST_DEVICE_HAS_DATA or ERR_HOLDFAST_DEVICE_NOT_BLANK unless the device is named in
 *   `overwrite`; ERR_HOLDFAST_DEVICE_TOO_SMALL; what opening the device throws.
 */
export async function createMember(config: NodeConfig, volume: VolumeConfig, options: CreateOptions): Promise<void> {
  const index = memberIndexOf(config, volume);
  const { device: path, metadata } = volume.members[index]!;
  const held = new Held();
  try {
    const device = held.add(await openDevice(path, { engine: config.engine, direct: config.direct }));
    await guard(path, options);
    const shape = await shapeOf(config, volume, path);
    checkFits(device, shape, metadata === 'internal' ? 'internal' : 'separate');
    await Metadata.create(
      metadata === 'internal' ? device : held.add(await createMetadataFile(metadata.file, shape, options)),
      shape,
    );
  } finally {
    await held.close();
  }
}

async function guard(path: string, options: CreateOptions): Promise<void> {
  try {
    await assertMayOverwrite(path, options.overwrite.includes(path) ? { consent: path } : {});
  } catch (error) {
    const guarded =
      isHoldfastError(error, 'ERR_HOLDFAST_DEVICE_HAS_DATA') || isHoldfastError(error, 'ERR_HOLDFAST_DEVICE_NOT_BLANK');
    if (!guarded) throw error;
    throw new HoldfastError(error.code, `${error.message}: --overwrite ${path}. Nothing was changed`, { cause: error });
  }
}

async function shapeOf(config: NodeConfig, volume: VolumeConfig, path: string): Promise<MemberShape> {
  return {
    volumeId: volumeIdOf(volume),
    sizeBytes: volume.sizeBytes,
    grainBytes: volume.bitmapGrainBytes,
    activityLogExtentBytes: volume.activityLogExtentBytes,
    member: memberIndexOf(config, volume),
    memberName: config.name,
    deviceIdentity: (await deviceIdentity(path)).id,
  };
}

/** A new file; one that exists is taken only if the operator has named it. */
async function createMetadataFile(path: string, shape: MemberShape, options: CreateOptions): Promise<BlockDevice> {
  const sizeBytes = metadataBytes(shape.sizeBytes, shape.grainBytes, shape.activityLogExtentBytes);
  if (!options.overwrite.includes(path)) return openDevice(path, { create: { sizeBytes } });
  const device = await openDevice(path);
  if (device.geometry.sizeBytes >= sizeBytes) return device;
  await device.close();
  throw new HoldfastError(
    'ERR_HOLDFAST_DEVICE_TOO_SMALL',
    `${path} has ${device.geometry.sizeBytes} bytes, and the metadata needs ${sizeBytes}; remove the file, it is made anew`,
  );
}

// --- opening

/** Opens this node's member. Throws if device, metadata and configuration do not belong together. */
export async function openVolume(
  config: NodeConfig,
  volume: VolumeConfig,
  node: PeerNode,
  environment: Environment,
  onEvent: (event: ControllerEvent) => void,
): Promise<Volume> {
  const index = memberIndexOf(config, volume);
  const { device: path, metadata: place } = volume.members[index]!;
  const held = new Held();
  try {
    const device = await openMemberDevice(config, volume, path);
    held.add(device);
    const store = await openMetadata(config, volume, device, held);
    const expected = await shapeOf(config, volume, path);
    checkBelongs(volume, place === 'internal' ? path : place.file, store, expected, place !== 'internal');
    checkFits(device, expected, place === 'internal' ? 'internal' : 'separate');
    // The member's voter answers from its store as soon as it is there.
    await store.repair();
    const arbiter = volume.onLostPeer === 'majority' ? arbiterOf(config, volume, node, environment, store) : undefined;
    if (arbiter !== undefined) held.add(arbiter);
    let resyncedBytes = 0;
    const mirrored = await MirroredVolume.open({
      environment,
      node,
      name: volume.name,
      volumeId: expected.volumeId,
      memberNames: [volume.members[0]!.node, volume.members[1]!.node],
      onLostPeer: onLostPeerOf(volume),
      ...(arbiter === undefined ? {} : { arbiter }),
      policingExtentBytes: volume.policingExtentBytes,
      device,
      store,
      isBlank: () => isShownBlank(path, { length: volume.sizeBytes }),
      onEvent: (event) => {
        if (event.kind === 'resync-finished') resyncedBytes += event.bytes;
        onEvent(event);
      },
    });
    const facts = () => ({
      config: volume,
      node: config.name,
      linked: node.session(mirrored.peerName) !== undefined,
      status: mirrored.status,
      resyncedBytes,
      voters: arbiter?.reach ?? [],
    });
    let closing: Promise<void> | undefined;
    return {
      device: mirrored,
      status: () => volumeStatus(facts()),
      force: (acceptInconsistent) => mirrored.controller.force(acceptInconsistent),
      close: () => {
        closing ??= mirrored.close().finally(() => held.close());
        return closing;
      },
    };
  } catch (error) {
    await held.close().catch(() => {});
    throw error;
  }
}

function arbiterOf(
  config: NodeConfig,
  volume: VolumeConfig,
  node: PeerNode,
  environment: Environment,
  store: Metadata,
): RegisterArbiter {
  const voters = votersOf(volume);
  const self = memberIndexOf(config, volume);
  return new RegisterArbiter({ environment, node, registerId: volumeIdOf(volume), voters, self, store });
}

async function openMemberDevice(config: NodeConfig, volume: VolumeConfig, path: string): Promise<BlockDevice> {
  try {
    return await openDevice(path, { engine: config.engine, direct: config.direct, exclusive: true });
  } catch (error) {
    if (!isHoldfastError(error)) throw error;
    throw new HoldfastError(error.code, `volume "${volume.name}": ${error.message}`, { cause: error });
  }
}

async function openMetadata(
  config: NodeConfig,
  volume: VolumeConfig,
  device: BlockDevice,
  held: Held,
): Promise<Metadata> {
  const { metadata } = volume.members[memberIndexOf(config, volume)]!;
  try {
    if (metadata === 'internal') return await Metadata.open(device);
    return await Metadata.open(held.add(await openDevice(metadata.file, { exclusive: true })));
  } catch (error) {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISSING')) throw error;
    const message = `volume "${volume.name}" is not created here yet; run: holdfast create ${config.source} ${volume.name} --node ${config.name}`;
    throw new HoldfastError('ERR_HOLDFAST_METADATA_MISSING', `${message} (${error.message})`, { cause: error });
  }
}

/** The metadata is of this volume, this member, this device. */
function checkBelongs(
  volume: VolumeConfig,
  place: string,
  store: Metadata,
  expected: MemberShape,
  bound: boolean,
): void {
  const checks: [what: string, found: string | number, wanted: string | number][] = [
    ['the volume', store.volumeId, expected.volumeId],
    ['the member', `${store.member} (${store.memberName})`, `${expected.member} (${expected.memberName})`],
    ['sizeBytes', store.sizeBytes, expected.sizeBytes],
    ['bitmapGrainBytes', store.grainBytes, expected.grainBytes],
    ['activityLogExtentBytes', store.activityLogExtentBytes, expected.activityLogExtentBytes],
  ];
  if (bound) checks.push(['the device', store.deviceIdentity, expected.deviceIdentity]);
  for (const [what, found, wanted] of checks) {
    if (found === wanted) continue;
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_MISMATCH',
      `the metadata in ${place} does not belong to volume "${volume.name}": ${what} is ${found} there, ${wanted} in the configuration; check both, nothing was changed`,
    );
  }
}
