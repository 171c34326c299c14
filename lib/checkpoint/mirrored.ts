/**
 * The writer of a mirrored region, pure: when a write is acknowledged, when a leg is out, how a take-over begins, how a
 * leg comes back. mirrored-access.ts performs the effects, in their order. docs/mirrored-units.md has the rules in words.
 *
 * The register decides (mirror-standing.ts). It is the scheme of chain replication and of primary-backup with a
 * configuration service: the copies that count are written down elsewhere, by compare-and-swap, before anything depends
 * on it (R. van Renesse and F. Schneider, "Chain Replication for Supporting High Throughput and Availability", OSDI
 * 2004, section 3; "Vertical Paxos and Primary-Backup Replication", Lamport, Malkhi and Zhou, PODC 2009).
 *
 * Invariants:
 * - A store is acknowledged when every leg that the register names has it; also one that it may name by now.
 * - Nothing is stored before the register names this writer; that is asked for only when the former writers' keys to
 *   every leg in question are void, so that no store of theirs comes after it.
 * - A leg joins only when it has all that its source has, durably, and no store is under way until the register names it:
 *   what a reader has seen on the source alone is on both from then on.
 * - A leg is left out only for one that has answered since: while the other one hangs, both stay named, so that whoever
 *   takes over can have either. Both are never left out.
 * - Without a leg that is named and answers it ends: a leg that is not named is never taken instead.
 * - One change of the register at a time, each carried through until its outcome is known.
 */
import { assert } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import {
  BOTH_LEGS,
  hasLeg,
  LEGS,
  type Leg,
  type LegMask,
  maskOf,
  otherLeg,
  type Standing,
  withLeg,
  withoutLeg,
} from './mirror-standing.ts';

/** Two that take over from each other again and again: one of them gives in. */
const ATTEMPTS_MAX = 8;

/**
 * `asked`: a key with the right to write is asked for; no other one works from its answer on. `ready`: it is there, and
 * nothing has been stored. `in`: has every acknowledged write. `broken`: as the register knows, it has; but it failed.
 * `copying`: gets all stores, and the rest from the other leg. `persisting`: has been given all. `settling`: so have been
 * all stores since, and none is under way. `joining`: all is durable there, and it is about to be named. `out`: not
 * named, does not answer.
 */
export type LegState = 'out' | 'asked' | 'ready' | 'in' | 'broken' | 'copying' | 'persisting' | 'settling' | 'joining';

export type MirrorPhase = 'new' | 'reading' | 'taking-over' | 'claiming' | 'equalising' | 'serving' | 'ended';

/** `fenced`: another writer has taken over. `no-copy`: no leg that is named answers. `contended`: others take over all the time. */
export type MirrorEnd = 'fenced' | 'no-copy' | 'contended' | 'closed';

export type MirrorEvent =
  | { readonly kind: 'begin' }
  /** Answer to `read-register`; undefined: nothing yet. */
  | { readonly kind: 'stands'; readonly standing: Standing | undefined }
  /** Answer to `take-over`, and to `reopen`. */
  | { readonly kind: 'leg-opened'; readonly leg: Leg }
  /** No answer to `take-over`, or a command has failed there. */
  | { readonly kind: 'leg-failed'; readonly leg: Leg }
  /** Answer to `probe`. */
  | { readonly kind: 'answers'; readonly leg: Leg }
  /** Answer to `swap`. */
  | { readonly kind: 'swapped' }
  | { readonly kind: 'swap-lost'; readonly current: Standing | undefined }
  /** Answers to `copy` and `persist`. */
  | { readonly kind: 'copied'; readonly leg: Leg }
  | { readonly kind: 'persisted'; readonly leg: Leg }
  /** Stores are numbered in the order in which they are sent. */
  | { readonly kind: 'store'; readonly id: number }
  | { readonly kind: 'stored'; readonly id: number; readonly leg: Leg }
  | { readonly kind: 'close' };

export type MirrorEffect =
  | { readonly kind: 'read-register' }
  | { readonly kind: 'take-over'; readonly leg: Leg }
  /** `revoked`: where no former writer's command can store any more. */
  | {
      readonly kind: 'swap';
      readonly expected: Standing | undefined;
      readonly next: Standing;
      readonly revoked: LegMask;
    }
  /** Makes `to` like `from`. `compare`: they differ in little. */
  | { readonly kind: 'copy'; readonly from: Leg; readonly to: Leg; readonly compare: boolean }
  /** All of it; or what was stored since that began. */
  | { readonly kind: 'persist'; readonly leg: Leg; readonly what: 'all' | 'rest' }
  /** Whether it still makes anything durable. */
  | { readonly kind: 'probe'; readonly leg: Leg }
  /** Tries until it has a key for rebuilding. */
  | { readonly kind: 'reopen'; readonly leg: Leg }
  | { readonly kind: 'send'; readonly id: number; readonly legs: LegMask }
  /** To be sent only with the store on all these legs, as the register named them by then. */
  | { readonly kind: 'acknowledge'; readonly id: number; readonly storedOn: LegMask; readonly named: Standing }
  /** Stores are accepted from now on. */
  | { readonly kind: 'serve'; readonly named: Standing }
  /** Whatever is not acknowledged yet fails: it has happened, or not. */
  | { readonly kind: 'end'; readonly why: MirrorEnd };

interface PendingStore {
  readonly id: number;
  /** Legs that it was sent to and that have not answered. */
  missing: LegMask;
  /** Legs that have it. */
  has: LegMask;
  isAcknowledged: boolean;
}

interface Swap {
  readonly expected: Standing | undefined;
  readonly next: Standing;
}

export class MirrorWriter {
  readonly #writer: string;
  readonly #nonce: string;
  readonly #legs: [LegState, LegState] = ['out', 'out'];
  /** In the order of their ids, that is of being sent. */
  readonly #stores = new Map<number, PendingStore>();
  readonly #isPersisted: [boolean, boolean] = [false, false];
  /** Since the other leg has failed. */
  readonly #hasAnswered: [boolean, boolean] = [false, false];
  #effects: MirrorEffect[] = [];
  #phase: MirrorPhase = 'new';
  #standing: Standing | undefined;
  #swap: Swap | undefined;
  #attempts = 0;
  #nextId = 0;

  /** `nonce`: 16 hexadecimal digits, random, new for each. */
  constructor(writer: string, nonce: string) {
    this.#writer = writer;
    this.#nonce = nonce;
  }

  get phase(): MirrorPhase {
    return this.#phase;
  }

  get legs(): readonly [LegState, LegState] {
    return this.#legs;
  }

  /** The newest value that is known to have stood. */
  get standing(): Standing | undefined {
    return this.#standing;
  }

  /** A change of the register is under way. */
  get isSwapping(): boolean {
    return this.#swap !== undefined;
  }

  /** A leg joins: no store may be given now. */
  get holdsStores(): boolean {
    return LEGS.some(
      (leg) =>
        this.#legs[leg] === 'joining' ||
        this.#legs[leg] === 'settling' ||
        (this.#legs[leg] === 'persisting' && this.#isPersisted[leg]),
    );
  }

  /** A leg that has all, to read from; undefined if there is none. */
  get source(): Leg | undefined {
    return LEGS.find((leg) => this.#legs[leg] === 'in');
  }

  /** Whether the other leg can do without this one, which is under way with something and does not answer. */
  canSpare(leg: Leg): boolean {
    const state = this.#legs[leg];
    if (state !== 'in' && !isBeingFilled(state)) return false;
    const other = otherLeg(leg);
    return this.#legs[other] === 'in' || this.#canStandIn(other);
  }

  step(event: MirrorEvent): readonly MirrorEffect[] {
    this.#effects = [];
    if (this.#phase !== 'ended') this.#take(event);
    return this.#effects;
  }

  #take(event: MirrorEvent): void {
    switch (event.kind) {
      case 'begin':
        assert(this.#phase === 'new', 'a writer begins once');
        this.#phase = 'reading';
        this.#effects.push({ kind: 'read-register' });
        break;
      case 'stands':
        this.#takeOver(event.standing);
        break;
      case 'leg-opened':
        this.#opened(event.leg);
        break;
      case 'leg-failed':
        this.#failed(event.leg);
        break;
      case 'answers':
        this.#hasAnswered[event.leg] = true;
        if (this.#phase === 'equalising' || this.#phase === 'serving') this.#decide();
        break;
      case 'swapped':
        this.#swapped();
        break;
      case 'swap-lost':
        this.#swapLost(event.current);
        break;
      case 'copied':
        this.#copied(event.leg);
        break;
      case 'persisted':
        this.#persisted(event.leg);
        break;
      case 'store':
        this.#store(event.id);
        break;
      case 'stored':
        this.#stored(event.id, event.leg);
        break;
      case 'close':
        this.#end('closed');
    }
  }

  // Take-over

  /** Asks for the legs that are named. The first time both have to be there: nobody knows yet which one would do. */
  #takeOver(standing: Standing | undefined): void {
    assert(this.#phase === 'reading' || this.#phase === 'claiming', 'the register was asked');
    this.#attempts += 1;
    if (this.#attempts > ATTEMPTS_MAX) {
      this.#end('contended');
      return;
    }
    this.#standing = standing;
    this.#phase = 'taking-over';
    for (const leg of LEGS) {
      const isNamed = standing === undefined || hasLeg(standing.inSync, leg) || isPlanted('stale-leg-admitted');
      this.#legs[leg] = isNamed ? 'asked' : 'out';
      if (isNamed) this.#effects.push({ kind: 'take-over', leg });
    }
  }

  #claim(): void {
    if (this.#legs.includes('asked')) return;
    const ready = this.#legsThat((state) => state === 'ready');
    if (ready === 0 || (this.#standing === undefined && ready !== BOTH_LEGS)) {
      this.#end('no-copy');
      return;
    }
    this.#phase = 'claiming';
    const next: Standing = {
      epoch: (this.#standing?.epoch ?? 0) + 1,
      inSync: ready,
      equal: ready !== BOTH_LEGS,
      writer: this.#writer,
      nonce: this.#nonce,
      change: 1,
    };
    this.#change(next, ready);
  }

  /** The register names this writer. What the one before had under way may lie on one leg only. */
  #claimed({ inSync }: Standing): void {
    this.#phase = 'equalising';
    for (const leg of LEGS) if (hasLeg(inSync, leg) && this.#legs[leg] === 'ready') this.#legs[leg] = 'in';
    const source = this.source;
    if (source !== undefined) this.#settle(source);
    if (this.#legs[0] !== 'in' || this.#legs[1] !== 'in') return;
    this.#legs[1] = 'copying';
    if (isPlanted('take-over-without-compare')) this.#copied(1);
    else this.#effects.push({ kind: 'copy', from: 0, to: 1, compare: true });
  }

  /** What the writer before had not made durable will be read now: it must not be lost later. */
  #settle(leg: Leg): void {
    this.#isPersisted[leg] = false;
    this.#effects.push({ kind: 'persist', leg, what: 'all' });
  }

  /** Stores are accepted once no leg is named that could differ, or lose what can be read. */
  #serve(standing: Standing): void {
    this.#phase = 'serving';
    this.#effects.push({ kind: 'serve', named: standing });
    for (const leg of LEGS) if (this.#legs[leg] === 'out') this.#effects.push({ kind: 'reopen', leg });
  }

  // Legs

  #opened(leg: Leg): void {
    if (this.#legs[leg] === 'asked') {
      this.#legs[leg] = 'ready';
      this.#claim();
      return;
    }
    const from = this.source;
    if (this.#phase !== 'serving' || this.#legs[leg] !== 'out' || from === undefined) return;
    this.#legs[leg] = 'copying';
    this.#effects.push({ kind: 'copy', from, to: leg, compare: false });
  }

  #failed(leg: Leg): void {
    const state = this.#legs[leg];
    if (state === 'out' || state === 'broken') return;
    if (this.#phase === 'taking-over') {
      this.#legs[leg] = 'out';
      if (state === 'asked' || state === 'ready') this.#claim();
      return;
    }
    const isNamed = this.#mayBeNamed(leg);
    this.#legs[leg] = isNamed ? 'broken' : 'out';
    for (const store of this.#stores.values()) store.missing = withoutLeg(store.missing, leg);
    const other = otherLeg(leg);
    if (this.#canStandIn(other)) {
      this.#legs[other] = 'in';
      this.#settle(other);
    }
    if (isNamed && this.#mayBeNamed(other) && this.#legs[other] !== 'broken') {
      this.#hasAnswered[other] = false;
      this.#effects.push({ kind: 'probe', leg: other });
    }
    if (!isNamed && this.#phase === 'serving') this.#effects.push({ kind: 'reopen', leg });
    this.#decide();
  }

  /** Before they are equal either will do: no more than what nobody was told about is on one leg alone. */
  #canStandIn(leg: Leg): boolean {
    return this.#standing?.equal === false && this.#isNamed(leg) && isBeingFilled(this.#legs[leg]);
  }

  #copied(leg: Leg): void {
    if (this.#legs[leg] !== 'copying') return;
    this.#legs[leg] = 'persisting';
    this.#settle(leg);
  }

  #persisted(leg: Leg): void {
    this.#isPersisted[leg] = true;
    if (this.#legs[leg] === 'persisting') this.#settleIfComplete(leg);
    else if (this.#legs[leg] === 'settling') this.#join(leg);
    else if (this.#phase === 'equalising') this.#decide();
  }

  /** Once every store has ended on both legs. */
  #settleIfComplete(leg: Leg): void {
    if (this.#legs[leg] !== 'persisting' || !this.#isPersisted[leg]) return;
    for (const { missing } of this.#stores.values()) if (missing !== 0) return;
    if (this.#phase !== 'serving') {
      this.#join(leg);
      return;
    }
    this.#legs[leg] = 'settling';
    this.#effects.push({ kind: 'persist', leg, what: 'rest' });
  }

  #join(leg: Leg): void {
    this.#legs[leg] = 'joining';
    this.#decide();
  }

  // The register

  /** Changes what the register says, if it has to be changed; else goes on with what waited for it. */
  #decide(): void {
    if (this.#swap !== undefined || this.#phase === 'claiming' || this.#phase === 'ended') return;
    const standing = this.#standing;
    assert(standing !== undefined, 'a writer that has claimed knows what stands');
    const usable = this.#legsThat((state, leg) => state !== 'broken' && hasLeg(standing.inSync, leg));
    if (!LEGS.some((leg) => this.#isNamed(leg) && this.#legs[leg] === 'in')) {
      this.#end('no-copy');
      return;
    }
    const joining = this.#legsThat((state) => state === 'joining');
    const inSync = (usable | joining) as LegMask;
    const isFilling = !standing.equal && LEGS.some((leg) => isBeingFilled(this.#legs[leg]) && !hasLeg(joining, leg));
    if (!isFilling && (inSync !== standing.inSync || !standing.equal)) {
      const next: Standing = { ...standing, inSync, equal: true, change: standing.change + 1 };
      if (this.#mayLeaveOut(standing, next)) this.#change(next, inSync);
    } else if (this.#phase === 'equalising' && standing.equal && this.#isSettled()) {
      this.#serve(standing);
    }
    this.#acknowledge();
  }

  /** Not for one that may hang, too. */
  #mayLeaveOut(standing: Standing, next: Standing): boolean {
    if ((standing.inSync & ~next.inSync) === 0) return true;
    return LEGS.every((leg) => !hasLeg(next.inSync, leg) || this.#hasAnswered[leg]);
  }

  #change(next: Standing, revoked: LegMask): void {
    assert(this.#swap === undefined, 'one change of the register at a time');
    this.#swap = { expected: this.#standing, next };
    this.#effects.push({ kind: 'swap', expected: this.#standing, next, revoked });
  }

  #swapped(): void {
    const { next } = this.#swap!;
    this.#swap = undefined;
    this.#standing = next;
    if (this.#phase === 'claiming') this.#claimed(next);
    for (const leg of LEGS) if (this.#legs[leg] === 'joining' && hasLeg(next.inSync, leg)) this.#legs[leg] = 'in';
    this.#goOn();
  }

  /** What failed and is not named any more can be filled again. */
  #goOn(): void {
    for (const leg of LEGS) {
      if (this.#legs[leg] !== 'broken' || this.#isNamed(leg)) continue;
      this.#legs[leg] = 'out';
      if (this.#phase === 'serving') this.#effects.push({ kind: 'reopen', leg });
    }
    this.#decide();
  }

  #swapLost(current: Standing | undefined): void {
    this.#swap = undefined;
    const isOwn = current !== undefined && this.#standing !== undefined && this.#isOwn(current);
    if (this.#phase === 'claiming') this.#takeOver(current);
    else if (!isOwn) this.#end('fenced');
    else {
      this.#standing = current;
      this.#goOn();
    }
  }

  #isOwn({ epoch, nonce }: Standing): boolean {
    return epoch === this.#standing?.epoch && nonce === this.#nonce;
  }

  #isSettled(): boolean {
    return LEGS.every((leg) => this.#legs[leg] !== 'in' || this.#isPersisted[leg]);
  }

  #isNamed(leg: Leg): boolean {
    return this.#standing !== undefined && hasLeg(this.#standing.inSync, leg);
  }

  /** By what stands, or by the change that is under way. */
  #mayBeNamed(leg: Leg): boolean {
    return this.#isNamed(leg) || (this.#swap !== undefined && hasLeg(this.#swap.next.inSync, leg));
  }

  // Stores

  #store(id: number): void {
    assert(this.#phase === 'serving' && !this.holdsStores, 'stores are given when they are accepted');
    assert(id >= this.#nextId, 'stores are numbered in their order');
    this.#nextId = id + 1;
    const legs = this.#legsThat((state) => state === 'in' || isBeingFilled(state));
    this.#stores.set(id, { id, missing: legs, has: 0, isAcknowledged: false });
    this.#effects.push({ kind: 'send', id, legs });
  }

  #stored(id: number, leg: Leg): void {
    const store = this.#stores.get(id);
    if (store === undefined || !hasLeg(store.missing, leg)) return;
    store.missing = withoutLeg(store.missing, leg);
    store.has = withLeg(store.has, leg);
    this.#acknowledgeOne(store);
    for (const filled of LEGS) this.#settleIfComplete(filled);
  }

  #acknowledge(): void {
    for (const store of this.#stores.values()) this.#acknowledgeOne(store);
  }

  #acknowledgeOne(store: PendingStore): void {
    const named = this.#standing!;
    if (!store.isAcknowledged && this.#isOnAll(store)) {
      store.isAcknowledged = true;
      this.#effects.push({ kind: 'acknowledge', id: store.id, storedOn: store.has, named });
    }
    if (store.isAcknowledged && store.missing === 0) this.#stores.delete(store.id);
  }

  /** On every leg that is named or may be by now, a broken one too. */
  #isOnAll({ has }: PendingStore): boolean {
    for (const leg of LEGS) {
      const state = this.#legs[leg];
      if (state === 'broken' && isPlanted('acknowledged-before-swap')) continue;
      if (this.#mayBeNamed(leg) && !hasLeg(has, leg)) return false;
    }
    return true;
  }

  #end(why: MirrorEnd): void {
    this.#phase = 'ended';
    this.#stores.clear();
    this.#effects.push({ kind: 'end', why });
  }

  #legsThat(test: (state: LegState, leg: Leg) => boolean): LegMask {
    let mask = 0;
    for (const leg of LEGS) if (test(this.#legs[leg], leg)) mask |= maskOf(leg);
    return mask as LegMask;
  }
}

function isBeingFilled(state: LegState): boolean {
  return state === 'copying' || state === 'persisting' || state === 'settling' || state === 'joining';
}
