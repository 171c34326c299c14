/**
 * Once: executes each forwarded request of a peer's process exactly once, although it may arrive again over a new
 * session. Bounded by what the forwarder has under way: each request says below which number all are settled.
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';

export class Once {
  readonly #maxRequests: number;
  #incarnation = '';
  readonly #results = new Map<number, Promise<void>>();

  constructor(maxRequests: number) {
    this.#maxRequests = maxRequests;
  }

  run(incarnation: string, request: number, doneBelow: number, action: () => Promise<void>): Promise<void> {
    if (incarnation !== this.#incarnation) {
      // A process that is gone asks nothing again.
      this.#incarnation = incarnation;
      this.#results.clear();
    }
    this.#forget(doneBelow);
    const known = this.#results.get(request);
    if (known !== undefined) return known;
    if (this.#results.size >= this.#maxRequests) {
      throw new HoldfastError('ERR_HOLDFAST_BUSY', `more than ${this.#maxRequests} forwarded requests are unsettled`);
    }
    const result = action();
    this.#results.set(request, result);
    // What was refused has not been executed: it may be asked for again. Any other outcome stays the outcome.
    result.catch((error: unknown) => {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_REFUSED')) return;
      // Another process's request can have this number by now.
      if (this.#results.get(request) === result) this.#results.delete(request);
    });
    return result;
  }

  #forget(below: number): void {
    for (const request of this.#results.keys()) {
      if (request >= below) return;
      this.#results.delete(request);
    }
  }
}
