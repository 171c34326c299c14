/** The formats of a checkpoint region, byte by byte: golden files, and bytes that come from anywhere. */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  type CursorRecord,
  cursorAddress,
  decodeCursor,
  decodeRegion,
  encodeCursor,
  encodeRegion,
  isOfChain,
  type RegionRecord,
  type RingPosition,
  seedChecksum,
} from '../../lib/checkpoint/layout.ts';
import {
  decodeRecordHeader,
  formatWord,
  payloadBytesMax,
  RecordEncoder,
  recordBytes,
  stepChain,
} from '../../lib/checkpoint/records.ts';
import { decodeSlotHeader, encodeSlot, isWhole } from '../../lib/checkpoint/slots.ts';

const formatId = '00112233445566778899aabbccddeeff';
const region: RegionRecord = {
  formatId,
  mode: 'append',
  cursorCount: 8,
  dataAddress: cursorAddress(8),
  dataBytes: 0x1_0000_0000_000,
  epoch: 0x0102030405,
  firstSequence: 0x0607080900,
  head: { sequence: 0x0607080000, offset: 0x0a0b0c0d40, previousChecksum: 0xdeadbeef },
};
const REGION_BYTES = region.dataAddress + region.dataBytes;
const cursor: CursorRecord = {
  formatId,
  index: 3,
  state: 'registered',
  name: 'backup-b',
  cleared: 0x0607080123,
  readOn: { sequence: 0x0607080100, offset: 0x0a0b0c0d80, previousChecksum: 0xcafef00d, epoch: 0x0102030404 },
};
const text = (words: string) => new TextEncoder().encode(words);
const golden = (name: string) => Buffer.from(readFileSync(new URL(`golden/${name}`, import.meta.url)));

const start: RingPosition = { sequence: 7, offset: 128, previousChecksum: 0x01020304, epoch: 1 };
const small = { formatId, dataBytes: 4096, epoch: 2, firstSequence: 7 };
const word = formatWord(formatId);

/** Two records and a wrap, from `start` on. */
function chain(): Uint8Array {
  const bytes = new Uint8Array(64 + 64 + 64 + 128 + 64);
  const encoder = new RecordEncoder({ formatWord: word, epoch: 2 }, bytes);
  const first = encoder.record(7, start.previousChecksum, 5, text('a state'));
  const second = encoder.record(8, first, 5, new Uint8Array(100).fill(0x5a));
  encoder.wrap(9, second, 5);
  expect(encoder.lengthBytes).toBe(bytes.length);
  return bytes;
}

test.each([
  ['checkpoint-region-1.bin', () => encodeRegion(region)],
  ['checkpoint-cursor-1.bin', () => encodeCursor(cursor)],
  ['checkpoint-records-1.bin', chain],
  ['checkpoint-slot-1.bin', () => encodeSlot({ ...region, mode: 'overwrite' } as RegionRecord, 5, 9, text('state'))],
])('the golden %s is written as it was', (name, encode) => {
  expect(Buffer.from(encode())).toEqual(golden(name));
});

test('the golden records are read as they were', () => {
  expect(decodeRegion(golden('checkpoint-region-1.bin'), REGION_BYTES)).toEqual(region);
  expect(decodeCursor(golden('checkpoint-cursor-1.bin'), region, 3)).toEqual(cursor);
  const slot = golden('checkpoint-slot-1.bin');
  const header = decodeSlotHeader(slot, region, 1)!;
  expect(header).toMatchObject({ sequence: 5, epoch: 9, lengthBytes: 5 });
  expect(isWhole(header, slot.subarray(64))).toBe(true);
  const found: unknown[] = [];
  let place = start;
  for (let at = 0; ; ) {
    const step = stepChain(small, word, place, golden('checkpoint-records-1.bin').subarray(at));
    found.push(step.kind === 'record' ? Buffer.from(step.record.payload).toString() : step.kind);
    if (step.kind !== 'record') break;
    place = step.after;
    at += step.takenBytes;
  }
  expect(found).toEqual(['a state', 'Z'.repeat(100), 'wrap']);
  expect(place).toMatchObject({ sequence: 9, offset: 128 + 128 + 192, epoch: 2 });
});

test('a chain goes on only with the next number, the right checksum, an epoch that is not lower, and whole', () => {
  const bytes = chain();
  const step = (place: Partial<RingPosition>, where: Partial<typeof small> = {}, given = bytes) =>
    stepChain({ ...small, ...where }, formatWord(where.formatId ?? formatId), { ...start, ...place }, given).kind;
  expect(step({})).toBe('record');
  expect(step({ sequence: 8 })).toBe('end');
  expect(step({ previousChecksum: 0 })).toBe('end');
  expect(step({ epoch: 3 })).toBe('end');
  expect(step({}, { formatId: `ff${formatId.slice(2)}` })).toBe('end');
  // A late record of a writer that had been fenced before its number came up.
  expect(step({}, { epoch: 3 })).toBe('end');
  expect(step({}, { epoch: 3, firstSequence: 8 })).toBe('record');
  // It would go over the ring's end.
  expect(step({ offset: 4096 - 64 })).toBe('end');
  for (const at of [0, 4, 5, 8, 16, 24, 28, 40, 50, 60, 64, 70]) {
    const spoilt = bytes.slice();
    spoilt[at]! ^= 1;
    expect(step({}, {}, spoilt), `byte ${at}`).toBe('end');
  }
  expect(stepChain(small, word, start, bytes.subarray(0, 63))).toEqual({ kind: 'more', neededBytes: 64 });
  expect(stepChain(small, word, start, bytes.subarray(0, 127))).toEqual({ kind: 'more', neededBytes: 128 });
});

test('a wrap at the start of the ring, which would go round for ever, ends the chain', () => {
  const bytes = new Uint8Array(64);
  new RecordEncoder({ formatWord: word, epoch: 2 }, bytes).wrap(7, start.previousChecksum, 0);
  expect(stepChain(small, word, start, bytes)).toMatchObject({ kind: 'wrap', takenBytes: 4096 - 128 });
  expect(stepChain(small, word, { ...start, offset: 0 }, bytes)).toEqual({ kind: 'end' });
});

test('a record that claims more than half of the ring ends the chain', () => {
  const most = payloadBytesMax(4096);
  const bytes = new Uint8Array(recordBytes(most + 1));
  new RecordEncoder({ formatWord: word, epoch: 2 }, bytes).record(
    7,
    start.previousChecksum,
    0,
    new Uint8Array(most + 1),
  );
  expect(stepChain(small, word, { ...start, offset: 0 }, bytes)).toEqual({ kind: 'end' });
  expect(recordBytes(most)).toBe(2048);
});

test('a region record that cannot be right is refused', () => {
  const bytes = encodeRegion(region);
  const spoilt = (change: (bytes: Buffer) => void) => {
    const copy = Buffer.from(bytes);
    change(copy);
    return decodeRegion(copy, REGION_BYTES);
  };
  expect(spoilt(() => {})).toEqual(region);
  expect(decodeRegion(bytes, REGION_BYTES - 1)).toBeUndefined();
  expect(decodeRegion(bytes.subarray(1), REGION_BYTES)).toBeUndefined();
  for (const change of [
    (copy: Buffer) => copy.writeUInt8(3, 16),
    (copy: Buffer) => copy.writeUInt8(1, 17),
    (copy: Buffer) => copy.writeUInt16LE(65, 18),
    (copy: Buffer) => copy.writeUInt16LE(7, 18),
    (copy: Buffer) => copy.writeBigUInt64LE(1n, 24),
    (copy: Buffer) => copy.writeBigUInt64LE(0n, 32),
    (copy: Buffer) => copy.writeBigUInt64LE(4097n, 32),
    (copy: Buffer) => copy.writeBigUInt64LE(0n, 40),
    (copy: Buffer) => copy.writeBigUInt64LE(2n ** 53n, 48),
    (copy: Buffer) => copy.writeBigUInt64LE(0n, 56),
    (copy: Buffer) => copy.writeBigUInt64LE(32n, 64),
    (copy: Buffer) => copy.writeBigUInt64LE(BigInt(region.dataBytes), 64),
    (copy: Buffer) => copy.writeUInt8(1, 76),
  ])
    expect(spoilt(change), change.toString()).toBeUndefined();
});

test('a cursor that cannot be right is none', () => {
  const bytes = encodeCursor(cursor);
  expect(decodeCursor(bytes, region, 2)).toBeUndefined();
  expect(decodeCursor(bytes, { ...region, formatId: formatId.replace('0', '1') }, 3)).toBeUndefined();
  for (const [at, byte] of [
    [18, 0],
    [18, 3],
    [19, 0],
    [19, 7],
    [19, 65],
    [20, 1],
    [31, 1],
    [32, 0xff],
    [40, 1],
    [52, 1],
    [64, 0x20],
    [127, 0x41],
  ] as const) {
    const copy = bytes.slice();
    copy[at] = byte;
    expect(decodeCursor(copy, region, 3), `byte ${at} is ${byte}`).toBeUndefined();
  }
});

test('any bytes are read, or refused without a throw', () => {
  const encoded = [encodeRegion(region), encodeCursor(cursor), chain(), encodeSlot(region, 5, 9, text('state'))];
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc
      .tuple(fc.constantFrom(...encoded), fc.array(fc.tuple(fc.nat(300), fc.nat(255)), { maxLength: 4 }), fc.nat(300))
      .map(([from, changes, length]) => {
        const copy = from.slice(0, length);
        for (const [at, byte] of changes) if (at < copy.length) copy[at] = byte;
        return copy;
      }),
  );
  fc.assert(
    fc.property(bytes, (given) => {
      const found = decodeRegion(given, REGION_BYTES);
      if (found !== undefined) expect(Buffer.from(encodeRegion(found))).toEqual(Buffer.from(given));
      const place = decodeCursor(given, region, 3);
      if (place !== undefined) expect(Buffer.from(encodeCursor(place))).toEqual(Buffer.from(given));
      const header = decodeRecordHeader(given);
      if (header !== undefined) expect(header.sequence).toBeGreaterThan(0);
      const slot = decodeSlotHeader(given, region, 1);
      if (slot !== undefined) expect(slot.lengthBytes).toBeLessThanOrEqual(region.dataBytes);
      const step = stepChain(small, word, start, given);
      if (step.kind === 'more') expect(step.neededBytes).toBeGreaterThan(given.length);
    }),
    { numRuns: 2000 },
  );
});

test('what a slot holds counts only in its place, of its format, and not from a writer that came too late', () => {
  const bytes = encodeSlot(region, 5, 9, text('state'));
  expect(decodeSlotHeader(bytes, region, 0)).toBeUndefined();
  expect(decodeSlotHeader(bytes, { ...region, formatId: formatId.replace('0', '1') }, 1)).toBeUndefined();
  expect(decodeSlotHeader(bytes, { ...region, firstSequence: 5, epoch: 10 }, 1)).toBeUndefined();
  expect(decodeSlotHeader(bytes, { ...region, firstSequence: 6, epoch: 10 }, 1)).toBeDefined();
  expect(decodeSlotHeader(bytes, { ...region, dataBytes: 64 }, 1)).toBeUndefined();
  expect(isOfChain({ ...region, firstSequence: 6, epoch: 10 }, 6, 9)).toBe(false);
});

test('each format begins its chain with a checksum of its own', () => {
  expect(seedChecksum(formatId)).not.toBe(seedChecksum(formatId.replace('0', '1')));
});
