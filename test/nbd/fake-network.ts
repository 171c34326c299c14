/** A network and a clock in the hands of a test: it says what arrives, what is taken, and what time it is. */
import type { Clock } from '../../lib/base/clock.ts';
import type { Environment } from '../../lib/base/environment.ts';
import type { Connection, ConnectionHandler, Network } from '../../lib/base/network.ts';
import { systemRandom } from '../../lib/base/random.ts';

const HIGH_WATER_BYTES = 1024 * 1024;

export class FakeConnection implements Connection {
  readonly remote = 'a client';
  readonly transportIdentity = undefined;
  /** False: nothing that is written leaves any more. */
  taking = true;
  bufferedBytes = 0;
  paused = false;
  ended = false;
  destroyed = false;
  #written: Uint8Array[] = [];
  #waiting: (() => void)[] = [];
  #handler: ConnectionHandler | undefined;
  #wantsDrain = false;

  start(handler: ConnectionHandler): void {
    this.#handler = handler;
  }

  write(chunks: readonly Uint8Array[], onGone: () => void = () => {}): boolean {
    if (this.destroyed || this.taking) queueMicrotask(onGone);
    else this.#waiting.push(onGone);
    if (this.destroyed) return false;
    for (const chunk of chunks) {
      this.#written.push(chunk.slice());
      if (!this.taking) this.bufferedBytes += chunk.length;
    }
    this.#wantsDrain = this.bufferedBytes > HIGH_WATER_BYTES;
    return !this.#wantsDrain;
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
  }

  end(): void {
    this.ended = true;
  }

  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    queueMicrotask(() => this.#handler?.onClose(undefined));
  }

  // What the test does

  receive(bytes: Uint8Array): void {
    this.#handler!.onData(bytes);
  }

  /** The other end takes all that is buffered. */
  drain(): void {
    this.taking = true;
    this.bufferedBytes = 0;
    for (const onGone of this.#waiting.splice(0)) onGone();
    if (!this.#wantsDrain) return;
    this.#wantsDrain = false;
    this.#handler!.onDrain();
  }

  /** The other end goes away. */
  vanish(): void {
    this.destroyed = true;
    this.#handler!.onClose(undefined);
  }

  /** What was written since the last call. */
  takeWritten(): Buffer {
    const bytes = Buffer.concat(this.#written);
    this.#written = [];
    return bytes;
  }
}

export class FakeClock implements Clock {
  #nowMs = 0;
  readonly #timers = new Set<{ readonly atMs: number; readonly callback: () => void }>();

  nowMs(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return this.#nowMs;
  }

  setTimer(delayMs: number, callback: () => void): { cancel(): void } {
    const timer = { atMs: this.#nowMs + delayMs, callback };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }

  get timers(): number {
    return this.#timers.size;
  }

  advance(ms: number): void {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      const [next] = [...this.#timers].filter((timer) => timer.atMs <= untilMs).sort((a, b) => a.atMs - b.atMs);
      if (next === undefined) break;
      this.#timers.delete(next);
      this.#nowMs = next.atMs;
      next.callback();
    }
    this.#nowMs = untilMs;
  }
}

export interface FakeEnvironment extends Environment {
  readonly clock: FakeClock;
  /** A client comes to the server that listens. */
  arrive(): FakeConnection;
  /** The connection that the next `connect` gets. */
  readonly outgoing: FakeConnection;
}

export function fakeEnvironment(): FakeEnvironment {
  let accept: ((connection: Connection) => void) | undefined;
  const outgoing = new FakeConnection();
  const network: Network = {
    async listen(address, _options, accepting) {
      accept = accepting;
      return { address, close: async () => {} };
    },
    async connect() {
      return outgoing;
    },
  };
  return {
    clock: new FakeClock(),
    random: systemRandom,
    network,
    outgoing,
    arrive() {
      const connection = new FakeConnection();
      accept!(connection);
      return connection;
    },
  };
}

/** Lets everything that is ready run. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 5; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}
