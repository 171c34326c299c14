/**
 * The unit's end of the data plane: one-sided commands on TCP connections of their own, served by native threads
 * (native/plane/server.h) straight from and into the mapped memory, with no JavaScript in between. The unit (unit.ts)
 * tells it what opens what to whom, and it tells the unit what it has refused.
 *
 * A connection is made with a ticket: 128 random bits, good once, for a few seconds, asked for over a session between
 * peers (plane-ticket.ts). It then counts as that session's, and ends with it. Commands, keys and the ticket go in the
 * clear, as everything does between nodes on a dedicated link; where the cluster speaks TLS a plane is not opened, and
 * the session itself carries the commands.
 *
 * Invariants:
 * - From the call on, what `revoke`, `install` and `endSession` take away opens nothing; they resolve when nothing runs
 *   under it any more.
 * - Each peer keeps to the rates, if there are any: over all of its connections, and with what `delayMs` was asked for.
 * - What others store in the same memory they store inside of `exclusively`, and tell by `stored`.
 * - The region stays mapped and locked until `close` has resolved. When it has grown, the plane goes on with the old
 *   mapping until `regionGrown`.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import {
  type NativePlane,
  type NativePlaneHandle,
  type NativePlaneState,
  type NativeRevocation,
  native,
} from '../native.ts';
import type { Region } from '../storage/region.ts';
import { codeOfStatus, KEY_BYTES } from './command-format.ts';
import type { Right } from './one-sided.ts';
import type { PeerPaces, Rates } from './pace.ts';
import type { Grant, TranslationTable } from './unit-control.ts';

/** What each connection can make the plane hold. */
export interface PlaneLimits {
  /** Commands that wait for the disk; beyond it nothing more is read from the connection. Default 1024. */
  readonly commandsPerConnection?: number;
  /** Beyond it the oldest is answered without cause. Default 64. */
  readonly watchesPerConnection?: number;
  /** Answers that the client does not take; beyond it nothing more is read from the connection. Default 1 MiB. */
  readonly answerBytesPerConnection?: number;
}

/** Where a plane listens, and its limits. */
export interface PlaneOptions {
  /** A numeric address of this machine. */
  readonly host: string;
  /** The numeric address at which clients reach it, if that is another one. */
  readonly reachedAt?: string;
  /** Default 0: any free one. */
  readonly port?: number;
  readonly clock: Clock;
  readonly random: Random;
  readonly limits?: PlaneLimits;
  /** Of each peer: what is more waits its turn, and nothing is read from the connection meanwhile. Default: no limit. */
  readonly rates?: Rates;
  /** For how long a ticket can be shown. Default 10 s. */
  readonly ticketMs?: number;
  /**
   * For how long a thread looks out for the next command before it sleeps, where that pays: the shortest round trips for
   * processor time. Default 50.
   */
  readonly lingerMicroseconds?: number;
}

/** What a plane tells the unit. Must not throw. */
export interface PlaneEvents {
  /** A command, and why; `session` undefined: somebody who has shown no ticket that is known. */
  refused(session: number | undefined, code: HoldfastErrorCode, region: string | undefined, reason: string): void;
  /** Refusals that came faster than they could be told. */
  refusalsLost(count: number): void;
  /** Nothing can be made durable any more. */
  persistFailed(): void;
  /** In a region that is observed. */
  stored(region: string, address: number, lengthBytes: number): void;
}

/** Which keys: those that fit every field that is given. */
export interface PlaneKeys {
  readonly region: string;
  readonly key?: string;
  readonly session?: number;
  readonly exceptSession?: number;
  readonly right?: Right;
}

const ticketsMax = 1024;
const eventBytes = 56;
const eventsAtOnce = 128;
const EventKind = { disconnected: 2, refused: 3, stranger: 4, revoked: 5, persistFailed: 6, changed: 7 } as const;
const hostile = 10_001;
const strangers: Readonly<Record<number, string>> = {
  [hostile]: 'a connection that is not from a client of a plane',
  10003: 'a ticket that is not known: invented, used, or too old',
  10004: 'too many connections',
  10005: 'a connection that showed no ticket',
};

/**
 * Serves the region's memory to whoever the unit lets in; nothing, before it has.
 *
 * @throws HoldfastError ERR_HOLDFAST_ADDRESS_IN_USE, ERR_HOLDFAST_BAD_ARGUMENT (address, limits), ERR_HOLDFAST_IO.
 */
export function openPlane(region: Region, options: PlaneOptions, events: PlaneEvents): Plane {
  return new Plane(region, options, events);
}

/** Made by `openPlane`. */
export class Plane implements PeerPaces, AsyncDisposable {
  /** Where clients reach it. */
  readonly host: string;
  readonly port: number;
  readonly #native: NativePlane = native().plane;
  readonly #handle: NativePlaneHandle;
  readonly #region: Region;
  readonly #events: PlaneEvents;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #ticketMs: number;
  /** By their names. As many as there are peers. */
  readonly #peerNumbers = new Map<string, number>();
  readonly #tickets = new Map<string, TimerHandle>();
  /** Who waits until nothing runs under the keys of a revocation, by its number. */
  readonly #awaited = new Map<number, () => void>();
  /** The change numbers of regions that were observed. */
  readonly #seen = new Map<string, number>();
  readonly #eventMemory = Buffer.alloc(eventBytes * eventsAtOnce);
  #closing: Promise<void> | undefined;

  /** @internal */
  constructor(region: Region, options: PlaneOptions, events: PlaneEvents) {
    const { host, port = 0, clock, random, limits = {}, ticketMs = 10_000, lingerMicroseconds = 50 } = options;
    const { commandsPerSecond = 0, bytesPerSecond = 0 } = options.rates ?? {};
    const { commandsPerConnection = 1024, watchesPerConnection = 64 } = limits;
    const { answerBytesPerConnection = 1024 * 1024 } = limits;
    const settings = { commandsPerConnection, watchesPerConnection, answerBytesPerConnection, ticketMs };
    for (const [name, value] of Object.entries(settings))
      if (!Number.isSafeInteger(value) || value < 1 || value >= 2 ** 31) throw wrong(`${name} cannot be ${value}`);
    if (!Number.isSafeInteger(lingerMicroseconds) || lingerMicroseconds < 0 || lingerMicroseconds > 1000)
      throw wrong(`a look of ${lingerMicroseconds} microseconds cannot be; it takes 0 to 1000`);
    if (!Number.isInteger(port) || port < 0 || port > 65_535) throw wrong(`there is no port ${port}`);
    this.#events = events;
    this.#clock = clock;
    this.#random = random;
    this.#ticketMs = ticketMs;
    this.#region = region;
    this.host = options.reachedAt ?? host;
    try {
      const started = this.#native.serverStart(
        region.handle,
        host,
        port,
        commandsPerConnection,
        watchesPerConnection,
        answerBytesPerConnection,
        lingerMicroseconds,
        commandsPerSecond,
        bytesPerSecond,
        () => this.#takeEvents(),
      );
      this.#handle = started.handle;
      this.port = started.port;
    } catch (cause) {
      throw listenError(host, port, cause);
    }
  }

  get state(): NativePlaneState {
    this.#checkOpen();
    return this.#native.serverState(this.#handle);
  }

  /** Takes the place of all tables, as `UnitControl.install` does. */
  install(tables: readonly TranslationTable[]): Promise<void> {
    this.#checkOpen();
    const names = Buffer.concat(tables.map(({ region }) => bytesOf(region)));
    const counts = Float64Array.from(tables, ({ extents }) => extents.length);
    const extents = Float64Array.from(
      tables.flatMap((table) => table.extents.flatMap(({ startBytes, lengthBytes }) => [startBytes, lengthBytes])),
    );
    const revocation = this.#native.serverInstall(this.#handle, names, counts, extents);
    if (revocation === undefined)
      throw new HoldfastError('ERR_HOLDFAST_OUT_OF_RANGE', 'these tables lead out of the memory, or cut words in two');
    const present = new Set(tables.map(({ region }) => region));
    for (const region of this.#seen.keys()) if (!present.has(region)) this.#forget(region);
    return this.#ended(revocation);
  }

  /** @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if there is no such region or range, such a key, or too many. */
  grant({ key, region, range, rights }: Grant, session: number): void {
    this.#checkOpen();
    const bits = (rights.includes('read') ? 1 : 0) | (rights.includes('write') ? 2 : 0);
    const { base, lengthBytes } = range;
    if (this.#native.serverGrant(this.#handle, bytesOf(key), bytesOf(region), base, lengthBytes, bits, session)) return;
    throw wrong('a key for a region that is not there, or not that long, or one too many');
  }

  /** Resolves with their number when nothing runs under them any more. */
  async revoke({ region, key, session, exceptSession, right }: PlaneKeys): Promise<number> {
    this.#checkOpen();
    const revocation = this.#native.serverRevoke(
      this.#handle,
      bytesOf(region),
      key === undefined ? undefined : bytesOf(key),
      session,
      exceptSession,
      right === undefined ? 0 : right === 'read' ? 1 : 2,
    );
    await this.#ended(revocation);
    return revocation.keys;
  }

  /**
   * A ticket for the session with this ordinal: 16 bytes, a secret. Its connection takes the place of the session's
   * present one. With rates: `peer` is whose they are.
   *
   * @throws HoldfastError ERR_HOLDFAST_QUEUE_FULL if too many have been given and not been shown.
   */
  admit(session: number, peer = ''): Uint8Array {
    this.#checkOpen();
    const ticket = new Uint8Array(KEY_BYTES);
    this.#random.fill(ticket);
    const number = this.#numberOf(peer);
    if (this.#tickets.size >= ticketsMax || !this.#native.serverAdmit(this.#handle, ticket, session, number))
      throw new HoldfastError('ERR_HOLDFAST_QUEUE_FULL', 'too many tickets are open; wait a moment, then ask again');
    const name = Buffer.from(ticket).toString('hex');
    const timer = this.#clock.setTimer(this.#ticketMs, () => {
      this.#tickets.delete(name);
      this.#native.serverWithdraw(this.#handle, ticket);
    });
    this.#tickets.set(name, timer);
    return ticket;
  }

  /** Of commands that do not come over the plane. `nowMs` is by the plane's own clock. */
  delayMs(peer: string, _nowMs: number, bytes: number): number {
    this.#checkOpen();
    return this.#native.serverDelay(this.#handle, this.#numberOf(peer), bytes);
  }

  #numberOf(peer: string): number {
    const number = this.#peerNumbers.get(peer) ?? this.#peerNumbers.size;
    this.#peerNumbers.set(peer, number);
    return number;
  }

  /** Its keys, tickets and connection. Resolves when nothing runs under the keys any more. */
  endSession(session: number): Promise<void> {
    if (this.#closing !== undefined) return this.#closing;
    return this.#ended(this.#native.serverEndSession(this.#handle, session));
  }

  /** Somebody else has stored there: the plane's own watches are answered. */
  stored(region: string, address: number, lengthBytes: number): void {
    this.#checkOpen();
    this.#native.serverChanged(this.#handle, bytesOf(region), address, lengthBytes);
  }

  /** Begins to tell of stores in the region, also of those since it was last observed. */
  observe(region: string): void {
    this.#checkOpen();
    const change = this.#native.serverObserve(this.#handle, bytesOf(region), true);
    const seen = this.#seen.get(region) ?? 1;
    this.#seen.set(region, change);
    if (change !== 0 && change !== seen) this.#events.stored(region, 0, Number.MAX_SAFE_INTEGER);
  }

  unobserve(region: string): void {
    this.#checkOpen();
    this.#seen.set(region, this.#native.serverObserve(this.#handle, bytesOf(region), false));
  }

  #forget(region: string): void {
    this.#native.serverObserve(this.#handle, bytesOf(region), false);
    this.#seen.delete(region);
  }

  /** No command is executed while the action runs. It must not use the plane. */
  exclusively<T>(action: () => T): T {
    this.#checkOpen();
    let result: { value: T } | undefined;
    this.#native.serverExclusively(this.#handle, () => {
      result = { value: action() };
    });
    return result!.value;
  }

  /** The region that it serves has grown: from now on tables may use all of it. */
  regionGrown(): void {
    this.#checkOpen();
    this.#native.serverReplaceRegion(this.#handle, this.#region.handle);
  }

  /** Ends all connections; resolves when what the disk was asked for is over. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const timer of this.#tickets.values()) timer.cancel();
    await this.#native.serverClose(this.#handle);
    for (const done of this.#awaited.values()) done();
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #ended({ awaits }: NativeRevocation): Promise<void> {
    if (awaits === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#awaited.set(awaits, resolve);
    });
  }

  #takeEvents(): void {
    for (let count = eventsAtOnce; count === eventsAtOnce && this.#closing === undefined; ) {
      const taken = this.#native.serverTakeEvents(this.#handle, this.#eventMemory);
      count = taken.count;
      if (taken.dropped > 0) this.#events.refusalsLost(taken.dropped);
      for (let at = 0; at < count * eventBytes; at += eventBytes)
        this.#onEvent(this.#eventMemory.subarray(at, at + eventBytes));
    }
  }

  #onEvent(event: Buffer): void {
    const detail = event.readUInt32LE(4);
    const number = Number(event.readBigUInt64LE(16));
    const start = Number(event.readBigUInt64LE(24));
    const length = Number(event.readBigUInt64LE(32));
    const region = event.toString('hex', 40, 56);
    switch (event.readUInt32LE(0)) {
      case EventKind.revoked:
        this.#awaited.get(number)?.();
        this.#awaited.delete(number);
        break;
      case EventKind.persistFailed:
        this.#events.persistFailed();
        break;
      case EventKind.changed:
        this.#events.stored(region, start, length);
        break;
      case EventKind.refused:
        this.#events.refused(
          number,
          codeOfStatus(detail),
          region === noRegion ? undefined : region,
          // Without the range, which whoever is refused can choose: the same again is counted, not kept.
          'a command over the plane',
        );
        break;
      case EventKind.disconnected:
        if (detail === hostile)
          this.#events.refused(number, 'ERR_HOLDFAST_BAD_FRAME', undefined, 'a command that cannot be, over the plane');
        break;
      case EventKind.stranger:
        this.#events.refused(
          undefined,
          'ERR_HOLDFAST_REFUSED',
          undefined,
          strangers[detail] ?? 'a connection to the plane that ended before it showed a ticket',
        );
        break;
    }
  }

  #checkOpen(): void {
    if (this.#closing !== undefined)
      throw new HoldfastError('ERR_HOLDFAST_CLOSED', 'the plane is closed; open a new one');
  }
}

const noRegion = '0'.repeat(32);

function bytesOf(name: string): Uint8Array {
  return Buffer.from(name, 'hex');
}

function wrong(message: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
}

const listenCodes: Readonly<Record<string, HoldfastErrorCode>> = {
  EADDRINUSE: 'ERR_HOLDFAST_ADDRESS_IN_USE',
  EADDRNOTAVAIL: 'ERR_HOLDFAST_BAD_ARGUMENT',
  EINVAL: 'ERR_HOLDFAST_BAD_ARGUMENT',
  ERR_INVALID_ARG_TYPE: 'ERR_HOLDFAST_BAD_ARGUMENT',
};

function listenError(host: string, port: number, cause: unknown): HoldfastError {
  const errno = String((cause as { code?: unknown }).code);
  return new HoldfastError(
    listenCodes[errno] ?? 'ERR_HOLDFAST_IO',
    `no plane can listen at ${host} port ${port} (${errno}); give a numeric address of this machine and a free port`,
    { cause, errno },
  );
}
