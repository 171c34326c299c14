/**
 * A region of which some ranges lie elsewhere: one access, over that of the region and those of the other places.
 *
 * Bound: a store lies within one of them, and so does the word that it is conditional on. Reads, persists and watches
 * may reach over several.
 */
import { EitherSignal } from '../base/either-signal.ts';
import { assert, HoldfastError } from '../base/errors.ts';
import type { AddressRange, CommandOptions, Guard, RegionAccess, StoreOptions, WriteOptions } from './one-sided.ts';
import { WatchedPlaces } from './watched-places.ts';

/** What it is composed of: closed with it. */
export interface ComposedPart extends RegionAccess {
  /** Ends it. Idempotent. */
  close(): Promise<void>;
}

/** A range of the region that lies elsewhere. */
export interface Elsewhere {
  /** In the region. */
  readonly address: number;
  readonly lengthBytes: number;
  /** Has the range's bytes where it begins. */
  readonly access: ComposedPart;
}

interface Piece {
  readonly access: RegionAccess;
  /** As the access counts. */
  readonly address: number;
  readonly lengthBytes: number;
  /** From the start of the whole command. */
  readonly offset: number;
}

export class ComposedAccess implements RegionAccess, AsyncDisposable {
  readonly #main: ComposedPart;
  /** By address. */
  readonly #elsewhere: readonly Elsewhere[];
  readonly #watched = new WatchedPlaces();
  readonly #closed = new AbortController();

  constructor(main: ComposedPart, elsewhere: readonly Elsewhere[]) {
    this.#main = main;
    this.#elsewhere = [...elsewhere].sort((a, b) => a.address - b.address);
    let end = main.range.base;
    for (const { address, lengthBytes, access } of this.#elsewhere) {
      assert(address >= end && lengthBytes > 0, 'ranges that lie elsewhere lie apart');
      assert(access.range.lengthBytes >= lengthBytes, 'what lies elsewhere has room there');
      end = address + lengthBytes;
    }
    assert(end <= main.range.base + main.range.lengthBytes, 'ranges that lie elsewhere are ranges of the region');
  }

  get unit(): string {
    return this.#main.unit;
  }

  /** Of the region. */
  get range(): AddressRange {
    return this.#main.range;
  }

  /** Of the region. */
  get epoch(): number {
    return this.#main.epoch;
  }

  get open(): boolean {
    return this.#main.open && this.#elsewhere.every(({ access }) => access.open);
  }

  async read(address: number, target: Uint8Array, options?: CommandOptions): Promise<void> {
    const pieces = this.#pieces(address, target.length);
    await allOf(
      pieces.map((piece) =>
        piece.access.read(piece.address, target.subarray(piece.offset, piece.offset + piece.lengthBytes), options),
      ),
    );
  }

  /** @throws HoldfastError also ERR_HOLDFAST_BAD_ARGUMENT if it reaches from one place into another. */
  async write(address: number, chunks: readonly Uint8Array[], options: WriteOptions = {}): Promise<void> {
    const lengthBytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    const piece = this.#whole(address, lengthBytes);
    const { guard, ...rest } = options;
    if (guard === undefined) return piece.access.write(piece.address, chunks, rest);
    return piece.access.write(piece.address, chunks, { ...rest, guard: this.#guard(guard, piece) });
  }

  async persist(address: number, lengthBytes: number, options?: CommandOptions): Promise<void> {
    const pieces = this.#pieces(address, lengthBytes);
    await allOf(pieces.map((piece) => piece.access.persist(piece.address, piece.lengthBytes, options)));
  }

  async compareAndSwap(address: number, expected: bigint, desired: bigint, options?: StoreOptions): Promise<bigint> {
    const piece = this.#whole(address, 8);
    return piece.access.compareAndSwap(piece.address, expected, desired, options);
  }

  async watch(address: number, lengthBytes: number, since: number, options: CommandOptions = {}): Promise<number> {
    const { signal } = options;
    using either = new EitherSignal(this.#closed.signal, signal);
    return await this.#watched.watch(this.#pieces(address, lengthBytes), since, either.signal);
  }

  /** Ends all that it is composed of. Idempotent. */
  async close(): Promise<void> {
    this.#closed.abort();
    await Promise.all([this.#main.close(), ...this.#elsewhere.map(({ access }) => access.close())]);
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** At least one, which refuses what is out of range. */
  #pieces(address: number, lengthBytes: number): Piece[] {
    const end = address + lengthBytes;
    const pieces: Piece[] = [];
    let at = address;
    const add = (access: RegionAccess, from: number, to: number): void => {
      pieces.push({ access, address: from, lengthBytes: to, offset: at - address });
      at += to;
    };
    for (const each of this.#elsewhere) {
      if (each.address + each.lengthBytes <= at) continue;
      if (each.address >= end) break;
      if (each.address > at) add(this.#main, at, each.address - at);
      const within = at - each.address;
      add(each.access, each.access.range.base + within, Math.min(each.lengthBytes - within, end - at));
    }
    if (at < end || pieces.length === 0) add(this.#main, at, end - at);
    return pieces;
  }

  #whole(address: number, lengthBytes: number): Piece {
    const [piece, ...more] = this.#pieces(address, lengthBytes);
    if (piece !== undefined && more.length === 0) return piece;
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${lengthBytes} bytes at ${address} lie in more than one place; store them one after the other`,
    );
  }

  #guard({ address, expected }: Guard, { access }: Piece): Guard {
    const word = this.#whole(address, 8);
    if (word.access === access) return { address: word.address, expected };
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `a store cannot be conditional on the word at ${address}, which lies elsewhere`,
    );
  }
}

/** Not before all have ended: their bytes are in use until then. */
async function allOf(works: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(works)) if (result.status === 'rejected') throw result.reason;
}
