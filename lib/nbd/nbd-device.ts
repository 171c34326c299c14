/**
 * An NBD client: a server's export as a BlockDevice.
 *
 * Source: the NBD protocol document, sections "Transmission", "Request message", "Terminating the transmission phase",
 * "Size constraints".
 *
 * Invariants:
 * - Requests in flight are bounded in number and bytes; those beyond wait in order, and their number is bounded too.
 * - Requests longer than the server takes are cut; one that was cut settles when all of its pieces have.
 * - Once the connection is gone every request fails with ERR_HOLDFAST_NBD_DISCONNECTED: what became of those in flight
 *   is not known. There is no reconnecting here: that would have to know what the server lost.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import type { Environment } from '../base/environment.ts';
import { HoldfastError, type HoldfastErrorCode, throwIfAborted } from '../base/errors.ts';
import { type Address, type Connection, type ConnectionHandler, formatAddress } from '../base/network.ts';
import { BaseDevice } from '../storage/base-device.ts';
import type { BlockDevice, Geometry, IoOptions, WriteOptions, WriteZeroesOptions } from '../storage/block-device.ts';
import { UnalignedDevice } from '../storage/unaligned.ts';
import { ByteQueue } from './byte-queue.ts';
import { type ClientAgreement, ClientNegotiation } from './client-negotiation.ts';
import { type AwaitedReply, ReplyReader } from './reply-reader.ts';
import {
  Command,
  CommandFlag,
  DEFAULT_MAX_PAYLOAD_BYTES,
  Errno,
  encodeOption,
  encodeRequest,
  encodeText,
  MAX_STRING_BYTES,
  Option,
  REQUEST_HEADER_BYTES,
  TransmissionFlag,
} from './wire.ts';

/** Which export, and the limits of the client. */
export interface ConnectNbdOptions {
  readonly environment: Environment;
  /** Default: the server's default export. */
  readonly exportName?: string;
  /** Refuse changes, whatever the export allows. */
  readonly readOnly?: boolean;
  /** Default true. Without them a read that fails midway costs the connection. */
  readonly structuredReplies?: boolean;
  /** For connecting and the handshake together, default 10 000. */
  readonly timeoutMs?: number;
  /** Cancels connecting and the handshake. */
  readonly signal?: AbortSignal;
  /** Default 64. */
  readonly maxRequestsInFlight?: number;
  /** Default 64 MiB; a single request may be longer. */
  readonly maxBytesInFlight?: number;
  /** Requests that may wait for those in flight, default 4096; beyond: ERR_HOLDFAST_QUEUE_FULL. */
  readonly maxWaiting?: number;
}

interface LinkLimits {
  readonly maxRequestsInFlight: number;
  readonly maxBytesInFlight: number;
  readonly maxWaiting: number;
}

const defaultLimits: LinkLimits = {
  maxRequestsInFlight: 64,
  maxBytesInFlight: 2 * DEFAULT_MAX_PAYLOAD_BYTES,
  maxWaiting: 4096,
};
const DEFAULT_TIMEOUT_MS = 10_000;
const CLOSE_TIMEOUT_MS = 5_000;
const LARGEST_OPTIMAL_BYTES = 1024 * 1024;
const ZEROES_BYTES = 256 * 1024;

/**
 * Connects to an NBD server.
 *
 * @throws HoldfastError ERR_HOLDFAST_CONNECT_FAILED, ERR_HOLDFAST_TIMEOUT, ERR_HOLDFAST_ABORTED;
 *   ERR_HOLDFAST_NBD_REFUSED if the server does not give the export; ERR_HOLDFAST_NBD_PROTOCOL if it does not keep to
 *   the protocol; ERR_HOLDFAST_NBD_DISCONNECTED if it goes away during the handshake.
 */
export async function connectNbd(address: Address, options: ConnectNbdOptions): Promise<BlockDevice> {
  const { environment, exportName = '', timeoutMs = DEFAULT_TIMEOUT_MS, signal } = options;
  if (encodeText(exportName).length > MAX_STRING_BYTES || exportName.includes('\0'))
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `the export name is no name; use at most ${MAX_STRING_BYTES} bytes without NUL`,
    );
  const limits = checkedLimits(options);
  const { clock, network } = environment;
  const beganMs = clock.nowMs();
  const connection = await network.connect(address, { timeoutMs, ...(signal === undefined ? {} : { signal }) });
  const name = `${formatAddress(address)}/${exportName}`;
  const link = new Link(connection, clock, limits, name);
  const agreement = await link.negotiate(
    new ClientNegotiation({ exportName, structuredReplies: options.structuredReplies ?? true }),
    timeoutMs - (clock.nowMs() - beganMs),
    signal,
  );
  const device = new NbdDevice(link, agreement, name, options.readOnly ?? false);
  return agreement.minimumBlockBytes > 1 ? new UnalignedDevice(device) : device;
}

function checkedLimits(options: ConnectNbdOptions): LinkLimits {
  const limits: LinkLimits = {
    maxRequestsInFlight: options.maxRequestsInFlight ?? defaultLimits.maxRequestsInFlight,
    maxBytesInFlight: options.maxBytesInFlight ?? defaultLimits.maxBytesInFlight,
    maxWaiting: options.maxWaiting ?? defaultLimits.maxWaiting,
  };
  for (const [name, value] of Object.entries(limits))
    if (!Number.isSafeInteger(value) || value < 1)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${name} must be a whole number above 0`);
  return limits;
}

/** Waits for all of them, then fails with the first failure: a caller's buffer is free only then. */
async function all(parts: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(parts)) if (result.status === 'rejected') throw result.reason;
}

class NbdDevice extends BaseDevice {
  readonly kind = 'nbd';
  readonly geometry: Geometry;
  readonly #link: Link;
  readonly #flags: number;
  /** The longest request, a whole number of the server's blocks. */
  readonly #pieceBytes: number;

  constructor(link: Link, agreement: ClientAgreement, name: string, readOnly: boolean) {
    super(name, readOnly || (agreement.transmissionFlags & TransmissionFlag.readOnly) !== 0);
    const { sizeBytes, minimumBlockBytes, preferredBlockBytes, maximumPayloadBytes } = agreement;
    this.#link = link;
    this.#flags = agreement.transmissionFlags;
    const longest = Math.min(maximumPayloadBytes, DEFAULT_MAX_PAYLOAD_BYTES);
    this.#pieceBytes = longest - (longest % Math.min(preferredBlockBytes, longest));
    const physicalBlockBytes = Math.min(preferredBlockBytes, this.#pieceBytes);
    this.geometry = {
      // "the client would be unable to access the final few bytes of the export"
      sizeBytes: sizeBytes - (sizeBytes % minimumBlockBytes),
      logicalBlockBytes: minimumBlockBytes,
      physicalBlockBytes,
      optimalIoBytes: Math.max(physicalBlockBytes, Math.min(this.#pieceBytes, LARGEST_OPTIMAL_BYTES)),
      rotational: this.#has(TransmissionFlag.rotational),
      discard: this.#has(TransmissionFlag.sendTrim),
      writeZeroes: this.#has(TransmissionFlag.sendWriteZeroes),
      volatileCache: this.#has(TransmissionFlag.sendFlush),
    };
  }

  #has(flag: number): boolean {
    return (this.#flags & flag) !== 0;
  }

  protected performRead(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Promise<void> {
    return this.#inPieces(offset, buffer.length, (at, start, length) =>
      this.#link.request(Command.read, 0, at, length, slice(buffer, start, length), options?.signal),
    );
  }

  protected async performWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    const fua = options?.fua === true;
    const flags = fua && this.#has(TransmissionFlag.sendFua) ? CommandFlag.fua : 0;
    await this.#inPieces(offset, buffer.length, (at, start, length) =>
      this.#link.request(Command.write, flags, at, length, slice(buffer, start, length), options?.signal),
    );
    if (fua && flags === 0) await this.performFlush();
  }

  protected async performFlush(options?: IoOptions): Promise<void> {
    // A server without the flag has no cache that could lose anything.
    if (!this.#has(TransmissionFlag.sendFlush)) return;
    await this.#link.request(Command.flush, 0, 0, 0, undefined, options?.signal);
  }

  protected async performDiscard(offset: number, length: number, options: IoOptions | undefined): Promise<void> {
    if (!this.#has(TransmissionFlag.sendTrim)) return;
    await this.#inPieces(offset, length, (at, _start, count) =>
      this.#link.request(Command.trim, 0, at, count, undefined, options?.signal),
    );
  }

  protected async performWriteZeroes(
    offset: number,
    length: number,
    options: WriteZeroesOptions | undefined,
  ): Promise<void> {
    const fua = options?.fua === true;
    const fuaFlag = fua && this.#has(TransmissionFlag.sendFua) ? CommandFlag.fua : 0;
    const signal = options?.signal;
    if (this.#has(TransmissionFlag.sendWriteZeroes)) {
      const flags = fuaFlag | (options?.mayUnmap === false ? CommandFlag.noHole : 0);
      await this.#inPieces(offset, length, (at, _start, count) =>
        this.#link.request(Command.writeZeroes, flags, at, count, undefined, signal),
      );
    } else {
      const zeroes = new Uint8Array(Math.min(length, Math.min(ZEROES_BYTES, this.#pieceBytes)));
      for (let done = 0; done < length; done += zeroes.length) {
        const count = Math.min(zeroes.length, length - done);
        await this.#link.request(Command.write, fuaFlag, offset + done, count, slice(zeroes, 0, count), signal);
      }
    }
    if (fua && fuaFlag === 0) await this.performFlush();
  }

  protected performClose(): Promise<void> {
    return this.#link.close();
  }

  #inPieces(
    offset: number,
    length: number,
    send: (at: number, start: number, length: number) => Promise<void>,
  ): Promise<void> {
    if (length <= this.#pieceBytes) return send(offset, 0, length);
    return this.#inSeveralPieces(offset, length, send);
  }

  /** A few at a time: a trim of a whole disk is many pieces. */
  async #inSeveralPieces(
    offset: number,
    length: number,
    send: (at: number, start: number, length: number) => Promise<void>,
  ): Promise<void> {
    const windowPieces = 8;
    for (let done = 0; done < length; ) {
      const pieces: Promise<void>[] = [];
      for (let count = 0; count < windowPieces && done < length; count += 1) {
        const pieceLength = Math.min(this.#pieceBytes, length - done);
        pieces.push(send(offset + done, done, pieceLength));
        done += pieceLength;
      }
      await all(pieces);
    }
  }
}

function slice(buffer: Uint8Array, start: number, length: number): Uint8Array {
  return start === 0 && length === buffer.length ? buffer : buffer.subarray(start, start + length);
}

class Pending implements AwaitedReply {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  readonly buffer: Uint8Array | undefined;
  readonly parts: { start: number; end: number }[] = [];
  readonly resolve: () => void;
  readonly reject: (error: HoldfastError) => void;
  readonly signal: AbortSignal | undefined;
  onAbort: (() => void) | undefined = undefined;
  errno = 0;
  errorText = '';
  slot = 0;

  constructor(
    request: Pick<Pending, 'command' | 'flags' | 'offset' | 'length' | 'buffer' | 'signal'>,
    resolve: () => void,
    reject: (error: HoldfastError) => void,
  ) {
    this.command = request.command;
    this.flags = request.flags;
    this.offset = request.offset;
    this.length = request.length;
    this.buffer = request.buffer;
    this.signal = request.signal;
    this.resolve = resolve;
    this.reject = reject;
  }
}

/** One connection to a server: requests out, replies in. */
class Link implements ConnectionHandler {
  readonly #connection: Connection;
  readonly #clock: Clock;
  readonly #limits: LinkLimits;
  readonly #name: string;
  /** Until the export is agreed on. */
  #negotiation: ClientNegotiation | undefined;
  #negotiated: ((outcome: ClientAgreement | HoldfastError) => void) | undefined;
  readonly #queue = new ByteQueue();
  #reader: ReplyReader | undefined;
  /** By cookie: the low half is the place here, the high half the place's turn. */
  readonly #slots: (Pending | undefined)[] = [];
  readonly #turns: number[] = [];
  readonly #freeSlots: number[] = [];
  #inFlight = 0;
  #bytesInFlight = 0;
  #waiting: Pending[] = [];
  /** Begun, and on the wire after this turn of the event loop. */
  #out: Pending[] = [];
  #flushScheduled = false;
  /** Why the connection is of no more use. */
  #broken: HoldfastError | undefined;
  #closed = false;
  #onClosed: (() => void) | undefined;
  readonly #flush = (): void => {
    this.#flushScheduled = false;
    const out = this.#out;
    this.#out = [];
    const chunks: Uint8Array[] = [];
    for (const pending of out) {
      // A header whose payload does not follow would make the server take what comes next for it.
      if (isGone(pending)) this.#finish(pending);
      else chunks.push(...this.#encode(pending));
    }
    // What write answers need not be looked at: what is queued is bounded by the requests in flight.
    if (this.#broken === undefined && chunks.length > 0) this.#connection.write(chunks);
  };

  constructor(connection: Connection, clock: Clock, limits: LinkLimits, name: string) {
    this.#connection = connection;
    this.#clock = clock;
    this.#limits = limits;
    this.#name = name;
  }

  async negotiate(
    negotiation: ClientNegotiation,
    timeoutMs: number,
    signal: AbortSignal | undefined,
  ): Promise<ClientAgreement> {
    let timer: TimerHandle | undefined;
    let onAbort: (() => void) | undefined;
    const outcome = await new Promise<ClientAgreement | HoldfastError>((resolve) => {
      this.#negotiation = negotiation;
      this.#negotiated = resolve;
      const late = `${this.#name} did not finish the NBD handshake in time; check that it is an NBD server`;
      timer = this.#clock.setTimer(Math.max(0, timeoutMs), () => this.#break(nbdError('ERR_HOLDFAST_TIMEOUT', late)));
      onAbort = () => this.#break(nbdError('ERR_HOLDFAST_ABORTED', `connecting to ${this.#name} was cancelled`));
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#connection.start(this);
      if (signal?.aborted === true) onAbort();
    });
    timer?.cancel();
    if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort);
    this.#negotiation = undefined;
    this.#negotiated = undefined;
    if (outcome instanceof HoldfastError) throw outcome;
    return outcome;
  }

  request(
    command: number,
    flags: number,
    offset: number,
    length: number,
    buffer: Uint8Array | undefined,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      throwIfAborted(signal, `a request to ${this.#name}`);
      if (this.#broken !== undefined) throw this.#broken;
      const pending = new Pending({ command, flags, offset, length, buffer, signal }, resolve, reject);
      if (this.#waiting.length === 0 && this.#hasRoom(pending)) this.#start(pending);
      else this.#wait(pending);
    });
  }

  /** Nothing is in flight any more: says goodbye. */
  async close(): Promise<void> {
    if (this.#closed) return;
    const closed = new Promise<void>((resolve) => {
      this.#onClosed = resolve;
    });
    if (this.#broken === undefined) {
      const bytes = new Uint8Array(REQUEST_HEADER_BYTES);
      encodeRequest(bytes, 0, { ...NO_RANGE, command: Command.disconnect, cookieHigh: 0, cookieLow: 0 });
      this.#connection.write([bytes]);
      this.#connection.end();
      this.#broken = nbdError('ERR_HOLDFAST_CLOSED', `${this.#name} is closed`);
    }
    const timer = this.#clock.setTimer(CLOSE_TIMEOUT_MS, () => this.#connection.destroy());
    await closed;
    timer.cancel();
  }

  onData(chunk: Uint8Array): void {
    if (this.#broken !== undefined) return;
    if (this.#reader === undefined) {
      this.#queue.push(chunk);
      this.#negotiateFurther();
    } else this.#read(chunk);
  }

  onDrain(): void {}

  onClose(error: Error | undefined): void {
    this.#closed = true;
    const cause = error === undefined ? {} : { cause: error };
    this.#break(
      new HoldfastError(
        'ERR_HOLDFAST_NBD_DISCONNECTED',
        `the NBD server ${this.#name} went away; what became of requests in flight is not known, connect again`,
        cause,
      ),
    );
    this.#onClosed?.();
  }

  #negotiateFurther(): void {
    const negotiation = this.#negotiation!;
    for (let count = negotiation.wanted(); count > 0 && this.#queue.length >= count; count = negotiation.wanted()) {
      const at = this.#queue.take(count);
      for (const effect of negotiation.step(this.#queue.taken.subarray(at, at + count))) {
        if (effect.type === 'send') this.#connection.write([effect.bytes]);
        else if (effect.type === 'agreed') this.#agree(effect.agreement);
        else this.#fail(effect.error, effect.polite);
      }
    }
  }

  #agree(agreement: ClientAgreement): void {
    this.#reader = new ReplyReader(agreement.structuredReplies, {
      find: (high, low) => (this.#turns[low] === high ? this.#slots[low] : undefined),
      finish: (reply) => this.#finish(reply as Pending),
    });
    this.#negotiated?.(agreement);
    // A server has nothing to say before it is asked: what has come already is judged by the reader.
    if (this.#queue.length === 0) return;
    const at = this.#queue.take(this.#queue.length);
    this.#read(this.#queue.taken.subarray(at));
  }

  #fail(error: HoldfastError, polite: boolean): void {
    if (!polite) {
      this.#break(error);
      return;
    }
    this.#connection.write([encodeOption(Option.abort, new Uint8Array(0))]);
    this.#connection.end();
    this.#broken = error;
    this.#negotiated?.(error);
  }

  #read(chunk: Uint8Array): void {
    const violation = this.#reader!.read(chunk);
    if (violation === undefined) return;
    const message = `the NBD server ${this.#name} does not keep to the protocol: ${violation}`;
    const cause = nbdError('ERR_HOLDFAST_NBD_PROTOCOL', message);
    this.#break(new HoldfastError('ERR_HOLDFAST_NBD_DISCONNECTED', `${message}; the connection was ended`, { cause }));
  }

  #hasRoom(pending: Pending): boolean {
    if (this.#inFlight === 0) return true;
    const { maxRequestsInFlight, maxBytesInFlight } = this.#limits;
    return this.#inFlight < maxRequestsInFlight && this.#bytesInFlight + payloadOf(pending) <= maxBytesInFlight;
  }

  #start(pending: Pending): void {
    const slot = this.#freeSlots.pop() ?? this.#slots.length;
    const turn = ((this.#turns[slot] ?? 0) + 1) >>> 0;
    this.#slots[slot] = pending;
    this.#turns[slot] = turn;
    pending.slot = slot;
    this.#inFlight += 1;
    this.#bytesInFlight += payloadOf(pending);
    this.#out.push(pending);
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    queueMicrotask(this.#flush);
  }

  #encode({ flags, command, offset, length, buffer, slot }: Pending): Uint8Array[] {
    const header = new Uint8Array(REQUEST_HEADER_BYTES);
    encodeRequest(header, 0, {
      flags,
      command,
      offset,
      length,
      cookieHigh: this.#turns[slot]!,
      cookieLow: slot,
    });
    return command === Command.write ? [header, buffer!] : [header];
  }

  #wait(pending: Pending): void {
    if (this.#waiting.length >= this.#limits.maxWaiting)
      throw nbdError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${this.#limits.maxWaiting} requests wait for ${this.#name} already; send less at once, or raise maxWaiting`,
      );
    this.#waiting.push(pending);
    if (pending.signal === undefined) return;
    pending.onAbort = () => {
      this.#waiting = this.#waiting.filter((other) => other !== pending);
      pending.reject(nbdError('ERR_HOLDFAST_ABORTED', `a request to ${this.#name} was cancelled`));
      this.#startWaiting();
    };
    pending.signal.addEventListener('abort', pending.onAbort, { once: true });
  }

  #finish(pending: Pending): void {
    this.#slots[pending.slot] = undefined;
    this.#freeSlots.push(pending.slot);
    this.#inFlight -= 1;
    this.#bytesInFlight -= payloadOf(pending);
    if (isGone(pending)) pending.reject(bufferGone(this.#name, pending));
    else if (pending.errno === 0) pending.resolve();
    else pending.reject(errorOf(this.#name, pending));
    this.#startWaiting();
  }

  #startWaiting(): void {
    while (this.#waiting.length > 0 && this.#hasRoom(this.#waiting[0]!)) {
      const pending = this.#waiting.shift()!;
      if (pending.onAbort !== undefined) pending.signal!.removeEventListener('abort', pending.onAbort);
      this.#start(pending);
    }
  }

  #break(error: HoldfastError): void {
    if (this.#broken === undefined) {
      this.#broken = error;
      this.#connection.destroy();
    }
    const lost = [...this.#slots.filter((pending) => pending !== undefined), ...this.#waiting];
    this.#slots.length = 0;
    this.#waiting = [];
    this.#out = [];
    for (const pending of lost) {
      if (pending.onAbort !== undefined) pending.signal!.removeEventListener('abort', pending.onAbort);
      pending.reject(this.#broken);
    }
    this.#negotiated?.(this.#broken);
  }
}

const NO_RANGE = { flags: 0, offset: 0, length: 0 } as const;

function payloadOf(pending: Pending): number {
  return pending.buffer === undefined ? 0 : pending.length;
}

/** The caller's buffer was transferred away, or resized. */
function isGone(pending: Pending): boolean {
  return pending.buffer !== undefined && pending.buffer.length !== pending.length;
}

function bufferGone(name: string, { length, offset }: Pending): HoldfastError {
  return nbdError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `${name}: the buffer of a request of ${length} bytes at ${offset} was transferred away or resized meanwhile; ` +
      'keep it as it is until the promise has settled',
  );
}

function nbdError(code: HoldfastErrorCode, message: string): HoldfastError {
  return new HoldfastError(code, message);
}

/** "Error values", as our own errors. */
function errorOf(name: string, pending: Pending): HoldfastError {
  const errno = Object.entries(Errno).find(([, value]) => value === pending.errno)?.[0] ?? 'EINVAL';
  const codes: Readonly<Record<string, HoldfastErrorCode>> = {
    EPERM: 'ERR_HOLDFAST_READ_ONLY',
    ENOSPC: 'ERR_HOLDFAST_NO_SPACE',
    ENOTSUP: 'ERR_HOLDFAST_NOT_SUPPORTED',
  };
  const said = pending.errorText === '' ? '' : `: ${pending.errorText}`;
  const message = `the NBD server ${name} failed ${pending.length} bytes at ${pending.offset} with ${errno}${said}`;
  return new HoldfastError(codes[errno] ?? 'ERR_HOLDFAST_IO', message, { errno });
}
