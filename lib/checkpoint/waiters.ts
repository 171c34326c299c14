/** Those who wait for one thing that comes later, or fails. Bounded; each can be cancelled. */
import { HoldfastError, throwIfAborted } from '../base/errors.ts';

const WAITING_MAX = 256;

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export class Waiters {
  /** What is waited for, in words. */
  readonly #what: string;
  readonly #waiting = new Set<Waiter>();

  constructor(what: string) {
    this.#what = what;
  }

  /** @throws HoldfastError ERR_HOLDFAST_ABORTED, or ERR_HOLDFAST_QUEUE_FULL if too many wait already. */
  async wait(signal?: AbortSignal): Promise<void> {
    throwIfAborted(signal, `waiting for ${this.#what}`);
    if (this.#waiting.size >= WAITING_MAX)
      throw new HoldfastError('ERR_HOLDFAST_QUEUE_FULL', `${WAITING_MAX} wait for ${this.#what} already; ask later`);
    let waiter: Waiter | undefined;
    let aborted: (() => void) | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        waiter = { resolve, reject };
        this.#waiting.add(waiter);
        const message = `waiting for ${this.#what} was cancelled`;
        aborted = () => reject(new HoldfastError('ERR_HOLDFAST_ABORTED', message, { cause: signal?.reason }));
        signal?.addEventListener('abort', aborted, { once: true });
      });
    } finally {
      if (waiter !== undefined) this.#waiting.delete(waiter);
      if (aborted !== undefined) signal?.removeEventListener('abort', aborted);
    }
  }

  resolveAll(): void {
    for (const { resolve } of this.#waiting) resolve();
  }

  rejectAll(error: unknown): void {
    for (const { reject } of this.#waiting) reject(error);
  }
}
