import { beforeEach, describe, expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { type ManagerAuditEvent, MemoryManager, type MemoryManagerOptions } from '../../lib/checkpoint/manager.ts';
import { ACCESS_ENTRIES_MAX, SPACE_UNIT_BYTES } from '../../lib/checkpoint/region-directory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { FakeControl, FakeMemory, FakeUnit, idle, KIB, RECORDS_BYTES, storedDirectory } from './fake-unit.ts';

const file = (name: string) => new URL(`transcripts/${name}.txt`, import.meta.url).pathname;
const PEERS = ['ann', 'ben', 'cyd'] as const;
const WHOLE = ['read', 'write'] as const;
const READ = ['read'] as const;

let memory: FakeMemory;
let unit: FakeUnit;
let control: FakeControl;
let manager: MemoryManager;
let events: ManagerAuditEvent[];

async function start(options: Partial<MemoryManagerOptions> = {}): Promise<void> {
  control = new FakeControl(unit);
  events = [];
  manager = new MemoryManager({
    environment: { random: new SimulatedRandom(unit.lines.length + 1, 'manager') },
    control,
    audit: (event) => events.push(event),
    ...options,
  });
  await manager.open();
}

beforeEach(async () => {
  memory = new FakeMemory(RECORDS_BYTES + 16 * SPACE_UNIT_BYTES);
  unit = new FakeUnit(memory, PEERS);
  await MemoryManager.format(new FakeControl(unit), { blank: true });
  await start();
});

function rejects(code: string) {
  return expect.objectContaining({ code });
}

async function refused(work: Promise<unknown>, code: string): Promise<void> {
  const before = events.length;
  await expect(work).rejects.toEqual(rejects(code));
  expect(events.slice(before)).toMatchObject([{ event: 'refused', reason: code }]);
}

/** In a transcript. */
async function tell(what: string, work: () => Promise<unknown>): Promise<void> {
  unit.say(`-- ${what}`);
  try {
    await work();
    unit.say('  done');
  } catch (error) {
    unit.say(`  ${error instanceof HoldfastError ? error.code : String(error)}`);
  }
  await idle();
}

describe('as transcripts', () => {
  test('a region from its creation to its end', async () => {
    unit.lines.length = 0;
    await tell('ann creates log, 100 KiB', () => manager.create('ann', { name: 'log', sizeBytes: 100 * KIB }));
    await tell('ann opens it', () => manager.openRegion('ann', { name: 'log', rights: [...WHOLE] }));
    await tell('ben opens it', () => manager.openRegion('ben', { name: 'log', rights: [...READ] }));
    await tell('ann lets ben read', () => manager.allow('ann', { name: 'log', peer: 'ben', rights: [...READ] }));
    await tell('ann lets ben write 8 KiB at 4 KiB', () =>
      manager.allow('ann', {
        name: 'log',
        peer: 'ben',
        rights: ['write'],
        range: { base: 4 * KIB, lengthBytes: 8 * KIB },
      }),
    );
    await tell('ben opens it to read', () => manager.openRegion('ben', { name: 'log', rights: [...READ] }));
    await tell('ben opens his range to write', () =>
      manager.openRegion('ben', { name: 'log', rights: ['write'], range: { base: 4 * KIB, lengthBytes: 8 * KIB } }),
    );
    await tell('ann creates other, 64 KiB', () => manager.create('ann', { name: 'other', sizeBytes: 64 * KIB }));
    await tell('ann lets log grow to 200 KiB', () => manager.grow('ann', { name: 'log', sizeBytes: 200 * KIB }));
    await tell('ann denies ben to write', () => manager.deny('ann', { name: 'log', peer: 'ben', rights: ['write'] }));
    await tell('ben deletes it', () => manager.delete('ben', { name: 'log' }));
    await tell('ann deletes it', () => manager.delete('ann', { name: 'log' }));
    await expect(`${unit.lines.join('\n')}\n`).toMatchFileSnapshot(file('manager-region'));
  });

  test('a take-over, and two that race', async () => {
    await manager.create('ann', { name: 'log', sizeBytes: 64 * KIB });
    for (const peer of ['ben', 'cyd']) await manager.allow('ann', { name: 'log', peer, rights: [...WHOLE] });
    await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
    await manager.openRegion('cyd', { name: 'log', rights: [...READ] });
    unit.lines.length = 0;
    await tell('ben takes over', () => manager.takeOver('ben', { name: 'log', rights: [...WHOLE] }));
    await tell('ann and cyd take over at once', () =>
      Promise.all(['ann', 'cyd'].map((peer) => manager.takeOver(peer, { name: 'log', rights: [...WHOLE] }))),
    );
    await expect(`${unit.lines.join('\n')}\n`).toMatchFileSnapshot(file('manager-take-over'));
  });

  test('the manager starts again, and the unit with it', async () => {
    await manager.create('ann', { name: 'log', sizeBytes: 64 * KIB });
    await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
    unit.lines.length = 0;
    await tell('the manager starts again', async () => {
      await manager.close();
      await start();
    });
    const { lines } = unit;
    unit = new FakeUnit(memory, PEERS);
    unit.lines.push(...lines);
    await tell('both start again', async () => {
      await manager.close();
      await start();
    });
    await expect(`${unit.lines.join('\n')}\n`).toMatchFileSnapshot(file('manager-restart'));
  });
});

describe('access', () => {
  beforeEach(() => manager.create('ann', { name: 'log', sizeBytes: 64 * KIB }));

  test('who is on no list is refused, and it is told', async () => {
    for (const rights of [[...READ], [...WHOLE]])
      await refused(manager.openRegion('ben', { name: 'log', rights }), 'ERR_HOLDFAST_ACCESS');
    await refused(manager.takeOver('ben', { name: 'log', rights: [...WHOLE] }), 'ERR_HOLDFAST_ACCESS');
    await refused(manager.grow('ben', { name: 'log', sizeBytes: 128 * KIB }), 'ERR_HOLDFAST_ACCESS');
    await refused(manager.delete('ben', { name: 'log' }), 'ERR_HOLDFAST_ACCESS');
    await refused(manager.accessList('ben', { name: 'log' }), 'ERR_HOLDFAST_ACCESS');
    const asked = { name: 'log', peer: 'ben', rights: [...WHOLE] };
    await refused(manager.allow('ben', asked), 'ERR_HOLDFAST_ACCESS');
    await refused(manager.deny('ben', asked), 'ERR_HOLDFAST_ACCESS');
    expect(unit.keys.size).toBe(0);
    expect(await manager.list('ben', {})).toEqual({ regions: [], more: false });
  });

  test('a right in a range is that right, in that range', async () => {
    const range = { base: 4 * KIB, lengthBytes: 4 * KIB };
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: ['write'], range });
    const open = (rights: ('read' | 'write')[], base: number, lengthBytes: number) =>
      manager.openRegion('ben', { name: 'log', rights, range: { base, lengthBytes } });
    await refused(open(['read'], 4 * KIB, 1), 'ERR_HOLDFAST_ACCESS');
    await refused(open(['write'], 4 * KIB - 1, 2), 'ERR_HOLDFAST_ACCESS');
    await refused(open(['write'], 8 * KIB - 1, 2), 'ERR_HOLDFAST_ACCESS');
    await refused(open(['write', 'read'], 4 * KIB, 1), 'ERR_HOLDFAST_ACCESS');
    await refused(open(['write'], 64 * KIB, 1), 'ERR_HOLDFAST_OUT_OF_RANGE');
    const context = await open(['write'], 8 * KIB - 1, 1);
    expect(context).toMatchObject({ unit: 'unit', sizeBytes: 64 * KIB, rights: ['write'], epoch: 1 });
    expect(unit.keys.get(context.key)).toMatchObject({ peer: 'ben', range: { base: 8 * KIB - 1, lengthBytes: 1 } });
  });

  test('who may write a cursor only could take over, and so fence everybody else', async () => {
    const range = { base: 0, lengthBytes: 4 * KIB };
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: [...WHOLE], range });
    const { key } = await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
    await refused(manager.takeOver('ben', { name: 'log', rights: [...WHOLE], range }), 'ERR_HOLDFAST_ACCESS');
    expect(unit.keys.has(key)).toBe(true);
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: ['read'] });
    await refused(manager.takeOver('ben', { name: 'log', rights: ['read'] }), 'ERR_HOLDFAST_ACCESS');
  });

  test('allowing adds and denying takes away; keys with what was taken are revoked', async () => {
    const range = { base: 0, lengthBytes: 4 * KIB };
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: ['write'] });
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: ['read'] });
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: ['write'], range });
    await manager.allow('ann', { name: 'log', peer: 'cyd', rights: ['write'] });
    expect((await manager.accessList('ann', { name: 'log' })).access).toEqual([
      { peer: 'ben', rights: ['read', 'write'] },
      { peer: 'ben', rights: ['write'], range },
      { peer: 'cyd', rights: ['write'] },
    ]);
    const reads = await manager.openRegion('ben', { name: 'log', rights: ['read'] });
    const writes = await manager.openRegion('ben', { name: 'log', rights: ['write'] });
    const others = await manager.openRegion('cyd', { name: 'log', rights: ['write'] });
    const outside = { base: 8 * KIB, lengthBytes: 1 };
    await manager.deny('ann', { name: 'log', peer: 'ben', rights: ['write'], range: outside });
    expect((await manager.accessList('ann', { name: 'log' })).access).toEqual([
      { peer: 'ben', rights: ['read'] },
      { peer: 'ben', rights: ['write'], range },
      { peer: 'cyd', rights: ['write'] },
    ]);
    expect([reads, writes, others].map(({ key }) => unit.keys.has(key))).toEqual([true, false, true]);
    await refused(manager.openRegion('ben', { name: 'log', rights: ['write'] }), 'ERR_HOLDFAST_ACCESS');
  });

  test('the owner cannot be taken off the list that the owner is not on', async () => {
    const asked = { name: 'log', peer: 'ann', rights: [...WHOLE] };
    await refused(manager.deny('ann', asked), 'ERR_HOLDFAST_BAD_ARGUMENT');
    await refused(manager.allow('ann', asked), 'ERR_HOLDFAST_BAD_ARGUMENT');
  });

  test('an administrator changes regions, and uses them only if a list says so', async () => {
    await manager.close();
    await start({ administrators: ['cyd'], creators: ['ann'] });
    expect((await manager.list('cyd', {})).regions).toMatchObject([{ name: 'log', owner: 'ann' }]);
    await refused(manager.openRegion('cyd', { name: 'log', rights: [...READ] }), 'ERR_HOLDFAST_ACCESS');
    await manager.allow('cyd', { name: 'log', peer: 'cyd', rights: [...READ] });
    await manager.openRegion('cyd', { name: 'log', rights: [...READ] });
    await refused(manager.create('cyd', { name: 'mine', sizeBytes: 1 }), 'ERR_HOLDFAST_ACCESS');
    await manager.delete('cyd', { name: 'log' });
    await refused(manager.openRegion('ann', { name: 'log', rights: [...READ] }), 'ERR_HOLDFAST_NOT_FOUND');
  });

  test('a peer without a session to the unit gets no key', async () => {
    unit.sessions.delete('ann');
    await refused(manager.openRegion('ann', { name: 'log', rights: [...READ] }), 'ERR_HOLDFAST_PEER_LOST');
  });

  test('who takes over keeps the keys it had, and readers keep theirs', async () => {
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: [...READ] });
    const own = await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
    const reader = await manager.openRegion('ben', { name: 'log', rights: [...READ] });
    expect(await manager.takeOver('ann', { name: 'log', rights: [...WHOLE] })).toMatchObject({ epoch: 2 });
    expect([unit.keys.has(own.key), unit.keys.has(reader.key)]).toEqual([true, true]);
  });

  test('a key that is given back opens nothing; one of another peer is not touched', async () => {
    const { region, key } = await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
    await manager.closeRegion('ben', { region, key });
    expect(unit.keys.has(key)).toBe(true);
    await manager.closeRegion('ann', { region, key });
    expect(unit.keys.has(key)).toBe(false);
    await manager.closeRegion('ann', { region, key });
  });

  test('nothing of a key comes into the audit log', async () => {
    const { key } = await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
    const taken = await manager.takeOver('ann', { name: 'log', rights: [...WHOLE] });
    expect(events.map(({ event }) => event)).toEqual(['created', 'opened', 'taken-over']);
    for (const each of [key, taken.key]) expect(JSON.stringify(events)).not.toContain(each.slice(0, 8));
  });
});

describe('limits', () => {
  test('names that cannot be are refused before anything changes', async () => {
    const { sequence } = (await storedDirectory(memory))!;
    for (const name of ['', 'x'.repeat(65), 'a/b', 'a b', 'a\0', '\u00e4', '../../x\n', "a'; --"])
      await expect(manager.create('ann', { name, sizeBytes: 1 })).rejects.toEqual(rejects('ERR_HOLDFAST_BAD_ARGUMENT'));
    for (const sizeBytes of [0, -1, 1.5, Number.NaN, 2 ** 60])
      await expect(manager.create('ann', { name: 'a', sizeBytes })).rejects.toEqual(
        rejects('ERR_HOLDFAST_BAD_ARGUMENT'),
      );
    expect((await storedDirectory(memory))!.sequence).toBe(sequence);
  });

  test('names that look like something else are just names', async () => {
    for (const name of ['__proto__', 'constructor', '..', '.', '-', 'toString'])
      await manager.create('ann', { name, sizeBytes: 1 });
    expect((await manager.list('ann', {})).regions).toHaveLength(6);
    await refused(manager.create('ben', { name: '__proto__', sizeBytes: 1 }), 'ERR_HOLDFAST_DUPLICATE_NAME');
    await manager.delete('ann', { name: '__proto__' });
    await refused(manager.openRegion('ann', { name: '__proto__', rights: [...READ] }), 'ERR_HOLDFAST_NOT_FOUND');
    expect((await manager.list('ann', { after: 'constructor' })).regions.map(({ name }) => name)).toEqual(['toString']);
  });

  test('space that is not there is told, with what there is', async () => {
    await manager.create('ann', { name: 'a', sizeBytes: 10 * SPACE_UNIT_BYTES });
    await refused(manager.create('ann', { name: 'b', sizeBytes: 7 * SPACE_UNIT_BYTES }), 'ERR_HOLDFAST_NO_SPACE');
    await refused(manager.grow('ann', { name: 'a', sizeBytes: 17 * SPACE_UNIT_BYTES }), 'ERR_HOLDFAST_NO_SPACE');
    await manager.grow('ann', { name: 'a', sizeBytes: 16 * SPACE_UNIT_BYTES });
    await refused(manager.grow('ann', { name: 'a', sizeBytes: 1 }), 'ERR_HOLDFAST_BAD_ARGUMENT');
    expect(manager.status().space).toEqual({ freeBytes: 0, erasingBytes: 0, regionBytes: 16 * SPACE_UNIT_BYTES });
  });

  test('an owner has so many regions and bytes, and no more', async () => {
    await manager.close();
    await start({ regionsPerOwnerMax: 2, bytesPerOwnerMax: 100 * KIB });
    await manager.create('ann', { name: 'a', sizeBytes: 60 * KIB });
    await refused(manager.create('ann', { name: 'b', sizeBytes: 50 * KIB }), 'ERR_HOLDFAST_NO_SPACE');
    await manager.create('ann', { name: 'b', sizeBytes: 40 * KIB });
    await refused(manager.create('ann', { name: 'c', sizeBytes: 1 }), 'ERR_HOLDFAST_NO_SPACE');
    await refused(manager.grow('ann', { name: 'b', sizeBytes: 41 * KIB }), 'ERR_HOLDFAST_NO_SPACE');
    await manager.create('ben', { name: 'c', sizeBytes: 100 * KIB });
  });

  test('an access list is bounded', async () => {
    await manager.create('ann', { name: 'a', sizeBytes: 1 });
    const allow = (peer: string) => manager.allow('ann', { name: 'a', peer, rights: [...READ] });
    for (let number = 0; number < ACCESS_ENTRIES_MAX; number += 1) await allow(`peer-${number}`);
    await refused(allow('one-more'), 'ERR_HOLDFAST_NO_SPACE');
    await allow('peer-0');
  });

  test('one peer can have so many requests waiting, and the others are still served', async () => {
    await manager.create('ann', { name: 'a', sizeBytes: 1 });
    const asked = Array.from({ length: 40 }, () => manager.list('ben', {}));
    const outcomes = asked.map((work) => work.then(() => 'served').catch(({ code }) => code));
    await manager.openRegion('ann', { name: 'a', rights: [...READ] });
    const counted = (await Promise.all(outcomes)).filter((outcome) => outcome === 'ERR_HOLDFAST_BUSY');
    expect(counted).toHaveLength(24);
  });

  test('a list of many regions comes in pages', async () => {
    memory = new FakeMemory(RECORDS_BYTES + 200 * SPACE_UNIT_BYTES);
    unit = new FakeUnit(memory, PEERS);
    await MemoryManager.format(new FakeControl(unit), { blank: true });
    await start();
    for (let number = 0; number < 150; number += 1)
      await manager.create('ann', { name: `r${String(number).padStart(3, '0')}`, sizeBytes: 1 });
    const found: string[] = [];
    for (let more = true; more; ) {
      const after = found.at(-1);
      const page = await manager.list('ann', after === undefined ? {} : { after });
      found.push(...page.regions.map(({ name }) => name));
      more = page.more;
    }
    expect(found).toHaveLength(150);
    expect(new Set(found).size).toBe(150);
  });
});

describe('space', () => {
  test('what one peer has left is zeros before another has it', async () => {
    await manager.create('ann', { name: 'a', sizeBytes: 16 * SPACE_UNIT_BYTES });
    const { key } = await manager.openRegion('ann', { name: 'a', rights: [...WHOLE] });
    await unit.store(key, 0, 7, 16 * SPACE_UNIT_BYTES);
    await manager.delete('ann', { name: 'a' });
    expect(await unit.store(key, 0, 8)).toBe(false);
    await refused(manager.create('ben', { name: 'b', sizeBytes: 16 * SPACE_UNIT_BYTES }), 'ERR_HOLDFAST_NO_SPACE');
    await idle();
    await manager.create('ben', { name: 'b', sizeBytes: 16 * SPACE_UNIT_BYTES });
    const bytes = await memory.bytes(RECORDS_BYTES, 16 * SPACE_UNIT_BYTES);
    expect(bytes.every((byte) => byte === 0)).toBe(true);
  });

  test('memory that is not known to be blank is zeroed first', async () => {
    await memory.device.write(RECORDS_BYTES + 100, Uint8Array.of(1, 2, 3));
    await MemoryManager.format(new FakeControl(unit));
    await start();
    expect(manager.status().space).toMatchObject({ freeBytes: 0, erasingBytes: 16 * SPACE_UNIT_BYTES });
    await idle();
    expect(manager.status().space).toMatchObject({ freeBytes: 16 * SPACE_UNIT_BYTES, erasingBytes: 0 });
    expect(await memory.bytes(RECORDS_BYTES + 100, 3)).toEqual(new Uint8Array(3));
  });

  test('memory that has been added is zeroed, then given out; memory that is missing is told', async () => {
    await manager.create('ann', { name: 'a', sizeBytes: 16 * SPACE_UNIT_BYTES });
    const larger = new FakeMemory(RECORDS_BYTES + 20 * SPACE_UNIT_BYTES);
    await larger.device.write(0, await memory.bytes(0, RECORDS_BYTES));
    await larger.device.write(RECORDS_BYTES + 17 * SPACE_UNIT_BYTES, Uint8Array.of(1));
    unit = new FakeUnit(larger, PEERS);
    await start();
    await idle();
    await manager.create('ben', { name: 'b', sizeBytes: 4 * SPACE_UNIT_BYTES });
    expect((await larger.bytes(RECORDS_BYTES + 17 * SPACE_UNIT_BYTES, 1))[0]).toBe(0);
    const smaller = new FakeMemory(RECORDS_BYTES + 19 * SPACE_UNIT_BYTES);
    await smaller.device.write(0, await larger.bytes(0, RECORDS_BYTES));
    unit = new FakeUnit(smaller, PEERS);
    await expect(start()).rejects.toEqual(rejects('ERR_HOLDFAST_METADATA_MISMATCH'));
  });

  test('a unit that was never formatted is not formatted by the way', async () => {
    unit = new FakeUnit(new FakeMemory(memory.sizeBytes), PEERS);
    await expect(start()).rejects.toEqual(rejects('ERR_HOLDFAST_METADATA_MISSING'));
    expect(control.steps).toEqual(['flush']);
  });

  test('a space that could not be zeroed is told, not given out, and zeroed later', async () => {
    await manager.create('ann', { name: 'a', sizeBytes: 16 * SPACE_UNIT_BYTES });
    control.failures.push({ step: 'erase', error: new HoldfastError('ERR_HOLDFAST_FLUSH_FAILED', 'it failed') });
    await manager.delete('ann', { name: 'a' });
    await idle();
    expect(manager.status()).toMatchObject({
      space: { freeBytes: 0 },
      problem: { code: 'ERR_HOLDFAST_FLUSH_FAILED' },
    });
    await manager.list('ann', {});
    await idle();
    expect(manager.status()).toMatchObject({ space: { freeBytes: 16 * SPACE_UNIT_BYTES }, problem: undefined });
  });
});

describe('what fails', () => {
  const lost = new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'gone');

  beforeEach(() => manager.create('ann', { name: 'log', sizeBytes: 64 * KIB }));

  test('a directory whose write failed is read again: the change has happened or not', async () => {
    for (const skip of [0, 1]) {
      const before = (await manager.list('ann', {})).regions.length;
      control.failures.push({ step: 'write', error: lost, skip });
      await refused(manager.create('ann', { name: `more-${skip}`, sizeBytes: 1 }), 'ERR_HOLDFAST_PEER_LOST');
      expect((await manager.list('ann', {})).regions).toHaveLength(before + skip);
      expect(unit.tables).toHaveLength(before + skip);
    }
  });

  test('no key is given before a revocation that is owed', async () => {
    await manager.allow('ann', { name: 'log', peer: 'ben', rights: [...WHOLE] });
    const { key } = await manager.openRegion('ben', { name: 'log', rights: [...WHOLE] });
    control.failures.push({ step: 'revoke', error: lost }, { step: 'revoke', error: lost });
    await refused(manager.deny('ann', { name: 'log', peer: 'ben', rights: [...WHOLE] }), 'ERR_HOLDFAST_PEER_LOST');
    await refused(manager.openRegion('ann', { name: 'log', rights: [...WHOLE] }), 'ERR_HOLDFAST_PEER_LOST');
    expect(unit.keys.has(key)).toBe(true);
    await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
    expect(unit.keys.has(key)).toBe(false);
  });

  test('a key whose grant has no answer is revoked', async () => {
    const grant = control.grant.bind(control);
    control.grant = async (given) => {
      await grant(given);
      throw lost;
    };
    await refused(manager.openRegion('ann', { name: 'log', rights: [...WHOLE] }), 'ERR_HOLDFAST_PEER_LOST');
    expect(unit.keys.size).toBe(1);
    await manager.list('ann', {});
    expect(unit.keys.size).toBe(0);
  });

  test('tables that a unit has lost without a word are installed again', async () => {
    unit.tables = undefined;
    await refused(manager.openRegion('ann', { name: 'log', rights: [...WHOLE] }), 'ERR_HOLDFAST_NOT_FOUND');
    await manager.openRegion('ann', { name: 'log', rights: [...WHOLE] });
  });

  test('after the end nothing is done any more', async () => {
    await manager.close();
    await refused(manager.list('ann', {}), 'ERR_HOLDFAST_CLOSED');
    await manager.close();
  });
});

describe('what a peer may, asked without a turn', () => {
  test('is known also while the directory is being written', async () => {
    await manager.create('ann', { name: 'log', sizeBytes: 64 * KIB });
    const answers = new Set<boolean>();
    let isOver = false;
    const written = manager.allow('ann', { name: 'log', peer: 'ben', rights: [...READ] }).then(() => {
      isOver = true;
    });
    while (!isOver) {
      answers.add(manager.allows('ann', 'log', 'write') && manager.has('log'));
      await Promise.resolve();
    }
    await written;
    expect([...answers]).toEqual([true]);
    expect([manager.allows('ben', 'log', 'read'), manager.allows('ben', 'log', 'write')]).toEqual([true, false]);
  });

  test('is not said before the directory has been read', () => {
    const early = new MemoryManager({ environment: { random: new SimulatedRandom(1, 'early') }, control });
    expect(() => early.allows('ann', 'log', 'read')).toThrow(rejects('ERR_HOLDFAST_BUSY'));
  });
});
