/** The clients of `holdfast demo-pair`: they order by HTTP from whichever process takes it, and remember what they were promised. */
import type { Clock } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';

const PAUSE_MS = 10;
/** A process that was killed answers nothing; one whose unit is gone, late. */
const ANSWER_MS = 2000;
/** An order is tried for so long. */
const PATIENCE_MS = 30_000;

export class PairOrders {
  /** Of the services, by name. */
  readonly ports = new Map<string, number>();
  /** Promised to a client. */
  readonly acknowledged = new Set<number>();
  readonly #clock: Clock;
  readonly #clients: Promise<void>[] = [];
  readonly #abandoned = new AbortController();
  #last = 0;
  #stopped = false;
  #longestMs = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Orders that were sent, whatever became of them. */
  get sent(): number {
    return this.#last;
  }

  start(clients: number): void {
    for (let index = 0; index < clients; index++) {
      const client = this.#work();
      // Told by `stop`; a demo that has ended before does not ask.
      client.catch(() => {});
      this.#clients.push(client);
    }
  }

  /** Nobody waits for what is still under way. */
  abandon(): void {
    this.#stopped = true;
    this.#abandoned.abort();
  }

  /** Resolves when every client has its last answer; rejects if one had none for too long. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#clients);
  }

  /** Longest time from an order to its promise since it was last asked. */
  takeLongestMs(): number {
    const longest = this.#longestMs;
    this.#longestMs = 0;
    return Math.ceil(longest);
  }

  /** The ids of all orders, as the primary has them. */
  async all(): Promise<number[]> {
    return this.#insist(async (port) => {
      const orders = (await ask(port, 'GET')) as { id: number }[];
      return orders.map(({ id }) => id);
    });
  }

  async #work(): Promise<void> {
    while (!this.#stopped) {
      this.#last += 1;
      const id = this.#last;
      const startMs = this.#clock.nowMs();
      await this.#insist((port) => ask(port, 'POST', { id, item: `item ${id}` }));
      this.acknowledged.add(id);
      this.#longestMs = Math.max(this.#longestMs, this.#clock.nowMs() - startMs);
    }
  }

  /** One after the other, until one has done it. */
  async #insist<T>(request: (port: number) => Promise<T>): Promise<T> {
    const deadlineMs = this.#clock.nowMs() + PATIENCE_MS;
    for (;;) {
      for (const port of [...this.ports.values()]) {
        try {
          return await request(port);
        } catch (cause) {
          this.#abandoned.signal.throwIfAborted();
          if (this.#clock.nowMs() < deadlineMs) continue;
          throw new HoldfastError('ERR_HOLDFAST_DEMO', `an order had no answer for ${PATIENCE_MS / 1000} s`, { cause });
        }
      }
      await new Promise<void>((resolve) => void this.#clock.setTimer(PAUSE_MS, resolve));
      this.#abandoned.signal.throwIfAborted();
    }
  }
}

async function ask(port: number, method: 'GET' | 'POST', order?: object): Promise<unknown> {
  const response = await fetch(`http://127.0.0.1:${port}/orders`, {
    method,
    signal: AbortSignal.timeout(ANSWER_MS),
    ...(order && { body: JSON.stringify(order) }),
  });
  const answer: unknown = await response.json();
  if (!response.ok) throw new Error(`status ${response.status}: ${JSON.stringify(answer)}`);
  return answer;
}
