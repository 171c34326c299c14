/**
 * Seeded randomness for the simulation: xoshiro128** (Blackman and Vigna, "Scrambled linear pseudorandom number
 * generators", 2018), its state filled from the seed by splitmix32.
 *
 * Invariant: a stream depends on its seed and label alone, so that one more draw in one place changes no other stream.
 */
import type { Random } from '../base/random.ts';

function splitmix32(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = state ^ (state >>> 16);
    mixed = Math.imul(mixed, 0x21f0aaad);
    mixed ^= mixed >>> 15;
    mixed = Math.imul(mixed, 0x735a2d97);
    return (mixed ^ (mixed >>> 15)) >>> 0;
  };
}

function labelHash(label: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < label.length; index++) hash = Math.imul(hash ^ label.charCodeAt(index), 0x01000193);
  return hash >>> 0;
}

function rotateLeft(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits));
}

/**
 * Seeded randomness: xoshiro128** (Blackman and Vigna, 2018), its state filled from the seed by splitmix32. A stream
 * depends on its seed and label alone.
 */
export class SimulatedRandom implements Random {
  readonly #seed: number;
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** Any whole number is a seed; its low 53 bits count. */
  constructor(seed: number, label = '') {
    const low = seed >>> 0;
    const high = Math.floor(seed / 2 ** 32) >>> 0;
    this.#seed = seed;
    const next = splitmix32(low ^ Math.imul(high, 0x85ebca6b) ^ labelHash(label));
    this.#a = next();
    this.#b = next();
    this.#c = next();
    this.#d = next() | 1; // The all-zero state would stay zero.
  }

  /** An independent stream of the same seed. */
  fork(label: string): SimulatedRandom {
    return new SimulatedRandom(this.#seed, label);
  }

  /** 32 random bits. */
  word(): number {
    const result = Math.imul(rotateLeft(Math.imul(this.#b, 5), 7), 9) >>> 0;
    const shifted = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= shifted;
    this.#d = rotateLeft(this.#d, 11);
    return result;
  }

  below(limit: number): number {
    return Math.floor((this.word() / 2 ** 32) * limit);
  }

  fill(bytes: Uint8Array): void {
    let word = 0;
    for (let index = 0; index < bytes.length; index++) {
      if ((index & 3) === 0) word = this.word();
      bytes[index] = word & 0xff;
      word >>>= 8;
    }
  }

  /** True with this probability. Draws nothing for 0, so that a fault that is switched off leaves the stream alone. */
  chance(probability: number): boolean {
    return probability > 0 && this.word() / 2 ** 32 < probability;
  }

  /** A fraction between, low ≤ x < high. */
  between(low: number, high: number): number {
    return low + (this.word() / 2 ** 32) * (high - low);
  }
}
