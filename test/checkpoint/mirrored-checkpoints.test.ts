/** Checkpoints in a mirrored region, with backups whose cursors lie in mirrored regions of their own. */
import { expect, test, vi } from 'vitest';
import { CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import type { ComposedAccess } from '../../lib/checkpoint/composed-access.ts';
import { createCursorIfBlank } from '../../lib/checkpoint/cursors.ts';
import { cursorAddress, PAGE_BYTES } from '../../lib/checkpoint/layout.ts';
import { openMirroredBackup, openMirroredPrimary } from '../../lib/checkpoint/mirrored-checkpoints.ts';
import { formatCheckpointRegion, readRegionRecord } from '../../lib/checkpoint/region-record.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';
import { stamped, stampOf } from './checkpoint-helpers.ts';
import { codeOf } from './mirror-stage.ts';
import { type ClientName, MirroredSite, STATE } from './mirrored-site.ts';

const CURSORS = [
  { name: 'cursor-0', registerId: 'e'.repeat(32) },
  { name: 'cursor-1', registerId: 'f'.repeat(32) },
];
const CHECKPOINTS = { region: STATE, cursors: CURSORS };
const RECORD_BYTES = 4000;

class CheckpointSite extends MirroredSite {
  next = 1;

  constructor() {
    super([STATE, ...CURSORS]);
  }

  override async start(): Promise<this> {
    await super.start();
    const main = await this.open('w1');
    await this.until(formatCheckpointRegion(main, { mode: 'append', cursors: 2 }));
    await main.close();
    return this;
  }

  async primary(name: ClientName = 'w1'): Promise<{ access: ComposedAccess; writer: CheckpointWriter }> {
    const access = await this.until(openMirroredPrimary(this.connection(name), CHECKPOINTS));
    return { access, writer: await this.until(CheckpointWriter.open(access)) };
  }

  async backup(cursor = 0, name: ClientName = 'w2'): Promise<CheckpointReader> {
    const access = await this.until(openMirroredBackup(this.connection(name), CHECKPOINTS, cursor));
    return this.until(CheckpointReader.open(access, { name: `backup-${cursor}`, cursor }));
  }

  give(writer: CheckpointWriter, count: number): Promise<number>[] {
    const given = Array.from({ length: count }, () => writer.append(stamped(this.next++, RECORD_BYTES)));
    for (const each of given) each.catch(() => {});
    return given;
  }

  /** How many are acknowledged within a while. */
  async append(writer: CheckpointWriter, count: number): Promise<number> {
    let acknowledged = 0;
    for (const each of this.give(writer, count))
      each.then(
        () => {
          acknowledged += 1;
        },
        () => {},
      );
    await this.pass(20_000);
    return acknowledged;
  }
}

/** Drains and clears all that is there. */
async function apply(site: MirroredSite, reader: CheckpointReader): Promise<number[]> {
  const checkpoints = await site.until(reader.drain());
  await site.until(reader.clear(reader.readSequence));
  return checkpoints.map(({ value }) => stampOf(value));
}

const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

test('a backup clears what it has applied, round the ring, while either unit is lost; its successor goes on there', async () => {
  const site = await new CheckpointSite().start();
  const { writer } = await site.primary();
  let reader = await site.backup();
  const applied: number[] = [];
  const round = async () => {
    expect(await site.append(writer, 30)).toBe(30);
    applied.push(...(await apply(site, reader)));
  };
  await round();
  site.kill(0);
  await round();
  await site.startUnit(0);
  await site.pass(20_000);
  site.kill(1);
  await round();
  site.cluster.node('w2').kill();
  await site.startClient('w2');
  reader = await site.backup();
  expect(reader.clearedSequence).toBe(90);
  await site.startUnit(1);
  for (let rounds = 0; rounds < 3; rounds += 1) await round();
  expect(applied).toEqual(numbers(1, 180));
});

test.each([1, 2, 3, 4])(
  'units come and go, and so does the backup: each checkpoint is applied once, seed %i',
  async (seed) => {
    const site = await new CheckpointSite().start();
    const random = new SimulatedRandom(seed, 'rounds');
    const { writer } = await site.primary();
    let reader = await site.backup();
    const applied: number[] = [];
    for (let round = 0; round < 8; round += 1) {
      const leg = random.chance(0.5) ? 0 : 1;
      site.give(writer, 20);
      await site.pass(random.between(0, 30));
      if (random.chance(0.5)) site.kill(leg);
      else site.cutPower(leg);
      await site.pass(random.between(100, 3000));
      if (random.chance(0.4)) {
        site.cluster.node('w2').kill();
        await site.startClient('w2');
        reader = await site.backup();
      }
      applied.push(...(await apply(site, reader)));
      await site.startUnit(leg);
      // Both regions have noticed, and have both units again, before the next one is lost.
      await site.pass(10_000);
      for (const region of [STATE, CURSORS[0]!])
        while (!(await site.stands('w1', region)).includes(' ab ')) await site.pass(200);
    }
    await site.pass(5000);
    applied.push(...(await apply(site, reader)));
    expect(applied).toEqual(numbers(1, 160));
  },
);

test('what one backup has not cleared is kept for it, until it is retired; one that was never there keeps nothing', async () => {
  const site = await new CheckpointSite().start();
  const { writer } = await site.primary();
  const quick = await site.backup(0);
  expect(await site.append(writer, 30)).toBe(30);
  await apply(site, quick);
  const slow = await site.backup(1, 'w1');
  expect(await site.append(writer, 60)).toBeLessThan(60);
  await apply(site, quick);
  await site.pass(20_000);
  const kept = writer.durableSequence;
  expect(kept).toBeLessThan(90);
  expect(stampOf((await site.until(slow.drain()))[0]!.value)).toBe(slow.clearedSequence + 1);
  const access = await site.until(openMirroredBackup(site.connection('w1'), CHECKPOINTS, 1));
  expect(await site.until(CheckpointReader.retire(access, 1))).toBe(true);
  await site.pass(20_000);
  await apply(site, quick);
  await site.pass(20_000);
  expect(writer.durableSequence).toBe(90);
});

test('as long as a cursor cannot be read nothing is given up: appends wait, and the writer can be closed', async () => {
  const site = await new CheckpointSite().start();
  const { writer } = await site.primary();
  const reader = await site.backup();
  site.kill(0);
  expect(await site.append(writer, 30)).toBe(30);
  await apply(site, reader);
  expect(await site.stands('w1', CURSORS[0])).toContain(' b ');
  site.cluster.node('w2').kill();
  await site.startUnit(0);
  await site.pass(20_000);
  expect(await site.stands()).toContain(' ab ');
  site.kill(1);
  const acknowledged = await site.append(writer, 30);
  expect(acknowledged).toBeLessThan(30);
  await site.startUnit(1);
  await site.pass(20_000);
  expect(writer.durableSequence).toBe(60);
  site.kill(1);
  await site.append(writer, 30);
  expect(writer.durableSequence).toBeLessThan(90);
  await site.until(writer.close());
});

test('the primary fails: its backup takes over, and reads to the end first', async () => {
  const site = await new CheckpointSite().start();
  const { writer } = await site.primary();
  const reader = await site.backup();
  expect(await site.append(writer, 20)).toBe(20);
  expect(await apply(site, reader)).toEqual(numbers(1, 20));
  expect(await site.append(writer, 5)).toBe(5);
  site.cluster.node('w1').kill();
  site.kill(0);
  const next = await site.primary('w2');
  expect((await site.until(reader.tail())).map(({ value }) => stampOf(value))).toEqual(numbers(21, 25));
  expect(await site.append(next.writer, 5)).toBe(5);
  expect((await site.until(reader.tail())).map(({ value }) => stampOf(value))).toEqual(numbers(26, 30));
});

test('a primary does not write the cursor of a backup, and a backup writes nothing else', async () => {
  const site = await new CheckpointSite().start();
  const { access } = await site.primary();
  const word = [new Uint8Array(8)];
  const rejection = (work: Promise<unknown>) => site.until(work.then(() => 'no error', codeOf));
  expect(await rejection(access.write(cursorAddress(1), word))).toBe('ERR_HOLDFAST_ACCESS');
  expect(await rejection(access.compareAndSwap(cursorAddress(1), 0n, 1n))).toBe('ERR_HOLDFAST_ACCESS');
  const backup = await site.until(openMirroredBackup(site.connection('w2'), CHECKPOINTS, 1));
  expect(await rejection(backup.write(cursorAddress(0), word))).toBe('ERR_HOLDFAST_ACCESS');
  expect(await rejection(openMirroredBackup(site.connection('w2'), CHECKPOINTS, 2))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
});

test('a cursor that was made in part is made again, one that is damaged is not', async () => {
  const access = new StoreRecorder(new Uint8Array(256 * 1024)).access();
  await formatCheckpointRegion(access, { mode: 'append', cursors: 2 });
  const record = await readRegionRecord(access);
  const pages = new Uint8Array(2 * PAGE_BYTES);
  await access.read(cursorAddress(0), pages);
  const found = new Uint8Array(pages.length);
  const isWhole = async (from: Uint8Array) => {
    await access.write(cursorAddress(0), [from]);
    await createCursorIfBlank(access, record, 0);
    await access.read(cursorAddress(0), found);
    return Buffer.compare(found, pages) === 0;
  };
  const torn = pages.slice();
  torn.fill(0, 64);
  const damaged = pages.slice();
  damaged[100]! ^= 1;
  damaged[PAGE_BYTES + 100]! ^= 1;
  expect(await isWhole(new Uint8Array(pages.length))).toBe(true);
  expect(await isWhole(torn)).toBe(true);
  expect(await isWhole(damaged)).toBe(false);
  const opening = CheckpointReader.open(access, { name: 'backup' });
  await expect(opening).rejects.toMatchObject({ code: 'ERR_HOLDFAST_METADATA_DAMAGED' });
});

test('a region that is too small for its cursors is refused, and not kept open', async () => {
  const site = await new CheckpointSite().start();
  const memory = site.connection('w1');
  const openWriter = vi.spyOn(memory, 'openWriter');
  const cursors = Array.from({ length: 64 }, () => CURSORS[0]!);
  const opening = openMirroredPrimary(memory, { region: STATE, cursors });
  const problem = await site.until(
    opening.then(
      () => undefined,
      (error: Error) => error,
    ),
  );
  expect(problem).toMatchObject({
    code: 'ERR_HOLDFAST_BAD_ARGUMENT',
    message: expect.stringContaining('no room for cursor'),
  });
  const [opened] = await Promise.all(openWriter.mock.results.map(({ value }) => value));
  expect(opened).toMatchObject({ open: false });
});

test('a primary whose connection is closed waits for no cursor any more', async () => {
  const site = await new CheckpointSite().start();
  const { access } = await site.primary();
  const watched = access.watch(cursorAddress(0), 8, Number.MAX_SAFE_INTEGER).then(() => 'no error', codeOf);
  await site.until(site.connection('w1').close());
  expect(await site.until(watched)).toBe('ERR_HOLDFAST_CLOSED');
});
