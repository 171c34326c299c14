/**
 * Who may not use a memory unit, over real TCP: each is refused, the unit goes on, and its audit log says so. Needs a
 * build in dist, and no further packages.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import net from 'node:net';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { HoldfastErrorCode } from '../../lib/base/errors.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { type Command, encodeCommand, Operation } from '../../lib/checkpoint/command-format.ts';
import { MemoryClient } from '../../lib/checkpoint/manager-client.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { memoryCommandMethod } from '../../lib/checkpoint/memory-wire.ts';
import type { AddressContext } from '../../lib/checkpoint/one-sided.ts';
import type { Refusal } from '../../lib/daemon/status.ts';
import { ChannelNumber, FrameKind, FrameWriter, headFor } from '../../lib/peer/frame.ts';
import { createPeerNode, type PeerNodeOptions } from '../../lib/peer/node.ts';
import type { PeerNode, PeerSession } from '../../lib/peer/peer.ts';
import { MemoryCluster } from './memory-cluster.ts';

const environment = systemEnvironment;
const PATIENCE = { timeout: 20_000, interval: 20 };

describe.each(['tls', 'dedicated'] as const)('over a %s link', (link) => {
  let cluster: MemoryCluster;
  let key: Uint8Array;
  const nodes: PeerNode[] = [];

  beforeAll(async () => {
    cluster = await MemoryCluster.running(['p', 'q', 'r'], link);
    await cluster.ask('memory-deny', { name: 'log', peer: 'r', rights: ['read', 'write'] });
    key = Buffer.from((await readFile(cluster.keyFile, 'latin1')).trim(), 'hex');
  });

  afterAll(async () => {
    for (const node of nodes) await node.close();
    await cluster[Symbol.asyncDispose]();
  });

  /** A node of a process that may do as it likes. */
  async function node(name: string, options: Partial<PeerNodeOptions> = {}): Promise<PeerNode> {
    const peers = [{ name: 'unit', addresses: [{ kind: 'tcp', host: '127.0.0.1', port: cluster.port } as const] }];
    const times = { heartbeatMs: 250, leaseMs: 1500 };
    const made = createPeerNode({ environment, name, clusterId: 'memory', key, link, peers, ...times, ...options });
    nodes.push(made);
    return made;
  }

  async function client(name: string): Promise<{ memory: MemoryClient; session: PeerSession; close(): Promise<void> }> {
    const made = await node(name);
    const { clock } = environment;
    const memory = new MemoryClient({ node: made, clock, manager: 'unit', unit: 'unit', transport: openAccess });
    await made.start();
    const session = await vi.waitUntil(() => made.session('unit'), PATIENCE);
    return { memory, session, close: () => made.close() };
  }

  /** The refusals of a code that the unit's log has, by those whose words are wanted. */
  async function logged(code: HoldfastErrorCode, wanted: Partial<Refusal> & { words?: string }): Promise<void> {
    const { words = '', ...fields } = wanted;
    const isWanted = (refusal: Refusal): boolean =>
      refusal.code === code &&
      refusal.reason.includes(words) &&
      Object.entries(fields).every(([name, value]) => refusal[name as keyof Refusal] === value);
    await expect
      .poll(async () => (await cluster.status()).refusals.filter(isWanted), {
        ...PATIENCE,
        message: `${code} ${words}`,
      })
      .not.toEqual([]);
  }

  async function refusedAs(code: HoldfastErrorCode, step: Promise<unknown>): Promise<void> {
    await expect(step).rejects.toMatchObject({ code });
  }

  /** Sends bytes; resolves when the unit has ended the connection. */
  async function sendRaw(...chunks: Uint8Array[]): Promise<void> {
    const socket = net.connect(cluster.port, '127.0.0.1');
    const closed = once(socket, 'close').catch(() => {});
    socket.on('error', () => {}).resume();
    for (const chunk of chunks) socket.write(chunk);
    await closed;
  }

  /** The same, by somebody who has the key, and sends them under TLS where that is asked for. */
  async function sendKeyed(...chunks: Uint8Array[]): Promise<void> {
    if (link === 'dedicated') return sendRaw(...chunks);
    const transportKey = createHmac('sha256', key).update('holdfast transport').digest();
    const psk = { identity: 'p', keyOf: () => transportKey };
    const address = { kind: 'tcp', host: '127.0.0.1', port: cluster.port } as const;
    const connection = await environment.network.connect(address, { psk, timeoutMs: 5000 });
    await new Promise<void>((resolve) => {
      connection.start({ onData: () => {}, onDrain: () => {}, onClose: () => resolve() });
      connection.write(chunks);
    });
  }

  const strangers = () => cluster.events().filter(({ kind }) => kind === 'stranger-refused').length;

  test('somebody without the key of the cluster', async () => {
    const before = strangers();
    await sendRaw(Buffer.from('GET / HTTP/1.1\r\nHost: unit\r\n\r\n'));
    await sendRaw(randomBytes(4096));
    await expect.poll(strangers, PATIENCE).toBeGreaterThanOrEqual(before + 2);
    await logged(link === 'tls' ? 'ERR_HOLDFAST_HANDSHAKE' : 'ERR_HOLDFAST_BAD_FRAME', {
      peer: null,
      words: 'a stranger from 127.0.0.1',
    });
  });

  test('a peer with the key of another cluster, also while the true one is connected', async () => {
    const { close } = await client('p');
    const impostor = await node('p', { key: randomBytes(32) });
    await impostor.start();
    await expect.poll(() => impostor.links()[0]?.problem?.code, PATIENCE).toBe('ERR_HOLDFAST_WRONG_KEY');
    expect(impostor.session('unit')).toBeUndefined();
    await logged('ERR_HOLDFAST_WRONG_KEY', { peer: null, words: 'as p' });
    await impostor.close();
    await close();
  });

  test('a name that the unit does not know, and a peer of another cluster', async () => {
    const unknown = await node('mallory');
    await unknown.start();
    await logged('ERR_HOLDFAST_UNKNOWN_PEER', { peer: null });
    const elsewhere = await node('p', { clusterId: 'elsewhere' });
    await elsewhere.start();
    await logged('ERR_HOLDFAST_WRONG_CLUSTER', { peer: null });
    expect([unknown.session('unit'), elsewhere.session('unit')]).toEqual([undefined, undefined]);
    await unknown.close();
    await elsewhere.close();
  });

  test('garbage in place of frames, from somebody with the key', async () => {
    const good = await client('q');
    const { access } = await good.memory.open('log');
    const before = strangers();
    // A whole request of a megabyte, before any handshake.
    const request: Uint8Array[] = [];
    const data = [randomBytes(2 ** 20)];
    const fields = { kind: FrameKind.request, channel: ChannelNumber.bulk, method: 40, parameter: 0, requestId: 1 };
    new FrameWriter().write({ ...fields, head: headFor(randomBytes(64)), data, dataLength: 2 ** 20 }, request);
    const wrongKind = randomBytes(64);
    wrongKind.write('HFPF', 'latin1');
    await sendKeyed(randomBytes(100_000));
    await sendKeyed(wrongKind);
    await sendKeyed(...request);
    await expect.poll(strangers, PATIENCE).toBeGreaterThanOrEqual(before + 3);
    await logged('ERR_HOLDFAST_BAD_FRAME', { peer: null });
    await access.read(0, new Uint8Array(4096));
    await good.close();
  });

  test('a peer that is not on the access list, and one that has been taken off it', async () => {
    const stranger = await client('r');
    await refusedAs('ERR_HOLDFAST_ACCESS', stranger.memory.open('log'));
    await refusedAs('ERR_HOLDFAST_ACCESS', stranger.memory.takeOver('log'));
    await refusedAs('ERR_HOLDFAST_ACCESS', stranger.memory.delete('log'));
    await logged('ERR_HOLDFAST_ACCESS', { peer: 'r', region: 'log', count: 3 });
    await cluster.ask('memory-allow', { name: 'log', peer: 'r', rights: ['read', 'write'] });
    const { access, context } = await stranger.memory.open('log');
    await access.write(0, [Buffer.alloc(64, 'before')], { persist: true });
    await cluster.ask('memory-deny', { name: 'log', peer: 'r', rights: ['read', 'write'] });
    await refusedAs('ERR_HOLDFAST_KEY_INVALID', access.write(0, [Buffer.alloc(64, 'after')], { persist: true }));
    await refusedAs('ERR_HOLDFAST_KEY_INVALID', access.read(0, new Uint8Array(64)));
    await logged('ERR_HOLDFAST_KEY_INVALID', { peer: 'r' });
    expect(cluster.events()).toContainEqual(
      expect.objectContaining({ kind: 'memory-revoked', peer: 'r', region: context.region }),
    );
    await stranger.close();
  });

  test('a key on the connection of somebody else, and again on a later connection', async () => {
    const [p, q] = [await client('p'), await client('q')];
    const { access, context } = await p.memory.open('log');
    await access.read(0, new Uint8Array(8));
    await refusedAs('ERR_HOLDFAST_KEY_INVALID', openAccess(q.session, context).read(0, new Uint8Array(8)));
    await logged('ERR_HOLDFAST_KEY_INVALID', { peer: 'q' });
    await p.close();
    const again = await client('p');
    await refusedAs('ERR_HOLDFAST_KEY_INVALID', openAccess(again.session, context).read(0, new Uint8Array(8)));
    await logged('ERR_HOLDFAST_KEY_INVALID', { peer: 'p' });
    for (const each of [q, again]) await each.close();
    expect(JSON.stringify([await cluster.status(), cluster.events()])).not.toContain(context.key);
  });

  test('what a key does not open, and commands that cannot be, from a client that checks nothing', async () => {
    const p = await client('p');
    const range = { base: 64 * 1024, lengthBytes: 4096 };
    const { context } = await p.memory.open('log', { rights: ['read'], range });
    const widened: AddressContext = { ...context, range: { base: 0, lengthBytes: context.sizeBytes * 2 } };
    const access = openAccess(p.session, widened);
    for (const address of [0, range.base - 1, range.base + 4089, context.sizeBytes, context.sizeBytes * 2 - 8])
      await refusedAs('ERR_HOLDFAST_OUT_OF_RANGE', access.read(address, new Uint8Array(8)));
    await logged('ERR_HOLDFAST_OUT_OF_RANGE', { peer: 'p', region: context.region });
    await refusedAs('ERR_HOLDFAST_ACCESS', access.write(range.base, [new Uint8Array(8)]));
    await refusedAs('ERR_HOLDFAST_ACCESS', access.compareAndSwap(range.base, 0n, 1n));
    await logged('ERR_HOLDFAST_ACCESS', { peer: 'p', region: context.region });
    const good: Command = {
      ...{ operation: Operation.read, persist: false, guard: false, tag: 0, key: context.key },
      ...{ address: range.base, length: 8, operandA: 0n, operandB: 0n },
    };
    const send = (header: Uint8Array, data: readonly Uint8Array[] = []) =>
      p.session.request(memoryCommandMethod, header, data);
    await send(encodeCommand(good));
    // Every byte of the header is changed in turn, but for those by which another part of the range would be read.
    const [lowestOfAddress, lowestOfLength] = [32, 40];
    for (let at = 0; at < 64; at++) {
      if (at === lowestOfAddress || at === lowestOfLength) continue;
      const header = Buffer.from(encodeCommand(good));
      header[at] = header[at]! ^ 0xff;
      await refusedAs(
        expect.stringMatching(/^ERR_HOLDFAST_(BAD_FRAME|KEY_INVALID|OUT_OF_RANGE)$/) as unknown as HoldfastErrorCode,
        send(header),
      );
    }
    for (const header of [new Uint8Array(0), new Uint8Array(63), randomBytes(65), randomBytes(64)])
      await refusedAs('ERR_HOLDFAST_BAD_FRAME', send(header));
    await refusedAs('ERR_HOLDFAST_BAD_FRAME', send(encodeCommand(good), [randomBytes(100)]));
    await logged('ERR_HOLDFAST_BAD_FRAME', { peer: 'p' });
    // All that over one session, which goes on.
    await send(encodeCommand(good));
    await p.close();
  });

  test('all of it is in the events, too, and the unit is in health', async () => {
    const refused = cluster.events().filter(({ kind }) => kind === 'memory-refused');
    const codes = new Set(refused.map(({ code }) => code));
    expect([...codes].sort()).toEqual([
      'ERR_HOLDFAST_ACCESS',
      'ERR_HOLDFAST_BAD_FRAME',
      'ERR_HOLDFAST_KEY_INVALID',
      'ERR_HOLDFAST_OUT_OF_RANGE',
    ]);
    const { unit, manager } = await cluster.status();
    expect([unit!.failure, manager!.problem]).toEqual([null, null]);
  });
});
