/**
 * A unit and its manager in different processes. `RemoteUnit` is the unit as the manager sees it; `serveRemoteManager`
 * is the unit's side. Between them is one peer session, and one after the other if it breaks.
 *
 * Invariants:
 * - The unit listens to the peer that its own configuration names as its manager, and to nobody else: any other request
 *   is refused and told to the audit log.
 * - What an earlier session of the manager has begun ends before anything of a later one begins, and nothing of it
 *   begins after that: a manager that was killed changes nothing behind the back of its successor.
 * - A flush over one session says nothing of what was written over another: the unit may have lost it in between.
 * - A unit that has no tables of this manager yet is told of (`apart.onAnew`) each time a session with it begins.
 */
import { HoldfastError } from '../base/errors.ts';
import type { Message, Method, PeerNode, PeerSession, RequestOptions } from '../peer/peer.ts';
import { BaseDevice } from '../storage/base-device.ts';
import type { BlockDevice, Geometry } from '../storage/block-device.ts';
import type { PersistMeans } from '../storage/region.ts';
import {
  decodeTables,
  describeMethod,
  encodeTables,
  eraseMethod,
  flushRecordsMethod,
  grantMethod,
  installMethod,
  RECORDS_PIECE_BYTES,
  readRecordsMethod,
  revokeMethod,
  type UnitDescription,
  writeRecordsMethod,
} from './remote-wire.ts';
import type { Extent, Grant, RevokedKeys, TranslationTable, UnitApart, UnitControl } from './unit-control.ts';
import { Waiters } from './waiters.ts';

// The unit's side

/** Which unit, and who manages it. */
export interface RemoteManagerOptions {
  readonly node: PeerNode;
  readonly control: UnitControl;
  /** Name of the only peer that is listened to. */
  readonly manager: string;
  /** Told of everybody else who tries. Must not throw. */
  readonly onRefused?: (peer: string, method: string) => void;
}

/** Lets the manager of this name do with the unit what UnitControl says. Before the node starts. */
export function serveRemoteManager(options: RemoteManagerOptions): void {
  const { node, control } = options;
  const sessions = new SessionsInOrder();
  const answer = <Request, Response>(
    method: Method<Request, Response>,
    perform: (message: Message<Request>) => Promise<{ control: Response; data?: readonly Uint8Array[] }>,
  ): void => {
    node.handle(method, async (message, session) => {
      checkManager(options, session, method.name);
      return sessions.run(session, () => perform(message));
    });
  };
  answer(describeMethod, async () => ({ control: descriptionOf(control) }));
  answer(readRecordsMethod, async ({ control: { offset, lengthBytes } }) => {
    const bytes = new Uint8Array(lengthBytes);
    await control.records.read(offset, bytes);
    return { control: undefined, data: [bytes] };
  });
  answer(writeRecordsMethod, async ({ control: { offset }, data }) => ({
    control: await control.records.write(offset, data),
  }));
  answer(flushRecordsMethod, async () => ({ control: await control.records.flush() }));
  answer(installMethod, async ({ data }) => ({ control: await control.install(decodeTables(data)) }));
  answer(grantMethod, async ({ control: grant }) => ({ control: await control.grant(grant) }));
  answer(revokeMethod, async ({ control: keys }) => ({ control: await control.revoke(keys as RevokedKeys) }));
  answer(eraseMethod, async ({ control: extent }) => ({ control: await control.erase(extent) }));
}

function checkManager({ node, manager, onRefused }: RemoteManagerOptions, session: PeerSession, method: string): void {
  const { name } = session.peer;
  if (name === manager) return;
  onRefused?.(name, method);
  throw new HoldfastError(
    'ERR_HOLDFAST_REFUSED',
    `${node.name} takes ${method} from its manager only, and ${name} is not configured as that; check the unit's configuration`,
  );
}

function descriptionOf({ unit, sizeBytes, means, records }: UnitControl): UnitDescription {
  const { sizeBytes: recordsBytes, logicalBlockBytes } = records.geometry;
  return { unit, sizeBytes, recordsBytes, logicalBlockBytes, means };
}

/** The manager has one session at a time. Bounded by what the peer floor lets one peer have under way. */
class SessionsInOrder {
  #ordinal = 0;
  #earlier: Promise<unknown> = Promise.resolve();
  readonly #running = new Set<Promise<unknown>>();

  async run<Result>(session: PeerSession, work: () => Promise<Result>): Promise<Result> {
    if (session.ordinal > this.#ordinal) {
      this.#ordinal = session.ordinal;
      this.#earlier = Promise.allSettled([this.#earlier, ...this.#running]);
    }
    const running = this.#earlier.then(() => {
      if (session.ordinal === this.#ordinal && session.open) return work();
      throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'the session that this was asked for over has ended');
    });
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }
}

// The manager's side

/** Where the unit is. */
export interface RemoteUnitOptions {
  readonly node: PeerNode;
  /** Name of the unit: of its node. */
  readonly unit: string;
}

interface Known {
  readonly description: UnitDescription;
  readonly records: RemoteRecords;
}

/** A unit in another process. Make it before the node starts; everything fails with ERR_HOLDFAST_PEER_LOST until it is there. */
export class RemoteUnit implements UnitControl {
  readonly unit: string;
  readonly apart: UnitApart;
  readonly #listeners: (() => void)[] = [];
  readonly #waiting: Waiters;
  /** Undefined until the unit has described itself for the first time. */
  #known: Known | undefined;
  /** Over which the unit has described itself. */
  #session: PeerSession | undefined;
  /** Why there is none although there could be. */
  #problem: unknown;
  /** Which process of the unit has our tables. */
  #installedIn: string | undefined;

  constructor({ node, unit }: RemoteUnitOptions) {
    this.unit = unit;
    this.#waiting = new Waiters(`the unit ${unit}`);
    this.apart = {
      ready: (signal) => this.#ready(signal),
      onAnew: (listener) => void this.#listeners.push(listener),
    };
    node.subscribe({
      onSessionUp: (session) => {
        if (session.peer.name === unit) void this.#meet(session);
      },
      onSessionDown: (session) => {
        if (session === this.#session) this.#session = undefined;
      },
    });
  }

  /** Of the unit; known once it has been reached. */
  get sizeBytes(): number {
    return this.#described().description.sizeBytes;
  }

  /** Of the unit; known once it has been reached. */
  get means(): PersistMeans {
    return this.#described().description.means;
  }

  get records(): BlockDevice {
    return this.#described().records;
  }

  async install(tables: readonly TranslationTable[], signal?: AbortSignal): Promise<void> {
    const session = this.#live();
    await request(session, installMethod, undefined, [encodeTables(tables)], signal);
    this.#installedIn = session.peer.incarnation;
  }

  async grant(grant: Grant, signal?: AbortSignal): Promise<void> {
    await request(this.#live(), grantMethod, { ...grant, rights: [...grant.rights] }, [], signal);
  }

  async revoke(keys: RevokedKeys, signal?: AbortSignal): Promise<number> {
    return (await request(this.#live(), revokeMethod, { ...keys }, [], signal)).control;
  }

  async erase(extent: Extent, signal?: AbortSignal): Promise<void> {
    await request(this.#live(), eraseMethod, { ...extent }, [], signal);
  }

  #described(): Known {
    if (this.#known === undefined) throw this.#absent();
    return this.#known;
  }

  #live(): PeerSession {
    if (this.#session === undefined) throw this.#absent();
    return this.#session;
  }

  #absent(): unknown {
    return (
      this.#problem ?? new HoldfastError('ERR_HOLDFAST_PEER_LOST', `there is no session with the unit ${this.unit}`)
    );
  }

  async #meet(session: PeerSession): Promise<void> {
    try {
      const { control: description } = await session.request(describeMethod, undefined);
      // The answer may have come with the session's end behind it.
      if (!session.open) return;
      this.#remember(description);
      this.#session = session;
      this.#problem = undefined;
    } catch (error) {
      // Of a session that ended: the next one tells.
      if (!session.open) return;
      this.#problem = error;
      this.#waiting.rejectAll(error);
      return;
    }
    this.#waiting.resolveAll();
    if (session.peer.incarnation !== this.#installedIn) for (const listener of this.#listeners) listener();
  }

  #remember(description: UnitDescription): void {
    const before = this.#known?.description;
    if (before !== undefined && before.recordsBytes !== description.recordsBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_METADATA_MISMATCH',
        `the unit ${this.unit} has ${description.recordsBytes} bytes for records, and had ${before.recordsBytes}; give it its former settings`,
      );
    const records =
      this.#known?.records ?? new RemoteRecords(`the records of ${this.unit}`, description, () => this.#live());
    this.#known = { description, records };
  }

  async #ready(signal?: AbortSignal): Promise<void> {
    if (this.#session !== undefined) return;
    if (this.#problem !== undefined) throw this.#problem;
    await this.#waiting.wait(signal);
  }
}

function request<Request, Response>(
  session: PeerSession,
  method: Method<Request, Response>,
  control: Request,
  data: readonly Uint8Array[],
  signal?: AbortSignal,
): Promise<Message<Response>> {
  return session.request(method, control, data, optionsOf(signal));
}

function optionsOf(signal: AbortSignal | undefined): RequestOptions {
  return signal === undefined ? {} : { signal };
}

/** The unit's records over whichever session there is. */
class RemoteRecords extends BaseDevice {
  readonly kind = 'remote-records';
  readonly geometry: Geometry;
  readonly #live: () => PeerSession;
  /** Over which something was written that no flush has covered; the first one, if there were several. */
  #unflushed: PeerSession | undefined;

  constructor(name: string, { recordsBytes, logicalBlockBytes }: UnitDescription, live: () => PeerSession) {
    super(name, false);
    this.#live = live;
    this.geometry = {
      sizeBytes: recordsBytes,
      logicalBlockBytes,
      physicalBlockBytes: logicalBlockBytes,
      optimalIoBytes: RECORDS_PIECE_BYTES,
      rotational: false,
      discard: false,
      writeZeroes: false,
      volatileCache: true,
    };
  }

  protected async performRead(offset: number, buffer: Uint8Array): Promise<void> {
    for (const { at, lengthBytes } of piecesOf(buffer.byteLength)) {
      const options = { maxResponseDataBytes: lengthBytes };
      const { data } = await this.#live().request(readRecordsMethod, { offset: offset + at, lengthBytes }, [], options);
      if (data.byteLength !== lengthBytes)
        throw new HoldfastError(
          'ERR_HOLDFAST_BAD_FRAME',
          `${this.name}: ${data.byteLength} bytes came, not ${lengthBytes}`,
        );
      buffer.set(data, at);
    }
  }

  protected async performWrite(offset: number, buffer: Uint8Array): Promise<void> {
    for (const { at, lengthBytes } of piecesOf(buffer.byteLength)) {
      const session = this.#live();
      this.#unflushed ??= session;
      const piece = buffer.subarray(at, at + lengthBytes);
      await session.request(writeRecordsMethod, { offset: offset + at }, [piece]);
    }
  }

  protected async performFlush(): Promise<void> {
    const session = this.#live();
    const unflushed = this.#unflushed;
    this.#unflushed = undefined;
    if (unflushed !== undefined && unflushed !== session)
      throw new HoldfastError(
        'ERR_HOLDFAST_FLUSH_FAILED',
        `${this.name}: the session over which the last write went has ended, and the unit may have lost it`,
      );
    try {
      await session.request(flushRecordsMethod, undefined);
    } catch (error) {
      this.#unflushed ??= unflushed;
      throw error;
    }
  }

  /** The records are few: nothing is gained by giving them back. */
  protected async performDiscard(): Promise<void> {}

  protected async performWriteZeroes(offset: number, lengthBytes: number): Promise<void> {
    for (const piece of piecesOf(lengthBytes))
      await this.performWrite(offset + piece.at, new Uint8Array(piece.lengthBytes));
  }

  protected async performClose(): Promise<void> {}
}

function* piecesOf(totalBytes: number): Generator<{ at: number; lengthBytes: number }> {
  for (let at = 0; at < totalBytes; at += RECORDS_PIECE_BYTES)
    yield { at, lengthBytes: Math.min(RECORDS_PIECE_BYTES, totalBytes - at) };
}
