/** One leg is made like the other one: which chunks are under way, and where stores have to wait. */
import { expect, test } from 'vitest';
import { LegCopy, type LegCopyOptions } from '../../lib/checkpoint/mirror-copy.ts';
import { LegLink } from '../../lib/checkpoint/mirror-link.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';

const CHUNK_BYTES = 16;
const BASE = 64;

interface Command {
  readonly what: string;
  readonly end: (error?: Error) => void;
}

/** Commands of either leg end when the test says so. */
class Bench {
  readonly commands: Command[] = [];
  readonly memory: readonly [Uint8Array, Uint8Array];
  readonly failures: string[] = [];
  obstacle: Promise<void> | undefined;
  freed = 0;
  readonly copy: LegCopy;
  readonly result: Promise<boolean>;

  constructor(chunks: number, options: Partial<LegCopyOptions> = {}) {
    const lengthBytes = chunks * CHUNK_BYTES - 3;
    this.memory = [new Uint8Array(lengthBytes).fill(7), new Uint8Array(lengthBytes)];
    this.copy = new LegCopy({
      from: { leg: 0, link: new LegLink(this.#access(0), () => {}) },
      to: { leg: 1, link: new LegLink(this.#access(1), () => {}) },
      range: { base: BASE, lengthBytes },
      chunkBytes: CHUNK_BYTES,
      chunksAhead: 2,
      compare: false,
      obstacle: () => this.obstacle,
      onFree: () => {
        this.freed += 1;
      },
      onProgress: () => {},
      onFailed: ({ leg }, error) => {
        this.failures.push(`${'ab'[leg]}: ${(error as Error).message}`);
        this.copy.stop();
      },
      ...options,
    });
    this.result = this.copy.run();
  }

  get underWay(): string[] {
    return this.commands.map(({ what }) => what);
  }

  async end(what: string, error?: Error): Promise<void> {
    const index = this.underWay.indexOf(what);
    expect(index, `${what} is under way`).toBeGreaterThanOrEqual(0);
    this.commands.splice(index, 1)[0]!.end(error);
    await new Promise(setImmediate);
  }

  async endAll(): Promise<boolean> {
    while (this.commands.length > 0) await this.end(this.commands[0]!.what);
    return this.result;
  }

  held(at: number): boolean {
    return this.copy.holds(BASE + at, 1);
  }

  #access(leg: 0 | 1): RegionAccess {
    const run = (what: string, address: number, work: () => void): Promise<void> =>
      new Promise((resolve, reject) => {
        const end = (error?: Error): void => {
          if (error !== undefined) {
            reject(error);
            return;
          }
          work();
          resolve();
        };
        this.commands.push({ what: `${what} ${'ab'[leg]} ${address - BASE}`, end });
      });
    const at = (address: number): number => address - BASE;
    return {
      read: (address: number, target: Uint8Array) =>
        run('read', address, () => target.set(this.memory[leg].subarray(at(address), at(address) + target.length))),
      write: (address: number, [bytes]: readonly Uint8Array[]) =>
        run('write', address, () => this.memory[leg].set(bytes!, at(address))),
    } as RegionAccess;
  }
}

test('chunks are under way side by side, so many and no more, and all is copied', async () => {
  const bench = new Bench(5);
  expect(bench.underWay).toEqual(['read a 0', 'read a 16']);
  await bench.end('read a 16');
  expect(bench.underWay).toEqual(['read a 0', 'write b 16']);
  await bench.end('write b 16');
  expect(bench.underWay).toEqual(['read a 0', 'read a 32']);
  expect(bench.copy.doneBytes).toBe(16);
  expect(await bench.endAll()).toBe(true);
  expect(bench.memory[1]).toEqual(bench.memory[0]);
  expect(bench.copy.doneBytes).toBe(bench.memory[0].length);
});

test('a store waits while its chunk is read, not until the target has it', async () => {
  const bench = new Bench(4);
  expect([15, 16, 31, 32].map((at) => bench.held(at))).toEqual([true, true, true, false]);
  await bench.end('read a 0');
  expect([0, 15, 16].map((at) => bench.held(at))).toEqual([false, false, true]);
  expect(bench.freed).toBe(1);
  expect(bench.copy.holds(BASE + 16, 0)).toBe(false);
});

test('what is alike is not stored', async () => {
  const bench = new Bench(3, { compare: true });
  bench.memory[1].fill(7, 0, 16);
  await bench.end('read a 0');
  expect(bench.held(0)).toBe(true);
  await bench.end('read b 0');
  expect(bench.held(0)).toBe(false);
  expect(bench.underWay).toEqual(['read a 16', 'read b 16', 'read a 32', 'read b 32']);
  expect(await bench.endAll()).toBe(true);
  expect(bench.memory[1]).toEqual(bench.memory[0]);
});

test('no chunk begins while there is an obstacle', async () => {
  const bench = new Bench(4);
  let go!: () => void;
  bench.obstacle = new Promise((resolve) => {
    go = resolve;
  });
  await bench.end('read a 0');
  await bench.end('write b 0');
  expect(bench.underWay).toEqual(['read a 16']);
  bench.obstacle = undefined;
  go();
  await new Promise(setImmediate);
  expect(bench.underWay).toEqual(['read a 16', 'read a 32']);
  expect(await bench.endAll()).toBe(true);
});

test('a leg fails: nothing is stored any more, and nothing is held', async () => {
  const bench = new Bench(5);
  await bench.end('read a 0');
  await bench.end('write b 0', new Error('no'));
  expect(bench.failures).toEqual(['b: no']);
  expect(bench.held(16)).toBe(false);
  await bench.end('read a 16');
  expect(bench.underWay).toEqual([]);
  expect(await bench.result).toBe(false);
  expect(bench.memory[1].every((byte) => byte === 0)).toBe(true);
});
