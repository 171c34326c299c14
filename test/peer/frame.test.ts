import { existsSync, readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { crc32c } from '../../lib/base/checksum.ts';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { decodeControl, encodeControl } from '../../lib/peer/control-body.ts';
import {
  badFrame,
  ChannelNumber,
  controlFrame,
  type Frame,
  type FrameHeader,
  FrameKind,
  FrameParser,
  FrameWriter,
  headFor,
  type OutgoingFrame,
} from '../../lib/peer/frame.ts';

const GOLDEN = new URL('golden/frames.json', import.meta.url);
const DATA_LIMIT_BYTES = 100_000;

function outgoing(fields: Partial<OutgoingFrame> & { control?: Uint8Array } = {}): OutgoingFrame {
  const { control = new Uint8Array(0), data = [], ...rest } = fields;
  return {
    kind: FrameKind.request,
    channel: ChannelNumber.bulk,
    method: 7,
    parameter: 4096,
    requestId: 1,
    head: headFor(control),
    data,
    dataLength: data.reduce((sum, part) => sum + part.length, 0),
    ...rest,
  };
}

function bytesOf(frames: readonly OutgoingFrame[]): Buffer {
  const writer = new FrameWriter();
  const chunks: Uint8Array[] = [];
  for (const frame of frames) writer.write(frame, chunks);
  return Buffer.concat(chunks);
}

interface Reading {
  readonly frames: Frame[];
  readonly admitted: FrameHeader[];
  readonly error: unknown;
}

function read(bytes: Uint8Array, cuts: readonly number[] = []): Reading {
  const frames: Frame[] = [];
  const admitted: FrameHeader[] = [];
  const parser = new FrameParser({
    admit(header) {
      if (header.dataLength > DATA_LIMIT_BYTES) throw badFrame('too much');
      admitted.push(header);
    },
    frame: (frame) => void frames.push(frame),
  });
  const edges = [0, ...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b);
  try {
    for (let index = 1; index < edges.length; index++) parser.push(bytes.slice(edges[index - 1], edges[index]));
  } catch (error) {
    return { frames, admitted, error };
  }
  return { frames, admitted, error: undefined };
}

const anyFrame = fc
  .record({
    kind: fc.constantFrom(...Object.values(FrameKind)),
    channel: fc.constantFrom(0 as const, 1 as const),
    method: fc.nat(2 ** 32 - 1),
    parameter: fc.nat(2 ** 32 - 1),
    requestId: fc.maxSafeNat(),
    control: fc.uint8Array({ maxLength: 300 }),
    data: fc.array(fc.uint8Array({ maxLength: 2000 }), { maxLength: 3 }),
  })
  .map(outgoing);
const anyCuts = fc.array(fc.nat(100_000), { maxLength: 20 });

test('frames come out as they went in, however the stream is cut', () => {
  fc.assert(
    fc.property(fc.array(anyFrame, { maxLength: 6 }), anyCuts, (sent, cuts) => {
      const { frames, error } = read(bytesOf(sent), cuts);
      expect(error).toBeUndefined();
      expect(frames.length).toBe(sent.length);
      frames.forEach(({ header, control, data }, index) => {
        const { kind, channel, method, parameter, requestId, head } = sent[index]!;
        expect(header).toMatchObject({ kind, channel, method, parameter, requestId, sequence: index });
        expect(Buffer.compare(control, head.subarray(64))).toBe(0);
        expect(Buffer.compare(data, Buffer.concat(sent[index]!.data))).toBe(0);
      });
    }),
    { numRuns: 300 },
  );
});

test('the bytes on the wire are the golden ones', () => {
  const frames: Record<string, OutgoingFrame> = {
    heartbeat: controlFrame(FrameKind.heartbeat, { requestId: 5 }),
    grant: controlFrame(FrameKind.grant, { requestId: 5, parameter: 3000 }),
    request: outgoing({
      requestId: 2 ** 40 + 3,
      control: encodeControl({ offset: 2 ** 33, flags: ['fua'] }),
      data: [Buffer.from('some '), Buffer.from('data')],
    }),
  };
  const writer = new FrameWriter();
  const hex = Object.fromEntries(
    Object.entries(frames).map(([name, frame]) => {
      const chunks: Uint8Array[] = [];
      writer.write(frame, chunks);
      return [name, Buffer.concat(chunks).toString('hex')];
    }),
  );
  expect(existsSync(GOLDEN), `no golden file; its content would be ${JSON.stringify(hex, null, 1)}`).toBe(true);
  const golden = JSON.parse(readFileSync(GOLDEN, 'utf8')) as Record<string, string>;
  expect(hex).toEqual(golden);
  const { frames: read3, error } = read(Buffer.concat(Object.values(golden).map((text) => Buffer.from(text, 'hex'))));
  expect([read3.length, error]).toEqual([3, undefined]);
});

describe('hostile bytes', () => {
  test('of any kind end in the typed error, or wait for more', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 500 }), anyCuts, fc.boolean(), (noise, cuts, likely) => {
        const bytes = likely ? Buffer.concat([Buffer.from('HFPF\x01'), noise]) : noise;
        const { frames, error } = read(bytes, cuts);
        expect(frames).toEqual([]);
        if (error !== undefined) expect(isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')).toBe(true);
      }),
      { numRuns: 500 },
    );
  });

  test('a flipped bit, anywhere, is found; what came before it arrives', () => {
    fc.assert(
      fc.property(fc.array(anyFrame, { minLength: 1, maxLength: 4 }), fc.nat(), anyCuts, (sent, bit, cuts) => {
        const bytes = bytesOf(sent);
        const at = bit % (bytes.length * 8);
        bytes[at >> 3]! ^= 1 << (at & 7);
        const { frames, error } = read(bytes, cuts);
        expect(isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')).toBe(true);
        let whole = 0;
        for (let end = 0; whole < sent.length; whole++) {
          end += sent[whole]!.head.length + sent[whole]!.dataLength;
          if (end > at >> 3) break;
        }
        expect(frames.length).toBe(whole);
      }),
      { numRuns: 500 },
    );
  });

  test('lengths are refused before anything is allocated for them', () => {
    for (const [control, data] of [
      [0xffff_ffff, 0],
      [0, 0xffff_ffff],
      [64 * 1024 + 1, 0],
      [0, DATA_LIMIT_BYTES + 1],
    ]) {
      const header = bytesOf([outgoing()]);
      header.writeUInt32LE(control!, 32);
      header.writeUInt32LE(data!, 36);
      header.writeUInt32LE(crc32c(header.subarray(0, 60)), 60);
      const before = process.memoryUsage().arrayBuffers;
      const { error, admitted } = read(header);
      expect(isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')).toBe(true);
      expect(admitted).toEqual([]);
      expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(50_000);
    }
  });

  test.each([
    ['lost', (frames: Buffer[]) => [frames[0]!, frames[2]!]],
    ['repeated', (frames: Buffer[]) => [frames[0]!, frames[0]!]],
    ['swapped', (frames: Buffer[]) => [frames[1]!, frames[0]!]],
  ])('a whole frame that is %s is found', (_name, order) => {
    const writer = new FrameWriter();
    const frames = [1, 2, 3].map((requestId) => {
      const chunks: Uint8Array[] = [];
      writer.write(outgoing({ requestId, data: [Buffer.alloc(100)] }), chunks);
      return Buffer.concat(chunks);
    });
    const { error } = read(Buffer.concat(order(frames)));
    expect((error as Error).message).toContain('lost or repeated');
  });

  test.each([
    [4, 2, 'version 2'],
    [5, 0, 'kind 0'],
    [5, 11, 'kind 11'],
    [6, 2, 'channel 2'],
    [23, 0xff, 'beyond 2^53'],
  ])('byte %i = %i is refused in words', (at, value, words) => {
    const header = bytesOf([outgoing()]);
    header[at] = value;
    header.writeUInt32LE(crc32c(header.subarray(0, 60)), 60);
    expect((read(header).error as Error).message).toContain(words);
  });

  test('a stranger is known by its first bytes', () => {
    expect((read(Buffer.from('GET / HTTP/1.1\r\n\r\n')).error as Error).message).toContain('an HTTP request');
    expect((read(Buffer.from([0x16, 3, 1, 0, 5])).error as Error).message).toContain('a TLS handshake');
    expect((read(Buffer.from('SSH-')).error as Error).message).toContain('"SSH-"');
  });

  test('nothing is handed on after the first error', () => {
    const parser = new FrameParser({ admit() {}, frame: () => expect.unreachable() });
    expect(() => parser.push(Buffer.from('nonsense'))).toThrow();
    parser.push(bytesOf([outgoing()]));
  });
});

describe('control bodies', () => {
  test('come back as they went', () => {
    const leaf = fc.oneof(
      fc.maxSafeInteger(),
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
      fc.string(),
      fc.boolean(),
      fc.constant(null),
      fc.uint8Array({ maxLength: 50 }),
    );
    const body = fc.dictionary(
      fc.string().filter((key) => key !== '__proto__'),
      fc.oneof(leaf, fc.array(leaf, { maxLength: 5 })),
      { maxKeys: 8 },
    );
    fc.assert(
      fc.property(body, (control) => {
        expect(decodeControl(z.unknown(), encodeControl(control), 'a test')).toEqual({ ...control });
      }),
      { numRuns: 300 },
    );
    expect(decodeControl(z.undefined(), encodeControl(undefined), 'a test')).toBeUndefined();
  });

  test('of any bytes decode or end in the typed error', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        try {
          decodeControl(z.unknown(), bytes, 'a test');
        } catch (error) {
          expect(isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')).toBe(true);
        }
      }),
      { numRuns: 2000 },
    );
  });

  test('that promise more than they hold are refused before anything is built', () => {
    const nested = Buffer.alloc(60_000, Buffer.from([0xdd, 0, 0, 0x3a, 0x98]));
    for (const bytes of [
      Buffer.from([0xdd, 0xff, 0xff, 0xff, 0xff]),
      Buffer.from([0xdf, 0x7f, 0xff, 0xff, 0xff]),
      Buffer.from([0xdb, 0xff, 0xff, 0xff, 0xff, 1]),
      Buffer.alloc(60_000, 0x91),
      nested,
    ]) {
      const before = process.memoryUsage().heapUsed;
      expect(() => decodeControl(z.unknown(), bytes, 'a test')).toThrow(/not well-formed/);
      expect(process.memoryUsage().heapUsed - before).toBeLessThan(4_000_000);
    }
  });

  test('that do not fit their schema say where', () => {
    const schema = z.object({ offset: z.number() });
    expect(() => decodeControl(schema, encodeControl({ offset: 'x' }), 'the request')).toThrow(
      /the request does not fit its schema at offset/,
    );
  });

  test('that are too large are refused at the sender', () => {
    expect(() => encodeControl({ text: 'x'.repeat(70_000) })).toThrow(
      expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }),
    );
  });
});
