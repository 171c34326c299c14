/**
 * Mirrored units in the seeded simulation, as they are in earnest (mirrored-site.ts): two units with their managers, three
 * voters, processes that write the region one after another, each started while the one before may still run (a zombie),
 * stand still or be cut off, and a backup that reads. Whatever runs is killed, loses its power, also in the middle of a
 * store, stands still or is cut off; a unit's persists fail, or do not end for a while.
 *
 * Then all is healed: a new writer must be let in, and both legs must be in sync again. One unit goes, in one of the ways
 * of units: writes must go on without it, and it must be rebuilt when it is back, also with a blank memory. Then the other
 * one goes: what was acknowledged must be there, and writes go on. In the end the legs are alike.
 *
 * Judged besides: the history of each word (region-words.ts). One seed decides everything: the same seed leaves the same
 * trace. The simulation in mirrored-region-simulation.ts goes through more in the same time, over units that are modelled.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { MirroredMemoryConnection } from '../checkpoint/connect-mirrored-memory.ts';
import { LEGS, type Leg, otherLeg } from '../checkpoint/mirror-standing.ts';
import type { MirroredAccess } from '../checkpoint/mirrored-access.ts';
import { MirroredSite, REGION, SITE_MACHINES, type SiteMachine, UNITS } from './mirrored-site.ts';
import { codeOf, pass, type RegionUser, RegionWords, WORDS, type WordWriter } from './region-words.ts';
import { SimulatedCluster } from './simulated-cluster.ts';
import { FAULTLESS_LINK } from './simulated-network.ts';
import type { SimulatedRandom } from './simulated-random.ts';
import { LOSSY_LINK } from './simulated-unit.ts';

const WRITERS = ['w0', 'w1', 'w2'] as const;
const BACKUP = 'backup';
const USERS: ReadonlyMap<string, boolean> = new Map([...WRITERS.map((name) => [name, true] as const), [BACKUP, false]]);
const REGION_BYTES = 4096;
const LEG_MS = 1500;
const COMMAND_MS = 800;
const RETRY_MS = 200;
/** In which everything that must come must have come once the faults are over. */
const LIVENESS_LIMIT_MS = 60_000;
const READ_ATTEMPTS_MAX = 5;
/** Of the backup, under way at a time. */
const BACKUP_READS = 3;
/** Acknowledged, and read by the backup, while one unit is gone. */
const GO_ON_COUNT = 10;

const LOSSES = ['kill', 'power', 'pause', 'hang', 'blank'] as const;
type Loss = (typeof LOSSES)[number];

/** What the seed draws. */
export interface MirroredUnitsPlan {
  /** The managers run on machines of their own. */
  readonly isApart: boolean;
  readonly lossy: boolean;
  readonly persistMs: number;
  readonly chunkBytes: number;
  /** Between two commands of one worker, at most. */
  readonly paceMs: number;
  readonly faults: number;
  /** Between two faults, at most. */
  readonly calmMs: number;
  /** How one unit goes after all is healed, and which. */
  readonly loss: Loss;
  readonly lost: Leg;
}

/** What became of one seed. */
export interface MirroredUnitsResult {
  readonly seed: number;
  readonly plan: MirroredUnitsPlan;
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
  readonly backupReads: number;
  /** The last lines of what happened. */
  readonly trace: readonly string[];
}

/** Runs one seed. Throws nothing that a fault could bring about: what went wrong is in the result. */
export async function simulateMirroredUnits(seed: number, keepLines = 0): Promise<MirroredUnitsResult> {
  const simulation = new MirroredUnitsSimulation(seed, keepLines);
  const failure = await simulation
    .run()
    .catch((error: unknown) => `the simulation broke: ${error instanceof Error ? error.stack : String(error)}`);
  return simulation.result(failure);
}

function drawPlan(random: SimulatedRandom): MirroredUnitsPlan {
  return {
    isApart: random.chance(0.3),
    lossy: random.chance(0.5),
    persistMs: random.chance(0.3) ? random.between(5, 40) : random.between(0.05, 4),
    paceMs: random.between(1, 20),
    chunkBytes: [128, 512, 4096][random.below(3)]!,
    faults: 4 + random.below(20),
    calmMs: random.between(50, 800),
    loss: LOSSES[random.below(LOSSES.length)]!,
    lost: random.below(2) as Leg,
  };
}

/** A process of a user, and its way to the region. */
interface UserProcess extends RegionUser {
  readonly connection: Promise<MirroredMemoryConnection>;
}

/** One who is to write. */
interface Writer {
  readonly user: UserProcess;
  access: MirroredAccess | undefined;
  words: WordWriter | undefined;
}

class MirroredUnitsSimulation {
  readonly #seed: number;
  readonly #cluster: SimulatedCluster;
  readonly #random: SimulatedRandom;
  readonly #plan: MirroredUnitsPlan;
  readonly #site: MirroredSite;
  readonly #words: RegionWords;
  readonly #processes = new Map<string, UserProcess>();
  #writer: Writer | undefined;
  #isHealed = false;
  #faults = 0;
  #takeOvers = 0;
  #rebuilds = 0;

  constructor(seed: number, keepLines: number) {
    this.#seed = seed;
    this.#cluster = new SimulatedCluster({ seed, names: [...SITE_MACHINES, ...USERS.keys()], trace: { keepLines } });
    this.#random = this.#cluster.random.fork('mirrored units');
    this.#plan = drawPlan(this.#random);
    const { isApart, persistMs, paceMs } = this.#plan;
    this.#words = new RegionWords((line) => this.#note(line), paceMs);
    this.#site = new MirroredSite({
      cluster: this.#cluster,
      users: USERS,
      regionBytes: REGION_BYTES,
      isApart,
      persistMs,
      onFailedStart: (machine, error) => this.#failedStart(machine, error),
    });
  }

  result(failure: string | undefined): MirroredUnitsResult {
    const { histories, unended, backupReads } = this.#words;
    return {
      seed: this.#seed,
      plan: this.#plan,
      failure: this.#words.failure ?? failure,
      traceHash: this.#cluster.trace.hash(),
      operations: histories.operations,
      unended,
      faults: this.#faults,
      takeOvers: this.#takeOvers,
      rebuilds: this.#rebuilds,
      backupReads,
      trace: this.#cluster.trace.lastLines(),
    };
  }

  async run(): Promise<string | undefined> {
    const { scheduler, network } = this.#cluster;
    await scheduler.runUntil(this.#site.create(), LIVENESS_LIMIT_MS);
    if (this.#plan.lossy) network.setAllLinks(LOSSY_LINK);
    this.#startWriter('w0');
    this.#startBackup();
    await scheduler.runFor(this.#random.between(100, 1000));
    for (let fault = 0; fault < this.#plan.faults && this.#words.failure === undefined; fault += 1) {
      this.#strike();
      await scheduler.runFor(this.#random.between(1, this.#plan.calmMs));
    }
    await this.#heal();
    await this.#loseOne(this.#plan.lost, this.#plan.loss);
    await this.#loseOne(otherLeg(this.#plan.lost), 'power');
    await this.#end();
    return this.#words.judge();
  }

  #note(line: string): void {
    this.#cluster.network.note(line);
  }

  #fail(what: string): void {
    this.#words.failure ??= what;
  }

  #later(delayMs: number, action: () => void): void {
    this.#cluster.scheduler.schedule(delayMs * 1000, action);
  }

  // Users

  /** The process of that name that runs now. */
  #process(name: string): UserProcess {
    const known = this.#processes.get(name);
    const machine = this.#cluster.node(name);
    if (machine.process.alive && known !== undefined) return known;
    const environment = machine.process.alive ? machine.environment : machine.restart();
    const { clock, random } = environment;
    const started = { name, clock, random, connection: this.#site.connect(name) };
    this.#processes.set(name, started);
    return started;
  }

  /** From now on this one is to write, whatever the one before does. */
  #startWriter(name: string): Writer {
    this.#note(`${name} is to write`);
    const writer: Writer = { user: this.#process(name), access: undefined, words: undefined };
    this.#writer = writer;
    void this.#live(writer);
    return writer;
  }

  async #live(writer: Writer): Promise<void> {
    const { user } = writer;
    while (this.#writer === writer && !this.#words.isOver) {
      try {
        writer.access = await this.#open(user);
      } catch (error) {
        this.#note(`${user.name} is not let in: ${codeOf(error)}`);
        await pass(user, user.random.between(5, 100));
        continue;
      }
      this.#takeOvers += 1;
      this.#note(`${user.name} is let in`);
      writer.words = this.#words.writer(user, writer.access);
      await writer.words.work();
      this.#note(`${user.name} ends: ${writer.access.failure?.code}`);
    }
  }

  async #open(user: UserProcess): Promise<MirroredAccess> {
    return (await user.connection).openWriter(REGION, {
      legMs: LEG_MS,
      commandMs: COMMAND_MS,
      retryMs: RETRY_MS,
      chunkBytes: this.#plan.chunkBytes,
      maxInFlight: 4,
      onStatus: ({ rebuild }) => {
        if (rebuild?.doneBytes === 0) this.#rebuilds += 1;
      },
    });
  }

  #startBackup(): void {
    void this.#follow(this.#process(BACKUP));
  }

  /** Reads all the while, over legs that come and go. */
  async #follow(backup: UserProcess): Promise<void> {
    const connection = await backup.connection;
    const { random } = backup;
    while (!this.#words.isOver) {
      try {
        await using reader = await connection.openReader(REGION, {
          legMs: LEG_MS,
          commandMs: COMMAND_MS,
          whenLegAway: 'wait',
        });
        const read = async (): Promise<void> => {
          while (!this.#words.isOver) {
            await this.#words.readAsBackup(reader, random.chance(0.5) ? this.#words.newest : random.below(WORDS));
            await pass(backup, random.between(0, 10));
          }
        };
        await Promise.all(Array.from({ length: BACKUP_READS }, read));
      } catch (error) {
        this.#note(`the backup is interrupted: ${codeOf(error)}`);
        await pass(backup, random.between(1, 20));
      }
    }
  }

  // Faults

  #strike(): void {
    this.#faults += 1;
    const { machines } = this.#site;
    const machine = machines[this.#random.below(machines.length)]!;
    const leg = this.#random.below(2) as Leg;
    const draw = this.#random.below(100);
    if (draw < 13) this.#startWriter(this.#anyWriter());
    else if (draw < 16) for (const each of machines) this.#kill(each, true);
    else if (draw < 21) this.#strand(leg);
    else if (draw < 25) this.#killWriter();
    else if (draw < 30) this.#killWriterCutOff(leg);
    else if (draw < 38) this.#standStill(this.#anyUser());
    else if (draw < 41) this.#killBackup();
    else if (draw < 54) this.#kill(machine, draw < 47);
    else if (draw < 61) this.#cutPowerAtStore(leg);
    else if (draw < 67) this.#standStill(machine.name);
    else if (draw < 73) this.#failPersists(leg);
    else if (draw < 78) this.#hangPersists(leg);
    else this.#cutLink();
  }

  #anyWriter(): string {
    return WRITERS[this.#random.below(WRITERS.length)]!;
  }

  #anyUser(): string {
    return this.#random.chance(0.3) ? BACKUP : this.#anyWriter();
  }

  #killWriter(): void {
    const machine = this.#cluster.node(this.#writer!.user.name);
    if (machine.process.alive) machine.kill();
    this.#startWriter(this.#anyWriter());
  }

  /** What it has sent arrives at one unit only. */
  #killWriterCutOff(leg: Leg): void {
    const { network } = this.#cluster;
    const { name } = this.#writer!.user;
    network.block(name, UNITS[leg]);
    this.#later(this.#random.between(1, 50), () => {
      if (!this.#isHealed) this.#killWriter();
      network.unblock(name, UNITS[leg]);
    });
  }

  /** Nobody can reach one unit, nor change the register: what is acknowledged then must not be on the other one alone. */
  #strand(leg: Leg): void {
    const { network } = this.#cluster;
    const names = [UNITS[leg], this.#site.managers[leg]];
    const others = this.#cluster.nodes().filter((node) => !names.includes(node.name));
    for (const name of new Set(names)) for (const other of others) network.partition(name, other.name);
    this.#kill(this.#site.machines.at(-1)!, false);
    this.#later(this.#random.between(1, 1000), () => {
      if (!this.#isHealed) this.#killWriter();
      for (const name of new Set(names)) for (const other of others) network.heal(name, other.name);
    });
  }

  #killBackup(): void {
    const machine = this.#cluster.node(BACKUP);
    machine.kill();
    this.#later(this.#random.between(1, 1000), () => {
      if (!machine.process.alive) this.#startBackup();
    });
  }

  #standStill(name: string): void {
    const { process } = this.#cluster.node(name);
    if (!process.alive || process.paused) return;
    this.#note(`${name} stands still`);
    process.pause();
    this.#later(this.#random.between(1, this.#random.chance(0.5) ? 200 : 3000), () => process.resume());
  }

  #kill(machine: SiteMachine, withPower: boolean): void {
    machine.kill(withPower);
    this.#later(this.#random.between(1, 1500), () => machine.restart());
  }

  /** Its persists fail: whoever watches over it starts it again. */
  #failedStart(machine: SiteMachine, error: unknown): void {
    if (isHoldfastError(error, 'ERR_HOLDFAST_FLUSH_FAILED')) this.#kill(machine, false);
    else this.#fail(`${machine.name} does not start: ${error instanceof Error ? error.stack : error}`);
  }

  #cutPowerAtStore(leg: Leg): void {
    this.#site.cutPowerAtStore(leg, 1 + this.#random.below(40), () => {
      this.#later(this.#random.between(1, 1500), () => this.#site.machine(UNITS[leg]).restart());
    });
  }

  /** Until somebody has seen to it. */
  #failPersists(leg: Leg): void {
    this.#note(`${UNITS[leg]} cannot persist any more`);
    this.#site.units[leg].memory.failPersists();
    this.#later(this.#random.between(100, 1500), () => {
      if (!this.#isHealed) this.#kill(this.#site.machine(UNITS[leg]), false);
    });
  }

  #hangPersists(leg: Leg): void {
    const { memory } = this.#site.units[leg];
    this.#note(`${UNITS[leg]} hangs`);
    memory.hangPersists();
    this.#later(this.#random.between(10, 2500), () => memory.resumePersists());
  }

  #cutLink(): void {
    const { network } = this.#cluster;
    const inside = this.#site.machines.map(({ name }) => name);
    const from = this.#random.chance(0.5) ? this.#anyUser() : inside[this.#random.below(inside.length)]!;
    const to = inside[this.#random.below(inside.length)]!;
    if (from === to) return;
    const draw = this.#random.below(4);
    if (draw === 0) network.reset(from, to);
    else if (draw === 1) network.block(from, to);
    else if (draw === 2) network.block(to, from);
    else network.partition(from, to);
    if (draw > 0) this.#later(this.#random.between(1, 2000), () => network.heal(from, to));
  }

  // The end

  async #heal(): Promise<void> {
    this.#note('all is healed');
    this.#isHealed = true;
    const { network } = this.#cluster;
    network.setAllLinks(FAULTLESS_LINK);
    const names = this.#cluster.nodes().map(({ name }) => name);
    for (const one of names) for (const other of names) if (one < other) network.heal(one, other);
    for (const name of names) this.#cluster.node(name).process.resume();
    for (const name of WRITERS) {
      const { process } = this.#cluster.node(name);
      if (process.alive && this.#random.chance(0.5)) this.#cluster.node(name).kill();
    }
    for (const unit of this.#site.units) {
      unit.spare();
      unit.memory.resumePersists();
    }
    const withPower = this.#random.chance(0.7);
    for (const machine of this.#site.machines) machine.kill(withPower);
    for (const machine of this.#site.machines) machine.restart();
    if (!this.#cluster.node(BACKUP).process.alive) this.#startBackup();
    this.#words.isQuiet = true;
    this.#startWriter(this.#anyWriter());
    await this.#becomesWhole('after all is healed');
    await this.#goesOn('after all is healed');
  }

  /** One unit goes, and comes back. */
  async #loseOne(leg: Leg, loss: Loss): Promise<void> {
    const { name } = this.#site.machine(UNITS[leg]);
    const what = `without ${name} (${loss})`;
    await this.#isInSync(`before ${name} goes (${loss})`);
    this.#note(what);
    this.#lose(leg, loss);
    await this.#goesOn(what);
    await this.#bringBack(leg, loss);
    await this.#becomesWhole(`with ${name} again (${loss})`);
    await this.#goesOn(`with ${name} again (${loss})`);
  }

  #lose(leg: Leg, loss: Loss): void {
    const machine = this.#site.machine(UNITS[leg]);
    if (loss === 'pause') machine.node.process.pause();
    else if (loss === 'hang') this.#site.units[leg].memory.hangPersists();
    else machine.kill(loss !== 'kill');
  }

  async #bringBack(leg: Leg, loss: Loss): Promise<void> {
    const machine = this.#site.machine(UNITS[leg]);
    if (loss === 'pause') machine.node.process.resume();
    else if (loss === 'hang') this.#site.units[leg].memory.resumePersists();
    else if (loss === 'blank') await this.#cluster.scheduler.runUntil(this.#replace(leg), LIVENESS_LIMIT_MS);
    else machine.restart();
  }

  async #replace(leg: Leg): Promise<void> {
    this.#site.machine(this.#site.managers[leg]).kill(false);
    await this.#site.replace(leg);
  }

  /** Writes are acknowledged, and the backup reads. */
  async #goesOn(when: string): Promise<void> {
    this.#words.isQuiet = false;
    const { writes, backupReads } = this.#words;
    const enough = (): boolean =>
      this.#words.writes >= writes + GO_ON_COUNT && this.#words.backupReads >= backupReads + GO_ON_COUNT;
    await this.#until(enough, `writes and reads go on ${when}`);
    await this.#readAll(when);
  }

  /** Resolves when both legs are, as the writer knows. */
  #isInSync(when: string): Promise<void> {
    const isSo = (): boolean => this.#writer?.access?.status.legs.every(({ state }) => state === 'in-sync') === true;
    return this.#until(isSo, `a writer is let in and both legs are in sync ${when}`);
  }

  /** Both legs are in sync, and alike when nothing is stored. */
  async #becomesWhole(when: string): Promise<void> {
    await this.#isInSync(when);
    this.#words.isQuiet = true;
    let isAlike = false;
    const compared = this.#areAlike().then(() => {
      isAlike = true;
    });
    await this.#until(() => isAlike, `both legs are alike ${when}`);
    await compared;
  }

  /** Resolves when they are: what was under way ends, and a take-over that was on its way makes them so. */
  async #areAlike(): Promise<void> {
    for (;;) {
      await new Promise<void>((resolve) => this.#later(50, resolve));
      try {
        const [first, second] = await Promise.all(LEGS.map((leg) => this.#bytesOf(leg)));
        if (Buffer.compare(first!, second!) === 0) return;
      } catch (error) {
        this.#note(`the legs cannot be compared: ${codeOf(error)}`);
      }
    }
  }

  /** Again if a writer of before has taken over meanwhile: it was on its way. */
  async #readAll(when: string): Promise<void> {
    const { scheduler } = this.#cluster;
    for (let attempt = 0; attempt < READ_ATTEMPTS_MAX && this.#words.failure === undefined; attempt += 1) {
      await this.#until(() => this.#writer?.access?.open === true, `a writer is let in ${when}`);
      if (this.#words.failure !== undefined) return;
      const { words } = this.#writer!;
      const all = Promise.allSettled(Array.from({ length: WORDS }, (_, word) => words!.readOne(word)));
      const results = await scheduler.runUntil(all, LIVENESS_LIMIT_MS);
      if (results.every(({ status }) => status === 'fulfilled')) return;
    }
    this.#fail(`the writer does not read all ${when}`);
  }

  async #end(): Promise<void> {
    await this.#becomesWhole('in the end');
    this.#words.isOver = true;
  }

  async #bytesOf(leg: Leg): Promise<Uint8Array> {
    const { clients } = await this.#process(BACKUP).connection;
    const mirrored = { register: REGION.registerId, leg };
    const { access, close } = await clients[leg].open(REGION.name, { rights: ['read'], mirrored });
    const bytes = new Uint8Array(REGION_BYTES);
    await access.read(access.range.base, bytes);
    await close();
    return bytes;
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    if (this.#words.failure !== undefined) return;
    const { scheduler } = this.#cluster;
    const limitMs = scheduler.nowMs + LIVENESS_LIMIT_MS;
    await scheduler.run(() => condition() || scheduler.nowMs >= limitMs || this.#words.failure !== undefined);
    if (condition() || this.#words.failure !== undefined) return;
    const status = JSON.stringify(this.#writer?.access?.status);
    throw new HoldfastError('ERR_HOLDFAST_TIMEOUT', `not in time: ${what}; the writer says ${status}`);
  }
}
