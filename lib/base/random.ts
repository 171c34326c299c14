/** Randomness, as the one seam through which all of the library sees it. */
import { randomFillSync } from 'node:crypto';

/** Random numbers as the library sees them. */
export interface Random {
  /** Fills the bytes with random ones (cryptographic in production). */
  fill(bytes: Uint8Array): void;
  /** A whole number, 0 ≤ n < limit, limit ≤ 2^32. */
  below(limit: number): number;
}

export const systemRandom: Random = {
  fill(bytes) {
    randomFillSync(bytes);
  },
  below(limit) {
    const word = new Uint32Array(1);
    randomFillSync(word);
    return Math.floor((word[0]! / 2 ** 32) * limit);
  },
};
