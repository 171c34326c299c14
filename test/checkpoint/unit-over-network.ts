/** A unit over a mapped file and peers with sessions to it, over loopback: for tests of its transports. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Address } from '../../lib/base/network.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { type ConnectPlaneOptions, connectPlane } from '../../lib/checkpoint/plane-ticket.ts';
import { createMemoryUnit, type MemoryUnit, type UnitLimits } from '../../lib/checkpoint/unit.ts';
import { mappedMemory } from '../../lib/checkpoint/unit-memory.ts';
import { createPeerNode, type PeerNodeOptions } from '../../lib/peer/node.ts';
import type { PeerNode, PeerSession } from '../../lib/peer/peer.ts';
import { openRegion, type Region } from '../../lib/storage/region.ts';
import { accessMemoryBytes } from '../conformance/region-access.ts';

const key = Buffer.from('a key of the cluster, 32 bytes..');
const environment = systemEnvironment;

export class UnitOverNetwork {
  readonly #folder = mkdtempSync(join(tmpdir(), 'holdfast-unit-'));
  readonly #nodes = new Map<string, PeerNode>();
  region!: Region;
  unit!: MemoryUnit;

  /** `plane`: with one. */
  async start(plane: boolean, limits: UnitLimits = {}): Promise<this> {
    const peers = ['ann', 'ben'];
    const address = await freeAddress();
    const common = { environment, clusterId: 'test', key, link: 'dedicated' } as const;
    const node = this.#make({
      ...common,
      name: 'unit',
      listen: address,
      peers: peers.map((name) => ({ name, addresses: [] })),
    });
    this.region = await openRegion(join(this.#folder, 'memory'), { sizeBytes: accessMemoryBytes, create: true });
    this.unit = createMemoryUnit({
      name: 'unit',
      memory: mappedMemory(this.region, environment.clock),
      clock: environment.clock,
      node,
      recordsBytes: 4096,
      limits,
      ...(plane && { plane: { ...environment, host: '127.0.0.1', region: this.region } }),
    });
    await node.start();
    const addresses = [address];
    for (const name of peers) {
      const peer = this.#make({ ...common, name, peers: [{ name: 'unit', addresses }] });
      const up = [isUp(peer, 'unit'), isUp(node, name)];
      await peer.start();
      await Promise.all(up);
    }
    return this;
  }

  #make(options: PeerNodeOptions): PeerNode {
    const node = createPeerNode(options);
    this.#nodes.set(options.name, node);
    return node;
  }

  session(peer: string): PeerSession {
    return this.#nodes.get(peer)!.session('unit')!;
  }

  connect(peer: string, options: Partial<ConnectPlaneOptions> = {}) {
    return connectPlane(this.session(peer), { clock: environment.clock, ...options });
  }

  /** Resolves when the unit knows, too. */
  async endSession(peer: string): Promise<void> {
    const node = this.#nodes.get('unit')!;
    const down = new Promise<void>((resolve) => {
      node.subscribe({
        onSessionUp: () => {},
        onSessionDown: (session) => {
          if (session.peer.name === peer) resolve();
        },
      });
    });
    await this.#nodes.get(peer)!.close();
    await down;
  }

  async close(): Promise<void> {
    for (const node of this.#nodes.values()) await node.close();
    await this.unit.close();
    rmSync(this.#folder, { recursive: true });
  }
}

async function freeAddress(): Promise<Address> {
  const listener = await environment.network.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, {}, () => {});
  await listener.close();
  return listener.address;
}

function isUp(node: PeerNode, peer: string): Promise<void> {
  return new Promise((resolve) => {
    node.subscribe({
      onSessionUp: (session) => {
        if (session.peer.name === peer) resolve();
      },
      onSessionDown: () => {},
    });
  });
}
