/** A process that uses the memory of a unit: its place among the peers, and the client, in one. */
import type { Environment } from '../base/environment.ts';
import type { Address } from '../base/network.ts';
import { systemEnvironment } from '../base/system-environment.ts';
import { createPeerNode, type PeerNodeOptions } from '../peer/node.ts';
import type { PeerNode } from '../peer/peer.ts';
import { MemoryClient } from './manager-client.ts';
import { openAccess } from './memory-session.ts';
import { planeTransport } from './plane-transport.ts';

/** A node, and where it listens. */
export interface MemoryPeer {
  readonly name: string;
  readonly addresses: readonly Address[];
}

/** Who this process is, and where the unit is. */
export interface ConnectMemoryOptions
  extends Pick<PeerNodeOptions, 'name' | 'clusterId' | 'key' | 'link' | 'heartbeatMs' | 'leaseMs'> {
  /** Default: the system's. */
  readonly environment?: Environment;
  /** The node with the unit. */
  readonly unit: MemoryPeer;
  /** The node with the unit's manager, if it runs apart. */
  readonly manager?: MemoryPeer;
}

/** A client and its node. Closing it ends the sessions, and makes the keys void that they have got. */
export interface MemoryConnection extends AsyncDisposable {
  readonly client: MemoryClient;
  readonly node: PeerNode;
  /** Ends the sessions. Idempotent. */
  close(): Promise<void>;
}

/**
 * Joins the cluster under `name`, which the unit's configuration must list, and keeps a session with the unit and its
 * manager. The client's calls wait until it is there. On a dedicated link the commands go over the unit's data plane,
 * where it has one.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT as `createPeerNode`.
 */
export async function connectMemory(options: ConnectMemoryOptions): Promise<MemoryConnection> {
  const { environment = systemEnvironment, unit, manager = unit, ...self } = options;
  const peers = manager === unit ? [unit] : [unit, manager];
  const node = createPeerNode({ ...self, environment, peers });
  const { clock } = environment;
  const transport = self.link === 'dedicated' ? planeTransport(clock) : openAccess;
  const client = new MemoryClient({ node, clock, manager: manager.name, unit: unit.name, transport });
  await node.start();
  const close = () => node.close();
  return { client, node, close, [Symbol.asyncDispose]: close };
}
