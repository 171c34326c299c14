/**
 * How a scan is cut: blocks (what gets a checksum), pieces (whole blocks that are read at once), batches (whole pieces
 * whose checksums are handed over at once). The same for every kind of device, so that the same range gives the same
 * batches everywhere.
 */
import { type DigestAlgorithm, digestBytes } from './digest.ts';

/** Small enough that what is in flight stays in the processor's cache, long enough for a device to be at its best. */
const pieceBytesWanted = 512 * 1024;
const batchBytesWanted = 16 * 1024 * 1024;
const batchBlocksMax = 32_768;
const inFlightBytesMax = 32 * 1024 * 1024;
const depthMax = 8;

export interface ScanRange {
  readonly offset: number;
  readonly length: number;
  readonly blockBytes: number;
  readonly algorithm: DigestAlgorithm;
  readonly key: Uint8Array | undefined;
}

export class ScanPlan implements ScanRange {
  readonly offset: number;
  readonly length: number;
  readonly blockBytes: number;
  readonly algorithm: DigestAlgorithm;
  readonly key: Uint8Array | undefined;
  readonly pieceBlocks: number;
  readonly batchPieces: number;
  readonly batchBlocks: number;
  readonly batches: number;
  /** Reads in flight at once. */
  readonly depth: number;
  readonly #blocks: number;

  constructor({ offset, length, blockBytes, algorithm, key }: ScanRange) {
    this.offset = offset;
    this.length = length;
    this.blockBytes = blockBytes;
    this.algorithm = algorithm;
    this.key = key?.slice();
    this.#blocks = Math.ceil(length / blockBytes);
    this.pieceBlocks = Math.max(1, Math.floor(pieceBytesWanted / blockBytes));
    const batchBlocks = Math.min(batchBlocksMax, batchBytesWanted / blockBytes);
    this.batchPieces = Math.max(1, Math.floor(batchBlocks / this.pieceBlocks));
    this.batchBlocks = this.batchPieces * this.pieceBlocks;
    this.batches = Math.ceil(this.#blocks / this.batchBlocks);
    this.depth = Math.max(2, Math.min(depthMax, Math.floor(inFlightBytesMax / this.pieceBytes)));
  }

  get pieceBytes(): number {
    return this.pieceBlocks * this.blockBytes;
  }

  /** Bytes of the checksums of a batch. */
  checksumBytesOf(batch: number): number {
    return Math.min(this.batchBlocks, this.#blocks - batch * this.batchBlocks) * digestBytes[this.algorithm];
  }

  /** Where a batch lies on the device. */
  rangeOf(batch: number): { readonly offset: number; readonly length: number } {
    const batchBytes = this.batchBlocks * this.blockBytes;
    const start = batch * batchBytes;
    return { offset: this.offset + start, length: Math.min(batchBytes, this.length - start) };
  }
}

/** One of the ways to scan. */
export interface ScanEngine {
  /** Bytes whose checksums are known. */
  doneBytes(): number;
  setRate(bytesPerSecond: number): void;
  /**
   * The checksums of one batch after the other; the one in which a read failed ends before it, then comes the failure.
   * Once over, thrown or returned from, nothing of it is left in flight.
   */
  batches(): AsyncGenerator<Uint8Array, void, void>;
}
