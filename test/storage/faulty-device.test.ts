import { expect, test } from 'vitest';
import { FaultPlan, FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { conformance, conformanceSizeBytes, pattern } from '../conformance/block-device.ts';

conformance('faulty without a fault', async () => ({
  device: new FaultyDevice(new MemoryDevice({ sizeBytes: conformanceSizeBytes })),
}));

function open(plan?: FaultPlan) {
  const next = new MemoryDevice({ sizeBytes: 65_536 });
  return { next, device: new FaultyDevice(next, plan === undefined ? {} : { plan }) };
}

const bytes = pattern(512, 1);
const into = () => new Uint8Array(512);

test('the n-th write fails, the others do not', async () => {
  const { device } = open();
  const fault = device.inject({ action: { kind: 'error' }, on: 'write', skip: 2, times: 1 });
  await device.write(0, bytes);
  await device.read(0, into());
  await device.write(512, bytes);
  await expect(device.write(1024, bytes)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO', errno: 'EIO' });
  await device.write(1024, bytes);
  expect(fault.hits).toBe(1);
  expect(device.stats()).toMatchObject({ writes: 3, errors: 1 });
});

test('a failed write changes nothing, or everything if the failure comes after', async () => {
  const { next, device } = open();
  device.inject({ action: { kind: 'error' }, on: 'write', times: 1 });
  await expect(device.write(0, bytes)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  const found = into();
  await next.read(0, found);
  expect(found).toEqual(into());
  device.inject({ action: { kind: 'error', when: 'after', errno: 'ENOSPC' }, on: 'write', times: 1 });
  await expect(device.write(0, bytes)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NO_SPACE', errno: 'ENOSPC' });
  await next.read(0, found);
  expect(found).toEqual(bytes);
});

test('a range fails, its neighbours do not', async () => {
  const { device } = open();
  device.inject({ action: { kind: 'error' }, on: ['read', 'discard'], within: { offset: 1024, length: 512 } });
  await device.read(512, into());
  await device.read(1536, into());
  await device.write(1024, bytes);
  await device.flush();
  await expect(device.read(1535, new Uint8Array(1))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  await expect(device.read(0, new Uint8Array(4096))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  await expect(device.discard(1024, 1)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
});

test('flushes and zeroing fail by rule too, and a removed rule is over', async () => {
  const { device } = open();
  const flush = device.inject({ action: { kind: 'error' }, on: 'flush' });
  const zero = device.inject({ action: { kind: 'error' }, on: 'writeZeroes' });
  await expect(device.flush()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  await expect(device.writeZeroes(0, 512)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  flush.remove();
  zero.remove();
  await device.flush();
  await device.writeZeroes(0, 512);
});

test('a rule for zeroing leaves writes alone', async () => {
  const { device } = open();
  const fault = device.inject({ action: { kind: 'error' }, on: 'writeZeroes' });
  await device.write(0, bytes);
  expect(fault.hits).toBe(0);
});

test('a hanging request goes on once the fault is removed, and close waits for it', async () => {
  const { device } = open();
  const fault = device.inject({ action: { kind: 'hang' }, on: 'write', times: 1 });
  const order: string[] = [];
  const writing = device.write(0, bytes).then(() => order.push('written'));
  await device.read(0, into());
  const closing = device.close().then(() => order.push('closed'));
  order.push('removed');
  fault.remove();
  await Promise.all([writing, closing]);
  expect(order).toEqual(['removed', 'written', 'closed']);
});

test('a delay takes its time on the clock', async () => {
  const scheduler = new Scheduler();
  const clock = new SimulatedClock(scheduler, new SimulatedProcess('world'), 0);
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes: 65_536 }), { clock });
  device.inject({ action: { kind: 'delay', delayMs: 250 }, on: 'read' });
  await scheduler.runUntil(device.read(0, into()), 1000);
  expect(scheduler.nowMs).toBe(250);
});

test('a bit turns over in silence: on the way up, or on the way down', async () => {
  const { next, device } = open();
  await device.write(0, bytes);
  device.inject({ action: { kind: 'flip-bit', offset: 100, bit: 3 }, on: 'read', times: 1 });
  const wrong = bytes.slice();
  wrong[100]! ^= 8;
  const found = into();
  await device.read(0, found);
  expect(found).toEqual(wrong);
  await device.read(0, found);
  expect(found).toEqual(bytes);
  device.inject({ action: { kind: 'flip-bit', offset: 100, bit: 3 }, on: 'write', times: 1 });
  const mine = bytes.slice();
  await device.write(0, mine);
  expect(mine).toEqual(bytes);
  await next.read(0, found);
  expect(found).toEqual(wrong);
});

test('a chance is drawn from the random, and needs one', async () => {
  const { device } = open(new FaultPlan(new SimulatedRandom(1)));
  const fault = device.inject({ action: { kind: 'error' }, probability: 0.25 });
  const results = await Promise.allSettled(Array.from({ length: 400 }, () => device.read(0, into())));
  expect(results.filter(({ status }) => status === 'rejected')).toHaveLength(fault.hits);
  expect(fault.hits).toBeGreaterThan(60);
  expect(fault.hits).toBeLessThan(140);
  expect(() => open().device.inject({ action: { kind: 'error' }, probability: 0.5 })).toThrow(
    expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }),
  );
});

test('several faults act on one request; clearing the plan ends them all', async () => {
  const { device } = open();
  const hang = device.inject({ action: { kind: 'hang' } });
  const error = device.inject({ action: { kind: 'error' } });
  const reading = device.read(0, into());
  expect([hang.hits, error.hits]).toEqual([1, 1]);
  device.plan.clear();
  await expect(reading).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  await device.read(0, into());
});

test('a write goes astray: it lands elsewhere, and its own place stays as it was', async () => {
  const { next, device } = open();
  device.inject({ action: { kind: 'misdirect', to: (offset) => (offset === 0 ? 2048 : undefined) }, on: 'write' });
  await device.write(0, bytes);
  await device.write(512, bytes);
  const found = into();
  await next.read(0, found);
  expect(found).toEqual(into());
  for (const offset of [512, 2048]) {
    await next.read(offset, found);
    expect(found).toEqual(bytes);
  }
});

test.each(['started', 'done'] as const)('a trigger is pulled when the n-th write has %s', async (when) => {
  const { next, device } = open();
  const seen: Uint8Array[] = [];
  const trigger = () => {
    // A memory device has done a write as soon as it was asked.
    seen.push(into());
    void next.read(512, seen[0]!);
    return 'answer' as const;
  };
  device.inject({ action: { kind: 'trigger', when, trigger }, on: 'write', skip: 1, times: 1 });
  await device.write(0, bytes);
  expect(seen).toEqual([]);
  await device.write(512, bytes);
  await device.write(1024, bytes);
  expect(seen).toEqual([bytes]);
});

test('a request whose asker is gone is never answered', async () => {
  const { device } = open();
  for (const when of ['started', 'done'] as const) {
    device.inject({ action: { kind: 'trigger', when, trigger: () => 'gone' }, on: 'flush', times: 1 });
    let answered = false;
    void device.flush().then(() => {
      answered = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(answered).toBe(false);
  }
  await device.flush();
});
