/** The mirror's protocol as transcripts that a person can review: test/mirror/transcripts/. */
import { expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { Pair } from './transcript.ts';

const preferred = (member: 0 | 1) => ({ kind: 'preferred', member }) as const;
const file = (name: string) => new URL(`transcripts/${name}.txt`, import.meta.url).pathname;

async function started(pair: Pair): Promise<Pair> {
  await pair.format();
  await pair.start('a');
  await pair.start('b');
  await pair.pass(1_000);
  return pair;
}

test('first sync, then a write and a read through each member', async () => {
  const pair = await started(new Pair(preferred(0)));
  await pair.write('a', 0, 1);
  await pair.write('b', 65_536, 2);
  await pair.read('b', 0);
  await pair.read('a', 65_536);
  await expect(pair.transcript).toMatchFileSnapshot(file('first-sync'));
});

test('two blank members begin without a copy', async () => {
  const pair = await started(new Pair(preferred(0), { blank: true }));
  await expect(pair.transcript).toMatchFileSnapshot(file('both-blank'));
});

test('the member without access is killed, the preferred one goes on, a bitmap resync follows', async () => {
  const pair = await started(new Pair(preferred(0), { blank: true }));
  pair.kill('b');
  await pair.write('a', 0, 3);
  await pair.start('b');
  await pair.pass(1_000);
  await pair.read('b', 0);
  expect(pair.peek('b', 0)).toBe(3);
  await expect(pair.transcript).toMatchFileSnapshot(file('peer-lost-and-back'));
});

test('the member with access is killed: the preferred one waits for the lease to end, then goes on', async () => {
  const pair = await started(new Pair(preferred(1), { blank: true }));
  await pair.write('a', 0, 4);
  pair.kill('a');
  await pair.pass(10);
  await pair.write('b', 65_536, 5);
  await pair.start('a');
  await pair.pass(2_000);
  await pair.read('a', 0);
  await pair.read('a', 65_536);
  expect([pair.peek('a', 0), pair.peek('a', 65_536)]).toEqual([4, 5]);
  await expect(pair.transcript).toMatchFileSnapshot(file('access-moves'));
});

test.each([
  ['just before', 4_900],
  ['long after', 60_000],
])(
  'a preferred member that stands still until %s its wait is over looks for the other one all the same',
  async (name, stillMs) => {
    const pair = await started(new Pair(preferred(0), { blank: true }));
    await pair.write('a', 0, 4);
    expect(pair.powerCut('a')).toBe(true);
    pair.cut();
    await pair.start('a');
    pair.pause('a');
    await pair.pass(stillMs);
    pair.resume('a');
    await pair.pass(500);
    pair.mend();
    await pair.pass(3_000);
    await pair.read('a', 0);
    expect(pair.peek('a', 0)).toBe(4);
    await expect(pair.transcript).toMatchFileSnapshot(file(`stands-still-until-${name.replace(' ', '-')}`));
  },
);

test('the peer is lost under suspend: the write waits until it is back', async () => {
  const pair = await started(new Pair({ kind: 'suspend' }, { blank: true }));
  pair.kill('b');
  await pair.pass(10);
  const write = pair.write('a', 0, 6);
  await Promise.race([write, pair.pass(5_000)]).catch(() => {});
  await expect(pair.transcript).toMatchFileSnapshot(file('suspended'));
});

test('after a power cut of one, the other one, stopped in order and started again, has what was acknowledged', async () => {
  const pair = await started(new Pair({ kind: 'suspend' }, { blank: true }));
  for (const [index, byte] of [19, 20, 21, 22].entries()) await pair.write('a', index * 65_536, byte);
  expect(pair.powerCut('a')).toBe(true);
  await pair.stop('b');
  await pair.start('b');
  await pair.start('a');
  await pair.pass(1_000);
  for (const name of ['a', 'b'] as const)
    expect([0, 65_536, 131_072, 196_608].map((offset) => pair.peek(name, offset))).toEqual([19, 20, 21, 22]);
  await expect(pair.transcript).toMatchFileSnapshot(file('power-cut-and-clean-stop'));
});

test('the member with access leaves in order, and comes back', async () => {
  const pair = await started(new Pair({ kind: 'suspend' }, { blank: true }));
  await pair.write('a', 0, 7);
  await pair.stop('a');
  await pair.write('b', 65_536, 8);
  await pair.start('a');
  await pair.pass(1_000);
  expect(pair.peek('a', 65_536)).toBe(8);
  await expect(pair.transcript).toMatchFileSnapshot(file('leaves-in-order'));
});

test('a member that leaves in order after writes that were not flushed is not sent them again', async () => {
  const pair = await started(new Pair(preferred(0), { blank: true }));
  await pair.write('a', 0, 11);
  await pair.stop('b');
  expect(pair.volume('a').status.markedBytes).toBe(0);
  await pair.start('b');
  await pair.pass(1_000);
  await expect(pair.transcript).toMatchFileSnapshot(file('leaves-without-access'));
});

test('forced while the other had gone on: a split brain is told, and both stop', async () => {
  const pair = await started(new Pair(preferred(0), { blank: true }));
  pair.kill('b');
  await pair.write('a', 0, 9);
  pair.kill('a');
  await pair.start('b');
  pair.say('-- the operator forces b');
  await pair.until(pair.volume('b').controller.force(false));
  await pair.write('b', 0, 10);
  await pair.start('a');
  await pair.pass(3_000);
  for (const name of ['a', 'b'] as const) {
    expect(pair.volume(name).status.problem?.code).toBe('ERR_HOLDFAST_SPLIT_BRAIN');
    expect(pair.volume(name).status.gate.mode).toBe('closed');
  }
  await expect(pair.transcript).toMatchFileSnapshot(file('split-brain'));
});

test('the link is cut while both have writes under way: under suspend both are acknowledged once it is mended', async () => {
  const pair = await started(new Pair({ kind: 'suspend' }, { blank: true }));
  await pair.write('b', 65_536, 1);
  pair.cut();
  const writes = [pair.beginWrite('a', 0, 12), pair.beginWrite('b', 65_536, 13)];
  await pair.pass(8_000);
  pair.mend();
  await pair.until(Promise.all(writes));
  for (const name of ['a', 'b'] as const) expect([pair.peek(name, 0), pair.peek(name, 65_536)]).toEqual([12, 13]);
  await expect(pair.transcript).toMatchFileSnapshot(file('link-cut-and-mended'));
});

test('the link is cut and both go on: the split brain is told with what each side would lose', async () => {
  const pair = await started(new Pair({ kind: 'continue' }, { blank: true }));
  pair.cut();
  await pair.write('a', 0, 14);
  await pair.write('b', 65_536, 15);
  pair.mend();
  await pair.pass(8_000);
  for (const name of ['a', 'b'] as const) {
    const { problem, gate } = pair.volume(name).status;
    expect(gate.mode).toBe('closed');
    expect(problem?.code).toBe('ERR_HOLDFAST_SPLIT_BRAIN');
    expect(problem?.message).toContain('b has the newer changes');
    expect(problem?.message).toContain('giving up a would lose up to 65536 bytes');
    pair.say(`${name} says: ${problem?.message}`);
  }
  await expect(pair.transcript).toMatchFileSnapshot(file('both-continue'));
});

async function startedWithTieBreaker(): Promise<Pair> {
  const pair = new Pair({ kind: 'majority' }, { blank: true });
  await pair.format();
  await pair.startTieBreaker();
  await pair.start('a');
  await pair.start('b');
  await pair.pass(1_000);
  return pair;
}

test('majority: the one that is killed is voted out, and is filled again when it is back', async () => {
  const pair = await startedWithTieBreaker();
  pair.kill('a');
  await pair.write('b', 0, 16);
  await pair.start('a');
  await pair.pass(1_000);
  await pair.read('a', 0);
  expect(pair.peek('a', 0)).toBe(16);
  await expect(pair.transcript).toMatchFileSnapshot(file('majority-killed'));
});

test('majority: the stale copy does not come back to life with the tie-breaker', async () => {
  const pair = await startedWithTieBreaker();
  pair.kill('b');
  await pair.write('a', 0, 17);
  pair.kill('a');
  await pair.start('b');
  await pair.pass(20_000);
  expect(pair.volume('b').status.gate).toEqual({ mode: 'closed', reason: 'outdated' });
  await pair.start('a');
  await pair.read('b', 0);
  await expect(pair.transcript).toMatchFileSnapshot(file('majority-stale'));
});

test('majority: of two that have lost each other one goes on, and the other learns it', async () => {
  const pair = await startedWithTieBreaker();
  pair.cut();
  await pair.pass(10_000);
  const gates = (['a', 'b'] as const).map((name) => pair.volume(name).status.gate);
  expect(gates.map(({ mode }) => mode).sort()).toEqual(['closed', 'local']);
  expect(gates.find(({ mode }) => mode === 'closed')?.reason).toBe('outdated');
  pair.mend();
  await pair.pass(5_000);
  expect(pair.volume('a').status.role).toBe('paired');
  await expect(pair.transcript).toMatchFileSnapshot(file('majority-link-cut'));
});

test('majority: alone among three nobody goes on, and all goes on when one voter is back', async () => {
  const pair = await startedWithTieBreaker();
  pair.kill('c');
  pair.kill('b');
  const write = pair.beginWrite('a', 0, 18);
  await pair.pass(20_000);
  expect(pair.volume('a').status.gate).toEqual({ mode: 'closed', reason: 'no-majority' });
  await pair.startTieBreaker();
  await pair.until(write);
  await expect(pair.transcript).toMatchFileSnapshot(file('majority-too-few'));
});

test('majority: a source that found no majority for its view left the target waiting for ever', async () => {
  const pair = await startedWithTieBreaker();
  await pair.write('a', 0, 22);
  pair.kill('b');
  let failures = 0;
  pair.beforeSwap = (name, { inSync }) => {
    if (name !== 'a' || inSync !== 1 || failures > 1) return;
    failures += 1;
    throw new HoldfastError('ERR_HOLDFAST_NO_MAJORITY', 'as told');
  };
  await pair.start('b');
  await pair.pass(10_000);
  expect(failures).toBe(2);
  for (const name of ['a', 'b'] as const) expect(pair.volume(name).status.role).toBe('paired');
  await expect(pair.transcript).toMatchFileSnapshot(file('majority-missed'));
});

test('a flush that failed once while the member stopped was forgotten: it said that it had stopped cleanly', async () => {
  const pair = await started(new Pair(preferred(0), { blank: true }));
  pair.kill('b');
  await pair.write('a', 0, 23);
  pair.faults('a').inject({ action: { kind: 'error' }, on: 'flush', times: 1 });
  await pair.stop('a');
  expect(pair.lines.filter((line) => line.includes('clean'))).toEqual([]);
});

test('a write that ended after the flush of a member that leaves was not durable when its record said clean', async () => {
  const pair = await started(new Pair({ kind: 'suspend' }, { blank: true }));
  const slow = pair
    .faults('a')
    .inject({ action: { kind: 'hang' }, on: 'write', within: { offset: 65_536, length: 1 } });
  const write = pair.beginWrite('a', 65_536, 24);
  await pair.pass(100);
  const stop = pair.volume('a').close();
  await pair.pass(1_000);
  slow.remove();
  await pair.until(Promise.all([write, stop]));
  expect(pair.unflushedAtClean).toEqual([0]);
});

test('a device that hung while the log was given names was never called failed', async () => {
  const pair = new Pair({ kind: 'suspend' });
  await pair.format();
  await pair.start('a');
  pair.faults('a').inject({ action: { kind: 'hang' }, on: 'write' });
  await pair.start('b');
  await pair.pass(100_000);
  expect(pair.volume('a').status.ownState).toBe('Failed');
});

test('a member that had left durably did not tell the peer, because its last flush failed', async () => {
  const pair = await started(new Pair({ kind: 'suspend' }, { blank: true }));
  await pair.write('a', 0, 25);
  // Two for the data, one for the bitmap, two for the record: the next one is of what the peer has sent.
  const fault = pair.faults('a').inject({ action: { kind: 'error' }, on: 'flush', skip: 5, times: 1 });
  await pair.stop('a');
  expect(fault.hits).toBe(1);
  expect(pair.lines).toContain('a    durable: view 3 {B}, access B, up-to-date, clean');
  await pair.write('b', 65_536, 26);
  expect(pair.volume('b').status.gate.mode).toBe('local');
});

test('a device failed while its member stopped: the write of the peer that it failed was not answered', async () => {
  const pair = await started(new Pair(preferred(0), { blank: true }));
  const closed = pair.volume('a').close();
  pair.faults('a').inject({ action: { kind: 'error' }, on: ['write', 'flush'] });
  void pair.beginWrite('b', 0, 26).catch(() => {});
  await pair.until(closed.catch(() => {}));
  await pair.pass(1_000);
  expect(pair.lines).toContain('b < a write failed');
});

test('a member without a device, or closed, cannot be forced', async () => {
  const pair = await started(new Pair({ kind: 'suspend' }, { blank: true }));
  pair.kill('b');
  await pair.pass(8_000);
  pair.faults('a').inject({ action: { kind: 'error' }, on: 'write', times: 1 });
  const { controller } = pair.volume('a');
  await expect(pair.until(controller.force(false))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  await expect(pair.until(controller.force(false))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_DEVICE_FAILED' });
  await pair.until(pair.volume('a').close());
  await expect(pair.until(controller.force(false))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_CLOSED' });
});

test('a read that hung in the device of a target kept the source waiting for ever', async () => {
  const pair = await started(new Pair(preferred(0), { blank: true }));
  const hang = pair.faults('b').inject({ action: { kind: 'hang' }, on: 'read' });
  const buffer = new Uint8Array(4096);
  const read = pair.volume('b').read(0, buffer);
  await pair.pass(100);
  pair.cut();
  await pair.write('a', 0, 27);
  pair.mend();
  await pair.pass(8_000);
  expect(pair.volume('a').status.role).toBe('paired');
  hang.remove();
  await pair.until(read);
  expect(buffer[0]).toBe(27);
});
