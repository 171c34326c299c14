/**
 * One-sided access to a region over the data plane of its unit (plane-client.ts): as memory-session.ts does it over a
 * session between peers, with nobody's JavaScript at the unit's end. The ticket for the connection comes over such a
 * session (plane-ticket.ts), so the plane knows whom it serves, and ends the connection with that session.
 */
import { HoldfastError } from '../base/errors.ts';
import { COMMAND_DATA_MAX_BYTES, Operation } from './command-format.ts';
import { type AccessContext, problemOutside } from './memory-session.ts';
import type { AddressRange, CommandOptions, RegionAccess, StoreOptions, WriteOptions } from './one-sided.ts';
import { guardFlag, type PlaneCommand, type PlaneSession, persistFlag } from './plane-client.ts';

const wordBytes = 8;
const nothing: readonly Uint8Array[] = [];

class Command<Result> implements PlaneCommand {
  readonly operation: Operation;
  readonly flags: number;
  readonly key: Uint32Array;
  readonly address: number;
  readonly length: number;
  readonly operandA: bigint;
  readonly operandB: bigint;
  readonly chunks: readonly Uint8Array[];
  target: Uint8Array | undefined;
  id: number | undefined;
  readonly #result: (low: number, high: number) => Result;
  readonly #resolve: (result: Result) => void;
  readonly #reject: (error: unknown) => void;

  constructor(
    parts: CommandParts,
    key: Uint32Array,
    result: (low: number, high: number) => Result,
    resolve: (result: Result) => void,
    reject: (error: unknown) => void,
  ) {
    this.operation = parts.operation;
    this.flags = parts.flags ?? 0;
    this.key = key;
    this.address = parts.address;
    this.length = parts.length;
    this.operandA = parts.operandA ?? 0n;
    this.operandB = parts.operandB ?? 0n;
    this.chunks = parts.chunks ?? nothing;
    this.target = parts.target;
    this.#result = result;
    this.#resolve = resolve;
    this.#reject = reject;
  }

  done(low: number, high: number): void {
    this.#resolve(this.#result(low, high));
  }

  failed(error: unknown): void {
    this.#reject(error);
  }
}

interface CommandParts {
  readonly operation: Operation;
  readonly flags?: number;
  readonly address: number;
  readonly length: number;
  readonly operandA?: bigint;
  readonly operandB?: bigint;
  readonly chunks?: readonly Uint8Array[];
  readonly target?: Uint8Array;
}

const toNothing = (): void => {};
const toNumber = (low: number, high: number): number => high * 2 ** 32 + low;
const toBig = (low: number, high: number): bigint => (BigInt(high) << 32n) | BigInt(low);

/** Access to what the key opens, over a session with the plane of the unit. */
export function openPlaneAccess(session: PlaneSession, context: AccessContext): RegionAccess {
  return new PlaneAccess(session, context);
}

class PlaneAccess implements RegionAccess {
  readonly unit: string;
  readonly range: AddressRange;
  readonly epoch: number;
  readonly #session: PlaneSession;
  readonly #key: Uint32Array;

  constructor(session: PlaneSession, context: AccessContext) {
    this.unit = session.unit;
    this.range = context.range;
    this.epoch = context.epoch;
    this.#session = session;
    must(/^[0-9a-f]{32}$/.test(context.key), 'an access key has 32 hexadecimal digits');
    this.#key = new Uint32Array(Uint8Array.from(Buffer.from(context.key, 'hex')).buffer);
  }

  get open(): boolean {
    return this.#session.open;
  }

  read(address: number, target: Uint8Array, options?: CommandOptions): Promise<void> {
    const wrong = problemOutside(this.range, address, target.length);
    if (wrong !== undefined) return Promise.reject(wrong);
    if (target.length > COMMAND_DATA_MAX_BYTES) return this.#readLong(address, target, options);
    const parts = { operation: Operation.read, address, length: target.length, target };
    return this.#run(parts, toNothing, options?.signal);
  }

  async #readLong(address: number, target: Uint8Array, options?: CommandOptions): Promise<void> {
    const reads: Promise<void>[] = [];
    for (let at = 0; at < target.length; at += COMMAND_DATA_MAX_BYTES)
      reads.push(this.read(address + at, target.subarray(at, at + COMMAND_DATA_MAX_BYTES), options));
    await allSettled(reads);
  }

  write(address: number, chunks: readonly Uint8Array[], options: WriteOptions = {}): Promise<void> {
    let length = 0;
    for (const chunk of chunks) length += chunk.length;
    const { guard, persist = false, signal } = options;
    const wrong =
      problemOutside(this.range, address, length) ?? (guard && this.#wrongWord(guard.address, guard.expected));
    if (wrong !== undefined) return Promise.reject(wrong);
    if (length > COMMAND_DATA_MAX_BYTES) return this.#writeLong(address, chunks, options);
    const flags = (persist ? persistFlag : 0) | (guard ? guardFlag : 0);
    const parts = { operation: Operation.write, flags, address, length, chunks };
    if (guard === undefined) return this.#run(parts, toNothing, signal);
    return this.#run({ ...parts, operandA: guard.expected, operandB: BigInt(guard.address) }, toNothing, signal);
  }

  /** As several commands, sent together. */
  async #writeLong(address: number, chunks: readonly Uint8Array[], options: WriteOptions): Promise<void> {
    const writes: Promise<void>[] = [];
    let at = address;
    for (const chunk of chunks)
      for (let from = 0; from < chunk.length; from += COMMAND_DATA_MAX_BYTES) {
        const piece = chunk.subarray(from, from + COMMAND_DATA_MAX_BYTES);
        writes.push(this.write(at, [piece], options));
        at += piece.length;
      }
    await allSettled(writes);
  }

  persist(address: number, lengthBytes: number, options?: CommandOptions): Promise<void> {
    const wrong = problemOutside(this.range, address, lengthBytes);
    if (wrong !== undefined) return Promise.reject(wrong);
    return this.#run({ operation: Operation.persist, address, length: lengthBytes }, toNothing, options?.signal);
  }

  async compareAndSwap(
    address: number,
    expected: bigint,
    desired: bigint,
    options: StoreOptions = {},
  ): Promise<bigint> {
    const wrong = this.#wrongWord(address, expected) ?? this.#wrongWord(address, desired);
    if (wrong !== undefined) throw wrong;
    const flags = options.persist === true ? persistFlag : 0;
    const operands = { operandA: expected, operandB: desired };
    const parts = { operation: Operation.compareAndSwap, flags, address, length: wordBytes, ...operands };
    return this.#run(parts, toBig, options.signal);
  }

  async watch(address: number, lengthBytes: number, since: number, options?: CommandOptions): Promise<number> {
    const wrong = problemOutside(this.range, address, lengthBytes);
    if (wrong !== undefined) throw wrong;
    must(lengthBytes > 0, 'a watch of no bytes ends never; give a length');
    must(Number.isSafeInteger(since) && since >= 0, `${since} is no change number; begin with 0`);
    const parts = { operation: Operation.watch, address, length: lengthBytes, operandA: BigInt(since) };
    return this.#run(parts, toNumber, options?.signal);
  }

  #wrongWord(address: number, value: bigint): HoldfastError | undefined {
    if (address % wordBytes === 0 && BigInt.asUintN(64, value) === value)
      return problemOutside(this.range, address, wordBytes);
    return new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${value} at ${address}: the address of a word is a multiple of 8, and it has 64 bits and no sign`,
    );
  }

  #run<Result>(
    parts: CommandParts,
    result: (low: number, high: number) => Result,
    signal: AbortSignal | undefined,
  ): Promise<Result> {
    if (signal !== undefined) return this.#runCancellable(parts, result, signal);
    return new Promise((resolve, reject) => {
      this.#session.submit(new Command(parts, this.#key, result, resolve, reject));
    });
  }

  async #runCancellable<Result>(
    parts: CommandParts,
    result: (low: number, high: number) => Result,
    signal: AbortSignal,
  ): Promise<Result> {
    let cancel = (): void => {};
    const cancelled = (): HoldfastError =>
      new HoldfastError('ERR_HOLDFAST_ABORTED', `a command to ${this.unit} was cancelled`, { cause: signal.reason });
    if (signal.aborted) throw cancelled();
    try {
      return await new Promise<Result>((resolve, reject) => {
        const command = new Command(parts, this.#key, result, resolve, reject);
        cancel = () => {
          this.#session.withdraw(command);
          reject(cancelled());
        };
        signal.addEventListener('abort', cancel);
        this.#session.submit(command);
      });
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }
}

function must(condition: boolean, message: string): void {
  if (!condition) throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
}

/** Not before all have ended: their bytes are in use until then. Fails as the first that failed. */
async function allSettled(pieces: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(pieces)) if (result.status === 'rejected') throw result.reason;
}
