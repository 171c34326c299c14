/** A memory unit served by a real process over a file in a temporary folder, and processes that use it, for the system tests. */
import { rm, writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { fetchStatus } from '../../lib/cli/status-command.ts';
import { ControlClient } from '../../lib/daemon/control-client.ts';
import type { MemoryStatus } from '../../lib/daemon/status.ts';
import { freePort } from '../free-port.ts';
import { Child, run, TemporaryFolder } from './processes.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const clientScript = fileURLToPath(new URL('memory-client.mjs', import.meta.url));

export class MemoryCluster implements AsyncDisposable {
  readonly folder: TemporaryFolder;
  readonly port: number;
  #unit: Child | undefined;

  private constructor(folder: TemporaryFolder, port: number) {
    this.folder = folder;
    this.port = port;
  }

  /** The unit runs, with a region `log` that all of the clients may read and write. */
  static async running(clients: readonly string[], link: 'tls' | 'dedicated' = 'tls'): Promise<MemoryCluster> {
    const cluster = new MemoryCluster(await TemporaryFolder.make(), await freePort());
    await run(process.execPath, main, 'make-key', cluster.keyFile);
    const memoryUnit = { file: 'unit.memory', sizeBytes: '8 MiB' };
    const unit = { name: 'unit', addresses: [`127.0.0.1:${cluster.port}`], control: 'unit.control', memoryUnit };
    const nodes = [unit, ...clients.map((name) => ({ name }))];
    const times = { heartbeatMs: 250, leaseMs: 1500 };
    await writeFile(
      cluster.config,
      JSON.stringify({ cluster: 'memory', keyFile: 'cluster.key', link, ...times, nodes }),
    );
    await run(process.execPath, main, 'memory', 'create', cluster.config, '--node', 'unit');
    await cluster.startUnit();
    await cluster.ask('memory-create-region', { name: 'log', sizeBytes: 2 * 2 ** 20 });
    for (const peer of clients) await cluster.ask('memory-allow', { name: 'log', peer, rights: ['read', 'write'] });
    return cluster;
  }

  get config(): string {
    return this.folder.file('cluster.jsonc');
  }

  get keyFile(): string {
    return this.folder.file('cluster.key');
  }

  async startUnit(): Promise<void> {
    const words = [main, 'serve', this.config, '--node', 'unit', '--until-stdin-ends', '--json'];
    const unit = new Child(process.execPath, words, { stdin: 'open' });
    this.#unit = unit;
    await unit.ready(() => unit.output.includes('"ready"'));
  }

  /** All that the unit's process has told of, the newest last. */
  events(): { readonly kind: string; readonly [detail: string]: unknown }[] {
    const lines = this.#unit!.output.split('\n').filter((line) => line !== '');
    return lines.map((line) => JSON.parse(line));
  }

  async killUnit(): Promise<void> {
    await this.#unit!.stop('SIGKILL');
  }

  /** As an operator. */
  async ask(method: string, request: object): Promise<unknown> {
    await using control = await this.#control();
    return await control.call(method, request);
  }

  async status(): Promise<MemoryStatus> {
    await using control = await this.#control();
    return (await fetchStatus(control)).memory!;
  }

  #control(): Promise<ControlClient> {
    return ControlClient.connect(systemEnvironment.network, this.folder.file('unit.control'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#unit?.ended === false) await this.#unit.stop('SIGKILL');
    await rm(this.folder.path, { recursive: true, force: true });
  }
}

/** A cluster, as far as those who use it need to know. */
interface Configured {
  /** Path of its configuration. */
  readonly config: string;
}

/** The processes that share a series of checkpoints, and what they have said, taken together. */
export class Series implements AsyncDisposable {
  readonly #cluster: Configured;
  readonly #script: string;
  readonly #members: Member[] = [];
  /** Highest number that was acknowledged. */
  acknowledged = 0;
  /** Highest number that the primary of now has given to its writer, or has taken over. */
  sent = 0;
  /** Most records that a primary has left without an acknowledgement. */
  unacknowledgedMax = 0;
  /** Records in flight that were found, and those that were not. */
  found = 0;
  lost = 0;
  takeOvers = 0;
  /** What must not be. */
  readonly wrong: string[] = [];

  /** `script`: of its processes; given the configuration, a name, and what `spawn` is given. */
  constructor(cluster: Configured, script = clientScript) {
    this.#cluster = cluster;
    this.#script = script;
  }

  spawn(name: string, ...words: string[]): Member {
    const line = [this.#script, this.#cluster.config, name, ...words];
    const member = new Member(name, line, (said) => this.#take(said));
    this.#members.push(member);
    return member;
  }

  /** Waits until so many more were acknowledged; fails if something is wrong. */
  async progress(records: number): Promise<void> {
    const goal = this.acknowledged + records;
    while (this.acknowledged < goal) {
      if (this.wrong.length > 0) throw new Error(this.wrong.join('; '));
      await wait(5);
    }
  }

  #take(line: string): void {
    const number = Number(/\d+$/.exec(line)?.[0]);
    if (line.startsWith('wrong')) this.wrong.push(line);
    else if (line.startsWith('primary')) this.#tookOver(number);
    else if (line.startsWith('s')) this.sent = number;
    else if (line.startsWith('a')) this.acknowledged = Math.max(this.acknowledged, number);
  }

  #tookOver(number: number): void {
    const { acknowledged, sent } = this;
    if (number < acknowledged) this.wrong.push(`${acknowledged} was acknowledged, ${number} found`);
    if (number > sent) this.wrong.push(`${number} found, ${sent} sent`);
    this.takeOvers += 1;
    this.unacknowledgedMax = Math.max(this.unacknowledgedMax, sent - acknowledged);
    this.found += number - acknowledged;
    this.lost += sent - number;
    // What was taken over is settled, as if it had been acknowledged.
    this.acknowledged = number;
    this.sent = number;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const member of this.#members) await member.kill();
  }
}

/** A process of a series. */
export class Member {
  readonly name: string;
  readonly #child: Child;
  readonly #closed: Promise<void>;
  readonly #said = new Set<string>();

  constructor(name: string, words: readonly string[], take: (line: string) => void) {
    this.name = name;
    this.#child = new Child(process.execPath, words, { stdin: 'open' });
    const lines = createInterface({ input: this.#child.process.stdout! });
    lines.on('line', (line) => {
      this.#said.add(line.split(' ', 1)[0]!.replace(/\d+$/, ''));
      take(line);
    });
    this.#closed = new Promise((resolve) => lines.once('close', resolve));
  }

  /** Waits until it has said `following`, `primary`, or `a` for an acknowledgement. */
  async until(word: 'following' | 'primary' | 'a'): Promise<void> {
    await this.#child.ready(() => this.#said.has(word));
  }

  takeOver(): void {
    this.#child.process.stdin!.write('take-over\n');
  }

  /** All that it has said has been heard then. */
  async kill(): Promise<void> {
    if (!this.#child.ended) await this.#child.stop('SIGKILL');
    await this.#closed;
  }
}
