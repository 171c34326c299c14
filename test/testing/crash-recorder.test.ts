import { expect, test } from 'vitest';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import {
  cutsOf,
  isExhaustive,
  isPieceThere,
  planFromWords,
  planInWords,
  plansOf,
} from '../../lib/testing/crash-plans.ts';
import { CrashRecorder, type CrashState } from '../../lib/testing/crash-recorder.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { conformance, conformanceSizeBytes } from '../conformance/block-device.ts';

conformance('recording', async () => {
  const recorder = new CrashRecorder({ memoryBytesMax: 2 ** 30 });
  return { device: await recorder.record(new MemoryDevice({ sizeBytes: conformanceSizeBytes })) };
});

const BLOCK = 512;

async function makeRecorder() {
  const memory = new MemoryDevice({ sizeBytes: 64 * 1024 });
  await memory.write(0, block('.', 64));
  const faulty = new FaultyDevice(memory);
  const recorder = new CrashRecorder();
  const device = await recorder.record(faulty);
  return { memory, faulty, recorder, device };
}

function block(letter: string, blocks = 1): Uint8Array {
  return new Uint8Array(blocks * BLOCK).fill(letter.charCodeAt(0));
}

/** The first letters of the first blocks. */
async function lettersOf(device: BlockDevice, blocks: number): Promise<string> {
  const bytes = new Uint8Array(blocks * BLOCK);
  await device.read(0, bytes);
  let letters = '';
  for (let index = 0; index < blocks; index += 1) letters += String.fromCharCode(bytes[index * BLOCK]!);
  return letters;
}

/** Every state as the letters of the first blocks, by the notes before the crash. */
async function statesOf(recorder: CrashRecorder, blocks: number): Promise<Map<string, Set<string>>> {
  const states = new Map<string, Set<string>>();
  const { failure } = await recorder.replay(async (device, { notes }) => {
    const key = notes.join(' ');
    const found = states.get(key) ?? new Set();
    states.set(key, found.add(await lettersOf(device, blocks)));
  });
  expect(failure).toBeUndefined();
  return states;
}

test('what was written after the last flush is there in any subset, what was before it always', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(0, block('a'));
  recorder.note('one');
  await device.flush();
  recorder.note('flushed');
  await device.write(BLOCK, block('b'));
  await device.write(2 * BLOCK, block('c'));
  const states = await statesOf(recorder, 3);
  expect(states.get('one')).toEqual(new Set(['...', 'a..']));
  expect(states.get('one flushed')).toEqual(new Set(['a..', 'ab.', 'a.c', 'abc']));
});

test('a flush covers only what had ended when it began, and a failed one nothing', async () => {
  const { recorder, faulty, device } = await makeRecorder();
  const hang = faulty.inject({ action: { kind: 'hang' }, on: 'write', times: 1 });
  const late = device.write(0, block('a'));
  await device.write(BLOCK, block('b'));
  await device.flush();
  hang.remove();
  await late;
  recorder.note('late');
  faulty.inject({ action: { kind: 'error', when: 'after' }, on: 'flush', times: 1 });
  await expect(device.flush()).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  const states = await statesOf(recorder, 2);
  expect(states.get('late')).toEqual(new Set(['.b', 'ab']));
});

test('force unit access makes its own write durable and no other', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(0, block('a'));
  await device.write(BLOCK, block('b'), { fua: true });
  recorder.note('forced');
  const states = await statesOf(recorder, 2);
  expect(states.get('')).toEqual(new Set(['..', 'a.', '.b', 'ab']));
  expect(states.get('forced')).toEqual(new Set(['.b', 'ab']));
});

test('a write that failed may have happened, whatever is flushed later', async () => {
  const { recorder, faulty, device } = await makeRecorder();
  faulty.inject({ action: { kind: 'error' }, on: 'write', times: 1 });
  await expect(device.write(0, block('a'))).rejects.toThrow();
  await device.write(BLOCK, block('b'));
  await device.flush();
  recorder.note('flushed');
  expect((await statesOf(recorder, 2)).get('flushed')).toEqual(new Set(['.b', 'ab']));
});

test('zeroes and discards are kept, lost and torn as writes are', async () => {
  const { recorder, device } = await makeRecorder();
  await device.writeZeroes(0, BLOCK);
  await device.flush();
  recorder.note('zeroed');
  await device.discard(BLOCK, 2 * BLOCK);
  const states = await statesOf(recorder, 3);
  expect(states.get('')).toEqual(new Set(['...', '\0..']));
  expect(states.get('zeroed')).toEqual(new Set(['\0..', '\0\0\0', '\0\0.', '\0.\0']));
});

test('a write is torn to its first blocks, its last and every other', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(BLOCK, block('a', 4));
  const [states] = (await statesOf(recorder, 6)).values();
  const middles = ['....', 'aaaa', 'a...', 'aa..', 'aaa.', '...a', '..aa', '.aaa', 'a.a.', '.a.a'];
  expect(states).toEqual(new Set(middles.map((middle) => `.${middle}.`)));
});

test('two writes are torn together', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(0, block('a', 2));
  await device.write(2 * BLOCK, block('b', 2));
  const [states] = (await statesOf(recorder, 4)).values();
  for (const one of ['..', 'aa', 'a.', '.a'])
    for (const other of ['..', 'bb', 'b.', '.b']) expect(states).toContain(one + other);
});

test('an unaligned write is torn at the device’s blocks', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(BLOCK - 100, block('a').subarray(0, 200));
  const found = new Set<string>();
  await recorder.replay(async (image) => {
    const bytes = new Uint8Array(2 * BLOCK);
    await image.read(0, bytes);
    found.add(String.fromCharCode(bytes[BLOCK - 100]!, bytes[BLOCK - 1]!, bytes[BLOCK]!, bytes[BLOCK + 99]!));
  });
  expect(found).toEqual(new Set(['....', 'aa..', '..aa', 'aaaa']));
});

test('overlapping writes keep the order in which they were made', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(0, block('a', 2));
  await device.write(0, block('b'));
  const [states] = (await statesOf(recorder, 2)).values();
  // Not "aa" over "b": torn or lost, the later write is never under the earlier one.
  expect(states).toEqual(new Set(['..', 'aa', 'b.', 'ba', 'a.', '.a']));
  await device.flush();
  recorder.note('flushed');
  expect((await statesOf(recorder, 2)).get('flushed')).toEqual(new Set(['ba']));
});

test('overlapping writes that were in flight at one time fall in either order', async () => {
  const { recorder, faulty, device } = await makeRecorder();
  const hang = faulty.inject({ action: { kind: 'hang' }, on: 'write' });
  const both = [device.write(2 * BLOCK, block('a')), device.write(0, block('b', 5))];
  hang.remove();
  await Promise.all(both);
  await device.write(4 * BLOCK, block('c'));
  const [states] = (await statesOf(recorder, 5)).values();
  expect(states).toContain('bbbbc');
  expect(states).toContain('bbabc');
});

test('a durable write that overlapped a pending one in flight lies over it or under it', async () => {
  const { recorder, faulty, device } = await makeRecorder();
  const hang = faulty.inject({ action: { kind: 'hang' }, on: 'write' });
  const both = [device.write(0, block('a', 2)), device.write(0, block('b'), { fua: true })];
  hang.remove();
  await Promise.all(both);
  recorder.note('forced');
  const states = (await statesOf(recorder, 2)).get('forced');
  expect(states).toContain('b.');
  expect(states).toContain('ba');
  expect(states).toContain('aa');
  expect(states).not.toContain('..');
});

test('a durable write stays over an older one that no flush has covered', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(0, block('a', 2));
  await device.write(0, block('b'), { fua: true });
  recorder.note('forced');
  expect((await statesOf(recorder, 2)).get('forced')).toEqual(new Set(['b.', 'ba']));
});

test('several devices crash together', async () => {
  const recorder = new CrashRecorder();
  const data = await recorder.record(new MemoryDevice({ sizeBytes: 4096, name: 'data' }));
  const log = await recorder.record(new MemoryDevice({ sizeBytes: 4096, name: 'log' }));
  await log.write(0, block('l'), { fua: true });
  await data.write(0, block('d'));
  await log.flush();
  const found = new Set<string>();
  const report = await recorder.replay(async (device, { devices }) => {
    expect(device).toBe(devices[0]);
    const [first, second] = [await lettersOf(devices[0]!, 1), await lettersOf(devices[1]!, 1)];
    found.add(`${devices[1]!.name} ${second}, data ${first}`);
  });
  expect(report).toMatchObject({ epochs: 2, drawnEpochs: 0, states: 4, failure: undefined });
  expect(found).toEqual(new Set(['log \0, data \0', 'log l, data \0', 'log l, data d']));
});

test('the death of a process takes only what was in flight', async () => {
  const recorder = new CrashRecorder();
  const faulty = new FaultyDevice(new MemoryDevice({ sizeBytes: 4096 }));
  const device = await recorder.record(faulty, 'process-death');
  await device.write(0, block('a'));
  recorder.note('written');
  const hang = faulty.inject({ action: { kind: 'hang' }, on: 'write' });
  const later = device.write(BLOCK, block('b'));
  const states = await statesOf(recorder, 2);
  expect(states.get('')).toEqual(new Set(['\0\0', 'a\0']));
  expect(states.get('written')).toEqual(new Set(['a\0', 'ab']));
  hang.remove();
  await later;
});

test('the first failure names its state, and the state can be tried alone', async () => {
  const { recorder, device } = await makeRecorder();
  for (const [index, letter] of ['a', 'b', 'c'].entries()) await device.write(2 * index * BLOCK, block(letter, 2));
  const check = async (image: BlockDevice) => {
    if ((await lettersOf(image, 6)) === 'aa..c.') throw new Error('found it');
  };
  const { failure } = await recorder.replay(check);
  expect(failure).toMatchObject({ key: 'epoch 0: keep 0 2, tear 2 first 1', error: { message: 'found it' } });
  const tried: CrashState[] = [];
  const again = await recorder.replay(
    (image, state) => {
      tried.push(state);
      return check(image);
    },
    { only: failure!.key },
  );
  expect(again.failure).toMatchObject({ key: failure!.key });
  expect(tried.map(({ key, pending }) => [key, pending.length])).toEqual([[failure!.key, 3]]);
  for (const only of ['', 'epoch 0: keep 7', 'epoch 9: keep', 'epoch 0: keep 0, tear 1 first 1', 'epoch 0: tear 1'])
    await expect(recorder.replay(check, { only })).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
});

test('a check may write to its state; the next one does not see it', async () => {
  const { recorder, device } = await makeRecorder();
  await device.write(0, block('a'));
  await device.write(BLOCK, block('b'));
  const [states] = (await statesOf(recorder, 3)).values();
  await recorder.replay(async (image) => {
    expect(states).toContain(await lettersOf(image, 3));
    await image.write(2 * BLOCK, block('x'));
    await image.writeZeroes(0, BLOCK);
    await image.flush();
  });
  expect(await lettersOf(device, 3)).toBe('ab.');
});

test('states that leave the same bytes are checked once', async () => {
  const { recorder, device } = await makeRecorder();
  for (let times = 0; times < 3; times += 1) await device.write(0, block('a'));
  const report = await recorder.replay(() => {});
  expect(report).toMatchObject({ states: 2, equalStates: 6 });
});

test('with many writes every omission of two is tried, and by lot as many others, the same for the same seed', async () => {
  const { recorder, device } = await makeRecorder();
  for (let index = 0; index < 16; index += 1) await device.write(index * BLOCK, block('a'));
  const statesFor = async (seed: number) => {
    const found: string[] = [];
    const report = await recorder.replay(async (image) => void found.push(await lettersOf(image, 16)), {
      seed,
      statesMax: 200,
    });
    expect(report).toMatchObject({ epochs: 1, drawnEpochs: 1, states: found.length });
    return found;
  };
  const found = await statesFor(1);
  const omissions = found.filter((letters) => [...letters].filter((letter) => letter === '.').length === 2);
  expect(new Set(omissions).size).toBe((16 * 15) / 2);
  expect(found).toContain('................');
  expect(found).toContain('aaaaaa..........');
  expect(found.length).toBeGreaterThan(250);
  expect(await statesFor(1)).toEqual(found);
  expect(await statesFor(2)).not.toEqual(found);
});

test('a replay can be stopped, and tells how far it is', async () => {
  const { recorder, device } = await makeRecorder();
  for (let index = 0; index < 3; index += 1) {
    await device.write(index * BLOCK, block('a'));
    await device.flush();
  }
  const stop = new AbortController();
  const told: string[] = [];
  const replay = recorder.replay(() => {}, {
    signal: stop.signal,
    onProgress: ({ epoch, epochs, states }) => {
      told.push(`${epoch} of ${epochs}, ${states}`);
      if (epoch === 2) stop.abort();
    },
  });
  await expect(replay).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
  expect(told).toEqual(['0 of 4, 0', '1 of 4, 2', '2 of 4, 4']);
});

test('a recording that would take too much memory is refused', async () => {
  const recorder = new CrashRecorder({ memoryBytesMax: 8192 });
  const memory = new MemoryDevice({ sizeBytes: 64 * 1024 });
  await memory.write(0, block('x'));
  const device = await recorder.record(memory);
  await device.write(0, new Uint8Array(4096));
  const refused = { code: 'ERR_HOLDFAST_MEMORY_EXHAUSTED' };
  await expect(device.write(0, new Uint8Array(4096))).rejects.toMatchObject(refused);
  await memory.write(0, new Uint8Array(16_384).fill(1));
  await expect(new CrashRecorder({ memoryBytesMax: 8192 }).record(memory)).rejects.toMatchObject(refused);
});

test('a buffer that changes while it is written is recorded as it was', async () => {
  const { recorder, memory, device } = await makeRecorder();
  const bytes = block('a');
  const written = device.write(0, bytes);
  bytes.fill('b'.charCodeAt(0));
  await written;
  await device.flush();
  recorder.note('flushed');
  expect(await lettersOf(memory, 1)).toBe('a');
  expect((await statesOf(recorder, 1)).get('flushed')).toEqual(new Set(['a']));
});

// --- the plans

const limits = { exhaustiveWrites: 10, statesMax: 4096 };

test('up to the limit every subset is planned, with every tear, every two and every exchange in every one', () => {
  const shape = { pieces: [1, 2, 8], pairs: [[0, 1]] as [number, number][] };
  const plans = [...plansOf(shape, limits, new SimulatedRandom(0))];
  expect(isExhaustive(shape, limits)).toBe(true);
  expect(new Set(plans.map((plan) => planInWords(plan, [0, 1, 2]))).size).toBe(plans.length);
  const subsets = plans.filter(({ torn, exchanged }) => torn.length === 0 && exchanged === undefined);
  expect(subsets).toHaveLength(8);
  expect(plans.filter(({ torn }) => torn.length === 1)).toHaveLength(4 * (2 + 16));
  expect(plans.filter(({ torn }) => torn.length === 2)).toHaveLength(2 * 2 * 16);
  expect(plans.filter(({ exchanged }) => exchanged !== undefined)).toHaveLength(2);
});

test('ten writes are planned in every subset, eleven are not; tears that are too many are drawn', () => {
  const ten = { pieces: Array.from({ length: 10 }, () => 1), pairs: [] };
  expect([...plansOf(ten, limits, new SimulatedRandom(0))]).toHaveLength(1024);
  expect(isExhaustive(ten, limits)).toBe(true);
  expect(isExhaustive({ ...ten, pieces: [...ten.pieces, 1] }, limits)).toBe(false);
  const torn = { pieces: Array.from({ length: 10 }, () => 8), pairs: [] };
  expect(isExhaustive(torn, limits)).toBe(false);
  expect([...plansOf(torn, limits, new SimulatedRandom(0))]).toHaveLength(1024 + 2 * 4096);
});

test('every plan keeps what it tears and exchanges, and is the same read back from its words', () => {
  const indexes = [3, 4, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 30];
  const shape = {
    pieces: indexes.slice(0, -1).map((index) => (index % 5) + 1),
    pairs: [
      [1, 2],
      [3, 12],
    ] as [number, number][],
  };
  const sorts = new Set<string>();
  for (const plan of plansOf(shape, { ...limits, statesMax: 300 }, new SimulatedRandom(5))) {
    expect(planFromWords(planInWords(plan, indexes), indexes, 12)).toEqual(plan);
    for (const { write } of plan.torn) expect(plan.kept).toContain(write);
    sorts.add(`${plan.torn.length} ${plan.exchanged?.join()}`);
  }
  expect([...sorts].sort()).toEqual(['0 1,2', '0 3,12', '0 undefined', '1 undefined', '2 undefined']);
});

test('a cut leaves some pieces and takes some', () => {
  expect(cutsOf(1)).toEqual([]);
  for (const pieces of [2, 3, 8, 16, 17, 4096]) {
    const cuts = cutsOf(pieces).map((cut) =>
      Array.from({ length: pieces }, (_, piece) => (isPieceThere(cut, piece, pieces) ? 'x' : '.')).join(''),
    );
    expect(new Set(cuts).size).toBe(cuts.length);
    for (const cut of cuts) expect(cut).toMatch(/x.*\.|\..*x/);
  }
});
