/**
 * A power cut of the unit at any moment, with any of the stores that no persist had covered: what was acknowledged is
 * there, nothing torn is seen, numbers follow each other, and the region goes on working. Then the same with bugs
 * planted: each is found.
 */
import { expect, onTestFinished, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { type PlantedBug, plantBug } from '../../lib/base/planted-bug.ts';
import { type Checkpoint, CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { formatCheckpointRegion } from '../../lib/checkpoint/region-record.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import type { StoreOrderReport, StoreRecorder } from '../../lib/testing/store-orders.ts';
import { formatted, settle, stamped, stampOf } from './checkpoint-helpers.ts';

/** Long enough for a reader to see, and act on, what is not durable yet. */
const PERSIST_TURNS = 40;

/** What the workload has been told, or has tried, up to a power cut. */
interface Note {
  readonly kind: 'tried' | 'acknowledged' | 'seen' | 'cleared';
  readonly sequence: number;
  readonly stamp: number;
}

/** The newest of a sort, 0 if there is none. */
function newest(notes: readonly unknown[], ...kinds: Note['kind'][]): number {
  return Math.max(0, ...(notes as Note[]).filter(({ kind }) => kinds.includes(kind)).map(({ sequence }) => sequence));
}

class Workload {
  readonly #recorder: StoreRecorder;
  #stamp = 0;

  constructor(recorder: StoreRecorder) {
    this.#recorder = recorder;
  }

  note(kind: Note['kind'], sequence: number, stamp: number): void {
    this.#recorder.note({ kind, sequence, stamp } satisfies Note);
  }

  async append(writer: CheckpointWriter, lengthBytes: number): Promise<void> {
    const stamp = ++this.#stamp;
    this.note('tried', 0, stamp);
    this.note('acknowledged', await writer.append(stamped(stamp, lengthBytes)), stamp);
  }

  async overwrite(writer: CheckpointWriter, lengthBytes: number): Promise<void> {
    const stamp = ++this.#stamp;
    this.note('tried', 0, stamp);
    this.note('acknowledged', await writer.overwrite(stamped(stamp, lengthBytes)), stamp);
  }

  see({ sequence, value }: Checkpoint): void {
    this.note('seen', sequence, stampOf(value));
  }
}

/** Two laps of a small ring, with a backup that follows and clears, then a take-over and some more. */
async function appendAndTakeOver(): Promise<StoreRecorder> {
  const recorder = await formatted(4096, {}, PERSIST_TURNS);
  const work = new Workload(recorder);
  const stop = new AbortController();
  const reader = await CheckpointReader.open(recorder.access({ writes: true }), { name: 'backup' });
  const following = (async () => {
    for await (const checkpoint of reader.follow({ signal: stop.signal })) {
      work.see(checkpoint);
      if (checkpoint.sequence % 3 !== 0) continue;
      await reader.clear(checkpoint.sequence);
      work.note('cleared', checkpoint.sequence, 0);
    }
  })().catch((error: unknown) => {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_ABORTED')) throw error;
  });
  const first = await CheckpointWriter.open(recorder.access());
  for (let each = 1; each <= 14; each++) {
    // Now and then several in flight, in one batch or in two.
    const appends = [work.append(first, 8 * (1 + ((each * 29) % 90)))];
    if (each % 4 === 0) appends.push(work.append(first, 200), work.append(first, 8));
    if (each % 6 === 0) {
      await Promise.resolve();
      await Promise.resolve();
      appends.push(work.append(first, 120));
    }
    await Promise.all(appends);
    await settle();
  }
  const second = await CheckpointWriter.open(recorder.access());
  const late = first.append(stamped(9999, 64)).catch(() => {});
  for (let each = 1; each <= 4; each++) await work.append(second, 300);
  await late;
  await settle();
  stop.abort();
  await following;
  return recorder;
}

/** A ring that is full again and again: appends wait for a backup whose own persists take long. */
async function appendToFullRing(): Promise<StoreRecorder> {
  const recorder = await formatted(4096, {}, PERSIST_TURNS);
  const work = new Workload(recorder);
  const cursorAccess = recorder.access({ persistTurns: 8 * PERSIST_TURNS });
  const reader = await CheckpointReader.open(recorder.access(), { name: 'backup', cursorAccess });
  const writer = await CheckpointWriter.open(recorder.access());
  let isOver = false;
  const appends = Array.from({ length: 16 }, () => work.append(writer, 700));
  const all = Promise.all(appends).then(() => {
    isOver = true;
  });
  while (!isOver) {
    for (const checkpoint of await reader.drain()) work.see(checkpoint);
    await reader.clear(reader.readSequence);
    work.note('cleared', reader.readSequence, 0);
    await settle();
  }
  await all;
  return recorder;
}

async function overwriteAndTakeOver(): Promise<StoreRecorder> {
  const recorder = await formatted(4096 * 2, { mode: 'overwrite' }, PERSIST_TURNS);
  const work = new Workload(recorder);
  const reader = await CheckpointReader.open(recorder.access({ writes: false }));
  const look = async () => {
    const found = await reader.latest();
    if (found !== undefined) work.see(found);
  };
  const first = await CheckpointWriter.open(recorder.access());
  for (let each = 1; each <= 5; each++) await Promise.all([work.overwrite(first, 8 * each * 9), look(), look()]);
  const second = await CheckpointWriter.open(recorder.access());
  const late = first.overwrite(stamped(9999, 64)).catch(() => {});
  for (let each = 1; each <= 2; each++) await Promise.all([work.overwrite(second, 200), look()]);
  await late;
  return recorder;
}

function checkSeries(found: readonly Checkpoint[], cleared: number, given: readonly unknown[]): void {
  const notes = given as readonly Note[];
  const sequences = found.map(({ sequence }) => sequence);
  const first = sequences[0] ?? cleared + 1;
  expect(sequences).toEqual(sequences.map((_, index) => first + index));
  expect(first, 'nothing that has not been cleared is missing').toBeLessThanOrEqual(cleared + 1);
  const wanted = Math.max(cleared, newest(notes, 'acknowledged', 'seen'));
  expect(first + found.length - 1, 'all that was acknowledged or seen is there').toBeGreaterThanOrEqual(wanted);
  for (const { sequence, value } of found) {
    const stamp = stampOf(value);
    const known = notes.find((note) => note.sequence === sequence && note.stamp > 0);
    expect(
      notes.map((note) => note.stamp),
      `checkpoint ${sequence} is whole`,
    ).toContain(stamp);
    if (known !== undefined) expect(stamp).toBe(known.stamp);
  }
}

async function checkAppend(access: RegionAccess, notes: readonly unknown[]): Promise<void> {
  const backup = await CheckpointReader.open(access, { name: 'backup' });
  expect(backup.clearedSequence).toBeGreaterThanOrEqual(newest(notes, 'cleared'));
  const onlooker = await CheckpointReader.open(access);
  checkSeries(await onlooker.readAll(), backup.clearedSequence, notes);
  const writer = await CheckpointWriter.open(access);
  const tail = writer.durableSequence;
  expect(tail).toBeGreaterThanOrEqual(newest(notes, 'acknowledged', 'seen'));
  const rest = await backup.tail();
  expect(rest.map(({ sequence }) => sequence)).toEqual(
    Array.from({ length: tail - backup.clearedSequence }, (_, index) => backup.clearedSequence + 1 + index),
  );
  // It goes on, round the ring.
  await backup.clear(tail);
  for (let each = 1; each <= 6; each++) {
    expect(await writer.append(stamped(1000 + each, 900))).toBe(tail + each);
    const [next] = await backup.drain();
    expect(stampOf(next!.value)).toBe(1000 + each);
    await backup.clear(tail + each);
  }
  await writer.close();
}

async function checkOverwrite(access: RegionAccess, notes: readonly unknown[]): Promise<void> {
  const reader = await CheckpointReader.open(access);
  const wanted = newest(notes, 'acknowledged', 'seen');
  const before = await reader.latest();
  expect(before?.sequence ?? 0).toBeGreaterThanOrEqual(wanted);
  if (before !== undefined) {
    const stamp = stampOf(before.value);
    expect((notes as Note[]).map((note) => note.stamp)).toContain(stamp);
    const known = (notes as Note[]).find(({ sequence }) => sequence === before.sequence);
    if (known !== undefined) expect(stamp).toBe(known.stamp);
  }
  const writer = await CheckpointWriter.open(access);
  expect(writer.durableSequence).toBeGreaterThanOrEqual(wanted);
  for (let each = 1; each <= 3; each++) {
    const sequence = await writer.overwrite(stamped(1000 + each, 100));
    expect(await reader.latest()).toMatchObject({ sequence, value: stamped(1000 + each, 100) });
  }
  await writer.close();
}

async function exploreAppend(): Promise<StoreOrderReport> {
  return (await appendAndTakeOver()).explore(checkAppend, { statesMax: 24, exhaustiveStores: 6 });
}

async function exploreFullRing(): Promise<StoreOrderReport> {
  return (await appendToFullRing()).explore(checkAppend, { statesMax: 24, exhaustiveStores: 6 });
}

async function exploreOverwrite(): Promise<StoreOrderReport> {
  return (await overwriteAndTakeOver()).explore(checkOverwrite, { statesMax: 64, exhaustiveStores: 8 });
}

test('a series survives a power cut in whatever order its stores reached the memory', async () => {
  const report = await exploreAppend();
  expect(report).toMatchObject({ failure: undefined });
  expect(report.states).toBeGreaterThan(1000);
}, 120_000);

test('a full ring is used again only where nothing is needed after any power cut', async () => {
  const report = await exploreFullRing();
  expect(report).toMatchObject({ failure: undefined });
  expect(report.states).toBeGreaterThan(1000);
}, 120_000);

test('a checkpoint that is overwritten survives a power cut in whatever order its stores reached the memory', async () => {
  const report = await exploreOverwrite();
  expect(report).toMatchObject({ failure: undefined });
  expect(report.states).toBeGreaterThan(500);
}, 120_000);

test('a region whose formatting was cut short is what it was, or none, and can be formatted', async () => {
  const recorder = await formatted(4096 * 2);
  const random = new SimulatedRandom(2, 'format');
  await (await CheckpointWriter.open(recorder.access())).append(stamped(1, 100));
  recorder.note('appended');
  const again = { mode: 'append', cursors: 2, random, replace: true } as const;
  await formatCheckpointRegion(recorder.access(), again);
  recorder.note('formatted');
  const report = await recorder.explore(async (access, notes) => {
    let found: number | undefined;
    try {
      found = (await (await CheckpointReader.open(access)).readAll()).length;
    } catch (error) {
      if (!isHoldfastError(error)) throw error;
      expect(error.code, error.message).toBe('ERR_HOLDFAST_METADATA_MISSING');
    }
    if (notes.includes('formatted')) expect(found).toBe(0);
    await formatCheckpointRegion(access, again);
    await using writer = await CheckpointWriter.open(access);
    expect(await writer.append(stamped(1, 100))).toBe(1);
  });
  expect(report).toMatchObject({ failure: undefined });
});

test.each<[PlantedBug, () => Promise<StoreOrderReport>]>([
  ['record-checksum-unchecked', exploreAppend],
  ['append-acknowledged-before-persist', exploreAppend],
  ['head-moved-before-durable', exploreFullRing],
  ['cursor-read-before-durable', exploreFullRing],
  ['read-before-durable', exploreAppend],
  ['slot-checksum-unchecked', exploreOverwrite],
  ['slot-reused-before-persist', exploreOverwrite],
  ['read-before-durable', exploreOverwrite],
])(
  '%s is found',
  async (bug, explore) => {
    onTestFinished(() => plantBug(undefined));
    plantBug(bug);
    const report = await explore();
    expect(report.failure).toBeDefined();
  },
  120_000,
);
