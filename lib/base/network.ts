/**
 * The network, as the one seam through which all of the library sees it: streams of bytes between addresses.
 * Production is `systemNetwork` (TCP, TLS 1.3 with a pre-shared key, Unix sockets); simulation is
 * `SimulatedNetwork` in lib/testing.
 */

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

export interface Connection {
  /** Who is at the other end, for messages to people. */
  readonly remote: string;
  /** The identity proven by the transport (TLS pre-shared key), if any. */
  readonly transportIdentity: string | undefined;
  /** Bytes accepted by `write` and not yet taken by the network. */
  readonly bufferedBytes: number;
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
  resume(): void;
  /** Sends what is queued, then closes. */
  end(): void;
  /** Closes at once; what is queued is dropped. onClose comes later, never inside this call. */
  destroy(error?: Error): void;
}

/** A TLS 1.3 pre-shared key: who we say that we are, and the key for each identity that we accept. */
export interface PresharedKeyOptions {
  readonly identity: string;
  readonly keyOf: (identity: string) => Uint8Array | undefined;
}

export interface ListenOptions {
  readonly psk?: PresharedKeyOptions;
  /** Connections beyond this many are closed at once. */
  readonly maxConnections?: number;
  /** Mode of a Unix socket's file, default 0o600. */
  readonly socketMode?: number;
  /** Told of a connection that the transport turned away: the identity is what it claimed, not proven. */
  readonly onRefused?: (remote: string, claimedIdentity: string | undefined, error: Error) => void;
}

export interface ConnectOptions {
  readonly psk?: PresharedKeyOptions;
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
}

export interface Listener {
  /** The address really bound (port 0 resolved). */
  readonly address: Address;
  /** Stops accepting. Connections already accepted live on. */
  close(): Promise<void>;
}

export interface Network {
  listen(address: Address, options: ListenOptions, accept: (connection: Connection) => void): Promise<Listener>;
  connect(address: Address, options: ConnectOptions): Promise<Connection>;
}

export function formatAddress(address: Address): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}
