/** A voter's file through every crash state of a short life, by the crash recorder. */
import { expect, onTestFinished, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { plantBug } from '../../lib/base/planted-bug.ts';
import { VOTER_FILE_BYTES, VoterFile } from '../../lib/coherency/voter-file.ts';
import { NEW_VOTER, type VoterState } from '../../lib/peer/arbiter.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { CrashRecorder, type CrashReport } from '../../lib/testing/crash-recorder.ts';

const owner = { registerId: '00112233445566778899aabbccddeeff', nodeName: 'tie' };
const COPIES = [0, VOTER_FILE_BYTES - 4096];

/** A promise, then what was accepted under it; and so on. */
const STATES: readonly VoterState[] = [1, 2, 3].flatMap((counter) => {
  const ballot = (of: number) => (of === 0 ? NEW_VOTER.accepted : { counter: of, node: of % 2 });
  const value = (of: number) => (of === 0 ? '' : `view ${of}`.padEnd(128, '.'));
  return [
    { promised: ballot(counter), accepted: ballot(counter - 1), value: value(counter - 1) },
    { promised: ballot(counter), accepted: ballot(counter), value: value(counter) },
  ];
});

/** How many of the states had been written when this one was the newest. */
async function find(device: BlockDevice): Promise<number> {
  const { voter } = await VoterFile.open(device, owner);
  const index = [NEW_VOTER, ...STATES].findIndex(
    (state) => JSON.stringify(inOrder(state)) === JSON.stringify(inOrder(voter)),
  );
  if (index < 0) expect.fail(`a state that nobody wrote: ${JSON.stringify(voter)}`);
  return index;
}

function inOrder({ promised, accepted, value }: VoterState): unknown[] {
  return [promised.counter, promised.node, accepted.counter, accepted.node, value];
}

async function flip(device: BlockDevice, offset: number): Promise<void> {
  const byte = new Uint8Array(1);
  await device.read(offset, byte);
  await device.write(offset, Uint8Array.of(byte[0]! ^ 1));
}

async function replay(): Promise<CrashReport> {
  const memory = new MemoryDevice({ sizeBytes: VOTER_FILE_BYTES });
  await VoterFile.create(memory, owner);
  const recorder = new CrashRecorder();
  const file = await VoterFile.open(await recorder.record(memory), owner);
  for (const [index, state] of STATES.entries()) {
    await file.writeVoter(state);
    recorder.note(index + 1);
  }
  return recorder.replay(async (image, { notes }) => {
    const answered = notes.length;
    const before = new Uint8Array(VOTER_FILE_BYTES);
    await image.read(0, before);
    for (const copy of COPIES) {
      await flip(image, copy + 100);
      try {
        expect([answered, answered + 1]).toContain(await find(image));
      } catch (error) {
        if (!isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED')) throw error;
        // Only while the next state is being written can the other copy be in doubt as well.
        expect(answered).toBeLessThan(STATES.length);
      }
      await image.write(0, before);
    }
    expect([answered, answered + 1]).toContain(await find(image));
  });
}

test('no crash, and no rot of one copy after it, makes a voter forget what it has answered', async () => {
  const report = await replay();
  expect(report).toMatchObject({ failure: undefined, drawnEpochs: 0 });
  expect(report.states).toBeGreaterThan(20);
});

test('a voter whose file is written once only is found out', async () => {
  onTestFinished(() => plantBug(undefined));
  plantBug('superblock-written-once');
  expect((await replay()).failure).toBeDefined();
});
