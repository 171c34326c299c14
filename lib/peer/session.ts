/**
 * A session, from the handshake's end to its own: requests and answers, credit, heartbeats and leases. Pure: events in,
 * effects out; the driver (session-driver.ts) has the connection, the clock and the handlers.
 *
 * Credit. Each end announces in its hello how many bytes of requests per channel it will hold unanswered (its window).
 * A request costs what it weighs plus REQUEST_OVERHEAD_BYTES, from when it is sent until its answer has come: so that
 * an answer is what returns the credit, and no frame is needed for that. Answers are bounded by whoever asked: a request
 * says how much data its answer may bring, and waits until that fits into the asker's own budget; and the answerer
 * starts handlers only while what they may answer fits into its budget. Neither direction waits for the other.
 *
 * Leases (Gray and Cheriton, SOSP 1989). A heartbeat asks for the renewal of the lease that its sender holds; the grant
 * names the heartbeat. The holder counts from before it sent the heartbeat, the grantor from when it decided on the
 * grant, and the holder gives back LEASE_DRIFT_MARGIN for clocks of unequal speed: so the holder always stops first.
 *
 * Invariants:
 * - Requests of a channel are sent, and their handlers start, in the order in which they were asked.
 * - Control frames go before bulk frames; a heartbeat waits for no more than what the socket has already taken.
 * - A peer that exceeds its window, answers what was not asked, or brings more data than was admitted ends the session
 *   before its bytes are held.
 * - Nothing is heard for a lease: the session is over. `ended` is terminal; every request without an answer is given
 *   back exactly once.
 */
import { assert, HoldfastError } from '../base/errors.ts';
import { Fifo } from './fifo.ts';
import {
  badFrame,
  ChannelNumber,
  controlFrame,
  type Frame,
  type FrameHeader,
  FrameKind,
  frameBytes,
  HEADER_BYTES,
  type OutgoingFrame,
} from './frame.ts';

/** What a request costs beside its bytes: its record at both ends. */
export const REQUEST_OVERHEAD_BYTES = 512;
/** The holder's share of a lease that it does not use. Clocks disciplined by NTP differ by less than 0.1 %. */
export const LEASE_DRIFT_MARGIN = 0.01;
/** A lease that is asked for beyond this is a mistake. */
const LEASE_MAX_MS = 3_600_000;
/** What the socket may hold of control frames when it takes no more bulk. */
const CONTROL_ROOM_BYTES = 1024 * 1024;
/** Heartbeats without a grant that are remembered. */
const HEARTBEATS_MAX = 64;

export interface ChannelLimits {
  /** What the peer may have unanswered with us. */
  readonly windowBytes: number;
  /** What the answers to our requests may hold together. */
  readonly answerBudgetBytes: number;
  /** What the answers that we prepare may hold together. */
  readonly replyBudgetBytes: number;
  readonly handlersMax: number;
  /** Requests that wait for credit. Beyond it they fail with ERR_HOLDFAST_QUEUE_FULL. */
  readonly waitingMax: number;
}

export interface SessionOptions {
  readonly peer: string;
  readonly heartbeatMs: number;
  /** Granted to the peer; and the silence after which the session is over. */
  readonly leaseMs: number;
  readonly limits: Readonly<Record<ChannelNumber, ChannelLimits>>;
  /** What the peer announced. */
  readonly peerWindowBytes: Readonly<Record<ChannelNumber, number>>;
  /** Most bytes of data that a request of this method may bring and ask for; undefined if there is no such method. */
  method(id: number): { readonly requestDataMaxBytes: number; readonly responseDataMaxBytes: number } | undefined;
}

/** A request of ours. The driver keeps its own beside it, in a type that extends this one. */
export interface OutgoingRequest {
  readonly frame: OutgoingFrame;
  /** Set by the driver: while the request still waits for credit, it will not be sent. */
  cancelled: boolean;
  /** Set here: it waits for credit no more. */
  released: boolean;
}

/** A request of the peer's. */
export interface IncomingRequest {
  readonly requestId: number;
  readonly channel: ChannelNumber;
  readonly method: number;
  /** Most bytes of data that the answer may bring. */
  readonly answerMaxBytes: number;
  readonly costBytes: number;
  readonly control: Uint8Array;
  readonly data: Uint8Array;
}

export type SessionEvent<Request extends OutgoingRequest> =
  | { readonly kind: 'opened'; readonly nowMs: number }
  | { readonly kind: 'tick'; readonly nowMs: number }
  /** Bytes have come, of whichever frame. */
  | { readonly kind: 'heard'; readonly nowMs: number }
  | { readonly kind: 'frame'; readonly frame: Frame; readonly nowMs: number }
  | { readonly kind: 'request'; readonly request: Request }
  | { readonly kind: 'answered'; readonly request: IncomingRequest; readonly frame: OutgoingFrame }
  /** The socket takes this many bytes more of bulk, and CONTROL_ROOM_BYTES more of control. */
  | { readonly kind: 'room'; readonly bytes: number }
  | { readonly kind: 'close'; readonly reason: string; readonly goodbye: boolean };

export type SessionEffect<Request extends OutgoingRequest> =
  | { readonly kind: 'send'; readonly frame: OutgoingFrame }
  /** There is something to send: ask for it by `room`, soon. */
  | { readonly kind: 'flush' }
  | { readonly kind: 'wake'; readonly atMs: number }
  | { readonly kind: 'handle'; readonly request: IncomingRequest }
  | { readonly kind: 'settle'; readonly request: Request; readonly frame: Frame }
  | { readonly kind: 'goodbye'; readonly control: Uint8Array }
  /** `lost`: requests of ours whose outcome is not known. */
  | { readonly kind: 'ended'; readonly reason: string; readonly lost: readonly Request[]; readonly goodbye: boolean };

/** Both directions of one channel. */
class ChannelState<Request extends OutgoingRequest> {
  readonly limits: ChannelLimits;
  readonly peerWindowBytes: number;
  readonly outgoing = new Fifo<OutgoingFrame>();

  // Requests of ours.
  readonly waiting = new Fifo<Request>();
  inWindowBytes = 0;
  answerReservedBytes = 0;

  // Requests of the peer's.
  readonly backlog = new Fifo<IncomingRequest>();
  heldBytes = 0;
  replyReservedBytes = 0;
  handlers = 0;
  /** Whose answers are not written yet. */
  readonly answering = new Map<OutgoingFrame, IncomingRequest>();

  constructor(limits: ChannelLimits, peerWindowBytes: number) {
    this.limits = limits;
    this.peerWindowBytes = peerWindowBytes;
  }
}

export function requestCostBytes(controlLength: number, dataLength: number): number {
  return REQUEST_OVERHEAD_BYTES + controlLength + dataLength;
}

export class Session<Request extends OutgoingRequest> {
  readonly #options: SessionOptions;
  readonly #channels: Readonly<Record<ChannelNumber, ChannelState<Request>>>;
  /** Ours, sent and not answered, by id. */
  readonly #pending = new Map<number, Request>();
  /** When each heartbeat without a grant was sent. */
  readonly #heartbeats = new Map<number, number>();
  #state: 'new' | 'open' | 'ended' = 'new';
  #heartbeat = 0;
  #heartbeatDueMs = 0;
  #heardMs = 0;
  #heldUntilMs = Number.NEGATIVE_INFINITY;
  #grantedUntilMs = Number.NEGATIVE_INFINITY;
  /** The heartbeat that the next grant answers. Only the newest: a peer that does not read cannot pile them up. */
  #grantDue: number | undefined;
  #roundTripMs: number | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
    const channel = (number: ChannelNumber): ChannelState<Request> =>
      new ChannelState(options.limits[number], options.peerWindowBytes[number]);
    this.#channels = { [ChannelNumber.control]: channel(0), [ChannelNumber.bulk]: channel(1) };
  }

  get open(): boolean {
    return this.#state === 'open';
  }

  get heardMs(): number {
    return this.#heardMs;
  }

  get leaseHeldUntilMs(): number {
    return this.#heldUntilMs;
  }

  get leaseGrantedUntilMs(): number {
    return this.#grantedUntilMs;
  }

  get roundTripMs(): number | undefined {
    return this.#roundTripMs;
  }

  /** Something waits that `room` could send. */
  get hasFrames(): boolean {
    const { 0: control, 1: bulk } = this.#channels;
    return control.outgoing.length > 0 || bulk.outgoing.length > 0 || this.#grantDue !== undefined;
  }

  /** Bytes of the peer's requests that are held here. */
  get heldBytes(): number {
    return this.#channels[0].heldBytes + this.#channels[1].heldBytes;
  }

  /**
   * Whether a frame with this header may come, before its body is allocated.
   *
   * @throws HoldfastError ERR_HOLDFAST_BAD_FRAME: the session has to end.
   */
  admit(header: FrameHeader): void {
    const { kind, dataLength } = header;
    if (kind === FrameKind.request) {
      this.#admitRequest(header);
    } else if (kind === FrameKind.response) {
      const request = this.#pending.get(header.requestId);
      if (request === undefined || request.frame.channel !== header.channel)
        throw badFrame(`answer ${header.requestId} is to no request`);
      if (dataLength > request.frame.parameter)
        throw badFrame(
          `answer ${header.requestId} brings ${dataLength} bytes where ${request.frame.parameter} may come`,
        );
    } else if (kind < FrameKind.heartbeat || dataLength > 0)
      throw badFrame(`a frame of kind ${kind} with ${dataLength} bytes of data is not due in a session`);
  }

  step(event: SessionEvent<Request>): SessionEffect<Request>[] {
    if (this.#state === 'ended') return [];
    const effects: SessionEffect<Request>[] = [];
    switch (event.kind) {
      case 'opened':
        assert(this.#state === 'new', 'a session opens once');
        this.#state = 'open';
        this.#heardMs = event.nowMs;
        this.#heartbeatDueMs = event.nowMs;
        this.#tick(event.nowMs, effects);
        break;
      case 'tick':
        this.#tick(event.nowMs, effects);
        break;
      case 'heard':
        this.#heardMs = event.nowMs;
        break;
      case 'frame':
        this.#receive(event.frame, event.nowMs, effects);
        break;
      case 'request':
        this.#request(event.request, effects);
        break;
      case 'answered':
        this.#answer(event.request, event.frame, effects);
        break;
      case 'room':
        this.#send(event.bytes, effects);
        break;
      case 'close':
        this.#end(event.reason, event.goodbye, effects);
        break;
    }
    return effects;
  }

  // Time

  #tick(nowMs: number, effects: SessionEffect<Request>[]): void {
    const { heartbeatMs, leaseMs, peer } = this.#options;
    if (nowMs - this.#heardMs >= leaseMs) {
      this.#end(`${peer} was silent for ${leaseMs} ms`, false, effects);
      return;
    }
    if (nowMs >= this.#heartbeatDueMs) {
      this.#heartbeatDueMs = nowMs + heartbeatMs;
      const number = ++this.#heartbeat;
      this.#heartbeats.set(number, nowMs);
      this.#heartbeats.delete(number - HEARTBEATS_MAX);
      this.#queue(controlFrame(FrameKind.heartbeat, { requestId: number }), effects);
    }
    effects.push({ kind: 'wake', atMs: Math.min(this.#heartbeatDueMs, this.#heardMs + leaseMs) });
  }

  #granted(number: number, durationMs: number, nowMs: number): void {
    const sentMs = this.#heartbeats.get(number);
    if (sentMs === undefined) return;
    if (durationMs > LEASE_MAX_MS) throw badFrame(`a lease of ${durationMs} ms is too long to be meant`);
    for (const older of this.#heartbeats.keys()) {
      if (older > number) break;
      this.#heartbeats.delete(older);
    }
    this.#roundTripMs = nowMs - sentMs;
    this.#heldUntilMs = Math.max(this.#heldUntilMs, sentMs + durationMs * (1 - LEASE_DRIFT_MARGIN));
  }

  // Receiving

  #receive(frame: Frame, nowMs: number, effects: SessionEffect<Request>[]): void {
    const { kind, requestId, parameter } = frame.header;
    this.#heardMs = nowMs;
    switch (kind) {
      case FrameKind.heartbeat:
        this.#grantDue = requestId;
        this.#grantedUntilMs = Math.max(this.#grantedUntilMs, nowMs + this.#options.leaseMs);
        effects.push({ kind: 'flush' });
        break;
      case FrameKind.grant:
        this.#granted(requestId, parameter, nowMs);
        break;
      case FrameKind.request:
        this.#receiveRequest(frame, effects);
        break;
      case FrameKind.response:
      case FrameKind.failure:
        this.#receiveAnswer(frame, effects);
        break;
      case FrameKind.goodbye:
        effects.push({ kind: 'goodbye', control: frame.control });
        break;
      default:
        throw badFrame(`a frame of kind ${kind} is not due in a session`);
    }
  }

  #admitRequest(header: FrameHeader): void {
    const { method: id, channel, controlLength, dataLength, parameter } = header;
    const method = this.#options.method(id);
    // An unknown method is answered, not punished: a newer peer may know more. The window bounds its data.
    if (method !== undefined && (dataLength > method.requestDataMaxBytes || parameter > method.responseDataMaxBytes))
      throw badFrame(`request ${id} brings ${dataLength} and asks for ${parameter} bytes of data, over its limits`);
    const state = this.#channels[channel];
    const cost = requestCostBytes(controlLength, dataLength);
    if (state.heldBytes + cost > state.limits.windowBytes)
      throw badFrame(`${this.#options.peer} sends beyond the window of ${state.limits.windowBytes} bytes`);
    if (parameter > state.limits.replyBudgetBytes && method !== undefined)
      throw badFrame(`request ${id} asks for ${parameter} bytes of data, over ${state.limits.replyBudgetBytes}`);
  }

  #receiveRequest(frame: Frame, effects: SessionEffect<Request>[]): void {
    const { requestId, channel, method, parameter } = frame.header;
    const state = this.#channels[channel];
    const { control, data } = frame;
    const costBytes = requestCostBytes(control.length, data.length);
    state.heldBytes += costBytes;
    state.backlog.push({ requestId, channel, method, answerMaxBytes: parameter, costBytes, control, data });
    this.#startHandlers(state, effects);
  }

  #startHandlers(state: ChannelState<Request>, effects: SessionEffect<Request>[]): void {
    for (;;) {
      const request = state.backlog.peek();
      if (request === undefined || state.handlers >= state.limits.handlersMax) return;
      const reserved = state.replyReservedBytes + request.answerMaxBytes;
      if (state.replyReservedBytes > 0 && reserved > state.limits.replyBudgetBytes) return;
      state.backlog.shift();
      state.handlers++;
      state.replyReservedBytes = reserved;
      effects.push({ kind: 'handle', request });
    }
  }

  #receiveAnswer(frame: Frame, effects: SessionEffect<Request>[]): void {
    const { requestId, channel } = frame.header;
    const request = this.#pending.get(requestId);
    if (request === undefined || request.frame.channel !== channel)
      throw badFrame(`answer ${requestId} is to no request`);
    this.#pending.delete(requestId);
    const state = this.#channels[channel];
    state.inWindowBytes -= costOf(request);
    state.answerReservedBytes -= request.frame.parameter;
    effects.push({ kind: 'settle', request, frame });
    this.#releaseWaiting(state, effects);
  }

  // Sending

  #request(request: Request, effects: SessionEffect<Request>[]): void {
    const state = this.#channels[request.frame.channel];
    const { peerWindowBytes } = state;
    const { answerBudgetBytes } = state.limits;
    const cost = costOf(request);
    if (cost > peerWindowBytes || request.frame.parameter > answerBudgetBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `a request of ${cost} bytes with an answer of up to ${request.frame.parameter} does not fit into the window ` +
          `of ${peerWindowBytes} and the budget of ${answerBudgetBytes}; send it in parts`,
      );
    if (state.waiting.length >= state.limits.waitingMax)
      throw new HoldfastError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${state.limits.waitingMax} requests wait for ${this.#options.peer} already; try again later`,
      );
    state.waiting.push(request);
    this.#releaseWaiting(state, effects);
  }

  #releaseWaiting(state: ChannelState<Request>, effects: SessionEffect<Request>[]): void {
    for (;;) {
      const request = state.waiting.peek();
      if (request === undefined) return;
      if (request.cancelled) {
        state.waiting.shift();
        continue;
      }
      const { frame } = request;
      const cost = costOf(request);
      if (state.inWindowBytes + cost > state.peerWindowBytes) return;
      if (state.answerReservedBytes + frame.parameter > state.limits.answerBudgetBytes) return;
      state.waiting.shift();
      request.released = true;
      state.inWindowBytes += cost;
      state.answerReservedBytes += frame.parameter;
      this.#pending.set(frame.requestId, request);
      this.#queue(frame, effects);
    }
  }

  #answer(request: IncomingRequest, frame: OutgoingFrame, effects: SessionEffect<Request>[]): void {
    const state = this.#channels[request.channel];
    assert(frame.dataLength <= request.answerMaxBytes, 'an answer brings no more data than was asked for');
    state.handlers--;
    state.answering.set(frame, request);
    this.#queue(frame, effects);
    this.#startHandlers(state, effects);
  }

  #queue(frame: OutgoingFrame, effects: SessionEffect<Request>[]): void {
    const { outgoing } = this.#channels[frame.channel];
    outgoing.push(frame);
    if (outgoing.length === 1) effects.push({ kind: 'flush' });
  }

  #send(roomBytes: number, effects: SessionEffect<Request>[]): void {
    const { 0: control, 1: bulk } = this.#channels;
    let room = roomBytes + CONTROL_ROOM_BYTES;
    if (this.#grantDue !== undefined && room > 0) {
      const parameter = this.#options.leaseMs;
      effects.push({ kind: 'send', frame: controlFrame(FrameKind.grant, { requestId: this.#grantDue, parameter }) });
      this.#grantDue = undefined;
      room -= HEADER_BYTES;
    }
    room = this.#sendWhile(control, room, effects);
    this.#sendWhile(bulk, room - CONTROL_ROOM_BYTES, effects);
  }

  #sendWhile(state: ChannelState<Request>, roomBytes: number, effects: SessionEffect<Request>[]): number {
    let room = roomBytes;
    while (room > 0) {
      const frame = state.outgoing.shift();
      if (frame === undefined) break;
      room -= frameBytes(frame);
      this.#sendOne(state, frame, effects);
    }
    return room;
  }

  #sendOne(state: ChannelState<Request>, frame: OutgoingFrame, effects: SessionEffect<Request>[]): void {
    effects.push({ kind: 'send', frame });
    if (frame.kind !== FrameKind.response && frame.kind !== FrameKind.failure) return;
    const request = state.answering.get(frame);
    if (request === undefined) return;
    state.answering.delete(frame);
    state.heldBytes -= request.costBytes;
    state.replyReservedBytes -= request.answerMaxBytes;
    this.#startHandlers(state, effects);
  }

  // The end

  #end(reason: string, goodbye: boolean, effects: SessionEffect<Request>[]): void {
    this.#state = 'ended';
    const lost = [...this.#pending.values()];
    for (const state of [this.#channels[0], this.#channels[1]]) {
      lost.push(...state.waiting.drain());
      state.outgoing.drain();
      state.backlog.drain();
      state.answering.clear();
    }
    this.#pending.clear();
    effects.push({ kind: 'ended', reason, lost, goodbye });
  }
}

function costOf(request: OutgoingRequest): number {
  const { head, dataLength } = request.frame;
  return requestCostBytes(head.length - HEADER_BYTES, dataLength);
}
