/**
 * Servers of a mirrored volume die, and are stopped, under load. HOLDFAST_KILLS: how often each is killed, default 6.
 * Needs a build in dist, and no further packages.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { systemRandom } from '../../lib/base/random.ts';
import { Cluster, MIB, NODES, type NodeName } from './cluster.ts';
import { StampedLoad } from './stamped-load.ts';

const killsOfEach = Number(process.env.HOLDFAST_KILLS ?? 6);
const SIZE_BYTES = 64 * MIB;
/** 64 blocks of the load lie in 8 grains. */
const GRAIN_BYTES = 64 * 1024;

/** Who is killed next, until each has been killed often enough: one of them, or both together. */
function drawVictims(left: Record<NodeName, number>): NodeName[] {
  const able = NODES.filter((node) => left[node] > 0);
  const victims = able.length === 2 && systemRandom.below(6) > 0 ? [able[systemRandom.below(2)]!] : able;
  for (const node of victims) left[node] -= 1;
  return victims;
}

async function kill(cluster: Cluster, victims: readonly NodeName[]): Promise<void> {
  await Promise.all(victims.map((node) => cluster.stop(node, 'SIGKILL')));
  await wait(systemRandom.below(2) * systemRandom.below(1500));
  await Promise.all(victims.map((node) => cluster.start(node)));
}

async function expectNothingLost(cluster: Cluster, load: StampedLoad): Promise<void> {
  await cluster.online();
  await load.stop();
  for (const node of NODES) await load.readAll(node);
  expect(load.violation()).toBeUndefined();
  for (const node of ['b', 'a'] as const) expect(await cluster.stop(node, 'SIGTERM')).toBe(0);
  expect(await cluster.firstDifference()).toBeUndefined();
}

describe('nothing that was acknowledged is lost', () => {
  test.each(NODES)(
    `when each server is killed ${killsOfEach} times under load, and %s may go on alone`,
    async (preferred) => {
      await using cluster = await Cluster.running({ sizeBytes: SIZE_BYTES, leaseMs: 1500, onLostPeer: { preferred } });
      const load = new StampedLoad(cluster, { blocks: 256, depth: 4 });
      const left = { a: killsOfEach, b: killsOfEach };
      let together = 0;
      while (left.a + left.b > 0) {
        // Often in the middle of a resync or of a meeting, too.
        if (systemRandom.below(2) > 0) {
          await cluster.online();
          for (const node of NODES) await load.progress(node, 10 + systemRandom.below(100));
        } else await wait(systemRandom.below(1000));
        const victims = drawVictims(left);
        if (victims.length > 1) together += 1;
        await kill(cluster, victims);
      }
      await expectNothingLost(cluster, load);
      const { acknowledged, reads, lost } = load;
      console.log(`${killsOfEach} kills of each, ${together} of both together, ${preferred} preferred`, {
        acknowledged,
        reads,
        lost,
      });
      for (const node of NODES) expect(acknowledged[node]).toBeGreaterThan(100);
    },
    60_000 + killsOfEach * 60_000,
  );
});

describe('Ctrl-C', () => {
  const stopped = (cluster: Cluster) => Promise.all(NODES.map((node) => cluster.stop(node, 'SIGINT')));
  const resynced = async (cluster: Cluster) =>
    Promise.all(NODES.map(async (node) => (await cluster.status(node)).resyncedBytes));

  test('of both servers, one after the other, leaves equal copies and nothing to resync', async () => {
    await using cluster = await Cluster.running({ sizeBytes: SIZE_BYTES });
    await using device = await cluster.connect('b');
    await device.write(3 * MIB, new Uint8Array(MIB).fill(7));
    await device.close();
    expect(await cluster.stop('b', 'SIGINT')).toBe(0);
    expect(await cluster.stop('a', 'SIGINT')).toBe(0);
    expect(await cluster.firstDifference()).toBeUndefined();
    for (const node of NODES) await cluster.start(node);
    await cluster.online();
    expect(await resynced(cluster)).toEqual([0, 0]);
  });

  test.each(NODES)('of %s during I/O on both: the other goes on, and only what was missed is sent', async (node) => {
    await using cluster = await Cluster.running({ sizeBytes: SIZE_BYTES });
    const other = node === 'a' ? 'b' : 'a';
    const load = new StampedLoad(cluster, { blocks: 64, depth: 4 });
    await load.progress(other, 50);
    expect(await cluster.stop(node, 'SIGINT')).toBe(0);
    await load.progress(other, 50);
    expect(await cluster.status(other)).toMatchObject({ state: 'Degraded', serving: [other] });
    await cluster.start(node);
    await cluster.online();
    await load.progress(node, 50);
    const sentBytes = (await resynced(cluster)).reduce((sum, bytes) => sum + bytes);
    expect(sentBytes).toBeGreaterThan(0);
    expect(sentBytes).toBeLessThanOrEqual(8 * GRAIN_BYTES);
    await expectNothingLost(cluster, load);
  });

  test('of both at once during I/O: nothing is lost, and little is sent', async () => {
    await using cluster = await Cluster.running({ sizeBytes: SIZE_BYTES });
    const load = new StampedLoad(cluster, { blocks: 64, depth: 4 });
    for (const node of NODES) await load.progress(node, 50);
    expect(await stopped(cluster)).toEqual([0, 0]);
    for (const node of NODES) await cluster.start(node);
    await cluster.online();
    const sentBytes = (await resynced(cluster)).reduce((sum, bytes) => sum + bytes);
    expect(sentBytes).toBeLessThanOrEqual(8 * GRAIN_BYTES);
    await expectNothingLost(cluster, load);
  });
});
