/**
 * Records what a program stores in a region of a persistent memory unit, then shows every state that a power cut of the
 * unit could have left to a check of the program's author. The idea is that of pmreorder (PMDK): stores that no persist
 * has covered yet reach the memory in any order.
 *
 * A store is what a command stores in one line of 64 bytes. What a power cut may leave, between one persist and the
 * next: all that a persist which has ended had covered; of the other stores any subset, and one or two of those in part,
 * by 8 bytes. crash-plans.ts says which are tried where they are too many. Stores that change nothing are none.
 *
 * As crash-recorder.ts for devices: a state at the end of such a stretch stands for the same state earlier in it.
 */
import { createHash } from 'node:crypto';
import { HoldfastError } from '../base/errors.ts';
import type { AddressRange, RegionAccess, StoreOptions, WriteOptions } from '../checkpoint/one-sided.ts';
import { type CrashPlan, type EpochShape, isExhaustive, isPieceThere, plansOf } from './crash-plans.ts';
import { SimulatedRandom } from './simulated-random.ts';

const LINE_BYTES = 64;
const WORD_BYTES = 8;

/** What one command stored in one line. */
interface Store {
  readonly address: number;
  readonly bytes: Uint8Array;
  durable: boolean;
}

/** A moment before which nothing that was pending had become durable. */
interface Stretch {
  /** How many stores had been made. */
  readonly stores: number;
  readonly notes: number;
  /** Those that become durable at its end. */
  readonly settled: readonly Store[];
}

export interface StoreOrderOptions {
  /** Draws the states where there are too many to try all; default 0. */
  readonly seed?: number;
  /** Up to so many pending stores every subset is tried; default 8. */
  readonly exhaustiveStores?: number;
  /** How many states of a stretch are tried of each sort that is drawn; default 64. */
  readonly statesMax?: number;
}

/** How far an exploration went, and the first state that failed its check. */
export interface StoreOrderReport {
  /** Between one persist and the next. */
  readonly stretches: number;
  /** Those of which not every state was tried. */
  readonly drawnStretches: number;
  readonly states: number;
  readonly failure: { readonly key: string; readonly error: unknown } | undefined;
}

/** Throws, or rejects, if what it finds in the region must not be. It may go on working with it. */
export type StoreOrderCheck = (access: RegionAccess, notes: readonly unknown[], key: string) => Promise<void>;

/** How one user of the region reaches it. */
export interface MemoryAccessOptions {
  readonly range?: AddressRange;
  /** Without it, stores are refused. Default true. */
  readonly writes?: boolean;
  /** How many turns of the microtask queue a persist takes; default what the recorder was given. */
  readonly persistTurns?: number;
}

/**
 * A region in plain memory, and the record of what was stored in it. Commands are executed at the call; what is to be
 * persisted takes a few turns of the microtask queue, in which others see it although it is not durable yet.
 */
export class StoreRecorder {
  readonly #memory: Uint8Array;
  readonly #base: Uint8Array;
  readonly #stores: Store[] = [];
  readonly #stretches: Stretch[] = [];
  readonly #notes: unknown[] = [];
  readonly #watches = new Set<() => void>();
  readonly #persistTurns: number;
  #changes = 1;

  /** What is there at the start is durable. */
  constructor(content: Uint8Array, persistTurns = 6) {
    this.#memory = content.slice();
    this.#base = content.slice();
    this.#persistTurns = persistTurns;
  }

  /** Writes down what has been promised, or tried, by now: a check sees what was noted before its power cut. */
  note(value: unknown): void {
    this.#notes.push(value);
  }

  /** What is in the memory now, durable or not. */
  get content(): Uint8Array {
    return this.#memory.slice();
  }

  access(options: MemoryAccessOptions = {}): RegionAccess {
    const range = options.range ?? { base: 0, lengthBytes: this.#memory.length };
    const turns = options.persistTurns ?? this.#persistTurns;
    const check = (address: number, lengthBytes: number, stores: boolean) => {
      if (address < range.base || address + lengthBytes > range.base + range.lengthBytes)
        throw new HoldfastError('ERR_HOLDFAST_OUT_OF_RANGE', `${lengthBytes} bytes at ${address}; stay in the range`);
      if (stores && options.writes === false) throw new HoldfastError('ERR_HOLDFAST_ACCESS', 'no right to write');
    };
    return {
      unit: 'memory',
      range,
      epoch: 1,
      open: true,
      read: async (address, target) => {
        check(address, target.length, false);
        target.set(this.#memory.subarray(address, address + target.length));
      },
      write: async (address, chunks, how: WriteOptions = {}) => {
        const bytes = Buffer.concat(chunks);
        check(address, bytes.length, true);
        const { guard } = how;
        if (guard !== undefined && this.#word(guard.address) !== guard.expected)
          throw new HoldfastError('ERR_HOLDFAST_FENCED', 'the guard does not hold');
        this.#store(address, bytes);
        if (how.persist) await this.#persist(address, bytes.length, turns);
      },
      persist: async (address, lengthBytes) => {
        check(address, lengthBytes, false);
        await this.#persist(address, lengthBytes, turns);
      },
      compareAndSwap: async (address, expected, desired, how: StoreOptions = {}) => {
        check(address, WORD_BYTES, true);
        const before = this.#word(address);
        if (before === expected) {
          const bytes = Buffer.alloc(WORD_BYTES);
          bytes.writeBigUInt64LE(desired);
          this.#store(address, bytes);
          if (how.persist) await this.#persist(address, WORD_BYTES, turns);
        }
        return before;
      },
      watch: async (address, lengthBytes, since, how = {}) => {
        check(address, lengthBytes, false);
        while (since === this.#changes) await this.#change(how.signal);
        return this.#changes;
      },
    };
  }

  #word(address: number): bigint {
    return Buffer.from(this.#memory.buffer, address, WORD_BYTES).readBigUInt64LE();
  }

  #store(address: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const line = Math.floor((address + at) / LINE_BYTES) * LINE_BYTES;
      const end = Math.min(bytes.length, line + LINE_BYTES - address);
      const part = bytes.slice(at, end);
      if (Buffer.compare(part, this.#memory.subarray(address + at, address + end)) !== 0) {
        this.#stores.push({ address: address + at, bytes: part, durable: false });
        this.#memory.set(part, address + at);
      }
      at = end;
    }
    this.#changes++;
    for (const wake of [...this.#watches]) wake();
  }

  async #persist(address: number, lengthBytes: number, turns: number): Promise<void> {
    const isIn = (store: Store) =>
      store.address >= address && store.address + store.bytes.length <= address + lengthBytes;
    const covered = this.#stores.filter((store) => !store.durable && isIn(store));
    for (let turn = 0; turn < turns; turn++) await Promise.resolve();
    const settled = covered.filter(({ durable }) => !durable);
    this.#stretches.push({ stores: this.#stores.length, notes: this.#notes.length, settled });
    for (const store of settled) store.durable = true;
  }

  #change(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const over = () => {
        this.#watches.delete(wake);
        signal?.removeEventListener('abort', cancel);
      };
      const wake = () => {
        over();
        resolve();
      };
      const cancel = () => {
        over();
        reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'a watch was cancelled'));
      };
      this.#watches.add(wake);
      signal?.addEventListener('abort', cancel);
      if (signal?.aborted) cancel();
    });
  }

  /** Shows the states to the check, one after the other, until one fails. */
  async explore(check: StoreOrderCheck, options: StoreOrderOptions = {}): Promise<StoreOrderReport> {
    const { seed = 0, exhaustiveStores = 8, statesMax = 64 } = options;
    const limits = { exhaustiveWrites: exhaustiveStores, statesMax };
    const last: Stretch = { stores: this.#stores.length, notes: this.#notes.length, settled: [] };
    const stretches = [...this.#stretches, last];
    const durable = new Set<Store>();
    let drawnStretches = 0;
    let states = 0;
    for (const [number, stretch] of stretches.entries()) {
      const made = this.#stores.slice(0, stretch.stores);
      const pending = made.filter((store) => !durable.has(store));
      const shape = { pieces: pending.map(({ bytes }) => Math.ceil(bytes.length / WORD_BYTES)), pairs: [] };
      if (!isExhaustive(shape, limits)) drawnStretches++;
      const seen = new Set<string>();
      for (const plan of storePlans(shape, limits, new SimulatedRandom(seed, `stretch ${number}`))) {
        const image = this.#imageOf(made, pending, durable, plan);
        const digest = createHash('sha1').update(image).digest('base64');
        if (seen.has(digest)) continue;
        seen.add(digest);
        states++;
        const key = `stretch ${number}: ${inWords(plan, pending)}`;
        try {
          await check(new StoreRecorder(image, 0).access(), this.#notes.slice(0, stretch.notes), key);
        } catch (error) {
          return { stretches: stretches.length, drawnStretches, states, failure: { key, error } };
        }
      }
      for (const store of stretch.settled) durable.add(store);
    }
    return { stretches: stretches.length, drawnStretches, states, failure: undefined };
  }

  #imageOf(
    made: readonly Store[],
    pending: readonly Store[],
    durable: ReadonlySet<Store>,
    plan: CrashPlan,
  ): Uint8Array {
    const image = this.#base.slice();
    const kept = new Set(plan.kept.map((place) => pending[place]!));
    const cuts = new Map(plan.torn.map(({ write, cut }) => [pending[write]!, cut]));
    for (const store of made) {
      if (!durable.has(store) && !kept.has(store)) continue;
      const cut = cuts.get(store);
      const words = Math.ceil(store.bytes.length / WORD_BYTES);
      for (let word = 0; word < words; word++) {
        if (cut !== undefined && !isPieceThere(cut, word, words)) continue;
        const at = word * WORD_BYTES;
        image.set(store.bytes.subarray(at, at + WORD_BYTES), store.address + at);
      }
    }
    return image;
  }
}

/** Those of a crash recording, and where only some are tried also each store alone. */
function* storePlans(
  shape: EpochShape,
  limits: { readonly exhaustiveWrites: number; readonly statesMax: number },
  random: SimulatedRandom,
): Generator<CrashPlan> {
  yield* plansOf(shape, limits, random);
  if (shape.pieces.length <= limits.exhaustiveWrites) return;
  for (const only of shape.pieces.keys()) yield { kept: [only], torn: [] };
}

function inWords(plan: CrashPlan, pending: readonly Store[]): string {
  const places = plan.kept.map((place) => pending[place]!.address).join(' ');
  const torn = plan.torn.map(({ write, cut }) => `, of ${pending[write]!.address} ${cut.kind} ${cut.pieces}`);
  return `${plan.kept.length} of ${pending.length} stores, at ${places}${torn.join('')}`;
}
