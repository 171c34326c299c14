/**
 * The network, as the one seam through which all of the library sees it: streams of bytes between addresses.
 * Production is `systemNetwork` (TCP, TLS 1.3 with a pre-shared key, Unix sockets); simulation is
 * `SimulatedNetwork` in lib/testing.
 */

/** A TCP address (port 0 to listen: any free one), or the path of a Unix socket. */
export type Address =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string };

/** What a connection tells its owner. Set once, before the first byte is delivered. */
export interface ConnectionHandler {
  /** The chunk belongs to the handler from here on: no one changes it later. */
  onData(chunk: Uint8Array): void;
  /** `bufferedBytes` has fallen below the connection's low-water mark after a `write` that returned false. */
  onDrain(): void;
  /** Called exactly once. No onData follows. `error` is set if the end was not a clean one. */
  onClose(error: Error | undefined): void;
}

/** A stream of bytes both ways. Made by `Network`; nothing is delivered before `start`. */
export interface Connection {
  /** Who is at the other end, for messages to people. */
  readonly remote: string;
  /** The identity proven by the transport (TLS pre-shared key), if any. */
  readonly transportIdentity: string | undefined;
  /** Bytes accepted by `write` and not yet taken by the network. */
  readonly bufferedBytes: number;
  /** Begins to deliver to the handler. Once. */
  start(handler: ConnectionHandler): void;
  /**
   * Queues the chunks in order. They must not be changed until they have gone: `bufferedBytes` is back to 0, or `onGone`
   * was called (once, never inside this call: they are sent, or dropped because the connection is closed).
   * Returns false when more than the high-water mark is queued: stop, and go on at `onDrain`. On a closed connection
   * nothing is queued, and the answer is false.
   */
  write(chunks: readonly Uint8Array[], onGone?: () => void): boolean;
  /** Stop and resume the delivery of onData (back-pressure). */
  pause(): void;
  /** Ends a `pause`. */
  resume(): void;
  /** Sends what is queued, then closes. */
  end(): void;
  /** Closes at once; what is queued is dropped. onClose comes later, never inside this call. */
  destroy(error?: Error): void;
}

/** A TLS 1.3 pre-shared key: who we say that we are, and the key for each identity that we accept. */
export interface PresharedKeyOptions {
  readonly identity: string;
  /** The key of whoever says so of itself; undefined: it is turned away. */
  readonly keyOf: (identity: string) => Uint8Array | undefined;
}

/** How connections are accepted. */
export interface ListenOptions {
  readonly psk?: PresharedKeyOptions;
  /** Connections beyond this many are closed at once. */
  readonly maxConnections?: number;
  /** Mode of a Unix socket's file, default 0o600. */
  readonly socketMode?: number;
  /** Told of a connection that the transport turned away: the identity is what it claimed, not proven. */
  readonly onRefused?: (remote: string, claimedIdentity: string | undefined, error: Error) => void;
}

/** How a connection is made. */
export interface ConnectOptions {
  readonly psk?: PresharedKeyOptions;
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
}

/** An address that is listened on. */
export interface Listener {
  /** The address really bound (port 0 resolved). */
  readonly address: Address;
  /** Stops accepting. Connections already accepted live on. */
  close(): Promise<void>;
}

/** Makes and accepts connections. */
export interface Network {
  /**
   * Listens; resolved, connections are accepted.
   *
   * @throws HoldfastError ERR_HOLDFAST_ADDRESS_IN_USE, ERR_HOLDFAST_BAD_ARGUMENT (not an address of this machine).
   */
  listen(address: Address, options: ListenOptions, accept: (connection: Connection) => void): Promise<Listener>;
  /**
   * Connects; resolved, the other end has accepted and, with `psk`, both have shown that they hold the key.
   *
   * @throws HoldfastError ERR_HOLDFAST_CONNECT_FAILED, ERR_HOLDFAST_TIMEOUT, ERR_HOLDFAST_ABORTED,
   *   ERR_HOLDFAST_WRONG_KEY, ERR_HOLDFAST_HANDSHAKE.
   */
  connect(address: Address, options: ConnectOptions): Promise<Connection>;
}

export function formatAddress(address: Address): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}
