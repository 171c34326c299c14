import { expect, test } from 'vitest';
import type { Address, Connection } from '../../lib/base/network.ts';
import { SimulatedCluster, type SimulatedClusterOptions } from '../../lib/testing/simulated-cluster.ts';

const PORT: Address = { kind: 'tcp', host: 'b', port: 7000 };

interface End {
  connection: Connection;
  received: number[];
  ends: (string | undefined)[];
  drains: number;
}

function open(connection: Connection): End {
  const end: End = { connection, received: [], ends: [], drains: 0 };
  connection.start({
    onData: (chunk) => void end.received.push(...chunk),
    onDrain: () => void end.drains++,
    onClose: (error) => void end.ends.push(error === undefined ? 'clean' : (error as { code?: string }).code),
  });
  return end;
}

async function pair(
  options: Partial<SimulatedClusterOptions> = {},
): Promise<{ cluster: SimulatedCluster; a: End; b: End }> {
  const cluster = new SimulatedCluster({ seed: 1, names: ['a', 'b'], ...options });
  let b: End | undefined;
  await cluster.node('b').environment.network.listen(PORT, {}, (connection) => {
    b = open(connection);
  });
  const a = open(await cluster.scheduler.runUntil(cluster.node('a').environment.network.connect(PORT, {}), 1000));
  return { cluster, a, b: b! };
}

function bytes(from: number, length: number): Uint8Array[] {
  return [Uint8Array.from({ length }, (_, index) => (from + index) & 0xff)];
}

test('without faults every byte arrives once and in order, both ways', async () => {
  const { cluster, a, b } = await pair({ link: { delayMinMs: 0, delayMaxMs: 5, splitRate: 0.5 } });
  for (let part = 0; part < 50; part++) {
    a.connection.write(bytes(part * 10, 10));
    b.connection.write(bytes(part * 10, 10));
    if (part % 7 === 0) await cluster.scheduler.runFor(1);
  }
  await cluster.scheduler.runFor(100);
  const expected = [...bytes(0, 500)[0]!];
  expect(a.received).toEqual(expected);
  expect(b.received).toEqual(expected);
  a.connection.end();
  await cluster.scheduler.runFor(100);
  expect([a.ends, b.ends]).toEqual([['clean'], ['clean']]);
});

test.each([
  ['drop', { dropRate: 0.3 }],
  ['duplicate', { duplicateRate: 0.3 }],
  ['reorder', { reorderRate: 0.3 }],
])('%s changes the stream', async (_name, link) => {
  const { cluster, a, b } = await pair({ link });
  for (let part = 0; part < 30; part++) a.connection.write(bytes(part * 3, 3));
  await cluster.scheduler.runFor(100);
  expect(b.received.length).toBeGreaterThan(0);
  expect(b.received).not.toEqual([...bytes(0, 90)[0]!]);
});

test('a partition holds what is on the way, and it goes on when it heals', async () => {
  const { cluster, a, b } = await pair();
  cluster.network.partition('a', 'b');
  a.connection.write(bytes(0, 10));
  b.connection.write(bytes(0, 10));
  await cluster.scheduler.runFor(60_000);
  expect([a.received, b.received]).toEqual([[], []]);
  cluster.network.unblock('a', 'b');
  await cluster.scheduler.runFor(10);
  expect([a.received, b.received]).toEqual([[], [...bytes(0, 10)[0]!]]);
  cluster.network.unblock('b', 'a');
  await cluster.scheduler.runFor(10);
  expect(a.received).toEqual(b.received);
});

test('connecting is refused, times out in a partition, and is cancelled', async () => {
  const cluster = new SimulatedCluster({ seed: 1, names: ['a', 'b'] });
  const { network } = cluster.node('a').environment;
  const fails = (promise: Promise<unknown>): Promise<unknown> =>
    cluster.scheduler.runUntil(
      promise.then(
        () => 'connected',
        (error) => error.code,
      ),
      200_000,
    );
  expect(await fails(network.connect(PORT, {}))).toBe('ERR_HOLDFAST_CONNECT_FAILED');
  cluster.network.block('b', 'a');
  expect(await fails(network.connect(PORT, { timeoutMs: 700 }))).toBe('ERR_HOLDFAST_TIMEOUT');
  const abort = new AbortController();
  const waiting = fails(network.connect(PORT, { signal: abort.signal }));
  abort.abort();
  expect(await waiting).toBe('ERR_HOLDFAST_ABORTED');
});

test('a lost segment makes the stream stand still and changes nothing of it', async () => {
  const { cluster, a, b } = await pair({ link: { stallRate: 0.2 } });
  for (let part = 0; part < 30; part++) a.connection.write(bytes(part * 3, 3));
  await cluster.scheduler.runFor(190);
  expect(b.received.length).toBeLessThan(90);
  await cluster.scheduler.runFor(60_000);
  expect(b.received).toEqual([...bytes(0, 90)[0]!]);
});

test('a clogged direction holds everything, then delivers it', async () => {
  const { cluster, a, b } = await pair();
  cluster.network.clog('a', 'b', 500);
  a.connection.write(bytes(0, 10));
  b.connection.write(bytes(0, 10));
  await cluster.scheduler.runFor(499);
  expect([a.received.length, b.received.length]).toEqual([10, 0]);
  await cluster.scheduler.runFor(2);
  expect(b.received).toEqual([...bytes(0, 10)[0]!]);
});

test('a key is proven or refused as TLS would', async () => {
  const cluster = new SimulatedCluster({ seed: 1, names: ['a', 'b'] });
  const seen: (string | undefined)[] = [];
  const key = (text: string) => ({
    identity: 'a',
    keyOf: (name: string) => (name === 'a' ? Buffer.from(text) : undefined),
  });
  const onRefused = (_remote: string, identity: string | undefined): number => seen.push(`refused ${identity}`);
  await cluster
    .node('b')
    .environment.network.listen(PORT, { psk: key('right'), onRefused }, (connection) =>
      seen.push(connection.transportIdentity),
    );
  const { network } = cluster.node('a').environment;
  await cluster.scheduler.runUntil(network.connect(PORT, { psk: key('right') }), 100);
  for (const options of [{ psk: key('wrong') }, {}])
    await expect(cluster.scheduler.runUntil(network.connect(PORT, options), 100)).rejects.toMatchObject({
      code: 'ERR_HOLDFAST_WRONG_KEY',
    });
  expect(seen).toEqual(['a', 'refused a', 'refused undefined']);
});

test('a killed process: connections are reset, nothing of it runs again, its port is free', async () => {
  const { cluster, a, b } = await pair();
  let ticks = 0;
  cluster.node('b').environment.clock.setTimer(5, () => ticks++);
  const never = cluster.node('b').environment.network.connect({ kind: 'tcp', host: 'a', port: 1 }, {});
  let settled = false;
  never.catch(() => {}).finally(() => (settled = true));
  cluster.node('b').kill();
  await cluster.scheduler.runFor(100_000);
  expect(a.ends).toEqual(['ERR_HOLDFAST_CONNECTION_LOST']);
  expect([b.ends, ticks, settled]).toEqual([[], 0, false]);
  const { network } = cluster.node('b').restart();
  await network.listen(PORT, {}, () => {});
  await cluster.scheduler.runUntil(cluster.node('a').environment.network.connect(PORT, {}), 100);
});

test('a connection that is reset before its owner has it tells so', async () => {
  const { cluster } = await pair();
  const connecting = cluster.node('a').environment.network.connect(PORT, {});
  const reset = cluster.scheduler.run(() => {
    cluster.network.reset('a', 'b');
    return cluster.scheduler.nowMs > 3;
  });
  await reset;
  const end = open(await connecting);
  await cluster.scheduler.runFor(1);
  expect(end.ends).toEqual(['ERR_HOLDFAST_CONNECTION_LOST']);
});

test('a power cut is silent until the machine is back and knows nothing of the connection', async () => {
  const { cluster, a } = await pair();
  cluster.node('b').cutPower();
  a.connection.write(bytes(0, 1));
  await cluster.scheduler.runFor(10_000);
  expect(a.ends).toEqual([]);
  cluster.node('b').restart();
  a.connection.write(bytes(0, 1));
  await cluster.scheduler.runFor(10);
  expect(a.ends).toEqual(['ERR_HOLDFAST_CONNECTION_LOST']);
});

test('a reader that stands still is felt by the writer, whose queue drains when it goes on', async () => {
  const { cluster, a, b } = await pair();
  b.connection.pause();
  let writes = 0;
  while (a.connection.write([new Uint8Array(64 * 1024)])) expect(++writes).toBeLessThan(1000);
  await cluster.scheduler.runFor(1000);
  expect(a.connection.bufferedBytes).toBeGreaterThan(1024 * 1024);
  expect([a.drains, b.received.length]).toEqual([0, 0]);
  b.connection.resume();
  await cluster.scheduler.runFor(1000);
  expect([a.drains, a.connection.bufferedBytes, b.received.length]).toEqual([1, 0, (writes + 1) * 64 * 1024]);
});

test('a limited link takes its time', async () => {
  const { cluster, a, b } = await pair({ link: { bytesPerMs: 1000 } });
  a.connection.write([new Uint8Array(100_000)]);
  await cluster.scheduler.runFor(99);
  expect(b.received.length).toBeLessThan(100_000);
  await cluster.scheduler.runFor(2);
  expect(b.received.length).toBe(100_000);
});

test('the same seed leaves the same trace, another seed another', async () => {
  const run = async (seed: number): Promise<string> => {
    const faults = { dropRate: 0.1, duplicateRate: 0.1, reorderRate: 0.1, splitRate: 0.3, delayMaxMs: 3 };
    const { cluster, a, b } = await pair({ seed, link: faults });
    for (let part = 0; part < 100; part++) {
      a.connection.write(bytes(part, 10));
      b.connection.write(bytes(part, 20));
      await cluster.scheduler.runFor(cluster.random.between(0, 2));
    }
    cluster.network.reset('a', 'b');
    await cluster.scheduler.runFor(100);
    expect([a.ends.length, b.ends.length]).toEqual([1, 1]);
    return cluster.trace.hash();
  };
  const hashes = await Promise.all([run(1), run(1), run(2)]);
  expect(hashes[0]).toBe(hashes[1]);
  expect(hashes[0]).not.toBe(hashes[2]);
});
