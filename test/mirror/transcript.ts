/**
 * Runs two members in the simulation and writes down, in order, what a reviewer has to judge: which record is durable
 * when, who asks whom for what, and when a gate opens. Views are named by their numbers.
 */

import type { Environment } from '../../lib/base/environment.ts';
import { HoldfastError } from '../../lib/base/errors.ts';
import { VoterFile } from '../../lib/coherency/voter-file.ts';
import type { MemberStore } from '../../lib/mirror/member-store.ts';
import { Metadata } from '../../lib/mirror/metadata.ts';
import type { PolicingMessage } from '../../lib/mirror/policing-wire.ts';
import type { OnLostPeer } from '../../lib/mirror/standing.ts';
import { decodeView, type MemberRecord, type View } from '../../lib/mirror/view.ts';
import { MirroredVolume } from '../../lib/mirror/volume.ts';
import type { Arbiter, VoterStore } from '../../lib/peer/arbiter.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { Method, PeerNode, RequestHandler } from '../../lib/peer/peer.ts';
import { RegisterArbiter } from '../../lib/peer/register-driver.ts';
import { RegisterService } from '../../lib/peer/register-service.ts';
import type { FaultPlan } from '../../lib/storage/faulty-device.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedCluster } from '../../lib/testing/simulated-cluster.ts';
import { SimulatedDisk } from '../../lib/testing/simulated-disk.ts';

const KIB = 1024;
const VOLUME_BYTES = 256 * KIB;
const GRAIN_BYTES = 64 * KIB;
const VOLUME_ID = 'ab'.repeat(16);
const NAMES = ['a', 'b'] as const;
/** With the tie-breaker, which is there if a majority decides. */
const VOTERS = ['a', 'b', 'c'] as const;
const UNTOLD = new Set(['forward-flush', 'ready', 'register-prepare', 'register-accept']);

type Name = (typeof NAMES)[number];
type Voter = (typeof VOTERS)[number];

export class Pair {
  readonly lines: string[] = [];
  readonly cluster = new SimulatedCluster({ seed: 1, names: VOTERS });
  readonly #disks = new Map<Voter, SimulatedDisk>();
  readonly #volumes = new Map<Name, MirroredVolume>();
  readonly #nodes = new Map<Voter, PeerNode>();
  /** What was not flushed when the member was about to say that it stops cleanly. */
  readonly unflushedAtClean: number[] = [];
  /** Called before the voters are asked for another view; may throw in their place. */
  beforeSwap: (name: Name, next: View) => void = () => {};
  readonly #onLostPeer: OnLostPeer;
  readonly #blank: boolean;

  constructor(onLostPeer: OnLostPeer, options: { blank?: boolean } = {}) {
    this.#onLostPeer = onLostPeer;
    this.#blank = options.blank ?? false;
    const clock = new SimulatedClock(this.cluster.scheduler, new SimulatedProcess('world'), 0);
    for (const name of VOTERS) {
      const random = this.cluster.random.fork(name);
      this.#disks.set(name, new SimulatedDisk({ clock, random, name, sizeBytes: VOLUME_BYTES + 128 * KIB }));
    }
  }

  say(line: string): void {
    this.lines.push(line);
  }

  volume(name: Name): MirroredVolume {
    return this.#volumes.get(name)!;
  }

  async format(): Promise<void> {
    for (const [member, name] of ([...NAMES] as const).entries()) {
      const device = this.#disks.get(name)!.open();
      const grains = { grainBytes: GRAIN_BYTES, activityLogExtentBytes: GRAIN_BYTES };
      const shape = { volumeId: VOLUME_ID, sizeBytes: VOLUME_BYTES, ...grains, memberName: name };
      const create = Metadata.create(device, { ...shape, member: member === 0 ? 0 : 1, deviceIdentity: name });
      await this.until(create.then(() => device.close()));
    }
    if (this.#onLostPeer.kind === 'majority') await this.#formatTieBreaker();
  }

  async #formatTieBreaker(): Promise<void> {
    const device = this.#disks.get('c')!.open();
    await this.until(VoterFile.create(device, { registerId: VOLUME_ID, nodeName: 'c' }).then(() => device.close()));
  }

  /** The third voter. */
  async startTieBreaker(): Promise<void> {
    this.say('-- c, the tie-breaker, starts');
    const { process, environment } = this.#running('c');
    const device = this.#disks.get('c')!.open({ run: (answer) => process.run(answer) });
    const store = await this.until(VoterFile.open(device, { registerId: VOLUME_ID, nodeName: 'c' }));
    const node = this.#newNode('c', environment);
    RegisterService.of(node).add({ registerId: VOLUME_ID, voters: VOTERS, self: 2, store });
    this.#nodes.set('c', node);
    await this.until(node.start());
  }

  #running(name: Voter): { process: SimulatedProcess; environment: Environment } {
    const machine = this.cluster.node(name);
    if (!machine.process.alive) machine.restart();
    return machine;
  }

  #newNode(name: Voter, environment: Environment): PeerNode {
    const others = (this.#onLostPeer.kind === 'majority' ? VOTERS : NAMES).filter((other) => other !== name);
    return createPeerNode({
      environment,
      name,
      clusterId: 'transcript',
      key: new Uint8Array(32),
      link: 'dedicated',
      listen: { kind: 'tcp', host: name, port: 7000 },
      peers: others.map((other) => ({ name: other, addresses: [{ kind: 'tcp', host: other, port: 7000 }] })),
    });
  }

  /** Asks the three voters, and tells what came of it. */
  #arbiter(name: Name, node: PeerNode, environment: Environment, store: VoterStore): Arbiter {
    const self = VOTERS.indexOf(name);
    const arbiter = new RegisterArbiter({ environment, node, registerId: VOLUME_ID, voters: VOTERS, self, store });
    return {
      compareAndSwap: async (expected, next, signal) => {
        const wanted =
          expected === next ? `is it still ${decided(next)}?` : `${decided(next)} after ${decided(expected)}?`;
        try {
          if (next !== expected) this.beforeSwap(name, decodeView(next));
          const result = await arbiter.compareAndSwap(expected, next, signal);
          this.say(`${name}    voters: ${wanted} ${result.swapped ? 'yes' : `no: ${decided(result.current)}`}`);
          return result;
        } catch (error) {
          this.say(`${name}    voters: ${wanted} ${error instanceof HoldfastError ? error.code : error}`);
          throw error;
        }
      },
    };
  }

  async start(name: Name): Promise<void> {
    this.say(`-- ${name} starts`);
    const { process, environment } = this.#running(name);
    const device = this.#disks.get(name)!.open({ run: (answer) => process.run(answer) });
    const store = this.#telling(name, await this.until(Metadata.open(device)));
    const node = this.#newNode(name, environment);
    this.#overhear(name, node);
    const volume = await this.until(
      MirroredVolume.open({
        environment,
        node,
        name: 'vol',
        volumeId: VOLUME_ID,
        memberNames: NAMES,
        onLostPeer: this.#onLostPeer,
        ...(this.#onLostPeer.kind === 'majority' && { arbiter: this.#arbiter(name, node, environment, store) }),
        device,
        store,
        isBlank: async () => this.#blank,
        onEvent: (event) => {
          if (event.kind === 'gate')
            this.say(`${name}    gate ${event.reason ? `closed: ${event.reason}` : event.mode}`);
          if (event.kind === 'met') this.say(`${name}    verdict: ${event.rule}`);
          if (event.kind === 'refused') this.say(`${name}    refused: ${event.rule} (${event.code})`);
        },
      }),
    );
    this.#volumes.set(name, volume);
    this.#nodes.set(name, node);
    await this.until(node.start());
  }

  kill(name: Voter): void {
    this.say(`-- ${name} is killed`);
    this.cluster.node(name).kill();
    this.#disks.get(name)!.kill();
  }

  faults(name: Name): FaultPlan {
    return this.#disks.get(name)!.faults;
  }

  /** True if the disk has lost something. */
  powerCut(name: Name): boolean {
    this.say(`-- the power of ${name} is cut`);
    this.cluster.node(name).kill();
    return this.#disks.get(name)!.crash();
  }

  pause(name: Name): void {
    this.say(`-- ${name} stands still`);
    this.cluster.node(name).pause();
  }

  resume(name: Name): void {
    this.say(`-- ${name} goes on`);
    this.cluster.node(name).resume();
  }

  cut(): void {
    this.say('-- the link is cut');
    this.#bothWays((from, to) => this.cluster.network.block(from, to));
  }

  mend(): void {
    this.say('-- the link is mended');
    this.#bothWays((from, to) => this.cluster.network.unblock(from, to));
  }

  #bothWays(action: (from: Name, to: Name) => void): void {
    action('a', 'b');
    action('b', 'a');
  }

  async stop(name: Name): Promise<void> {
    this.say(`-- ${name} is told to stop`);
    await this.until(this.volume(name).close());
    await this.until(this.#nodes.get(name)!.close());
    this.cluster.node(name).kill();
  }

  until<Result>(promise: Promise<Result>): Promise<Result> {
    return this.cluster.scheduler.runUntil(promise, 60_000);
  }

  pass(milliseconds: number): Promise<void> {
    return this.cluster.scheduler.runFor(milliseconds);
  }

  async write(name: Name, offset: number, byte: number): Promise<void> {
    await this.until(this.beginWrite(name, offset, byte));
  }

  async beginWrite(name: Name, offset: number, byte: number): Promise<void> {
    this.say(`-- a client of ${name} writes 4 KiB at ${offset / KIB} KiB`);
    await this.volume(name).write(offset, new Uint8Array(4 * KIB).fill(byte));
    this.say(`   acknowledged`);
  }

  async read(name: Name, offset: number): Promise<void> {
    this.say(`-- a client of ${name} reads 4 KiB at ${offset / KIB} KiB`);
    const bytes = new Uint8Array(4 * KIB);
    await this.until(this.volume(name).read(offset, bytes));
    this.say(`   it reads ${bytes.every((byte) => byte === bytes[0]) ? `${bytes[0]}` : 'a mixture'}`);
  }

  peek(name: Name, offset: number): number {
    const byte = new Uint8Array(1);
    this.#disks.get(name)!.peek(offset, byte);
    return byte[0]!;
  }

  get transcript(): string {
    return `${this.lines.join('\n')}\n`;
  }

  #telling(name: Name, store: Metadata): MemberStore {
    const told = async (record: MemberRecord, write: Promise<void>) => {
      await write;
      this.say(`${name}    durable: ${inWords(record)}`);
    };
    return {
      member: store.member,
      sizeBytes: store.sizeBytes,
      grainBytes: store.grainBytes,
      record: store.record,
      savedMarks: store.savedMarks,
      log: store.log,
      voter: store.voter,
      writeVoter: (voter) => store.writeVoter(voter),
      onVoterFailure: (listener) => store.onVoterFailure(listener),
      repair: () => store.repair(),
      write: (record) => told(record, store.write(record)),
      writeClean: (record, marks) => {
        this.unflushedAtClean.push(this.#disks.get(name)!.unflushedBytes);
        return told(record, store.writeClean(record, marks));
      },
    };
  }

  /** Writes down each request as it arrives, and its answer. */
  #overhear(name: Name, node: PeerNode): void {
    const { handle } = node;
    node.handle = <Request, Response>(method: Method<Request, Response>, handler: RequestHandler<Request, Response>) =>
      handle.call(node, method, async (message, session) => {
        if (UNTOLD.has(method.name)) return handler(message as never, session) as never;
        this.say(`${session.peer.name} > ${name} ${method.name}${details(message.control)}`);
        try {
          const reply = await handler(message as never, session);
          this.say(`${session.peer.name} < ${name} ${method.name} done`);
          return reply as never;
        } catch (error) {
          this.say(`${session.peer.name} < ${name} ${method.name} failed`);
          throw error;
        }
      });
  }
}

function inWords(record: MemberRecord): string {
  const { known, dataState, clean } = record;
  return `${viewInWords(known)}, ${dataState}${clean ? ', clean' : ''}`;
}

/** As a voter holds it. */
function decided(text: string): string {
  return text === '' ? 'nothing' : viewInWords(decodeView(text));
}

function viewInWords({ number, inSync, holder }: View): string {
  const members = NAMES.filter((_, index) => inSync & (1 << index)).map((name) => name.toUpperCase());
  return `view ${number} {${members.join('')}}, access ${NAMES[holder].toUpperCase()}`;
}

function details(control: unknown): string {
  const { view, scope, record, offset, length, fua, messages } = control as {
    view?: View | number;
    messages?: readonly PolicingMessage[];
    scope?: string;
    record?: MemberRecord;
    offset?: number;
    length?: number;
    fua?: boolean;
  };
  const words = [
    record && inWords(record),
    typeof view === 'object' && viewInWords(view),
    typeof view === 'number' && `in view ${view}`,
    ...(messages ?? []).map(({ kind, mode, extent }) => `${kind} ${mode} ${extent}`),
    scope && `scope ${scope}`,
    offset !== undefined && `at ${offset / KIB} KiB`,
    length !== undefined && `${length / KIB} KiB`,
    fua && 'fua',
  ];
  const said = words.filter(Boolean).join(', ');
  return said === '' ? '' : `: ${said}`;
}
