import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import type { Address } from '../../lib/base/network.ts';
import type { NbdExport } from '../../lib/nbd/export.ts';
import { NbdServer, type NbdServerLimits, type NbdServerOptions } from '../../lib/nbd/server.ts';
import {
  Chunk,
  Command,
  CommandFlag,
  Errno,
  encodeInfoRequest,
  encodeOption,
  encodeRequest,
  Option,
  readU16,
  readU32,
  readU64,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../../lib/nbd/wire.ts';
import type { Geometry } from '../../lib/storage/block-device.ts';
import { type FakeConnection, type FakeEnvironment, fakeEnvironment, settle } from './fake-network.ts';
import { ManualDevice } from './manual-device.ts';

const address: Address = { kind: 'unix', path: '/not/used' };
const MIB = 2 ** 20;

interface Scene {
  readonly environment: FakeEnvironment;
  readonly server: NbdServer;
  readonly device: ManualDevice;
  readonly dropped: string[];
}

interface SceneOptions {
  readonly limits?: Partial<NbdServerLimits>;
  readonly geometry?: Partial<Geometry>;
  readonly more?: Partial<NbdExport>;
}

async function scene({ limits = {}, geometry = {}, more = {} }: SceneOptions = {}): Promise<Scene> {
  const environment = fakeEnvironment();
  const device = new ManualDevice(geometry);
  const dropped: string[] = [];
  const server = new NbdServer({
    environment,
    address,
    exports: new Map([['disk', { device, ...more }]]),
    limits,
    onDropped: (_remote, reason) => dropped.push(reason),
  });
  await server.listen();
  return { environment, server, device, dropped };
}

function sayHello(client: FakeConnection, structured: boolean): void {
  client.receive(Uint8Array.of(0, 0, 0, 3));
  if (structured) client.receive(encodeOption(Option.structuredReply, new Uint8Array(0)));
  client.receive(encodeOption(Option.go, encodeInfoRequest('disk', [])));
}

/** A client that has come to the transmission phase. */
async function transmitting(environment: FakeEnvironment, structured = true): Promise<FakeConnection> {
  const client = environment.arrive();
  sayHello(client, structured);
  await settle();
  client.takeWritten();
  return client;
}

interface Asked {
  readonly command: number;
  readonly offset?: number;
  readonly length?: number;
  readonly flags?: number;
  readonly cookie?: number;
}

function request({ command, offset = 0, length = 0, flags = 0, cookie = 1 }: Asked): Uint8Array {
  const bytes = new Uint8Array(28);
  encodeRequest(bytes, 0, { command, flags, offset, length, cookieHigh: 0xabcd, cookieLow: cookie });
  return bytes;
}

function write(offset: number, data: Uint8Array, cookie = 1, flags = 0): Buffer {
  return Buffer.concat([request({ command: Command.write, offset, length: data.length, cookie, flags }), data]);
}

const errnoName = (errno: number): string =>
  Object.entries(Errno).find(([, value]) => value === errno)?.[0] ?? `${errno}`;

/** What the server said, in words. */
function replies(client: FakeConnection, readLength = 0): string[] {
  const bytes = client.takeWritten();
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; ) {
    const cookie = `${readU32(bytes, at + 12)}`;
    const magic = readU32(bytes, at);
    if (magic === SIMPLE_REPLY_MAGIC) {
      const errno = readU32(bytes, at + 4);
      lines.push(`${cookie}: ${errno === 0 ? 'done' : errnoName(errno)}`);
      at += 16 + (errno === 0 ? readLength : 0);
      continue;
    }
    expect(magic).toBe(STRUCTURED_REPLY_MAGIC);
    expect(readU16(bytes, at + 4)).toBe(1);
    const type = readU16(bytes, at + 6);
    const length = readU32(bytes, at + 16);
    const payload = bytes.subarray(at + 20, at + 20 + length);
    if (type === Chunk.offsetData) lines.push(`${cookie}: ${length - 8} bytes at ${readU64(payload, 0)}`);
    else if (type === Chunk.none) lines.push(`${cookie}: none`);
    else if (type === Chunk.blockStatus)
      lines.push(`${cookie}: ${readU32(payload, 4)} bytes of ${readU32(payload, 8)}`);
    else lines.push(`${cookie}: ${errnoName(readU32(payload, 0))} ${payload.subarray(6)}`);
    at += 20 + length;
  }
  return lines;
}

describe('requests', () => {
  test('reach the device, and are answered as they end, in any order', async () => {
    const { environment, device, server } = await scene();
    const client = await transmitting(environment);
    client.receive(request({ command: Command.read, offset: 4096, length: 8, cookie: 1 }));
    client.receive(write(7, Uint8Array.of(1, 2, 3), 2, CommandFlag.fua));
    client.receive(request({ command: Command.flush, cookie: 3 }));
    client.receive(request({ command: Command.trim, offset: 512, length: 512, cookie: 4 }));
    client.receive(request({ command: Command.writeZeroes, length: 9, flags: CommandFlag.noHole, cookie: 5 }));
    client.receive(request({ command: Command.cache, length: 9, cookie: 6 }));
    await settle();
    expect(replies(client)).toEqual(['6: done']);
    expect(device.requests.map(({ kind, offset, length, options }) => ({ kind, offset, length, options }))).toEqual([
      { kind: 'read', offset: 4096, length: 8, options: undefined },
      { kind: 'write', offset: 7, length: 3, options: { stable: true, fua: true } },
      { kind: 'flush', offset: 0, length: 0, options: undefined },
      { kind: 'discard', offset: 512, length: 512, options: undefined },
      { kind: 'writeZeroes', offset: 0, length: 9, options: { fua: false, mayUnmap: false } },
    ]);
    expect([...device.requests[1]!.buffer!]).toEqual([1, 2, 3]);
    for (const held of [...device.requests].reverse()) held.succeed();
    await settle();
    expect(replies(client)).toEqual(['5: done', '4: done', '3: done', '2: done', '1: 8 bytes at 4096']);
    expect(server.statistics().exports.get('disk')).toMatchObject({
      reads: 1,
      writes: 1,
      flushes: 1,
      trims: 1,
      zeroes: 1,
    });
  });

  test('a trim with force unit access is flushed before it is answered', async () => {
    const { environment, device } = await scene();
    const client = await transmitting(environment);
    client.receive(request({ command: Command.trim, length: 512, flags: CommandFlag.fua }));
    expect(device.succeed().kind).toBe('discard');
    await settle();
    expect(replies(client)).toEqual([]);
    expect(device.succeed().kind).toBe('flush');
    await settle();
    expect(replies(client)).toEqual(['1: done']);
  });

  test('are refused before they reach the device when they make no sense', async () => {
    const { environment, device } = await scene();
    const { sizeBytes } = device.geometry;
    const asked: [Asked, string][] = [
      [{ command: Command.read, offset: sizeBytes - 1, length: 2 }, 'EINVAL'],
      [{ command: Command.read, offset: 2 ** 63, length: 1 }, 'EINVAL'],
      [{ command: Command.read, offset: 2 ** 64 - 4096, length: 8192 }, 'EINVAL'],
      [{ command: Command.read, length: 64 * MIB }, 'EOVERFLOW'],
      [{ command: Command.read, length: 1, flags: CommandFlag.noHole }, 'EINVAL'],
      [{ command: Command.trim, offset: sizeBytes, length: 1 }, 'EINVAL'],
      [{ command: Command.writeZeroes, offset: sizeBytes, length: 1 }, 'ENOSPC'],
      [{ command: Command.cache, offset: sizeBytes, length: 1 }, 'EINVAL'],
      [{ command: Command.flush, offset: 1 }, 'EINVAL'],
      [{ command: Command.blockStatus, length: 1 }, 'EINVAL'],
      [{ command: Command.blockStatus, length: 1, flags: 64 }, 'EINVAL'],
      [{ command: 99, length: 1 }, 'EINVAL'],
    ];
    for (const [what, errno] of asked) {
      const client = await transmitting(environment);
      client.receive(request(what));
      await settle();
      expect(replies(client)).toEqual([expect.stringContaining(`1: ${errno} `)]);
    }
    expect(device.requests).toEqual([]);
  });

  test('a refused write is read to its end, and the next request is understood', async () => {
    const { environment, device } = await scene({ limits: { maxPayloadBytes: MIB } });
    const client = await transmitting(environment);
    const { sizeBytes } = device.geometry;
    client.receive(write(sizeBytes - 1, Uint8Array.of(1, 2), 1));
    const tooLong = write(0, new Uint8Array(2 * MIB), 2);
    client.receive(tooLong.subarray(0, 1000));
    client.receive(tooLong.subarray(1000));
    client.receive(write(0, Uint8Array.of(1, 2), 3));
    device.succeed();
    await settle();
    expect(replies(client)).toEqual([
      '1: ENOSPC the request reaches beyond the end of the export',
      '2: EINVAL the request is longer than the maximum payload of the export',
      '3: done',
    ]);
  });

  test('of no length succeed without the device', async () => {
    const { environment, device } = await scene();
    const client = await transmitting(environment);
    for (const command of [Command.read, Command.write, Command.trim, Command.writeZeroes, Command.cache])
      client.receive(request({ command, offset: device.geometry.sizeBytes, cookie: command }));
    await settle();
    expect(replies(client)).toEqual(['0: none', '1: done', '4: done', '6: done', '5: done']);
    expect(device.requests).toEqual([]);
  });

  test('changes to a read-only export are refused with EPERM', async () => {
    const { environment, device } = await scene({ more: { readOnly: true } });
    const client = await transmitting(environment, false);
    client.receive(write(0, Uint8Array.of(1), 1));
    client.receive(request({ command: Command.trim, length: 1, cookie: 2 }));
    client.receive(request({ command: Command.writeZeroes, length: 1, cookie: 3 }));
    await settle();
    expect(replies(client)).toEqual(['1: EPERM', '2: EPERM', '3: EPERM']);
    expect(device.requests).toEqual([]);
  });

  test('fast zeroes are refused where the device writes them itself', async () => {
    const slow = await scene({ geometry: { writeZeroes: false } });
    const asked = request({ command: Command.writeZeroes, length: 1, flags: CommandFlag.fastZero });
    const client = await transmitting(slow.environment, false);
    client.receive(asked);
    await settle();
    expect(replies(client)).toEqual(['1: ENOTSUP']);
    const fast = await scene();
    (await transmitting(fast.environment)).receive(asked);
    expect(fast.device.requests.map(({ kind }) => kind)).toEqual(['writeZeroes']);
  });

  test.each([
    [new HoldfastError('ERR_HOLDFAST_IO', 'the sector is bad'), 'EIO the sector is bad'],
    [new HoldfastError('ERR_HOLDFAST_NO_SPACE', 'full'), 'ENOSPC full'],
    [new HoldfastError('ERR_HOLDFAST_READ_ONLY', 'read-only'), 'EPERM read-only'],
    [new HoldfastError('ERR_HOLDFAST_CLOSED', 'closed'), 'ESHUTDOWN closed'],
    [new Error('odd'), 'EIO odd'],
    [undefined, 'EIO the device failed without saying why'],
  ])('a device that fails with %s is answered as %s', async (error, answer) => {
    const { environment, device, server } = await scene();
    const client = await transmitting(environment);
    client.receive(request({ command: Command.read, length: 512 }));
    device.requests[0]!.fail(error);
    await settle();
    expect(replies(client)).toEqual([`1: ${answer}`]);
    expect(server.statistics()).toMatchObject({ payloadBytes: 0 });
    expect(server.statistics().exports.get('disk')).toMatchObject({ errors: 1, reads: 0, requestsInFlight: 0 });
  });

  test('several connections are offered only where the export says that a flush covers all', async () => {
    for (const multiConnection of [false, true]) {
      const { environment } = await scene({ more: { multiConnection } });
      const client = environment.arrive();
      client.receive(Uint8Array.of(0, 0, 0, 3));
      client.receive(encodeOption(Option.exportName, Buffer.from('disk')));
      await settle();
      const flags = readU16(client.takeWritten(), 18 + 8);
      expect((flags & (1 << 8)) !== 0).toBe(multiConnection);
    }
  });
});

describe('a stranger', () => {
  test.each([
    ['HTTP', 'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'],
    ['TLS', '\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 and much more of the kind'],
  ])('who speaks %s is dropped before the device is touched', async (_what, words) => {
    const { environment, device, dropped, server } = await scene();
    const client = environment.arrive();
    client.receive(Buffer.from(words, 'latin1'));
    await settle();
    expect(client.destroyed).toBe(true);
    expect(dropped).toHaveLength(1);
    expect(device.requests).toEqual([]);
    expect(server.statistics()).toMatchObject({ connections: 0, accepted: 1, dropped: 1 });
  });

  test('who says nothing is dropped at the deadline, and the place is free again', async () => {
    const { environment, dropped, server } = await scene({ limits: { handshakeTimeoutMs: 500, maxConnections: 1 } });
    const idle = environment.arrive();
    expect(environment.arrive().destroyed).toBe(true);
    environment.clock.advance(500);
    await settle();
    expect(idle.destroyed).toBe(true);
    expect(dropped).toEqual(['the handshake took too long']);
    expect(server.statistics().connections).toBe(0);
    await transmitting(environment);
    environment.clock.advance(10_000);
    expect(server.statistics().connections).toBe(1);
  });

  test('who reads no replies to its options is not read from any more', async () => {
    const environment = fakeEnvironment();
    const device = new ManualDevice();
    const exports = new Map(
      Array.from({ length: 4000 }, (_, index) => [`export ${index}${'x'.repeat(3000)}`, { device }]),
    );
    const server = new NbdServer({ environment, address, exports });
    await server.listen();
    const client = environment.arrive();
    client.taking = false;
    const list = encodeOption(Option.list, new Uint8Array(0));
    client.receive(Buffer.concat([Uint8Array.of(0, 0, 0, 3), ...Array.from({ length: 100 }, () => list)]));
    await settle();
    // One list is 12 MB: the second one waits until the first has gone.
    expect(client.bufferedBytes).toBeLessThan(13 * MIB);
    expect(client.paused).toBe(true);
  });
});

describe('a hostile client', () => {
  test('that sends a request with a wrong magic is dropped', async () => {
    const { environment, dropped } = await scene();
    const client = await transmitting(environment);
    client.receive(new Uint8Array(28));
    expect(client.destroyed).toBe(true);
    await settle();
    expect(dropped).toEqual(['the magic of a request is wrong']);
  });

  test('that announces a write of 4 GiB is dropped, and nothing is allocated', async () => {
    const { environment, server, dropped } = await scene();
    const client = await transmitting(environment);
    client.receive(request({ command: Command.write, length: 0xffffffff }));
    expect(server.statistics().payloadBytes).toBe(0);
    await settle();
    expect(dropped).toEqual(['a write of 4294967295 bytes']);
  });

  test('that disappears in the middle of a write leaves nothing behind', async () => {
    const { environment, server, device } = await scene();
    const client = await transmitting(environment);
    client.receive(write(0, new Uint8Array(MIB)).subarray(0, 5000));
    expect(server.statistics().payloadBytes).toBe(MIB);
    client.vanish();
    expect(device.requests).toEqual([]);
    expect(server.statistics()).toMatchObject({ payloadBytes: 0, connections: 0, dropped: 0 });
    expect(environment.clock.timers).toBe(0);
  });

  test('that disappears while the device works gets no answer, and its memory comes back when the device is done', async () => {
    const { environment, server, device } = await scene();
    const client = await transmitting(environment);
    client.receive(request({ command: Command.read, length: MIB }));
    client.receive(write(0, new Uint8Array(4096)));
    client.vanish();
    expect(server.statistics().payloadBytes).toBe(MIB + 4096);
    device.succeed();
    device.succeed();
    await settle();
    expect(server.statistics().payloadBytes).toBe(0);
    expect(server.statistics().exports.get('disk')).toMatchObject({ connections: 0, requestsInFlight: 0 });
    expect(client.takeWritten()).toHaveLength(0);
  });

  test('that stops in the middle of a request is dropped after the time for that, and an idle one is not', async () => {
    const { environment, dropped } = await scene({ limits: { stalledMs: 1000 } });
    const idle = await transmitting(environment);
    const stuck = await transmitting(environment);
    stuck.receive(request({ command: Command.write, length: 4096 }));
    environment.clock.advance(1000);
    expect(stuck.destroyed).toBe(false);
    environment.clock.advance(1000);
    await settle();
    expect(stuck.destroyed).toBe(true);
    expect(idle.destroyed).toBe(false);
    expect(dropped).toEqual(['the client has not moved for 1000 ms']);
  });

  test('that does not read its replies is held to the bounds, and dropped after a time', async () => {
    const limits = { maxPayloadBytes: MIB, maxBytesPerConnection: 2 * MIB, maxBytes: 8 * MIB, stalledMs: 1000 };
    const { environment, server, device, dropped } = await scene({ limits });
    const client = await transmitting(environment);
    client.taking = false;
    const asked = request({ command: Command.read, length: MIB });
    client.receive(Buffer.concat(Array.from({ length: 50 }, () => asked)));
    for (let round = 0; round < 50; round += 1) {
      while (device.requests.length > 0) device.succeed();
      await settle();
      expect(server.statistics().payloadBytes).toBeLessThanOrEqual(2 * MIB);
    }
    expect(client.paused).toBe(true);
    expect(device.requests).toEqual([]);
    environment.clock.advance(3000);
    await settle();
    expect(dropped).toEqual(['the client has not moved for 1000 ms']);
    expect(server.statistics()).toMatchObject({ payloadBytes: 0, connections: 0 });
  });

  test('that says goodbye and never closes is closed after a time', async () => {
    const { environment } = await scene({ limits: { stalledMs: 1000 } });
    const disconnected = await transmitting(environment);
    disconnected.receive(request({ command: Command.disconnect }));
    const aborted = environment.arrive();
    aborted.receive(Uint8Array.of(0, 0, 0, 3));
    aborted.receive(encodeOption(Option.abort, new Uint8Array(0)));
    expect([disconnected.ended, aborted.ended]).toEqual([true, true]);
    environment.clock.advance(2000);
    expect([disconnected.destroyed, aborted.destroyed]).toEqual([true, true]);
  });
});

describe('what is in flight', () => {
  test('is bounded in number on a connection: the rest waits in the socket', async () => {
    const { environment, device } = await scene({ limits: { maxRequestsPerConnection: 4 } });
    const client = await transmitting(environment);
    for (let cookie = 0; cookie < 6; cookie += 1) client.receive(request({ command: Command.flush, cookie }));
    expect(device.requests).toHaveLength(4);
    expect(client.paused).toBe(true);
    device.succeed();
    await settle();
    expect(device.requests).toHaveLength(4);
    expect(client.paused).toBe(true);
    device.succeed();
    await settle();
    expect(client.paused).toBe(false);
    while (device.requests.length > 0) device.succeed();
    await settle();
    expect(replies(client)).toHaveLength(6);
  });

  test('is bounded in bytes over all connections, and who waited is served in turn', async () => {
    const limits = { maxPayloadBytes: MIB, maxBytesPerConnection: 2 * MIB, maxBytes: 3 * MIB };
    const { environment, server, device } = await scene({ limits });
    const clients = [await transmitting(environment), await transmitting(environment), await transmitting(environment)];
    for (const client of clients) {
      client.receive(request({ command: Command.read, length: MIB, cookie: 1 }));
      client.receive(request({ command: Command.read, length: MIB, cookie: 2 }));
    }
    expect(device.requests).toHaveLength(3);
    expect(server.statistics().payloadBytes).toBe(3 * MIB);
    for (let round = 0; round < 6; round += 1) {
      device.succeed();
      await settle();
      expect(server.statistics().payloadBytes).toBeLessThanOrEqual(3 * MIB);
    }
    for (const client of clients) expect(replies(client)).toEqual([`1: ${MIB} bytes at 0`, `2: ${MIB} bytes at 0`]);
    expect(server.statistics().payloadBytes).toBe(0);
  });

  test('is bounded in number over all connections, whatever the requests are', async () => {
    const { environment, device } = await scene({ limits: { maxRequests: 3 } });
    const clients = [await transmitting(environment), await transmitting(environment)];
    for (const client of clients) {
      client.receive(request({ command: Command.flush, cookie: 1 }));
      client.receive(request({ command: Command.trim, length: 4096, cookie: 2 }));
      client.receive(request({ command: Command.read, length: 4096, cookie: 3 }));
    }
    expect(device.requests).toHaveLength(3);
    expect(clients.map(({ paused }) => paused)).toEqual([false, true]);
    for (let round = 0; round < 6; round += 1) {
      device.succeed();
      await settle();
      expect(device.requests.length).toBeLessThanOrEqual(3);
    }
    for (const client of clients) expect(replies(client)).toEqual(['1: done', '2: done', '3: 4096 bytes at 0']);
  });

  test('clients that do not read their replies take no place among the requests in flight', async () => {
    const { environment, device } = await scene({ limits: { maxRequests: 2 } });
    const slow = await transmitting(environment);
    slow.taking = false;
    for (let count = 0; count < 2; count += 1) slow.receive(request({ command: Command.read, length: 65_536 }));
    device.succeed();
    device.succeed();
    await settle();
    (await transmitting(environment)).receive(request({ command: Command.read, length: 4096 }));
    expect(device.requests).toHaveLength(1);
  });

  test('a long payload is not overtaken without end by short ones', async () => {
    const limits = { maxPayloadBytes: 2 * MIB, maxBytesPerConnection: 4 * MIB, maxBytes: 4 * MIB };
    const { environment, device } = await scene({ limits });
    const [busy, long] = [await transmitting(environment), await transmitting(environment)];
    const short = request({ command: Command.read, length: MIB });
    busy.receive(Buffer.concat(Array.from({ length: 20 }, () => short)));
    long.receive(request({ command: Command.read, length: 2 * MIB }));
    const served: number[] = [];
    for (let round = 0; round < 8; round += 1) {
      served.push(device.succeed().length / MIB);
      await settle();
    }
    // Two short ones make room for the long one; those behind it wait.
    expect(served).toEqual([1, 1, 1, 1, 2, 1, 1, 1]);
  });

  test('who waits for memory goes on as soon as replies of others have left, and not only when someone asks', async () => {
    const limits = { maxPayloadBytes: MIB, maxBytesPerConnection: 2 * MIB, maxBytes: 2 * MIB };
    const { environment, device } = await scene({ limits });
    const slow = [await transmitting(environment), await transmitting(environment)];
    for (const client of slow) {
      client.taking = false;
      // Short enough not to fill the connection, whose draining would be told of.
      client.receive(request({ command: Command.read, length: MIB - 4096 }));
      device.succeed();
      await settle();
    }
    const waiting = await transmitting(environment);
    waiting.receive(request({ command: Command.read, length: MIB }));
    expect(device.requests).toEqual([]);
    slow[0]!.drain();
    await settle();
    expect(device.requests).toHaveLength(1);
  });

  test('a client that waits for memory and goes away does not hold up those behind it', async () => {
    const limits = { maxPayloadBytes: 2 * MIB, maxBytesPerConnection: 4 * MIB, maxBytes: 4 * MIB };
    const { environment, device } = await scene({ limits });
    const [busy, long, behind] = [
      await transmitting(environment),
      await transmitting(environment),
      await transmitting(environment),
    ];
    for (let count = 0; count < 3; count += 1) busy.receive(request({ command: Command.read, length: MIB }));
    long.receive(request({ command: Command.read, length: 2 * MIB }));
    behind.receive(request({ command: Command.read, length: MIB }));
    expect(device.requests).toHaveLength(3);
    long.vanish();
    await settle();
    expect(device.requests).toHaveLength(4);
  });

  test('a payload is not used again before it has left', async () => {
    const { environment, server, device } = await scene();
    const client = await transmitting(environment);
    client.taking = false;
    client.receive(request({ command: Command.read, length: MIB }));
    device.requests[0]!.buffer!.fill(1);
    device.succeed();
    await settle();
    expect(server.statistics().payloadBytes).toBe(MIB);
    client.drain();
    expect(server.statistics().payloadBytes).toBe(0);
  });
});

describe('closing', () => {
  test('answers what is in flight, refuses what still comes, and ends the connections', async () => {
    const { environment, server, device } = await scene();
    const client = await transmitting(environment);
    const negotiating = environment.arrive();
    client.receive(request({ command: Command.flush, cookie: 1 }));
    const closing = server.close();
    await settle();
    expect(negotiating.destroyed).toBe(true);
    client.receive(request({ command: Command.flush, cookie: 2 }));
    await settle();
    expect(replies(client)).toEqual(['2: ESHUTDOWN the server is shutting down']);
    expect(client.ended).toBe(false);
    device.succeed();
    await settle();
    expect(replies(client)).toEqual(['1: done']);
    expect(client.ended).toBe(true);
    client.vanish();
    await closing;
    expect(environment.arrive().destroyed).toBe(true);
    await server.close();
    await expect(server.listen()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_CLOSED' });
  });

  test('in the middle of a write that was refused ends the connection with the answer', async () => {
    const { environment, server } = await scene({ more: { readOnly: true } });
    const client = await transmitting(environment);
    const refused = write(0, new Uint8Array(4096), 1);
    client.receive(refused.subarray(0, 100));
    const closing = server.close();
    await settle();
    expect(client.ended).toBe(false);
    client.receive(refused.subarray(100));
    await settle();
    expect(replies(client)).toEqual(['1: EPERM the export is read-only']);
    expect(client.ended).toBe(true);
    client.vanish();
    await closing;
  });

  test('while it is about to listen leaves no listener behind', async () => {
    let closed = 0;
    const environment = fakeEnvironment();
    const { network } = environment;
    const slow = {
      ...environment,
      network: {
        ...network,
        listen: async (...asked: Parameters<typeof network.listen>) => {
          const listener = await network.listen(...asked);
          await settle();
          const close = async () => {
            closed += 1;
          };
          return { ...listener, close };
        },
      },
    };
    const server = new NbdServer({ environment: slow, address });
    const listening = server.listen();
    await expect(server.listen()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
    const closing = server.close();
    await expect(listening).rejects.toMatchObject({ code: 'ERR_HOLDFAST_CLOSED' });
    await closing;
    expect(closed).toBe(1);
  });

  test('does not wait for a device that hangs longer than it may', async () => {
    const { environment, server } = await scene({ limits: { closeTimeoutMs: 700 } });
    const client = await transmitting(environment);
    client.receive(request({ command: Command.read, length: MIB }));
    const closing = server.close();
    await settle();
    environment.clock.advance(700);
    await closing;
    expect(client.destroyed).toBe(true);
  });

  test('an export that is removed ends its own connections only, and its name is free again', async () => {
    const { environment, server, device } = await scene();
    server.addExport('other', { device: new ManualDevice() });
    const client = await transmitting(environment);
    const other = environment.arrive();
    other.receive(Uint8Array.of(0, 0, 0, 3));
    other.receive(encodeOption(Option.exportName, Buffer.from('other')));
    const removing = server.removeExport('disk');
    expect(client.ended).toBe(true);
    client.vanish();
    await removing;
    expect([other.ended, other.destroyed]).toEqual([false, false]);
    const late = environment.arrive();
    sayHello(late, true);
    await settle();
    expect(late.takeWritten().toString()).toContain('there is no export "disk"');
    server.addExport('disk', { device });
    await transmitting(environment);
    expect(server.statistics().exports.get('disk')).toMatchObject({ connections: 1 });
  });
});

describe('options that make no sense are refused', () => {
  const refused = expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  const make = (options: Partial<NbdServerOptions>): (() => NbdServer) => {
    return () => new NbdServer({ environment: fakeEnvironment(), address, ...options });
  };

  test.each(['0.0.0.0', '::', '192.168.1.5', 'example.org', '127.0.0.1.example.org'])(
    '%s is listened on only if remote clients are allowed',
    (host) => {
      expect(make({ address: { kind: 'tcp', host, port: 10809 } })).toThrow(refused);
      expect(make({ address: { kind: 'tcp', host, port: 10809 }, allowRemoteClients: true })).not.toThrow();
    },
  );

  test.each(['127.0.0.1', '127.1.2.3', '::1', 'localhost'])('%s is loopback', (host) => {
    expect(make({ address: { kind: 'tcp', host, port: 10809 } })).not.toThrow();
  });

  test.each([
    { maxConnections: 0 },
    { maxBytes: Number.NaN },
    { maxPayloadBytes: 3 * MIB },
    { maxPayloadBytes: 512 },
    { maxBytesPerConnection: MIB },
    { maxBytes: MIB },
  ])('limits %o', (limits) => {
    expect(make({ limits })).toThrow(refused);
  });

  test('a name twice, or longer than the protocol allows', () => {
    const server = make({})();
    const device = new ManualDevice();
    server.addExport('x'.repeat(4096), { device });
    expect(() => server.addExport('x'.repeat(4096), { device })).toThrow(refused);
    expect(() => server.addExport('x'.repeat(4097), { device })).toThrow(refused);
    expect(() => server.addExport('a\0b', { device })).toThrow(refused);
    expect(() => server.addExport('y', { device, description: 'z'.repeat(4097) })).toThrow(refused);
  });
});

describe('any requests in any pieces', () => {
  const commands = fc.constantFrom(...Object.values(Command).filter((command) => command !== Command.disconnect), 50);
  const asked = fc.record({
    command: commands,
    offset: fc.oneof(fc.nat(8192), fc.constantFrom(256 * MIB - 100, 256 * MIB, 2 ** 63)),
    length: fc.nat(5000),
    flags: fc.oneof(fc.constant(0), fc.nat(63)),
  });

  test('each gets one answer, whatever the cuts, and nothing is left behind', async () => {
    const cuts = fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 20 });
    const check = fc.asyncProperty(fc.array(asked, { maxLength: 20 }), cuts, async (list, lengths) => {
      const { environment, server, device } = await scene({ limits: { maxRequestsPerConnection: 3 } });
      const client = await transmitting(environment);
      const bytes = Buffer.concat(
        list.map((what, cookie) => {
          const payload = new Uint8Array(what.command === Command.write ? what.length : 0);
          return Buffer.concat([request({ ...what, cookie }), payload]);
        }),
      );
      for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
        client.receive(bytes.subarray(at, at + lengths[turn % lengths.length]!));
        at += lengths[turn % lengths.length]!;
      }
      for (let turn = 0; turn < 2 * list.length + 2; turn += 1) {
        expect(device.requests.length).toBeLessThanOrEqual(3);
        if (device.requests.length > 0) device.succeed();
        await Promise.resolve();
        await Promise.resolve();
        await Promise.resolve();
      }
      await settle();
      const answered = replies(client).map((line) => Number(line.split(':')[0]));
      expect(answered.sort((a, b) => a - b)).toEqual(list.map((_, cookie) => cookie));
      expect(server.statistics().payloadBytes).toBe(0);
    });
    await fc.assert(check, { numRuns: 60 });
  });
});
