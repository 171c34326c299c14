/**
 * Policing: which server may read (shared) or write (exclusive) which extent of a volume. Pure: no clock, no socket; the
 * driver performs the effects, in their order.
 *
 * The algorithm is Roucairol and Carvalho's (On mutual exclusion in computer networks, CACM 26(2), 1983), with shared
 * tokens and an order that ages. For each extent and each two nodes there is one token. It is at one of the two, which
 * may then write as far as the other is concerned; or it is shared, and both may read. A node has the access to an
 * extent that its tokens towards all others give. Tokens stay where they are until they are asked for, so that access
 * that nobody contests costs no messages.
 *
 * Order: a request's key is its Lamport time less `PRIORITY_TICKS` for each priority; the smaller key goes first, then
 * the smaller node. A request is overtaken only by those that came before it, or less than a fixed number of ticks
 * after it with a higher priority. Messages move the clocks on, so that nobody starves.
 *
 * Invariants:
 * - A token is given away only while no operation in flight here needs it; so a write in flight on an extent excludes
 *   all operations in flight on it at other nodes. Operations of one node do not exclude each other (RangeLock does).
 * - A token that was asked for is kept only for operations in flight and for requests before the asker's in the order.
 *   A request behind an asker's does not start. So the first request in the order has or gets all that it lacks.
 * - A request that has not started asks for its lowest extent that it lacks (ascending acquisition), and gives what it
 *   has to those before it. Nobody else remembers it: it asks the node that has the token, and again, under its old
 *   key, if it has had to give the token back.
 * - Towards each peer a node has at most one request on an extent under way: its first one in the order of those that lack
 *   the token. One that comes before it replaces it. A request whose sender has the token already has crossed the grant, and is dropped.
 *
 * Bound: 10 bytes an extent, whatever the number of nodes; beside it only what waits: for each request that waits here,
 * and for each extent of it, a place in a list. A peer's request waits only where operations of this node are in flight
 * or waiting. The number of these is limited by the users of the volume.
 */
import { assert, HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { type AccessMode, MAX_EXTENTS, MAX_LAMPORT, MAX_PRIORITY, type PolicingMessage } from './policing-wire.ts';

const MAX_NODES = 8;
/** How many requests a step of priority is worth. */
export const PRIORITY_TICKS = 64;

export type PolicingEffect =
  | { readonly kind: 'send'; readonly to: number; readonly message: PolicingMessage }
  /** The operation that asked under this id has its access, and counts as in flight. */
  | { readonly kind: 'start'; readonly id: number };

/** Shared, so that an operation's end that concerns nobody else allocates nothing. */
export const NO_EFFECTS: readonly PolicingEffect[] = Object.freeze([]);

/** Extents whose access is at a node when a session begins: it has writes in flight on them from before. */
export interface PolicingClaim {
  readonly node: number;
  readonly extents: readonly number[];
}

export interface PolicingOptions {
  readonly self: number;
  /** Nodes are numbered from 0. */
  readonly nodes: number;
  readonly extents: number;
  /** All access is at this node when the session begins. */
  readonly first: number;
}

/** What a token gives to this node. */
const NONE = 0;
const SHARED = 1;
const EXCLUSIVE = 2;
type Level = typeof NONE | typeof SHARED | typeof EXCLUSIVE;

const LEVEL_NAMES = ['none', 'shared', 'exclusive'] as const;
/** A level of SHARED and of EXCLUSIVE in each node's two bits of an extent's tokens. */
const ALL_SHARED = 0x5555;
const ALL_EXCLUSIVE = 0xaaaa;

/** Of a cell of reads. */
const OPEN_BITS = 3;
const ONE_READ = 4;

interface Ask {
  readonly level: Level;
  readonly key: number;
}

interface Waiter extends Ask {
  readonly id: number;
  readonly first: number;
  readonly last: number;
  readonly lamport: number;
  readonly priority: number;
  /** The lowest extent that it lacks a token of; -1 if none: then an earlier request of a peer is in the way. */
  lacks: number;
}

/** What waits on an extent. */
interface Contest {
  /** Requests of this node that have not started, in their order. */
  readonly waiters: Waiter[];
  /** By node: what it has asked for and not been given. */
  readonly asked: (Ask | undefined)[];
  /** By node: what this node has asked it for and not been given. */
  readonly asking: (Ask | undefined)[];
}

export class Policing {
  readonly #options: PolicingOptions;
  readonly #self: number;
  readonly #nodes: number;
  readonly #extents: number;
  /** Two bits of each node's number: the level towards that node; EXCLUSIVE towards oneself. */
  readonly #tokens: Uint16Array;
  /**
   * Two cells an extent, so that an operation touches one line of the processor's cache. First: reads in flight, and in
   * its lowest two bits the level at which an operation starts without a look at anything else: NONE where a peer's
   * request waits. Second: writes in flight.
   */
  readonly #cells: Int32Array;
  readonly #contests = new Map<number, Contest>();
  readonly #waiters = new Map<number, Waiter>();
  #clock = 0;

  constructor(options: PolicingOptions) {
    const { self, nodes, extents, first } = options;
    assert(nodes >= 1 && nodes <= MAX_NODES, 'policing has 1 to 8 nodes');
    assert(self >= 0 && self < nodes && first >= 0 && first < nodes, 'nodes are numbered from 0');
    assert(extents >= 1 && extents <= MAX_EXTENTS, `a volume has 1 to ${MAX_EXTENTS} extents`);
    this.#options = options;
    this.#self = self;
    this.#nodes = nodes;
    this.#extents = extents;
    this.#tokens = new Uint16Array(extents).fill(this.#tokensAtStart(first));
    this.#cells = new Int32Array(2 * extents);
    this.#refreshAll();
  }

  /** Requests of this node that have not started. */
  get waiting(): number {
    return this.#waiters.size;
  }

  /** The access that this node has to an extent. */
  holds(extent: number): 'none' | 'shared' | 'exclusive' {
    this.#checkRange(extent, extent);
    return LEVEL_NAMES[this.#level(extent)]!;
  }

  /**
   * Starts an operation on the extents from `first` to `last`, if access to them all is here and nobody waits for it:
   * counts it as in flight until `finish`. If not, nothing has changed: `request`.
   */
  tryStart(first: number, last: number, mode: AccessMode): boolean {
    const level = mode === 'exclusive' ? EXCLUSIVE : SHARED;
    if (!(first <= last)) return false;
    for (let extent = first; extent <= last; extent += 1) {
      if (this.#open(extent) < level) return false;
    }
    this.#count(first, last, level);
    return true;
  }

  /** Asks for what `tryStart` has refused. The effects may already start it. `id` names it until it has started. */
  request(id: number, first: number, last: number, mode: AccessMode, priority: number): PolicingEffect[] {
    this.#checkRange(first, last);
    assert(Number.isInteger(priority) && priority >= 0 && priority <= MAX_PRIORITY, 'a priority is from 0 to 7');
    assert(!this.#waiters.has(id), 'each request has its own id');
    this.#tick(0);
    const lamport = this.#clock;
    const level = mode === 'exclusive' ? EXCLUSIVE : SHARED;
    const waiter: Waiter = { id, first, last, level, lamport, priority, key: keyOf(lamport, priority), lacks: -1 };
    const effects: PolicingEffect[] = [];
    if (this.#mayStart(waiter)) {
      this.#begin(waiter, effects);
    } else {
      this.#enqueue(waiter);
      if (waiter.lacks >= 0) this.#ask(waiter.lacks, effects);
    }
    return effects;
  }

  /** Takes back a request that has not started. */
  cancel(id: number): PolicingEffect[] {
    const waiter = this.#waiters.get(id);
    assert(waiter !== undefined, 'only a request that waits is cancelled');
    this.#dequeue(waiter);
    const effects: PolicingEffect[] = [];
    for (let extent = waiter.first; extent <= waiter.last; extent += 1) {
      this.#yield(extent, effects);
      this.#revisit(extent, effects);
    }
    return effects;
  }

  /** An operation in flight has ended: a write is on all copies. */
  finish(first: number, last: number, mode: AccessMode): readonly PolicingEffect[] {
    const level = mode === 'exclusive' ? EXCLUSIVE : SHARED;
    let contested = false;
    for (let extent = first; extent <= last; extent += 1) {
      const cell = level === EXCLUSIVE ? 2 * extent + 1 : 2 * extent;
      const one = level === EXCLUSIVE ? 1 : ONE_READ;
      assert(this.#cells[cell]! >= one, 'what finishes is in flight');
      this.#cells[cell]! -= one;
      // What is in flight has its tokens: only a peer's request can have closed the extent.
      if (this.#open(extent) < level) contested = true;
    }
    if (!contested) return NO_EFFECTS;
    const effects: PolicingEffect[] = [];
    for (let extent = first; extent <= last; extent += 1) {
      if (this.#yield(extent, effects)) this.#revisit(extent, effects);
    }
    return effects;
  }

  /** A message of a peer, in the order in which it was sent. Throws if it cannot be right; the session is then over. */
  receive(from: number, message: PolicingMessage): PolicingEffect[] {
    assert(from >= 0 && from < this.#nodes && from !== this.#self, 'a message comes from a peer');
    const { extent, lamport } = message;
    if (!(extent < this.#extents)) {
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_FRAME',
        `node ${from} speaks of extent ${extent}, which does not exist`,
      );
    }
    this.#tick(lamport);
    const effects: PolicingEffect[] = [];
    if (message.kind === 'request') this.#onRequest(from, message, effects);
    else this.#onGrant(from, message, effects);
    return effects;
  }

  /** The extents with writes in flight, ascending: what this node claims in the next session. */
  inUse(): number[] {
    const extents: number[] = [];
    for (let extent = 0; extent < this.#extents; extent += 1) {
      if (this.#writes(extent) > 0) extents.push(extent);
    }
    return extents;
  }

  /**
   * The session is over: nothing waits any more, here or for a peer. Tokens stay as they are; operations in flight go on.
   */
  forgetWaiting(): void {
    this.#contests.clear();
    this.#waiters.clear();
    this.#refreshAll();
  }

  /**
   * Begins anew, in a new session: all access is at `first`, but for the claims. Operations in flight go on; those that
   * write must be among the claims, unless all access is here. Throws if claims contradict each other.
   */
  restart(first: number, claims: readonly PolicingClaim[]): void {
    assert(first >= 0 && first < this.#nodes, 'nodes are numbered from 0');
    this.#contests.clear();
    this.#waiters.clear();
    this.#tokens.fill(this.#tokensAtStart(first));
    this.#refreshAll();
    this.#grantClaims(claims);
    for (const extent of this.inUse())
      assert(this.#level(extent) === EXCLUSIVE, 'a write in flight keeps its access in the next session');
  }

  /** A machine of its own in the same state: for those who explore what may come. */
  copy(): Policing {
    const copy = new Policing(this.#options);
    copy.#tokens.set(this.#tokens);
    copy.#cells.set(this.#cells);
    copy.#clock = this.#clock;
    for (const waiter of this.#waiters.values()) copy.#waiters.set(waiter.id, { ...waiter });
    for (const [extent, { waiters, asked, asking }] of this.#contests) {
      const own = waiters.map(({ id }) => copy.#waiters.get(id)!);
      copy.#contests.set(extent, { waiters: own, asked: [...asked], asking: [...asking] });
    }
    return copy;
  }

  /** The whole state, in one line: the same for machines in the same state. */
  describe(): string {
    const ask = (which: Ask | undefined) => (which === undefined ? '' : `${LEVEL_NAMES[which.level]}@${which.key}`);
    const contests = [...this.#contests]
      .sort(([left], [right]) => left - right)
      .map(([extent, { waiters, asked, asking }]) => {
        const own = waiters.map((waiter) => `#${waiter.id} ${ask(waiter)} lacks ${waiter.lacks}`);
        return `${extent}: ${own.join(', ')} / ${asked.map(ask).join(' ')} / ${asking.map(ask).join(' ')}`;
      });
    return `${this.#clock} | ${this.#tokens} | ${this.#cells} | ${contests.join(' | ')}`;
  }

  /** Between two nodes of which neither is the first one, tokens begin at the one with the smaller number. */
  #tokensAtStart(first: number): number {
    let tokens = EXCLUSIVE << (2 * this.#self);
    for (let node = 0; node < this.#nodes; node += 1) {
      if (this.#self === first || (node !== first && this.#self < node)) tokens |= EXCLUSIVE << (2 * node);
    }
    return tokens;
  }

  #grantClaims(claims: readonly PolicingClaim[]): void {
    const claimed = new Map<number, number>();
    for (const { node, extents } of claims) {
      assert(node >= 0 && node < this.#nodes, 'who claims is a node');
      for (const extent of extents) {
        const other = claimed.get(extent);
        if (!(extent >= 0 && extent < this.#extents) || (other !== undefined && other !== node)) {
          const reason = other === undefined ? 'which does not exist' : `which node ${other} claims too`;
          throw new HoldfastError('ERR_HOLDFAST_OUT_OF_STEP', `node ${node} claims extent ${extent}, ${reason}`);
        }
        claimed.set(extent, node);
        this.#tokens[extent] = this.#tokensAtStart(node);
        this.#refresh(extent);
      }
    }
  }

  #onRequest(from: number, message: PolicingMessage & { kind: 'request' }, effects: PolicingEffect[]): void {
    const { extent, lamport, priority } = message;
    const level = message.mode === 'exclusive' ? EXCLUSIVE : SHARED;
    // It asks for what the latest grant, which it had not seen, has given it; the request that it replaces is void too.
    const crossed = EXCLUSIVE - this.#token(extent, from) >= level;
    const contest = this.#contest(extent);
    const replaced = contest.asked[from] !== undefined;
    contest.asked[from] = crossed ? undefined : { level, key: keyOf(lamport, priority) };
    this.#refresh(extent);
    if (this.#yield(extent, effects) || replaced) this.#revisit(extent, effects);
    this.#tidy(extent);
  }

  #onGrant(from: number, message: PolicingMessage & { kind: 'grant' }, effects: PolicingEffect[]): void {
    const { extent } = message;
    const level = message.mode === 'exclusive' ? EXCLUSIVE : SHARED;
    if (this.#token(extent, from) >= level) {
      const sentence = `node ${from} grants ${message.mode} access to extent ${extent}, which it does not have`;
      throw new HoldfastError('ERR_HOLDFAST_OUT_OF_STEP', sentence);
    }
    this.#setToken(extent, from, level);
    const contest = this.#contests.get(extent);
    // None: it was asked for by a request that has been cancelled since, or replaced by one for less.
    if (contest === undefined) return;
    const asking = contest.asking[from];
    if (asking !== undefined && asking.level <= level) contest.asking[from] = undefined;
    this.#yield(extent, effects);
    this.#revisit(extent, effects);
    this.#tidy(extent);
  }

  /** Gives peers what they have asked for on an extent, where nothing is in the way. True if anything was given. */
  #yield(extent: number, effects: PolicingEffect[]): boolean {
    const contest = this.#contests.get(extent);
    if (contest === undefined) return false;
    let given = false;
    contest.asked.forEach((ask, node) => {
      if (ask === undefined || this.#isInUse(extent, ask.level)) return;
      if (contest.waiters.some((waiter) => conflict(waiter, ask) && this.#isBefore(waiter, ask, node))) return;
      // Both share and both ask for more: the peer gives way to what it was asked, even if that has been cancelled since.
      const asking = contest.asking[node];
      if (this.#token(extent, node) === SHARED && asking !== undefined && this.#isBefore(asking, ask, node)) return;
      contest.asked[node] = undefined;
      this.#setToken(extent, node, ask.level === EXCLUSIVE ? NONE : SHARED);
      this.#tick(0);
      const mode = ask.level === EXCLUSIVE ? 'exclusive' : 'shared';
      effects.push({ kind: 'send', to: node, message: { kind: 'grant', extent, mode, lamport: this.#clock } });
      given = true;
    });
    return given;
  }

  /** Looks at this node's requests on an extent again: tokens have come or gone, or a peer's request has. */
  #revisit(extent: number, effects: PolicingEffect[]): void {
    const contest = this.#contests.get(extent);
    if (contest === undefined) return;
    for (const waiter of [...contest.waiters]) {
      if (this.#mayStart(waiter)) {
        this.#dequeue(waiter);
        this.#begin(waiter, effects);
        continue;
      }
      const lacks = this.#lowestLacked(waiter);
      if (lacks === waiter.lacks) continue;
      waiter.lacks = lacks;
      if (lacks >= 0 && lacks !== extent) this.#ask(lacks, effects);
    }
    this.#ask(extent, effects);
    this.#tidy(extent);
  }

  /** Makes sure that each peer knows the first of this node's requests that lacks its token of the extent. */
  #ask(extent: number, effects: PolicingEffect[]): void {
    const contest = this.#contests.get(extent);
    if (contest === undefined) return;
    for (let node = 0; node < this.#nodes; node += 1) {
      const token = this.#token(extent, node);
      const waiter = contest.waiters.find(({ lacks, level }) => lacks === extent && token < level);
      if (waiter === undefined) continue;
      const { level, key, lamport, priority } = waiter;
      const asking = contest.asking[node];
      if (asking !== undefined && asking.level >= level && asking.key <= key) continue;
      contest.asking[node] = { level, key };
      const mode = level === EXCLUSIVE ? 'exclusive' : 'shared';
      effects.push({ kind: 'send', to: node, message: { kind: 'request', extent, mode, lamport, priority } });
    }
  }

  #mayStart(waiter: Waiter): boolean {
    for (let extent = waiter.first; extent <= waiter.last; extent += 1) {
      if (this.#open(extent) >= waiter.level) continue;
      if (this.#level(extent) < waiter.level) return false;
      const { asked } = this.#contests.get(extent)!;
      if (asked.some((ask, node) => ask !== undefined && conflict(ask, waiter) && !this.#isBefore(waiter, ask, node)))
        return false;
    }
    return true;
  }

  #begin(waiter: Waiter, effects: PolicingEffect[]): void {
    this.#count(waiter.first, waiter.last, waiter.level);
    effects.push({ kind: 'start', id: waiter.id });
  }

  #enqueue(waiter: Waiter): void {
    waiter.lacks = this.#lowestLacked(waiter);
    this.#waiters.set(waiter.id, waiter);
    for (let extent = waiter.first; extent <= waiter.last; extent += 1) {
      const { waiters } = this.#contest(extent);
      let place = waiters.length;
      while (place > 0 && waiters[place - 1]!.key > waiter.key) place -= 1;
      waiters.splice(place, 0, waiter);
    }
  }

  #dequeue(waiter: Waiter): void {
    this.#waiters.delete(waiter.id);
    for (let extent = waiter.first; extent <= waiter.last; extent += 1) {
      const { waiters } = this.#contests.get(extent)!;
      waiters.splice(waiters.indexOf(waiter), 1);
      this.#tidy(extent);
    }
  }

  #lowestLacked(waiter: Waiter): number {
    for (let extent = waiter.first; extent <= waiter.last; extent += 1) {
      if (this.#level(extent) < waiter.level) return extent;
    }
    return -1;
  }

  /** Whether this node's request goes before a peer's. */
  #isBefore(own: Ask, ask: Ask, node: number): boolean {
    if (isPlanted('yield-skipped')) return true;
    return own.key < ask.key || (own.key === ask.key && this.#self < node);
  }

  /** Operations in flight are in the way of an access. */
  #isInUse(extent: number, level: Level): boolean {
    return this.#writes(extent) > 0 || (level === EXCLUSIVE && this.#cells[2 * extent]! >= ONE_READ);
  }

  #writes(extent: number): number {
    return this.#cells[2 * extent + 1]!;
  }

  /** NONE too for an extent that does not exist. */
  #open(extent: number): number {
    return this.#cells[2 * extent]! & OPEN_BITS;
  }

  /** Counts an operation as in flight. */
  #count(first: number, last: number, level: Level): void {
    for (let extent = first; extent <= last; extent += 1) {
      if (level === EXCLUSIVE) this.#cells[2 * extent + 1]! += 1;
      else this.#cells[2 * extent]! += ONE_READ;
    }
  }

  #contest(extent: number): Contest {
    let contest = this.#contests.get(extent);
    if (contest === undefined) {
      const nobody = () => new Array<Ask | undefined>(this.#nodes).fill(undefined);
      contest = { waiters: [], asked: nobody(), asking: nobody() };
      this.#contests.set(extent, contest);
    }
    return contest;
  }

  /** Forgets a contest in which nothing waits. */
  #tidy(extent: number): void {
    const contest = this.#contests.get(extent);
    if (contest === undefined || contest.waiters.length > 0) return;
    if (contest.asked.every((ask) => ask === undefined) && contest.asking.every((ask) => ask === undefined))
      this.#contests.delete(extent);
  }

  #token(extent: number, node: number): Level {
    return ((this.#tokens[extent]! >>> (2 * node)) & 3) as Level;
  }

  #setToken(extent: number, node: number, level: Level): void {
    this.#tokens[extent] = (this.#tokens[extent]! & ~(3 << (2 * node))) | (level << (2 * node));
    this.#refresh(extent);
  }

  #level(extent: number): Level {
    const tokens = this.#tokens[extent]!;
    const everyone = 2 ** (2 * this.#nodes) - 1;
    if (tokens === (ALL_EXCLUSIVE & everyone)) return EXCLUSIVE;
    const shared = ALL_SHARED & everyone;
    return ((tokens | (tokens >>> 1)) & shared) === shared ? SHARED : NONE;
  }

  #refresh(extent: number): void {
    const asked = this.#contests.get(extent)?.asked.some((ask) => ask !== undefined) ?? false;
    this.#cells[2 * extent]! &= ~OPEN_BITS;
    if (!asked) this.#cells[2 * extent]! |= this.#level(extent);
  }

  #refreshAll(): void {
    for (let extent = 0; extent < this.#extents; extent += 1) this.#refresh(extent);
  }

  #tick(heard: number): void {
    // It stops rather than overflows: from there on the node's number decides.
    this.#clock = Math.min(MAX_LAMPORT, Math.max(this.#clock, heard) + 1);
  }

  #checkRange(first: number, last: number): void {
    const valid = Number.isInteger(first) && Number.isInteger(last) && 0 <= first && first <= last;
    assert(valid && last < this.#extents, 'a request lies on extents of the volume');
  }
}

function keyOf(lamport: number, priority: number): number {
  return lamport - priority * PRIORITY_TICKS;
}

function conflict(one: Ask, other: Ask): boolean {
  return one.level === EXCLUSIVE || other.level === EXCLUSIVE;
}
