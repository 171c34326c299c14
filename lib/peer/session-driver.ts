/**
 * Drives one session (session.ts): encodes and checks bodies, runs handlers, arms the timer, hands frames to the
 * connection. What the systems hold as a `PeerSession`.
 *
 * Invariants: a request's promise settles exactly once, and not before its data is out of use; frames of one turn of
 * the event loop go out in one write; the connection holds no more than SOCKET_BYTES and a frame of bulk.
 */
import { z } from 'zod';
import type { Clock, TimerHandle } from '../base/clock.ts';
import { HoldfastError, type HoldfastErrorCode, isHoldfastError } from '../base/errors.ts';
import type { Connection } from '../base/network.ts';
import { decodeControl, encodeControl } from './control-body.ts';
import { Fifo } from './fifo.ts';
import {
  ChannelNumber,
  controlFrame,
  type Frame,
  type FrameHeader,
  FrameKind,
  type FrameWriter,
  headFor,
  type OutgoingFrame,
} from './frame.ts';
import type { Message, Method, PeerInfo, PeerSession, Reply, RequestHandler, RequestOptions } from './peer.ts';
import {
  type IncomingRequest,
  type OutgoingRequest,
  Session,
  type SessionEffect,
  type SessionOptions,
} from './session.ts';

/** As much as a connection takes before it says stop (lib/base): heartbeats wait behind no more than this. */
const SOCKET_BYTES = 1024 * 1024;
const ERROR_TEXT_MAX_LENGTH = 2000;
const NO_DATA: readonly Uint8Array[] = [];

const failureSchema = z.object({
  code: z.string().regex(/^ERR_HOLDFAST_[A-Z0-9_]{1,64}$/),
  message: z.string().max(2 * ERROR_TEXT_MAX_LENGTH),
  errno: z.string().max(64).optional(),
});
const goodbyeSchema = z.object({ reason: z.string().max(2 * ERROR_TEXT_MAX_LENGTH) });

/** A method with what answers it. The types met at `handle`; on the wire there are bytes. */
export interface RegisteredMethod {
  readonly method: Method<unknown, unknown>;
  readonly handler: RequestHandler<unknown, unknown>;
}

export interface SessionDriverOptions {
  readonly ordinal: number;
  readonly peer: PeerInfo;
  readonly connection: Connection;
  readonly writer: FrameWriter;
  readonly clock: Clock;
  readonly session: Omit<SessionOptions, 'method'>;
  readonly methods: ReadonlyMap<number, RegisteredMethod>;
  /** The session is over. The connection is the owner's to close; `goodbye` is what to send before. */
  onEnded(reason: string, goodbye: OutgoingFrame | undefined): void;
}

interface PendingRequest extends OutgoingRequest {
  readonly method: Method<unknown, unknown>;
  readonly resolve: (message: Message<unknown>) => void;
  readonly reject: (error: HoldfastError) => void;
  readonly signal: AbortSignal | undefined;
  onAbort: (() => void) | undefined;
  /** The connection uses its data no more. */
  gone: boolean;
  /** Cancelled, and waiting for the data to go. */
  cancelledBy: HoldfastError | undefined;
  settled: boolean;
}

export class SessionDriver implements PeerSession {
  readonly ordinal: number;
  readonly peer: PeerInfo;
  readonly #options: SessionDriverOptions;
  readonly #machine: Session<PendingRequest>;
  /** Called when the data of a frame that is queued has gone. */
  readonly #whenGone = new Map<OutgoingFrame, () => void>();
  #timer: TimerHandle | undefined;
  #nextRequestId = 1;
  #flushScheduled = false;
  /** Requests of the peer's whose handlers start in this turn. */
  readonly #due = new Fifo<IncomingRequest>();
  #handling = false;

  constructor(options: SessionDriverOptions) {
    this.ordinal = options.ordinal;
    this.peer = options.peer;
    this.#options = options;
    this.#machine = new Session({
      ...options.session,
      method(id) {
        const method = options.methods.get(id)?.method;
        if (method === undefined) return undefined;
        const { maxRequestDataBytes: requestDataMaxBytes, maxResponseDataBytes: responseDataMaxBytes } = method;
        return { requestDataMaxBytes, responseDataMaxBytes };
      },
    });
  }

  get open(): boolean {
    return this.#machine.open;
  }

  get heardMs(): number {
    return this.#machine.heardMs;
  }

  get roundTripMs(): number | undefined {
    return this.#machine.roundTripMs;
  }

  /** Bytes of the peer's requests that are held here. */
  get heldBytes(): number {
    return this.#machine.heldBytes;
  }

  leaseHeldUntilMs(): number {
    return this.#machine.leaseHeldUntilMs;
  }

  leaseGrantedUntilMs(): number {
    return this.#machine.leaseGrantedUntilMs;
  }

  request<Request, Response>(
    method: Method<Request, Response>,
    control: Request,
    data: readonly Uint8Array[] = NO_DATA,
    options: RequestOptions = {},
  ): Promise<Message<Response>> {
    return new Promise((resolve, reject) => {
      const pending: PendingRequest = {
        frame: this.#requestFrame(method, control, data, options.maxResponseDataBytes),
        cancelled: false,
        released: false,
        method: method as Method<unknown, unknown>,
        resolve: resolve as (message: Message<unknown>) => void,
        reject,
        signal: options.signal,
        onAbort: undefined,
        gone: false,
        cancelledBy: undefined,
        settled: false,
      };
      if (!this.open) throw this.#lost('the session is over');
      if (pending.signal !== undefined) this.#watch(pending, pending.signal);
      if (pending.frame.dataLength > 0) this.#whenGone.set(pending.frame, () => this.#requestGone(pending));
      else pending.gone = true;
      try {
        this.#run(this.#machine.step({ kind: 'request', request: pending }));
      } catch (error) {
        this.#settled(pending);
        this.#whenGone.delete(pending.frame);
        throw error;
      }
    });
  }

  close(reason: string): void {
    this.#run(this.#machine.step({ kind: 'close', reason, goodbye: true }));
  }

  // For the connection.

  start(): void {
    this.#run(this.#machine.step({ kind: 'opened', nowMs: this.#options.clock.nowMs() }));
  }

  admit(header: FrameHeader): void {
    this.#machine.admit(header);
  }

  heard(): void {
    this.#run(this.#machine.step({ kind: 'heard', nowMs: this.#options.clock.nowMs() }));
  }

  frame(frame: Frame): void {
    this.#run(this.#machine.step({ kind: 'frame', frame, nowMs: this.#options.clock.nowMs() }));
  }

  drained(): void {
    this.#scheduleFlush();
  }

  /** The connection is gone, or what came over it cannot be trusted. */
  end(reason: string, goodbye: boolean): void {
    this.#run(this.#machine.step({ kind: 'close', reason, goodbye }));
  }

  // Effects

  #run(effects: readonly SessionEffect<PendingRequest>[]): void {
    for (const effect of effects) {
      switch (effect.kind) {
        case 'flush':
          this.#scheduleFlush();
          break;
        case 'wake':
          this.#wakeAt(effect.atMs);
          break;
        case 'handle':
          this.#due.push(effect.request);
          break;
        case 'settle':
          this.#settle(effect.request, effect.frame);
          break;
        case 'goodbye':
          this.end(
            `${this.peer.name} closed: ${decodeControl(goodbyeSchema, effect.control, 'goodbye').reason}`,
            false,
          );
          break;
        case 'ended':
          this.#ended(effect.reason, effect.lost, effect.goodbye);
          break;
        case 'send': // Only from #flush, which handles it.
          break;
      }
    }
    this.#handleDue();
  }

  #wakeAt(atMs: number): void {
    const { clock } = this.#options;
    this.#timer?.cancel();
    this.#timer = clock.setTimer(Math.max(0, atMs - clock.nowMs()), () =>
      this.#run(this.#machine.step({ kind: 'tick', nowMs: clock.nowMs() })),
    );
  }

  #scheduleFlush(): void {
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    queueMicrotask(() => {
      this.#flushScheduled = false;
      this.#flush();
    });
  }

  #flush(): void {
    const { connection, writer } = this.#options;
    for (;;) {
      // One more than the room there is: a connection filled to its mark has not said stop, and will not say go on.
      const effects = this.#machine.step({ kind: 'room', bytes: SOCKET_BYTES + 1 - connection.bufferedBytes });
      const chunks: Uint8Array[] = [];
      const gone: (() => void)[] = [];
      for (const effect of effects) {
        if (effect.kind !== 'send') continue;
        writer.write(effect.frame, chunks);
        const whenGone = this.#whenGone.get(effect.frame);
        if (whenGone === undefined) continue;
        this.#whenGone.delete(effect.frame);
        gone.push(whenGone);
      }
      this.#run(effects);
      if (chunks.length === 0) return;
      const more = connection.write(chunks, gone.length === 0 ? undefined : () => callAll(gone));
      if (!more || !this.#machine.hasFrames) return;
    }
  }

  #ended(reason: string, lost: readonly PendingRequest[], goodbye: boolean): void {
    this.#timer?.cancel();
    const error = this.#lost(reason);
    for (const pending of lost) this.#reject(pending, pending.cancelledBy ?? error);
    const unsent = [...this.#whenGone.values()];
    this.#whenGone.clear();
    const text = reason.slice(0, ERROR_TEXT_MAX_LENGTH);
    const frame = goodbye ? controlFrame(FrameKind.goodbye, { control: encodeControl({ reason: text }) }) : undefined;
    this.#options.onEnded(reason, frame);
    callAll(unsent);
  }

  #lost(reason: string): HoldfastError {
    return new HoldfastError(
      'ERR_HOLDFAST_PEER_LOST',
      `the session with ${this.peer.name} ended (${reason}); what became of the request is not known`,
    );
  }

  // Requests of ours

  #requestFrame<Request, Response>(
    method: Method<Request, Response>,
    control: Request,
    data: readonly Uint8Array[],
    answerMaxBytes: number = method.maxResponseDataBytes,
  ): OutgoingFrame {
    let dataLength = 0;
    for (const part of data) dataLength += part.length;
    if (dataLength > method.maxRequestDataBytes || answerMaxBytes > method.maxResponseDataBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `${method.name} takes up to ${method.maxRequestDataBytes} bytes of data and answers with up to ` +
          `${method.maxResponseDataBytes}, not ${dataLength} and ${answerMaxBytes}`,
      );
    return {
      kind: FrameKind.request,
      channel: ChannelNumber[method.channel],
      method: method.id,
      parameter: answerMaxBytes,
      requestId: this.#nextRequestId++,
      head: headFor(method.requestFormat?.encode(control) ?? encodeControl(control)),
      data,
      dataLength,
    };
  }

  #watch(pending: PendingRequest, signal: AbortSignal): void {
    const aborted = (): HoldfastError =>
      new HoldfastError('ERR_HOLDFAST_ABORTED', `${pending.method.name} was cancelled`, { cause: signal.reason });
    if (signal.aborted) throw aborted();
    pending.onAbort = () => {
      pending.cancelled = true;
      if (!pending.released) {
        this.#whenGone.delete(pending.frame);
        this.#reject(pending, aborted());
      } else if (pending.gone) this.#reject(pending, aborted());
      else pending.cancelledBy = aborted();
    };
    signal.addEventListener('abort', pending.onAbort, { once: true });
  }

  #requestGone(pending: PendingRequest): void {
    pending.gone = true;
    if (pending.cancelledBy !== undefined) this.#reject(pending, pending.cancelledBy);
  }

  #settle(pending: PendingRequest, frame: Frame): void {
    const { name, response, responseFormat } = pending.method;
    try {
      if (frame.header.kind === FrameKind.failure) this.#reject(pending, this.#failure(name, frame.control));
      else {
        const control =
          responseFormat === undefined
            ? decodeControl(response, frame.control, `the answer to ${name}`)
            : responseFormat.decode(frame.control);
        this.#settled(pending);
        pending.resolve({ control, data: frame.data });
      }
    } catch (error) {
      this.#reject(pending, error as HoldfastError);
    }
  }

  #failure(name: string, control: Uint8Array): HoldfastError {
    const { code, message, errno } = decodeControl(failureSchema, control, `the failure of ${name}`);
    const options = errno === undefined ? {} : { errno };
    // A newer peer's codes may not be in our list; they are still literal codes.
    return new HoldfastError(code as HoldfastErrorCode, `${this.peer.name}: ${message}`, options);
  }

  #reject(pending: PendingRequest, error: HoldfastError): void {
    if (pending.settled) return;
    this.#settled(pending);
    pending.reject(error);
  }

  #settled(pending: PendingRequest): void {
    pending.settled = true;
    if (pending.onAbort !== undefined) pending.signal?.removeEventListener('abort', pending.onAbort);
  }

  // Requests of the peer's

  /** A handler that answers at once may let others start: they come after those that are due already. */
  #handleDue(): void {
    if (this.#handling) return;
    this.#handling = true;
    for (let request = this.#due.shift(); request !== undefined; request = this.#due.shift()) this.#handle(request);
    this.#handling = false;
  }

  #handle(request: IncomingRequest): void {
    const failed = (error: unknown): void => this.#answer(request, failureFrame(request, error), undefined);
    let reply: Promise<Reply<unknown>> | Reply<unknown>;
    try {
      reply = this.#callHandler(request);
    } catch (error) {
      failed(error);
      return;
    }
    if (reply instanceof Promise) reply.then((later) => this.#reply(request, later), failed);
    else this.#reply(request, reply);
  }

  #reply(request: IncomingRequest, reply: Reply<unknown>): void {
    let frame: OutgoingFrame;
    try {
      frame = this.#replyFrame(request, reply);
    } catch (error) {
      frame = failureFrame(request, error);
    }
    this.#answer(request, frame, reply.release);
  }

  #answer(request: IncomingRequest, frame: OutgoingFrame, release: (() => void) | undefined): void {
    if (!this.open) {
      release?.();
      return;
    }
    if (release !== undefined) this.#whenGone.set(frame, release);
    this.#run(this.#machine.step({ kind: 'answered', request, frame }));
  }

  #callHandler(request: IncomingRequest): Promise<Reply<unknown>> | Reply<unknown> {
    const registered = this.#options.methods.get(request.method);
    if (registered === undefined)
      throw new HoldfastError('ERR_HOLDFAST_UNKNOWN_METHOD', `there is no method ${request.method} on this node`);
    const { method, handler } = registered;
    if (ChannelNumber[method.channel] !== request.channel)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${method.name} goes over the ${method.channel} channel`);
    const control =
      method.requestFormat?.decode(request.control) ??
      decodeControl(method.request, request.control, `the request ${method.name}`);
    return handler({ control, data: request.data }, this);
  }

  #replyFrame(request: IncomingRequest, reply: Reply<unknown>): OutgoingFrame {
    const { control, data = NO_DATA } = reply;
    let dataLength = 0;
    for (const part of data) dataLength += part.length;
    if (dataLength > request.answerMaxBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_INTERNAL',
        `the answer holds ${dataLength} bytes of data where ${request.answerMaxBytes} were asked for`,
      );
    const { channel, requestId } = request;
    const format = this.#options.methods.get(request.method)?.method.responseFormat;
    const head = headFor(format?.encode(control) ?? encodeControl(control));
    return { kind: FrameKind.response, channel, method: 0, parameter: 0, requestId, head, data, dataLength };
  }
}

function callAll(callbacks: readonly (() => void)[]): void {
  for (const callback of callbacks) callback();
}

function failureFrame(request: IncomingRequest, error: unknown): OutgoingFrame {
  const known = isHoldfastError(error);
  const text = error instanceof Error ? error.message : String(error);
  const control = encodeControl({
    code: known ? error.code : 'ERR_HOLDFAST_INTERNAL',
    message: text.slice(0, ERROR_TEXT_MAX_LENGTH),
    ...(known && error.errno !== undefined ? { errno: error.errno.slice(0, 64) } : {}),
  });
  const { channel, requestId } = request;
  return {
    kind: FrameKind.failure,
    channel,
    method: 0,
    parameter: 0,
    requestId,
    head: headFor(control),
    data: NO_DATA,
    dataLength: 0,
  };
}
