/** Whether a leg of a mirrored region answers in time, and what is left of commands once it is given up. */
import { expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { LegLink, TICKS } from '../../lib/checkpoint/mirror-link.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { codeOf } from './mirror-stage.ts';

const MIB = 1024 * 1024;
const gaveUp = new HoldfastError('ERR_HOLDFAST_TIMEOUT', 'it hangs');

/** Commands end when the test says so. */
class Bench {
  readonly ends: (() => void)[] = [];
  busy = 0;
  readonly link = new LegLink({ unit: 'unit-a' } as RegionAccess, () => {
    this.busy += 1;
  });

  start(lengthBytes = 8): Promise<string> {
    const result = this.link.run(lengthBytes, (_access, signal) => {
      return new Promise<void>((resolve, reject) => {
        this.ends.push(resolve);
        signal.addEventListener('abort', () => reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'withdrawn')));
      });
    });
    return result.then(
      () => 'done',
      (error: unknown) => codeOf(error),
    );
  }

  async end(index: number): Promise<void> {
    this.ends[index]!();
    await new Promise(setImmediate);
  }

  /** Which of so many ticks say that it is late. */
  ticks(count: number): boolean[] {
    return Array.from({ length: count }, () => this.link.tick());
  }
}

const inTime = (count: number): boolean[] => new Array<boolean>(count).fill(false);

test('a command has its ticks, whole ones', () => {
  const bench = new Bench();
  void bench.start();
  expect(bench.ticks(TICKS + 2)).toEqual([...inTime(TICKS), true, true]);
});

test('one that is about much has more', () => {
  const bench = new Bench();
  void bench.start(16 * MIB + 1);
  expect(bench.ticks(2 * TICKS + 1)).toEqual([...inTime(2 * TICKS), true]);
});

test('a long queue is no hang: the oldest one counts, from when it is the oldest', async () => {
  const bench = new Bench();
  for (let count = 0; count < 10; count++) void bench.start();
  for (let index = 0; index < 9; index++) {
    expect(bench.ticks(TICKS)).toEqual(inTime(TICKS));
    await bench.end(index);
  }
  expect(bench.ticks(TICKS + 1)).toEqual([...inTime(TICKS), true]);
  await bench.end(9);
  expect(bench.ticks(1)).toEqual([false]);
});

test('one that is overtaken by others counts all the same', async () => {
  const bench = new Bench();
  void bench.start();
  for (let tick = 0; tick < TICKS; tick++) {
    void bench.start();
    expect(bench.link.tick()).toBe(false);
    await bench.end(tick + 1);
  }
  expect(bench.link.tick()).toBe(true);
});

test('what may take any time is not counted', () => {
  const bench = new Bench();
  void bench.link.wait(() => new Promise(() => {}));
  expect(bench.ticks(3 * TICKS)).toEqual(inTime(3 * TICKS));
  expect([bench.link.isBusy, bench.busy]).toEqual([false, 0]);
});

test('it tells when it becomes busy', async () => {
  const bench = new Bench();
  void bench.start();
  void bench.start();
  expect(bench.busy).toBe(1);
  await bench.end(0);
  await bench.end(1);
  expect(bench.link.isBusy).toBe(false);
  void bench.start();
  expect(bench.busy).toBe(2);
});

test('given up: commands under way are withdrawn, with the reason, and no more are given', async () => {
  const bench = new Bench();
  const commands = [bench.start(), bench.start()];
  bench.link.giveUp(gaveUp);
  commands.push(bench.start());
  expect(await Promise.all(commands)).toEqual(new Array(3).fill('ERR_HOLDFAST_TIMEOUT'));
  expect(bench.ends.length).toBe(2);
  expect(bench.link.isBusy).toBe(false);
});

test('with many commands under way Node.js warned of a leak of listeners', async () => {
  const warnings: string[] = [];
  const onWarning = ({ name }: Error): void => void warnings.push(name);
  process.on('warning', onWarning);
  const bench = new Bench();
  for (let count = 0; count < 64; count++) void bench.start();
  await new Promise(setImmediate);
  process.off('warning', onWarning);
  expect(warnings).toEqual([]);
});
