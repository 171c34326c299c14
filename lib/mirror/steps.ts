/** Steps: runs asynchronous steps one after the other, in the order in which they were asked for. */
export class Steps {
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  /** No step runs or waits. */
  get idle(): boolean {
    return this.#waiting === 0;
  }

  run<Result>(step: () => Promise<Result>): Promise<Result> {
    this.#waiting += 1;
    const result = this.#last.then(step);
    this.#last = result.then(
      () => this.#done(),
      () => this.#done(),
    );
    return result;
  }

  #done(): void {
    this.#waiting -= 1;
  }
}
