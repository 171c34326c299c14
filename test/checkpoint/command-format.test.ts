import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import {
  ANSWER_BYTES,
  type Answer,
  COMMAND_BYTES,
  COMMAND_DATA_MAX_BYTES,
  type Command,
  codeOfStatus,
  decodeAnswer,
  decodeCommand,
  encodeAnswer,
  encodeCommand,
  Operation,
  statusOf,
} from '../../lib/checkpoint/command-format.ts';

const command: Command = {
  operation: Operation.write,
  persist: true,
  guard: true,
  tag: 2 ** 40 + 7,
  key: '0123456789abcdeffedcba9876543210',
  address: 2 ** 36 + 4096,
  length: 65_536,
  operandA: 0x8877665544332211n,
  operandB: 0x1_0000_0040n,
};
const read: Command = { ...command, operation: 1, persist: false, guard: false, operandA: 0n, operandB: 0n };
const answer: Answer = { status: 0, dataBytes: 4096, tag: 2 ** 40 + 7, value: 0xffeeddccbbaa9988n };

/** What comes of bytes that may be wrong: undefined if they were refused. */
function decoded<T>(decode: (bytes: Uint8Array) => T, bytes: Uint8Array): T | undefined {
  try {
    return decode(bytes);
  } catch (error) {
    if (isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')) return undefined;
    throw error;
  }
}

const golden = (name: string) => readFileSync(new URL(`golden/${name}.bin`, import.meta.url));

test('the golden command and the golden answer are read and written as they were', () => {
  expect(decodeCommand(golden('command-1'))).toEqual(command);
  expect(encodeCommand(command)).toEqual(golden('command-1'));
  expect(decodeAnswer(golden('answer-1'))).toEqual(answer);
  expect(encodeAnswer(answer)).toEqual(golden('answer-1'));
});

test('commands at the ends of what may be said come back as they were', () => {
  const most = Number.MAX_SAFE_INTEGER;
  const ends: Command[] = [
    read,
    { ...read, length: 0, address: most, tag: most },
    { ...read, length: COMMAND_DATA_MAX_BYTES, address: most - COMMAND_DATA_MAX_BYTES },
    { ...read, operation: Operation.write, length: 0, address: 0 },
    { ...command, persist: false, operandB: BigInt(most - 15) },
    { ...read, operation: Operation.persist, length: most, address: 0 },
    { ...read, operation: Operation.watch, length: 1, operandA: 2n ** 64n - 1n },
    { ...command, operation: Operation.compareAndSwap, guard: false, length: 8, operandB: 2n ** 64n - 1n },
  ];
  for (const end of ends) expect(decodeCommand(encodeCommand(end))).toEqual(end);
});

describe('refused by the decoder', () => {
  const change = (at: number, ...values: number[]) => {
    const bytes = Uint8Array.from(encodeCommand(read));
    bytes.set(values, at);
    return bytes;
  };
  const ones = (count: number) => new Array<number>(count).fill(255);
  test.each([
    ['another version', change(0, 2)],
    ['an unknown operation', change(1, 0)],
    ['the operation after the last', change(1, 6)],
    ['a persist flag on a read', change(2, 1)],
    ['a guard flag on a read', change(2, 2)],
    ['an unknown flag', change(2, 4)],
    ['the reserved byte', change(3, 1)],
    ['data on a read', change(4, 1)],
    ['a tag of 2^53', change(8 + 6, 32)],
    ['an address of 2^53', change(32 + 6, 32)],
    ['a length of 2^64 - 1', change(40, ...ones(8))],
    ['an address and a length that wrap around together', change(32, ...ones(16))],
    ['an end of 2^53', change(32, ...ones(6), 31, 0)],
    ['more than one command may read', change(40, 1, 0, 16)],
    ['an operand on a read', change(48, 1)],
    ['another operand on a read', change(56, 1)],
  ])('%s', (_what, bytes) => {
    expect(decoded(decodeCommand, encodeCommand(read))).toEqual(read);
    expect(decoded(decodeCommand, bytes)).toBeUndefined();
  });

  const write = (fields: Partial<Command>) => ({ ...command, ...fields }) as Command;
  test.each([
    ['a guard that is not aligned', write({ operandB: 4n })],
    ['a guard that ends beyond 2^53', write({ operandB: 2n ** 53n - 8n })],
    ['operands without a guard', write({ guard: false })],
    ['a compare and swap of 4 bytes', write({ operation: 4, guard: false, length: 4 })],
    ['a compare and swap that is not aligned', write({ operation: 4, guard: false, length: 8, address: 12 })],
    ['a guarded compare and swap', write({ operation: 4, length: 8 })],
    ['a watch of nothing', write({ ...read, operation: 5, length: 0 })],
    ['a watch with two operands', write({ ...read, operation: 5, operandB: 1n })],
    ['a persist with an operand', write({ ...read, operation: 3, operandA: 1n })],
    ['a persist that asks to persist', write({ ...read, operation: 3, persist: true })],
    ['a key with too few digits', write({ key: 'ab' })],
    ['a key that is none', write({ key: 'z'.repeat(32) })],
    ['a length that is not whole', write({ length: 1.5 })],
    ['an address below 0', write({ address: -8 })],
    ['an expected value of 65 bits', write({ operandA: 2n ** 64n })],
    ['an expected value below 0', write({ operandA: -1n })],
    ['a tag of 2^53', write({ tag: 2 ** 53 })],
  ])('and by the encoder: %s', (_what, wrong) => {
    expect(() => encodeCommand(wrong)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }));
  });

  test('headers of another length', () => {
    for (const length of [0, 1, COMMAND_BYTES - 1, COMMAND_BYTES + 1, 4096])
      expect(decoded(decodeCommand, new Uint8Array(length).fill(1))).toBeUndefined();
    for (const length of [0, ANSWER_BYTES - 1, ANSWER_BYTES + 1])
      expect(decoded(decodeAnswer, new Uint8Array(length).fill(1))).toBeUndefined();
  });
});

test.each([read, command, { ...read, operation: Operation.watch, operandA: 9n } as Command])(
  'with any byte changed a command is refused, or is another command that says just that',
  (good) => {
    let refused = 0;
    const bytes = Uint8Array.from(encodeCommand(good));
    for (let at = 0; at < COMMAND_BYTES; at += 1) {
      const was = bytes[at]!;
      for (let value = 0; value < 256; value += 1) {
        bytes[at] = value;
        const result = decoded(decodeCommand, bytes);
        if (result === undefined) refused += 1;
        else expect(Buffer.compare(encodeCommand(result), bytes)).toBe(0);
      }
      bytes[at] = was;
    }
    expect(refused).toBeGreaterThan(8 * 255);
  },
);

test('with any byte changed an answer is refused, or is another answer that says just that', () => {
  let refused = 0;
  const bytes = Uint8Array.from(encodeAnswer(answer));
  for (let at = 0; at < ANSWER_BYTES; at += 1) {
    const was = bytes[at]!;
    for (let value = 0; value < 256; value += 1) {
      bytes[at] = value;
      const result = decoded(decodeAnswer, bytes);
      if (result === undefined) refused += 1;
      else expect(Buffer.compare(encodeAnswer(result), bytes)).toBe(0);
    }
    bytes[at] = was;
  }
  // Version; 246 statuses; what is reserved; a length above 1 MiB; a tag of 2^53 and more.
  expect(refused).toBe(255 + 246 + 2 * 255 + (256 - 16) + 255 + (256 - 32) + 255 + 8 * 255);
});

test('every error that a command can end with has a number, and comes back by it; others are internal ones', () => {
  const codes = ['KEY_INVALID', 'ACCESS', 'OUT_OF_RANGE', 'FENCED', 'FLUSH_FAILED', 'QUEUE_FULL'] as const;
  expect(codes.map((code) => statusOf(`ERR_HOLDFAST_${code}`))).toEqual([1, 2, 3, 4, 5, 6]);
  for (const code of codes) expect(codeOfStatus(statusOf(`ERR_HOLDFAST_${code}`))).toBe(`ERR_HOLDFAST_${code}`);
  expect(codeOfStatus(statusOf('ERR_HOLDFAST_SPLIT_BRAIN'))).toBe('ERR_HOLDFAST_INTERNAL');
});
