/**
 * Real server processes in a temporary folder, for the demo: two with a copy, and a tie-breaker. Their devices,
 * configuration and key, their start, kill and clean stop. Whatever happens, no process and no file is left behind (unless the folder is to be kept): servers
 * also stop by themselves when this process is gone, since their standard input ends with it.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { open, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { HoldfastError } from '../base/errors.ts';
import { type Address, formatAddress } from '../base/network.ts';
import { makeKey } from '../daemon/config-file.ts';
import { ControlClient } from '../daemon/control-client.ts';
import type { DaemonStatus, VolumeStatus } from '../daemon/status.ts';
import type { CliContext } from './context.ts';
import { freeAddresses } from './free-addresses.ts';
import { KeptProcess } from './kept-process.ts';
import { fetchStatus } from './status-command.ts';

export const NODES = ['a', 'b'] as const;
export type NodeName = (typeof NODES)[number];
export const TIE_BREAKER = 'tie';
export type ServerName = NodeName | typeof TIE_BREAKER;
export const VOLUME = 'demo';

const START_TIMEOUT_MS = 30_000;
const STOP_PATIENCE_MS = 5000;
const POLL_MS = 50;
/** A server that was killed may have promised to be alone for so long: the other one waits before it goes on. */
const LEASE_MS = 1500;
const main = fileURLToPath(new URL('./main.js', import.meta.url));

export interface DemoClusterOptions {
  readonly volumeBytes: number;
  readonly deviceBytes: number;
  /** Grain of the bitmap, and of the activity log. */
  readonly grainBytes: number;
  readonly keep: boolean;
}

export class DemoCluster implements AsyncDisposable {
  readonly folder: string;
  readonly #context: CliContext;
  readonly #options: DemoClusterOptions;
  readonly #servers = new Map<ServerName, KeptProcess>();
  readonly #onExit = (): void => this.#removeAtExit();

  constructor(context: CliContext, options: DemoClusterOptions) {
    this.#context = context;
    this.#options = options;
    this.folder = mkdtempSync(join(tmpdir(), 'holdfast-demo-'));
    process.on('exit', this.#onExit);
  }

  device(node: NodeName): string {
    return join(this.folder, `${node}.img`);
  }

  /** Where clients reach the volume on a node. */
  exportAddress(node: NodeName): Address {
    return { kind: 'unix', path: join(this.folder, `${node}.nbd`) };
  }

  get config(): string {
    return join(this.folder, 'demo.jsonc');
  }

  /** Writes key, devices and configuration, and creates the volume on both, and the tie-breaker's state. */
  async create(): Promise<void> {
    const key = new Uint8Array(32);
    this.#context.environment.random.fill(key);
    await makeKey(join(this.folder, 'demo.key'), key);
    await writeFile(this.config, await this.#configText());
    for (const node of NODES) {
      await createFile(this.device(node), this.#options.deviceBytes);
      await this.#run('create', this.config, VOLUME, '--node', node);
    }
    await this.#run('create', this.config, VOLUME, '--node', TIE_BREAKER);
  }

  /** Starts a server process; resolves when it answers. */
  async start(node: ServerName): Promise<void> {
    // Ctrl-C goes to this process alone: it stops the servers in order.
    const options = { detached: true };
    const server = new KeptProcess([main, 'serve', this.config, '--node', node, '--until-stdin-ends'], options);
    this.#servers.set(node, server);
    await this.until(node, () => true, START_TIMEOUT_MS, `server ${node} to answer`);
  }

  /** SIGKILL: the process gets no chance to finish anything. */
  async kill(node: ServerName): Promise<void> {
    await this.#server(node).kill();
    this.#servers.delete(node);
  }

  /** SIGTERM, and waits. Throws if the server did not stop cleanly. */
  async stop(node: ServerName): Promise<void> {
    const server = this.#server(node);
    server.process.kill('SIGTERM');
    const how = await server.ended;
    this.#servers.delete(node);
    if (how !== 0) throw server.error(`server ${node} did not stop cleanly (${how})`);
  }

  pid(node: ServerName): number {
    return this.#server(node).process.pid!;
  }

  async status(node: ServerName): Promise<DaemonStatus> {
    const path = join(this.folder, `${node}.sock`);
    await using client = await ControlClient.connect(this.#context.environment.network, path);
    return await fetchStatus(client);
  }

  async volume(node: NodeName): Promise<VolumeStatus> {
    const { volumes } = await this.status(node);
    return volumes.find((volume) => volume.name === VOLUME)!;
  }

  /** Polls a node's status until `done` says so. Throws ERR_HOLDFAST_TIMEOUT, or if a server ends meanwhile. */
  async until(
    node: ServerName,
    done: (status: DaemonStatus) => boolean,
    timeoutMs: number,
    what: string,
  ): Promise<DaemonStatus> {
    const { clock } = this.#context.environment;
    const deadlineMs = clock.nowMs() + timeoutMs;
    for (;;) {
      const server = this.#server(node);
      if (server.end !== undefined) throw server.error(`server ${node} has ended (${server.end})`);
      const status = await this.status(node).catch(() => undefined);
      if (status && done(status)) return status;
      if (clock.nowMs() > deadlineMs)
        throw new HoldfastError(
          'ERR_HOLDFAST_TIMEOUT',
          `waited ${timeoutMs / 1000} s in vain for ${what}; the folder and the servers' words say more: --keep`,
        );
      await this.pause(POLL_MS);
    }
  }

  /** Waits a while; throws ERR_HOLDFAST_ABORTED after Ctrl-C. */
  async pause(ms: number): Promise<void> {
    this.#context.signal.throwIfAborted();
    await new Promise<void>((resolve) => this.#context.environment.clock.setTimer(ms, resolve));
    this.#context.signal.throwIfAborted();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers.values()) server.process.kill('SIGTERM');
    const gone = Promise.all([...this.#servers.values()].map((server) => server.ended));
    await Promise.race([gone, this.#patience(gone)]);
    this.#removeAtExit();
    process.off('exit', this.#onExit);
  }

  /** Resolves when servers that were told to stop have had their time, or have gone. */
  #patience(gone: Promise<unknown>): Promise<void> {
    return new Promise((resolve) => {
      const timer = this.#context.environment.clock.setTimer(STOP_PATIENCE_MS, resolve);
      gone.finally(() => timer.cancel());
    });
  }

  #removeAtExit(): void {
    for (const server of this.#servers.values()) server.process.kill('SIGKILL');
    this.#servers.clear();
    if (!this.#options.keep) rmSync(this.folder, { recursive: true, force: true });
  }

  #server(node: ServerName): KeptProcess {
    const server = this.#servers.get(node);
    if (!server) throw new HoldfastError('ERR_HOLDFAST_INTERNAL', `server ${node} does not run`);
    return server;
  }

  async #run(...args: string[]): Promise<void> {
    const command = new KeptProcess([main, ...args]);
    const how = await command.ended;
    if (how !== 0) throw command.error(`holdfast ${args[0]} failed (${how})`);
  }

  async #configText(): Promise<string> {
    const [a, b, tie] = await freeAddresses(this.#context.environment, 3);
    const id = new Uint8Array(16);
    this.#context.environment.random.fill(id);
    const node = (name: NodeName, address: Address) => ({
      name,
      addresses: [formatAddress(address)],
      control: `${name}.sock`,
      exports: [{ volume: VOLUME, address: `unix:${name}.nbd` }],
    });
    const { volumeBytes, grainBytes } = this.#options;
    const config = {
      cluster: 'demo',
      keyFile: 'demo.key',
      heartbeatMs: LEASE_MS / 6,
      leaseMs: LEASE_MS,
      nodes: [
        node('a', a!),
        node('b', b!),
        { name: TIE_BREAKER, addresses: [formatAddress(tie!)], control: `${TIE_BREAKER}.sock` },
      ],
      volumes: [
        {
          name: VOLUME,
          id: Buffer.from(id)
            .toString('hex')
            .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5'),
          sizeBytes: volumeBytes,
          members: NODES.map((name) => ({ node: name, device: `${name}.img` })),
          quorum: 'majority',
          tieBreaker: { node: TIE_BREAKER, stateFile: `${TIE_BREAKER}.vote` },
          activityLogExtentBytes: grainBytes,
          bitmapGrainBytes: grainBytes,
        },
      ],
    };
    return `// Made by \`holdfast demo\`: all servers read this file, each takes its own part.\n${JSON.stringify(config, null, 2)}\n`;
  }
}

async function createFile(path: string, sizeBytes: number): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    await file.truncate(sizeBytes);
  } finally {
    await file.close();
  }
}
