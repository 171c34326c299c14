/**
 * A mirrored region in the seeded simulation: two units, a register, and one writer after another, each started while the
 * one before may still run (a zombie), stand still or be cut off from a unit. A phase with faults is followed by one in
 * which all is healed: a new writer must be let in, both legs must be in sync again and alike. Each word's history is
 * judged (history.ts): what was acknowledged was durable, so no power cut may take it back. A backup reads all the while,
 * and makes durable what it has read: that must not be taken back either.
 *
 * One seed decides everything: the same seed leaves the same trace.
 */
import { HoldfastError } from '../base/errors.ts';
import { MirroredAccess } from '../checkpoint/mirrored-access.ts';
import { MirroredReader } from '../checkpoint/mirrored-reader.ts';
import type { MirroredUnitsResult } from './mirrored-units-simulation.ts';
import { codeOf, pass, RegionWords, WORDS, WORDS_BYTES, type WordWriter } from './region-words.ts';
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
import { Trace } from './trace.ts';

const REGION_BYTES = WORDS_BYTES;
const PACE_MS = 4;
const CHUNK_BYTES = 128;
const FAULTS_MS = 1500;
const LIVENESS_LIMIT_MS = 30_000;
const ATTEMPTS_MAX = 5;

/** What became of one seed: as over real sessions, without a plan. */
export type RegionSimulationResult = Omit<MirroredUnitsResult, 'plan'>;

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
  words: WordWriter | undefined;
}

class MirroredRegionSimulation {
  readonly #seed: number;
  readonly #world: RegionWorld;
  readonly #trace: Trace;
  readonly #random: SimulatedRandom;
  readonly #words: RegionWords;
  readonly #register: SimulatedRegister;
  readonly #units: readonly [SimulatedRegionUnit, SimulatedRegionUnit];
  readonly #writers: Writer[] = [];
  readonly #backup: RegionProcess;
  #faults = 0;
  #takeOvers = 0;
  #rebuilds = 0;

  constructor(seed: number, keepLines: number) {
    const scheduler = new Scheduler();
    this.#seed = seed;
    this.#random = new SimulatedRandom(seed, 'faults');
    this.#trace = new Trace({ keepLines });
    const note = (line: string): void => this.#trace.add(`${scheduler.nowUs} ${line}`);
    this.#world = { scheduler, random: new SimulatedRandom(seed, 'world'), note };
    this.#words = new RegionWords(note, PACE_MS);
    this.#register = new SimulatedRegister(this.#world);
    const unit = (leg: 0 | 1) =>
      new SimulatedRegionUnit(this.#world, this.#register, `unit-${'ab'[leg]}`, leg, REGION_BYTES);
    this.#units = [unit(0), unit(1)];
    this.#backup = this.#newProcess('backup');
  }

  result(failure: string | undefined): RegionSimulationResult {
    const { histories, unended, backupReads } = this.#words;
    return {
      seed: this.#seed,
      failure: this.#words.failure ?? failure,
      traceHash: this.#trace.hash(),
      operations: histories.operations,
      unended,
      faults: this.#faults,
      takeOvers: this.#takeOvers,
      rebuilds: this.#rebuilds,
      backupReads,
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
    while (scheduler.nowMs < endMs && this.#words.failure === undefined) {
      await scheduler.runFor(this.#random.between(1, 60));
      this.#fault();
    }
    await this.#heal();
    return this.#words.judge();
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
      words: undefined,
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
    while (!this.#words.isOver) {
      try {
        await using reader = await MirroredReader.open({ clock, legs, arbiter, legMs: 50, whenLegAway: 'wait' });
        while (!this.#words.isOver) {
          await this.#words.readAsBackup(reader, random.chance(0.5) ? this.#words.newest : random.below(WORDS));
          await pass(backup, random.between(0, 10));
        }
      } catch (error) {
        this.#world.note(`the backup is interrupted: ${codeOf(error)}`);
        await pass(backup, random.between(1, 20));
      }
    }
  }

  /** Until another has taken over. */
  async #live(writer: Writer): Promise<void> {
    while (this.#writers.at(-1) === writer && !this.#words.isOver) {
      try {
        writer.access = await this.#open(writer);
      } catch (error) {
        this.#world.note(`${writer.name} is not let in: ${codeOf(error)}`);
        await pass(writer, writer.random.between(5, 40));
        continue;
      }
      this.#takeOvers += 1;
      this.#world.note(`${writer.name} is let in`);
      writer.words = this.#words.writer(writer, writer.access);
      await writer.words.work();
      this.#world.note(`${writer.name} ends: ${writer.access.failure?.code}`);
    }
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
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !isRead && this.#words.failure === undefined; attempt++) {
      await this.#until(isInSync, 'a new writer is let in, and both legs are in sync');
      isRead = await this.#readAll(last);
    }
    if (this.#words.failure !== undefined) return;
    if (!isRead) throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', 'not in time: the new writer reads all');
    const { access } = last;
    this.#words.isOver = true;
    await this.#world.scheduler.runFor(200);
    await access!.close();
    this.#compareLegs();
  }

  /** False if one from before has taken over meanwhile: it was on its way. */
  async #readAll(writer: Writer): Promise<boolean> {
    const all = Array.from({ length: WORDS }, (_, word) => writer.words!.readOne(word));
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
    if (Buffer.compare(first, second) !== 0) this.#words.failure ??= 'the legs differ in the end';
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const { scheduler } = this.#world;
    const limitMs = scheduler.nowMs + LIVENESS_LIMIT_MS;
    await scheduler.run(() => condition() || scheduler.nowMs >= limitMs || this.#words.failure !== undefined);
    if (condition() || this.#words.failure !== undefined) return;
    throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', `not in time: ${what}`);
  }
}
