/** A process pair whose region lies in two units, over real sessions in the simulation. */
import { expect, test } from 'vitest';
import { mirroredPairMemory } from '../../lib/checkpoint/mirrored-pair-memory.ts';
import { type PairRole, type ProcessPair, runProcessPair } from '../../lib/checkpoint/process-pair.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { codeOf } from './mirror-stage.ts';
import { type ClientName, MirroredSite, STATE } from './mirrored-site.ts';

type Pair = ProcessPair<number[], number, number>;

class PairSite {
  readonly site = new MirroredSite();
  readonly pairs = new Map<ClientName, Pair>();
  readonly roles: string[] = [];

  async start(): Promise<this> {
    await this.site.start();
    for (const name of ['w1', 'w2'] as const) this.run(name);
    return this;
  }

  run(name: ClientName): void {
    const { environment } = this.site.cluster.node(name);
    const pair = runProcessPair<number[], number, number>({
      environment,
      memory: mirroredPairMemory(this.site.connection(name), STATE),
      initialState: () => [],
      apply: (state, update) => state.push(update),
      onRole: (role: PairRole) => this.roles.push(`${name} ${role}`),
    });
    this.pairs.set(name, pair);
  }

  /** Its name. */
  async primary(): Promise<ClientName> {
    const { cluster } = this.site;
    const limitMs = cluster.scheduler.nowMs + 60_000;
    const find = () =>
      [...this.pairs].find(([name, { role }]) => role === 'primary' && cluster.node(name).process.alive)?.[0];
    await cluster.scheduler.run(() => find() !== undefined || cluster.scheduler.nowMs > limitMs);
    expect(find()).toBeDefined();
    return find()!;
  }

  async update(value: number): Promise<void> {
    const name = await this.primary();
    await this.site.until(this.pairs.get(name)!.update(value));
  }

  /** One that is primary no more says so. */
  async state(): Promise<number[]> {
    for (const limitMs = this.site.cluster.scheduler.nowMs + 60_000; ; await this.site.pass(100)) {
      const name = await this.primary();
      const asked = this.pairs.get(name)!.query((state) => [...state]);
      const answer = await this.site.until(asked.catch(codeOf));
      if (typeof answer !== 'string') return answer;
      expect(answer).toBe('ERR_HOLDFAST_NOT_PRIMARY');
      expect(this.site.cluster.scheduler.nowMs).toBeLessThan(limitMs);
    }
  }

  async names(legs: string): Promise<void> {
    const { scheduler } = this.site.cluster;
    const name = await this.primary();
    const limitMs = scheduler.nowMs + 60_000;
    while (!(await this.site.stands(name)).includes(` ${legs} `)) {
      expect(scheduler.nowMs).toBeLessThan(limitMs);
      await this.site.pass(100);
    }
  }
}

test('a unit is lost, rebuilt, then the other one is lost: nobody takes over, and the next one has all', async () => {
  const pair = await new PairSite().start();
  const { site } = pair;
  await pair.update(1);
  await site.pass(3000);
  const rolesBefore = [...pair.roles];
  site.kill(0);
  await pair.update(2);
  await pair.names('b');
  await site.startUnit(0);
  await pair.names('ab');
  await pair.update(3);
  site.kill(1);
  await pair.update(4);
  await pair.names('a');
  expect(pair.roles).toEqual(rolesBefore);
  const former = await pair.primary();
  site.cluster.node(former).kill();
  expect(await pair.state()).toEqual([1, 2, 3, 4]);
  expect(await pair.primary()).not.toBe(former);
  await site.startUnit(1);
  await pair.names('ab');
  site.kill(0);
  await pair.update(5);
  expect(await pair.state()).toEqual([1, 2, 3, 4, 5]);
});

test.each([0, 1] as const)(
  'leg %i loses its power and nobody takes over: the pulse comes from the other one',
  async (leg) => {
    const pair = await new PairSite().start();
    const { site } = pair;
    await pair.update(1);
    await site.pass(3000);
    const rolesBefore = [...pair.roles];
    site.cutPower(leg);
    await pair.update(2);
    await site.pass(10_000);
    expect(pair.roles).toEqual(rolesBefore);
    expect(await pair.state()).toEqual([1, 2]);
  },
);

test('the backup cannot reach one unit: it takes over from nobody, and has all when it is asked to', async () => {
  const pair = await new PairSite().start();
  const { site } = pair;
  await pair.update(1);
  await site.pass(3000);
  const rolesBefore = [...pair.roles];
  const former = await pair.primary();
  const backup = former === 'w1' ? 'w2' : 'w1';
  const standsBefore = await site.stands(former);
  site.cluster.network.partition(backup, 'unit-a');
  await pair.update(2);
  await site.pass(10_000);
  expect(pair.roles).toEqual(rolesBefore);
  expect(await site.stands(former)).toBe(standsBefore);
  site.cluster.node(former).kill();
  await pair.names('b');
  expect(await pair.primary()).toBe(backup);
  expect(await pair.state()).toEqual([1, 2]);
});

test('the primary hands over, with one unit, and is handed back to', async () => {
  const pair = await new PairSite().start();
  await pair.update(1);
  pair.site.kill(0);
  await pair.update(2);
  const first = await pair.primary();
  await pair.site.until(pair.pairs.get(first)!.handOver());
  await pair.site.pass(100);
  const second = await pair.primary();
  expect(second).not.toBe(first);
  await pair.update(3);
  await pair.site.startUnit(0);
  await pair.names('ab');
  await pair.site.until(pair.pairs.get(second)!.handOver());
  await pair.site.pass(100);
  expect(await pair.primary()).toBe(first);
  expect(await pair.state()).toEqual([1, 2, 3]);
});

test.each([1, 2, 3])('units and processes come and go: what was answered is there, once, seed %i', async (seed) => {
  const pair = await new PairSite().start();
  const { site } = pair;
  const random = new SimulatedRandom(seed, 'rounds');
  const answered = new Set<number>();
  const asked = new Set<number>();
  let next = 0;
  const ask = (name: ClientName): void => {
    const value = ++next;
    pair.pairs
      .get(name)!
      .update(value)
      .then(
        () => void answered.add(value),
        (error: unknown) => {
          if (codeOf(error) !== 'ERR_HOLDFAST_OUTCOME_UNKNOWN') asked.delete(value);
        },
      );
    asked.add(value);
  };
  for (let round = 0; round < 10; round += 1) {
    const primary = await pair.primary();
    for (let each = 0; each < 20; each += 1) ask(primary);
    await site.pass(random.between(0, 20));
    const leg = random.chance(0.5) ? 0 : 1;
    const name = random.chance(0.5) ? 'w1' : 'w2';
    const draw = random.below(4);
    if (draw === 0) site.kill(leg);
    else if (draw === 1) site.cutPower(leg);
    else if (draw === 2) site.cluster.node(name).kill();
    else site.cluster.node(name).pause();
    for (let each = 0; each < 20; each += 1) ask(await pair.primary());
    await site.pass(random.between(10, 4000));
    if (draw < 2) await site.startUnit(leg);
    else if (draw === 2) {
      await site.startClient(name);
      pair.run(name);
    } else site.cluster.node(name).resume();
    // Once all have noticed what was lost, and have both units again.
    await site.pass(10_000);
    await pair.names('ab');
  }
  await site.pass(5000);
  const state = await pair.state();
  expect(new Set(state).size).toBe(state.length);
  expect([...answered].filter((value) => !state.includes(value))).toEqual([]);
  expect(state.filter((value) => !asked.has(value))).toEqual([]);
  expect(answered.size).toBeGreaterThan(100);
});

/** The backup's process ends, and another one of its name takes over; it stands still while it makes the legs alike. */
async function takingOver(pair: PairSite) {
  const { site } = pair;
  const former = await pair.primary();
  const other = former === 'w1' ? 'w2' : 'w1';
  site.cluster.node(other).kill();
  await site.startClient(other);
  const outcome = site
    .connection(other)
    .openWriter(STATE, { chunkBytes: 2048 })
    .then(() => 'no error', codeOf);
  const { scheduler } = site.cluster;
  const limitMs = scheduler.nowMs + 10_000;
  while (!(await site.stands(former)).includes(' a~b ')) {
    expect(scheduler.nowMs).toBeLessThan(limitMs);
    await site.pass(0.05);
  }
  const machine = site.cluster.node(other);
  machine.pause();
  expect(await site.stands(former)).toContain(' a~b ');
  return { former, outcome, machine };
}

test('a take-over that was cut short holds up nobody', async () => {
  const pair = await new PairSite().start();
  await pair.update(1);
  const { former, machine } = await takingOver(pair);
  machine.kill();
  await pair.site.pass(1000);
  expect(await pair.state()).toEqual([1]);
  expect(await pair.site.stands(former)).toContain(' ab ');
});

test('a take-over that takes longer than a pulse is not disturbed by another one', async () => {
  const pair = await new PairSite().start();
  await pair.update(1);
  const { former, machine, outcome } = await takingOver(pair);
  const epoch = /^HFM1 [0-9]+/.exec(await pair.site.stands(former))![0];
  await pair.site.pass(2000);
  expect(await pair.site.stands(former)).toContain(`${epoch} a~b `);
  machine.resume();
  expect(await pair.site.until(outcome)).toBe('no error');
  machine.kill();
  expect(await pair.state()).toEqual([1]);
});
