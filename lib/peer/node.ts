/**
 * A node among its peers: listens, dials, and keeps at most one session with each. Thin: handshakes, links and sessions
 * decide (handshake.ts, link.ts, session.ts); here their effects meet sockets, timers and subscribers.
 */
import { createHmac } from 'node:crypto';
import type { TimerHandle } from '../base/clock.ts';
import type { Environment } from '../base/environment.ts';
import { assert, HoldfastError, isHoldfastError } from '../base/errors.ts';
import {
  type Address,
  type Connection,
  formatAddress,
  type Listener,
  type PresharedKeyOptions,
} from '../base/network.ts';
import { ChannelNumber, DATA_MAX_BYTES } from './frame.ts';
import {
  CLUSTER_ID_MAX_LENGTH,
  FEATURE_PATTERN,
  FEATURES_MAX,
  type HandshakeSelf,
  NAME_PATTERN,
  NONCE_BYTES,
  type RemotePeer,
  VERSION_MAX,
  VERSION_MIN,
} from './handshake.ts';
import { Link, type LinkEffect, type LinkEvent, type Problem } from './link.ts';
import type { LinkStatus, Method, PeerEvents, PeerNode, PeerSession, RequestHandler } from './peer.ts';
import { PeerConnection, type PeerConnectionOwner } from './peer-connection.ts';
import type { ChannelLimits } from './session.ts';
import { type RegisteredMethod, SessionDriver } from './session-driver.ts';

const MIB = 1024 * 1024;
const KEY_MIN_BYTES = 16;
/** Strangers and handshakes in progress beside the peers' own connections. */
const SPARE_CONNECTIONS = 16;
const CONNECTIONS_PER_PEER = 4;

/** What each peer can make this node hold. */
export interface PeerLimits {
  /** Requests of each peer that are held here without an answer. Default 8 MiB, and 1 MiB for the control channel. */
  readonly bulkWindowBytes?: number;
  readonly controlWindowBytes?: number;
  /** Answers to our requests, and answers that we prepare, each, for each peer. Default 16 MiB. */
  readonly bulkAnswerBytes?: number;
  /** Handlers that run at once, for each peer and channel. Default 1024. */
  readonly handlersMax?: number;
  /** Requests that wait for credit, for each peer and channel; beyond it ERR_HOLDFAST_QUEUE_FULL. Default 16384. */
  readonly waitingMax?: number;
}

/** Who this node is, where it listens, whom it knows. */
export interface PeerNodeOptions {
  readonly environment: Environment;
  /** This node's name: 1 to 64 of A-Z a-z 0-9 . _ - and unique in the cluster. */
  readonly name: string;
  readonly clusterId: string;
  /** The key that all nodes of the cluster share: 16 random bytes at least. */
  readonly key: Uint8Array;
  /**
   * `tls` (default): TLS 1.3 with the key. `dedicated`: a challenge both ways by the key, then frames that are
   * checksummed but neither encrypted nor signed; only for a cable that nobody else is on.
   */
  readonly link?: 'tls' | 'dedicated';
  /** Without it the node only dials: enough where every peer has addresses. */
  readonly listen?: Address;
  /** A peer without addresses is waited for. */
  readonly peers: readonly { readonly name: string; readonly addresses: readonly Address[] }[];
  readonly features?: readonly string[];
  readonly heartbeatMs?: number;
  /** Granted to each peer; and the silence after which a session is over. */
  readonly leaseMs?: number;
  readonly connectTimeoutMs?: number;
  readonly handshakeTimeoutMs?: number;
  readonly limits?: PeerLimits;
  /** Protocol versions to speak, if fewer than this build knows. */
  readonly versions?: { readonly min: number; readonly max: number };
  /**
   * Told of whoever came and was turned away: a stranger, an unknown name, somebody who claims to be a peer and cannot
   * prove it. `claimed` is the name that it gave, if it came so far.
   */
  readonly onRefused?: (remote: string, error: Error, claimed: string | undefined) => void;
}

/**
 * Makes a node. It neither listens nor dials before `start`.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if a name, the key or a limit cannot be.
 */
export function createPeerNode(options: PeerNodeOptions): PeerNode {
  check(options);
  return new Node(options);
}

function check(options: PeerNodeOptions): void {
  const { name, peers, clusterId, key, heartbeatMs = 500, leaseMs = 3000, features = [] } = options;
  const must = (condition: boolean, message: string): void => {
    if (!condition) throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
  };
  const names = [name, ...peers.map((peer) => peer.name)];
  for (const each of names)
    must(NAME_PATTERN.test(each), `${JSON.stringify(each)} is not a name; use 1 to 64 of A-Z a-z 0-9 . _ -`);
  must(new Set(names).size === names.length, `two nodes have one name; give each its own (${names.join(', ')})`);
  must(
    clusterId.length > 0 && clusterId.length <= CLUSTER_ID_MAX_LENGTH,
    `a cluster id has 1 to ${CLUSTER_ID_MAX_LENGTH} characters, not ${clusterId.length}`,
  );
  must(key.length >= KEY_MIN_BYTES, `the key has ${key.length} bytes; take ${KEY_MIN_BYTES} random ones or more`);
  must(heartbeatMs > 0, `a heartbeat every ${heartbeatMs} ms cannot be`);
  must(leaseMs >= 2 * heartbeatMs, `a lease of ${leaseMs} ms is too short for a heartbeat every ${heartbeatMs} ms`);
  must(
    features.length <= FEATURES_MAX && features.every((feature) => FEATURE_PATTERN.test(feature)),
    `features are up to ${FEATURES_MAX} names of a-z 0-9 -`,
  );
  for (const [limit, value] of Object.entries(options.limits ?? {}))
    must(Number.isSafeInteger(value) && value > 0 && value < 2 ** 31, `${limit} cannot be ${value}`);
}

interface Peer {
  readonly name: string;
  readonly addresses: readonly Address[];
  readonly link: Link;
  session: SessionDriver | undefined;
  /** Where the session's connection leads. */
  path: string | undefined;
  dial: { readonly abort: AbortController; connection: PeerConnection | undefined } | undefined;
  timer: TimerHandle | undefined;
}

class Node implements PeerNode, PeerConnectionOwner {
  readonly name: string;
  readonly incarnation: string;
  readonly #options: PeerNodeOptions;
  readonly #environment: Environment;
  readonly #heartbeatMs: number;
  readonly leaseMs: number;
  readonly #limits: Readonly<Record<ChannelNumber, ChannelLimits>>;
  readonly #self: HandshakeSelf;
  readonly #psk: PresharedKeyOptions | undefined;
  readonly #peers = new Map<string, Peer>();
  readonly #methods = new Map<number, RegisteredMethod>();
  readonly #subscribers: PeerEvents[] = [];
  readonly #connections = new Set<PeerConnection>();
  #listener: Listener | undefined;
  #state: 'new' | 'started' | 'closed' = 'new';
  #closing: Promise<void> | undefined;
  #connectionCount = 0;
  #ordinal = 0;

  constructor(options: PeerNodeOptions) {
    this.name = options.name;
    this.#options = options;
    this.#environment = options.environment;
    this.#heartbeatMs = options.heartbeatMs ?? 500;
    this.leaseMs = options.leaseMs ?? 3000;
    this.incarnation = Buffer.from(this.#randomBytes(16)).toString('hex');
    this.#limits = channelLimits(options.limits ?? {});
    for (const { name, addresses } of options.peers) {
      const link = new Link({ addressCount: addresses.length, heartbeatMs: this.#heartbeatMs });
      this.#peers.set(name, {
        name,
        addresses,
        link,
        session: undefined,
        path: undefined,
        dial: undefined,
        timer: undefined,
      });
    }
    this.#self = {
      name: this.name,
      clusterId: options.clusterId,
      incarnation: this.incarnation,
      features: options.features ?? [],
      minVersion: options.versions?.min ?? VERSION_MIN,
      maxVersion: options.versions?.max ?? VERSION_MAX,
      key: options.key,
      controlWindowBytes: this.#limits[ChannelNumber.control].windowBytes,
      bulkWindowBytes: this.#limits[ChannelNumber.bulk].windowBytes,
      isPeer: (name) => this.#peers.has(name),
    };
    if (options.link !== 'dedicated') {
      const key = createHmac('sha256', options.key).update('holdfast transport').digest();
      // Whoever has the key gets as far as the handshake, which tells an unknown name in clear words.
      this.#psk = { identity: this.name, keyOf: () => key };
    }
  }

  handle<Request, Response>(method: Method<Request, Response>, handler: RequestHandler<Request, Response>): void {
    const wrong = (why: string): never => {
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `method ${method.name} (${method.id}) ${why}`);
    };
    if (this.#state !== 'new') wrong('is registered too late; do it before start()');
    if (this.#methods.has(method.id)) wrong('is registered twice; its number has to be its own');
    if (method.maxRequestDataBytes > DATA_MAX_BYTES || method.maxResponseDataBytes > DATA_MAX_BYTES)
      wrong(`may carry no more than ${DATA_MAX_BYTES} bytes of data`);
    const { replyBudgetBytes } = this.#limits[ChannelNumber[method.channel]];
    if (method.maxResponseDataBytes > replyBudgetBytes)
      wrong(`answers with more than the ${replyBudgetBytes} bytes that answers may hold; raise the limit`);
    this.#methods.set(method.id, {
      method: method as Method<unknown, unknown>,
      handler: handler as RequestHandler<unknown, unknown>,
    });
  }

  subscribe(events: PeerEvents): void {
    this.#subscribers.push(events);
  }

  async start(): Promise<void> {
    if (this.#state !== 'new')
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'a peer node starts once; make a new one');
    this.#state = 'started';
    this.#listener = await this.#listen().catch((error) => {
      if (this.#state === 'started') this.#state = 'new';
      throw error;
    });
    if (this.#closing !== undefined) await this.#listener?.close();
    else for (const peer of this.#peers.values()) this.#step(peer, { kind: 'start' });
  }

  async #listen(): Promise<Listener | undefined> {
    const { listen } = this.#options;
    if (listen === undefined) return undefined;
    const maxConnections = SPARE_CONNECTIONS + CONNECTIONS_PER_PEER * this.#peers.size;
    const onRefused = (remote: string, claimed: string | undefined, error: Error): void =>
      this.#refused(remote, claimed, error);
    const psk = this.#psk === undefined ? {} : { psk: this.#psk };
    const options = { ...psk, maxConnections, onRefused };
    return this.#environment.network.listen(listen, options, (connection) => this.#adopt(connection, undefined));
  }

  session(name: string): PeerSession | undefined {
    return this.#peers.get(name)?.session;
  }

  links(): readonly LinkStatus[] {
    const nowMs = this.#environment.clock.nowMs();
    return [...this.#peers.values()].map(({ name, link, session, path }) => ({
      peer: name,
      state: link.state,
      path,
      roundTripMs: session?.roundTripMs,
      problem: link.problem(nowMs),
    }));
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#state = 'closed';
    for (const peer of this.#peers.values()) {
      peer.timer?.cancel();
      this.#step(peer, { kind: 'stop' });
    }
    for (const connection of this.#connections) if (connection.session === undefined) connection.destroy();
    await this.#listener?.close();
    await Promise.all([...this.#connections].map((connection) => connection.closed));
  }

  #randomBytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#environment.random.fill(bytes);
    return bytes;
  }

  #jitter(): number {
    return this.#environment.random.below(2 ** 32) / 2 ** 32;
  }

  // Links

  #step(peer: Peer, event: LinkEvent): void {
    for (const effect of peer.link.step(event)) this.#perform(peer, effect);
  }

  #perform(peer: Peer, effect: LinkEffect): void {
    switch (effect.kind) {
      case 'dial':
        void this.#dial(peer, peer.addresses[effect.address]!);
        break;
      case 'cancel-dial':
        peer.dial?.abort.abort();
        peer.dial?.connection?.destroy();
        peer.dial = undefined;
        break;
      case 'dial-in':
        peer.timer?.cancel();
        peer.timer = this.#environment.clock.setTimer(effect.delayMs, () => this.#step(peer, { kind: 'dial-due' }));
        break;
      case 'accept':
        this.#connection(effect.connection)?.accept();
        break;
      case 'refuse':
        this.#connection(effect.connection)?.refuse(effect.reason);
        break;
      case 'end-session':
        this.#connection(effect.connection)?.session?.close(effect.reason);
        break;
    }
  }

  #connection(number: number): PeerConnection | undefined {
    for (const connection of this.#connections) if (connection.number === number) return connection;
    return undefined;
  }

  async #dial(peer: Peer, address: Address): Promise<void> {
    const abort = new AbortController();
    const dial = { abort, connection: undefined as PeerConnection | undefined };
    peer.dial = dial;
    const timeoutMs = this.#options.connectTimeoutMs ?? 5000;
    const psk = this.#psk === undefined ? {} : { psk: this.#psk };
    try {
      const connection = await this.#environment.network.connect(address, { ...psk, timeoutMs, signal: abort.signal });
      if (peer.dial === dial) dial.connection = this.#adopt(connection, peer.name);
      else connection.destroy();
    } catch (error) {
      if (peer.dial !== dial) return;
      peer.dial = undefined;
      const problem = problemOf(error, formatAddress(address));
      const nowMs = this.#environment.clock.nowMs();
      const jitter = this.#jitter();
      // What is wrong with the key or the kind of link is told by the transport, before there is a handshake to tell it.
      if (isHoldfastError(error, 'ERR_HOLDFAST_WRONG_KEY') || isHoldfastError(error, 'ERR_HOLDFAST_HANDSHAKE'))
        this.#step(peer, { kind: 'handshake-failed', problem, dialled: true, nowMs, jitter });
      else this.#step(peer, { kind: 'dial-failed', problem, nowMs, jitter });
    }
  }

  // Connections

  #adopt(connection: Connection, dials: string | undefined): PeerConnection | undefined {
    if (this.#state !== 'started') {
      connection.destroy();
      return undefined;
    }
    const adopted = new PeerConnection(
      {
        number: ++this.#connectionCount,
        connection,
        clock: this.#environment.clock,
        self: this.#self,
        nonce: this.#randomBytes(NONCE_BYTES),
        dials,
        handshakeTimeoutMs: this.#options.handshakeTimeoutMs ?? 5000,
      },
      this,
    );
    this.#connections.add(adopted);
    return adopted;
  }

  #refused(remote: string, claimed: string | undefined, error: Error): void {
    const peer = claimed === undefined ? undefined : this.#peers.get(claimed);
    this.#options.onRefused?.(remote, error, claimed);
    if (peer !== undefined) this.#handshakeFailed(peer, problemOf(error, remote), false);
  }

  #handshakeFailed(peer: Peer, problem: Problem | undefined, dialled: boolean): void {
    const nowMs = this.#environment.clock.nowMs();
    this.#step(peer, { kind: 'handshake-failed', problem, dialled, nowMs, jitter: this.#jitter() });
  }

  onChoice(connection: PeerConnection, { name, incarnation }: RemotePeer): void {
    const peer = this.#peer(name);
    this.#step(peer, {
      kind: 'choose',
      connection: connection.number,
      incarnation,
      heardMs: peer.session?.heardMs ?? Number.NEGATIVE_INFINITY,
      nowMs: this.#environment.clock.nowMs(),
    });
  }

  onEstablished(connection: PeerConnection, remote: RemotePeer): SessionDriver {
    const peer = this.#peer(remote.name);
    const { name, incarnation, features } = remote;
    const session = new SessionDriver({
      ordinal: ++this.#ordinal,
      peer: { name, incarnation, features },
      connection: connection.connection,
      writer: connection.writer,
      clock: this.#environment.clock,
      session: {
        peer: name,
        heartbeatMs: this.#heartbeatMs,
        leaseMs: this.leaseMs,
        limits: this.#limits,
        peerWindowBytes: { 0: remote.controlWindowBytes, 1: remote.bulkWindowBytes },
      },
      methods: this.#methods,
      onEnded: (reason, goodbye) => {
        if (peer.session === session) {
          peer.session = undefined;
          peer.path = undefined;
        }
        connection.sessionEnded(goodbye);
        for (const subscriber of this.#subscribers) subscriber.onSessionDown(session, reason);
        this.#step(peer, { kind: 'session-ended', connection: connection.number, jitter: this.#jitter() });
      },
    });
    if (peer.dial?.connection === connection) peer.dial = undefined;
    peer.timer?.cancel();
    this.#step(peer, { kind: 'established', connection: connection.number, incarnation });
    peer.session = session;
    peer.path = connection.connection.remote;
    session.start();
    for (const subscriber of this.#subscribers) subscriber.onSessionUp(session);
    return session;
  }

  onHandshakeFailed(
    connection: PeerConnection,
    error: HoldfastError,
    claimed: string | undefined,
    benign: boolean,
  ): void {
    const { remote } = connection.connection;
    const name = connection.dials ?? claimed;
    if (!benign && connection.dials === undefined) this.#options.onRefused?.(remote, error, claimed);
    const peer = name === undefined ? undefined : this.#peers.get(name);
    if (peer === undefined) return;
    const dialled = peer.dial?.connection === connection;
    if (dialled) peer.dial = undefined;
    this.#handshakeFailed(peer, benign ? undefined : problemOf(error, remote), dialled);
  }

  onClosed(connection: PeerConnection): void {
    this.#connections.delete(connection);
  }

  #peer(name: string): Peer {
    const peer = this.#peers.get(name);
    assert(peer !== undefined, 'the handshake lets only peers through');
    return peer;
  }
}

function channelLimits(limits: PeerLimits): Readonly<Record<ChannelNumber, ChannelLimits>> {
  const { bulkWindowBytes = 8 * MIB, controlWindowBytes = MIB, bulkAnswerBytes = 16 * MIB } = limits;
  const { handlersMax = 1024, waitingMax = 16_384 } = limits;
  const channel = (windowBytes: number, answerBytes: number): ChannelLimits => ({
    windowBytes,
    answerBudgetBytes: answerBytes,
    replyBudgetBytes: answerBytes,
    handlersMax,
    waitingMax,
  });
  return {
    [ChannelNumber.control]: channel(controlWindowBytes, MIB),
    [ChannelNumber.bulk]: channel(bulkWindowBytes, bulkAnswerBytes),
  };
}

function problemOf(error: unknown, where: string): Problem {
  if (isHoldfastError(error)) return { code: error.code, message: error.message };
  return { code: 'ERR_HOLDFAST_INTERNAL', message: `${where}: ${error instanceof Error ? error.message : error}` };
}
