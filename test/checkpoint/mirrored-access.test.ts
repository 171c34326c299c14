/** A mirrored region: what its writer is told when legs, the register or the writer itself fail. */
import { getEventListeners } from 'node:events';
import { describe, expect, test } from 'vitest';
import { HoldfastError, throwIfAborted } from '../../lib/base/errors.ts';
import type { MirroredAccess, MirrorLegs } from '../../lib/checkpoint/mirrored-access.ts';
import type { CommandOptions, RegionAccess, WriteOptions } from '../../lib/checkpoint/one-sided.ts';
import type { Arbiter } from '../../lib/peer/arbiter.ts';
import { legsOf } from '../../lib/testing/simulated-region-units.ts';
import { codeOf, REGION_BYTES, Stage } from './mirror-stage.ts';

const file = (name: string) => new URL(`transcripts/mirrored-${name}.txt`, import.meta.url).pathname;
const NO_COPY = 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY';

async function rejection(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'no error',
    (error: unknown) => codeOf(error),
  );
}

/** An access of which something is different. */
function otherwise(access: RegionAccess, methods: Partial<RegionAccess>): RegionAccess {
  const { unit, range, epoch } = access;
  return {
    unit,
    range,
    epoch,
    open: true,
    read: (...call) => access.read(...call),
    write: (...call) => access.write(...call),
    persist: (...call) => access.persist(...call),
    compareAndSwap: (...call) => access.compareAndSwap(...call),
    watch: (...call) => access.watch(...call),
    ...methods,
  };
}

function held(): { readonly promise: Promise<void>; readonly go: () => void } {
  let go!: () => void;
  const promise = new Promise<void>((resolve) => {
    go = resolve;
  });
  return { promise, go };
}

describe('transcripts', () => {
  test('opened for the first time, written and read', async () => {
    const stage = new Stage();
    const access = await stage.open(stage.client('w'));
    await stage.until(stage.write(access, 0, 1));
    expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([1, 1]);
    expect(await stage.read(access, 0)).toBe(1);
    await expect(stage.transcript).toMatchFileSnapshot(file('first'));
  });

  test('a leg is lost while a write is under way, comes back and is rebuilt while writes go on', async () => {
    const stage = new Stage();
    const access = await stage.open(stage.client('w'));
    await stage.until(stage.write(access, 0, 1));
    stage.b.crashAtStore(1);
    await stage.until(stage.write(access, 64, 2));
    await stage.until(stage.write(access, 128, 3));
    stage.b.start();
    for (let value = 4; access.status.legs[1].state !== 'in-sync' && value < 250; value++)
      await stage.until(stage.write(access, 64 * (value % 60), value));
    const copies = [stage.a, stage.b].map((unit) => {
      const bytes = new Uint8Array(REGION_BYTES);
      unit.read(0, bytes);
      return bytes;
    });
    expect(copies[0]).toEqual(copies[1]);
    await expect(stage.transcript).toMatchFileSnapshot(file('leg-lost-and-back'));
  });

  test('the writer stands still, another takes over: a late write is refused', async () => {
    const stage = new Stage();
    const [slow, next] = [stage.client('slow'), stage.client('next')];
    const access = await stage.open(slow);
    await stage.until(stage.write(access, 0, 1));
    stage.say('slow stands still');
    slow.process.pause();
    const taken = await stage.open(next);
    expect(await stage.read(taken, 0)).toBe(1);
    await stage.until(stage.write(taken, 0, 2));
    stage.say('slow goes on');
    slow.process.resume();
    await stage.until(stage.write(access, 0, 3));
    expect(await stage.read(taken, 0)).toBe(2);
    await expect(stage.transcript).toMatchFileSnapshot(file('zombie'));
  });

  test('a zombie on the other side of a partition, with one unit: nothing of it is acknowledged', async () => {
    const stage = new Stage();
    const [old, next] = [stage.client('old'), stage.client('next')];
    const access = await stage.open(old);
    await stage.until(stage.write(access, 0, 1));
    stage.say('old has unit-b alone, next has unit-a and the register');
    stage.a.cut(old);
    stage.b.cut(next);
    old.isCutFromRegister = true;
    const late = stage.write(access, 0, 2);
    const taken = await stage.open(next);
    expect(await stage.read(taken, 0)).toBe(1);
    await stage.until(stage.write(taken, 64, 3));
    stage.say('the partition is over');
    stage.a.mend(old);
    stage.b.mend(next);
    old.isCutFromRegister = false;
    await stage.until(late);
    await stage.inSync(taken);
    expect([stage.peek(stage.b, 0), stage.peek(stage.b, 64)]).toEqual([1, 3]);
    await expect(stage.transcript).toMatchFileSnapshot(file('partition'));
  });

  test('the writer is killed with a write on one leg only: both legs are made alike', async () => {
    const stage = new Stage();
    const [first, next] = [stage.client('first'), stage.client('next')];
    const access = await stage.open(first);
    await stage.until(stage.write(access, 0, 1));
    stage.say('its session with unit-b hangs, and it is killed');
    stage.b.cut(first);
    void stage.write(access, 0, 2);
    first.isCutFromRegister = true;
    await stage.pass(80);
    first.process.kill();
    expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)].sort()).toEqual([1, 2]);
    const taken = await stage.open(next);
    expect(await stage.read(taken, 0)).toBe(2);
    expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([2, 2]);
    await expect(stage.transcript).toMatchFileSnapshot(file('write-on-one-leg'));
  });

  test('a leg is lost while the other one is rebuilt: no copy is left, and it says so', async () => {
    const stage = new Stage();
    const [first, next] = [stage.client('first'), stage.client('next')];
    const access = await stage.open(first);
    stage.b.crash();
    await stage.until(stage.write(access, 0, 1));
    stage.b.start();
    const limitMs = stage.scheduler.nowMs + 5000;
    await stage.scheduler.run(() => access.status.rebuild !== undefined || stage.scheduler.nowMs > limitMs);
    expect(access.status.rebuild?.unit).toBe('unit-b');
    stage.a.crash();
    await stage.until(stage.write(access, 64, 2));
    expect(access.failure?.code).toBe(NO_COPY);
    expect(access.failure?.message).toContain('unit-b is out of sync, and is not used');
    expect(await rejection(stage.open(next))).toBe(NO_COPY);
    stage.say('the one in sync is back');
    stage.a.start();
    const taken = await stage.open(next);
    expect(await stage.read(taken, 0)).toBe(1);
    await stage.inSync(taken);
    await expect(stage.transcript).toMatchFileSnapshot(file('lost-while-rebuilding'));
  });
});

async function opened(): Promise<{ stage: Stage; access: MirroredAccess }> {
  const stage = new Stage();
  return { stage, access: await stage.open(stage.client('w')) };
}

test('a signal that lives on keeps nothing of the writes that it was given to', async () => {
  const { stage, access } = await opened();
  const { signal } = new AbortController();
  for (let number = 0; number < 3; number++)
    await stage.until(access.write(0, [new Uint8Array(8)], { persist: true, signal }));
  expect(getEventListeners(signal, 'abort')).toEqual([]);
});

describe('a leg fails', () => {
  test('before a write', async () => {
    const { stage, access } = await opened();
    stage.a.crash();
    await stage.until(stage.write(access, 0, 1));
    expect(stage.register.value).toMatch(/^HFM1 1 b /);
    expect(await stage.read(access, 0)).toBe(1);
  });

  test('to persist a write: it is out before the write is acknowledged', async () => {
    const { stage, access } = await opened();
    stage.b.failNext = 'persist';
    await stage.until(access.write(0, [new Uint8Array(64).fill(1)], { persist: true }));
    expect(stage.register.value).toMatch(/^HFM1 1 a /);
    expect(access.status.legs[1].problem?.code).toBe('ERR_HOLDFAST_FLUSH_FAILED');
    await stage.inSync(access);
    expect(stage.peek(stage.b, 0)).toBe(1);
  });

  test('after a write, while nothing is written: a read is given by the other one', async () => {
    const { stage, access } = await opened();
    await stage.until(stage.write(access, 0, 1));
    stage.a.failNext = 'read';
    expect(await stage.read(access, 0)).toBe(1);
    await stage.pass(20);
    expect(stage.register.value).toMatch(/^HFM1 1 b /);
  });

  test('and the register cannot be changed: the write waits, and can be given up', async () => {
    const stage = new Stage();
    const client = stage.client('w');
    const access = await stage.open(client);
    client.isCutFromRegister = true;
    stage.b.crash();
    const controller = new AbortController();
    const given = rejection(access.write(0, [new Uint8Array(8)], { persist: true, signal: controller.signal }));
    const waits = stage.write(access, 64, 2);
    await stage.pass(2000);
    expect(stage.lines).not.toContain('   2 at 64 is acknowledged');
    expect(access.status.problem?.code).toBe('ERR_HOLDFAST_NO_MAJORITY');
    controller.abort();
    expect(await stage.until(given)).toBe('ERR_HOLDFAST_ABORTED');
    client.isCutFromRegister = false;
    await stage.until(waits);
    expect(stage.lines).toContain('   2 at 64 is acknowledged');
    expect(access.status.problem).toBeUndefined();
  });

  test('both: it ends, and what was acknowledged is there when they are back', async () => {
    const { stage, access } = await opened();
    await stage.until(stage.write(access, 0, 1));
    stage.a.crash();
    stage.b.crash();
    expect(await stage.until(rejection(access.write(0, [new Uint8Array(8)], { persist: true })))).toBe(NO_COPY);
    expect(access.open).toBe(false);
    expect(await rejection(access.read(0, new Uint8Array(8)))).toBe(NO_COPY);
    const next = stage.client('next');
    expect(await rejection(stage.open(next))).toBe(NO_COPY);
    stage.a.start();
    stage.b.start();
    expect(await stage.read(await stage.open(next), 0)).toBe(1);
  });

  test('its manager voids all keys: it is rebuilt', async () => {
    const { stage, access } = await opened();
    stage.b.voidKeys();
    await stage.until(stage.write(access, 0, 1));
    expect(stage.register.value).toMatch(/^HFM1 1 a /);
    await stage.inSync(access);
    expect(stage.register.value).toMatch(/^HFM1 1 ab /);
    expect(stage.peek(stage.b, 0)).toBe(1);
  });
});

describe('a unit hangs and keeps its sessions', () => {
  const bytes = (value: number, length = 8) => [new Uint8Array(length).fill(value)];

  async function hanging(): Promise<{ stage: Stage; access: MirroredAccess }> {
    const stage = new Stage();
    const access = await stage.open(stage.client('w'), { commandMs: 1000 });
    await stage.until(access.write(0, bytes(1, 64), { persist: true }));
    return { stage, access };
  }

  test('it is left out, and rebuilt when it goes on; what it does late is overwritten', async () => {
    const stage = new Stage();
    const access = await stage.open(stage.client('w'), { commandMs: 1000 });
    await stage.until(stage.write(access, 0, 1));
    stage.b.hang();
    await stage.until(stage.write(access, 0, 2));
    await stage.until(stage.write(access, 0, 3));
    expect(await stage.read(access, 0)).toBe(3);
    expect(access.status.legs[1].problem?.code).toBe('ERR_HOLDFAST_TIMEOUT');
    expect(stage.peek(stage.b, 0)).toBe(1);
    stage.say('unit-b goes on');
    stage.b.goOn();
    expect(stage.peek(stage.b, 0)).not.toBe(3);
    await stage.inSync(access);
    expect(stage.peek(stage.b, 0)).toBe(3);
    await expect(stage.transcript).toMatchFileSnapshot(file('hang'));
  });

  test('but not before its time: a unit that is slow stays in', async () => {
    const { stage, access } = await hanging();
    stage.b.hang();
    const slow = access.write(0, bytes(2), { persist: true });
    await stage.pass(900);
    stage.b.goOn();
    await stage.until(slow);
    await stage.pass(3000);
    expect(stage.register.value).toMatch(/^HFM1 1 ab /);
  });

  test('both: neither is left out, and all waits; the one that goes on is the copy', async () => {
    const { stage, access } = await hanging();
    stage.a.hang();
    stage.b.hang();
    const controller = new AbortController();
    const given = rejection(access.write(64, bytes(9), { signal: controller.signal }));
    const write = access.write(0, bytes(2), { persist: true });
    await stage.pass(30_000);
    expect(stage.register.value).toMatch(/^HFM1 1 ab /);
    controller.abort();
    expect(await given).toBe('ERR_HOLDFAST_ABORTED');
    stage.b.goOn();
    await stage.until(write);
    expect(stage.register.value).toMatch(/^HFM1 1 b /);
    stage.a.goOn();
    await stage.inSync(access);
    expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([2, 2]);
  });

  test('both at the same time, and go on: none is left out', async () => {
    const { stage, access } = await hanging();
    stage.a.hang();
    stage.b.hang();
    const write = access.write(0, bytes(2), { persist: true });
    await stage.pass(10_000);
    expect(access.status.legs.map(({ state }) => state)).toEqual(['in-sync', 'in-sync']);
    stage.a.goOn();
    stage.b.goOn();
    await stage.until(write);
    await stage.pass(3000);
    expect(stage.register.value).toMatch(/^HFM1 1 ab w [0-9a-f]{16} 2$/);
  });

  test('the other one fails meanwhile: both stay named, so that a take-over can have either', async () => {
    const { stage, access } = await hanging();
    stage.b.hang();
    stage.a.failNext = 'write';
    const write = stage.write(access, 0, 2);
    await stage.pass(10_000);
    expect(stage.register.value).toMatch(/^HFM1 1 ab /);
    expect(stage.lines).not.toContain('   2 at 0 is acknowledged');
    const next = await stage.open(stage.client('next'), { legMs: 300 });
    expect(stage.register.value).toMatch(/^HFM1 2 a /);
    expect(await stage.read(next, 0)).toBe(1);
    stage.b.goOn();
    await stage.until(write);
    expect(access.failure?.code).toBe('ERR_HOLDFAST_FENCED');
    await stage.inSync(next);
    expect(stage.peek(stage.b, 0)).toBe(1);
  });

  test('another takes over meanwhile: nothing of the first one is acknowledged any more', async () => {
    const { stage, access } = await hanging();
    stage.b.hang();
    const write = stage.write(access, 0, 2);
    const next = await stage.open(stage.client('next'), { legMs: 300, commandMs: 1000 });
    expect(stage.register.value).toMatch(/^HFM1 2 a /);
    const found = await stage.read(next, 0);
    await stage.until(write);
    expect(access.failure?.code).toBe('ERR_HOLDFAST_FENCED');
    stage.b.goOn();
    await stage.inSync(next);
    expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([found, found]);
  });

  test('while a take-over makes both alike: it goes on with the other one', async () => {
    for (const unit of ['a', 'b'] as const) {
      const { stage, access } = await hanging();
      await access.close();
      stage[unit].hang();
      const next = await stage.open(stage.client('next'), { commandMs: 1000 });
      expect(stage.register.value).toMatch(unit === 'a' ? /^HFM1 2 b / : /^HFM1 2 a /);
      expect(await stage.read(next, 0)).toBe(1);
    }
  });

  test('a read is given by the other one, and the late answer touches nothing', async () => {
    const { stage, access } = await hanging();
    stage.a.hang();
    const target = new Uint8Array(8);
    await stage.until(access.read(0, target));
    expect(target[0]).toBe(1);
    target.fill(7);
    stage.a.goOn();
    await stage.inSync(access);
    expect(target[0]).toBe(7);
  });

  test('a compare and swap is decided by the other one', async () => {
    const { stage, access } = await hanging();
    stage.a.hang();
    const found = await stage.until(access.compareAndSwap(8, 0x0101_0101_0101_0101n, 5n, { persist: true }));
    expect(found).toBe(0x0101_0101_0101_0101n);
    stage.a.goOn();
    await stage.inSync(access);
    expect([stage.peek(stage.a, 8), stage.peek(stage.b, 8)]).toEqual([5, 5]);
  });

  test('a guard is judged by the one that answers', async () => {
    const { stage, access } = await hanging();
    stage.b.hang();
    const guard = { address: 0, expected: 3n };
    expect(await stage.until(rejection(access.write(8, bytes(9), { persist: true, guard })))).toBe(
      'ERR_HOLDFAST_FENCED',
    );
    expect(access.open).toBe(true);
    stage.b.goOn();
    await stage.inSync(access);
    expect([stage.peek(stage.a, 8), stage.peek(stage.b, 8)]).toEqual([1, 1]);
  });

  test('a watch moves to the other one', async () => {
    const { stage, access } = await hanging();
    const since = await stage.until(access.watch(0, 8, 0));
    const told = access.watch(0, 8, since);
    stage.a.hang();
    await stage.until(access.write(64, bytes(2)));
    expect(await stage.until(told)).toBeGreaterThan(since);
  });

  test('while it is filled: writes do not wait for it, and it is filled anew', async () => {
    const { stage, access } = await hanging();
    stage.b.crash();
    await stage.until(access.write(0, bytes(2), { persist: true }));
    stage.b.start();
    const limitMs = stage.scheduler.nowMs + 5000;
    await stage.scheduler.run(() => access.status.rebuild !== undefined || stage.scheduler.nowMs > limitMs);
    stage.b.hang();
    const startMs = stage.scheduler.nowMs;
    await stage.until(access.write(2048, bytes(3), { persist: true }));
    expect(stage.scheduler.nowMs - startMs).toBeLessThan(500);
    await stage.pass(3000);
    expect(access.status.legs[1].state).toBe('out-of-sync');
    stage.b.goOn();
    await stage.inSync(access);
    expect([stage.peek(stage.b, 0), stage.peek(stage.b, 2048)]).toEqual([2, 3]);
  });

  test('again and again while it is filled: it is asked for less and less often, until it has joined', async () => {
    const stage = new Stage();
    const client = stage.client('w');
    const legs = legsOf([stage.a, stage.b], client);
    const openedMs: number[] = [];
    let doesHang = false;
    const open: MirrorLegs['open'] = async (leg, purpose, signal) => {
      const access = await legs.open(leg, purpose, signal);
      if (purpose === 'rebuild') openedMs.push(stage.scheduler.nowMs);
      const write: RegionAccess['write'] = (_address, _chunks, options) =>
        new Promise((_resolve, reject) => options?.signal?.addEventListener('abort', reject));
      return leg === 1 && doesHang ? otherwise(access, { write }) : access;
    };
    const access = await stage.open(client, { legs: { ...legs, open }, commandMs: 100, retryMs: 500 });
    stage.b.crash();
    await stage.until(access.write(0, bytes(2)));
    doesHang = true;
    stage.b.start();
    await stage.pass(10_000);
    const pauses = openedMs.slice(1).map((atMs, index) => atMs - openedMs[index]!);
    expect(pauses.length).toBe(3);
    for (const [index, pauseMs] of pauses.entries()) expect(pauseMs).toBeGreaterThan(500 * 2 ** (index + 1));
    doesHang = false;
    await stage.inSync(access);
    stage.b.crash();
    await stage.until(access.write(0, bytes(3)));
    stage.b.start();
    const startMs = stage.scheduler.nowMs;
    await stage.inSync(access);
    expect(stage.scheduler.nowMs - startMs).toBeLessThan(1000);
  });

  test('the one that the other one is filled from: it is waited for', async () => {
    const { stage, access } = await hanging();
    stage.b.crash();
    await stage.until(access.write(0, bytes(2), { persist: true }));
    stage.b.start();
    const limitMs = stage.scheduler.nowMs + 5000;
    await stage.scheduler.run(() => access.status.rebuild !== undefined || stage.scheduler.nowMs > limitMs);
    stage.a.hang();
    const write = access.write(0, bytes(3), { persist: true });
    await stage.pass(10_000);
    expect(stage.register.value).toMatch(/^HFM1 1 a /);
    stage.a.goOn();
    await stage.until(write);
    await stage.inSync(access);
    expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([3, 3]);
  });

  test('a writer that stood still itself leaves nobody out', async () => {
    const stage = new Stage();
    const client = stage.client('w');
    const access = await stage.open(client, { commandMs: 1000 });
    const write = access.write(0, bytes(2), { persist: true });
    client.process.pause();
    await stage.pass(60_000);
    client.process.resume();
    await stage.until(write);
    await stage.pass(5000);
    expect(stage.register.value).toMatch(/^HFM1 1 ab /);
  });

  test('closing ends what waits for it', async () => {
    const { stage, access } = await hanging();
    stage.b.hang();
    const write = rejection(access.write(0, bytes(2)));
    await stage.pass(100);
    await access.close();
    expect(await write).toBe('ERR_HOLDFAST_CLOSED');
  });
});

test('a compare and swap came between: a leg that began to join since its read ended the region', async () => {
  const stage = new Stage();
  const client = stage.client('w');
  const legs = legsOf([stage.a, stage.b], client);
  let isHeld = false;
  const [persisted, read] = [held(), held()];
  const open: MirrorLegs['open'] = async (leg, purpose, signal) => {
    const access = await legs.open(leg, purpose, signal);
    return otherwise(access, {
      read: async (address, target, options) => {
        if (isHeld && target.length === 8) await read.promise;
        await access.read(address, target, options);
      },
      persist: async (...call) => {
        if (isHeld) await persisted.promise;
        await access.persist(...call);
      },
    });
  };
  const access = await stage.open(client, { legs: { ...legs, open } });
  stage.b.crash();
  await stage.until(access.write(0, [new Uint8Array(8)], { persist: true }));
  isHeld = true;
  stage.b.start();
  const limitMs = stage.scheduler.nowMs + 5000;
  const isCopied = (): boolean => access.status.legs[1].state === 'rebuilding' && access.status.rebuild === undefined;
  await stage.scheduler.run(() => isCopied() || stage.scheduler.nowMs > limitMs);
  client.isCutFromRegister = true;
  const swapped = access.compareAndSwap(0, 0n, 1n, { persist: true });
  persisted.go();
  await stage.pass(500);
  read.go();
  await stage.pass(500);
  client.isCutFromRegister = false;
  expect(await stage.until(swapped)).toBe(0n);
  await stage.inSync(access);
  expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([1, 1]);
});

test('what was stored while a leg was made durable was not, when it joined', async () => {
  const stage = new Stage();
  const client = stage.client('w');
  const legs = legsOf([stage.a, stage.b], client);
  const answered = held();
  let isHeld = false;
  const open: MirrorLegs['open'] = async (leg, purpose, signal) => {
    const access = await legs.open(leg, purpose, signal);
    const persist: RegionAccess['persist'] = async (...call) => {
      await access.persist(...call);
      if (isHeld) await answered.promise;
    };
    return otherwise(access, { persist });
  };
  const access = await stage.open(client, { legs: { ...legs, open } });
  stage.b.crash();
  await stage.until(access.write(0, [new Uint8Array(8)], { persist: true }));
  isHeld = true;
  stage.b.start();
  const limitMs = stage.scheduler.nowMs + 5000;
  const isCopied = (): boolean => access.status.legs[1].state === 'rebuilding' && access.status.rebuild === undefined;
  await stage.scheduler.run(() => isCopied() || stage.scheduler.nowMs > limitMs);
  await stage.pass(100);
  for (const [address, value] of [
    [2048, 1],
    [1024, 2],
  ] as const)
    await stage.until(access.write(address, [new Uint8Array(64).fill(value)]));
  answered.go();
  await stage.inSync(access);
  const durable = new Uint8Array(REGION_BYTES);
  stage.b.memory.peekDurable(0, durable);
  expect([durable[2048], durable[1024]]).toEqual([1, 2]);
});

test('a confirmed read waited for a change of the register, and never ended when the region was closed', async () => {
  const stage = new Stage();
  const client = stage.client('w');
  const inner = stage.register.arbiterOf(client);
  let isLost = false;
  const arbiter: Arbiter = {
    compareAndSwap: async (expected, next, signal) => {
      const result = await inner.compareAndSwap(expected, next, signal);
      // The change has happened, and its answer never comes.
      return isLost && expected !== next ? new Promise(() => {}) : result;
    },
  };
  const access = await stage.open(client, { arbiter });
  isLost = true;
  stage.b.crash();
  const write = rejection(access.write(0, [new Uint8Array(8)]));
  await stage.pass(500);
  const confirmed = rejection(access.readConfirmed(64, new Uint8Array(8)));
  await stage.pass(500);
  await access.close();
  expect(await stage.until(Promise.all([write, confirmed]))).toEqual(['ERR_HOLDFAST_CLOSED', 'ERR_HOLDFAST_CLOSED']);
});

describe("the bytes of a write are the caller's again when it ends", () => {
  /** As over a session that is out of credit: commands are sent a while after the call, their bytes as they are then. */
  function sendLate(access: RegionAccess, delay: Promise<void>): RegionAccess {
    const sent = async (signal: AbortSignal | undefined): Promise<void> => {
      await delay;
      throwIfAborted(signal, 'the command');
    };
    return otherwise(access, {
      write: async (address: number, chunks: readonly Uint8Array[], options: WriteOptions = {}) => {
        await sent(options.signal);
        await access.write(address, chunks, options);
      },
      persist: async (address: number, lengthBytes: number, options: CommandOptions = {}) => {
        await sent(options.signal);
        await access.persist(address, lengthBytes, options);
      },
    });
  }

  async function withLateUnit(): Promise<{ stage: Stage; access: MirroredAccess; late: { delay: Promise<void> } }> {
    const stage = new Stage();
    const client = stage.client('w');
    const late = { delay: Promise.resolve() };
    const legs = legsOf([stage.a, stage.b], client);
    const open: MirrorLegs['open'] = async (leg, purpose, signal) => {
      const access = await legs.open(leg, purpose, signal);
      return leg === 0 ? access : sendLate(access, late.delay);
    };
    return { stage, access: await stage.open(client, { legs: { ...legs, open }, commandMs: 1000 }), late };
  }

  test('a leg that was being filled got what the caller had put there after its write', async () => {
    const { stage, access, late } = await withLateUnit();
    stage.b.crash();
    await stage.until(access.write(0, [new Uint8Array(8)]));
    const { promise, go } = held();
    late.delay = promise;
    stage.b.start();
    const limitMs = stage.scheduler.nowMs + 5000;
    await stage.scheduler.run(() => access.status.rebuild !== undefined || stage.scheduler.nowMs > limitMs);
    const bytes = new Uint8Array(64).fill(1);
    await stage.until(access.write(3072, [bytes], { persist: true }));
    bytes.fill(9);
    go();
    await stage.inSync(access);
    expect([stage.peek(stage.a, 3072), stage.peek(stage.b, 3072)]).toEqual([1, 1]);
  });

  test('a leg that is left out still reads them: the write ends when it does no more', async () => {
    const { stage, access } = await opened();
    await access.close();
    const client = stage.client('next');
    const legs = legsOf([stage.a, stage.b], client);
    let isOpen = false;
    const { promise: gone, go } = held();
    // What is in the socket is not withdrawn.
    const write = async (): Promise<void> => {
      await gone;
      throw new HoldfastError('ERR_HOLDFAST_ABORTED', 'it was cancelled');
    };
    const open: MirrorLegs['open'] = async (leg, purpose, signal) => {
      const leads = await legs.open(leg, purpose, signal);
      return leg === 0 || isOpen ? leads : otherwise(leads, { write });
    };
    const next = await stage.open(client, { legs: { ...legs, open }, commandMs: 1000 });
    isOpen = true;
    let hasEnded = false;
    const ended = next.write(0, [new Uint8Array(64).fill(1)], { persist: true }).then(() => {
      hasEnded = true;
    });
    await stage.pass(5000);
    expect(hasEnded).toBe(false);
    expect(await stage.read(next, 0)).toBe(1);
    go();
    await stage.until(ended);
  });

  test('also when the write is given up', async () => {
    const { stage, access } = await opened();
    const controller = new AbortController();
    const bytes = new Uint8Array(64).fill(1);
    const given = rejection(access.write(0, [bytes], { persist: true, signal: controller.signal }));
    controller.abort();
    expect(await given).toBe('ERR_HOLDFAST_ABORTED');
    bytes.fill(9);
    await stage.pass(1000);
    expect([stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([1, 1]);
  });
});

describe('opening', () => {
  test('the first time needs both units', async () => {
    const stage = new Stage();
    stage.b.crash();
    expect(await rejection(stage.open(stage.client('w')))).toBe(NO_COPY);
    expect(stage.register.value).toBe('');
  });

  test('a stale leg alone is not opened', async () => {
    const { stage, access } = await opened();
    stage.b.crash();
    await stage.until(stage.write(access, 0, 1));
    stage.a.crash();
    stage.b.start();
    expect(await rejection(stage.open(stage.client('next')))).toBe(NO_COPY);
  });

  test('without a majority it fails', async () => {
    const stage = new Stage();
    const client = stage.client('w');
    client.isCutFromRegister = true;
    expect(await rejection(stage.open(client))).toBe('ERR_HOLDFAST_NO_MAJORITY');
  });

  test('legs of different sizes are refused', async () => {
    const stage = new Stage([4096, 8192]);
    expect(await rejection(stage.open(stage.client('w')))).toBe('ERR_HOLDFAST_SETTINGS_DIFFER');
  });

  test('a register of something else is left alone', async () => {
    const stage = new Stage();
    stage.register.value = 'view 7';
    expect(await rejection(stage.open(stage.client('w')))).toBe('ERR_HOLDFAST_METADATA_MISMATCH');
    expect(stage.register.value).toBe('view 7');
  });

  test('a unit that never answers counts as away after a while', async () => {
    const { stage, access } = await opened();
    await access.close();
    const client = stage.client('next');
    const units = [stage.a, stage.b] as const;
    const legs = {
      units: ['unit-a', 'unit-b'] as const,
      open: (leg: 0 | 1, purpose: 'take-over' | 'rebuild' | 'read') =>
        leg === 1 ? new Promise<never>(() => {}) : units[leg].open(client, purpose),
    };
    const next = await stage.open(client, { legs, legMs: 300 });
    expect(next.status.legs[1].problem?.code).toBe('ERR_HOLDFAST_TIMEOUT');
    expect(stage.register.value).toMatch(/^HFM1 2 a /);
  });

  test('no chunks at a time, of no bytes, or no time for a command are refused', async () => {
    const stage = new Stage();
    const wrong = [
      { chunksAhead: 0 },
      { chunksAhead: Number.NaN },
      { chunkBytes: 0 },
      { chunkBytes: 0.5 },
      { commandMs: 0 },
    ];
    for (const options of wrong)
      expect(await rejection(stage.open(stage.client('w'), options))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
    expect(stage.register.value).toBe('');
  });

  test('it is cancelled', async () => {
    const stage = new Stage();
    const controller = new AbortController();
    const opening = rejection(stage.opening(stage.client('w'), { signal: controller.signal }));
    controller.abort();
    expect(await stage.until(opening)).toBe('ERR_HOLDFAST_ABORTED');
  });
});

describe('commands', () => {
  const word = (value: bigint): Uint8Array => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    return bytes;
  };

  test('are executed in the order of the calls, also those that read before they store', async () => {
    const { stage, access } = await opened();
    const seen = new Uint8Array(8);
    const results = Promise.all([
      access.write(0, [word(1n)]),
      access.compareAndSwap(0, 1n, 2n),
      access.compareAndSwap(0, 1n, 3n),
      access.write(8, [word(7n)], { guard: { address: 0, expected: 2n } }),
      access.write(0, [word(4n)]),
      access.read(0, seen),
      access.write(0, [word(5n)]),
      access.compareAndSwap(0, 5n, 6n, { persist: true }),
    ]);
    const [, first, second, , , , , last] = await stage.until(results);
    expect([first, second, last]).toEqual([1n, 2n, 5n]);
    expect([seen[0], stage.peek(stage.a, 0), stage.peek(stage.b, 0)]).toEqual([4, 6, 6]);
    expect([stage.peek(stage.a, 8), stage.peek(stage.b, 8)]).toEqual([7, 7]);
  });

  test('a guard that does not hold stores nothing, on neither leg', async () => {
    const { stage, access } = await opened();
    const guarded = access.write(8, [word(7n)], { guard: { address: 0, expected: 2n } });
    expect(await stage.until(rejection(guarded))).toBe('ERR_HOLDFAST_FENCED');
    expect([stage.peek(stage.a, 8), stage.peek(stage.b, 8)]).toEqual([0, 0]);
    expect(access.open).toBe(true);
  });

  test('guarded writes go on side by side', async () => {
    const { stage, access } = await opened();
    const guard = { address: 0, expected: 0n };
    const writes = Array.from({ length: 8 }, (_, index) => access.write(64 * index + 8, [word(1n)], { guard }));
    const startMs = stage.scheduler.nowMs;
    await stage.until(writes[0]!);
    const oneMs = stage.scheduler.nowMs - startMs;
    await stage.until(Promise.all(writes));
    expect(stage.scheduler.nowMs - startMs).toBeLessThan(4 * oneMs);
  });

  test('a write whose guard does not hold is nowhere in the end, also where a leg is being filled', async () => {
    const stage = new Stage();
    const access = await stage.open(stage.client('w'), { chunkBytes: 64 });
    await stage.until(access.write(8, [word(1n)], { persist: true }));
    stage.b.crash();
    await stage.until(access.write(8, [word(2n)], { persist: true }));
    stage.b.start();
    const limitMs = stage.scheduler.nowMs + 5000;
    await stage.scheduler.run(() => access.status.rebuild !== undefined || stage.scheduler.nowMs > limitMs);
    const guard = { address: 8, expected: 1n };
    const refused = [16, 2048].map((address) => rejection(access.write(address, [word(9n)], { guard })));
    expect(await stage.until(Promise.all(refused))).toEqual(['ERR_HOLDFAST_FENCED', 'ERR_HOLDFAST_FENCED']);
    await stage.inSync(access);
    for (const unit of [stage.a, stage.b]) expect([stage.peek(unit, 16), stage.peek(unit, 2048)]).toEqual([0, 0]);
    expect(stage.peek(stage.b, 8)).toBe(2);
  });

  test('a read does not end before the write that it has seen is acknowledged', async () => {
    const stage = new Stage();
    const client = stage.client('w');
    const access = await stage.open(client);
    client.isCutFromRegister = true;
    stage.b.crash();
    const bytes = new Uint8Array(8);
    let ended = 0;
    const count = () => {
      ended += 1;
    };
    const both = [access.write(0, [word(9n)], { persist: true }).then(count), access.read(0, bytes).then(count)];
    await stage.pass(1000);
    expect([ended, stage.peek(stage.a, 0)]).toEqual([0, 9]);
    client.isCutFromRegister = false;
    await stage.until(Promise.all(both));
    expect(bytes[0]).toBe(9);
  });

  test('are refused out of range, and where there is no word', async () => {
    const { access } = await opened();
    const outside: Promise<unknown>[] = [
      access.read(REGION_BYTES - 4, new Uint8Array(8)),
      access.write(-8, [word(1n)]),
      access.persist(0, REGION_BYTES + 1),
      access.watch(0.5, 8, 0),
      access.compareAndSwap(REGION_BYTES, 0n, 1n),
    ];
    for (const each of outside) expect(await rejection(each)).toBe('ERR_HOLDFAST_OUT_OF_RANGE');
    expect(await rejection(access.compareAndSwap(4, 0n, 1n))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
  });

  test('are refused when too many wait, and none of those is lost', async () => {
    const stage = new Stage();
    const access = await stage.open(stage.client('w'), { maxInFlight: 2, maxWaiting: 3 });
    const codes = Array.from({ length: 7 }, (_, index) => rejection(access.write(8 * index, [word(1n)])));
    expect(await stage.until(Promise.all(codes))).toEqual([
      ...Array.from({ length: 5 }, () => 'no error'),
      'ERR_HOLDFAST_QUEUE_FULL',
      'ERR_HOLDFAST_QUEUE_FULL',
    ]);
    await stage.until(access.write(0, [word(2n)]));
  });

  test('one that waits can be taken back, those behind it go on', async () => {
    const stage = new Stage();
    const access = await stage.open(stage.client('w'), { maxInFlight: 1 });
    const controller = new AbortController();
    const first = access.write(0, [word(1n)]);
    const second = rejection(access.write(8, [word(2n)], { signal: controller.signal }));
    const third = access.write(16, [word(3n)]);
    controller.abort();
    await stage.until(Promise.all([first, third]));
    expect(await second).toBe('ERR_HOLDFAST_ABORTED');
    expect([stage.peek(stage.a, 8), stage.peek(stage.b, 16)]).toEqual([0, 3]);
  });

  test('a watch moves to the other leg when the first one fails', async () => {
    const { stage, access } = await opened();
    const since = await stage.until(access.watch(0, 8, 0));
    const told = access.watch(0, 8, since);
    stage.a.crash();
    const moved = await stage.until(told);
    expect(moved).toBeGreaterThan(since);
    const next = access.watch(0, 8, moved);
    await stage.until(stage.write(access, 0, 1));
    expect(await stage.until(next)).toBeGreaterThan(moved);
  });

  test('fail once it is closed; nothing is left over', async () => {
    const { stage, access } = await opened();
    const write = rejection(access.write(0, [word(1n)]));
    await access.close();
    expect(await write).toBe('ERR_HOLDFAST_CLOSED');
    expect(await rejection(access.read(0, new Uint8Array(8)))).toBe('ERR_HOLDFAST_CLOSED');
    await stage.pass(1000);
    expect(await stage.scheduler.run(() => false)).toBe('idle');
  });
});
