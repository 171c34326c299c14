/** A member's metadata through every crash state of a short life, by the crash recorder. */
import { expect, onTestFinished, test } from 'vitest';
import { plantBug } from '../../lib/base/planted-bug.ts';
import { type MemberShape, Metadata, metadataBytes } from '../../lib/mirror/metadata.ts';
import { CREATED_RECORD, type MemberRecord } from '../../lib/mirror/view.ts';
import { NEW_VOTER, type VoterState } from '../../lib/peer/arbiter.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { CrashRecorder, type CrashState } from '../../lib/testing/crash-recorder.ts';
import type { RecordedWrite } from '../../lib/testing/crash-recording.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const KIB = 1024;
const EXTENT = 64 * KIB;
const EXTENTS = 8;
const shape: MemberShape = {
  volumeId: '00112233445566778899aabbccddeeff',
  sizeBytes: EXTENTS * EXTENT,
  grainBytes: 4 * KIB,
  activityLogExtentBytes: EXTENT,
  member: 0,
  memberName: 'alfa',
  deviceIdentity: 'memory',
};
const ROOM = metadataBytes(shape.sizeBytes, shape.grainBytes, EXTENT);

async function newDevice(sizeBytes: number): Promise<MemoryDevice> {
  const device = new MemoryDevice({ sizeBytes });
  await Metadata.create(device, shape, new SimulatedRandom(1));
  return device;
}

// --- records, voter states, clean stops

function recordOf(number: number, clean: boolean): MemberRecord {
  return { ...CREATED_RECORD, known: { ...CREATED_RECORD.known, number }, clean };
}

function voterOf(counter: number): VoterState {
  return { ...NEW_VOTER, promised: { counter, node: 1 }, value: `value ${counter}`.padEnd(100, '.') };
}

function marksOf(number: number): Uint8Array {
  return new Uint8Array(shape.sizeBytes / shape.grainBytes / 8).fill(number);
}

type Note = { readonly what: 'record' | 'voter'; readonly number: number; readonly done: boolean };

/** The least and the greatest number that may be found. */
function bounds({ notes }: CrashState, what: Note['what']): { least: number; most: number } {
  const mine = (notes as Note[]).filter((note) => note.what === what);
  const most = Math.max(0, ...mine.map(({ number }) => number));
  const least = Math.max(0, ...mine.filter(({ done }) => done).map(({ number }) => number));
  return { least, most };
}

test('every crash state has the newest record, voter state and saved bitmap that were promised, each whole', async () => {
  const recorder = new CrashRecorder();
  const device = await recorder.record(await newDevice(shape.sizeBytes + ROOM));
  const metadata = await Metadata.open(device);
  const noted = async (what: Note['what'], number: number, write: () => Promise<void>) => {
    recorder.note({ what, number, done: false });
    await write();
    recorder.note({ what, number, done: true });
  };
  const clean = (number: number) =>
    noted('record', number, () => metadata.writeClean(recordOf(number, true), marksOf(number)));
  const records = async () => {
    await noted('record', 1, () => metadata.write(recordOf(1, false)));
    await clean(2);
    await noted('record', 3, () => metadata.write(recordOf(3, false)));
    await clean(4);
    await clean(5);
  };
  const voters = async () => {
    for (let counter = 1; counter <= 6; counter += 1)
      await noted('voter', counter, () => metadata.writeVoter(voterOf(counter)));
  };
  await Promise.all([records(), voters()]);

  const report = await recorder.replay(async (image, state) => {
    const found = await Metadata.open(image);
    const { number } = found.record.known;
    const record = bounds(state, 'record');
    expect(number).toBeGreaterThanOrEqual(record.least);
    expect(number).toBeLessThanOrEqual(record.most);
    expect(found.record).toEqual(recordOf(number, [2, 4, 5].includes(number)));
    const voter = bounds(state, 'voter');
    expect(found.voter.promised.counter).toBeGreaterThanOrEqual(voter.least);
    expect(found.voter.promised.counter).toBeLessThanOrEqual(voter.most);
    if (found.voter.promised.counter > 0) expect(found.voter).toEqual(voterOf(found.voter.promised.counter));
    // While a later clean stop is being written the marks of the one before may be gone, but never wrong.
    const settled = record.least === record.most;
    if (found.record.clean && (settled || found.savedMarks !== undefined))
      expect(found.savedMarks).toEqual(marksOf(number));
    if (!found.record.clean) expect(found.savedMarks).toBeUndefined();
  });
  expect(report).toMatchObject({ failure: undefined, drawnEpochs: 0 });
  expect(report.states).toBeGreaterThan(50);
});

// --- the activity log beside the data

interface Member {
  readonly recorder: CrashRecorder;
  readonly data: BlockDevice;
  readonly metadata: Metadata;
  readonly pins: Set<number>;
  /** Extents to which a marked write has begun. */
  readonly written: Set<number>;
}

async function openMember(separate: boolean): Promise<Member> {
  const recorder = new CrashRecorder();
  const first = await recorder.record(
    separate ? new MemoryDevice({ sizeBytes: shape.sizeBytes }) : await newDevice(shape.sizeBytes + ROOM),
  );
  const metadata = await Metadata.open(separate ? await recorder.record(await newDevice(ROOM + 4 * KIB)) : first);
  const pins = new Set<number>();
  metadata.log.start({
    clock: { nowMs: () => 0, wallMs: () => 0, setTimer: () => ({ cancel: () => {} }) },
    isPinned: (offset) => pins.has(offset / EXTENT),
    onFailure: (error) => {
      throw error;
    },
    maxActive: 3,
  });
  return { recorder, data: first, metadata, pins, written: new Set() };
}

/** With the peer away what is written is marked, and stays so. */
async function write(member: Member, extent: number, peerAway = false): Promise<void> {
  const { data, metadata, pins } = member;
  const offset = extent * EXTENT + 512;
  if (peerAway) pins.add(extent);
  await metadata.log.enter(offset, 512);
  if (peerAway) {
    member.written.add(extent);
    notePins(member);
  }
  await data.write(offset, new Uint8Array(512).fill(extent + 1));
  metadata.log.leave(offset, 512);
}

async function flush({ data, metadata: { log } }: Member): Promise<void> {
  const mark = log.flushBegins();
  await data.flush();
  log.flushSucceeded(mark);
}

/** From here on the pinned extents that were written to must be named. */
function notePins({ recorder, pins, written }: Member): void {
  recorder.note([...pins].filter((extent) => written.has(extent)));
}

function unpin(member: Member, extent: number): void {
  member.pins.delete(extent);
  member.written.delete(extent);
  notePins(member);
}

/** Writes, flushes, more extents than the log likes, one that stays pinned for a while, writes at one time. */
async function live(member: Member): Promise<void> {
  await write(member, 0, true);
  await write(member, 1);
  await flush(member);
  await write(member, 1);
  await Promise.all([write(member, 2), write(member, 3), write(member, 1)]);
  await member.metadata.log.clear();
  await flush(member);
  await Promise.all([member.metadata.log.clear(), write(member, 4)]);
  unpin(member, 0);
  const flushed = flush(member);
  await write(member, 5);
  await flushed;
  await member.metadata.log.clear();
  await Promise.all([write(member, 6), write(member, 0), flush(member)]);
  await write(member, 7);
}

/** The same by lot, four at a time. */
async function liveByLot(member: Member, seed: number): Promise<void> {
  const random = new SimulatedRandom(seed, 'life');
  const strand = async () => {
    for (let step = 0; step < 8; step += 1) {
      const extent = random.below(EXTENTS);
      const choice = random.below(12);
      if (choice < 7) await write(member, extent, choice === 0);
      else if (choice < 9) await flush(member);
      else if (choice === 9) await member.metadata.log.clear();
      else for (const pinned of [...member.pins]) unpin(member, pinned);
    }
  };
  await Promise.all([strand(), strand(), strand(), strand()]);
}

/** Extents that the crash may have left different from the other copies. */
function inDoubt({ pending, notes }: CrashState): Set<number> {
  const isData = (one: RecordedWrite) => one.device === 0 && one.offset < shape.sizeBytes;
  const written = pending.filter(isData).map(({ offset }) => Math.floor(offset / EXTENT));
  return new Set([...written, ...((notes.at(-1) as number[] | undefined) ?? [])]);
}

async function namedOn(image: BlockDevice): Promise<Set<number>> {
  const named = new Set<number>();
  for (const { offset, length } of (await Metadata.open(image)).log.named())
    for (let at = offset; at < offset + length; at += EXTENT) named.add(at / EXTENT);
  return named;
}

const isEvery = (wanted: Set<number>, named: Set<number>) => [...wanted].every((extent) => named.has(extent));

test.each([{ separate: false }, { separate: true }])(
  'every crash state names all extents that may differ, also if a copy of the log rots (metadata separate: $separate)',
  async ({ separate }) => {
    const member = await openMember(separate);
    await live(member);
    let namedTooMany = 0;
    const report = await member.recorder.replay(async (device, state) => {
      const image = separate ? state.devices[1]! : device;
      const wanted = inDoubt(state);
      const named = await namedOn(image);
      expect(isEvery(wanted, named), `${[...wanted]} in ${[...named]}`).toBe(true);
      namedTooMany += named.size - wanted.size;
      const end = image.geometry.sizeBytes;
      for (const below of [64 * KIB + 3 * 4096, 64 * KIB + 4096]) {
        const byte = new Uint8Array(1);
        await image.read(end - below + 64, byte);
        await image.write(end - below + 64, Uint8Array.of(byte[0]! ^ 0x10));
        const left = await namedOn(image);
        expect(isEvery(wanted, left), `${[...wanted]} in ${[...left]} with one copy rotten`).toBe(true);
        await image.write(end - below + 64, byte);
      }
    });
    expect(report.failure).toBeUndefined();
    expect(report.states).toBeGreaterThan(50);
    // Not by naming everything.
    expect(namedTooMany / report.states).toBeLessThan(3);
  },
);

async function checkNames(device: BlockDevice, state: CrashState): Promise<void> {
  const wanted = inDoubt(state);
  const named = await namedOn(device);
  expect(isEvery(wanted, named), `${[...wanted]} in ${[...named]}`).toBe(true);
}

test.each(Array.from({ length: 12 }, (_, seed) => seed))(
  'every crash state of a life by lot names all extents that may differ (seed %i)',
  async (seed) => {
    const member = await openMember(false);
    await liveByLot(member, seed);
    const report = await member.recorder.replay(checkNames, { seed, statesMax: 100, exhaustiveWrites: 6 });
    expect(report.failure).toBeUndefined();
    expect(report.states).toBeGreaterThan(30);
  },
);

test('a log that takes extents out before a flush is found out', async () => {
  onTestFinished(() => plantBug(undefined));
  plantBug('log-retired-before-flush');
  const member = await openMember(false);
  await live(member);
  const { failure } = await member.recorder.replay(checkNames);
  expect(failure?.key).toMatch(/^epoch \d+: keep/);
});

test('a creation that was cut short leaves no metadata, or the old or the new, and never a log that counts for it', async () => {
  const memory = await newDevice(shape.sizeBytes + ROOM);
  const old = await Metadata.open(memory);
  await old.write(recordOf(9, false));
  await old.log.enter(5 * EXTENT, 1);
  const recorder = new CrashRecorder();
  const device = await recorder.record(memory);
  await Metadata.create(device, shape, new SimulatedRandom(2));
  recorder.note('created');
  const outcomes = new Set<string>();
  const report = await recorder.replay(async (image, { notes }) => {
    const found = await Metadata.open(image).catch((error: { code: string }) => error.code);
    if (typeof found === 'string') outcomes.add(found);
    else {
      const { number } = found.record.known;
      const named = [...found.log.named()].map(({ offset, length }) => [offset / EXTENT, length / EXTENT]);
      outcomes.add(`record ${number}`);
      if (number === 0) expect([named, found.log.damage]).toEqual([[], []]);
      else expect([[[5, 1]], [[0, EXTENTS]]]).toContainEqual(named);
    }
    if (notes.includes('created')) expect(found).toMatchObject({ record: CREATED_RECORD });
  });
  expect(report).toMatchObject({ failure: undefined, drawnEpochs: 0 });
  expect([...outcomes].sort()).toEqual([
    'ERR_HOLDFAST_METADATA_DAMAGED',
    'ERR_HOLDFAST_METADATA_MISSING',
    'record 0',
    'record 9',
  ]);
});
