/** Those who only read a mirrored region: what they may be shown, and from where. */
import { getEventListeners } from 'node:events';
import { expect, test, vi } from 'vitest';
import type { Leg } from '../../lib/checkpoint/mirror-standing.ts';
import { MirroredReader, type MirroredReaderOptions } from '../../lib/checkpoint/mirrored-reader.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { legsOf } from '../../lib/testing/simulated-region-units.ts';
import { settle } from './checkpoint-helpers.ts';
import { codeOf, Stage, type StageClient } from './mirror-stage.ts';

function opening(
  stage: Stage,
  client: StageClient,
  options: Partial<MirroredReaderOptions> = {},
): Promise<MirroredReader> {
  return MirroredReader.open({
    clock: client.clock,
    legs: legsOf([stage.a, stage.b], client),
    arbiter: stage.register.arbiterOf(client),
    legMs: 100,
    ...options,
  });
}

async function byteAt(stage: Stage, reader: MirroredReader, address: number): Promise<number> {
  const bytes = new Uint8Array(1);
  await stage.until(reader.read(address, bytes));
  return bytes[0]!;
}

async function rejection(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'no error',
    (error: unknown) => codeOf(error),
  );
}

test('reads from either unit, and goes on when one is lost and when it is back', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  await stage.until(stage.write(access, 0, 1));
  const reader = await stage.until(opening(stage, stage.client('r')));
  expect(await byteAt(stage, reader, 0)).toBe(1);
  stage.a.crash();
  expect(await byteAt(stage, reader, 0)).toBe(1);
  await stage.until(stage.write(access, 0, 2));
  expect(await byteAt(stage, reader, 0)).toBe(2);
  stage.a.start();
  await stage.inSync(access);
  stage.b.crash();
  await stage.until(stage.write(access, 0, 3));
  expect(await byteAt(stage, reader, 0)).toBe(3);
  expect(reader.epoch).toBe(1);
});

test('a leg that is out of sync is not read, although it could be', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  const client = stage.client('r');
  const reader = await stage.until(opening(stage, client));
  const writer = stage.client('next');
  stage.b.cut(writer);
  await access.close();
  const next = await stage.open(writer);
  await stage.until(stage.write(next, 0, 2));
  stage.a.cut(client);
  await stage.pass(100);
  expect(stage.peek(stage.b, 0)).toBe(0);
  expect(await stage.until(rejection(reader.read(0, new Uint8Array(1))))).toBe('ERR_HOLDFAST_NO_UP_TO_DATE_COPY');
  stage.a.mend(client);
  expect(await byteAt(stage, reader, 0)).toBe(2);
});

test('a write that is on one leg alone is not shown: it could still be lost', async () => {
  const stage = new Stage();
  const first = stage.client('first');
  const access = await stage.open(first);
  await stage.until(stage.write(access, 0, 1));
  const reader = await stage.until(opening(stage, stage.client('r')));
  stage.b.cut(first);
  first.isCutFromRegister = true;
  void stage.write(access, 0, 2);
  await stage.pass(100);
  first.process.kill();
  expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([2, 1]);
  const seen = new Uint8Array(1);
  const read = reader.read(0, seen);
  await stage.pass(500);
  // It is lost with its unit.
  stage.a.crash();
  const next = await stage.open(stage.client('next'));
  await stage.until(read);
  expect(seen[0]).toBe(1);
  expect(await stage.read(next, 0)).toBe(1);
});

test('a read waits for both while a writer makes them alike, or is given up', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  const reader = await stage.until(opening(stage, stage.client('r')));
  await access.close();
  stage.register.value = stage.register.value.replace('HFM1 1 ab ', 'HFM1 2 a~b ');
  const controller = new AbortController();
  const given = rejection(reader.read(0, new Uint8Array(8), { signal: controller.signal }));
  await stage.pass(1000);
  controller.abort();
  expect(await stage.until(given)).toBe('ERR_HOLDFAST_ABORTED');
});

test('with `wait` it waits for a leg that only it cannot reach', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  await stage.until(stage.write(access, 0, 1));
  const client = stage.client('r');
  const reader = await stage.until(opening(stage, client, { whenLegAway: 'wait' }));
  stage.b.cut(client);
  let isRead = false;
  const bytes = new Uint8Array(1);
  const read = reader.read(0, bytes).then(() => {
    isRead = true;
  });
  await stage.pass(1000);
  expect(isRead).toBe(false);
  stage.b.mend(client);
  await stage.until(read);
  expect(bytes[0]).toBe(1);
});

test('what it has read is durable on both, and persist goes on after one has lost what was never read', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  await stage.until(access.write(0, [new Uint8Array(8).fill(7)]));
  await stage.until(access.write(64, [new Uint8Array(8).fill(8)]));
  const reader = await stage.until(opening(stage, stage.client('r')));
  expect(await byteAt(stage, reader, 0)).toBe(7);
  for (const { memory } of [stage.a, stage.b]) {
    const durable = new Uint8Array(1);
    memory.peekDurable(0, durable);
    expect(durable[0]).toBe(7);
  }
  stage.b.crash();
  stage.b.start();
  await stage.until(reader.persist(0, 8));
  expect(await byteAt(stage, reader, 0)).toBe(7);
});

test('a watch is told of a write, also after its leg was lost', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  const reader = await stage.until(opening(stage, stage.client('r')));
  const since = await stage.until(reader.watch(0, 8, 0));
  const told = reader.watch(0, 8, since);
  stage.a.crash();
  const moved = await stage.until(told);
  const next = reader.watch(0, 8, moved);
  await stage.until(stage.write(access, 0, 1));
  expect(await stage.until(next)).toBeGreaterThan(moved);
});

test('it stores nothing, opens nothing that nobody has written, and ends', async () => {
  const stage = new Stage();
  const client = stage.client('r');
  expect(await stage.until(rejection(opening(stage, client)))).toBe('ERR_HOLDFAST_NO_UP_TO_DATE_COPY');
  await stage.open(stage.client('w'));
  const reader = await stage.until(opening(stage, client));
  expect(await rejection(reader.write())).toBe('ERR_HOLDFAST_ACCESS');
  expect(await rejection(reader.compareAndSwap())).toBe('ERR_HOLDFAST_ACCESS');
  await reader.close();
  expect(await rejection(reader.read(0, new Uint8Array(8)))).toBe('ERR_HOLDFAST_CLOSED');
});

test('a unit is lost, rebuilt and the only one left: the same reader watches and reads all the while', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  const reader = await stage.until(opening(stage, stage.client('r')));
  let number = await stage.until(reader.watch(0, 8, 0));
  const rounds = [stage.a, stage.b, stage.a];
  for (const [round, unit] of rounds.entries()) {
    unit.crash();
    const told = reader.watch(0, 8, number);
    await stage.until(stage.write(access, 0, round + 1));
    number = await stage.until(told);
    expect(await byteAt(stage, reader, 0)).toBe(round + 1);
    unit.start();
    await stage.inSync(access);
  }
});

test('a watch is told although the leg that it knew is no longer written', async () => {
  const stage = new Stage();
  const writer = stage.client('w');
  const access = await stage.open(writer);
  stage.b.crash();
  await stage.until(stage.write(access, 0, 1));
  const reader = await stage.until(opening(stage, stage.client('r')));
  const number = await stage.until(reader.watch(0, 8, 0));
  stage.b.start();
  await stage.inSync(access);
  stage.a.cut(writer);
  await stage.until(stage.write(access, 64, 1));
  const told = reader.watch(0, 8, number);
  await stage.until(stage.write(access, 0, 2));
  await stage.until(told);
  expect(await byteAt(stage, reader, 0)).toBe(2);
});

/** Legs that hold one byte value each; what they do with a command is for the test to say. */
class Bytes {
  readonly scheduler = new Scheduler();
  readonly clock = new SimulatedClock(this.scheduler, new SimulatedProcess('r'), 0);
  value = `HFM1 1 ab w ${'0'.repeat(16)} 1`;
  readonly holds: [number, number] = [1, 2];
  readonly hangs: [boolean, boolean] = [false, false];
  readonly released: RegionAccess[] = [];
  waiting: (() => void)[] = [];

  open(options: Partial<MirroredReaderOptions> = {}): Promise<MirroredReader> {
    const legs = { units: ['a', 'b'] as const, open: async (leg: Leg) => this.#access(leg), release: this.#release };
    const compareAndSwap = async (expected: string) =>
      this.value === expected ? ({ swapped: true } as const) : { swapped: false as const, current: this.value };
    return this.until(MirroredReader.open({ clock: this.clock, legs, arbiter: { compareAndSwap }, ...options }));
  }

  until<Result>(work: Promise<Result>): Promise<Result> {
    return this.scheduler.runUntil(work, 20_000);
  }

  readonly #release = (access: RegionAccess): void => {
    this.released.push(access);
  };

  #access(leg: Leg): RegionAccess {
    const hold = () => (this.hangs[leg] ? new Promise<void>((resolve) => this.waiting.push(resolve)) : undefined);
    const no = () => Promise.reject(new Error('only reads here'));
    return {
      unit: 'ab'[leg]!,
      range: { base: 0, lengthBytes: 64 },
      epoch: 1,
      open: true,
      read: async (_address, target) => {
        await hold();
        target.fill(this.holds[leg]);
      },
      persist: async () => {},
      watch: no,
      write: no,
      compareAndSwap: no,
    };
  }
}

test('a read is not confirmed by what another one has learnt from the register meanwhile', async () => {
  const site = new Bytes();
  site.value = site.value.replace(' ab ', ' a ');
  const reader = await site.open();
  site.hangs[0] = true;
  const bytes = new Uint8Array(1);
  const read = reader.read(0, bytes);
  await settle();
  site.value = site.value.replace('HFM1 1 a ', 'HFM1 2 b ');
  await site.until(reader.persist(0, 8));
  for (const resume of site.waiting) resume();
  await site.until(read);
  expect(bytes[0]).toBe(2);
});

test('many reads at a time are no reason to warn of listeners', async () => {
  const site = new Bytes();
  site.holds[0] = 2;
  const reader = await site.open();
  const warnings: Error[] = [];
  const warned = (warning: Error) => void warnings.push(warning);
  process.on('warning', warned);
  const reads = Array.from({ length: 50 }, () => reader.read(0, new Uint8Array(8)));
  await site.until(Promise.all(reads));
  await settle();
  process.off('warning', warned);
  expect(warnings).toEqual([]);
});

test('reads leave nothing behind at a signal that lives long', async () => {
  const site = new Bytes();
  site.holds[0] = 2;
  const reader = await site.open();
  // It leaves something at each of the signals, as long as they live.
  const any = vi.spyOn(AbortSignal, 'any');
  const { signal } = new AbortController();
  for (let times = 0; times < 3; times += 1) await site.until(reader.read(0, new Uint8Array(8), { signal }));
  await site.until(reader.glance(0, new Uint8Array(8), { signal }));
  await site.until(reader.persist(0, 8, { signal }));
  expect(any).not.toHaveBeenCalled();
  expect(getEventListeners(signal, 'abort')).toEqual([]);
  any.mockRestore();
});

test('a unit that hangs is left aside by reads, and not waited for by a glance', async () => {
  const site = new Bytes();
  site.holds[0] = 2;
  const reader = await site.open({ commandMs: 300 });
  site.hangs[0] = true;
  const bytes = new Uint8Array(1);
  await site.until(reader.glance(0, bytes));
  expect([bytes[0], site.scheduler.nowMs]).toEqual([2, 0]);
  const before = site.released.length;
  await site.until(reader.read(0, bytes));
  expect(bytes[0]).toBe(2);
  expect(site.scheduler.nowMs).toBeGreaterThanOrEqual(300);
  expect(site.released.length).toBe(before + 1);
  await reader.close();
  expect(site.released.length).toBeGreaterThanOrEqual(before + 2);
});
