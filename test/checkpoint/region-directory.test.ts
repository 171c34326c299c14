import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import {
  allowed,
  type Directory,
  decodeDirectory,
  denied,
  EXTENTS_MAX,
  encodeDirectory,
  erased,
  findRegion,
  grown,
  holesIn,
  mayUse,
  newDirectory,
  problemIn,
  REGIONS_MAX,
  type Region,
  SPACE_UNIT_BYTES as UNIT,
  withMemory,
  withoutRegion,
  withRegion,
} from '../../lib/checkpoint/region-directory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const RECORDS = 2 * UNIT;
const ROOM = 1024 * 1024;

function id(number: number): string {
  return number.toString(16).padStart(32, '0');
}

function memoryOf(units: number): Directory {
  return newDirectory(RECORDS, RECORDS + units * UNIT, true);
}

function added(directory: Directory, name: string, units: number): Directory {
  return withRegion(directory, RECORDS, { id: id(Number(name)), name, owner: 'ann', sizeBytes: units * UNIT });
}

function region(directory: Directory, name: string): Region {
  return findRegion(directory, name)!;
}

/** In units, from the first one behind the records. */
function extents(directory: Directory, name: string): string {
  return region(directory, name)
    .extents.map(({ startBytes, lengthBytes }) => `${(startBytes - RECORDS) / UNIT}+${lengthBytes / UNIT}`)
    .join(' ');
}

const golden: Directory = {
  memoryBytes: 0x0102_0304_0506,
  regions: [
    {
      id: '00112233445566778899aabbccddeeff',
      name: 'log',
      owner: 'primary',
      sizeBytes: 3 * UNIT - 5,
      epoch: 0x0a0b0c,
      extents: [
        { startBytes: 7 * UNIT, lengthBytes: 2 * UNIT },
        { startBytes: 2 * UNIT, lengthBytes: UNIT },
      ],
      access: [
        { peer: 'backup', rights: ['read'], range: undefined },
        { peer: 'backup', rights: ['write'], range: { base: 8192, lengthBytes: 8192 } },
        { peer: 'other', rights: ['read', 'write'], range: undefined },
      ],
    },
    {
      id: 'ff'.repeat(16),
      name: 'small',
      owner: 'b',
      sizeBytes: 1,
      epoch: 1,
      extents: [{ startBytes: 12 * UNIT, lengthBytes: UNIT }],
      access: [],
    },
  ],
  erasing: [{ startBytes: 20 * UNIT, lengthBytes: 0x0203 * UNIT }],
};

describe('the format', () => {
  const bytes = readFileSync(new URL('golden/regions-1.bin', import.meta.url));

  test('is the one in the golden file', () => {
    expect(Buffer.compare(encodeDirectory(golden, ROOM), bytes)).toBe(0);
    expect(decodeDirectory(bytes, RECORDS)).toEqual(golden);
  });

  test('a directory that is cut short, or goes on, is refused', () => {
    for (let length = 0; length < bytes.length; length += 1)
      expect(() => decodeDirectory(bytes.subarray(0, length), RECORDS)).toThrow(
        expect.objectContaining({ code: 'ERR_HOLDFAST_METADATA_DAMAGED' }),
      );
    expect(() => decodeDirectory(Buffer.concat([bytes, Buffer.alloc(1)]), RECORDS)).toThrow(/follows its end/);
  });

  test('whatever lies there is decoded to a directory that can be, or refused by its code', () => {
    const random = new SimulatedRandom(1, 'bytes');
    let refused = 0;
    for (let round = 0; round < 20_000; round += 1) {
      const copy = Buffer.from(bytes);
      for (let change = 0; change <= random.below(3); change += 1)
        copy[random.below(copy.length)] = random.below(2) === 0 ? random.below(256) : 0xff;
      try {
        const found = decodeDirectory(copy, RECORDS);
        expect(problemIn(found, RECORDS)).toBeUndefined();
        expect(Buffer.compare(encodeDirectory(found, ROOM), copy)).toBe(0);
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_HOLDFAST_METADATA_DAMAGED' });
        refused += 1;
      }
    }
    expect(refused).toBeGreaterThan(5_000);
  });

  test('counts beyond what is there are refused before anything is made', () => {
    const copy = Buffer.from(bytes);
    copy.writeUInt32LE(0xffff_ffff, 12);
    expect(() => decodeDirectory(copy, RECORDS)).toThrow(/promises more than it holds/);
  });

  test('a directory that has no room is refused, with the size that it would take', () => {
    const { length } = encodeDirectory(golden, ROOM);
    expect(() => encodeDirectory(golden, length - 1)).toThrow(
      expect.objectContaining({ code: 'ERR_HOLDFAST_NO_SPACE' }),
    );
  });
});

test.each<[string, (directory: Directory) => Directory]>([
  ['overlap', (d) => ({ ...d, erasing: [{ startBytes: 8 * UNIT, lengthBytes: UNIT }] })],
  ['records', (d) => ({ ...d, erasing: [{ startBytes: UNIT, lengthBytes: UNIT }] })],
  ['beyond the memory', (d) => ({ ...d, erasing: [{ startBytes: 2 ** 46, lengthBytes: UNIT }] })],
  ['no extent', (d) => ({ ...d, erasing: [{ startBytes: 21 * UNIT, lengthBytes: 0 }] })],
  ['one name', (d) => ({ ...d, regions: d.regions.map((each) => ({ ...each, name: 'a' })) })],
  ['one identifier', (d) => ({ ...d, regions: d.regions.map((each) => ({ ...each, id: id(1) })) })],
  ['a name that cannot be', (d) => withFirst(d, { name: '' })],
  ['owner', (d) => withFirst(d, { owner: '-' })],
  ['does not fit its size', (d) => withFirst(d, { sizeBytes: 4 * UNIT })],
  ['epoch 0', (d) => withFirst(d, { epoch: 0 })],
  ['access list', (d) => withFirst(d, { access: [{ peer: 'b', rights: [], range: undefined }] })],
  ['access list', (d) => withAccess(d, { base: 3 * UNIT - 5, lengthBytes: 1 })],
  ['access list', (d) => withAccess(d, { base: 0, lengthBytes: 0 })],
])('a directory that cannot be is found out: %s', (words, spoil) => {
  expect(problemIn(golden, RECORDS)).toBeUndefined();
  expect(problemIn(spoil(golden), RECORDS)).toContain(words);
});

function withFirst(directory: Directory, fields: Partial<Region>): Directory {
  return {
    ...directory,
    regions: directory.regions.map((each, index) => (index === 0 ? { ...each, ...fields } : each)),
  };
}

function withAccess(directory: Directory, range: { base: number; lengthBytes: number }): Directory {
  return withFirst(directory, { access: [{ peer: 'b', rights: ['read'], range }] });
}

describe('space', () => {
  test('is given out from the lowest hole that has room, in place where a region grows, in pieces if need be', () => {
    let directory = memoryOf(10);
    for (const [name, units] of Object.entries({ 1: 2, 2: 1, 3: 3 })) directory = added(directory, name, units);
    expect([extents(directory, '1'), extents(directory, '2'), extents(directory, '3')]).toEqual(['0+2', '2+1', '3+3']);
    directory = withoutRegion(directory, region(directory, '2'));
    directory = added(directory, '4', 1);
    expect(extents(directory, '4')).toBe('6+1');
    directory = erased(directory, RECORDS + 2 * UNIT, UNIT);
    directory = grown(directory, RECORDS, region(directory, '1'), 3 * UNIT);
    expect(extents(directory, '1')).toBe('0+3');
    directory = grown(directory, RECORDS, region(directory, '3'), 5 * UNIT);
    expect(extents(directory, '3')).toBe('3+3 7+2');
    directory = withoutRegion(directory, region(directory, '1'));
    for (const { startBytes, lengthBytes } of directory.erasing) directory = erased(directory, startBytes, lengthBytes);
    directory = added(directory, '5', 4);
    expect(extents(directory, '5')).toBe('0+3 9+1');
    expect(holesIn(directory, RECORDS)).toEqual([]);
    expect(problemIn(directory, RECORDS)).toBeUndefined();
  });

  test('a size that is no whole number of units takes the next one; growing inside it takes none', () => {
    let directory = withRegion(memoryOf(2), RECORDS, { id: id(1), name: '1', owner: 'ann', sizeBytes: 1 });
    directory = grown(directory, RECORDS, region(directory, '1'), UNIT);
    expect(extents(directory, '1')).toBe('0+1');
    directory = grown(directory, RECORDS, region(directory, '1'), UNIT + 1);
    expect(extents(directory, '1')).toBe('0+2');
  });

  test('what would come in too many pieces is refused', () => {
    let directory = memoryOf(2 * EXTENTS_MAX + 2);
    for (let number = 1; number <= 2 * EXTENTS_MAX + 2; number += 1) directory = added(directory, `${number}`, 1);
    for (let number = 1; number <= 2 * EXTENTS_MAX + 2; number += 2)
      directory = withoutRegion(directory, region(directory, `${number}`));
    for (const { startBytes } of directory.erasing) directory = erased(directory, startBytes, UNIT);
    expect(() => added(directory, '1000', EXTENTS_MAX + 1)).toThrow(/more than 64 pieces/);
    directory = added(directory, '1000', EXTENTS_MAX);
    expect(region(directory, '1000').extents).toHaveLength(EXTENTS_MAX);
  });

  test('regions are limited', () => {
    let directory = memoryOf(REGIONS_MAX + 1);
    for (let number = 1; number <= REGIONS_MAX; number += 1) directory = added(directory, `${number}`, 1);
    expect(() => added(directory, '5000', 1)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_NO_SPACE' }));
    expect(() => added(directory, '7', 1)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_DUPLICATE_NAME' }));
  });

  test('no run of changes breaks an invariant, or loses a byte', () => {
    const random = new SimulatedRandom(2, 'changes');
    const units = 40;
    let directory = memoryOf(units);
    let refused = 0;
    for (let round = 0; round < 4_000; round += 1) {
      const some = directory.regions[random.below(Math.max(1, directory.regions.length))];
      const size = 1 + random.below(12 * UNIT);
      try {
        const kind = random.below(4);
        if (kind === 0)
          directory = withRegion(directory, RECORDS, {
            id: id(round + 1),
            name: `${round}`,
            owner: 'ann',
            sizeBytes: size,
          });
        else if (kind === 1 && some) directory = grown(directory, RECORDS, some, some.sizeBytes + size);
        else if (kind === 2 && some) directory = withoutRegion(directory, some);
        else if (directory.erasing[0]) directory = erased(directory, directory.erasing[0].startBytes, UNIT);
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_HOLDFAST_NO_SPACE' });
        refused += 1;
      }
      expect(problemIn(directory, RECORDS)).toBeUndefined();
      const all = [
        ...holesIn(directory, RECORDS),
        ...directory.erasing,
        ...directory.regions.flatMap((r) => r.extents),
      ];
      expect(all.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)).toBe(units * UNIT);
      expect(decodeDirectory(encodeDirectory(directory, ROOM), RECORDS)).toEqual(directory);
    }
    expect(refused).toBeGreaterThan(50);
  });

  test('memory behind the last whole unit, and none at all, give nothing', () => {
    expect(holesIn(newDirectory(RECORDS - 5, RECORDS + UNIT + 100, true), RECORDS - 5)).toEqual([
      { startBytes: RECORDS, lengthBytes: UNIT },
    ]);
    expect(holesIn(newDirectory(RECORDS, RECORDS, true), RECORDS)).toEqual([]);
    const shorter = newDirectory(RECORDS - 5, RECORDS - 5, false);
    expect(problemIn(shorter, RECORDS - 5)).toBeUndefined();
    expect(holesIn(shorter, RECORDS - 5)).toEqual([]);
  });

  test('memory that comes later waits to be zeroed, from the unit that was not whole on', () => {
    const before = newDirectory(RECORDS, RECORDS + UNIT + 100, true);
    expect(withMemory(before, RECORDS, RECORDS + 3 * UNIT).erasing).toEqual([
      { startBytes: RECORDS + UNIT, lengthBytes: 2 * UNIT },
    ]);
  });
});

describe('access', () => {
  const whole = { base: 0, lengthBytes: 2 * UNIT };
  const directory = added(memoryOf(4), '1', 2);
  const allow = (to: Directory, peer: string, rights: ('read' | 'write')[], range?: [number, number]) =>
    allowed(to, region(to, '1'), { peer, rights, range: range && { base: range[0], lengthBytes: range[1] } });

  test('an entry without a range goes on when the region grows; one with a range does not', () => {
    let next = allow(allow(directory, 'ben', ['read']), 'cyd', ['read'], [0, 2 * UNIT]);
    next = grown(next, RECORDS, region(next, '1'), 3 * UNIT);
    const now = { base: 0, lengthBytes: 3 * UNIT };
    expect(mayUse(region(next, '1'), 'ben', ['read'], now)).toBe(true);
    expect(mayUse(region(next, '1'), 'cyd', ['read'], now)).toBe(false);
    expect(mayUse(region(next, '1'), 'cyd', ['read'], whole)).toBe(true);
    expect(mayUse(region(next, '1'), 'ann', ['read', 'write'], now)).toBe(true);
  });

  test('rights may come from different entries, a range only from one', () => {
    const next = allow(allow(directory, 'ben', ['read']), 'ben', ['write'], [0, UNIT]);
    expect(mayUse(region(next, '1'), 'ben', ['read', 'write'], { base: 10, lengthBytes: 10 })).toBe(true);
    expect(mayUse(region(next, '1'), 'ben', ['write'], whole)).toBe(false);
    const joined = allow(next, 'ben', ['write'], [UNIT, UNIT]);
    expect(mayUse(region(joined, '1'), 'ben', ['write'], whole)).toBe(false);
  });

  test('after a denial nothing is left in its range', () => {
    const random = new SimulatedRandom(3, 'access');
    for (let round = 0; round < 300; round += 1) {
      let next = directory;
      const draw = (): [number, number] => [random.below(8), 1 + random.below(8)];
      for (let entry = 0; entry < 5; entry += 1)
        next = allow(
          next,
          'ben',
          [random.below(2) === 0 ? 'read' : 'write'],
          random.below(4) === 0 ? undefined : draw(),
        );
      const [base, lengthBytes] = draw();
      next = denied(next, region(next, '1'), { peer: 'ben', rights: ['write'], range: { base, lengthBytes } });
      for (let at = base; at < base + lengthBytes; at += 1)
        expect(mayUse(region(next, '1'), 'ben', ['write'], { base: at, lengthBytes: 1 })).toBe(false);
      expect(problemIn(next, RECORDS)).toBeUndefined();
    }
  });
});
