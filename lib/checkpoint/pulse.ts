/**
 * The pulse of a process pair: 64 bytes in the pair's region by which the primary says that it lives. Never persisted:
 * after a power cut nobody lives. Pure.
 *
 * Little-endian:
 *
 *   offset  size  field
 *        0     8  magic, "HFPULSE" and a zero
 *        8     1  version of this format, 1
 *        9     1  kind: 1 alive, 2 handed over (the other one may take over at once)
 *       10     6  reserved, 0
 *       16     8  epoch of the primary, below 2^53
 *       24     8  count, from 1 with every epoch; the next pulse has the next count
 *       32    16  incarnation of the primary's process
 *       48    12  reserved, 0
 *       60     4  CRC-32C of bytes 0 to 59
 */
import { crc32c } from '../base/checksum.ts';

export const PULSE_BYTES = 64;
const MAGIC = Buffer.from('HFPULSE\0', 'latin1');
const VERSION = 1;
const KINDS = { alive: 1, 'handed-over': 2 } as const;
const MAX_NUMBER = BigInt(Number.MAX_SAFE_INTEGER);

export interface Pulse {
  readonly kind: keyof typeof KINDS;
  readonly epoch: number;
  readonly count: number;
  /** 32 hexadecimal digits. */
  readonly incarnation: string;
}

export function encodePulse(pulse: Pulse): Uint8Array {
  const bytes = Buffer.alloc(PULSE_BYTES);
  MAGIC.copy(bytes);
  bytes[8] = VERSION;
  bytes[9] = KINDS[pulse.kind];
  bytes.writeBigUInt64LE(BigInt(pulse.epoch), 16);
  bytes.writeBigUInt64LE(BigInt(pulse.count), 24);
  bytes.write(pulse.incarnation, 32, 'hex');
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 60)), 60);
  return bytes;
}

/** Undefined if there is none, or half of one: the next look shows. */
export function decodePulse(raw: Uint8Array): Pulse | undefined {
  if (raw.length < PULSE_BYTES) return undefined;
  const bytes = Buffer.from(raw.buffer, raw.byteOffset, PULSE_BYTES);
  if (!bytes.subarray(0, 8).equals(MAGIC) || bytes[8] !== VERSION) return undefined;
  if (bytes.readUInt32LE(60) !== crc32c(bytes.subarray(0, 60))) return undefined;
  const kind = bytes[9] === KINDS.alive ? 'alive' : bytes[9] === KINDS['handed-over'] ? 'handed-over' : undefined;
  const [epoch, count] = [bytes.readBigUInt64LE(16), bytes.readBigUInt64LE(24)];
  if (kind === undefined || epoch > MAX_NUMBER || count > MAX_NUMBER) return undefined;
  return { kind, epoch: Number(epoch), count: Number(count), incarnation: bytes.toString('hex', 32, 48) };
}
