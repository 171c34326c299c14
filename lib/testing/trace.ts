/**
 * The trace of a simulation: every event leaves a line in a running hash, so that two runs of one seed can be compared
 * by one word, and the last lines are kept for whoever has to read a failure.
 *
 * The hash is FNV-1a over the lines' UTF-16 units (over the numbers themselves, where an event has some), in two
 * independent 32-bit lanes. It tells runs apart; it is no protection against anyone. A line that is not kept is not
 * built: that is most of what a trace costs.
 */

const FNV_PRIME = 0x01000193;
const LANE_SEEDS = [0x811c9dc5, 0x9747b28c] as const;

/** How much of a trace is kept. */
export interface TraceOptions {
  /** How many of the last lines are kept. Default 200; 0: the hash alone. */
  readonly keepLines?: number;
}

/** What happened in a simulation: a hash over all lines, so that two runs compare by one word, and the last lines. */
export class Trace {
  readonly #kept: string[] = [];
  readonly #keepLines: number;
  #laneA: number = LANE_SEEDS[0];
  #laneB: number = LANE_SEEDS[1];
  #count = 0;

  constructor(options: TraceOptions = {}) {
    this.#keepLines = options.keepLines ?? 200;
  }

  /** Lines so far. */
  get count(): number {
    return this.#count;
  }

  /** Adds a line to the hash, and to those kept. */
  add(line: string): void {
    this.#mixText(line);
    if (this.#keepLines > 0) this.#keep(line);
    this.#count++;
  }

  /** An event with numbers (whole ones): who did what, at which microsecond, to how much. */
  event(atUs: number, who: string, what: string, first: number, second: number): void {
    this.#mixText(who);
    this.#mixText(what);
    this.#mix(atUs);
    this.#mix(first);
    this.#mix(second);
    if (this.#keepLines > 0) this.#keep(`${atUs} ${who} ${what} ${first} ${second.toString(16)}`);
    this.#count++;
  }

  #keep(line: string): void {
    this.#kept[this.#count % this.#keepLines] = line;
  }

  #mixText(text: string): void {
    let laneA = this.#laneA;
    let laneB = this.#laneB;
    for (let index = 0; index < text.length; index++) {
      const unit = text.charCodeAt(index);
      laneA = Math.imul(laneA ^ unit, FNV_PRIME);
      laneB = Math.imul(laneB ^ (unit + index), FNV_PRIME);
    }
    // The end of the text counts too: "ab" + "c" is not "a" + "bc".
    this.#laneA = Math.imul(laneA ^ 0x100, FNV_PRIME);
    this.#laneB = Math.imul(laneB ^ 0x100, FNV_PRIME);
  }

  /** All of its 53 bits count. */
  #mix(number: number): void {
    const high = Math.floor(number / 2 ** 32);
    this.#laneA = Math.imul(Math.imul(this.#laneA ^ (number | 0), FNV_PRIME) ^ high, FNV_PRIME);
    this.#laneB = Math.imul(Math.imul(this.#laneB ^ high, FNV_PRIME) ^ (number | 0), FNV_PRIME) + 1;
  }

  /** 16 hexadecimal digits that stand for all lines so far. */
  hash(): string {
    const hex = (lane: number): string => (lane >>> 0).toString(16).padStart(8, '0');
    return hex(this.#laneA) + hex(this.#laneB);
  }

  /** The lines kept, oldest first. */
  lastLines(): string[] {
    const start = this.#count % this.#keepLines;
    if (this.#count <= this.#keepLines) return [...this.#kept];
    return [...this.#kept.slice(start), ...this.#kept.slice(0, start)];
  }
}
