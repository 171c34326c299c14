import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { Metadata } from '../../lib/mirror/metadata.ts';
import { MirroredVolume } from '../../lib/mirror/volume.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { PeerNode } from '../../lib/peer/peer.ts';
import { FaultPlan, FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { conformance, conformanceSizeBytes } from '../conformance/block-device.ts';

const NAMES = ['a', 'b'] as const;
const shape = {
  volumeId: 'cd'.repeat(16),
  sizeBytes: conformanceSizeBytes,
  grainBytes: 65_536,
  activityLogExtentBytes: 1024 * 1024,
  deviceIdentity: 'memory',
};

/** Not the metadata behind it. */
const DATA = { offset: 0, length: shape.sizeBytes };

interface Member {
  readonly volume: MirroredVolume;
  readonly memory: MemoryDevice;
  readonly faults: FaultPlan;
  readonly node: PeerNode;
  close(): Promise<void>;
}

/** Two members in this process, over Unix sockets with TLS. */
async function openPair(): Promise<{ members: [Member, Member]; cleanUp(): Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-volume-'));
  const address = (name: string) => ({ kind: 'unix', path: join(folder, name) }) as const;
  const open = async (member: 0 | 1): Promise<Member> => {
    const name = NAMES[member];
    const other = NAMES[member === 0 ? 1 : 0];
    const memory = new MemoryDevice({ sizeBytes: shape.sizeBytes + 1024 * 1024, name: `memory of ${name}` });
    const faults = new FaultPlan();
    const device = new FaultyDevice(memory, { plan: faults });
    await Metadata.create(device, { ...shape, member, memberName: name });
    const node = createPeerNode({
      environment: systemEnvironment,
      name,
      clusterId: 'test',
      key: new Uint8Array(32),
      listen: address(name),
      peers: [{ name: other, addresses: [address(other)] }],
    });
    const volume = await MirroredVolume.open({
      environment: systemEnvironment,
      node,
      name: 'vol',
      volumeId: shape.volumeId,
      memberNames: NAMES,
      onLostPeer: { kind: 'suspend' },
      device,
      store: await Metadata.open(device),
      isBlank: async () => true,
    });
    await node.start();
    const close = async () => {
      await volume.close();
      await node.close();
    };
    return { volume, memory, faults, node, close };
  };
  const members: [Member, Member] = [await open(0), await open(1)];
  await expect
    .poll(() => members.map(({ volume }) => volume.status.role), { timeout: 10_000 })
    .toEqual(['paired', 'paired']);
  const cleanUp = async () => {
    await Promise.all(members.map((member) => member.close()));
    await rm(folder, { recursive: true });
  };
  return { members, cleanUp };
}

function sameContent([first, second]: readonly [Member, Member]): Promise<boolean> {
  const contents = [first, second].map(async ({ memory }) => {
    const bytes = Buffer.alloc(shape.sizeBytes);
    await memory.read(0, bytes);
    return bytes;
  });
  return Promise.all(contents).then(([one, other]) => one!.equals(other!));
}

for (const member of [0, 1] as const) {
  const where = member === 0 ? 'at the member with access' : 'at the other member';
  conformance(`a mirrored volume, ${where},`, async () => {
    const pair = await openPair();
    return { device: pair.members[member].volume, cleanUp: () => pair.cleanUp() };
  });
}

test('both copies hold what either member was given', async () => {
  const pair = await openPair();
  const [a, b] = pair.members;
  const writes = Array.from({ length: 40 }, (_, index) => {
    const bytes = new Uint8Array(5000 + index * 7).fill(index + 1);
    return (index % 2 === 0 ? a : b).volume.write(index * 3001, bytes);
  });
  await Promise.all(writes);
  await b.volume.writeZeroes(10_000, 30_000);
  await a.volume.discard(100_000, 4096);
  await b.volume.flush();
  expect(await sameContent(pair.members)).toBe(true);
  await pair.cleanUp();
});

test('a buffer that is changed while the write is under way does not make the copies differ', async () => {
  const pair = await openPair();
  const [a] = pair.members;
  const bytes = new Uint8Array(256 * 1024).fill(1);
  const write = a.volume.write(0, bytes);
  await Promise.resolve();
  bytes.fill(2);
  await write;
  expect(await sameContent(pair.members)).toBe(true);
  await pair.cleanUp();
});

test('the device of the member without access fails: the other goes on alone, and says so', async () => {
  const pair = await openPair();
  const [a, b] = pair.members;
  b.faults.inject({ action: { kind: 'error' }, on: 'write', within: DATA });
  await a.volume.write(0, new Uint8Array(4096).fill(3));
  await expect.poll(() => a.volume.status.record.known.inSync).toBe(1);
  expect(b.volume.status).toMatchObject({ ownState: 'Failed', problem: { code: 'ERR_HOLDFAST_DEVICE_FAILED' } });
  await a.volume.write(4096, new Uint8Array(4096).fill(4));
  const bytes = new Uint8Array(4096);
  await b.volume.read(4096, bytes);
  expect(bytes[0]).toBe(4);
  await pair.cleanUp();
});

test('the device of the member with access fails: the other goes on, and serves the clients of both', async () => {
  const pair = await openPair();
  const [a, b] = pair.members;
  await a.volume.write(0, new Uint8Array(4096).fill(5));
  a.faults.inject({ action: { kind: 'error' }, on: 'write', within: DATA });
  await a.volume.write(4096, new Uint8Array(4096).fill(6));
  expect(a.volume.status.ownState).toBe('Failed');
  await b.volume.write(8192, new Uint8Array(4096).fill(7));
  const bytes = new Uint8Array(4096);
  await b.volume.read(4096, bytes);
  expect(bytes[0]).toBe(6);
  await a.volume.read(8192, bytes);
  expect(bytes[0]).toBe(7);
  await a.volume.read(0, bytes);
  expect(bytes[0]).toBe(5);
  await a.volume.flush();
  await pair.cleanUp();
});

test('a read that the own device fails is answered by the peer', async () => {
  const pair = await openPair();
  const [a] = pair.members;
  await a.volume.write(0, new Uint8Array(4096).fill(5));
  a.faults.inject({ action: { kind: 'error' }, on: 'read', within: DATA });
  const bytes = new Uint8Array(4096);
  await a.volume.read(0, bytes);
  expect(bytes[0]).toBe(5);
  expect(a.volume.status.ownState).toBe('Failed');
  await pair.cleanUp();
});

test('the member without access stops while writes go on without a pause', async () => {
  const pair = await openPair();
  const [a, b] = pair.members;
  let going = true;
  const writer = async (lane: number) => {
    for (let round = 0; going; round += 1) {
      await a.volume.write(lane * 8192, new Uint8Array(8192).fill(round));
      // Alone on a device in memory, nothing else would let the event loop turn.
      await nextTurn();
    }
  };
  const writers = Array.from({ length: 16 }, (_, lane) => writer(lane));
  await b.close();
  expect(a.volume.status.record.known.inSync).toBe(1);
  going = false;
  await Promise.all(writers);
  await pair.cleanUp();
});

test('a slow write holds up no others that the peer forwards', async () => {
  const pair = await openPair();
  const [a, b] = pair.members;
  const slow = a.faults.inject({ action: { kind: 'hang' }, on: 'write', within: { offset: 0, length: 4096 } });
  const first = b.volume.write(0, new Uint8Array(4096).fill(1));
  for (let round = 0; round < 20; round += 1) {
    const writes = Array.from({ length: 50 }, (_, index) => b.volume.write((index + 1) * 4096, new Uint8Array(4096)));
    await Promise.all(writes);
  }
  slow.remove();
  await first;
  expect(await sameContent(pair.members)).toBe(true);
  await pair.cleanUp();
});

test('more requests at once than the volume takes are refused, and cost it no member', async () => {
  const pair = await openPair();
  const [a] = pair.members;
  const block = new Uint8Array(512);
  const writes = await Promise.allSettled(Array.from({ length: 9000 }, () => a.volume.write(0, block)));
  const refused = writes
    .filter(({ status }) => status === 'rejected')
    .map((write) => (write as PromiseRejectedResult).reason);
  expect(refused.length).toBe(9000 - 8192);
  expect(new Set(refused.map(({ code }) => code))).toEqual(new Set(['ERR_HOLDFAST_QUEUE_FULL']));
  expect(a.volume.status.role).toBe('paired');
  await pair.cleanUp();
});

test('a request that waits for the peer can be cancelled, and ends when the volume is closed', async () => {
  const pair = await openPair();
  const [a, b] = pair.members;
  await b.node.close();
  await expect.poll(() => a.volume.status.gate.mode).toBe('closed');
  const abort = new AbortController();
  const cancelled = a.volume.read(0, new Uint8Array(512), { signal: abort.signal });
  const waiting = a.volume.write(0, new Uint8Array(512));
  abort.abort();
  await expect(cancelled).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
  const ended = expect(waiting).rejects.toMatchObject({ code: 'ERR_HOLDFAST_CLOSED' });
  await pair.cleanUp();
  await ended;
});

test('a large range of zeros was one request, which could take longer than a device may', async () => {
  const sizeBytes = 40 * 1024 * 1024;
  const faults = new FaultPlan();
  const memory = new MemoryDevice({ sizeBytes: sizeBytes + 1024 * 1024, name: 'memory' });
  const device = new FaultyDevice(memory, { plan: faults, clock: systemEnvironment.clock });
  await Metadata.create(device, { ...shape, sizeBytes, member: 0, memberName: 'a' });
  const node = createPeerNode({
    environment: systemEnvironment,
    name: 'a',
    clusterId: 'test',
    key: new Uint8Array(32),
    listen: { kind: 'unix', path: '/nowhere' },
    peers: [{ name: 'b', addresses: [{ kind: 'unix', path: '/nowhere' }] }],
  });
  const volume = await MirroredVolume.open({
    environment: systemEnvironment,
    node,
    name: 'vol',
    volumeId: shape.volumeId,
    memberNames: NAMES,
    onLostPeer: { kind: 'suspend' },
    device,
    store: await Metadata.open(device),
  });
  await volume.controller.force(false);
  await volume.write(39 * 1024 * 1024, new Uint8Array(4096).fill(1));
  const pieces = faults.inject({ action: { kind: 'delay', delayMs: 0 }, on: 'writeZeroes' });
  await volume.writeZeroes(4096, sizeBytes - 4096);
  expect(pieces.hits).toBe(3);
  const last = new Uint8Array(4096).fill(2);
  await volume.read(39 * 1024 * 1024, last);
  expect(last.every((byte) => byte === 0)).toBe(true);
  await volume.close();
});
