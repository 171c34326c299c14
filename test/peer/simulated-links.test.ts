/** Links between nodes under the faults of a simulated network, one seed after the other. */
import { describe, expect, test } from 'vitest';
import type { Address } from '../../lib/base/network.ts';
import type { PeerNodeOptions } from '../../lib/peer/node.ts';
import type { PeerSession } from '../../lib/peer/peer.ts';
import { SimulatedCluster, type SimulatedClusterOptions } from '../../lib/testing/simulated-cluster.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { ECHO, PING, type TestNode, testNode } from './helpers.ts';

const NAMES = ['a', 'b'];

function addressOf(name: string): Address {
  return { kind: 'tcp', host: name, port: 7000 };
}

class Pair {
  readonly cluster: SimulatedCluster;
  readonly nodes = new Map<string, TestNode>();
  readonly options: Partial<PeerNodeOptions>;

  constructor(options: Partial<SimulatedClusterOptions> = {}, nodeOptions: Partial<PeerNodeOptions> = {}) {
    this.cluster = new SimulatedCluster({ seed: 1, names: NAMES, ...options });
    this.options = nodeOptions;
    for (const name of NAMES) this.boot(name);
  }

  /** Starts a node in the process that runs now. */
  boot(name: string): TestNode {
    const peers = NAMES.filter((other) => other !== name).map((other) => ({
      name: other,
      addresses: [addressOf(other)],
    }));
    const node = testNode(this.cluster.node(name).environment, name, addressOf(name), peers, this.options);
    this.nodes.set(name, node);
    void node.node.start();
    return node;
  }

  get a(): TestNode {
    return this.nodes.get('a')!;
  }

  get b(): TestNode {
    return this.nodes.get('b')!;
  }

  session(from: string): PeerSession | undefined {
    return this.nodes.get(from)!.node.session(from === 'a' ? 'b' : 'a');
  }

  get connected(): boolean {
    return this.session('a')?.open === true && this.session('b')?.open === true;
  }

  /** Runs until both nodes have an open session, and answers how long that took. */
  async connect(limitMs = 30_000): Promise<number> {
    const { scheduler } = this.cluster;
    const startMs = scheduler.nowMs;
    await scheduler.run(() => this.connected || scheduler.nowMs - startMs > limitMs);
    expect(this.connected, `no session within ${limitMs} ms of virtual time`).toBe(true);
    return scheduler.nowMs - startMs;
  }

  run<T>(promise: Promise<T>, limitMs = 60_000): Promise<T> {
    return this.cluster.scheduler.runUntil(promise, limitMs);
  }

  runFor(ms: number): Promise<void> {
    return this.cluster.scheduler.runFor(ms);
  }
}

/** `echo 5 -> 6`, or the code of the error. */
async function ask(session: PeerSession, value: number, bytes = 100): Promise<string> {
  try {
    const { control, data } = await session.request(ECHO, value, [new Uint8Array(bytes).fill(value)]);
    expect(data.length).toBe(bytes);
    expect(data.every((byte) => byte === (value & 0xff))).toBe(true);
    expect(control).toBe(value + 1);
    return 'answered';
  } catch (error) {
    return (error as { code: string }).code;
  }
}

test('connecting both ways at once ends in one session, on the same connection at both ends', async () => {
  for (let seed = 0; seed < 50; seed++) {
    const pair = new Pair({ seed, link: { delayMinMs: 0.1, delayMaxMs: 20 } });
    await pair.connect();
    await pair.runFor(3000);
    expect([pair.a.ups.length, pair.b.ups.length, pair.a.downs, pair.b.downs], `seed ${seed}`).toEqual([1, 1, [], []]);
    expect(await pair.run(ask(pair.session('a')!, 1))).toBe('answered');
    expect(await pair.run(ask(pair.session('b')!, 2))).toBe('answered');
  }
});

test('one direction that can be dialled is enough', async () => {
  for (const [from, to] of [NAMES, NAMES.toReversed()] as [string, string][]) {
    const cluster = new SimulatedCluster({ seed: 3, names: NAMES });
    const dialler = testNode(cluster.node(from).environment, from, addressOf(from), [
      { name: to, addresses: [{ kind: 'tcp', host: to, port: 1 }, addressOf(to)] },
    ]);
    const other = testNode(cluster.node(to).environment, to, addressOf(to), [{ name: from, addresses: [] }]);
    await Promise.all([dialler.node.start(), other.node.start()]);
    await cluster.scheduler.runFor(2000);
    expect([dialler.ups.length, other.ups.length]).toEqual([1, 1]);
  }
});

test('a partition ends the session after a lease of silence; it comes back when it heals', async () => {
  const pair = new Pair();
  await pair.connect();
  await pair.runFor(2000);
  const waiting = ask(pair.session('a')!, 1);
  await pair.run(waiting);
  pair.cluster.network.partition('a', 'b');
  const lost = ask(pair.session('a')!, 2);
  await pair.runFor(2400);
  expect(pair.connected).toBe(true);
  await pair.runFor(1200);
  expect([pair.a.downs, pair.b.downs]).toEqual([['b was silent for 3000 ms'], ['a was silent for 3000 ms']]);
  expect(await lost).toBe('ERR_HOLDFAST_PEER_LOST');
  await pair.runFor(20_000);
  expect(pair.a.node.links()).toMatchObject([{ state: 'Connecting', problem: { code: 'ERR_HOLDFAST_TIMEOUT' } }]);
  pair.cluster.network.heal('a', 'b');
  expect(await pair.connect()).toBeLessThan(8000);
  expect(pair.session('a')!.ordinal).toBeGreaterThan(pair.a.ups[0]!.ordinal);
  expect(pair.a.ups[0]!.open).toBe(false);
  expect(await pair.run(ask(pair.session('a')!, 3))).toBe('answered');
});

test('a one-way partition ends the session on both sides', async () => {
  const pair = new Pair();
  await pair.connect();
  pair.cluster.network.block('a', 'b');
  await pair.runFor(15_000);
  expect(pair.connected).toBe(false);
  expect([pair.a.node.session('b'), pair.b.node.session('a')]).toEqual([undefined, undefined]);
  pair.cluster.network.unblock('a', 'b');
  await pair.connect();
});

test('a peer that was killed and restarted is a new incarnation, and its session a new one', async () => {
  const pair = new Pair();
  await pair.connect();
  const before = pair.session('a')!;
  const lost = ask(before, 1);
  pair.cluster.node('b').kill();
  expect(await pair.run(lost)).toBe('ERR_HOLDFAST_PEER_LOST');
  await pair.runFor(1000);
  pair.cluster.node('b').restart();
  pair.boot('b');
  expect(await pair.connect()).toBeLessThan(3000);
  const after = pair.session('a')!;
  expect(after.peer.incarnation).not.toBe(before.peer.incarnation);
  expect(after.ordinal).toBeGreaterThan(before.ordinal);
});

test('a new incarnation supersedes the old session at once, before the lease is over', async () => {
  for (const name of NAMES) {
    const other = name === 'a' ? 'b' : 'a';
    const pair = new Pair();
    await pair.connect();
    await pair.runFor(1000);
    pair.cluster.node(name).cutPower();
    pair.cluster.node(name).restart();
    pair.boot(name);
    expect(await pair.connect(), name).toBeLessThan(1500);
    const { downs, ups } = pair.nodes.get(other)!;
    expect(downs).toHaveLength(1);
    expect(ups[1]!.peer.incarnation).not.toBe(ups[0]!.peer.incarnation);
  }
});

test('two running nodes of one name: the one that was superseded is refused and told why', async () => {
  const names = ['a', 'b', 'b2'];
  const cluster = new SimulatedCluster({ seed: 1, names });
  const a = testNode(cluster.node('a').environment, 'a', addressOf('a'), [{ name: 'b', addresses: [] }]);
  const peers = [{ name: 'a', addresses: [addressOf('a')] }];
  const first = testNode(cluster.node('b').environment, 'b', addressOf('b'), peers);
  await Promise.all([a.node.start(), first.node.start()]);
  await cluster.scheduler.runFor(1000);
  const second = testNode(cluster.node('b2').environment, 'b', addressOf('b2'), peers);
  await second.node.start();
  await cluster.scheduler.runFor(5000);
  expect(a.node.session('b')!.peer.incarnation).toBe(second.node.incarnation);
  expect(first.node.links()[0]).toMatchObject({
    state: 'Connecting',
    problem: { code: 'ERR_HOLDFAST_DUPLICATE_NAME', message: expect.stringContaining('its own name') },
  });
});

test('an address that leads back to the node itself says so', async () => {
  const cluster = new SimulatedCluster({ seed: 1, names: ['a'] });
  const a = testNode(cluster.node('a').environment, 'a', addressOf('a'), [{ name: 'b', addresses: [addressOf('a')] }]);
  await a.node.start();
  await cluster.scheduler.runFor(3000);
  expect(a.node.links()[0]?.problem).toMatchObject({ code: 'ERR_HOLDFAST_SELF_CONNECT' });
});

test('an address that leads to another peer, and a version too old, say so at both ends', async () => {
  const names = ['a', 'b', 'c'];
  const cluster = new SimulatedCluster({ seed: 1, names });
  const peers = (...others: [string, string][]) =>
    others.map(([name, at]) => ({ name, addresses: at === '' ? [] : [addressOf(at)] }));
  const start = (name: string, links: [string, string][], options: Partial<PeerNodeOptions> = {}): TestNode => {
    const node = testNode(cluster.node(name).environment, name, addressOf(name), peers(...links), options);
    void node.node.start();
    return node;
  };
  const a = start('a', [['b', 'c']]);
  const b = start('b', [['c', 'c']], { versions: { min: 7, max: 9 } });
  const c = start('c', [
    ['a', ''],
    ['b', ''],
  ]);
  await cluster.scheduler.runFor(3000);
  expect(a.node.links()[0]?.problem?.code).toBe('ERR_HOLDFAST_WRONG_PEER');
  expect(b.node.links()[0]?.problem?.code).toBe('ERR_HOLDFAST_VERSION');
  expect(c.node.links().map(({ problem }) => problem?.code)).toEqual([
    'ERR_HOLDFAST_WRONG_PEER',
    'ERR_HOLDFAST_VERSION',
  ]);
  expect(c.node.links()[1]?.problem?.message).toContain('versions 7 to 9, this node 1 to 1; upgrade the older one');
});

test('a stranger who says nothing is dropped after the deadline, and many of them shut nobody out for long', async () => {
  const refused: string[] = [];
  const cluster = new SimulatedCluster({ seed: 1, names: ['a', 'b', 's'] });
  const onRefused = (_remote: string, error: Error): number => refused.push(error.message);
  const a = testNode(cluster.node('a').environment, 'a', addressOf('a'), [{ name: 'b', addresses: [] }], {
    link: 'dedicated',
    onRefused,
  });
  await a.node.start();
  let closed = 0;
  for (let stranger = 0; stranger < 50; stranger++) {
    const opened = cluster.node('s').environment.network.connect(addressOf('a'), {});
    const connection = await cluster.scheduler.runUntil(opened, 1000);
    connection.start({ onData() {}, onDrain() {}, onClose: () => closed++ });
  }
  await cluster.scheduler.runFor(1000);
  // 16 to spare and 4 for the peer; the others were closed at once.
  expect([closed, refused.length]).toEqual([30, 0]);
  const b = testNode(cluster.node('b').environment, 'b', addressOf('b'), [{ name: 'a', addresses: [addressOf('a')] }], {
    link: 'dedicated',
  });
  await b.node.start();
  await cluster.scheduler.runFor(8000);
  expect(refused).toHaveLength(20);
  expect(refused[0]).toContain('did not finish the handshake in 5000 ms');
  expect([a.ups.length, b.ups.length]).toEqual([1, 1]);
});

test.each([
  ['lost', { dropRate: 0.02 }],
  ['repeated', { duplicateRate: 0.02 }],
  ['late', { reorderRate: 0.05 }],
  ['cut off by a reset', { resetRate: 0.02 }],
])('chunks that are %s end the session, and never change an answer', async (_name, link) => {
  let answered = 0;
  let lost = 0;
  for (let seed = 0; seed < 10; seed++) {
    const pair = new Pair({ seed });
    await pair.connect();
    pair.cluster.network.setAllLinks(link);
    for (let value = 0; value < 60; value++) {
      const session = pair.session(value % 2 === 0 ? 'a' : 'b');
      const together = [0, 1, 2].map((part) =>
        session === undefined ? 'ERR_HOLDFAST_PEER_LOST' : ask(session, value, (value + part) * 100),
      );
      for (const outcome of await pair.run(Promise.all(together))) {
        expect(['answered', 'ERR_HOLDFAST_PEER_LOST'], `seed ${seed}`).toContain(outcome);
        if (outcome === 'answered') answered++;
        else lost++;
      }
      await pair.runFor(20);
    }
    pair.cluster.network.setAllLinks({ dropRate: 0, duplicateRate: 0, reorderRate: 0, resetRate: 0 });
    await pair.connect();
    expect(await pair.run(ask(pair.session('a')!, 7))).toBe('answered');
  }
  expect(answered).toBeGreaterThan(100);
  expect(lost).toBeGreaterThan(10);
});

describe('leases', () => {
  /** What a moment of that node's clock is on the simulation's. */
  function trueMs(pair: Pair, name: string, rate: number, localMs: number): number {
    const { clock } = pair.cluster.node(name).environment;
    return (localMs - clock.nowMs()) / rate + pair.cluster.scheduler.nowMs;
  }

  test('a lease is never held beyond its grant, whatever the network, the clocks and the processes do', async () => {
    let observations = 0;
    let held = 0;
    for (let seed = 0; seed < 60; seed++) {
      const pair = new Pair(
        {
          seed,
          link: { delayMinMs: 0.1, delayMaxMs: new SimulatedRandom(seed, 'delay').between(1, 400), splitRate: 0.2 },
        },
        { heartbeatMs: 200, leaseMs: 1500 },
      );
      const { random, network } = pair.cluster;
      // Clocks may differ by what the margin allows for.
      const rates = { a: random.between(0.996, 1.004), b: random.between(0.996, 1.004) } as Record<string, number>;
      for (const name of NAMES) pair.cluster.node(name).environment.clock.setRate(rates[name]!);
      for (let round = 0; round < 100; round++) {
        await pair.runFor(random.between(1, 300));
        const fault = random.below(60);
        if (fault === 0) network.clog('a', 'b', random.between(1, 2500));
        if (fault === 1) network.clog('b', 'a', random.between(1, 2500));
        if (fault === 2) network.reset('a', 'b');
        if (fault === 3) {
          const node = pair.cluster.node(NAMES[random.below(2)]!);
          if (!node.process.paused) {
            node.pause();
            pair.cluster.scheduler.schedule(random.below(2_500_000), () => node.resume());
          }
        }
        for (const [holder, grantor] of [NAMES, NAMES.toReversed()] as [string, string][]) {
          const session = pair.session(holder);
          if (session === undefined || session.leaseHeldUntilMs() === Number.NEGATIVE_INFINITY) continue;
          const heldUntil = trueMs(pair, holder, rates[holder]!, session.leaseHeldUntilMs());
          // Whatever session of the grantor gave it, none may be shorter than what is held.
          const grants = pair.nodes
            .get(grantor)!
            .ups.map((up) => trueMs(pair, grantor, rates[grantor]!, up.leaseGrantedUntilMs()));
          observations++;
          if (heldUntil > pair.cluster.scheduler.nowMs) held++;
          expect(heldUntil, `seed ${seed}`).toBeLessThanOrEqual(Math.max(...grants) + 0.002);
        }
      }
    }
    expect(observations).toBeGreaterThan(2000);
    expect(held).toBeGreaterThan(1000);
  });

  test('in quiet a lease is renewed long before it ends', async () => {
    const pair = new Pair();
    await pair.connect();
    await pair.runFor(100);
    for (let round = 0; round < 100; round++) {
      await pair.runFor(97);
      const now = pair.cluster.node('a').environment.clock.nowMs();
      expect(pair.session('a')!.leaseHeldUntilMs() - now).toBeGreaterThan(2300);
      expect(pair.session('a')!.leaseGrantedUntilMs() - now).toBeGreaterThan(2300);
    }
    const { roundTripMs } = pair.a.node.links()[0]!;
    expect(roundTripMs).toBeGreaterThan(0.1);
    expect(roundTripMs).toBeLessThan(0.5);
  });

  test('no lease is held before the first grant', async () => {
    const pair = new Pair();
    let first: number | undefined;
    pair.a.node.subscribe({ onSessionUp: (session) => (first = session.leaseHeldUntilMs()), onSessionDown() {} });
    await pair.connect();
    expect(first).toBe(Number.NEGATIVE_INFINITY);
  });
});

test('bulk never delays heartbeats: a slow link full of bulk keeps its session', async () => {
  const pair = new Pair({ link: { bytesPerMs: 2000 } });
  await pair.connect();
  const session = pair.session('a')!;
  const data = [new Uint8Array(1024 * 1024)];
  const bulk = Promise.all(Array.from({ length: 40 }, (_, index) => session.request(ECHO, index, data)));
  await pair.runFor(2000);
  // At 2 MB/s the socket holds half a second, the window four.
  const startMs = pair.cluster.scheduler.nowMs;
  await pair.run(session.request(PING, 1));
  expect(pair.cluster.scheduler.nowMs - startMs).toBeLessThan(1800);
  expect(await pair.run(bulk)).toHaveLength(40);
  expect(pair.a.downs).toEqual([]);
});

test('the same seed leaves the same trace', async () => {
  const story = async (seed: number): Promise<string> => {
    const faults = { dropRate: 0.002, duplicateRate: 0.002, reorderRate: 0.002, resetRate: 0.002, delayMaxMs: 5 };
    const pair = new Pair({ seed, link: faults });
    const { random, network, trace } = pair.cluster;
    for (let round = 0; round < 40; round++) {
      await pair.runFor(random.between(0, 200));
      if (random.chance(0.1)) network.clog('a', 'b', random.between(0, 4000));
      if (random.chance(0.05)) {
        pair.cluster.node('b').kill();
        pair.cluster.node('b').restart();
        pair.boot('b');
      }
      for (const name of NAMES) {
        const session = pair.session(name);
        if (session?.open) void ask(session, round).then((outcome) => trace.add(`${name} ${round} ${outcome}`));
      }
    }
    return trace.hash();
  };
  const hashes = await Promise.all([story(1), story(1), story(2)]);
  expect(hashes[1]).toBe(hashes[0]);
  expect(hashes[2]).not.toBe(hashes[0]);
});
