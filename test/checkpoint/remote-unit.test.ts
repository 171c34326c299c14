/** A manager apart from its unit, over the simulated network. */
import { describe, expect, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { MemoryManager } from '../../lib/checkpoint/manager.ts';
import { createMethod } from '../../lib/checkpoint/manager-wire.ts';
import { SPACE_UNIT_BYTES } from '../../lib/checkpoint/region-directory.ts';
import { RemoteUnit } from '../../lib/checkpoint/remote-unit.ts';
import {
  decodeTables,
  describeMethod,
  encodeTables,
  eraseMethod,
  flushRecordsMethod,
  grantMethod,
  installMethod,
  readRecordsMethod,
  revokeMethod,
  writeRecordsMethod,
} from '../../lib/checkpoint/remote-wire.ts';
import type { Method, PeerEvents, PeerNode, PeerSession } from '../../lib/peer/peer.ts';
import { FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { Apart } from './apart.ts';
import { FakeControl, FakeUnit, KIB, RECORDS_BYTES, storedDirectory } from './fake-unit.ts';

function code(expected: string) {
  return expect.objectContaining({ code: expected });
}

async function names(apart: Apart, client: 'ann' | 'ben'): Promise<string[]> {
  const found: string[] = [];
  const collect = async () => {
    for await (const { name } of apart.client(client).list()) found.push(name);
    return found;
  };
  return apart.until(collect());
}

test('users create, open, share, take over and delete through a manager that is not where the unit is', async () => {
  const apart = await new Apart().start();
  const ann = apart.client('ann');
  const ben = apart.client('ben');
  const info = await apart.until(ann.create('log', 100 * KIB));
  expect(info).toMatchObject({ name: 'log', sizeBytes: 100 * KIB, epoch: 1, owner: 'ann' });
  const first = await apart.until(ann.open('log'));
  expect(apart.opens(first.access)).toBe(true);
  await expect(apart.until(ben.open('log'))).rejects.toEqual(code('ERR_HOLDFAST_ACCESS'));
  await apart.until(ann.allow('log', { peer: 'ben', rights: ['read', 'write'] }));
  expect(await names(apart, 'ben')).toEqual(['log']);
  const second = await apart.until(ben.takeOver('log'));
  expect(second.access).toMatchObject({ epoch: 2, unit: 'unit', range: { base: 0, lengthBytes: 100 * KIB } });
  expect([apart.opens(first.access), apart.opens(second.access)]).toEqual([false, true]);
  await apart.until(ann.deny('log', { peer: 'ben', rights: ['write'] }));
  expect(apart.opens(second.access)).toBe(false);
  expect((await apart.until(ann.accessList('log'))).access).toEqual([{ peer: 'ben', rights: ['read'] }]);
  expect(await apart.until(ann.grow('log', 200 * KIB))).toMatchObject({ sizeBytes: 200 * KIB });
  await apart.until(ann.delete('log'));
  await expect(apart.until(ben.open('log'))).rejects.toEqual(code('ERR_HOLDFAST_NOT_FOUND'));
  expect(apart.events.filter(({ event }) => event === 'refused')).toMatchObject([
    { peer: 'ben', region: 'log', reason: 'ERR_HOLDFAST_ACCESS' },
    { peer: 'ben', region: 'log', reason: 'ERR_HOLDFAST_NOT_FOUND' },
  ]);
  expect(apart.memory.violations).toEqual([]);
});

describe('the unit starts again', () => {
  test('it has its tables back before anybody asks, and clients open anew', async () => {
    const apart = await new Apart().start();
    await apart.until(apart.client('ann').create('log', 64 * KIB));
    const before = await apart.until(apart.client('ann').open('log'));
    apart.kill('unit');
    await apart.pass(100);
    await apart.startUnit();
    await apart.pass(10_000);
    expect(apart.unit.tables).toHaveLength(1);
    expect(before.access.open).toBe(false);
    const after = await apart.until(apart.client('ann').open('log'));
    expect(apart.opens(after.access)).toBe(true);
  });

  test('while it is away nothing can be changed, and a request that is cancelled ends', async () => {
    const apart = await new Apart().start();
    await apart.until(apart.client('ann').create('log', 64 * KIB));
    apart.kill('unit');
    await apart.pass(10_000);
    await expect(apart.until(apart.client('ann').create('more', 1))).rejects.toEqual(code('ERR_HOLDFAST_PEER_LOST'));
    const abort = new AbortController();
    const opening = apart.client('ann').open('log', { signal: abort.signal });
    await apart.pass(1_000);
    abort.abort();
    await expect(apart.until(opening)).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
  });
});

describe('the manager starts again', () => {
  test('while it is away keys stay good, and no new one is given; when it is back, all are void', async () => {
    const apart = await new Apart().start();
    await apart.until(apart.client('ann').create('log', 64 * KIB));
    const before = await apart.until(apart.client('ann').open('log'));
    apart.kill('manager');
    await apart.pass(10_000);
    expect(apart.opens(before.access)).toBe(true);
    const opening = apart.client('ann').open('log');
    await apart.pass(5_000);
    expect(apart.unit.keys.size).toBe(1);
    await apart.until(apart.startManager());
    const after = await apart.until(opening);
    expect([apart.opens(before.access), apart.opens(after.access)]).toEqual([false, true]);
  });

  test('a write of the manager that was killed, still under way, ends before its successor reads', async () => {
    let hang: { remove(): void } | undefined;
    const apart = new Apart();
    await MemoryManager.format(new FakeControl(new FakeUnit(apart.memory)), { blank: true });
    const faulty = (control: FakeControl) => {
      const records = new FaultyDevice(control.records);
      // The first copy of the first change.
      hang = records.inject({ action: { kind: 'hang' }, on: 'write', times: 1 });
      return Object.defineProperty(control, 'records', { value: records });
    };
    await apart.startUnit('manager', faulty);
    await apart.until(apart.startManager());
    await apart.startClient('ann');
    const creating = apart.client('ann').create('log', 1);
    creating.catch(() => {});
    await apart.pass(1_000);
    apart.kill('manager');
    await apart.pass(5_000);
    const opening = apart.startManager();
    await apart.pass(10_000);
    expect(apart.manager.status().space).toBeUndefined();
    hang!.remove();
    await apart.until(opening);
    expect(apart.manager.status().regions).toBe((await storedDirectory(apart.memory))!.directory.regions.length);
  });
});

test('what waited for an earlier session is not done any more once a later one has begun', async () => {
  const apart = new Apart();
  let hang: { remove(): void } | undefined;
  await apart.startUnit('manager', (control) => {
    const records = new FaultyDevice(control.records);
    hang = records.inject({ action: { kind: 'hang' }, on: 'write' });
    return Object.defineProperty(control, 'records', { value: records });
  });
  const node = await apart.startBare('manager');
  const answers: string[] = [];
  const ask = async <Request>(name: string, method: Method<Request, unknown>, request: Request, data: Uint8Array[]) => {
    await apart.pass(3_000);
    const answer = node.session('unit')!.request(method, request, data);
    answer.then(
      () => answers.push(`${name} done`),
      () => answers.push(`${name} lost`),
    );
    await apart.pass(100);
  };
  const extent = { startBytes: RECORDS_BYTES, lengthBytes: SPACE_UNIT_BYTES };
  await ask('write', writeRecordsMethod, { offset: 0 }, [new Uint8Array(16)]);
  node.session('unit')!.close('for the test');
  await ask('erase', eraseMethod, extent, []);
  node.session('unit')!.close('for the test');
  await ask('describe', describeMethod, undefined, []);
  expect(answers).toEqual(['write lost', 'erase lost']);
  hang!.remove();
  await apart.pass(100);
  expect(answers).toEqual(['write lost', 'erase lost', 'describe done']);
  expect(apart.control.steps).toEqual(['write']);
});

test('a flush over a new session does not vouch for a write that went over the one before', async () => {
  const apart = await new Apart().start();
  const { records } = apart.remote;
  await apart.until(records.write(RECORDS_BYTES - 4096, new Uint8Array(4096)));
  apart.nodes.get('manager')!.session('unit')!.close('for the test');
  await apart.pass(5_000);
  await expect(apart.until(records.flush())).rejects.toEqual(code('ERR_HOLDFAST_FLUSH_FAILED'));
  await apart.until(records.write(RECORDS_BYTES - 4096, new Uint8Array(4096)));
  await apart.until(records.flush());
});

describe('who is not the manager', () => {
  const grant = {
    key: '11'.repeat(16),
    region: '22'.repeat(16),
    range: { base: 0, lengthBytes: 1 },
    rights: ['read' as const],
    peer: 'ann',
    epoch: 1,
  };
  const attempts: [Method<unknown, unknown>, unknown, Uint8Array?][] = [
    [describeMethod as Method<unknown, unknown>, undefined],
    [readRecordsMethod as Method<unknown, unknown>, { offset: 0, lengthBytes: 16 }],
    [writeRecordsMethod as Method<unknown, unknown>, { offset: 0 }, new Uint8Array(16)],
    [flushRecordsMethod as Method<unknown, unknown>, undefined],
    [installMethod as Method<unknown, unknown>, undefined, new Uint8Array(0)],
    [grantMethod as Method<unknown, unknown>, grant],
    [revokeMethod as Method<unknown, unknown>, { region: grant.region }],
    [eraseMethod as Method<unknown, unknown>, { startBytes: RECORDS_BYTES, lengthBytes: SPACE_UNIT_BYTES }],
  ];

  test.each(attempts.map((attempt) => [attempt[0].name, attempt] as const))(
    '%s is refused, and told',
    async (name, attempt) => {
      const apart = await new Apart().start();
      await apart.until(apart.client('ann').create('log', 64 * KIB));
      const before = {
        tables: apart.unit.tables,
        stored: await storedDirectory(apart.memory),
        steps: apart.control.steps.length,
      };
      const [method, control, data] = attempt;
      const asked = apart.nodes
        .get('ann')!
        .session('unit')!
        .request(method, control, data === undefined ? [] : [data]);
      await expect(apart.until(asked)).rejects.toEqual(code('ERR_HOLDFAST_REFUSED'));
      expect(apart.refused).toEqual([`ann ${name}`]);
      const after = {
        tables: apart.unit.tables,
        stored: await storedDirectory(apart.memory),
        steps: apart.control.steps.length,
      };
      expect(after).toEqual(before);
    },
  );

  test('a manager that the unit does not name is told so, and works once it does', async () => {
    const apart = new Apart();
    await MemoryManager.format(new FakeControl(new FakeUnit(apart.memory)), { blank: true });
    await apart.startUnit('another');
    await expect(apart.until(apart.startManager())).rejects.toEqual(code('ERR_HOLDFAST_REFUSED'));
    expect(apart.refused).toEqual(['manager unit-describe']);
    apart.kill('unit');
    await apart.pass(5_000);
    await apart.startUnit();
    await apart.pass(10_000);
    await apart.until(apart.manager.open());
  });
});

test('requests that do not fit their schema are refused by the node, and change nothing', async () => {
  const apart = await new Apart().start();
  await apart.pass(1_000);
  const session = apart.nodes.get('ann')!.session('manager')!;
  const { sequence } = (await storedDirectory(apart.memory))!;
  const hostile: unknown[] = [
    { name: '', sizeBytes: 1 },
    { name: 'a/b', sizeBytes: 1 },
    { name: 'x'.repeat(65), sizeBytes: 1 },
    { name: 'a', sizeBytes: 2 ** 52 },
    { name: 'a', sizeBytes: 1.5 },
    { name: 'a', sizeBytes: 1, owner: 'ben' },
    { name: ['a'], sizeBytes: 1 },
    undefined,
    null,
  ];
  for (const request of hostile)
    await expect(apart.until(session.request(createMethod, request as never))).rejects.toEqual(
      code('ERR_HOLDFAST_BAD_FRAME'),
    );
  expect((await storedDirectory(apart.memory))!.sequence).toBe(sequence);
  await apart.until(apart.client('ann').create('a', 1));
});

test('tables come out as they went in, and nothing else comes out', () => {
  const tables = [
    { region: '01'.repeat(16), extents: [{ startBytes: 65_536, lengthBytes: 2 ** 46 }] },
    { region: 'fe'.repeat(16), extents: [] },
  ];
  const bytes = encodeTables(tables);
  expect(decodeTables(bytes)).toEqual(tables);
  expect(decodeTables(new Uint8Array(0))).toEqual([]);
  for (const length of [1, 17, 18, 33, bytes.length - 1])
    expect(() => decodeTables(bytes.subarray(0, length))).toThrow(code('ERR_HOLDFAST_BAD_FRAME'));
  const huge = Buffer.from(bytes);
  huge.writeUInt16LE(0xffff, 16);
  expect(() => decodeTables(huge)).toThrow(code('ERR_HOLDFAST_BAD_FRAME'));
  const beyond = Buffer.from(bytes);
  beyond.fill(0xff, 18, 26);
  expect(() => decodeTables(beyond)).toThrow(code('ERR_HOLDFAST_BAD_FRAME'));
});

/** Operations of two users, while unit and manager are killed and links cut at drawn moments. */
async function storm(seed: number): Promise<number> {
  const apart = await new Apart(seed).start();
  const random = new SimulatedRandom(seed, 'storm');
  const pick = <Item>(items: readonly Item[]): Item => items[random.below(items.length)]!;
  let answered = 0;
  let ended = 0;
  const act = async (): Promise<void> => {
    const client = apart.client(pick(['ann', 'ben'] as const));
    const name = pick(['a', 'b', 'c']);
    const signal = AbortSignal.any([abort.signal]);
    const peer = pick(['ann', 'ben']);
    const rights = ['read', 'write'] as const;
    const operations = [
      () => client.create(name, 1 + random.below(5 * SPACE_UNIT_BYTES), { signal }),
      () => client.grow(name, 1 + random.below(8 * SPACE_UNIT_BYTES), { signal }),
      () => client.delete(name, { signal }),
      () => client.allow(name, { peer, rights, signal }),
      () => client.deny(name, { peer, rights, signal }),
      () => client.takeOver(name, { signal }),
      async () => {
        const { access, context } = await client.open(name, { signal });
        const { key } = access as unknown as { key: string };
        // Whatever is left over from a region shows up where its space is given to another one.
        if (apart.unit.keys.has(key)) await apart.unit.store(key, 0, 9, context.sizeBytes);
      },
    ];
    try {
      await pick(operations)();
      answered += 1;
    } catch (error) {
      if (!isHoldfastError(error)) throw error;
    }
    ended += 1;
  };
  const abort = new AbortController();
  const failed: unknown[] = [];
  let begun = 0;
  for (let round = 0; round < 40; round += 1) {
    for (let each = 0; each <= random.below(3); each += 1) {
      begun += 1;
      act().catch((error: unknown) => failed.push(error));
    }
    const trouble = random.below(12);
    if (trouble === 0) {
      apart.kill('unit');
      await apart.pass(random.below(4_000));
      await apart.startUnit();
    } else if (trouble === 1) {
      apart.kill('manager');
      await apart.pass(random.below(4_000));
      apart.startManager().catch(() => {});
    } else if (trouble === 2) {
      apart.cluster.network.partition('manager', 'unit');
      await apart.pass(random.below(8_000));
      apart.cluster.network.heal('manager', 'unit');
    } else if (trouble === 3) apart.nodes.get('manager')!.session('unit')?.close('for the test');
    await apart.pass(random.below(random.below(2) === 0 ? 4 : 1_500));
  }
  await apart.pass(30_000);
  abort.abort();
  await apart.pass(1_000);
  expect(failed).toEqual([]);
  expect(ended).toBe(begun);
  await names(apart, 'ann');
  await apart.pass(1_000);
  expect(apart.memory.violations).toEqual([]);
  const stored = (await storedDirectory(apart.memory))!.directory;
  expect(apart.unit.tables!.map(({ region }) => region).sort()).toEqual(stored.regions.map(({ id }) => id).sort());
  expect(apart.manager.status().space!.erasingBytes).toBe(0);
  return answered;
}

test('killed and cut at any moment, no key outlives its revocation and no space is given out unzeroed', async () => {
  let answered = 0;
  for (let seed = 1; seed <= 40; seed += 1) {
    try {
      answered += await storm(seed);
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
  expect(answered).toBeGreaterThan(400);
});

test('a session that ends right behind the description of the unit is not taken for an open one', async () => {
  let events: PeerEvents | undefined;
  const subscribe = (subscriber: PeerEvents) => {
    events = subscriber;
  };
  const node = { subscribe } as Partial<PeerNode> as PeerNode;
  const remote = new RemoteUnit({ node, unit: 'unit' });
  let anew = 0;
  remote.apart.onAnew(() => (anew += 1));
  let isOpen = true;
  let requests = 0;
  const description = {
    unit: 'unit',
    sizeBytes: 2 ** 20,
    recordsBytes: 65_536,
    logicalBlockBytes: 512,
    means: 'msync',
  };
  const session = {
    peer: { name: 'unit', incarnation: 'first', features: [] },
    get open() {
      return isOpen;
    },
    request() {
      requests += 1;
      const answer = Promise.resolve({ control: description, data: new Uint8Array(0) });
      // Before whoever has asked goes on.
      void answer.then(() => {
        isOpen = false;
        events!.onSessionDown(session, 'ended');
      });
      return answer;
    },
  } as Partial<PeerSession> as PeerSession;
  events!.onSessionUp(session);
  await new Promise((resolve) => setImmediate(resolve));
  await expect(remote.install([])).rejects.toEqual(code('ERR_HOLDFAST_PEER_LOST'));
  await expect(remote.apart.ready(AbortSignal.timeout(1))).rejects.toEqual(code('ERR_HOLDFAST_ABORTED'));
  expect([requests, anew]).toEqual([1, 0]);
});
