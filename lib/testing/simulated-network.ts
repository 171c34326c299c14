/**
 * The network of the simulation: TCP-like streams between named machines, with seeded delays and faults.
 *
 * Invariants:
 * - Without faults a direction of a connection is what TCP gives: every byte, once, in order. Chunks may be split.
 * - The receiver has a window: what is sent beyond it stays in the sender's `bufferedBytes`, which is how a reader that
 *   stands still is felt at the other end.
 * - A blocked direction (partition, clog) loses nothing of an open connection: it holds what is on the way, as TCP's
 *   retransmission does, and goes on when it heals.
 * - A lost segment (`stallRate`) is what TCP makes of it: a connection that stands still for a while.
 * - Drop, duplicate and reorder act on what one `write` queued. TCP never does that, broken middle boxes and memory do;
 *   whoever reads the stream has to notice.
 * - Bytes are taken from the writer's buffers when they leave, not before: a writer that changes them too early is seen.
 */
import { assert, HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';
import {
  type Address,
  type Connection,
  type ConnectionHandler,
  type ConnectOptions,
  formatAddress,
  type Listener,
  type ListenOptions,
  type Network,
} from '../base/network.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimulatedProcess } from './simulated-clock.ts';
import type { SimulatedRandom } from './simulated-random.ts';
import type { Trace } from './trace.ts';

const HIGH_WATER_BYTES = 1024 * 1024;
const LOW_WATER_BYTES = 256 * 1024;
const RECEIVE_WINDOW_BYTES = 256 * 1024;
const FIRST_FREE_PORT = 49_152;
/** Linux gives up a connection attempt after about two minutes (tcp_syn_retries = 6). */
const CONNECT_GIVE_UP_MS = 127_000;
const TRACED_BYTES = 64;
/** How many of the link's longest delays a reordered chunk comes late. */
const LATE_FACTOR = 4;
/** A segment that is lost is sent again after this time, then after twice as long … (RFC 6298; Linux starts at 200 ms). */
const RETRANSMISSION_MS = 200;
const RETRANSMISSIONS_MAX = 3;

/** One direction of the link between two machines. Rates are probabilities per write. */
export interface LinkOptions {
  readonly delayMinMs: number;
  readonly delayMaxMs: number;
  /** Infinity: no limit. */
  readonly bytesPerMs: number;
  readonly dropRate: number;
  readonly duplicateRate: number;
  readonly reorderRate: number;
  readonly resetRate: number;
  /** A segment is lost once or more often: it and what follows it come late, as TCP sends it again. */
  readonly stallRate: number;
  /** How often a chunk arrives in two pieces. */
  readonly splitRate: number;
}

/** A link that is slow, as all are, and loses nothing. */
export const FAULTLESS_LINK: LinkOptions = {
  delayMinMs: 0.05,
  delayMaxMs: 0.2,
  bytesPerMs: Number.POSITIVE_INFINITY,
  dropRate: 0,
  duplicateRate: 0,
  reorderRate: 0,
  resetRate: 0,
  stallRate: 0,
  splitRate: 0.05,
};

/** State of one direction between two machines; shared by all connections that go that way. */
class Link {
  readonly to: string;
  options: LinkOptions;
  blocked = false;
  /** What waits for the direction to be unblocked, in order. */
  held: (() => void)[] = [];
  freeAtUs = 0;
  afterNext: (() => void) | undefined;

  constructor(to: string, options: LinkOptions) {
    this.to = to;
    this.options = options;
  }
}

interface BoundListener {
  readonly process: SimulatedProcess;
  readonly options: ListenOptions;
  readonly accept: (connection: Connection) => void;
  connections: number;
}

/** Delivered to the handler in order; the end of the stream is an item like the others. */
type Arrival =
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  | { readonly kind: 'end'; readonly error: Error | undefined };

/** The network between simulated machines: streams that are delayed, cut, reset, or blocked one way. */
export class SimulatedNetwork {
  readonly scheduler: Scheduler;
  readonly random: SimulatedRandom;
  readonly trace: Trace;
  readonly #links = new Map<string, Link>();
  readonly #listeners = new Map<string, BoundListener>();
  readonly #machinesDown = new Set<string>();
  readonly #ends = new Set<SimulatedConnection>();
  #defaults: LinkOptions = FAULTLESS_LINK;
  #nextPort = FIRST_FREE_PORT;
  #nextConnection = 1;

  constructor(scheduler: Scheduler, random: SimulatedRandom, trace: Trace) {
    this.scheduler = scheduler;
    this.random = random;
    this.trace = trace;
  }

  /** The network as one process sees it. Its machine is the process's name, and that is its host name too. */
  endpoint(process: SimulatedProcess): Network {
    return {
      // What still runs of a process that has just died takes no port.
      listen: async (address, options, accept) =>
        process.alive ? this.#listen(process, address, options, accept) : new Promise(() => {}),
      connect: (address, options) => this.#connect(process, address, options),
    };
  }

  /** Changes all links, those between machines that are yet to come too. */
  setAllLinks(options: Partial<LinkOptions>): void {
    this.#defaults = { ...this.#defaults, ...options };
    for (const link of this.#links.values()) link.options = { ...link.options, ...options };
  }

  /** Changes the direction from one machine to another. */
  setLink(from: string, to: string, options: Partial<LinkOptions>): void {
    const link = this.link(from, to);
    link.options = { ...link.options, ...options };
  }

  /** Nothing goes from one machine to the other until `unblock`. */
  block(from: string, to: string): void {
    this.note(`block ${from} > ${to}`);
    this.link(from, to).blocked = true;
  }

  /** Ends a `block`: what waited arrives, in order. */
  unblock(from: string, to: string): void {
    this.note(`unblock ${from} > ${to}`);
    const link = this.link(from, to);
    link.blocked = false;
    const { held } = link;
    link.held = [];
    for (const deliver of held) deliver();
  }

  /** Blocks both directions. */
  partition(a: string, b: string): void {
    this.block(a, b);
    this.block(b, a);
  }

  /** Unblocks both directions. */
  heal(a: string, b: string): void {
    this.unblock(a, b);
    this.unblock(b, a);
  }

  /** Blocks one direction for a while. */
  clog(from: string, to: string, durationMs: number): void {
    this.block(from, to);
    this.scheduler.schedule(durationMs * 1000, () => this.unblock(from, to));
  }

  /** Calls back once, when the next thing has arrived that goes this way. */
  afterNextArrival(from: string, to: string, callback: () => void): void {
    this.link(from, to).afterNext = callback;
  }

  /** Resets every connection between two machines. */
  reset(a: string, b: string): void {
    this.note(`reset ${a} - ${b}`);
    for (const end of [...this.#ends]) {
      if (end.machine === a && end.peerMachine === b) end.sendReset();
    }
  }

  /** The machine loses power (nothing is sent, nothing answered) or has it again. */
  setMachineDown(machine: string, down: boolean): void {
    if (down) this.#machinesDown.add(machine);
    else this.#machinesDown.delete(machine);
  }

  /** True while the machine has no power. */
  machineIsDown(machine: string): boolean {
    return this.#machinesDown.has(machine);
  }

  /** What the machine does when a process of its own has died: ports are free, connections are reset. @internal */
  processDied(process: SimulatedProcess): void {
    for (const [key, listener] of this.#listeners) if (listener.process === process) this.#listeners.delete(key);
    for (const end of [...this.#ends]) if (end.process === process) end.ownerDied();
  }

  /** @internal */
  link(from: string, to: string): Link {
    const key = `${from} > ${to}`;
    let link = this.#links.get(key);
    if (link === undefined) {
      link = new Link(to, this.#defaults);
      this.#links.set(key, link);
    }
    return link;
  }

  /** @internal */
  note(line: string): void {
    this.trace.add(`${this.scheduler.nowMs} ${line}`);
  }

  /** When what is sent now arrives, in microseconds of the scheduler. @internal */
  arrivalUs(link: Link, byteCount: number): number {
    const { delayMinMs, delayMaxMs, bytesPerMs } = link.options;
    link.freeAtUs = Math.max(this.scheduler.nowUs, link.freeAtUs) + Math.ceil((byteCount / bytesPerMs) * 1000);
    return link.freeAtUs + Math.ceil(this.random.between(delayMinMs, delayMaxMs) * 1000);
  }

  /** Runs `deliver` at the other machine at that time, or once the direction is not blocked. @internal */
  deliverAt(link: Link, atUs: number, deliver: () => void): void {
    const arrive = (): void => {
      if (link.blocked) link.held.push(arrive);
      else if (!this.#machinesDown.has(link.to)) {
        deliver();
        const { afterNext } = link;
        link.afterNext = undefined;
        afterNext?.();
      }
    };
    this.scheduler.schedule(atUs - this.scheduler.nowUs, arrive);
  }

  /** @internal */
  send(from: string, to: string, deliver: () => void): void {
    const link = this.link(from, to);
    this.deliverAt(link, this.arrivalUs(link, 0), deliver);
  }

  /** @internal */
  remember(end: SimulatedConnection): void {
    this.#ends.add(end);
  }

  /** @internal */
  forget(end: SimulatedConnection): void {
    this.#ends.delete(end);
  }

  #key(process: SimulatedProcess, address: Address): string {
    if (address.kind === 'unix') return `${process.name} ${formatAddress(address)}`;
    const everywhere = address.host === '0.0.0.0' || address.host === '::';
    return formatAddress(everywhere ? { ...address, host: process.name } : address);
  }

  #listen(
    process: SimulatedProcess,
    asked: Address,
    options: ListenOptions,
    accept: (connection: Connection) => void,
  ): Listener {
    const address = asked.kind === 'tcp' && asked.port === 0 ? { ...asked, port: this.#nextPort++ } : asked;
    const key = this.#key(process, address);
    if (this.#listeners.has(key))
      throw new HoldfastError('ERR_HOLDFAST_ADDRESS_IN_USE', `${formatAddress(address)} is in use; choose another`);
    const listener: BoundListener = { process, options, accept, connections: 0 };
    this.#listeners.set(key, listener);
    const close = async (): Promise<void> => {
      if (this.#listeners.get(key) === listener) this.#listeners.delete(key);
    };
    return { address, close };
  }

  #connect(process: SimulatedProcess, address: Address, options: ConnectOptions): Promise<Connection> {
    const where = formatAddress(address);
    const key = this.#key(process, address);
    const machine = address.kind === 'unix' ? process.name : address.host;
    return new Promise((resolve, reject) => {
      let over = false;
      const finish = (settle: () => void): void => {
        if (over) return;
        over = true;
        timer.cancel();
        options.signal?.removeEventListener('abort', abort);
        settle();
      };
      const fail = (code: HoldfastErrorCode, message: string, errno?: string): void =>
        process.run(() => finish(() => reject(new HoldfastError(code, message, errno === undefined ? {} : { errno }))));
      const abort = (): void => fail('ERR_HOLDFAST_ABORTED', `connecting to ${where} was cancelled`);
      const limitMs = options.timeoutMs ?? CONNECT_GIVE_UP_MS;
      const timer = this.scheduler.schedule(limitMs * 1000, () =>
        fail('ERR_HOLDFAST_TIMEOUT', `${where} did not answer within ${limitMs} ms`),
      );
      if (options.signal?.aborted) return abort();
      options.signal?.addEventListener('abort', abort, { once: true });

      const answer = (callback: () => void): void => {
        this.send(machine, process.name, callback);
      };
      this.send(process.name, machine, () => {
        const listener = this.#listeners.get(key);
        if (listener === undefined)
          return answer(() => fail('ERR_HOLDFAST_CONNECT_FAILED', `cannot connect to ${where}`, 'ECONNREFUSED'));
        const refusal = this.#refuse(listener, process.name, options);
        if (refusal !== undefined) return answer(() => fail('ERR_HOLDFAST_WRONG_KEY', refusal));
        const near = this.#open(process, listener, where, options.psk?.identity);
        answer(() => {
          if (over || !process.alive) return near.sendReset();
          process.run(() => finish(() => resolve(near)));
        });
      });
    });
  }

  /** What the TLS handshake would find out. */
  #refuse(listener: BoundListener, from: string, options: ConnectOptions): string | undefined {
    const server = listener.options.psk;
    const client = options.psk;
    if (server === undefined && client === undefined) return undefined;
    const known = client && server?.keyOf(client.identity);
    const used = client?.keyOf(client.identity);
    if (known !== undefined && used !== undefined && Buffer.compare(known, used) === 0) return undefined;
    const message = 'the TLS handshake failed; check that both servers have the same key';
    const error = new HoldfastError('ERR_HOLDFAST_WRONG_KEY', message);
    listener.process.run(() => listener.options.onRefused?.(from, client?.identity, error));
    return message;
  }

  #open(
    process: SimulatedProcess,
    listener: BoundListener,
    where: string,
    identity: string | undefined,
  ): SimulatedConnection {
    const id = this.#nextConnection++;
    const near = new SimulatedConnection(this, `${id}n`, process, where, undefined);
    const far = new SimulatedConnection(this, `${id}f`, listener.process, `${process.name}:${id}`, identity);
    near.join(far);
    far.join(near);
    this.note(`connect ${id} ${process.name} > ${where}`);
    const tooMany = listener.connections >= (listener.options.maxConnections ?? Number.POSITIVE_INFINITY);
    if (tooMany) far.destroy();
    else {
      listener.connections++;
      far.whenClosed = () => listener.connections--;
      listener.process.run(() => listener.accept(far));
    }
    return near;
  }
}

class SimulatedConnection implements Connection {
  readonly remote: string;
  readonly transportIdentity: string | undefined;
  readonly process: SimulatedProcess;
  whenClosed: () => void = () => {};
  readonly #network: SimulatedNetwork;
  readonly #label: string;
  #far!: SimulatedConnection;
  #link!: Link;
  #handler: ConnectionHandler | undefined;

  // Sending.
  readonly #queue: { readonly chunks: readonly Uint8Array[]; readonly onGone: (() => void) | undefined }[] = [];
  #bufferedBytes = 0;
  #wantsDrain = false;
  #onTheWayBytes = 0;
  #lastArrivalUs = 0;
  #ending = false;

  // Receiving.
  readonly #arrived: Arrival[] = [];
  #paused = false;
  #delivering = false;
  #closed = false;
  #toldClosed = false;

  constructor(
    network: SimulatedNetwork,
    label: string,
    process: SimulatedProcess,
    remote: string,
    transportIdentity: string | undefined,
  ) {
    this.#network = network;
    this.#label = label;
    this.process = process;
    this.remote = remote;
    this.transportIdentity = transportIdentity;
    network.remember(this);
  }

  join(far: SimulatedConnection): void {
    this.#far = far;
    this.#link = this.#network.link(this.machine, far.machine);
  }

  get machine(): string {
    return this.process.name;
  }

  get peerMachine(): string {
    return this.#far.process.name;
  }

  get bufferedBytes(): number {
    return this.#bufferedBytes;
  }

  start(handler: ConnectionHandler): void {
    assert(this.#handler === undefined, 'a connection has one handler');
    this.#handler = handler;
    // It can have been reset before its owner had it.
    if (this.#closed) this.#tellClosed(resetError(this.remote));
    else this.#network.scheduler.schedule(0, () => this.#deliver());
  }

  write(chunks: readonly Uint8Array[], onGone?: () => void): boolean {
    if (this.#closed || this.#ending || !this.process.alive) {
      this.#later(onGone);
      return false;
    }
    this.#queue.push({ chunks: [...chunks], onGone });
    for (const chunk of chunks) this.#bufferedBytes += chunk.length;
    this.#pump();
    if (this.#bufferedBytes <= HIGH_WATER_BYTES) return true;
    this.#wantsDrain = true;
    return false;
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#network.scheduler.schedule(0, () => this.#deliver());
  }

  end(): void {
    if (this.#closed || this.#ending) return;
    this.#ending = true;
    this.#pump();
  }

  destroy(error?: Error): void {
    if (this.#closed) return;
    this.#sendEnd(undefined);
    this.#closeSoon(error);
  }

  /** Both ends see a reset: this one at once. */
  sendReset(): void {
    if (this.#closed) return;
    this.#sendEnd(resetError(this.#far.remote));
    this.#closeSoon(resetError(this.remote));
  }

  /** The process is gone. Its machine, if that still runs, tells the other end. */
  ownerDied(): void {
    if (this.#closed) return;
    if (!this.#network.machineIsDown(this.machine)) this.#sendEnd(resetError(this.#far.remote));
    this.#markClosed();
  }

  /** Sends what the window has room for. */
  #pump(): void {
    while (this.#onTheWayBytes < RECEIVE_WINDOW_BYTES) {
      const next = this.#queue.shift();
      if (next === undefined) break;
      const bytes = joined(next.chunks);
      this.#later(next.onGone);
      this.#bufferedBytes -= bytes.length;
      this.#onTheWayBytes += bytes.length;
      this.#depart(bytes);
    }
    if (this.#wantsDrain && this.#bufferedBytes <= LOW_WATER_BYTES) {
      this.#wantsDrain = false;
      this.#later(() => this.#closed || this.#handler?.onDrain());
    }
    if (this.#ending && this.#queue.length === 0 && !this.#closed) {
      this.#sendEnd(undefined);
      this.#closeSoon(undefined);
    }
  }

  #depart(bytes: Uint8Array): void {
    const network = this.#network;
    const { random } = network;
    const { dropRate, duplicateRate, reorderRate, resetRate, splitRate } = this.#link.options;
    const data = (piece: Uint8Array): Arrival => ({ kind: 'data', bytes: piece });
    network.trace.event(network.scheduler.nowUs, this.#label, 'sends', bytes.length, digest(bytes));
    if (random.chance(resetRate)) {
      network.note(`${this.#label} reset`);
      // Not from inside the owner's write.
      network.scheduler.schedule(0, () => this.sendReset());
    }
    if (random.chance(dropRate)) {
      network.note(`${this.#label} drop`);
      this.#onTheWayBytes -= bytes.length;
      return;
    }
    const late = random.chance(reorderRate);
    if (late) network.note(`${this.#label} reorder`);
    if (bytes.length > 1 && random.chance(splitRate)) {
      const cut = 1 + random.below(bytes.length - 1);
      this.#transmit(data(bytes.subarray(0, cut)), late);
      this.#transmit(data(bytes.subarray(cut)), late);
    } else this.#transmit(data(bytes), late);
    if (random.chance(duplicateRate)) {
      network.note(`${this.#label} duplicate`);
      this.#onTheWayBytes += bytes.length;
      this.#transmit(data(bytes.slice()), false);
    }
  }

  /** In order, unless it is late: then what is sent after it may overtake it. */
  #transmit(arrival: Arrival, late: boolean): void {
    const network = this.#network;
    const { delayMaxMs, stallRate } = this.#link.options;
    const lengthBytes = arrival.kind === 'data' ? arrival.bytes.length : 0;
    let atUs = Math.max(network.arrivalUs(this.#link, lengthBytes), this.#lastArrivalUs);
    if (network.random.chance(stallRate)) atUs += this.#stallUs();
    if (late) atUs += LATE_FACTOR * delayMaxMs * 1000;
    else this.#lastArrivalUs = atUs;
    network.deliverAt(this.#link, atUs, () => this.#far.#arrive(arrival));
  }

  #stallUs(): number {
    const lost = 1 + this.#network.random.below(RETRANSMISSIONS_MAX);
    this.#network.trace.event(this.#network.scheduler.nowUs, this.#label, 'stalls', lost, 0);
    return RETRANSMISSION_MS * (2 ** lost - 1) * 1000;
  }

  #sendEnd(error: Error | undefined): void {
    this.#transmit({ kind: 'end', error }, false);
  }

  #arrive(arrival: Arrival): void {
    if (this.#closed) {
      // As a kernel answers what comes for a connection that it no longer has.
      if (arrival.kind === 'data') this.#far.#resetByPeer(this.machine);
      return;
    }
    this.#arrived.push(arrival);
    this.#deliver();
  }

  #resetByPeer(machine: string): void {
    if (this.#closed) return;
    const end: Arrival = { kind: 'end', error: resetError(this.remote) };
    this.#network.send(machine, this.machine, () => this.#arrive(end));
  }

  #deliver(): void {
    if (this.#delivering || this.#handler === undefined) return;
    this.process.run(() => {
      this.#delivering = true;
      try {
        while (!this.#paused && !this.#closed && this.process.alive) {
          const arrival = this.#arrived.shift();
          if (arrival === undefined) break;
          if (arrival.kind === 'data') this.#consume(arrival.bytes);
          else this.#finish(arrival.error);
        }
      } finally {
        this.#delivering = false;
      }
    });
  }

  #consume(bytes: Uint8Array): void {
    const { trace, scheduler } = this.#network;
    this.#far.#acknowledged(bytes.length);
    trace.event(scheduler.nowUs, this.#label, 'gets', bytes.length, 0);
    this.#handler!.onData(bytes);
  }

  /** The receiver has taken these bytes. That the sender learns of it at once is a simplification. */
  #acknowledged(byteCount: number): void {
    this.#onTheWayBytes -= byteCount;
    if (this.#closed || this.#queue.length === 0) return;
    this.#network.scheduler.schedule(0, () => this.#closed || this.#pump());
  }

  #finish(error: Error | undefined): void {
    this.#markClosed();
    this.#toldClosed = true;
    this.#network.note(`${this.#label} closed ${error === undefined ? 'cleanly' : 'by a reset'}`);
    this.#handler?.onClose(error);
  }

  #closeSoon(error: Error | undefined): void {
    this.#markClosed();
    this.#tellClosed(error);
  }

  #tellClosed(error: Error | undefined): void {
    this.#network.scheduler.schedule(0, () =>
      this.process.run(() => {
        if (this.#handler === undefined || this.#toldClosed) return;
        this.#toldClosed = true;
        this.#network.note(`${this.#label} closed by its owner`);
        this.#handler.onClose(error);
      }),
    );
  }

  /** Calls the owner back, never inside a call of its own. */
  #later(callback: (() => void) | undefined): void {
    if (callback !== undefined) this.#network.scheduler.schedule(0, () => this.process.run(callback));
  }

  #markClosed(): void {
    this.#closed = true;
    for (const { onGone } of this.#queue.splice(0)) this.#later(onGone);
    this.#bufferedBytes = 0;
    this.#network.forget(this);
    this.whenClosed();
  }
}

function resetError(remote: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_CONNECTION_LOST', `the connection with ${remote} was reset`, {
    errno: 'ECONNRESET',
  });
}

function joined(chunks: readonly Uint8Array[]): Uint8Array {
  let lengthBytes = 0;
  for (const chunk of chunks) lengthBytes += chunk.length;
  const bytes = new Uint8Array(lengthBytes);
  let offset = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, offset);
    offset += chunk.length;
  }
  return bytes;
}

/** Stands for the first bytes in the trace; a frame of the peers carries its body's checksum there. */
function digest(bytes: Uint8Array): number {
  let hash = 0x811c9dc5;
  const end = Math.min(bytes.length, TRACED_BYTES);
  for (let index = 0; index < end; index++) hash = Math.imul(hash ^ bytes[index]!, 0x01000193);
  return hash >>> 0;
}
