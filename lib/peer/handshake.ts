/**
 * The handshake: who is at the other end, may it talk to us, and what do both know. Pure: events in, effects out.
 *
 *   dialler                      acceptor
 *   hello  ───────────────────▶            cluster, name, versions, incarnation, nonce
 *          ◀───────────────────  hello
 *   proof  ───────────────────▶            HMAC over both hellos, by the dialler's role
 *          ◀───────────────────  proof     … by the acceptor's role
 *   accept ─── by the chooser ──           whichever of the two that is
 *
 * Instead of its next message either end may send `refuse` with a reason, and the connection ends.
 *
 * Invariants:
 * - The acceptor proves nothing to a dialler that has not proven itself. A proof holds for its role and for this pair
 *   of hellos (fresh nonces on both sides) only: it cannot be reflected or replayed.
 * - Under TLS the name that the transport proved is the name in the hello. The proofs are made there too.
 * - The chooser is the end whose name sorts first (by UTF-16 code units). It alone says, by `accept`, which of several
 *   authenticated connections becomes the session; so that connecting both ways at once has one outcome.
 * - Terminal states: established, failed. Nothing comes of later events.
 *
 * Proof = HMAC-SHA-256(K, "holdfast proof 1" ‖ role ‖ SHA-256(dialler's hello) ‖ SHA-256(acceptor's hello)), where
 * K = HMAC-SHA-256(key, "holdfast challenge") and role is one byte, "D" or "A"; a hello is its control body as sent.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { z } from 'zod';
import { HoldfastError, type HoldfastErrorCode, isHoldfastError } from '../base/errors.ts';
import { decodeControl, encodeControl } from './control-body.ts';
import { FrameKind } from './frame.ts';

/** Protocol versions that this build speaks. */
export const VERSION_MIN = 1;
export const VERSION_MAX = 1;

export const NONCE_BYTES = 32;
/** Before a peer is authenticated its frames are no longer than this. */
export const HANDSHAKE_CONTROL_MAX_BYTES = 4096;
export const FEATURES_MAX = 32;
export const NAME_PATTERN = /^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$/;
export const FEATURE_PATTERN = /^[a-z0-9-]{1,48}$/;
export const CLUSTER_ID_MAX_LENGTH = 128;
const PROOF_BYTES = 32;
const WINDOW_MAX_BYTES = 2 ** 31;

const count = z.number().int().min(1).max(WINDOW_MAX_BYTES);
const helloSchema = z.object({
  minVersion: z.number().int().min(1).max(65_535),
  maxVersion: z.number().int().min(1).max(65_535),
  cluster: z.string().max(CLUSTER_ID_MAX_LENGTH),
  from: z.string().regex(NAME_PATTERN),
  to: z.string().regex(NAME_PATTERN),
  incarnation: z.string().regex(/^[0-9a-f]{32}$/),
  nonce: z.instanceof(Uint8Array).refine((bytes) => bytes.length === NONCE_BYTES, 'is not of 32 bytes'),
  features: z.array(z.string().regex(FEATURE_PATTERN)).max(FEATURES_MAX),
  controlWindowBytes: count,
  bulkWindowBytes: count,
});
type Hello = z.output<typeof helloSchema>;

const proofSchema = z.object({
  mac: z.instanceof(Uint8Array).refine((bytes) => bytes.length === PROOF_BYTES, 'is not of 32 bytes'),
});

/** What one end refuses the other for. On the wire by name; unknown ones are read as `malformed`. */
export type RefusalReason =
  | 'malformed'
  | 'wrong-cluster'
  | 'version'
  | 'self'
  | 'duplicate-name'
  | 'unknown-peer'
  | 'wrong-peer'
  | 'wrong-key'
  | 'session-exists';

const refuseSchema = z.object({ reason: z.string().max(64) });

interface Refusal {
  readonly code: HoldfastErrorCode;
  /** As the refusing end reads it, after "NAME was refused: ", where it has nothing more exact to say. */
  readonly said?: string;
  /** As the refused end reads it, after "NAME refused: ". */
  readonly told: string;
}

const refusals: Readonly<Record<RefusalReason, Refusal>> = {
  malformed: {
    code: 'ERR_HOLDFAST_HANDSHAKE',
    told: 'it did not understand the handshake; check that both run Holdfast',
  },
  'wrong-cluster': {
    code: 'ERR_HOLDFAST_WRONG_CLUSTER',
    told: 'it belongs to another cluster; give both nodes the same cluster id',
  },
  version: {
    code: 'ERR_HOLDFAST_VERSION',
    told: 'the two have no protocol version in common; upgrade the older one',
  },
  self: {
    code: 'ERR_HOLDFAST_SELF_CONNECT',
    told: 'that address leads back to this node itself; correct the address of the peer',
  },
  'duplicate-name': {
    code: 'ERR_HOLDFAST_DUPLICATE_NAME',
    said: 'another running node has taken its name since; give each node its own name',
    told: 'another running node has the name of this one; give each node its own name',
  },
  'unknown-peer': {
    code: 'ERR_HOLDFAST_UNKNOWN_PEER',
    told: 'this node is not among its peers; add it to the configuration there',
  },
  'wrong-peer': {
    code: 'ERR_HOLDFAST_WRONG_PEER',
    told: 'the node at that address has another name; correct the address or the name of the peer',
  },
  'wrong-key': {
    code: 'ERR_HOLDFAST_WRONG_KEY',
    told: 'the keys differ; give both nodes the same key',
  },
  'session-exists': {
    code: 'ERR_HOLDFAST_HANDSHAKE',
    said: 'there is a session with it already',
    told: 'it has a session with this node already',
  },
};

export interface HandshakeSelf {
  readonly name: string;
  readonly clusterId: string;
  readonly incarnation: string;
  readonly features: readonly string[];
  readonly minVersion: number;
  readonly maxVersion: number;
  readonly key: Uint8Array;
  readonly controlWindowBytes: number;
  readonly bulkWindowBytes: number;
  isPeer(name: string): boolean;
}

export interface HandshakeOptions {
  readonly self: HandshakeSelf;
  readonly nonce: Uint8Array;
  /** The dialler knows whom it dials. */
  readonly dials: string | undefined;
  /** The name that the transport proved, if it proves names (the acceptor's side of TLS). */
  readonly transportIdentity: string | undefined;
  /** Where the other end is, for messages. */
  readonly remote: string;
}

/** What is known of the other end once it is authenticated. */
export interface RemotePeer {
  readonly name: string;
  readonly incarnation: string;
  readonly version: number;
  /** What both have. */
  readonly features: readonly string[];
  readonly controlWindowBytes: number;
  readonly bulkWindowBytes: number;
}

export type HandshakeEvent =
  | { readonly kind: 'opened' }
  | { readonly kind: 'frame'; readonly frame: FrameKind; readonly control: Uint8Array }
  /** The chooser's decision, after `authenticated`. */
  | { readonly kind: 'accept' }
  | { readonly kind: 'refuse'; readonly reason: RefusalReason }
  | { readonly kind: 'deadline'; readonly afterMs: number };

export type HandshakeEffect =
  | { readonly kind: 'send'; readonly frame: FrameKind; readonly control: Uint8Array }
  /** Both ends are proven. If `chooses`, the owner answers with `accept` or `refuse`; else the peer does. */
  | { readonly kind: 'authenticated'; readonly peer: RemotePeer; readonly chooses: boolean }
  | { readonly kind: 'established'; readonly peer: RemotePeer }
  /** The end. `claimed` is who the other end says that it is, proven or not. Send what is queued, then close. */
  | {
      readonly kind: 'failed';
      readonly error: HoldfastError;
      readonly claimed: string | undefined;
      readonly benign: boolean;
    };

type State = 'new' | 'awaits-hello' | 'awaits-proof' | 'chooses' | 'awaits-choice' | 'established' | 'failed';

class Refused extends Error {
  readonly reason: RefusalReason;

  constructor(reason: RefusalReason, message: string) {
    super(message);
    this.reason = reason;
  }
}

export class Handshake {
  readonly #self: HandshakeSelf;
  readonly #options: HandshakeOptions;
  #state: State = 'new';
  #ownHello: Uint8Array | undefined;
  #peerHello: Uint8Array | undefined;
  #claimed: string | undefined;
  #peer: RemotePeer | undefined;

  constructor(options: HandshakeOptions) {
    this.#self = options.self;
    this.#options = options;
    this.#claimed = options.dials;
  }

  get state(): State {
    return this.#state;
  }

  step(event: HandshakeEvent): HandshakeEffect[] {
    if (this.#state === 'established' || this.#state === 'failed') return [];
    try {
      switch (event.kind) {
        case 'opened':
          return this.#open();
        case 'frame':
          return this.#frame(event.frame, event.control);
        case 'accept':
          return this.#accept();
        case 'refuse':
          throw new Refused(event.reason, refusals[event.reason].said ?? refusals[event.reason].told);
        case 'deadline':
          return [
            this.#fail('ERR_HOLDFAST_TIMEOUT', `${this.#who} did not finish the handshake in ${event.afterMs} ms`),
          ];
      }
    } catch (error) {
      return this.#refuse(error);
    }
  }

  get #dials(): boolean {
    return this.#options.dials !== undefined;
  }

  get #who(): string {
    return this.#claimed === undefined ? this.#options.remote : `${this.#claimed} at ${this.#options.remote}`;
  }

  #open(): HandshakeEffect[] {
    this.#state = 'awaits-hello';
    return this.#options.dials === undefined ? [] : [this.#sayHello(this.#options.dials)];
  }

  #frame(frame: FrameKind, control: Uint8Array): HandshakeEffect[] {
    if (frame === FrameKind.refuse) return [this.#refused(control)];
    if (this.#state === 'awaits-hello' && frame === FrameKind.hello) return this.#hello(control);
    if (this.#state === 'awaits-proof' && frame === FrameKind.proof) return this.#proof(control);
    if (this.#state === 'awaits-choice' && frame === FrameKind.accept) return [this.#establish()];
    throw new Refused('malformed', `a frame of kind ${frame} is not due in state ${this.#state}`);
  }

  #hello(control: Uint8Array): HandshakeEffect[] {
    const hello = decodeControl(helloSchema, control, 'the hello');
    if (this.#options.dials === undefined) this.#claimed = hello.from;
    this.#peer = this.#check(hello);
    this.#peerHello = control.slice();
    this.#state = 'awaits-proof';
    return [this.#dials ? this.#sayProof() : this.#sayHello(hello.from)];
  }

  /** Order matters for who reads it: a node of another cluster is told just that. */
  #check(hello: Hello): RemotePeer {
    const { self } = this.#options;
    if (hello.cluster !== self.clusterId)
      throw new Refused(
        'wrong-cluster',
        `it belongs to cluster ${JSON.stringify(hello.cluster)}, this node to ${JSON.stringify(self.clusterId)}; ` +
          'give both the same cluster id',
      );
    const version = Math.min(hello.maxVersion, self.maxVersion);
    if (version < Math.max(hello.minVersion, self.minVersion))
      throw new Refused(
        'version',
        `it speaks protocol versions ${hello.minVersion} to ${hello.maxVersion}, this node ` +
          `${self.minVersion} to ${self.maxVersion}; upgrade the older one`,
      );
    this.#checkNames(hello);
    return {
      name: hello.from,
      incarnation: hello.incarnation,
      version,
      features: self.features.filter((feature) => hello.features.includes(feature)),
      controlWindowBytes: hello.controlWindowBytes,
      bulkWindowBytes: hello.bulkWindowBytes,
    };
  }

  #checkNames(hello: Hello): void {
    const { self, dials, transportIdentity } = this.#options;
    if (hello.incarnation === self.incarnation)
      throw new Refused('self', 'it is this node itself; correct the address');
    if (hello.from === self.name)
      throw new Refused('duplicate-name', `it is called ${self.name}, as this node is; give each node its own name`);
    if (dials !== undefined && hello.from !== dials)
      throw new Refused('wrong-peer', `it is called ${hello.from}; correct the address or the name of the peer`);
    if (hello.to !== self.name)
      throw new Refused('wrong-peer', `it looks for ${hello.to}, and this is ${self.name}; correct its configuration`);
    if (!self.isPeer(hello.from))
      throw new Refused('unknown-peer', `${hello.from} is not a peer of this node; add it to the configuration`);
    if (transportIdentity !== undefined && transportIdentity !== hello.from)
      throw new Refused('wrong-key', `it proved to be ${transportIdentity}; check the keys and names`);
  }

  #proof(control: Uint8Array): HandshakeEffect[] {
    const { mac } = decodeControl(proofSchema, control, 'the proof');
    if (!timingSafeEqual(mac, this.#mac(this.#dials ? 'A' : 'D')))
      throw new Refused('wrong-key', 'it has another key; give both nodes the same key');
    const peer = this.#peer!;
    const chooses = this.#self.name < peer.name;
    this.#state = chooses ? 'chooses' : 'awaits-choice';
    const authenticated: HandshakeEffect = { kind: 'authenticated', peer, chooses };
    return this.#dials ? [authenticated] : [this.#sayProof(), authenticated];
  }

  #accept(): HandshakeEffect[] {
    if (this.#state !== 'chooses') throw new Refused('malformed', `there is nothing to choose in state ${this.#state}`);
    return [{ kind: 'send', frame: FrameKind.accept, control: encodeControl({}) }, this.#establish()];
  }

  #establish(): HandshakeEffect {
    this.#state = 'established';
    return { kind: 'established', peer: this.#peer! };
  }

  #sayHello(to: string): HandshakeEffect {
    const { name, clusterId, incarnation, features, minVersion, maxVersion, controlWindowBytes, bulkWindowBytes } =
      this.#self;
    this.#ownHello = encodeControl({
      minVersion,
      maxVersion,
      cluster: clusterId,
      from: name,
      to,
      incarnation,
      nonce: this.#options.nonce,
      features,
      controlWindowBytes,
      bulkWindowBytes,
    });
    return { kind: 'send', frame: FrameKind.hello, control: this.#ownHello };
  }

  #sayProof(): HandshakeEffect {
    const control = encodeControl({ mac: this.#mac(this.#dials ? 'D' : 'A') });
    return { kind: 'send', frame: FrameKind.proof, control };
  }

  #mac(role: 'D' | 'A'): Buffer {
    const [dialler, acceptor] = this.#dials ? [this.#ownHello, this.#peerHello] : [this.#peerHello, this.#ownHello];
    const key = createHmac('sha256', this.#self.key).update('holdfast challenge').digest();
    return createHmac('sha256', key)
      .update(`holdfast proof 1${role}`)
      .update(createHash('sha256').update(dialler!).digest())
      .update(createHash('sha256').update(acceptor!).digest())
      .digest();
  }

  /** The other end will not have us. Its words are not repeated: before the proof anyone could have written them. */
  #refused(control: Uint8Array): HandshakeEffect {
    const { reason } = decodeControl(refuseSchema, control, 'the refusal');
    const known = Object.hasOwn(refusals, reason) ? (reason as RefusalReason) : 'malformed';
    const { code, told } = refusals[known];
    return this.#fail(code, `${this.#who} refused: ${told}`, known === 'session-exists');
  }

  #refuse(error: unknown): HandshakeEffect[] {
    const reason = error instanceof Refused ? error.reason : 'malformed';
    if (!(error instanceof Refused) && !isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')) throw error;
    const message = `${this.#who} was refused: ${error.message}`;
    return [
      { kind: 'send', frame: FrameKind.refuse, control: encodeControl({ reason }) },
      this.#fail(refusals[reason].code, message, reason === 'session-exists'),
    ];
  }

  #fail(code: HoldfastErrorCode, message: string, benign = false): HandshakeEffect {
    this.#state = 'failed';
    return { kind: 'failed', error: new HoldfastError(code, message), claimed: this.#claimed, benign };
  }
}
