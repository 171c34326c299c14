/**
 * Frames: how peers cut a stream of bytes into messages, and notice when it is not theirs or not whole.
 *
 * Invariants:
 * - A frame's lengths are checked against what its receiver admits before anything is allocated for its body.
 * - Sequence numbers start at 0 on every connection and grow by one: a frame that is lost, repeated or out of order ends
 *   the connection.
 * - Header and body each carry a checksum; a body is handed on only when its own fits.
 * - Data arrives either as a view of the chunk that holds all of it, or in one buffer of exactly its size.
 *
 * Format, version 1. Little-endian. Golden bytes in test/peer/golden/frames.json.
 *
 *   offset  size  field
 *   0       4     magic "HFPF"
 *   4       1     frame version: 1
 *   5       1     kind: see FrameKind
 *   6       1     channel: 0 control, 1 bulk
 *   7       1     zero
 *   8       4     method: which request this is (request), else 0
 *   12      4     parameter: most bytes of data that the answer may bring (request), milliseconds granted (grant), else 0
 *   16      8     request id; on a heartbeat and its grant, the heartbeat's number
 *   24      8     sequence
 *   32      4     control length, bytes
 *   36      4     data length, bytes
 *   40      4     CRC-32C of the body (control, then data); 0 without a body
 *   44      16    zero
 *   60      4     CRC-32C of bytes 0 … 59
 *   64            control body (MessagePack, see control-body.ts, or a method's own format), then data
 */
import { crc32c } from '../base/checksum.ts';
import { HoldfastError } from '../base/errors.ts';

export const HEADER_BYTES = 64;
export const FRAME_VERSION = 1;
/** No frame is larger, whatever its receiver would admit. */
export const CONTROL_MAX_BYTES = 64 * 1024;
export const DATA_MAX_BYTES = 64 * 1024 * 1024;

const MAGIC = Uint8Array.from([0x48, 0x46, 0x50, 0x46]);
const TWO_32 = 2 ** 32;

/** Numbers on the wire: added, never changed. */
export const FrameKind = {
  hello: 1,
  proof: 2,
  accept: 3,
  refuse: 4,
  heartbeat: 5,
  grant: 6,
  request: 7,
  response: 8,
  failure: 9,
  goodbye: 10,
} as const;
export type FrameKind = (typeof FrameKind)[keyof typeof FrameKind];
const KIND_MAX = FrameKind.goodbye;

export const ChannelNumber = { control: 0, bulk: 1 } as const;
export type ChannelNumber = (typeof ChannelNumber)[keyof typeof ChannelNumber];

export interface FrameHeader {
  readonly kind: FrameKind;
  readonly channel: ChannelNumber;
  readonly method: number;
  readonly parameter: number;
  readonly requestId: number;
  readonly sequence: number;
  readonly controlLength: number;
  readonly dataLength: number;
  readonly bodyChecksum: number;
}

export interface Frame {
  readonly header: FrameHeader;
  readonly control: Uint8Array;
  readonly data: Uint8Array;
}

/** A frame on its way out: its sequence and checksums are set when it is written. */
export interface OutgoingFrame {
  readonly kind: FrameKind;
  readonly channel: ChannelNumber;
  readonly method: number;
  readonly parameter: number;
  readonly requestId: number;
  /** Room for the header, then the control body. */
  readonly head: Uint8Array;
  readonly data: readonly Uint8Array[];
  readonly dataLength: number;
}

const NO_BYTES = new Uint8Array(0);
const NO_DATA: readonly Uint8Array[] = [];

/** Room for a header in front of the control body. */
export function headFor(control: Uint8Array): Uint8Array {
  const head = Buffer.allocUnsafe(HEADER_BYTES + control.length);
  head.set(control, HEADER_BYTES);
  return head;
}

export function frameBytes(frame: OutgoingFrame): number {
  return frame.head.length + frame.dataLength;
}

/** A frame of the control channel without data. */
export function controlFrame(
  kind: FrameKind,
  fields: { readonly requestId?: number; readonly parameter?: number; readonly control?: Uint8Array } = {},
): OutgoingFrame {
  return {
    kind,
    channel: ChannelNumber.control,
    method: 0,
    parameter: fields.parameter ?? 0,
    requestId: fields.requestId ?? 0,
    head: headFor(fields.control ?? NO_BYTES),
    data: NO_DATA,
    dataLength: 0,
  };
}

// Writing

export class FrameWriter {
  #sequence = 0;

  /** Appends the frame's bytes to `chunks`. The data is checksummed now: it must not change any more. */
  write(frame: OutgoingFrame, chunks: Uint8Array[]): void {
    const { head, data } = frame;
    const controlLength = head.length - HEADER_BYTES;
    let bodyChecksum = controlLength === 0 ? 0 : crc32c(head.subarray(HEADER_BYTES));
    for (const part of data) bodyChecksum = crc32c(part, bodyChecksum);
    head.set(MAGIC, 0);
    head[4] = FRAME_VERSION;
    head[5] = frame.kind;
    head[6] = frame.channel;
    head[7] = 0;
    setU32(head, 8, frame.method);
    setU32(head, 12, frame.parameter);
    setU64(head, 16, frame.requestId);
    setU64(head, 24, this.#sequence++);
    setU32(head, 32, controlLength);
    setU32(head, 36, frame.dataLength);
    setU32(head, 40, bodyChecksum);
    head.fill(0, 44, 60);
    setU32(head, 60, crc32c(head.subarray(0, 60)));
    chunks.push(head);
    for (const part of data) if (part.length > 0) chunks.push(part);
  }
}

function setU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

function setU64(bytes: Uint8Array, at: number, value: number): void {
  setU32(bytes, at, value % TWO_32);
  setU32(bytes, at + 4, Math.floor(value / TWO_32));
}

function u32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

// Reading

export interface FrameReceiver {
  /** Throws a HoldfastError if the receiver does not want a frame with this header: nothing is allocated for it. */
  admit(header: FrameHeader): void;
  frame(frame: Frame): void;
}

export class FrameParser {
  readonly #receiver: FrameReceiver;
  readonly #headerBytes = new Uint8Array(HEADER_BYTES);
  #headerFill = 0;
  #header: FrameHeader | undefined;
  #control: Uint8Array = NO_BYTES;
  #data: Uint8Array = NO_BYTES;
  #bodyFill = 0;
  #sequence = 0;
  #broken = false;

  constructor(receiver: FrameReceiver) {
    this.#receiver = receiver;
  }

  /**
   * Takes the next bytes of the stream, and hands on each frame that they complete.
   *
   * @throws HoldfastError ERR_HOLDFAST_BAD_FRAME, or what `admit` throws. Nothing is handed on after that.
   */
  push(chunk: Uint8Array): void {
    if (this.#broken) return;
    try {
      let offset = 0;
      while (offset < chunk.length)
        offset = this.#header === undefined ? this.#takeHeader(chunk, offset) : this.#takeBody(chunk, offset);
    } catch (error) {
      this.#broken = true;
      throw error;
    }
  }

  #takeHeader(chunk: Uint8Array, offset: number): number {
    const taken = Math.min(HEADER_BYTES - this.#headerFill, chunk.length - offset);
    this.#headerBytes.set(chunk.subarray(offset, offset + taken), this.#headerFill);
    this.#headerFill += taken;
    this.#checkMagic();
    if (this.#headerFill < HEADER_BYTES) return offset + taken;
    this.#headerFill = 0;
    const header = decodeHeader(this.#headerBytes);
    if (header.sequence !== this.#sequence)
      throw badFrame(`frame ${header.sequence} came where ${this.#sequence} was due: the stream lost or repeated some`);
    this.#sequence++;
    this.#receiver.admit(header);
    return this.#startBody(header, chunk, offset + taken);
  }

  /** A stranger is known by its first bytes, before it has sent a whole header. */
  #checkMagic(): void {
    const known = Math.min(this.#headerFill, MAGIC.length);
    for (let index = 0; index < known; index++)
      if (this.#headerBytes[index] !== MAGIC[index])
        throw badFrame(`what came is not a frame of a Holdfast peer: it starts with ${printable(this.#headerBytes)}`);
  }

  #startBody(header: FrameHeader, chunk: Uint8Array, offset: number): number {
    const { controlLength, dataLength } = header;
    const dataOffset = offset + controlLength;
    const end = dataOffset + dataLength;
    if (end <= chunk.length) {
      this.#emit(header, chunk.subarray(offset, dataOffset), chunk.subarray(dataOffset, end));
      return end;
    }
    this.#header = header;
    this.#control = controlLength === 0 ? NO_BYTES : new Uint8Array(controlLength);
    this.#data = dataLength === 0 ? NO_BYTES : Buffer.allocUnsafeSlow(dataLength);
    this.#bodyFill = 0;
    return offset;
  }

  #takeBody(chunk: Uint8Array, offset: number): number {
    const header = this.#header!;
    const { controlLength, dataLength } = header;
    const inControl = this.#bodyFill < controlLength;
    const target = inControl ? this.#control : this.#data;
    const at = inControl ? this.#bodyFill : this.#bodyFill - controlLength;
    const taken = Math.min(target.length - at, chunk.length - offset);
    target.set(chunk.subarray(offset, offset + taken), at);
    this.#bodyFill += taken;
    if (this.#bodyFill === controlLength + dataLength) {
      const control = this.#control;
      const data = this.#data;
      this.#header = undefined;
      this.#control = NO_BYTES;
      this.#data = NO_BYTES;
      this.#emit(header, control, data);
    }
    return offset + taken;
  }

  #emit(header: FrameHeader, control: Uint8Array, data: Uint8Array): void {
    const ofControl = control.length === 0 ? 0 : crc32c(control);
    const checksum = data.length === 0 ? ofControl : crc32c(data, ofControl);
    if (checksum !== header.bodyChecksum)
      throw badFrame(`the body of frame ${header.sequence} does not fit its checksum; the network or memory corrupts`);
    this.#receiver.frame({ header, control, data });
  }
}

function decodeHeader(bytes: Uint8Array): FrameHeader {
  if (crc32c(bytes.subarray(0, 60)) !== u32(bytes, 60))
    throw badFrame('the header of a frame does not fit its checksum; the network or memory corrupts');
  const version = bytes[4]!;
  if (version !== FRAME_VERSION)
    throw badFrame(`frames of version ${version} are not known here, only ${FRAME_VERSION}; upgrade this node`);
  const kind = bytes[5]!;
  const channel = bytes[6]!;
  const controlLength = u32(bytes, 32);
  const dataLength = u32(bytes, 36);
  if (kind < 1 || kind > KIND_MAX || channel > ChannelNumber.bulk)
    throw badFrame(`a frame of kind ${kind} on channel ${channel} is not known here`);
  if (controlLength > CONTROL_MAX_BYTES || dataLength > DATA_MAX_BYTES)
    throw badFrame(`a frame of ${controlLength} + ${dataLength} bytes is larger than any may be`);
  return {
    kind: kind as FrameKind,
    channel: channel as ChannelNumber,
    method: u32(bytes, 8),
    parameter: u32(bytes, 12),
    requestId: safeU64(bytes, 16),
    sequence: safeU64(bytes, 24),
    controlLength,
    dataLength,
    bodyChecksum: u32(bytes, 40),
  };
}

function safeU64(bytes: Uint8Array, at: number): number {
  const value = u32(bytes, at + 4) * TWO_32 + u32(bytes, at);
  if (!Number.isSafeInteger(value)) throw badFrame('a number in a frame is beyond 2^53');
  return value;
}

export function badFrame(message: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_FRAME', message);
}

/** For people: the first bytes of what a stranger says, and what that may be. */
function printable(bytes: Uint8Array): string {
  const start = Buffer.from(bytes.subarray(0, 4)).toString('latin1');
  if (/^(GET|POST|HEAD|PUT|OPTI|DELE|CONN|PRI)/.test(start)) return 'an HTTP request';
  if (bytes[0] === 0x16 && bytes[1] === 3) return 'a TLS handshake (the link is declared dedicated on this side only)';
  return JSON.stringify(start.replaceAll(/[^ -~]/g, '.'));
}
