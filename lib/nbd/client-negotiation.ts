/**
 * The client's side of the NBD handshake, as a pure state machine: a table of states. It asks for structured replies,
 * then for the export by NBD_OPT_GO; a server that does not know NBD_OPT_GO is asked by NBD_OPT_EXPORT_NAME.
 *
 * Source: the NBD protocol document, sections "Newstyle negotiation", "Fixed newstyle negotiation", "Option types",
 * "Option reply types", "Size constraints".
 *
 * Invariants: what a server says is checked before it is used; at most `MAX_REPLY_DATA_BYTES` of it are held at a time;
 * `agreed` and `failed` are terminal.
 */
import { HoldfastError } from '../base/errors.ts';
import {
  DEFAULT_MAX_PAYLOAD_BYTES,
  encodeInfoRequest,
  encodeOption,
  encodeText,
  GREETING_BYTES,
  HandshakeFlag,
  Info,
  NBD_MAGIC_HIGH,
  NBD_MAGIC_LOW,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  OPTION_REPLY_HEADER_BYTES,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
  Option,
  Reply,
  readU16,
  readU32,
  readU64,
  TransmissionFlag,
  writeU32,
} from './wire.ts';

/** What the server agreed to. */
export interface ClientAgreement {
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
  readonly structuredReplies: boolean;
  readonly minimumBlockBytes: number;
  readonly preferredBlockBytes: number;
  readonly maximumPayloadBytes: number;
}

export interface ClientWishes {
  readonly exportName: string;
  readonly structuredReplies: boolean;
}

export type ClientNegotiationState =
  | 'greeting'
  | 'structured-header'
  | 'structured-data'
  | 'go-header'
  | 'go-data'
  | 'export-name'
  | 'agreed'
  | 'failed';

export type ClientNegotiationEffect =
  | { readonly type: 'send'; readonly bytes: Uint8Array }
  | { readonly type: 'agreed'; readonly agreement: ClientAgreement }
  /** `polite`: the server waits for us to end the session. */
  | { readonly type: 'failed'; readonly error: HoldfastError; readonly polite: boolean };

const MAX_REPLY_DATA_BYTES = 16 * 1024;
const MAX_REPLIES = 64;
/** "Size constraints": what holds when the server says nothing. */
const DEFAULT_BLOCKS = {
  minimumBlockBytes: 1,
  preferredBlockBytes: 4096,
  maximumPayloadBytes: DEFAULT_MAX_PAYLOAD_BYTES,
};
const MAX_MINIMUM_BLOCK_BYTES = 65_536;

interface Row {
  /** How many bytes the state needs. */
  readonly wants: () => number;
  readonly step: (bytes: Uint8Array) => ClientNegotiationEffect[];
}

const terminal: Row = { wants: () => 0, step: () => [] };

export class ClientNegotiation {
  #state: ClientNegotiationState = 'greeting';
  readonly #wishes: ClientWishes;
  #structuredReplies = false;
  #noZeroes = false;
  #replies = 0;
  #replyType = 0;
  #replyLength = 0;
  #sizeBytes: number | undefined;
  #transmissionFlags = 0;
  #blocks = DEFAULT_BLOCKS;

  constructor(wishes: ClientWishes) {
    this.#wishes = wishes;
  }

  get state(): ClientNegotiationState {
    return this.#state;
  }

  /** How many bytes `step` is to be given next; 0 when the negotiation is over. */
  wanted(): number {
    return this.#table[this.#state].wants();
  }

  step(bytes: Uint8Array): ClientNegotiationEffect[] {
    return this.#table[this.#state].step(bytes);
  }

  readonly #table: Record<ClientNegotiationState, Row> = {
    greeting: { wants: () => GREETING_BYTES, step: (bytes) => this.#onGreeting(bytes) },
    'structured-header': {
      wants: () => OPTION_REPLY_HEADER_BYTES,
      step: (bytes) => this.#onReplyHeader(bytes, Option.structuredReply),
    },
    'structured-data': { wants: () => this.#replyLength, step: () => this.#onStructuredReply() },
    'go-header': { wants: () => OPTION_REPLY_HEADER_BYTES, step: (bytes) => this.#onReplyHeader(bytes, Option.go) },
    'go-data': { wants: () => this.#replyLength, step: (bytes) => this.#onGoReply(bytes) },
    'export-name': { wants: () => (this.#noZeroes ? 10 : 134), step: (bytes) => this.#onExportName(bytes) },
    agreed: terminal,
    failed: terminal,
  };

  #onGreeting(bytes: Uint8Array): ClientNegotiationEffect[] {
    if (readU32(bytes, 0) !== NBD_MAGIC_HIGH || readU32(bytes, 4) !== NBD_MAGIC_LOW)
      return this.#violation('it is not an NBD server; check the address');
    if (readU32(bytes, 8) !== OPTION_MAGIC_HIGH || readU32(bytes, 12) !== OPTION_MAGIC_LOW)
      return this.#violation('it speaks the old style of NBD, without export names; use a newer server');
    const flags = readU16(bytes, 16);
    const fixedNewstyle = (flags & HandshakeFlag.fixedNewstyle) !== 0;
    this.#noZeroes = (flags & HandshakeFlag.noZeroes) !== 0;
    const answer = new Uint8Array(4);
    writeU32(answer, 0, flags & (HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes));
    const sent: ClientNegotiationEffect[] = [{ type: 'send', bytes: answer }];
    if (!fixedNewstyle) return [...sent, ...this.#askByName()];
    return [...sent, ...(this.#wishes.structuredReplies ? this.#askForStructuredReplies() : this.#askToGo())];
  }

  #askForStructuredReplies(): ClientNegotiationEffect[] {
    this.#state = 'structured-header';
    return [{ type: 'send', bytes: encodeOption(Option.structuredReply, new Uint8Array(0)) }];
  }

  #askToGo(): ClientNegotiationEffect[] {
    this.#state = 'go-header';
    const data = encodeInfoRequest(this.#wishes.exportName, [Info.blockSize]);
    return [{ type: 'send', bytes: encodeOption(Option.go, data) }];
  }

  #askByName(): ClientNegotiationEffect[] {
    this.#state = 'export-name';
    return [{ type: 'send', bytes: encodeOption(Option.exportName, encodeText(this.#wishes.exportName)) }];
  }

  #onReplyHeader(bytes: Uint8Array, option: number): ClientNegotiationEffect[] {
    if (readU32(bytes, 0) !== OPTION_REPLY_MAGIC_HIGH || readU32(bytes, 4) !== OPTION_REPLY_MAGIC_LOW)
      return this.#violation('the magic of an option reply is wrong');
    if (readU32(bytes, 8) !== option) return this.#violation('it answered an option that was not asked');
    this.#replies += 1;
    if (this.#replies > MAX_REPLIES) return this.#violation('it does not come to an end of its answers');
    this.#replyType = readU32(bytes, 12);
    this.#replyLength = readU32(bytes, 16);
    if (this.#replyLength > MAX_REPLY_DATA_BYTES)
      return this.#violation(`it announced an option reply of ${this.#replyLength} bytes`);
    this.#state = option === Option.go ? 'go-data' : 'structured-data';
    return this.#replyLength === 0 ? this.step(new Uint8Array(0)) : [];
  }

  #onStructuredReply(): ClientNegotiationEffect[] {
    if (this.#replyType === Reply.ack) this.#structuredReplies = true;
    else if (this.#replyType < Reply.errUnsup) return this.#violation('it answered NBD_OPT_STRUCTURED_REPLY oddly');
    // Any error means: no structured replies. Why is said again, if it matters, in answer to NBD_OPT_GO.
    return this.#askToGo();
  }

  #onGoReply(data: Uint8Array): ClientNegotiationEffect[] {
    if (this.#replyType === Reply.info) return this.#onInfo(data);
    if (this.#replyType === Reply.ack) {
      if (this.#sizeBytes === undefined) return this.#violation('it acknowledged an export without saying its size');
      return this.#agree(this.#sizeBytes);
    }
    if (this.#replyType === Reply.errUnsup) return this.#askByName();
    if (this.#replyType < Reply.errUnsup) return this.#violation('it answered NBD_OPT_GO oddly');
    return this.#refused(data);
  }

  #onInfo(data: Uint8Array): ClientNegotiationEffect[] {
    this.#state = 'go-header';
    const type = data.length >= 2 ? readU16(data, 0) : undefined;
    if (type === Info.export) {
      if (data.length !== 12) return this.#violation('its NBD_INFO_EXPORT has the wrong length');
      this.#sizeBytes = readU64(data, 2);
      this.#transmissionFlags = readU16(data, 10);
    } else if (type === Info.blockSize) {
      if (data.length !== 14) return this.#violation('its NBD_INFO_BLOCK_SIZE has the wrong length');
      this.#blocks = {
        minimumBlockBytes: readU32(data, 2),
        preferredBlockBytes: readU32(data, 6),
        maximumPayloadBytes: readU32(data, 10),
      };
    } else if (type === undefined) return this.#violation('an NBD_REP_INFO without a type');
    return [];
  }

  #onExportName(bytes: Uint8Array): ClientNegotiationEffect[] {
    this.#transmissionFlags = readU16(bytes, 8);
    return this.#agree(readU64(bytes, 0));
  }

  #agree(sizeBytes: number): ClientNegotiationEffect[] {
    const { minimumBlockBytes, preferredBlockBytes, maximumPayloadBytes } = this.#blocks;
    if (!Number.isSafeInteger(sizeBytes)) return this.#violation(`it says that the export has ${sizeBytes} bytes`);
    if ((this.#transmissionFlags & TransmissionFlag.hasFlags) === 0)
      return this.#violation('its transmission flags lack NBD_FLAG_HAS_FLAGS');
    const blocksMakeSense =
      isPowerOfTwo(minimumBlockBytes) &&
      isPowerOfTwo(preferredBlockBytes) &&
      minimumBlockBytes <= MAX_MINIMUM_BLOCK_BYTES &&
      preferredBlockBytes >= minimumBlockBytes &&
      maximumPayloadBytes >= preferredBlockBytes;
    if (!blocksMakeSense)
      return this.#violation(
        `its block sizes make no sense (${minimumBlockBytes}, ${preferredBlockBytes}, ${maximumPayloadBytes})`,
      );
    this.#state = 'agreed';
    const agreement: ClientAgreement = {
      sizeBytes,
      transmissionFlags: this.#transmissionFlags,
      structuredReplies: this.#structuredReplies,
      ...this.#blocks,
    };
    return [{ type: 'agreed', agreement }];
  }

  #refused(data: Uint8Array): ClientNegotiationEffect[] {
    this.#state = 'failed';
    const name = JSON.stringify(this.#wishes.exportName);
    const said = printable(data);
    const problems: Readonly<Record<number, string>> = {
      [Reply.errUnknown]: `it has no export ${name}; see \`nbdinfo --list\` for those it has`,
      [Reply.errTlsReqd]: `it wants TLS for the export ${name}, which this client does not speak; use a link of its own`,
      [Reply.errPolicy]: `its policy forbids the export ${name}; check its settings`,
      [Reply.errShutdown]: 'it is shutting down; try again later',
    };
    const problem = problems[this.#replyType] ?? `it refused the export ${name} (0x${this.#replyType.toString(16)})`;
    const message = `the NBD server refused: ${problem}${said === '' ? '' : ` (it says: ${said})`}`;
    return [{ type: 'failed', error: new HoldfastError('ERR_HOLDFAST_NBD_REFUSED', message), polite: true }];
  }

  #violation(what: string): ClientNegotiationEffect[] {
    this.#state = 'failed';
    const error = new HoldfastError(
      'ERR_HOLDFAST_NBD_PROTOCOL',
      `the NBD server does not keep to the protocol: ${what}`,
    );
    return [{ type: 'failed', error, polite: false }];
  }
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

/** A stranger's words, for a message: short, and without control characters. */
export function printable(bytes: Uint8Array): string {
  const text = new TextDecoder().decode(bytes.subarray(0, 200));
  return text.replaceAll(/\p{C}/gu, ' ').trim();
}
