/**
 * What a mirrored region stands on, in the simulation: two units with memory that loses lines, each with the manager of
 * its leg; sessions whose frames come late or not at all; and the register, whose answers get lost. One seed gives one
 * run.
 *
 * How it misbehaves, all within what the real ones may do:
 * - A session that breaks is known to be broken at either end at a time of its own: meanwhile what was sent before may
 *   still be executed, or be lost from some point on.
 * - A unit loses power, also in the middle of a store; its keys are gone with it.
 * - A compare-and-swap whose answer is lost has happened, or not, or happens later.
 */
import { HoldfastError } from '../base/errors.ts';
import { admits, type Leg, type LegPurpose, parseStanding } from '../checkpoint/mirror-standing.ts';
import type { MirrorLegs } from '../checkpoint/mirrored-access.ts';
import type { CommandOptions, RegionAccess, StoreOptions, WriteOptions } from '../checkpoint/one-sided.ts';
import type { UnitMemory } from '../checkpoint/unit-memory.ts';
import type { Arbiter, SwapResult } from '../peer/arbiter.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimulatedProcess } from './simulated-clock.ts';
import { SimulatedMemory } from './simulated-memory.ts';
import type { SimulatedRandom } from './simulated-random.ts';

/** Where all of it happens. */
export interface RegionWorld {
  readonly scheduler: Scheduler;
  readonly random: SimulatedRandom;
  note(line: string): void;
}

/** A process that uses the region. */
export interface RegionClient {
  readonly name: string;
  readonly process: SimulatedProcess;
  /** It does not hear from the register, nor the register from it. */
  isCutFromRegister: boolean;
}

/** How long a frame takes, in each direction. */
const FRAME_MS = [0.05, 2] as const;
/** How long an end of a broken session does not know it. */
const UNAWARE_MS = 60;
const UNREACHABLE_MS = 5;
const NO_MAJORITY_MS = 100;
const PERSIST_MS = [0.05, 4] as const;

function later(world: RegionWorld, delayMs: number, action: () => void): void {
  world.scheduler.schedule(delayMs * 1000, action);
}

function frameMs({ random }: RegionWorld): number {
  return random.between(...FRAME_MS);
}

function lost(unit: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_PEER_LOST', `the session with ${unit} is over`);
}

/** A key, at the unit. */
interface Key {
  readonly session: Session;
  readonly mayWrite: boolean;
  isVoid: boolean;
  /** Commands under it that have not ended. */
  running: number;
}

/** One session between a client and a unit; each end has its own idea of whether it lives. */
class Session {
  readonly client: RegionClient;
  readonly #world: RegionWorld;
  readonly #unit: SimulatedRegionUnit;
  readonly #pending = new Set<(error: HoldfastError) => void>();
  isOpenAtClient = true;
  isOpenAtUnit = true;
  #losesFrames = false;
  #arrivedUs = 0;
  #answeredUs = 0;

  constructor(world: RegionWorld, unit: SimulatedRegionUnit, client: RegionClient) {
    this.#world = world;
    this.#unit = unit;
    this.client = client;
  }

  /** Commands arrive in the order of the calls, and so do the answers to those that end in it. */
  call<Result>(execute: () => Promise<Result>, signal?: AbortSignal): Promise<Result> {
    if (!this.isOpenAtClient) return Promise.reject(lost(this.#unit.name));
    const { scheduler } = this.#world;
    return new Promise((resolveCall, rejectCall) => {
      const abort = (): void => {
        if (this.#pending.delete(reject)) reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'a command was cancelled'));
      };
      const resolve = (result: Result): void => {
        signal?.removeEventListener('abort', abort);
        resolveCall(result);
      };
      const reject = (error: Error): void => {
        signal?.removeEventListener('abort', abort);
        rejectCall(error);
      };
      this.#pending.add(reject);
      signal?.addEventListener('abort', abort);
      const answer = (settle: () => void): void => {
        this.#answeredUs = Math.max(this.#answeredUs, scheduler.nowUs + frameMs(this.#world) * 1000);
        scheduler.schedule(this.#answeredUs - scheduler.nowUs, () => {
          if (this.#losesFrames || !this.isOpenAtClient) return;
          this.client.process.run(() => {
            if (this.#pending.delete(reject)) settle();
          });
        });
      };
      this.#arrivedUs = Math.max(this.#arrivedUs, scheduler.nowUs + frameMs(this.#world) * 1000);
      scheduler.schedule(this.#arrivedUs - scheduler.nowUs, () => {
        if (this.#losesFrames || !this.isOpenAtUnit) return;
        execute().then(
          (result) => answer(() => resolve(result)),
          (error: unknown) => answer(() => reject(error as Error)),
        );
      });
    });
  }

  /** It breaks on the way. */
  cut(): void {
    const { random } = this.#world;
    this.#losesFrames = random.chance(0.5);
    later(this.#world, random.between(0, UNAWARE_MS), () => this.endAtClient());
    later(this.#world, random.between(0, UNAWARE_MS), () => this.endAtUnit());
  }

  endAtUnit(): void {
    this.isOpenAtUnit = false;
    this.#unit.dropKeys(this);
  }

  endAtClient(): void {
    if (!this.isOpenAtClient) return;
    this.isOpenAtClient = false;
    const pending = [...this.#pending];
    this.#pending.clear();
    this.client.process.run(() => {
      for (const reject of pending) reject(lost(this.#unit.name));
    });
  }
}

/** A unit with one leg, and that leg's manager. */
export class SimulatedRegionUnit {
  readonly name: string;
  readonly leg: Leg;
  readonly memory: SimulatedMemory;
  readonly #world: RegionWorld;
  readonly #register: SimulatedRegister;
  readonly #sessions = new Map<RegionClient, Session>();
  readonly #cutOff = new Set<RegionClient>();
  readonly #keys = new Set<Key>();
  #face: UnitMemory | undefined;
  #starts = 0;
  #changes = 1;
  /** The manager lets in one at a time. */
  #admission: Promise<unknown> = Promise.resolve();
  #wake: (() => void)[] = [];
  /** Commands that a unit that hangs has begun and not executed. */
  #held: (() => void)[] | undefined;
  /** What fails next, for tests of one failure. */
  failNext: 'write' | 'persist' | 'read' | undefined;

  constructor(world: RegionWorld, register: SimulatedRegister, name: string, leg: Leg, sizeBytes: number) {
    this.#world = world;
    this.#register = register;
    this.name = name;
    this.leg = leg;
    this.memory = new SimulatedMemory({ random: world.random.fork(`memory ${name}`), sizeBytes });
    this.#face = this.memory.open();
  }

  get isUp(): boolean {
    return this.#face !== undefined;
  }

  get sizeBytes(): number {
    return this.memory.sizeBytes;
  }

  /** Power cut: what was not persisted may be lost, sessions and keys are. */
  crash(): void {
    if (!this.isUp) return;
    this.#world.note(`${this.name} loses power`);
    this.memory.crash();
    this.#down();
  }

  /** Power cut in the middle of the nth store from now. */
  crashAtStore(count: number): void {
    if (!this.isUp) return;
    this.memory.crashAtStore(count, () => {
      this.#world.note(`${this.name} loses power in the middle of a store`);
      this.#down();
    });
  }

  start(): void {
    if (this.isUp) return;
    this.#world.note(`${this.name} starts`);
    this.#starts += 1;
    this.#admission = Promise.resolve();
    this.#face = this.memory.open();
  }

  /** Sessions between the two break, and none comes up, until `mend`. */
  cut(client: RegionClient): void {
    this.#cutOff.add(client);
    this.breakSession(client);
  }

  mend(client: RegionClient): void {
    this.#cutOff.delete(client);
  }

  breakSession(client: RegionClient): void {
    this.#sessions.get(client)?.cut();
    this.#sessions.delete(client);
  }

  /** As a restart of its manager does. */
  voidKeys(): void {
    for (const key of this.#keys) key.isVoid = true;
  }

  /** Its sessions live, it gives keys, and no command ends, until `goOn`. */
  hang(): void {
    this.#world.note(`${this.name} hangs`);
    this.#held ??= [];
  }

  goOn(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    for (const resolve of held) resolve();
  }

  read(offset: number, target: Uint8Array): void {
    this.#face!.read(offset, target);
  }

  dropKeys(session: Session): void {
    for (const key of this.#keys) if (key.session === session) key.isVoid = true;
    this.#told();
  }

  async open(client: RegionClient, purpose: LegPurpose): Promise<RegionAccess> {
    if (this.#cutOff.has(client) || !this.isUp) {
      await new Promise<void>((resolve) => later(this.#world, UNREACHABLE_MS, () => client.process.run(resolve)));
      throw lost(this.name);
    }
    let session = this.#sessions.get(client);
    if (session === undefined || !session.isOpenAtClient || !session.isOpenAtUnit) {
      session?.endAtUnit();
      session = new Session(this.#world, this, client);
      this.#sessions.set(client, session);
    }
    const used = session;
    const key = await used.call(() => {
      const turn = this.#admission.then(() => this.#admit(used, purpose));
      this.#admission = turn.catch(() => {});
      return turn;
    });
    return new SimulatedAccess(this, used, key);
  }

  /** A command under a key, at the unit. */
  execute<Result>(key: Key, command: (memory: UnitMemory) => Promise<Result>): Promise<Result> {
    if (key.isVoid || !this.isUp)
      return Promise.reject(new HoldfastError('ERR_HOLDFAST_KEY_INVALID', `${this.name} knows no such key`));
    key.running += 1;
    const result = this.#held === undefined ? command(this.#face!) : this.#executeLater(command);
    const over = (): void => {
      key.running -= 1;
      this.#told();
    };
    result.then(over, over);
    return result;
  }

  async #executeLater<Result>(command: (memory: UnitMemory) => Promise<Result>): Promise<Result> {
    await this.#within(new Promise<void>((resolve) => this.#held!.push(resolve)));
    return command(this.#face!);
  }

  /** Persists what lies there now. Never answers if the power goes meanwhile. */
  async persist(memory: UnitMemory, offset: number, length: number): Promise<void> {
    this.#mayFail('persist', 'ERR_HOLDFAST_FLUSH_FAILED');
    await this.#within(
      new Promise<void>((resolve) => later(this.#world, this.#world.random.between(...PERSIST_MS), resolve)),
    );
    await this.#within(memory.persist(offset, length));
  }

  store(memory: UnitMemory, offset: number, bytes: Uint8Array): Promise<void> {
    this.#mayFail('write', 'ERR_HOLDFAST_IO');
    memory.write(offset, bytes);
    this.#changes += 1;
    this.#told();
    // The power may have gone in the middle of it.
    return this.isUp ? Promise.resolve() : new Promise(() => {});
  }

  load(memory: UnitMemory, offset: number, target: Uint8Array): void {
    this.#mayFail('read', 'ERR_HOLDFAST_IO');
    memory.read(offset, target);
  }

  async changed(since: number): Promise<number> {
    while (this.#changes <= since && since !== 0) await this.#next();
    return this.#changes;
  }

  async #admit(session: Session, purpose: LegPurpose): Promise<Key> {
    const text = await this.#within(this.#register.read());
    const standing = text === '' ? undefined : parseStanding(text);
    if (!admits(standing, this.leg, session.client.name, purpose))
      throw new HoldfastError('ERR_HOLDFAST_ACCESS', `${this.name} lets nobody in to ${purpose}: ${text}`);
    const mayWrite = purpose !== 'read';
    if (mayWrite) await this.#revoke();
    const key: Key = { session, mayWrite, isVoid: !session.isOpenAtUnit, running: 0 };
    this.#keys.add(key);
    return key;
  }

  async #revoke(): Promise<void> {
    const writing = [...this.#keys].filter(({ mayWrite }) => mayWrite);
    for (const key of writing) key.isVoid = true;
    while (writing.some(({ running }) => running > 0)) await this.#next();
    for (const key of writing) this.#keys.delete(key);
  }

  #mayFail(what: 'write' | 'persist' | 'read', code: 'ERR_HOLDFAST_IO' | 'ERR_HOLDFAST_FLUSH_FAILED'): void {
    if (this.failNext !== what) return;
    this.failNext = undefined;
    throw new HoldfastError(code, `${this.name} fails to ${what}, as told`);
  }

  #next(): Promise<void> {
    return this.#within(new Promise((resolve) => this.#wake.push(resolve)));
  }

  #told(): void {
    const wake = this.#wake;
    this.#wake = [];
    for (const resolve of wake) resolve();
  }

  /** Nothing goes on in a unit that has lost its power since. */
  async #within<Result>(promise: Promise<Result>): Promise<Result> {
    const starts = this.#starts;
    const result = await promise;
    if (!this.isUp || starts !== this.#starts) return new Promise(() => {});
    return result;
  }

  #down(): void {
    this.#face = undefined;
    this.#held = undefined;
    for (const key of this.#keys) key.isVoid = true;
    this.#keys.clear();
    this.#wake = [];
    for (const session of this.#sessions.values()) {
      session.isOpenAtUnit = false;
      later(this.#world, this.#world.random.between(0, UNAWARE_MS), () => session.endAtClient());
    }
    this.#sessions.clear();
  }
}

class SimulatedAccess implements RegionAccess {
  readonly unit: string;
  readonly range: { readonly base: number; readonly lengthBytes: number };
  readonly epoch = 1;
  readonly #unit: SimulatedRegionUnit;
  readonly #session: Session;
  readonly #key: Key;

  constructor(unit: SimulatedRegionUnit, session: Session, key: Key) {
    this.unit = unit.name;
    this.range = { base: 0, lengthBytes: unit.sizeBytes };
    this.#unit = unit;
    this.#session = session;
    this.#key = key;
  }

  get open(): boolean {
    return this.#session.isOpenAtClient;
  }

  async read(address: number, target: Uint8Array, { signal }: CommandOptions = {}): Promise<void> {
    const bytes = await this.#call(async (memory) => {
      const copy = new Uint8Array(target.length);
      this.#unit.load(memory, address, copy);
      return copy;
    }, signal);
    target.set(bytes);
  }

  write(address: number, chunks: readonly Uint8Array[], options: WriteOptions = {}): Promise<void> {
    const bytes = Buffer.concat(chunks);
    const { guard } = options;
    return this.#call(async (memory) => {
      if (guard !== undefined && memory.load(guard.address) !== guard.expected)
        throw new HoldfastError('ERR_HOLDFAST_FENCED', `the guard at ${guard.address} does not hold`);
      await this.#unit.store(memory, address, bytes);
      if (options.persist === true) await this.#unit.persist(memory, address, bytes.length);
    }, options.signal);
  }

  persist(address: number, lengthBytes: number, { signal }: CommandOptions = {}): Promise<void> {
    return this.#call((memory) => this.#unit.persist(memory, address, lengthBytes), signal);
  }

  compareAndSwap(address: number, expected: bigint, desired: bigint, options: StoreOptions = {}): Promise<bigint> {
    return this.#call(async (memory) => {
      const before = memory.compareAndSwap(address, expected, desired);
      if (options.persist === true) await this.#unit.persist(memory, address, 8);
      return before;
    }, options.signal);
  }

  /** A watch is no command under way: a revocation does not wait for it. */
  watch(_address: number, _lengthBytes: number, since: number, options: CommandOptions = {}): Promise<number> {
    return this.#session.call(() => this.#unit.changed(since), options.signal);
  }

  #call<Result>(command: (memory: UnitMemory) => Promise<Result>, signal: AbortSignal | undefined): Promise<Result> {
    return this.#session.call(() => this.#unit.execute(this.#key, command), signal);
  }
}

/** The register, whoever holds it: a value that changes by compare-and-swap. */
export class SimulatedRegister {
  readonly #world: RegionWorld;
  value = '';
  /** How often an answer is lost. */
  lossRate = 0;

  constructor(world: RegionWorld) {
    this.#world = world;
  }

  /** As a manager asks. */
  async read(): Promise<string> {
    await this.#pass(frameMs(this.#world));
    const { value } = this;
    await this.#pass(frameMs(this.#world));
    return value;
  }

  arbiterOf(client: RegionClient): Arbiter {
    return {
      compareAndSwap: (expected, next) =>
        new Promise((resolve, reject) => {
          void this.#swap(client, expected, next).then(
            (result) => client.process.run(() => resolve(result)),
            (error: unknown) => client.process.run(() => reject(error as Error)),
          );
        }),
    };
  }

  async #swap(client: RegionClient, expected: string, next: string): Promise<SwapResult> {
    const { random } = this.#world;
    await this.#pass(frameMs(this.#world));
    if (!client.isCutFromRegister && !random.chance(this.lossRate)) {
      const result = this.#decide(client, expected, next);
      await this.#pass(frameMs(this.#world));
      if (!client.isCutFromRegister) return result;
    } else if (random.chance(0.5)) {
      later(this.#world, random.between(0, 3 * NO_MAJORITY_MS), () => this.#decide(client, expected, next));
    }
    await this.#pass(NO_MAJORITY_MS);
    throw new HoldfastError('ERR_HOLDFAST_NO_MAJORITY', 'too few voters answer');
  }

  #decide(client: RegionClient, expected: string, next: string): SwapResult {
    if (this.value !== expected) {
      return this.value === next ? { swapped: true } : { swapped: false, current: this.value };
    }
    if (next !== expected) this.#world.note(`${client.name} puts into the register: ${next}`);
    this.value = next;
    return { swapped: true };
  }

  #pass(delayMs: number): Promise<void> {
    return new Promise((resolve) => later(this.#world, delayMs, resolve));
  }
}

/** The two units, as a client sees them. */
export function legsOf(units: readonly [SimulatedRegionUnit, SimulatedRegionUnit], client: RegionClient): MirrorLegs {
  return {
    units: [units[0].name, units[1].name],
    open: (leg, purpose) => units[leg].open(client, purpose),
  };
}
