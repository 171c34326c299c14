/**
 * Reads an NBD server's replies: a pure parser. Data goes from the chunks straight into the buffers of those who asked.
 *
 * Source: the NBD protocol document, sections "Simple reply message", "Structured reply chunk message", "Structured
 * reply types", "Request types" (NBD_CMD_READ).
 *
 * Invariants:
 * - Nothing is written outside a request's buffer, no byte of it twice, and a read succeeds only when all of it has
 *   come. What a server announces is compared with what was asked before anything is done with it (CVE-2023-5215).
 * - Nothing that a server can announce makes the reader hold more than a few kilobytes.
 */
import { ByteQueue } from './byte-queue.ts';
import { printable } from './client-negotiation.ts';
import {
  CHUNK_ERROR_BIT,
  CHUNK_FLAG_DONE,
  CHUNK_HEADER_BYTES,
  Chunk,
  Command,
  MAX_STRING_BYTES,
  readU16,
  readU32,
  readU64,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from './wire.ts';

/** A request that waits for its reply. */
export interface AwaitedReply {
  readonly command: number;
  readonly offset: number;
  readonly length: number;
  /** A read's. If it is no longer as long as the request, it was taken away, and the data is thrown away. */
  readonly buffer: Uint8Array | undefined;
  /** The parts of a read that have come, as offsets in the buffer: sorted, apart. Kept by the reader. */
  readonly parts: { start: number; end: number }[];
  /** The first error that the server reported, 0 if none. Kept by the reader. */
  errno: number;
  errorText: string;
}

export interface AwaitedReplies {
  find(cookieHigh: number, cookieLow: number): AwaitedReply | undefined;
  /** All of the reply has come. The cookie is free. */
  finish(reply: AwaitedReply): void;
}

const MAX_PARTS = 4096;
const MAX_ERROR_CHUNK_BYTES = MAX_STRING_BYTES + 64;
const SMALLEST_REPLY_BYTES = SIMPLE_REPLY_BYTES;

export class ReplyReader {
  readonly #structured: boolean;
  readonly #awaited: AwaitedReplies;
  readonly #queue = new ByteQueue();
  #state: 'header' | 'chunk-length' | 'offset' | 'data' | 'hole' | 'error' = 'header';
  #reply: AwaitedReply | undefined;
  #type = 0;
  #done = false;
  #length = 0;
  /** Of the data that is coming in: the next byte's place in the buffer, and the place after the last. */
  #position = 0;
  #end = 0;

  constructor(structured: boolean, awaited: AwaitedReplies) {
    this.#structured = structured;
    this.#awaited = awaited;
  }

  /** Takes a chunk from the connection. Returns what the server did wrong: the connection is then of no more use. */
  read(chunk: Uint8Array): string | undefined {
    this.#queue.push(chunk);
    for (;;) {
      const outcome = this.#step();
      if (outcome === 'wait') return undefined;
      if (outcome !== 'go on') return outcome;
    }
  }

  #step(): string {
    switch (this.#state) {
      case 'header':
        return this.#has(SMALLEST_REPLY_BYTES) ? this.#onHeader() : 'wait';
      case 'chunk-length':
        return this.#has(CHUNK_HEADER_BYTES - SIMPLE_REPLY_BYTES) ? this.#onChunkLength() : 'wait';
      case 'offset':
        return this.#has(8) ? this.#onOffset() : 'wait';
      case 'hole':
        return this.#has(12) ? this.#onHole() : 'wait';
      case 'error':
        return this.#has(this.#length) ? this.#onError() : 'wait';
      case 'data':
        return this.#onData();
    }
  }

  #has(count: number): boolean {
    return this.#queue.length >= count;
  }

  #onHeader(): string {
    const at = this.#queue.take(SMALLEST_REPLY_BYTES);
    const bytes = this.#queue.taken;
    const magic = readU32(bytes, at);
    const reply = this.#awaited.find(readU32(bytes, at + 8), readU32(bytes, at + 12));
    if (magic !== SIMPLE_REPLY_MAGIC && magic !== STRUCTURED_REPLY_MAGIC) return 'the magic of a reply is wrong';
    if (reply === undefined) return 'it answered a request that was not asked';
    this.#reply = reply;
    if (magic === SIMPLE_REPLY_MAGIC) return this.#onSimpleReply(reply, readU32(bytes, at + 4));
    if (!this.#structured) return 'it sent a structured reply, which was not agreed on';
    this.#done = (readU16(bytes, at + 4) & CHUNK_FLAG_DONE) !== 0;
    this.#type = readU16(bytes, at + 6);
    this.#state = 'chunk-length';
    return 'go on';
  }

  #onSimpleReply(reply: AwaitedReply, errno: number): string {
    if (this.#structured && reply.command === Command.read) return 'it answered a read with a simple reply';
    reply.errno = errno;
    this.#done = true;
    if (errno !== 0 || reply.command !== Command.read) return this.#finishChunk();
    return this.#expectData(0, reply.length);
  }

  #onChunkLength(): string {
    const at = this.#queue.take(4);
    this.#length = readU32(this.#queue.taken, at);
    const reply = this.#reply!;
    if ((this.#type & CHUNK_ERROR_BIT) !== 0) {
      if (this.#length < 6 || this.#length > MAX_ERROR_CHUNK_BYTES)
        return `it sent an error chunk of ${this.#length} bytes`;
      this.#state = 'error';
      return 'go on';
    }
    if (this.#type === Chunk.none) {
      if (this.#length !== 0 || !this.#done) return 'it sent an empty chunk that is not empty or not the last';
      return this.#finishChunk();
    }
    if (reply.command !== Command.read) return `it sent a chunk of type ${this.#type} for what was no read`;
    if (this.#type === Chunk.offsetData) {
      if (this.#length < 9 || this.#length - 8 > reply.length) return `it sent a data chunk of ${this.#length} bytes`;
      this.#state = 'offset';
      return 'go on';
    }
    if (this.#type !== Chunk.offsetHole) return `it sent a chunk of the unknown type ${this.#type}`;
    if (this.#length !== 12) return `it sent a hole chunk of ${this.#length} bytes`;
    this.#state = 'hole';
    return 'go on';
  }

  #onOffset(): string {
    const at = this.#queue.take(8);
    return this.#expectData(readU64(this.#queue.taken, at) - this.#reply!.offset, this.#length - 8);
  }

  #onHole(): string {
    const at = this.#queue.take(12);
    const reply = this.#reply!;
    const start = readU64(this.#queue.taken, at) - reply.offset;
    const length = readU32(this.#queue.taken, at + 8);
    if (length === 0) return 'it sent a hole of no length';
    const wrong = cover(reply, start, length);
    if (wrong !== undefined) return wrong;
    if (reply.buffer!.length === reply.length) reply.buffer!.fill(0, start, start + length);
    return this.#finishChunk();
  }

  #expectData(start: number, length: number): string {
    const wrong = cover(this.#reply!, start, length);
    if (wrong !== undefined) return wrong;
    this.#position = start;
    this.#end = start + length;
    this.#state = 'data';
    return 'go on';
  }

  #onData(): string {
    const { buffer, length } = this.#reply!;
    if (buffer!.length !== length) this.#position += this.#queue.skip(this.#end - this.#position);
    else {
      const target = this.#end === length ? buffer! : buffer!.subarray(0, this.#end);
      this.#position += this.#queue.moveInto(target, this.#position);
    }
    return this.#position === this.#end ? this.#finishChunk() : 'wait';
  }

  #onError(): string {
    const at = this.#queue.take(this.#length);
    const bytes = this.#queue.taken;
    const errno = readU32(bytes, at);
    const textLength = readU16(bytes, at + 4);
    if (errno === 0) return 'it sent an error chunk without an error';
    if (textLength > this.#length - 6) return 'it sent an error text longer than its chunk';
    const reply = this.#reply!;
    if (reply.errno === 0) {
      reply.errno = errno;
      reply.errorText = printable(bytes.subarray(at + 6, at + 6 + textLength));
    }
    return this.#finishChunk();
  }

  #finishChunk(): string {
    this.#state = 'header';
    const reply = this.#reply!;
    this.#reply = undefined;
    if (!this.#done) return 'go on';
    if (reply.command === Command.read && reply.errno === 0 && !isWhole(reply))
      return 'it ended a read before all of its data had come';
    this.#awaited.finish(reply);
    return 'go on';
  }
}

/** Marks a part of a read as come; says what is wrong if it lies outside or came before. */
function cover(reply: AwaitedReply, start: number, length: number): string | undefined {
  const end = start + length;
  if (start < 0 || end > reply.length) return 'it sent data that was not asked for';
  const { parts } = reply;
  let index = parts.length;
  while (index > 0 && parts[index - 1]!.start >= start) index -= 1;
  const before = parts[index - 1];
  const after = parts[index];
  if ((before !== undefined && before.end > start) || (after !== undefined && after.start < end))
    return 'it sent the same data twice';
  if (before?.end === start) {
    before.end = end;
    if (after?.start === end) {
      before.end = after.end;
      parts.splice(index, 1);
    }
  } else if (after?.start === end) after.start = start;
  else parts.splice(index, 0, { start, end });
  return parts.length > MAX_PARTS ? 'it cut a read into too many pieces' : undefined;
}

function isWhole(reply: AwaitedReply): boolean {
  return (
    reply.length === 0 || (reply.parts.length === 1 && reply.parts[0]!.end - reply.parts[0]!.start === reply.length)
  );
}
