/** Writer and reader of checkpoints over a region in memory. */
import { expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import type { WhenFull } from '../../lib/checkpoint/append-log.ts';
import { CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import { structuredCodec } from '../../lib/checkpoint/codec.ts';
import { FENCE_ADDRESS, PAGE_BYTES, PULSE_ADDRESS } from '../../lib/checkpoint/layout.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { formatCheckpointRegion, readRegionRecord } from '../../lib/checkpoint/region-record.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';
import { backupAccess, formatted, settle, stamped, stampOf } from './checkpoint-helpers.ts';

const code = (errorCode: string) => expect.objectContaining({ name: 'HoldfastError', code: errorCode });
const stamps = (checkpoints: readonly { readonly sequence: number; readonly value: Uint8Array }[]) =>
  checkpoints.map(({ sequence, value }) => [sequence, stampOf(value)]);
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);
const pairs = (from: number, to: number) => range(from, to).map((number) => [number, number]);

/** Counts commands, and can hold back or fail those that store. */
class WatchedAccess implements RegionAccess {
  readonly #access: RegionAccess;
  readonly calls: { readonly name: string; readonly bytes: number; readonly persist: boolean }[] = [];
  onWrite: ((number: number) => Promise<void>) | undefined;
  #writes = 0;

  constructor(access: RegionAccess) {
    this.#access = access;
  }
  get unit() {
    return this.#access.unit;
  }
  get range() {
    return this.#access.range;
  }
  get epoch() {
    return this.#access.epoch;
  }
  get open() {
    return this.#access.open;
  }
  read: RegionAccess['read'] = (...given) => this.#access.read(...given);
  persist: RegionAccess['persist'] = (address, bytes, options) => {
    this.calls.push({ name: 'persist', bytes, persist: true });
    return this.#access.persist(address, bytes, options);
  };
  compareAndSwap: RegionAccess['compareAndSwap'] = (...given) => this.#access.compareAndSwap(...given);
  watch: RegionAccess['watch'] = (...given) => this.#access.watch(...given);
  write: RegionAccess['write'] = async (address, chunks, options) => {
    const bytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    this.calls.push({ name: 'write', bytes, persist: options?.persist ?? false });
    await this.onWrite?.(++this.#writes);
    return this.#access.write(address, chunks, options);
  };
}

test('a series is read back in order, by a backup that opens before, between and after', async () => {
  const recorder = await formatted(64 * 1024);
  const { access, cursorAccess } = backupAccess(recorder);
  const early = await CheckpointReader.open(access, { name: 'early', cursorAccess });
  expect(await early.drain()).toEqual([]);
  await using writer = await CheckpointWriter.open(recorder.access());
  expect(await Promise.all(range(1, 5).map((each) => writer.append(stamped(each, each * 200))))).toEqual(range(1, 5));
  const between = await CheckpointReader.open(access);
  expect(stamps(await between.drain({ maxBytes: 300 }))).toEqual(pairs(1, 2));
  expect(await writer.append(stamped(6, 8))).toBe(6);
  expect(stamps(await between.drain())).toEqual(pairs(3, 6));
  expect(stamps(await between.drain())).toEqual([]);
  expect(stamps(await early.drain())).toEqual(pairs(1, 6));
  expect(stamps(await early.readAll())).toEqual(pairs(1, 6));
  expect(writer.durableSequence).toBe(6);
});

test('appends of one turn go out as one store with one persist', async () => {
  const recorder = await formatted(512 * 1024);
  const access = new WatchedAccess(recorder.access());
  await using writer = await CheckpointWriter.open(access);
  access.calls.length = 0;
  await Promise.all(range(1, 32).map((each) => writer.append(stamped(each, 4096))));
  expect(access.calls).toEqual([{ name: 'write', bytes: 32 * (64 + 4096), persist: true }]);
});

test('acknowledgements are in order, whatever order the stores end in', async () => {
  const recorder = await formatted(64 * 1024);
  const access = new WatchedAccess(recorder.access());
  await using writer = await CheckpointWriter.open(access);
  const release: (() => void)[] = [];
  access.onWrite = () => new Promise((resolve) => release.push(resolve));
  const acknowledged: number[] = [];
  const appends: Promise<unknown>[] = [];
  for (const each of range(1, 3)) {
    appends.push(writer.append(stamped(each, 100)).then((sequence) => acknowledged.push(sequence)));
    await settle();
  }
  release[2]!();
  release[1]!();
  await settle();
  expect(acknowledged).toEqual([]);
  release[0]!();
  await Promise.all(appends);
  expect(acknowledged).toEqual([1, 2, 3]);
});

test('what is in flight is bounded, and what waits', async () => {
  const recorder = await formatted(64 * 1024);
  const access = new WatchedAccess(recorder.access());
  const writer = await CheckpointWriter.open(access, { inFlightRecordsMax: 4, waitingRecordsMax: 8 });
  const release: (() => void)[] = [];
  access.onWrite = () => new Promise((resolve) => release.push(resolve));
  access.calls.length = 0;
  const appends = range(1, 8).map((each) => writer.append(stamped(each, 64)));
  await expect(writer.append(stamped(9, 64))).rejects.toEqual(code('ERR_HOLDFAST_QUEUE_FULL'));
  await settle();
  expect(access.calls).toEqual([{ name: 'write', bytes: 4 * 128, persist: true }]);
  access.onWrite = undefined;
  release[0]!();
  expect(await Promise.all(appends)).toEqual(range(1, 8));
  await writer.close();
  await expect(writer.append(stamped(9, 64))).rejects.toEqual(code('ERR_HOLDFAST_CLOSED'));
});

test('the first store that fails ends the writer: what follows is never acknowledged', async () => {
  const recorder = await formatted(64 * 1024);
  const access = new WatchedAccess(recorder.access());
  const writer = await CheckpointWriter.open(access);
  access.onWrite = async (number) => {
    if (number === 2) throw Object.assign(new Error('gone'), { code: 'ERR_HOLDFAST_PEER_LOST' });
  };
  const appends: Promise<number>[] = [];
  for (const each of range(1, 3)) {
    appends.push(writer.append(stamped(each, 64)));
    await Promise.resolve();
    await Promise.resolve();
  }
  const outcomes = await Promise.allSettled(appends);
  expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'rejected']);
  await expect(writer.append(stamped(4, 64))).rejects.toThrow('gone');
  await writer.close();
  await using next = await CheckpointWriter.open(recorder.access());
  expect(await next.append(stamped(2, 64))).toBe(2);
});

test('an append that waits can be cancelled, and leaves no gap', async () => {
  const recorder = await formatted(64 * 1024);
  const access = new WatchedAccess(recorder.access());
  await using writer = await CheckpointWriter.open(access, { inFlightRecordsMax: 1 });
  const first = writer.append(stamped(1, 64));
  const cancelled = new AbortController();
  const second = writer.append(stamped(99, 64), { signal: cancelled.signal });
  const third = writer.append(stamped(2, 64), { signal: new AbortController().signal });
  cancelled.abort();
  await expect(second).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
  expect(await Promise.all([first, third])).toEqual([1, 2]);
  await expect(writer.append(stamped(3, 64), { signal: cancelled.signal })).rejects.toEqual(
    code('ERR_HOLDFAST_ABORTED'),
  );
  expect(await writer.append(stamped(3, 64))).toBe(3);
  const reader = await CheckpointReader.open(recorder.access());
  expect(stamps(await reader.readAll())).toEqual(pairs(1, 3));
});

test('a full ring blocks until every backup has cleared enough, and goes round many times', async () => {
  const recorder = await formatted(16 * 1024);
  const backups = await Promise.all(
    [0, 1].map((cursor) =>
      CheckpointReader.open(backupAccess(recorder, cursor).access, {
        name: `backup-${cursor}`,
        cursor,
        cursorAccess: backupAccess(recorder, cursor).cursorAccess,
      }),
    ),
  );
  await using writer = await CheckpointWriter.open(recorder.access());
  const appends = range(1, 200).map((each) => writer.append(stamped(each, 8 * (1 + ((each * 37) % 200)))));
  let acknowledged = 0;
  for (const append of appends) append.then(() => acknowledged++);
  await settle();
  expect(acknowledged).toBeGreaterThan(5);
  expect(acknowledged).toBeLessThan(60);
  const stuck = acknowledged;
  const [one, two] = backups as [CheckpointReader, CheckpointReader];
  const first = await one.drain();
  await one.clear(one.readSequence);
  await settle();
  expect(acknowledged, 'the other one has cleared nothing').toBe(stuck);
  const read = new Map<CheckpointReader, number[][]>([
    [one, stamps(first)],
    [two, []],
  ]);
  for (let rounds = 0; rounds < 400 && acknowledged < 200; rounds++) {
    for (const backup of backups) {
      read.get(backup)!.push(...stamps(await backup.drain({ maxBytes: 3000 })));
      if (rounds % 2 === 0) await backup.clear(backup.readSequence);
    }
    await settle();
  }
  await Promise.all(appends);
  for (const backup of backups) read.get(backup)!.push(...stamps(await backup.tail()));
  expect(read.get(one)).toEqual(pairs(1, 200));
  expect(read.get(two)).toEqual(pairs(1, 200));
});

test.each<WhenFull>(['block', 'drop-drained', 'error'])('nobody has drained anything: %s', async (whenFull) => {
  const recorder = await formatted(8 * 1024);
  const writer = await CheckpointWriter.open(recorder.access(), { whenFull });
  const outcomes = new Map<number, string>();
  for (const each of range(1, 10))
    writer.append(stamped(each, 1000)).then(
      () => outcomes.set(each, 'durable'),
      (error: { code: string }) => outcomes.set(each, error.code),
    );
  await settle();
  const refused = 'ERR_HOLDFAST_NO_SPACE';
  const full = range(1, 7).map((each) => [each, 'durable']);
  expect([...outcomes]).toEqual(
    whenFull === 'error' ? [...full, ...range(8, 10).map((each) => [each, refused])] : full,
  );
  await writer.close();
  expect(outcomes.get(10)).toBe(whenFull === 'error' ? refused : 'ERR_HOLDFAST_CLOSED');
  // What was refused has left no hole.
  await using next = await CheckpointWriter.open(recorder.access());
  expect(next.durableSequence).toBe(7);
});

test('a writer is closed while one append is under way and the next one waits for room', async () => {
  const recorder = await formatted(8 * 1024);
  const access = new WatchedAccess(recorder.access());
  const writer = await CheckpointWriter.open(access);
  await Promise.all(range(1, 6).map((each) => writer.append(stamped(each, 1000))));
  let release = () => {};
  access.onWrite = () =>
    new Promise((resolve) => {
      release = resolve;
    });
  const underWay = writer.append(stamped(7, 1000));
  const waits = writer.append(stamped(8, 1000));
  const outcome = expect(waits).rejects.toEqual(code('ERR_HOLDFAST_CLOSED'));
  await settle();
  // Whoever closes it a second time, as `await using` does, waits for the same.
  const closed = Promise.all([writer.close(), writer.close()]);
  await expect(writer.append(stamped(9, 1000))).rejects.toEqual(code('ERR_HOLDFAST_CLOSED'));
  release();
  await closed;
  expect(await underWay).toBe(7);
  await outcome;
});

test('with drop-drained, a backup that is behind is told which records it will never have', async () => {
  const recorder = await formatted(16 * 1024);
  const fast = await CheckpointReader.open(recorder.access(), { name: 'fast' });
  const slow = await CheckpointReader.open(recorder.access(), { name: 'slow', cursor: 1 });
  await using writer = await CheckpointWriter.open(recorder.access(), { whenFull: 'drop-drained' });
  await writer.append(stamped(1, 1000));
  expect(stamps(await slow.drain())).toEqual([[1, 1]]);
  for (const each of range(2, 60)) {
    await writer.append(stamped(each, 1000));
    if (each % 5 === 0) {
      await fast.drain();
      await fast.clear(each);
    }
  }
  await expect(slow.drain()).rejects.toEqual(code('ERR_HOLDFAST_GAP'));
  await expect(slow.drain()).rejects.toThrow(/^checkpoints 2 to \d+ were dropped before/);
  const opened = await CheckpointReader.open(recorder.access(), { name: 'slow', cursor: 1 });
  await expect(opened.readAll()).rejects.toEqual(code('ERR_HOLDFAST_GAP'));
  const again = await CheckpointReader.open(recorder.access(), { name: 'slow', cursor: 1, restart: true });
  const found = stamps(await again.readAll());
  expect(found.at(-1)).toEqual([60, 60]);
  expect(found[0]![0]).toBeGreaterThan(2);
  expect(found).toEqual(pairs(found[0]![0]!, 60));
});

test('nothing is kept for a backup that has been retired; its cursor can be taken again', async () => {
  const recorder = await formatted(8 * 1024);
  const gone = await CheckpointReader.open(recorder.access(), { name: 'gone' });
  const kept = await CheckpointReader.open(recorder.access(), { name: 'kept', cursor: 1 });
  await using writer = await CheckpointWriter.open(recorder.access());
  const appends = range(1, 14).map((each) => writer.append(stamped(each, 1000)));
  await appends[6];
  await kept.drain();
  await kept.clear(7);
  await settle();
  expect(writer.durableSequence).toBe(7);
  await expect(CheckpointReader.open(recorder.access(), { name: 'new' })).rejects.toThrow(
    'cursor 0 on memory belongs to the backup gone; take another one for new, or retire it',
  );
  expect(await CheckpointReader.retire(recorder.access(), 0)).toBe(true);
  expect(await CheckpointReader.retire(recorder.access(), 0)).toBe(false);
  await Promise.all(appends);
  await expect(gone.drain()).rejects.toEqual(code('ERR_HOLDFAST_GAP'));
  const fresh = await CheckpointReader.open(recorder.access(), { name: 'new' });
  expect(stamps(await fresh.readAll())).toEqual(pairs(8, 14));
});

test('a backup goes on where it had cleared, and drains again what it had not', async () => {
  const recorder = await formatted(32 * 1024);
  const backup = () => CheckpointReader.open(recorder.access(), { name: 'backup' });
  await using writer = await CheckpointWriter.open(recorder.access());
  await Promise.all(range(1, 9).map((each) => writer.append(stamped(each, 500))));
  const first = await backup();
  await expect(first.clear(1)).rejects.toEqual(code('ERR_HOLDFAST_BAD_ARGUMENT'));
  await first.drain();
  await Promise.all([first.clear(2), first.clear(5), first.clear(4)]);
  expect(first.clearedSequence).toBe(5);
  const second = await backup();
  expect(stamps(await second.drain())).toEqual(pairs(6, 9));
  const other = await CheckpointReader.open(recorder.access());
  expect(stamps(await other.drain())).toEqual(pairs(1, 9));
  await expect(other.clear(3)).rejects.toEqual(code('ERR_HOLDFAST_BAD_ARGUMENT'));
});

test('a reader follows: each checkpoint as it comes, without asking again and again', async () => {
  const recorder = await formatted(16 * 1024);
  const { access, cursorAccess } = backupAccess(recorder);
  const reader = await CheckpointReader.open(access, { name: 'backup', cursorAccess });
  await using writer = await CheckpointWriter.open(recorder.access());
  const found: number[][] = [];
  const stop = new AbortController();
  const following = (async () => {
    for await (const checkpoint of reader.follow({ signal: stop.signal })) {
      found.push(...stamps([checkpoint]));
      await reader.clear(checkpoint.sequence);
    }
  })();
  await settle();
  await expect(reader.drain().then(() => reader.drain())).resolves.toEqual([]);
  for (const each of range(1, 100)) {
    const acknowledged = await writer.append(stamped(each, 700));
    if (each % 10 === 0) await settle();
    expect(acknowledged).toBe(each);
  }
  await settle();
  expect(found).toEqual(pairs(1, 100));
  stop.abort();
  await expect(following).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
});

test('a writer takes over: the old one is fenced, its acknowledged checkpoints are there, nothing late counts', async () => {
  const recorder = await formatted(16 * 1024);
  const old = await CheckpointWriter.open(recorder.access());
  await Promise.all(range(1, 3).map((each) => old.append(stamped(each, 100))));
  await using next = await CheckpointWriter.open(recorder.access());
  expect(next.epoch).toBeGreaterThan(old.epoch);
  expect(next.durableSequence).toBe(3);
  await expect(old.append(stamped(99, 100))).rejects.toThrow(
    'another writer has taken over the checkpoints on memory; this one writes no more',
  );
  await expect(old.append(stamped(99, 100))).rejects.toEqual(code('ERR_HOLDFAST_FENCED'));
  expect(await next.append(stamped(4, 100))).toBe(4);
  const reader = await CheckpointReader.open(recorder.access());
  const all = await reader.tail();
  expect(stamps(all)).toEqual(pairs(1, 4));
  expect(all.map(({ epoch }) => epoch)).toEqual([old.epoch, old.epoch, old.epoch, next.epoch]);
  await old.close();
});

test('a writer whose key was revoked says that another has taken over', async () => {
  const recorder = await formatted(16 * 1024);
  const access = new WatchedAccess(recorder.access());
  const writer = await CheckpointWriter.open(access);
  access.onWrite = async () => {
    throw new HoldfastError('ERR_HOLDFAST_KEY_INVALID', 'this key opens nothing');
  };
  await expect(writer.append(stamped(1, 100))).rejects.toEqual(code('ERR_HOLDFAST_FENCED'));
  await expect(writer.append(stamped(1, 100))).rejects.toThrow('has been revoked: another has taken over');
  await writer.close();
});

test('two that open at one time: one of them writes, the other one is told', async () => {
  const recorder = await formatted(16 * 1024);
  const opened = await Promise.allSettled([1, 2, 3].map(() => CheckpointWriter.open(recorder.access())));
  const writers = opened.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
  for (const outcome of opened)
    if (outcome.status === 'rejected') expect(outcome.reason).toEqual(code('ERR_HOLDFAST_FENCED'));
  const appended = await Promise.allSettled(writers.map((writer) => writer.append(stamped(1, 100))));
  expect(appended.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  await Promise.all(writers.map((writer) => writer.close()));
});

test('overwrite keeps the newest checkpoint, and what comes while one is under way is one', async () => {
  const recorder = await formatted(16 * 1024, { mode: 'overwrite' });
  const reader = await CheckpointReader.open(recorder.access({ writes: false }));
  expect(await reader.latest()).toBeUndefined();
  const access = new WatchedAccess(recorder.access());
  await using writer = await CheckpointWriter.open(access);
  expect(await writer.overwrite(stamped(1, 100))).toBe(1);
  expect(await reader.latest()).toMatchObject({ sequence: 1, value: stamped(1, 100) });
  access.calls.length = 0;
  const release: (() => void)[] = [];
  access.onWrite = () => new Promise((resolve) => release.push(resolve));
  const two = writer.overwrite(stamped(2, 200));
  await settle();
  const more = range(3, 6).map((each) => writer.overwrite(stamped(each, 300)));
  access.onWrite = undefined;
  release[0]!();
  expect(await two).toBe(2);
  expect(await Promise.all(more)).toEqual([3, 3, 3, 3]);
  expect(access.calls.map(({ bytes }) => bytes)).toEqual([264, 364]);
  expect(await reader.latest()).toMatchObject({ sequence: 3, value: stamped(6, 300) });
  const tooLong = writer.overwrite(new Uint8Array(8192 - 63));
  await expect(tooLong).rejects.toEqual(code('ERR_HOLDFAST_BAD_ARGUMENT'));
  expect(await writer.overwrite(new Uint8Array(8192 - 64))).toBe(4);
});

test('a checkpoint for overwrite that has failed, or has not begun, is not called durable', async () => {
  const recorder = await formatted(16 * 1024, { mode: 'overwrite' });
  const access = new WatchedAccess(recorder.access());
  const writer = await CheckpointWriter.open(access);
  const first = writer.overwrite(stamped(1, 100));
  expect(writer.durableSequence).toBe(0);
  await first;
  expect(writer.durableSequence).toBe(1);
  access.onWrite = async () => {
    throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'gone');
  };
  await expect(writer.overwrite(stamped(2, 100))).rejects.toThrow('gone');
  expect(writer.durableSequence).toBe(1);
});

test('a take-over of a region for overwrite goes on from the newest checkpoint', async () => {
  const recorder = await formatted(16 * 1024, { mode: 'overwrite' });
  const old = await CheckpointWriter.open(recorder.access());
  for (const each of range(1, 4)) await old.overwrite(stamped(each, 100));
  const next = await CheckpointWriter.open(recorder.access());
  expect(next.durableSequence).toBe(4);
  await expect(old.overwrite(stamped(99, 100))).rejects.toEqual(code('ERR_HOLDFAST_FENCED'));
  expect(await next.overwrite(stamped(5, 100))).toBe(5);
  const reader = await CheckpointReader.open(recorder.access());
  expect(await reader.latest()).toMatchObject({ sequence: 5, epoch: next.epoch, value: stamped(5, 100) });
});

test('the calls of the other mode are refused', async () => {
  const series = await formatted(16 * 1024);
  const single = await formatted(16 * 1024, { mode: 'overwrite' });
  const bad = code('ERR_HOLDFAST_BAD_ARGUMENT');
  await using append = await CheckpointWriter.open(series.access());
  await using overwrite = await CheckpointWriter.open(single.access());
  await expect(append.overwrite(stamped(1, 8))).rejects.toEqual(bad);
  await expect(overwrite.append(stamped(1, 8))).rejects.toEqual(bad);
  const seriesReader = await CheckpointReader.open(series.access());
  const singleReader = await CheckpointReader.open(single.access());
  await expect(seriesReader.latest()).rejects.toEqual(bad);
  for (const refused of [singleReader.drain(), singleReader.readAll(), singleReader.tail()])
    await expect(refused).rejects.toEqual(bad);
  await expect(CheckpointReader.open(single.access(), { name: 'backup' })).rejects.toEqual(bad);
  await expect(CheckpointReader.open(series.access(), { name: 'backup', cursor: 2 })).rejects.toEqual(bad);
  await expect(CheckpointReader.open(series.access(), { name: 'a b' })).rejects.toEqual(bad);
  await expect(CheckpointWriter.open(series.access(), { inFlightBytesMax: 0 })).rejects.toEqual(bad);
  await expect(append.append(new Uint8Array(8192 - 63))).rejects.toEqual(bad);
});

test('values go through a codec; bytes that are none of its own are refused', async () => {
  const recorder = await formatted(16 * 1024);
  const codec = structuredCodec<{ readonly seats: Map<string, number> }>();
  const writer = await CheckpointWriter.open(recorder.access(), { codec });
  const value = { seats: new Map([['12a', 3]]) };
  await writer.append(value);
  const reader = await CheckpointReader.open(recorder.access(), { codec });
  expect((await reader.drain())[0]!.value).toEqual(value);
  const refused = writer.append({ seats: (() => {}) as never });
  await expect(refused).rejects.toEqual(code('ERR_HOLDFAST_BAD_ARGUMENT'));
  await using plain = await CheckpointWriter.open(recorder.access());
  await plain.append(stamped(2, 64));
  await expect(reader.drain()).rejects.toEqual(code('ERR_HOLDFAST_BAD_FRAME'));
});

test('checkpoints longer than one command, and many of them, are read as they were written', async () => {
  const recorder = await formatted(12 * 1024 * 1024);
  await using writer = await CheckpointWriter.open(recorder.access());
  const lengths = [3_000_000, 40, 1_048_576, 1_048_512, 5000, 2_000_008, 0];
  await Promise.all(lengths.map((length, index) => writer.append(stamped(index + 1, length))));
  for (const each of range(8, 1000)) void writer.append(stamped(each, 4096)).catch(() => {});
  expect(await writer.append(stamped(1001, 8))).toBe(1001);
  const reader = await CheckpointReader.open(recorder.access());
  const all = await reader.readAll();
  expect(all).toHaveLength(1001);
  for (const { sequence, value } of all)
    expect(Buffer.compare(value, stamped(sequence, lengths[sequence - 1] ?? (sequence > 1000 ? 8 : 4096)))).toBe(0);
});

/** Of each line of a region: whether it was made durable after it was last read. */
class LineWatch {
  readonly #lines: Uint8Array;
  readonly access: RegionAccess;

  constructor(access: RegionAccess) {
    this.#lines = new Uint8Array(access.range.lengthBytes / 64);
    const span = (address: number, bytes: number) => [Math.floor(address / 64), Math.ceil((address + bytes) / 64)];
    const read: RegionAccess['read'] = async (address, target, options) => {
      await access.read(address, target, options);
      this.#lines.fill(1, ...span(address, target.length));
    };
    const persist: RegionAccess['persist'] = async (address, bytes, options) => {
      const [start, end] = span(address, bytes) as [number, number];
      const covered = this.#lines.slice(start, end);
      // One that was begun early, for a part, ends last.
      for (let turn = 0; turn < 20_000_000 / bytes; turn += 1) await settle();
      await access.persist(address, bytes, options);
      for (const [index, line] of covered.entries()) if (line === 1) this.#lines[start + index] = 2;
    };
    this.access = Object.assign(Object.create(access), { read, persist });
  }

  /** Lines that were read and not made durable since. */
  get open(): number {
    return this.#lines.filter((line) => line === 1).length;
  }
}

test('all of a long portion is made durable after it was read, although that begins while more is being read', async () => {
  const recorder = await formatted(8 * 1024 * 1024);
  await using writer = await CheckpointWriter.open(recorder.access(), { whenFull: 'drop-drained' });
  const append = (first: number, last: number) =>
    Promise.all(range(first, last).map((each) => writer.append(stamped(each, 100_000))));
  const { access, cursorAccess } = backupAccess(recorder);
  const watch = new LineWatch(access);
  const calls = new WatchedAccess(watch.access);
  const reader = await CheckpointReader.open(calls, { name: 'backup', cursorAccess });
  for (const [first, last] of [
    [1, 70],
    [71, 140],
  ] as const) {
    await append(first, last);
    const before = calls.calls.length;
    const portion = await reader.drain({ maxBytes: 6_900_000 });
    expect(stamps(portion)).toEqual(pairs(first, last - 1));
    expect(calls.calls.length - before).toBeGreaterThan(1);
    // What was read of the last one, which was not given, and behind it.
    expect(watch.open * 64).toBeLessThan(1_300_000);
    expect(stamps(await reader.drain())).toEqual(pairs(last, last));
    await reader.clear(last);
  }
});

test('a portion goes into the memory that is given, as far as it fits', async () => {
  const recorder = await formatted(4 * 1024 * 1024);
  const { access, cursorAccess } = backupAccess(recorder);
  await using writer = await CheckpointWriter.open(recorder.access());
  const reader = await CheckpointReader.open(access, { name: 'backup', cursorAccess });
  const into = new Uint8Array(new ArrayBuffer(1_000_064), 64);
  let given = 0;
  // Round the ring a few times, its end within a portion and between two.
  for (let last = 30; last <= 240; last += 30) {
    await Promise.all(range(last - 29, last).map((each) => writer.append(stamped(each, 90_000 + 8 * each))));
    while (given < last) {
      const portion = await reader.drain({ into });
      expect(stamps(portion)).toEqual(pairs(given + 1, given + portion.length));
      expect(portion.every(({ value }) => value.buffer === into.buffer)).toBe(true);
      expect(portion.length).toBeGreaterThan(5);
      given += portion.length;
    }
    await reader.clear(given);
  }
  expect(await reader.drain({ into })).toEqual([]);
  await writer.append(stamped(241, 1_500_000));
  await writer.append(stamped(242, 8));
  const [long] = await reader.drain({ into });
  expect([long?.value.length, stampOf(long!.value)]).toEqual([1_500_000, 241]);
  expect(stamps(await reader.drain({ into, maxBytes: 1 }))).toEqual(pairs(242, 242));
});

test('behind a portion that was shorter than it was allowed to be little is read ahead', async () => {
  const recorder = await formatted(4 * 1024 * 1024);
  const { access } = backupAccess(recorder);
  await using writer = await CheckpointWriter.open(recorder.access());
  let bytes = 0;
  const read: RegionAccess['read'] = (address, target, options) => {
    bytes += target.length;
    return access.read(address, target, options);
  };
  const reader = await CheckpointReader.open(Object.assign(Object.create(access), { read }));
  await Promise.all(range(1, 7).map((each) => writer.append(stamped(each, 100_000))));
  expect(stamps(await reader.drain({ maxBytes: 1_000_000 }))).toEqual(pairs(1, 7));
  bytes = 0;
  await writer.append(stamped(8, 8));
  expect(stamps(await reader.drain({ maxBytes: 1_000_000 }))).toEqual(pairs(8, 8));
  expect(bytes).toBeLessThan(500_000);
});

test('a region is formatted once; anew only when that is asked for, and then nothing of before counts', async () => {
  const recorder = await formatted(16 * 1024);
  const again = (replace: boolean) =>
    formatCheckpointRegion(recorder.access(), { mode: 'append', cursors: 2, replace });
  const old = await CheckpointWriter.open(recorder.access());
  await old.append(stamped(1, 100));
  const reader = await CheckpointReader.open(recorder.access(), { name: 'backup' });
  await expect(again(false)).rejects.toEqual(code('ERR_HOLDFAST_DEVICE_HAS_DATA'));
  await again(true);
  await expect(old.append(stamped(2, 100))).rejects.toEqual(code('ERR_HOLDFAST_FENCED'));
  await expect(reader.readAll().then(() => reader.drain())).rejects.toEqual(code('ERR_HOLDFAST_METADATA_MISMATCH'));
  await using writer = await CheckpointWriter.open(recorder.access());
  expect(await writer.append(stamped(1, 100))).toBe(1);
  await old.close();
});

test('a region that is too small, or none, or opened in part, is refused', async () => {
  const blank = new StoreRecorder(new Uint8Array(64 * 1024));
  const opens = [CheckpointWriter.open(blank.access()), CheckpointReader.open(blank.access())];
  for (const open of opens) await expect(open).rejects.toEqual(code('ERR_HOLDFAST_METADATA_MISSING'));
  const format = (options: Parameters<typeof formatCheckpointRegion>[1]) =>
    formatCheckpointRegion(blank.access(), options);
  await expect(format({ mode: 'append' })).rejects.toEqual(code('ERR_HOLDFAST_DEVICE_TOO_SMALL'));
  await expect(format({ mode: 'append', cursors: 0 })).rejects.toEqual(code('ERR_HOLDFAST_BAD_ARGUMENT'));
  await expect(format({ mode: 'append', cursors: 1, checkpointBytesMax: 9 })).rejects.toEqual(
    code('ERR_HOLDFAST_BAD_ARGUMENT'),
  );
  await expect(format({ mode: 'overwrite', cursors: 1, checkpointBytesMax: 1e6 })).rejects.toEqual(
    code('ERR_HOLDFAST_DEVICE_TOO_SMALL'),
  );
  await format({ mode: 'overwrite', cursors: 1, checkpointBytesMax: 5000 });
  expect(await readRegionRecord(blank.access())).toMatchObject({ mode: 'overwrite', dataBytes: 2 * PAGE_BYTES });
  const part = { base: 0, lengthBytes: 30_000 };
  await expect(CheckpointReader.open(blank.access({ range: part }))).rejects.toEqual(
    code('ERR_HOLDFAST_METADATA_DAMAGED'),
  );
  const end = { base: 4096, lengthBytes: 60_000 };
  await expect(CheckpointReader.open(blank.access({ range: end }))).rejects.toEqual(code('ERR_HOLDFAST_OUT_OF_RANGE'));
});

test('an acknowledged checkpoint that is damaged is not taken for the end of the series', async () => {
  const recorder = await formatted(16 * 1024);
  const writer = await CheckpointWriter.open(recorder.access());
  for (const each of range(1, 5)) await writer.append(stamped(each, 500));
  const { dataAddress } = await readRegionRecord(recorder.access());
  await recorder.access().write(dataAddress + 2 * 576 + 300, [Uint8Array.of(0xff)]);
  const open = (acceptLoss: boolean) => CheckpointWriter.open(recorder.access(), { acceptLoss });
  await expect(open(false)).rejects.toThrow(
    'checkpoint 3 on memory was acknowledged, as checkpoint 4 says, and is damaged',
  );
  await using next = await open(true);
  expect(next.durableSequence).toBe(2);
  expect(await next.append(stamped(3, 500))).toBe(3);
  expect((await open(false)).durableSequence, 'what was given up bears no witness').toBe(3);
  const reader = await CheckpointReader.open(recorder.access());
  expect(stamps(await reader.readAll())).toEqual(pairs(1, 3));
});

test('a fence that no writer has put there is not raised', async () => {
  const recorder = await formatted(16 * 1024);
  await recorder.access().write(FENCE_ADDRESS, [new Uint8Array(8).fill(0xff)]);
  await expect(CheckpointWriter.open(recorder.access())).rejects.toEqual(code('ERR_HOLDFAST_METADATA_DAMAGED'));
});

test('the place of a pulse is left alone', async () => {
  const recorder = await formatted(16 * 1024);
  const pulse = new Uint8Array(64).fill(0xa5);
  await recorder.access().write(PULSE_ADDRESS, [pulse]);
  await using writer = await CheckpointWriter.open(recorder.access());
  await writer.append(stamped(1, 100));
  await (await CheckpointReader.open(recorder.access(), { name: 'backup' })).clear(0);
  expect(recorder.content.subarray(PULSE_ADDRESS, PULSE_ADDRESS + 64)).toEqual(pulse);
});
