/**
 * One signal that fires when one of several does, until it is disposed of.
 *
 * As AbortSignal.any; but that leaves something behind at each of the several (Node.js 20), for as long as they live:
 * too much where one that lives long takes part in each of many commands.
 */
import { setMaxListeners } from 'node:events';

export class EitherSignal implements Disposable {
  readonly #sources: readonly AbortSignal[];
  readonly #controller = new AbortController();
  readonly #abort = (event: Event): void => this.#controller.abort((event.target as AbortSignal).reason);

  constructor(...sources: readonly (AbortSignal | undefined)[]) {
    // One command may consist of many.
    setMaxListeners(0, this.#controller.signal);
    this.#sources = sources.filter((source) => source !== undefined);
    for (const source of this.#sources) {
      if (source.aborted) this.#controller.abort(source.reason);
      else source.addEventListener('abort', this.#abort, { once: true });
    }
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** It does not fire any more. */
  [Symbol.dispose](): void {
    for (const source of this.#sources) source.removeEventListener('abort', this.#abort);
  }
}
