/**
 * The ring: where all direct I/O of one event loop goes through. Requests become fixed-width entries in shared memory;
 * one native call a tick hands them over; one call back a batch brings the results. native/ring is the other half, and
 * native/ring/operation.h has the layout.
 *
 * Invariants:
 * - At most `capacity` operations are in flight; further ones are parked. Once `maxQueued` are, new requests are refused
 *   before anything is done; only the few parts of requests that have begun are still taken.
 * - A request settles exactly once. Its memory is not touched by the device afterwards.
 * - While native calls back (`reaping`), it takes the entries itself when the continuations have run; otherwise a
 *   microtask hands them over.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism, constants } from 'node:os';
import { assert, HoldfastError } from '../base/errors.ts';
import { type NativeRing, type NativeRingHandle, native } from '../native.ts';
import type { IoArena } from './io-memory.ts';
import { type IoStatistics, readStatistics, statisticsFigures } from './io-statistics.ts';

/** What does the requests: the kernel's io_uring, or a pool of threads that call it. */
export type EngineName = 'io_uring' | 'threads';

/** By what the requests of devices are done, and how many at once. Devices with the same settings share a ring. */
export interface RingOptions {
  /** Default `auto`: io_uring where the kernel lets us, else threads. HOLDFAST_ENGINE says what `auto` is. */
  readonly engine?: EngineName | 'auto';
  /** Operations in flight at once, default 256, at most 4096. */
  readonly capacity?: number;
  /** Requests that may wait for a place, default 16384. */
  readonly maxQueued?: number;
  /** Of the thread-pool engine; default twice the processors, 4 to 16. */
  readonly threads?: number;
  /**
   * How long, in microseconds, one request alone in flight is waited for without giving the event loop its turn, 64
   * times in a row at most: shorter latency for who asks for one thing after the other. Default 0, not at all; at most
   * 1000.
   */
  readonly pollMicroseconds?: number;
}

/** By what the requests are done, and why. */
export interface EngineReport {
  readonly engine: EngineName;
  /** Why this one, in words. */
  readonly reason: string;
  readonly capacity: number;
  readonly threads: number;
  /**
   * What the kernel offered and is in use: how io_uring's completions come in, `deferred`, `cooperative` or `plain`;
   * `registered-files`.
   */
  readonly features: readonly string[];
}

/** What a whole ring has done, over all its files, closed ones too. */
export interface RingStatistics extends IoStatistics {
  /** Requests that wait for a place. */
  readonly queued: number;
  readonly queuedMax: number;
  /** Times that new operations were handed over, and times that results were taken: several at once under load. */
  readonly handOvers: number;
  readonly batches: number;
  /** Arenas of I/O memory that the kernel knows in advance; those that it refused, and why in words. */
  readonly arenasRegistered: number;
  readonly arenasRefused: number;
  readonly arenasRefusedReason: string;
}

export const RingOperation = {
  read: 1,
  write: 2,
  writeFua: 3,
  /** As writeFua, by a write and a flush behind it, where the device has no such write. */
  writeThenFlush: 4,
  flush: 5,
  punchHole: 6,
  zeroRange: 7,
  blockDiscard: 8,
  blockZeroOut: 9,
} as const;

/** Results: 0 is success, negative ones are errnos. */
export const resultEndedEarly = 1;

/** A piece of an arena that a ring knows. */
export interface MemoryPiece {
  readonly arena: number;
  readonly arenaOffset: number;
  readonly length: number;
}

/** In one request. */
export const maxPieces = 64;
export const maxRequestBytes = 2 ** 32 - 1;

/** One request: a record that its owner fills in, keeps and may use again once it has settled. */
export abstract class RingRequest {
  operation = 0;
  slot = 0;
  /** On the device, in bytes. */
  offset = 0;
  /** Of the memory or, for range operations, on the device, in bytes. */
  length = 0;
  /** Index of the arena in this ring, and the place in it. */
  arena = 0;
  arenaOffset = 0;
  /** Memory that is scattered, instead; at most `maxPieces`, whose lengths add up to `length`, at most `maxRequestBytes`. */
  pieces: readonly MemoryPiece[] | undefined = undefined;
  /** Kept by the ring: the operation that it is, while it is in flight. */
  id = -1;

  /** 0, a negative errno, or `resultEndedEarly`. Must not throw. */
  abstract settle(result: number): void;
}

const headerBytes = 64;
const entryBytes = 32;
const pieceBytes = 16;
const resultBytes = 8;
const headerEntries = 0;
const headerReaping = 1;
const headerPieces = 2;
/** In place of an arena's index: the memory is in pieces. */
const inPieces = 0xffff_ffff;
const noSlot = 0xffff_ffff;
const resolved = Promise.resolve();

let nextOrdinal = 0;

export class Ring {
  readonly #native: NativeRing;
  readonly #handle: NativeRingHandle;
  readonly #report: EngineReport;
  readonly #ordinal = nextOrdinal++;
  readonly #capacity: number;
  readonly #maxQueued: number;
  readonly #polls: boolean;
  readonly #maxPiecesWaiting: number;
  readonly #piecesAt: number;
  readonly #words: Uint32Array;
  readonly #floats: Float64Array;
  readonly #results: Int32Array;
  /** In flight, by operation id. */
  readonly #requests: (RingRequest | undefined)[];
  readonly #freeIds: Uint32Array;
  #freeCount: number;
  #parked: RingRequest[] = [];
  #parkedHead = 0;
  #queuedMax = 0;
  readonly #flush: () => void;
  #closed = false;

  /** Made by `openRing`. */
  constructor(engine: EngineName, reason: string, settings: Required<RingOptions>) {
    const { capacity, maxQueued, threads, pollMicroseconds } = settings;
    this.#native = native().ring;
    this.#capacity = capacity;
    this.#maxQueued = maxQueued;
    this.#polls = pollMicroseconds > 0;
    this.#maxPiecesWaiting = maxPieces + 4 * capacity;
    const piecesAt = headerBytes + capacity * entryBytes;
    const resultsAt = piecesAt + this.#maxPiecesWaiting * pieceBytes;
    const memory = new SharedArrayBuffer(resultsAt + capacity * resultBytes);
    this.#piecesAt = piecesAt >>> 2;
    this.#words = new Uint32Array(memory);
    this.#floats = new Float64Array(memory);
    this.#results = new Int32Array(memory, resultsAt);
    this.#requests = new Array<RingRequest | undefined>(capacity).fill(undefined);
    this.#freeIds = Uint32Array.from({ length: capacity }, (_, index) => capacity - 1 - index);
    this.#freeCount = capacity;
    this.#flush = this.#polls ? () => this.#handOverAndPoll() : () => this.#handOver();
    const engineNumber = engine === 'io_uring' ? 1 + bestStyle() : 0;
    const onResults = (count: number) => this.#onResults(count);
    const bytes = new Uint8Array(memory);
    const made = this.#native.create(bytes, capacity, engineNumber, threads, pollMicroseconds, onResults);
    if (made.handle === undefined) throw new EngineRefusal(made.error, made.stage);
    this.#handle = made.handle;
    const features = engine === 'io_uring' ? [styles[made.style]!] : [];
    if (made.registersFiles) features.push('registered-files');
    this.#report = { engine, reason, capacity, threads: made.threads, features };
  }

  report(): EngineReport {
    return this.#report;
  }

  get inFlight(): number {
    return this.#capacity - this.#freeCount;
  }

  get queued(): number {
    return this.#parked.length - this.#parkedHead;
  }

  /** What has been done so far, on all files together. */
  statistics(): RingStatistics {
    const state = this.#native.state(this.#handle, noSlot);
    const { handOvers, batches, arenasRegistered, arenasRefused, arenaRefusal } = state;
    return {
      ...this.#count(noSlot),
      queued: this.queued,
      queuedMax: this.#queuedMax,
      handOvers,
      batches,
      arenasRegistered,
      arenasRefused,
      arenasRefusedReason:
        arenasRefused === 0 ? '' : explainUnregistered(this.#report.engine, errnoName(-arenaRefusal)),
    };
  }

  /** The same of one file. */
  fileStatistics(slot: number): IoStatistics {
    return this.#count(slot);
  }

  #count(slot: number): IoStatistics {
    const figures = new Float64Array(statisticsFigures);
    this.#native.statistics(this.#handle, slot, figures);
    const { inFlight, inFlightMax } = this.#native.state(this.#handle, slot);
    return readStatistics(figures, inFlight, inFlightMax);
  }

  /** Makes an open file known, under a descriptor of the ring's own. Throws ERR_HOLDFAST_QUEUE_FULL if it cannot. */
  addFile(fd: number): number {
    const slot = this.#native.addFile(this.#handle, fd);
    if (slot >= 0) return slot;
    const errno = errnoName(slot);
    throw new HoldfastError(
      'ERR_HOLDFAST_QUEUE_FULL',
      `no more open files (${errno}); close some devices, or raise the limit (ulimit -n)`,
      { errno },
    );
  }

  /** Nothing may be in flight on it. */
  removeFile(slot: number): void {
    this.#native.removeFile(this.#handle, slot);
  }

  /** The index of the arena in this ring. */
  arenaIndex(arena: IoArena): number {
    return arena.ringIndexes[this.#ordinal] ?? this.#addArena(arena);
  }

  #addArena(arena: IoArena): number {
    const index = this.#native.addArena(this.#handle, arena.bytes);
    if (index < 0)
      throw new HoldfastError('ERR_HOLDFAST_MEMORY_EXHAUSTED', 'too many arenas of I/O memory in one ring');
    arena.ringIndexes[this.#ordinal] = index;
    arena.detachers.push(() => this.#native.removeArena(this.#handle, index));
    return index;
  }

  /**
   * Sends the request, or parks it until there is a place. Who begins something new calls `admit` first; the parts of
   * what has begun are taken in any case, since a failure half-way would help nobody.
   *
   * @returns false if it is parked: it may still be withdrawn.
   */
  submit(request: RingRequest): boolean {
    if (this.#freeCount > 0) {
      this.#write(request);
      return true;
    }
    this.#parked.push(request);
    if (this.queued > this.#queuedMax) this.#queuedMax = this.queued;
    return false;
  }

  /** Throws ERR_HOLDFAST_QUEUE_FULL if `maxQueued` requests are parked and a further one would be. */
  admit(): void {
    if (this.#freeCount > 0 || this.queued < this.#maxQueued) return;
    throw new HoldfastError(
      'ERR_HOLDFAST_QUEUE_FULL',
      `${this.#capacity} requests are in flight and ${this.#maxQueued} wait; wait for some to finish, or raise maxQueued`,
    );
  }

  /**
   * Asks that a request in flight is not begun, if the kernel or the threads have not: it then settles with -ECANCELED.
   * One that has begun settles as ever.
   */
  cancel(request: RingRequest): void {
    if (request.id < 0) return;
    this.#handOver();
    this.#native.cancel(this.#handle, request.id);
  }

  /** Takes a parked request back, unsettled. False if it is in flight or over. */
  withdraw(request: RingRequest): boolean {
    const at = this.#parked.indexOf(request, this.#parkedHead);
    if (at < 0) return false;
    this.#parked.splice(at, 1);
    return true;
  }

  /** Lets go of the native side. Nothing may be in flight. */
  close(): void {
    if (this.#closed) return;
    assert(this.inFlight === 0 && this.queued === 0, 'a ring is closed once nothing is in flight');
    this.#closed = true;
    this.#native.close(this.#handle);
  }

  #write(request: RingRequest): void {
    const words = this.#words;
    if (request.pieces !== undefined && words[headerPieces]! + request.pieces.length > this.#maxPiecesWaiting)
      this.#handOver();
    const count = words[headerEntries]!;
    const at = (headerBytes + count * entryBytes) >>> 2;
    const id = this.#freeIds[--this.#freeCount]!;
    this.#requests[id] = request;
    request.id = id;
    words[at] = request.operation;
    words[at + 1] = request.slot;
    if (request.operation > RingOperation.flush) {
      this.#floats[(at + 2) >>> 1] = request.length;
    } else if (request.pieces === undefined) {
      words[at + 2] = request.arena;
      words[at + 3] = request.arenaOffset;
      words[at + 6] = request.length;
    } else {
      this.#writePieces(at, request.pieces);
    }
    this.#floats[(at + 4) >>> 1] = request.offset;
    words[at + 7] = id;
    words[headerEntries] = count + 1;
    if (count === 0 && words[headerReaping] === 0) resolved.then(this.#flush);
  }

  #writePieces(at: number, pieces: readonly MemoryPiece[]): void {
    const words = this.#words;
    const first = words[headerPieces]!;
    words[at + 2] = inPieces;
    words[at + 3] = first;
    words[at + 6] = pieces.length;
    words[headerPieces] = first + pieces.length;
    let to = this.#piecesAt + first * (pieceBytes >>> 2);
    for (const piece of pieces) {
      words[to] = piece.arena;
      words[to + 1] = piece.arenaOffset;
      words[to + 2] = piece.length;
      to += pieceBytes >>> 2;
    }
  }

  #handOver(): void {
    if (this.#words[headerEntries]! > 0) this.#native.submit(this.#handle);
  }

  /** In a microtask of its own, so results may be settled here. */
  #handOverAndPoll(): void {
    if (this.#words[headerEntries]! === 0) return;
    const count = this.#native.submitAndPoll(this.#handle);
    if (count > 0) this.#onResults(count);
  }

  #onResults(count: number): void {
    const results = this.#results;
    for (let index = 0; index < count; index++) {
      const id = results[2 * index]!;
      const request = this.#requests[id]!;
      this.#requests[id] = undefined;
      this.#freeIds[this.#freeCount++] = id;
      request.id = -1;
      request.settle(results[2 * index + 1]!);
    }
    if (this.#parked.length > 0) this.#unpark();
  }

  #unpark(): void {
    while (this.#freeCount > 0 && this.#parkedHead < this.#parked.length) {
      this.#write(this.#parked[this.#parkedHead++]!);
    }
    // Give the passed half back now and then, so that the list is bounded without moving it every time.
    if (this.#parkedHead === this.#parked.length || this.#parkedHead > 1024) {
      this.#parked = this.#parked.slice(this.#parkedHead);
      this.#parkedHead = 0;
    }
  }
}

/** The engine could not be started: an errno and the call that gave it. */
class EngineRefusal extends Error {
  readonly errno: string;
  readonly stage: string;

  constructor(errno: number, stage: string) {
    const name = errnoName(-errno);
    super(`${stage}: ${name}`);
    this.errno = name;
    this.stage = stage;
  }
}

const errnoNames = new Map<number, string>();
for (const [name, errno] of Object.entries(constants.errno)) {
  if (!errnoNames.has(errno)) errnoNames.set(errno, name);
}

/** The name of a negative errno: `EIO`. */
export function errnoName(result: number): string {
  return errnoNames.get(-result) ?? `errno ${-result}`;
}

function explainRefusal(refusal: EngineRefusal): string {
  const why = `${refusal.stage} says ${refusal.errno}`;
  if (refusal.stage === 'IORING_REGISTER_PROBE')
    return `the kernel's io_uring lacks operations that are needed (${why})`;
  if (refusal.errno === 'ENOSYS')
    return `the kernel has no io_uring, or a container's seccomp filter hides it (${why})`;
  if (refusal.errno === 'ENOMEM')
    return `io_uring may not lock enough memory (${why}); raise the limit (ulimit -l) to use it`;
  if (refusal.errno !== 'EPERM' && refusal.errno !== 'EACCES') return `io_uring could not be started (${why})`;
  const sysctl = readSysctl('/proc/sys/kernel/io_uring_disabled');
  if (sysctl === '1')
    return (
      `io_uring is switched off for processes without privileges (${why}): sysctl kernel.io_uring_disabled is 1, so ` +
      'run it by a member of the group kernel.io_uring_group, with CAP_SYS_ADMIN, or set it to 0'
    );
  if (sysctl === '2')
    return `io_uring is switched off (${why}): sysctl kernel.io_uring_disabled is 2, for everybody; set it to 0 or 1 to use it`;
  return `io_uring is denied (${why}): by a container's seccomp filter or a security module`;
}

function explainUnregistered(engine: EngineName, errno: string): string {
  if (engine === 'threads') return 'threads have no use for it';
  if (errno === 'ENOMEM')
    return `the kernel says ${errno}; raise the limit of locked memory (ulimit -l) to have it all`;
  return `the kernel says ${errno}`;
}

function readSysctl(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

/** How io_uring's completions come in, best first (native/ring/uring.h). */
export const styles = ['deferred', 'cooperative', 'plain'];

/** HOLDFAST_IO_URING_STYLE has a new kernel do as an old one: for tests and comparisons. */
function bestStyle(): number {
  const named = process.env.HOLDFAST_IO_URING_STYLE;
  if (named === undefined || named === '') return 0;
  const style = styles.indexOf(named);
  if (style >= 0) return style;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `HOLDFAST_IO_URING_STYLE is "${named}"; it must be ${styles.join(', ')}, or unset`,
  );
}

function completeOptions(options: RingOptions): Required<RingOptions> {
  const fromEnvironment = process.env.HOLDFAST_ENGINE;
  let engine = options.engine ?? 'auto';
  let origin = 'the option engine';
  if (engine === 'auto' && fromEnvironment !== undefined && fromEnvironment !== '') {
    engine = fromEnvironment as EngineName;
    origin = 'HOLDFAST_ENGINE';
  }
  if (engine !== 'auto' && engine !== 'io_uring' && engine !== 'threads')
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${origin} is "${String(engine)}"; it must be auto, io_uring or threads`,
    );
  const threads = options.threads ?? Math.min(16, Math.max(4, 2 * availableParallelism()));
  const { capacity = 256, maxQueued = 16_384, pollMicroseconds = 0 } = options;
  checkSetting('capacity', capacity, 1, 4096);
  checkSetting('maxQueued', maxQueued, 0, 2 ** 24);
  checkSetting('threads', threads, 1, 256);
  checkSetting('pollMicroseconds', pollMicroseconds, 0, 1000);
  return { engine, capacity, maxQueued, threads, pollMicroseconds };
}

function checkSetting(name: string, value: number, lowest: number, highest: number): void {
  if (Number.isSafeInteger(value) && value >= lowest && value <= highest) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `${name} ${value} must be a whole number from ${lowest} to ${highest}`,
  );
}

/**
 * Makes a ring of one's own. Most callers want `sharedRing`.
 *
 * @throws HoldfastError ERR_HOLDFAST_NOT_SUPPORTED if the engine asked for cannot be had; the message says why.
 */
export function openRing(options: RingOptions = {}): Ring {
  const settings = completeOptions(options);
  const { engine } = settings;
  const asked = options.engine === engine ? 'asked for by the option engine' : 'asked for by HOLDFAST_ENGINE';
  try {
    if (engine === 'threads') return new Ring('threads', asked, settings);
    return new Ring('io_uring', engine === 'auto' ? 'the kernel offers it' : asked, settings);
  } catch (error) {
    if (!(error instanceof EngineRefusal)) throw error;
    const reason = engine === 'threads' ? error.message : explainRefusal(error);
    if (engine === 'auto') return new Ring('threads', reason, settings);
    throw new HoldfastError('ERR_HOLDFAST_NOT_SUPPORTED', `${reason}; use engine auto`, {
      cause: error,
      errno: error.errno,
    });
  }
}

const sharedRings = new Map<string, Ring>();

/** The ring of this event loop with these settings. It lives as long as the loop; idle, it does not keep it alive. */
export function sharedRing(options: RingOptions = {}): Ring {
  const key = JSON.stringify(completeOptions(options));
  let ring = sharedRings.get(key);
  if (ring === undefined) {
    ring = openRing(options);
    sharedRings.set(key, ring);
  }
  return ring;
}
