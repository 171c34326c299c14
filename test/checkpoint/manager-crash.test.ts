/** The manager is killed at every step of every operation: the old state or the new one is left, and nothing between. */
import { describe, expect, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { MemoryManager } from '../../lib/checkpoint/manager.ts';
import { type Directory, holesIn, SPACE_UNIT_BYTES, tablesOf } from '../../lib/checkpoint/region-directory.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { CrashRecorder } from '../../lib/testing/crash-recorder.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import {
  type Death,
  FakeControl,
  FakeMemory,
  FakeUnit,
  idle,
  KIB,
  RECORDS_BYTES,
  storedDirectory,
  type When,
} from './fake-unit.ts';

const UNITS = 8;
const PEERS = ['ann', 'ben', 'cyd'];
const BOTH = ['read', 'write'] as const;
const LOG_BYTES = 2 * SPACE_UNIT_BYTES;

function managerOf(control: FakeControl): MemoryManager {
  return new MemoryManager({ environment: { random: new SimulatedRandom(7, 'keys') }, control });
}

/** `log` of ann, full of her data, which ben may use and has a key for; `old`, likewise, in two pieces. */
async function world(): Promise<FakeUnit> {
  const memory = new FakeMemory(RECORDS_BYTES + UNITS * SPACE_UNIT_BYTES);
  const unit = new FakeUnit(memory, PEERS);
  await MemoryManager.format(new FakeControl(unit), { blank: true });
  const manager = new MemoryManager({
    environment: { random: new SimulatedRandom(1, 'regions') },
    control: new FakeControl(unit),
  });
  await manager.open();
  await manager.create('ann', { name: 'old', sizeBytes: SPACE_UNIT_BYTES });
  await manager.create('ann', { name: 'log', sizeBytes: LOG_BYTES });
  await manager.grow('ann', { name: 'old', sizeBytes: 2 * SPACE_UNIT_BYTES });
  await manager.allow('ann', { name: 'log', peer: 'ben', rights: [...BOTH] });
  for (const name of ['old', 'log']) {
    const { key } = await manager.openRegion('ann', { name, rights: [...BOTH] });
    await unit.store(key, 0, 7, LOG_BYTES);
  }
  await manager.openRegion('ben', { name: 'log', rights: [...BOTH] });
  await manager.close();
  return unit;
}

type Operate = (manager: MemoryManager) => Promise<unknown>;

const operations: Record<string, Operate> = {
  create: (manager) => manager.create('ben', { name: 'new', sizeBytes: 3 * SPACE_UNIT_BYTES }),
  open: (manager) => manager.openRegion('ben', { name: 'log', rights: [...BOTH] }),
  grow: (manager) => manager.grow('ann', { name: 'log', sizeBytes: 4 * SPACE_UNIT_BYTES }),
  delete: (manager) => manager.delete('ann', { name: 'old' }),
  allow: (manager) => manager.allow('ann', { name: 'log', peer: 'cyd', rights: [...BOTH] }),
  deny: (manager) => manager.deny('ann', { name: 'log', peer: 'ben', rights: [...BOTH] }),
  'take over': (manager) => manager.takeOver('ben', { name: 'log', rights: [...BOTH] }),
};

/** What the operation may meet when it is tried again after it has happened. */
const DONE_BEFORE: Record<string, string> = { create: 'ERR_HOLDFAST_DUPLICATE_NAME', delete: 'ERR_HOLDFAST_NOT_FOUND' };

interface Run {
  readonly unit: FakeUnit;
  readonly control: FakeControl;
  readonly answered: boolean;
}

/** A manager does the operation, and dies at the step, if there is one. */
async function run(operate: Operate, death?: Death): Promise<Run> {
  const unit = await world();
  const control = new FakeControl(unit, death);
  const manager = managerOf(control);
  let answered = false;
  manager
    .open()
    .then(() => operate(manager))
    .then(() => {
      answered = true;
    });
  await idle();
  return { unit, control, answered };
}

async function stored(unit: FakeUnit): Promise<Directory> {
  const found = await storedDirectory(unit.memory);
  if (found === undefined) expect.fail('the copies of the directory differ');
  return found.directory;
}

async function check(unit: FakeUnit, directory: Directory): Promise<void> {
  expect(unit.memory.violations).toEqual([]);
  expect(unit.tables).toEqual(tablesOf(directory));
  expect(directory.erasing).toEqual([]);
  for (const { startBytes, lengthBytes } of holesIn(directory, RECORDS_BYTES)) {
    const bytes = await unit.memory.bytes(startBytes, lengthBytes);
    expect(bytes.some((byte) => byte !== 0)).toBe(false);
  }
  for (const { name, extents } of directory.regions) {
    if (name === 'new') continue;
    const first = (await unit.memory.bytes(extents[0]!.startBytes + 4 * KIB, 1))[0];
    expect(first).toBe(7);
  }
}

describe.each(Object.keys(operations))('killed at any step: %s', (name) => {
  const operate = operations[name]!;

  test.each([
    ['and the unit goes on', false],
    ['and the unit with it', true],
  ])('%s', async (_what, unitToo) => {
    const before = await stored(await world());
    const whole = await run(operate);
    expect(whole.answered).toBe(true);
    const after = await stored(whole.unit);
    await check(whole.unit, after);
    const found = { old: 0, new: 0 };
    for (const [step, kind] of whole.control.steps.entries()) {
      const whens: readonly When[] =
        kind === 'write' || kind === 'erase' ? ['before', 'half', 'after'] : ['before', 'after'];
      for (const when of whens) {
        const { unit, control, answered } = await run(operate, { step, when });
        expect(control.dead).toBe(true);
        const next = unitToo ? new FakeUnit(unit.memory, PEERS) : unit;
        const manager = managerOf(new FakeControl(next));
        await manager.open();
        expect(next.keys.size).toBe(0);
        await idle();
        const left = await stored(next);
        const isNew = JSON.stringify(left) === JSON.stringify(after);
        if (!isNew) expect(left).toEqual(before);
        if (answered) expect(isNew).toBe(true);
        found[isNew ? 'new' : 'old'] += 1;
        await check(next, left);
        await again(name, manager, left, before);
        await idle();
        await check(next, await stored(next));
      }
    }
    expect(found.new).toBeGreaterThan(0);
    if (JSON.stringify(before) !== JSON.stringify(after)) expect(found.old).toBeGreaterThan(5);
  });
});

/** Whoever has had no answer asks again. */
async function again(name: string, manager: MemoryManager, left: Directory, before: Directory): Promise<void> {
  const happened = JSON.stringify(left) !== JSON.stringify(before);
  const outcome = await operations[name]!(manager).then(
    () => 'done',
    (error: unknown) => (isHoldfastError(error) ? error.code : String(error)),
  );
  expect(outcome).toBe((happened && DONE_BEFORE[name]) || 'done');
}

test('killed at any step while it takes in more memory: all of it is given out in the end, zeroed', async () => {
  const larger = async (death?: Death) => {
    const { memory } = await world();
    const unit = new FakeUnit(await memory.longer(memory.sizeBytes + UNITS * SPACE_UNIT_BYTES), PEERS);
    const control = new FakeControl(unit, death);
    managerOf(control).open();
    await idle();
    return { unit, control };
  };
  const whole = await larger();
  expect(whole.control.steps).toContain('erase');
  for (const [step, kind] of whole.control.steps.entries()) {
    const whens: readonly When[] =
      kind === 'write' || kind === 'erase' ? ['before', 'half', 'after'] : ['before', 'after'];
    for (const when of whens) {
      const { unit, control } = await larger({ step, when });
      expect(control.dead).toBe(true);
      const next = new FakeUnit(unit.memory, PEERS);
      const manager = managerOf(new FakeControl(next));
      await manager.open();
      await idle();
      await manager.create('ben', { name: 'new', sizeBytes: (UNITS + 3) * SPACE_UNIT_BYTES });
      const directory = await stored(next);
      expect(directory.memoryBytes).toBe(next.memory.sizeBytes);
      await check(next, directory);
    }
  }
});

test('killed at any step of the format: nothing is there, or all of it', async () => {
  const outcomes = new Set<string>();
  for (let step = 0; ; step += 1) {
    let dead = false;
    for (const when of ['before', 'half', 'after'] as const) {
      const unit = await world();
      const control = new FakeControl(unit, { step, when });
      MemoryManager.format(control);
      await idle();
      dead = control.dead;
      const manager = managerOf(new FakeControl(new FakeUnit(unit.memory, PEERS)));
      outcomes.add(
        await manager.open().then(
          async () => `${(await manager.list('ann', {})).regions.length} regions`,
          (error: unknown) => (isHoldfastError(error) ? error.code : String(error)),
        ),
      );
      await MemoryManager.format(new FakeControl(unit));
      await managerOf(new FakeControl(unit)).open();
    }
    if (!dead) break;
  }
  expect([...outcomes].sort()).toEqual(['0 regions', '2 regions', 'ERR_HOLDFAST_METADATA_MISSING']);
});

test('no power cut of the unit, whatever it loses of the records, brings an epoch back', async () => {
  const unit = await world();
  const recorder = new CrashRecorder();
  const control = new FakeControl(unit);
  const records = new MemoryDevice({ sizeBytes: RECORDS_BYTES, logicalBlockBytes: 512 });
  await records.write(0, await unit.memory.bytes(0, RECORDS_BYTES));
  Object.defineProperty(control, 'records', { value: await recorder.record(records) });
  const manager = managerOf(control);
  await manager.open();
  for (let round = 0; round < 3; round += 1)
    recorder.note((await manager.takeOver('ben', { name: 'log', rights: [...BOTH] })).epoch);
  const report = await recorder.replay(async (image, { notes }) => {
    const bytes = new Uint8Array(RECORDS_BYTES);
    await image.read(0, bytes);
    const memory = new FakeMemory(unit.memory.sizeBytes);
    await memory.device.write(0, bytes);
    const next = managerOf(new FakeControl(new FakeUnit(memory)));
    await next.open();
    const { regions } = await next.list('ann', {});
    expect([notes.length + 1, notes.length + 2]).toContain(regions.find(({ name }) => name === 'log')!.epoch);
  });
  expect(report).toMatchObject({ failure: undefined, drawnEpochs: 0 });
  expect(report.states).toBeGreaterThan(12);
});
