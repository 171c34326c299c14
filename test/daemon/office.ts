/** A cluster of two nodes, and a tie-breaker if wanted, in a temporary folder, for tests: configuration, key and file-backed devices. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import type { NodeConfig } from '../../lib/daemon/config.ts';
import { loadKey, loadNodeConfig } from '../../lib/daemon/config-file.ts';
import { Daemon, type DaemonEvent } from '../../lib/daemon/daemon.ts';
import type { DaemonStatus } from '../../lib/daemon/status.ts';
import { createStateFile } from '../../lib/daemon/tie-breaker.ts';
import { createMember } from '../../lib/daemon/volume.ts';
import { freePort } from '../free-port.ts';

export const MIB = 1024 * 1024;
export const VOLUME_BYTES = 4 * MIB;
export type NodeName = 'a' | 'b';
/** `m` is there if a test names it in the configuration. */
export type ServerName = NodeName | 'tie' | 'm';

export interface OfficeOptions {
  readonly metadata?: 'internal' | { readonly file: string };
  readonly onLostPeer?: unknown;
  /** A third node that has a vote: then a majority decides. */
  readonly tieBreaker?: boolean;
  readonly deviceBytes?: number;
}

export class Office {
  readonly folder: string;
  /** As it is written to the file; change it and call `save`. */
  // biome-ignore lint/suspicious/noExplicitAny: tests break it in any way they like
  readonly config: any;
  readonly events: Record<ServerName, DaemonEvent[]> = { a: [], b: [], tie: [], m: [] };
  readonly #running: Daemon[] = [];

  private constructor(folder: string, config: unknown) {
    this.folder = folder;
    this.config = config;
  }

  static async make(options: OfficeOptions = {}): Promise<Office> {
    const folder = mkdtempSync(join(tmpdir(), 'holdfast-office-'));
    const { metadata = 'internal', onLostPeer = { preferred: 'a' }, deviceBytes = 5 * MIB } = options;
    const settled = options.tieBreaker
      ? { quorum: 'majority', tieBreaker: { node: 'tie', stateFile: 'tie.vote' } }
      : { onLostPeer };
    const node = async (name: ServerName) => ({
      name,
      addresses: [`127.0.0.1:${await freePort()}`],
      control: `${name}.sock`,
      exports: name === 'tie' ? [] : [{ volume: 'data', address: `unix:${name}.nbd` }],
    });
    const office = new Office(folder, {
      cluster: 'office',
      keyFile: 'office.key',
      heartbeatMs: 50,
      leaseMs: 500,
      nodes: [await node('a'), await node('b'), ...(options.tieBreaker ? [await node('tie')] : [])],
      volumes: [
        {
          name: 'data',
          id: '0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c11',
          sizeBytes: VOLUME_BYTES,
          members: (['a', 'b'] as const).map((name) => ({ node: name, device: `${name}.img`, metadata })),
          ...settled,
        },
      ],
    });
    office.save();
    writeFileSync(join(folder, 'office.key'), '5a'.repeat(32), { mode: 0o600 });
    for (const name of ['a', 'b'] as const) {
      writeFileSync(office.device(name), '');
      truncateSync(office.device(name), deviceBytes);
    }
    return office;
  }

  get path(): string {
    return join(this.folder, 'office.jsonc');
  }

  device(name: NodeName): string {
    return join(this.folder, `${name}.img`);
  }

  save(): void {
    writeFileSync(this.path, JSON.stringify(this.config, null, 2));
  }

  load(name: string): Promise<NodeConfig> {
    return loadNodeConfig(this.path, name);
  }

  async create(name: ServerName, overwrite: readonly string[] = []): Promise<void> {
    const config = await this.load(name);
    if (name === 'tie') await createStateFile(config, config.tieBreakerOf[0]!, { overwrite });
    else await createMember(config, config.volumes[0]!, { overwrite });
  }

  async start(name: ServerName): Promise<Daemon> {
    const config = await this.load(name);
    const daemon = await Daemon.start(config, {
      environment: systemEnvironment,
      key: config.keyFile === undefined ? undefined : await loadKey(config.keyFile),
      release: 'test',
      pid: process.pid,
      onEvent: (event) => this.events[name].push(event),
    });
    this.#running.push(daemon);
    return daemon;
  }

  async remove(): Promise<void> {
    await Promise.all(this.#running.map((daemon) => daemon.close().catch(() => {})));
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Waits until a server's status is as wanted; fails with the last status after a long time. */
export async function until(daemon: Daemon, wanted: (status: DaemonStatus) => boolean): Promise<DaemonStatus> {
  for (let round = 0; round < 1000; round++) {
    const status = daemon.status();
    if (wanted(status)) return status;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`in vain; the last status: ${JSON.stringify(daemon.status(), null, 2)}`);
}

export const online = (status: DaemonStatus): boolean => status.volumes[0]?.state === 'Online';
