import type { WriteOptions } from './block-device.ts';

/** Counts what is in flight, so that `close` can wait until nothing is. Nothing new may come once it waits. */
export class InFlight {
  #count = 0;
  #onDrained: (() => void) | undefined;

  get count(): number {
    return this.#count;
  }

  enter(): void {
    this.#count++;
  }

  leave(): void {
    this.#count--;
    if (this.#count === 0) this.#onDrained?.();
  }

  /** Counts until the work is over. */
  async hold<T>(work: () => Promise<T>): Promise<T> {
    this.enter();
    try {
      return await work();
    } finally {
      this.leave();
    }
  }

  async drained(): Promise<void> {
    if (this.#count === 0) return;
    await new Promise<void>((resolve) => {
      this.#onDrained = resolve;
    });
  }
}

/** A write that calls back when it is over, whole or failed: a promise's reaction for each would cost more than the write. */
export const watchedWrite = Symbol('watchedWrite');
export interface WatchedWriter {
  [watchedWrite](
    offset: number,
    buffer: Uint8Array,
    options: WriteOptions | undefined,
    over: () => void,
  ): Promise<void>;
}
