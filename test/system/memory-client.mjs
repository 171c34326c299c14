// One of the two processes that share a series of checkpoints in a memory unit: node memory-client.mjs CONFIG NODE [format]
// It is the backup and follows; told `take-over` on standard input it becomes the primary, which appends 4 KiB records.
// The series (series.mjs) is its whole state.
//
// Prints, in order, each on a line: `following`; `primary N` once it has taken over what goes up to N, and again after
// the unit was away; then `sN` before record N is given to the writer, `aN` when it is acknowledged; `wrong …`.
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { systemEnvironment } from '../../dist/base/system-environment.js';
import { CheckpointReader } from '../../dist/checkpoint/checkpoint-reader.js';
import { CheckpointWriter } from '../../dist/checkpoint/checkpoint-writer.js';
import { MemoryClient } from '../../dist/checkpoint/manager-client.js';
import { openAccess } from '../../dist/checkpoint/memory-session.js';
import { formatCheckpointRegion } from '../../dist/checkpoint/region-record.js';
import { loadKey, loadNodeConfig } from '../../dist/daemon/config-file.js';
import { createPeerNode } from '../../dist/peer/node.js';
import { append, expectNext, expectThat, say } from './series.mjs';

const CLEAR_EVERY = 32;
/** What ends with the unit, or with somebody's take-over, and is over when the region is opened again. */
const PASSING = new Set(['ERR_HOLDFAST_PEER_LOST', 'ERR_HOLDFAST_KEY_INVALID', 'ERR_HOLDFAST_CLOSED']);

const [path, name, formats] = process.argv.slice(2);
const config = await loadNodeConfig(path, name);
const { cluster: clusterId, peers, heartbeatMs, leaseMs } = config;
const node = createPeerNode({
  ...{ environment: systemEnvironment, name, clusterId, key: await loadKey(config.keyFile) },
  ...{ peers, heartbeatMs, leaseMs },
});
const { clock } = systemEnvironment;
const client = new MemoryClient({ node, clock, manager: 'unit', unit: 'unit', transport: openAccess });
const cursor = name === 'p' ? 0 : 1;

/** Number of the last record that was applied; undefined before the first one. */
let applied;
/** Ends the following. */
const takeOver = new AbortController();

function apply(checkpoint) {
  // Given again after the region was opened again.
  if (checkpoint.sequence <= applied) return;
  expectNext(checkpoint, applied);
  applied = checkpoint.sequence;
}

/** Does it again after what passes. */
async function insist(work) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!PASSING.has(error.code)) throw error;
      await wait(5);
    }
  }
}

async function follow(access, signal) {
  const reader = await CheckpointReader.open(access, { name, cursor });
  say('following');
  for await (const checkpoint of reader.follow({ signal })) {
    apply(checkpoint);
    if (checkpoint.sequence % CLEAR_EVERY === 0) await reader.clear(checkpoint.sequence);
  }
}

/** Shuts the other one out, reads what it has left, and is the writer. */
async function becomeWriter() {
  const { access } = await client.takeOver('log');
  const reader = await CheckpointReader.open(access, { name, cursor });
  for (const checkpoint of await reader.tail()) apply(checkpoint);
  const writer = await CheckpointWriter.open(access);
  applied ??= writer.durableSequence;
  expectThat(
    writer.durableSequence === applied,
    `the writer begins behind ${writer.durableSequence}, read: ${applied}`,
  );
  await CheckpointReader.retire(access, cursor);
  say(`primary ${applied}`);
  return writer;
}

createInterface({ input: process.stdin })
  .on('line', () => takeOver.abort())
  .on('close', () => process.exit(0));
await node.start();
if (formats !== undefined) await formatCheckpointRegion((await client.takeOver('log')).access, { mode: 'append' });
const { signal } = takeOver;
await insist(async () => follow((await client.open('log', { signal })).access, signal)).catch((error) => {
  if (!signal.aborted) throw error;
});
await insist(async () => {
  const writer = await becomeWriter();
  const onAcknowledged = (number) => {
    applied = number;
  };
  await append(writer, applied, { onAcknowledged });
});
