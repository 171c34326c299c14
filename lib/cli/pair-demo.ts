/**
 * `holdfast demo-pair`: a service in two processes that loses no order which it has acknowledged, whichever process is
 * killed, and with the memory unit killed as well. Real processes, real HTTP, real kill -9.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { HoldfastError } from '../base/errors.ts';
import { formatAddress } from '../base/network.ts';
import { makeKey } from '../daemon/config-file.ts';
import { ControlClient } from '../daemon/control-client.ts';
import type { CliContext } from './context.ts';
import { DemoStory } from './demo-story.ts';
import { EXIT } from './exit-code.ts';
import { freeAddresses } from './free-addresses.ts';
import { KeptProcess } from './kept-process.ts';
import { PairOrders } from './pair-demo-orders.ts';
import type { PairServiceSettings } from './pair-demo-service.ts';

const SERVICES = ['a', 'b'] as const;
type ServiceName = (typeof SERVICES)[number];
const REGION = 'orders';
const CLIENTS = 8;
const WORKING_MS = 1000;
const WAIT_MS = 30_000;
const POLL_MS = 25;
const main = fileURLToPath(new URL('./main.js', import.meta.url));
const service = fileURLToPath(new URL('./pair-demo-service.js', import.meta.url));

/** What the demo shows, in figures. */
export interface PairDemoResult {
  readonly ok: boolean;
  readonly acknowledged: number;
  /** Acknowledged, and not there in the end: none, or it has failed. */
  readonly missing: number;
  /** There without having been acknowledged: they were under way. */
  readonly unacknowledged: number;
  /** The longest that an order waited, around each kill, ms. */
  readonly waitedMs: { readonly primary: number; readonly nextPrimary: number; readonly unit: number };
  readonly totalMs: number;
}

export function addPairDemoCommand(program: Command, context: CliContext, exit: (code: number) => void): void {
  program
    .command('demo-pair')
    .description('show a process pair: an HTTP service that loses no acknowledged order when it is killed')
    .option('--json', 'print the result as one JSON object in the last line')
    .action(async (options: { json?: boolean }) => {
      await using demo = new PairDemo(context);
      const result = await demo.run();
      if (options.json) context.stdout.write(`${JSON.stringify(result)}\n`);
      if (!result.ok) exit(EXIT.failed);
    });
}

interface Service {
  readonly process: KeptProcess;
  role: string;
}

class PairDemo implements AsyncDisposable {
  readonly #context: CliContext;
  readonly #folder = mkdtempSync(join(tmpdir(), 'holdfast-demo-pair-'));
  readonly #services = new Map<ServiceName, Service>();
  readonly #orders: PairOrders;
  readonly #story: DemoStory;
  #unit: KeptProcess | undefined;
  #settings: Omit<PairServiceSettings, 'name'> | undefined;
  readonly #onExit = (): void => this.#removeAtExit();

  constructor(context: CliContext) {
    this.#context = context;
    this.#orders = new PairOrders(context.environment.clock);
    this.#story = new DemoStory(context);
    process.on('exit', this.#onExit);
  }

  async run(): Promise<PairDemoResult> {
    this.#story.say(`Holdfast demo of a process pair, in ${this.#folder}`);
    await this.#startUnit();
    for (const name of SERVICES) this.#startService(name);
    const first = await this.#primary();
    this.#story.tell(
      `Two processes of one HTTP service: ${this.#describe('a')} and ${this.#describe('b')}. ${first} is primary.`,
    );
    this.#orders.start(CLIENTS);
    await this.#pause(WORKING_MS);
    const rate = Math.round((this.#orders.acknowledged.size * 1000) / WORKING_MS);
    this.#story.tell(
      `${CLIENTS} clients order, ${rate} orders a second; each is answered when it is safe in the unit.`,
    );
    const primary = await this.#killPrimary();
    const nextPrimary = await this.#killPrimary();
    const unit = await this.#killUnit();
    await this.#orders.stop();
    return this.#judge({ primary, nextPrimary, unit });
  }

  async #judge(waitedMs: PairDemoResult['waitedMs']): Promise<PairDemoResult> {
    const found = new Set(await this.#orders.all());
    const { acknowledged } = this.#orders;
    const missing = [...acknowledged].filter((id) => !found.has(id)).length;
    const unacknowledged = [...found].filter((id) => !acknowledged.has(id)).length;
    const ok = missing === 0;
    this.#story.tell(
      `Asked for all orders: of ${acknowledged.size} acknowledged ones ${missing === 0 ? 'none is' : `${missing} ARE`} missing.`,
    );
    const totalMs = Math.round(this.#story.elapsedMs);
    this.#story.say(
      ok ? `Done in ${(totalMs / 1000).toFixed(1)} s: nothing that was acknowledged is lost.` : 'FAILED.',
    );
    return { ok, acknowledged: acknowledged.size, missing, unacknowledged, waitedMs, totalMs };
  }

  // The unit

  async #startUnit(): Promise<void> {
    const { environment } = this.#context;
    const key = new Uint8Array(32);
    environment.random.fill(key);
    await makeKey(join(this.#folder, 'demo.key'), key);
    const address = (await freeAddresses(environment, 1))[0]!;
    const config = {
      cluster: 'demo',
      keyFile: 'demo.key',
      nodes: [
        {
          name: 'unit',
          addresses: [formatAddress(address)],
          control: 'unit.sock',
          memoryUnit: { file: 'unit.memory', sizeBytes: '64 MiB' },
        },
        ...SERVICES.map((name) => ({ name })),
      ],
    };
    await writeFile(this.#config, `${JSON.stringify(config, null, 2)}\n`);
    await this.#holdfast('memory', 'create', this.#config, '--node', 'unit');
    await this.#serveUnit();
    const control = ['--config', this.#config, '--node', 'unit'];
    await this.#holdfast('memory', 'create-region', REGION, '16M', ...control);
    for (const name of SERVICES) await this.#holdfast('memory', 'allow', REGION, name, 'read,write', ...control);
    const settings = { cluster: 'demo', key: Buffer.from(key).toString('hex'), unit: 'unit', region: REGION };
    this.#settings = { ...settings, unitPort: address.port };
    this.#story.tell(
      `A memory unit (process ${this.#unit!.process.pid}): a mapped file of 64 MiB, and in it the region "${REGION}".`,
    );
  }

  get #config(): string {
    return join(this.#folder, 'demo.jsonc');
  }

  async #serveUnit(): Promise<void> {
    const unit = new KeptProcess([main, 'serve', this.#config, '--node', 'unit', '--until-stdin-ends'], {
      detached: true,
    });
    this.#unit = unit;
    const { network } = this.#context.environment;
    await this.#until('the unit to answer', async () => {
      if (unit.end !== undefined) throw unit.error(`the unit has ended (${unit.end})`);
      const client = await ControlClient.connect(network, join(this.#folder, 'unit.sock')).catch(() => undefined);
      await client?.close();
      return client !== undefined;
    });
  }

  async #holdfast(...args: string[]): Promise<void> {
    const command = new KeptProcess([main, ...args]);
    const how = await command.ended;
    if (how !== 0) throw command.error(`holdfast ${args.slice(0, 2).join(' ')} failed (${how})`);
  }

  async #killUnit(): Promise<number> {
    const unit = this.#unit!;
    this.#orders.takeLongestMs();
    await unit.kill();
    this.#story.tell(`Killed the unit itself (kill -9 ${unit.process.pid}), and start it again.`);
    const before = this.#orders.acknowledged.size;
    await this.#serveUnit();
    await this.#until('orders to go on', async () => this.#orders.acknowledged.size > before + CLIENTS);
    await this.#pause(WORKING_MS / 2);
    const waitedMs = this.#orders.takeLongestMs();
    this.#story.tell(
      `${await this.#primary()} is primary, and orders go on; none waited for longer than ${waitedMs} ms.`,
    );
    return waitedMs;
  }

  // The services

  #startService(name: ServiceName): void {
    const child = new KeptProcess([service], { detached: true });
    const running: Service = { process: child, role: 'starting' };
    createInterface({ input: child.process.stdout! }).on('line', (line) => {
      const [word, value = ''] = line.split(' ');
      if (word === 'role') running.role = value;
      if (word === 'port') this.#orders.ports.set(name, Number(value));
    });
    child.process.stdin!.write(`${JSON.stringify({ name, ...this.#settings })}\n`);
    this.#services.set(name, running);
  }

  #describe(name: ServiceName): string {
    return `${name} (process ${this.#services.get(name)!.process.process.pid})`;
  }

  async #primary(): Promise<ServiceName> {
    let found: ServiceName | undefined;
    await this.#until('one of the two to be primary', async () => {
      for (const [name, { process }] of this.#services)
        if (process.end !== undefined) throw process.error(`${name} has ended (${process.end})`);
      found = SERVICES.find((name) => this.#services.get(name)?.role === 'primary');
      return found !== undefined;
    });
    return found!;
  }

  /** Gives the longest that an order has waited. */
  async #killPrimary(): Promise<number> {
    const killed = await this.#primary();
    const { process: child } = this.#services.get(killed)!;
    this.#orders.takeLongestMs();
    const before = this.#orders.acknowledged.size;
    await child.kill();
    this.#services.delete(killed);
    this.#orders.ports.delete(killed);
    this.#story.tell(`Killed ${killed}, the primary (kill -9 ${child.process.pid}), in the middle of orders.`);
    const next = await this.#primary();
    await this.#pause(WORKING_MS);
    const waitedMs = this.#orders.takeLongestMs();
    const more = this.#orders.acknowledged.size - before;
    this.#story.tell(
      `${next} has taken over: ${more} more orders; the longest wait was ${waitedMs} ms. Started ${killed} again.`,
    );
    this.#startService(killed);
    await this.#until(`${killed} to follow`, async () => this.#services.get(killed)!.role === 'backup');
    await this.#pause(WORKING_MS / 2);
    return waitedMs;
  }

  // Around

  async #until(what: string, done: () => Promise<boolean>): Promise<void> {
    const { clock } = this.#context.environment;
    const deadlineMs = clock.nowMs() + WAIT_MS;
    while (!(await done())) {
      if (clock.nowMs() > deadlineMs)
        throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', `waited ${WAIT_MS / 1000} s in vain for ${what}`);
      await this.#pause(POLL_MS);
    }
  }

  /** Waits a while; throws after Ctrl-C. */
  async #pause(ms: number): Promise<void> {
    this.#context.signal.throwIfAborted();
    await new Promise<void>((resolve) => void this.#context.environment.clock.setTimer(ms, resolve));
    this.#context.signal.throwIfAborted();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#orders.abandon();
    const running = [...this.#services.values()].map((each) => each.process);
    if (this.#unit !== undefined) running.push(this.#unit);
    await Promise.all(running.map((each) => each.kill()));
    this.#removeAtExit();
    process.off('exit', this.#onExit);
  }

  #removeAtExit(): void {
    for (const { process: child } of this.#services.values()) child.process.kill('SIGKILL');
    this.#unit?.process.kill('SIGKILL');
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
