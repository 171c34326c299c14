/**
 * The client's end of the data plane: all connections of one event loop to the planes of units. Commands become
 * fixed-width entries in shared memory; one native call a tick hands them over; one call back a batch brings the answers.
 * native/plane is the other half, and native/plane/client.h has the layout.
 *
 * Invariants:
 * - The commands of a session are sent in the order of the calls.
 * - In flight are at most `sessionCommands` commands and about `sessionBytes` of data to be written, of each session;
 *   further ones are parked. Once `sessionParked` are, new ones are refused (ERR_HOLDFAST_QUEUE_FULL).
 * - What is written is copied when the command is handed over, so a session that ends needs nobody's memory.
 * - A command settles exactly once: with its answer, or with the end of its session.
 */
import { constants } from 'node:os';
import { assert, HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';
import { type NativePlane, type NativePlaneClientHandle, native } from '../native.ts';
import { COMMAND_DATA_MAX_BYTES, codeOfStatus, Operation } from './command-format.ts';

const capacity = 8192;
const sessionCommands = 1024;
const sessionBytes = 8 * COMMAND_DATA_MAX_BYTES;
const sessionParked = 16_384;

const headerBytes = 64;
const entryBytes = 80;
const resultBytes = 32;
const receiveBytes = 256 * 1024;
/** From here on it pays to tell native where they go. */
const aimedBytes = 32 * 1024;
const resultsMax = receiveBytes / 32 + 256;
const headerEntries = 0;
const headerReaping = 1;
const sessionEvent = 0xffff_ffff;

export const persistFlag = 1;
export const guardFlag = 2;

const commandVersion = 1;
const two32 = 2 ** 32;
const resolved = Promise.resolve();

/** One command, from the call to its answer. */
export interface PlaneCommand {
  readonly operation: Operation;
  readonly flags: number;
  /** As four words. */
  readonly key: Uint32Array;
  readonly address: number;
  readonly length: number;
  readonly operandA: bigint;
  readonly operandB: bigint;
  /** What is written. */
  readonly chunks: readonly Uint8Array[];
  /** Where what is read goes; none if nobody waits any more. */
  target: Uint8Array | undefined;
  /** While it is in flight; else undefined. */
  id: number | undefined;
  /** The answer's value, as two words. */
  done(low: number, high: number): void;
  failed(error: HoldfastError): void;
}

interface Flight {
  readonly command: PlaneCommand;
  readonly session: PlaneSession;
}

/** Why a session has ended. */
export type PlaneEnd = (error: HoldfastError) => void;

/** A connection to the plane of a unit. */
export class PlaneSession {
  readonly unit: string;
  readonly slot: number;
  readonly #client: PlaneClient;
  readonly #ended: PlaneEnd;
  /** Tells the one who connects. */
  readonly #greeted: () => void;
  inFlight = 0;
  bytesInFlight = 0;
  readonly parked: PlaneCommand[] = [];
  end: HoldfastError | undefined;

  /** @internal */
  constructor(client: PlaneClient, slot: number, unit: string, greeted: () => void, ended: PlaneEnd) {
    this.#client = client;
    this.slot = slot;
    this.unit = unit;
    this.#greeted = greeted;
    this.#ended = ended;
  }

  get open(): boolean {
    return this.end === undefined;
  }

  /** Sends the command, or parks it. Throws what refuses it at once. */
  submit(command: PlaneCommand): void {
    this.#client.submit(this, command);
  }

  /** Nobody waits for the command any more: nothing is stored in its target from now on. */
  withdraw(command: PlaneCommand): void {
    const at = this.parked.indexOf(command);
    if (at >= 0) this.parked.splice(at, 1);
    else this.#client.abandon(command);
  }

  close(): void {
    this.#client.end(this, new HoldfastError('ERR_HOLDFAST_PEER_LOST', `the connection to ${this.unit} was closed`));
  }

  /** @internal */
  greet(): void {
    this.#greeted();
  }

  /** @internal */
  tellEnd(error: HoldfastError): void {
    this.end = error;
    this.#ended(error);
  }
}

export class PlaneClient {
  readonly #native: NativePlane = native().plane;
  readonly #handle: NativePlaneClientHandle;
  readonly #words: Uint32Array;
  readonly #results: Uint32Array;
  readonly #send: Uint8Array;
  readonly #receive: Uint8Array;
  readonly #flights = new Array<Flight | undefined>(capacity).fill(undefined);
  readonly #freeIds = Uint32Array.from({ length: capacity }, (_, index) => capacity - 1 - index);
  #freeCount = capacity;
  #sendBytes = 0;
  readonly #sessions = new Map<number, PlaneSession>();
  /** With parked commands. */
  readonly #crowded = new Set<PlaneSession>();
  readonly #flush = () => this.#handOver();

  constructor() {
    const resultsAt = headerBytes + capacity * entryBytes;
    const sendAt = resultsAt + resultsMax * resultBytes;
    const receiveAt = sendAt + COMMAND_DATA_MAX_BYTES;
    const memory = new SharedArrayBuffer(receiveAt + receiveBytes);
    this.#words = new Uint32Array(memory);
    this.#results = new Uint32Array(memory, resultsAt, (resultsMax * resultBytes) / 4);
    this.#send = new Uint8Array(memory, sendAt, COMMAND_DATA_MAX_BYTES);
    this.#receive = new Uint8Array(memory, receiveAt, receiveBytes);
    this.#handle = this.#native.clientCreate(new Uint8Array(memory), capacity, (count) => this.#onResults(count));
  }

  /**
   * Begins to connect; `greeted` is called when the unit has accepted the ticket, `ended` once, also instead.
   *
   * @throws HoldfastError ERR_HOLDFAST_CONNECT_FAILED.
   */
  connect(
    unit: string,
    host: string,
    port: number,
    ticket: Uint8Array,
    greeted: () => void,
    ended: PlaneEnd,
  ): PlaneSession {
    const slot = this.#native.clientConnect(this.#handle, host, port, ticket);
    if (slot < 0)
      throw new HoldfastError(
        'ERR_HOLDFAST_CONNECT_FAILED',
        `no connection to the plane of ${unit} at ${host} port ${port} (${errnoName(-slot)}); check the address`,
        { errno: errnoName(-slot) },
      );
    const session = new PlaneSession(this, slot, unit, greeted, ended);
    this.#sessions.set(slot, session);
    return session;
  }

  submit(session: PlaneSession, command: PlaneCommand): void {
    if (session.end !== undefined) throw session.end;
    if (session.parked.length === 0 && this.#admits(session, command)) {
      this.#write(session, command);
      return;
    }
    if (session.parked.length >= sessionParked)
      throw new HoldfastError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${sessionParked} commands to ${session.unit} wait already; wait for some to finish`,
      );
    session.parked.push(command);
    this.#crowded.add(session);
  }

  #admits(session: PlaneSession, command: PlaneCommand): boolean {
    if (this.#freeCount === 0 || session.inFlight >= sessionCommands) return false;
    return command.operation !== Operation.write || session.bytesInFlight < sessionBytes;
  }

  #write(session: PlaneSession, command: PlaneCommand): void {
    const { operation, flags, key, address, length, operandA, operandB } = command;
    const writes = operation === Operation.write;
    // What was to be written is taken with the entries, also by a call back.
    if (this.#words[headerEntries] === 0) this.#sendBytes = 0;
    if (writes && this.#sendBytes + length > COMMAND_DATA_MAX_BYTES) this.#handOver();
    const words = this.#words;
    const count = words[headerEntries]!;
    const at = (headerBytes + count * entryBytes) >>> 2;
    const id = this.#freeIds[--this.#freeCount]!;
    this.#flights[id] = { command, session };
    command.id = id;
    if (length >= aimedBytes && command.target !== undefined) this.#native.clientAim(this.#handle, id, command.target);
    session.inFlight++;
    words[at] = session.slot;
    words[at + 1] = id;
    words[at + 2] = this.#sendBytes;
    words[at + 3] = operation === Operation.read ? length : 0;
    words[at + 4] = commandVersion | (operation << 8) | (flags << 16);
    words[at + 5] = writes ? length : 0;
    words.set(key, at + 8);
    words[at + 12] = address;
    words[at + 13] = address / two32;
    words[at + 14] = length;
    words[at + 15] = length / two32;
    writeBig(words, at + 16, operandA);
    writeBig(words, at + 18, operandB);
    if (writes) {
      session.bytesInFlight += length;
      for (const chunk of command.chunks) {
        if (chunk.byteLength === 0) continue;
        this.#send.set(chunk, this.#sendBytes);
        this.#sendBytes += chunk.length;
      }
    }
    words[headerEntries] = count + 1;
    if (count === 0 && words[headerReaping] === 0) resolved.then(this.#flush);
  }

  /** @internal */
  abandon(command: PlaneCommand): void {
    command.target = undefined;
    if (command.id !== undefined && command.length >= aimedBytes) this.#native.clientAim(this.#handle, command.id);
  }

  #handOver(): void {
    if (this.#words[headerEntries]! === 0) return;
    this.#native.clientSubmit(this.#handle);
    this.#sendBytes = 0;
  }

  #onResults(count: number): void {
    // Taken with the entries, before this call.
    const results = this.#results;
    for (let index = 0; index < count; index++) {
      const at = index * (resultBytes >>> 2);
      const id = results[at]!;
      if (id === sessionEvent) this.#onSession(results[at + 3]!, results[at + 1]!, results[at + 6]!);
      else this.#onAnswer(id, at);
    }
    if (this.#crowded.size > 0) this.#unpark();
  }

  #onAnswer(id: number, at: number): void {
    const results = this.#results;
    const flight = this.#flights[id];
    // Its session was closed here.
    if (flight === undefined) return;
    const { command, session } = flight;
    const status = results[at + 1]!;
    const bytes = results[at + 5]!;
    const low = results[at + 6]!;
    const { target } = command;
    // Not by `length`: once the compiler has seen resizable arrays here, V8 takes that of a detached one to be as before.
    const isGone = target !== undefined && target.byteLength !== command.length;
    if (bytes > 0 && target !== undefined && !isGone) {
      const from = results[at + 4]!;
      target.set(this.#receive.subarray(from, from + bytes), low);
    }
    if (results[at + 2] === 0) return;
    this.#land(id, session, command);
    if (status !== 0) command.failed(refusal(session.unit, codeOfStatus(status)));
    else if (isGone) command.failed(memoryGone(session.unit));
    else command.done(low, results[at + 7]!);
  }

  #land(id: number, session: PlaneSession, command: PlaneCommand): void {
    this.#flights[id] = undefined;
    command.id = undefined;
    this.#freeIds[this.#freeCount++] = id;
    session.inFlight--;
    if (command.operation === Operation.write) session.bytesInFlight -= command.length;
  }

  #unpark(): void {
    for (const session of this.#crowded) {
      let taken = 0;
      while (taken < session.parked.length && this.#admits(session, session.parked[taken]!)) {
        const command = session.parked[taken++]!;
        if (isAsItWas(command)) this.#write(session, command);
        else command.failed(memoryGone(session.unit));
      }
      if (taken > 0) session.parked.splice(0, taken);
      if (session.parked.length === 0) this.#crowded.delete(session);
      if (this.#freeCount === 0) return;
    }
  }

  #onSession(slot: number, event: number, errno: number): void {
    const session = this.#sessions.get(slot);
    if (session === undefined) return;
    if (event === 0) session.greet();
    else this.#over(session, lost(session.unit, errnoName(errno)));
  }

  /** Ends it from here. */
  end(session: PlaneSession, error: HoldfastError): void {
    if (session.end !== undefined) return;
    // What was asked for before is sent first.
    this.#handOver();
    this.#native.clientDisconnect(this.#handle, session.slot);
    this.#over(session, error);
  }

  #over(session: PlaneSession, error: HoldfastError): void {
    this.#sessions.delete(session.slot);
    this.#crowded.delete(session);
    const commands = session.parked.splice(0);
    for (let id = 0; id < capacity && session.inFlight > 0; id++) {
      const flight = this.#flights[id];
      if (flight?.session !== session) continue;
      this.#land(id, session, flight.command);
      commands.unshift(flight.command);
    }
    assert(session.inFlight === 0, 'a command in flight is in the table');
    session.tellEnd(error);
    for (const command of commands) command.failed(error);
  }
}

function writeBig(words: Uint32Array, at: number, value: bigint): void {
  if (value === 0n) {
    words[at] = 0;
    words[at + 1] = 0;
    return;
  }
  words[at] = Number(value & 0xffff_ffffn);
  words[at + 1] = Number(value >> 32n);
}

const errnoNames = new Map<number, string>();
for (const [name, errno] of Object.entries(constants.errno)) if (!errnoNames.has(errno)) errnoNames.set(errno, name);

function errnoName(errno: number): string {
  return errnoNames.get(errno) ?? `errno ${errno}`;
}

function lost(unit: string, errno: string): HoldfastError {
  if (errno === 'EACCES')
    return new HoldfastError('ERR_HOLDFAST_REFUSED', `${unit} does not know the ticket; ask for a new one`);
  return new HoldfastError(
    'ERR_HOLDFAST_PEER_LOST',
    `the connection to the plane of ${unit} has ended (${errno}): what became of the commands under way is not known`,
    { errno },
  );
}

const refusals: Partial<Record<HoldfastErrorCode, string>> = {
  ERR_HOLDFAST_ACCESS: 'the key does not give that right; ask the manager for it',
  ERR_HOLDFAST_FENCED: 'the guard does not hold: somebody else has taken over',
  ERR_HOLDFAST_FLUSH_FAILED: 'the unit could not make it durable; check its disk',
  ERR_HOLDFAST_KEY_INVALID: 'the key is unknown, revoked, or of another connection; open the region again',
  ERR_HOLDFAST_OUT_OF_RANGE: 'the range reaches out of what the key opens',
};

function refusal(unit: string, code: HoldfastErrorCode): HoldfastError {
  return new HoldfastError(code, `${unit} refuses a command: ${refusals[code] ?? code}`);
}

/** What it writes has the length that it had at the call. */
function isAsItWas({ operation, chunks, length }: PlaneCommand): boolean {
  return operation !== Operation.write || chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0) === length;
}

function memoryGone(unit: string): HoldfastError {
  const message = `the memory of a command to ${unit} was transferred or resized meanwhile; leave it alone until the command has ended`;
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
}

let shared: PlaneClient | undefined;

/** The client of this event loop. Idle, it does not keep the loop alive. */
export function sharedPlaneClient(): PlaneClient {
  shared ??= new PlaneClient();
  return shared;
}
