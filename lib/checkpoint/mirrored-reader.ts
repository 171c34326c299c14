/**
 * A region that lies in two units, for those who only read it: backups, while a writer is at work (mirrored-access.ts) or
 * after it has gone.
 *
 * Invariants:
 * - What a read gives lay on every leg that the register names and that answers, word by word, while the register did
 *   not change: it was asked afterwards. So it is not older than what was acknowledged before the read; and if all of
 *   them have answered and a `persist` follows, no loss of one of them and no power cut takes it back.
 * - Words that differ, since a write is under way, are read again until they are alike. If their writer is gone, that is
 *   when another one has taken over.
 */
import type { Clock } from '../base/clock.ts';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import { ChangeNumbers } from './change-numbers.ts';
import { formatStanding, hasLeg, LEGS, type Leg, type Standing } from './mirror-standing.ts';
import { asProblem, type MirrorLegs, orAbort, parseRegister } from './mirrored-access.ts';
import type { AddressRange, CommandOptions, RegionAccess } from './one-sided.ts';

const LEG_MS = 5000;
const RETRY_FIRST_MS = 1;
const RETRY_MS = 200;
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
  /**
   * A leg that is in sync cannot be reached from here. `go-on` (default): what the other one gives will do, although a
   * write that is there alone could still be lost. `wait`: until it is back, or its writer has left it out.
   */
  readonly whenLegAway?: 'go-on' | 'wait';
}

/** A leg that can be read. */
type Readable = readonly [Leg, RegionAccess];

export class MirroredReader implements RegionAccess, AsyncDisposable {
  readonly #options: MirroredReaderOptions;
  readonly #accesses: [RegionAccess | undefined, RegionAccess | undefined] = [undefined, undefined];
  readonly #problems: [HoldfastError | undefined, HoldfastError | undefined] = [undefined, undefined];
  readonly #numbers = new ChangeNumbers();
  readonly #closed = new AbortController();
  /** A leg was lost: a unit that is back may lack what it had given. */
  #isBroken = false;
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
    await reader.#refresh(options.signal);
    const [first] = await reader.#readable(options.signal);
    if (first === undefined) throw reader.#noCopy();
    reader.#range = first[1].range;
    return reader;
  }

  private constructor(options: MirroredReaderOptions) {
    this.#options = options;
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
   * As RegionAccess.read; waits while a write into the range is under way.
   *
   * @throws HoldfastError ERR_HOLDFAST_NO_UP_TO_DATE_COPY, ERR_HOLDFAST_NO_MAJORITY
   */
  async read(address: number, target: Uint8Array, { signal }: CommandOptions = {}): Promise<void> {
    await this.#confirmed(signal, async (legs) => {
      const [first, second] = legs;
      await this.#attempt(first!, (access) => access.read(address, target, withSignal(signal)));
      if (second !== undefined) await this.#settle(first!, second, address, target, signal);
    });
  }

  /**
   * On every leg in sync that can be reached. ERR_HOLDFAST_PEER_LOST once a leg was lost under this reader: what was read
   * there before may have gone with it. Open another reader then, and read again.
   */
  async persist(address: number, lengthBytes: number, { signal }: CommandOptions = {}): Promise<void> {
    const persist = (access: RegionAccess) => access.persist(address, lengthBytes, withSignal(signal));
    await this.#confirmed(signal, async (legs) => {
      this.#checkUnbroken();
      await Promise.all(legs.map((leg) => this.#attempt(leg, persist)));
      this.#checkUnbroken();
    });
  }

  /** On one leg; on the other one when that fails: then it resolves once without cause. */
  async watch(address: number, lengthBytes: number, since: number, options: CommandOptions = {}): Promise<number> {
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_MS)) {
      this.#check(options.signal);
      const [first] = await this.#readable(options.signal);
      if (first === undefined) throw this.#noCopy();
      const watched = this.#numbers.watch(first[1], address, lengthBytes, since, options);
      try {
        const number = await orAbort(watched, this.#closed.signal);
        if (number !== undefined) return number;
      } catch (error) {
        this.#failed(first, error);
        await this.#refresh(options.signal);
        await this.#pause(delayMs, options.signal);
      }
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

  /** Reads no more. Idempotent. */
  async close(): Promise<void> {
    this.#closed.abort();
  }

  /** Same as `close`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Does the work again until it was done on legs that were in sync all the while. */
  async #confirmed(signal: AbortSignal | undefined, work: (legs: readonly Readable[]) => Promise<void>): Promise<void> {
    let away: HoldfastError | undefined;
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_MS)) {
      this.#check(signal);
      const standing = this.#standing;
      const legs = await this.#readable(signal);
      const waits =
        this.#options.whenLegAway === 'wait' && legs.length < LEGS.filter((leg) => this.#isNamed(leg)).length;
      if (standing?.equal === true && legs.length > 0 && !waits) {
        try {
          await work(legs);
          if (await this.#refresh(signal)) return;
          continue;
        } catch (error) {
          if (!(error instanceof Again)) throw error;
        }
      } else if (legs.length === 0 && !waits) {
        // The register may name another leg by now; if it does not, there is none.
        if (away !== undefined && (await this.#refresh(signal))) throw away;
        away = this.#noCopy();
      }
      await this.#refresh(signal);
      await this.#pause(delayMs, signal);
    }
  }

  /** Reads what differs on the second leg again, from both, until nothing does. */
  async #settle(
    first: Readable,
    second: Readable,
    address: number,
    target: Uint8Array,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const other = new Uint8Array(target.length);
    let [from, to] = [0, target.length];
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_MS)) {
      const [mine, theirs] = [target.subarray(from, to), other.subarray(from, to)];
      await this.#attempt(second, (access) => access.read(address + from, theirs, withSignal(signal)));
      const differs = differenceOf(mine, theirs, address + from);
      if (differs === undefined) return;
      [from, to] = [from + differs[0], from + differs[1]];
      await this.#pause(delayMs, signal);
      // A writer that is gone leaves them so; the next one changes the register.
      if (!(await this.#refresh(signal))) throw new Again();
      const rest = target.subarray(from, to);
      await this.#attempt(first, (access) => access.read(address + from, rest, withSignal(signal)));
    }
  }

  async #attempt(leg: Readable, command: (access: RegionAccess) => Promise<void>): Promise<void> {
    try {
      await command(leg[1]);
    } catch (error) {
      this.#failed(leg, error);
      throw new Again();
    }
  }

  /** The leg is opened anew next time, unless it was the caller's fault. */
  #failed([leg, access]: Readable, error: unknown): void {
    const codes = ['ABORTED', 'QUEUE_FULL', 'BAD_ARGUMENT', 'OUT_OF_RANGE', 'CLOSED'] as const;
    if (codes.some((code) => isHoldfastError(error, `ERR_HOLDFAST_${code}`))) throw error;
    this.#problems[leg] = asProblem(error);
    if (this.#accesses[leg] === access) this.#accesses[leg] = undefined;
    this.#isBroken = true;
  }

  #checkUnbroken(): void {
    if (!this.#isBroken) return;
    const message =
      'a unit was lost since this reader was opened; open another one, and read again what is to be durable';
    throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', message);
  }

  /** The legs that the register names, those that can be reached. */
  async #readable(signal: AbortSignal | undefined): Promise<Readable[]> {
    const named = LEGS.filter((leg) => this.#isNamed(leg));
    await Promise.all(named.map((leg) => this.#open(leg, signal)));
    return named.flatMap((leg) => {
      const access = this.#accesses[leg];
      return access === undefined ? [] : [[leg, access] as const];
    });
  }

  #isNamed(leg: Leg): boolean {
    return this.#standing !== undefined && hasLeg(this.#standing.inSync, leg);
  }

  async #open(leg: Leg, signal: AbortSignal | undefined): Promise<void> {
    if (this.#accesses[leg]?.open === true) return;
    if (this.#accesses[leg] !== undefined) this.#isBroken = true;
    const late = new AbortController();
    const timer = this.#options.clock.setTimer(this.#options.legMs ?? LEG_MS, () => late.abort());
    const any = AbortSignal.any([late.signal, this.#closed.signal, ...(signal === undefined ? [] : [signal])]);
    try {
      this.#accesses[leg] = await orAbort(this.#options.legs.open(leg, 'read', any), any);
      this.#problems[leg] = undefined;
    } catch (error) {
      this.#check(signal);
      this.#accesses[leg] = undefined;
      this.#problems[leg] = asProblem(error);
    } finally {
      timer.cancel();
    }
  }

  /** Asks the register. True if it stands as it was known. */
  async #refresh(signal: AbortSignal | undefined): Promise<boolean> {
    const known = this.#standing === undefined ? '' : formatStanding(this.#standing);
    const result = await this.#options.arbiter.compareAndSwap(known, known, signal);
    if (result.swapped) return true;
    this.#standing = parseRegister(result.current);
    return false;
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

function withSignal(signal: AbortSignal | undefined): CommandOptions {
  return signal === undefined ? {} : { signal };
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
