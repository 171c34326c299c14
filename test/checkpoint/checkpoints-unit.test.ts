/** Checkpoints on a unit whose memory loses what was not persisted, at a store by lot, and on one that revokes keys. */
import { expect, test } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import { CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import { cursorAddress, PAIR_BYTES } from '../../lib/checkpoint/layout.ts';
import type { Right } from '../../lib/checkpoint/one-sided.ts';
import { formatCheckpointRegion } from '../../lib/checkpoint/region-record.ts';
import { createMemoryUnit, type MemoryUnit } from '../../lib/checkpoint/unit.ts';
import { SimulatedMemory } from '../../lib/testing/simulated-memory.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { stamped, stampOf } from './checkpoint-helpers.ts';

const PAGE = 4096;
const REGION = 'a'.repeat(32);
const REGION_BYTES = 12 * PAGE;
const POWER_CUTS = 40;
let keys = 0;

async function unitOver(memory: SimulatedMemory): Promise<MemoryUnit> {
  const unit = createMemoryUnit({ name: 'unit', memory: memory.open(), clock: systemClock, recordsBytes: PAGE });
  // Two extents, so that the region's pages are not one after the other.
  const extents = [
    { startBytes: 10 * PAGE, lengthBytes: REGION_BYTES - 4 * PAGE },
    { startBytes: 2 * PAGE, lengthBytes: 4 * PAGE },
  ];
  await unit.install([{ region: REGION, extents }]);
  return unit;
}

function accessOf(unit: MemoryUnit, peer: string, rights: readonly Right[] = ['read', 'write'], base = 0, length = 0) {
  const key = (++keys).toString(16).padStart(32, '0');
  const range = { base, lengthBytes: length || REGION_BYTES };
  return unit.localAccess({ key, region: REGION, range, rights, peer, epoch: 1 });
}

test('power cuts of the unit, one after the other: each acknowledged checkpoint is there, none twice, none torn', async () => {
  const random = new SimulatedRandom(11);
  const memory = new SimulatedMemory({ random, sizeBytes: 32 * PAGE });
  let unit = await unitOver(memory);
  await formatCheckpointRegion(await accessOf(unit, 'primary'), { mode: 'append', cursors: 1, random });
  const acknowledged = new Map<number, number>();
  const seen = new Map<number, number>();
  let stamp = 0;
  for (let cut = 0; cut < POWER_CUTS; cut++) {
    const access = await accessOf(unit, 'primary');
    const backup = await CheckpointReader.open(access, { name: 'backup' });
    const writer = await CheckpointWriter.open(access);
    for (const { sequence, value } of await backup.tail()) {
      expect(stampOf(value)).toBe(acknowledged.get(sequence) ?? stampOf(value));
      expect(stampOf(value)).toBe(seen.get(sequence) ?? stampOf(value));
      seen.set(sequence, stampOf(value));
    }
    for (const [sequence, own] of acknowledged) expect(seen.get(sequence), `checkpoint ${sequence}`).toBe(own);
    await backup.clear(backup.readSequence);
    let isDead = false;
    const crashed = new Promise<void>((resolve) => {
      memory.crashAtStore(1 + random.below(12), () => {
        isDead = true;
        resolve();
      });
    });
    // What it hears after the power cut it has not heard; it may wait for ever.
    const run = async () => {
      for (;;) {
        const own = ++stamp;
        const sequence = await writer.append(stamped(own, 8 * (1 + random.below(120))));
        if (isDead) return;
        acknowledged.set(sequence, own);
        const portion = await backup.drain();
        if (isDead) return;
        for (const checkpoint of portion) seen.set(checkpoint.sequence, stampOf(checkpoint.value));
        if (random.chance(0.5)) await backup.clear(backup.readSequence);
      }
    };
    run().catch(() => {});
    await crashed;
    unit = await unitOver(memory);
  }
  expect(acknowledged.size).toBeGreaterThan(POWER_CUTS);
  expect([...seen.keys()]).toEqual(Array.from({ length: seen.size }, (_, index) => index + 1));
  await unit.close();
});

test('a primary whose key is revoked writes no more; a backup needs to write no more than its cursor', async () => {
  const random = new SimulatedRandom(12);
  await using unit = await unitOver(new SimulatedMemory({ random, sizeBytes: 32 * PAGE }));
  const access = await accessOf(unit, 'primary');
  await formatCheckpointRegion(access, { mode: 'append', cursors: 1, random });
  const primary = await CheckpointWriter.open(access);
  const cursorAccess = await accessOf(unit, 'backup', ['write', 'read'], cursorAddress(0), PAIR_BYTES);
  const reader = await CheckpointReader.open(await accessOf(unit, 'backup', ['read']), { name: 'b', cursorAccess });
  await primary.append(stamped(1, 100));
  expect((await reader.drain()).map(({ value }) => stampOf(value))).toEqual([1]);
  await reader.clear(1);
  await unit.revoke({ region: REGION, exceptPeer: 'backup', right: 'write' });
  await expect(primary.append(stamped(2, 100))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FENCED' });
  await expect(primary.append(stamped(2, 100))).rejects.toThrow('has been revoked: another has taken over');
  await using successor = await CheckpointWriter.open(await accessOf(unit, 'backup'));
  expect(await successor.append(stamped(2, 100))).toBe(2);
  expect((await reader.tail()).map(({ value }) => stampOf(value))).toEqual([2]);
});
