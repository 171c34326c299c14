/**
 * One-sided commands over a session between peers: a request's body is the header of the command (command-format.ts), its
 * data are the bytes to be written; an answer's data are the bytes that were read. The body of an answer is empty, or 8
 * bytes, little-endian: what was there before a compare and swap; the change number that ends a watch.
 */
import { z } from 'zod';
import { badFrame } from '../peer/frame.ts';
import type { BodyFormat, Method } from '../peer/peer.ts';
import { COMMAND_DATA_MAX_BYTES, WORD_BYTES } from './command-format.ts';

/** What a command gives beside data. */
export type CommandValue = bigint | undefined;

const NO_BYTES = new Uint8Array(0);

/** The unit decodes headers itself, so that its audit log tells of those that cannot be. */
const headerFormat: BodyFormat<Uint8Array> = { encode: (header) => header, decode: (header) => header };

const valueFormat: BodyFormat<CommandValue> = {
  encode(value) {
    if (value === undefined) return NO_BYTES;
    const bytes = Buffer.allocUnsafe(WORD_BYTES);
    bytes.writeBigUInt64LE(value);
    return bytes;
  },
  decode(bytes) {
    if (bytes.length === 0) return undefined;
    if (bytes.length !== WORD_BYTES) throw badFrame(`the answer to a command has a body of ${bytes.length} bytes`);
    return Buffer.from(bytes.buffer, bytes.byteOffset, WORD_BYTES).readBigUInt64LE();
  },
};

export const memoryCommandMethod: Method<Uint8Array, CommandValue> = {
  id: 40,
  name: 'memory-command',
  channel: 'bulk',
  request: z.instanceof(Uint8Array),
  requestFormat: headerFormat,
  response: z.bigint().optional(),
  responseFormat: valueFormat,
  maxRequestDataBytes: COMMAND_DATA_MAX_BYTES,
  maxResponseDataBytes: COMMAND_DATA_MAX_BYTES,
};
