/**
 * MemoryClient: what a user of a unit's memory asks the manager for, and the access that follows from it. Commands go
 * straight to the unit: the manager is needed to open a region, not to use it.
 *
 * A key is good for the session that the unit has with this node when it is given. Where that session is not up yet, or
 * breaks meanwhile, opening is tried again a few times; nothing else is: what became of a request whose session ended is
 * not known, and its owner looks with `list`.
 */
import type { Clock } from '../base/clock.ts';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import type { Method, PeerNode, PeerSession } from '../peer/peer.ts';
import {
  accessListMethod,
  allowMethod,
  closeMethod,
  createMethod,
  deleteMethod,
  denyMethod,
  growMethod,
  type LegPlace,
  listMethod,
  type OpenRequest,
  openMethod,
  type RegionAccessList,
  type RegionInfo,
  type TakeOverRequest,
  takeOverMethod,
} from './manager-wire.ts';
import { openAccess } from './memory-session.ts';
import type { AddressContext, AddressRange, RegionAccess, Right } from './one-sided.ts';
import type { MemoryTransport } from './plane-transport.ts';
import { Waiters } from './waiters.ts';

const OPEN_TRIES_MAX = 6;
const OPEN_AGAIN_MS = 50;

/** Which unit, by which manager, over which node. */
export interface MemoryClientOptions {
  /** This process among its peers; not started yet. */
  readonly node: PeerNode;
  readonly clock: Clock;
  /** Name of the manager's node. */
  readonly manager: string;
  /** Name of the unit's node; the manager's own if they are one. */
  readonly unit: string;
  /** How commands reach the unit. Default: over this node's session with it. */
  readonly transport?: MemoryTransport;
}

/** How long one request may wait. */
export interface ClientOptions {
  readonly signal?: AbortSignal;
}

/** With which rights, and how much of the region. */
export interface OpenOptions extends ClientOptions {
  /** Default: read and write. */
  readonly rights?: readonly Right[];
  /** Default: all of the region. */
  readonly range?: AddressRange;
  /** As a leg of a mirrored region: `managedLegs` says so. */
  readonly mirrored?: LegPlace;
}

/** Who, what, where. */
export interface AccessGrant extends ClientOptions {
  readonly peer: string;
  readonly rights: readonly Right[];
  /** Default: all of the region, as long as it may grow. */
  readonly range?: AddressRange;
}

/** A region that is open, and the key to it. */
export interface OpenedRegion {
  readonly context: AddressContext;
  readonly access: RegionAccess;
  /** Gives the key back. Without it the key lasts as long as the session with the unit, which takes so many and no more. */
  close(options?: ClientOptions): Promise<void>;
}

/** Waits for its peers, each call as long as its signal lets it. Rejects with the manager's HoldfastError. */
export class MemoryClient {
  readonly #options: MemoryClientOptions;
  readonly #sessions: Waiters;

  constructor(options: MemoryClientOptions) {
    const { node, manager, unit } = options;
    this.#options = options;
    this.#sessions = new Waiters(`a session with ${manager} and ${unit}`);
    node.subscribe({ onSessionUp: () => this.#sessions.resolveAll(), onSessionDown: () => {} });
  }

  /**
   * A new region of this peer's, all zeros.
   *
   * @throws HoldfastError ERR_HOLDFAST_DUPLICATE_NAME, ERR_HOLDFAST_NO_SPACE, ERR_HOLDFAST_ACCESS if this peer may not.
   */
  create(name: string, sizeBytes: number, options: ClientOptions = {}): Promise<RegionInfo> {
    return this.#ask(createMethod, { name, sizeBytes }, options.signal);
  }

  /**
   * Opens a region that this peer owns, or that its owner lets it use.
   *
   * @throws HoldfastError ERR_HOLDFAST_NOT_FOUND, ERR_HOLDFAST_ACCESS, ERR_HOLDFAST_OUT_OF_RANGE.
   */
  open(name: string, options: OpenOptions = {}): Promise<OpenedRegion> {
    return this.#open(openMethod, name, options);
  }

  /**
   * Opens a region in the place of whoever writes to it: when this resolves, no other peer can write there, nor will
   * anything arrive that it has sent before. Needs the right to write all of the region.
   */
  takeOver(name: string, options: OpenOptions = {}): Promise<OpenedRegion> {
    return this.#open(takeOverMethod, name, options);
  }

  /** As `takeOver`, of a leg of a mirrored region that this peer rebuilds: also this peer's own former keys end. */
  rebuild(name: string, options: OpenOptions = {}): Promise<OpenedRegion> {
    return this.#open(takeOverMethod, name, options, { rebuild: true });
  }

  /** More bytes at the end, zeros. Open it again to reach them. */
  grow(name: string, sizeBytes: number, options: ClientOptions = {}): Promise<RegionInfo> {
    return this.#ask(growMethod, { name, sizeBytes }, options.signal);
  }

  /** The region is gone, with all that is in it and every key to it. */
  delete(name: string, options: ClientOptions = {}): Promise<void> {
    return this.#ask(deleteMethod, { name }, options.signal);
  }

  /** Lets a peer do more than it may already. */
  allow(name: string, { signal, ...grant }: AccessGrant): Promise<void> {
    return this.#ask(allowMethod, { name, ...grant, rights: [...grant.rights] }, signal);
  }

  /** Takes from what a peer may do, wherever it reaches into the range; its keys with these rights are revoked. */
  deny(name: string, { signal, ...grant }: AccessGrant): Promise<void> {
    return this.#ask(denyMethod, { name, ...grant, rights: [...grant.rights] }, signal);
  }

  /** Who else may use a region of this peer's. */
  accessList(name: string, options: ClientOptions = {}): Promise<RegionAccessList> {
    return this.#ask(accessListMethod, { name }, options.signal);
  }

  /** The regions that this peer may use, by name. */
  async *list(options: ClientOptions = {}): AsyncGenerator<RegionInfo, void, undefined> {
    let after: string | undefined;
    for (let more = true; more; ) {
      const page = await this.#ask(listMethod, after === undefined ? {} : { after }, options.signal);
      yield* page.regions;
      after = page.regions.at(-1)?.name;
      more = page.more && after !== undefined;
    }
  }

  async #ask<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    signal: AbortSignal | undefined,
  ): Promise<Response> {
    const session = await this.#session(this.#options.manager, signal);
    return (await session.request(method, request, [], signal === undefined ? {} : { signal })).control;
  }

  async #open(
    method: Method<OpenRequest | TakeOverRequest, AddressContext>,
    name: string,
    { rights = ['read', 'write'], range, mirrored, signal }: OpenOptions,
    purpose: Pick<TakeOverRequest, 'rebuild'> = {},
  ): Promise<OpenedRegion> {
    const where = { ...(range && { range }), ...(mirrored && { mirrored }) };
    const request: TakeOverRequest = { name, rights: [...rights], ...where, ...purpose };
    for (let tries = 1; ; tries += 1) {
      const session = await this.#session(this.#options.unit, signal);
      try {
        const context = await this.#ask(method, request, signal);
        if (context.unit !== this.#options.unit) throw otherUnit(this.#options, context);
        if (session.open) return await this.#opened(session, context);
      } catch (error) {
        if (!isHoldfastError(error, 'ERR_HOLDFAST_PEER_LOST') || tries >= OPEN_TRIES_MAX) throw error;
      }
      if (tries >= OPEN_TRIES_MAX) throw unsteady(this.#options.unit);
      await this.#pause(tries * OPEN_AGAIN_MS, signal);
    }
  }

  async #opened(session: PeerSession, context: AddressContext): Promise<OpenedRegion> {
    const { transport = openAccess } = this.#options;
    const { region, key } = context;
    return {
      context,
      access: await transport(session, context),
      close: ({ signal } = {}) => this.#ask(closeMethod, { region, key }, signal),
    };
  }

  async #session(peer: string, signal: AbortSignal | undefined): Promise<PeerSession> {
    throwIfAborted(signal, 'the request');
    for (;;) {
      const session = this.#options.node.session(peer);
      if (session?.open) return session;
      await this.#sessions.wait(signal);
    }
  }

  async #pause(delayMs: number, signal: AbortSignal | undefined): Promise<void> {
    await new Promise<void>((resolve) => void this.#options.clock.setTimer(delayMs, resolve));
    throwIfAborted(signal, 'the request');
  }
}

function otherUnit({ unit, manager }: MemoryClientOptions, context: AddressContext): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_CONFIG',
    `${manager} manages the memory of ${context.unit}, not of ${unit}; give the client the unit's name`,
  );
}

function unsteady(unit: string): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_PEER_LOST',
    `the session with ${unit} ended ${OPEN_TRIES_MAX} times while a key was given; check the network to it`,
  );
}
