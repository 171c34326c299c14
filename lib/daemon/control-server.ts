/**
 * Answers on the control socket: a Unix socket of mode 0600, so that only the server's own user (and root) asks.
 *
 * Bounded: connections, requests in flight on each, bytes of a line, bytes that wait for a slow reader of events (it is
 * dropped, and asks again).
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { Connection, Listener, Network } from '../base/network.ts';
import {
  CONTROL_VERSION,
  type ControlRequest,
  encodeLine,
  errorReply,
  LineCutter,
  parseLine,
  REQUEST_LINE_BYTES_MAX,
  requestSchema,
} from './control-wire.ts';

const CONNECTIONS_MAX = 64;
const REQUESTS_IN_FLIGHT_MAX = 16;
const EVENT_BACKLOG_BYTES_MAX = 1024 * 1024;

export type ControlMethod = (params: unknown) => Promise<unknown>;

export class ControlServer implements AsyncDisposable {
  readonly #methods: ReadonlyMap<string, ControlMethod>;
  readonly #clients = new Set<ControlConnection>();
  #listener: Listener | undefined;

  /** `methods` beside the built-in `events`, which subscribes the connection to what `emit` says. */
  constructor(methods: ReadonlyMap<string, ControlMethod>) {
    this.#methods = methods;
  }

  /** Throws ERR_HOLDFAST_ALREADY_RUNNING if something answers on the socket. One left by a dead process is replaced. */
  async listen(network: Network, path: string): Promise<void> {
    const options = { socketMode: 0o600, maxConnections: CONNECTIONS_MAX };
    try {
      this.#listener = await network.listen({ kind: 'unix', path }, options, (connection) => this.#accept(connection));
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_ADDRESS_IN_USE')) throw error;
      const message = `a server is running already on the control socket ${path}; stop it first, or give this node another "control"`;
      throw new HoldfastError('ERR_HOLDFAST_ALREADY_RUNNING', message, { cause: error });
    }
  }

  /** Tells every subscriber. */
  emit(event: object): void {
    let line: Uint8Array | undefined;
    for (const client of this.#clients) {
      if (!client.subscribed) continue;
      line ??= encodeLine({ holdfast: CONTROL_VERSION, event });
      client.sendEvent(line);
    }
  }

  async close(): Promise<void> {
    const listener = this.#listener;
    this.#listener = undefined;
    const closed = listener?.close();
    for (const client of this.#clients) client.end();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #accept(connection: Connection): void {
    const client = new ControlConnection(connection, this.#methods, () => this.#clients.delete(client));
    this.#clients.add(client);
    client.start();
  }
}

class ControlConnection {
  subscribed = false;
  readonly #connection: Connection;
  readonly #methods: ReadonlyMap<string, ControlMethod>;
  readonly #closed: () => void;
  readonly #cutter = new LineCutter(REQUEST_LINE_BYTES_MAX);
  readonly #waiting: Uint8Array[] = [];
  #inFlight = 0;
  #slowReader = false;

  constructor(connection: Connection, methods: ReadonlyMap<string, ControlMethod>, closed: () => void) {
    this.#connection = connection;
    this.#methods = methods;
    this.#closed = closed;
  }

  start(): void {
    this.#connection.start({
      onData: (chunk) => this.#receive(chunk),
      onDrain: () => {
        this.#slowReader = false;
        this.#pump();
      },
      onClose: () => this.#closed(),
    });
  }

  end(): void {
    this.#connection.end();
  }

  sendEvent(line: Uint8Array): void {
    if (this.#connection.bufferedBytes > EVENT_BACKLOG_BYTES_MAX) {
      const reason = new HoldfastError('ERR_HOLDFAST_CONNECTION_LOST', 'the reader of events is too slow');
      this.#connection.destroy(reason);
    } else this.#connection.write([line]);
  }

  #receive(chunk: Uint8Array): void {
    try {
      this.#waiting.push(...this.#cutter.push(chunk));
    } catch (error) {
      this.#send(errorReply(null, error));
      this.#connection.end();
      return;
    }
    this.#pump();
  }

  /** What waits is at most what one chunk brought: while it does, no further chunk is taken. */
  #pump(): void {
    while (!this.#slowReader && this.#inFlight < REQUESTS_IN_FLIGHT_MAX && this.#waiting.length > 0) {
      this.#inFlight++;
      this.#answer(this.#waiting.shift()!).finally(() => {
        this.#inFlight--;
        this.#pump();
      });
    }
    if (this.#waiting.length > 0) this.#connection.pause();
    else this.#connection.resume();
  }

  async #answer(line: Uint8Array): Promise<void> {
    let request: ControlRequest | undefined;
    try {
      request = parseLine(line, requestSchema);
      const result = await this.#call(request);
      this.#send({ holdfast: CONTROL_VERSION, id: request.id, result: result ?? null });
    } catch (error) {
      this.#send(errorReply(request?.id ?? null, error));
    }
  }

  async #call({ method, params }: ControlRequest): Promise<unknown> {
    if (method === 'events') {
      this.subscribed = true;
      return null;
    }
    const handler = this.#methods.get(method);
    if (handler) return await handler(params);
    const known = ['events', ...this.#methods.keys()].join(', ');
    throw new HoldfastError('ERR_HOLDFAST_UNKNOWN_METHOD', `there is no method "${method}"; there are ${known}`);
  }

  #send(message: object): void {
    if (!this.#connection.write([encodeLine(message)])) this.#slowReader = true;
  }
}
