import { describe, expect, test } from 'vitest';
import { NEW_VOTER } from '../../lib/peer/arbiter.ts';
import { compareBallots } from '../../lib/peer/register.ts';
import { RegisterService } from '../../lib/peer/register-service.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { REGISTER_ID, RegisterCluster, VOTERS } from './register-cluster.ts';

const file = (name: string) => new URL(`transcripts/${name}.txt`, import.meta.url).pathname;

async function started(): Promise<RegisterCluster> {
  return new RegisterCluster().startAll();
}

describe('with all voters there', () => {
  test('a swap is answered, and a second one sees the first', async () => {
    const trio = await started();
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    expect(await trio.swap('b', '', 'two')).toBe('it is one');
    expect(await trio.swap('b', 'one', 'two')).toBe('now two');
    expect(await trio.swap('a', 'one', 'three')).toBe('it is two');
    const holders = VOTERS.filter((name) => trio.disks.get(name)!.value === 'two');
    expect(holders.length).toBeGreaterThanOrEqual(2);
  });

  test('a swap that has happened already is a success again', async () => {
    const trio = await started();
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    expect(await trio.swap('b', '', 'one')).toBe('now one');
  });

  test('swaps of one arbiter wait for each other', async () => {
    const trio = await started();
    const all = [trio.ask('a', '', 'one'), trio.ask('a', 'one', 'two'), trio.ask('a', 'one', 'three')];
    expect(await trio.until(Promise.all(all))).toEqual(['now one', 'now two', 'it is two']);
  });

  test('what cannot be a value is refused before anything is asked', async () => {
    const trio = await started();
    for (const value of ['x'.repeat(129), 'zwölf', 'a\nb'])
      expect(await trio.swap('a', '', value)).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
    expect(trio.lines).toEqual([]);
  });
});

describe('with voters away', () => {
  test.each(VOTERS.slice(1))('without %s a majority is left', async (away) => {
    const trio = await started();
    trio.kill(away);
    expect(await trio.swap('a', '', 'one')).toBe('now one');
  });

  test('two that are cut off are too many, and it works again when one is back', async () => {
    const trio = await started();
    for (const other of ['b', 'tie']) trio.cluster.network.partition('a', other);
    const startMs = trio.cluster.scheduler.nowMs;
    expect(await trio.swap('a', '', 'one')).toBe('ERR_HOLDFAST_NO_MAJORITY');
    expect(trio.cluster.scheduler.nowMs - startMs).toBeCloseTo(5000, -1);
    expect(trio.arbiters.get('a')!.reach.map(({ isInReach }) => isInReach)).toEqual([true, false, false]);
    expect(await trio.swap('b', '', 'two')).toBe('now two');
    trio.cluster.network.heal('a', 'tie');
    await trio.pass(10_000);
    expect(await trio.swap('a', '', 'one')).toBe('it is two');
    expect(trio.arbiters.get('a')!.reach.map(({ isInReach }) => isInReach)).toEqual([true, false, true]);
  });

  test('a voter that comes during a swap is asked then', async () => {
    const trio = new RegisterCluster();
    await trio.start('a');
    const swap = trio.arbiters.get('a')!.compareAndSwap('', 'one');
    await trio.pass(1000);
    expect(trio.disks.get('a')!.promised.counter).toBe(1);
    await trio.start('tie');
    const startMs = trio.cluster.scheduler.nowMs;
    expect(await trio.until(swap)).toEqual({ swapped: true });
    expect(trio.cluster.scheduler.nowMs - startMs).toBeLessThan(2000);
  });

  test('a proposer that is killed and starts again takes no ballot twice', async () => {
    const trio = await started();
    trio.cluster.network.partition('a', 'b');
    trio.cluster.network.partition('a', 'tie');
    const lost = trio.arbiters.get('a')!.compareAndSwap('', 'lost');
    lost.catch(() => {});
    await trio.pass(100);
    const before = trio.disks.get('a')!.promised;
    expect(before).toEqual({ counter: 1, node: 0 });
    trio.kill('a');
    trio.cluster.network.heal('a', 'b');
    trio.cluster.network.heal('a', 'tie');
    await trio.start('a');
    await trio.pass(5000);
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    expect(compareBallots(trio.disks.get('a')!.accepted, before)).toBeGreaterThan(0);
  });

  test('who cancels is answered at once, and the next swap works', async () => {
    const trio = await started();
    for (const other of ['b', 'tie']) trio.cluster.network.partition('a', other);
    const abort = new AbortController();
    const swap = trio.ask('a', '', 'one', abort.signal);
    abort.abort();
    const startMs = trio.cluster.scheduler.nowMs;
    expect(await trio.until(swap)).toBe('ERR_HOLDFAST_ABORTED');
    expect(trio.cluster.scheduler.nowMs - startMs).toBeLessThan(100);
    for (const other of ['b', 'tie']) trio.cluster.network.heal('a', other);
    await trio.pass(10_000);
    expect(await trio.swap('a', '', 'two')).toBe('now two');
  });
});

describe('a question: a swap of a value with itself', () => {
  test('is answered where a majority agrees, without a ballot and without a write', async () => {
    const trio = await started();
    expect(await trio.swap('a', '', '')).toBe('now ');
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    await trio.pass(100);
    const before = new Map(trio.disks);
    trio.lines.length = 0;
    expect(await trio.swap('b', 'one', 'one')).toBe('now one');
    expect(await trio.swap('b', '', '')).toBe('it is one');
    trio.kill('tie');
    await trio.pass(100);
    expect(await trio.swap('a', 'two', 'two')).toBe('it is one');
    expect(trio.disks).toEqual(before);
    expect(trio.lines.filter((line) => !line.includes(' look'))).toEqual([]);
  });

  test('does not go by what a voter alone has accepted, nor by the older one of two', async () => {
    const trio = new RegisterCluster();
    const ballot = (counter: number) => ({ counter, node: 0 });
    trio.disks.set('a', { promised: ballot(3), accepted: ballot(3), value: 'new' });
    for (const name of ['b', 'tie'] as const)
      trio.disks.set(name, { promised: ballot(2), accepted: ballot(2), value: 'old' });
    await trio.startAll();
    trio.kill('b');
    await trio.pass(100);
    // One of the two has what may have been chosen with the third: it is finished first.
    expect(await trio.swap('a', 'old', 'old')).toBe('it is new');
    expect(trio.disks.get('tie')).toMatchObject({ value: 'new' });
  });

  test('does not wait for a voter that hangs while the other two agree', async () => {
    const trio = await started();
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    await trio.pass(100);
    trio.cluster.network.partition('a', 'b');
    const startMs = trio.cluster.scheduler.nowMs;
    expect(await trio.swap('a', 'one', 'one')).toBe('now one');
    expect(trio.cluster.scheduler.nowMs - startMs).toBeLessThan(100);
  });

  test('shows that a voter which could not answer before answers again', async () => {
    const trio = new RegisterCluster();
    for (const name of ['a', 'b'] as const) await trio.start(name);
    await trio.start('tie', VOTERS, false);
    await trio.pass(2000);
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    await trio.pass(1000);
    expect(await trio.swap('a', 'one', 'one')).toBe('now one');
    await trio.pass(100);
    expect(trio.arbiters.get('a')!.reach[2]).toMatchObject({ problem: { code: 'ERR_HOLDFAST_NO_SUCH_VOLUME' } });
    const store = { voter: NEW_VOTER, writeVoter: async () => {} };
    RegisterService.of(trio.nodes.get('tie')!).add({ registerId: REGISTER_ID, voters: VOTERS, self: 2, store });
    expect(await trio.swap('a', 'one', 'one')).toBe('now one');
    await trio.pass(100);
    expect(trio.arbiters.get('a')!.reach[2]).toEqual({ name: 'tie', isInReach: true, problem: undefined });
  });

  test('that is asked without a pause does not keep others from changing something', async () => {
    const link = { delayMinMs: 0.05, delayMaxMs: 0.2 };
    const trio = await new RegisterCluster({ link }).startAll();
    let isOver = false;
    let asked = 0;
    const asking = (async () => {
      for (; !isOver && asked < 10_000; asked++) await trio.arbiters.get('a')!.compareAndSwap('', '');
    })();
    const startMs = trio.cluster.scheduler.nowMs;
    for (let count = 0; count < 20; count++)
      expect(await trio.swap('b', count === 0 ? '' : `b${count - 1}`, `b${count}`)).toBe(`now b${count}`);
    isOver = true;
    await trio.until(asking);
    expect(asked).toBeGreaterThan(20);
    expect(trio.cluster.scheduler.nowMs - startMs).toBeLessThan(20 * 50);
  });
});

describe('a voter that cannot vote', () => {
  test('after a failed write it answers nothing until it is opened again', async () => {
    const trio = await started();
    trio.failing.add('tie');
    expect(await trio.swap('a', '', 'one')).toBe('now one');
    trio.failing.delete('tie');
    trio.kill('b');
    await trio.pass(100);
    expect(await trio.swap('a', 'one', 'two')).toBe('ERR_HOLDFAST_NO_MAJORITY');
    expect(trio.arbiters.get('a')!.reach[2]).toMatchObject({ problem: { code: 'ERR_HOLDFAST_IO' } });
    trio.kill('tie');
    await trio.start('tie');
    await trio.pass(5000);
    expect(await trio.swap('a', 'one', 'two')).toBe('now two');
  });

  test('a proposer whose own voter is out says so at once', async () => {
    const trio = await started();
    trio.failing.add('a');
    const startMs = trio.cluster.scheduler.nowMs;
    expect(await trio.swap('a', '', 'one')).toBe('ERR_HOLDFAST_NO_MAJORITY');
    expect(await trio.swap('a', '', 'one')).toBe('ERR_HOLDFAST_NO_MAJORITY');
    expect(trio.cluster.scheduler.nowMs - startMs).toBeLessThan(100);
    expect(trio.lines).toEqual([]);
    expect(await trio.swap('b', '', 'one')).toBe('now one');
  });

  test('voters that name other voters are not counted: two majorities need not meet', async () => {
    const trio = new RegisterCluster();
    await trio.start('a');
    await trio.start('b', ['b', 'a', 'tie']);
    await trio.start('tie', ['tie', 'b', 'a']);
    await trio.pass(5000);
    expect(await trio.swap('a', '', 'one')).toBe('ERR_HOLDFAST_NO_MAJORITY');
    expect(trio.arbiters.get('a')!.reach[1]).toMatchObject({ problem: { code: 'ERR_HOLDFAST_SETTINGS_DIFFER' } });
    expect(trio.disks.get('b')!.promised.counter).toBe(0);
  });

  test('a process without the voter says so, and is asked again while the swap lasts', async () => {
    const trio = new RegisterCluster();
    await trio.start('a');
    await trio.start('tie', VOTERS, false);
    await trio.pass(2000);
    const swap = trio.ask('a', '', 'one');
    await trio.pass(1000);
    expect(trio.arbiters.get('a')!.reach[2]).toMatchObject({ problem: { code: 'ERR_HOLDFAST_NO_SUCH_VOLUME' } });
    const tie = RegisterService.of(trio.nodes.get('tie')!);
    const voter = { registerId: REGISTER_ID, voters: VOTERS, store: { voter: NEW_VOTER, writeVoter: async () => {} } };
    expect(() => tie.add({ ...voter, self: 1 })).toThrow(/its place/);
    tie.add({ ...voter, self: 2 });
    expect(() => tie.add({ ...voter, self: 2 })).toThrow(/already/);
    expect(await trio.until(swap)).toBe('now one');
    expect(trio.arbiters.get('a')!.reach[2]).toEqual({ name: 'tie', isInReach: true, problem: undefined });
  });

  test('a closed arbiter proposes nothing, and its voter answers nothing', async () => {
    const trio = await started();
    await trio.until(trio.arbiters.get('b')!.close());
    expect(await trio.swap('b', '', 'one')).toBe('ERR_HOLDFAST_CLOSED');
    trio.kill('tie');
    expect(await trio.swap('a', '', 'one')).toBe('ERR_HOLDFAST_NO_MAJORITY');
    expect(trio.lines.filter((line) => line.includes('b > ') || line.includes('< b prepare granted'))).toEqual([]);
  });
});

test('two that race under loss and partitions: each success is one link of one chain', async () => {
  for (let seed = 0; seed < 12; seed++) await race(seed);
}, 120_000);

/** Both add links to the chain, each on what it was last told, while the network fails. */
async function race(seed: number): Promise<void> {
  const link = { dropRate: 0.003, duplicateRate: 0.003, reorderRate: 0.003, delayMinMs: 0.2, delayMaxMs: 30 };
  const trio = await new RegisterCluster({ seed, link }).startAll();
  const random = new SimulatedRandom(seed, 'race');
  const links = new Map<string, string>();
  const sure = new Set<string>();
  /** What anybody was told so far; and with each answer to a question, what had been told when it was asked. */
  const told: string[] = [];
  const answered: { readonly value: string; readonly before: number }[] = [];
  let isOver = false;

  const run = async (name: 'a' | 'b'): Promise<string> => {
    let known = '';
    for (let count = 0; !isOver; count++) {
      const next = `${name}${count}`;
      links.set(next, known);
      try {
        const result = await trio.arbiters.get(name)!.compareAndSwap(known, next);
        if (result.swapped) sure.add(next);
        known = result.swapped ? next : result.current;
        told.push(known);
        const before = told.length;
        const question = await trio.arbiters.get(name)!.compareAndSwap(known, known);
        known = question.swapped ? known : question.current;
        answered.push({ value: known, before });
        told.push(known);
      } catch {
        // Unknown: it may have happened. The next one finds out.
      }
      await new Promise<void>((resolve) => trio.cluster.scheduler.schedule(random.between(0, 200_000), resolve));
    }
    return known;
  };
  const runs = [run('a'), run('b')];
  for (let cut = 0; cut < 6; cut++) {
    const pair = [VOTERS[random.below(3)]!, VOTERS[random.below(3)]!] as const;
    if (pair[0] !== pair[1]) trio.cluster.network.partition(...pair);
    await trio.pass(random.between(100, 8_000));
    if (pair[0] !== pair[1]) trio.cluster.network.heal(...pair);
  }
  isOver = true;
  await trio.until(Promise.all(runs));
  trio.cluster.network.setAllLinks({ dropRate: 0, duplicateRate: 0, reorderRate: 0 });
  await trio.pass(15_000);
  const last = await trio.until(trio.arbiters.get('a')!.compareAndSwap('no such value', 'never'));
  const chain: string[] = [];
  for (let at = last.swapped ? '' : last.current; at !== ''; at = links.get(at)!) {
    expect(links.has(at), `seed ${seed}: ${at} was proposed`).toBe(true);
    chain.push(at);
  }
  expect(new Set(chain).size, `seed ${seed}`).toBe(chain.length);
  for (const value of sure) expect(chain, `seed ${seed}`).toContain(value);
  // The last link is the first one here.
  const place = (value: string) => (value === '' ? chain.length : chain.indexOf(value));
  for (const { value, before } of answered) {
    expect(place(value), `seed ${seed}: ${value} was in the chain`).not.toBe(-1);
    const newest = Math.min(...told.slice(0, before).map(place));
    expect(place(value), `seed ${seed}: ${value} was not older than what had been told`).toBeLessThanOrEqual(newest);
  }
  expect(answered.length, `seed ${seed}: something is answered`).toBeGreaterThan(5);
  expect(sure.size, `seed ${seed}: something happens`).toBeGreaterThan(5);
}

describe('as transcripts', () => {
  test('a swap, a swap that is refused, and one that follows', async () => {
    const trio = await started();
    for (const [name, expected, next] of [
      ['a', '', 'one'],
      ['b', '', 'two'],
      ['b', 'one', 'two'],
    ] as const) {
      trio.lines.push(`-- ${name}: from ${expected || 'nothing'} to ${next}`);
      const answer = await trio.swap(name, expected, next);
      trio.lines.push(`-- answer: ${answer}`);
      await trio.pass(100);
    }
    await expect(`${trio.lines.join('\n')}\n`).toMatchFileSnapshot(file('register-swaps'));
  });

  test('a value that only its proposer holds when it is lost gives way to another', async () => {
    const trio = await started();
    trio.lines.push('-- a is cut off after it has been promised, and accepts its own proposal');
    trio.lines.push('-- a: from nothing to one');
    const lost = trio.ask('a', '', 'one');
    while (!trio.lines.some((line) => line.startsWith('a > tie accept') || line.startsWith('a > b accept')))
      await trio.pass(0.01);
    for (const other of ['b', 'tie']) trio.cluster.network.partition('a', other);
    trio.kill('tie');
    trio.kill('b');
    trio.lines.push('-- b and the tie-breaker are killed while they write');
    trio.lines.push(`-- answer: ${await trio.until(lost)}`);
    await trio.start('b');
    await trio.start('tie');
    trio.lines.push('-- both start again, without a');
    await trio.pass(3000);
    trio.lines.push('-- b: from nothing to two');
    trio.lines.push(`-- answer: ${await trio.swap('b', '', 'two')}`);
    for (const other of ['b', 'tie']) trio.cluster.network.heal('a', other);
    await trio.pass(15_000);
    trio.lines.push('-- a is back');
    trio.lines.push('-- a: from nothing to one, again');
    trio.lines.push(`-- answer: ${await trio.swap('a', '', 'one')}`);
    await expect(`${trio.lines.join('\n')}\n`).toMatchFileSnapshot(file('register-minority'));
  });
});
