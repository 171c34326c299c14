/**
 * The server's side of the NBD handshake, as a pure state machine: a table of states, and a table of options.
 *
 * Source: the NBD protocol document, sections "Newstyle negotiation", "Fixed newstyle negotiation", "Termination of
 * the session during option haggling", "Size constraints", "Metadata querying", "Option types", "Option reply types".
 *
 * Invariants:
 * - No export's device is touched here: only facts about exports are read, and an export is chosen by a valid
 *   NBD_OPT_GO or NBD_OPT_EXPORT_NAME, once. `transmission` and `closed` are terminal.
 * - At most `maxOptionDataBytes` of a client's are held at a time; a longer option is skipped (up to
 *   `maxOptionSkipBytes`, beyond which the client is dropped) and answered with an error. At most `maxOptions` options.
 * - Every length inside an option is checked against the option's own length before it is used.
 */
import {
  BASE_ALLOCATION,
  CLIENT_FLAGS_BYTES,
  decodeText,
  encodeGreeting,
  encodeOptionReply,
  encodeText,
  HandshakeFlag,
  Info,
  MAX_STRING_BYTES,
  OPTION_HEADER_BYTES,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  Option,
  Reply,
  readU16,
  readU32,
  TransmissionFlag,
  writeU16,
  writeU32,
  writeU64,
} from './wire.ts';

/** What a client may learn of an export. */
export interface ExportFacts {
  /** The canonical name. */
  readonly name: string;
  readonly description: string | undefined;
  readonly sizeBytes: number;
  /** Transmission flags, without `sendDf`, which depends on what the client negotiates. */
  readonly transmissionFlags: number;
  readonly minimumBlockBytes: number;
  readonly preferredBlockBytes: number;
  readonly maximumPayloadBytes: number;
}

export interface ExportDirectory {
  names(): Iterable<string>;
  /** `''` is the default export, if there is one. */
  find(name: string): ExportFacts | undefined;
}

/** What was agreed. */
export interface Agreement {
  readonly exportFacts: ExportFacts;
  readonly structuredReplies: boolean;
  /** `base:allocation` was selected for this export. */
  readonly blockStatus: boolean;
}

export interface NegotiationLimits {
  readonly maxOptions: number;
  readonly maxOptionDataBytes: number;
  readonly maxOptionSkipBytes: number;
}

export const defaultNegotiationLimits: NegotiationLimits = {
  maxOptions: 128,
  maxOptionDataBytes: 16 * 1024,
  maxOptionSkipBytes: 1024 * 1024,
};

/** Only one context exists, so one identifier does. */
export const ALLOCATION_CONTEXT_ID = 1;
const MAX_META_QUERIES = 64;

export type NegotiationState = 'client-flags' | 'option' | 'option-data' | 'option-skip' | 'transmission' | 'closed';

export type NegotiationEvent =
  /** Exactly the bytes that `wanted()` asked for, or all that were to be skipped have been. */
  | { readonly type: 'bytes'; readonly bytes: Uint8Array }
  | { readonly type: 'skipped' }
  /** The time for the handshake is over. */
  | { readonly type: 'deadline' };

export type NegotiationEffect =
  | { readonly type: 'send'; readonly bytes: Uint8Array }
  | { readonly type: 'transmit'; readonly agreement: Agreement }
  /** Send what is queued, then close. */
  | { readonly type: 'end'; readonly reason: string }
  /** Close at once. */
  | { readonly type: 'drop'; readonly reason: string };

export interface Wanted {
  readonly kind: 'bytes' | 'skip' | 'nothing';
  readonly count: number;
}

type Handler = (event: NegotiationEvent) => NegotiationEffect[];
type StateRow = Partial<Record<NegotiationEvent['type'], Handler>>;

interface MetaSelection {
  readonly exportName: string;
}

/** A parsed NBD_OPT_INFO or NBD_OPT_GO. */
interface InfoRequest {
  readonly name: string;
  readonly requests: readonly number[];
}

interface MetaRequest {
  readonly name: string;
  readonly queries: readonly string[];
}

/** Why an option's data is refused. */
class Malformed {
  readonly reply: number;
  readonly text: string;
  constructor(reply: number, text: string) {
    this.reply = reply;
    this.text = text;
  }
}

const HANDSHAKE_FLAGS = HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes;

export class ServerNegotiation {
  #state: NegotiationState = 'client-flags';
  readonly #exports: ExportDirectory;
  readonly #limits: NegotiationLimits;
  #fixedNewstyle = false;
  #noZeroes = false;
  #structuredReplies = false;
  #meta: MetaSelection | undefined;
  #options = 0;
  /** The option whose data is awaited. */
  #option = 0;
  #length = 0;

  constructor(exports: ExportDirectory, limits: NegotiationLimits = defaultNegotiationLimits) {
    this.#exports = exports;
    this.#limits = limits;
  }

  get state(): NegotiationState {
    return this.#state;
  }

  greeting(): Uint8Array {
    return encodeGreeting(HANDSHAKE_FLAGS);
  }

  /** What the machine has to be given next. */
  wanted(): Wanted {
    switch (this.#state) {
      case 'client-flags':
        return { kind: 'bytes', count: CLIENT_FLAGS_BYTES };
      case 'option':
        return { kind: 'bytes', count: OPTION_HEADER_BYTES };
      case 'option-data':
        return { kind: 'bytes', count: this.#length };
      case 'option-skip':
        return { kind: 'skip', count: this.#length };
      default:
        return { kind: 'nothing', count: 0 };
    }
  }

  /** Events that a state's row does not name change nothing: the terminal states have empty rows. */
  step(event: NegotiationEvent): NegotiationEffect[] {
    return this.#table[this.#state][event.type]?.(event) ?? [];
  }

  readonly #expire: Handler = () => this.#drop('the handshake took too long');

  readonly #table: Record<NegotiationState, StateRow> = {
    'client-flags': {
      bytes: (event) => (event.type === 'bytes' ? this.#onClientFlags(readU32(event.bytes, 0)) : []),
      deadline: this.#expire,
    },
    option: {
      bytes: (event) => (event.type === 'bytes' ? this.#onOptionHeader(event.bytes) : []),
      deadline: this.#expire,
    },
    'option-data': {
      bytes: (event) => (event.type === 'bytes' ? this.#onOption(event.bytes) : []),
      deadline: this.#expire,
    },
    'option-skip': {
      skipped: () => this.#onSkipped(),
      deadline: this.#expire,
    },
    transmission: {},
    closed: {},
  };

  readonly #optionTable: Readonly<Record<number, (data: Uint8Array) => NegotiationEffect[]>> = {
    [Option.exportName]: (data) => this.#onExportName(data),
    [Option.abort]: () => this.#onAbort(),
    [Option.list]: (data) => this.#onList(data),
    [Option.startTls]: (data) => this.#onStartTls(data),
    [Option.info]: (data) => this.#onInfo(data, false),
    [Option.go]: (data) => this.#onInfo(data, true),
    [Option.structuredReply]: (data) => this.#onStructuredReply(data),
    [Option.listMetaContext]: (data) => this.#onMetaContext(data, false),
    [Option.setMetaContext]: (data) => this.#onMetaContext(data, true),
  };

  #onClientFlags(flags: number): NegotiationEffect[] {
    // "the server MUST drop the TCP connection if the client sets an unknown flag"
    if ((flags & ~HANDSHAKE_FLAGS) !== 0) return this.#drop(`unknown client flags 0x${flags.toString(16)}`);
    this.#fixedNewstyle = (flags & HandshakeFlag.fixedNewstyle) !== 0;
    this.#noZeroes = (flags & HandshakeFlag.noZeroes) !== 0;
    this.#state = 'option';
    return [];
  }

  #onOptionHeader(header: Uint8Array): NegotiationEffect[] {
    if (readU32(header, 0) !== OPTION_MAGIC_HIGH || readU32(header, 4) !== OPTION_MAGIC_LOW)
      return this.#drop('not an NBD client: the magic of an option is wrong');
    this.#options += 1;
    if (this.#options > this.#limits.maxOptions) return this.#drop(`more than ${this.#limits.maxOptions} options`);
    this.#option = readU32(header, 8);
    this.#length = readU32(header, 12);
    if (!this.#fixedNewstyle && this.#option !== Option.exportName)
      return this.#drop('a client that does not speak fixed newstyle sent an option other than NBD_OPT_EXPORT_NAME');
    if (this.#length === 0) return this.#onOption(new Uint8Array(0));
    if (this.#length <= this.#limits.maxOptionDataBytes) {
      this.#state = 'option-data';
      return [];
    }
    if (this.#length > this.#limits.maxOptionSkipBytes || this.#option === Option.exportName)
      return this.#drop(`an option with ${this.#length} bytes of data`);
    this.#state = 'option-skip';
    return [];
  }

  #onSkipped(): NegotiationEffect[] {
    this.#state = 'option';
    if (this.#option === Option.abort) return this.#onAbort();
    if (this.#optionTable[this.#option] === undefined) return this.#unsupported();
    return [this.#error(Reply.errTooBig, `at most ${this.#limits.maxOptionDataBytes} bytes of option data`)];
  }

  #onOption(data: Uint8Array): NegotiationEffect[] {
    this.#state = 'option';
    return this.#optionTable[this.#option]?.(data) ?? this.#unsupported();
  }

  #onExportName(data: Uint8Array): NegotiationEffect[] {
    const name = decodeText(data);
    const facts = name === undefined ? undefined : this.#exports.find(name);
    // "If the server is unwilling to allow the export, it MUST terminate the session."
    if (facts === undefined) return this.#drop('NBD_OPT_EXPORT_NAME with a name that is not exported');
    const bytes = new Uint8Array(this.#noZeroes ? 10 : 134);
    writeU64(bytes, 0, facts.sizeBytes);
    writeU16(bytes, 8, this.#transmissionFlags(facts));
    return [{ type: 'send', bytes }, this.#transmit(facts)];
  }

  #onAbort(): NegotiationEffect[] {
    this.#state = 'closed';
    return [this.#reply(Reply.ack), { type: 'end', reason: 'the client aborted the negotiation' }];
  }

  #onList(data: Uint8Array): NegotiationEffect[] {
    if (data.length > 0) return [this.#error(Reply.errInvalid, 'NBD_OPT_LIST takes no data')];
    const effects: NegotiationEffect[] = [];
    for (const name of this.#exports.names()) {
      const facts = this.#exports.find(name);
      if (facts === undefined) continue;
      const nameBytes = encodeText(facts.name);
      const description = encodeText(facts.description ?? '');
      const bytes = new Uint8Array(4 + nameBytes.length + description.length);
      writeU32(bytes, 0, nameBytes.length);
      bytes.set(nameBytes, 4);
      bytes.set(description, 4 + nameBytes.length);
      effects.push(this.#reply(Reply.server, bytes));
    }
    effects.push(this.#reply(Reply.ack));
    return effects;
  }

  #onStartTls(data: Uint8Array): NegotiationEffect[] {
    if (data.length > 0) return [this.#error(Reply.errInvalid, 'NBD_OPT_STARTTLS takes no data')];
    // "NOTLS mode": the option is known, and there is no TLS to start.
    return [this.#error(Reply.errPolicy, 'TLS is not configured on this server')];
  }

  #onStructuredReply(data: Uint8Array): NegotiationEffect[] {
    if (data.length > 0) return [this.#error(Reply.errInvalid, 'NBD_OPT_STRUCTURED_REPLY takes no data')];
    this.#structuredReplies = true;
    return [this.#reply(Reply.ack)];
  }

  #onInfo(data: Uint8Array, go: boolean): NegotiationEffect[] {
    const request = parseInfoRequest(data);
    if (request instanceof Malformed) return [this.#error(request.reply, request.text)];
    const facts = this.#exports.find(request.name);
    if (facts === undefined) return [this.#error(Reply.errUnknown, `there is no export ${quote(request.name)}`)];
    const effects = [this.#infoReply(Info.export, this.#exportInfo(facts))];
    if (request.requests.includes(Info.name)) effects.push(this.#infoReply(Info.name, encodeText(facts.name)));
    if (request.requests.includes(Info.description) && facts.description !== undefined)
      effects.push(this.#infoReply(Info.description, encodeText(facts.description)));
    // Sent unasked too: clients that do not know it ignore it.
    effects.push(this.#infoReply(Info.blockSize, blockSizeInfo(facts)), this.#reply(Reply.ack));
    if (go) effects.push(this.#transmit(facts));
    return effects;
  }

  #onMetaContext(data: Uint8Array, set: boolean): NegotiationEffect[] {
    // "replaces all previously-set metadata contexts (including when this command fails)"
    if (set) this.#meta = undefined;
    const request = parseMetaRequest(data);
    if (request instanceof Malformed) return [this.#error(request.reply, request.text)];
    if (!this.#structuredReplies)
      return [this.#error(Reply.errInvalid, 'negotiate structured replies before metadata contexts')];
    const facts = this.#exports.find(request.name);
    if (facts === undefined) return [this.#error(Reply.errUnknown, `there is no export ${quote(request.name)}`)];
    const listed = !set && (request.queries.length === 0 || request.queries.includes('base:'));
    if (!listed && !request.queries.includes(BASE_ALLOCATION)) return [this.#reply(Reply.ack)];
    if (set) this.#meta = { exportName: facts.name };
    const name = encodeText(BASE_ALLOCATION);
    const bytes = new Uint8Array(4 + name.length);
    writeU32(bytes, 0, set ? ALLOCATION_CONTEXT_ID : 0);
    bytes.set(name, 4);
    return [this.#reply(Reply.metaContext, bytes), this.#reply(Reply.ack)];
  }

  #transmit(facts: ExportFacts): NegotiationEffect {
    this.#state = 'transmission';
    const blockStatus = this.#meta !== undefined && this.#meta.exportName === facts.name;
    return {
      type: 'transmit',
      agreement: { exportFacts: facts, structuredReplies: this.#structuredReplies, blockStatus },
    };
  }

  #drop(reason: string): NegotiationEffect[] {
    this.#state = 'closed';
    return [{ type: 'drop', reason }];
  }

  #transmissionFlags(facts: ExportFacts): number {
    return facts.transmissionFlags | (this.#structuredReplies ? TransmissionFlag.sendDf : 0);
  }

  #exportInfo(facts: ExportFacts): Uint8Array {
    const bytes = new Uint8Array(10);
    writeU64(bytes, 0, facts.sizeBytes);
    writeU16(bytes, 8, this.#transmissionFlags(facts));
    return bytes;
  }

  #infoReply(type: number, payload: Uint8Array): NegotiationEffect {
    const bytes = new Uint8Array(2 + payload.length);
    writeU16(bytes, 0, type);
    bytes.set(payload, 2);
    return this.#reply(Reply.info, bytes);
  }

  #reply(reply: number, data: Uint8Array = new Uint8Array(0)): NegotiationEffect {
    return { type: 'send', bytes: encodeOptionReply(this.#option, reply, data) };
  }

  #error(reply: number, text: string): NegotiationEffect {
    return this.#reply(reply, encodeText(text));
  }

  #unsupported(): NegotiationEffect[] {
    return [this.#error(Reply.errUnsup, `option ${this.#option} is not supported`)];
  }
}

/** For messages: a stranger's name may be 4096 bytes long. */
function quote(name: string): string {
  return JSON.stringify(name.length > 64 ? `${name.slice(0, 64)}…` : name);
}

function blockSizeInfo(facts: ExportFacts): Uint8Array {
  const bytes = new Uint8Array(12);
  writeU32(bytes, 0, facts.minimumBlockBytes);
  writeU32(bytes, 4, facts.preferredBlockBytes);
  writeU32(bytes, 8, facts.maximumPayloadBytes);
  return bytes;
}

/** Reads a length and that many bytes of text at `at`. The caller has made sure of the four bytes of the length. */
function parseText(data: Uint8Array, at: number, what: string): { text: string; end: number } | Malformed {
  const length = readU32(data, at);
  // Compared by subtraction: a sum with a length of the client's could exceed the integers of another language, and
  // did (CVE-2022-26496).
  if (length > data.length - at - 4) return new Malformed(Reply.errInvalid, `the ${what} is longer than the option`);
  if (length > MAX_STRING_BYTES)
    return new Malformed(Reply.errTooBig, `the ${what} is longer than ${MAX_STRING_BYTES} bytes`);
  const text = decodeText(data.subarray(at + 4, at + 4 + length));
  if (text === undefined) return new Malformed(Reply.errInvalid, `the ${what} is not UTF-8 without NUL`);
  return { text, end: at + 4 + length };
}

/** "`NBD_OPT_INFO` (6) and `NBD_OPT_GO` (7)" */
function parseInfoRequest(data: Uint8Array): InfoRequest | Malformed {
  if (data.length < 6) return new Malformed(Reply.errInvalid, 'the option is too short');
  const name = parseText(data, 0, 'export name');
  if (name instanceof Malformed) return name;
  const left = data.length - name.end;
  if (left < 2 || left !== 2 + 2 * readU16(data, name.end))
    return new Malformed(
      Reply.errInvalid,
      'the number of information requests does not match the length of the option',
    );
  const requests: number[] = [];
  for (let at = name.end + 2; at < data.length; at += 2) requests.push(readU16(data, at));
  return { name: name.text, requests };
}

/** "`NBD_OPT_LIST_META_CONTEXT` (9)" */
function parseMetaRequest(data: Uint8Array): MetaRequest | Malformed {
  if (data.length < 8) return new Malformed(Reply.errInvalid, 'the option is too short');
  const name = parseText(data, 0, 'export name');
  if (name instanceof Malformed) return name;
  if (data.length - name.end < 4) return new Malformed(Reply.errInvalid, 'the option is too short');
  const count = readU32(data, name.end);
  if (count > MAX_META_QUERIES) return new Malformed(Reply.errTooBig, `at most ${MAX_META_QUERIES} queries`);
  const queries: string[] = [];
  let at = name.end + 4;
  for (let index = 0; index < count; index += 1) {
    if (data.length - at < 4) return new Malformed(Reply.errInvalid, 'the option is shorter than its queries');
    const query = parseText(data, at, 'query');
    if (query instanceof Malformed) return query;
    queries.push(query.text);
    at = query.end;
  }
  if (at !== data.length) return new Malformed(Reply.errInvalid, 'the option is longer than its queries');
  return { name: name.text, queries };
}
