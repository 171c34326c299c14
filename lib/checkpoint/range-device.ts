/**
 * A range of a region as a BlockDevice: for what is rare and small, and has a format that stands on BlockDevice (a pair
 * of superblocks). A flush persists the range.
 */
import { BaseDevice } from '../storage/base-device.ts';
import type { Geometry, IoOptions, WriteOptions } from '../storage/block-device.ts';
import { readRange, writeRange } from './commands.ts';
import { LINE_BYTES, PAGE_BYTES } from './layout.ts';
import type { Guard, RegionAccess } from './one-sided.ts';

export interface RangeDeviceOptions {
  /** For messages to people. */
  readonly name: string;
  /** Address in the region of the device's first byte. */
  readonly address: number;
  readonly lengthBytes: number;
  /** Every write is conditional on it. */
  readonly guard?: Guard;
  readonly readOnly?: boolean;
}

export class RangeDevice extends BaseDevice {
  readonly kind = 'range';
  readonly geometry: Geometry;
  readonly #access: RegionAccess;
  readonly #address: number;
  readonly #guard: Guard | undefined;

  constructor(access: RegionAccess, options: RangeDeviceOptions) {
    super(options.name, options.readOnly ?? false);
    this.#access = access;
    this.#address = options.address;
    this.#guard = options.guard;
    this.geometry = {
      sizeBytes: options.lengthBytes,
      logicalBlockBytes: 1,
      physicalBlockBytes: LINE_BYTES,
      optimalIoBytes: PAGE_BYTES,
      rotational: false,
      discard: false,
      writeZeroes: false,
      volatileCache: true,
    };
  }

  protected performRead(offset: number, buffer: Uint8Array, options?: IoOptions): Promise<void> {
    return readRange(this.#access, this.#address + offset, buffer, options?.signal);
  }

  protected performWrite(offset: number, buffer: Uint8Array, options?: WriteOptions): Promise<void> {
    const persist = options?.fua ?? false;
    return writeRange(this.#access, this.#address + offset, buffer, this.#guard, persist);
  }

  protected performFlush(): Promise<void> {
    return this.#access.persist(this.#address, this.geometry.sizeBytes);
  }

  protected async performDiscard(): Promise<void> {}

  protected performWriteZeroes(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.performWrite(offset, new Uint8Array(length), options);
  }

  /** The key is the caller's. */
  protected async performClose(): Promise<void> {}
}
