/**
 * A region that lies in two units, for those who only read it: backups, while a writer is at work (mirrored-access.ts) or
 * after it has gone.
 *
 * Invariants:
 * - What a read gives lay on every leg that the register names and that answers, word by word, while the register did
 *   not change: it was asked afterwards. So it is not older than what was acknowledged before the read.
 * - It is durable on all of them: each was told to persist it behind the read, over the same session. So if all of them
 *   have answered, no loss of one of them and no power cut takes it back.
 * - Words that differ, since a write is under way, are read again until they are alike. If their writer is gone, that is
 *   when another one has taken over.
 * - A leg that is lost is opened again, in the background, as long as the register names it. Reads wait for that only a
 *   moment if there is another one.
 */
import { setMaxListeners } from 'node:events';
import type { Clock } from '../base/clock.ts';
import { EitherSignal } from '../base/either-signal.ts';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import { SharedRun } from '../storage/shared-run.ts';
import { formatStanding, hasLeg, LEGS, type Leg, type Standing } from './mirror-standing.ts';
import { asProblem, type MirrorLegs, orAbort, parseRegister } from './mirrored-access.ts';
import type { AddressRange, CommandOptions, RegionAccess } from './one-sided.ts';
import { WatchedPlaces } from './watched-places.ts';

const LEG_MS = 5000;
const COMMAND_MS = 5000;
/** What can be reached gives a key within this, most often: so long a read waits for a leg besides the one that it has. */
const KEY_MS = 100;
const RETRY_FIRST_MS = 1;
const RETRY_MS = 200;
const REOPEN_FIRST_MS = 20;
const REOPEN_MS = 2000;
/** A watch looks so often whether its legs are those that the register names, less and less often. */
const LOOK_FIRST_MS = 500;
const LOOK_MS = 4000;
const WORD_BYTES = 8;

/** Which two units, and who knows which of them has all. */
export interface MirroredReaderOptions {
  readonly clock: Clock;
  readonly legs: MirrorLegs;
  readonly arbiter: Arbiter;
  /** Ends the opening. */
  readonly signal?: AbortSignal;
  /** How long a unit may take to give a key, before it counts as away. Default 5 s. */
  readonly legMs?: number;
  /** How long a unit may take to answer a command, before it counts as away. Default 5 s. */
  readonly commandMs?: number;
  /**
   * A leg that is in sync cannot be reached from here. `go-on` (default): what the other one gives will do, although a
   * write that is there alone could still be lost. `wait`: until it is back, or its writer has left it out.
   */
  readonly whenLegAway?: 'go-on' | 'wait';
}

/** A leg that can be read. */
type Readable = readonly [Leg, RegionAccess];

/** A key to a leg is asked for. */
interface Opening {
  /** Never rejects. */
  readonly over: Promise<void>;
  /** It is over, or takes longer than it mostly does. */
  readonly isLate: Promise<void>;
}

export class MirroredReader implements RegionAccess, AsyncDisposable {
  readonly #options: MirroredReaderOptions;
  readonly #accesses: [RegionAccess | undefined, RegionAccess | undefined] = [undefined, undefined];
  readonly #problems: [HoldfastError | undefined, HoldfastError | undefined] = [undefined, undefined];
  readonly #openings: [Opening | undefined, Opening | undefined] = [undefined, undefined];
  /** One after the other, since a command has succeeded there. */
  readonly #failures: [number, number] = [0, 0];
  /** By the clock: before that, a leg that has failed is not opened again if there is another one. */
  readonly #reopenAtMs: [number, number] = [0, 0];
  readonly #watched = new WatchedPlaces();
  readonly #closed = new AbortController();
  readonly #look = new SharedRun(() => this.#askRegister());
  /** The newest value of the register that was seen. */
  #standing: Standing | undefined;
  #range: AddressRange = { base: 0, lengthBytes: 0 };

  /**
   * Opens the legs that are in sync, for reading.
   *
   * @throws HoldfastError ERR_HOLDFAST_NO_UP_TO_DATE_COPY if none of them can be reached, or nobody has written yet;
   *   ERR_HOLDFAST_NO_MAJORITY, ERR_HOLDFAST_ABORTED.
   */
  static async open(options: MirroredReaderOptions): Promise<MirroredReader> {
    const reader = new MirroredReader(options);
    try {
      await reader.#refresh(options.signal);
      const [first] = await reader.#readable(reader.#standing, options.signal);
      if (first === undefined) throw reader.#noCopy();
      reader.#range = first[1].range;
      return reader;
    } catch (error) {
      await reader.close();
      throw error;
    }
  }

  private constructor(options: MirroredReaderOptions) {
    this.#options = options;
    // As many as read at a time; each takes its listener away again.
    setMaxListeners(0, this.#closed.signal);
  }

  /** Names of both. */
  get unit(): string {
    return this.#options.legs.units.join('+');
  }

  /** As of each of its units. */
  get range(): AddressRange {
    return this.#range;
  }

  /** As the register counts, and was last seen. */
  get epoch(): number {
    return this.#standing?.epoch ?? 0;
  }

  get open(): boolean {
    return !this.#closed.signal.aborted;
  }

  /**
   * As RegionAccess.read; waits while a write into the range is under way. What it gives is durable already.
   *
   * @throws HoldfastError ERR_HOLDFAST_NO_UP_TO_DATE_COPY, ERR_HOLDFAST_NO_MAJORITY
   */
  async read(address: number, target: Uint8Array, options: CommandOptions = {}): Promise<void> {
    using either = new EitherSignal(options.signal);
    const { signal } = either;
    await this.#confirmed(signal, async ([first, second], standing) => {
      const other = new Uint8Array(second === undefined ? 0 : target.length);
      const fetched = [this.#fetch(first!, address, target, signal)];
      if (second !== undefined) fetched.push(this.#fetch(second, address, other, signal));
      await allOf(fetched);
      if (second !== undefined) await this.#settle([first!, second], address, [target, other], standing, signal);
    });
  }

  /**
   * What lies on the leg that answers first: it may be old, torn or lost again, and the register is not asked. For signs
   * of life.
   *
   * @throws HoldfastError ERR_HOLDFAST_NO_UP_TO_DATE_COPY, ERR_HOLDFAST_NO_MAJORITY
   */
  async glance(address: number, target: Uint8Array, options: CommandOptions = {}): Promise<void> {
    using either = new EitherSignal(options.signal);
    const { signal } = either;
    for (;;) {
      const legs = await this.#reachable(signal);
      const glances = legs.map(async (leg) => {
        const bytes = new Uint8Array(target.length);
        await this.#attempt(leg, signal, (access, how) => access.read(address, bytes, how));
        return bytes;
      });
      try {
        target.set(await firstOf(glances));
        return;
      } catch (error) {
        if (!(error instanceof Again)) throw error;
      }
    }
  }

  /** On every leg in sync that can be reached. What was read here is durable without it. */
  async persist(address: number, lengthBytes: number, options: CommandOptions = {}): Promise<void> {
    using either = new EitherSignal(options.signal);
    const { signal } = either;
    const persist = (access: RegionAccess, how: CommandOptions) => access.persist(address, lengthBytes, how);
    await this.#confirmed(signal, (legs) => allOf(legs.map((leg) => this.#attempt(leg, signal, persist))));
  }

  /** On every leg that can be reached: a change is told once for each of them, at least. */
  async watch(address: number, lengthBytes: number, since: number, { signal }: CommandOptions = {}): Promise<number> {
    for (let lookMs = LOOK_FIRST_MS; ; lookMs = Math.min(2 * lookMs, LOOK_MS)) {
      const legs = await this.#reachable(signal);
      const look = new AbortController();
      const timer = this.#options.clock.setTimer(lookMs, () => look.abort());
      const places = legs.map(([, access]) => ({ access, address, lengthBytes }));
      using either = new EitherSignal(this.#closed.signal, look.signal, signal);
      try {
        return await this.#watched.watch(places, since, either.signal, ({ access }, error) => {
          this.#failed(legs.find((leg) => leg[1] === access)!, error);
        });
      } catch (error) {
        this.#check(signal);
        if (!look.signal.aborted && isCallers(error)) throw error;
      } finally {
        timer.cancel();
      }
      // Which legs it names is what counts here, not whether it can be asked just now.
      await this.#refresh(signal).catch(() => {});
    }
  }

  /** Only the writer of a mirrored region stores: ERR_HOLDFAST_ACCESS. */
  write(): Promise<void> {
    return Promise.reject(readOnly());
  }

  /** Only the writer of a mirrored region stores: ERR_HOLDFAST_ACCESS. */
  compareAndSwap(): Promise<bigint> {
    return Promise.reject(readOnly());
  }

  /** Reads no more, and gives its keys back. Idempotent. */
  async close(): Promise<void> {
    this.#closed.abort();
    for (const leg of LEGS) this.#drop(leg);
  }

  /** Same as `close`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // Reading

  /** Does the work again until it was done on legs that were in sync all the while. */
  async #confirmed(
    signal: AbortSignal | undefined,
    work: (legs: readonly Readable[], standing: Standing) => Promise<void>,
  ): Promise<void> {
    let isAway = false;
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_MS)) {
      this.#check(signal);
      const standing = this.#standing;
      const legs = await this.#readable(standing, signal);
      if (standing !== undefined && this.#suffice(legs, standing)) {
        try {
          await work(legs, standing);
          await this.#refresh(signal);
          if (this.#stands(standing)) return;
          continue;
        } catch (error) {
          if (!(error instanceof Again)) throw error;
        }
      }
      await this.#refresh(signal);
      const isNowAway = legs.length === 0 && this.#options.whenLegAway !== 'wait' && this.#stands(standing);
      if (isNowAway && isAway) throw this.#noCopy();
      isAway = isNowAway;
      await this.#pause(delayMs, signal);
    }
  }

  #suffice(legs: readonly Readable[], standing: Standing): boolean {
    const isWhole = LEGS.every((leg) => !hasLeg(standing.inSync, leg) || legs.some(([each]) => each === leg));
    return standing.equal && legs.length > 0 && (isWhole || this.#options.whenLegAway !== 'wait');
  }

  /** The bytes, and they are durable there: what is sent behind a read is executed after it. */
  #fetch(leg: Readable, address: number, target: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    return this.#attempt(leg, signal, (access, options) => {
      const read = access.read(address, target, options);
      if (isPlanted('mirror-read-not-persisted')) return read;
      return allOf([read, access.persist(address, target.length, options)]);
    });
  }

  /** Fetches what differs again, from both, until nothing does. */
  async #settle(
    [first, second]: readonly [Readable, Readable],
    address: number,
    [target, other]: readonly [Uint8Array, Uint8Array],
    standing: Standing,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    let [from, to] = [0, target.length];
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_MS)) {
      const [mine, theirs] = [target.subarray(from, to), other.subarray(from, to)];
      const differs = differenceOf(mine, theirs, address + from);
      if (differs === undefined) return;
      [from, to] = [from + differs[0], from + differs[1]];
      await this.#pause(delayMs, signal);
      await this.#refresh(signal);
      // A writer that is gone leaves them so; the next one changes the register.
      if (!this.#stands(standing)) throw new Again();
      await allOf([
        this.#fetch(first, address + from, target.subarray(from, to), signal),
        this.#fetch(second, address + from, other.subarray(from, to), signal),
      ]);
    }
  }

  /** One command to one leg, within its time. */
  async #attempt(
    leg: Readable,
    signal: AbortSignal | undefined,
    command: (access: RegionAccess, options: CommandOptions) => Promise<void>,
  ): Promise<void> {
    const { clock, commandMs = COMMAND_MS } = this.#options;
    const late = new AbortController();
    const timer = clock.setTimer(commandMs, () => late.abort());
    using either = new EitherSignal(this.#closed.signal, late.signal, signal);
    try {
      await orAbort(command(leg[1], { signal: either.signal }), either.signal);
      this.#failures[leg[0]] = 0;
    } catch (error) {
      this.#check(signal);
      if (!late.signal.aborted && isCallers(error)) throw error;
      const tooLate = `${leg[1].unit} has not answered a command within ${commandMs} ms`;
      this.#failed(leg, late.signal.aborted ? new HoldfastError('ERR_HOLDFAST_TIMEOUT', tooLate) : error);
      throw new Again();
    } finally {
      timer.cancel();
    }
  }

  // Legs

  /** The leg is opened anew, unless it was the caller's fault. */
  #failed([leg, access]: Readable, error: unknown): void {
    if (isCallers(error) || this.#accesses[leg] !== access) return;
    this.#drop(leg);
    const { commandMs = COMMAND_MS } = this.#options;
    // A unit that hangs costs a read its time whenever it is tried.
    this.#isAway(leg, error, isHoldfastError(error, 'ERR_HOLDFAST_TIMEOUT') ? 2 * commandMs : 0);
  }

  /** The first time it may be the key alone: another one is asked for at once. */
  #isAway(leg: Leg, error: unknown, leastMs: number): void {
    const failures = this.#failures[leg]++;
    const delayMs = failures === 0 ? 0 : Math.min(REOPEN_FIRST_MS * 2 ** (failures - 1), REOPEN_MS);
    this.#problems[leg] = asProblem(error);
    this.#reopenAtMs[leg] = this.#options.clock.nowMs() + Math.max(delayMs, leastMs);
  }

  #drop(leg: Leg): void {
    const access = this.#accesses[leg];
    this.#accesses[leg] = undefined;
    if (access !== undefined) this.#options.legs.release?.(access);
  }

  /** As `#readable`, by what the register says now; one at least. */
  async #reachable(signal: AbortSignal | undefined): Promise<readonly Readable[]> {
    for (let isAway = false; ; isAway = true) {
      this.#check(signal);
      const standing = this.#standing;
      const legs = await this.#readable(standing, signal);
      if (legs.length > 0) return legs;
      await this.#refresh(signal);
      if (isAway && this.#stands(standing)) throw this.#noCopy();
    }
  }

  /** The legs that are named, those that can be reached. Waits for a key if there is none. */
  async #readable(standing: Standing | undefined, signal: AbortSignal | undefined): Promise<readonly Readable[]> {
    const named = LEGS.filter((leg) => standing !== undefined && hasLeg(standing.inSync, leg));
    const ready = (): Readable[] =>
      named.flatMap((leg) => {
        const access = this.#accesses[leg];
        return access?.open === true ? [[leg, access] as const] : [];
      });
    const mayWait = ready().length > 0 && this.#options.whenLegAway !== 'wait';
    for (const leg of named) this.#keepOpen(leg, mayWait);
    const openings = named.flatMap((leg) => this.#openings[leg] ?? []);
    if (openings.length === 0) return ready();
    await this.#wait(Promise.all(openings.map(({ isLate }) => isLate)), signal);
    for (let left = openings; ready().length === 0 && left.length > 0; ) {
      await this.#wait(Promise.race(left.map(({ over }) => over)), signal);
      left = named.flatMap((leg) => openings.filter((opening) => opening === this.#openings[leg]));
    }
    return ready();
  }

  /** Opens the leg if it is not open; `mayWait`: unless it has failed just now. */
  #keepOpen(leg: Leg, mayWait: boolean): void {
    if (this.#accesses[leg]?.open === true || this.#openings[leg] !== undefined) return;
    const { clock } = this.#options;
    if (mayWait && clock.nowMs() < this.#reopenAtMs[leg]) return;
    this.#drop(leg);
    const over = this.#open(leg).finally(() => {
      this.#openings[leg] = undefined;
    });
    const isLate = new Promise<void>((resolve) => {
      const timer = clock.setTimer(KEY_MS, resolve);
      void over.finally(() => {
        timer.cancel();
        resolve();
      });
    });
    this.#openings[leg] = { over, isLate };
  }

  async #open(leg: Leg): Promise<void> {
    const { clock, legs, legMs = LEG_MS } = this.#options;
    const late = new AbortController();
    const timer = clock.setTimer(legMs, () => late.abort());
    using either = new EitherSignal(this.#closed.signal, late.signal);
    const tooLate = new HoldfastError('ERR_HOLDFAST_TIMEOUT', `${legs.units[leg]} gave no key within ${legMs} ms`);
    const opening = legs.open(leg, 'read', either.signal);
    try {
      this.#accesses[leg] = await orAbort(opening, either.signal, tooLate);
      this.#problems[leg] = undefined;
    } catch (error) {
      opening.then((access) => legs.release?.(access)).catch(() => {});
      this.#isAway(leg, late.signal.aborted ? tooLate : error, 0);
    } finally {
      timer.cancel();
    }
  }

  // The register

  /** What it says now is what `#standing` is when this resolves, or newer. */
  async #refresh(signal: AbortSignal | undefined): Promise<void> {
    await this.#wait(this.#look.run(), signal);
  }

  async #askRegister(): Promise<void> {
    const known = this.#standing === undefined ? '' : formatStanding(this.#standing);
    const result = await this.#options.arbiter.compareAndSwap(known, known, this.#closed.signal);
    if (!result.swapped) this.#standing = parseRegister(result.current);
  }

  /** No value ever comes back: what is the same has been so all the while. */
  #stands(standing: Standing | undefined): boolean {
    const text = (each: Standing | undefined) => (each === undefined ? '' : formatStanding(each));
    return text(this.#standing) === text(standing);
  }

  // Waiting

  async #wait<Result>(promise: Promise<Result>, signal: AbortSignal | undefined): Promise<Result> {
    using either = new EitherSignal(this.#closed.signal, signal);
    try {
      return await orAbort(promise, either.signal);
    } catch (error) {
      this.#check(signal);
      throw error;
    }
  }

  #check(signal: AbortSignal | undefined): void {
    throwIfAborted(signal, 'the read');
    if (this.#closed.signal.aborted)
      throw new HoldfastError('ERR_HOLDFAST_CLOSED', 'the mirrored region was closed here');
  }

  #pause(delayMs: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      const over = (): void => {
        timer.cancel();
        signal?.removeEventListener('abort', over);
        resolve();
      };
      const timer = this.#options.clock.setTimer(delayMs, over);
      signal?.addEventListener('abort', over, { once: true });
    });
  }

  #noCopy(): HoldfastError {
    const why = LEGS.flatMap((leg) => {
      const problem = this.#problems[leg];
      return problem === undefined ? [] : [`${this.#options.legs.units[leg]}: ${problem.message}`];
    });
    const what = this.#standing === undefined ? 'nobody has written the region yet' : 'no unit in sync can be reached';
    return new HoldfastError('ERR_HOLDFAST_NO_UP_TO_DATE_COPY', [what, ...why].join('; '));
  }
}

/** The legs have to be looked at again. */
class Again extends Error {}

/** Not before all have ended: their bytes are in use until then. */
async function allOf(works: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(works)) if (result.status === 'rejected') throw result.reason;
}

/** What the first one gives that succeeds; else fails as one of them. */
async function firstOf<Result>(works: readonly Promise<Result>[]): Promise<Result> {
  try {
    return await Promise.any(works);
  } catch (error) {
    throw (error as AggregateError).errors[0];
  }
}

/** A mistake of the caller, or its wish: nothing is wrong with the leg. */
function isCallers(error: unknown): boolean {
  const codes = ['ABORTED', 'QUEUE_FULL', 'BAD_ARGUMENT', 'OUT_OF_RANGE', 'CLOSED'] as const;
  return codes.some((code) => isHoldfastError(error, `ERR_HOLDFAST_${code}`));
}

function readOnly(): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_ACCESS', 'this reads a mirrored region; open it as its writer to store');
}

/** From the first word that differs to the end of the last one; words are where they are in the region. */
function differenceOf(first: Uint8Array, second: Uint8Array, address: number): readonly [number, number] | undefined {
  if (Buffer.compare(first, second) === 0) return undefined;
  let start = 0;
  while (first[start] === second[start]) start += 1;
  let end = first.length;
  while (first[end - 1] === second[end - 1]) end -= 1;
  const intoWord = (address + start) % WORD_BYTES;
  const pastWord = (address + end) % WORD_BYTES;
  return [Math.max(0, start - intoWord), Math.min(first.length, pastWord === 0 ? end : end + WORD_BYTES - pastWord)];
}
