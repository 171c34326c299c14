/** The start of a unit's memory as a BlockDevice: where its manager keeps its records. A flush persists. */
import { BaseDevice } from '../storage/base-device.ts';
import type { Geometry, WriteOptions } from '../storage/block-device.ts';
import type { UnitMemory } from './unit-memory.ts';

export const ZEROS = new Uint8Array(65_536);

export class RecordsDevice extends BaseDevice {
  readonly kind = 'records';
  readonly geometry: Geometry;
  readonly #memory: UnitMemory;

  constructor(name: string, memory: UnitMemory, sizeBytes: number) {
    super(name, false);
    this.#memory = memory;
    this.geometry = {
      sizeBytes,
      logicalBlockBytes: 512,
      physicalBlockBytes: 4096,
      optimalIoBytes: 65_536,
      rotational: false,
      discard: false,
      writeZeroes: false,
      volatileCache: true,
    };
  }

  protected async performRead(offset: number, buffer: Uint8Array): Promise<void> {
    this.#memory.read(offset, buffer);
  }

  protected async performWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    this.#memory.write(offset, buffer);
    if (options?.fua) await this.#memory.persist(offset, buffer.length);
  }

  protected performFlush(): Promise<void> {
    return this.#memory.persist(0, this.geometry.sizeBytes);
  }

  protected async performDiscard(): Promise<void> {}

  protected async performWriteZeroes(offset: number, length: number, options: WriteOptions | undefined): Promise<void> {
    for (let at = 0; at < length; at += ZEROS.length)
      this.#memory.write(offset + at, ZEROS.subarray(0, Math.min(ZEROS.length, length - at)));
    if (options?.fua) await this.#memory.persist(offset, length);
  }

  /** The memory is the unit's. */
  protected async performClose(): Promise<void> {}
}
