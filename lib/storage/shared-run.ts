/**
 * Work of which one run goes on at a time; all who ask for it meanwhile share the next run, which begins when this one
 * is over. For flushes: the kernel tells a failed write-back to one of those who wait for it, and calls the others good,
 * so that two at once could not both be believed.
 */
export class SharedRun {
  readonly #work: () => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(work: () => Promise<void>) {
    this.#work = work;
  }

  /** Settles as a run does that begins after this call. */
  run(): Promise<void> {
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#begin();
    const begin = () => this.#begin();
    this.#next = this.#running.then(begin, begin);
    return this.#next;
  }

  /** Resolves when nothing runs and nobody waits. */
  async idle(): Promise<void> {
    while (this.#running !== undefined) await Promise.allSettled([this.#next ?? this.#running]);
  }

  #begin(): Promise<void> {
    this.#next = undefined;
    const running = this.#work();
    this.#running = running;
    const over = () => {
      if (this.#running === running) this.#running = undefined;
    };
    running.then(over, over);
    return running;
  }
}
