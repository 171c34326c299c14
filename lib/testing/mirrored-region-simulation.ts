/**
 * A mirrored region in the seeded simulation: two units, a register, and one writer after another, each started while the
 * one before may still run (a zombie), stand still or be cut off from a unit. A phase with faults is followed by one in
 * which all is healed: a new writer must be let in, both legs must be in sync again and alike. Each word's history is
 * judged (history.ts): what was acknowledged was durable, so no power cut may take it back. A backup reads all the while,
 * and makes durable what it has read: that must not be taken back either.
 *
 * One seed decides everything: the same seed leaves the same trace.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { MirroredAccess } from '../checkpoint/mirrored-access.ts';
import { MirroredReader } from '../checkpoint/mirrored-reader.ts';
import { checkLinearizable } from './history.ts';
import { Scheduler } from './scheduler.ts';
import { SimulatedClock, SimulatedProcess } from './simulated-clock.ts';
import { SimulatedRandom } from './simulated-random.ts';
import {
  legsOf,
  type RegionClient,
  type RegionWorld,
  SimulatedRegionUnit,
  SimulatedRegister,
} from './simulated-region-units.ts';
import { Histories, stamp } from './stamps.ts';
import { Trace } from './trace.ts';

const WORD_BYTES = 8;
const WORDS = 48;
/** Four to a line of memory: what is lost together does not belong together. */
const WORD_STRIDE_BYTES = 16;
/** Behind the words: what guarded writes are conditional on. */
const FENCE_ADDRESS = WORDS * WORD_STRIDE_BYTES;
const REGION_BYTES = FENCE_ADDRESS + 64;
const CHUNK_BYTES = 128;
const FAULTS_MS = 1500;
const LIVENESS_LIMIT_MS = 30_000;
const WORKERS = 3;
const ATTEMPTS_MAX = 5;
const LINES_MOST = 30;

/** What became of one seed. */
export interface RegionSimulationResult {
  readonly seed: number;
  /** Undefined if all held. */
  readonly failure: string | undefined;
  /** Same seed, same hash. */
  readonly traceHash: string;
  readonly operations: number;
  readonly unended: number;
  readonly faults: number;
  /** Writers that were let in. */
  readonly takeOvers: number;
  readonly rebuilds: number;
  /** Of the backup, while writers were at work. */
  readonly backupReads: number;
  /** The last lines of what happened. */
  readonly trace: readonly string[];
}

/** Runs one seed. Throws nothing that a fault could bring about: what went wrong is in the result. */
export async function simulateMirroredRegion(seed: number, keepLines = 0): Promise<RegionSimulationResult> {
  const simulation = new MirroredRegionSimulation(seed, keepLines);
  const failure = await simulation.run().catch((error: unknown) => {
    return `the simulation broke: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
  });
  return simulation.result(failure);
}

interface RegionProcess extends RegionClient {
  readonly clock: SimulatedClock;
  readonly random: SimulatedRandom;
}

interface Writer extends RegionProcess {
  access: MirroredAccess | undefined;
  /** What it has put behind the words, if its writes are guarded. */
  fence: bigint | undefined;
  /** Words that it has stored and not yet made durable: it does not read them. */
  readonly volatile: Set<number>;
}

class MirroredRegionSimulation {
  readonly #seed: number;
  readonly #world: RegionWorld;
  readonly #trace: Trace;
  readonly #random: SimulatedRandom;
  readonly #histories = new Histories();
  readonly #register: SimulatedRegister;
  readonly #units: readonly [SimulatedRegionUnit, SimulatedRegionUnit];
  readonly #writers: Writer[] = [];
  readonly #backup: RegionProcess;
  #faults = 0;
  #takeOvers = 0;
  #rebuilds = 0;
  #backupReads = 0;
  /** The word that was written to last: what can be read there is least safe. */
  #newest = 0;
  #failure: string | undefined;
  #isOver = false;

  constructor(seed: number, keepLines: number) {
    const scheduler = new Scheduler();
    this.#seed = seed;
    this.#random = new SimulatedRandom(seed, 'faults');
    this.#trace = new Trace({ keepLines });
    const note = (line: string): void => this.#trace.add(`${scheduler.nowUs} ${line}`);
    this.#world = { scheduler, random: new SimulatedRandom(seed, 'world'), note };
    this.#register = new SimulatedRegister(this.#world);
    const unit = (leg: 0 | 1) =>
      new SimulatedRegionUnit(this.#world, this.#register, `unit-${'ab'[leg]}`, leg, REGION_BYTES);
    this.#units = [unit(0), unit(1)];
    this.#backup = this.#newProcess('backup');
  }

  result(failure: string | undefined): RegionSimulationResult {
    const operations = new Set([...this.#histories.blocks.values()].flat());
    return {
      seed: this.#seed,
      failure: this.#failure ?? failure,
      traceHash: this.#trace.hash(),
      operations: this.#histories.operations,
      unended: [...operations].filter(({ end }) => end === Number.POSITIVE_INFINITY).length,
      faults: this.#faults,
      takeOvers: this.#takeOvers,
      rebuilds: this.#rebuilds,
      backupReads: this.#backupReads,
      trace: this.#trace.lastLines(),
    };
  }

  async run(): Promise<string | undefined> {
    const { scheduler } = this.#world;
    this.#startWriter();
    void this.#follow(this.#backup);
    await scheduler.runFor(this.#random.between(20, 60));
    this.#register.lossRate = this.#random.chance(0.5) ? 0.1 : 0;
    const endMs = scheduler.nowMs + FAULTS_MS;
    while (scheduler.nowMs < endMs && this.#failure === undefined) {
      await scheduler.runFor(this.#random.between(1, 60));
      this.#fault();
    }
    await this.#heal();
    return this.#judge();
  }

  // Faults

  #fault(): void {
    this.#faults += 1;
    const one = this.#random.below(this.#writers.length + 1);
    const writer = this.#writers[one] ?? this.#backup;
    const newest = this.#writers.at(-1)!;
    const unit = this.#units[this.#random.below(2)]!;
    const draw = this.#random.below(100);
    if (draw < 14) this.#startWriter();
    else if (draw < 22) this.#kill(newest);
    else if (draw < 30) this.#pause(writer);
    else if (draw < 45) {
      this.#world.note(`the session of ${writer.name} with ${unit.name} breaks`);
      unit.breakSession(writer);
    } else if (draw < 58) this.#cutOff(writer, unit);
    else if (draw < 66) unit.crash();
    else if (draw < 78) unit.crashAtStore(1 + this.#random.below(20));
    else if (draw < 84) unit.voidKeys();
    else if (draw < 90) this.#cutFromRegister(writer);
    else if (draw < 95) this.#hang(unit);
    else {
      unit.failNext = (['write', 'persist', 'read'] as const)[this.#random.below(3)];
      this.#world.note(`${unit.name} is to fail to ${unit.failNext}`);
    }
    for (const each of this.#units) this.#restart(each);
    if (!newest.process.alive) this.#startWriter();
  }

  #restart(unit: SimulatedRegionUnit): void {
    if (!unit.isUp) this.#later(this.#random.between(5, 150), () => unit.start());
  }

  #kill(writer: Writer): void {
    this.#world.note(`${writer.name} is killed`);
    writer.process.kill();
    for (const unit of this.#units) unit.breakSession(writer);
  }

  #hang(unit: SimulatedRegionUnit): void {
    if (!unit.isUp) return;
    unit.hang();
    this.#later(this.#random.between(1, 300), () => unit.goOn());
  }

  #pause(writer: RegionClient): void {
    this.#world.note(`${writer.name} stands still`);
    writer.process.pause();
    this.#later(this.#random.between(1, 200), () => writer.process.resume());
  }

  #cutOff(writer: RegionClient, unit: SimulatedRegionUnit): void {
    this.#world.note(`${writer.name} is cut off from ${unit.name}`);
    unit.cut(writer);
    this.#later(this.#random.between(1, 300), () => unit.mend(writer));
  }

  #cutFromRegister(writer: RegionClient): void {
    this.#world.note(`${writer.name} is cut off from the register`);
    writer.isCutFromRegister = true;
    this.#later(this.#random.between(1, 300), () => {
      writer.isCutFromRegister = false;
    });
  }

  #later(delayMs: number, action: () => void): void {
    this.#world.scheduler.schedule(delayMs * 1000, action);
  }

  // Writers

  #startWriter(): Writer {
    const name = `w${this.#writers.length}`;
    const writer: Writer = {
      ...this.#newProcess(name),
      access: undefined,
      fence: undefined,
      volatile: new Set(),
    };
    this.#world.note(`${name} starts`);
    this.#writers.push(writer);
    void this.#live(writer);
    return writer;
  }

  #newProcess(name: string): RegionProcess {
    const process = new SimulatedProcess(name);
    const random = new SimulatedRandom(this.#seed, name);
    const clock = new SimulatedClock(this.#world.scheduler, process, random.between(0, 1e6));
    return { name, process, random, clock, isCutFromRegister: false };
  }

  /** Reads all the while, over legs that come and go. */
  async #follow(backup: RegionProcess): Promise<void> {
    const { clock, random } = backup;
    const legs = legsOf(this.#units, backup);
    const arbiter = this.#register.arbiterOf(backup);
    while (!this.#isOver) {
      try {
        await using reader = await MirroredReader.open({ clock, legs, arbiter, legMs: 50, whenLegAway: 'wait' });
        while (!this.#isOver)
          await this.#readAsBackup(backup, reader, random.chance(0.5) ? this.#newest : random.below(WORDS));
      } catch (error) {
        this.#world.note(`the backup is interrupted: ${codeOf(error)}`);
        await this.#pass(backup, random.between(1, 20));
      }
    }
  }

  async #readAsBackup(backup: RegionProcess, reader: MirroredReader, word: number): Promise<void> {
    const operation = this.#histories.begin('read', word);
    const bytes = new Uint8Array(WORD_BYTES);
    await reader.read(addressOf(word), bytes);
    this.#histories.endRead(operation, bytes);
    this.#backupReads += 1;
    await this.#pass(backup, backup.random.between(0, 10));
  }

  /** Until another has taken over. */
  async #live(writer: Writer): Promise<void> {
    while (this.#writers.at(-1) === writer && !this.#isOver) {
      try {
        writer.access = await this.#open(writer);
      } catch (error) {
        this.#world.note(`${writer.name} is not let in: ${codeOf(error)}`);
        await this.#pass(writer, writer.random.between(5, 40));
        continue;
      }
      this.#takeOvers += 1;
      this.#world.note(`${writer.name} is let in`);
      await this.#raiseFence(writer, writer.access).catch(() => writer.access?.close());
      await Promise.all(Array.from({ length: WORKERS }, () => this.#work(writer, writer.access!)));
      this.#world.note(`${writer.name} ends: ${writer.access.failure?.code}`);
      writer.volatile.clear();
    }
  }

  /** As writers of checkpoints do. */
  async #raiseFence(writer: Writer, access: MirroredAccess): Promise<void> {
    writer.fence = undefined;
    if (writer.random.chance(0.3)) return;
    const fence = BigInt(access.epoch);
    const word = new Uint8Array(WORD_BYTES);
    await access.readConfirmed(FENCE_ADDRESS, word);
    if ((await access.compareAndSwap(FENCE_ADDRESS, wordOf(word), fence, { persist: true })) === wordOf(word))
      writer.fence = fence;
  }

  #open(writer: Writer): Promise<MirroredAccess> {
    return MirroredAccess.open({
      environment: writer,
      legs: legsOf(this.#units, writer),
      arbiter: this.#register.arbiterOf(writer),
      writer: writer.name,
      legMs: 50,
      commandMs: 60,
      retryMs: 100,
      chunkBytes: CHUNK_BYTES,
      maxInFlight: 4,
      onStatus: ({ rebuild }) => {
        if (rebuild?.doneBytes === 0) this.#rebuilds += 1;
      },
    });
  }

  async #work(writer: Writer, access: MirroredAccess): Promise<void> {
    const { random } = writer;
    while (access.open && !this.#isOver) {
      const word = random.below(WORDS);
      const count = 1 + random.below(Math.min(4, WORDS - word));
      try {
        const draw = random.between(0, 10);
        if (draw < 4) await this.#readOne(writer, access, word);
        else if (draw < 8) await this.#write(writer, access, word, count, true);
        else if (draw < 9) await this.#write(writer, access, word, count, false);
        else if (draw < 9.5 || writer.fence === undefined) await this.#swap(access, word);
        else await this.#refused(access, word, writer.fence);
      } catch (error) {
        if (access.open && !isHoldfastError(error, 'ERR_HOLDFAST_NO_MAJORITY')) {
          this.#failure ??= `${writer.name} is open, and a command fails: ${error instanceof Error ? error.stack : error}`;
          return;
        }
      }
      await this.#pass(writer, random.between(0, 4));
    }
  }

  async #readOne(writer: Writer, access: MirroredAccess, word: number): Promise<void> {
    if (writer.volatile.has(word)) return;
    const operation = this.#histories.begin('read', word);
    const bytes = new Uint8Array(WORD_BYTES);
    await access.readConfirmed(addressOf(word), bytes);
    if (!writer.volatile.has(word)) this.#histories.endRead(operation, bytes);
  }

  /** Ends when it is durable. */
  async #write(writer: Writer, access: MirroredAccess, word: number, count: number, persist: boolean): Promise<void> {
    const operation = this.#histories.begin('write', word, count);
    this.#newest = word;
    const words = Array.from({ length: count }, (_, index) => word + index);
    const bytes = new Uint8Array(WORD_STRIDE_BYTES * count);
    stamp(bytes, operation.value);
    if (!persist) for (const each of words) writer.volatile.add(each);
    const guard = writer.fence === undefined ? {} : { guard: { address: FENCE_ADDRESS, expected: writer.fence } };
    await access.write(addressOf(word), [bytes.subarray(0, 24), bytes.subarray(24)], { persist, ...guard });
    if (!persist) {
      await access.persist(addressOf(word), bytes.length);
      for (const each of words) writer.volatile.delete(each);
    }
    this.#histories.endWrite(operation, true);
    this.#world.note(`${writer.name} has written ${operation.value} from word ${word} on`);
  }

  /** What it finds is not confirmed, so it is not judged; what it stores is. */
  async #swap(access: MirroredAccess, word: number): Promise<void> {
    const old = new Uint8Array(WORD_BYTES);
    await access.read(addressOf(word), old);
    const operation = this.#histories.begin('write', word);
    const bytes = new Uint8Array(WORD_BYTES);
    stamp(bytes, operation.value);
    const [expected, desired] = [wordOf(old), wordOf(bytes)];
    const found = await access.compareAndSwap(addressOf(word), expected, desired, { persist: true });
    if (found === expected) this.#histories.endWrite(operation, true);
  }

  /** By a guard that does not hold. Its value is not in the history: nobody may ever read it. */
  async #refused(access: MirroredAccess, word: number, fence: bigint): Promise<void> {
    const bytes = new Uint8Array(WORD_BYTES);
    stamp(bytes, -5);
    const guard = { address: FENCE_ADDRESS, expected: fence + 1n };
    try {
      await access.write(addressOf(word), [bytes], { persist: true, guard });
      this.#failure ??= 'a guard that does not hold lets a write through';
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_FENCED')) throw error;
    }
  }

  #pass(writer: RegionProcess, delayMs: number): Promise<void> {
    return new Promise((resolve) => writer.clock.setTimer(delayMs, resolve));
  }

  // The end

  async #heal(): Promise<void> {
    this.#world.note('all is healed');
    this.#register.lossRate = 0;
    for (const process of [this.#backup, ...this.#writers]) {
      process.isCutFromRegister = false;
      for (const unit of this.#units) unit.mend(process);
    }
    this.#backup.process.resume();
    for (const writer of this.#writers) {
      if (this.#random.chance(0.5)) this.#kill(writer);
      else writer.process.resume();
    }
    for (const unit of this.#units) {
      unit.failNext = undefined;
      unit.goOn();
      unit.crash();
      unit.start();
    }
    const last = this.#startWriter();
    const isInSync = (): boolean => last.access?.status.legs.every(({ state }) => state === 'in-sync') === true;
    let isRead = false;
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !isRead && this.#failure === undefined; attempt++) {
      await this.#until(isInSync, 'a new writer is let in, and both legs are in sync');
      isRead = await this.#readAll(last, last.access!);
    }
    if (this.#failure !== undefined) return;
    if (!isRead) throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', 'not in time: the new writer reads all');
    const { access } = last;
    this.#isOver = true;
    await this.#world.scheduler.runFor(200);
    await access!.close();
    this.#compareLegs();
  }

  /** False if one from before has taken over meanwhile: it was on its way. */
  async #readAll(writer: Writer, access: MirroredAccess): Promise<boolean> {
    const all = Array.from({ length: WORDS }, (_, word) => this.#readOne(writer, access, word));
    const results = Promise.allSettled(all);
    return (await this.#world.scheduler.runUntil(results, LIVENESS_LIMIT_MS)).every(
      ({ status }) => status === 'fulfilled',
    );
  }

  /** A store that was under way may be on one of them, as long as nobody was told. */
  #compareLegs(): void {
    const [first, second] = this.#units.map((unit) => {
      const bytes = new Uint8Array(REGION_BYTES);
      unit.read(0, bytes);
      return bytes;
    }) as [Uint8Array, Uint8Array];
    if (Buffer.compare(first, second) !== 0) this.#failure ??= 'the legs differ in the end';
  }

  #judge(): string | undefined {
    for (const [word, history] of this.#histories.blocks) {
      const found = checkLinearizable(history);
      if (found === undefined) continue;
      const values = new Set(found.operations.map(({ value }) => value));
      const about = history.filter(({ value }) => values.has(value)).slice(0, LINES_MOST);
      return `word ${word}: ${found.rule}\n${about.map((operation) => JSON.stringify(operation)).join('\n')}`;
    }
    return undefined;
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const { scheduler } = this.#world;
    const limitMs = scheduler.nowMs + LIVENESS_LIMIT_MS;
    await scheduler.run(() => condition() || scheduler.nowMs >= limitMs || this.#failure !== undefined);
    if (condition() || this.#failure !== undefined) return;
    throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', `not in time: ${what}`);
  }
}

function addressOf(word: number): number {
  return word * WORD_STRIDE_BYTES;
}

function wordOf(bytes: Uint8Array): bigint {
  return new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
}

function codeOf(error: unknown): string {
  return isHoldfastError(error) ? error.code : String(error);
}
