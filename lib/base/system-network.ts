/**
 * The real network behind the seam: TCP and Unix sockets over node:net, TLS 1.3 with an external pre-shared key over
 * node:tls (RFC 8446, section 2.2).
 *
 * Invariants:
 * - With `psk` a connection is handed out only when the pre-shared key was proven by both ends: one cipher, TLS 1.3
 *   only, no certificate, no resumption by ticket (it would prove an earlier connection, not an identity).
 * - What a connection queues is bounded by its user: `write` answers false above the high-water mark, `onDrain` comes
 *   below the low-water mark.
 * - A Unix socket's file is replaced only when nothing listens on it.
 */
import { chmod, lstat, unlink } from 'node:fs/promises';
import net from 'node:net';
import tls from 'node:tls';
import { isMainThread } from 'node:worker_threads';
import { HoldfastError, type HoldfastErrorCode } from './errors.ts';
import {
  type Address,
  type Connection,
  type ConnectionHandler,
  type ConnectOptions,
  formatAddress,
  type Listener,
  type ListenOptions,
  type Network,
  type PresharedKeyOptions,
} from './network.ts';

/** The kernel's socket buffer comes on top: what waits here waits in our memory. */
const HIGH_WATER_BYTES = 1024 * 1024;
const LOW_WATER_BYTES = 256 * 1024;
const KEEP_ALIVE_DELAY_MS = 10_000;
const TLS_HANDSHAKE_TIMEOUT_MS = 5_000;
const STALE_PROBE_TIMEOUT_MS = 2_000;
/** sun_path is 108 bytes with its terminating zero; a longer path would be cut short in silence. */
const UNIX_PATH_MAX_BYTES = 107;

/** A key works with a cipher of its own hash only: with the SHA-384 suite Node 20 fails. */
const PSK_CIPHER = 'TLS_AES_128_GCM_SHA256';
const PSK_TLS = { ciphers: PSK_CIPHER, minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' } as const;

class SystemConnection implements Connection {
  readonly remote: string;
  readonly transportIdentity: string | undefined;
  readonly #socket: net.Socket;
  #handler: ConnectionHandler | undefined;
  #closed = false;
  #error: Error | undefined;
  #wantsDrain = false;
  readonly #written = (): void => {
    if (!this.#wantsDrain || this.#closed || this.#socket.writableLength > LOW_WATER_BYTES) return;
    this.#wantsDrain = false;
    this.#handler?.onDrain();
  };

  constructor(socket: net.Socket, remote: string, transportIdentity: string | undefined) {
    this.remote = remote;
    this.transportIdentity = transportIdentity;
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_DELAY_MS);
    socket.on('error', (error) => {
      this.#error ??= error;
    });
    socket.on('close', () => {
      this.#closed = true;
      this.#handler?.onClose(this.#closeError());
    });
  }

  get bufferedBytes(): number {
    return this.#socket.writableLength;
  }

  start(handler: ConnectionHandler): void {
    this.#handler = handler;
    if (this.#closed) {
      queueMicrotask(() => handler.onClose(this.#closeError()));
      return;
    }
    this.#socket.on('data', (chunk: Buffer) => handler.onData(chunk));
  }

  write(chunks: readonly Uint8Array[], onGone?: () => void): boolean {
    const socket = this.#socket;
    if (this.#closed || !socket.writable) {
      if (onGone !== undefined) queueMicrotask(onGone);
      return false;
    }
    const last = chunks.length - 1;
    if (last > 0) socket.cork();
    for (let index = 0; index < last; index++) socket.write(chunks[index]!);
    if (last >= 0) socket.write(chunks[last]!, onGone === undefined ? this.#written : this.#gone(onGone));
    if (last > 0) socket.uncork();
    if (socket.writableLength <= HIGH_WATER_BYTES) return true;
    this.#wantsDrain = true;
    return false;
  }

  #gone(onGone: () => void): () => void {
    return () => {
      this.#written();
      onGone();
    };
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  end(): void {
    // A peer that never closes its half must not hold ours open: its data is no longer wanted, so let it flow away.
    this.#socket.end();
    this.#socket.resume();
  }

  destroy(error?: Error): void {
    if (error !== undefined) this.#error ??= error;
    this.#socket.destroy();
  }

  #closeError(): Error | undefined {
    const error = this.#error;
    if (error === undefined || error instanceof HoldfastError) return error;
    return connectionError('ERR_HOLDFAST_CONNECTION_LOST', `the connection with ${this.remote} broke`, error);
  }
}

function connectionError(code: HoldfastErrorCode, message: string, cause: Error): HoldfastError {
  const { code: errno } = cause as NodeJS.ErrnoException;
  const options = errno === undefined ? { cause } : { cause, errno };
  return new HoldfastError(code, `${message} (${errno ?? cause.message})`, options);
}

/** A handshake that failed by an alert failed by the key: there is nothing else to fail by. Without one, it was no TLS. */
function tlsError(remote: string, cause: Error): HoldfastError {
  const { code = '' } = cause as NodeJS.ErrnoException;
  if (
    code.includes('_ALERT_') ||
    code === 'ERR_SSL_BINDER_DOES_NOT_VERIFY' ||
    code === 'ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM'
  )
    return connectionError(
      'ERR_HOLDFAST_WRONG_KEY',
      `the TLS handshake with ${remote} failed; check that both servers have the same key`,
      cause,
    );
  return connectionError(
    'ERR_HOLDFAST_HANDSHAKE',
    `${remote} did not speak TLS to the end; if it is a peer, check that both declare the same kind of link`,
    cause,
  );
}

function remoteOf(socket: net.Socket, local: Address): string {
  if (local.kind === 'unix') return formatAddress(local);
  const { remoteAddress: host, remotePort: port } = socket;
  return host === undefined || port === undefined ? 'unknown' : formatAddress({ kind: 'tcp', host, port });
}

function endpoint(address: Address): net.ListenOptions & net.NetConnectOpts {
  if (address.kind === 'tcp') return { host: address.host, port: address.port };
  if (Buffer.byteLength(address.path) > UNIX_PATH_MAX_BYTES)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `the path of the Unix socket is longer than ${UNIX_PATH_MAX_BYTES} bytes; choose a shorter one: ${address.path}`,
    );
  return { path: address.path };
}

// Listening

type Accept = (connection: Connection) => void;

function createPlainServer(address: Address, accept: Accept): net.Server {
  return net.createServer((socket) => accept(new SystemConnection(socket, remoteOf(socket, address), undefined)));
}

function createPskServer(
  address: Address,
  psk: PresharedKeyOptions,
  options: ListenOptions,
  accept: Accept,
): net.Server {
  const claims = new WeakMap<tls.TLSSocket, { identity: string; known: boolean }>();
  const server = tls.createServer({
    ...PSK_TLS,
    handshakeTimeout: TLS_HANDSHAKE_TIMEOUT_MS,
    pskCallback(socket, identity) {
      const key = psk.keyOf(identity);
      // A resumption ticket is asked for like an identity: a name that was known before it must not stand for it.
      claims.set(socket, { identity, known: key !== undefined });
      return key === undefined ? null : Buffer.from(key);
    },
  });
  server.on('secureConnection', (socket) => {
    const claim = claims.get(socket);
    const remote = remoteOf(socket, address);
    if (claim?.known) accept(new SystemConnection(socket, remote, claim.identity));
    else {
      socket.on('error', () => {});
      socket.destroy();
      const error = new HoldfastError('ERR_HOLDFAST_WRONG_KEY', `${remote} came without a pre-shared key`);
      options.onRefused?.(remote, claim?.identity, error);
    }
  });
  server.on('tlsClientError', (cause, socket) => {
    const claim = claims.get(socket);
    options.onRefused?.(remoteOf(socket, address), claim?.identity, tlsError(remoteOf(socket, address), cause));
  });
  return server;
}

function listenError(address: Address, cause: NodeJS.ErrnoException): HoldfastError {
  const where = formatAddress(address);
  if (cause.code === 'EADDRINUSE')
    return new HoldfastError(
      'ERR_HOLDFAST_ADDRESS_IN_USE',
      `${where} is in use; stop what listens there (see \`ss -lptx\`) or choose another address`,
      { cause, errno: 'EADDRINUSE' },
    );
  const mends: Record<string, string> = {
    EACCES: 'choose a port above 1023 or a folder that this user may write to',
    EADDRNOTAVAIL: 'choose an address that this machine has (see `ip addr`)',
    ENOENT: 'create the folder of the socket first',
    ENOTFOUND: 'check the host name',
  };
  const mend = mends[cause.code ?? ''] ?? 'check the address';
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `cannot listen on ${where} (${cause.code}); ${mend}`, {
    cause,
    ...(cause.code === undefined ? {} : { errno: cause.code }),
  });
}

function listenOnce(server: net.Server, address: Address, socketMode: number): Promise<void> {
  const where = endpoint(address);
  return new Promise((resolve, reject) => {
    const failed = (error: Error): void => reject(error);
    server.once('error', failed);
    // The file is created inside `listen`: no one may connect between that and the chmod. Workers cannot set the mask.
    const restore = address.kind === 'unix' && isMainThread ? process.umask(0o777 & ~socketMode) : undefined;
    try {
      server.listen(where, () => {
        server.removeListener('error', failed);
        resolve();
      });
    } finally {
      if (restore !== undefined) process.umask(restore);
    }
  });
}

/** Removes a socket file that a dead process left behind. False if something listens, or if it is not a socket. */
async function removeStaleSocket(path: string): Promise<boolean> {
  const before = await lstat(path).catch(() => undefined);
  if (before === undefined) return true;
  if (!before.isSocket()) return false;
  const refused = await new Promise<boolean>((resolve) => {
    const probe = net.connect({ path });
    probe.setTimeout(STALE_PROBE_TIMEOUT_MS, () => probe.destroy(new Error('timed out')));
    probe.on('connect', () => {
      probe.destroy();
      resolve(false);
    });
    probe.on('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'));
  });
  if (!refused) return false;
  const now = await lstat(path).catch(() => undefined);
  if (now !== undefined && now.ino === before.ino) await unlink(path);
  return true;
}

async function listen(address: Address, options: ListenOptions, accept: Accept): Promise<Listener> {
  const server =
    options.psk === undefined
      ? createPlainServer(address, accept)
      : createPskServer(address, options.psk, options, accept);
  if (options.maxConnections !== undefined) server.maxConnections = options.maxConnections;
  const socketMode = options.socketMode ?? 0o600;
  try {
    await listenOnce(server, address, socketMode).catch(async (error: NodeJS.ErrnoException) => {
      const stale = error.code === 'EADDRINUSE' && address.kind === 'unix' && (await removeStaleSocket(address.path));
      if (!stale) throw error;
      await listenOnce(server, address, socketMode);
    });
    if (address.kind === 'unix') await chmod(address.path, socketMode);
  } catch (error) {
    server.close();
    throw error instanceof HoldfastError ? error : listenError(address, error as NodeJS.ErrnoException);
  }
  // After listening, an error is a failed accept (out of descriptors): the listener goes on.
  server.on('error', () => {});
  return new SystemListener(server, address);
}

class SystemListener implements Listener {
  readonly address: Address;
  readonly #server: net.Server;
  #closing: Promise<void> | undefined;

  constructor(server: net.Server, asked: Address) {
    this.#server = server;
    const bound = server.address();
    const resolved = typeof bound === 'object' && bound !== null && asked.kind === 'tcp';
    this.address = resolved ? { kind: 'tcp', host: asked.host, port: bound.port } : asked;
  }

  close(): Promise<void> {
    // The server's own callback waits for the connections too; the listening handle is gone when close returns.
    this.#closing ??= new Promise((resolve) => {
      this.#server.close();
      setImmediate(resolve);
    });
    return this.#closing;
  }
}

// Connecting

function openSocket(address: Address, psk: PresharedKeyOptions | undefined): net.Socket {
  const where = endpoint(address);
  if (psk === undefined) return net.connect({ ...where, noDelay: true });
  const key = psk.keyOf(psk.identity);
  if (key === undefined)
    throw new HoldfastError('ERR_HOLDFAST_WRONG_KEY', `there is no key for our own identity ${psk.identity}`);
  return tls.connect({
    ...where,
    ...PSK_TLS,
    pskCallback: () => ({ psk: key, identity: psk.identity }),
    // There is no certificate to check; that there is none is checked once the handshake is over.
    checkServerIdentity: () => undefined,
  });
}

/** Without a certificate a TLS 1.3 server can only have proven itself by the key. */
function provenByKey(socket: net.Socket): boolean {
  if (!(socket instanceof tls.TLSSocket)) return true;
  return socket.getProtocol() === 'TLSv1.3' && Object.keys(socket.getPeerCertificate()).length === 0;
}

function connectError(address: Address, options: ConnectOptions, connected: boolean, cause: Error): HoldfastError {
  if (cause instanceof HoldfastError) return cause;
  const where = formatAddress(address);
  if (options.psk !== undefined && connected) return tlsError(where, cause);
  return connectionError('ERR_HOLDFAST_CONNECT_FAILED', `cannot connect to ${where}; check that it is running`, cause);
}

async function connect(address: Address, options: ConnectOptions): Promise<Connection> {
  const { psk, signal, timeoutMs } = options;
  const where = formatAddress(address);
  const aborted = (): HoldfastError =>
    new HoldfastError('ERR_HOLDFAST_ABORTED', `connecting to ${where} was cancelled`, { cause: signal?.reason });
  if (signal?.aborted) throw aborted();
  const socket = openSocket(address, psk);
  let connected = false;
  let timer: NodeJS.Timeout | undefined;
  const abort = (): void => void socket.destroy(aborted());
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', () => {
        connected = true;
      });
      socket.once(psk === undefined ? 'connect' : 'secureConnect', resolve);
      socket.once('error', reject);
      socket.once('close', () => reject(new Error('closed by the other end')));
      signal?.addEventListener('abort', abort, { once: true });
      if (timeoutMs === undefined) return;
      const late = `${where} did not answer within ${timeoutMs} ms; check the address and the network`;
      timer = setTimeout(() => socket.destroy(new HoldfastError('ERR_HOLDFAST_TIMEOUT', late)), timeoutMs);
    });
    if (!provenByKey(socket)) throw new Error('the server did not use the pre-shared key');
  } catch (error) {
    socket.on('error', () => {});
    socket.destroy();
    throw connectError(address, options, connected, error as Error);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
  }
  // The server's identity is whoever else holds the key: the handshake above the transport names it.
  return new SystemConnection(socket, where, undefined);
}

export const systemNetwork: Network = { listen, connect };
