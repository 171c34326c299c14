/** The mirror engine against a peer that a test plays. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { Access } from '../../lib/mirror/access.ts';
import type { ActivityLog } from '../../lib/mirror/activity-log.ts';
import { MirrorEngine } from '../../lib/mirror/engine.ts';
import { OwnCopy } from '../../lib/mirror/own-copy.ts';
import type { PeerSession } from '../../lib/peer/peer.ts';
import { FaultPlan, FaultyDevice } from '../../lib/storage/faulty-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';

const SIZE = 1024 * 1024;

test('a write of unknown outcome was called ended while the own device was still at it', async () => {
  const { clock } = systemEnvironment;
  const faults = new FaultPlan();
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes: SIZE, name: 'memory' }), { plan: faults });
  const left: number[] = [];
  const log = { enter: () => undefined, leave: (offset: number) => left.push(offset) } as unknown as ActivityLog;
  const own = new OwnCopy({ device, log, clock, timeoutMs: 60_000, onFailure: () => {} });
  const access = new Access({
    volumeId: 'cd'.repeat(16),
    self: 0,
    sizeBytes: SIZE,
    extentBytes: 65_536,
    viewNumber: () => 1,
    onPeerFailure: () => {},
  });
  const engine: MirrorEngine = new MirrorEngine({
    volumeId: 'cd'.repeat(16),
    own,
    access,
    sizeBytes: SIZE,
    grainBytes: 65_536,
    clock,
    peerTimeoutMs: 60_000,
    viewNumber: () => 1,
    takenOver: async () => false,
    onPeerFailure: () => engine.detach(),
  });
  let lose: (error: Error) => void = () => {};
  const session = {
    request: () =>
      new Promise((_, reject) => {
        lose = reject;
      }),
  } as unknown as PeerSession;
  access.beginAlone();
  engine.attach(session, true);
  const hang = faults.inject({ action: { kind: 'hang' }, on: 'write' });
  const write = engine.write(0, new Uint8Array(4096).fill(1), { fua: false, stable: false });
  const outcome = write.then(
    () => 'done',
    (error: HoldfastError) => error.code,
  );
  await nextTurn();
  lose(new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'as told'));
  await nextTurn();
  engine.seal();
  let ended = false;
  void engine.requestsDone().then(() => {
    ended = true;
  });
  for (let turn = 0; turn < 10; turn += 1) await nextTurn();
  expect({ ended, left, claims: access.claims() }).toEqual({ ended: false, left: [], claims: [0] });
  hang.remove();
  expect(await outcome).toBe('ERR_HOLDFAST_OUTCOME_UNKNOWN');
  for (let turn = 0; turn < 10; turn += 1) await nextTurn();
  expect({ ended, left, claims: access.claims() }).toEqual({ ended: true, left: [0], claims: [] });
});
