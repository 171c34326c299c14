/**
 * A volume mirrored by two real server processes over files in a temporary folder, for the system tests. A third
 * server, c, has no copy. They reach each other over loopback, or in a network that a test can cut.
 */
import { open, rm, truncate, writeFile } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Address } from '../../lib/base/network.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { fetchStatus } from '../../lib/cli/status-command.ts';
import { ControlClient } from '../../lib/daemon/control-client.ts';
import type { VolumeStatus } from '../../lib/daemon/status.ts';
import { connectNbd } from '../../lib/nbd/nbd-device.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { freePort } from '../free-port.ts';
import { Child, run, TemporaryFolder } from './processes.ts';

export const MIB = 2 ** 20;
export const NODES = ['a', 'b'] as const;
export type NodeName = (typeof NODES)[number];
export type ServerName = NodeName | 'c';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const METADATA_ROOM_BYTES = 2 * MIB;
const PIECE_BYTES = 4 * MIB;

export interface ClusterOptions {
  readonly sizeBytes: number;
  /** Default: a is preferred. */
  readonly onLostPeer?: unknown;
  /** A majority of both and of c decides who goes on; without `onLostPeer`. Default false. */
  readonly majority?: boolean;
  readonly leaseMs?: number;
  /** Default: loopback. */
  readonly network?: ClusterNetwork;
  /** Hears whatever a server prints. */
  readonly onOutput?: (server: ServerName, text: string) => void;
}

/** Where the servers run. */
export interface ClusterNetwork {
  /** Where the others reach a server, as the configuration writes it. */
  address(server: ServerName): string;
  /** A command line that runs the given one at the server's place, in one and the same process. */
  commandAt(server: ServerName, command: readonly string[]): readonly string[];
}

async function loopback(servers: readonly ServerName[]): Promise<ClusterNetwork> {
  const ports = new Map<ServerName, number>();
  for (const server of servers) ports.set(server, await freePort());
  return { address: (server) => `127.0.0.1:${ports.get(server)}`, commandAt: (_server, command) => command };
}

export class Cluster implements AsyncDisposable {
  readonly folder: TemporaryFolder;
  readonly sizeBytes: number;
  /** All that the cluster consists of. */
  readonly names: readonly ServerName[];
  readonly #network: ClusterNetwork;
  readonly #onOutput: ClusterOptions['onOutput'];
  readonly #servers = new Map<ServerName, Child>();

  private constructor(
    folder: TemporaryFolder,
    names: readonly ServerName[],
    network: ClusterNetwork,
    options: ClusterOptions,
  ) {
    this.folder = folder;
    this.names = names;
    this.sizeBytes = options.sizeBytes;
    this.#network = network;
    this.#onOutput = options.onOutput;
  }

  /** Devices, configuration and both members; no server runs yet. */
  static async create(options: ClusterOptions): Promise<Cluster> {
    const { sizeBytes, onLostPeer = { preferred: 'a' }, leaseMs = 3000 } = options;
    const names: readonly ServerName[] = options.majority ? [...NODES, 'c'] : NODES;
    const network = options.network ?? (await loopback(names));
    const cluster = new Cluster(await TemporaryFolder.make(), names, network, options);
    await run(process.execPath, main, 'make-key', cluster.folder.file('cluster.key'));
    const config = {
      cluster: 'system-tests',
      keyFile: 'cluster.key',
      heartbeatMs: leaseMs / 6,
      leaseMs,
      nodes: names.map((name) => ({
        name,
        addresses: [network.address(name)],
        control: `${name}.control`,
        exports: name === 'c' ? [] : [{ volume: 'data', address: `unix:${name}.nbd` }],
      })),
      volumes: [
        {
          name: 'data',
          id: '6d6f7264-0001-4000-8000-686f6c646661',
          sizeBytes,
          members: NODES.map((node) => ({ node, device: `${node}.img` })),
          ...(options.majority
            ? { quorum: 'majority', tieBreaker: { node: 'c', stateFile: 'c.vote' } }
            : { onLostPeer }),
        },
      ],
    };
    await writeFile(cluster.#config, JSON.stringify(config, null, 2));
    for (const node of NODES) {
      await writeFile(cluster.device(node), '');
      await truncate(cluster.device(node), sizeBytes + METADATA_ROOM_BYTES);
    }
    for (const name of names) await run(process.execPath, main, 'create', cluster.#config, 'data', '--node', name);
    return cluster;
  }

  /** Both servers run, and both copies are up to date. */
  static async running(options: ClusterOptions): Promise<Cluster> {
    const cluster = await Cluster.create(options);
    await Promise.all(cluster.names.map((name) => cluster.start(name)));
    await cluster.online();
    return cluster;
  }

  get #config(): string {
    return this.folder.file('cluster.jsonc');
  }

  device(node: NodeName): string {
    return this.folder.file(`${node}.img`);
  }

  socket(node: NodeName): string {
    return this.folder.file(`${node}.nbd`);
  }

  uri(node: NodeName): string {
    return `nbd+unix:///?socket=${this.socket(node)}`;
  }

  /** The volume through a node's export, by our own client. */
  connect(node: NodeName): Promise<BlockDevice> {
    const address: Address = { kind: 'unix', path: this.socket(node) };
    return connectNbd(address, { environment: systemEnvironment });
  }

  /** Starts a server and waits until its exports are there. */
  async start(name: ServerName): Promise<void> {
    const serve = [process.execPath, main, 'serve', this.#config, '--node', name, '--until-stdin-ends'];
    const [command, ...words] = this.#network.commandAt(name, serve);
    const server = new Child(command!, words, { stdin: 'open' });
    server.process.stdout!.on('data', (chunk: Buffer) => this.#onOutput?.(name, chunk.toString()));
    this.#servers.set(name, server);
    await server.ready(() => server.output.includes(`${name}: ready`));
  }

  server(name: ServerName): Child {
    return this.#servers.get(name)!;
  }

  /** Sends a signal and waits for the server's end; its exit status, null if the signal ended it. */
  stop(name: ServerName, signal: NodeJS.Signals): Promise<number | null> {
    return this.server(name).stop(signal);
  }

  async status(node: NodeName): Promise<VolumeStatus> {
    const path = this.folder.file(`${node}.control`);
    await using client = await ControlClient.connect(systemEnvironment.network, path);
    return (await fetchStatus(client)).volumes[0]!;
  }

  /** Waits until a server says that the volume is as wanted; fails if the server ends before. */
  async until(node: NodeName, wanted: (status: VolumeStatus) => boolean): Promise<VolumeStatus> {
    let status: VolumeStatus | undefined;
    await this.server(node).ready(async () => {
      status = await this.status(node).catch(() => undefined);
      if (status !== undefined && wanted(status)) return true;
      await wait(20);
      return false;
    });
    return status!;
  }

  /** Waits until both copies are up to date. */
  async online(): Promise<void> {
    await Promise.all(NODES.map((node) => this.until(node, ({ state }) => state === 'Online')));
  }

  /** Offset of the first byte in which the two copies differ; undefined if they are the same. */
  firstDifference(): Promise<number | undefined> {
    return firstDifference(this.device('a'), this.device('b'), this.sizeBytes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers.values()) if (!server.ended) await server.stop('SIGKILL');
    await rm(this.folder.path, { recursive: true, force: true });
  }
}

/** Offset of the first byte in which the first bytes of two files differ; undefined if they are the same. */
export async function firstDifference(one: string, other: string, sizeBytes: number): Promise<number | undefined> {
  const files = await Promise.all([open(one), open(other)]);
  try {
    for (let offset = 0; offset < sizeBytes; offset += PIECE_BYTES) {
      const length = Math.min(PIECE_BYTES, sizeBytes - offset);
      const [left, right] = [Buffer.alloc(length), Buffer.alloc(length)];
      await files[0].read(left, 0, length, offset);
      await files[1].read(right, 0, length, offset);
      if (Buffer.compare(left, right) !== 0) return offset + left.findIndex((byte, index) => byte !== right[index]);
    }
    return undefined;
  } finally {
    for (const file of files) await file.close();
  }
}
