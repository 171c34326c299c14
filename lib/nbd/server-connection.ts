/**
 * One client of an NBD server: drives the handshake (negotiation.ts) and then carries requests between the connection
 * and the export's device.
 *
 * Source: the NBD protocol document, sections "Transmission", "Ordering of messages and writes", "Terminating the
 * transmission phase", "Request types".
 *
 * Invariants:
 * - The device is touched only after an export was chosen, and only with requests that `refuse` let through.
 * - Requests in flight are bounded in number and bytes. When a bound is reached no further request is read, and the
 *   connection is paused, until something completes.
 * - A payload's memory goes back only when the device has answered and the reply has left.
 * - A client that neither takes its replies nor finishes its request for `stalledMs` is dropped.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import type { Connection, ConnectionHandler } from '../base/network.ts';
import type { BlockDevice, WriteZeroesOptions } from '../storage/block-device.ts';
import { ByteQueue } from './byte-queue.ts';
import { isReadOnly, type MutableStats, type NbdExport } from './export.ts';
import {
  type Agreement,
  ALLOCATION_CONTEXT_ID,
  type NegotiationEffect,
  type ServerNegotiation,
} from './negotiation.ts';
import type { PayloadLease, PayloadPool } from './payload-pool.ts';
import { ReplyWriter } from './reply-writer.ts';
import { errnoOf, isAbusiveWrite, type Refusal, type RequestRules, refuse } from './requests.ts';
import {
  CHUNK_HEADER_BYTES,
  Chunk,
  Command,
  CommandFlag,
  DATA_CHUNK_HEADER_BYTES,
  decodeRequest,
  Errno,
  encodeBlockStatusChunk,
  encodeChunkHeader,
  encodeDataChunkHeader,
  encodeErrorChunk,
  encodeSimpleReply,
  REQUEST_HEADER_BYTES,
  type RequestHeader,
  SIMPLE_REPLY_BYTES,
} from './wire.ts';

export interface ConnectionLimits {
  readonly handshakeTimeoutMs: number;
  readonly stalledMs: number;
  readonly maxRequests: number;
  readonly maxBytes: number;
}

/** What a connection needs of its server. */
export interface ConnectionHost {
  readonly clock: Clock;
  readonly limits: ConnectionLimits;
  readonly pool: PayloadPool;
  find(name: string): { readonly nbdExport: NbdExport; readonly stats: MutableStats } | undefined;
  onClosed(connection: ServerConnection, dropped: string | undefined): void;
}

type Phase =
  | 'negotiating'
  /** A request's header is awaited. */
  | 'header'
  /** A request waits for room. */
  | 'admission'
  /** A write's payload is coming in. */
  | 'payload'
  /** The payload of a refused write is coming in. */
  | 'discard'
  /** Nothing more is read; what is in flight is answered, then the connection ends. */
  | 'draining'
  | 'closed';

interface Transmission {
  readonly device: BlockDevice;
  readonly rules: RequestRules;
  readonly stats: MutableStats;
  readonly exportName: string;
}

/** The payload is in a lease of this server's: nobody else can change it. */
const OWN_PAYLOAD = { stable: true } as const;
const OWN_PAYLOAD_FUA = { stable: true, fua: true } as const;
const serverClosing: Refusal = { errno: Errno.ESHUTDOWN, message: 'the server is shutting down' };

/** A request on its way through the device. Records are used again: nothing is allocated for a request but its promise. */
class Operation implements RequestHeader {
  flags = 0;
  command = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offset = 0;
  length = 0;
  lease: PayloadLease | undefined = undefined;
  readonly done: () => void;
  readonly failed: (error: unknown) => void;

  constructor(connection: { complete(operation: Operation, error: unknown): void }) {
    this.done = () => connection.complete(this, undefined);
    this.failed = (error) => connection.complete(this, error ?? new Error('the device failed without saying why'));
  }
}

export class ServerConnection implements ConnectionHandler {
  readonly #host: ConnectionHost;
  readonly #connection: Connection;
  readonly #negotiation: ServerNegotiation;
  readonly #queue = new ByteQueue();
  readonly #writer: ReplyWriter;
  #phase: Phase = 'negotiating';
  #transmission: Transmission | undefined;
  /** The request that is being read. */
  #current: Operation;
  /** Bytes of the payload that have come, or are still to be thrown away. */
  #payloadBytes = 0;
  #refusal: Refusal | undefined;
  #inFlight = 0;
  #inFlightBytes = 0;
  #idle: Operation[] = [];
  #paused = false;
  #outputBlocked = false;
  #waitsForPool = false;
  #shuttingDown = false;
  #ended = false;
  #dropped: string | undefined;
  #deadline: TimerHandle | undefined;
  /** Counts up whenever the client takes or sends something: the watchdog compares. */
  #progress = 0;
  #progressSeen = 0;
  #bufferedSeen = 0;
  readonly #retry = (): void => {
    this.#waitsForPool = false;
    this.#advance();
  };

  constructor(host: ConnectionHost, connection: Connection, negotiation: ServerNegotiation) {
    this.#host = host;
    this.#connection = connection;
    this.#negotiation = negotiation;
    this.#current = new Operation(this);
    this.#writer = new ReplyWriter(connection, {
      onBlocked: () => {
        this.#outputBlocked = true;
      },
      onReclaimed: () => {
        if (this.#phase === 'admission') this.#advance();
      },
    });
  }

  /** The export's name, once one was chosen. */
  get exportName(): string | undefined {
    return this.#transmission?.exportName;
  }

  start(): void {
    const { clock, limits } = this.#host;
    this.#deadline = clock.setTimer(limits.handshakeTimeoutMs, () => {
      this.#perform(this.#negotiation.step({ type: 'deadline' }));
    });
    this.#connection.start(this);
    this.#writer.bytes(this.#negotiation.greeting());
  }

  /** Answers what is in flight, refuses what still comes, then ends the connection. */
  shutdown(): void {
    this.#shuttingDown = true;
    if (this.#phase === 'negotiating') this.#drop('the server is shutting down');
    else this.#endIfIdle();
  }

  destroy(reason: string): void {
    this.#drop(reason);
  }

  onData(chunk: Uint8Array): void {
    this.#progress += 1;
    if (this.#phase === 'draining' || this.#phase === 'closed') return;
    this.#queue.push(chunk);
    this.#advance();
  }

  onDrain(): void {
    this.#progress += 1;
    this.#outputBlocked = false;
    this.#writer.reclaim();
    this.#advance();
  }

  onClose(): void {
    if (this.#transmission !== undefined) this.#transmission.stats.connections -= 1;
    this.#phase = 'closed';
    this.#deadline?.cancel();
    this.#host.pool.forget(this.#retry);
    this.#queue.clear();
    // A payload that was still coming in belongs to no device.
    if (this.#current.lease !== undefined) {
      this.#releaseLease(this.#current);
      this.#host.pool.finishRequest();
    }
    this.#writer.close();
    this.#host.onClosed(this, this.#dropped);
  }

  // Reading

  /** Goes on as far as what has come, and the bounds, allow. */
  #advance(): void {
    let more = true;
    while (more) {
      if (this.#outputBlocked) more = false;
      else if (this.#phase === 'negotiating') more = this.#negotiate();
      else if (this.#phase === 'header') more = this.#readHeader();
      else if (this.#phase === 'admission') more = this.#admit();
      else if (this.#phase === 'payload') more = this.#readPayload();
      else if (this.#phase === 'discard') more = this.#discardPayload();
      else more = false;
    }
    this.#setPaused(this.#outputBlocked || this.#phase === 'admission');
  }

  #setPaused(paused: boolean): void {
    if (paused === this.#paused || this.#phase === 'closed') return;
    this.#paused = paused;
    if (paused) this.#connection.pause();
    else this.#connection.resume();
  }

  #negotiate(): boolean {
    const wanted = this.#negotiation.wanted();
    if (wanted.kind === 'skip') {
      this.#payloadBytes += this.#queue.skip(wanted.count - this.#payloadBytes);
      if (this.#payloadBytes < wanted.count) return false;
      this.#payloadBytes = 0;
      this.#perform(this.#negotiation.step({ type: 'skipped' }));
      return true;
    }
    if (wanted.kind === 'nothing' || this.#queue.length < wanted.count) return false;
    const at = this.#queue.take(wanted.count);
    this.#perform(this.#negotiation.step({ type: 'bytes', bytes: this.#queue.taken.subarray(at, at + wanted.count) }));
    return true;
  }

  #perform(effects: readonly NegotiationEffect[]): void {
    for (const effect of effects) {
      if (effect.type === 'send') this.#writer.bytes(effect.bytes);
      else if (effect.type === 'transmit') this.#transmit(effect.agreement);
      else if (effect.type === 'end') this.#end();
      else this.#drop(effect.reason);
    }
    // At once, so that a flood of options meets a full connection and not our memory.
    if (effects.length > 0 && this.#phase !== 'closed') this.#writer.flush();
  }

  #transmit(agreement: Agreement): void {
    const { exportFacts } = agreement;
    const found = this.#host.find(exportFacts.name);
    if (found === undefined) {
      this.#drop('the export is gone');
      return;
    }
    const { nbdExport, stats } = found;
    this.#transmission = {
      device: nbdExport.device,
      exportName: exportFacts.name,
      stats,
      rules: {
        sizeBytes: exportFacts.sizeBytes,
        readOnly: isReadOnly(nbdExport),
        structuredReplies: agreement.structuredReplies,
        blockStatus: agreement.blockStatus,
        maximumPayloadBytes: exportFacts.maximumPayloadBytes,
        fastZeroes: nbdExport.device.geometry.writeZeroes,
      },
    };
    stats.connections += 1;
    this.#phase = 'header';
    this.#watch();
  }

  #readHeader(): boolean {
    if (this.#queue.length < REQUEST_HEADER_BYTES) return false;
    const { rules, stats } = this.#transmission!;
    const request = this.#current;
    const at = this.#queue.take(REQUEST_HEADER_BYTES);
    if (!decodeRequest(this.#queue.taken, at, request)) {
      this.#drop('the magic of a request is wrong');
      return false;
    }
    if (request.command === Command.disconnect) {
      this.#phase = 'draining';
      this.#endIfIdle();
      return false;
    }
    if (isAbusiveWrite(request, rules)) {
      this.#drop(`a write of ${request.length} bytes`);
      return false;
    }
    const refusal = this.#shuttingDown ? serverClosing : refuse(request, rules);
    if (refusal === undefined) {
      this.#phase = 'admission';
      return true;
    }
    stats.refused += 1;
    if (request.command !== Command.write) {
      this.#replyError(request, refusal.errno, refusal.message);
      return true;
    }
    this.#refusal = refusal;
    this.#payloadBytes = request.length;
    this.#phase = 'discard';
    return true;
  }

  /** Finds room for the request; false if it has to wait. */
  #admit(): boolean {
    const { limits, pool } = this.#host;
    const request = this.#current;
    if (this.#inFlight >= limits.maxRequests || this.#waitsForPool) return false;
    const carriesPayload = request.command === Command.read || request.command === Command.write;
    const payloadBytes = carriesPayload ? request.length : 0;
    const heldBytes = this.#inFlightBytes + this.#writer.sentBytes;
    if (payloadBytes > 0 && heldBytes + payloadBytes > limits.maxBytes) return false;
    request.lease = pool.lease(payloadBytes, this.#retry);
    if (request.lease === undefined) {
      this.#waitsForPool = true;
      return false;
    }
    this.#inFlightBytes += payloadBytes;
    if (request.command === Command.write) {
      this.#payloadBytes = 0;
      this.#phase = 'payload';
    } else {
      this.#phase = 'header';
      this.#dispatch();
    }
    return true;
  }

  #readPayload(): boolean {
    const request = this.#current;
    this.#payloadBytes += this.#queue.moveInto(request.lease!.bytes, this.#payloadBytes);
    if (this.#payloadBytes < request.length) return false;
    this.#phase = 'header';
    this.#dispatch();
    return true;
  }

  #discardPayload(): boolean {
    this.#payloadBytes -= this.#queue.skip(this.#payloadBytes);
    if (this.#payloadBytes > 0) return false;
    const { errno, message } = this.#refusal!;
    this.#phase = 'header';
    this.#replyError(this.#current, errno, message);
    this.#endIfIdle();
    return true;
  }

  // Serving

  /** Hands the current request to the device. */
  #dispatch(): void {
    const operation = this.#current;
    this.#current = this.#idle.pop() ?? new Operation(this);
    const { stats } = this.#transmission!;
    this.#inFlight += 1;
    stats.requestsInFlight += 1;
    if (operation.length === 0 && operation.command !== Command.flush) {
      // Zero-length requests succeed: there is nothing to ask a device for.
      this.complete(operation, undefined);
      return;
    }
    try {
      const started = this.#startOn(operation);
      if (started === undefined) this.complete(operation, undefined);
      else started.then(operation.done, operation.failed);
    } catch (error) {
      operation.failed(error);
    }
  }

  /** Undefined if the device has nothing to do. */
  #startOn(operation: Operation): Promise<void> | undefined {
    const { device } = this.#transmission!;
    const { offset, length, flags } = operation;
    const fua = (flags & CommandFlag.fua) !== 0;
    switch (operation.command) {
      case Command.read:
        return device.read(offset, operation.lease!.bytes);
      case Command.write:
        return device.write(offset, operation.lease!.bytes, fua ? OWN_PAYLOAD_FUA : OWN_PAYLOAD);
      case Command.flush:
        return device.flush();
      case Command.trim:
        return fua ? discardDurably(device, offset, length) : device.discard(offset, length);
      case Command.writeZeroes: {
        const options: WriteZeroesOptions = { fua, mayUnmap: (flags & CommandFlag.noHole) === 0 };
        return device.writeZeroes(offset, length, options);
      }
      default:
        // NBD_CMD_CACHE: there is no cache of ours to fill. NBD_CMD_BLOCK_STATUS: the device need not be asked.
        return undefined;
    }
  }

  /** The device has answered. */
  complete(operation: Operation, error: unknown): void {
    const { stats } = this.#transmission!;
    this.#inFlight -= 1;
    stats.requestsInFlight -= 1;
    if (error !== undefined) {
      stats.errors += 1;
      this.#replyError(operation, errnoOf(error), error instanceof Error ? error.message : 'the device failed');
    } else {
      count(stats, operation);
      this.#replySuccess(operation);
    }
    if (operation.lease !== undefined) this.#releaseLease(operation);
    this.#host.pool.finishRequest();
    if (this.#phase === 'closed') return;
    this.#idle.push(operation);
    if (this.#phase === 'admission') this.#advance();
    if (this.#inFlight === 0) this.#endIfIdle();
  }

  #releaseLease(operation: Operation): void {
    const lease = operation.lease!;
    operation.lease = undefined;
    this.#inFlightBytes -= lease.bytes.length;
    lease.release();
  }

  // Answering

  #replySuccess(operation: Operation): void {
    if (this.#phase === 'closed') return;
    const writer = this.#writer;
    const { structuredReplies } = this.#transmission!.rules;
    if (operation.command === Command.read && structuredReplies && operation.length > 0) {
      const at = writer.reserve(DATA_CHUNK_HEADER_BYTES);
      encodeDataChunkHeader(writer.slab, at, operation);
    } else if (operation.command === Command.read && structuredReplies) {
      writer.bytes(encodeNoneChunk(operation));
      return;
    } else if (operation.command === Command.blockStatus) {
      // One allocated extent: always a safe answer, and the only one without extent information.
      writer.bytes(encodeBlockStatusChunk(operation, ALLOCATION_CONTEXT_ID, operation.length, 0));
      return;
    } else {
      const at = writer.reserve(SIMPLE_REPLY_BYTES);
      encodeSimpleReply(writer.slab, at, operation, 0);
    }
    if (operation.command !== Command.read || operation.length === 0) return;
    const lease = operation.lease!;
    operation.lease = undefined;
    this.#inFlightBytes -= operation.length;
    writer.payload(lease);
  }

  #replyError(request: RequestHeader, errno: number, message: string): void {
    if (this.#phase === 'closed') return;
    if (this.#transmission!.rules.structuredReplies) {
      this.#writer.bytes(encodeErrorChunk(request, errno, message));
      return;
    }
    const at = this.#writer.reserve(SIMPLE_REPLY_BYTES);
    encodeSimpleReply(this.#writer.slab, at, request, errno);
  }

  // Ending

  #endIfIdle(): void {
    if (this.#inFlight > 0) return;
    if (this.#phase === 'draining' || (this.#shuttingDown && this.#phase === 'header')) this.#end();
  }

  /** Sends what is queued, then closes. */
  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#phase = 'draining';
    this.#queue.clear();
    this.#writer.flush();
    this.#connection.end();
    this.#watch();
  }

  #drop(reason: string): void {
    if (this.#phase === 'closed' || this.#dropped !== undefined) return;
    this.#dropped = reason;
    this.#phase = 'draining';
    this.#queue.clear();
    this.#connection.destroy();
  }

  /** Looks from time to time whether a client that owes us something still moves. */
  #watch(): void {
    const { clock, limits } = this.#host;
    this.#deadline?.cancel();
    this.#deadline = clock.setTimer(limits.stalledMs, () => {
      const buffered = this.#connection.bufferedBytes;
      // Once ended, the client owes us its own end.
      const owes = buffered > 0 || this.#ended || this.#isMidRequest();
      const moved = this.#progress !== this.#progressSeen || buffered < this.#bufferedSeen;
      this.#progressSeen = this.#progress;
      this.#bufferedSeen = buffered;
      if (owes && !moved) this.#drop(`the client has not moved for ${limits.stalledMs} ms`);
      else this.#watch();
    });
  }

  #isMidRequest(): boolean {
    if (this.#paused) return false;
    return this.#phase === 'payload' || this.#phase === 'discard' || this.#queue.length > 0;
  }
}

function encodeNoneChunk(request: RequestHeader): Uint8Array {
  const bytes = new Uint8Array(CHUNK_HEADER_BYTES);
  encodeChunkHeader(bytes, 0, request, { type: Chunk.none, done: true, payloadBytes: 0 });
  return bytes;
}

async function discardDurably(device: BlockDevice, offset: number, length: number): Promise<void> {
  await device.discard(offset, length);
  await device.flush();
}

function count(stats: MutableStats, operation: Operation): void {
  switch (operation.command) {
    case Command.read:
      stats.reads += 1;
      stats.readBytes += operation.length;
      break;
    case Command.write:
      stats.writes += 1;
      stats.writtenBytes += operation.length;
      break;
    case Command.flush:
      stats.flushes += 1;
      break;
    case Command.trim:
      stats.trims += 1;
      break;
    case Command.writeZeroes:
      stats.zeroes += 1;
      break;
  }
}
