/** A part of what a key opens, with addresses that count from the start of the part. */
import { assert, HoldfastError } from '../base/errors.ts';
import type { AddressRange, CommandOptions, Guard, RegionAccess, StoreOptions, WriteOptions } from './one-sided.ts';

/** `lengthBytes` from `base` on of what `access` opens; nothing outside of it can be reached through the part. */
export function accessPart(access: RegionAccess, base: number, lengthBytes: number): RegionAccess {
  const start = access.range.base;
  const isWithin = base >= start && base + lengthBytes <= start + access.range.lengthBytes;
  assert(isWithin && lengthBytes > 0, 'a part lies within what its key opens');
  return new AccessPart(access, base, lengthBytes);
}

class AccessPart implements RegionAccess {
  readonly range: AddressRange;
  readonly #access: RegionAccess;
  readonly #base: number;

  constructor(access: RegionAccess, base: number, lengthBytes: number) {
    this.#access = access;
    this.#base = base;
    this.range = { base: 0, lengthBytes };
  }

  get unit(): string {
    return this.#access.unit;
  }

  get epoch(): number {
    return this.#access.epoch;
  }

  get open(): boolean {
    return this.#access.open;
  }

  async read(address: number, target: Uint8Array, options?: CommandOptions): Promise<void> {
    return this.#access.read(this.#at(address, target.length), target, options);
  }

  async write(address: number, chunks: readonly Uint8Array[], options: WriteOptions = {}): Promise<void> {
    const lengthBytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    const { guard, ...rest } = options;
    return this.#access.write(this.#at(address, lengthBytes), chunks, { ...rest, ...(guard && this.#guard(guard)) });
  }

  async persist(address: number, lengthBytes: number, options?: CommandOptions): Promise<void> {
    return this.#access.persist(this.#at(address, lengthBytes), lengthBytes, options);
  }

  async compareAndSwap(address: number, expected: bigint, desired: bigint, options?: StoreOptions): Promise<bigint> {
    return this.#access.compareAndSwap(this.#at(address, 8), expected, desired, options);
  }

  async watch(address: number, lengthBytes: number, since: number, options?: CommandOptions): Promise<number> {
    return this.#access.watch(this.#at(address, lengthBytes), lengthBytes, since, options);
  }

  #guard({ address, expected }: Guard): { guard: Guard } {
    return { guard: { address: this.#at(address, 8), expected } };
  }

  #at(address: number, lengthBytes: number): number {
    if (address >= 0 && lengthBytes >= 0 && address + lengthBytes <= this.range.lengthBytes)
      return this.#base + address;
    throw new HoldfastError(
      'ERR_HOLDFAST_OUT_OF_RANGE',
      `${lengthBytes} bytes at ${address} reach beyond a part of ${this.range.lengthBytes}`,
    );
  }
}
