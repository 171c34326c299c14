// What scan.test.ts runs as processes of their own: scans that are open when a worker or the process ends.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { openDevice } from '../../dist/storage/open-device.js';
import { scanDevice } from '../../dist/storage/scan.js';

/** Takes one batch and leaves the scan where it stands, or goes on for ever. */
async function begin({ engine, path, goOn }) {
  const device = await openDevice(path, { engine, readOnly: true });
  const iterator = scanDevice(device, { blockBytes: 4096 })[Symbol.asyncIterator]();
  await iterator.next();
  parentPort?.postMessage('begun');
  while (goOn) {
    for await (const batch of scanDevice(device)) if (batch.blocks === 0) return;
  }
}

async function terminate(engine, path) {
  let ended = 0;
  for (let round = 0; round < 4; round++) {
    const worker = new Worker(new URL(import.meta.url), { workerData: { engine, path, goOn: round % 2 === 0 } });
    await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    await worker.terminate();
    ended++;
  }
  console.log(`${ended} ended`);
}

async function abandon(engine, path) {
  await begin({ engine, path, goOn: false });
  console.log('done');
}

if (!isMainThread) await begin(workerData);
else {
  const [what, engine, path] = process.argv.slice(2);
  await { terminate, abandon }[what](engine, path);
}
