import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Address } from '../../lib/base/network.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { connectNbd } from '../../lib/nbd/nbd-device.ts';
import { NbdServer } from '../../lib/nbd/server.ts';
import {
  Chunk,
  Errno,
  encodeChunkHeader,
  encodeErrorChunk,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  Info,
  Option,
  Reply,
  readU16,
  readU32,
  TransmissionFlag,
  writeU16,
  writeU32,
  writeU64,
} from '../../lib/nbd/wire.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { type ConformanceTarget, conformance, conformanceSizeBytes } from '../conformance/block-device.ts';
import { type FakeEnvironment, fakeEnvironment, settle } from './fake-network.ts';

async function served(structuredReplies: boolean, maxPayloadBytes: number): Promise<ConformanceTarget> {
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-nbd-'));
  const address: Address = { kind: 'unix', path: join(folder, 's') };
  const memory = new MemoryDevice({ sizeBytes: conformanceSizeBytes, logicalBlockBytes: 1 });
  const server = new NbdServer({
    environment: systemEnvironment,
    address,
    exports: new Map([
      ['it', { device: memory }],
      ['read-only', { device: memory, readOnly: true }],
    ]),
    defaultExport: 'it',
    limits: { maxPayloadBytes },
  });
  await server.listen();
  return {
    device: await connectNbd(address, { environment: systemEnvironment, structuredReplies }),
    reopenReadOnly: () => connectNbd(address, { environment: systemEnvironment, exportName: 'read-only' }),
    cleanUp: async () => {
      await server.close();
      await rm(folder, { recursive: true });
    },
  };
}

conformance('an NBD export', () => served(true, 2 ** 25), ['reopenReadOnly']);
conformance('an NBD export with simple replies', () => served(false, 2 ** 25), ['reopenReadOnly']);
conformance('an NBD export that takes requests of 1 MiB', () => served(true, 2 ** 20), ['reopenReadOnly']);

const address: Address = { kind: 'unix', path: '/not/used' };
const SIZE_BYTES = 65_536;
const ALL_FLAGS =
  TransmissionFlag.hasFlags | TransmissionFlag.sendFlush | TransmissionFlag.sendFua | TransmissionFlag.sendTrim;

interface ServerWords {
  readonly size?: Uint8Array;
  readonly flags?: number;
  readonly blocks?: readonly [number, number, number];
}

function exportInfo({ size, flags = ALL_FLAGS }: ServerWords): Uint8Array {
  const info = new Uint8Array(12);
  writeU16(info, 0, Info.export);
  if (size === undefined) writeU64(info, 2, SIZE_BYTES);
  else info.set(size, 2);
  writeU16(info, 10, flags);
  return info;
}

function blockInfo(blocks: readonly [number, number, number]): Uint8Array {
  const info = new Uint8Array(14);
  writeU16(info, 0, Info.blockSize);
  for (const [index, bytes] of blocks.entries()) writeU32(info, 2 + 4 * index, bytes);
  return info;
}

/** A server that a test plays: greets, agrees to structured replies and says these things of its export. */
function greetWith(environment: FakeEnvironment, words: ServerWords): void {
  const none = new Uint8Array(0);
  environment.outgoing.receive(encodeGreeting(3));
  environment.outgoing.receive(encodeOptionReply(Option.structuredReply, Reply.ack, none));
  environment.outgoing.receive(encodeOptionReply(Option.go, Reply.info, exportInfo(words)));
  if (words.blocks !== undefined)
    environment.outgoing.receive(encodeOptionReply(Option.go, Reply.info, blockInfo(words.blocks)));
  environment.outgoing.receive(encodeOptionReply(Option.go, Reply.ack, none));
}

async function connected(words: ServerWords = {}): Promise<{ device: BlockDevice; environment: FakeEnvironment }> {
  const environment = fakeEnvironment();
  const connecting = connectNbd(address, { environment });
  await settle();
  greetWith(environment, words);
  const device = await connecting;
  environment.outgoing.takeWritten();
  return { device, environment };
}

/** The cookie of the request that was sent last. */
function lastCookie(environment: FakeEnvironment): { cookieHigh: number; cookieLow: number } {
  const bytes = environment.outgoing.takeWritten();
  return { cookieHigh: readU32(bytes, 8), cookieLow: readU32(bytes, 12) };
}

function dataChunk(
  cookie: { cookieHigh: number; cookieLow: number },
  offset: number,
  data: Uint8Array,
  done = true,
): Uint8Array {
  const bytes = new Uint8Array(28 + data.length);
  encodeChunkHeader(bytes, 0, cookie, { type: Chunk.offsetData, done, payloadBytes: 8 + data.length });
  writeU64(bytes, 20, offset);
  bytes.set(data, 28);
  return bytes;
}

const disconnected = expect.objectContaining({ code: 'ERR_HOLDFAST_NBD_DISCONNECTED' });

describe('connecting to an NBD server', () => {
  test('an export that is not there is refused with its name and a mend', async () => {
    const target = await served(true, 2 ** 25);
    const { name } = target.device;
    const path = name.slice('unix:'.length, name.lastIndexOf('/'));
    const connecting = connectNbd({ kind: 'unix', path }, { environment: systemEnvironment, exportName: 'none' });
    await expect(connecting).rejects.toMatchObject({
      code: 'ERR_HOLDFAST_NBD_REFUSED',
      message: expect.stringMatching(/no export "none".*nbdinfo --list/),
    });
    await target.device.close();
    await target.cleanUp?.();
  });

  test('a server that knows neither structured replies nor NBD_OPT_GO is used by NBD_OPT_EXPORT_NAME', async () => {
    const environment = fakeEnvironment();
    const connecting = connectNbd(address, { environment, exportName: 'old' });
    await settle();
    environment.outgoing.receive(encodeGreeting(1));
    environment.outgoing.receive(encodeOptionReply(Option.structuredReply, Reply.errUnsup, new Uint8Array(0)));
    environment.outgoing.receive(encodeOptionReply(Option.go, Reply.errUnsup, new Uint8Array(0)));
    expect(environment.outgoing.takeWritten().subarray(-3).toString()).toBe('old');
    const facts = new Uint8Array(134);
    writeU64(facts, 0, 4096);
    writeU16(facts, 8, TransmissionFlag.hasFlags);
    environment.outgoing.receive(facts);
    const device = await connecting;
    expect(device.geometry.sizeBytes).toBe(4096);
    const bytes = new Uint8Array(4);
    const reading = device.read(0, bytes);
    await settle();
    const reply = new Uint8Array(20);
    encodeSimpleReply(reply, 0, lastCookie(environment), 0);
    reply.set([1, 2, 3, 4], 16);
    environment.outgoing.receive(reply.subarray(0, 18));
    environment.outgoing.receive(reply.subarray(18));
    await reading;
    expect([...bytes]).toEqual([1, 2, 3, 4]);
  });

  test.each<[string, ServerWords]>([
    ['a negative size (CVE-2023-5215)', { size: new Uint8Array(8).fill(0xff) }],
    ['a size above 2^53', { size: Uint8Array.of(0, 0x40, 0, 0, 0, 0, 0, 0) }],
    ['no NBD_FLAG_HAS_FLAGS', { flags: 0 }],
    ['a minimum block of 0', { blocks: [0, 4096, 2 ** 25] }],
    ['a minimum block that is no power of two', { blocks: [3, 4096, 2 ** 25] }],
    ['a minimum block above 64 KiB', { blocks: [131_072, 131_072, 2 ** 25] }],
    ['a payload below its blocks', { blocks: [512, 4096, 512] }],
  ])('a server that says %s is refused', async (_what, words) => {
    const environment = fakeEnvironment();
    const connecting = connectNbd(address, { environment });
    const refused = expect(connecting).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NBD_PROTOCOL' });
    await settle();
    greetWith(environment, words);
    await refused;
    expect(environment.outgoing.destroyed).toBe(true);
  });

  test.each<[string, Uint8Array[]]>([
    ['is no NBD server', [Buffer.from('HTTP/1.1 400 Bad Request\r\n')]],
    ['speaks the old style', [Buffer.concat([Buffer.from('NBDMAGIC'), Buffer.alloc(144)])]],
    ['announces a huge reply', [encodeGreeting(3), hugeReply()]],
    ['never comes to an end', [encodeGreeting(3), ...endlessInfos()]],
    ['acknowledges without a size', [encodeGreeting(3), structured(), go(Reply.ack, new Uint8Array(0))]],
  ])('a server that %s is refused', async (_what, chunks) => {
    const environment = fakeEnvironment();
    const connecting = connectNbd(address, { environment });
    const refused = expect(connecting).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NBD_PROTOCOL' });
    await settle();
    for (const chunk of chunks) environment.outgoing.receive(chunk);
    await refused;
  });

  test('a server that says nothing is given up after the time-out, and one may stop waiting', async () => {
    const environment = fakeEnvironment();
    const connecting = connectNbd(address, { environment, timeoutMs: 2000 });
    const late = expect(connecting).rejects.toMatchObject({ code: 'ERR_HOLDFAST_TIMEOUT' });
    await settle();
    environment.clock.advance(2000);
    await late;
    const controller = new AbortController();
    const other = connectNbd(address, { environment: fakeEnvironment(), signal: controller.signal });
    const aborted = expect(other).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
    await settle();
    controller.abort();
    await aborted;
  });

  function structured(): Uint8Array {
    return encodeOptionReply(Option.structuredReply, Reply.ack, new Uint8Array(0));
  }

  function go(reply: number, data: Uint8Array): Uint8Array {
    return encodeOptionReply(Option.go, reply, data);
  }

  function hugeReply(): Uint8Array {
    const bytes = structured();
    writeU32(bytes, 16, 0xffffffff);
    return bytes;
  }

  function endlessInfos(): Uint8Array[] {
    return [structured(), ...Array.from({ length: 100 }, () => go(Reply.info, Uint8Array.of(0, 99, 1, 2, 3)))];
  }
});

describe('what a server answers', () => {
  test('buffers that are transferred away fail their own requests, and nothing else', async () => {
    const { device, environment } = await connected();
    const gone = (bytes: Uint8Array<ArrayBuffer>) => structuredClone(bytes.buffer, { transfer: [bytes.buffer] });
    const failed = expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
    const kept = new Uint8Array(4);
    const lost = [new Uint8Array(512), new Uint8Array(4), new Uint8Array(4)] as const;
    const writing = expect(device.write(0, lost[0])).rejects.toEqual(failed);
    const reading = [device.read(8, lost[1]), device.read(16, lost[2]), device.read(24, kept)];
    const outcomes = Promise.allSettled(reading);
    gone(lost[0]);
    await writing;
    const sent = environment.outgoing.takeWritten();
    expect(sent).toHaveLength(3 * 28);
    const cookies = [0, 28, 56].map((at) => ({ cookieHigh: readU32(sent, at + 8), cookieLow: readU32(sent, at + 12) }));
    environment.outgoing.receive(dataChunk(cookies[0]!, 8, Uint8Array.of(1, 2, 3, 4)).subarray(0, 30));
    gone(lost[1]);
    gone(lost[2]);
    environment.outgoing.receive(Uint8Array.of(3, 4));
    const hole = new Uint8Array(32);
    encodeChunkHeader(hole, 0, cookies[1]!, { type: Chunk.offsetHole, done: true, payloadBytes: 12 });
    writeU64(hole, 20, 16);
    writeU32(hole, 28, 4);
    environment.outgoing.receive(hole);
    environment.outgoing.receive(dataChunk(cookies[2]!, 24, Uint8Array.of(5, 6, 7, 8)));
    const [first, second, third] = await outcomes;
    expect([first, second]).toMatchObject([
      { status: 'rejected', reason: { code: 'ERR_HOLDFAST_BAD_ARGUMENT' } },
      { status: 'rejected', reason: { code: 'ERR_HOLDFAST_BAD_ARGUMENT' } },
    ]);
    expect(third!.status).toBe('fulfilled');
    expect([...kept]).toEqual([5, 6, 7, 8]);
  });

  test('a read may come in pieces, in any order, with holes', async () => {
    const { device, environment } = await connected();
    const bytes = new Uint8Array(16).fill(9);
    const reading = device.read(4096, bytes);
    await settle();
    const cookie = lastCookie(environment);
    environment.outgoing.receive(dataChunk(cookie, 4104, Uint8Array.of(1, 2, 3, 4), false));
    const hole = new Uint8Array(32);
    encodeChunkHeader(hole, 0, cookie, { type: Chunk.offsetHole, done: false, payloadBytes: 12 });
    writeU64(hole, 20, 4096);
    writeU32(hole, 28, 8);
    environment.outgoing.receive(hole);
    const rest = dataChunk(cookie, 4108, Uint8Array.of(5, 6, 7, 8));
    for (const byte of rest) environment.outgoing.receive(Uint8Array.of(byte));
    await reading;
    expect([...bytes]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
  });

  test('an error reaches the caller with its name and what the server says, and the connection lives on', async () => {
    const { device, environment } = await connected();
    const reading = device.read(0, new Uint8Array(512));
    await settle();
    environment.outgoing.receive(encodeErrorChunk(lastCookie(environment), Errno.EIO, 'bad\nsector'));
    await expect(reading).rejects.toMatchObject({
      code: 'ERR_HOLDFAST_IO',
      errno: 'EIO',
      message: expect.stringMatching(/bad sector$/),
    });
    const writing = device.write(0, new Uint8Array(512));
    await settle();
    environment.outgoing.receive(encodeErrorChunk(lastCookie(environment), Errno.ENOSPC, ''));
    await expect(writing).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NO_SPACE' });
  });

  test.each<[string, (cookie: { cookieHigh: number; cookieLow: number }) => Uint8Array]>([
    ['data before the request', (cookie) => dataChunk(cookie, 0, new Uint8Array(8))],
    ['data after the request', (cookie) => dataChunk(cookie, 4096 + 509, new Uint8Array(8))],
    ['data at a negative offset', (cookie) => dataChunk(cookie, 2 ** 53, new Uint8Array(8))],
    ['more data than was asked for', (cookie) => dataChunk(cookie, 4096, new Uint8Array(513))],
    ['less data than was asked for', (cookie) => dataChunk(cookie, 4096, new Uint8Array(511))],
    [
      'the same data twice',
      (cookie) => Buffer.concat([1, 2].map(() => dataChunk(cookie, 4096, new Uint8Array(300), false))),
    ],
    ['a wrong magic', () => new Uint8Array(20)],
    ['an answer to nothing', (cookie) => dataChunk({ ...cookie, cookieHigh: 77 }, 4096, new Uint8Array(512))],
    [
      'an answer to a place that never was',
      () => dataChunk({ cookieHigh: 1, cookieLow: 1e9 }, 4096, new Uint8Array(512)),
    ],
    ['a huge error text', (cookie) => hugeError(cookie)],
    ['a simple reply to a read', (cookie) => simple(cookie)],
    ['an unknown chunk', (cookie) => unknownChunk(cookie)],
  ])('%s costs the server its connection', async (_what, reply) => {
    const { device, environment } = await connected();
    const bytes = new Uint8Array(512);
    const reading = device.read(4096, bytes);
    const failed = expect(reading).rejects.toEqual(disconnected);
    await settle();
    environment.outgoing.receive(reply(lastCookie(environment)));
    await failed;
    expect(environment.outgoing.destroyed).toBe(true);
    await expect(device.read(0, bytes)).rejects.toEqual(disconnected);
    await device.close();
  });

  test('when it goes away every request fails, waiting or not, and none hangs', async () => {
    const { device, environment } = await connected();
    const requests = Array.from({ length: 200 }, (_, index) => device.read(index, new Uint8Array(1)));
    const failed = Promise.all(requests.map((request) => expect(request).rejects.toEqual(disconnected)));
    await settle();
    environment.outgoing.vanish();
    await failed;
    await expect(device.write(0, new Uint8Array(1))).rejects.toEqual(disconnected);
    await expect(device.flush()).rejects.toEqual(disconnected);
    await device.close();
  });
});

describe('what is in flight is bounded', () => {
  test('requests beyond wait, start in order, and beyond that are refused', async () => {
    const environment = fakeEnvironment();
    const connecting = connectNbd(address, { environment, maxRequestsInFlight: 2, maxWaiting: 3 });
    await settle();
    greetWith(environment, {});
    const device = await connecting;
    environment.outgoing.takeWritten();
    const controller = new AbortController();
    const done: number[] = [];
    const requests = [0, 1, 2, 3].map((index) => device.read(index, new Uint8Array(1)).then(() => done.push(index)));
    const cancelled = device.read(4, new Uint8Array(1), { signal: controller.signal });
    await expect(device.read(5, new Uint8Array(1))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_QUEUE_FULL' });
    controller.abort();
    await expect(cancelled).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
    for (let round = 0; round < 2; round += 1) {
      await settle();
      const sent = environment.outgoing.takeWritten();
      expect(sent.length).toBe(2 * 28);
      for (const at of [0, 28]) {
        expect(readU16(sent, at + 6)).toBe(0);
        const cookie = { cookieHigh: readU32(sent, at + 8), cookieLow: readU32(sent, at + 12) };
        environment.outgoing.receive(dataChunk(cookie, readU32(sent, at + 20), Uint8Array.of(1)));
      }
    }
    await Promise.all(requests);
    expect(done).toEqual([0, 1, 2, 3]);
  });
});

function hugeError(cookie: { cookieHigh: number; cookieLow: number }): Uint8Array {
  const bytes = new Uint8Array(20);
  encodeChunkHeader(bytes, 0, cookie, { type: Chunk.error, done: true, payloadBytes: 0xffffffff });
  return bytes;
}

function simple(cookie: { cookieHigh: number; cookieLow: number }): Uint8Array {
  const bytes = new Uint8Array(16);
  encodeSimpleReply(bytes, 0, cookie, 0);
  return bytes;
}

function unknownChunk(cookie: { cookieHigh: number; cookieLow: number }): Uint8Array {
  const bytes = new Uint8Array(20);
  encodeChunkHeader(bytes, 0, cookie, { type: 77, done: true, payloadBytes: 0 });
  return bytes;
}
