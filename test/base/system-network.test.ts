import { mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Address, Connection, Listener, ListenOptions, PresharedKeyOptions } from '../../lib/base/network.ts';
import { systemNetwork } from '../../lib/base/system-network.ts';

/** The machine may be busy; time decides nothing here. */
const PATIENCE = { timeout: 20_000 };

const LOOPBACK: Address = { kind: 'tcp', host: '127.0.0.1', port: 0 };

let folder: string;
let listeners: Listener[] = [];
let connections: Connection[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-network-'));
});

afterEach(async () => {
  for (const connection of connections) connection.destroy();
  for (const listener of listeners) await listener.close();
  connections = [];
  listeners = [];
  await rm(folder, { recursive: true });
});

async function listen(address: Address, options: ListenOptions, accept: (c: Connection) => void): Promise<Address> {
  const listener = await systemNetwork.listen(address, options, (connection) => {
    connections.push(connection);
    accept(connection);
  });
  listeners.push(listener);
  return listener.address;
}

/** Sends back all that comes, with back-pressure. */
function echo(connection: Connection): void {
  connection.start({
    onData(chunk) {
      if (!connection.write([chunk])) connection.pause();
    },
    onDrain: () => connection.resume(),
    onClose() {},
  });
}

/** Sends `bytes` and resolves with as many back. */
function roundTrip(connection: Connection, bytes: Uint8Array): Promise<Uint8Array> {
  connections.push(connection);
  return new Promise((resolve, reject) => {
    const received = new Uint8Array(bytes.length);
    let length = 0;
    connection.start({
      onData(chunk) {
        received.set(chunk, length);
        length += chunk.length;
        if (length === bytes.length) resolve(received);
      },
      onDrain() {},
      onClose: (error) => reject(error ?? new Error('closed')),
    });
    connection.write([bytes.subarray(0, 1), bytes.subarray(1, 3), bytes.subarray(3)]);
  });
}

function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 31 + (index >> 8)) & 0xff);
}

function keys(identity: string, known: Record<string, string>): PresharedKeyOptions {
  return { identity, keyOf: (name) => (known[name] === undefined ? undefined : Buffer.from(known[name])) };
}

test('bytes go there and back over TCP, over a Unix socket and under a pre-shared key', async () => {
  const bytes = pattern(3_000_000);
  const both = { a: 'key one', b: 'key one' };
  let proven: string | undefined;
  const tcp = await listen(LOOPBACK, {}, echo);
  const unix = await listen({ kind: 'unix', path: join(folder, 'socket') }, {}, echo);
  const secured = await listen(LOOPBACK, { psk: keys('b', both) }, (connection) => {
    proven = connection.transportIdentity;
    echo(connection);
  });
  expect(Buffer.compare(await roundTrip(await systemNetwork.connect(tcp, {}), bytes), bytes)).toBe(0);
  expect(Buffer.compare(await roundTrip(await systemNetwork.connect(unix, {}), bytes), bytes)).toBe(0);
  expect(
    Buffer.compare(await roundTrip(await systemNetwork.connect(secured, { psk: keys('a', both) }), bytes), bytes),
  ).toBe(0);
  expect(proven).toBe('a');
});

test('a wrong key and an unknown identity are refused on both sides', async () => {
  const refused: (string | undefined)[] = [];
  const accepted: string[] = [];
  const options: ListenOptions = {
    psk: keys('b', { a: 'right', b: 'right' }),
    onRefused: (_remote, identity) => refused.push(identity),
  };
  const address = await listen(LOOPBACK, options, (connection) => accepted.push(connection.remote));
  const wrongKey = systemNetwork.connect(address, { psk: keys('a', { a: 'wrong' }) });
  await expect(wrongKey).rejects.toMatchObject({ code: 'ERR_HOLDFAST_WRONG_KEY' });
  const stranger = systemNetwork.connect(address, { psk: keys('c', { c: 'right' }) });
  await expect(stranger).rejects.toMatchObject({ code: 'ERR_HOLDFAST_WRONG_KEY' });
  await expect.poll(() => refused, PATIENCE).toEqual(['a', 'c']);
  expect(accepted).toEqual([]);
});

test('a plain stranger on a TLS port is refused', async () => {
  const refused: (string | undefined)[] = [];
  const onRefused = (_remote: string, _identity: string | undefined, error: Error): number =>
    refused.push((error as { code?: string }).code);
  const options: ListenOptions = { psk: keys('b', { b: 'key' }), onRefused };
  const address = await listen(LOOPBACK, options, () => expect.unreachable());
  const stranger = await systemNetwork.connect(address, {});
  const closed = new Promise((resolve) => stranger.start({ onData() {}, onDrain() {}, onClose: resolve }));
  stranger.write([Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')]);
  await closed;
  await expect.poll(() => refused, PATIENCE).toEqual(['ERR_HOLDFAST_HANDSHAKE']);
});

test('a server that speaks something else than TLS is not taken for one with another key', async () => {
  const address = await listen(LOOPBACK, {}, (connection) => {
    connection.start({ onData: () => connection.end(), onDrain() {}, onClose() {} });
    connection.write([Buffer.from('220 mail.example ESMTP\r\n')]);
  });
  await expect(systemNetwork.connect(address, { psk: keys('a', { a: 'key' }) })).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_HANDSHAKE',
    message: expect.stringContaining('same kind of link'),
  });
});

test('an address in use, a refused connection, a silent server and a cancelled wait each have their code', async () => {
  const address = await listen(LOOPBACK, {}, () => {});
  await expect(listen(address, {}, () => {})).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_ADDRESS_IN_USE',
    message: expect.stringContaining('choose another address'),
  });
  const closed = await systemNetwork.listen(LOOPBACK, {}, () => {});
  await closed.close();
  await expect(systemNetwork.connect(closed.address, {})).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_CONNECT_FAILED',
    errno: 'ECONNREFUSED',
  });
  const mute = await listen(LOOPBACK, {}, () => {});
  const psk = keys('a', { a: 'key' });
  await expect(systemNetwork.connect(mute, { psk, timeoutMs: 50 })).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_TIMEOUT',
  });
  const abort = new AbortController();
  const waiting = systemNetwork.connect(mute, { psk, signal: abort.signal });
  abort.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
});

test('a Unix socket has its mode, replaces a dead one, and leaves a live one and a file alone', async () => {
  const path = join(folder, 'control');
  const address: Address = { kind: 'unix', path };
  await leaveStaleSocket(path);
  await listen(address, { socketMode: 0o660 }, echo);
  expect((await stat(path)).mode & 0o777).toBe(0o660);
  await expect(listen(address, {}, echo)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ADDRESS_IN_USE' });
  const file = join(folder, 'file');
  await writeFile(file, 'mine');
  await expect(listen({ kind: 'unix', path: file }, {}, echo)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_ADDRESS_IN_USE',
  });
  expect(await readFile(file, 'utf8')).toBe('mine');
  const long: Address = { kind: 'unix', path: `/tmp/${'x'.repeat(120)}` };
  await expect(listen(long, {}, echo)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
});

/** Leaves the file that a killed server would: libuv removes its own, so the socket is moved away before it closes. */
async function leaveStaleSocket(path: string): Promise<void> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(`${path}.old`, resolve));
  await rename(`${path}.old`, path);
  await new Promise((resolve) => server.close(resolve));
}

test('write tells when to stop, and drain when to go on; the queue stays bounded', async () => {
  const address = await listen(LOOPBACK, {}, (connection) => {
    connection.start({ onData() {}, onDrain() {}, onClose() {} });
    connection.pause();
    setTimeout(() => connection.resume(), 20);
  });
  const connection = await systemNetwork.connect(address, {});
  connections.push(connection);
  const drained = new Promise<void>((resolve, reject) =>
    connection.start({ onData() {}, onDrain: resolve, onClose: reject }),
  );
  const block = new Uint8Array(256 * 1024);
  let writes = 0;
  while (connection.write([block])) expect(++writes).toBeLessThan(1000);
  expect(connection.bufferedBytes).toBeGreaterThan(1024 * 1024);
  await drained;
  expect(connection.bufferedBytes).toBeLessThanOrEqual(256 * 1024);
});

test('the end of a connection is told once, after it has ended, also to a late handler', async () => {
  const accepted = new Promise<Connection>((resolve) => void listen(LOOPBACK, {}, resolve));
  await expect.poll(() => listeners.length, PATIENCE).toBe(1);
  const near = await systemNetwork.connect(listeners[0]!.address, {});
  const far = await accepted;
  const ends: string[] = [];
  near.start({ onData() {}, onDrain() {}, onClose: (error) => ends.push(`near ${error?.message}`) });
  far.start({ onData() {}, onDrain() {}, onClose: (error) => ends.push(`far ${error?.message}`) });
  near.destroy(new Error('enough'));
  expect(ends).toEqual([]);
  await expect.poll(() => ends.length, PATIENCE).toBe(2);
  expect(ends.toSorted()).toEqual(['far undefined', expect.stringContaining('the connection with 127.0.0.1')]);
  expect(near.write([Buffer.from('x')])).toBe(false);
  await new Promise<void>((resolve) => near.start({ onData() {}, onDrain() {}, onClose: () => resolve() }));
});
