import { beforeEach, describe, expect, test } from 'vitest';
import { type GrantedKey, type Refusal, TranslationTables } from '../../lib/checkpoint/translation.ts';
import type { Extent, Grant } from '../../lib/checkpoint/unit-control.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const PAGE = 4096;
const LIMITS = { regionsMax: 3, extentsMax: 8, keysMax: 4, keysPerSessionMax: 3 };
const id = (digit: number) => String(digit).repeat(32);
const extent = (startPage: number, pages: number): Extent => ({
  startBytes: startPage * PAGE,
  lengthBytes: pages * PAGE,
});
const A = id(1);
const B = id(2);

function grant(fields: Partial<Grant> = {}): Grant {
  return {
    key: id(9),
    region: A,
    range: { base: PAGE, lengthBytes: 4 * PAGE },
    rights: ['read', 'write'],
    peer: 'primary',
    epoch: 1,
    ...fields,
  };
}

let tables: TranslationTables;
beforeEach(() => {
  tables = new TranslationTables(extent(16, 100), LIMITS);
  tables.install([
    { region: A, extents: [extent(20, 2), extent(50, 1), extent(30, 5)] },
    { region: B, extents: [extent(60, 2)] },
  ]);
});

const codeOf = (result: GrantedKey | Refusal): string => ('code' in result ? result.code : 'opens');
const throws = (code: string) => expect.objectContaining({ code: `ERR_HOLDFAST_${code}` });

describe('translation', () => {
  test('a range over several extents is cut at their ends, in the order of the addresses', () => {
    tables.grant(grant(), 7);
    const key = tables.resolve(id(9), 7, PAGE + 100, 2.5 * PAGE, 'read') as GrantedKey;
    expect(key.region.locate(PAGE + 100, 2.5 * PAGE)).toEqual([
      { startBytes: 21 * PAGE + 100, lengthBytes: PAGE - 100 },
      { startBytes: 50 * PAGE, lengthBytes: PAGE },
      { startBytes: 30 * PAGE, lengthBytes: PAGE / 2 + 100 },
    ]);
    expect(key.region.locate(8 * PAGE, 0)).toEqual([]);
  });

  test('each page of random tables is where a plain list of pages says', () => {
    const random = new SimulatedRandom(5);
    for (let round = 0; round < 50; round += 1) {
      const places = Array.from({ length: 8 }, (_, index) => 16 + 12 * index);
      const extents: Extent[] = [];
      while (places.length > 0)
        extents.push(extent(places.splice(random.below(places.length), 1)[0]!, 1 + random.below(12)));
      const list = extents.flatMap(({ startBytes, lengthBytes }) =>
        Array.from({ length: lengthBytes / PAGE }, (_, index) => startBytes + index * PAGE),
      );
      tables.install([{ region: B, extents }]);
      tables.grant(grant({ region: B, range: { base: 0, lengthBytes: list.length * PAGE } }), 1);
      const { region } = tables.resolve(id(9), 1, 0, 1, 'read') as GrantedKey;
      expect(region.sizeBytes).toBe(list.length * PAGE);
      for (const [page, startBytes] of list.entries())
        expect(region.locate(page * PAGE + 4095, 1)).toEqual([{ startBytes: startBytes + 4095, lengthBytes: 1 }]);
      const total = region.locate(0, region.sizeBytes).reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
      expect(total).toBe(region.sizeBytes);
      tables.revoke({ region: B });
    }
  });

  test.each([
    ['an extent in the bytes of the manager', [extent(15, 2)], 'OUT_OF_RANGE'],
    ['an extent beyond the end', [extent(115, 2)], 'OUT_OF_RANGE'],
    ['an extent whose end is beyond 2^53', [{ startBytes: 2 ** 52, lengthBytes: 2 ** 53 - PAGE }], 'OUT_OF_RANGE'],
    ['an empty extent', [extent(20, 0)], 'OUT_OF_RANGE'],
    ['extents that overlap', [extent(40, 4), extent(20, 4), extent(43, 2)], 'BAD_ARGUMENT'],
    ['the same extent twice', [extent(40, 4), extent(40, 4)], 'BAD_ARGUMENT'],
    ['an extent that is not whole pages', [{ startBytes: 20 * PAGE, lengthBytes: 100 }], 'BAD_ARGUMENT'],
    ['an extent that is no number', [{ startBytes: Number.NaN, lengthBytes: PAGE }], 'BAD_ARGUMENT'],
    ['more extents than the limit', Array.from({ length: 9 }, (_, index) => extent(20 + index, 1)), 'BAD_ARGUMENT'],
  ])('%s is refused, and the tables stay', (_what, extents, code) => {
    tables.grant(grant(), 7);
    expect(() => tables.install([{ region: A, extents }])).toThrow(throws(code));
    expect(codeOf(tables.resolve(id(9), 7, PAGE, 1, 'read'))).toBe('opens');
    expect(tables.regionCount).toBe(2);
  });

  test('extents of two regions may not overlap, a region may not be there twice, nor too many of them', () => {
    const overlapping = [A, B].map((region) => ({ region, extents: [extent(40, 2)] }));
    expect(() => tables.install(overlapping)).toThrow(throws('BAD_ARGUMENT'));
    const twice = [40, 50].map((page) => ({ region: A, extents: [extent(page, 2)] }));
    expect(() => tables.install(twice)).toThrow(throws('BAD_ARGUMENT'));
    const four = [1, 2, 3, 4].map((digit) => ({ region: id(digit), extents: [] }));
    expect(() => tables.install(four)).toThrow(throws('BAD_ARGUMENT'));
    expect(() => tables.install([{ region: 'A', extents: [] }])).toThrow(throws('BAD_ARGUMENT'));
  });
});

describe('protection', () => {
  test.each([
    ['inside', PAGE, 4 * PAGE, 'write', 'opens'],
    ['nothing, at the end', 5 * PAGE, 0, 'read', 'opens'],
    ['one byte before', PAGE - 1, 2, 'read', 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['one byte after', 5 * PAGE - 1, 2, 'read', 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['nothing, beyond the end', 5 * PAGE + 1, 0, 'read', 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['all that can be said', 0, Number.MAX_SAFE_INTEGER, 'read', 'ERR_HOLDFAST_OUT_OF_RANGE'],
    ['far away', Number.MAX_SAFE_INTEGER - 8, 8, 'read', 'ERR_HOLDFAST_OUT_OF_RANGE'],
  ] as const)('a key opens its range only: %s', (_what, address, length, right, result) => {
    tables.grant(grant(), 7);
    expect(codeOf(tables.resolve(id(9), 7, address, length, right))).toBe(result);
  });

  test('a key opens to its own session only, with its rights only, and an unknown one nothing', () => {
    tables.grant(grant({ rights: ['read'] }), 7);
    expect(codeOf(tables.resolve(id(9), 7, PAGE, 8, 'read'))).toBe('opens');
    expect(codeOf(tables.resolve(id(9), 7, PAGE, 8, 'write'))).toBe('ERR_HOLDFAST_ACCESS');
    expect(codeOf(tables.resolve(id(9), 7, PAGE, 8, undefined))).toBe('opens');
    expect(codeOf(tables.resolve(id(9), 7, 0, 8, undefined))).toBe('ERR_HOLDFAST_OUT_OF_RANGE');
    expect(codeOf(tables.resolve(id(9), 8, PAGE, 8, 'read'))).toBe('ERR_HOLDFAST_KEY_INVALID');
    expect(codeOf(tables.resolve(id(8), 7, PAGE, 8, 'read'))).toBe('ERR_HOLDFAST_KEY_INVALID');
  });

  test('no reason names a key', () => {
    tables.grant(grant({ rights: ['read'] }), 7);
    const refusals = [
      tables.resolve(id(9), 7, PAGE, 8, 'write'),
      tables.resolve(id(9), 8, PAGE, 8, 'read'),
      tables.resolve(id(9), 7, 0, 8, 'read'),
      tables.resolve(id(8), 7, 0, 8, 'read'),
    ];
    for (const refusal of refusals) expect(JSON.stringify(refusal)).not.toMatch(/9{32}|8{32}/);
  });

  test.each([
    ['a region that is not there', grant({ region: id(5) }), 'NOT_FOUND'],
    ['a range beyond the region', grant({ range: { base: PAGE, lengthBytes: 8 * PAGE } }), 'OUT_OF_RANGE'],
    ['a range below 0', grant({ range: { base: -PAGE, lengthBytes: PAGE } }), 'OUT_OF_RANGE'],
    ['a range that is no number', grant({ range: { base: Number.NaN, lengthBytes: PAGE } }), 'OUT_OF_RANGE'],
    ['a key that is none', grant({ key: 'x' }), 'BAD_ARGUMENT'],
    ['no right', grant({ rights: [] }), 'BAD_ARGUMENT'],
  ])('a grant of %s is refused', (_what, wrong, code) => {
    expect(() => tables.grant(wrong, 7)).toThrow(throws(code));
    expect(tables.keyCount).toBe(0);
  });

  test('a key is given once, and no more than the limits allow', () => {
    tables.grant(grant({ key: id(1) }), 7);
    expect(() => tables.grant(grant({ key: id(1) }), 8)).toThrow(throws('BAD_ARGUMENT'));
    tables.grant(grant({ key: id(2) }), 7);
    tables.grant(grant({ key: id(3) }), 7);
    expect(() => tables.grant(grant({ key: id(4) }), 7)).toThrow(throws('QUEUE_FULL'));
    tables.grant(grant({ key: id(4) }), 8);
    expect(() => tables.grant(grant({ key: id(5) }), 8)).toThrow(throws('QUEUE_FULL'));
    expect(tables.endSession(7).length).toBe(3);
    tables.grant(grant({ key: id(5) }), 7);
  });
});

describe('the end of a key', () => {
  const three = () => {
    tables.grant(grant({ key: id(3), peer: 'primary' }), 7);
    tables.grant(grant({ key: id(4), peer: 'backup', rights: ['read'] }), 8);
    tables.grant(grant({ key: id(5), peer: 'primary', region: B, range: { base: 0, lengthBytes: PAGE } }), 7);
  };
  const open = () => {
    const result = (key: string, session: number) => codeOf(tables.resolve(key, session, PAGE, 0, 'read')) === 'opens';
    return [result(id(3), 7), result(id(4), 8), result(id(5), 7)];
  };

  test.each([
    ['all of a region', { region: A }, [false, false, true]],
    ['those with a right', { region: A, right: 'write' }, [false, true, true]],
    ['those of a peer', { region: A, peer: 'backup' }, [true, false, true]],
    ['those of all others', { region: A, exceptPeer: 'primary' }, [true, false, true]],
    ['one', { region: A, key: id(4) }, [true, false, true]],
    ['one of another region', { region: B, key: id(4) }, [true, true, true]],
    ['those of a region that is not there', { region: id(6) }, [true, true, true]],
  ] as const)('revoked: %s', (_what, keys, left) => {
    three();
    const { revoked, running } = tables.revoke(keys);
    expect(open()).toEqual(left);
    expect(revoked.length).toBe(left.filter((opens) => !opens).length);
    expect(running).toEqual([]);
    expect(tables.keyCount).toBe(3 - revoked.length);
  });

  test('the session ends', () => {
    three();
    expect(tables.endSession(7).length).toBe(2);
    expect(open()).toEqual([false, true, false]);
    expect(tables.endSession(7)).toEqual([]);
  });

  test('the region is gone, or no longer long enough; another one stays', () => {
    three();
    expect(tables.install([{ region: A, extents: [extent(20, 3)] }]).length).toBe(3);
    expect(open()).toEqual([false, false, false]);
    tables.grant(grant({ range: { base: 0, lengthBytes: PAGE } }), 7);
    expect(tables.install([{ region: A, extents: [extent(20, 3), extent(40, 1)] }])).toEqual([]);
    expect(codeOf(tables.resolve(id(9), 7, 0, 1, 'read'))).toBe('opens');
    expect(tables.install([]).length).toBe(1);
  });

  test('a region that is gone and comes back under the same identifier does not bring its keys back', () => {
    three();
    tables.install([]);
    tables.install([{ region: A, extents: [extent(20, 8)] }]);
    expect(open()).toEqual([false, false, false]);
  });

  test('a command that runs under a key keeps it among those that a revocation waits for', () => {
    three();
    const key = tables.resolve(id(3), 7, PAGE, 8, 'write') as GrantedKey;
    tables.enter(key);
    tables.enter(key);
    expect(tables.leave(key)).toBe(false);
    const { revoked, running } = tables.revoke({ region: A, right: 'write' });
    expect([revoked.length, running.length]).toEqual([1, 1]);
    expect(codeOf(tables.resolve(id(3), 7, PAGE, 8, 'write'))).toBe('ERR_HOLDFAST_KEY_INVALID');
    // Asked again: nothing more to revoke, but what runs is still to be waited for.
    expect(tables.revoke({ region: A })).toMatchObject({ revoked: [{ session: 8 }], running: [{ session: 7 }] });
    expect(tables.leave(key)).toBe(true);
    expect(tables.revoke({ region: A })).toEqual({ revoked: [], running: [] });
    expect(tables.keyCount).toBe(1);
  });

  test('what runs when its session ends is waited for, too', () => {
    three();
    const key = tables.resolve(id(3), 7, PAGE, 8, 'write') as GrantedKey;
    tables.enter(key);
    tables.endSession(7);
    expect(tables.revoke({ region: A, right: 'write' })).toMatchObject({ revoked: [], running: [{ session: 7 }] });
    expect(tables.leave(key)).toBe(true);
    expect(tables.keyCount).toBe(1);
  });
});
