/**
 * Persistent memory for the simulation: a unit's memory whose lines of 64 bytes reach the medium when the processor likes
 * to, and for sure only by `persist`. One seed gives one run.
 *
 * How it misbehaves, all within what real persistent memory may do:
 * - `crash()`, a power cut: each line that has changed since it was persisted is as it was then, or as it was at some
 *   moment since (the cache had thrown it out), or as it is.
 * - `crashAtStore(n)`: the power goes in the middle of the nth store from now on: of its aligned words of 8 bytes any
 *   may have happened. `onCrash` is called then; what the process does after that has no effect.
 * - `persist` takes a random time; what is stored meanwhile is not covered by it, or is.
 * - `failPersists()`: the next persist fails, and every one after it until the memory is opened again.
 * - `hangPersists()`: no persist ends until `resumePersists()`; whoever dies meanwhile hears nothing of it.
 *
 * The memory outlives the faces that `open` gives; there is one at a time.
 */
import type { Clock } from '../base/clock.ts';
import { assert, HoldfastError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import type { UnitMemory } from '../checkpoint/unit-memory.ts';
import { InFlight } from '../storage/in-flight.ts';
import type { LatencyRange } from './simulated-disk.ts';

const LINE_BYTES = 64;
const WORD_BYTES = 8;
/** Of this many stores into a line that has changed, the cache throws it out before about one. */
const STORES_PER_EVICTION = 4;

/** Size and speed of a simulated memory. */
export interface SimulatedMemoryOptions {
  readonly random: Random;
  readonly sizeBytes: number;
  /** The world's: the memory goes on when a process stands still. Without it a persist takes no time. */
  readonly clock?: Clock;
  readonly persistLatencyMs?: LatencyRange;
}

/** A line that has changed since it was last durable as it is. */
interface ChangedLine {
  /** Number of the last store into it. */
  last: number;
  /** Number of the last store that is on the medium. */
  durable: number;
}

/** What the processor sees, and what lies on the medium. */
class Lines {
  readonly #random: Random;
  readonly #bytes: Uint8Array;
  readonly #durable: Uint8Array;
  readonly #changed = new Map<number, ChangedLine>();
  stores = 0;

  constructor(random: Random, sizeBytes: number) {
    this.#random = random;
    this.#bytes = new Uint8Array(sizeBytes);
    this.#durable = new Uint8Array(sizeBytes);
  }

  read(offset: number, target: Uint8Array): void {
    target.set(this.#bytes.subarray(offset, offset + target.length));
  }

  readDurable(offset: number, target: Uint8Array): void {
    target.set(this.#durable.subarray(offset, offset + target.length));
  }

  store(offset: number, bytes: Uint8Array): void {
    this.#touch(offset, bytes.length);
    this.#bytes.set(bytes, offset);
  }

  /** Any of its aligned words. */
  storeInPart(offset: number, bytes: Uint8Array): void {
    this.#touch(offset, bytes.length);
    for (let at = offset; at < offset + bytes.length; ) {
      const end = at - (at % WORD_BYTES) + WORD_BYTES;
      if (this.#random.below(2) === 0) this.#bytes.set(bytes.subarray(at - offset, end - offset), at);
      at = end;
    }
  }

  /** What is to be persisted, as it is now; to be called when it is. */
  snapshot(offset: number, length: number): () => void {
    const taken: { readonly line: number; readonly store: number; readonly bytes: Uint8Array }[] = [];
    for (const line of linesOf(offset, length)) {
      const changed = this.#changed.get(line);
      if (changed !== undefined) taken.push({ line, store: changed.last, bytes: lineOf(this.#bytes, line).slice() });
    }
    return () => {
      for (const { line, store, bytes } of taken) this.#written(line, store, bytes);
    };
  }

  losePower(): void {
    for (const line of this.#changed.keys()) if (this.#random.below(2) === 0) this.#evict(line);
    this.#changed.clear();
    this.#bytes.set(this.#durable);
  }

  #touch(offset: number, length: number): void {
    this.stores += 1;
    for (const line of linesOf(offset, length)) {
      const changed = this.#changed.get(line);
      if (changed === undefined) this.#changed.set(line, { last: this.stores, durable: 0 });
      else {
        if (this.#random.below(STORES_PER_EVICTION) === 0) this.#evict(line);
        changed.last = this.stores;
      }
    }
  }

  #evict(line: number): void {
    lineOf(this.#durable, line).set(lineOf(this.#bytes, line));
    const changed = this.#changed.get(line)!;
    changed.durable = changed.last;
  }

  #written(line: number, store: number, bytes: Uint8Array): void {
    const changed = this.#changed.get(line);
    if (changed === undefined) return;
    if (changed.durable < store) {
      lineOf(this.#durable, line).set(bytes);
      changed.durable = store;
    }
    if (changed.durable === changed.last) this.#changed.delete(line);
  }
}

function* linesOf(offset: number, length: number): Generator<number> {
  if (length === 0) return;
  for (let line = Math.floor(offset / LINE_BYTES); line * LINE_BYTES < offset + length; line += 1) yield line;
}

function lineOf(bytes: Uint8Array, line: number): Uint8Array {
  return bytes.subarray(line * LINE_BYTES, (line + 1) * LINE_BYTES);
}

/** Persistent memory that keeps, loses or mixes what was not persisted when the power goes. */
export class SimulatedMemory {
  readonly sizeBytes: number;
  readonly #options: SimulatedMemoryOptions;
  readonly #lines: Lines;
  #crash: { readonly atStore: number; readonly onCrash: () => void } | undefined;
  #persistsFail = false;
  /** Those that hang; undefined: none has to. */
  #hanging: (() => void)[] | undefined;
  #face: SimulatedFace | undefined;

  constructor(options: SimulatedMemoryOptions) {
    const { sizeBytes } = options;
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % LINE_BYTES !== 0)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${sizeBytes} bytes are not whole lines of ${LINE_BYTES}`);
    this.sizeBytes = sizeBytes;
    this.#options = options;
    this.#lines = new Lines(options.random, sizeBytes);
  }

  /**
   * Opens the memory. `run` says how an answer reaches the process that opens: now, later or never. Default: now.
   *
   * @throws HoldfastError ERR_HOLDFAST_DEVICE_BUSY while it is open: close that face, `kill` or `crash` first.
   */
  open(run: (answer: () => void) => void = (answer) => answer()): UnitMemory {
    if (this.#face !== undefined)
      throw new HoldfastError('ERR_HOLDFAST_DEVICE_BUSY', 'the memory is open; close it first');
    this.#persistsFail = false;
    const face: SimulatedFace = new SimulatedFace(this.sizeBytes, {
      read: (offset, target) => this.#lines.read(offset, target),
      store: (offset, bytes) => this.#store(offset, bytes),
      persist: (offset, length) => this.#persist(face, offset, length, run),
      closed: () => {
        this.#face = undefined;
      },
    });
    this.#face = face;
    return face;
  }

  /** Stores up to now: to know where `crashAtStore` can strike. */
  get stores(): number {
    return this.#lines.stores;
  }

  /** The process that has the memory open dies. What it has stored is still there. */
  kill(): void {
    this.#face?.die();
    this.#face = undefined;
  }

  /** The power goes, and the process with it. */
  crash(): void {
    this.kill();
    this.#crash = undefined;
    this.#lines.losePower();
  }

  /** The power goes in the middle of the nth store from now on (1: the next one). */
  crashAtStore(count: number, onCrash: () => void): void {
    this.#crash = { atStore: this.stores + count, onCrash };
  }

  /** The next persist fails, and every one after it until the memory is opened again. */
  failPersists(): void {
    this.#persistsFail = true;
  }

  /** No persist that is under way or comes ends until `resumePersists`. */
  hangPersists(): void {
    this.#hanging ??= [];
  }

  resumePersists(): void {
    const hanging = this.#hanging ?? [];
    this.#hanging = undefined;
    for (const goOn of hanging) goOn();
  }

  /** What a power cut now could not take back: for checkers. */
  peekDurable(offset: number, into: Uint8Array): void {
    this.#lines.readDurable(offset, into);
  }

  #store(offset: number, bytes: Uint8Array): void {
    const crash = this.#crash;
    if (this.stores + 1 !== crash?.atStore) {
      this.#lines.store(offset, bytes);
      return;
    }
    this.#lines.storeInPart(offset, bytes);
    this.crash();
    crash.onCrash();
  }

  async #persist(
    face: SimulatedFace,
    offset: number,
    length: number,
    run: (answer: () => void) => void,
  ): Promise<void> {
    const written = this.#lines.snapshot(offset, length);
    await this.#pass();
    while (this.#hanging !== undefined) await this.#resumed(this.#hanging);
    // The power has gone meanwhile, or the process: nobody hears of it.
    if (face !== this.#face) return new Promise(() => {});
    const failed = this.#persistsFail;
    if (!failed) written();
    await new Promise<void>(run);
    if (failed)
      throw new HoldfastError('ERR_HOLDFAST_FLUSH_FAILED', 'the memory could not be made durable; open it again', {
        errno: 'EIO',
      });
  }

  #resumed(hanging: (() => void)[]): Promise<void> {
    return new Promise((resolve) => void hanging.push(resolve));
  }

  #pass(): Promise<void> {
    const { clock, random, persistLatencyMs: [leastMs, mostMs] = [0.01, 0.5] } = this.#options;
    if (clock === undefined) return Promise.resolve();
    const delayMs = leastMs + ((mostMs - leastMs) * random.below(65_536)) / 65_536;
    return new Promise((resolve) => clock.setTimer(delayMs, resolve));
  }
}

interface FaceParts {
  read(offset: number, target: Uint8Array): void;
  store(offset: number, bytes: Uint8Array): void;
  persist(offset: number, length: number): Promise<void>;
  closed(): void;
}

/** What one process has of the memory, from `open` until it closes or dies. */
class SimulatedFace implements UnitMemory {
  readonly sizeBytes: number;
  readonly means = 'map-sync';
  readonly #parts: FaceParts;
  readonly #inFlight = new InFlight();
  #failure: HoldfastError | undefined;
  #dead = false;
  #closing: Promise<void> | undefined;

  constructor(sizeBytes: number, parts: FaceParts) {
    this.sizeBytes = sizeBytes;
    this.#parts = parts;
  }

  get failure(): HoldfastError | undefined {
    return this.#failure;
  }

  /** The process is gone: what it still does has no effect. */
  die(): void {
    this.#dead = true;
  }

  read(offset: number, target: Uint8Array): void {
    this.#check(offset, target.length);
    if (!this.#dead) this.#parts.read(offset, target);
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#check(offset, bytes.length);
    if (!this.#dead && bytes.length > 0) this.#parts.store(offset, bytes);
  }

  load(offset: number): bigint {
    const word = Buffer.alloc(WORD_BYTES);
    this.read(offset, word);
    return word.readBigUInt64LE();
  }

  compareAndSwap(offset: number, expected: bigint, desired: bigint): bigint {
    const before = this.load(offset);
    const word = Buffer.alloc(WORD_BYTES);
    word.writeBigUInt64LE(desired);
    if (before === expected) this.write(offset, word);
    return before;
  }

  async persist(offset: number, length: number): Promise<void> {
    this.#check(offset, length);
    if (this.#dead) return new Promise(() => {});
    if (this.#failure !== undefined) throw this.#failure;
    try {
      await this.#inFlight.hold(() => this.#parts.persist(offset, length));
    } catch (error) {
      this.#failure ??= error as HoldfastError;
      throw error;
    }
  }

  /** As the tables of a unit have checked it. */
  #check(offset: number, length: number): void {
    assert(offset >= 0 && length >= 0 && offset + length <= this.sizeBytes, 'who uses a memory stays inside it');
    assert(this.#closing === undefined, 'who has closed a memory leaves it alone');
  }

  close(): Promise<void> {
    this.#closing ??= this.#inFlight.drained().then(() => {
      if (!this.#dead) this.#parts.closed();
    });
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
