/** A mirrored region over real sessions: two units with a manager each, three voters, writers that are no voters. */
import { describe, expect, test } from 'vitest';
import { CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import { connectMirroredMemory } from '../../lib/checkpoint/connect-mirrored-memory.ts';
import { parseStanding } from '../../lib/checkpoint/mirror-standing.ts';
import type { MirroredAccess } from '../../lib/checkpoint/mirrored-access.ts';
import { regionRebuildMethod } from '../../lib/checkpoint/rebuild-report.ts';
import { formatCheckpointRegion } from '../../lib/checkpoint/region-record.ts';
import { codeOf } from './mirror-stage.ts';
import { REGION_BYTES, MirroredSite as Site, STATE, UNITS } from './mirrored-site.ts';

async function rejection(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'no error',
    (error: unknown) => codeOf(error),
  );
}

function filled(value: number, length = 4096): Uint8Array[] {
  return [new Uint8Array(length).fill(value)];
}

async function firstByte(site: Site, access: MirroredAccess, address: number): Promise<number> {
  const bytes = new Uint8Array(1);
  await site.until(access.readConfirmed(address, bytes));
  return bytes[0]!;
}

describe('over sessions', () => {
  test('one unit loses power, is rebuilt, and is the copy when the other one is gone', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    await site.until(access.write(0, filled(1), { persist: true }));
    site.kill(1);
    await site.until(access.write(4096, filled(2), { persist: true }));
    expect(parseStanding(await site.stands())).toMatchObject({ inSync: 1, writer: 'w1' });
    await site.startUnit(1);
    await site.inSync(access);
    await site.until(access.write(8192, filled(3), { persist: true }));
    site.kill(0);
    await site.until(access.write(12_288, filled(4), { persist: true }));
    for (const [index, value] of [1, 2, 3, 4].entries())
      expect(await firstByte(site, access, 4096 * index)).toBe(value);
  });

  test('one unit hangs and keeps its sessions: it is left out, and is the copy when it was rebuilt', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    await site.until(access.write(0, filled(1), { persist: true }));
    const goOn = site.hang(1);
    await site.until(access.write(0, filled(2), { persist: true }));
    expect(parseStanding(await site.stands())).toMatchObject({ inSync: 1, writer: 'w1' });
    expect(site.connection('w1').node.session('unit-b')?.open).toBe(true);
    expect(access.status.legs[1].problem?.code).toBe('ERR_HOLDFAST_TIMEOUT');
    expect(await firstByte(site, access, 0)).toBe(2);
    goOn();
    await site.inSync(access);
    site.kill(0);
    await site.until(access.write(4096, filled(3), { persist: true }));
    for (const [index, value] of [2, 3].entries()) expect(await firstByte(site, access, 4096 * index)).toBe(value);
  });

  test('another writer takes over while a unit hangs: it goes on with the other one, and the first one is fenced', async () => {
    const site = await new Site().start();
    const first = await site.open('w1');
    await site.until(first.write(0, filled(1), { persist: true }));
    const goOn = site.hang(1);
    const late = rejection(first.write(0, filled(9), { persist: true }));
    const second = await site.open('w2');
    expect(parseStanding(await site.stands())).toMatchObject({ inSync: 1, writer: 'w2' });
    expect(await site.until(late)).toBe('ERR_HOLDFAST_FENCED');
    await site.until(second.write(0, filled(2), { persist: true }));
    goOn();
    await site.inSync(second);
    site.kill(0);
    await site.until(second.write(4096, filled(3), { persist: true }));
    expect(await firstByte(site, second, 0)).toBe(2);
  });

  test('another writer takes over: the first one is fenced, and the state goes on', async () => {
    const site = await new Site().start();
    const first = await site.open('w1');
    await site.until(first.write(0, filled(1), { persist: true }));
    const second = await site.open('w2');
    expect(second.epoch).toBe(first.epoch + 1);
    expect(await firstByte(site, second, 0)).toBe(1);
    await site.until(second.write(0, filled(2), { persist: true }));
    expect(await site.until(rejection(first.write(0, filled(9), { persist: true })))).toBe('ERR_HOLDFAST_FENCED');
    expect(await firstByte(site, second, 0)).toBe(2);
  });

  test('a stale unit gives no key for what it has, to nobody', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    site.kill(1);
    await site.until(access.write(0, filled(1), { persist: true }));
    await access.close();
    await site.startUnit(1);
    const [, stale] = site.connection('w2').clients;
    const mirrored = { register: STATE.registerId, leg: 1 } as const;
    const asked = [
      stale.open('state', { mirrored, rights: ['read'] }),
      stale.takeOver('state', { mirrored }),
      stale.open('state', { mirrored, rights: ['read', 'write'] }),
      stale.rebuild('state', { mirrored }),
    ];
    const codes = await site.until(Promise.all(asked.map(rejection)));
    expect(codes).toEqual([
      'ERR_HOLDFAST_INCONSISTENT',
      'ERR_HOLDFAST_INCONSISTENT',
      'ERR_HOLDFAST_ACCESS',
      'ERR_HOLDFAST_FENCED',
    ]);
    site.kill(0);
    expect(await rejection(site.open('w2'))).toBe('ERR_HOLDFAST_NO_UP_TO_DATE_COPY');
    await site.startUnit(0);
    const next = await site.open('w2');
    expect(await firstByte(site, next, 0)).toBe(1);
    await site.inSync(next);
  });

  test('a take-over ends also what the same peer could write before', async () => {
    const site = await new Site().start();
    const [leg] = site.connection('w1').clients;
    const mirrored = { register: STATE.registerId, leg: 0 } as const;
    const before = await site.until(leg.takeOver('state', { mirrored }));
    await site.until(leg.takeOver('state', { mirrored }));
    expect(await site.until(rejection(before.access.write(0, filled(1))))).toBe('ERR_HOLDFAST_KEY_INVALID');
  });
});

describe('how far a rebuild is', () => {
  test('those who decide hear from the writer, and when it is over', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    site.kill(1);
    await site.until(access.write(0, filled(1), { persist: true }));
    site.rebuilds.length = 0;
    await site.startUnit(1);
    await site.inSync(access);
    await site.pass(100);
    const began = { peer: 'w1', leg: 1, progress: { doneBytes: 0, totalBytes: REGION_BYTES } };
    const ended = { peer: 'w1', leg: 1, progress: null };
    for (const unit of UNITS)
      expect(site.rebuilds.filter(({ at }) => at === unit)).toEqual(
        [began, ended].map((said) => ({ at: unit, ...said })),
      );
  });

  test('is not heard from somebody who may not write, and has to be possible', async () => {
    const site = await new Site().start();
    const say = (name: 'stranger' | 'w2', doneBytes: number) => {
      const report = { register: STATE.registerId, leg: 0, progress: { doneBytes, totalBytes: 4096 } } as const;
      return rejection(site.connection(name).node.session(UNITS[0])!.request(regionRebuildMethod, report));
    };
    const codes = await site.until(Promise.all([say('stranger', 0), say('w2', 4097), say('w2', 4096)]));
    expect(codes).toEqual(['ERR_HOLDFAST_ACCESS', 'ERR_HOLDFAST_BAD_ARGUMENT', 'no error']);
    expect(site.rebuilds).toMatchObject([{ peer: 'w2', progress: { doneBytes: 4096 } }]);
  });
});

describe('what a mirror could be broken by', () => {
  const codes = (site: Site, asked: readonly Promise<unknown>[]) => site.until(Promise.all(asked.map(rejection)));

  test('one unit alone is not used, nor by a client that has the units or the register mixed up', async () => {
    const site = await new Site().start();
    const [unit] = site.connection('w1').clients;
    expect(await codes(site, [unit.takeOver('state'), unit.open('state', { rights: ['read'] })])).toEqual([
      'ERR_HOLDFAST_ACCESS',
      'ERR_HOLDFAST_ACCESS',
    ]);
    const mixedUp = [
      { register: STATE.registerId, leg: 1 },
      { register: 'e'.repeat(32), leg: 0 },
    ] as const;
    expect(
      await codes(
        site,
        mixedUp.map((mirrored) => unit.takeOver('state', { mirrored })),
      ),
    ).toEqual(['ERR_HOLDFAST_SETTINGS_DIFFER', 'ERR_HOLDFAST_SETTINGS_DIFFER']);
    expect(await site.stands()).toBe('');
  });

  test('a region that lies in one unit only is not opened as a leg', async () => {
    const site = await new Site().start();
    const [unit] = site.connection('w1').clients;
    await site.until(unit.create('own', 4096));
    const mirrored = { register: STATE.registerId, leg: 0 } as const;
    expect(await codes(site, [unit.takeOver('own', { mirrored })])).toEqual(['ERR_HOLDFAST_SETTINGS_DIFFER']);
    await site.until(unit.takeOver('own'));
  });

  test('a leg in sync is not deleted, and once its unit has lost it no blank one takes its place', async () => {
    const site = await new Site().start();
    const [first, second] = site.connection('w1').clients;
    await site.until(second.delete('state'));
    await site.until(second.create('state', REGION_BYTES));
    const access = await site.open('w1');
    await site.until(access.write(0, filled(1), { persist: true }));
    await access.close();
    expect(await codes(site, [first.delete('state'), second.delete('state')])).toEqual([
      'ERR_HOLDFAST_REFUSED',
      'ERR_HOLDFAST_REFUSED',
    ]);
    site.replace(1);
    await site.pass(10_000);
    await site.startUnit(1, true);
    expect(await codes(site, [second.create('state', REGION_BYTES)])).toEqual(['ERR_HOLDFAST_REFUSED']);
    const again = await site.open('w1');
    expect(parseStanding(await site.stands())).toMatchObject({ inSync: 1 });
    await site.until(second.create('state', REGION_BYTES));
    await site.inSync(again);
    site.kill(0);
    await site.until(again.write(4096, filled(2), { persist: true }));
    expect(await firstByte(site, again, 0)).toBe(1);
  });
});

test('a writer that stores nothing leaves out a unit that is gone: a reader waits for that', async () => {
  const site = await new Site().start();
  await site.open('w1');
  const reader = await site.until(site.connection('w2').openReader(STATE, { whenLegAway: 'wait' }));
  site.kill(1);
  await site.until(reader.read(0, new Uint8Array(8)));
  expect(parseStanding(await site.stands())).toMatchObject({ inSync: 1, writer: 'w1' });
});

test('readers that come and go leave no keys behind', async () => {
  const site = await new Site().start();
  const access = await site.open('w1');
  await site.until(access.write(0, filled(1), { persist: true }));
  const keys = () => UNITS.map((name) => site.units.get(name)!.status.keys);
  const before = keys();
  for (let times = 0; times < 3; times += 1) {
    const reader = await site.openReader('w2');
    await site.until(reader.read(0, new Uint8Array(8)));
    expect(keys()).toEqual(before.map((count) => count + 1));
    await reader.close();
    await site.pass(1000);
    expect(keys()).toEqual(before);
  }
});

describe('checkpoints', () => {
  const bytes = (value: number) => new Uint8Array(512).fill(value);
  const values = (checkpoints: readonly { readonly value: Uint8Array }[]) => checkpoints.map(({ value }) => value[0]);
  const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

  test('are appended while a unit is lost, and resumed by another writer from the other unit', async () => {
    const site = await new Site().start();
    const access = await site.open('w1');
    await site.until(formatCheckpointRegion(access, { mode: 'append' }));
    const writer = await site.until(CheckpointWriter.open(access));
    await site.until(Promise.all(numbers(1, 20).map((value) => writer.append(bytes(value)))));
    site.kill(0);
    await site.until(Promise.all(numbers(21, 40).map((value) => writer.append(bytes(value)))));
    await site.startUnit(0);
    await site.inSync(access);
    site.kill(1);
    await site.until(Promise.all(numbers(41, 60).map((value) => writer.append(bytes(value)))));
    const backup = await site.openReader('w2');
    const reader = await site.until(CheckpointReader.open(backup));
    expect(values(await site.until(reader.readAll()))).toEqual(numbers(1, 60));
    const taken = await site.open('w2');
    const next = await site.until(CheckpointWriter.open(taken));
    await site.until(next.append(bytes(61)));
    expect(await site.until(rejection(writer.append(bytes(99))))).toBe('ERR_HOLDFAST_FENCED');
    expect(values(await site.until(reader.tail()))).toEqual([61]);
  });
});

describe('the register, for those who are no voters', () => {
  test('is changed by who may write, in its own name, by the rules', async () => {
    const site = await new Site().start();
    await (await site.open('w1')).close();
    const value = await site.stands();
    const standing = parseStanding(value)!;
    const other = site.connection('w2').register(STATE);
    const attempts = [
      value.replace(/ w1 .*/, ` w1 ${standing.nonce} ${standing.change + 1}`).replace(' ab ', ' a '),
      value.replace(' w1 ', ' w2 '),
      'nonsense',
      '',
    ];
    for (const next of attempts)
      expect(await site.until(rejection(other.compareAndSwap(value, next)))).toBe('ERR_HOLDFAST_REFUSED');
    expect(await site.stands()).toBe(value);
  });

  test('is closed to strangers', async () => {
    const site = await new Site().start();
    const stranger = site.connection('stranger').register(STATE);
    expect(await site.until(rejection(stranger.compareAndSwap('', '')))).toBe('ERR_HOLDFAST_ACCESS');
    expect(await site.stands()).toBe('');
  });

  test('is decided by the other one while a unit has lost its memory, and does not know who may what', async () => {
    const site = await new Site().start();
    await (await site.open('w1')).close();
    const value = await site.stands();
    site.replace(0);
    await site.pass(10_000);
    await site.startUnit(0, true);
    await site.pass(1000);
    expect(await site.stands()).toBe(value);
    const access = await site.open('w1');
    await site.until(access.write(0, filled(1), { persist: true }));
    site.kill(1);
    expect(await rejection(site.stands())).toBe('ERR_HOLDFAST_ACCESS');
  });

  test('is asked of another decider when the first one is cut off from the other voters, or hangs', async () => {
    const site = await new Site().start();
    await (await site.open('w1')).close();
    const value = await site.stands();
    const { network } = site.cluster;
    for (const other of ['unit-b', 'tie']) network.partition('unit-a', other);
    const register = site.connection('w1').register(STATE);
    const { scheduler } = site.cluster;
    const ask = async () => {
      const startMs = scheduler.nowMs;
      expect(await site.until(register.compareAndSwap('', ''))).toEqual({ swapped: false, current: value });
      return scheduler.nowMs - startMs;
    };
    expect(await ask()).toBeLessThan(2000);
    // Who has answered is asked first from then on.
    expect(await ask()).toBeLessThan(400);
    for (const other of ['unit-b', 'tie']) network.heal('unit-a', other);
    await site.pass(10_000);
    site.cluster.node('unit-b').pause();
    expect(await ask()).toBeLessThan(2000);
  });

  test('is asked of the other one when the first one is away, and in vain without a majority', async () => {
    const site = await new Site().start();
    await (await site.open('w1')).close();
    const value = await site.stands();
    site.kill(0);
    expect(await site.stands()).toBe(value);
    site.cluster.node('tie').kill();
    expect(await site.until(rejection(site.connection('w1').register(STATE).compareAndSwap('', '')))).toBe(
      'ERR_HOLDFAST_NO_MAJORITY',
    );
    const controller = new AbortController();
    const given = rejection(site.connection('w1').register(STATE).compareAndSwap('', '', controller.signal));
    controller.abort();
    expect(await site.until(given)).toBe('ERR_HOLDFAST_ABORTED');
  });
});

describe('connecting', () => {
  const key = new Uint8Array(32);
  const address = (port: number) => ({ kind: 'tcp', host: 'localhost', port }) as const;
  const peer = (name: string, port = 1) => ({ name, addresses: [address(port)] });
  const base = { name: 'w1', clusterId: 'mirrored', key };

  test('a mirror of one unit, without deciders, or with a node in two places is refused', async () => {
    const attempts = [
      { units: [{ unit: peer('a') }, { unit: peer('a') }] },
      { units: [{ unit: peer('a') }, { unit: peer('b') }], deciders: [] },
      { units: [{ unit: peer('a') }, { unit: peer('b'), manager: peer('a', 2) }] },
      { units: [{ unit: peer('w1') }, { unit: peer('b') }] },
    ] as const;
    for (const attempt of attempts)
      expect(await rejection(connectMirroredMemory({ ...base, ...attempt }))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
  });

  test('a connection that is closed keeps nobody waiting for a register', async () => {
    const memory = await connectMirroredMemory({ ...base, units: [{ unit: peer('a') }, { unit: peer('b') }] });
    const state = { name: 'state', registerId: 'd'.repeat(32) };
    const waiting = [memory.openWriter(state), memory.openReader(state), memory.register(state).compareAndSwap('', '')];
    const codes = Promise.all(waiting.map(rejection));
    await memory.close();
    expect(await codes).toEqual(Array.from(waiting, () => 'ERR_HOLDFAST_CLOSED'));
    expect(await rejection(memory.openWriter(state))).toBe('ERR_HOLDFAST_CLOSED');
  });

  test('a region with an id that no register has is refused at once', async () => {
    const units = [{ unit: peer('a') }, { unit: peer('b') }] as const;
    await using memory = await connectMirroredMemory({ ...base, units });
    for (const registerId of ['', 'orders', 'f'.repeat(31)]) {
      const region = { name: 'orders', registerId };
      expect(await rejection(memory.openWriter(region))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
      expect(await rejection(memory.openReader(region))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
    }
  });

  test('a node is one peer, whatever its parts are; the managers decide unless others are named', async () => {
    const [a, b, m, tie] = [peer('a'), peer('b'), peer('m'), peer('tie')];
    const units = [{ unit: a, manager: m }, { unit: b }] as const;
    const peers = async (deciders?: (typeof a)[]) => {
      await using memory = await connectMirroredMemory({ ...base, units, ...(deciders && { deciders }) });
      return memory.node.links().map((link) => link.peer);
    };
    expect(await peers()).toEqual(['a', 'm', 'b']);
    expect(await peers([m, b, tie])).toEqual(['a', 'm', 'b', 'tie']);
  });
});
