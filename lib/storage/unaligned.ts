/**
 * Lets a device that can do only whole blocks (direct I/O) serve any request. Whole blocks pass straight through; the
 * broken ones at a request's two ends are read into a block of our own, and on a write changed there and written back.
 *
 * Invariants:
 * - A block that is being read, changed and written back is written by no other request meanwhile: such a request
 *   holds its blocks exclusively, every other write holds its range shared. Reads need no lock: what they see of a
 *   block's other bytes is the same before and after.
 * - While no unaligned write has ever come, whole-block writes pay only for being counted. The first unaligned one
 *   turns the lock on and waits for those that were not in it.
 * - A request settles only when all of its parts have.
 */
import { assert, HoldfastError, throwIfAborted } from '../base/errors.ts';
import { checkRange, isAligned, totalLength } from './base-device.ts';
import type {
  BlockDevice,
  DeviceStats,
  Geometry,
  IoOptions,
  VectoredDevice,
  WriteOptions,
  WriteZeroesOptions,
} from './block-device.ts';
import { InFlight, type WatchedWriter, watchedWrite } from './in-flight.ts';
import { type RangeGrant, RangeLock, type RangeMode } from './range-lock.ts';

/** Requests that are unaligned or wait for such a one; more are refused. */
const maxInFlight = 16_384;

/** Waits for a range; if the signal fires first, the place in the queue is given up. */
export function holdRange(
  lock: RangeLock,
  offset: number,
  length: number,
  mode: RangeMode,
  signal?: AbortSignal,
): Promise<RangeGrant> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      grant.release();
      reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'the request was cancelled', { cause: signal?.reason }));
    };
    const grant = lock.acquire(offset, length, mode, (held) => {
      signal?.removeEventListener('abort', onAbort);
      resolve(held);
    });
    if (!grant.held) signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** Waits for all of them, then fails with the first failure. */
async function all(parts: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(parts)) {
    if (result.status === 'rejected') throw result.reason;
  }
}

/** A request cut at block borders. `head` and `tail` are broken blocks; offsets are in bytes on the device. */
interface Cut {
  /** The first broken block, if there is one; `end` of its part is at most the block's end. */
  readonly head: Part | undefined;
  readonly middleOffset: number;
  readonly middleLength: number;
  readonly tail: Part | undefined;
}

interface Part {
  readonly block: number;
  readonly offset: number;
  readonly length: number;
}

function cutAtBlocks(offset: number, length: number, blockBytes: number): Cut {
  const end = offset + length;
  const headBlock = offset - (offset % blockBytes);
  const tailBlock = end - (end % blockBytes);
  const startsBroken = offset > headBlock;
  const endsBroken = end > tailBlock;
  if (headBlock === tailBlock) {
    return { head: { block: headBlock, offset, length }, middleOffset: end, middleLength: 0, tail: undefined };
  }
  const middleOffset = startsBroken ? headBlock + blockBytes : offset;
  return {
    head: startsBroken ? { block: headBlock, offset, length: middleOffset - offset } : undefined,
    middleOffset,
    middleLength: tailBlock - middleOffset,
    tail: endsBroken ? { block: tailBlock, offset: tailBlock, length: end - tailBlock } : undefined,
  };
}

export class UnalignedDevice implements BlockDevice, VectoredDevice {
  readonly kind: string;
  readonly name: string;
  readonly readOnly: boolean;
  readonly geometry: Geometry;
  readonly #core: BlockDevice & Partial<VectoredDevice & WatchedWriter>;
  readonly #blockBytes: number;
  readonly #lock = new RangeLock();
  #locking = false;
  /** Whole-block writes that were let through before the lock was on. */
  #unlockedWrites = 0;
  readonly #unlockedGone: (() => void)[] = [];
  #unalignedRequests = 0;
  /** Requests that this wrapper has to see through to their end. */
  readonly #inFlight = new InFlight();
  #closing: Promise<void> | undefined;

  /**
   * Takes over `core`, which is closed with this. `core` need only serve requests whose offset and length are multiples
   * of `geometry.logicalBlockBytes`; its size must be one too.
   */
  constructor(core: BlockDevice & Partial<VectoredDevice & WatchedWriter>) {
    this.kind = core.kind;
    this.name = core.name;
    this.readOnly = core.readOnly;
    this.geometry = core.geometry;
    this.#core = core;
    this.#blockBytes = core.geometry.logicalBlockBytes;
    assert(core.geometry.sizeBytes % this.#blockBytes === 0, 'a device that does whole blocks consists of them');
  }

  read(offset: number, buffer: Uint8Array, options?: IoOptions): Promise<void> {
    if (this.#isWhole(offset, buffer.byteLength)) return this.#core.read(offset, buffer, options);
    return this.#unalignedRead(offset, buffer, options);
  }

  write(offset: number, buffer: Uint8Array, options?: WriteOptions): Promise<void> {
    if (!this.#isWhole(offset, buffer.byteLength)) return this.#unalignedWrite(offset, buffer, options);
    if (this.#locking) return this.#writeWhole(offset, buffer, options);
    if (this.#core[watchedWrite] === undefined) return this.#count(this.#core.write(offset, buffer, options));
    this.#unlockedWrites++;
    return this.#core[watchedWrite](offset, buffer, options, this.#uncount);
  }

  /** Apart, because the function that this makes would keep what it needs on the heap for every write. */
  #writeWhole(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    return this.#lockedWrite(offset, buffer.byteLength, options, () => this.#core.write(offset, buffer, options));
  }

  /** In one operation where the device below can and each buffer is whole blocks; else through a copy. */
  async readVectored(offset: number, buffers: readonly Uint8Array[], options?: IoOptions): Promise<void> {
    if (this.#core.readVectored !== undefined && this.#areWhole(offset, buffers))
      return this.#core.readVectored(offset, buffers, options);
    const all = new Uint8Array(totalLength(buffers));
    await this.read(offset, all, options);
    let at = 0;
    for (const buffer of buffers) {
      buffer.set(all.subarray(at, at + buffer.byteLength));
      at += buffer.byteLength;
    }
  }

  /** In one operation where the device below can and each buffer is whole blocks; else through a copy. */
  writeVectored(offset: number, buffers: readonly Uint8Array[], options?: WriteOptions): Promise<void> {
    const { writeVectored } = this.#core;
    if (writeVectored === undefined || !this.#areWhole(offset, buffers))
      return this.write(offset, Buffer.concat(buffers), options);
    const write = () => writeVectored.call(this.#core, offset, buffers, options);
    if (this.#locking) return this.#lockedWrite(offset, totalLength(buffers), options, write);
    return this.#count(write());
  }

  #areWhole(offset: number, buffers: readonly Uint8Array[]): boolean {
    return buffers.every((buffer) => this.#isWhole(offset, buffer.byteLength));
  }

  async flush(options?: IoOptions): Promise<void> {
    if (this.#closing !== undefined) throw this.#closedError();
    await this.#core.flush(options);
  }

  discard(offset: number, length: number, options?: IoOptions): Promise<void> {
    if (this.#isWhole(offset, length)) return this.#core.discard(offset, length, options);
    return this.#unalignedDiscard(offset, length, options);
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): Promise<void> {
    if (!this.#isWhole(offset, length)) return this.#unalignedWriteZeroes(offset, length, options);
    if (this.#locking) {
      return this.#lockedWrite(offset, length, options, () => this.#core.writeZeroes(offset, length, options));
    }
    return this.#count(this.#core.writeZeroes(offset, length, options));
  }

  /** For work on whole blocks past `write`: keeps the order with writes of parts of them. */
  protected async useWhole<T>(offset: number, length: number, changes: boolean, use: () => Promise<T>): Promise<T> {
    if (this.#closing !== undefined) throw this.#closedError();
    if (!changes) return use();
    let result: { readonly value: T } | undefined;
    const change = async (): Promise<void> => {
      result = { value: await use() };
    };
    await (this.#locking ? this.#lockedWrite(offset, length, undefined, change) : this.#count(change()));
    assert(result !== undefined, 'a change that has succeeded has a result');
    return result.value;
  }

  /** May go straight to the core. Once closing, nothing may: what else comes is refused where it is looked at. */
  #isWhole(offset: number, length: number): boolean {
    return this.#closing === undefined && isAligned(offset, length, this.#blockBytes);
  }

  stats(): DeviceStats {
    return { ...this.#core.stats(), unalignedRequests: this.#unalignedRequests };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#inFlight.drained();
    await this.#core.close();
  }

  readonly #uncount = (): void => {
    this.#unlockedWrites--;
    if (this.#unlockedWrites > 0) return;
    for (const resume of this.#unlockedGone.splice(0)) resume();
  };

  #count(writing: Promise<void>): Promise<void> {
    this.#unlockedWrites++;
    writing.then(this.#uncount, this.#uncount);
    return writing;
  }

  async #unalignedRead(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Promise<void> {
    this.#admit(offset, buffer.byteLength, false, options);
    await this.#seeThrough(async () => {
      const cut = cutAtBlocks(offset, buffer.byteLength, this.#blockBytes);
      const parts: Promise<void>[] = [];
      for (const part of [cut.head, cut.tail]) {
        if (part !== undefined) parts.push(this.#readPart(part, buffer.subarray(part.offset - offset)));
      }
      if (cut.middleLength > 0) {
        const start = cut.middleOffset - offset;
        parts.push(this.#core.read(cut.middleOffset, buffer.subarray(start, start + cut.middleLength)));
      }
      await all(parts);
    });
  }

  async #readPart(part: Part, into: Uint8Array): Promise<void> {
    const block = new Uint8Array(this.#blockBytes);
    await this.#core.read(part.block, block);
    const start = part.offset - part.block;
    into.set(block.subarray(start, start + part.length));
  }

  async #unalignedWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    this.#admit(offset, buffer.byteLength, true, options);
    const fua = options?.fua ?? false;
    await this.#changeBlocks(offset, buffer.byteLength, options, async (cut) => {
      const parts: Promise<void>[] = [];
      for (const part of [cut.head, cut.tail]) {
        if (part === undefined) continue;
        const start = part.offset - offset;
        parts.push(this.#changePart(part, buffer.subarray(start, start + part.length), fua));
      }
      if (cut.middleLength > 0) {
        const start = cut.middleOffset - offset;
        parts.push(this.#core.write(cut.middleOffset, buffer.subarray(start, start + cut.middleLength), { fua }));
      }
      await all(parts);
    });
  }

  async #unalignedWriteZeroes(offset: number, length: number, options: WriteZeroesOptions | undefined): Promise<void> {
    this.#admit(offset, length, true, options);
    const fua = options?.fua ?? false;
    const mayUnmap = options?.mayUnmap ?? true;
    await this.#changeBlocks(offset, length, options, async (cut) => {
      const parts: Promise<void>[] = [];
      for (const part of [cut.head, cut.tail]) {
        if (part !== undefined) parts.push(this.#changePart(part, new Uint8Array(part.length), fua));
      }
      if (cut.middleLength > 0) {
        parts.push(this.#core.writeZeroes(cut.middleOffset, cut.middleLength, { fua, mayUnmap }));
      }
      await all(parts);
    });
  }

  async #changePart(part: Part, bytes: Uint8Array, fua: boolean): Promise<void> {
    const block = new Uint8Array(this.#blockBytes);
    await this.#core.read(part.block, block);
    block.set(bytes, part.offset - part.block);
    await this.#core.write(part.block, block, { fua });
  }

  /** Only whole blocks can be forgotten: a hint for less is none. */
  async #unalignedDiscard(offset: number, length: number, options: IoOptions | undefined): Promise<void> {
    this.#admit(offset, length, true, options);
    const end = offset + length;
    const first = Math.ceil(offset / this.#blockBytes) * this.#blockBytes;
    const last = end - (end % this.#blockBytes);
    await this.#seeThrough(() => this.#core.discard(first < last ? first : 0, Math.max(0, last - first)));
  }

  /** Runs `change` while nobody else writes to any block that the range touches. */
  #changeBlocks(
    offset: number,
    length: number,
    options: IoOptions | undefined,
    change: (cut: Cut) => Promise<void>,
  ): Promise<void> {
    return this.#seeThrough(async () => {
      this.#locking = true;
      const cut = cutAtBlocks(offset, length, this.#blockBytes);
      const start = cut.head?.block ?? offset;
      const end =
        cut.tail === undefined
          ? Math.max(start + this.#blockBytes, offset + length)
          : cut.tail.block + this.#blockBytes;
      const grant = await holdRange(this.#lock, start, end - start, 'exclusive', options?.signal);
      try {
        if (this.#unlockedWrites > 0) await new Promise<void>((resolve) => this.#unlockedGone.push(resolve));
        throwIfAborted(options?.signal, `a request to ${this.name}`);
        await change(cut);
      } finally {
        grant.release();
      }
    });
  }

  #lockedWrite(
    offset: number,
    length: number,
    options: WriteOptions | undefined,
    write: () => Promise<void>,
  ): Promise<void> {
    if (length === 0) return write();
    return this.#seeThrough(async () => {
      const grant = await holdRange(this.#lock, offset, length, 'shared', options?.signal);
      try {
        await write();
      } finally {
        grant.release();
      }
    });
  }

  #admit(offset: number, length: number, changes: boolean, options: IoOptions | undefined): void {
    if (this.#closing !== undefined) throw this.#closedError();
    checkRange(this.name, this.geometry.sizeBytes, offset, length);
    if (changes && this.readOnly)
      throw new HoldfastError('ERR_HOLDFAST_READ_ONLY', `${this.name} is open read-only; open it for writing`);
    throwIfAborted(options?.signal, `a request to ${this.name}`);
    if (length > 0) this.#unalignedRequests++;
  }

  #closedError(): HoldfastError {
    return new HoldfastError('ERR_HOLDFAST_CLOSED', `${this.name} is closed; open it again`);
  }

  async #seeThrough(work: () => Promise<void>): Promise<void> {
    if (this.#inFlight.count >= maxInFlight)
      throw new HoldfastError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${this.name}: ${maxInFlight} unaligned requests, or ones behind them, are under way; wait for some to finish`,
      );
    await this.#inFlight.hold(work);
  }
}
