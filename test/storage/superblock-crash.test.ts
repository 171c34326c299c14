/** The superblock pair through every crash state of a short life, by the crash recorder. */
import { expect, onTestFinished, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { plantBug } from '../../lib/base/planted-bug.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { SuperblockPair } from '../../lib/storage/superblock-pair.ts';
import { CrashRecorder, type CrashReport, type CrashState } from '../../lib/testing/crash-recorder.ts';

const format = { name: 'test', version: 1 };
const layout = { copyOffsets: [0, 8192], copyBytes: 8192 } as const;

interface Promised {
  readonly tried: number;
  readonly done: number;
}

function record(number: number): Uint8Array {
  return new Uint8Array(5000).fill(number);
}

async function blankDevice(): Promise<MemoryDevice> {
  return new MemoryDevice({ sizeBytes: 16_384 });
}

/** Writes so many records one after the other, and notes what it has promised. */
async function live(recorder: CrashRecorder, pair: SuperblockPair, records: number): Promise<void> {
  for (let number = 2; number < 2 + records; number += 1) {
    recorder.note({ tried: number, done: number - 1 });
    await pair.write(record(number));
    recorder.note({ tried: number, done: number });
  }
}

/** Which record a reader finds, checked to be whole. */
async function find(device: BlockDevice): Promise<number> {
  const { payload } = await SuperblockPair.open(device, format, layout);
  expect(Buffer.compare(payload, record(payload[0]!))).toBe(0);
  return payload[0]!;
}

function promisedAt({ notes }: CrashState): Promised {
  return (notes.at(-1) as Promised | undefined) ?? { tried: 1, done: 1 };
}

async function replay(check: (device: BlockDevice, promised: Promised) => Promise<void>): Promise<CrashReport> {
  const memory = await blankDevice();
  await SuperblockPair.create(memory, format, layout, record(1));
  const recorder = new CrashRecorder();
  const device = await recorder.record(memory);
  await live(recorder, await SuperblockPair.open(device, format, layout), 3);
  return recorder.replay((image, state) => check(image, promisedAt(state)));
}

async function rot(device: BlockDevice, copy: 0 | 1): Promise<void> {
  const byte = new Uint8Array(1);
  await device.read(layout.copyOffsets[copy] + 100, byte);
  await device.write(layout.copyOffsets[copy] + 100, Uint8Array.of(byte[0]! ^ 1));
}

/** Rot of either copy brings back nothing older than what was promised: an error at most. */
async function checkRot(device: BlockDevice, { done }: Promised): Promise<void> {
  for (const copy of [0, 1] as const) {
    await rot(device, copy);
    try {
      expect(await find(device), `copy ${copy} is rotten`).toBeGreaterThanOrEqual(done);
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED')) throw error;
    }
    await rot(device, copy);
  }
}

test('every crash state opens with the old record or the new one, and after the write only with the new one', async () => {
  const report = await replay(async (device, { tried, done }) => {
    const found = await find(device);
    expect([done, tried]).toContain(found);
    const pair = await SuperblockPair.open(device, format, layout);
    expect(pair.damage.length).toBeLessThanOrEqual(1);
    await pair.repair();
    await pair.write(record(100));
    expect(await find(device)).toBe(100);
  });
  expect(report).toMatchObject({ failure: undefined, drawnEpochs: 0 });
  expect(report.states).toBeGreaterThan(100);
});

test('rot of either copy, after a crash at any moment, never brings back what was replaced', async () => {
  expect(await replay(checkRot)).toMatchObject({ failure: undefined, drawnEpochs: 0 });
});

test('a superblock that is written once only is found out', async () => {
  onTestFinished(() => plantBug(undefined));
  plantBug('superblock-written-once');
  const { failure } = await replay(checkRot);
  expect(failure?.error).toMatchObject({ message: expect.stringContaining('is rotten: expected 1 to be greater') });
});

test('a creation that was cut short leaves no older record behind the new one', async () => {
  const memory = await blankDevice();
  const old = await SuperblockPair.create(memory, format, layout, record(50));
  for (let times = 0; times < 3; times += 1) await old.write(record(50));
  const recorder = new CrashRecorder();
  const device = await recorder.record(memory);
  await SuperblockPair.create(device, format, layout, record(1));
  recorder.note('created');
  const found = new Set<string>();
  const report = await recorder.replay(async (image, { notes }) => {
    let outcome: string;
    try {
      const number = await find(image);
      outcome = `record ${number}`;
      // Once the new record has been seen, nothing of the old one is there to come back.
      for (const copy of [0, 1] as const) {
        if (number === 50) break;
        await rot(image, copy);
        await expect(find(image).catch(() => 1)).resolves.toBe(1);
        await rot(image, copy);
      }
    } catch (error) {
      if (!isHoldfastError(error)) throw error;
      outcome = error.code;
    }
    if (notes.includes('created')) expect(outcome).toBe('record 1');
    found.add(outcome);
  });
  expect(report).toMatchObject({ failure: undefined, drawnEpochs: 0 });
  expect(found).toEqual(
    new Set(['record 50', 'record 1', 'ERR_HOLDFAST_METADATA_MISSING', 'ERR_HOLDFAST_METADATA_DAMAGED']),
  );
});
