/** Two memory units, each with its manager, and a tie-breaker, as real processes, with a region that lies in both units. */
import { rm, writeFile } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { fetchStatus } from '../../lib/cli/status-command.ts';
import { ControlClient } from '../../lib/daemon/control-client.ts';
import type { MirroredRegionStatus } from '../../lib/daemon/status.ts';
import { freePort } from '../free-port.ts';
import { Child, run, TemporaryFolder } from './processes.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const SERVERS = ['a', 'b', 'tie'] as const;

export type ServerName = (typeof SERVERS)[number];
export type UnitName = Exclude<ServerName, 'tie'>;

export class MirroredMemoryCluster implements AsyncDisposable {
  readonly folder: TemporaryFolder;
  readonly #servers = new Map<ServerName, Child>();

  private constructor(folder: TemporaryFolder) {
    this.folder = folder;
  }

  /** All run; all of the clients may read and write the region `log`. */
  static async running(clients: readonly string[], link: 'tls' | 'dedicated'): Promise<MirroredMemoryCluster> {
    const cluster = new MirroredMemoryCluster(await TemporaryFolder.make());
    await run(process.execPath, main, 'make-key', cluster.folder.file('cluster.key'));
    const nodes = await Promise.all(SERVERS.map(async (name) => nodeOf(name, await freePort())));
    const mirroredRegion = {
      name: 'log',
      id: '5b0f3c52-8a5e-4f0e-9d6c-2f6c1d9e7a10',
      units: ['a', 'b'].map((unit) => ({ unit, stateFile: `${unit}.vote` })),
      tieBreaker: { node: 'tie', stateFile: 'tie.vote' },
    };
    const config = {
      ...{ cluster: 'mirrored', keyFile: 'cluster.key', link, heartbeatMs: 250, leaseMs: 1500 },
      nodes: [...nodes, ...clients.map((name) => ({ name }))],
      mirroredRegions: [mirroredRegion],
    };
    await writeFile(cluster.config, JSON.stringify(config));
    for (const name of SERVERS) await run(process.execPath, main, 'memory', 'create', cluster.config, '--node', name);
    await Promise.all(SERVERS.map((name) => cluster.start(name)));
    await cluster.stands('a', ({ voters }) => voters.every(({ inReach }) => inReach));
    for (const unit of ['a', 'b'] as const) {
      await cluster.ask(unit, 'memory-create-region', { name: 'log', sizeBytes: 48 * 2 ** 20 });
      for (const peer of clients)
        await cluster.ask(unit, 'memory-allow', { name: 'log', peer, rights: ['read', 'write'] });
    }
    return cluster;
  }

  get config(): string {
    return this.folder.file('cluster.jsonc');
  }

  async start(name: ServerName): Promise<void> {
    const words = [main, 'serve', this.config, '--node', name, '--until-stdin-ends', '--json'];
    const server = new Child(process.execPath, words, { stdin: 'open' });
    this.#servers.set(name, server);
    await server.ready(() => server.output.includes('"ready"'));
  }

  async kill(name: ServerName): Promise<void> {
    await this.#servers.get(name)!.stop('SIGKILL');
  }

  /** As an operator. */
  async ask(name: ServerName, method: string, request: object): Promise<unknown> {
    await using control = await this.#control(name);
    return await control.call(method, request);
  }

  /** Waits until the region stands as wanted, as a server says. */
  async stands(name: ServerName, wanted: (region: MirroredRegionStatus) => boolean): Promise<void> {
    await using control = await this.#control(name);
    while (!wanted((await fetchStatus(control)).mirroredRegions[0]!)) await wait(20);
  }

  #control(name: ServerName): Promise<ControlClient> {
    return ControlClient.connect(systemEnvironment.network, this.folder.file(`${name}.control`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers.values()) if (!server.ended) await server.stop('SIGKILL');
    await rm(this.folder.path, { recursive: true, force: true });
  }
}

function nodeOf(name: ServerName, port: number): object {
  const node = { name, addresses: [`127.0.0.1:${port}`], control: `${name}.control` };
  return name === 'tie' ? node : { ...node, memoryUnit: { file: `${name}.memory`, sizeBytes: '64 MiB' } };
}
