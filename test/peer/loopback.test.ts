import net from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import type { HoldfastError } from '../../lib/base/errors.ts';
import type { Address } from '../../lib/base/network.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import type { PeerNodeOptions } from '../../lib/peer/node.ts';
import { ECHO, PING, type TestNode, testNode } from './helpers.ts';

/** The machine may be busy; time decides nothing here. */
const PATIENCE = { timeout: 20_000 };

let started: TestNode[] = [];

afterEach(async () => {
  await Promise.all(started.map(({ node }) => node.close()));
  started = [];
});

/** A port that was free a moment ago. */
async function freePort(): Promise<Address & { kind: 'tcp' }> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return { kind: 'tcp', host: '127.0.0.1', port };
}

async function startPair(
  optionsA: Partial<PeerNodeOptions> = {},
  optionsB: Partial<PeerNodeOptions> = optionsA,
): Promise<{ a: TestNode; b: TestNode; addressA: Address; addressB: Address }> {
  const [addressA, addressB] = [await freePort(), await freePort()];
  const a = testNode(systemEnvironment, 'a', addressA, [{ name: 'b', addresses: [addressB] }], optionsA);
  const b = testNode(systemEnvironment, 'b', addressB, [{ name: 'a', addresses: [addressA] }], optionsB);
  started.push(a, b);
  await Promise.all([a.node.start(), b.node.start()]);
  return { a, b, addressA, addressB };
}

describe.each(['tls', 'dedicated'] as const)('over a %s link', (link) => {
  test('two nodes find each other, and requests with data go both ways', async () => {
    const { a, b } = await startPair({ link });
    await expect.poll(() => a.node.session('b') && b.node.session('a'), PATIENCE).toBeDefined();
    for (const session of [a.node.session('b')!, b.node.session('a')!]) {
      const data = Buffer.alloc(1024 * 1024, 'data');
      const replies = await Promise.all(
        Array.from({ length: 32 }, (_, index) =>
          session.request(ECHO, index, [data.subarray(0, 99), data.subarray(99)]),
        ),
      );
      replies.forEach((reply, index) => {
        expect(reply.control).toBe(index + 1);
        expect(Buffer.compare(reply.data, data)).toBe(0);
      });
      expect((await session.request(PING, 41)).control).toBe(42);
    }
    expect([a.ups.length, b.ups.length]).toEqual([1, 1]);
    expect(a.node.links()).toMatchObject([{ peer: 'b', state: 'Connected', problem: undefined }]);
  });

  test('a node that only dials has its session, and begins anew after a break', async () => {
    const address = await freePort();
    const a = testNode(systemEnvironment, 'a', address, [{ name: 'b', addresses: [] }], { link });
    const b = testNode(systemEnvironment, 'b', undefined, [{ name: 'a', addresses: [address] }], { link });
    started.push(a, b);
    await Promise.all([a.node.start(), b.node.start()]);
    await expect.poll(() => b.node.session('a') && a.node.session('b'), PATIENCE).toBeDefined();
    expect((await a.node.session('b')!.request(PING, 1)).control).toBe(2);
    a.node.session('b')!.close('for the test');
    await expect.poll(() => b.ups.length, PATIENCE).toBe(2);
  });

  test('a wrong key is told on both sides, and nothing comes up', async () => {
    const refused: unknown[] = [];
    const onRefused: PeerNodeOptions['onRefused'] = (_remote, error, claimed) =>
      refused.push([(error as HoldfastError).code, claimed]);
    const { a, b } = await startPair(
      { link, onRefused },
      { link, key: Buffer.from('another key of 32 bytes ........') },
    );
    for (const { node } of [a, b])
      await expect
        .poll(() => node.links()[0], PATIENCE)
        .toMatchObject({
          state: 'Connecting',
          problem: { code: 'ERR_HOLDFAST_WRONG_KEY', message: expect.stringContaining('same key') },
        });
    expect([a.ups, b.ups]).toEqual([[], []]);
    // Somebody who came as b, and was not.
    await expect.poll(() => refused, PATIENCE).toContainEqual(['ERR_HOLDFAST_WRONG_KEY', 'b']);
  });

  test('a wrong cluster is told on both sides', async () => {
    const { a, b } = await startPair({ link }, { link, clusterId: 'other' });
    for (const { node } of [a, b])
      await expect.poll(() => node.links()[0]?.problem?.code, PATIENCE).toBe('ERR_HOLDFAST_WRONG_CLUSTER');
  });

  test('a stranger who speaks HTTP is dropped and told of', async () => {
    const refused: string[] = [];
    const { a, addressA } = await startPair({ link, onRefused: (_remote, error) => refused.push(error.message) });
    const { port, host } = addressA as { port: number; host: string };
    const answer = await new Promise<string>((resolve) => {
      let text = '';
      const socket = net.connect(port, host, () => socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n'));
      socket.on('data', (chunk) => (text += chunk.toString('latin1')));
      socket.on('error', () => {});
      socket.on('close', () => resolve(text));
    });
    expect(answer).not.toContain('HTTP/1');
    await expect.poll(() => refused.length, PATIENCE).toBeGreaterThan(0);
    if (link === 'dedicated') expect(refused[0]).toContain('an HTTP request');
    await expect.poll(() => a.node.session('b'), PATIENCE).toBeDefined();
  });
});

test('a link that is declared TLS on one side and dedicated on the other says so', async () => {
  const { a, b } = await startPair({ link: 'tls' }, { link: 'dedicated' });
  for (const { node } of [a, b])
    await expect.poll(() => node.links()[0]?.problem?.message, PATIENCE).toContain('kind of link');
});

test('a port in use is an error of start, and start may be tried again', async () => {
  const { addressA } = await startPair();
  const c = testNode(systemEnvironment, 'c', addressA, []);
  started.push(c);
  await expect(c.node.start()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ADDRESS_IN_USE' });
  await expect(c.node.start()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ADDRESS_IN_USE' });
});

test('closing one side is told to the other with its reason, and requests in flight fail', async () => {
  const { a, b } = await startPair({}, {});
  await expect.poll(() => a.node.session('b') && b.node.session('a'), PATIENCE).toBeDefined();
  const waiting = a.node.session('b')!.request(ECHO, 1, [new Uint8Array(1024)]);
  const failed = expect(waiting).rejects.toMatchObject({ code: 'ERR_HOLDFAST_PEER_LOST' });
  const closing = a.node.close();
  await failed;
  await closing;
  await expect.poll(() => b.downs, PATIENCE).toEqual(['a closed: this node is closing']);
});
