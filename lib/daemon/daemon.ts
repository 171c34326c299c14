/**
 * One server: its devices and volumes, its memory unit, its links to the peers, its NBD exports and its control socket,
 * from one configuration.
 *
 * Order of the start: control socket (another server of this configuration is found out before anything is touched) →
 * votes on mirrored regions → memory unit → devices and volumes → links → exports. Any step that fails releases what the earlier ones took. The stop
 * is the reverse: clients are answered what is in flight before the volume under them goes; the memory unit goes last,
 * when no link leads to it any more.
 */
import { z } from 'zod';
import type { Environment } from '../base/environment.ts';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { formatAddress } from '../base/network.ts';
import type { ControllerEvent } from '../mirror/controller.ts';
import type { NbdExport } from '../nbd/export.ts';
import { NbdServer } from '../nbd/server.ts';
import { createPeerNode } from '../peer/node.ts';
import type { LinkStatus, PeerNode } from '../peer/peer.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { openDevice } from '../storage/open-device.ts';
import { sharedRing } from '../storage/ring.ts';
import type { ExportConfig, NodeConfig } from './config.ts';
import { type ControlMethod, ControlServer } from './control-server.ts';
import { EventGate } from './event-gate.ts';
import { Held } from './held.ts';
import { MEMORY_METHODS, type Memory, type MemoryMethod, openMemory } from './memory.ts';
import { type MirroredRegion, openMirroredRegion, votedRegions } from './mirrored-region.ts';
import type { DaemonStatus, ExportStatus, LinkReport } from './status.ts';
import { openTieBreaker, type TieBreaker } from './tie-breaker.ts';
import { openVolume, type Volume } from './volume.ts';

export interface DaemonOptions {
  readonly environment: Environment;
  /** The cluster's key; needed where there are peers. */
  readonly key: Uint8Array | undefined;
  /** Version of the package, for status. */
  readonly release: string;
  readonly pid: number;
  /** Told of what happens; subscribers of the control socket are told the same. */
  readonly onEvent?: (event: DaemonEvent) => void;
}

export interface DaemonEvent {
  readonly kind: string;
  readonly [detail: string]: unknown;
}

const forceSchema = z.strictObject({ volume: z.string().max(64), acceptInconsistent: z.boolean() });

interface ExportServer {
  readonly server: NbdServer;
  readonly exports: readonly ExportConfig[];
}

export class Daemon implements AsyncDisposable {
  readonly #config: NodeConfig;
  readonly #options: DaemonOptions;
  readonly #held = new Held();
  readonly #volumes = new Map<string, Volume>();
  readonly #tieBreakers: TieBreaker[] = [];
  readonly #mirroredRegions: MirroredRegion[] = [];
  readonly #exportServers: ExportServer[] = [];
  readonly #control: ControlServer;
  readonly #startedMs: number;
  #node: PeerNode | undefined;
  #memory: Memory | undefined;
  #closing: Promise<void> | undefined;

  private constructor(config: NodeConfig, options: DaemonOptions) {
    this.#config = config;
    this.#options = options;
    this.#startedMs = options.environment.clock.nowMs();
    this.#control = new ControlServer(
      new Map<string, ControlMethod>([
        ['status', () => this.#askedStatus()],
        ['force', (parameters) => this.#force(parameters)],
        ...MEMORY_METHODS.map((name): [string, ControlMethod] => [name, (request) => this.#askMemory(name, request)]),
      ]),
    );
  }

  /** Starts a server. What it throws names what is wrong and what to do; then nothing is left open. */
  static async start(config: NodeConfig, options: DaemonOptions): Promise<Daemon> {
    const daemon = new Daemon(config, options);
    try {
      await daemon.#start();
      return daemon;
    } catch (error) {
      await daemon.#held.close().catch(() => {});
      throw error;
    }
  }

  status(): DaemonStatus {
    const { environment, release, pid } = this.#options;
    return {
      holdfast: 1,
      release,
      cluster: this.#config.cluster,
      node: this.#config.name,
      pid,
      upMs: Math.round(environment.clock.nowMs() - this.#startedMs),
      engine: this.#engineReport(),
      links: (this.#node?.links() ?? []).map((link) => linkReport(link, this.#config.peers)),
      volumes: [...this.#volumes.values()].map((volume) => volume.status()),
      tieBreakers: this.#tieBreakers.map((tieBreaker) => tieBreaker.status()),
      exports: this.#exportServers.flatMap(exportReports),
      mirroredRegions: this.#mirroredRegions.map((region) => region.status()),
      memory: this.#memory?.status() ?? null,
    };
  }

  /** With what other nodes say, too. */
  async #askedStatus(): Promise<DaemonStatus> {
    await Promise.all(this.#mirroredRegions.map((region) => region.refresh()));
    return this.status();
  }

  #engineReport(): DaemonStatus['engine'] {
    if (this.#volumes.size + this.#exportServers.length === 0) return null;
    const { engine, reason } = sharedRing({ engine: this.#config.engine }).report();
    return { name: engine, reason };
  }

  /** Finishes what is in flight, leaves the volumes in order, releases everything. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const exportsClosed = Promise.all(this.#exportServers.map(({ server }) => server.close()));
    // What waits for a volume that does not serve would wait in vain: it ends with the volume, and the client is told.
    for (const volume of this.#volumes.values())
      if (volume.status().state === 'Suspended') await volume.close().catch(() => {});
    await exportsClosed;
    await this.#held.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #start(): Promise<void> {
    const { environment } = this.#options;
    this.#held.add(this.#control);
    await this.#control.listen(environment.network, this.#config.control);
    this.#node = this.#createNode();
    // Held before the node, so that it goes after it.
    this.#held.add({ close: async () => this.#memory?.close() });
    if (this.#node) this.#held.add(this.#node);
    for (const region of votedRegions(this.#config)) {
      const opened = await openMirroredRegion(this.#config, region, { environment, node: this.#node! });
      this.#mirroredRegions.push(this.#held.add(opened));
    }
    const onEvent = (event: DaemonEvent): void => this.#emit(event);
    const around = { environment, node: this.#node, mirrored: this.#mirroredRegions, onEvent };
    this.#memory = await openMemory(this.#config, around);
    await this.#openVolumes();
    for (const volume of this.#config.tieBreakerOf)
      this.#tieBreakers.push(this.#held.add(await openTieBreaker(this.#config, volume, this.#node!)));
    await this.#node?.start();
    await this.#startExports();
    this.#emit({ kind: 'ready' });
  }

  #createNode(): PeerNode | undefined {
    const { cluster, name, peers, listen, link, heartbeatMs, leaseMs } = this.#config;
    const { environment, key } = this.#options;
    if (peers.length === 0) return undefined;
    if (key === undefined)
      throw new HoldfastError('ERR_HOLDFAST_CONFIG', `${this.#config.source}: with peers a "keyFile" is needed`);
    const gate = new EventGate(environment.clock, (event) => this.#emit(event));
    const onRefused = (remote: string, error: Error, claimed: string | undefined): void => {
      this.#memory?.strangerRefused(remote, error, claimed);
      gate.tell({ kind: 'stranger-refused', remote, ...(claimed && { claimed }), reason: error.message });
    };
    const identity = { name, clusterId: cluster, key, link, ...(listen && { listen }) };
    return createPeerNode({ environment, ...identity, peers, heartbeatMs, leaseMs, onRefused });
  }

  async #openVolumes(): Promise<void> {
    for (const volume of this.#config.volumes) {
      const onEvent = ({ kind, ...details }: ControllerEvent): void =>
        this.#emit({ kind: `volume-${kind}`, volume: volume.name, ...details });
      const opened = await openVolume(this.#config, volume, this.#node!, this.#options.environment, onEvent);
      this.#volumes.set(volume.name, this.#held.add(opened));
    }
  }

  /** One NBD server for each address; the exports of one address share it. */
  async #startExports(): Promise<void> {
    const byAddress = new Map<string, ExportConfig[]>();
    for (const exported of this.#config.exports) {
      const address = formatAddress(exported.address);
      byAddress.set(address, [...(byAddress.get(address) ?? []), exported]);
    }
    for (const exports of byAddress.values()) {
      const devices = new Map<string, NbdExport>();
      for (const exported of exports) devices.set(exported.name, await this.#nbdExport(exported));
      await this.#listen(exports, devices);
    }
  }

  async #listen(exports: readonly ExportConfig[], devices: ReadonlyMap<string, NbdExport>): Promise<void> {
    const { environment } = this.#options;
    const [first] = exports;
    const address = first!.address;
    const server = new NbdServer({
      environment,
      address,
      exports: devices,
      defaultExport: first!.name,
      allowRemoteClients: exports.every((exported) => exported.allowRemote),
      onDropped: (remote, reason) =>
        this.#emit({ kind: 'client-dropped', address: formatAddress(address), remote, reason }),
    });
    this.#held.add(server);
    try {
      await server.listen();
    } catch (error) {
      if (!isHoldfastError(error)) throw error;
      const message = `the export "${first!.name}" cannot be served: ${error.message}`;
      throw new HoldfastError(error.code, message, { cause: error });
    }
    this.#exportServers.push({ server, exports });
  }

  async #nbdExport(exported: ExportConfig): Promise<NbdExport> {
    const { target, readOnly } = exported;
    // Every request of every connection passes through this one process, so that a flush covers them all.
    if (target.kind === 'volume')
      return { device: this.#volumes.get(target.volume)!.device, readOnly, multiConnection: true };
    const device = await this.#openRaw(target.path, readOnly);
    return { device, readOnly, multiConnection: true };
  }

  async #openRaw(path: string, readOnly: boolean): Promise<BlockDevice> {
    const { engine, direct } = this.#config;
    return this.#held.add(await openDevice(path, { engine, direct, readOnly }));
  }

  async #force(parameters: unknown): Promise<void> {
    const { volume: name, acceptInconsistent } = forceSchema.parse(parameters);
    const volume = this.#volumes.get(name);
    if (!volume) {
      const names = [...this.#volumes.keys()].join(', ') || 'none';
      throw new HoldfastError('ERR_HOLDFAST_NO_SUCH_VOLUME', `there is no volume "${name}" here; there is ${names}`);
    }
    await volume.force(acceptInconsistent);
  }

  #askMemory(method: MemoryMethod, request: unknown): Promise<unknown> {
    if (this.#memory === undefined)
      throw new HoldfastError(
        'ERR_HOLDFAST_NOT_FOUND',
        `node ${this.#config.name} has neither a memory unit nor the manager of one; ask the node that has`,
      );
    return this.#memory.operate(method, request);
  }

  #emit(event: DaemonEvent): void {
    this.#options.onEvent?.(event);
    this.#control.emit(event);
  }
}

function linkReport(link: LinkStatus, peers: NodeConfig['peers']): LinkReport {
  const { addresses } = peers.find(({ name }) => name === link.peer)!;
  return {
    peer: link.peer,
    client: addresses.length === 0,
    state: link.state,
    path: link.path ?? null,
    roundTripMs: link.roundTripMs ?? null,
    problem: link.problem ? { code: link.problem.code, message: link.problem.message } : null,
  };
}

function exportReports({ server, exports }: ExportServer): ExportStatus[] {
  const statistics = server.statistics();
  return exports.map(({ name, address, target, readOnly }) => ({
    name,
    address: formatAddress(address),
    target: target.kind === 'volume' ? `volume ${target.volume}` : `device ${target.path}`,
    readOnly,
    connections: statistics.exports.get(name)?.connections ?? 0,
  }));
}
