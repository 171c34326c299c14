/**
 * One-sided access over a session between peers: what a client of a unit holds. A range that is longer than one command
 * may be goes as several, which are sent together.
 */
import { HoldfastError } from '../base/errors.ts';
import type { Message, PeerSession } from '../peer/peer.ts';
import { COMMAND_DATA_MAX_BYTES, type Command, encodeCommand, Operation, WORD_BYTES } from './command-format.ts';
import { type CommandValue, memoryCommandMethod } from './memory-wire.ts';
import type { AccessKey, AddressRange, CommandOptions, RegionAccess, StoreOptions, WriteOptions } from './one-sided.ts';

/** What the manager gives to those who may use a region. */
export interface AccessContext {
  readonly key: AccessKey;
  readonly range: AddressRange;
  readonly epoch: number;
}

/** What carries commands to a unit, in order. */
export interface CommandCarrier {
  /** Name of the unit. */
  readonly unit: string;
  readonly open: boolean;
  send(command: Command, data: readonly Uint8Array[], signal: AbortSignal | undefined): Promise<Message<CommandValue>>;
}

/** Access over the session with the unit, for which the key was given. */
export function openAccess(session: PeerSession, context: AccessContext): RegionAccess {
  return new KeyedAccess(new SessionCarrier(session), context);
}

class SessionCarrier implements CommandCarrier {
  readonly #session: PeerSession;

  constructor(session: PeerSession) {
    this.#session = session;
  }

  get unit(): string {
    return this.#session.peer.name;
  }

  get open(): boolean {
    return this.#session.open;
  }

  send(command: Command, data: readonly Uint8Array[], signal: AbortSignal | undefined): Promise<Message<CommandValue>> {
    const maxResponseDataBytes = command.operation === Operation.read ? command.length : 0;
    const options = signal === undefined ? { maxResponseDataBytes } : { maxResponseDataBytes, signal };
    return this.#session.request(memoryCommandMethod, encodeCommand(command), data, options);
  }
}

const NO_DATA: readonly Uint8Array[] = [];

/** @internal Also for the unit's own process (unit.ts). */
export class KeyedAccess implements RegionAccess {
  readonly range: AddressRange;
  readonly epoch: number;
  readonly #carrier: CommandCarrier;
  readonly #key: AccessKey;

  constructor(carrier: CommandCarrier, { key, range, epoch }: AccessContext) {
    this.#carrier = carrier;
    this.#key = key;
    this.range = range;
    this.epoch = epoch;
  }

  get unit(): string {
    return this.#carrier.unit;
  }

  get open(): boolean {
    return this.#carrier.open;
  }

  read(address: number, target: Uint8Array, options: CommandOptions = {}): Promise<void> {
    const wrong = problemOutside(this.range, address, target.length);
    if (wrong !== undefined) return Promise.reject(wrong);
    if (target.length <= COMMAND_DATA_MAX_BYTES) return this.#read(address, target, options);
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < target.length; at += COMMAND_DATA_MAX_BYTES)
      pieces.push(this.#read(address + at, target.subarray(at, at + COMMAND_DATA_MAX_BYTES), options));
    return allSettled(pieces);
  }

  #read(address: number, target: Uint8Array, { signal }: CommandOptions): Promise<void> {
    const command = this.#command(Operation.read, address, target.length);
    return this.#carrier.send(command, NO_DATA, signal).then(({ data }) => {
      if (data.length !== target.length)
        throw new HoldfastError(
          'ERR_HOLDFAST_BAD_FRAME',
          `${this.unit} answered with ${data.length} bytes where ${target.length} were asked for`,
        );
      target.set(data);
    });
  }

  write(address: number, chunks: readonly Uint8Array[], options: WriteOptions = {}): Promise<void> {
    let length = 0;
    for (const chunk of chunks) length += chunk.length;
    const { guard } = options;
    const wrong =
      problemOutside(this.range, address, length) ?? (guard && problemOutside(this.range, guard.address, WORD_BYTES));
    if (wrong !== undefined) return Promise.reject(wrong);
    if (length <= COMMAND_DATA_MAX_BYTES) return this.#write(address, length, chunks, options);
    const pieces: Promise<void>[] = [];
    let at = address;
    for (const piece of cutChunks(chunks)) {
      pieces.push(this.#write(at, piece.length, piece.chunks, options));
      at += piece.length;
    }
    return allSettled(pieces);
  }

  #write(address: number, length: number, chunks: readonly Uint8Array[], options: WriteOptions): Promise<void> {
    const { guard, persist = false, signal } = options;
    const command: Command = {
      operation: Operation.write,
      persist,
      guard: guard !== undefined,
      tag: 0,
      key: this.#key,
      address,
      length,
      operandA: guard?.expected ?? 0n,
      operandB: guard === undefined ? 0n : BigInt(guard.address),
    };
    return this.#carrier.send(command, chunks, signal).then(nothing);
  }

  async persist(address: number, lengthBytes: number, { signal }: CommandOptions = {}): Promise<void> {
    this.#check(address, lengthBytes);
    await this.#carrier.send(this.#command(Operation.persist, address, lengthBytes), NO_DATA, signal);
  }

  async compareAndSwap(
    address: number,
    expected: bigint,
    desired: bigint,
    { persist = false, signal }: StoreOptions = {},
  ): Promise<bigint> {
    this.#check(address, WORD_BYTES);
    const command = this.#command(Operation.compareAndSwap, address, WORD_BYTES, expected, desired, persist);
    return this.#value(await this.#carrier.send(command, NO_DATA, signal));
  }

  async watch(address: number, lengthBytes: number, since: number, { signal }: CommandOptions = {}): Promise<number> {
    this.#check(address, lengthBytes);
    if (!Number.isSafeInteger(since) || since < 0)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${since} is no change number; begin with 0`);
    const command = this.#command(Operation.watch, address, lengthBytes, BigInt(since));
    return Number(this.#value(await this.#carrier.send(command, NO_DATA, signal)));
  }

  #command(
    operation: Operation,
    address: number,
    length: number,
    operandA = 0n,
    operandB = 0n,
    persist = false,
  ): Command {
    return { operation, persist, guard: false, tag: 0, key: this.#key, address, length, operandA, operandB };
  }

  #value({ control }: Message<CommandValue>): bigint {
    if (control === undefined)
      throw new HoldfastError('ERR_HOLDFAST_BAD_FRAME', `${this.unit} answered without the value that was asked for`);
    return control;
  }

  #check(address: number, length: number): void {
    const wrong = problemOutside(this.range, address, length);
    if (wrong !== undefined) throw wrong;
  }
}

/**
 * What is wrong with a range that a command is to be about; undefined if the key opens it. The unit checks, too; but a
 * mistake of our own need not travel.
 */
export function problemOutside(
  { base, lengthBytes }: AddressRange,
  address: number,
  length: number,
): HoldfastError | undefined {
  const whole = Number.isSafeInteger(address) && Number.isSafeInteger(length) && length >= 0;
  if (whole && address >= base && length <= lengthBytes && address - base <= lengthBytes - length) return undefined;
  return new HoldfastError(
    'ERR_HOLDFAST_OUT_OF_RANGE',
    `${length} bytes at ${address} are not among the ${lengthBytes} bytes at ${base} that the key opens`,
  );
}

function nothing(): void {}

/** Not before all have ended: their bytes are in use until then. Fails as the first that failed. */
async function allSettled(pieces: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(pieces)) if (result.status === 'rejected') throw result.reason;
}

interface Piece {
  readonly chunks: readonly Uint8Array[];
  readonly length: number;
}

/** Pieces of COMMAND_DATA_MAX_BYTES, and the rest. */
function* cutChunks(chunks: readonly Uint8Array[]): Generator<Piece> {
  let piece: Uint8Array[] = [];
  let length = 0;
  for (const chunk of chunks)
    for (let at = 0; at < chunk.length; ) {
      const part = chunk.subarray(at, at + COMMAND_DATA_MAX_BYTES - length);
      piece.push(part);
      length += part.length;
      at += part.length;
      if (length < COMMAND_DATA_MAX_BYTES) continue;
      yield { chunks: piece, length };
      piece = [];
      length = 0;
    }
  if (length > 0) yield { chunks: piece, length };
}
