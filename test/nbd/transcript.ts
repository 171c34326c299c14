/** Puts what an NBD client and server say to each other into words, so that a person can review it. */
import { ByteQueue } from '../../lib/nbd/byte-queue.ts';
import type { NegotiationEffect, ServerNegotiation } from '../../lib/nbd/negotiation.ts';
import {
  encodeOption,
  encodeText,
  OPTION_REPLY_HEADER_BYTES,
  Option,
  Reply,
  readU16,
  readU32,
  readU64,
  writeU32,
} from '../../lib/nbd/wire.ts';

function nameOf(table: Readonly<Record<string, number>>, value: number): string {
  return Object.entries(table).find(([, known]) => known === value)?.[0] ?? `0x${value.toString(16)}`;
}

const text = (bytes: Uint8Array): string => JSON.stringify(Buffer.from(bytes).toString());

function describeInfo(data: Uint8Array): string {
  const type = readU16(data, 0);
  if (type === 0) return `export of ${readU64(data, 2)} bytes, flags 0b${readU16(data, 10).toString(2)}`;
  if (type === 1) return `name ${text(data.subarray(2))}`;
  if (type === 2) return `description ${text(data.subarray(2))}`;
  return `blocks of ${readU32(data, 2)}, better ${readU32(data, 6)}, at most ${readU32(data, 10)}`;
}

function describeReply(bytes: Uint8Array): string {
  const type = readU32(bytes, 12);
  const data = bytes.subarray(OPTION_REPLY_HEADER_BYTES);
  const head = `${nameOf(Option, readU32(bytes, 8))}: ${nameOf(Reply, type)}`;
  if (type === Reply.info) return `${head} ${describeInfo(data)}`;
  if (type === Reply.server) {
    const length = readU32(data, 0);
    return `${head} ${text(data.subarray(4, 4 + length))} ${text(data.subarray(4 + length))}`;
  }
  if (type === Reply.metaContext) return `${head} ${readU32(data, 0)} ${text(data.subarray(4))}`;
  return data.length === 0 ? head : `${head} ${text(data)}`;
}

function describeEffect(effect: NegotiationEffect): string {
  if (effect.type === 'transmit') {
    const { exportFacts, structuredReplies, blockStatus } = effect.agreement;
    const replies = structuredReplies ? 'structured' : 'simple';
    return `→ transmission of "${exportFacts.name}", ${replies} replies${blockStatus ? ', block status' : ''}`;
  }
  if (effect.type !== 'send') return `→ ${effect.type}: ${effect.reason}`;
  if (readU32(effect.bytes, 0) !== 0x0003e889) {
    const zeroes = effect.bytes.length - 10;
    return `S: export of ${readU64(effect.bytes, 0)} bytes, and ${zeroes} zeroes`;
  }
  return `S: ${describeReply(effect.bytes)}`;
}

/** Feeds bytes to a negotiation as a driver would, in the pieces in which they come. */
export class NegotiationFeeder {
  readonly negotiation: ServerNegotiation;
  readonly queue = new ByteQueue();
  readonly effects: NegotiationEffect[] = [];
  #skipped = 0;

  constructor(negotiation: ServerNegotiation) {
    this.negotiation = negotiation;
  }

  feed(chunk: Uint8Array): NegotiationEffect[] {
    this.queue.push(chunk);
    const before = this.effects.length;
    while (this.#one());
    return this.effects.slice(before);
  }

  #one(): boolean {
    const { kind, count } = this.negotiation.wanted();
    if (kind === 'skip') {
      this.#skipped += this.queue.skip(count - this.#skipped);
      if (this.#skipped < count) return false;
      this.#skipped = 0;
      this.effects.push(...this.negotiation.step({ type: 'skipped' }));
      return true;
    }
    if (kind === 'nothing' || this.queue.length < count) return false;
    const at = this.queue.take(count);
    const bytes = this.queue.taken.subarray(at, at + count);
    this.effects.push(...this.negotiation.step({ type: 'bytes', bytes }));
    return true;
  }
}

/** A conversation: each thing that the client says, and the server's answers beneath it. */
export class Conversation {
  readonly lines: string[] = [];
  readonly #feeder: NegotiationFeeder;

  constructor(negotiation: ServerNegotiation, clientFlags = 3) {
    this.#feeder = new NegotiationFeeder(negotiation);
    const bytes = new Uint8Array(4);
    writeU32(bytes, 0, clientFlags);
    this.raw(`client flags ${clientFlags}`, bytes);
  }

  get last(): string {
    return this.lines.at(-1)!;
  }

  option(option: number, data: Uint8Array | string = '', caption?: string): this {
    const bytes = typeof data === 'string' ? encodeText(data) : data;
    const shown = caption ?? (typeof data === 'string' ? data : `${bytes.length} bytes`);
    return this.raw(`${nameOf(Option, option)} ${shown}`.trimEnd(), encodeOption(option, bytes));
  }

  raw(caption: string, bytes: Uint8Array): this {
    this.lines.push(`C: ${caption}`, ...this.#feeder.feed(bytes).map((effect) => `  ${describeEffect(effect)}`));
    return this;
  }

  deadline(): this {
    const effects = this.#feeder.negotiation.step({ type: 'deadline' });
    this.lines.push('* the deadline', ...effects.map((effect) => `  ${describeEffect(effect)}`));
    return this;
  }
}
