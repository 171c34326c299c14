/** Writers and readers at one time, in any interleaving: linearizable slots, series without gap or duplicate. */
import { expect, onTestFinished, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { type PlantedBug, plantBug } from '../../lib/base/planted-bug.ts';
import { CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import { checkLinearizable, INITIAL_VALUE, type Operation } from '../../lib/testing/history.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { formatted, stamped, stampOf } from './checkpoint-helpers.ts';
import { ScheduledRegion } from './scheduled-region.ts';

const SEEDS = 100;
const LIMIT_MS = 600_000;

interface World {
  readonly random: SimulatedRandom;
  readonly scheduler: Scheduler;
  readonly region: ScheduledRegion;
}

async function newWorld(seed: number, mode: 'append' | 'overwrite'): Promise<World> {
  const random = new SimulatedRandom(seed, 'race');
  const scheduler = new Scheduler();
  const recorder = await formatted(mode === 'append' ? 4096 : 8192, { mode });
  return { random, scheduler, region: new ScheduledRegion(scheduler, random.fork('region'), recorder.content) };
}

function pause({ scheduler, random }: World, mostUs: number): Promise<void> {
  return new Promise((resolve) => scheduler.schedule(random.below(mostUs), resolve));
}

/** A fenced writer goes away; anything else is wrong. */
async function untilFenced(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_FENCED')) throw error;
  }
}

/** Three writers, each of which takes over from the one before, and readers that look all the time. */
async function raceSlots(seed: number): Promise<void> {
  const world = await newWorld(seed, 'overwrite');
  const { scheduler, region, random } = world;
  const history: Operation[] = [];
  let time = 0;
  let stamp = 0;
  let working = 0;
  const write = async (writer: CheckpointWriter) => {
    const operation = { kind: 'write' as const, value: ++stamp, start: ++time, end: Number.POSITIVE_INFINITY };
    history.push(operation);
    await writer.overwrite(stamped(operation.value, 8 * (1 + random.below(60))));
    operation.end = ++time;
  };
  const primary = async () => {
    working++;
    await untilFenced(async () => {
      const writer = await CheckpointWriter.open(region.access());
      for (let each = 0; each < 12; each++) {
        await Promise.all(Array.from({ length: 1 + random.below(2) }, () => write(writer)));
        await pause(world, 1000);
      }
    });
    working--;
  };
  const backup = async () => {
    const reader = await CheckpointReader.open(region.access());
    while (working > 0) {
      const start = ++time;
      const found = await reader.latest();
      const value = found === undefined ? INITIAL_VALUE : stampOf(found.value);
      expect(value, 'nothing torn is seen').not.toBeNaN();
      history.push({ kind: 'read', value, start, end: ++time });
      await pause(world, 500);
    }
  };
  const after = async (mostUs: number, work: () => Promise<void>) => {
    working++;
    await pause(world, mostUs);
    working--;
    await work();
  };
  const all = [primary(), after(30_000, primary), after(60_000, primary), backup(), backup()];
  await scheduler.runUntil(Promise.all(all), LIMIT_MS);
  expect(checkLinearizable(history)).toBeUndefined();
}

/** Writers that take over from each other while one backup follows and clears, and another drains now and then. */
async function raceSeries(seed: number): Promise<void> {
  const world = await newWorld(seed, 'append');
  const { scheduler, region, random } = world;
  const acknowledged = new Map<number, number>();
  const given = [new Map<number, number>(), new Map<number, number>()] as const;
  let stamp = 0;
  let working = 0;
  const stop = new AbortController();
  const append = async (writer: CheckpointWriter) => {
    const own = ++stamp;
    const sequence = await writer.append(stamped(own, 8 * (1 + random.below(100))));
    expect(acknowledged.get(sequence), `checkpoint ${sequence} is acknowledged once`).toBeUndefined();
    acknowledged.set(sequence, own);
  };
  const primary = async (delayUs: number) => {
    working++;
    await pause(world, delayUs);
    await untilFenced(async () => {
      const writer = await CheckpointWriter.open(region.access());
      for (let each = 0; each < 8; each++) {
        await Promise.all(Array.from({ length: 1 + random.below(4) }, () => append(writer)));
        await pause(world, 1000);
      }
    });
    if (--working === 0) stop.abort();
  };
  const take = (backup: 0 | 1, checkpoints: readonly { sequence: number; value: Uint8Array }[]) => {
    for (const { sequence, value } of checkpoints) {
      expect(sequence, 'one after the other').toBe(given[backup].size + 1);
      given[backup].set(sequence, stampOf(value));
    }
  };
  const follower = async (reader: CheckpointReader) => {
    try {
      for await (const checkpoint of reader.follow({ signal: stop.signal })) {
        take(0, [checkpoint]);
        if (random.chance(0.3)) await reader.clear(checkpoint.sequence);
      }
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_ABORTED')) throw error;
    }
  };
  const cleaner = async (reader: CheckpointReader) => {
    while (!stop.signal.aborted) {
      await pause(world, 20_000);
      await reader.clear(reader.readSequence);
    }
  };
  const drainer = async (reader: CheckpointReader) => {
    while (!stop.signal.aborted) {
      take(1, await reader.drain({ maxBytes: 1 + random.below(2000) }));
      if (random.chance(0.7)) await reader.clear(reader.readSequence);
      await pause(world, 3000);
    }
  };
  const run = async () => {
    const readers = await Promise.all(
      [0, 1].map((cursor) => CheckpointReader.open(region.access(), { name: `backup-${cursor}`, cursor })),
    );
    const [one, two] = readers as [CheckpointReader, CheckpointReader];
    await Promise.all([primary(1), primary(40_000), primary(80_000), follower(one), cleaner(one), drainer(two)]);
    // The end is certain only now.
    await CheckpointWriter.open(region.access());
    take(0, await one.tail());
    take(1, await two.tail());
  };
  await scheduler.runUntil(run(), LIMIT_MS);
  expect(given[0]).toEqual(given[1]);
  for (const [sequence, own] of acknowledged) expect(given[0].get(sequence), `checkpoint ${sequence}`).toBe(own);
}

async function firstFailure(race: (seed: number) => Promise<void>, seeds: number): Promise<unknown> {
  for (let seed = 1; seed <= seeds; seed++) {
    try {
      await race(seed);
    } catch (error) {
      return `seed ${seed}: ${error}`;
    }
  }
  return undefined;
}

test('slots are linearizable, whoever takes over meanwhile', async () => {
  expect(await firstFailure(raceSlots, SEEDS)).toBeUndefined();
}, 120_000);

test('a series has no gap and no duplicate, whoever takes over meanwhile', async () => {
  expect(await firstFailure(raceSeries, SEEDS)).toBeUndefined();
}, 120_000);

test.each<[PlantedBug, (seed: number) => Promise<void>]>([
  ['slots-looked-at-once', raceSlots],
  ['slot-checksum-unchecked', raceSlots],
  ['fence-not-raised', raceSlots],
  ['fence-not-raised', raceSeries],
  ['record-checksum-unchecked', raceSeries],
])(
  '%s is found',
  async (bug, race) => {
    onTestFinished(() => plantBug(undefined));
    plantBug(bug);
    const failure = await firstFailure(race, 10 * SEEDS);
    expect(failure).toBeDefined();
  },
  120_000,
);
