/**
 * BlockDevice: what everything local is. Direct (block device or file), memory, fault-injecting, mirrored volume, NBD
 * client … all show this face, and one conformance suite (test/conformance) runs over all of them.
 */

/** What a device is: its size, and in which units it works. */
export interface Geometry {
  /** Bytes that can be addressed. */
  readonly sizeBytes: number;
  /** The smallest unit that the device reads and writes without a detour. A power of two. */
  readonly logicalBlockBytes: number;
  /** The smallest unit that it writes without a read-modify-write of its own. A power of two. */
  readonly physicalBlockBytes: number;
  /** The size that the device likes best for a request; a multiple of physicalBlockBytes. */
  readonly optimalIoBytes: number;
  /** A spinning disk: neighbours are cheap, distance is dear. */
  readonly rotational: boolean;
  /** `discard` gives space back; else it is accepted and does nothing. */
  readonly discard: boolean;
  /** `writeZeroes` is done by the device; else by writing. */
  readonly writeZeroes: boolean;
  /** There is a volatile cache: completed writes may be lost by a power cut until `flush`. */
  readonly volatileCache: boolean;
}

/** How one request is done. */
export interface IoOptions {
  /** Cancels the request if it has not started. One that has started completes. */
  readonly signal?: AbortSignal;
}

/** How one write is done. */
export interface WriteOptions extends IoOptions {
  /** Force unit access: resolved only when this write would survive a power cut. */
  readonly fua?: boolean;
  /**
   * The caller vouches that nothing can change the bytes until the write has resolved. Without it, a device that
   * writes to several places copies them first: a change in between would leave the places different for ever.
   */
  readonly stable?: boolean;
}

/** How zeros are written. */
export interface WriteZeroesOptions extends WriteOptions {
  /** The range may be given back to the device (default true); false: the space stays allocated. */
  readonly mayUnmap?: boolean;
}

/** Counters since the device was opened: requests that succeeded, and those that failed. */
export interface DeviceStats {
  readonly reads: number;
  readonly readBytes: number;
  readonly writes: number;
  readonly writtenBytes: number;
  readonly flushes: number;
  readonly discards: number;
  readonly errors: number;
  /** Requests that were not aligned to the logical block, each of which cost extra work. */
  readonly unalignedRequests: number;
}

/**
 * What everything local is: raw device or file, memory, mirrored volume, NBD client, injected faults.
 *
 * Invariants of every kind:
 * - Offsets and lengths are whole bytes. A request outside 0 … sizeBytes is refused with ERR_HOLDFAST_OUT_OF_RANGE
 *   before anything is done. Zero-length requests succeed.
 * - Requests that are not aligned to the logical block are served (read-modify-write under a range lock where the
 *   device below needs it) and counted in `stats().unalignedRequests`.
 * - Requests in flight at the same time are not ordered. A read that starts after a write has resolved sees it.
 * - The device never keeps hold of a caller's buffer after the promise has settled, and a promise never settles while
 *   the hardware can still touch the buffer, cancelled or not.
 * - `write` resolved: the data survives the death of the process. `flush` resolved (or a write with `fua`): it
 *   survives a power cut. A failed flush is never retried: what was written since the last good one counts as lost.
 *
 * Requests reject with ERR_HOLDFAST_IO (with `errno`), ERR_HOLDFAST_READ_ONLY, ERR_HOLDFAST_FLUSH_FAILED,
 * ERR_HOLDFAST_NO_SPACE, ERR_HOLDFAST_QUEUE_FULL, ERR_HOLDFAST_ABORTED or ERR_HOLDFAST_CLOSED; some kinds of device
 * have others of their own.
 */
export interface BlockDevice extends AsyncDisposable {
  /** What kind it is: `direct`, `memory`, `faulty`, `mirrored`, `nbd` … */
  readonly kind: string;
  /** For messages to people: a path, a volume's name. */
  readonly name: string;
  readonly readOnly: boolean;
  readonly geometry: Geometry;

  /** Fills all of `buffer` from the device, starting at `offset` bytes. */
  read(offset: number, buffer: Uint8Array, options?: IoOptions): Promise<void>;
  /** Writes all of `buffer` to the device, starting at `offset` bytes. The caller leaves it unchanged until resolved. */
  write(offset: number, buffer: Uint8Array, options?: WriteOptions): Promise<void>;
  /** Makes every write that resolved before this call durable against a power cut. */
  flush(options?: IoOptions): Promise<void>;
  /** The content of the range may be forgotten: it reads as old data or as zeros until written again. */
  discard(offset: number, length: number, options?: IoOptions): Promise<void>;
  /** The range reads as zeros afterwards. */
  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): Promise<void>;
  /** The counters as they stand. */
  stats(): DeviceStats;
  /** Waits for requests in flight, then releases everything. Idempotent. Requests after it: ERR_HOLDFAST_CLOSED. */
  close(): Promise<void>;
  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** What can also be had of devices that reach scattered memory in one operation. */
export interface VectoredDevice {
  /** Fills the buffers, one after the other, from the device, starting at `offset` bytes. */
  readVectored(offset: number, buffers: readonly Uint8Array[], options?: IoOptions): Promise<void>;
  /** Writes the buffers, one after the other, to the device, starting at `offset` bytes. They do not stay together if it fails. */
  writeVectored(offset: number, buffers: readonly Uint8Array[], options?: WriteOptions): Promise<void>;
}
