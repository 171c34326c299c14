/** The public opener: a block device or file as a BlockDevice that serves any request. */
import {
  type DirectDevice,
  type DirectDeviceOptions,
  type DirectReport,
  type FileLender,
  type LentFile,
  lendFile,
  openDirectDevice,
} from './direct-device.ts';
import type { IoStatistics } from './io-statistics.ts';
import { type FileUse, type LocalFile, useFile } from './local-file.ts';
import type { RingStatistics } from './ring.ts';
import { UnalignedDevice } from './unaligned.ts';

/** How a device or file is opened. */
export type OpenDeviceOptions = DirectDeviceOptions;

/** A block device or file that is open; see `openDevice`. */
export class OpenedDevice extends UnalignedDevice implements FileLender {
  readonly #direct: DirectDevice;

  /** Made by `openDevice`. @internal */
  constructor(direct: DirectDevice) {
    super(direct);
    this.#direct = direct;
  }

  /** @internal */
  [useFile]<T>(use: FileUse, work: (file: LocalFile) => Promise<T>): Promise<T> {
    return this.useWhole(use.offset, use.length, use.changes, () => this.#direct[useFile](use, work));
  }

  /** Which engine serves it and whether past the page cache, with the reasons. */
  report(): DirectReport {
    return this.#direct.engineReport();
  }

  /** @internal */
  [lendFile](onClosing: () => void): LentFile {
    return this.#direct[lendFile](onClosing);
  }

  /** What has been counted of the operations on it: how many, how long, how many at once. */
  ioStatistics(): IoStatistics {
    return this.#direct.ioStatistics();
  }

  /** What the ring has counted that it shares with the other devices of this thread that were opened with its settings. */
  ringStatistics(): RingStatistics {
    return this.#direct.ringStatistics();
  }
}

/**
 * Opens a block device or a file at device speed.
 *
 * ```ts
 * await using device = await openDevice('/dev/nvme0n1', { readOnly: true });
 * await device.read(0, buffer);
 * ```
 *
 * Requests of any offset and length in bytes are served; those that are not whole logical blocks cost extra work and
 * are counted in `stats().unalignedRequests`. Buffers leased from `ioMemory()` are not copied.
 *
 * What stands on the device is not looked at: before overwriting one, ask `assertMayOverwrite`.
 *
 * @throws HoldfastError ERR_HOLDFAST_NOT_FOUND, _ACCESS, _READ_ONLY, _DEVICE_BUSY (mounted, or held by another opening),
 *   _DEVICE_EXISTS (`create`), _NO_SPACE, _NOT_SUPPORTED (`direct: 'required'`, an engine that cannot be had),
 *   _BAD_ARGUMENT (neither device nor file; for writing, a size that is not whole blocks), _IO.
 */
export async function openDevice(path: string, options: OpenDeviceOptions = {}): Promise<OpenedDevice> {
  return new OpenedDevice(await openDirectDevice(path, options));
}
