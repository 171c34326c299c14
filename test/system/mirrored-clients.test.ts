/**
 * Real clients on a mirrored volume. Needs the Debian packages qemu-utils, fio, libnbd-bin, python3-libnbd and
 * e2fsprogs, and a build in dist.
 */
import { stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CLIENT_STEPS_BYTES, clientSteps } from './client-steps.ts';
import { Cluster, MIB } from './cluster.ts';
import { Child, run } from './processes.ts';

/** A folder with many real files of all sizes. */
const realFolder = fileURLToPath(new URL('../../node_modules/typescript', import.meta.url));

test('a file system copied to one server is the same on the other', async () => {
  await using cluster = await Cluster.running({ sizeBytes: 128 * MIB });
  const image = cluster.folder.file('ext4');
  await run('/usr/sbin/mke2fs', '-q', '-t', 'ext4', '-d', realFolder, image, '128M');
  await run('nbdcopy', '--flush', image, cluster.uri('a'));
  const compared = await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', image, cluster.uri('b'));
  expect(compared).toContain('Images are identical');
  expect(await cluster.stop('b', 'SIGTERM')).toBe(0);
  expect(await cluster.stop('a', 'SIGTERM')).toBe(0);
  expect(await cluster.firstDifference()).toBeUndefined();
});

test('fio verifies what it writes to one server while the other is killed and comes back', async () => {
  await using cluster = await Cluster.running({ sizeBytes: 256 * MIB });
  const words = [
    ...['--name=verify', '--ioengine=nbd', `--uri=${cluster.uri('a')}`, '--rw=randrw', '--bs=4k-64k', '--iodepth=16'],
    ...['--size=64M', '--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0', '--fsync=64'],
    ...['--time_based', '--runtime=600', '--output-format=json'],
  ];
  await using fio = new Child('fio', words);
  await fio.ready(async () => (await stat(cluster.device('b'))).blocks * 512 > 16 * MIB);
  await cluster.stop('b', 'SIGKILL');
  const away = await cluster.until('a', ({ copies }) => copies[1]!.outOfSyncBytes > 8 * MIB);
  expect(away).toMatchObject({ state: 'Degraded', serving: ['a'] });
  await cluster.start('b');
  await cluster.online();
  const { resyncedBytes } = await cluster.status('a');
  expect(resyncedBytes).toBeGreaterThan(8 * MIB);
  expect(resyncedBytes).toBeLessThan(128 * MIB);
  expect(fio.ended, 'it was there all the time').toBe(false);
  // It ends its pass with the requests in flight, and says 128 because a signal told it to.
  expect(await fio.stop('SIGINT')).toBe(128);
  const [job] = JSON.parse(fio.output.slice(fio.output.indexOf('{'))).jobs;
  expect(job).toMatchObject({ error: 0 });
  expect(job.read.io_bytes).toBeGreaterThan(16 * MIB);
  expect(job.write.io_bytes).toBeGreaterThan(16 * MIB);
  expect(await cluster.stop('b', 'SIGTERM')).toBe(0);
  expect(await cluster.stop('a', 'SIGTERM')).toBe(0);
  expect(await cluster.firstDifference()).toBeUndefined();
});

describe('a mirrored volume serves', () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await Cluster.running({ sizeBytes: CLIENT_STEPS_BYTES });
  }, 60_000);
  afterAll(async () => {
    for (const node of ['a', 'b'] as const) expect((await cluster.status(node)).state).toBe('Online');
    for (const node of ['b', 'a'] as const) expect(await cluster.stop(node, 'SIGTERM')).toBe(0);
    expect(await cluster.firstDifference()).toBeUndefined();
    await cluster[Symbol.asyncDispose]();
  }, 120_000);

  clientSteps(() => ({ uri: cluster.uri('a'), folder: cluster.folder, exported: { 'export-name': 'data' } }));
});
