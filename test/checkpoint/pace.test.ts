/** A peer that asks for more than its rate is made to wait, in order, and is refused nothing. */
import { expect, test } from 'vitest';
import type { Clock, TimerHandle } from '../../lib/base/clock.ts';
import { MemoryManager } from '../../lib/checkpoint/manager.ts';
import { MemoryClient } from '../../lib/checkpoint/manager-client.ts';
import { Pace } from '../../lib/checkpoint/pace.ts';
import { createMemoryUnit, type UnitLimits } from '../../lib/checkpoint/unit.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import { SimulatedCluster } from '../../lib/testing/simulated-cluster.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';

test('no more begins in any second than the rate and its burst give, whatever the gaps', () => {
  const pace = new Pace({ commandsPerSecond: 100 });
  const begun: number[] = [];
  for (const nowMs of [...Array(50).fill(0), ...Array(50).fill(300), 5000, ...Array(50).fill(5001)])
    begun.push(nowMs + pace.delayMs(nowMs, 0));
  for (const from of begun) {
    const inSecond = begun.filter((at) => at >= from && at < from + 1000).length;
    expect(inSecond).toBeLessThanOrEqual(100 + 10 + 1);
  }
  expect(begun).toEqual([...begun].sort((a, b) => a - b));
  expect(begun.slice(0, 10)).toEqual(Array(10).fill(0));
});

test('bytes have a rate of their own; the slower of the two counts', () => {
  const pace = new Pace({ commandsPerSecond: 1000, bytesPerSecond: 1_000_000 });
  expect(pace.delayMs(0, 500_000)).toBe(0);
  expect(pace.delayMs(0, 1)).toBe(400);
  expect(pace.delayMs(10_000, 1)).toBe(0);
});

test("a rate so low that a byte's time is no number is kept to, after commands without bytes too", () => {
  const pace = new Pace({ bytesPerSecond: 1e-310 });
  expect([0, 1, 0, 1].map((bytes) => pace.delayMs(0, bytes) > 1e300)).toEqual([false, false, true, true]);
});

/** A unit with its manager, and clients with a region each. */
async function world(limits: UnitLimits) {
  const address = { kind: 'tcp', host: 'unit', port: 7000 } as const;
  const cluster = new SimulatedCluster({ seed: 1, names: ['unit', 'busy', 'calm'] });
  const nodeOf = (name: string, peers: readonly string[]) =>
    createPeerNode({
      ...{ environment: cluster.node(name).environment, name, clusterId: 'test', key: new Uint8Array(32).fill(1) },
      ...(name === 'unit' && { listen: address }),
      link: 'dedicated',
      peers: peers.map((peer) => ({ name: peer, addresses: peer === 'unit' ? [address] : [] })),
    });
  const unitNode = nodeOf('unit', ['busy', 'calm']);
  const memory = new SimulatedMemory({ random: cluster.random, sizeBytes: 512 * 1024 });
  const { clock, random } = cluster.node('unit').environment;
  const timers = new Set<TimerHandle>();
  const unitClock: Clock = {
    nowMs: () => clock.nowMs(),
    wallMs: () => clock.wallMs(),
    setTimer(delayMs, callback) {
      const forget = () => timers.delete(handle);
      const timer = clock.setTimer(delayMs, () => {
        forget();
        callback();
      });
      const handle = {
        cancel() {
          forget();
          timer.cancel();
        },
      };
      timers.add(handle);
      return handle;
    },
  };
  const unit = createMemoryUnit({
    ...{ name: 'unit', memory: memory.open(), clock: unitClock, node: unitNode, recordsBytes: 64 * 1024 },
    limits,
  });
  const manager = new MemoryManager({ environment: { random }, control: unit });
  manager.serve(unitNode);
  await MemoryManager.format(unit, { blank: true });
  await manager.open();
  await unitNode.start();

  const open = async (name: string) => {
    const node = nodeOf(name, ['unit']);
    const client = new MemoryClient({
      node,
      clock: cluster.node(name).environment.clock,
      manager: 'unit',
      unit: 'unit',
    });
    await node.start();
    await client.create(name, 64 * 1024);
    const { access } = await client.open(name);
    return { node, access };
  };
  return { cluster, unit, timers, open };
}

test('a unit with a rate executes all, in order, no faster; another peer does not wait for it', async () => {
  const { cluster, unit, open } = await world({ commandsPerSecond: 100 });
  const work = async (name: string, count: number) => {
    const { access } = await open(name);
    const startMs = cluster.scheduler.nowMs;
    const order: number[] = [];
    const write = async (index: number) => {
      await access.write(0, [Uint8Array.of(index)]);
      order.push(index);
    };
    await Promise.all(Array.from({ length: count }, (_, index) => write(index)));
    const tookMs = cluster.scheduler.nowMs - startMs;
    const last = new Uint8Array(1);
    await access.read(0, last);
    return { tookMs, order, last: last[0] };
  };
  const both = Promise.all([work('busy', 200), work('calm', 5)]);
  const [busy, calm] = await cluster.scheduler.runUntil(both, 60_000);
  expect(busy.tookMs).toBeGreaterThan(1800);
  expect(busy.tookMs).toBeLessThan(2200);
  expect(busy.order).toEqual(Array.from({ length: 200 }, (_, index) => index));
  expect(busy.last).toBe(199);
  expect(calm.tookMs).toBeLessThan(100);
  expect(unit.status.refused).toBe(0);
});

test('commands that wait are given up when their session ends, and hold nothing any more', async () => {
  const { cluster, timers, open } = await world({ commandsPerSecond: 0.001 });
  const { node, access } = await cluster.scheduler.runUntil(open('busy'), 60_000);
  const writes = Array.from({ length: 20 }, () => access.write(0, [new Uint8Array(4096)]).catch(({ code }) => code));
  await cluster.scheduler.runFor(1000);
  expect(timers.size).toBe(19);
  await cluster.scheduler.runUntil(node.close(), 60_000);
  const outcomes = await cluster.scheduler.runUntil(Promise.all(writes), 60_000);
  expect(outcomes).toEqual([undefined, ...Array(19).fill('ERR_HOLDFAST_PEER_LOST')]);
  await cluster.scheduler.runFor(1000);
  expect(timers.size).toBe(0);
});

test('a rate that cannot be is refused', () => {
  const memory = new SimulatedMemory({
    random: new SimulatedCluster({ seed: 1, names: [] }).random,
    sizeBytes: 1 << 20,
  });
  const { clock } = new SimulatedCluster({ seed: 1, names: ['unit'] }).node('unit').environment;
  const make = (commandsPerSecond: number) =>
    createMemoryUnit({ name: 'unit', memory: memory.open(), clock, recordsBytes: 4096, limits: { commandsPerSecond } });
  for (const rate of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(() => make(rate)).toThrow('cannot be; give one above 0');
    memory.kill();
  }
});
