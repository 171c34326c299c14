/** Manager, unit and users as they are: the unit is the real one, its memory the simulation's, sessions carry all. */
import { describe, expect, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { MemoryManager } from '../../lib/checkpoint/manager.ts';
import { MemoryClient, type OpenedRegion } from '../../lib/checkpoint/manager-client.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { pairMemory } from '../../lib/checkpoint/pair-memory.ts';
import { SPACE_UNIT_BYTES } from '../../lib/checkpoint/region-directory.ts';
import { RemoteUnit, serveRemoteManager } from '../../lib/checkpoint/remote-unit.ts';
import { createMemoryUnit, type MemoryUnit } from '../../lib/checkpoint/unit.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { PeerNode } from '../../lib/peer/peer.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedCluster } from '../../lib/testing/simulated-cluster.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';

const NAMES = ['unit', 'manager', 'ann', 'ben'] as const;
const PAGE = 4096;
const RECORDS_BYTES = 16 * 1024;
type Name = (typeof NAMES)[number];

class World {
  readonly cluster: SimulatedCluster;
  readonly memory: SimulatedMemory;
  readonly apart: boolean;
  unit!: MemoryUnit;
  manager!: MemoryManager;
  readonly #nodes = new Map<Name, PeerNode>();
  readonly #clients = new Map<Name, MemoryClient>();

  constructor(options: { readonly apart: boolean; readonly seed?: number }) {
    this.apart = options.apart;
    this.cluster = new SimulatedCluster({ seed: options.seed ?? 1, names: NAMES });
    this.memory = new SimulatedMemory({
      random: this.cluster.random.fork('memory'),
      sizeBytes: 9 * SPACE_UNIT_BYTES,
      clock: new SimulatedClock(this.cluster.scheduler, new SimulatedProcess('world'), 0),
    });
  }

  async start(): Promise<this> {
    const { environment } = this.cluster.node('unit');
    const unit = createMemoryUnit({
      name: 'unit',
      memory: this.memory.open(),
      clock: environment.clock,
      recordsBytes: RECORDS_BYTES,
    });
    await this.until(MemoryManager.format(unit, { blank: true }).then(() => unit.close()));
    await this.startUnit();
    if (this.apart) await this.until(this.startManager());
    for (const name of ['ann', 'ben'] as const) await this.startClient(name);
    return this;
  }

  async startUnit(): Promise<void> {
    const { node, environment } = this.#newNode('unit');
    const { clock } = environment;
    this.unit = createMemoryUnit({
      name: 'unit',
      node,
      memory: this.memory.open(),
      clock,
      recordsBytes: RECORDS_BYTES,
    });
    if (this.apart) {
      serveRemoteManager({ node, control: this.unit, manager: 'manager' });
      await this.until(node.start());
    } else {
      this.manager = new MemoryManager({ environment, control: this.unit });
      this.manager.serve(node);
      await this.until(this.manager.open());
      await this.until(node.start());
    }
  }

  async startManager(): Promise<void> {
    const { node, environment } = this.#newNode('manager');
    this.manager = new MemoryManager({ environment, control: new RemoteUnit({ node, unit: 'unit' }) });
    this.manager.serve(node);
    await node.start();
    await this.manager.open();
  }

  async startClient(name: 'ann' | 'ben'): Promise<void> {
    const { node, environment } = this.#newNode(name);
    const manager = this.apart ? 'manager' : 'unit';
    this.#clients.set(name, new MemoryClient({ node, clock: environment.clock, manager, unit: 'unit' }));
    await this.until(node.start());
  }

  client(name: 'ann' | 'ben'): MemoryClient {
    return this.#clients.get(name)!;
  }

  node(name: Name): PeerNode {
    return this.#nodes.get(name)!;
  }

  kill(name: Name): void {
    this.cluster.node(name).kill();
    if (name === 'unit') this.memory.kill();
  }

  powerCut(): void {
    this.cluster.node('unit').kill();
    this.memory.crash();
  }

  until<Result>(work: Promise<Result>): Promise<Result> {
    return this.cluster.scheduler.runUntil(work, 60_000);
  }

  pass(durationMs: number): Promise<void> {
    return this.cluster.scheduler.runFor(durationMs);
  }

  write({ access }: OpenedRegion, address: number, byte: number, length = PAGE): Promise<void> {
    return this.until(access.write(address, [new Uint8Array(length).fill(byte)], { persist: true }));
  }

  async read({ access }: OpenedRegion, address: number, length = PAGE): Promise<number[]> {
    const bytes = new Uint8Array(length);
    await this.until(access.read(address, bytes));
    return [...new Set(bytes)];
  }

  #newNode(name: Name) {
    const machine = this.cluster.node(name);
    if (!machine.process.alive) machine.restart();
    const { environment } = machine;
    const node = createPeerNode({
      environment,
      name,
      clusterId: 'memory',
      key: new Uint8Array(32),
      link: 'dedicated',
      listen: { kind: 'tcp', host: name, port: 7000 },
      peers: NAMES.filter((other) => other !== name).map((other) => ({
        name: other,
        addresses: [{ kind: 'tcp', host: other, port: 7000 }],
      })),
    });
    this.#nodes.set(name, node);
    return { node, environment };
  }
}

function code(expected: string) {
  return expect.objectContaining({ code: expected });
}

describe.each([
  ['in the unit', false],
  ['apart', true],
])('a manager %s', (_where, apart) => {
  test('gives what opens the memory, to whom it should, and as far as it should', async () => {
    const world = await new World({ apart }).start();
    const [ann, ben] = [world.client('ann'), world.client('ben')];
    await world.until(ann.create('log', 100 * 1024));
    const owner = await world.until(ann.open('log'));
    await world.write(owner, 0, 1);
    await world.write(owner, 100 * 1024 - PAGE, 2);
    await expect(world.until(owner.access.write(100 * 1024 - 1, [new Uint8Array(2)]))).rejects.toEqual(
      code('ERR_HOLDFAST_OUT_OF_RANGE'),
    );
    await world.until(ann.allow('log', { peer: 'ben', rights: ['read'] }));
    await world.until(ann.allow('log', { peer: 'ben', rights: ['write'], range: { base: PAGE, lengthBytes: PAGE } }));
    const reader = await world.until(ben.open('log', { rights: ['read'] }));
    expect(await world.read(reader, 0)).toEqual([1]);
    expect(await world.read(reader, PAGE)).toEqual([0]);
    await expect(world.write(reader, PAGE, 3)).rejects.toEqual(code('ERR_HOLDFAST_ACCESS'));
    const cursor = await world.until(ben.open('log', { rights: ['write'], range: { base: PAGE, lengthBytes: PAGE } }));
    await world.write(cursor, PAGE, 3);
    await expect(world.write(cursor, 0, 3)).rejects.toEqual(code('ERR_HOLDFAST_OUT_OF_RANGE'));
    expect(await world.read(owner, PAGE)).toEqual([3]);
    await world.until(cursor.close());
    await expect(world.write(cursor, PAGE, 4)).rejects.toEqual(code('ERR_HOLDFAST_KEY_INVALID'));
    await world.until(ann.deny('log', { peer: 'ben', rights: ['read'] }));
    await expect(world.read(reader, 0)).rejects.toEqual(code('ERR_HOLDFAST_KEY_INVALID'));
  });

  test('a process of a pair has one key at a time, however often its part changes', async () => {
    const world = await new World({ apart }).start();
    await world.until(world.client('ann').create('pair', 64 * 1024));
    const memory = pairMemory(world.client('ann'), 'pair');
    const { signal } = new AbortController();
    for (let times = 0; times < 5; times++) {
      await world.until(memory.follow(signal));
      const access = await world.until(memory.takeOver(signal));
      await world.pass(1000);
      expect(world.unit.status.keys).toBe(1);
      await world.until(access.write(0, [new Uint8Array(8)]));
    }
  });

  test('a take-over ends the writing of everybody else before it is answered', async () => {
    const world = await new World({ apart }).start();
    const [ann, ben] = [world.client('ann'), world.client('ben')];
    await world.until(ann.create('log', 64 * 1024));
    await world.until(ann.allow('log', { peer: 'ben', rights: ['read', 'write'] }));
    const slow = await world.until(ann.open('log'));
    // Writes one word after the other until it is told to stop, and says what was acknowledged.
    let acknowledged = 0;
    let error: unknown;
    const writing = (async () => {
      try {
        for (let word = 1; ; word += 1) {
          const bytes = Buffer.alloc(8);
          bytes.writeBigUInt64LE(BigInt(word));
          await slow.access.write(0, [bytes], { persist: true });
          acknowledged = word;
        }
      } catch (caught) {
        error = caught;
      }
    })();
    await world.pass(50);
    const taken = await world.until(ben.takeOver('log'));
    const seen = Buffer.alloc(8);
    await world.until(taken.access.read(0, seen));
    await world.until(writing);
    expect(error).toEqual(code('ERR_HOLDFAST_KEY_INVALID'));
    expect(acknowledged).toBeGreaterThan(5);
    expect(Number(seen.readBigUInt64LE())).toBeGreaterThanOrEqual(acknowledged);
    const later = Buffer.alloc(8);
    await world.pass(1_000);
    await world.until(taken.access.read(0, later));
    expect(later.equals(seen)).toBe(true);
    await expect(world.read(slow, 0)).rejects.toEqual(code('ERR_HOLDFAST_KEY_INVALID'));
    const reads = await world.until(ann.open('log', { rights: ['read'] }));
    expect(reads.access.epoch).toBe(2);
  });

  test('two that take over at once: the keys of all but one are void', async () => {
    const world = await new World({ apart }).start();
    await world.until(world.client('ann').create('log', 64 * 1024));
    await world.until(world.client('ann').allow('log', { peer: 'ben', rights: ['read', 'write'] }));
    const both = await world.until(
      Promise.all((['ann', 'ben'] as const).map((name) => world.client(name).takeOver('log'))),
    );
    const last = both[0]!.context.epoch > both[1]!.context.epoch ? 0 : 1;
    expect(both.map(({ context }) => context.epoch).sort()).toEqual([2, 3]);
    await world.write(both[last]!, 0, 5);
    await expect(world.write(both[1 - last]!, 0, 6)).rejects.toEqual(code('ERR_HOLDFAST_KEY_INVALID'));
  });

  test('a key of one is of no use to another, and is refused and told', async () => {
    const world = await new World({ apart }).start();
    await world.until(world.client('ann').create('log', 64 * 1024));
    await world.until(
      world
        .client('ann')
        .create('bens', 1)
        .catch(() => {}),
    );
    const { context } = await world.until(world.client('ann').open('log'));
    await world.pass(1_000);
    const stolen = openAccess(world.node('ben').session('unit')!, context);
    await expect(world.until(stolen.read(0, new Uint8Array(8)))).rejects.toEqual(code('ERR_HOLDFAST_KEY_INVALID'));
    expect(world.unit.auditEvents()).toContainEqual(
      expect.objectContaining({ kind: 'refused', peer: 'ben', code: 'ERR_HOLDFAST_KEY_INVALID' }),
    );
  });

  test('regions, lists, epochs and what was persisted outlive power cuts; keys do not', async () => {
    const world = await new World({ apart }).start();
    const [ann, ben] = [world.client('ann'), world.client('ben')];
    await world.until(ann.create('log', 64 * 1024));
    await world.until(ann.allow('log', { peer: 'ben', rights: ['read', 'write'] }));
    const before = await world.until(ben.takeOver('log'));
    await world.write(before, 0, 7);
    world.powerCut();
    await world.pass(5_000);
    await world.startUnit();
    await world.pass(10_000);
    expect(before.access.open).toBe(false);
    const after = await world.until(ben.open('log'));
    expect(after.access.epoch).toBe(2);
    expect(await world.read(after, 0)).toEqual([7]);
  });

  test('what one has deleted nobody reads, not even after a power cut in the middle', async () => {
    for (let seed = 1; seed <= 12; seed += 1) {
      const world = await new World({ apart, seed }).start();
      const [ann, ben] = [world.client('ann'), world.client('ben')];
      await world.until(ann.create('secret', 4 * SPACE_UNIT_BYTES));
      const secret = await world.until(ann.open('secret'));
      await world.write(secret, 0, 0xee, 4 * SPACE_UNIT_BYTES);
      const deleted = ann.delete('secret').catch((error) => {
        if (!isHoldfastError(error)) throw error;
      });
      await world.pass(seed * 3);
      world.powerCut();
      await world.pass(5_000);
      await world.startUnit();
      await world.until(deleted);
      await world.pass(10_000);
      // It has happened, or it happens now.
      await world.until(ann.delete('secret').catch(() => {}));
      await world.pass(5_000);
      await world.until(ben.create('mine', 8 * SPACE_UNIT_BYTES));
      const mine = await world.until(ben.open('mine'));
      for (let unit = 0; unit < 8; unit += 1)
        expect(await world.read(mine, unit * SPACE_UNIT_BYTES, SPACE_UNIT_BYTES)).toEqual([0]);
    }
  });
});

test('writers that take over from each other through kills, cuts and power cuts: no write of a loser lands', async () => {
  let takeOvers = 0;
  for (let seed = 1; seed <= 4; seed += 1) takeOvers += await contest(seed);
  expect(takeOvers).toBeGreaterThan(60);
});

/**
 * Each contender takes over, looks at the word, and counts it up by plain writes, without comparing. As long as no write
 * of a loser lands behind a take-over, no number is acknowledged twice, and who takes over finds all that was.
 */
async function contest(seed: number): Promise<number> {
  const world = await new World({ apart: true, seed }).start();
  const random = new SimulatedRandom(seed, 'contest');
  await world.until(world.client('ann').create('log', 64 * 1024));
  await world.until(world.client('ann').allow('log', { peer: 'ben', rights: ['read', 'write'] }));
  const stop = new AbortController();
  const acknowledged: number[] = [];
  const missed: number[] = [];
  let highest = 0;
  let takeOvers = 0;
  const contend = async (name: 'ann' | 'ben'): Promise<void> => {
    while (!stop.signal.aborted) {
      try {
        const floor = highest;
        const { access } = await world.client(name).takeOver('log', { signal: stop.signal });
        takeOvers += 1;
        const word = Buffer.alloc(8);
        await access.read(0, word, { signal: stop.signal });
        let number = Number(word.readBigUInt64LE());
        if (number < floor) missed.push(floor);
        for (let writes = 0; writes < 10; writes += 1) {
          const next = Buffer.alloc(8);
          next.writeBigUInt64LE(BigInt(++number));
          await access.write(0, [next], { persist: true, signal: stop.signal });
          acknowledged.push(number);
          highest = Math.max(highest, number);
        }
      } catch (error) {
        if (!isHoldfastError(error)) throw error;
      }
      await new Promise<void>((resolve) => {
        world.cluster.node(name).environment.clock.setTimer(random.below(200), resolve);
      });
    }
  };
  const contenders = Promise.all([contend('ann'), contend('ben')]);
  for (let round = 0; round < 8; round += 1) {
    await world.pass(random.below(400));
    const trouble = random.below(4);
    if (trouble === 0) {
      world.kill('manager');
      await world.pass(random.below(2_000));
      world.startManager().catch(() => {});
    } else if (trouble === 1) {
      if (random.below(2) === 0) world.kill('unit');
      else world.powerCut();
      await world.pass(random.below(2_000));
      await world.startUnit();
    } else {
      const [one, other] = random.below(2) === 0 ? (['manager', 'unit'] as const) : (['ann', 'unit'] as const);
      world.cluster.network.partition(one, other);
      await world.pass(random.below(5_000));
      world.cluster.network.heal(one, other);
    }
    await world.pass(3_000);
  }
  stop.abort();
  await world.until(contenders);
  expect(new Set(acknowledged).size, `seed ${seed}: a number was acknowledged twice`).toBe(acknowledged.length);
  expect(missed, `seed ${seed}: acknowledged, and not found after a take-over`).toEqual([]);
  expect(acknowledged.length).toBeGreaterThan(50);
  return takeOvers;
}
