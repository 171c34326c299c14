/** Reads files and devices piece by piece and compares them byte for byte, for the demo. */
import { type FileHandle, open } from 'node:fs/promises';
import type { BlockDevice } from '../storage/block-device.ts';
import { BLOCK_BYTES } from './demo-workload.ts';

const PIECE_BYTES = 1024 * 1024;
const PIECES_IN_FLIGHT = 8;
/** What is not flushed is in doubt after a crash, and sent again: a copy keeps that small. */
const FLUSH_EVERY_BYTES = 8 * PIECE_BYTES;

export type PieceProgress = (doneBytes: number) => void;

/** Calls `work` for each piece of a range, several at a time. */
export async function forEachPiece(
  lengthBytes: number,
  work: (offset: number, length: number) => Promise<void>,
  progress: PieceProgress,
  signal: AbortSignal,
): Promise<void> {
  let next = 0;
  let done = 0;
  const lane = async (): Promise<void> => {
    while (next < lengthBytes) {
      signal.throwIfAborted();
      const offset = next;
      const length = Math.min(PIECE_BYTES, lengthBytes - offset);
      next += length;
      await work(offset, length);
      done += length;
      progress(done);
    }
  };
  await Promise.all(Array.from({ length: PIECES_IN_FLIGHT }, lane));
}

/** Reads all of `length` bytes; what lies behind the end of the file is zeros. */
export async function readPiece(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  let at = 0;
  while (at < length) {
    const { bytesRead } = await file.read(buffer, at, length - at, offset + at);
    if (bytesRead === 0) break;
    at += bytesRead;
  }
  return buffer;
}

/** Bytes in blocks that differ. */
export function differingBytes(one: Uint8Array, other: Uint8Array): number {
  if (Buffer.compare(one, other) === 0) return 0;
  let differing = 0;
  for (let at = 0; at < one.length; at += BLOCK_BYTES) {
    const block = one.subarray(at, at + BLOCK_BYTES);
    if (Buffer.compare(block, other.subarray(at, at + BLOCK_BYTES)) !== 0) differing += block.length;
  }
  return differing;
}

export async function copyToDevice(
  path: string,
  lengthBytes: number,
  device: BlockDevice,
  progress: PieceProgress,
  signal: AbortSignal,
): Promise<void> {
  const file = await open(path, 'r');
  try {
    for (let start = 0; start < lengthBytes; start += FLUSH_EVERY_BYTES) {
      const copy = async (offset: number, length: number) =>
        device.write(start + offset, await readPiece(file, start + offset, length));
      const length = Math.min(FLUSH_EVERY_BYTES, lengthBytes - start);
      await forEachPiece(length, copy, (done) => progress(start + done), signal);
      await device.flush();
    }
  } finally {
    await file.close();
  }
}

/** Bytes of the file that the device holds otherwise. */
export async function compareWithDevice(
  path: string,
  lengthBytes: number,
  device: BlockDevice,
  progress: PieceProgress,
  signal: AbortSignal,
): Promise<number> {
  const file = await open(path, 'r');
  let mismatches = 0;
  try {
    const compare = async (offset: number, length: number) => {
      const held = new Uint8Array(length);
      await device.read(offset, held);
      mismatches += differingBytes(await readPiece(file, offset, length), held);
    };
    await forEachPiece(lengthBytes, compare, progress, signal);
    return mismatches;
  } finally {
    await file.close();
  }
}

/**
 * Compares the data areas of two devices with each other and with what must be on them.
 * `overlay` puts over a piece of the input what was written since.
 */
export async function compareDevices(
  devices: readonly [string, string],
  inputPath: string,
  lengthBytes: number,
  overlay: (offset: number, piece: Uint8Array) => void,
  progress: PieceProgress,
  signal: AbortSignal,
): Promise<{ readonly apart: number; readonly unexpected: number }> {
  const files = await Promise.all([...devices, inputPath].map((path) => open(path, 'r')));
  let apart = 0;
  let unexpected = 0;
  try {
    const compare = async (offset: number, length: number) => {
      const [one, other, expected] = await Promise.all(files.map((file) => readPiece(file, offset, length)));
      overlay(offset, expected!);
      apart += differingBytes(one!, other!);
      unexpected += differingBytes(one!, expected!);
    };
    await forEachPiece(lengthBytes, compare, progress, signal);
    return { apart, unexpected };
  } finally {
    for (const file of files) await file.close();
  }
}
