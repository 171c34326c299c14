/**
 * The gate in front of a mirrored region: commands start in the order of the calls, each when nothing is in its way. One
 * that has to wait holds up those behind it, so that their order is kept.
 *
 * Bound: so many run, so many wait; the next one is refused before anything is done.
 */
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import { Fifo } from '../peer/fifo.ts';

interface Waiting {
  readonly mayStart: () => boolean;
  readonly start: () => void;
  readonly fail: (error: HoldfastError) => void;
  isCancelled: boolean;
}

export class CommandGate {
  readonly #maxRunning: number;
  readonly #maxWaiting: number;
  readonly #waiting = new Fifo<Waiting>();
  #running = 0;
  #failure: HoldfastError | undefined;

  constructor(maxRunning: number, maxWaiting: number) {
    this.#maxRunning = maxRunning;
    this.#maxWaiting = maxWaiting;
  }

  /** Runs the command in its turn. The signal takes it back while it waits. `start` counts as running until `leave`. */
  enter<Result>(
    mayStart: () => boolean,
    start: () => Promise<Result>,
    signal: AbortSignal | undefined,
  ): Promise<Result> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    throwIfAborted(signal, 'the command');
    if (this.#waiting.length === 0 && this.#isFree(mayStart)) return this.#start(start);
    if (this.#waiting.length >= this.#maxWaiting) {
      const message = `${this.#maxWaiting} commands wait for the mirrored region already; wait for some of them`;
      return Promise.reject(new HoldfastError('ERR_HOLDFAST_QUEUE_FULL', message));
    }
    return new Promise((resolve, reject) => {
      const abort = (): void => {
        entry.isCancelled = true;
        reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'the command was cancelled', { cause: signal?.reason }));
        this.pump();
      };
      const over = (): void => signal?.removeEventListener('abort', abort);
      const entry: Waiting = {
        mayStart,
        start: () => {
          over();
          resolve(this.#start(start));
        },
        fail: (error) => {
          over();
          reject(error);
        },
        isCancelled: false,
      };
      signal?.addEventListener('abort', abort, { once: true });
      this.#waiting.push(entry);
    });
  }

  /** A command has ended. */
  leave(): void {
    this.#running -= 1;
    this.pump();
  }

  /** Something that was in the way may be gone. */
  pump(): void {
    for (let next = this.#waiting.peek(); next !== undefined; next = this.#waiting.peek()) {
      if (!next.isCancelled && !this.#isFree(next.mayStart)) return;
      this.#waiting.shift();
      if (!next.isCancelled) next.start();
    }
  }

  /** Those that wait fail, and all that come. */
  close(failure: HoldfastError): void {
    this.#failure = failure;
    for (const waiting of this.#waiting.drain()) waiting.fail(failure);
  }

  #isFree(mayStart: () => boolean): boolean {
    return this.#running < this.#maxRunning && mayStart();
  }

  #start<Result>(start: () => Promise<Result>): Promise<Result> {
    this.#running += 1;
    return start();
  }
}
