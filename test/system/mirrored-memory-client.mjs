// A process that appends 4 KiB records to a series in the mirrored region `log`: node mirrored-memory-client.mjs CONFIG NODE [format]
// It takes the region over, reads back what is there (or makes it ready for a new series), and appends.
//
// Prints, in order, each on a line: `primary N` once it has taken over what goes up to N; then as series.mjs.
import { CheckpointReader } from '../../dist/checkpoint/checkpoint-reader.js';
import { CheckpointWriter } from '../../dist/checkpoint/checkpoint-writer.js';
import { connectMirroredMemory } from '../../dist/checkpoint/connect-mirrored-memory.js';
import { formatCheckpointRegion } from '../../dist/checkpoint/region-record.js';
import { loadKey, loadNodeConfig } from '../../dist/daemon/config-file.js';
import { append, expectNext, expectThat, say } from './series.mjs';

/** So that a series fits into the region for as long as a round of the test takes. */
const PAUSE_MS_MAX = 50;

const [path, name, formats] = process.argv.slice(2);
const config = await loadNodeConfig(path, name);
const { cluster: clusterId, link, peers, heartbeatMs, leaseMs } = config;
const peer = (wanted) => peers.find((each) => each.name === wanted);
const [region] = config.mirroredRegions;
const units = region.units.map(({ unit, manager }) => ({ unit: peer(unit), manager: peer(manager) }));

process.stdin.on('end', () => process.exit(0)).resume();
try {
  const self = { name, clusterId, key: await loadKey(config.keyFile), link, heartbeatMs, leaseMs };
  const memory = await connectMirroredMemory({ ...self, units });
  const access = await memory.openWriter({ name: region.name, registerId: region.id });
  if (formats !== undefined) await formatCheckpointRegion(access, { mode: 'append', replace: true });
  const writer = await CheckpointWriter.open(access, { whenFull: 'error' });
  const reader = await CheckpointReader.open(access);
  let applied = 0;
  for (const checkpoint of await reader.readAll()) {
    expectNext(checkpoint, applied);
    applied = checkpoint.sequence;
  }
  expectThat(
    writer.durableSequence === applied,
    `the writer begins behind ${writer.durableSequence}, read: ${applied}`,
  );
  say(`primary ${applied}`);
  await append(writer, applied, { pauseMsMax: PAUSE_MS_MAX });
} catch (error) {
  expectThat(false, `${error.code} ${error.message}`);
}
