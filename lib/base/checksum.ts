/**
 * CRC-32C (Castagnoli; RFC 3720, 12.1), by the fastest kernel that this processor has. Checksums are unsigned 32-bit
 * numbers, finished: crc32c('123456789') is 0xe3069283.
 *
 * HOLDFAST_CRC32C=portable|sse42|avx512|avx512-streams|armv8 forces a kernel.
 */

import { type NativeChecksum, native } from '../native.ts';
import { HoldfastError } from './errors.ts';

let addon: NativeChecksum | undefined;

function checksum(): NativeChecksum {
  addon ??= prepare(native().checksum, process.env.HOLDFAST_CRC32C);
  return addon;
}

function prepare(addon: NativeChecksum, forced: string | undefined): NativeChecksum {
  if (forced === undefined || addon.selectKernel(forced)) return addon;
  const names = addon.kernels().flatMap(({ name, supported }) => (supported ? [name] : []));
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `HOLDFAST_CRC32C names no kernel that this processor has: "${forced}"; use ${names.join(', ')}, or unset it`,
  );
}

function requireChecksum(value: number): void {
  if (value >>> 0 === value) return;
  throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a checksum is an unsigned 32-bit number, not ${value}`);
}

/**
 * The checksum of the bytes, continued from `seed`: the checksum of what came before them.
 * The bytes may be over shared memory; then it is for the caller to see that they stand still.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if the seed is no checksum.
 */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  requireChecksum(seed);
  return checksum().crc32c(bytes, seed);
}

/**
 * Copies the bytes to the start of `target`, and gives their checksum, continued from `seed`: one pass over memory
 * instead of two. It is the checksum of the copy, even if another thread writes to the bytes meanwhile. If the two
 * overlap, the target afterwards holds what the bytes were.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if the target is too short, or the seed is no checksum.
 */
export function crc32cCopy(bytes: Uint8Array, target: Uint8Array, seed = 0): number {
  requireChecksum(seed);
  if (target.length < bytes.length) {
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${bytes.length} bytes cannot be copied to ${target.length}; the target must have room for all`,
    );
  }
  return checksum().crc32cCopy(bytes, target, seed);
}

/**
 * The checksum of A followed by B, from those of A and of B, and the length of B in bytes.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if a number is no checksum or no length.
 */
export function crc32cCombine(crcA: number, crcB: number, lengthB: number): number {
  requireChecksum(crcA);
  requireChecksum(crcB);
  if (!Number.isSafeInteger(lengthB) || lengthB < 0) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a length is a whole number of bytes, not ${lengthB}`);
  }
  return checksum().crc32cCombine(crcA, crcB, lengthB);
}

/**
 * The checksum of each block of `blockBytes` bytes, in order. The last block may be short.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if a block cannot have that length.
 */
export function crc32cBlocks(bytes: Uint8Array, blockBytes: number): Uint32Array {
  if (!Number.isSafeInteger(blockBytes) || blockBytes < 1) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a block has at least one byte, not ${blockBytes}`);
  }
  const checksums = new Uint32Array(Math.ceil(bytes.length / blockBytes));
  checksum().crc32cBlocks(bytes, blockBytes, checksums);
  return checksums;
}

/** The name of the kernel in use: `portable`, `sse42`, `avx512` or `avx512-streams` on x86-64, `armv8` on arm64. */
export function crc32cKernel(): string {
  return checksum().selectedKernel();
}
