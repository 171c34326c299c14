/**
 * A BlockDevice in this process's memory: for tests, and where data may die with the process. Sparse: only what has
 * been written takes memory. Every request is complete when it is made, so there is nothing to flush.
 */
import { HoldfastError } from '../base/errors.ts';
import { BaseDevice } from './base-device.ts';
import type { Geometry } from './block-device.ts';
import { SparseMemory } from './sparse-memory.ts';

/** Size and blocks of a device in memory. */
export interface MemoryDeviceOptions {
  readonly sizeBytes: number;
  /** For messages, default `memory`. */
  readonly name?: string;
  readonly readOnly?: boolean;
  /** A power of two, default 512. Requests that are not aligned to it are served and counted. */
  readonly logicalBlockBytes?: number;
  /** A power of two, not below logicalBlockBytes, default 4096. */
  readonly physicalBlockBytes?: number;
}

const chunkBytes = 64 * 1024;

function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && value <= 2 ** 30 && (value & (value - 1)) === 0;
}

/** A device in memory, sparse: only what has been written, and is not zeros, takes memory. For tests. */
export class MemoryDevice extends BaseDevice {
  readonly kind = 'memory';
  readonly geometry: Geometry;
  readonly #memory = new SparseMemory(chunkBytes);

  /** Throws ERR_HOLDFAST_BAD_ARGUMENT if a size is not one. */
  constructor(options: MemoryDeviceOptions) {
    super(options.name ?? 'memory', options.readOnly ?? false);
    const { sizeBytes, logicalBlockBytes = 512 } = options;
    const physicalBlockBytes = options.physicalBlockBytes ?? Math.max(4096, logicalBlockBytes);
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `sizeBytes ${sizeBytes} must be a whole number of bytes`);
    if (!isPowerOfTwo(logicalBlockBytes) || !isPowerOfTwo(physicalBlockBytes) || physicalBlockBytes < logicalBlockBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `blocks of ${logicalBlockBytes} and ${physicalBlockBytes} bytes: both must be powers of two, the second not smaller`,
      );
    if (sizeBytes % logicalBlockBytes !== 0)
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `sizeBytes ${sizeBytes} must be a multiple of logicalBlockBytes ${logicalBlockBytes}`,
      );
    this.geometry = {
      sizeBytes,
      logicalBlockBytes,
      physicalBlockBytes,
      optimalIoBytes: Math.max(chunkBytes, physicalBlockBytes),
      rotational: false,
      discard: true,
      writeZeroes: true,
      volatileCache: false,
    };
  }

  /** Memory that the content takes. */
  get allocatedBytes(): number {
    return this.#memory.allocatedBytes;
  }

  protected async performRead(offset: number, buffer: Uint8Array): Promise<void> {
    this.#memory.read(offset, buffer);
  }

  protected async performWrite(offset: number, buffer: Uint8Array): Promise<void> {
    this.#memory.write(offset, buffer);
  }

  protected async performFlush(): Promise<void> {}

  protected async performDiscard(offset: number, length: number): Promise<void> {
    this.#memory.zero(offset, length);
  }

  protected async performWriteZeroes(offset: number, length: number): Promise<void> {
    this.#memory.zero(offset, length);
  }

  protected async performClose(): Promise<void> {
    this.#memory.clear();
  }
}
