/**
 * A region in memory whose commands take their time, by a seed: any interleaving of several users that the rules of
 * RegionAccess allow. Reads and writes go line by line (64 bytes), and others get in between; the commands of one
 * session are executed in the order of the calls. A guard and its write are one to compare-and-swap, as the unit has it.
 */
import { HoldfastError } from '../../lib/base/errors.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import type { Scheduler } from '../../lib/testing/scheduler.ts';
import type { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const LINE_BYTES = 64;

export class ScheduledRegion {
  readonly #scheduler: Scheduler;
  readonly #random: SimulatedRandom;
  readonly #memory: Uint8Array;
  #guardedWrites = 0;
  #changes = 1;
  #watches: (() => void)[] = [];

  constructor(scheduler: Scheduler, random: SimulatedRandom, content: Uint8Array) {
    this.#scheduler = scheduler;
    this.#random = random;
    this.#memory = content.slice();
  }

  /** One session of its own. */
  access(): RegionAccess {
    let last: Promise<unknown> = Promise.resolve();
    /** In its turn; then the answer takes a while. */
    const inTurn = async <T>(work: () => Promise<T>): Promise<T> => {
      const done = last.then(() => this.#pause(300)).then(work);
      last = done.catch(() => {});
      await last;
      await this.#pause(300);
      return done;
    };
    return {
      unit: 'memory',
      range: { base: 0, lengthBytes: this.#memory.length },
      epoch: 1,
      open: true,
      read: (address, target) =>
        inTurn(() =>
          this.#eachLine(address, target.length, (at, length) =>
            target.set(this.#memory.subarray(address + at, address + at + length), at),
          ),
        ),
      write: async (address, chunks, options) => {
        const bytes = Buffer.concat(chunks);
        await inTurn(async () => {
          const { guard } = options ?? {};
          if (guard !== undefined && this.#word(guard.address) !== guard.expected)
            throw new HoldfastError('ERR_HOLDFAST_FENCED', 'the guard does not hold');
          this.#guardedWrites++;
          await this.#eachLine(address, bytes.length, (at, length) =>
            this.#memory.set(bytes.subarray(at, at + length), address + at),
          );
          this.#guardedWrites--;
          this.#changed();
        });
        if (options?.persist) await this.#pause(1000);
      },
      persist: async () => {
        await inTurn(async () => {});
        await this.#pause(1000);
      },
      compareAndSwap: (address, expected, desired) =>
        inTurn(async () => {
          while (this.#guardedWrites > 0) await this.#pause(20);
          const before = this.#word(address);
          if (before === expected) Buffer.from(this.#memory.buffer).writeBigUInt64LE(desired, address);
          this.#changed();
          return before;
        }),
      watch: async (_address, _length, since, options) => {
        while (this.#changes === since)
          await new Promise<void>((resolve, reject) => {
            this.#watches.push(resolve);
            const cancelled = () => reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'a watch was cancelled'));
            if (options?.signal?.aborted) cancelled();
            options?.signal?.addEventListener('abort', cancelled, { once: true });
          });
        await this.#pause(300);
        return this.#changes;
      },
    };
  }

  async #eachLine(address: number, lengthBytes: number, visit: (at: number, length: number) => void): Promise<void> {
    for (let at = 0; at < lengthBytes; ) {
      const length = Math.min(lengthBytes - at, LINE_BYTES - ((address + at) % LINE_BYTES));
      visit(at, length);
      at += length;
      // Most often at once, now and then after so long that others have done a lot meanwhile.
      if (this.#random.chance(0.1)) await this.#pause(this.#random.chance(0.1) ? 3000 : 20);
    }
  }

  #changed(): void {
    this.#changes++;
    for (const wake of this.#watches.splice(0)) wake();
  }

  #word(address: number): bigint {
    return Buffer.from(this.#memory.buffer).readBigUInt64LE(address);
  }

  #pause(mostUs: number): Promise<void> {
    return new Promise((resolve) => this.#scheduler.schedule(this.#random.below(mostUs + 1), resolve));
  }
}
