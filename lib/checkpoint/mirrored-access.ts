/**
 * A region that lies in two units, as one RegionAccess, for its writer. Thin: mirrored.ts decides; here its effects meet
 * the keys to the legs, the register and timers. Readers that are not the writer: mirrored-reader.ts.
 *
 * Invariants:
 * - Each leg gets the same stores in the same order, that of the calls, with the same bytes.
 * - A read ends when the stores that it may have seen are acknowledged: what it gives cannot be lost any more.
 * - A command that failed on a leg takes the leg out; nothing is sent to it any more by that key. So does one that the leg
 *   does not answer, if the other leg answers what it is asked: while both hang, all wait.
 * - What a leg that hangs does later is of no consequence: no store is acknowledged without it before the register has
 *   left it out; then nobody reads it, and before it is filled again its key is void, and no command under it runs.
 * - A write ends when no leg reads its bytes any more; what goes on after its end is done with a copy of them.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { EitherSignal } from '../base/either-signal.ts';
import type { Environment } from '../base/environment.ts';
import { assert, HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import { ChangeNumbers } from './change-numbers.ts';
import { CommandGate } from './command-gate.ts';
import { LegCopy, overlaps } from './mirror-copy.ts';
import { LegLink, TICKS } from './mirror-link.ts';
import {
  formatStanding,
  hasLeg,
  LEGS,
  type Leg,
  type LegPurpose,
  otherLeg,
  parseStanding,
  type Standing,
} from './mirror-standing.ts';
import { type MirrorEffect, type MirrorEnd, type MirrorEvent, MirrorWriter } from './mirrored.ts';
import type { AddressRange, CommandOptions, RegionAccess, StoreOptions, WriteOptions } from './one-sided.ts';

const LEG_MS = 5000;
const COMMAND_MS = 5000;
const RETRY_FIRST_MS = 50;
const RETRY_MS = 2000;
const LATE_RETRIES_MOST = 16;
const CHUNK_BYTES = 128 * 1024;
const CHUNKS_AHEAD = 4;
const PERSIST_BYTES = 16 * 1024 * 1024;
const MAX_IN_FLIGHT = 64;
const MAX_WAITING = 1024;
const WORD_BYTES = 8;
/** Without a store for so long, one that changes nothing shows whether both legs are there. */
const IDLE_MS = 1000;
const NOTHING: AddressRange = { base: 0, lengthBytes: 0 };

/** The two units of a mirrored region, as its managers let this peer in. */
export interface MirrorLegs {
  /** Names of the units. */
  readonly units: readonly [string, string];
  /**
   * A new key to one leg, for the whole region. With `take-over` and `rebuild`, no command under any other key with the
   * right to write, also of this peer, changes the region any more once it has resolved. Each manager asks the register
   * (`admits` in mirror-standing.ts) before it lets anyone in, and lets in one at a time.
   */
  open(leg: Leg, purpose: LegPurpose, signal: AbortSignal): Promise<RegionAccess>;
  /** What was opened to read is not used any more: its key may be given back. */
  release?(access: RegionAccess): void;
}

/** Which leg, and how far it is. */
export interface RebuildProgress {
  readonly unit: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
}

/** One of the two units, for showing to people. */
export interface MirrorLegStatus {
  readonly unit: string;
  readonly state: 'in-sync' | 'rebuilding' | 'out-of-sync';
  /** Why it is out. */
  readonly problem: HoldfastError | undefined;
}

/** For showing to people. */
export interface MirrorStatus {
  readonly state: 'opening' | 'serving' | 'ended';
  readonly legs: readonly [MirrorLegStatus, MirrorLegStatus];
  readonly rebuild: RebuildProgress | undefined;
  /** Why stores wait: the register cannot be changed now. */
  readonly problem: HoldfastError | undefined;
}

/** Who writes, to which two units, and who decides which of them has all. */
export interface MirroredAccessOptions {
  readonly environment: Pick<Environment, 'clock' | 'random'>;
  readonly legs: MirrorLegs;
  readonly arbiter: Arbiter;
  /** Name of this peer. */
  readonly writer: string;
  /** Ends the opening. */
  readonly signal?: AbortSignal;
  /** How long a unit may take to give a key, before it counts as away. Default 5 s. */
  readonly legMs?: number;
  /**
   * How long a unit may leave a command without an answer (more if it is about more than 16 MiB), before it counts as
   * away although its session lives; a quarter more at most. If the other one hangs as well, both are waited for.
   * Default 5 s.
   */
  readonly commandMs?: number;
  /** A leg that is out is asked for again after this. Default 2 s. */
  readonly retryMs?: number;
  /** Read at a time for the other leg; stores into it wait meanwhile. Default 128 KiB. */
  readonly chunkBytes?: number;
  /** How many of them at a time. Default 4. */
  readonly chunksAhead?: number;
  /** Commands under way. The units must allow as many. Default 64. */
  readonly maxInFlight?: number;
  /** Commands that wait for them. Default 1024. */
  readonly maxWaiting?: number;
  /** Called when `status` has changed. Must not throw. */
  readonly onStatus?: (status: MirrorStatus) => void;
}

interface StoreCommand {
  readonly address: number;
  /** Where it stores; 0: it stores nothing. */
  readonly lengthBytes: number;
  readonly chunks: readonly Uint8Array[];
  readonly send: (
    access: RegionAccess,
    chunks: readonly Uint8Array[],
    isChecked: boolean,
    signal: AbortSignal,
  ) => Promise<void>;
  /** What a leg has to do for it. */
  readonly workBytes: number;
  /** What it stores is durable when it ends. */
  readonly isDurable: boolean;
  readonly signal: AbortSignal | undefined;
}

interface Store {
  readonly command: StoreCommand;
  /** The command's, or a copy of them. */
  readonly chunks: readonly Uint8Array[];
  readonly isCopied: boolean;
  readonly ended: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: HoldfastError) => void;
  /** Legs that have not answered, whatever it will be. */
  underWay: number;
  /** It is acknowledged, or has failed. */
  isOver: boolean;
  failure: HoldfastError | undefined;
  /** What the first leg that checked the guard said: the others must say the same. */
  outcome: 'stored' | HoldfastError | undefined;
  /** Where it was stored without its guard: that leg does not join before the other one has answered. */
  readonly unchecked: [Leg, LegLink][];
}

export class MirroredAccess implements RegionAccess, AsyncDisposable {
  readonly #options: MirroredAccessOptions;
  readonly #clock: Clock;
  readonly #machine: MirrorWriter;
  readonly #gate: CommandGate;
  readonly #links: [LegLink | undefined, LegLink | undefined] = [undefined, undefined];
  readonly #problems: [HoldfastError | undefined, HoldfastError | undefined] = [undefined, undefined];
  /** How often it has hung while it was filled, since it was last in sync. */
  readonly #lateFills: [number, number] = [0, 0];
  readonly #stores = new Map<number, Store>();
  readonly #ending = new AbortController();
  readonly #opened: Promise<void>;
  #range: AddressRange | undefined;
  #epoch = 0;
  #nextId = 0;
  #failure: HoldfastError | undefined;
  #registerProblem: HoldfastError | undefined;
  #rebuild: RebuildProgress | undefined;
  #copying: LegCopy | undefined;
  /** A command that reads before it stores is between the two. */
  #isDeciding = false;
  /** The next tick; none while nothing is under way. */
  #timer: TimerHandle | undefined;
  /** What the leg that is made durable has stored since that began, and may not be. */
  #volatile: AddressRange | undefined;
  /** What has happened next: resolved with every step. */
  #changed = signalOnce();
  readonly #numbers = new ChangeNumbers();
  #serve!: () => void;
  #refuse!: (error: HoldfastError) => void;

  /**
   * Takes the region over, and opens it for writing: the former writer's keys are void and what it had acknowledged is
   * here. Resolves once every leg that can be reached and was in sync is so again; others are rebuilt as they come back.
   *
   * @throws HoldfastError ERR_HOLDFAST_NO_UP_TO_DATE_COPY: no leg that is in sync can be reached (the first time: not
   *   both). ERR_HOLDFAST_NO_MAJORITY: nobody can be asked which ones are. ERR_HOLDFAST_BUSY: others take over again and
   *   again. ERR_HOLDFAST_SETTINGS_DIFFER: the legs have not the same size. ERR_HOLDFAST_ABORTED,
   *   ERR_HOLDFAST_BAD_ARGUMENT.
   */
  static async open(options: MirroredAccessOptions): Promise<MirroredAccess> {
    checkOptions(options);
    throwIfAborted(options.signal, 'opening the mirrored region');
    const access = new MirroredAccess(options);
    const abort = (): void =>
      access.#end(new HoldfastError('ERR_HOLDFAST_ABORTED', 'opening the mirrored region was cancelled'));
    options.signal?.addEventListener('abort', abort, { once: true });
    try {
      access.#step({ kind: 'begin' });
      await access.#opened;
      return access;
    } finally {
      options.signal?.removeEventListener('abort', abort);
    }
  }

  private constructor(options: MirroredAccessOptions) {
    this.#options = options;
    this.#clock = options.environment.clock;
    this.#gate = new CommandGate(options.maxInFlight ?? MAX_IN_FLIGHT, options.maxWaiting ?? MAX_WAITING);
    const nonce = new Uint8Array(8);
    options.environment.random.fill(nonce);
    this.#machine = new MirrorWriter(options.writer, Buffer.from(nonce).toString('hex'));
    this.#opened = new Promise((resolve, reject) => {
      this.#serve = resolve;
      this.#refuse = reject;
    });
  }

  /** Names of both. */
  get unit(): string {
    return this.#options.legs.units.join('+');
  }

  /** As of each of its units. */
  get range(): AddressRange {
    assert(this.#range !== undefined, 'an open region has its range');
    return this.#range;
  }

  /** As the register counts. */
  get epoch(): number {
    return this.#epoch;
  }

  get open(): boolean {
    return this.#failure === undefined;
  }

  /** Why it is not open any more. */
  get failure(): HoldfastError | undefined {
    return this.#failure;
  }

  /** How the two units stand, for showing to people. */
  get status(): MirrorStatus {
    const { phase } = this.#machine;
    const legs = LEGS.map((leg): MirrorLegStatus => {
      const state = this.#machine.legs[leg];
      const word = state === 'in' ? 'in-sync' : this.#isFilled(leg) ? 'rebuilding' : 'out-of-sync';
      return { unit: this.#options.legs.units[leg], state: word, problem: this.#problems[leg] };
    }) as [MirrorLegStatus, MirrorLegStatus];
    const state = phase === 'serving' || phase === 'ended' ? phase : 'opening';
    return { state, legs, rebuild: this.#rebuild, problem: this.#registerProblem };
  }

  /** As RegionAccess.read. After a take-over by another that is not known here yet, it may give an older state. */
  async read(address: number, target: Uint8Array, options: CommandOptions = {}): Promise<void> {
    this.#checkRange(address, target.length);
    await this.#gate.enter(
      () => !this.#isDeciding,
      () => this.#leaving(this.#read(address, target, options.signal)),
      options.signal,
    );
  }

  /**
   * As `read`, and nobody else had taken over by then: the register was asked afterwards.
   *
   * @throws HoldfastError ERR_HOLDFAST_FENCED, ERR_HOLDFAST_NO_MAJORITY
   */
  async readConfirmed(address: number, target: Uint8Array, options: CommandOptions = {}): Promise<void> {
    for (;;) {
      const { standing } = this.#machine;
      await this.read(address, target, options);
      if (standing !== undefined && (await this.#stillStands(standing, options.signal))) return;
    }
  }

  async write(address: number, chunks: readonly Uint8Array[], options: WriteOptions = {}): Promise<void> {
    const lengthBytes = chunks.reduce((sum, { length }) => sum + length, 0);
    this.#checkRange(address, lengthBytes);
    const { persist = false, guard, signal } = options;
    if (guard !== undefined) {
      checkWord(guard.address);
      this.#checkRange(guard.address, WORD_BYTES);
    }
    // A leg that is copied to may not have the word yet: what the other one answers holds for it too.
    const send: StoreCommand['send'] = (access, bytes, isChecked, ends) =>
      access.write(address, bytes, { persist, signal: ends, ...(isChecked && guard && { guard }) });
    await this.#enterStore({
      ...{ address, lengthBytes, chunks, send, signal },
      ...{ workBytes: lengthBytes, isDurable: persist },
    });
  }

  async persist(address: number, lengthBytes: number, options: CommandOptions = {}): Promise<void> {
    this.#checkRange(address, lengthBytes);
    // Nothing is stored: no chunk is in its way.
    const send: StoreCommand['send'] = (access, _bytes, _isChecked, signal) =>
      access.persist(address, lengthBytes, { signal });
    const { signal } = options;
    await this.#enterStore({
      ...{ address, lengthBytes: 0, chunks: [], send, signal },
      ...{ workBytes: lengthBytes, isDurable: true },
    });
  }

  /** There is one writer, this one: what is found on one leg is what is stored on both. */
  async compareAndSwap(
    address: number,
    expected: bigint,
    desired: bigint,
    options: StoreOptions = {},
  ): Promise<bigint> {
    checkWord(address);
    this.#checkRange(address, WORD_BYTES);
    const { persist = false, signal } = options;
    const word = new Uint8Array(WORD_BYTES);
    new DataView(word.buffer).setBigUint64(0, BigInt.asUintN(64, desired), true);
    const send: StoreCommand['send'] = (access, bytes, _isChecked, ends) =>
      access.write(address, bytes, { persist, signal: ends });
    const store = {
      ...{ address, lengthBytes: WORD_BYTES, chunks: [word], send, signal },
      ...{ workBytes: WORD_BYTES, isDurable: persist },
    };
    const mayStart = () => this.#mayStore(address, WORD_BYTES);
    return this.#gate.enter(mayStart, () => this.#swapWord(store, expected), signal);
  }

  /** On one leg; on the other one when that fails: then it resolves once without cause. */
  async watch(address: number, lengthBytes: number, since: number, options: CommandOptions = {}): Promise<number> {
    this.#checkRange(address, lengthBytes);
    for (;;) {
      const [leg, link] = this.#sourceNow() ?? (await this.#source(options.signal));
      try {
        const number = await link.wait((access, ends) =>
          underEither(ends, options.signal, (signal) =>
            this.#numbers.watch(access, address, lengthBytes, since, { signal }),
          ),
        );
        if (number !== undefined) return number;
      } catch (error) {
        this.#readFailed(leg, link, error, options.signal);
      }
    }
  }

  /** Ends it. What has not been acknowledged has happened, or not. The keys stay good until the next take-over. */
  async close(): Promise<void> {
    this.#end(new HoldfastError('ERR_HOLDFAST_CLOSED', 'the mirrored region was closed here'));
  }

  /** Same as `close`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // Commands

  async #read(address: number, target: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      // No wait before the first try: what is called next must not overtake it.
      const [leg, link] = this.#sourceNow() ?? (await this.#source(signal));
      try {
        await link.run(target.length, (access, ends) =>
          underEither(ends, signal, (either) => access.read(address, target, { signal: either })),
        );
        break;
      } catch (error) {
        this.#readFailed(leg, link, error, signal);
      }
    }
    await Promise.allSettled(this.#storesWithin(address, target.length).map(({ ended }) => ended));
    if (this.#failure !== undefined) throw this.#failure;
  }

  #enterStore(command: StoreCommand): Promise<void> {
    const mayStart = () => this.#mayStore(command.address, command.lengthBytes);
    return this.#gate.enter(mayStart, () => this.#store(command), command.signal);
  }

  /** No other command comes between the read and the store. */
  async #swapWord(command: StoreCommand, expected: bigint): Promise<bigint> {
    const word = new Uint8Array(WORD_BYTES);
    let found = 0n;
    let stored: Promise<void> | undefined;
    this.#isDeciding = true;
    try {
      await this.#read(command.address, word, command.signal);
      found = new DataView(word.buffer).getBigUint64(0, true);
      // A leg may have begun to join meanwhile.
      while (this.#machine.holdsStores) await this.#next(command.signal);
      if (found === expected) stored = this.#store(command);
    } finally {
      this.#isDeciding = false;
      this.#changed.now();
      // The store has the place from now on.
      if (stored === undefined) this.#gate.leave();
      else this.#gate.pump();
    }
    await stored;
    return found;
  }

  /** Sends it. Settles when it is acknowledged, or cancelled; either way its bytes are the caller's again. */
  #store(command: StoreCommand): Promise<void> {
    const id = this.#nextId++;
    let resolve!: () => void;
    let reject!: (error: HoldfastError) => void;
    const ended = new Promise<void>((onResolve, onReject) => {
      resolve = onResolve;
      reject = onReject;
    });
    ended.catch(() => {});
    const { signal } = command;
    // It may end before a leg that hangs, or is being filled, is done with it.
    const isCopied = signal !== undefined || LEGS.some((leg) => this.#isFilled(leg));
    const chunks = isCopied ? [Buffer.concat(command.chunks)] : command.chunks;
    const fresh = { underWay: 0, isOver: false, failure: undefined, outcome: undefined, unchecked: [] };
    this.#stores.set(id, { command, chunks, isCopied, ended, resolve, reject, ...fresh });
    this.#step({ kind: 'store', id });
    return signal === undefined ? ended : cancellable(ended, signal);
  }

  async #send(id: number, leg: Leg): Promise<void> {
    const link = this.#links[leg];
    const store = this.#stores.get(id)!;
    assert(link !== undefined, 'a leg that stores go to has a key');
    const { command, chunks } = store;
    const isChecked = this.#machine.legs[leg] !== 'copying';
    if (this.#machine.legs[leg] === 'persisting' && !command.isDurable)
      this.#volatile = hullOf(this.#volatile, command);
    store.underWay += 1;
    try {
      const sent = link.run(command.workBytes, (access, ends) => command.send(access, chunks, isChecked, ends));
      const outcome = await sent.then(() => 'stored' as const, guardOutcome);
      if (isChecked) this.#judge(store, leg, link, outcome);
      else store.unchecked.push([leg, link]);
      if (store.outcome !== undefined && store.outcome !== 'stored') this.#refill(store, store.outcome);
      this.#step({ kind: 'stored', id, leg });
    } catch (error) {
      this.#legFailed(leg, link, error);
    } finally {
      store.underWay -= 1;
      this.#retire(id, store);
    }
  }

  /** Legs that have all have the same word: one that answers otherwise than the first one has not. */
  #judge(store: Store, leg: Leg, link: LegLink, outcome: 'stored' | HoldfastError): void {
    store.outcome ??= outcome;
    if ((outcome === 'stored') === (store.outcome === 'stored')) return;
    const message = `${link.access.unit} and the other unit do not agree whether a guard holds`;
    this.#legFailed(leg, link, new HoldfastError('ERR_HOLDFAST_INCONSISTENT', message));
  }

  /** A leg that was copied to has stored what the guard refuses: it is filled anew. */
  #refill(store: Store, refusal: HoldfastError): void {
    for (const [leg, link] of store.unchecked.splice(0)) this.#legFailed(leg, link, refusal);
  }

  /** The caller is told when its bytes are no longer in use; its place is free when nothing of it is under way. */
  #retire(id: number, store: Store): void {
    if (!store.isOver) return;
    const isIdle = store.underWay === 0;
    if (isIdle || store.isCopied) {
      if (store.failure === undefined) store.resolve();
      else store.reject(store.failure);
    }
    if (isIdle && this.#stores.delete(id)) this.#gate.leave();
  }

  async #leaving<Result>(command: Promise<Result>): Promise<Result> {
    try {
      return await command;
    } finally {
      this.#gate.leave();
    }
  }

  #storesWithin(address: number, lengthBytes: number): Store[] {
    const range = { base: address, lengthBytes };
    const isWithin = ({ command }: Store): boolean =>
      overlaps({ base: command.address, lengthBytes: command.lengthBytes }, range);
    return [...this.#stores.values()].filter((store) => !store.isOver && isWithin(store));
  }

  #mayStore(address: number, lengthBytes: number): boolean {
    const isRead = this.#copying?.holds(address, lengthBytes) === true;
    return !this.#isDeciding && !isRead && !this.#machine.holdsStores;
  }

  #checkRange(address: number, lengthBytes: number): void {
    if (this.#failure !== undefined) throw this.#failure;
    const { base, lengthBytes: most } = this.range;
    const isWhole = Number.isSafeInteger(address) && Number.isSafeInteger(lengthBytes) && lengthBytes >= 0;
    if (isWhole && address >= base && lengthBytes <= most && address - base <= most - lengthBytes) return;
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `${lengthBytes} bytes at ${address} are not within the ${most} bytes at ${base} that are open`,
    );
  }

  // Legs

  /** A leg that has all. Waits while there is none because the register is about to name one. */
  async #source(signal: AbortSignal | undefined): Promise<[Leg, LegLink]> {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure;
      const source = this.#sourceNow();
      if (source !== undefined) return source;
      await this.#next(signal);
    }
  }

  /** Resolves when something has happened; rejects if that was the end, or the signal. */
  async #next(signal: AbortSignal | undefined): Promise<void> {
    if (signal === undefined) await this.#changed.promise;
    else await cancellable(this.#changed.promise, signal);
    if (this.#failure !== undefined) throw this.#failure;
  }

  #sourceNow(): [Leg, LegLink] | undefined {
    const leg = this.#machine.source;
    const link = leg === undefined ? undefined : this.#links[leg];
    return leg === undefined || link === undefined ? undefined : [leg, link];
  }

  /** The leg is out, unless it was the caller's fault. */
  #readFailed(leg: Leg, link: LegLink, error: unknown, signal: AbortSignal | undefined): void {
    throwIfAborted(signal, 'the read');
    const isCallers =
      isHoldfastError(error, 'ERR_HOLDFAST_QUEUE_FULL') || isHoldfastError(error, 'ERR_HOLDFAST_BAD_ARGUMENT');
    if (isCallers) throw error;
    this.#legFailed(leg, link, error);
  }

  #legFailed(leg: Leg, link: LegLink, error: unknown): void {
    if (this.#links[leg] !== link) return;
    const problem = asProblem(error);
    this.#links[leg] = undefined;
    this.#problems[leg] = problem;
    if (this.#machine.legs[leg] === 'in') this.#lateFills[leg] = 0;
    this.#stopCopy();
    this.#step({ kind: 'leg-failed', leg });
    link.giveUp(problem);
  }

  /** While something is under way. */
  #keepTime(): void {
    if (this.#timer !== undefined || this.#failure !== undefined) return;
    this.#timer = this.#clock.setTimer((this.#options.commandMs ?? COMMAND_MS) / TICKS, () => {
      this.#timer = undefined;
      this.#tick();
      if (this.#links.some((link) => link?.isBusy)) this.#keepTime();
    });
  }

  /** A leg that does not answer is left out, unless there is no other one that does. */
  #tick(): void {
    const [leg, other] = LEGS.filter((each) => this.#links[each]?.tick());
    if (leg === undefined || other !== undefined || !this.#machine.canSpare(leg)) return;
    const link = this.#links[leg]!;
    if (this.#isFilled(leg)) this.#lateFills[leg] += 1;
    const message = `${link.access.unit} has left a command without an answer for ${this.#options.commandMs ?? COMMAND_MS} ms`;
    this.#legFailed(leg, link, new HoldfastError('ERR_HOLDFAST_TIMEOUT', message));
  }

  async #takeOver(leg: Leg): Promise<void> {
    this.#links[leg] = undefined;
    const late = new AbortController();
    const legMs = this.#options.legMs ?? LEG_MS;
    const timer = this.#clock.setTimer(legMs, () => late.abort());
    const unit = this.#options.legs.units[leg];
    const tooLate = new HoldfastError('ERR_HOLDFAST_TIMEOUT', `${unit} gave no key within ${legMs} ms`);
    try {
      const signal = AbortSignal.any([late.signal, this.#ending.signal]);
      this.#take(leg, await orAbort(this.#options.legs.open(leg, 'take-over', signal), signal, tooLate));
    } catch (error) {
      this.#problems[leg] = asProblem(error);
      if (isHoldfastError(error, 'ERR_HOLDFAST_SETTINGS_DIFFER')) this.#end(error);
      this.#step({ kind: 'leg-failed', leg });
      return;
    } finally {
      timer.cancel();
    }
    this.#step({ kind: 'leg-opened', leg });
  }

  async #reopen(leg: Leg): Promise<void> {
    const { signal } = this.#ending;
    const { retryMs = RETRY_MS } = this.#options;
    // One that takes a key and then hangs holds up stores again and again.
    const fills = this.#lateFills[leg];
    let delayMs = fills === 0 ? RETRY_FIRST_MS : retryMs * Math.min(2 ** fills, LATE_RETRIES_MOST);
    while (!signal.aborted) {
      await this.#sleep(delayMs);
      delayMs = Math.min(2 * delayMs, retryMs);
      try {
        this.#take(leg, await orAbort(this.#options.legs.open(leg, 'rebuild', signal), signal));
      } catch (error) {
        this.#problems[leg] = asProblem(error);
        this.#tell();
        continue;
      }
      this.#step({ kind: 'leg-opened', leg });
      return;
    }
  }

  #take(leg: Leg, access: RegionAccess): void {
    const { base, lengthBytes } = access.range;
    const { units } = this.#options.legs;
    this.#range ??= access.range;
    if (this.#range.base !== base || this.#range.lengthBytes !== lengthBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_SETTINGS_DIFFER',
        `${units[leg]} opens ${lengthBytes} bytes at ${base}, and ${units[otherLeg(leg)]} ${this.#range.lengthBytes} at ${this.#range.base}; give the region the same size in both`,
      );
    this.#links[leg] = new LegLink(access, () => this.#keepTime());
    this.#problems[leg] = undefined;
  }

  #isFilled(leg: Leg): boolean {
    const state = this.#machine.legs[leg];
    return state === 'copying' || state === 'persisting' || state === 'settling' || state === 'joining';
  }

  /** Enough to ask a leg whether it makes anything durable. */
  get #littleBytes(): number {
    return Math.min(WORD_BYTES, this.range.lengthBytes);
  }

  /** A leg that is lost is noticed by a store; readers that wait for it must not wait for the next one. */
  async #stayAware(): Promise<void> {
    while (this.#failure === undefined) {
      const before = this.#nextId;
      await this.#sleep(IDLE_MS);
      if (this.#failure !== undefined || this.#nextId !== before || this.#stores.size > 0) continue;
      await this.persist(this.range.base, this.#littleBytes).catch(() => {});
    }
  }

  // Filling a leg

  async #copy(from: Leg, to: Leg, compare: boolean): Promise<void> {
    const { range } = this;
    const { chunkBytes = CHUNK_BYTES, chunksAhead = CHUNKS_AHEAD } = this.#options;
    const copy = new LegCopy({
      from: { leg: from, link: this.#links[from]! },
      to: { leg: to, link: this.#links[to]! },
      range,
      chunkBytes: Math.min(chunkBytes, range.lengthBytes),
      chunksAhead,
      compare,
      obstacle: () => (this.#isDeciding ? this.#changed.promise : undefined),
      onFree: () => this.#gate.pump(),
      onProgress: () => this.#tellRebuild(to, copy),
      onFailed: ({ leg, link }, error) => this.#legFailed(leg, link, error),
    });
    this.#copying = copy;
    this.#tellRebuild(to, copy);
    if (!(await copy.run())) return;
    this.#stopCopy();
    this.#step({ kind: 'copied', leg: to });
  }

  #tellRebuild(leg: Leg, { doneBytes }: LegCopy): void {
    this.#rebuild = { unit: this.#options.legs.units[leg], doneBytes, totalBytes: this.range.lengthBytes };
    this.#tell();
  }

  #stopCopy(): void {
    this.#copying?.stop();
    this.#copying = undefined;
    this.#rebuild = undefined;
  }

  async #persistLeg(leg: Leg, { base, lengthBytes }: AddressRange): Promise<void> {
    const end = base + lengthBytes;
    const persistedTo = (from: number): number => Math.min(from + PERSIST_BYTES, end);
    const link = this.#links[leg]!;
    try {
      for (let from = base; from < end; from = persistedTo(from))
        await this.#persistPart(link, from, persistedTo(from) - from);
    } catch (error) {
      this.#legFailed(leg, link, error);
      return;
    }
    if (this.#links[leg] === link) this.#step({ kind: 'persisted', leg });
  }

  #persistPart(link: LegLink, address: number, lengthBytes: number): Promise<void> {
    return link.run(lengthBytes, (access, signal) => access.persist(address, lengthBytes, { signal }));
  }

  async #probe(leg: Leg): Promise<void> {
    const link = this.#links[leg]!;
    try {
      await this.#persistPart(link, this.range.base, this.#littleBytes);
    } catch (error) {
      this.#legFailed(leg, link, error);
      return;
    }
    if (this.#links[leg] === link) this.#step({ kind: 'answers', leg });
  }

  // The register

  async #readRegister(): Promise<void> {
    const { signal } = this.#ending;
    try {
      const result = await orAbort(this.#options.arbiter.compareAndSwap('', '', signal), signal);
      this.#step({ kind: 'stands', standing: result.swapped ? undefined : parseRegister(result.current) });
    } catch (error) {
      this.#end(asProblem(error));
    }
  }

  /** Until it is known what became of it: only an opening may give up, nothing depends on it yet. */
  async #swap(expected: Standing | undefined, next: Standing): Promise<void> {
    const { signal } = this.#ending;
    const [before, after] = [expected === undefined ? '' : formatStanding(expected), formatStanding(next)];
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, this.#options.retryMs ?? RETRY_MS)) {
      let event: MirrorEvent;
      try {
        const result = await orAbort(this.#options.arbiter.compareAndSwap(before, after, signal), signal);
        event = result.swapped ? { kind: 'swapped' } : { kind: 'swap-lost', current: parseRegister(result.current) };
      } catch (error) {
        if (signal.aborted) return;
        const mayWait = this.#machine.phase === 'serving' && !isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISMATCH');
        if (!mayWait) {
          this.#end(asProblem(error));
          return;
        }
        this.#registerProblem = asProblem(error);
        this.#tell();
        await this.#sleep(delayMs);
        continue;
      }
      this.#registerProblem = undefined;
      this.#step(event);
      return;
    }
  }

  async #stillStands(standing: Standing, signal: AbortSignal | undefined): Promise<boolean> {
    const text = formatStanding(standing);
    const result = await this.#options.arbiter.compareAndSwap(text, text, signal);
    if (this.#failure !== undefined) throw this.#failure;
    if (result.swapped) return true;
    while (this.#machine.isSwapping) await this.#next(signal);
    if (this.#machine.standing === standing) this.#step({ kind: 'swap-lost', current: parseRegister(result.current) });
    if (this.#failure !== undefined) throw this.#failure;
    return false;
  }

  // Steps

  #step(event: MirrorEvent): void {
    try {
      for (const effect of this.#machine.step(event)) this.#perform(effect);
    } catch (error) {
      this.#end(asProblem(error));
    }
    this.#changed.now();
    if (event.kind === 'store' || event.kind === 'stored') return;
    this.#tell();
    this.#gate.pump();
  }

  #perform(effect: MirrorEffect): void {
    switch (effect.kind) {
      case 'read-register':
        void this.#readRegister();
        break;
      case 'take-over':
        void this.#takeOver(effect.leg);
        break;
      case 'swap':
        void this.#swap(effect.expected, effect.next);
        break;
      case 'copy':
        void this.#copy(effect.from, effect.to, effect.compare);
        break;
      case 'persist':
        void this.#persistLeg(effect.leg, effect.what === 'all' ? this.range : (this.#volatile ?? NOTHING));
        this.#volatile = undefined;
        break;
      case 'probe':
        void this.#probe(effect.leg);
        break;
      case 'reopen':
        void this.#reopen(effect.leg);
        break;
      case 'send':
        for (const leg of LEGS) if (hasLeg(effect.legs, leg)) void this.#send(effect.id, leg);
        break;
      case 'acknowledge':
        this.#acknowledge(effect.id);
        break;
      case 'serve':
        this.#epoch = effect.named.epoch;
        this.#serve();
        void this.#stayAware();
        break;
      case 'end':
        if (effect.why === 'no-copy' && this.#epoch > 0) void this.#endWithoutCopy();
        else this.#end(this.#reasonOf(effect.why));
    }
  }

  #acknowledge(id: number): void {
    const store = this.#stores.get(id)!;
    store.isOver = true;
    store.failure = store.outcome === 'stored' ? undefined : store.outcome;
    this.#retire(id, store);
  }

  #end(failure: HoldfastError): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    this.#stopCopy();
    this.#ending.abort();
    this.#refuse(failure);
    this.#gate.close(failure);
    this.#timer?.cancel();
    for (const [id, store] of this.#stores) {
      if (!store.isOver) store.failure = failure;
      store.isOver = true;
      this.#retire(id, store);
    }
    this.#step({ kind: 'close' });
    for (const link of this.#links) link?.giveUp(failure);
  }

  /** All keys are void, or nobody answers: if another has taken over, that is why. */
  async #endWithoutCopy(): Promise<void> {
    const reason = this.#reasonOf('no-copy');
    const { signal } = this.#ending;
    const text = formatStanding(this.#machine.standing!);
    try {
      const result = await orAbort(this.#options.arbiter.compareAndSwap(text, text, signal), signal);
      this.#end(result.swapped ? reason : this.#reasonOf('fenced'));
    } catch {
      this.#end(reason);
    }
  }

  #reasonOf(why: MirrorEnd): HoldfastError {
    switch (why) {
      case 'fenced':
        return new HoldfastError(
          'ERR_HOLDFAST_FENCED',
          `another writer has taken over the region on ${this.unit}; what was not acknowledged may be lost, and this one writes no more`,
        );
      case 'contended':
        return new HoldfastError(
          'ERR_HOLDFAST_BUSY',
          `others take over the region on ${this.unit} again and again; let one of them have it`,
        );
      case 'closed':
        return new HoldfastError('ERR_HOLDFAST_CLOSED', 'the mirrored region was closed here');
      case 'no-copy':
        return new HoldfastError('ERR_HOLDFAST_NO_UP_TO_DATE_COPY', this.#describeLegs());
    }
  }

  #describeLegs(): string {
    const { standing } = this.#machine;
    const { units } = this.#options.legs;
    const legs = LEGS.map((leg) => {
      const isNamed = standing === undefined || hasLeg(standing.inSync, leg);
      const reason = this.#problems[leg]?.message ?? 'it can be reached';
      return `${units[leg]} is ${isNamed ? 'in sync' : 'out of sync, and is not used'} (${reason})`;
    });
    const what = standing === undefined ? 'a new mirrored region needs both units' : 'no unit in sync can be reached';
    return `${what}: ${legs.join('; ')}. Bring back ${standing === undefined ? 'both' : 'the one in sync'}, then open the region again`;
  }

  #tell(): void {
    this.#options.onStatus?.(this.status);
  }

  #sleep(delayMs: number): Promise<void> {
    const { signal } = this.#ending;
    return new Promise((resolve) => {
      const over = (): void => {
        timer.cancel();
        signal.removeEventListener('abort', over);
        resolve();
      };
      const timer = this.#clock.setTimer(delayMs, over);
      signal.addEventListener('abort', over, { once: true });
      if (signal.aborted) over();
    });
  }
}

/** A promise for what happens next, again and again. */
function signalOnce(): { promise: Promise<void>; now(): void } {
  let resolve: () => void;
  const next = (): Promise<void> =>
    new Promise((onResolve) => {
      resolve = onResolve;
    });
  const signal = {
    promise: next(),
    now() {
      resolve();
      signal.promise = next();
    },
  };
  return signal;
}

/** What comes later than the end of the signal is dropped. @internal */
export function orAbort<Result>(
  promise: Promise<Result>,
  signal: AbortSignal,
  reason?: HoldfastError,
): Promise<Result> {
  return new Promise((resolve, reject) => {
    const abort = (): void =>
      reject(reason ?? new HoldfastError('ERR_HOLDFAST_ABORTED', 'the mirrored region was closed meanwhile'));
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    const over = (): void => signal.removeEventListener('abort', abort);
    promise.then(
      (result) => {
        over();
        resolve(result);
      },
      (error: unknown) => {
        over();
        reject(error);
      },
    );
  });
}

/** Settles as the promise does; or, when the signal fires before that, with ERR_HOLDFAST_ABORTED. */
function cancellable(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const over = (): void => signal.removeEventListener('abort', abort);
    const abort = (): void =>
      reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'a command was cancelled', { cause: signal.reason }));
    signal.addEventListener('abort', abort, { once: true });
    if (signal.aborted) abort();
    promise.finally(over).then(resolve, reject);
  });
}

/** From the first to the last of both. */
function hullOf(range: AddressRange | undefined, { address, lengthBytes }: StoreCommand): AddressRange {
  if (range === undefined) return { base: address, lengthBytes };
  const base = Math.min(range.base, address);
  return { base, lengthBytes: Math.max(range.base + range.lengthBytes, address + lengthBytes) - base };
}

async function underEither<Result>(
  ends: AbortSignal,
  callers: AbortSignal | undefined,
  command: (signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  if (callers === undefined) return command(ends);
  using either = new EitherSignal(ends, callers);
  return await command(either.signal);
}

/** A guard that does not hold is an answer; anything else that fails is a leg's failure. */
function guardOutcome(error: unknown): HoldfastError {
  if (isHoldfastError(error, 'ERR_HOLDFAST_FENCED')) return error;
  throw error;
}

function checkOptions({ chunkBytes = 1, chunksAhead = 1, commandMs = 1 }: MirroredAccessOptions): void {
  const isCount = (value: number): boolean => Number.isSafeInteger(value) && value > 0;
  if (isCount(chunkBytes) && isCount(chunksAhead) && commandMs > 0) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `${chunksAhead} chunks of ${chunkBytes} bytes at a time, and ${commandMs} ms for a command, cannot be; give each above 0`,
  );
}

function checkWord(address: number): void {
  if (Number.isSafeInteger(address) && address % WORD_BYTES === 0) return;
  throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${address} is not a multiple of ${WORD_BYTES}`);
}

/** @internal */
export function parseRegister(text: string): Standing | undefined {
  if (text === '') return undefined;
  const standing = parseStanding(text);
  if (standing !== undefined) return standing;
  throw new HoldfastError(
    'ERR_HOLDFAST_METADATA_MISMATCH',
    'the register holds no record of a mirrored region; give each region a register of its own',
  );
}

/** @internal */
export function asProblem(error: unknown): HoldfastError {
  if (isHoldfastError(error)) return error;
  return new HoldfastError('ERR_HOLDFAST_INTERNAL', error instanceof Error ? error.message : String(error), {
    cause: error,
  });
}
