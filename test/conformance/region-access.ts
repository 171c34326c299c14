/**
 * One suite over every transport of one-sided commands: what one-sided.ts and unit-control.ts promise, seen from outside.
 * A transport's own test calls `accessConformance(name, make)`; `make` is called once for each test.
 */
import { afterEach, describe, expect, test } from 'vitest';
import type { AccessContext } from '../../lib/checkpoint/memory-session.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import type { Grant, TranslationTable, UnitControl } from '../../lib/checkpoint/unit-control.ts';

export type AccessPeer = 'ann' | 'ben';

export interface AccessTarget {
  /** Of `accessMemoryBytes` or more, the first page of which are records. No tables yet. */
  readonly control: UnitControl;
  /** Over the session of this peer with the unit, which there is; the same one each time. The key need not be good. */
  access(peer: AccessPeer, context: AccessContext): Promise<RegionAccess>;
  /** Ends the session of the peer. */
  endSession(peer: AccessPeer): Promise<void>;
  /** Takes down what `make` set up. */
  cleanUp(): Promise<void>;
}

const PAGE = 4096;
const MIB = 1024 * 1024;
export const accessMemoryBytes = 16 * MIB;
const REGION = 'a'.repeat(32);
const OTHER = 'b'.repeat(32);
/** The first page of the region lies behind the second one. */
const TABLE: TranslationTable = {
  region: REGION,
  extents: [
    { startBytes: 8 * PAGE, lengthBytes: PAGE },
    { startBytes: 4 * PAGE, lengthBytes: PAGE },
    { startBytes: 4 * MIB, lengthBytes: 8 * MIB },
  ],
};
const SIZE = 2 * PAGE + 8 * MIB;

const fails = (code: string) => expect.objectContaining({ name: 'HoldfastError', code: `ERR_HOLDFAST_${code}` });
const filled = (length: number, byte: number) => new Uint8Array(length).fill(byte);

async function bytesAt(access: RegionAccess, address: number, length: number): Promise<Buffer> {
  const target = Buffer.alloc(length, 0xee);
  await access.read(address, target);
  return target;
}

export function accessConformance(name: string, make: () => Promise<AccessTarget>): void {
  let target: AccessTarget | undefined;
  let keys = 0;
  afterEach(async () => {
    await target?.cleanUp();
    target = undefined;
  });

  const grantOf = (peer: AccessPeer, fields: Partial<Grant> = {}): Grant => {
    keys += 1;
    const key = (0xabcd_0000 + keys).toString(16).padStart(32, '1');
    const range = { base: 0, lengthBytes: SIZE };
    return { key, region: REGION, range, rights: ['read', 'write'], peer, epoch: 3, ...fields };
  };
  /** With a key that is given for it. */
  const give = async (grant: Grant): Promise<RegionAccess> => {
    await target!.control.grant(grant);
    return target!.access(grant.peer as AccessPeer, grant);
  };
  const setUp = async (tables: readonly TranslationTable[] = [TABLE]): Promise<AccessTarget> => {
    target = await make();
    await target.control.install(tables);
    return target;
  };

  describe(`one-sided access: ${name}`, () => {
    test('what was written is read, over the ends of extents and of commands', async () => {
      await setUp();
      const ann = await give(grantOf('ann'));
      expect([ann.open, ann.epoch, ann.range]).toEqual([true, 3, { base: 0, lengthBytes: SIZE }]);
      await ann.write(PAGE - 4, [Buffer.from('one '), Buffer.from('and '), Buffer.from('two')], { persist: true });
      expect((await bytesAt(ann, PAGE - 4, 11)).toString()).toBe('one and two');
      const long = Buffer.alloc(3 * MIB + 5);
      for (let at = 0; at < long.length; at += 1) long[at] = (at * 7 + (at >> 12)) & 255;
      await ann.write(PAGE + 3, [long.subarray(0, 100), long.subarray(100)], { persist: true });
      expect((await bytesAt(ann, PAGE + 3, long.length)).equals(long)).toBe(true);
      await ann.read(SIZE, new Uint8Array(0));
      await ann.write(SIZE, []);
      await ann.persist(0, SIZE);
    });

    test('commands are executed in the order of the calls', async () => {
      await setUp();
      const ann = await give(grantOf('ann'));
      const found: string[] = [];
      const steps: Promise<void>[] = [];
      for (let count = 0; count < 300; count += 1) {
        const bytes = Buffer.alloc(4);
        steps.push(ann.write(PAGE - 2, [Buffer.from(String(count).padStart(4))], { persist: count % 7 === 0 }));
        steps.push(ann.read(PAGE - 2, bytes).then(() => void found.push(bytes.toString().trim())));
      }
      await Promise.all(steps);
      expect(found).toEqual(Array.from({ length: 300 }, (_, count) => String(count)));
    });

    test('thousands of commands of several keys, at once', async () => {
      await setUp();
      const [ann, ben] = [await give(grantOf('ann')), await give(grantOf('ben'))];
      const writes = Array.from({ length: 2000 }, (_, index) =>
        (index % 2 === 0 ? ann : ben).write(index * 1024, [filled(1000, index)], { persist: index % 100 === 0 }),
      );
      await Promise.all(writes);
      const reads = Array.from({ length: 2000 }, async (_, index) => {
        const bytes = await bytesAt(index % 2 === 0 ? ben : ann, index * 1024, 1001);
        return bytes[0] === (index & 255) && bytes[999] === (index & 255) && bytes[1000] === 0;
      });
      expect(new Set(await Promise.all(reads))).toEqual(new Set([true]));
    });

    test('one of many compare-and-swaps wins, and each is told what was there', async () => {
      await setUp();
      const [ann, ben] = [await give(grantOf('ann')), await give(grantOf('ben'))];
      const most = 2n ** 64n - 1n;
      expect(await ann.compareAndSwap(8, 0n, most, { persist: true })).toBe(0n);
      const olds = await Promise.all(
        Array.from({ length: 20 }, (_, index) => (index % 2 === 0 ? ann : ben).compareAndSwap(8, most, BigInt(index))),
      );
      expect(olds.filter((old) => old === most)).toHaveLength(1);
      const winner = (await bytesAt(ann, 8, 8)).readBigUInt64LE();
      expect(olds[Number(winner)]).toBe(most);
      expect(await ben.compareAndSwap(8, 99n, 1n, { persist: true })).toBe(winner);
    });

    test('a write whose guard does not hold stores nothing', async () => {
      await setUp();
      const ann = await give(grantOf('ann'));
      await ann.compareAndSwap(16, 0n, 2n ** 63n);
      const guard = (expected: bigint) => ({ guard: { address: 16, expected }, persist: true });
      await expect(ann.write(64, [filled(8, 1)], guard(1n))).rejects.toEqual(fails('FENCED'));
      expect(await bytesAt(ann, 64, 8)).toEqual(Buffer.alloc(8));
      await ann.write(64, [filled(8, 1)], guard(2n ** 63n));
      expect(await bytesAt(ann, 64, 8)).toEqual(Buffer.alloc(8, 1));
    });

    test('a key opens its range by its rights', async () => {
      await setUp();
      const range = { base: PAGE - 100, lengthBytes: 200 };
      const reader = await give(grantOf('ann', { rights: ['read'], range }));
      const writer = await give(grantOf('ann', { rights: ['write'], range }));
      await writer.write(PAGE - 100, [filled(200, 7)]);
      expect(await bytesAt(reader, PAGE - 100, 200)).toEqual(Buffer.alloc(200, 7));
      await reader.persist(PAGE - 100, 200);
      await expect(reader.write(PAGE, [filled(1, 1)])).rejects.toEqual(fails('ACCESS'));
      await expect(reader.compareAndSwap(PAGE, 0n, 0n)).rejects.toEqual(fails('ACCESS'));
      await expect(writer.read(PAGE, filled(1, 0))).rejects.toEqual(fails('ACCESS'));
      await expect(writer.watch(PAGE, 1, 0)).rejects.toEqual(fails('ACCESS'));
      await expect(reader.read(PAGE - 101, filled(1, 0))).rejects.toEqual(fails('OUT_OF_RANGE'));
      await expect(reader.read(PAGE - 100, filled(201, 0))).rejects.toEqual(fails('OUT_OF_RANGE'));
      await expect(writer.write(PAGE, [filled(1, 0)], { guard: { address: 0, expected: 0n } })).rejects.toEqual(
        fails('OUT_OF_RANGE'),
      );
      expect(await bytesAt(reader, PAGE, 1)).toEqual(Buffer.of(7));
    });

    test('what a client believes of its key does not matter to the unit', async () => {
      const { access, control } = await setUp();
      const narrow = grantOf('ann', { range: { base: PAGE, lengthBytes: 64 }, rights: ['write'] });
      await control.grant(narrow);
      const ann = await access('ann', { ...narrow, range: { base: 0, lengthBytes: SIZE } });
      await ann.write(PAGE, [filled(64, 1)]);
      for (const address of [PAGE - 1, PAGE + 1, SIZE - 64])
        await expect(ann.write(address, [filled(64, 1)])).rejects.toEqual(fails('OUT_OF_RANGE'));
      await expect(ann.write(PAGE, [filled(8, 1)], { guard: { address: 0, expected: 0n } })).rejects.toEqual(
        fails('OUT_OF_RANGE'),
      );
    });

    test('a key of another session, one that was revoked and one that was invented get the same answer', async () => {
      const { access, control } = await setUp();
      const mine = grantOf('ann');
      const ann = await give(mine);
      const other = grantOf('ben');
      await give(other);
      const stolen = await access('ann', other);
      await expect(stolen.read(0, filled(8, 0))).rejects.toEqual(fails('KEY_INVALID'));
      const invented = await access('ann', grantOf('ann'));
      await expect(invented.read(0, filled(8, 0))).rejects.toEqual(fails('KEY_INVALID'));
      expect(await control.revoke({ region: REGION, key: mine.key })).toBe(1);
      await expect(ann.read(0, filled(8, 0))).rejects.toEqual(fails('KEY_INVALID'));
      await expect(ann.write(0, [filled(8, 0)], { persist: true })).rejects.toEqual(fails('KEY_INVALID'));
      await expect(ann.watch(0, 8, 0)).rejects.toEqual(fails('KEY_INVALID'));
      expect(await control.revoke({ region: REGION, key: mine.key })).toBe(0);
    });

    test('a revocation takes those that fit, and when it resolves nothing of theirs runs', async () => {
      const { control } = await setUp();
      const ann = await give(grantOf('ann'));
      const reader = await give(grantOf('ann', { rights: ['read'] }));
      const ben = await give(grantOf('ben'));
      let settled = 0;
      const writes = Array.from({ length: 200 }, (_, index) =>
        ann.write(index * 64, [filled(64, index)], { persist: true }).then(
          () => 'done',
          (error) => error.code,
        ),
      );
      for (const write of writes) void write.then(() => (settled += 1));
      await Promise.race(writes);
      expect(await control.revoke({ region: REGION, exceptPeer: 'ben', right: 'write' })).toBe(1);
      const before = await bytesAt(ben, 0, 200 * 64);
      const outcomes = await Promise.all(writes);
      expect(settled).toBe(200);
      expect(await bytesAt(ben, 0, 200 * 64)).toEqual(before);
      const done = outcomes.filter((outcome) => outcome === 'done').length;
      expect(new Set(outcomes)).toEqual(new Set(done === 200 ? ['done'] : ['done', 'ERR_HOLDFAST_KEY_INVALID']));
      expect(outcomes.slice(0, done)).toEqual(new Array(done).fill('done'));
      await reader.read(0, filled(8, 0));
      expect(await control.revoke({ region: REGION, peer: 'ben' })).toBe(1);
      await expect(ben.read(0, filled(8, 0))).rejects.toEqual(fails('KEY_INVALID'));
      expect(await control.revoke({ region: OTHER })).toBe(0);
      expect(await control.revoke({ region: REGION })).toBe(1);
    });

    test('tables that go or shrink take their keys along; others go on', async () => {
      const { control } = await setUp([
        TABLE,
        { region: OTHER, extents: [{ startBytes: 2 * PAGE, lengthBytes: 2 * PAGE }] },
      ]);
      const whole = await give(grantOf('ann'));
      const start = await give(grantOf('ann', { range: { base: 0, lengthBytes: PAGE } }));
      const other = await give(grantOf('ben', { region: OTHER, range: { base: 0, lengthBytes: PAGE } }));
      await start.write(0, [filled(8, 5)]);
      await control.install([{ region: REGION, extents: TABLE.extents.slice(0, 2) }]);
      await expect(whole.read(0, filled(8, 0))).rejects.toEqual(fails('KEY_INVALID'));
      await expect(other.read(0, filled(8, 0))).rejects.toEqual(fails('KEY_INVALID'));
      expect(await bytesAt(start, 0, 8)).toEqual(Buffer.alloc(8, 5));
      await control.install([]);
      await expect(start.read(0, filled(8, 0))).rejects.toEqual(fails('KEY_INVALID'));
    });

    test('a watch ends with a store in its range by whomever, or with its key', async () => {
      const { control } = await setUp();
      const ann = await give(grantOf('ann'));
      const reading = grantOf('ben', { rights: ['read'] });
      const ben = await give(reading);
      const now = await ben.watch(0, 64, 0);
      let answered = false;
      const watch = ben.watch(0, 64, now).finally(() => (answered = true));
      await ben.read(0, filled(8, 0));
      await ann.write(64, [filled(64, 1)]);
      await ann.compareAndSwap(0, 5n, 6n);
      await ben.read(0, filled(8, 0));
      expect(answered).toBe(false);
      await ann.write(63, [filled(2, 1)]);
      const later = await watch;
      expect(later).toBeGreaterThan(now);
      expect(await ben.watch(0, 64, now)).toBe(later);
      const elsewhere = ben.watch(4096, 64, later);
      await ann.compareAndSwap(4096, 0n, 6n);
      expect(await elsewhere).toBeGreaterThan(later);
      const last = ben.watch(0, 64, later).catch((error) => error);
      await ben.read(0, filled(8, 0));
      await control.revoke({ region: REGION, key: reading.key });
      expect(await last).toEqual(fails('KEY_INVALID'));
    });

    test('whoever gives up waiting for a watch can go on, as often as it likes', async () => {
      await setUp();
      const ann = await give(grantOf('ann'));
      const since = await ann.watch(0, 64, 0);
      for (let count = 0; count < 200; count += 1) {
        const abort = new AbortController();
        const watch = ann.watch(0, 64, since, { signal: abort.signal });
        abort.abort();
        await expect(watch).rejects.toEqual(fails('ABORTED'));
      }
      await expect(ann.read(0, filled(8, 0), { signal: AbortSignal.abort() })).rejects.toEqual(fails('ABORTED'));
      await ann.write(0, [filled(8, 1)]);
      expect(await ann.watch(0, 64, since)).toBeGreaterThan(since);
    });

    test('with its session a peer loses its keys, and what has no answer fails', async () => {
      const { endSession } = await setUp();
      const ann = await give(grantOf('ann'));
      const ben = await give(grantOf('ben'));
      const watch = ann.watch(0, 8, await ann.watch(0, 8, 0)).catch((error) => error);
      await ann.read(0, filled(8, 0));
      await endSession('ann');
      expect(['ERR_HOLDFAST_PEER_LOST', 'ERR_HOLDFAST_KEY_INVALID']).toContain((await watch).code);
      await expect(ann.read(0, filled(8, 0))).rejects.toEqual(fails('PEER_LOST'));
      expect(ann.open).toBe(false);
      await ben.read(0, filled(8, 0));
    });
  });
}
