/**
 * A node's vote in a volume that it has no copy of, from the configuration: the creation of its state file, and its
 * opening. It never proposes; it answers the members, each time after its state is durable.
 */
import type { VoterFileOwner } from '../coherency/voter-file.ts';
import type { PeerNode } from '../peer/peer.ts';
import { RegisterService } from '../peer/register-service.ts';
import type { NodeConfig, VolumeConfig } from './config.ts';
import { Held } from './held.ts';
import { makeStateFile, openStateFile } from './state-file.ts';
import type { TieBreakerStatus } from './status.ts';
import { type CreateOptions, volumeIdOf, votersOf } from './volume.ts';

export interface TieBreaker {
  status(): TieBreakerStatus;
  /** Votes no more and releases the state file. Idempotent. */
  close(): Promise<void>;
}

function stateFileOf(volume: VolumeConfig): string {
  return volume.tieBreaker!.stateFile;
}

function ownerOf(config: NodeConfig, volume: VolumeConfig): VoterFileOwner {
  return { registerId: volumeIdOf(volume), nodeName: config.name };
}

/**
 * Makes the state file of a volume's tie-breaker.
 *
 * @throws HoldfastError ERR_HOLDFAST_DEVICE_EXISTS unless an existing file is named in `overwrite`: a tie-breaker that
 *   forgets what it has promised may let a copy serve that is out of date.
 */
export async function createStateFile(config: NodeConfig, volume: VolumeConfig, options: CreateOptions): Promise<void> {
  const path = stateFileOf(volume);
  const mend = `Only while both members are up to date and in session, say: --overwrite ${path}`;
  await makeStateFile(path, ownerOf(config, volume), { overwrite: options.overwrite.includes(path), mend });
}

/** Opens the state file and votes from now on. Before the node starts. */
export async function openTieBreaker(config: NodeConfig, volume: VolumeConfig, node: PeerNode): Promise<TieBreaker> {
  const path = stateFileOf(volume);
  const held = new Held();
  try {
    const missing = `the tie-breaker of volume "${volume.name}" is not created here yet; run: holdfast create ${config.source} ${volume.name} --node ${config.name}`;
    const store = await openStateFile(path, ownerOf(config, volume), held, missing);
    const voters = votersOf(volume);
    const registerId = volumeIdOf(volume);
    const voter = RegisterService.of(node).add({ registerId, voters, self: voters.indexOf(config.name), store });
    held.add(voter);
    return {
      status: () => ({
        volume: volume.name,
        id: volume.id,
        stateFile: path,
        members: volume.members.map((member) => ({
          node: member.node,
          connected: node.session(member.node) !== undefined,
        })),
        problem: voter.failure === undefined ? null : { code: voter.failure.code, message: voter.failure.message },
      }),
      close: () => held.close(),
    };
  } catch (error) {
    await held.close().catch(() => {});
    throw error;
  }
}
