/**
 * Follows the chain of records in a region, reading ahead: as fast as the unit gives its bytes if there is much, with
 * few bytes if there is little.
 *
 * A chunk is looked at as it was when it was read. What breaks off in it may have gone on since: then the next scan
 * finds it.
 */
import { COMMAND_BYTES_MAX, isOfChain, LINE_BYTES, type RegionRecord, type RingPosition } from './layout.ts';
import type { RegionAccess } from './one-sided.ts';
import { decodeRecordHeader, formatWord, type RawRecord, type RecordHeader, stepChain } from './records.ts';

const FIRST_CHUNK_BYTES = 64 * 1024;
const CHUNKS_AHEAD = 4;
/** Beyond what a writer has in flight. */
const WITNESS_BYTES = 8 * 1024 * 1024;

export interface ScanOptions {
  /** About as much as will be wanted: nothing is read ahead beyond it. */
  readonly expectedBytes?: number;
  /** There is as much, it seems: at full speed from the first byte on. */
  readonly isMuch?: boolean;
  /** Where the bytes go, from its start on. The scan ends where it ends, but not before the first record. */
  readonly into?: Uint8Array | undefined;
  readonly signal?: AbortSignal;
}

/**
 * Gives each record of the chain from the place on to `visit` until that answers false; `takenBytes` is what it takes
 * in the ring, with the wrap before it if there is one. Resolves with the place where it left off. One lap at most.
 */
export async function scanChain(
  access: RegionAccess,
  region: RegionRecord,
  from: RingPosition,
  visit: (record: RawRecord, after: RingPosition, takenBytes: number) => boolean,
  options: ScanOptions = {},
): Promise<RingPosition> {
  const stream = new RingStream(access, region, from.offset, options);
  const word = formatWord(region.formatId);
  let place = from;
  let neededBytes = 1;
  let wrapBytes = 0;
  /** Before a wrap that no record follows yet. */
  let left = from;
  try {
    for (;;) {
      if (left !== from && !stream.hasRoom(neededBytes)) return left;
      if (stream.readyBytes < neededBytes && !(await stream.gather(neededBytes))) return left;
      const step = stepChain(region, word, place, stream.bytes);
      if (step.kind === 'end') return left;
      if (step.kind === 'more') {
        neededBytes = step.neededBytes;
        continue;
      }
      neededBytes = 1;
      stream.take(step.takenBytes);
      place = step.after;
      if (step.kind === 'wrap') {
        wrapBytes = step.takenBytes;
        continue;
      }
      left = place;
      const goesOn = visit(step.record, place, wrapBytes + step.takenBytes);
      wrapBytes = 0;
      if (!goesOn) return place;
    }
  } finally {
    await stream.close();
  }
}

/**
 * Where a chain breaks off: a later record that says that the one that is missing here was durable, if one is near. A
 * store that was cut off leaves no such record behind it; damage does.
 */
export async function findWitness(
  access: RegionAccess,
  region: RegionRecord,
  place: RingPosition,
): Promise<RecordHeader | undefined> {
  const stream = new RingStream(access, region, place.offset, { expectedBytes: WITNESS_BYTES });
  const word = formatWord(region.formatId);
  try {
    for (let looked = 0; looked < WITNESS_BYTES && (await stream.gather(LINE_BYTES)); looked += LINE_BYTES) {
      const header = decodeRecordHeader(stream.bytes);
      const isLater = header?.formatWord === word && header.sequence > place.sequence;
      if (isLater && header.durable >= place.sequence && isOfChain(region, header.sequence, header.epoch))
        return header;
      stream.take(LINE_BYTES);
    }
    return undefined;
  } finally {
    await stream.close();
  }
}

/** The bytes of the ring from an offset on, once round. */
class RingStream {
  readonly #access: RegionAccess;
  readonly #region: RegionRecord;
  readonly #options: ScanOptions;
  /** Of what has been asked for last. */
  #offset: number;
  #unaskedBytes: number;
  #chunkBytes = FIRST_CHUNK_BYTES;
  #aheadBytes: number;
  #ahead: Promise<Uint8Array>[] = [];
  #bytes: Uint8Array = new Uint8Array();
  /** Came with a chunk of which the beginning has been joined to `bytes`. */
  #rest: Uint8Array = new Uint8Array();
  #skipBytes = 0;
  #takenBytes = 0;
  #askedBytes = 0;

  constructor(access: RegionAccess, region: RegionRecord, offset: number, options: ScanOptions) {
    this.#access = access;
    this.#region = region;
    this.#offset = offset;
    this.#options = options;
    this.#unaskedBytes = region.dataBytes;
    const { expectedBytes = region.dataBytes, into } = options;
    this.#aheadBytes = into === undefined ? expectedBytes : Math.min(expectedBytes, into.length);
    if (options.isMuch) this.#chunkBytes = COMMAND_BYTES_MAX;
  }

  /** From where the stream is, as far as they are there in one piece. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }

  get readyBytes(): number {
    return this.#bytes.length;
  }

  /** Whether the memory that was given, if any was, takes so many bytes from where the stream is. */
  hasRoom(lengthBytes: number): boolean {
    const { into } = this.#options;
    return into === undefined || this.#takenBytes + lengthBytes <= into.length;
  }

  /** Goes on behind them, whether they are there or not. */
  take(lengthBytes: number): void {
    this.#takenBytes += lengthBytes;
    this.#skipBytes += Math.max(0, lengthBytes - this.#bytes.length);
    this.#bytes = this.#bytes.subarray(Math.min(lengthBytes, this.#bytes.length));
    if (this.#bytes.length === 0) {
      this.#bytes = this.#rest;
      this.#rest = this.#rest.subarray(this.#rest.length);
      this.#skip();
    }
  }

  /** False if there are not so many, once round. */
  async gather(lengthBytes: number): Promise<boolean> {
    while (this.#bytes.length < lengthBytes) {
      const chunk = this.#rest.length > 0 ? this.#rest : await this.#next();
      this.#rest = chunk.subarray(chunk.length);
      if (chunk.length === 0) return false;
      if (this.#bytes.length === 0) {
        this.#bytes = chunk;
        this.#skip();
      } else this.#join(chunk, lengthBytes);
    }
    return true;
  }

  /** Only as much as is needed, if it is to be copied: chunks are long, and records most often short. */
  #join(chunk: Uint8Array, lengthBytes: number): void {
    const bytes = this.#bytes;
    if (chunk.buffer === bytes.buffer && chunk.byteOffset === bytes.byteOffset + bytes.length) {
      this.#bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length + chunk.length);
      return;
    }
    const partBytes = Math.min(chunk.length, lengthBytes - bytes.length);
    const joined = Buffer.allocUnsafe(bytes.length + partBytes);
    joined.set(bytes);
    joined.set(chunk.subarray(0, partBytes), bytes.length);
    this.#bytes = joined;
    this.#rest = chunk.subarray(partBytes);
  }

  #skip(): void {
    const skipped = Math.min(this.#skipBytes, this.#bytes.length);
    this.#skipBytes -= skipped;
    this.#bytes = this.#bytes.subarray(skipped);
  }

  async #next(): Promise<Uint8Array> {
    if (this.#ahead.length === 0 && !this.#ask()) return new Uint8Array();
    const chunk = await this.#ahead[0]!;
    this.#ahead.shift();
    // There is more than one chunk, it seems.
    while (this.#ahead.length < CHUNKS_AHEAD && this.#chunkBytes > FIRST_CHUNK_BYTES && this.#aheadBytes > 0)
      if (!this.#ask()) break;
    this.#chunkBytes = Math.min(this.#chunkBytes * 4, COMMAND_BYTES_MAX);
    return chunk;
  }

  #ask(): boolean {
    const { dataAddress, dataBytes } = this.#region;
    const mostBytes = Math.min(this.#chunkBytes, dataBytes - this.#offset, this.#unaskedBytes);
    if (mostBytes === 0) return false;
    const target = this.#memory(mostBytes);
    const lengthBytes = target.length;
    const { signal } = this.#options;
    const asked = this.#access
      .read(dataAddress + this.#offset, target, signal === undefined ? undefined : { signal })
      .then(() => target);
    asked.catch(() => {});
    this.#ahead.push(asked);
    this.#offset = (this.#offset + lengthBytes) % dataBytes;
    this.#unaskedBytes -= lengthBytes;
    this.#aheadBytes -= lengthBytes;
    this.#askedBytes += lengthBytes;
    return true;
  }

  /** What is left of the memory that was given, or else new one. */
  #memory(mostBytes: number): Uint8Array {
    const left = this.#options.into?.subarray(this.#askedBytes, this.#askedBytes + mostBytes);
    return left !== undefined && left.length > 0 ? left : new Uint8Array(Buffer.allocUnsafeSlow(mostBytes).buffer);
  }

  /** What was read ahead in vain has come, or failed. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#ahead);
  }
}
