/** The other end of the control socket: what the command line asks a running server by. */
import { HoldfastError } from '../base/errors.ts';
import type { Connection, Network } from '../base/network.ts';
import {
  CONTROL_VERSION,
  type ControlReply,
  encodeLine,
  errorOfReply,
  LineCutter,
  parseLine,
  REPLY_LINE_BYTES_MAX,
  replySchema,
} from './control-wire.ts';

const CONNECT_TIMEOUT_MS = 5000;

interface Waiting {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

export interface ControlClientOptions {
  readonly signal?: AbortSignal;
  /** Called for every event after `call('events')`. */
  readonly onEvent?: (event: Record<string, unknown>) => void;
  /** Called once, when the server is gone. */
  readonly onClose?: () => void;
}

export class ControlClient implements AsyncDisposable {
  readonly #connection: Connection;
  readonly #path: string;
  readonly #options: ControlClientOptions;
  readonly #cutter = new LineCutter(REPLY_LINE_BYTES_MAX);
  readonly #waiting = new Map<number, Waiting>();
  #nextId = 1;
  #failure: Error | undefined;

  private constructor(connection: Connection, path: string, options: ControlClientOptions) {
    this.#connection = connection;
    this.#path = path;
    this.#options = options;
    connection.start({
      onData: (chunk) => this.#receive(chunk),
      onDrain: () => {},
      onClose: (error) => this.#closed(error),
    });
  }

  /** Throws ERR_HOLDFAST_NOT_RUNNING if no server answers on the socket. */
  static async connect(network: Network, path: string, options: ControlClientOptions = {}): Promise<ControlClient> {
    const timing = { timeoutMs: CONNECT_TIMEOUT_MS, ...(options.signal ? { signal: options.signal } : {}) };
    const connection = await network.connect({ kind: 'unix', path }, timing).catch((cause: unknown) => {
      if (options.signal?.aborted) throw cause;
      const message = `no server answers on the control socket ${path}; start one by \`holdfast serve CONFIG\`, or name the right socket by --control or --config`;
      throw new HoldfastError('ERR_HOLDFAST_NOT_RUNNING', message, { cause });
    });
    return new ControlClient(connection, path, options);
  }

  /** Calls a method; rejects with the server's error (same code), or ERR_HOLDFAST_CONNECTION_LOST. */
  call(method: string, params: unknown = null): Promise<unknown> {
    if (this.#failure) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#connection.write([encodeLine({ holdfast: CONTROL_VERSION, id, method, params })]);
    });
  }

  async close(): Promise<void> {
    this.#connection.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #receive(chunk: Uint8Array): void {
    try {
      for (const line of this.#cutter.push(chunk)) this.#take(parseLine<ControlReply>(line, replySchema));
    } catch (error) {
      this.#connection.destroy(error as Error);
    }
  }

  #take(reply: ControlReply): void {
    if ('event' in reply) {
      this.#options.onEvent?.(reply.event);
      return;
    }
    if (reply.id === null && 'error' in reply) throw errorOfReply(reply.error);
    const waiting = this.#waiting.get(reply.id!);
    this.#waiting.delete(reply.id!);
    if ('result' in reply) waiting?.resolve(reply.result);
    else waiting?.reject(errorOfReply(reply.error));
  }

  #closed(error: Error | undefined): void {
    this.#failure =
      error instanceof HoldfastError
        ? error
        : new HoldfastError(
            'ERR_HOLDFAST_CONNECTION_LOST',
            `the server on the control socket ${this.#path} ended the connection; see whether it still runs`,
            { cause: error },
          );
    for (const waiting of this.#waiting.values()) waiting.reject(this.#failure);
    this.#waiting.clear();
    this.#options.onClose?.();
  }
}
