/**
 * What the ring counts of the operations on a file, made readable. Native counts, in the layout of
 * native/ring/statistics.h: log-linear buckets, eight to a power of two, so a time reported is at most an eighth too
 * high. Times run from the hand-over to the kernel (or the threads) until the result is taken: what a request waits for
 * a place in the ring is not in them.
 */

/** One kind of operation. Times in nanoseconds. */
export interface OperationStatistics {
  readonly operations: number;
  /** How many of them failed. */
  readonly errors: number;
  /** Moved, zeroed or discarded by those that succeeded. */
  readonly bytes: number;
  readonly meanNs: number;
  readonly maxNs: number;
  /** The time that this share of all operations, 0 to 1, did not exceed. 0 if there were none. */
  quantileNs(share: number): number;
  /** The buckets that hold any, lowest first: the longest time that falls into it, and how many did. */
  histogram(): { readonly toNs: number; readonly operations: number }[];
}

/** What the operations on one device came to since it was opened, by kind. A request may be several operations. */
export interface IoStatistics {
  readonly reads: OperationStatistics;
  readonly writes: OperationStatistics;
  readonly flushes: OperationStatistics;
  /** Zeroing and discarding. */
  readonly ranges: OperationStatistics;
  /** Operations handed over and not over: now, and the most that there ever were. */
  readonly inFlight: number;
  readonly inFlightMax: number;
}

const timeBuckets = (36 - 2) * 8;
const figuresPerClass = 5 + timeBuckets;

/** How many figures native adds up for one file. */
export const statisticsFigures = 4 * figuresPerClass;

/** The longest time that falls into a bucket. */
function topOf(bucket: number): number {
  if (bucket < 16) return bucket;
  const shift = (bucket >>> 3) - 1;
  return (8 + (bucket & 7) + 1) * 2 ** shift - 1;
}

class Counted implements OperationStatistics {
  readonly operations: number;
  readonly errors: number;
  readonly bytes: number;
  readonly meanNs: number;
  readonly maxNs: number;
  readonly #times: Float64Array;

  constructor(figures: Float64Array) {
    this.operations = figures[0]!;
    this.errors = figures[1]!;
    this.bytes = figures[2]!;
    this.meanNs = this.operations === 0 ? 0 : figures[3]! / this.operations;
    this.maxNs = figures[4]!;
    this.#times = figures.subarray(5);
  }

  quantileNs(share: number): number {
    const wanted = Math.max(1, Math.ceil(share * this.operations));
    let seen = 0;
    for (let bucket = 0; bucket < timeBuckets; bucket++) {
      seen += this.#times[bucket]!;
      if (seen >= wanted) return Math.min(topOf(bucket), this.maxNs);
    }
    return this.maxNs;
  }

  histogram(): { readonly toNs: number; readonly operations: number }[] {
    const found: { toNs: number; operations: number }[] = [];
    this.#times.forEach((operations, bucket) => {
      if (operations > 0) found.push({ toNs: topOf(bucket), operations });
    });
    return found;
  }
}

/** Reads the figures that native has added up. */
export function readStatistics(figures: Float64Array, inFlight: number, inFlightMax: number): IoStatistics {
  const counted = (index: number) =>
    new Counted(figures.subarray(index * figuresPerClass, (index + 1) * figuresPerClass));
  return { reads: counted(0), writes: counted(1), flushes: counted(2), ranges: counted(3), inFlight, inFlightMax };
}
