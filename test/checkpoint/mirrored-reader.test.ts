/** Those who only read a mirrored region: what they may be shown, and from where. */
import { expect, test } from 'vitest';
import { MirroredReader, type MirroredReaderOptions } from '../../lib/checkpoint/mirrored-reader.ts';
import { legsOf } from '../../lib/testing/simulated-region-units.ts';
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

test('what it has read is durable on both after persist', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  await stage.until(access.write(0, [new Uint8Array(8).fill(7)]));
  const reader = await stage.until(opening(stage, stage.client('r')));
  expect(await byteAt(stage, reader, 0)).toBe(7);
  await stage.until(reader.persist(0, 8));
  for (const { memory } of [stage.a, stage.b]) {
    const durable = new Uint8Array(1);
    memory.peekDurable(0, durable);
    expect(durable[0]).toBe(7);
  }
});

test('a unit lost what was read of it, and came back: persist said that it was durable', async () => {
  const stage = new Stage();
  const access = await stage.open(stage.client('w'));
  await stage.until(access.write(0, [new Uint8Array(8).fill(7)]));
  const reader = await stage.until(opening(stage, stage.client('r')));
  expect(await byteAt(stage, reader, 0)).toBe(7);
  stage.b.crash();
  stage.b.start();
  expect(await stage.until(rejection(reader.persist(0, 8)))).toBe('ERR_HOLDFAST_PEER_LOST');
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
