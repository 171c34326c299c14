/**
 * Pace: spreads one peer's commands so that they keep to a rate, without refusing any: each waits until those before it
 * are paid for. Pure; the generic cell rate algorithm (ITU-T I.371, annex A) with a cost for each command.
 *
 * Invariant: in any stretch of time no more begins than the rate gives, and BURST_MS of it.
 */

/** So much of the rate may come at once after a pause. */
const BURST_MS = 100;

/** What each peer may ask of a unit; what is too much waits its turn. Default: no limit. */
export interface Rates {
  /** Commands a second. */
  readonly commandsPerSecond?: number;
  /** Bytes of reads and writes a second. */
  readonly bytesPerSecond?: number;
}

/** The paces of all peers. */
export interface PeerPaces {
  /** For how long, ms, a command of the peer that moves so many bytes waits before it begins. It counts from now on. */
  delayMs(peer: string, nowMs: number, bytes: number): number;
}

/** A new session does not make a peer faster, so the pace is the peer's. As many as there are peers. */
export class PacePerPeer implements PeerPaces {
  readonly #rates: Rates;
  readonly #paces = new Map<string, Pace>();

  constructor(rates: Rates) {
    this.#rates = rates;
  }

  delayMs(peer: string, nowMs: number, bytes: number): number {
    let pace = this.#paces.get(peer);
    if (pace === undefined) {
      pace = new Pace(this.#rates);
      this.#paces.set(peer, pace);
    }
    return pace.delayMs(nowMs, bytes);
  }
}

export class Pace {
  readonly #msPerCommand: number;
  readonly #msPerByte: number;
  /** When all that has begun is paid for: of commands, and of bytes. */
  #commandsPaidMs = Number.NEGATIVE_INFINITY;
  #bytesPaidMs = Number.NEGATIVE_INFINITY;

  constructor({ commandsPerSecond, bytesPerSecond }: Rates) {
    this.#msPerCommand = costMs(commandsPerSecond);
    this.#msPerByte = costMs(bytesPerSecond);
  }

  /** For how long, ms, a command that moves so many bytes waits before it begins. It counts from now on. */
  delayMs(nowMs: number, bytes: number): number {
    const delayMs = Math.max(this.#commandsPaidMs, this.#bytesPaidMs) - BURST_MS - nowMs;
    this.#commandsPaidMs = Math.max(this.#commandsPaidMs, nowMs) + this.#msPerCommand;
    this.#bytesPaidMs = Math.max(this.#bytesPaidMs, nowMs) + bytes * this.#msPerByte;
    return Math.max(0, delayMs);
  }
}

/** Finite, so that no bytes cost nothing. */
function costMs(rate = Number.POSITIVE_INFINITY): number {
  return Math.min(1000 / rate, Number.MAX_VALUE);
}
