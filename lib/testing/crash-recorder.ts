/**
 * A crash recorder: writes down what a program asks of its devices, then shows every state that a power cut (or, where
 * that is asked for, the death of its process) could have left them in to a check of the program's author. The idea is that of Linux' dm-log-writes and of CrashMonkey (OSDI
 * '18): record block writes and flushes, replay between flushes what a device may reorder, lose or tear.
 *
 * What a crash may leave, at the end of each stretch in which nothing becomes durable (crash-plans.ts says which of the
 * states of a stretch are tried):
 * - all that is durable (crash-recording.ts says when a write is);
 * - of the writes that have begun and are not durable any subset, and one or two of those in part, by logical blocks;
 * - two writes that overlap in the order in which they were made; either order if both were in flight at one time.
 *
 * A state at the end of a stretch stands for the same state earlier in it: the later the crash, the more must hold. So a
 * check may ask for what the notes say was promised, and need not forbid what they do not say.
 *
 * Bounds: memory for what was on the devices (zeros cost nothing) and for the data of all writes, `memoryBytesMax`
 * together; for each state what it changes; for each stretch 20 bytes a state that was tried.
 */
import { createHash } from 'node:crypto';
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { CrashImage, LayeredMemory } from './crash-image.ts';
import {
  type CrashPlan,
  type Cut,
  type EpochShape,
  isExhaustive,
  isPieceThere,
  planFromWords,
  planInWords,
  plansOf,
} from './crash-plans.ts';
import {
  type CrashKind,
  CrashRecording,
  type RecordedDevice,
  type RecordedWrite,
  RecordingDevice,
} from './crash-recording.ts';
import { SimulatedRandom } from './simulated-random.ts';

/** What a recording may take. */
export interface CrashRecorderOptions {
  /** Default 256 MiB. */
  readonly memoryBytesMax?: number;
}

/** One state that a crash could have left, as a check sees it. */
export interface CrashState {
  /** Names the state, so that it can be tried alone: `only`. */
  readonly key: string;
  /** What the crash left, by the order in which the devices were recorded. The check may write to them. */
  readonly devices: readonly BlockDevice[];
  /** What was noted before the crash. */
  readonly notes: readonly unknown[];
  /** The writes that had begun and that the crash could take back, whether it did or not. */
  readonly pending: readonly RecordedWrite[];
  /** All that had begun and was durable. */
  readonly durable: readonly RecordedWrite[];
}

/** Throws, or rejects, if what it finds must not be. `device` is the first of the recorded ones. */
export type CrashCheck = (device: BlockDevice, state: CrashState) => void | Promise<void>;

/** How far a replay is. */
export interface CrashProgress {
  readonly epoch: number;
  readonly epochs: number;
  readonly states: number;
}

/** Which states are tried. */
export interface ReplayOptions {
  /** Draws the states where there are too many to try all; default 0. */
  readonly seed?: number;
  /** Up to so many pending writes every subset is tried; default 10, at most 20. */
  readonly exhaustiveWrites?: number;
  /** How many states of a stretch are tried of each sort that is drawn; default 4096. */
  readonly statesMax?: number;
  /** The key of the only state to try. */
  readonly only?: string;
  readonly signal?: AbortSignal;
  /** Called once a stretch. */
  readonly onProgress?: (progress: CrashProgress) => void;
}

/** The state that failed its check, and what the check threw. */
export interface CrashFailure {
  readonly key: string;
  readonly error: unknown;
}

/** What a replay has tried and found. */
export interface CrashReport {
  /** Stretches in which nothing became durable. */
  readonly epochs: number;
  /** Stretches of which not every state was tried. */
  readonly drawnEpochs: number;
  /** States that were checked. */
  readonly states: number;
  /** States that were not, since another of their stretch left the same bytes. */
  readonly equalStates: number;
  /** The first; nothing was tried after it. */
  readonly failure: CrashFailure | undefined;
}

/**
 * Shows that code survives a crash at any moment: records what it does to its devices, then gives a check the states
 * that a crash at each moment could have left, all of them where they are few, drawn ones where they are many.
 */
export class CrashRecorder {
  readonly #recording: CrashRecording;

  constructor(options: CrashRecorderOptions = {}) {
    this.#recording = new CrashRecording(options.memoryBytesMax ?? 256 * 1024 * 1024);
  }

  /**
   * Gives a device that does what this one does, and is recorded. What is on it now is the ground that all states stand
   * on: nothing may be in flight. Several devices crash together, each in its own way: by default the power goes.
   *
   * @throws HoldfastError ERR_HOLDFAST_MEMORY_EXHAUSTED beyond memoryBytesMax, now or at a write.
   */
  async record(device: BlockDevice, crash: CrashKind = 'power-cut'): Promise<BlockDevice> {
    return new RecordingDevice(device, this.#recording, await this.#recording.add(device, crash));
  }

  /** Writes down what has been promised, or tried, by now: a check sees what was noted before its crash. */
  note(value: unknown): void {
    this.#recording.note(value);
  }

  /** All writes so far. */
  get writes(): readonly RecordedWrite[] {
    return this.#recording.writes;
  }

  /**
   * Shows the states to the check, one after the other, until one fails.
   *
   * @throws HoldfastError ERR_HOLDFAST_ABORTED; ERR_HOLDFAST_BAD_ARGUMENT if `only` names no state.
   * @example
   * const recorder = new CrashRecorder();
   * const device = await recorder.record(new MemoryDevice({ sizeBytes: 65_536 }));
   * await work(device);
   * const { failure } = await recorder.replay(async (image) => check(image));
   */
  async replay(check: CrashCheck, options: ReplayOptions = {}): Promise<CrashReport> {
    const replay = new Replay(this.#recording, check, options);
    return options.only === undefined ? replay.all() : replay.one(options.only);
  }
}

/** One stretch: what is certain at its end, and what is not. */
interface Epoch {
  readonly number: number;
  /** Per device: everything durable, but for `above`. */
  readonly floors: readonly LayeredMemory[];
  readonly pending: readonly RecordedWrite[];
  /** Durable, and over or beside a pending write: made over the floor in every state. */
  readonly above: readonly RecordedWrite[];
  readonly durable: readonly RecordedWrite[];
  readonly notes: readonly unknown[];
}

class Replay {
  readonly #recording: CrashRecording;
  readonly #check: CrashCheck;
  readonly #options: ReplayOptions;
  #states = 0;
  #equalStates = 0;
  #drawnEpochs = 0;

  constructor(recording: CrashRecording, check: CrashCheck, options: ReplayOptions) {
    this.#recording = recording;
    this.#check = check;
    this.#options = options;
  }

  async all(): Promise<CrashReport> {
    const { seed = 0, exhaustiveWrites = 10, statesMax = 4096 } = this.#options;
    const limits = { exhaustiveWrites: Math.min(exhaustiveWrites, 20), statesMax };
    const epochs = this.#recording.turns.length;
    for (const epoch of epochsOf(this.#recording)) {
      this.#options.onProgress?.({ epoch: epoch.number, epochs, states: this.#states });
      const shape = shapeOf(epoch, this.#recording.devices);
      if (!isExhaustive(shape, limits)) this.#drawnEpochs += 1;
      const seen = new Set<string>();
      for (const plan of plansOf(shape, limits, new SimulatedRandom(seed, `epoch ${epoch.number}`))) {
        const failure = await this.#try(epoch, plan, seen);
        if (failure !== undefined) return this.#report(epochs, failure);
      }
    }
    return this.#report(epochs, undefined);
  }

  async one(key: string): Promise<CrashReport> {
    const match = /^epoch (\d+): (.*)$/.exec(key);
    for (const epoch of epochsOf(this.#recording)) {
      if (epoch.number !== Number(match?.[1])) continue;
      const plan = planFromWords(match![2]!, indexesOf(epoch), epoch.pending.length);
      if (plan !== undefined) return this.#report(1, await this.#try(epoch, plan, new Set()));
    }
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `the recording has no state "${key}"; was it of another one?`);
  }

  async #try(epoch: Epoch, plan: CrashPlan, seen: Set<string>): Promise<CrashFailure | undefined> {
    throwIfAborted(this.#options.signal, 'the replay of crash states');
    const memories = imageOf(epoch, plan, this.#recording.devices);
    const digest = digestOf(memories);
    if (seen.has(digest)) {
      this.#equalStates += 1;
      return undefined;
    }
    seen.add(digest);
    this.#states += 1;
    const key = `epoch ${epoch.number}: ${planInWords(plan, indexesOf(epoch))}`;
    const devices = this.#recording.devices.map(
      ({ name, geometry }, index) => new CrashImage(name, geometry, memories[index]!),
    );
    const { notes, pending, durable } = epoch;
    try {
      await this.#check(devices[0]!, { key, devices, notes, pending, durable });
      return undefined;
    } catch (error) {
      return { key, error };
    }
  }

  #report(epochs: number, failure: CrashFailure | undefined): CrashReport {
    return {
      epochs,
      drawnEpochs: this.#drawnEpochs,
      states: this.#states,
      equalStates: this.#equalStates,
      failure,
    };
  }
}

/** All writes whose place in the order is open: the pending ones first. */
function openWrites(epoch: Epoch): readonly RecordedWrite[] {
  return [...epoch.pending, ...epoch.above];
}

function indexesOf(epoch: Epoch): number[] {
  return openWrites(epoch).map(({ index }) => index);
}

function overlap(one: RecordedWrite, other: RecordedWrite): boolean {
  return (
    one.device === other.device && one.offset < other.offset + other.length && other.offset < one.offset + one.length
  );
}

/** They touch, and the first had ended when the other began: whatever becomes of them, this order holds. */
function mustPrecede(one: RecordedWrite, other: RecordedWrite): boolean {
  return one.ended < other.begun && overlap(one, other);
}

/** As they were completed. */
function byEnd(one: RecordedWrite, other: RecordedWrite): number {
  return one.ended === other.ended ? one.begun - other.begun : one.ended - other.ended;
}

function* epochsOf(recording: CrashRecording): Generator<Epoch> {
  const floors = recording.devices.map(({ base }) => new LayeredMemory(base));
  const settled = new Set<RecordedWrite>();
  for (const [number, moment] of recording.turns.entries()) {
    const begun = recording.writes.filter((write) => write.begun < moment);
    const pending = begun.filter((write) => write.durable >= moment);
    const durable = begun.filter((write) => write.durable < moment).sort(byEnd);
    const above: RecordedWrite[] = [];
    for (const write of durable) {
      if (settled.has(write)) continue;
      const mayBeUnder = (other: RecordedWrite) => other.begun < write.ended && overlap(other, write);
      if (pending.some(mayBeUnder) || above.some((other) => overlap(other, write))) above.push(write);
      else {
        apply(floors[write.device]!, write, write.offset, write.length);
        settled.add(write);
      }
    }
    yield { number, floors, pending, above, durable, notes: recording.notesBefore(moment) };
  }
}

function shapeOf(epoch: Epoch, devices: readonly RecordedDevice[]): EpochShape {
  const open = openWrites(epoch);
  const pairs: [number, number][] = [];
  for (const [place, one] of epoch.pending.entries())
    for (let later = place + 1; later < open.length; later += 1) {
      const other = open[later]!;
      if (!overlap(one, other) || one.ended < other.begun || other.ended < one.begun) continue;
      pairs.push(byEnd(one, other) < 0 ? [place, later] : [later, place]);
    }
  return { pieces: epoch.pending.map((write) => piecesOf(write, devices)), pairs };
}

function piecesOf(write: RecordedWrite, devices: readonly RecordedDevice[]): number {
  const { logicalBlockBytes } = devices[write.device]!.geometry;
  const last = Math.floor((write.offset + write.length - 1) / logicalBlockBytes);
  return last - Math.floor(write.offset / logicalBlockBytes) + 1;
}

/** The devices' content in this state, each as a layer over its floor. */
function imageOf(epoch: Epoch, plan: CrashPlan, devices: readonly RecordedDevice[]): LayeredMemory[] {
  const memories = epoch.floors.map((floor) => new LayeredMemory(floor));
  const kept = plan.kept.map((place) => epoch.pending[place]!);
  const cuts = new Map(plan.torn.map(({ write, cut }) => [epoch.pending[write]!, cut]));
  let order = [...epoch.above, ...kept].sort(byEnd);
  if (plan.exchanged !== undefined) {
    const [first, second] = plan.exchanged.map((place) => openWrites(epoch)[place]!);
    order = exchanged(order, first!, second!);
  }
  for (const write of order) {
    const memory = memories[write.device]!;
    const cut = cuts.get(write);
    if (cut === undefined) apply(memory, write, write.offset, write.length);
    else applyTorn(memory, write, cut, devices[write.device]!.geometry.logicalBlockBytes);
  }
  return memories;
}

/** `first` falls after `second`; where something stands between that must follow it, `second` falls before `first`. */
function exchanged(order: readonly RecordedWrite[], first: RecordedWrite, second: RecordedWrite): RecordedWrite[] {
  const from = order.indexOf(first);
  const to = order.indexOf(second);
  const between = order.slice(from + 1, to);
  const rest = [order.slice(0, from), order.slice(to + 1)] as const;
  if (!between.some((write) => mustPrecede(first, write))) return [...rest[0], ...between, second, first, ...rest[1]];
  if (!between.some((write) => mustPrecede(write, second))) return [...rest[0], second, first, ...between, ...rest[1]];
  return [...order];
}

function apply(memory: LayeredMemory, write: RecordedWrite, offset: number, length: number): void {
  if (write.data === undefined) memory.zero(offset, length);
  else memory.write(offset, write.data.subarray(offset - write.offset, offset - write.offset + length));
}

function applyTorn(memory: LayeredMemory, write: RecordedWrite, cut: Cut, blockBytes: number): void {
  const firstBlock = Math.floor(write.offset / blockBytes);
  const end = write.offset + write.length;
  const pieces = Math.ceil(end / blockBytes) - firstBlock;
  for (let piece = 0; piece < pieces; piece += 1) {
    if (!isPieceThere(cut, piece, pieces)) continue;
    const from = Math.max(write.offset, (firstBlock + piece) * blockBytes);
    apply(memory, write, from, Math.min(end, (firstBlock + piece + 1) * blockBytes) - from);
  }
}

/** Of all that differs from the floors. */
function digestOf(memories: readonly LayeredMemory[]): string {
  const hash = createHash('sha1');
  for (const [device, memory] of memories.entries()) {
    for (const [index, chunk] of memory.differences()) hash.update(`${device} ${index} `).update(chunk);
  }
  return hash.digest('base64');
}
