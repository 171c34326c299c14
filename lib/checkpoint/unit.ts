/**
 * The unit: memory that others read and write by one-sided commands. No code of an application runs here; a command is
 * checked against the tables (translation.ts) and executed, in the order in which it came, most of them before anything
 * else happens.
 *
 * Invariants:
 * - Before anything is changed a command has been checked whole: key, session, right, range, guard, limits.
 * - Guard and store are one step, and so is a compare and swap: nothing comes between.
 * - What was asked to be durable is answered when it is. While one persist runs, all that come share the next one.
 * - After `revoke` has been called no command under the keys is begun, and when it resolves none is running.
 * - A session that has ended takes its keys along. Without tables nothing is served.
 * - Every refusal is in the audit log; the one who asked is not told more than the code.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { assert, HoldfastError, throwIfAborted } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { badFrame } from '../peer/frame.ts';
import type { Message, PeerNode, Reply } from '../peer/peer.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { InFlight } from '../storage/in-flight.ts';
import type { PersistMeans, Region } from '../storage/region.ts';
import { type AuditEntry, type AuditEvent, AuditLog } from './audit.ts';
import { type Command, decodeCommand, encodeCommand, Operation, WORD_BYTES } from './command-format.ts';
import { type CommandCarrier, KeyedAccess } from './memory-session.ts';
import { type CommandValue, memoryCommandMethod } from './memory-wire.ts';
import type { RegionAccess, Right } from './one-sided.ts';
import { PacePerPeer, type PeerPaces, type Rates } from './pace.ts';
import { openPlane, type Plane, type PlaneEvents, type PlaneOptions } from './plane.ts';
import { planeTicketMethod } from './plane-ticket.ts';
import { RecordsDevice, ZEROS } from './records-device.ts';
import { EXTENT_ALIGNMENT_BYTES, type GrantedKey, type Refusal, TranslationTables } from './translation.ts';
import type { Extent, Grant, RevokedKeys, TranslationTable, UnitControl } from './unit-control.ts';
import type { UnitMemory } from './unit-memory.ts';
import { Watches } from './watches.ts';

/** What clients and the manager can make the unit hold, beside the limits of the sessions (PeerLimits). */
export interface UnitLimits extends Rates {
  /** Default 4096. */
  readonly regionsMax?: number;
  /** Of all regions together. Default 65536. */
  readonly extentsMax?: number;
  /** Default 65536. */
  readonly keysMax?: number;
  /** Default 1024. */
  readonly keysPerSessionMax?: number;
  /** Commands that wait to be durable, for each session; beyond it ERR_HOLDFAST_QUEUE_FULL. Default 1024. */
  readonly persistsPerSessionMax?: number;
  /** For each session; beyond it the oldest is answered without cause. Default 64. */
  readonly watchesPerSessionMax?: number;
  /** Different events that the audit log keeps. Default 1000. */
  readonly auditMax?: number;
}

/** The memory, and over which node it is reached. */
export interface MemoryUnitOptions {
  /** The unit's name; with a node, the node's. */
  readonly name: string;
  /** The unit's from here on: `close` closes it. */
  readonly memory: UnitMemory;
  readonly clock: Clock;
  /** Over whose sessions commands come; not started yet. Without it only `localAccess` leads here. */
  readonly node?: PeerNode;
  /** Commands also come over connections that native threads serve (plane.ts). The region is the one of the memory. */
  readonly plane?: PlaneOptions & { readonly region: Region };
  /** For the manager's records, at the start of the memory. Whole pages; default 1 MiB. */
  readonly recordsBytes?: number;
  readonly limits?: UnitLimits;
  /** Told of each entry of the audit log. Must not throw. */
  readonly onAudit?: (entry: AuditEntry) => void;
}

/** Counters since the start. */
export interface UnitStatus {
  readonly sizeBytes: number;
  readonly means: PersistMeans;
  readonly regions: number;
  readonly keys: number;
  readonly reads: number;
  readonly readBytes: number;
  readonly writes: number;
  readonly writtenBytes: number;
  readonly persists: number;
  readonly refused: number;
  /** Where native threads serve commands, to how many connections. */
  readonly plane: { readonly host: string; readonly port: number; readonly connections: number } | undefined;
  /** Why nothing can be made durable any more: restart the unit once what is below is mended. */
  readonly failure: HoldfastError | undefined;
}

interface CommandSession {
  readonly ordinal: number;
  readonly peer: string;
  /** When the last of the commands that wait for their turn has it. */
  turn: Promise<void> | undefined;
  /** Those commands. */
  readonly waits: Set<{ readonly timer: TimerHandle; readonly end: () => void }>;
  /** Commands that wait to be durable. */
  persists: number;
}

/** A timer for longer ends at once. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;
const DONE: Reply<CommandValue> = { control: undefined };
const MIB = 1024 * 1024;
/** So that nobody waits long meanwhile. */
const ERASED_AT_ONCE_BYTES = 4 * MIB;

/**
 * Serves the memory, over the node's sessions and in this process, as soon as a manager has installed tables.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT
 */
export function createMemoryUnit(options: MemoryUnitOptions): MemoryUnit {
  const { name, node, memory, recordsBytes = MIB } = options;
  if (node !== undefined && node.name !== name)
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `the unit ${name} cannot be on a node named ${node.name}`);
  const whole = Number.isSafeInteger(recordsBytes) && recordsBytes % EXTENT_ALIGNMENT_BYTES === 0;
  if (!whole || recordsBytes <= 0 || recordsBytes >= memory.sizeBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${recordsBytes} bytes for records do not fit into a memory of ${memory.sizeBytes}; take whole pages of it`,
    );
  checkRates(options);
  return new MemoryUnit(options, recordsBytes);
}

function checkRates({ limits: { commandsPerSecond, bytesPerSecond } = {} }: MemoryUnitOptions): void {
  for (const rate of [commandsPerSecond, bytesPerSecond])
    if (rate !== undefined && !(rate > 0 && rate < Number.POSITIVE_INFINITY))
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a rate of ${rate} a second cannot be; give one above 0`);
}

/** Made by `createMemoryUnit`. */
export class MemoryUnit implements UnitControl, AsyncDisposable {
  readonly unit: string;
  readonly sizeBytes: number;
  readonly means: PersistMeans;
  readonly records: BlockDevice;
  readonly #memory: UnitMemory;
  readonly #tables: TranslationTables;
  readonly #watches: Watches;
  readonly #audit: AuditLog;
  readonly #plane: Plane | undefined;
  readonly #persistsPerSessionMax: number;
  readonly #sessions = new Map<number, CommandSession>();
  readonly #sessionOfPeer = new Map<string, CommandSession>();
  /** Who waits until nothing runs under keys that are void. */
  readonly #drains = new Set<{ readonly left: Set<GrantedKey>; readonly done: () => void }>();
  readonly #inFlight = new InFlight();
  readonly #slab = new AnswerSlab();
  /** Those of this process have numbers below 0. */
  #lastLocalOrdinal = 0;
  readonly #clock: Clock;
  /** Undefined: everybody as fast as it can. */
  readonly #paces: PeerPaces | undefined;
  #reads = 0;
  #readBytes = 0;
  #writes = 0;
  #writtenBytes = 0;
  #persists = 0;
  #refused = 0;
  #closing: Promise<void> | undefined;

  /** @internal */
  constructor({ name, memory, clock, node, plane, limits = {}, onAudit }: MemoryUnitOptions, recordsBytes: number) {
    this.unit = name;
    this.sizeBytes = memory.sizeBytes;
    this.means = memory.means;
    this.#memory = memory;
    this.#clock = clock;
    this.records = new RecordsDevice(`the records of ${name}`, memory, recordsBytes);
    const { regionsMax = 4096, extentsMax = 65_536, keysMax = 65_536, keysPerSessionMax = 1024 } = limits;
    const lengthBytes = memory.sizeBytes - recordsBytes;
    this.#tables = new TranslationTables(
      { startBytes: recordsBytes, lengthBytes },
      { regionsMax, extentsMax, keysMax, keysPerSessionMax },
    );
    this.#watches = new Watches(limits.watchesPerSessionMax ?? 64);
    this.#audit = new AuditLog(clock, limits.auditMax ?? 1000, onAudit);
    this.#persistsPerSessionMax = limits.persistsPerSessionMax ?? 1024;
    this.#plane = plane && openPlane(plane.region, { ...plane, rates: limits }, this.#planeEvents());
    // A peer's commands over the plane and over its session are paid for together.
    if (limits.commandsPerSecond !== undefined || limits.bytesPerSecond !== undefined)
      this.#paces = this.#plane ?? new PacePerPeer(limits);
    if (node !== undefined) this.#serve(node);
  }

  #planeEvents(): PlaneEvents {
    return {
      refused: (ordinal, code, region, reason) => {
        this.#refused += 1;
        const peer = ordinal === undefined ? undefined : this.#sessions.get(ordinal)?.peer;
        this.#record({ kind: 'refused', peer, region, code, reason });
      },
      refusalsLost: (count) => {
        this.#refused += count;
        const reason = 'refusals over the plane that came too fast to be told apart';
        this.#record({ kind: 'refused', peer: undefined, region: undefined, code: undefined, reason });
      },
      persistFailed: () => {
        // The memory learns of it as it learns of its own.
        this.#memory.persist(0, WORD_BYTES).catch(nothing);
      },
      stored: (region, address, length) => {
        this.#watches.stored(region, address, length);
        if (!this.#watches.isWatched(region)) this.#plane?.unobserve(region);
      },
    };
  }

  #serve(node: PeerNode): void {
    node.subscribe({
      onSessionUp: ({ ordinal, peer }) => this.#sessionUp(ordinal, peer.name),
      onSessionDown: ({ ordinal }) => this.#sessionDown(ordinal),
    });
    node.handle(memoryCommandMethod, ({ control, data }, { ordinal }) => {
      const session = this.#session(ordinal);
      const command = this.#decode(session, control);
      if (this.#paces !== undefined) return this.#inPace(session, this.#paces, command, data);
      return this.#execute(session, command, data);
    });
    const plane = this.#plane;
    if (plane !== undefined)
      node.handle(planeTicketMethod, async (_, { ordinal }) => {
        const ticket = plane.admit(ordinal, this.#session(ordinal).peer);
        return { control: { host: plane.host, port: plane.port }, data: [ticket] };
      });
  }

  /** Executed when its turn has come: in order, since no command's turn is before that of the one before it. */
  #inPace(
    session: CommandSession,
    paces: PeerPaces,
    command: Command,
    data: Uint8Array,
  ): Promise<Reply<CommandValue>> | Reply<CommandValue> {
    const moves = command.operation === Operation.read || command.operation === Operation.write;
    const paidMs = paces.delayMs(session.peer, this.#clock.nowMs(), moves ? command.length : 0);
    const delayMs = Math.min(paidMs, LONGEST_TIMER_MS);
    if (delayMs === 0 && session.turn === undefined) return this.#execute(session, command, data);
    const before = session.turn ?? Promise.resolve();
    const due = this.#due(session, delayMs);
    const turn = before.then(() => due);
    session.turn = turn;
    return turn.then(() => {
      if (session.turn === turn) session.turn = undefined;
      return this.#execute(this.#session(session.ordinal), command, data);
    });
  }

  /** Also when the session has ended. */
  #due({ waits }: CommandSession, delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      const end = (): void => {
        waits.delete(wait);
        resolve();
      };
      const wait = { timer: this.#clock.setTimer(delayMs, end), end };
      waits.add(wait);
    });
  }

  /** Counters since the start, for showing to people. */
  get status(): UnitStatus {
    const open = this.#closing === undefined ? this.#plane : undefined;
    const plane = open?.state;
    return {
      sizeBytes: this.sizeBytes,
      means: this.means,
      regions: this.#tables.regionCount,
      keys: this.#tables.keyCount,
      reads: this.#reads + (plane?.reads ?? 0),
      readBytes: this.#readBytes + (plane?.readBytes ?? 0),
      writes: this.#writes + (plane?.writes ?? 0),
      writtenBytes: this.#writtenBytes + (plane?.writtenBytes ?? 0),
      persists: this.#persists + (plane?.persistedCommands ?? 0),
      refused: this.#refused,
      plane: open && plane && { host: open.host, port: open.port, connections: plane.connections },
      failure: this.#memory.failure,
    };
  }

  /** What the audit log holds, oldest first. */
  auditEvents(): readonly AuditEvent[] {
    return this.#audit.events();
  }

  // The manager's

  async install(tables: readonly TranslationTable[], signal?: AbortSignal): Promise<void> {
    this.#checkOpen();
    throwIfAborted(signal, 'the installation of tables');
    const voided = this.#tables.install(tables);
    const count = `${tables.length} regions`;
    this.#record({ kind: 'installed', peer: undefined, region: undefined, code: undefined, reason: count });
    for (const key of voided) this.#ended(key, 'its region is gone or shorter');
    this.#watches.keepOnly(new Set(tables.map(({ region }) => region)));
    const overPlane = this.#plane?.install(tables);
    await this.#drained(
      voided.filter(({ running }) => running > 0),
      signal,
    );
    await abortable(Promise.resolve(overPlane), signal);
  }

  async grant(grant: Grant, signal?: AbortSignal): Promise<void> {
    this.#checkOpen();
    throwIfAborted(signal, 'the grant of a key');
    const { peer, region, rights } = grant;
    const session = this.#sessionOfPeer.get(peer);
    if (session === undefined)
      throw new HoldfastError(
        'ERR_HOLDFAST_PEER_LOST',
        `${this.unit} has no session with ${peer}; a key is given for one`,
      );
    this.#tables.grant(grant, session.ordinal);
    if (session.ordinal >= 0) this.#plane?.grant(grant, session.ordinal);
    this.#record({ kind: 'granted', peer, region, code: undefined, reason: `to ${rights.join(' and ')}` });
  }

  async revoke(keys: RevokedKeys, signal?: AbortSignal): Promise<number> {
    this.#checkOpen();
    throwIfAborted(signal, 'the revocation of keys');
    const { revoked, running } = this.#tables.revoke(keys);
    for (const key of revoked) this.#ended(key, 'by the manager');
    const overPlane = this.#revokeOverPlane(keys);
    await this.#drained(running, signal);
    await abortable(overPlane, signal);
    return revoked.length;
  }

  async #revokeOverPlane({ region, key, peer, exceptPeer, right }: RevokedKeys): Promise<void> {
    if (this.#plane === undefined) return;
    const session = peer === undefined ? undefined : this.#sessionOfPeer.get(peer)?.ordinal;
    const exceptSession = exceptPeer === undefined ? undefined : this.#sessionOfPeer.get(exceptPeer)?.ordinal;
    // Keys are of sessions that are open; those of this process are not the plane's.
    if (peer !== undefined && (session === undefined || session < 0)) return;
    await this.#plane.revoke({
      region,
      ...(key !== undefined && { key }),
      ...(session !== undefined && { session }),
      ...(exceptSession !== undefined && exceptSession >= 0 && { exceptSession }),
      ...(right !== undefined && { right }),
    });
  }

  async erase(extent: Extent, signal?: AbortSignal): Promise<void> {
    this.#tables.checkUnmapped(extent);
    const end = extent.startBytes + extent.lengthBytes;
    for (let at = extent.startBytes; at < end; at += ERASED_AT_ONCE_BYTES) {
      this.#checkOpen();
      throwIfAborted(signal, 'the erasure');
      this.#tables.checkUnmapped(extent);
      const length = Math.min(ERASED_AT_ONCE_BYTES, end - at);
      for (let zeroed = 0; zeroed < length; zeroed += ZEROS.length)
        this.#memory.write(at + zeroed, ZEROS.subarray(0, Math.min(ZEROS.length, length - zeroed)));
      await this.#inFlight.hold(() => this.#memory.persist(at, length));
    }
  }

  // Sessions

  /**
   * Access of this process itself, without a network: as if `grant.peer` had a session with the unit, which begins with
   * its first key and lasts until `endLocal`. The name must not be that of a peer that is connected.
   */
  async localAccess(grant: Grant): Promise<RegionAccess> {
    const { peer } = grant;
    let session = this.#sessionOfPeer.get(peer);
    if (session === undefined) session = this.#sessionUp(--this.#lastLocalOrdinal, peer);
    if (session.ordinal > 0)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${peer} is connected to ${this.unit}; take another name`);
    await this.grant(grant);
    return new KeyedAccess(this.#localCarrier(session), grant);
  }

  /** The session that `localAccess` began is over, and its keys are void. */
  endLocal(peer: string): void {
    const session = this.#sessionOfPeer.get(peer);
    if (session !== undefined && session.ordinal < 0) this.#sessionDown(session.ordinal);
  }

  #localCarrier(session: CommandSession): CommandCarrier {
    const isOpen = (): boolean => this.#sessions.has(session.ordinal);
    return {
      unit: this.unit,
      get open() {
        return isOpen();
      },
      send: async (command, data, signal): Promise<Message<CommandValue>> => {
        throwIfAborted(signal, 'a command');
        if (!isOpen())
          throw new HoldfastError(
            'ERR_HOLDFAST_PEER_LOST',
            `the session of ${session.peer} with ${this.unit} has ended`,
          );
        const known = decodeCommand(encodeCommand(command));
        const reply = this.#execute(session, known, data.length === 1 ? data[0]! : Buffer.concat(data));
        const { control, data: [answer] = [] } = await abortable(Promise.resolve(reply), signal);
        return { control, data: answer ?? NO_BYTES };
      },
    };
  }

  #sessionUp(ordinal: number, peer: string): CommandSession {
    const session: CommandSession = { ordinal, peer, turn: undefined, waits: new Set(), persists: 0 };
    this.#sessions.set(ordinal, session);
    this.#sessionOfPeer.set(peer, session);
    return session;
  }

  #sessionDown(ordinal: number): void {
    const session = this.#sessions.get(ordinal);
    if (session === undefined) return;
    this.#sessions.delete(ordinal);
    if (this.#sessionOfPeer.get(session.peer) === session) this.#sessionOfPeer.delete(session.peer);
    for (const { timer, end } of session.waits) {
      timer.cancel();
      end();
    }
    for (const key of this.#tables.endSession(ordinal)) this.#ended(key, 'its session has ended');
    if (ordinal >= 0) void this.#plane?.endSession(ordinal);
  }

  // Keys

  #ended(key: GrantedKey, reason: string): void {
    const { peer, region } = key.grant;
    this.#record({ kind: 'revoked', peer, region, code: undefined, reason });
    this.#watches.end(key, keyInvalid());
  }

  #drained(keys: readonly GrantedKey[], signal: AbortSignal | undefined): Promise<void> {
    if (keys.length === 0) return Promise.resolve();
    let done = (): void => {};
    const drained = new Promise<void>((resolve) => {
      done = resolve;
    });
    const drain = { left: new Set(keys), done };
    this.#drains.add(drain);
    return abortable(drained, signal).finally(() => this.#drains.delete(drain));
  }

  #leave(session: CommandSession, key: GrantedKey): void {
    this.#inFlight.leave();
    session.persists -= 1;
    if (!this.#tables.leave(key)) return;
    for (const drain of this.#drains) {
      if (drain.left.delete(key) && drain.left.size === 0) drain.done();
    }
  }

  // Commands

  #session(ordinal: number): CommandSession {
    this.#checkOpen();
    const session = this.#sessions.get(ordinal);
    if (session === undefined) throw keyInvalid();
    return session;
  }

  #decode(session: CommandSession, header: Uint8Array): Command {
    try {
      const command = decodeCommand(header);
      if (command.tag !== 0) throw badFrame('a command with a tag, over a session that numbers its requests');
      return command;
    } catch (error) {
      this.#refuse(session, 'ERR_HOLDFAST_BAD_FRAME', undefined, 'a command that cannot be');
      throw error;
    }
  }

  #execute(
    session: CommandSession,
    command: Command,
    data: Uint8Array,
  ): Promise<Reply<CommandValue>> | Reply<CommandValue> {
    if (data.length !== (command.operation === Operation.write ? command.length : 0))
      throw this.#refuse(session, 'ERR_HOLDFAST_BAD_FRAME', undefined, 'data that are not as long as the command says');
    switch (command.operation) {
      case Operation.read:
        return this.#read(session, command);
      case Operation.write:
        return this.#write(session, command, data);
      case Operation.persist:
        return this.#persist(session, this.#resolve(session, command, undefined), command.address, command.length);
      case Operation.compareAndSwap:
        return this.#compareAndSwap(session, command);
      case Operation.watch:
        return this.#watch(session, command);
    }
  }

  #read(session: CommandSession, command: Command): Reply<CommandValue> {
    const { address, length } = command;
    const key = this.#resolve(session, command, 'read');
    // A copy: what is stored while the answer waits to be sent must not change it, it has been checksummed.
    const target = this.#slab.take(length);
    let at = 0;
    for (const { startBytes, lengthBytes } of key.region.locate(address, length)) {
      this.#memory.read(startBytes, target.subarray(at, at + lengthBytes));
      at += lengthBytes;
    }
    this.#reads += 1;
    this.#readBytes += length;
    return { control: undefined, data: [target] };
  }

  #write(
    session: CommandSession,
    command: Command,
    data: Uint8Array,
  ): Promise<Reply<CommandValue>> | Reply<CommandValue> {
    const { address, length, persist } = command;
    const key = this.#resolve(session, command, 'write');
    this.#alone(() => {
      if (command.guard) this.#checkGuard(session, key, command);
      if (persist) this.#checkPersists(session, key);
      let at = 0;
      for (const { startBytes, lengthBytes } of key.region.locate(address, length)) {
        this.#memory.write(startBytes, lengthBytes === length ? data : data.subarray(at, at + lengthBytes));
        at += lengthBytes;
      }
    });
    this.#stored(key, address, length);
    return persist && !isPlanted('unit-answers-before-persist') ? this.#persist(session, key, address, length) : DONE;
  }

  /** Guard and store are one step for commands over the plane, too. */
  #alone<T>(step: () => T): T {
    return this.#plane === undefined ? step() : this.#plane.exclusively(step);
  }

  #stored({ region }: GrantedKey, address: number, length: number): void {
    this.#writes += 1;
    this.#writtenBytes += length;
    this.#watches.stored(region.id, address, length);
    this.#plane?.stored(region.id, address, length);
  }

  #checkGuard(session: CommandSession, key: GrantedKey, { operandA: expected, operandB }: Command): void {
    const address = Number(operandB);
    const { base, lengthBytes } = key.grant.range;
    if (address < base || address - base > lengthBytes - WORD_BYTES)
      throw this.#refuse(session, 'ERR_HOLDFAST_OUT_OF_RANGE', key.region.id, 'a guard outside the range of the key');
    if (this.#memory.load(this.#wordAt(key, address)) === expected) return;
    throw this.#refuse(session, 'ERR_HOLDFAST_FENCED', key.region.id, 'a guard that does not hold');
  }

  #compareAndSwap(session: CommandSession, command: Command): Promise<Reply<CommandValue>> | Reply<CommandValue> {
    const { address, length, operandA: expected, operandB: desired, persist } = command;
    const key = this.#resolve(session, command, 'write');
    if (persist) this.#checkPersists(session, key);
    const value = this.#alone(() => this.#memory.compareAndSwap(this.#wordAt(key, address), expected, desired));
    const reply: Reply<CommandValue> = { control: value };
    if (value === expected) this.#stored(key, address, length);
    return persist ? this.#persist(session, key, address, length).then(() => reply) : reply;
  }

  #persist(session: CommandSession, key: GrantedKey, address: number, length: number): Promise<Reply<CommandValue>> {
    this.#checkPersists(session, key);
    const spans = key.region.locate(address, length);
    this.#tables.enter(key);
    session.persists += 1;
    this.#inFlight.enter();
    this.#persists += 1;
    return this.#persistSpans(spans).then(
      () => {
        this.#leave(session, key);
        return DONE;
      },
      (error: unknown) => {
        this.#leave(session, key);
        throw error;
      },
    );
  }

  #persistSpans(spans: readonly Extent[]): Promise<unknown> {
    const [first] = spans;
    if (first === undefined) return Promise.resolve();
    if (spans.length === 1) return this.#memory.persist(first.startBytes, first.lengthBytes);
    // Not before all have ended: the command runs until then.
    const all = spans.map(({ startBytes, lengthBytes }) => this.#memory.persist(startBytes, lengthBytes));
    return Promise.allSettled(all).then(() => Promise.all(all));
  }

  #watch(session: CommandSession, command: Command): Promise<Reply<CommandValue>> | Reply<CommandValue> {
    const { address, length, operandA: since } = command;
    const key = this.#resolve(session, command, 'read');
    this.#plane?.observe(key.region.id);
    const change = this.#watches.watch(key, address, length, Number(since));
    const reply = (number: number): Reply<CommandValue> => ({ control: BigInt(number) });
    return typeof change === 'number' ? reply(change) : change.then(reply);
  }

  #resolve(session: CommandSession, { key, address, length }: Command, right: Right | undefined): GrantedKey {
    const result = this.#tables.resolve(key, session.ordinal, address, length, right);
    if (!('code' in result)) return result;
    throw this.#refuse(session, result.code, result.region, result.reason);
  }

  #checkPersists(session: CommandSession, { region }: GrantedKey): void {
    if (session.persists >= this.#persistsPerSessionMax)
      throw this.#refuse(session, 'ERR_HOLDFAST_QUEUE_FULL', region.id, 'too many commands that wait to be durable');
  }

  /** Physical address of an aligned word, which never lies in two extents. */
  #wordAt(key: GrantedKey, address: number): number {
    const [span] = key.region.locate(address, WORD_BYTES);
    assert(span?.lengthBytes === WORD_BYTES, 'a word lies in one extent');
    return span.startBytes;
  }

  #refuse({ peer }: CommandSession, code: RefusalCode, region: string | undefined, reason: string): HoldfastError {
    this.#refused += 1;
    this.#record({ kind: 'refused', peer, region, code, reason });
    return new HoldfastError(code, refusals[code]);
  }

  #record(entry: AuditEntry): void {
    this.#audit.record(entry);
  }

  // The end

  #checkOpen(): void {
    if (this.#closing !== undefined)
      throw new HoldfastError('ERR_HOLDFAST_CLOSED', `the unit ${this.unit} is closed; start it again`);
  }

  /** Ends every key, waits for what runs, and closes the memory. The node is the caller's to close, before this. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const ordinal of [...this.#sessions.keys()]) this.#sessionDown(ordinal);
    await this.#plane?.close();
    await this.#inFlight.drained();
    await this.records.close();
    await this.#memory.close();
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

type RefusalCode = Refusal['code'] | 'ERR_HOLDFAST_BAD_FRAME' | 'ERR_HOLDFAST_FENCED' | 'ERR_HOLDFAST_QUEUE_FULL';

/** What the one who asked is told. */
const refusals: Readonly<Record<RefusalCode, string>> = {
  ERR_HOLDFAST_ACCESS: 'the key does not give that right; ask the manager for one that does',
  ERR_HOLDFAST_BAD_FRAME: 'that is not a command',
  ERR_HOLDFAST_FENCED: 'the guard does not hold: another writer has taken over; open the region again',
  ERR_HOLDFAST_KEY_INVALID:
    'the key opens nothing here: it was revoked, or is of another session; open the region again',
  ERR_HOLDFAST_OUT_OF_RANGE: 'the key does not open that range',
  ERR_HOLDFAST_QUEUE_FULL: 'too many commands of this session wait to be durable; wait for some to end',
};

function keyInvalid(): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_KEY_INVALID', refusals.ERR_HOLDFAST_KEY_INVALID);
}

function nothing(): void {}

const NO_BYTES = new Uint8Array(0);

/** Memory for answers, cut from large pieces: to allocate each by itself costs more than to fill it. */
class AnswerSlab {
  #piece = NO_BYTES;
  #used = 0;

  take(length: number): Uint8Array {
    if (length > SLAB_BYTES / 4) return Buffer.allocUnsafeSlow(length);
    if (this.#used + length > this.#piece.length) {
      this.#piece = Buffer.allocUnsafeSlow(SLAB_BYTES);
      this.#used = 0;
    }
    const start = this.#used;
    this.#used += length;
    return this.#piece.subarray(start, this.#used);
  }
}

const SLAB_BYTES = 131_072;

/** Settles as the promise does; or, when the signal fires before that, with ERR_HOLDFAST_ABORTED. */
function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    const aborted = (): void =>
      reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'the waiting was cancelled', { cause: signal.reason }));
    signal.addEventListener('abort', aborted, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted));
  });
}
