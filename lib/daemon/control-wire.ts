/**
 * What is said on the control socket: JSON, one object a line (NDJSON), UTF-8, version 1.
 *
 *   request   {"holdfast":1,"id":7,"method":"status","params":{…}}       client → server
 *   reply     {"holdfast":1,"id":7,"result":…}                           server → client
 *   error     {"holdfast":1,"id":7,"error":{"code":"ERR_…","message":…}} server → client; id null: the line was unreadable
 *   event     {"holdfast":1,"event":{…}}                                 server → client, after the method `events`
 *
 * Lines are bounded before anything is kept. A line of another version is answered by ERR_HOLDFAST_VERSION.
 */
import { z } from 'zod';
import { HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';

export const CONTROL_VERSION = 1;
/** Requests are small. */
export const REQUEST_LINE_BYTES_MAX = 64 * 1024;
/** Replies list every volume, export and link. */
export const REPLY_LINE_BYTES_MAX = 16 * 1024 * 1024;

const id = z.number().int().nonnegative();

export const requestSchema = z.object({ holdfast: z.literal(1), id, method: z.string().max(64), params: z.unknown() });

const errorSchema = z.object({ code: z.string().max(64), message: z.string() });

export const replySchema = z.union([
  z.object({ holdfast: z.literal(1), id: id.nullable(), error: errorSchema }),
  z.object({ holdfast: z.literal(1), event: z.record(z.string(), z.unknown()) }),
  z.object({ holdfast: z.literal(1), id, result: z.unknown() }),
]);

export type ControlRequest = z.infer<typeof requestSchema>;
export type ControlReply = z.infer<typeof replySchema>;

export function encodeLine(value: object): Uint8Array {
  return Buffer.from(`${JSON.stringify(value)}\n`);
}

export function errorReply(requestId: number | null, error: unknown): object {
  const known = error instanceof HoldfastError;
  const code = known ? error.code : 'ERR_HOLDFAST_INTERNAL';
  const message = error instanceof Error ? error.message : String(error);
  return { holdfast: CONTROL_VERSION, id: requestId, error: { code, message } };
}

/** The error that a server answered with. */
export function errorOfReply(error: { code: string; message: string }): HoldfastError {
  const code = /^ERR_HOLDFAST_[A-Z_]{1,48}$/.test(error.code) ? error.code : 'ERR_HOLDFAST_REMOTE';
  return new HoldfastError(code as HoldfastErrorCode, error.message);
}

/** Parses one line. Throws ERR_HOLDFAST_BAD_FRAME or ERR_HOLDFAST_VERSION. */
export function parseLine<T>(line: Uint8Array, schema: z.ZodType<T>): T {
  const value = parseJson(line);
  if (typeof value === 'object' && value !== null && 'holdfast' in value && value.holdfast !== CONTROL_VERSION) {
    const theirs = JSON.stringify(value.holdfast)?.slice(0, 40);
    throw new HoldfastError(
      'ERR_HOLDFAST_VERSION',
      `the other end speaks version ${theirs} of the control protocol, this one ${CONTROL_VERSION}; use the same release of holdfast for both`,
    );
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new HoldfastError('ERR_HOLDFAST_BAD_FRAME', 'the line is not a message of the control protocol');
}

function parseJson(line: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(line.buffer, line.byteOffset, line.byteLength).toString('utf8'));
  } catch (cause) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_FRAME', 'the line is not JSON', { cause });
  }
}

const NEWLINE = 0x0a;

/** Cuts a stream of bytes into lines. Holds at most one line that has not ended, and that only up to the limit. */
export class LineCutter {
  readonly #limitBytes: number;
  #parts: Uint8Array[] = [];
  #length = 0;

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  /** Takes a chunk and gives the lines that ended in it. Throws ERR_HOLDFAST_BAD_FRAME for a line above the limit. */
  push(chunk: Uint8Array): Uint8Array[] {
    const lines: Uint8Array[] = [];
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      this.#keep(chunk.subarray(start, end));
      lines.push(this.#parts.length === 1 ? this.#parts[0]! : Buffer.concat(this.#parts));
      this.#parts = [];
      this.#length = 0;
      start = end + 1;
    }
    if (start < chunk.length) this.#keep(chunk.subarray(start));
    return lines;
  }

  #keep(part: Uint8Array): void {
    this.#length += part.length;
    if (this.#length > this.#limitBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_FRAME',
        `a line of the control protocol has at most ${this.#limitBytes} bytes`,
      );
    this.#parts.push(part);
  }
}
