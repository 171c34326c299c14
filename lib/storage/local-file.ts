/**
 * The door behind a BlockDevice to the file or block device of this machine that it is, for work that the kernel or the
 * disk does by itself, past `read` and `write`. Of the library's own devices, those that have a descriptor have it.
 */
import type { BlockDevice } from './block-device.ts';

export interface LocalFile {
  /** Open as long as the work goes on. */
  readonly fd: number;
  readonly isBlockDevice: boolean;
  /** Requests go past the page cache. */
  readonly direct: boolean;
}

/** Whole logical blocks. */
export interface FileUse {
  readonly offset: number;
  readonly length: number;
  readonly changes: boolean;
}

export const useFile = Symbol('useFile');

export interface FileBacked {
  /**
   * Admits the work as it would a request for the range, runs it, and lets `close` wait for it. As with `write`, what
   * changes the range keeps its order with changes of parts of the same blocks.
   */
  [useFile]<T>(use: FileUse, work: (file: LocalFile) => Promise<T>): Promise<T>;
}

export function isFileBacked(device: BlockDevice): device is BlockDevice & FileBacked {
  return useFile in device;
}
