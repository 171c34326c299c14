import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { native } from '../../lib/native.ts';
import { crc32c, crc32cBlocks, crc32cCombine, crc32cCopy, crc32cKernel } from '../../lib/storage/checksum.ts';

/** RFC 3720, B.4. */
const vectors: [string, Uint8Array, number][] = [
  ['32 bytes of zeros', new Uint8Array(32), 0x8a9136aa],
  ['32 bytes of ones', new Uint8Array(32).fill(0xff), 0x62a8ab43],
  ['32 incrementing bytes', Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
  ['32 decrementing bytes', Uint8Array.from({ length: 32 }, (_, i) => 31 - i), 0x113fdb5c],
  [
    'an iSCSI read command',
    Uint8Array.from(
      Buffer.from(
        '01c00000000000000000000000000000' + '14000000000004000000001400000018' + '28000000000000000200000000000000',
        'hex',
      ),
    ),
    0xd9963a56,
  ],
];

/** One bit at a time, straight from the definition. */
function reference(bytes: Uint8Array, seed = 0): number {
  let register = ~seed;
  for (const byte of bytes) {
    register ^= byte;
    for (let bit = 0; bit < 8; bit++) register = (register >>> 1) ^ (register & 1 ? 0x82f63b78 : 0);
  }
  return ~register >>> 0;
}

function randomBytes(length: number, seed: number): Uint8Array {
  let state = seed >>> 0 || 1;
  return Uint8Array.from({ length }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state & 0xff;
  });
}

const seeds = fc.integer({ min: 0, max: 0xffffffff });
const addon = native().checksum;
const kernels = addon.kernels();
for (const { name, supported } of kernels) {
  if (!supported) console.log(`this processor has no ${name} kernel: not tested`);
}

describe.each(kernels.filter(({ supported }) => supported))('CRC-32C by the $name kernel', ({ name }) => {
  test.each(vectors)('gives the published checksum of %s', (_, bytes, checksum) => {
    expect(addon.crc32cBy(name, bytes, 0)).toBe(checksum);
  });

  test('equals the bit-by-bit reference at every length up to 1200', () => {
    const bytes = randomBytes(1200, 7);
    for (let length = 0; length <= bytes.length; length++) {
      const part = bytes.subarray(0, length);
      expect(addon.crc32cBy(name, part, 0), `length ${length}`).toBe(reference(part));
    }
  });

  test('equals the reference for any bytes, alignment, length and seed', () => {
    const bytes = randomBytes(40_000, 11);
    fc.assert(
      fc.property(fc.nat(64), fc.nat(39_000), seeds, (start, length, seed) => {
        const part = bytes.subarray(start, start + length);
        expect(addon.crc32cBy(name, part, seed)).toBe(reference(part, seed));
      }),
      { numRuns: 60 },
    );
  });

  test('goes on from where a part ended', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 4096 }), fc.nat(4096), (bytes, cut) => {
        const head = addon.crc32cBy(name, bytes.subarray(0, cut), 0);
        expect(addon.crc32cBy(name, bytes.subarray(cut), head)).toBe(addon.crc32cBy(name, bytes, 0));
      }),
    );
  });

  test('sees every single changed bit', () => {
    const bytes = randomBytes(700, 3);
    const before = addon.crc32cBy(name, bytes, 0);
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      expect(addon.crc32cBy(name, bytes, 0)).not.toBe(before);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
    }
  });
});

describe.each(kernels.filter(({ supported }) => supported))('with the $name kernel selected', ({ name }) => {
  const before = addon.selectedKernel();
  beforeAll(() => expect(addon.selectKernel(name)).toBe(true));
  afterAll(() => expect(addon.selectKernel(before)).toBe(true));

  test('a copy is the bytes, and nothing beside them, and its checksum theirs', () => {
    const bytes = randomBytes(20_000, 5);
    const target = new Uint8Array(bytes.length + 256);
    fc.assert(
      fc.property(fc.nat(64), fc.nat(19_000), fc.nat(64), seeds, (start, length, at, seed) => {
        const part = bytes.subarray(start, start + length);
        target.fill(0xa5);
        expect(crc32cCopy(part, target.subarray(at), seed)).toBe(reference(part, seed));
        expect(Buffer.compare(target.subarray(at, at + length), part)).toBe(0);
        expect(target.subarray(0, at).every((byte) => byte === 0xa5)).toBe(true);
        expect(target.subarray(at + length).every((byte) => byte === 0xa5)).toBe(true);
      }),
      { numRuns: 60 },
    );
  });

  test.each([-4096, -1000, -64, -1, 0, 1, 64, 1000, 4096])('a copy may go to %i bytes after its source', (by) => {
    const before = randomBytes(20_000, 9);
    const memory = before.slice();
    const [from, length] = [5000, 10_000];
    const part = before.subarray(from, from + length);
    const copy = memory.subarray(from + by, from + by + length);
    expect(crc32cCopy(memory.subarray(from, from + length), copy)).toBe(reference(part));
    expect(Buffer.compare(copy, part)).toBe(0);
  });

  test('the checksum is that of the copy while another thread writes to the source', async () => {
    const source = new Uint8Array(new SharedArrayBuffer(1 << 20));
    const state = new Int32Array(new SharedArrayBuffer(8));
    const scribble = `const { workerData: { source, state } } = require('node:worker_threads');
      for (let byte = 0; Atomics.load(state, 0) === 0; byte++) {
        source.fill(byte);
        if (Atomics.add(state, 1, 1) === 0) Atomics.notify(state, 1);
      }`;
    const worker = new Worker(scribble, { eval: true, workerData: { source, state } });
    Atomics.wait(state, 1, 0, 10_000);
    try {
      const target = new Uint8Array(source.length);
      let torn = 0;
      for (let round = 0; round < 300 && torn < 20; round++) {
        const checksum = crc32cCopy(source, target);
        expect(checksum).toBe(crc32c(target));
        if (target.some((byte) => byte !== target[0])) torn++;
      }
    } finally {
      Atomics.store(state, 0, 1);
      await once(worker, 'exit');
    }
  });

  test('every block has its own checksum, the short last one too', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 5000 }), fc.integer({ min: 1, max: 1500 }), (bytes, blockBytes) => {
        const expected: number[] = [];
        for (let at = 0; at < bytes.length; at += blockBytes)
          expected.push(reference(bytes.subarray(at, at + blockBytes)));
        expect([...crc32cBlocks(bytes, blockBytes)]).toEqual(expected);
      }),
      { numRuns: 50 },
    );
  });
});

test('the fastest kernel of this processor is in use', () => {
  expect(crc32cKernel()).toBe(kernels.findLast(({ supported }) => supported)!.name);
});

test('nothing has the checksum 0, and leaves a seed as it is', () => {
  expect(crc32c(new Uint8Array(0))).toBe(0);
  expect(crc32c(new Uint8Array(0), 0xdeadbeef)).toBe(0xdeadbeef);
});

test('memory may be a Buffer, a part of one, or shared', () => {
  const shared = new Uint8Array(new SharedArrayBuffer(64), 3, 9);
  shared.set(Buffer.from('123456789'));
  expect(crc32c(shared)).toBe(0xe3069283);
  expect(crc32c(Buffer.from('x123456789y').subarray(1, 10))).toBe(0xe3069283);
});

test('the checksums of two parts combine to that of the whole', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2000 }), fc.uint8Array({ maxLength: 2000 }), (a, b) => {
      expect(crc32cCombine(crc32c(a), crc32c(b), b.length)).toBe(crc32c(Buffer.concat([a, b])));
    }),
  );
});

test('combining steps over lengths far beyond memory', () => {
  // 2^40 zeros, by doubling the checksum of one.
  let zeros = crc32c(new Uint8Array(1));
  for (let length = 1; length < 2 ** 40; length *= 2) zeros = crc32cCombine(zeros, zeros, length);
  const a = crc32c(Buffer.from('a'));
  const whole = crc32cCombine(crc32cCombine(a, zeros, 2 ** 40), crc32c(Buffer.from('b')), 1);
  const tail = crc32cCombine(zeros, crc32c(Buffer.from('b')), 1);
  expect(whole).toBe(crc32cCombine(a, tail, 2 ** 40 + 1));
});

test.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY])('blocks of %s bytes are refused', (blockBytes) => {
  expect(() => crc32cBlocks(new Uint8Array(8), blockBytes)).toThrow(
    expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }),
  );
});

test.each([-1, 0.5, Number.NaN])('a second part of %s bytes is refused', (length) => {
  expect(() => crc32cCombine(1, 2, length)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }));
});

test.each([-1, 2 ** 32, 0.5, Number.NaN])('%s is refused as a checksum', (wrong) => {
  const refused = expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
  const bytes = new Uint8Array(4);
  expect(() => crc32c(bytes, wrong)).toThrow(refused);
  expect(() => crc32cCopy(bytes, new Uint8Array(4), wrong)).toThrow(refused);
  expect(() => crc32cCombine(wrong, 1, 1)).toThrow(refused);
  expect(() => crc32cCombine(1, wrong, 1)).toThrow(refused);
});

test('a copy to less memory than it needs is refused before anything is written', () => {
  const target = new Uint8Array(7);
  expect(() => crc32cCopy(new Uint8Array(8).fill(1), target)).toThrow(
    expect.objectContaining({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' }),
  );
  expect(() => addon.crc32cCopy(new Uint8Array(8).fill(1), target, 0)).toThrow(TypeError);
  expect([...target]).toEqual([0, 0, 0, 0, 0, 0, 0]);
});

test('what is not a Uint8Array is refused by the addon', () => {
  for (const wrong of ['text', [1, 2], new Float64Array(2), new ArrayBuffer(4), undefined, null]) {
    expect(() => addon.crc32c(wrong as unknown as Uint8Array, 0)).toThrow(TypeError);
    expect(() => addon.crc32cCopy(wrong as unknown as Uint8Array, new Uint8Array(4), 0)).toThrow(TypeError);
    expect(() => addon.crc32cCopy(new Uint8Array(4), wrong as unknown as Uint8Array, 0)).toThrow(TypeError);
  }
});

describe('HOLDFAST_CRC32C', () => {
  const dist = new URL('../../dist/storage/checksum.js', import.meta.url).href;
  const script = `import { crc32c, crc32cKernel } from ${JSON.stringify(dist)};
    try { console.log(crc32c(Buffer.from('123456789')).toString(16), crc32cKernel()); }
    catch (error) { console.log(error.code, error.message); }`;
  const run = (kernel: string) =>
    spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      env: { ...process.env, HOLDFAST_CRC32C: kernel },
      encoding: 'utf8',
    }).stdout.trim();

  test.each(kernels.filter(({ supported }) => supported))('forces the $name kernel', ({ name }) => {
    expect(run(name)).toBe(`e3069283 ${name}`);
  });

  test('is refused, with the names to choose from, if it names no kernel', () => {
    expect(run('mmx')).toMatch(/^ERR_HOLDFAST_BAD_ARGUMENT .*"mmx".*portable/);
  });
});
