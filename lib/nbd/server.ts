/**
 * The NBD server: exports block devices by name to NBD clients (qemu, libnbd, the kernel, fio).
 *
 * Source: the NBD protocol document (NetworkBlockDevice/nbd, doc/proto.md). Served: fixed newstyle negotiation with
 * GO, INFO, LIST, EXPORT_NAME, structured replies and the `base:allocation` context; read, write, flush, FUA, trim,
 * write zeroes, cache, block status.
 *
 * Invariants:
 * - What all clients together can make the server hold is bounded (NbdServerLimits).
 * - Only a Unix socket or a loopback address is listened on, unless remote clients are allowed by name: NBD without
 *   TLS authenticates nobody.
 */
import type { Environment } from '../base/environment.ts';
import { HoldfastError } from '../base/errors.ts';
import { type Address, type Connection, formatAddress, type Listener } from '../base/network.ts';
import { factsOf, type MutableStats, type NbdExport, type NbdExportStats, newStats } from './export.ts';
import { type ExportDirectory, ServerNegotiation } from './negotiation.ts';
import { PayloadPool } from './payload-pool.ts';
import { type ConnectionHost, ServerConnection } from './server-connection.ts';
import { DEFAULT_MAX_PAYLOAD_BYTES, encodeText, MAX_STRING_BYTES } from './wire.ts';

/** What all clients together can make a server hold. */
export interface NbdServerLimits {
  /** Connections at a time; further ones are closed at once. */
  readonly maxConnections: number;
  /** From the connection to the choice of an export. */
  readonly handshakeTimeoutMs: number;
  /** A client that neither takes its replies nor finishes what it began to send is dropped after this long. */
  readonly stalledMs: number;
  /** The longest read or write; advertised to clients. A power of two from 1 MiB to 1 GiB. */
  readonly maxPayloadBytes: number;
  /** Requests in flight on one connection; the next ones wait in the client's socket. */
  readonly maxRequestsPerConnection: number;
  /**
   * Requests in flight on all connections. A device that has to wait (a volume without its peer) lets only so many wait,
   * and fails the others: a volume 4096, which is enough for two servers.
   */
  readonly maxRequests: number;
  /** Bytes of payload in flight on one connection: at least twice maxPayloadBytes. */
  readonly maxBytesPerConnection: number;
  /** Bytes of payload in flight on all connections. At least as much as one connection may have. */
  readonly maxBytes: number;
  /** How long `close` and `removeExport` wait for requests in flight before they drop their connections. */
  readonly closeTimeoutMs: number;
}

/** What holds for limits that are not given. */
export const defaultNbdServerLimits: NbdServerLimits = {
  maxConnections: 128,
  handshakeTimeoutMs: 10_000,
  stalledMs: 60_000,
  maxPayloadBytes: DEFAULT_MAX_PAYLOAD_BYTES,
  maxRequestsPerConnection: 256,
  maxRequests: 2048,
  maxBytesPerConnection: 2 * DEFAULT_MAX_PAYLOAD_BYTES,
  maxBytes: 8 * DEFAULT_MAX_PAYLOAD_BYTES,
  closeTimeoutMs: 10_000,
};

/** Where a server listens, and what it exports. */
export interface NbdServerOptions {
  readonly environment: Environment;
  readonly address: Address;
  readonly exports?: ReadonlyMap<string, NbdExport>;
  /** The export for clients that name none. */
  readonly defaultExport?: string;
  /** Needed for a TCP address that is not loopback: anyone who reaches it can read and write the exports. */
  readonly allowRemoteClients?: boolean;
  /** Mode of a Unix socket's file, default 0o600. */
  readonly socketMode?: number;
  readonly limits?: Partial<NbdServerLimits>;
  /** Told of each client that was dropped for what it did, with the reason in words. */
  readonly onDropped?: (remote: string, reason: string) => void;
}

/** Counters of a server; `dropped` and `accepted` since it was made. */
export interface NbdServerStats {
  readonly connections: number;
  /** Connections accepted since the start. */
  readonly accepted: number;
  /** Connections that were ended for what the client did, or did not do. */
  readonly dropped: number;
  /** Bytes of payload in flight. */
  readonly payloadBytes: number;
  readonly exports: ReadonlyMap<string, NbdExportStats>;
}

interface Exported {
  readonly nbdExport: NbdExport;
  readonly stats: MutableStats;
}

const MAX_EXPORTS = 4096;

/**
 * Exports block devices by name to NBD clients (qemu, libnbd, the Linux kernel, fio). Without TLS: so it listens on a
 * Unix socket or a loopback address, unless remote clients are allowed by name.
 *
 * ```ts
 * const server = new NbdServer({ environment: systemEnvironment, address: { kind: 'unix', path: '/run/disk.sock' } });
 * server.addExport('disk', { device });
 * await server.listen();
 * ```
 */
export class NbdServer implements AsyncDisposable {
  readonly #environment: Environment;
  readonly #address: Address;
  readonly #limits: NbdServerLimits;
  readonly #options: NbdServerOptions;
  readonly #exports = new Map<string, Exported>();
  readonly #connections = new Map<ServerConnection, string>();
  readonly #host: ConnectionHost;
  readonly #pool: PayloadPool;
  #listening: Promise<Listener> | undefined;
  #accepted = 0;
  #dropped = 0;
  /** Called whenever a connection is gone. */
  readonly #waiting = new Set<() => void>();
  #closing: Promise<void> | undefined;

  /** Throws ERR_HOLDFAST_BAD_ARGUMENT if an option makes no sense. */
  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#environment = options.environment;
    this.#address = options.address;
    this.#limits = checkedLimits({ ...defaultNbdServerLimits, ...options.limits });
    checkAddress(options.address, options.allowRemoteClients ?? false);
    for (const [name, nbdExport] of options.exports ?? []) this.addExport(name, nbdExport);
    this.#pool = new PayloadPool(this.#limits.maxBytes, this.#limits.maxRequests);
    this.#host = {
      clock: this.#environment.clock,
      limits: {
        handshakeTimeoutMs: this.#limits.handshakeTimeoutMs,
        stalledMs: this.#limits.stalledMs,
        maxRequests: this.#limits.maxRequestsPerConnection,
        maxBytes: this.#limits.maxBytesPerConnection,
      },
      pool: this.#pool,
      find: (name) => this.#exports.get(name),
      onClosed: (connection, dropped) => this.#onClosed(connection, dropped),
    };
  }

  /**
   * Starts to accept clients. Resolves with the address really bound (port 0 resolved). Throws
   * ERR_HOLDFAST_ADDRESS_IN_USE if something else listens there, ERR_HOLDFAST_CLOSED after `close`.
   */
  async listen(): Promise<Address> {
    this.#assertOpen();
    if (this.#listening !== undefined)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'the NBD server listens already; call listen() once');
    const { socketMode } = this.#options;
    const options = {
      maxConnections: this.#limits.maxConnections,
      ...(socketMode === undefined ? {} : { socketMode }),
    };
    this.#listening = this.#environment.network.listen(this.#address, options, (connection) =>
      this.#accept(connection),
    );
    try {
      const { address } = await this.#listening;
      this.#assertOpen();
      return address;
    } catch (error) {
      this.#listening = undefined;
      throw error;
    }
  }

  /** Exports a device. The server does not close it. Throws ERR_HOLDFAST_BAD_ARGUMENT if the name is taken or no name. */
  addExport(name: string, nbdExport: NbdExport): void {
    this.#assertOpen();
    const bytes = encodeText(name).length;
    if (bytes > MAX_STRING_BYTES || name.includes('\0'))
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `the export name has ${bytes} bytes or a NUL; use at most ${MAX_STRING_BYTES} bytes without NUL`,
      );
    if (encodeText(nbdExport.description ?? '').length > MAX_STRING_BYTES)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `the description of the export ${name} is too long; use at most ${MAX_STRING_BYTES} bytes`,
      );
    if (this.#exports.has(name))
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `there is an export ${name} already; choose another name`);
    if (this.#exports.size >= MAX_EXPORTS)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a server has at most ${MAX_EXPORTS} exports`);
    this.#exports.set(name, { nbdExport, stats: newStats() });
  }

  /** Ends the export: new clients do not find it; clients that use it are answered what is in flight, then closed. */
  async removeExport(name: string): Promise<void> {
    this.#exports.delete(name);
    await this.#endConnections((connection) => connection.exportName === name);
  }

  /** The counters as they stand. */
  statistics(): NbdServerStats {
    return {
      connections: this.#connections.size,
      accepted: this.#accepted,
      dropped: this.#dropped,
      payloadBytes: this.#pool.usedBytes,
      exports: new Map([...this.#exports].map(([name, { stats }]) => [name, { ...stats }])),
    };
  }

  /**
   * Stops accepting, answers what is in flight (for at most `closeTimeoutMs`), closes all connections. The exported
   * devices stay open. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      const listener = await this.#listening?.catch(() => undefined);
      await listener?.close();
      await this.#endConnections(() => true);
      this.#pool.close();
    })();
    return this.#closing;
  }

  /** Same as `close`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #accept(connection: Connection): void {
    if (this.#closing !== undefined || this.#connections.size >= this.#limits.maxConnections) {
      connection.destroy();
      return;
    }
    this.#accepted += 1;
    const serverConnection = new ServerConnection(this.#host, connection, new ServerNegotiation(this.#directory));
    this.#connections.set(serverConnection, connection.remote);
    serverConnection.start();
  }

  readonly #directory: ExportDirectory = {
    names: () => this.#exports.keys(),
    find: (asked) => {
      const name = asked === '' && !this.#exports.has('') ? (this.#options.defaultExport ?? '') : asked;
      const exported = this.#exports.get(name);
      return exported === undefined ? undefined : factsOf(name, exported.nbdExport, this.#limits.maxPayloadBytes);
    },
  };

  #onClosed(connection: ServerConnection, dropped: string | undefined): void {
    const remote = this.#connections.get(connection) ?? 'unknown';
    this.#connections.delete(connection);
    if (dropped !== undefined) {
      this.#dropped += 1;
      this.#options.onDropped?.(remote, dropped);
    }
    for (const check of this.#waiting) check();
  }

  /** Shuts down the connections that are meant; destroys those that are left when the time is over. */
  async #endConnections(isMeant: (connection: ServerConnection) => boolean): Promise<void> {
    const meant = new Set([...this.#connections.keys()].filter(isMeant));
    if (meant.size === 0) return;
    for (const connection of meant) connection.shutdown();
    const timer = this.#environment.clock.setTimer(this.#limits.closeTimeoutMs, () => {
      for (const connection of meant) connection.destroy('its requests did not finish before the server closed');
    });
    await new Promise<void>((resolve) => {
      const check = (): void => {
        for (const connection of meant) if (!this.#connections.has(connection)) meant.delete(connection);
        if (meant.size > 0) return;
        this.#waiting.delete(check);
        resolve();
      };
      this.#waiting.add(check);
      check();
    });
    timer.cancel();
  }

  #assertOpen(): void {
    if (this.#closing !== undefined) throw new HoldfastError('ERR_HOLDFAST_CLOSED', 'the NBD server is closed');
  }
}

function checkAddress(address: Address, allowRemoteClients: boolean): void {
  if (address.kind === 'unix' || allowRemoteClients || isLoopback(address.host)) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `${formatAddress(address)} is not a loopback address, and NBD without TLS lets anyone in who reaches it; ` +
      'use a Unix socket or 127.0.0.1, or allow remote clients by name (allowRemoteClients)',
  );
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host);
}

const MIB = 2 ** 20;

function checkedLimits(limits: NbdServerLimits): NbdServerLimits {
  for (const [name, value] of Object.entries(limits))
    if (!Number.isSafeInteger(value) || value < 1)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `the limit ${name} must be a whole number above 0`);
  const { maxPayloadBytes, maxBytesPerConnection, maxBytes } = limits;
  if (maxPayloadBytes < MIB || maxPayloadBytes > 1024 * MIB || !Number.isInteger(Math.log2(maxPayloadBytes)))
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'maxPayloadBytes must be a power of two from 1 MiB to 1 GiB');
  if (maxBytesPerConnection < 2 * maxPayloadBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      'maxBytesPerConnection must be at least twice maxPayloadBytes: one request comes in while another goes out',
    );
  if (maxBytes < maxBytesPerConnection)
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'maxBytes must be at least maxBytesPerConnection');
  return limits;
}
