/**
 * A process pair: two processes with one state, of which one works (the primary) and the other one follows and takes
 * over (the backup). The state is a fold over updates; updates and now and then a whole state lie in a region of a
 * memory unit (pair-store.ts), so that the next primary begins where the last one was safe. Thin: pair-machine.ts
 * decides who works.
 *
 * Invariants:
 * - An update is answered when its checkpoint is durable, and all before it: output is held until then.
 * - A query is answered when every update that it can have seen is durable and nobody had taken over at a moment after
 *   it: a primary that is only slow answers nothing from a state that has been overtaken.
 * - Updates are applied in the order of the calls, as they are read back from their checkpoint, here as at the backup.
 * - A primary that meets any failure of the region throws its state away: what it had not answered fails, and whoever is
 *   primary next reads from the region how much of it there is.
 * - Bounded: updates and queries that wait. For updates that the ring has no room for a state is saved; they are
 *   applied then.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import type { Environment } from '../base/environment.ts';
import { HoldfastError, type HoldfastErrorCode, isHoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { Fifo } from '../peer/fifo.ts';
import { SharedRun } from '../storage/shared-run.ts';
import { type Codec, structuredCodec } from './codec.ts';
import { PULSE_ADDRESS } from './layout.ts';
import type { RegionAccess } from './one-sided.ts';
import { type PairEffect, type PairEvent, PairMachine, type PairState } from './pair-machine.ts';
import { PairFollower, PairStore, type SavedState } from './pair-store.ts';
import { decodePulse, encodePulse, PULSE_BYTES, type Pulse } from './pulse.ts';

/** How a process reaches the pair's region. */
export interface PairMemory {
  /** Read and watch; tried again as long as it fails. */
  follow(signal: AbortSignal): Promise<RegionAccess>;
  /** Makes every other key that can write void; then read and write. */
  takeOver(signal: AbortSignal): Promise<RegionAccess>;
}

/**
 * `primary` works; `backup` follows, or takes over; `cut-off`: it reaches the region's unit or manager no longer, and
 * tries again; `closed`: it has left the pair, for good.
 */
export type PairRole = 'primary' | 'backup' | 'cut-off' | 'closed';

/** The state, how updates apply, and where both lie. */
export interface ProcessPairOptions<State, Update, Result> {
  readonly environment: Environment;
  readonly memory: PairMemory;
  /** The state before any update. */
  readonly initialState: () => State;
  /**
   * Changes the state by one update, and says what the one who asked is told. The same state and update must give the
   * same in every process: no clock, no random number. If it throws, the update is refused and the state must be as it was.
   */
  readonly apply: (state: State, update: Update) => Result;
  /** How states and updates become bytes. Default: whatever structuredClone takes. */
  readonly stateCodec?: Codec<State>;
  readonly updateCodec?: Codec<Update>;
  /** Told of every change of the role. Must not throw. */
  readonly onRole?: (role: PairRole) => void;
  /** Between two signs of life of the primary, ms. Default 200. */
  readonly heartbeatMs?: number;
  /** Without a sign of life for so long the backup takes over, ms. Default 1000; at least three heartbeats. */
  readonly takeOverAfterMs?: number;
  /** Updates that are not answered yet, and as many queries; beyond it ERR_HOLDFAST_QUEUE_FULL. Default 4096. */
  readonly updatesMax?: number;
}

/** The state with every update up to a sequence number. */
export interface StateCopy<State> {
  readonly state: State;
  sequence: number;
}

const RETRY_MS = 100;

/**
 * Joins the pair, as its backup at first; the region may be blank.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT
 */
export function runProcessPair<State, Update, Result>(
  options: ProcessPairOptions<State, Update, Result>,
): ProcessPair<State, Update, Result> {
  const { heartbeatMs = 200, takeOverAfterMs = 1000, updatesMax = 4096 } = options;
  const wrong = (message: string) => new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
  if (!(heartbeatMs > 0)) throw wrong(`a heartbeat every ${heartbeatMs} ms cannot be`);
  if (!(takeOverAfterMs >= 3 * heartbeatMs))
    throw wrong(`takeOverAfterMs is ${takeOverAfterMs}; take three heartbeats or more, ${3 * heartbeatMs}`);
  if (!Number.isInteger(updatesMax) || updatesMax < 1) throw wrong(`updatesMax is ${updatesMax}; it is 1 or more`);
  return new ProcessPair(options, heartbeatMs, takeOverAfterMs, updatesMax);
}

/** Made by `runProcessPair`. */
export class ProcessPair<State, Update, Result> implements AsyncDisposable {
  readonly #options: ProcessPairOptions<State, Update, Result>;
  readonly #stateCodec: Codec<State>;
  readonly #updateCodec: Codec<Update>;
  readonly #updatesMax: number;
  readonly #incarnation: string;
  readonly #machine: PairMachine;
  readonly #closed: Promise<void>;
  #settleClosed!: { readonly resolve: () => void; readonly reject: (error: unknown) => void };
  #role: PairRole | undefined;
  #timer: TimerHandle | undefined;
  /** Of what goes on in this state of the machine. */
  #phase = new AbortController();
  readonly #tasks = new Set<Promise<void>>();
  #copy: StateCopy<State> | undefined;
  #store: PairStore | undefined;
  #unanswered = 0;
  /** Queries that are not answered yet. */
  #asked = 0;
  /** Updates that are not applied yet, in the order of the calls. */
  readonly #held = new Fifo<{ readonly bytes: Uint8Array; readonly begin: () => void }>();
  #lastPulse: Uint8Array = new Uint8Array(0);
  #onDrained: (() => void)[] = [];
  #saving = false;
  #closing = false;
  readonly #onHandedOver: (() => void)[] = [];
  readonly #confirmation = new SharedRun(() => this.#showStillPrimary());

  /** @internal */
  constructor(
    options: ProcessPairOptions<State, Update, Result>,
    heartbeatMs: number,
    takeOverAfterMs: number,
    updatesMax: number,
  ) {
    this.#options = options;
    this.#stateCodec = options.stateCodec ?? structuredCodec<State>();
    this.#updateCodec = options.updateCodec ?? structuredCodec<Update>();
    this.#updatesMax = updatesMax;
    const { random } = options.environment;
    const bytes = new Uint8Array(16);
    random.fill(bytes);
    this.#incarnation = Buffer.from(bytes).toString('hex');
    const jitter = () => {
      random.fill(bytes);
      return (bytes[0] ?? 0) / 256;
    };
    this.#machine = new PairMachine({
      incarnation: this.#incarnation,
      timing: { heartbeatMs, takeOverAfterMs, jitter },
    });
    this.#closed = new Promise((resolve, reject) => {
      this.#settleClosed = { resolve, reject };
    });
    this.#closed.catch(() => {});
    queueMicrotask(() => this.#post({ type: 'start' }));
  }

  /** What this process is now. */
  get role(): PairRole {
    return this.#role ?? 'backup';
  }

  /** Resolves when the pair has been closed here; rejects if it had to end: `apply` threw at the backup, say. */
  get closed(): Promise<void> {
    return this.#closed;
  }

  /**
   * Applies an update, and resolves with what `apply` gave once that is safe. Rejects with what `apply` threw, with
   * ERR_HOLDFAST_NOT_PRIMARY (nothing has happened: ask the other process), ERR_HOLDFAST_QUEUE_FULL, or
   * ERR_HOLDFAST_OUTCOME_UNKNOWN: it may be part of the state, or not.
   */
  async update(update: Update): Promise<Result> {
    const { store } = this.#working();
    if (this.#unanswered >= this.#updatesMax)
      throw new HoldfastError('ERR_HOLDFAST_QUEUE_FULL', `${this.#unanswered} updates wait to be safe; wait for some`);
    const bytes = this.#updateCodec.encode(update);
    store.check(bytes);
    this.#unanswered += 1;
    try {
      return await this.#inTurn(store, bytes);
    } finally {
      this.#answered();
    }
  }

  /** Applied now; or, if there is no room for it in the ring, once a state has been saved. */
  #inTurn(store: PairStore, bytes: Uint8Array): Promise<Result> {
    if (this.#held.length === 0 && store.hasRoom(bytes)) return this.#apply(bytes);
    return new Promise((resolve) => {
      this.#held.push({ bytes, begin: () => resolve(this.#apply(bytes)) });
      this.#saveIfDue();
    });
  }

  async #apply(bytes: Uint8Array): Promise<Result> {
    const { store, copy } = this.#working();
    const result = this.#options.apply(copy.state, this.#updateCodec.decode(bytes));
    copy.sequence += 1;
    try {
      const safe = store.append(bytes);
      if (isPlanted('update-answered-before-safe')) safe.catch(() => {});
      else await safe;
    } catch (error) {
      this.#regionFailed(store, error);
      throw new HoldfastError(
        'ERR_HOLDFAST_OUTCOME_UNKNOWN',
        'this process has lost its part as the primary while an update was under way; ask the other one what became of it',
        { cause: error },
      );
    }
    this.#saveIfDue();
    return result;
  }

  /**
   * What `ask` says of the state, once that cannot be taken back. `ask` must not change it, nor keep it.
   *
   * @throws HoldfastError ERR_HOLDFAST_NOT_PRIMARY, ERR_HOLDFAST_QUEUE_FULL
   */
  async query<Answer>(ask: (state: State) => Answer): Promise<Answer> {
    const { store, copy } = this.#working();
    if (this.#asked >= this.#updatesMax)
      throw new HoldfastError('ERR_HOLDFAST_QUEUE_FULL', `${this.#asked} queries wait already; wait for some`);
    const answer = ask(copy.state);
    this.#asked += 1;
    try {
      await store.durable(copy.sequence);
      if (!isPlanted('query-unconfirmed')) await this.#confirmation.run();
    } catch (error) {
      this.#regionFailed(store, error);
    } finally {
      this.#asked -= 1;
    }
    if (this.#store !== store) throw notPrimary();
    return answer;
  }

  /** Gives the work to the other process, once what is under way has been answered. Resolves when it is the backup. */
  async handOver(): Promise<void> {
    this.#working();
    this.#post({ type: 'hand-over' });
    await new Promise<void>((resolve) => {
      this.#onHandedOver.push(resolve);
      this.#settleHandOver();
    });
  }

  #settleHandOver(): void {
    if (this.#machine.state === 'handing-over') return;
    for (const resolve of this.#onHandedOver.splice(0)) resolve();
  }

  /** Leaves the pair: a primary hands over first, as far as the other one is there. Idempotent. */
  async close(): Promise<void> {
    this.#closing = true;
    await this.#drain();
    this.#post({ type: 'close' });
    while (this.#tasks.size > 0) await Promise.allSettled([...this.#tasks]);
    this.#settleClosed.resolve();
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #working(): { readonly store: PairStore; readonly copy: StateCopy<State> } {
    if (this.#closing || this.#machine.state !== 'primary' || this.#store === undefined || this.#copy === undefined)
      throw notPrimary();
    return { store: this.#store, copy: this.#copy };
  }

  // What the machine decides

  #post(event: PairEvent): void {
    for (const effect of this.#machine.step(event)) this.#perform(effect);
    this.#settleHandOver();
    const { state } = this.#machine;
    this.#become(roleIn(state));
  }

  #become(role: PairRole): void {
    if (role === this.#role) return;
    this.#role = role;
    this.#options.onRole?.(role);
  }

  #perform(effect: PairEffect): void {
    switch (effect.type) {
      case 'follow':
        this.#begin((signal) => this.#follow(signal));
        break;
      case 'take-over':
        this.#begin((signal) => this.#takeOver(signal));
        break;
      case 'reach':
        this.#begin((signal) => this.#reach(signal));
        break;
      case 'drain':
        this.#begin(() => this.#drain().then(() => this.#post({ type: 'drained' })));
        break;
      case 'pulse':
        this.#pulse(effect.pulse);
        break;
      case 'stop':
        this.#stop();
        break;
      case 'set-timer':
        this.#setTimer(effect.delayMs);
    }
  }

  #setTimer(delayMs: number): void {
    this.#timer?.cancel();
    this.#timer = this.#options.environment.clock.setTimer(delayMs, () => this.#post({ type: 'timer' }));
  }

  /** A new phase; what the one before was at ends. */
  #begin(work: (signal: AbortSignal) => Promise<void>): void {
    this.#phase.abort();
    this.#phase = new AbortController();
    const { signal } = this.#phase;
    this.#task(
      work(signal).catch((error: unknown) => {
        if (!signal.aborted) this.#failed(error);
      }),
    );
  }

  #task(work: Promise<void>): void {
    const task = work.finally(() => this.#tasks.delete(task));
    this.#tasks.add(task);
  }

  #stop(): void {
    this.#timer?.cancel();
    this.#phase.abort();
    const store = this.#store;
    this.#store = undefined;
    this.#copy = undefined;
    if (store !== undefined) this.#task(store.close().catch(() => {}));
    this.#letIn();
  }

  /** What can be mended by waiting is tried again; anything else ends the pair here, so that somebody looks. */
  #failed(error: unknown): void {
    if (isTransient(error)) {
      this.#post({ type: 'lost' });
      return;
    }
    this.#post({ type: 'close' });
    this.#settleClosed.reject(error);
  }

  // Backup

  async #follow(signal: AbortSignal): Promise<void> {
    const access = await this.#options.memory.follow(signal);
    const both = new AbortController();
    const until = AbortSignal.any([signal, both.signal]);
    try {
      await Promise.all([this.#hearPulses(access, until), this.#keepUp(access, until)]);
    } finally {
      both.abort();
    }
  }

  async #hearPulses(access: RegionAccess, signal: AbortSignal): Promise<void> {
    let last = '';
    for (let since = 0; !signal.aborted; ) {
      since = await access.watch(PULSE_ADDRESS, PULSE_BYTES, since, { signal });
      const bytes = await readPulse(access, signal);
      const pulse = decodePulse(bytes);
      const text = Buffer.from(bytes).toString('latin1');
      // The same pulse twice is no sign of life.
      if (pulse === undefined || text === last) continue;
      last = text;
      if (!signal.aborted) this.#post({ type: 'pulse', pulse });
    }
  }

  async #keepUp(access: RegionAccess, signal: AbortSignal): Promise<void> {
    const follower = new PairFollower(access);
    for (let change = 0; ; ) {
      try {
        const copy = this.#copyOf(await follower.saved(signal));
        this.#copy = copy;
        for await (const { sequence, bytes } of follower.updates(copy.sequence, signal)) {
          // From here on a take-over may go on with the copy.
          if (signal.aborted) return;
          this.#replay(copy, sequence, bytes);
        }
      } catch (error) {
        if (isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISSING')) change = await follower.changed(change, signal);
        // The primary has dropped what this one has not read: a later state is there.
        else if (!isHoldfastError(error, 'ERR_HOLDFAST_GAP')) throw error;
      }
    }
  }

  #copyOf(saved: SavedState | undefined): StateCopy<State> {
    if (saved === undefined) return { state: this.#options.initialState(), sequence: 0 };
    return { state: this.#stateCodec.decode(saved.bytes), sequence: saved.sequence };
  }

  #replay(copy: StateCopy<State>, sequence: number, bytes: Uint8Array): void {
    if (sequence !== copy.sequence + 1)
      throw new HoldfastError('ERR_HOLDFAST_INTERNAL', `update ${sequence} follows update ${copy.sequence}`);
    this.#options.apply(copy.state, this.#updateCodec.decode(bytes));
    copy.sequence = sequence;
  }

  // Between

  async #takeOver(signal: AbortSignal): Promise<void> {
    const former = this.#copy;
    this.#copy = undefined;
    const access = await this.#options.memory.takeOver(signal);
    const store = await PairStore.open(access, this.#options.environment.random, signal);
    try {
      const copy = await this.#catchUp(store, former, signal);
      signal.throwIfAborted();
      this.#copy = copy;
      this.#store = store;
    } catch (error) {
      await store.close().catch(() => {});
      throw error;
    }
    this.#post({ type: 'took-over', epoch: access.epoch });
  }

  /** Reads to the tail: from where the copy is that has followed, if that is enough. */
  async #catchUp(
    store: PairStore,
    former: StateCopy<State> | undefined,
    signal: AbortSignal,
  ): Promise<StateCopy<State>> {
    const { saved } = store;
    const isUseful = former !== undefined && former.sequence >= (saved?.sequence ?? 0);
    const copy = isUseful ? former : this.#copyOf(saved);
    for await (const { sequence, bytes } of store.updates(copy.sequence, signal)) this.#replay(copy, sequence, bytes);
    return copy;
  }

  async #reach(signal: AbortSignal): Promise<void> {
    const { clock } = this.#options.environment;
    for (;;) {
      // Also before the first time: what has failed at once, at a unit that can only be read, would fail again at once.
      await pause(clock, RETRY_MS, signal);
      signal.throwIfAborted();
      try {
        const access = await this.#options.memory.follow(signal);
        const pulse = decodePulse(await readPulse(access, signal));
        return this.#post({ type: 'reached', pulse });
      } catch (error) {
        if (signal.aborted || !isTransient(error)) throw error;
      }
    }
  }

  // Primary

  #pulse(pulse: Pulse): void {
    const store = this.#store;
    if (store === undefined) return;
    this.#lastPulse = encodePulse(pulse);
    const sent = store.access.write(PULSE_ADDRESS, [this.#lastPulse]);
    this.#task(sent.catch((error: unknown) => this.#regionFailed(store, error)));
  }

  #regionFailed(store: PairStore, error: unknown): void {
    if (this.#store !== store) return;
    const isFenced =
      isHoldfastError(error, 'ERR_HOLDFAST_FENCED') || isHoldfastError(error, 'ERR_HOLDFAST_KEY_INVALID');
    this.#post({ type: isFenced && store.access.open ? 'fenced' : 'lost' });
  }

  #answered(): void {
    this.#unanswered -= 1;
    if (this.#unanswered > 0) return;
    for (const resolve of this.#onDrained.splice(0)) resolve();
  }

  async #drain(): Promise<void> {
    if (this.#unanswered === 0) return;
    await new Promise<void>((resolve) => {
      this.#onDrained.push(resolve);
    });
  }

  /** Resolves if this process was the primary at some moment after the call: then it could still write. */
  async #showStillPrimary(): Promise<void> {
    const store = this.#store;
    if (store === undefined) throw notPrimary();
    await store.access.write(PULSE_ADDRESS, [this.#lastPulse]);
  }

  #saveIfDue(): void {
    const [store, copy] = [this.#store, this.#copy];
    if (store === undefined || copy === undefined || this.#saving) return;
    if (!store.saveIsDue && this.#held.length === 0) return;
    this.#saving = true;
    const saved = this.#save(store, copy).finally(() => {
      this.#saving = false;
      this.#letIn();
    });
    this.#task(saved);
  }

  /** Those that were held, as far as there is room for them now; all, to be refused, by one that is primary no longer. */
  #letIn(): void {
    const store = this.#store;
    for (let first = this.#held.peek(); first !== undefined; first = this.#held.peek()) {
      if (store !== undefined && !store.hasRoom(first.bytes)) break;
      this.#held.shift();
      first.begin();
    }
    this.#saveIfDue();
  }

  async #save(store: PairStore, { state, sequence }: StateCopy<State>): Promise<void> {
    try {
      await store.save(sequence, this.#stateCodec.encode(state));
    } catch (error) {
      if (isTransient(error)) this.#regionFailed(store, error);
      else if (this.#store === store) this.#failed(error);
    }
  }
}

function roleIn(state: PairState): PairRole {
  if (state === 'idle' || state === 'taking-over') return 'backup';
  return state === 'handing-over' ? 'primary' : state;
}

/** What waiting, or another take-over, may mend. Anything else is for a person to look at. */
function isTransient(error: unknown): boolean {
  return error instanceof HoldfastError && !LASTING.has(error.code);
}

const LASTING: ReadonlySet<HoldfastErrorCode> = new Set<HoldfastErrorCode>([
  'ERR_HOLDFAST_ACCESS',
  'ERR_HOLDFAST_BAD_ARGUMENT',
  'ERR_HOLDFAST_BAD_FRAME',
  'ERR_HOLDFAST_DEVICE_TOO_SMALL',
  'ERR_HOLDFAST_INTERNAL',
  'ERR_HOLDFAST_METADATA_DAMAGED',
  'ERR_HOLDFAST_METADATA_VERSION',
  'ERR_HOLDFAST_NOT_FOUND',
  'ERR_HOLDFAST_OUT_OF_RANGE',
  'ERR_HOLDFAST_UNKNOWN_PEER',
]);

function pause(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = clock.setTimer(delayMs, done);
    signal.addEventListener('abort', done, { once: true });
    function done(): void {
      timer.cancel();
      signal.removeEventListener('abort', done);
      resolve();
    }
  });
}

async function readPulse(access: RegionAccess, signal?: AbortSignal): Promise<Uint8Array> {
  const bytes = new Uint8Array(PULSE_BYTES);
  await access.read(PULSE_ADDRESS, bytes, signal && { signal });
  return bytes;
}

function notPrimary(): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_NOT_PRIMARY',
    'this process is not the primary of its pair; ask the other one',
  );
}
