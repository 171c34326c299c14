/** A block device whose requests end when the test says so. */

import { newStats } from '../../lib/storage/base-device.ts';
import type { BlockDevice, DeviceStats, Geometry } from '../../lib/storage/block-device.ts';

export interface ManualRequest {
  readonly kind: 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';
  readonly offset: number;
  readonly length: number;
  readonly buffer?: Uint8Array;
  readonly options?: object;
  readonly succeed: () => void;
  readonly fail: (error: unknown) => void;
}

export class ManualDevice implements BlockDevice {
  readonly kind = 'manual';
  readonly name = 'manual';
  readonly readOnly = false;
  readonly geometry: Geometry;
  /** Not yet ended, in the order in which they came. */
  requests: ManualRequest[] = [];

  constructor(geometry: Partial<Geometry> = {}) {
    this.geometry = {
      sizeBytes: 256 * 1024 * 1024,
      logicalBlockBytes: 512,
      physicalBlockBytes: 4096,
      optimalIoBytes: 4096,
      rotational: false,
      discard: true,
      writeZeroes: true,
      volatileCache: true,
      ...geometry,
    };
  }

  /** Ends the oldest request, and says what it was. */
  succeed(): ManualRequest {
    const request = this.requests.shift()!;
    request.succeed();
    return request;
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#hold('read', offset, buffer.length, { buffer });
  }

  write(offset: number, buffer: Uint8Array, options?: object): Promise<void> {
    return this.#hold('write', offset, buffer.length, { buffer, ...(options === undefined ? {} : { options }) });
  }

  flush(): Promise<void> {
    return this.#hold('flush', 0, 0, {});
  }

  discard(offset: number, length: number): Promise<void> {
    return this.#hold('discard', offset, length, {});
  }

  writeZeroes(offset: number, length: number, options?: object): Promise<void> {
    return this.#hold('writeZeroes', offset, length, options === undefined ? {} : { options });
  }

  stats(): DeviceStats {
    return newStats();
  }

  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}

  #hold(
    kind: ManualRequest['kind'],
    offset: number,
    length: number,
    more: Pick<ManualRequest, 'buffer' | 'options'>,
  ): Promise<void> {
    return new Promise((succeed, fail) => {
      this.requests.push({ kind, offset, length, ...more, succeed, fail });
    });
  }
}
