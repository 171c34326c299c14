import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { writeMethod } from '../../lib/mirror/protocol.ts';
import { type WriteBody, writeBodyFormat } from '../../lib/mirror/write-body.ts';

const { encode, decode } = writeBodyFormat;
const body: WriteBody = {
  volume: '0123456789abcdef0123456789abcdef',
  view: 2 ** 47 + 12_345,
  offset: 2 ** 40 + 4096,
  fua: true,
};

/** What comes of bytes that may be wrong: undefined if they were refused. */
function decoded(bytes: Uint8Array): WriteBody | undefined {
  try {
    return decode(bytes);
  } catch (error) {
    if (isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')) return undefined;
    throw error;
  }
}

test('the golden body is read and written as it was', () => {
  const golden = new Uint8Array(readFileSync(new URL('golden/write-body-1.bin', import.meta.url)));
  expect(decode(golden)).toEqual(body);
  expect(encode(body)).toEqual(Buffer.from(golden));
});

test('bodies at the ends of what the schema allows come back as they were', () => {
  for (const fua of [false, true])
    for (const view of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 48])
      for (const offset of [0, 512, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER]) {
        const edge = writeMethod.request.parse({ ...body, view, offset, fua });
        expect(decode(encode(edge))).toEqual(edge);
      }
});

test('with any byte changed a body is refused, or is that of another write that fits the schema', () => {
  const good = encode(body);
  let refused = 0;
  for (let at = 0; at < good.length; at += 1) {
    for (let value = 0; value < 256; value += 1) {
      const bytes = Uint8Array.from(good);
      bytes[at] = value;
      const result = decoded(bytes);
      if (result === undefined) refused += 1;
      else {
        expect(writeMethod.request.parse(result)).toEqual(result);
        expect(encode(result)).toEqual(Buffer.from(bytes));
      }
    }
  }
  // Version, flags; what is reserved; the digits; a view above 2^48; an offset of 2^53 and more.
  expect(refused).toBe(255 + 254 + 6 * 255 + 32 * (256 - 16) + 2 * 255 + (256 - 32) + 255);
});

test('a body of another length or version is refused', () => {
  const good = encode(body);
  for (let length = 0; length < 120; length += 1) {
    const bytes = new Uint8Array(length);
    bytes.set(good.subarray(0, length));
    expect(decoded(bytes)).toEqual(length === good.length ? body : undefined);
  }
  const later = Uint8Array.from(good);
  later[0] = 2;
  expect(() => decode(later)).toThrow(/version 2 is not known here; upgrade/);
});
