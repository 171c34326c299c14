/** What the systems see of a session, over the simulated network. */
import { expect, test } from 'vitest';
import { z } from 'zod';
import { HoldfastError } from '../../lib/base/errors.ts';
import type { PeerNodeOptions } from '../../lib/peer/node.ts';
import type { Method, PeerNode, PeerSession } from '../../lib/peer/peer.ts';
import { SimulatedCluster, type SimulatedClusterOptions } from '../../lib/testing/simulated-cluster.ts';
import { ECHO, method, PING, testNode } from './helpers.ts';

interface World {
  readonly cluster: SimulatedCluster;
  readonly session: PeerSession;
  /** b's view of the same session. */
  readonly back: PeerSession;
  run<T>(promise: Promise<T>): Promise<T>;
}

/** a with a session to b, where `prepare` registers b's handlers. */
async function world(
  prepare: (node: PeerNode) => void,
  options: Partial<PeerNodeOptions> = {},
  clusterOptions: Partial<SimulatedClusterOptions> = {},
  optionsA: Partial<PeerNodeOptions> = options,
): Promise<World> {
  const cluster = new SimulatedCluster({ seed: 1, names: ['a', 'b'], ...clusterOptions });
  const address = (host: string) => ({ kind: 'tcp', host, port: 7000 }) as const;
  const a = testNode(
    cluster.node('a').environment,
    'a',
    address('a'),
    [{ name: 'b', addresses: [address('b')] }],
    optionsA,
  );
  const b = testNode(
    cluster.node('b').environment,
    'b',
    address('b'),
    [{ name: 'a', addresses: [] }],
    options,
    prepare,
  );
  await Promise.all([a.node.start(), b.node.start()]);
  await cluster.scheduler.run(() => a.ups.length > 0 && b.ups.length > 0);
  return {
    cluster,
    session: a.ups[0]!,
    back: b.ups[0]!,
    run: (promise) => cluster.scheduler.runUntil(promise, 60_000),
  };
}

const codeOf = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'answered',
    (error) => error.code,
  );

test("a handler's error arrives with its code, message and errno; another error as an internal one", async () => {
  const { session, run } = await world((node) => {
    node.handle(ECHO, async () => {
      throw new HoldfastError('ERR_HOLDFAST_IO', 'the disk failed', { errno: 'EIO' });
    });
    node.handle(PING, async () => {
      throw new TypeError('oops');
    });
  });
  await expect(run(session.request(ECHO, 1))).rejects.toMatchObject({
    name: 'HoldfastError',
    code: 'ERR_HOLDFAST_IO',
    errno: 'EIO',
    message: 'b: the disk failed',
  });
  await expect(run(session.request(PING, 1))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_INTERNAL' });
  expect(session.open).toBe(true);
});

test('an unknown method, a body that does not fit and the wrong channel are answered, not punished', async () => {
  const { session, run } = await world((node) => node.handle(ECHO, async ({ control }) => ({ control })));
  const wrong = method({ request: z.string() as unknown as Method<number, number>['request'] });
  expect(await run(codeOf(session.request(method({ id: 99 }), 1, [new Uint8Array(100)])))).toBe(
    'ERR_HOLDFAST_UNKNOWN_METHOD',
  );
  expect(await run(codeOf(session.request(wrong, 'text' as unknown as number)))).toBe('ERR_HOLDFAST_BAD_FRAME');
  expect(await run(codeOf(session.request(method({ channel: 'control' }), 1)))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
  expect(await run(codeOf(session.request(ECHO, 1)))).toBe('answered');
});

test('a method with a format of its own is not MessagePack on the wire, and its bodies are checked by that', async () => {
  const heard: number[] = [];
  const own = method({
    requestFormat: {
      encode: (body) => Uint8Array.of(255 - body),
      decode([byte = 0]) {
        if (byte < 200) throw new HoldfastError('ERR_HOLDFAST_BAD_FRAME', 'too little');
        return 255 - byte;
      },
    },
  });
  const { session, run } = await world((node) =>
    node.handle(own, async ({ control }) => {
      heard.push(control);
      return { control };
    }),
  );
  expect((await run(session.request(own, 7))).control).toBe(7);
  expect(await run(codeOf(session.request(ECHO, 7)))).toBe('ERR_HOLDFAST_BAD_FRAME');
  expect(session.open).toBe(true);
  expect(heard).toEqual([7]);
});

test('an answer with a format of its own is checked by that, and one that does not fit fails its request only', async () => {
  const own = (id: number, offset: number) =>
    method({
      id,
      responseFormat: {
        encode: (body) => (body === 0 ? new Uint8Array(0) : Uint8Array.of(body - offset)),
        decode(bytes) {
          if (bytes.length === 0) return 0;
          if (bytes[0]! > 100) throw new HoldfastError('ERR_HOLDFAST_BAD_FRAME', 'too much');
          return bytes[0]! + offset;
        },
      },
    });
  const echo = async ({ control }: { control: number }) => ({ control });
  const { session, run } = await world((node) => {
    node.handle(own(5, 1), echo);
    node.handle(method({ id: 6 }), echo);
  });
  expect((await run(session.request(own(5, 1), 0))).control).toBe(0);
  expect((await run(session.request(own(5, 10), 7))).control).toBe(16);
  expect(await run(codeOf(session.request(own(5, 1), 102)))).toBe('ERR_HOLDFAST_BAD_FRAME');
  expect(await run(codeOf(session.request(own(6, 1), 200)))).toBe('ERR_HOLDFAST_BAD_FRAME');
  expect(session.open).toBe(true);
});

test('a handler may answer at once: its error arrives too, and its data is released once it has gone', async () => {
  let released = 0;
  const { session, run } = await world((node) => {
    node.handle(ECHO, ({ control, data }) => {
      if (control < 0) throw new HoldfastError('ERR_HOLDFAST_IO', 'as told');
      const release = () => {
        released += 1;
      };
      return { control, data: [data], release };
    });
  });
  expect(Buffer.from((await run(session.request(ECHO, 1, [Buffer.from('data')]))).data).toString()).toBe('data');
  expect(await run(codeOf(session.request(ECHO, -1)))).toBe('ERR_HOLDFAST_IO');
  expect(released).toBe(1);
});

test('handlers that answer at once start in the order of the requests when several may start together', async () => {
  const order: number[] = [];
  let open = (): void => {};
  const first = new Promise<void>((resolve) => {
    open = resolve;
  });
  const { session, run, cluster } = await world(
    (node) =>
      node.handle(ECHO, ({ control }) => {
        order.push(control);
        const reply = { control };
        return control === 0 ? first.then(() => reply) : reply;
      }),
    { limits: { bulkAnswerBytes: 1024 * 1024, handlersMax: 3 } },
    {},
    { limits: { bulkAnswerBytes: 2 * 1024 * 1024 } },
  );
  // The first answer takes the whole budget: the others wait until it has gone, then three of them start at once.
  const all = [1024 * 1024, 100, 100, 0, 100, 1000, 0].map((maxResponseDataBytes, index) =>
    session.request(ECHO, index, [], { maxResponseDataBytes }),
  );
  await cluster.scheduler.runFor(100);
  expect(order).toEqual([0]);
  open();
  await run(Promise.all(all));
  expect(order).toEqual([0, 1, 2, 3, 4, 5, 6]);
});

test('an answer that does not fit the schema, or brings too much, fails its request only', async () => {
  const { session, run } = await world((node) => {
    node.handle(ECHO, async () => ({ control: 'text' as unknown as number }));
    node.handle(method({ id: 3 }), async () => ({ control: 1, data: [new Uint8Array(100)] }));
  });
  expect(await run(codeOf(session.request(ECHO, 1)))).toBe('ERR_HOLDFAST_BAD_FRAME');
  expect(await run(codeOf(session.request(method({ id: 3 }), 1, [], { maxResponseDataBytes: 99 })))).toBe(
    'ERR_HOLDFAST_INTERNAL',
  );
  expect(await run(codeOf(session.request(method({ id: 3 }), 1, [], { maxResponseDataBytes: 100 })))).toBe('answered');
});

test('a request with more data than its method takes is refused before anything is sent', async () => {
  const { session, run } = await world(() => {});
  const small = method({ maxRequestDataBytes: 10 });
  expect(await run(codeOf(session.request(small, 1, [new Uint8Array(6), new Uint8Array(5)])))).toBe(
    'ERR_HOLDFAST_BAD_ARGUMENT',
  );
});

test('handlers of a channel start in the order of the requests', async () => {
  const order: number[] = [];
  const { session, run } = await world((node) =>
    node.handle(ECHO, async ({ control }) => {
      order.push(control);
      return { control };
    }),
  );
  const sizes = [100_000, 1, 0, 500_000, 20, 70_000, 1, 1, 300_000, 0];
  await run(Promise.all(sizes.map((size, index) => session.request(ECHO, index, [new Uint8Array(size)]))));
  expect(order).toEqual([...sizes.keys()]);
});

test('a receiver whose handlers stand still bounds the memory on both sides; when they go on, all is answered', async () => {
  let release = (): void => {};
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  const bulkWindowBytes = 1024 * 1024;
  const { session, back, cluster, run } = await world(
    (node) =>
      node.handle(ECHO, async ({ control }) => {
        await gate;
        return { control };
      }),
    { limits: { bulkWindowBytes, waitingMax: 500 } },
  );
  const answers = Array.from({ length: 200 }, (_, index) => session.request(ECHO, index, [new Uint8Array(64 * 1024)]));
  const all = Promise.all(answers);
  await cluster.scheduler.runFor(10_000);
  const { heldBytes } = back as unknown as { heldBytes: number };
  expect(heldBytes).toBeGreaterThan(bulkWindowBytes / 2);
  expect(heldBytes).toBeLessThanOrEqual(bulkWindowBytes);
  expect(session.open).toBe(true);
  const more = Array.from({ length: 400 }, (_, index) => codeOf(session.request(ECHO, index)));
  release();
  expect(await run(all)).toHaveLength(200);
  const codes = await run(Promise.all(more));
  expect(new Set(codes)).toEqual(new Set(['answered', 'ERR_HOLDFAST_QUEUE_FULL']));
});

test('cancelling a request that waits drops it; one that was sent runs on there, and its data is out of use', async () => {
  const seen: number[] = [];
  let release = (): void => {};
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  const { session, cluster, run } = await world(
    (node) =>
      node.handle(ECHO, async ({ control, data }) => {
        seen.push(control);
        expect(data.every((byte) => byte === control)).toBe(true);
        await gate;
        return { control };
      }),
    { limits: { bulkWindowBytes: 600_000 } },
    { link: { bytesPerMs: 1000 } },
  );
  const [first, second] = [new AbortController(), new AbortController()];
  const data = [new Uint8Array(500_000).fill(1), new Uint8Array(500_000).fill(2)];
  const sent = codeOf(session.request(ECHO, 1, [data[0]!], { signal: first.signal }));
  const waiting = codeOf(session.request(ECHO, 2, [data[1]!], { signal: second.signal }));
  await cluster.scheduler.runFor(1);
  first.abort();
  second.abort();
  expect(await run(waiting)).toBe('ERR_HOLDFAST_ABORTED');
  expect(await run(sent)).toBe('ERR_HOLDFAST_ABORTED');
  data[0]!.fill(99);
  data[1]!.fill(99);
  await cluster.scheduler.runFor(2000);
  expect([seen, session.open]).toEqual([[1], true]);
  release();
  expect(await run(codeOf(session.request(ECHO, 3, [new Uint8Array(500_000).fill(3)])))).toBe('answered');
  expect(seen).toEqual([1, 3]);
  expect(await run(codeOf(session.request(ECHO, 4, [], { signal: first.signal })))).toBe('ERR_HOLDFAST_ABORTED');
});

test("an answer's memory is released once, after it has gone or when the session has", async () => {
  const released: string[] = [];
  const { session, back, cluster, run } = await world((node) =>
    node.handle(ECHO, async ({ control }) => {
      const data = new Uint8Array(300_000).fill(control);
      const release = (): void => {
        data.fill(99);
        released.push(`${control}`);
      };
      return { control, data: [data], release };
    }),
  );
  const replies = await run(Promise.all([1, 2, 3].map((value) => session.request(ECHO, value))));
  replies.forEach(({ control, data }) => {
    expect(data.length === 300_000 && data.every((byte) => byte === control)).toBe(true);
  });
  await cluster.scheduler.runFor(10);
  expect(released).toEqual(['1', '2', '3']);
  cluster.network.partition('a', 'b');
  const lost = codeOf(session.request(ECHO, 4));
  cluster.network.unblock('a', 'b');
  await cluster.scheduler.runFor(100);
  back.close('enough');
  await cluster.scheduler.runFor(5000);
  expect(released).toEqual(['1', '2', '3', '4']);
  expect(await run(lost)).toBe('ERR_HOLDFAST_PEER_LOST');
});

test('a request on a session that is over fails at once', async () => {
  const { session, run } = await world(() => {});
  session.close('enough');
  expect(session.open).toBe(false);
  expect(await run(codeOf(session.request(ECHO, 1)))).toBe('ERR_HOLDFAST_PEER_LOST');
});

test('mistakes of the caller are told before anything runs', async () => {
  const cluster = new SimulatedCluster({ seed: 1, names: ['a'] });
  const make = (options: Partial<PeerNodeOptions>, peers: string[] = ['b']): unknown => {
    const listen = { kind: 'tcp', host: 'a', port: 1 } as const;
    const name = options.name ?? 'a';
    try {
      const links = peers.map((peer) => ({ name: peer, addresses: [] }));
      return testNode(cluster.node('a').environment, name, listen, links, options).node;
    } catch (error) {
      expect(error).toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
      return (error as Error).message;
    }
  };
  expect(make({ name: 'no spaces' })).toContain('is not a name');
  expect(make({}, ['b', 'b'])).toContain('two nodes have one name');
  expect(make({}, ['a'])).toContain('two nodes have one name');
  expect(make({ key: new Uint8Array(8) })).toContain('the key has 8 bytes');
  expect(make({ clusterId: '' })).toContain('cluster id');
  expect(make({ heartbeatMs: 500, leaseMs: 700 })).toContain('too short');
  expect(make({ features: ['UPPER'] })).toContain('features');
  expect(make({ limits: { bulkWindowBytes: -1 } })).toContain('bulkWindowBytes');
  const node = make({}) as PeerNode;
  expect(() => node.handle(ECHO, async ({ control }) => ({ control }))).toThrow(/registered twice/);
  expect(() => node.handle(method({ id: 5, maxResponseDataBytes: 2 ** 30 }), async () => ({ control: 1 }))).toThrow(
    /no more than/,
  );
  await node.start();
  expect(() => node.handle(method({ id: 6 }), async () => ({ control: 1 }))).toThrow(/too late/);
  await node.close();
  await node.close();
});
