/**
 * One-sided commands on the wire, and the answers to them: headers of fixed size, so that a unit checks and executes a
 * command without building anything. Pure. The same bytes go over a session between peers (memory-wire.ts: the command's
 * header is the body of a request) and over a connection of their own, where a thread serves them.
 *
 * Version 1, little-endian. Golden bytes in test/checkpoint/golden/command-1.bin and answer-1.bin.
 *
 * Command, 64 bytes:
 *
 *   offset  size  field
 *        0     1  version of this format, 1
 *        1     1  operation: 1 read, 2 write, 3 persist, 4 compare and swap, 5 watch
 *        2     1  bit 0: the command ends when what it stores is durable (write, compare and swap); bit 1: it is guarded
 *                 (write); the others 0
 *        3     1  reserved, 0
 *        4     4  bytes of data that follow the header: those to be written; 0 for all but write
 *        8     8  tag, comes back with the answer; 0 over a session, which numbers its requests itself; below 2^53
 *       16    16  access key
 *       32     8  virtual address, bytes from the start of the region
 *       40     8  length in bytes. read, write: at most 1 MiB (write: as many as data follow); compare and swap: 8;
 *                 watch: at least 1. Address + length is below 2^53
 *       48     8  compare and swap, guarded write: the value that is expected; watch: the change number; else 0
 *       56     8  compare and swap: the value that is desired; guarded write: the address of the value that is expected,
 *                 below 2^53; else 0
 *
 * The address of a compare and swap, and that of a guard, is a multiple of 8.
 *
 * Answer, 32 bytes:
 *
 *   offset  size  field
 *        0     1  version of this format, 1
 *        1     1  status: 0 done, else what went wrong (ANSWER_STATUS)
 *        2     2  reserved, 0
 *        4     4  bytes of data that follow the header: those that were read; else 0
 *        8     8  tag of the command; below 2^53
 *       16     8  compare and swap: what was there before; watch: the newest change number; else 0
 *       24     8  reserved, 0
 *
 * Invariant: what is decoded can be executed as it stands, but for key, bounds and rights; encoded again it gives the
 * same bytes.
 */
import { HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';
import { badFrame } from '../peer/frame.ts';
import type { AccessKey } from './one-sided.ts';

export const COMMAND_BYTES = 64;
export const ANSWER_BYTES = 32;
/** Read or written by one command at most. */
export const COMMAND_DATA_MAX_BYTES = 1024 * 1024;
export const KEY_BYTES = 16;
export const WORD_BYTES = 8;

export const Operation = { read: 1, write: 2, persist: 3, compareAndSwap: 4, watch: 5 } as const;
export type Operation = (typeof Operation)[keyof typeof Operation];

const VERSION = 1;
const PERSIST = 1;
const GUARD = 2;
const TWO_32 = 2 ** 32;

export interface Command {
  readonly operation: Operation;
  readonly persist: boolean;
  readonly guard: boolean;
  readonly tag: number;
  readonly key: AccessKey;
  readonly address: number;
  readonly length: number;
  /** Expected; or, of a watch, since when. */
  readonly operandA: bigint;
  /** Desired; or, of a guarded write, the address of the guard. */
  readonly operandB: bigint;
}

export interface Answer {
  readonly status: number;
  readonly dataBytes: number;
  readonly tag: number;
  readonly value: bigint;
}

/** The number of each error on the wire. Numbers are added, never given anew. */
const STATUS_OF: Partial<Record<HoldfastErrorCode, number>> = {
  ERR_HOLDFAST_KEY_INVALID: 1,
  ERR_HOLDFAST_ACCESS: 2,
  ERR_HOLDFAST_OUT_OF_RANGE: 3,
  ERR_HOLDFAST_FENCED: 4,
  ERR_HOLDFAST_FLUSH_FAILED: 5,
  ERR_HOLDFAST_QUEUE_FULL: 6,
  ERR_HOLDFAST_BAD_FRAME: 7,
  ERR_HOLDFAST_CLOSED: 8,
};
const STATUS_INTERNAL = 255;
const CODE_OF = new Map(Object.entries(STATUS_OF).map(([code, status]) => [status, code as HoldfastErrorCode]));

/** An error as the status of an answer; one without a number of its own is 255, an internal one. */
export function statusOf(code: HoldfastErrorCode): number {
  return STATUS_OF[code] ?? STATUS_INTERNAL;
}

export function codeOfStatus(status: number): HoldfastErrorCode {
  return CODE_OF.get(status) ?? 'ERR_HOLDFAST_INTERNAL';
}

/** @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if the header cannot say it. */
export function encodeCommand(command: Command): Uint8Array {
  const { operation, persist, guard, tag, address, length, operandA, operandB } = command;
  const bytes = Buffer.allocUnsafe(COMMAND_BYTES);
  const flags = (persist ? PERSIST : 0) | (guard ? GUARD : 0);
  bytes.writeUInt32LE(VERSION | (operation << 8) | (flags << 16), 0);
  const write = operation === Operation.write;
  const wrong = problemOf(operation, flags, address, length, write ? length : 0, operandA, operandB);
  if (wrong !== undefined || !isWord(operandA) || !isWord(operandB) || !isSafe(tag))
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `no command says that: ${wrong ?? 'a number is too large'}`);
  bytes.writeUInt32LE(write ? length : 0, 4);
  writeNumber(bytes, tag, 8);
  if (command.key.length !== 2 * KEY_BYTES || bytes.write(command.key, 16, 'hex') !== KEY_BYTES)
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'an access key has 32 hexadecimal digits');
  writeNumber(bytes, address, 32);
  writeNumber(bytes, length, 40);
  writeBig(bytes, operandA, 48);
  writeBig(bytes, operandB, 56);
  return bytes;
}

/** Checks every field: the bytes may come from anybody who has a session. */
export function decodeCommand(header: Uint8Array): Command {
  if (header.length !== COMMAND_BYTES)
    throw badFrame(`the header of a command has ${header.length} bytes, not ${COMMAND_BYTES}`);
  const bytes = Buffer.from(header.buffer, header.byteOffset, COMMAND_BYTES);
  if (bytes[0] !== VERSION) throw badFrame(`commands of version ${bytes[0]} are not known here; upgrade this node`);
  const operation = bytes[1]!;
  const flags = bytes[2]!;
  const tag = readNumber(bytes, 8);
  const address = readNumber(bytes, 32);
  const length = readNumber(bytes, 40);
  const operandA = readBig(bytes, 48);
  const operandB = readBig(bytes, 56);
  const wrong = problemOf(operation, flags, address, length, bytes.readUInt32LE(4), operandA, operandB);
  if (wrong !== undefined) throw badFrame(`a command that cannot be: ${wrong}`);
  if (bytes[3] !== 0 || tag > Number.MAX_SAFE_INTEGER) throw badFrame("a command's header holds what no command says");
  return {
    operation: operation as Operation,
    persist: (flags & PERSIST) !== 0,
    guard: (flags & GUARD) !== 0,
    tag,
    key: bytes.toString('hex', 16, 32),
    address,
    length,
    operandA,
    operandB,
  };
}

const FLAGS_OF: readonly number[] = [0, 0, PERSIST | GUARD, 0, PERSIST, 0];

function problemOf(
  operation: number,
  flags: number,
  address: number,
  length: number,
  dataBytes: number,
  operandA: bigint,
  operandB: bigint,
): string | undefined {
  const flagsKnown = FLAGS_OF[operation];
  if (flagsKnown === undefined || operation < Operation.read) return `operation ${operation} is not known`;
  if ((flags & ~flagsKnown) !== 0) return `flags ${flags} do not go with operation ${operation}`;
  if (!isSafe(address) || !isSafe(length) || !isSafe(address + length)) return 'its range ends beyond 2^53';
  if (dataBytes !== (operation === Operation.write ? length : 0)) return `${dataBytes} bytes of data for ${length}`;
  switch (operation) {
    case Operation.compareAndSwap:
      return length === WORD_BYTES && address % WORD_BYTES === 0 ? undefined : 'it swaps other than 8 aligned bytes';
    case Operation.watch:
      if (length === 0) return 'it watches nothing';
      return operandB === 0n ? undefined : 'it says more than a watch does';
    case Operation.persist:
      return operandA === 0n && operandB === 0n ? undefined : 'it says more than a persist does';
    default:
      if (length > COMMAND_DATA_MAX_BYTES) return `${length} bytes are over ${COMMAND_DATA_MAX_BYTES}`;
  }
  if ((flags & GUARD) === 0) return operandA === 0n && operandB === 0n ? undefined : 'it has no guard, but says which';
  return operandB <= MAX_GUARD && operandB % 8n === 0n ? undefined : 'its guard is not 8 aligned bytes';
}

const MAX_WORD = 2n ** 64n - 1n;
const MAX_GUARD = BigInt(Number.MAX_SAFE_INTEGER - WORD_BYTES);

function isWord(value: bigint): boolean {
  return value >= 0n && value <= MAX_WORD;
}

function isSafe(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

export function encodeAnswer({ status, dataBytes, tag, value }: Answer): Uint8Array {
  const bytes = Buffer.alloc(ANSWER_BYTES);
  bytes.writeUInt32LE(VERSION | (status << 8), 0);
  bytes.writeUInt32LE(dataBytes, 4);
  writeNumber(bytes, tag, 8);
  writeBig(bytes, value, 16);
  return bytes;
}

/** Checks every field. */
export function decodeAnswer(header: Uint8Array): Answer {
  if (header.length !== ANSWER_BYTES)
    throw badFrame(`the header of an answer has ${header.length} bytes, not ${ANSWER_BYTES}`);
  const bytes = Buffer.from(header.buffer, header.byteOffset, ANSWER_BYTES);
  if (bytes[0] !== VERSION) throw badFrame(`answers of version ${bytes[0]} are not known here; upgrade this node`);
  const dataBytes = bytes.readUInt32LE(4);
  const tag = readNumber(bytes, 8);
  const status = bytes[1]!;
  const known = status === 0 || status === STATUS_INTERNAL || CODE_OF.has(status);
  const reserved = bytes.readUInt16LE(2) + bytes.readUInt32LE(24) + bytes.readUInt32LE(28);
  if (!known || reserved !== 0 || dataBytes > COMMAND_DATA_MAX_BYTES || tag > Number.MAX_SAFE_INTEGER)
    throw badFrame("an answer's header holds what no answer says");
  return { status, dataBytes, tag, value: readBig(bytes, 16) };
}

function writeNumber(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % TWO_32, at);
  bytes.writeUInt32LE(Math.floor(value / TWO_32), at + 4);
}

/** Beyond 2^53 it is not exact, and not allowed. */
function readNumber(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at + 4) * TWO_32 + bytes.readUInt32LE(at);
}

function writeBig(bytes: Buffer, value: bigint, at: number): void {
  if (value === 0n) bytes.fill(0, at, at + WORD_BYTES);
  else bytes.writeBigUInt64LE(value, at);
}

/** Most are 0, for which no bigint need be made. */
function readBig(bytes: Buffer, at: number): bigint {
  if (bytes.readUInt32LE(at) === 0 && bytes.readUInt32LE(at + 4) === 0) return 0n;
  return bytes.readBigUInt64LE(at);
}
