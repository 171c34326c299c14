/**
 * A unit and two clients in the simulation, each on a machine of its own. Writes down what is said on the wire, and what
 * the unit's audit log says of it.
 */
import { isHoldfastError } from '../../lib/base/errors.ts';
import { type Command, decodeCommand, encodeCommand, Operation } from '../../lib/checkpoint/command-format.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { type CommandValue, memoryCommandMethod } from '../../lib/checkpoint/memory-wire.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { createMemoryUnit, type MemoryUnit, type MemoryUnitOptions } from '../../lib/checkpoint/unit.ts';
import type { Grant, TranslationTable } from '../../lib/checkpoint/unit-control.ts';
import { createPeerNode, type PeerNodeOptions } from '../../lib/peer/node.ts';
import type { Message, PeerNode, PeerSession } from '../../lib/peer/peer.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedCluster } from '../../lib/testing/simulated-cluster.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';
import { KEY } from '../peer/helpers.ts';

export const PAGE = 4096;
export const REGION = 'a'.repeat(32);
export const TABLE: TranslationTable = {
  region: REGION,
  extents: [
    { startBytes: 8 * PAGE, lengthBytes: 2 * PAGE },
    { startBytes: 4 * PAGE, lengthBytes: 2 * PAGE },
  ],
};
export const key = (digit: number) => String(digit).repeat(32);

type Client = 'ann' | 'ben';

export class UnitNetwork {
  readonly cluster = new SimulatedCluster({ seed: 3, names: ['unit', 'ann', 'ben', 'eve'] });
  readonly memory: SimulatedMemory;
  readonly lines: string[] = [];
  readonly #nodes = new Map<string, PeerNode>();
  unit!: MemoryUnit;

  constructor() {
    const clock = new SimulatedClock(this.cluster.scheduler, new SimulatedProcess('world'), 0);
    const random = this.cluster.random.fork('memory');
    this.memory = new SimulatedMemory({ random, sizeBytes: 16 * PAGE, clock, persistLatencyMs: [1, 1] });
  }

  async start(options: Partial<MemoryUnitOptions> = {}): Promise<this> {
    const unitNode = this.node('unit');
    this.unit = createMemoryUnit({
      name: 'unit',
      node: unitNode,
      memory: this.memory.open(),
      clock: this.cluster.node('unit').environment.clock,
      recordsBytes: 2 * PAGE,
      onAudit: ({ kind, peer, code, reason }) =>
        this.lines.push(`unit: ${[kind, peer, code, reason].filter(Boolean).join(' ')}`),
      ...options,
    });
    await this.unit.install([TABLE]);
    await this.until(Promise.all([unitNode, this.node('ann'), this.node('ben')].map((node) => node.start())));
    await this.cluster.scheduler.runFor(1000);
    return this;
  }

  /** A node of that name, not started; with a wrong key, say. */
  node(name: string, options: Partial<PeerNodeOptions> = {}): PeerNode {
    const address = (host: string) => ({ kind: 'tcp', host, port: 7000 }) as const;
    const clients = ['ann', 'ben'].map((client) => ({ name: client, addresses: [] }));
    const node = createPeerNode({
      environment: this.cluster.node(name).environment,
      name,
      clusterId: 'test',
      key: KEY,
      listen: address(name),
      peers: name === 'unit' ? clients : [{ name: 'unit', addresses: [address('unit')] }],
      ...options,
    });
    this.#nodes.set(name, node);
    return node;
  }

  until<T>(promise: Promise<T>): Promise<T> {
    return this.cluster.scheduler.runUntil(promise, 60_000);
  }

  pass(ms: number): Promise<void> {
    return this.cluster.scheduler.runFor(ms);
  }

  session(client: Client): PeerSession {
    return this.#nodes.get(client)!.session('unit')!;
  }

  async grant(client: Client, digit: number, fields: Partial<Grant> = {}): Promise<Grant> {
    const range = { base: 0, lengthBytes: 4 * PAGE };
    const grant: Grant = {
      key: key(digit),
      region: REGION,
      range,
      rights: ['read', 'write'],
      peer: client,
      epoch: 1,
      ...fields,
    };
    await this.unit.grant(grant);
    return grant;
  }

  async access(client: Client, digit: number, fields: Partial<Grant> = {}): Promise<RegionAccess> {
    return openAccess(this.session(client), await this.grant(client, digit, fields));
  }

  /** Header and data as they are, whatever they are. */
  raw(
    client: Client,
    header: Uint8Array,
    data: readonly Uint8Array[] = [],
    maxResponseDataBytes = PAGE,
  ): Promise<Message<CommandValue>> {
    return this.session(client).request(memoryCommandMethod, header, data, { maxResponseDataBytes });
  }

  /** The code of what it fails with, or 'done'. */
  outcome(promise: Promise<unknown>): Promise<string> {
    return this.until(
      promise.then(
        () => 'done',
        (error) => error.code,
      ),
    );
  }

  /** Sends a command, and writes down all that is said. */
  async told(client: Client, command: Command, data = ''): Promise<void> {
    const header = encodeCommand(command);
    this.lines.push(
      `${client} > ${inWords(command)}`,
      ...hex(header),
      ...(data === '' ? [] : [`      data "${data}"`]),
    );
    try {
      const answer = await this.until(this.raw(client, header, data === '' ? [] : [Buffer.from(data)]));
      const value = answer.control === undefined ? '' : ` value ${answer.control}`;
      const read =
        answer.data.length === 0 ? '' : ` data "${Buffer.from(answer.data).toString('latin1').replaceAll('\0', '.')}"`;
      this.lines.push(`${client} < done${value}${read}`);
    } catch (error) {
      if (!isHoldfastError(error)) throw error;
      this.lines.push(`${client} < ${error.message}`);
      this.lines.push(`      ${error.code}`);
    }
  }

  get transcript(): string {
    return `${this.lines.join('\n')}\n`;
  }
}

/** What a command says when nothing else is said. */
export function command(operation: keyof typeof Operation, digit: number, fields: Partial<Command> = {}): Command {
  return {
    operation: Operation[operation],
    persist: false,
    guard: false,
    tag: 0,
    key: key(digit),
    address: 0,
    length: 8,
    operandA: 0n,
    operandB: 0n,
    ...fields,
  };
}

function inWords(command: Command): string {
  const name = Object.entries(Operation).find(([, number]) => number === command.operation)![0];
  const options = [command.guard ? 'guarded' : '', command.persist ? 'durably' : ''].filter(Boolean).join(' ');
  return `${name} ${command.length} bytes at ${command.address} ${options}`.trim();
}

function hex(header: Uint8Array): string[] {
  decodeCommand(header);
  return [0, 16, 32, 48].map((at) => {
    const row = Buffer.from(header.subarray(at, at + 16)).toString('hex');
    return `      ${String(at).padStart(2)}  ${row.match(/.{8}/g)!.join(' ')}`;
  });
}
