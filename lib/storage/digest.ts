/**
 * Checksums and digests of blocks, by name: what a scan and a comparison can be asked for.
 *
 * All but the CRC come from the OpenSSL that is inside of Node, through the addon: node:crypto would need a call, and a
 * copy to a thread, for each block.
 */
import { HoldfastError } from '../base/errors.ts';
import { native } from '../native.ts';
import { crc32cBlocks } from './checksum.ts';

/**
 * What a block is told by:
 *
 * | name      | bytes | key | for                                                                                     |
 * | --------- | ----- | --- | --------------------------------------------------------------------------------------- |
 * | `crc32c`  | 4     | no  | speed: finds damage, misses one different block in 2^32. Stands little-endian           |
 * | `md5`     | 16    | no  | what others have computed; whoever makes up the data can make two blocks that are equal |
 * | `sha1`    | 20    | no  | the same                                                                                |
 * | `sha256`  | 32    | no  | equality of blocks, whoever made them                                                   |
 * | `gmac`    | 16    | yes | confirming equality, several times as fast: the key must be fresh and unknown to        |
 * |           |       |     | whoever made the data (AES-256-GCM's MAC, NIST SP 800-38D, with a fixed nonce)          |
 * | `blake2b` | 32    | yes | the same, and what is seen of the results gives nothing away (RFC 7693)                 |
 */
export type DigestAlgorithm = 'crc32c' | 'md5' | 'sha1' | 'sha256' | 'gmac' | 'blake2b';

/** The length of one result, in bytes. */
export const digestBytes: { readonly [algorithm in DigestAlgorithm]: number } = {
  crc32c: 4,
  md5: 16,
  sha1: 20,
  sha256: 32,
  gmac: 16,
  blake2b: 32,
};

/** All of them, as `algorithm` takes them. */
export const digestAlgorithms = Object.keys(digestBytes) as readonly DigestAlgorithm[];

/** The length of a key for those that take one. */
export const digestKeyBytes = 32;

/** Of all results of one call, in bytes. */
const resultsBytesMax = 2 ** 32;

export function isKeyed(algorithm: DigestAlgorithm): boolean {
  return algorithm === 'gmac' || algorithm === 'blake2b';
}

/**
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT if the name is not known, or the key is not what it takes;
 *   ERR_HOLDFAST_NOT_SUPPORTED if this process's OpenSSL does not do it.
 */
export function checkDigest(algorithm: DigestAlgorithm, key: Uint8Array | undefined): void {
  if (!Object.hasOwn(digestBytes, algorithm))
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `algorithm "${String(algorithm)}" is not known; use ${digestAlgorithms.join(', ')}`,
    );
  if (!isKeyed(algorithm) && key !== undefined)
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${algorithm} takes no key; use gmac or blake2b`);
  if (isKeyed(algorithm) && key?.byteLength !== digestKeyBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `${algorithm} takes a key of ${digestKeyBytes} bytes, random and fresh; not ${key?.byteLength ?? 'none'}`,
    );
  if (algorithm !== 'crc32c' && !native().digest.isAvailable(algorithm, key))
    throw new HoldfastError(
      'ERR_HOLDFAST_NOT_SUPPORTED',
      `the OpenSSL of this runtime does not do ${algorithm} (it is older than 3.0, or in FIPS mode); use crc32c`,
    );
}

/**
 * The digest of each block of `blockBytes` bytes, one after the other; the last block may be short. CRCs are computed
 * at once, digests off the event loop: the bytes stand still until then.
 *
 * @throws HoldfastError as `checkDigest`; ERR_HOLDFAST_BAD_ARGUMENT if a block cannot have that length, or the results are
 *   more than 4 GiB; ERR_HOLDFAST_MEMORY_EXHAUSTED if there is no memory for them.
 */
export async function digestBlocks(
  bytes: Uint8Array,
  blockBytes: number,
  algorithm: DigestAlgorithm,
  key?: Uint8Array,
): Promise<Uint8Array> {
  checkDigest(algorithm, key);
  if (algorithm === 'crc32c') return new Uint8Array(crc32cBlocks(bytes, blockBytes).buffer);
  if (!Number.isSafeInteger(blockBytes) || blockBytes < 1)
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a block has at least one byte, not ${blockBytes}`);
  const resultsBytes = Math.ceil(bytes.byteLength / blockBytes) * digestBytes[algorithm];
  if (resultsBytes > resultsBytesMax)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `the digests of ${bytes.byteLength} bytes in blocks of ${blockBytes} are ${resultsBytes} bytes, more than 4 GiB; ` +
        'use larger blocks, or fewer at once',
    );
  try {
    return await native().digest.digestBlocks(algorithm, key, untransferable(bytes), blockBytes);
  } catch (cause) {
    if ((cause as { code?: unknown }).code === 'ENOMEM')
      throw new HoldfastError('ERR_HOLDFAST_MEMORY_EXHAUSTED', `no memory for ${resultsBytes} bytes of digests`, {
        cause,
      });
    throw new HoldfastError('ERR_HOLDFAST_INTERNAL', `OpenSSL failed to compute a ${algorithm}`, { cause });
  }
}

/** Memory that nobody can take away while a thread reads it: a copy, unless it is shared memory already. */
function untransferable(bytes: Uint8Array): Uint8Array {
  if (bytes.buffer instanceof SharedArrayBuffer) return bytes;
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.byteLength));
  copy.set(bytes);
  return copy;
}
