/**
 * Primaries of a series of checkpoints, and the memory unit under it, die under load. HOLDFAST_KILLS: how often, default
 * 8. Needs a build in dist, and no further packages.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { systemRandom } from '../../lib/base/random.ts';
import { MemoryCluster, Series } from './memory-cluster.ts';

const kills = Number(process.env.HOLDFAST_KILLS ?? 8);
const DEPTH = 16;

const moment = () => wait(systemRandom.below(3) * systemRandom.below(80));

test(
  `${kills} times the primary is killed at a random moment, and the backup goes on where it has stopped`,
  async () => {
    await using cluster = await MemoryCluster.running(['p', 'q']);
    await using series = new Series(cluster);
    let primary = series.spawn('p', 'format');
    await primary.until('following');
    primary.takeOver();
    let backup = series.spawn('q');
    let killed = 0;
    let early = 0;
    while (killed < kills) {
      await primary.until('primary');
      await backup.until('following');
      await moment();
      await primary.kill();
      killed += 1;
      // The new one is there before, during or after the take-over.
      const successor = primary.name;
      const isEarly = systemRandom.below(2) > 0;
      let next = isEarly ? series.spawn(successor) : undefined;
      if (isEarly) await moment();
      backup.takeOver();
      if (isEarly && systemRandom.below(3) === 0 && killed < kills) {
        // The one that takes over dies, too, at any step of it.
        await next!.until('following');
        await moment();
        await backup.kill();
        killed += 1;
        early += 1;
        next!.takeOver();
        primary = next!;
        next = series.spawn(backup.name);
      } else primary = backup;
      backup = next ?? series.spawn(successor);
      expect(series.wrong).toEqual([]);
    }
    await primary.until('a');
    await primary.kill();
    await backup.until('following');
    backup.takeOver();
    await backup.until('primary');
    expect(series.wrong).toEqual([]);
    expect(series.unacknowledgedMax).toBeLessThanOrEqual(DEPTH);
    expect(series.acknowledged).toBeGreaterThan(kills);
    const { acknowledged, found, lost, unacknowledgedMax } = series;
    console.log(`${killed} kills, ${early} of them of one that was taking over`, {
      acknowledged,
      inFlight: { found, lost, most: unacknowledgedMax },
    });
  },
  60_000 + kills * 20_000,
);

test(
  `${kills} times the unit is killed under load: what was acknowledged is there, and its clients go on`,
  async () => {
    await using cluster = await MemoryCluster.running(['p', 'q']);
    await using series = new Series(cluster);
    const primary = series.spawn('p', 'format');
    await primary.until('following');
    primary.takeOver();
    const backup = series.spawn('q');
    await backup.until('following');
    for (let killed = 0; killed < kills; killed++) {
      // Sometimes before they have found the unit again.
      await series.progress(systemRandom.below(2) * systemRandom.below(300));
      await cluster.killUnit();
      await moment();
      await cluster.startUnit();
    }
    await series.progress(100);
    await primary.kill();
    backup.takeOver();
    await backup.until('primary');
    expect(series.wrong).toEqual([]);
    const { acknowledged, found, lost, unacknowledgedMax, takeOvers } = series;
    expect(unacknowledgedMax).toBeLessThanOrEqual(DEPTH);
    console.log(`${kills} kills of the unit`, {
      acknowledged,
      openedAgain: takeOvers - 2,
      inFlight: { found, lost, most: unacknowledgedMax },
    });
  },
  60_000 + kills * 20_000,
);
