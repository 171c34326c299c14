/**
 * The two units of a mirrored region die one after the other under load, and the writer with them. HOLDFAST_KILLS: how
 * often each unit is killed, default 2. Needs a build in dist, and no further packages.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { systemRandom } from '../../lib/base/random.ts';
import { connectMirroredMemory } from '../../lib/checkpoint/connect-mirrored-memory.ts';
import { loadKey, loadNodeConfig } from '../../lib/daemon/config-file.ts';
import type { MirroredRegionStatus } from '../../lib/daemon/status.ts';
import { Series } from './memory-cluster.ts';
import { MirroredMemoryCluster, type UnitName } from './mirrored-memory-cluster.ts';

const killsOfEach = Number(process.env.HOLDFAST_KILLS ?? 2);
const DEPTH = 16;
const CLIENTS = ['p', 'q'] as const;
const clientScript = fileURLToPath(new URL('mirrored-memory-client.mjs', import.meta.url));

const moment = () => wait(systemRandom.below(3) * systemRandom.below(80));
const otherOf = (unit: UnitName): UnitName => (unit === 'a' ? 'b' : 'a');
const isMirrored = ({ state }: MirroredRegionStatus) => state === 'Online';
const isOut = (lost: UnitName) => (region: MirroredRegionStatus) =>
  region.state === 'Degraded' && region.units.every(({ unit, inSync }) => inSync === (unit !== lost));

/** It dies, writes go on, it comes back; resolves when it is in sync again, and writes have gone on all the time. */
async function loseAndRebuild(cluster: MirroredMemoryCluster, series: Series, unit: UnitName): Promise<void> {
  await series.progress(systemRandom.below(200));
  await cluster.kill(unit);
  await series.progress(50);
  await cluster.stands(otherOf(unit), isOut(unit));
  await moment();
  await cluster.start(unit);
  await series.progress(50);
  await cluster.stands(unit, isMirrored);
}

test.each(['tls', 'dedicated'] as const)(
  `${killsOfEach} times each unit is killed under load, then the writer: what was acknowledged is there (link %s)`,
  async (link) => {
    await using cluster = await MirroredMemoryCluster.running(CLIENTS, link);
    const sum = { acknowledged: 0, found: 0, lost: 0, mostInFlight: 0 };
    for (let round = 0; round < killsOfEach; round++) {
      await using series = new Series(cluster, clientScript);
      const first: UnitName = systemRandom.below(2) > 0 ? 'a' : 'b';
      const [writer, successor] = round % 2 === 0 ? CLIENTS : ([...CLIENTS].reverse() as ['q', 'p']);
      const primary = series.spawn(writer, 'format');
      await primary.until('primary');
      await loseAndRebuild(cluster, series, first);
      if (systemRandom.below(2) > 0) await series.progress(systemRandom.below(100));

      // The one that was rebuilt is all that is left, and the next writer has to find everything on it.
      await cluster.kill(otherOf(first));
      if (systemRandom.below(2) > 0) await series.progress(50);
      await moment();
      await primary.kill();
      const next = series.spawn(successor);
      await next.until('primary');
      await series.progress(50);
      await cluster.start(otherOf(first));
      await cluster.stands(otherOf(first), isMirrored);
      await series.progress(50);
      await next.kill();
      expect(series.wrong).toEqual([]);
      expect(series.takeOvers).toBe(2);
      sum.acknowledged += series.acknowledged;
      sum.found += series.found;
      sum.lost += series.lost;
      sum.mostInFlight = Math.max(sum.mostInFlight, series.unacknowledgedMax);
    }
    expect(sum.mostInFlight).toBeLessThanOrEqual(DEPTH);
    console.log(`${killsOfEach} kills of each unit, link ${link}`, sum);
  },
  60_000 + killsOfEach * 60_000,
);

test('while both units are there the tie-breaker dies, and comes back, and nobody notices', async () => {
  await using cluster = await MirroredMemoryCluster.running(CLIENTS, 'tls');
  await using series = new Series(cluster, clientScript);
  await series.spawn('p', 'format').until('primary');
  await cluster.kill('tie');
  await series.progress(100);
  await cluster.stands('a', (region) => isMirrored(region) && region.voters.some(({ inReach }) => !inReach));
  await cluster.start('tie');
  await loseAndRebuild(cluster, series, 'b');
  expect(series.wrong).toEqual([]);
}, 120_000);

describe('a unit that was away', () => {
  test('gives no key before it is readmitted, and is not taken in the place of the other one', async () => {
    await using cluster = await MirroredMemoryCluster.running(CLIENTS, 'tls');
    await using series = new Series(cluster, clientScript);
    const primary = series.spawn('p', 'format');
    await primary.until('primary');
    await series.progress(20);
    await cluster.kill('b');
    await series.progress(20);
    await primary.kill();
    await cluster.start('b');
    await cluster.stands('b', isOut('b'));

    const config = await loadNodeConfig(cluster.config, 'q');
    const { cluster: clusterId, peers, heartbeatMs, leaseMs } = config;
    const [region] = config.mirroredRegions;
    const peer = (name: string) => peers.find((each) => each.name === name)!;
    const key = await loadKey(config.keyFile!);
    const self = { name: 'q', clusterId, key, heartbeatMs, leaseMs };
    const memory = await connectMirroredMemory({ ...self, units: [{ unit: peer('a') }, { unit: peer('b') }] });
    const [, stale] = memory.clients;
    const mirrored = { register: region!.id, leg: 1 } as const;
    const asked = [
      stale.open('log', { mirrored, rights: ['read'] }),
      stale.takeOver('log', { mirrored }),
      stale.rebuild('log', { mirrored }),
      stale.open('log'),
    ];
    const codes = await Promise.all(asked.map((each) => each.catch((error: { code: string }) => error.code)));
    expect(codes).toEqual([
      'ERR_HOLDFAST_INCONSISTENT',
      'ERR_HOLDFAST_INCONSISTENT',
      'ERR_HOLDFAST_FENCED',
      'ERR_HOLDFAST_ACCESS',
    ]);
    await cluster.kill('a');
    const alone = memory.openWriter({ name: 'log', registerId: region!.id }, { legMs: 1000 });
    await expect(alone).rejects.toMatchObject({ code: 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY' });
    await memory.close();

    await cluster.start('a');
    await series.spawn('q').until('primary');
    await cluster.stands('b', isMirrored);
    await series.progress(20);
    expect(series.wrong).toEqual([]);
  }, 120_000);
});
