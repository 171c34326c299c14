/** What only a plane has: tickets, strangers, threads beside the event loop. What every transport has: conformance. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, test } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { encodeCommand, Operation } from '../../lib/checkpoint/command-format.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { openPlane, type Plane, type PlaneOptions } from '../../lib/checkpoint/plane.ts';
import { openPlaneAccess } from '../../lib/checkpoint/plane-access.ts';
import { type PlaneSession, sharedPlaneClient } from '../../lib/checkpoint/plane-client.ts';
import { planeTransport } from '../../lib/checkpoint/plane-transport.ts';
import type { UnitLimits } from '../../lib/checkpoint/unit.ts';
import type { Grant } from '../../lib/checkpoint/unit-control.ts';
import { openRegion, type Region } from '../../lib/storage/region.ts';
import { UnitOverNetwork } from './unit-over-network.ts';

const PAGE = 4096;
const REGION = 'a'.repeat(32);
const fails = (code: string) => expect.objectContaining({ name: 'HoldfastError', code: `ERR_HOLDFAST_${code}` });
let cleanUps: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
  cleanUps = [];
});

/** The compiler's library does not know it yet. */
const resizable = (lengthBytes: number) =>
  Reflect.construct(ArrayBuffer, [lengthBytes, { maxByteLength: 2 ** 21 }]) as ArrayBuffer & {
    resize(lengthBytes: number): void;
  };

interface World {
  readonly region: Region;
  readonly plane: Plane;
  readonly refused: string[];
  readonly path: string;
}

async function world(options: Partial<PlaneOptions> = {}): Promise<World> {
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-plane-'));
  const path = join(folder, 'memory');
  const region = await openRegion(path, { sizeBytes: 64 * PAGE, create: true });
  const refused: string[] = [];
  const events = {
    refused: (session: number | undefined, code: string, in_: string | undefined, reason: string) =>
      void refused.push(`${session} ${code} ${in_} ${reason}`),
    refusalsLost: () => {},
    persistFailed: () => {},
    stored: () => {},
  };
  const plane = openPlane(region, { ...systemEnvironment, host: '127.0.0.1', ...options }, events);
  cleanUps.push(async () => {
    await plane.close();
    await region.close();
    rmSync(folder, { recursive: true });
  });
  await plane.install([{ region: REGION, extents: [{ startBytes: 0, lengthBytes: 64 * PAGE }] }]);
  return { region, plane, refused, path };
}

function grant(number: number, fields: Partial<Grant> = {}): Grant {
  const key = number.toString(16).padStart(32, '0');
  const range = { base: 0, lengthBytes: 64 * PAGE };
  return { key, region: REGION, range, rights: ['read', 'write'], peer: 'ann', epoch: 1, ...fields };
}

function connected(plane: Plane, ticket: Uint8Array): Promise<PlaneSession> {
  return new Promise((resolve, reject) => {
    const session = sharedPlaneClient().connect('unit', plane.host, plane.port, ticket, () => resolve(session), reject);
    cleanUps.push(() => session.close());
  });
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe('tickets', () => {
  test('a ticket opens one connection, for its session, once', async () => {
    const { plane } = await world();
    const ticket = plane.admit(7);
    plane.grant(grant(1), 7);
    const session = await connected(plane, ticket);
    await openPlaneAccess(session, grant(1)).write(0, [new Uint8Array(8)]);
    await expect(connected(plane, ticket)).rejects.toEqual(fails('REFUSED'));
    await expect(connected(plane, new Uint8Array(16))).rejects.toEqual(fails('REFUSED'));
    const second = await connected(plane, plane.admit(7));
    await until(() => !session.open);
    await openPlaneAccess(second, grant(1)).read(0, new Uint8Array(8));
    expect(plane.state.connections).toBe(1);
  });

  test('a ticket that is shown too late is refused', async () => {
    let expire = () => {};
    const clock = {
      ...systemEnvironment.clock,
      setTimer: (delayMs: number, callback: () => void) => {
        expect(delayMs).toBe(1234);
        expire = callback;
        return { cancel: () => {} };
      },
    };
    const { plane } = await world({ clock, ticketMs: 1234 });
    const ticket = plane.admit(7);
    expire();
    await expect(connected(plane, ticket)).rejects.toEqual(fails('REFUSED'));
  });

  test('over a session between peers: the plane, and no plane', async () => {
    const network = await new UnitOverNetwork().start(true);
    cleanUps.push(() => network.close());
    const connection = await network.connect('ann');
    expect([connection.unit, connection.open]).toEqual(['unit', true]);
    const abort = AbortSignal.abort();
    await expect(network.connect('ben', { signal: abort })).rejects.toEqual(fails('ABORTED'));
    await network.endSession('ann');
    await until(() => !connection.open);
    const without = await new UnitOverNetwork().start(false);
    cleanUps.push(() => without.close());
    await expect(without.connect('ann')).rejects.toEqual(fails('UNKNOWN_METHOD'));
  });

  test('regions that are opened over one session share a connection to the plane; without a plane the session serves', async () => {
    for (const withPlane of [true, false]) {
      const network = await new UnitOverNetwork().start(withPlane);
      cleanUps.push(() => network.close());
      await network.unit.install([{ region: REGION, extents: [{ startBytes: PAGE, lengthBytes: 64 * PAGE }] }]);
      const transport = planeTransport(systemEnvironment.clock);
      const open = async (number: number) => {
        const context = { ...grant(number), unit: 'unit', sizeBytes: 64 * PAGE };
        await network.unit.grant(context);
        return transport(network.session('ann'), context);
      };
      const [one, other] = [await open(1), await open(2)];
      await one.write(0, [Buffer.from('by the one')], { persist: true });
      const target = Buffer.alloc(10);
      await other.read(0, target);
      expect(target.toString()).toBe('by the one');
      // Another ticket of the same session ends the connection; the next region that is opened makes a new one.
      if (withPlane) (await network.connect('ann')).close();
      await until(() => one.open !== withPlane);
      await (await open(3)).read(0, target);
    }
  });

  test('regions that are opened again together share one new connection, and none takes the place of the other', async () => {
    const network = await new UnitOverNetwork().start(true);
    cleanUps.push(() => network.close());
    await network.unit.install([{ region: REGION, extents: [{ startBytes: PAGE, lengthBytes: 64 * PAGE }] }]);
    const transport = planeTransport(systemEnvironment.clock);
    const open = async (number: number) => {
      const context = { ...grant(number), unit: 'unit', sizeBytes: 64 * PAGE };
      await network.unit.grant(context);
      return transport(network.session('ann'), context);
    };
    const first = await open(1);
    (await network.connect('ann')).close();
    await until(() => !first.open);
    const again = await Promise.all([open(2), open(3), open(4)]);
    for (let round = 0; round < 50; round++) for (const access of again) await access.read(0, new Uint8Array(8));
    expect(again.map(({ open }) => open)).toEqual([true, true, true]);
  });

  test('nobody there: no connection, and a unit that says nothing: a timeout', async () => {
    const { plane } = await world();
    const { port, host } = plane;
    const ticket = plane.admit(1);
    await plane.close();
    await expect(connected({ host, port } as Plane, ticket)).rejects.toEqual(fails('PEER_LOST'));
    expect(() =>
      sharedPlaneClient().connect(
        'unit',
        'localhost',
        port,
        ticket,
        () => {},
        () => {},
      ),
    ).toThrow(fails('CONNECT_FAILED'));
  });
});

describe('strangers and hostile clients', () => {
  /** What comes back until the connection ends. */
  async function say(plane: Plane, bytes: Uint8Array): Promise<Buffer> {
    const socket = connect(plane.port, plane.host);
    const chunks: Buffer[] = [];
    socket.on('data', (chunk) => chunks.push(chunk));
    socket.on('error', () => {});
    socket.write(bytes);
    await once(socket, 'close');
    return Buffer.concat(chunks);
  }
  const hello = (ticket: Uint8Array) => Buffer.concat([Buffer.from('HFPLANE1'), ticket, Buffer.alloc(8)]);

  test('are turned away, and it is told of them', async () => {
    const { plane, refused } = await world();
    expect(await say(plane, Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'))).toEqual(Buffer.alloc(0));
    const answer = await say(plane, hello(Buffer.alloc(16, 9)));
    expect([answer.length, answer[1]]).toEqual([32, 1]);
    const spoilt = encodeCommand({
      ...{ operation: Operation.read, persist: false, guard: false, tag: 5, key: '1'.repeat(32) },
      ...{ address: 0, length: 8, operandA: 0n, operandB: 0n },
    });
    spoilt[3] = 1;
    await say(plane, Buffer.concat([hello(plane.admit(3)), spoilt]));
    await until(() => refused.length === 3);
    expect(refused).toEqual([
      'undefined ERR_HOLDFAST_REFUSED undefined a connection that is not from a client of a plane',
      'undefined ERR_HOLDFAST_REFUSED undefined a ticket that is not known: invented, used, or too old',
      '3 ERR_HOLDFAST_BAD_FRAME undefined a command that cannot be, over the plane',
    ]);
  });

  test('a unit counts what its plane does, and has its refusals in the audit log, with the name of the peer', async () => {
    const network = await new UnitOverNetwork().start(true);
    cleanUps.push(() => network.close());
    const access = openPlaneAccess(await network.connect('ben'), grant(0xbad));
    await expect(access.read(0, new Uint8Array(8))).rejects.toEqual(fails('KEY_INVALID'));
    await until(() => network.unit.status.refused === 1);
    expect(network.unit.auditEvents().at(-1)).toMatchObject({ kind: 'refused', peer: 'ben', count: 1 });
    await network.unit.install([{ region: REGION, extents: [{ startBytes: PAGE, lengthBytes: 64 * PAGE }] }]);
    await network.unit.grant(grant(0xbad, { peer: 'ben' }));
    await access.write(0, [new Uint8Array(10)], { persist: true });
    await access.read(0, new Uint8Array(100));
    expect(await access.compareAndSwap(0, 0n, 1n)).toBe(0n);
    const counted = { reads: 1, readBytes: 100, writes: 2, writtenBytes: 18, persists: 1, refused: 1 };
    expect(network.unit.status).toMatchObject(counted);
  });

  test('a client that is refused at many addresses does not push what others did out of the audit log', async () => {
    const network = await new UnitOverNetwork().start(true);
    cleanUps.push(() => network.close());
    const range = { base: 0, lengthBytes: 2 ** 40 };
    const access = openPlaneAccess(await network.connect('ben'), grant(0xbad, { range }));
    for (let number = 0; number < 20; number++)
      await expect(access.read(8 * number, new Uint8Array(8 + number))).rejects.toEqual(fails('KEY_INVALID'));
    await until(() => network.unit.status.refused === 20);
    const refused = network.unit.auditEvents().filter(({ kind }) => kind === 'refused');
    expect(refused).toEqual([expect.objectContaining({ peer: 'ben', count: 20 })]);
  });
});

describe('limits', () => {
  test('a client parks what is too much at once, and refuses what is far too much', async () => {
    const { plane } = await world();
    plane.grant(grant(1), 1);
    const access = openPlaneAccess(await connected(plane, plane.admit(1)), grant(1));
    const reads = Array.from({ length: 20_000 }, () =>
      access.read(0, new Uint8Array(8)).then(
        () => 'done',
        (error) => error.code,
      ),
    );
    const outcomes = await Promise.all(reads);
    const done = outcomes.filter((outcome) => outcome === 'done').length;
    expect(done).toBe(1024 + 16_384);
    expect(outcomes[19_999]).toBe('ERR_HOLDFAST_QUEUE_FULL');
  });

  test('what is written between two call backs starts at the front of the memory for it, and not behind what is gone', async () => {
    // A unit that answers the greeting and one command, and no other one.
    const answer = (tag: Uint8Array) => Buffer.concat([Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0), tag, Buffer.alloc(16)]);
    let received = 0;
    const unit = createServer((socket) => {
      socket.on('error', () => {});
      socket.on('data', (chunk) => {
        const before = received;
        received += chunk.length;
        if (before < 32 && received >= 32) socket.write(answer(Buffer.alloc(8)));
        if (before < 32 + 65 && received >= 32 + 65) socket.write(answer(chunk.subarray(8, 16)));
      });
    }).listen(0, '127.0.0.1');
    cleanUps.push(() => void unit.close());
    await once(unit, 'listening');
    const place = { host: '127.0.0.1', port: (unit.address() as AddressInfo).port } as Plane;
    const session = await connected(place, new Uint8Array(16));
    const most = 1024 * 1024;
    const access = openPlaneAccess(session, grant(1, { range: { base: 0, lengthBytes: most } }));
    await access.write(0, [new Uint8Array(1)]);
    const inCallBack = access.write(0, [new Uint8Array(most)]);
    await new Promise((resolve) => setImmediate(resolve));
    const after = access.write(0, [new Uint8Array(10)]);
    await until(() => received === 32 + 65 + 64 + most + 74);
    session.close();
    for (const write of [inCallBack, after]) await expect(write).rejects.toEqual(fails('PEER_LOST'));
  });

  test('a store that waits for its turn fails alone if its bytes were transferred or resized meanwhile', async () => {
    const { plane, region } = await world();
    plane.grant(grant(1), 1);
    const access = openPlaneAccess(await connected(plane, plane.admit(1)), grant(1));
    const [transferred, none, shorter, longer] = [new Uint8Array(8), new Uint8Array(0), resizable(8), resizable(8)];
    const filling = Array.from({ length: 2000 }, () => access.write(0, [new Uint8Array(8).fill(1)]));
    const gone = [transferred, new Uint8Array(shorter), new Uint8Array(longer)];
    const failing = Promise.allSettled(gone.map((bytes) => access.write(8, [bytes])));
    const after = access.write(16, [new Uint8Array(8).fill(2), none]);
    for (const { buffer } of [transferred, none]) structuredClone(buffer, { transfer: [buffer] });
    shorter.resize(7);
    longer.resize(2 ** 21);
    await Promise.all([...filling, after]);
    for (const outcome of await failing) expect(outcome).toMatchObject({ reason: fails('BAD_ARGUMENT') });
    expect([...region.bytes.subarray(0, 24)]).toEqual([...Array(8).fill(1), ...Array(8).fill(0), ...Array(8).fill(2)]);
  });

  describe('long reads, whose data go straight to where they belong', () => {
    const lengths = [64 * PAGE, 8, 40_000, 32 * 1024, 100, 128 * 1024 + 1, 32 * 1024 - 1];

    async function filled() {
      const { plane, region } = await world();
      region.write(0, randomBytes(64 * PAGE));
      plane.grant(grant(1), 1);
      const session = await connected(plane, plane.admit(1));
      return { plane, region, session, access: openPlaneAccess(session, grant(1)) };
    }

    test('among short ones and stores, many under way', async () => {
      const { region, access } = await filled();
      const word = new Uint8Array(8);
      const reads = Array.from({ length: 200 }, (_, index) => {
        const target = new Uint8Array(lengths[index % lengths.length]!);
        const address = (64 * PAGE - target.length) & ~7;
        if (index % 5 === 0) void access.write(0, [word]);
        return access.read(address, target).then(() => [address, target] as const);
      });
      for (const [address, target] of await Promise.all(reads)) {
        const start = address === 0 ? 8 : 0;
        const there = region.bytes.subarray(address + start, address + target.length);
        expect(Buffer.compare(target.subarray(start), there)).toBe(0);
      }
    });

    test('a read that was cancelled stores nothing any more, and the others go on', async () => {
      const { region, access } = await filled();
      for (let round = 0; round < 30; round += 1) {
        const abort = new AbortController();
        const cancelled = Array.from({ length: 4 }, () => new Uint8Array(64 * PAGE));
        const kept = new Uint8Array(64 * PAGE);
        const failing = cancelled.map((target) => access.read(0, target, { signal: abort.signal }));
        const read = access.read(0, kept);
        for (let turn = 0; turn < round % 3; turn += 1) await new Promise((resolve) => setImmediate(resolve));
        abort.abort();
        const outcomes = await Promise.allSettled(failing);
        const gone = cancelled.filter((_, index) => outcomes[index]!.status === 'rejected');
        for (const target of gone) target.fill(7);
        await read;
        expect(Buffer.compare(kept, region.bytes)).toBe(0);
        await access.read(0, new Uint8Array(8));
        expect(gone.every((target) => target.every((byte) => byte === 7))).toBe(true);
      }
    });

    test('memory that was transferred meanwhile is left alone, and the read says so', async () => {
      const { region, access } = await filled();
      const [target, other] = [new Uint8Array(64 * PAGE), new Uint8Array(64 * PAGE)];
      const read = access.read(0, target);
      const after = access.read(0, other);
      const taken = structuredClone(target.buffer, { transfer: [target.buffer] });
      await expect(read).rejects.toEqual(fails('BAD_ARGUMENT'));
      expect(new Uint8Array(taken).every((byte) => byte === 0)).toBe(true);
      await after;
      expect(Buffer.compare(other, region.bytes)).toBe(0);
    });

    test('memory that was transferred is known as such after much was read, into resizable memory too', async () => {
      const { access } = await filled();
      for (let round = 0; round < 200; round += 1) {
        const targets = Array.from({ length: 99 }, (_, index) =>
          index % 3 === 0 ? new Uint8Array(resizable(8)) : new Uint8Array(8),
        );
        const reads = targets.map((target) => access.read(0, target));
        structuredClone(targets[50]!.buffer, { transfer: [targets[50]!.buffer] });
        const outcomes = await Promise.allSettled(reads);
        expect(outcomes.flatMap(({ status }, index) => (status === 'rejected' ? [index] : []))).toEqual([50]);
      }
    });

    test('end with their session, and what is read over the next one is its own', async () => {
      const { plane, region, session, access } = await filled();
      const targets = Array.from({ length: 8 }, () => new Uint8Array(64 * PAGE));
      const reads = targets.map((target) => access.read(0, target));
      session.close();
      for (const read of reads) await expect(read).rejects.toEqual(fails('PEER_LOST'));
      for (const target of targets) target.fill(7);
      plane.grant(grant(2), 2);
      const next = openPlaneAccess(await connected(plane, plane.admit(2)), grant(2));
      const found = new Uint8Array(64 * PAGE);
      const short = new Uint8Array(8);
      await Promise.all([next.read(0, short), next.read(0, found)]);
      expect(Buffer.compare(found, region.bytes)).toBe(0);
      expect(targets.every((target) => target.every((byte) => byte === 7))).toBe(true);
    });
  });

  test('settings that cannot be, and a port that is taken', async () => {
    const { plane, region } = await world();
    const events = { refused() {}, refusalsLost() {}, persistFailed() {}, stored() {} };
    const open = (options: Partial<PlaneOptions>) => () =>
      openPlane(region, { ...systemEnvironment, host: '127.0.0.1', ...options }, events);
    expect(open({ port: plane.port })).toThrow(fails('ADDRESS_IN_USE'));
    expect(open({ host: 'localhost' })).toThrow(fails('BAD_ARGUMENT'));
    expect(open({ host: '198.51.100.1' })).toThrow(fails('BAD_ARGUMENT'));
    expect(open({ port: 70_000 })).toThrow(fails('BAD_ARGUMENT'));
    expect(open({ lingerMicroseconds: 1e6 })).toThrow(fails('BAD_ARGUMENT'));
    expect(open({ limits: { commandsPerConnection: 0 } })).toThrow(fails('BAD_ARGUMENT'));
    await expect(async () =>
      plane.install([{ region: REGION, extents: [{ startBytes: 0, lengthBytes: 65 * PAGE }] }]),
    ).rejects.toEqual(fails('OUT_OF_RANGE'));
    expect(() => plane.grant(grant(2, { region: 'b'.repeat(32) }), 1)).toThrow(fails('BAD_ARGUMENT'));
  });
});

describe('rates', () => {
  async function accesses(limits: UnitLimits) {
    const network = await new UnitOverNetwork().start(true, limits);
    cleanUps.push(() => network.close());
    await network.unit.install([{ region: REGION, extents: [{ startBytes: PAGE, lengthBytes: 64 * PAGE }] }]);
    const of = async (number: number, peer: string) => {
      const context = grant(number, { peer });
      await network.unit.grant(context);
      const overPlane = openPlaneAccess(await network.connect(peer), context);
      return { overPlane, overSession: openAccess(network.session(peer), context) };
    };
    return { network, ann: await of(1, 'ann'), ben: await of(2, 'ben') };
  }
  const settled = (promise: Promise<unknown>) =>
    Promise.race([
      promise.then(
        () => true,
        () => true,
      ),
      new Promise((resolve) => setTimeout(resolve, 50, false)),
    ]);

  test('a peer keeps to one rate over its session and the plane together, and nobody else waits for it', async () => {
    const { network, ann, ben } = await accesses({ commandsPerSecond: 0.001 });
    await ann.overPlane.read(0, new Uint8Array(8));
    const waiting = [
      ann.overSession.write(0, [new Uint8Array(8).fill(1)]),
      ann.overPlane.write(0, [new Uint8Array(8).fill(2)]),
    ];
    expect(await Promise.all(waiting.map(settled))).toEqual([false, false]);
    await ben.overSession.read(0, new Uint8Array(8));
    expect(await settled(ben.overPlane.read(0, new Uint8Array(8)))).toBe(false);
    // A revocation does not wait for them, nor does the end of the session.
    expect(await network.unit.revoke({ region: REGION, peer: 'ann' })).toBe(1);
    const ended = Promise.allSettled(waiting);
    await network.endSession('ann');
    for (const { status } of await ended) expect(status).toBe('rejected');
    expect(network.region.bytes[PAGE]).toBe(0);
  });

  test('a turn that no timer is long enough for is waited for over a session, too', async () => {
    const { ann } = await accesses({ commandsPerSecond: 1e-9 });
    await ann.overSession.read(0, new Uint8Array(8));
    expect(await settled(ann.overSession.read(0, new Uint8Array(8)))).toBe(false);
  });

  test('what comes too fast is executed, in order, and not faster', async () => {
    const { ann, network } = await accesses({ bytesPerSecond: 100 * PAGE });
    const startMs = performance.now();
    const order: number[][] = [[], []];
    const write = async (way: number, page: number) => {
      const access = way === 0 ? ann.overPlane : ann.overSession;
      await access.write((32 * way + page) * PAGE, [new Uint8Array(PAGE).fill(page + 1)]);
      order[way]!.push(page);
    };
    const pages = Array.from({ length: 20 }, (_, page) => page);
    await Promise.all(pages.flatMap((page) => [write(0, page), write(1, page)]));
    expect(performance.now() - startMs).toBeGreaterThan(280);
    expect(order).toEqual([pages, pages]);
    for (const page of pages)
      expect([0, 32].map((first) => network.region.bytes[(1 + first + page) * PAGE])).toEqual([page + 1, page + 1]);
  });
});

describe('the memory', () => {
  test('a region that is closed stays mapped and locked for the plane until that is closed', async () => {
    const { plane, region, path } = await world();
    plane.grant(grant(1), 1);
    const access = openPlaneAccess(await connected(plane, plane.admit(1)), grant(1));
    await access.write(0, [Buffer.from('still there')], { persist: true });
    await region.close();
    const target = Buffer.alloc(11);
    await access.read(0, target);
    expect(target.toString()).toBe('still there');
    await access.write(PAGE, [Buffer.from('and here')], { persist: true });
    await expect(openRegion(path)).rejects.toEqual(fails('DEVICE_BUSY'));
    await plane.close();
    await using again = await openRegion(path);
    expect(Buffer.from(again.bytes.subarray(PAGE, PAGE + 8)).toString()).toBe('and here');
  });

  test('a region that grows goes on with its old length until the plane is told', async () => {
    const { plane, region } = await world();
    plane.grant(grant(1), 1);
    const session = await connected(plane, plane.admit(1));
    const access = openPlaneAccess(session, grant(1));
    const written = access.write(0, [new Uint8Array(PAGE).fill(1)], { persist: true });
    await region.grow(128 * PAGE);
    await written;
    await access.write(PAGE, [new Uint8Array(PAGE).fill(2)], { persist: true });
    plane.regionGrown();
    await plane.install([{ region: REGION, extents: [{ startBytes: 0, lengthBytes: 128 * PAGE }] }]);
    const range = { base: 0, lengthBytes: 128 * PAGE };
    plane.grant(grant(2, { range }), 1);
    const longer = openPlaneAccess(session, grant(2, { range }));
    await longer.write(127 * PAGE, [new Uint8Array(PAGE).fill(3)], { persist: true });
    expect([0, 1, 127].map((page) => region.bytes[page * PAGE])).toEqual([1, 2, 3]);
  });

  test('what is done exclusively falls between no two steps of a command', async () => {
    const { plane, region } = await world();
    plane.grant(grant(1), 1);
    const access = openPlaneAccess(await connected(plane, plane.admit(1)), grant(1));
    const words = new BigUint64Array(region.bytes.buffer, 0, 2);
    let swaps = 0n;
    let ended = false;
    const swapping = (async () => {
      while (!ended) {
        await Promise.all(Array.from({ length: 16 }, () => access.compareAndSwap(0, swaps, swaps + 1n)));
        swaps += 1n;
      }
    })();
    for (let round = 0; round < 2000; round += 1) {
      plane.exclusively(() => {
        const before = words[0]!;
        for (let spin = 0; spin < 100; spin += 1) words[1] = BigInt(spin);
        expect(words[0]).toBe(before);
      });
      if (round % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(() => plane.exclusively(() => plane.state)).toThrow();
    expect(() =>
      plane.exclusively(() => {
        throw new RangeError('mine');
      }),
    ).toThrow(RangeError);
    ended = true;
    await swapping;
    expect(words[0]).toBe(swaps);
  });
});

test('a worker that is terminated at any moment, with a plane and its clients at work, lets go of the file', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-plane-'));
  cleanUps.push(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'memory');
  const from = (module: string) => JSON.stringify(new URL(`../../dist/${module}.js`, import.meta.url).href);
  const script = `
    const { parentPort } = require('node:worker_threads');
    (async () => {
      const { openRegion } = await import(${from('storage/region')});
      const { openPlane } = await import(${from('checkpoint/plane')});
      const { openPlaneAccess } = await import(${from('checkpoint/plane-access')});
      const { sharedPlaneClient } = await import(${from('checkpoint/plane-client')});
      const { systemEnvironment } = await import(${from('base/system-environment')});
      const region = await openRegion(${JSON.stringify(path)}, { sizeBytes: 1 << 20, create: true });
      const events = { refused() {}, refusalsLost() {}, persistFailed() {}, stored() {} };
      const plane = openPlane(region, { ...systemEnvironment, host: '127.0.0.1' }, events);
      const id = 'a'.repeat(32);
      await plane.install([{ region: id, extents: [{ startBytes: 0, lengthBytes: 1 << 20 }] }]);
      const context = { key: '1'.repeat(32), region: id, range: { base: 0, lengthBytes: 1 << 20 }, epoch: 1 };
      plane.grant({ ...context, rights: ['read', 'write'], peer: 'ann' }, 1);
      const session = await new Promise((resolve, reject) => {
        const made = sharedPlaneClient().connect('unit', plane.host, plane.port, plane.admit(1), () => resolve(made), reject);
      });
      const access = openPlaneAccess(session, context);
      const bytes = new Uint8Array(4096);
      const work = async (at) => {
        for (;;) {
          await access.write(at, [bytes], { persist: at % 8192 === 0 });
          await access.read(at, bytes);
        }
      };
      for (let at = 0; at < 32 * 4096; at += 4096) work(at).catch(() => {});
      const long = async () => {
        for (;;) await access.read(0, new Uint8Array(1 << 20));
      };
      for (let each = 0; each < 4; each += 1) long().catch(() => {});
      parentPort.postMessage('at work');
    })();`;
  for (let round = 0; round < 8; round += 1) {
    const worker = new Worker(script, { eval: true });
    await once(worker, 'message');
    await new Promise((resolve) => setTimeout(resolve, round * 5));
    await worker.terminate();
    await using region = await openRegion(path);
    expect(region.sizeBytes).toBe(1 << 20);
  }
});
