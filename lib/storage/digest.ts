/** Checksums of blocks by name: what a scan and a comparison can be asked for. */

/** `crc32c`: 4 bytes, little-endian. */
export type DigestAlgorithm = 'crc32c';

/** The length of one result, in bytes. */
export const digestBytes: { readonly [algorithm in DigestAlgorithm]: number } = { crc32c: 4 };
