/**
 * One connection to another node, from its first byte to its last: the handshake, then perhaps a session over it.
 *
 * Invariants: until the handshake is over nothing but small handshake frames is admitted, and a deadline runs; whatever
 * comes that cannot be trusted ends the connection; `onClosed` is told exactly once.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';
import type { Connection } from '../base/network.ts';
import {
  badFrame,
  controlFrame,
  type Frame,
  type FrameHeader,
  FrameKind,
  FrameParser,
  FrameWriter,
  type OutgoingFrame,
} from './frame.ts';
import {
  HANDSHAKE_CONTROL_MAX_BYTES,
  Handshake,
  type HandshakeEffect,
  type HandshakeEvent,
  type HandshakeSelf,
  type RefusalReason,
  type RemotePeer,
} from './handshake.ts';
import type { SessionDriver } from './session-driver.ts';

/** How long a last word (refusal, goodbye) may take to leave. */
const LINGER_MS = 1000;

export interface PeerConnectionOptions {
  /** Distinguishes the connections of a node. */
  readonly number: number;
  readonly connection: Connection;
  readonly clock: Clock;
  readonly self: HandshakeSelf;
  readonly nonce: Uint8Array;
  /** The peer that we dialled; undefined if it dialled us. */
  readonly dials: string | undefined;
  readonly handshakeTimeoutMs: number;
}

export interface PeerConnectionOwner {
  /** We are the chooser: answer by `accept` or `refuse`, now or later. */
  onChoice(connection: PeerConnection, peer: RemotePeer): void;
  /** Makes the session that lives on this connection from now on. */
  onEstablished(connection: PeerConnection, peer: RemotePeer): SessionDriver;
  /** `claimed` is who the other end said that it is; `benign`: there is nothing to mend. */
  onHandshakeFailed(
    connection: PeerConnection,
    error: HoldfastError,
    claimed: string | undefined,
    benign: boolean,
  ): void;
  onClosed(connection: PeerConnection): void;
}

export class PeerConnection {
  readonly number: number;
  readonly dials: string | undefined;
  readonly connection: Connection;
  readonly writer = new FrameWriter();
  readonly closed: Promise<void>;
  readonly #options: PeerConnectionOptions;
  readonly #owner: PeerConnectionOwner;
  readonly #handshake: Handshake;
  readonly #parser: FrameParser;
  #session: SessionDriver | undefined;
  #failed = false;
  #timer: TimerHandle | undefined;

  constructor(options: PeerConnectionOptions, owner: PeerConnectionOwner) {
    this.number = options.number;
    this.dials = options.dials;
    this.connection = options.connection;
    this.#options = options;
    this.#owner = owner;
    const { self, nonce, dials, connection } = options;
    const { transportIdentity, remote } = connection;
    this.#handshake = new Handshake({ self, nonce, dials, transportIdentity, remote });
    this.#parser = new FrameParser({
      admit: (header) => this.#admit(header),
      frame: (frame) => this.#frame(frame),
    });
    this.closed = new Promise((resolve) => {
      connection.start({
        onData: (chunk) => this.#data(chunk),
        onDrain: () => this.#session?.drained(),
        onClose: (error) => {
          this.#lost(error);
          resolve();
        },
      });
    });
    this.#timer = options.clock.setTimer(options.handshakeTimeoutMs, () =>
      this.#step({ kind: 'deadline', afterMs: options.handshakeTimeoutMs }),
    );
    this.#step({ kind: 'opened' });
  }

  get session(): SessionDriver | undefined {
    return this.#session;
  }

  accept(): void {
    this.#step({ kind: 'accept' });
  }

  refuse(reason: RefusalReason): void {
    this.#step({ kind: 'refuse', reason });
  }

  /** Closes once what is queued has left, or a little later. */
  end(): void {
    this.#timer?.cancel();
    this.#timer = this.#options.clock.setTimer(LINGER_MS, () => this.connection.destroy());
    this.connection.end();
  }

  destroy(): void {
    this.#failed = true;
    this.#timer?.cancel();
    this.connection.destroy();
  }

  /** The session over this connection has ended. */
  sessionEnded(goodbye: OutgoingFrame | undefined): void {
    this.#failed = true;
    if (goodbye === undefined) {
      this.destroy();
      return;
    }
    this.#send(goodbye);
    this.end();
  }

  #admit(header: FrameHeader): void {
    if (this.#session !== undefined) {
      this.#session.admit(header);
      return;
    }
    const { kind, controlLength, dataLength } = header;
    if (kind > FrameKind.refuse || controlLength > HANDSHAKE_CONTROL_MAX_BYTES || dataLength > 0)
      throw badFrame(`a frame of kind ${kind} with ${controlLength} + ${dataLength} bytes is not due in a handshake`);
  }

  #frame(frame: Frame): void {
    if (this.#session === undefined) this.#step({ kind: 'frame', frame: frame.header.kind, control: frame.control });
    else this.#session.frame(frame);
  }

  #data(chunk: Uint8Array): void {
    if (this.#failed) return;
    try {
      this.#session?.heard();
      this.#parser.push(chunk);
    } catch (error) {
      this.#distrust(error as Error);
    }
  }

  /** What came is not what a peer sends; or our own invariant broke over it. Either way this connection is over. */
  #distrust(error: Error): void {
    if (this.#session !== undefined) {
      this.#session.end(error.message, true);
      return;
    }
    const { remote } = this.connection;
    const known = error instanceof HoldfastError ? error : new HoldfastError('ERR_HOLDFAST_INTERNAL', error.message);
    this.#fail(new HoldfastError(known.code, `${remote}: ${known.message}`, { cause: error }), this.dials, false);
    this.destroy();
  }

  #step(event: HandshakeEvent): void {
    for (const effect of this.#handshake.step(event)) this.#perform(effect);
  }

  #perform(effect: HandshakeEffect): void {
    switch (effect.kind) {
      case 'send':
        this.#send(controlFrame(effect.frame, { control: effect.control }));
        break;
      case 'authenticated':
        if (effect.chooses) this.#owner.onChoice(this, effect.peer);
        break;
      case 'established':
        this.#timer?.cancel();
        this.#session = this.#owner.onEstablished(this, effect.peer);
        break;
      case 'failed':
        this.#fail(effect.error, effect.claimed, effect.benign);
        this.end();
        break;
    }
  }

  #send(frame: OutgoingFrame): void {
    const chunks: Uint8Array[] = [];
    this.writer.write(frame, chunks);
    this.connection.write(chunks);
  }

  #fail(error: HoldfastError, claimed: string | undefined, benign: boolean): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#owner.onHandshakeFailed(this, error, claimed, benign);
  }

  #lost(error: Error | undefined): void {
    this.#timer?.cancel();
    const why = error?.message ?? 'the other end closed the connection';
    if (this.#session !== undefined) this.#session.end(why, false);
    else {
      const { remote } = this.connection;
      const message = `${remote} went away before the handshake was over; check there, and that both declare the same kind of link`;
      // Whom it dialled in vain is told to the dialler only: the acceptor cannot know who that was.
      this.#fail(
        new HoldfastError('ERR_HOLDFAST_CONNECTION_LOST', message, { cause: error }),
        this.dials,
        this.dials === undefined,
      );
    }
    this.#owner.onClosed(this);
  }
}
