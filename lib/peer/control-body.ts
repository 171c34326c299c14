/**
 * Control bodies: MessagePack (msgpack.org, spec of 2013 with ext), checked for its structure before it is decoded and
 * by the message's schema afterwards. A body of no bytes stands for `undefined`.
 *
 * Invariant: decoding allocates no more than a fixed multiple of the body's length: no container may promise more
 * elements than bytes are left, and nesting is bounded.
 */
import { Decoder, Encoder } from '@msgpack/msgpack';
import type { z } from 'zod';
import { HoldfastError } from '../base/errors.ts';
import { badFrame, CONTROL_MAX_BYTES } from './frame.ts';

const DEPTH_MAX = 16;
const NO_BYTES = new Uint8Array(0);

// Integers beyond 32 bits go as float64 (exact to 2^53), bigints as 64-bit integers: each comes back as it went.
const encoder = new Encoder({ useBigInt64: true, ignoreUndefined: true, maxDepth: DEPTH_MAX });
const decoder = new Decoder({ useBigInt64: true });

/** @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if it does not fit into a frame, or cannot be encoded. */
export function encodeControl(control: unknown): Uint8Array {
  if (control === undefined) return NO_BYTES;
  let bytes: Uint8Array;
  try {
    bytes = encoder.encode(control);
  } catch (cause) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'a control body cannot be encoded as MessagePack', { cause });
  }
  if (bytes.length > CONTROL_MAX_BYTES)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `a control body of ${bytes.length} bytes is over ${CONTROL_MAX_BYTES}; send it in parts, or as data`,
    );
  return bytes;
}

/** @throws HoldfastError ERR_HOLDFAST_BAD_FRAME if it is not MessagePack or does not fit the schema. */
export function decodeControl<T>(schema: z.ZodType<T>, bytes: Uint8Array, what: string): T {
  const result = schema.safeParse(decodeAny(bytes, what));
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const where = issue === undefined || issue.path.length === 0 ? '' : ` at ${issue.path.join('.')}`;
  throw badFrame(`${what} does not fit its schema${where}: ${issue?.message ?? 'unknown'}`);
}

function decodeAny(bytes: Uint8Array, what: string): unknown {
  if (bytes.length === 0) return undefined;
  if (!isWellFormed(bytes)) throw badFrame(`the control body of ${what} is not well-formed MessagePack`);
  try {
    return decoder.decode(bytes);
  } catch (cause) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_FRAME', `the control body of ${what} cannot be decoded`, { cause });
  }
}

/** Walks the structure without building anything: exactly one value, no extension types, bounded depth. */
function isWellFormed(bytes: Uint8Array): boolean {
  const open: number[] = [];
  let elements = 1;
  let offset = 0;
  for (;;) {
    while (elements === 0) {
      const outer = open.pop();
      if (outer === undefined) return offset === bytes.length;
      elements = outer;
    }
    elements--;
    const token = tokenAt(bytes, offset);
    if (token === undefined) return false;
    offset += token.length;
    if (token.elements === 0) {
      if (offset > bytes.length) return false;
      continue;
    }
    if (token.elements > bytes.length - offset || open.length >= DEPTH_MAX) return false;
    open.push(elements);
    elements = token.elements;
  }
}

interface Token {
  /** Bytes of the token itself, with the payload of a string or a binary. */
  length: number;
  /** Values that follow and belong to it. */
  elements: number;
}

const token: Token = { length: 0, elements: 0 };

function set(length: number, elements = 0): Token {
  token.length = length;
  token.elements = elements;
  return token;
}

/** Formats as in the specification's table; undefined for what a peer does not send. */
function tokenAt(bytes: Uint8Array, at: number): Token | undefined {
  const first = bytes[at];
  if (first === undefined) return undefined;
  if (first <= 0x7f || first >= 0xe0) return set(1);
  if (first <= 0x8f) return set(1, (first & 0x0f) * 2);
  if (first <= 0x9f) return set(1, first & 0x0f);
  if (first <= 0xbf) return set(1 + (first & 0x1f));
  switch (first) {
    case 0xc0: // nil
    case 0xc2: // false
    case 0xc3: // true
      return set(1);
    case 0xc4: // bin 8
    case 0xd9: // str 8
      return set(2 + big(bytes, at + 1, 1));
    case 0xc5: // bin 16
    case 0xda: // str 16
      return set(3 + big(bytes, at + 1, 2));
    case 0xc6: // bin 32
    case 0xdb: // str 32
      return set(5 + big(bytes, at + 1, 4));
    case 0xcc: // uint 8
    case 0xd0: // int 8
      return set(2);
    case 0xcd: // uint 16
    case 0xd1: // int 16
      return set(3);
    case 0xca: // float 32
    case 0xce: // uint 32
    case 0xd2: // int 32
      return set(5);
    case 0xcb: // float 64
    case 0xcf: // uint 64
    case 0xd3: // int 64
      return set(9);
    case 0xdc: // array 16
      return set(3, big(bytes, at + 1, 2));
    case 0xdd: // array 32
      return set(5, big(bytes, at + 1, 4));
    case 0xde: // map 16
      return set(3, big(bytes, at + 1, 2) * 2);
    case 0xdf: // map 32
      return set(5, big(bytes, at + 1, 4) * 2);
    default:
      return undefined;
  }
}

/** A big-endian number; bytes beyond the end count as 0, and the walk fails on the token's own length. */
function big(bytes: Uint8Array, at: number, size: number): number {
  let value = 0;
  for (let index = 0; index < size; index++) value = value * 256 + (bytes[at + index] ?? 0);
  return value;
}
