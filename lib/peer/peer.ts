/**
 * What the systems above see of other servers: a `PeerNode` on each server keeps one authenticated session to each
 * peer, and carries typed requests over it. How a session comes about (frames, handshake, transports) is below this
 * face; the systems never see a socket.
 *
 * Invariants:
 * - A peer is authenticated both ways, and its cluster, name and version are checked, before any request passes.
 * - Requests of one session arrive in the order in which they were sent, per channel; each is handled exactly once or
 *   the session ends. When a session ends, every request that has no answer fails with ERR_HOLDFAST_PEER_LOST: what
 *   became of it is not known.
 * - A session that ended never comes back: the next one is a new object with a higher ordinal.
 * - Memory is bounded: a channel's credit window bounds what is on the way, and the sender waits.
 */
import type { z } from 'zod';

/** Bulk data never delays control messages and heartbeats: each channel has its own credit window. */
export type Channel = 'control' | 'bulk';

/** How a kind of body looks on the wire, where that is not MessagePack. */
export interface BodyFormat<Body> {
  /** The bytes that `decode` takes. */
  encode(body: Body): Uint8Array;
  /** Throws ERR_HOLDFAST_BAD_FRAME. What it gives fits the method's schema. */
  decode(bytes: Uint8Array): Body;
}

/** A kind of request: its number on the wire, and the schemas that both directions are checked by. */
export interface Method<Request, Response> {
  readonly id: number;
  readonly name: string;
  readonly channel: Channel;
  readonly request: z.ZodType<Request>;
  readonly response: z.ZodType<Response>;
  /** Takes the place of MessagePack and the schema for requests that have to be fast; and for their answers. */
  readonly requestFormat?: BodyFormat<Request>;
  readonly responseFormat?: BodyFormat<Response>;
  /** More data than this in a request or a response ends the session before anything is allocated. */
  readonly maxRequestDataBytes: number;
  readonly maxResponseDataBytes: number;
}

/** Who is at the other end of a session. */
export interface PeerInfo {
  readonly name: string;
  /** Random, new at every start of the peer's process: tells a restart from a broken link. */
  readonly incarnation: string;
  readonly features: readonly string[];
}

/** A request as its handler sees it, or an answer as the asker does. */
export interface Message<Control> {
  readonly control: Control;
  /** Raw bytes beside the control body; empty if there are none. Belongs to the receiver. */
  readonly data: Uint8Array;
}

/** What a handler answers. */
export interface Reply<Control> {
  readonly control: Control;
  /** Left unchanged until `release` is called. */
  readonly data?: readonly Uint8Array[];
  /** Called once, when the data has gone (sent, or dropped with the session): its memory may be used again. */
  readonly release?: () => void;
}

/** How one request is sent. */
export interface RequestOptions {
  /** Cancels the waiting, not what the peer does. The promise still settles only once the data is no longer in use. */
  readonly signal?: AbortSignal;
  /**
   * Most bytes of data that this answer will bring, if fewer than the method allows. That much of the budget for
   * answers is set aside while the request runs, so that a good figure lets more of them run at once.
   */
  readonly maxResponseDataBytes?: number;
}

/**
 * An authenticated session with one peer. Requests of one channel arrive in the order in which they were sent. When the
 * session ends, every request without an answer fails with ERR_HOLDFAST_PEER_LOST: what became of it is not known. A
 * session that has ended never comes back.
 */
export interface PeerSession {
  /** Grows by one with every session to any peer of this node. */
  readonly ordinal: number;
  readonly peer: PeerInfo;
  /** False once it has ended. */
  readonly open: boolean;
  /**
   * Sends a request; resolves with the peer's answer. The data is sent as it is at the time of the call or later:
   * the caller leaves it unchanged until the promise settles. Rejects with the peer's HoldfastError (same code) if its
   * handler failed, or ERR_HOLDFAST_PEER_LOST.
   */
  request<Request, Response>(
    method: Method<Request, Response>,
    control: Request,
    data?: readonly Uint8Array[],
    options?: RequestOptions,
  ): Promise<Message<Response>>;
  /**
   * Until when (this node's monotonic clock, ms) we may rely on what we cached from the peer. Counted from before the
   * renewal was sent. -Infinity before the first grant.
   */
  leaseHeldUntilMs(): number;
  /** Until when the peer may rely on what it cached from us: nothing it depends on may change before that. */
  leaseGrantedUntilMs(): number;
  /** Ends the session; the node will try for a new one. */
  close(reason: string): void;
}

/** Answers a request, at once or later. Its error reaches the asker with the same code. */
export type RequestHandler<Request, Response> = (
  message: Message<Request>,
  session: PeerSession,
) => Promise<Reply<Response>> | Reply<Response>;

/** Why there is no session with a peer, in words and as a code, for status. */
export interface LinkProblem {
  readonly code: string;
  readonly message: string;
}

/** What a node tells its subscribers, in order. Must not throw. */
export interface PeerEvents {
  /** A session has begun; it may be used at once. */
  onSessionUp(session: PeerSession): void;
  /** The lease that the ended session had granted may still be running: see session.leaseGrantedUntilMs(). */
  onSessionDown(session: PeerSession, reason: string): void;
}

/** Whether there is a session with a peer, for showing to people. */
export interface LinkStatus {
  readonly peer: string;
  /** DRBD's words. */
  readonly state: 'Connected' | 'Connecting' | 'StandAlone';
  /** The address of the live path, if connected. */
  readonly path: string | undefined;
  /** Of the last heartbeat. */
  readonly roundTripMs: number | undefined;
  readonly problem: LinkProblem | undefined;
}

/**
 * This server among its peers: keeps one authenticated session to each of them, and carries typed requests. Made by
 * `createPeerNode`.
 */
export interface PeerNode extends AsyncDisposable {
  readonly name: string;
  readonly incarnation: string;
  /** For how long a peer may rely on what it has cached from this node after its last renewal. */
  readonly leaseMs: number;
  /** Registers what answers a method. Before `start`; once per method. */
  handle<Request, Response>(method: Method<Request, Response>, handler: RequestHandler<Request, Response>): void;
  /** Tells of sessions that begin and end from now on. */
  subscribe(events: PeerEvents): void;
  /** Listens and dials; sessions come up as they can. */
  start(): Promise<void>;
  /** The live session with that peer. */
  session(peer: string): PeerSession | undefined;
  /** One for each peer that is configured. */
  links(): readonly LinkStatus[];
  /** Ends all sessions and stops listening. Idempotent. */
  close(): Promise<void>;
}
