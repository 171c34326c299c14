import { createCipheriv, createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import {
  type DigestAlgorithm,
  digestAlgorithms,
  digestBlocks,
  digestBytes,
  digestKeyBytes,
  isKeyed,
} from '../../lib/storage/digest.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { scanDevice } from '../../lib/storage/scan.ts';
import { temporaryDevice } from '../../lib/testing/temporary-device.ts';
import { pattern } from '../conformance/block-device.ts';
import { engines } from './engines.ts';

const mebibyte = 1024 * 1024;
const key = pattern(digestKeyBytes, 1);

function keyFor(algorithm: DigestAlgorithm): { key?: Uint8Array } {
  return isKeyed(algorithm) ? { key } : {};
}

function code(errorCode: string): unknown {
  return expect.objectContaining({ name: 'HoldfastError', code: errorCode });
}

/** What node:crypto says; it has no keyed BLAKE2b. */
const byNode: { readonly [algorithm: string]: (block: Uint8Array) => Buffer } = {
  md5: (block) => createHash('md5').update(block).digest(),
  sha1: (block) => createHash('sha1').update(block).digest(),
  sha256: (block) => createHash('sha256').update(block).digest(),
  gmac: (block) => {
    const cipher = createCipheriv('aes-256-gcm', key, new Uint8Array(12)).setAAD(block);
    cipher.final();
    return cipher.getAuthTag();
  },
};

test.each(Object.keys(byNode) as DigestAlgorithm[])(
  '%s is what node:crypto computes, block by block',
  async (algorithm) => {
    for (const length of [0, 1, 4096, 10_000, 3 * mebibyte + 7]) {
      for (const blockBytes of [1000, 4096, mebibyte]) {
        if (length / blockBytes > 4000) continue;
        const bytes = pattern(length, length);
        const blocks = Array.from({ length: Math.ceil(length / blockBytes) }, (_, block) =>
          byNode[algorithm]!(bytes.subarray(block * blockBytes, (block + 1) * blockBytes)),
        );
        const found = await digestBlocks(bytes, blockBytes, algorithm, keyFor(algorithm).key);
        expect(Buffer.compare(found, Buffer.concat(blocks))).toBe(0);
      }
    }
  },
);

test('blake2b is that of RFC 7693, with a key and 32 bytes long', async () => {
  // Computed by Python's hashlib.blake2b(data, key=bytes(range(32)), digest_size=32).
  const counting = Uint8Array.from({ length: 32 }, (_, at) => at);
  const found = await digestBlocks(Buffer.from('abcabc'), 3, 'blake2b', counting);
  const expected = 'd63a32d3e44738d7907f964316c241adaba0abfeabc32349677578a15a203f7f';
  expect(Buffer.from(found).toString('hex')).toBe(expected + expected);
});

test('a keyed digest is another one under another key', async () => {
  for (const algorithm of ['gmac', 'blake2b'] as const) {
    const bytes = pattern(8192, 1);
    const one = await digestBlocks(bytes, 4096, algorithm, key);
    expect(await digestBlocks(bytes, 4096, algorithm, key)).toEqual(one);
    expect(await digestBlocks(bytes, 4096, algorithm, pattern(32, 2))).not.toEqual(one);
  }
});

test('memory of the caller may be given away while it is digested', async () => {
  const bytes = pattern(4 * mebibyte, 1);
  const expected = createHash('sha256').update(bytes).digest();
  const digesting = digestBlocks(bytes, bytes.byteLength, 'sha256');
  structuredClone(bytes.buffer, { transfer: [bytes.buffer as ArrayBuffer] });
  expect(bytes.byteLength).toBe(0);
  expect(Buffer.compare(await digesting, expected)).toBe(0);
});

describe('a scan', () => {
  for (const engine of engines) {
    test.each(digestAlgorithms)(`by ${engine} with %s is the same over a file and over memory`, async (algorithm) => {
      const sizeBytes = 20 * mebibyte;
      const memory = new MemoryDevice({ sizeBytes });
      await using temporary = await temporaryDevice({ sizeBytes, engine });
      for (let offset = 0; offset < sizeBytes; offset += mebibyte) {
        const bytes = pattern(mebibyte, offset);
        await memory.write(offset, bytes);
        await temporary.device.write(offset, bytes);
      }
      const content = new Uint8Array(sizeBytes);
      await memory.read(0, content);
      const expected = Buffer.from(await digestBlocks(content, 100_000, algorithm, keyFor(algorithm).key));
      for (const device of [memory, temporary.device]) {
        const parts: Uint8Array[] = [];
        for await (const batch of scanDevice(device, { blockBytes: 100_000, algorithm, ...keyFor(algorithm) })) {
          expect(batch.checksumBytes).toBe(digestBytes[algorithm]);
          if (algorithm !== 'crc32c') {
            expect(batch.hex(1)).toBe(Buffer.from(batch.checksum(1)).toString('hex'));
            expect(() => batch.crc32c()).toThrow(code('ERR_HOLDFAST_BAD_ARGUMENT'));
          }
          parts.push(batch.checksums);
        }
        expect(Buffer.compare(Buffer.concat(parts), expected)).toBe(0);
      }
    });
  }
});

test('what makes no sense is refused', async () => {
  const refusal = code('ERR_HOLDFAST_BAD_ARGUMENT');
  const bytes = pattern(4096, 1);
  await expect(digestBlocks(bytes, 0, 'sha256')).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 1.5, 'sha256')).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 0, 'crc32c')).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 4096, 'sha3' as 'sha1')).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 4096, 'sha256', key)).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 4096, 'crc32c', key)).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 4096, 'gmac')).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 4096, 'blake2b', key.subarray(1))).rejects.toEqual(refusal);
  await expect(digestBlocks(bytes, 4096, 'blake2b', pattern(33, 1))).rejects.toEqual(refusal);
});

test('more results than memory can hold are refused: the process goes on', async () => {
  const bytes = new Uint8Array(new SharedArrayBuffer(2 ** 30));
  await expect(digestBlocks(bytes, 1, 'sha256')).rejects.toEqual(code('ERR_HOLDFAST_BAD_ARGUMENT'));
});
