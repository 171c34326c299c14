/**
 * The body of a mirrored write (writeMethod): bytes at fixed places, since to build and check MessagePack is about a
 * sixth of the processor time of a small mirrored write. Pure.
 *
 * Version 1, little-endian, 56 bytes. Golden bytes in test/mirror/golden/write-body-1.bin.
 *
 *   offset  size  field
 *        0     1  version of this format, 1
 *        1     1  bit 0: durable when answered (fua); the others 0
 *        2     6  reserved, 0
 *        8    32  the volume's identifier, hexadecimal digits as ASCII
 *       40     8  number of the sender's view, at most 2^48
 *       48     8  where in the volume the data belongs, bytes, below 2^53
 *
 * Invariant: what is decoded fits the method's schema, and encoded again gives the same bytes.
 */
import { badFrame } from '../peer/frame.ts';
import type { BodyFormat } from '../peer/peer.ts';

const VERSION = 1;
const BODY_BYTES = 56;
const FUA = 1;
const TWO_32 = 2 ** 32;
const MAX_VIEW_NUMBER = 2 ** 48;
const VOLUME_ID = /^[0-9a-f]{32}$/;

export interface WriteBody {
  /** 32 hexadecimal digits. */
  readonly volume: string;
  readonly view: number;
  readonly offset: number;
  readonly fua: boolean;
}

export const writeBodyFormat: BodyFormat<WriteBody> = { encode, decode };

function encode({ volume, view, offset, fua }: WriteBody): Uint8Array {
  const bytes = Buffer.allocUnsafe(BODY_BYTES);
  bytes.writeUInt32LE(fua ? VERSION | (FUA << 8) : VERSION, 0);
  bytes.writeUInt32LE(0, 4);
  bytes.write(volume, 8, 'latin1');
  writeNumber(bytes, view, 40);
  writeNumber(bytes, offset, 48);
  return bytes;
}

/** Checks every field: the bytes come from a peer. */
function decode(body: Uint8Array): WriteBody {
  if (body.length !== BODY_BYTES) throw badFrame(`a write's body has ${body.length} bytes, not ${BODY_BYTES}`);
  const bytes = Buffer.from(body.buffer, body.byteOffset, BODY_BYTES);
  if (bytes[0] !== VERSION)
    throw badFrame(`a write's body of version ${bytes[0]} is not known here; upgrade this node`);
  const volume = bytes.toString('latin1', 8, 40);
  const view = readNumber(bytes, 40);
  const offset = readNumber(bytes, 48);
  const reserved = (bytes.readUInt32LE(0) >>> 9) + bytes.readUInt32LE(4);
  if (reserved !== 0 || !VOLUME_ID.test(volume) || view > MAX_VIEW_NUMBER || offset > Number.MAX_SAFE_INTEGER)
    throw badFrame("a write's body holds what no write says");
  return { volume, view, offset, fua: bytes[1] === FUA };
}

function writeNumber(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % TWO_32, at);
  bytes.writeUInt32LE(Math.floor(value / TWO_32), at + 4);
}

/** Beyond 2^53 it is not exact, and not allowed. */
function readNumber(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at + 4) * TWO_32 + bytes.readUInt32LE(at);
}
