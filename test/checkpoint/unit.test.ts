/** The unit by itself: access of its own process, over a simulated memory. Over sessions: unit-session.test.ts. */
import { afterEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import type { HoldfastErrorCode } from '../../lib/base/errors.ts';
import type { Right } from '../../lib/checkpoint/one-sided.ts';
import { createMemoryUnit, type MemoryUnit, type MemoryUnitOptions } from '../../lib/checkpoint/unit.ts';
import type { Grant } from '../../lib/checkpoint/unit-control.ts';
import type { UnitMemory } from '../../lib/checkpoint/unit-memory.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const PAGE = 4096;
const REGION = 'a'.repeat(32);
let keys = 0;

function grant(fields: Partial<Grant> = {}): Grant {
  keys += 1;
  return {
    key: keys.toString(16).padStart(32, '0'),
    region: REGION,
    range: { base: 0, lengthBytes: 4 * PAGE },
    rights: ['read', 'write'],
    peer: 'primary',
    epoch: 3,
    ...fields,
  };
}

/** A memory whose persists end when the test says so. */
class HeldMemory implements UnitMemory {
  readonly #memory: UnitMemory;
  readonly held: { readonly offset: number; readonly length: number; end(error?: Error): void }[] = [];
  holds = false;

  constructor(memory: UnitMemory) {
    this.#memory = memory;
  }
  get sizeBytes() {
    return this.#memory.sizeBytes;
  }
  get means() {
    return this.#memory.means;
  }
  get failure() {
    return this.#memory.failure;
  }
  read(offset: number, target: Uint8Array) {
    this.#memory.read(offset, target);
  }
  write(offset: number, bytes: Uint8Array) {
    this.#memory.write(offset, bytes);
  }
  load(offset: number) {
    return this.#memory.load(offset);
  }
  compareAndSwap(offset: number, expected: bigint, desired: bigint) {
    return this.#memory.compareAndSwap(offset, expected, desired);
  }
  async persist(offset: number, length: number) {
    if (this.holds)
      await new Promise<void>((resolve, reject) => {
        this.held.push({ offset, length, end: (error) => (error === undefined ? resolve() : reject(error)) });
      });
    await this.#memory.persist(offset, length);
  }
  close() {
    return this.#memory.close();
  }
  [Symbol.asyncDispose]() {
    return this.close();
  }
}

interface World {
  readonly disk: SimulatedMemory;
  readonly memory: HeldMemory;
  readonly unit: MemoryUnit;
}

let worlds: World[] = [];
afterEach(async () => {
  for (const { memory, unit } of worlds) {
    memory.holds = false;
    for (const { end } of memory.held) end();
    await unit.close();
  }
  worlds = [];
});

/** A region of two extents, 2 + 2 pages. */
async function world(options: Partial<MemoryUnitOptions> = {}): Promise<World> {
  const disk = new SimulatedMemory({ random: new SimulatedRandom(1), sizeBytes: 16 * PAGE });
  const memory = new HeldMemory(disk.open());
  const unit = createMemoryUnit({ name: 'unit', memory, clock: systemClock, recordsBytes: 2 * PAGE, ...options });
  await unit.install([
    {
      region: REGION,
      extents: [
        { startBytes: 8 * PAGE, lengthBytes: 2 * PAGE },
        { startBytes: 4 * PAGE, lengthBytes: 2 * PAGE },
      ],
    },
  ]);
  const made = { disk, memory, unit };
  worlds.push(made);
  return made;
}

const bytes = (text: string) => Buffer.from(text);
const fails = (code: string) => ({ code: `ERR_HOLDFAST_${code}` });
const refused = (unit: MemoryUnit) =>
  unit.auditEvents().flatMap(({ kind, code, peer, count }) => (kind === 'refused' ? [{ code, peer, count }] : []));

/** What has become of a promise so far. */
async function stateOf(promise: Promise<unknown>): Promise<string> {
  let state = 'waits';
  promise.then(
    (value) => {
      state = String(value);
    },
    (error) => {
      state = error.code;
    },
  );
  await new Promise((resolve) => setImmediate(resolve));
  return state;
}

describe('commands', () => {
  test('what was written over the end of an extent is read again, and lies where the table says', async () => {
    const { unit, disk } = await world();
    const access = await unit.localAccess(grant());
    expect([access.unit, access.epoch, access.open, access.range.lengthBytes]).toEqual(['unit', 3, true, 4 * PAGE]);
    await access.write(2 * PAGE - 4, [bytes('one '), bytes('and '), bytes('two')], { persist: true });
    const target = Buffer.alloc(11);
    await access.read(2 * PAGE - 4, target);
    expect(target.toString()).toBe('one and two');
    const durable = (offset: number, length: number) => {
      const found = Buffer.alloc(length);
      disk.peekDurable(offset, found);
      return found.toString();
    };
    expect([durable(10 * PAGE - 4, 4), durable(4 * PAGE, 7)]).toEqual(['one ', 'and two']);
    expect(unit.status).toMatchObject({
      reads: 1,
      readBytes: 11,
      writes: 1,
      writtenBytes: 11,
      persists: 1,
      refused: 0,
    });
  });

  test('ranges longer than one command are read, written and persisted whole', async () => {
    const memory = new SimulatedMemory({ random: new SimulatedRandom(1), sizeBytes: 4 * 1024 * 1024 });
    await using unit = createMemoryUnit({ name: 'unit', memory: memory.open(), clock: systemClock });
    await unit.install([{ region: REGION, extents: [{ startBytes: 1024 * 1024, lengthBytes: 3 * 1024 * 1024 }] }]);
    const access = await unit.localAccess(grant({ range: { base: 0, lengthBytes: 3 * 1024 * 1024 } }));
    const data = Buffer.from(Array.from({ length: 2_500_000 }, (_, index) => (index * 7919) >> 8));
    await access.write(100, [data.subarray(0, 1_500_000), data.subarray(1_500_000)], { persist: true });
    memory.crash();
    memory.open();
    const durable = Buffer.alloc(data.length);
    memory.peekDurable(1024 * 1024 + 100, durable);
    expect(Buffer.compare(durable, data)).toBe(0);
    const other = memory;
    other.kill();
    await using again = createMemoryUnit({ name: 'unit', memory: other.open(), clock: systemClock });
    await again.install([{ region: REGION, extents: [{ startBytes: 1024 * 1024, lengthBytes: 3 * 1024 * 1024 }] }]);
    const target = Buffer.alloc(data.length);
    await (await again.localAccess(grant({ range: { base: 0, lengthBytes: 3 * 1024 * 1024 } }))).read(100, target);
    expect(Buffer.compare(target, data)).toBe(0);
  });

  test('compare and swap stores only what was expected, and tells what was there', async () => {
    const { unit } = await world();
    const access = await unit.localAccess(grant());
    expect(await access.compareAndSwap(8, 0n, 2n ** 64n - 1n, { persist: true })).toBe(0n);
    expect(await access.compareAndSwap(8, 5n, 6n, { persist: true })).toBe(2n ** 64n - 1n);
    const target = Buffer.alloc(16);
    await access.read(0, target);
    expect(target.toString('hex')).toBe('0000000000000000ffffffffffffffff');
    expect(unit.status.writes).toBe(1);
    await expect(access.compareAndSwap(4, 0n, 1n)).rejects.toMatchObject(fails('BAD_ARGUMENT'));
    await expect(access.compareAndSwap(8, 0n, 2n ** 64n)).rejects.toMatchObject(fails('BAD_ARGUMENT'));
  });

  test('a guarded write stores nothing unless the guard holds, and is told so', async () => {
    const { unit } = await world();
    const access = await unit.localAccess(grant());
    await access.compareAndSwap(PAGE, 0n, 7n);
    const write = (text: string, expected: bigint, address = PAGE) =>
      access.write(0, [bytes(text)], { guard: { address, expected }, persist: true });
    await write('valid', 7n);
    await expect(write('stale', 6n)).rejects.toMatchObject(fails('FENCED'));
    await expect(write('where', 7n, 4 * PAGE)).rejects.toMatchObject(fails('OUT_OF_RANGE'));
    await expect(write('where', 7n, PAGE + 4)).rejects.toMatchObject(fails('BAD_ARGUMENT'));
    const target = Buffer.alloc(5);
    await access.read(0, target);
    expect(target.toString()).toBe('valid');
    expect(refused(unit)).toEqual([{ code: 'ERR_HOLDFAST_FENCED', peer: 'primary', count: 1 }]);
  });

  test.each([
    ['read', 'READ', ['write']],
    ['write', 'WRITE', ['read']],
    ['swap', 'SWAP', ['read']],
    ['watch', 'WATCH', ['write']],
  ] as const)('a key without the right may not %s', async (_what, command, rights) => {
    const { unit } = await world();
    const access = await unit.localAccess(grant({ rights: rights as readonly Right[] }));
    const run = {
      READ: () => access.read(0, new Uint8Array(8)),
      WRITE: () => access.write(0, [new Uint8Array(8)]),
      SWAP: () => access.compareAndSwap(0, 0n, 1n),
      WATCH: () => access.watch(0, 8, 0),
    }[command];
    await expect(run()).rejects.toMatchObject(fails('ACCESS'));
    await access.persist(0, 8);
    expect(refused(unit)).toEqual([{ code: 'ERR_HOLDFAST_ACCESS', peer: 'primary', count: 1 }]);
    expect(unit.status).toMatchObject({ reads: 0, writes: 0, persists: 1, refused: 1 });
  });

  test('nothing is served without tables, and nothing of one region under the key of another', async () => {
    const { unit } = await world();
    const access = await unit.localAccess(grant({ range: { base: PAGE, lengthBytes: PAGE } }));
    for (const [address, length] of [
      [0, 8],
      [PAGE - 1, 2],
      [2 * PAGE - 1, 2],
      [Number.MAX_SAFE_INTEGER - 8, 8],
      [-8, 8],
      [1.5, 8],
    ] as const)
      await expect(access.read(address, new Uint8Array(length))).rejects.toMatchObject(fails('OUT_OF_RANGE'));
    await unit.install([]);
    await expect(access.read(PAGE, new Uint8Array(8))).rejects.toMatchObject(fails('KEY_INVALID'));
    await expect(unit.localAccess(grant())).rejects.toMatchObject(fails('NOT_FOUND'));
  });
});

describe('durability', () => {
  test('an acknowledged write survives the power cut, and so does what a persist covers', async () => {
    const { unit, disk } = await world();
    const access = await unit.localAccess(grant());
    await access.write(0, [bytes('acknowledged')], { persist: true });
    await access.write(PAGE, [bytes('persisted')]);
    await access.persist(PAGE, 9);
    disk.crash();
    const found = Buffer.alloc(12);
    disk.peekDurable(8 * PAGE, found);
    expect(found.toString()).toBe('acknowledged');
    disk.peekDurable(9 * PAGE, found);
    expect(found.toString()).toBe('persisted\0\0\0');
  });

  test('a write is not acknowledged before it is durable', async () => {
    const { unit, memory } = await world();
    const access = await unit.localAccess(grant());
    memory.holds = true;
    const write = access.write(0, [bytes('x')], { persist: true });
    expect(await stateOf(write)).toBe('waits');
    expect(memory.held).toMatchObject([{ offset: 8 * PAGE, length: 1 }]);
    memory.held[0]!.end();
    await write;
  });

  test('a persist that failed fails its command and all later ones; reads go on, and the status says why', async () => {
    const { unit, disk } = await world();
    const access = await unit.localAccess(grant());
    disk.failPersists();
    await expect(access.write(0, [bytes('x')], { persist: true })).rejects.toMatchObject(fails('FLUSH_FAILED'));
    await expect(access.persist(0, 1)).rejects.toMatchObject(fails('FLUSH_FAILED'));
    await expect(unit.records.flush()).rejects.toMatchObject(fails('FLUSH_FAILED'));
    await access.read(0, new Uint8Array(8));
    expect(unit.status.failure).toMatchObject(fails('FLUSH_FAILED'));
  });

  test("the manager's records are durable after a flush, and lie outside all regions", async () => {
    const { unit, disk } = await world();
    await unit.records.write(512, bytes('records'));
    await unit.records.writeZeroes(514, 2);
    await unit.records.flush();
    disk.crash();
    const found = Buffer.alloc(7);
    disk.peekDurable(512, found);
    expect(found.toString()).toBe('re\0\0rds');
    expect(unit.records.geometry.sizeBytes).toBe(2 * PAGE);
    const table = { region: REGION, extents: [{ startBytes: PAGE, lengthBytes: PAGE }] };
    await expect(unit.install([table])).rejects.toMatchObject(fails('OUT_OF_RANGE'));
  });

  test('erased space reads as zeros, durably; what a table maps is not erased', async () => {
    const { unit, disk } = await world();
    const access = await unit.localAccess(grant());
    await access.write(0, [new Uint8Array(2 * PAGE).fill(7)], { persist: true });
    const extent = { startBytes: 8 * PAGE, lengthBytes: PAGE };
    await expect(unit.erase(extent)).rejects.toMatchObject(fails('BUSY'));
    for (const [startBytes, lengthBytes] of [
      [PAGE, PAGE],
      [15 * PAGE, 2 * PAGE],
      [8 * PAGE, Number.NaN],
    ] as const)
      await expect(unit.erase({ startBytes, lengthBytes })).rejects.toMatchObject(fails('OUT_OF_RANGE'));
    await unit.install([]);
    await unit.erase(extent);
    disk.crash();
    const found = Buffer.alloc(2 * PAGE);
    disk.peekDurable(8 * PAGE, found);
    expect(found.equals(Buffer.concat([Buffer.alloc(PAGE), Buffer.alloc(PAGE, 7)]))).toBe(true);
  });
});

describe('revocation', () => {
  test('resolves when no command under the keys runs any more, and lets none begin after the call', async () => {
    const { unit, memory } = await world();
    const old = await unit.localAccess(grant());
    const other = await unit.localAccess(grant({ peer: 'backup' }));
    memory.holds = true;
    const running = old.write(0, [bytes('late')], { persist: true });
    const revoked = unit.revoke({ region: REGION, right: 'write', exceptPeer: 'backup' });
    await expect(old.write(0, [bytes('zombie')])).rejects.toMatchObject(fails('KEY_INVALID'));
    expect([await stateOf(revoked), await stateOf(running)]).toEqual(['waits', 'waits']);
    const again = unit.revoke({ region: REGION, peer: 'primary' });
    const aborted = unit.revoke({ region: REGION, peer: 'primary' }, AbortSignal.timeout(1));
    await expect(aborted).rejects.toMatchObject(fails('ABORTED'));
    expect(await stateOf(again)).toBe('waits');
    const order: string[] = [];
    void running.then(() => order.push('command'));
    void revoked.then(() => order.push('revoked'));
    memory.held[0]!.end();
    expect([await revoked, await again]).toEqual([1, 0]);
    await running;
    expect(order).toEqual(['command', 'revoked']);
    memory.holds = false;
    const target = Buffer.alloc(4);
    await other.read(0, target);
    expect(target.toString()).toBe('late');
  });

  test('waits for a command under a key whose session has ended meanwhile', async () => {
    const { unit, memory } = await world();
    const access = await unit.localAccess(grant());
    memory.holds = true;
    const running = access.persist(0, 8);
    unit.endLocal('primary');
    expect(access.open).toBe(false);
    await expect(access.read(0, new Uint8Array(8))).rejects.toMatchObject(fails('PEER_LOST'));
    const revoked = unit.revoke({ region: REGION });
    expect(await stateOf(revoked)).toBe('waits');
    memory.held[0]!.end();
    expect(await revoked).toBe(0);
    await running;
  });

  test('a table without the region ends its keys, and waits for their commands', async () => {
    const { unit, memory } = await world();
    const access = await unit.localAccess(grant());
    memory.holds = true;
    const running = access.write(0, [bytes('x')], { persist: true });
    const installed = unit.install([]);
    expect(await stateOf(installed)).toBe('waits');
    memory.held[0]!.end();
    await Promise.all([installed, running]);
  });

  test('a key of one session is of no use on another, and a new session does not bring an old key back', async () => {
    const { unit } = await world();
    const given = grant();
    const access = await unit.localAccess(given);
    const thief = await unit.localAccess(grant({ peer: 'thief' }));
    unit.endLocal('primary');
    await unit.localAccess(grant());
    await expect(access.read(0, new Uint8Array(8))).rejects.toMatchObject(fails('PEER_LOST'));
    await expect(unit.grant({ ...grant(), peer: 'nobody' })).rejects.toMatchObject(fails('PEER_LOST'));
    expect(thief.open).toBe(true);
    expect(unit.status.keys).toBe(2);
  });
});

describe('watches', () => {
  test('a watch is answered by a store into its range, not by one beside it', async () => {
    const { unit } = await world();
    const access = await unit.localAccess(grant());
    const since = await access.watch(0, 64, 0);
    const watch = access.watch(64, 64, since);
    await access.write(0, [new Uint8Array(64)]);
    await access.write(128, [new Uint8Array(64)]);
    await access.compareAndSwap(64, 1n, 2n);
    expect(await stateOf(watch)).toBe('waits');
    await access.compareAndSwap(120, 0n, 2n);
    expect(await watch).toBe(since + 3);
  });

  test('a watch that comes later than the store is answered at once; one beside what was stored is not', async () => {
    const { unit } = await world();
    const access = await unit.localAccess(grant());
    const since = await access.watch(0, 64, 0);
    await access.write(100, [new Uint8Array(28)]);
    expect(await access.watch(64, 64, since)).toBe(since + 1);
    expect(await stateOf(access.watch(64, 64, since + 1))).toBe('waits');
    expect(await stateOf(access.watch(0, 100, since))).toBe('waits');
    // More stores than are remembered; a number of an earlier process.
    for (let count = 0; count < 70; count += 1) await access.write(1000, [new Uint8Array(1)]);
    expect(await access.watch(2000, 1, since)).toBe(since + 71);
    expect(await access.watch(2000, 1, 2 ** 40)).toBe(since + 71);
  });

  test('watches end with their key; one too many lets the oldest go without cause', async () => {
    const { unit } = await world({ limits: { watchesPerSessionMax: 2 } });
    const access = await unit.localAccess(grant());
    const since = await access.watch(0, 64, 0);
    const [first, second, third] = [0, 1, 2].map((line) => access.watch(64 * line, 64, since));
    expect([await stateOf(first!), await stateOf(second!), await stateOf(third!)]).toEqual([
      String(since),
      'waits',
      'waits',
    ]);
    const ended = expect(Promise.all([second, third])).rejects.toMatchObject(fails('KEY_INVALID'));
    await unit.revoke({ region: REGION });
    await ended;
    await expect(third).rejects.toMatchObject(fails('KEY_INVALID'));
  });

  test('to give up a watch is to wait no more', async () => {
    const { unit } = await world();
    const access = await unit.localAccess(grant());
    const since = await access.watch(0, 64, 0);
    const abort = new AbortController();
    const watch = access.watch(0, 64, since, { signal: abort.signal });
    abort.abort();
    await expect(watch).rejects.toMatchObject(fails('ABORTED'));
    for (const wrong of [-1, 1.5, Number.NaN])
      await expect(access.watch(0, 64, wrong)).rejects.toMatchObject(fails('BAD_ARGUMENT'));
    await expect(access.watch(0, 64, since, { signal: abort.signal })).rejects.toMatchObject(fails('ABORTED'));
  });
});

describe('limits and the audit log', () => {
  test('no more commands of a session wait to be durable than the limit; nothing of one too many is stored', async () => {
    const { unit, memory } = await world({ limits: { persistsPerSessionMax: 2 } });
    const access = await unit.localAccess(grant());
    const other = await unit.localAccess(grant({ peer: 'backup' }));
    memory.holds = true;
    const running = [0, 1].map((address) => access.write(address, [bytes('x')], { persist: true }));
    await expect(access.write(2, [bytes('x')], { persist: true })).rejects.toMatchObject(fails('QUEUE_FULL'));
    await expect(access.compareAndSwap(8, 0n, 1n, { persist: true })).rejects.toMatchObject(fails('QUEUE_FULL'));
    await expect(access.persist(2, 1)).rejects.toMatchObject(fails('QUEUE_FULL'));
    const target = Buffer.alloc(16);
    await other.read(0, target);
    expect(target.toString('hex')).toBe('78780000000000000000000000000000');
    const others = other.persist(0, 8);
    for (const { end } of memory.held) end();
    await Promise.all([...running, others]);
    memory.holds = false;
    await access.persist(0, 1);
  });

  test('grants, revocations and refusals are told, counted where they stand, bounded, and without a key', async () => {
    const told: (HoldfastErrorCode | undefined)[] = [];
    const { unit } = await world({ limits: { auditMax: 5 }, onAudit: ({ code }) => told.push(code) });
    const given = grant({ rights: ['read'] });
    const access = await unit.localAccess(given);
    for (let count = 0; count < 50; count += 1)
      await expect(access.write(0, [bytes('x')])).rejects.toMatchObject(fails('ACCESS'));
    await unit.revoke({ region: REGION });
    await expect(access.read(0, new Uint8Array(1))).rejects.toMatchObject(fails('KEY_INVALID'));
    const events = unit.auditEvents();
    expect(
      events.map(({ kind, peer, region, code, reason, count }) => [kind, peer, region, code, reason, count]),
    ).toEqual([
      ['installed', undefined, undefined, undefined, '1 regions', 1],
      ['granted', 'primary', REGION, undefined, 'to read', 1],
      ['refused', 'primary', REGION, 'ERR_HOLDFAST_ACCESS', 'no right to write', 50],
      ['revoked', 'primary', REGION, undefined, 'by the manager', 1],
      [
        'refused',
        'primary',
        undefined,
        'ERR_HOLDFAST_KEY_INVALID',
        'a key that is not known: invented, revoked, or of a session that has ended',
        1,
      ],
    ]);
    expect(events[2]!.lastMs).toBeGreaterThanOrEqual(events[2]!.firstMs);
    expect(told.length).toBe(54);
    expect(JSON.stringify(events)).not.toContain(given.key);
    await unit.localAccess(grant({ peer: 'another' }));
    expect(unit.auditEvents().length).toBe(5);
    expect(unit.auditEvents()[0]).toMatchObject({ kind: 'granted' });
  });

  test.each([
    ['no room for records', { recordsBytes: 16 * PAGE }],
    ['records that are not whole pages', { recordsBytes: 100 }],
  ])('a unit cannot have %s', async (_what, options) => {
    await expect(world(options)).rejects.toMatchObject(fails('BAD_ARGUMENT'));
  });

  test('closed, it waits for what runs, ends every watch and serves nothing', async () => {
    const { unit, memory } = await world();
    const access = await unit.localAccess(grant());
    const since = await access.watch(0, 64, 0);
    const watch = expect(access.watch(0, 64, since)).rejects.toMatchObject(fails('KEY_INVALID'));
    memory.holds = true;
    const running = access.persist(0, 8);
    const closed = unit.close();
    await watch;
    expect(await stateOf(closed)).toBe('waits');
    memory.held[0]!.end();
    await Promise.all([running, closed]);
    await expect(access.read(0, new Uint8Array(1))).rejects.toMatchObject(fails('PEER_LOST'));
    await expect(unit.install([])).rejects.toMatchObject(fails('CLOSED'));
    await expect(unit.revoke({ region: REGION })).rejects.toMatchObject(fails('CLOSED'));
  });
});
