/** Long runs of policing, drawn from seeds: the invariants of policing-world.ts, and how long a request may have to wait. */
import { afterEach, describe, expect, test } from 'vitest';
import { assert } from '../../lib/base/errors.ts';
import { plantBug } from '../../lib/base/planted-bug.ts';
import { Policing, type PolicingEffect, PRIORITY_TICKS } from '../../lib/mirror/policing.ts';
import { type AccessMode, MAX_PRIORITY, type PolicingMessage } from '../../lib/mirror/policing-wire.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { type Operation, type Step, World } from './policing-world.ts';

const OUTSTANDING_MAX = 5;

afterEach(() => plantBug(undefined));

/** A peer's request that has arrived at a holder, and how many later ones have gone before it there. */
interface Arrived {
  readonly mode: AccessMode;
  readonly priority: number;
  readonly operations: number;
  overtaken: number;
}

/** Counts, at each node, the operations that were issued after a peer's request had arrived, and went before it. */
class Fairness {
  readonly #world: World;
  readonly #arrived = new Map<string, Arrived>();
  /** When each operation was issued: how many had been until then. */
  readonly issued = new Map<number, number>();
  worst = 0;

  constructor(world: World) {
    this.#world = world;
    world.onReceive = (from, to, message) => this.#onReceive(from, to, message);
    world.onSend = (from, to, message) => this.#onSend(from, to, message);
    world.onStart = (operation) => this.#onStart(operation);
  }

  #onReceive(from: number, to: number, message: PolicingMessage): void {
    if (message.kind !== 'request') return;
    const { extent, mode, priority } = message;
    const crossedGrant = this.#world.token(to, from, extent) <= (mode === 'shared' ? 1 : 0);
    if (crossedGrant) this.#arrived.delete(`${from} ${to} ${extent}`);
    else this.#arrived.set(`${from} ${to} ${extent}`, { mode, priority, operations: this.issued.size, overtaken: 0 });
  }

  #onSend(from: number, to: number, message: PolicingMessage): void {
    const key = `${to} ${from} ${message.extent}`;
    const arrived = this.#arrived.get(key);
    if (message.kind === 'request' || arrived === undefined) return;
    if (arrived.mode === message.mode || message.mode === 'exclusive') this.#arrived.delete(key);
  }

  #onStart(operation: number): void {
    const { node, first, last, mode } = this.#world.operations[operation]!;
    for (const [key, arrived] of this.#arrived) {
      const [, at, extent] = key.split(' ').map(Number) as [number, number, number];
      if (at !== node || extent < first || extent > last) continue;
      if (mode === 'shared' && arrived.mode === 'shared') continue;
      if (this.issued.get(operation)! < arrived.operations) continue;
      arrived.overtaken += 1;
      this.worst = Math.max(this.worst, arrived.overtaken);
      expect(arrived.overtaken).toBeLessThanOrEqual((MAX_PRIORITY - arrived.priority) * PRIORITY_TICKS);
    }
  }
}

function drawOperation(random: SimulatedRandom, nodes: number, extents: number, priorities: number): Operation {
  const first = random.below(extents);
  return {
    node: random.below(nodes),
    first,
    last: first + random.below(extents - first),
    mode: random.below(2) === 0 ? 'shared' : 'exclusive',
    priority: random.below(priorities),
    mayBeCancelled: random.below(8) === 0,
  };
}

/** Cancelling is rarer than finishing, and no node has more than so many operations under way. */
function drawStep(random: SimulatedRandom, world: World): Step {
  const steps = world.steps().filter((step) => {
    if (step.kind !== 'issue') return true;
    const { node } = world.operations[step.operation]!;
    const under = world.operations.filter((operation, index) => {
      return operation.node === node && ['waiting', 'in flight'].includes(world.state(index));
    });
    return under.length < OUTSTANDING_MAX;
  });
  assert(steps.length > 0, 'something can still happen');
  const others = steps.filter(({ kind }) => kind !== 'cancel');
  const from = others.length > 0 && random.below(10) > 0 ? others : steps;
  return from[random.below(from.length)]!;
}

function run(seed: number): Fairness {
  const random = new SimulatedRandom(seed);
  const nodes = 2 + random.below(3);
  const extents = 1 + random.below(4);
  const priorities = random.below(2) === 0 ? 1 : MAX_PRIORITY + 1;
  const operations = Array.from({ length: 120 }, () => drawOperation(random, nodes, extents, priorities));
  const world = new World({ nodes, extents, first: random.below(nodes) }, operations);
  const fairness = new Fairness(world);
  while (world.steps().length > 0) {
    const step = drawStep(random, world);
    if (step.kind === 'issue') fairness.issued.set(step.operation, fairness.issued.size);
    world.take(step);
  }
  world.checkEnd();
  if (priorities === 1) expect(fairness.worst).toBe(0);
  return fairness;
}

test('long runs from seeds: all get their turn, none is overtaken by more than its priority explains', () => {
  let worst = 0;
  for (let seed = 1; seed <= 150; seed += 1) worst = Math.max(worst, run(seed).worst);
  expect(worst).toBeGreaterThan(0);
});

test('long runs find a holder that does not yield to those before it', () => {
  plantBug('yield-skipped');
  expect(() => {
    for (let seed = 1; seed <= 20; seed += 1) run(seed);
  }).toThrow();
});

describe('under a flood of operations at the holder', () => {
  /** How many of the holder's operations start between the arrival of a request of lowest priority and its grant. */
  function startedBefore(floodPriority: number, mode: AccessMode): number {
    const holder = new Policing({ self: 0, nodes: 2, extents: 1, first: 0 });
    const asker = new Policing({ self: 1, nodes: 2, extents: 1, first: 0 });
    let started = 0;
    const flood = (id: number): readonly PolicingEffect[] => {
      if (holder.tryStart(0, 0, mode)) started += 1;
      else return holder.request(id, 0, 0, mode, floodPriority);
      return [];
    };
    for (let id = 0; id < 32; id += 1) flood(id);
    started = 0;
    const [asked] = asker.request(0, 0, 0, 'exclusive', 0);
    let effects: readonly PolicingEffect[] = asked?.kind === 'send' ? holder.receive(1, asked.message) : [];
    for (let id = 32; id < 5_000; id += 1) {
      // One ends, and its client asks at once for the next.
      effects = [...effects, ...flood(id)];
      started += effects.filter(({ kind }) => kind === 'start').length;
      effects = [];
      if (started + 32 > id - 32) effects = holder.finish(0, 0, mode);
      else if (id > 32 + started + 31) return started;
      if (effects.some((effect) => effect.kind === 'send' && effect.message.kind === 'grant')) return started;
    }
    return Number.POSITIVE_INFINITY;
  }

  test.each(['shared', 'exclusive'] as const)('of equal priority none starts before it (%s)', (mode) => {
    expect(startedBefore(0, mode)).toBe(0);
  });

  test.each(['shared', 'exclusive'] as const)('of the highest priority a bounded number does (%s)', (mode) => {
    const bound = MAX_PRIORITY * PRIORITY_TICKS;
    expect(startedBefore(MAX_PRIORITY, mode)).toBeGreaterThan(bound / 2);
    expect(startedBefore(MAX_PRIORITY, mode)).toBeLessThanOrEqual(bound);
  });

  test('it would starve if the holder did not yield', () => {
    plantBug('yield-skipped');
    expect(startedBefore(0, 'exclusive')).toBe(Number.POSITIVE_INFINITY);
  });
});
