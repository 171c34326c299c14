/**
 * The bytes of the NBD protocol: constants, and the layout of each message. No policy, no state.
 *
 * Source: the NBD protocol document (NetworkBlockDevice/nbd, doc/proto.md). The sections are named beside the code.
 * All numbers on the wire are big-endian ("Conventions"). 64-bit offsets become JavaScript numbers: above 2^53 they
 * lose exactness, and every such value is beyond any export, so the range check refuses it whatever it was rounded to.
 */

// "Newstyle negotiation"
export const NBD_MAGIC_HIGH = 0x4e42444d; // NBDM
export const NBD_MAGIC_LOW = 0x41474943; // AGIC
export const OPTION_MAGIC_HIGH = 0x49484156; // IHAV
export const OPTION_MAGIC_LOW = 0x454f5054; // EOPT
// "Fixed newstyle negotiation"
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;
// "Transmission"
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** "Handshake flags" (server) and "Client flags": the same two bits. */
export const HandshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** "Transmission flags" */
export const TransmissionFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
} as const;

/** "Option types" */
export const Option = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

/** "Option reply types" */
export const Reply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsup: 0x80000001,
  errPolicy: 0x80000002,
  errInvalid: 0x80000003,
  errPlatform: 0x80000004,
  errTlsReqd: 0x80000005,
  errUnknown: 0x80000006,
  errShutdown: 0x80000007,
  errBlockSizeReqd: 0x80000008,
  errTooBig: 0x80000009,
} as const;

/** `NBD_REP_INFO` types */
export const Info = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

/** "Request types" */
export const Command = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

/** "Command flags" */
export const CommandFlag = { fua: 1, noHole: 2, df: 4, reqOne: 8, fastZero: 16 } as const;

/** "Structured reply types" */
export const Chunk = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;
export const CHUNK_FLAG_DONE = 1;
/** Bit 15 of a chunk's type: it reports an error. */
export const CHUNK_ERROR_BIT = 0x8000;

/** "Error values" */
export const Errno = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;
export type ErrnoName = keyof typeof Errno;

/** "Conventions": a string MUST be no longer than this. */
export const MAX_STRING_BYTES = 4096;
const MAX_ERROR_TEXT_BYTES = 512;
/** "Size constraints": a payload up to this is never an attack, and clients that did not ask may send it. */
export const DEFAULT_MAX_PAYLOAD_BYTES = 2 ** 25;

export const BASE_ALLOCATION = 'base:allocation';

export const CLIENT_FLAGS_BYTES = 4;
export const GREETING_BYTES = 18;
export const OPTION_HEADER_BYTES = 16;
export const OPTION_REPLY_HEADER_BYTES = 20;
export const REQUEST_HEADER_BYTES = 28;
export const SIMPLE_REPLY_BYTES = 16;
export const CHUNK_HEADER_BYTES = 20;
/** A structured chunk's header and the offset that a data chunk begins with. */
export const DATA_CHUNK_HEADER_BYTES = CHUNK_HEADER_BYTES + 8;

export function readU16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}

export function readU32(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0;
}

export function readU64(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at) * 2 ** 32 + readU32(bytes, at + 4);
}

export function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

export function writeU64(bytes: Uint8Array, at: number, value: number): void {
  writeU32(bytes, at, Math.floor(value / 2 ** 32));
  writeU32(bytes, at + 4, value % 2 ** 32);
}

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

/** The string, or undefined if the bytes are not one ("Conventions": UTF-8, no NUL, at most 4096 bytes). */
export function decodeText(bytes: Uint8Array): string | undefined {
  if (bytes.length > MAX_STRING_BYTES || bytes.includes(0)) return undefined;
  try {
    return decoder.decode(bytes);
  } catch {
    return undefined;
  }
}

/** "Newstyle negotiation": the server's first words. */
export function encodeGreeting(handshakeFlags: number): Uint8Array {
  const bytes = new Uint8Array(GREETING_BYTES);
  writeU32(bytes, 0, NBD_MAGIC_HIGH);
  writeU32(bytes, 4, NBD_MAGIC_LOW);
  writeU32(bytes, 8, OPTION_MAGIC_HIGH);
  writeU32(bytes, 12, OPTION_MAGIC_LOW);
  writeU16(bytes, 16, handshakeFlags);
  return bytes;
}

/** "Newstyle negotiation": an option, header and data. */
export function encodeOption(option: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(OPTION_HEADER_BYTES + data.length);
  writeU32(bytes, 0, OPTION_MAGIC_HIGH);
  writeU32(bytes, 4, OPTION_MAGIC_LOW);
  writeU32(bytes, 8, option);
  writeU32(bytes, 12, data.length);
  bytes.set(data, OPTION_HEADER_BYTES);
  return bytes;
}

/** "Fixed newstyle negotiation": a reply to an option. */
export function encodeOptionReply(option: number, reply: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(OPTION_REPLY_HEADER_BYTES + data.length);
  writeU32(bytes, 0, OPTION_REPLY_MAGIC_HIGH);
  writeU32(bytes, 4, OPTION_REPLY_MAGIC_LOW);
  writeU32(bytes, 8, option);
  writeU32(bytes, 12, reply);
  writeU32(bytes, 16, data.length);
  bytes.set(data, OPTION_REPLY_HEADER_BYTES);
  return bytes;
}

/** `NBD_OPT_INFO`, `NBD_OPT_GO`: the data. */
export function encodeInfoRequest(exportName: string, requests: readonly number[]): Uint8Array {
  const name = encodeText(exportName);
  const bytes = new Uint8Array(6 + name.length + 2 * requests.length);
  writeU32(bytes, 0, name.length);
  bytes.set(name, 4);
  writeU16(bytes, 4 + name.length, requests.length);
  for (const [index, request] of requests.entries()) writeU16(bytes, 6 + name.length + 2 * index, request);
  return bytes;
}

/** "Request message". The cookie is opaque: two 32-bit halves. */
export interface RequestHeader {
  flags: number;
  command: number;
  cookieHigh: number;
  cookieLow: number;
  offset: number;
  length: number;
}

export function encodeRequest(bytes: Uint8Array, at: number, request: Readonly<RequestHeader>): void {
  writeU32(bytes, at, REQUEST_MAGIC);
  writeU16(bytes, at + 4, request.flags);
  writeU16(bytes, at + 6, request.command);
  writeU32(bytes, at + 8, request.cookieHigh);
  writeU32(bytes, at + 12, request.cookieLow);
  writeU64(bytes, at + 16, request.offset);
  writeU32(bytes, at + 24, request.length);
}

/** Reads into `into`; false if the magic is wrong. */
export function decodeRequest(bytes: Uint8Array, at: number, into: RequestHeader): boolean {
  if (readU32(bytes, at) !== REQUEST_MAGIC) return false;
  into.flags = readU16(bytes, at + 4);
  into.command = readU16(bytes, at + 6);
  into.cookieHigh = readU32(bytes, at + 8);
  into.cookieLow = readU32(bytes, at + 12);
  into.offset = readU64(bytes, at + 16);
  into.length = readU32(bytes, at + 24);
  return true;
}

type Cookie = Pick<RequestHeader, 'cookieHigh' | 'cookieLow'>;

/** "Simple reply message", without the data. */
export function encodeSimpleReply(bytes: Uint8Array, at: number, cookie: Cookie, errno: number): void {
  writeU32(bytes, at, SIMPLE_REPLY_MAGIC);
  writeU32(bytes, at + 4, errno);
  writeU32(bytes, at + 8, cookie.cookieHigh);
  writeU32(bytes, at + 12, cookie.cookieLow);
}

/** "Structured reply chunk message", without the payload. */
export function encodeChunkHeader(
  bytes: Uint8Array,
  at: number,
  cookie: Cookie,
  chunk: { readonly type: number; readonly done: boolean; readonly payloadBytes: number },
): void {
  writeU32(bytes, at, STRUCTURED_REPLY_MAGIC);
  writeU16(bytes, at + 4, chunk.done ? CHUNK_FLAG_DONE : 0);
  writeU16(bytes, at + 6, chunk.type);
  writeU32(bytes, at + 8, cookie.cookieHigh);
  writeU32(bytes, at + 12, cookie.cookieLow);
  writeU32(bytes, at + 16, chunk.payloadBytes);
}

/** `NBD_REPLY_TYPE_OFFSET_DATA`, final, without the data. */
export function encodeDataChunkHeader(
  bytes: Uint8Array,
  at: number,
  request: Pick<RequestHeader, 'cookieHigh' | 'cookieLow' | 'offset' | 'length'>,
): void {
  writeU32(bytes, at, STRUCTURED_REPLY_MAGIC);
  writeU32(bytes, at + 4, (CHUNK_FLAG_DONE << 16) | Chunk.offsetData);
  writeU32(bytes, at + 8, request.cookieHigh);
  writeU32(bytes, at + 12, request.cookieLow);
  writeU32(bytes, at + 16, request.length + 8);
  writeU64(bytes, at + 20, request.offset);
}

/** `NBD_REPLY_TYPE_ERROR`, final, with a message for people. */
export function encodeErrorChunk(cookie: Cookie, errno: number, message: string): Uint8Array {
  // encodeInto cuts between characters, so that what is left is still UTF-8.
  const room = new Uint8Array(MAX_ERROR_TEXT_BYTES);
  const text = room.subarray(0, encoder.encodeInto(message, room).written);
  const bytes = new Uint8Array(CHUNK_HEADER_BYTES + 6 + text.length);
  encodeChunkHeader(bytes, 0, cookie, { type: Chunk.error, done: true, payloadBytes: 6 + text.length });
  writeU32(bytes, CHUNK_HEADER_BYTES, errno);
  writeU16(bytes, CHUNK_HEADER_BYTES + 4, text.length);
  bytes.set(text, CHUNK_HEADER_BYTES + 6);
  return bytes;
}

/** `NBD_REPLY_TYPE_BLOCK_STATUS`, final, with one extent. */
export function encodeBlockStatusChunk(cookie: Cookie, contextId: number, length: number, status: number): Uint8Array {
  const bytes = new Uint8Array(CHUNK_HEADER_BYTES + 12);
  encodeChunkHeader(bytes, 0, cookie, { type: Chunk.blockStatus, done: true, payloadBytes: 12 });
  writeU32(bytes, CHUNK_HEADER_BYTES, contextId);
  writeU32(bytes, CHUNK_HEADER_BYTES + 4, length);
  writeU32(bytes, CHUNK_HEADER_BYTES + 8, status);
  return bytes;
}
