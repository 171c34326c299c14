/**
 * A client of the demo: it works on one server and, when that one is gone, repeats what was not answered through the
 * other. To repeat is safe because nobody else writes the same blocks.
 */
import type { Clock } from '../base/clock.ts';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import type { NodeName } from './demo-cluster.ts';
import type { WorkloadClient } from './demo-workload.ts';

const DIAL_AGAIN_MS = 50;
const DIAL_PATIENCE_MS = 60_000;

export interface DemoClientOptions {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** Where it works to begin with, and where it goes when that is gone. */
  readonly servers: readonly [NodeName, NodeName];
  readonly connect: (server: NodeName) => Promise<BlockDevice>;
}

export class DemoClient implements WorkloadClient, AsyncDisposable {
  readonly #options: DemoClientOptions;
  readonly #underWay = new Set<Promise<void>>();
  #at: NodeName;
  #device: Promise<BlockDevice> | undefined;

  constructor(options: DemoClientOptions) {
    this.#options = options;
    this.#at = options.servers[0];
  }

  /** The server that it works on now. */
  get at(): NodeName {
    return this.#at;
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#perform((device) => device.write(offset, bytes));
  }

  read(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#perform((device) => device.read(offset, bytes));
  }

  /** Works on another server from now on; what is under way ends where it is. */
  async moveTo(server: NodeName): Promise<void> {
    const before = [...this.#underWay];
    const old = this.#device;
    const device = await this.#options.connect(server);
    this.#at = server;
    this.#device = Promise.resolve(device);
    await Promise.allSettled(before);
    await old?.then((one) => one.close()).catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#device?.then((device) => device.close()).catch(() => {});
  }

  async #perform(request: (device: BlockDevice) => Promise<void>): Promise<void> {
    const running = this.#untilAnswered(request);
    this.#underWay.add(running);
    try {
      await running;
    } finally {
      this.#underWay.delete(running);
    }
  }

  async #untilAnswered(request: (device: BlockDevice) => Promise<void>): Promise<void> {
    for (;;) {
      this.#device ??= this.#dial();
      const connection = this.#device;
      const device = await connection;
      try {
        await request(device);
        return;
      } catch (error) {
        if (!isGone(error)) throw error;
        if (this.#device === connection) this.#leave(device);
      }
    }
  }

  #leave(device: BlockDevice): void {
    this.#at = this.#other;
    this.#device = undefined;
    device.close().catch(() => {});
  }

  get #other(): NodeName {
    const [first, second] = this.#options.servers;
    return this.#at === first ? second : first;
  }

  /** Tries the server where it is, then the other, in turns. */
  async #dial(): Promise<BlockDevice> {
    const { clock, signal, connect } = this.#options;
    const deadlineMs = clock.nowMs() + DIAL_PATIENCE_MS;
    for (;;) {
      signal.throwIfAborted();
      try {
        return await connect(this.#at);
      } catch (cause) {
        if (clock.nowMs() > deadlineMs)
          throw new HoldfastError('ERR_HOLDFAST_DEMO', 'neither server takes a client', { cause });
        await new Promise<void>((resolve) => clock.setTimer(DIAL_AGAIN_MS, resolve));
        this.#at = this.#other;
      }
    }
  }
}

function isGone(error: unknown): boolean {
  return isHoldfastError(error, 'ERR_HOLDFAST_NBD_DISCONNECTED');
}
