// What ring.test.ts runs as processes of their own: the ends of processes and workers, on the built package.
import { openSync, readdirSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { openDirectDevice } from '../../dist/storage/direct-device.js';
import { arenaOf, ioMemory } from '../../dist/storage/io-memory.js';
import { openDevice } from '../../dist/storage/open-device.js';
import { openRing, RingOperation, RingRequest } from '../../dist/storage/ring.js';

const sizeBytes = 4 * 1024 * 1024;

function denied() {
  let refusal;
  try {
    openRing({ engine: 'io_uring' });
  } catch (error) {
    refusal = { code: error.code, errno: error.errno };
  }
  const { engine, reason } = openRing().report();
  console.log(JSON.stringify({ engine, reason, refusal }));
}

async function idle(engine, path) {
  const device = await openDirectDevice(path, { engine, create: { sizeBytes } });
  await device.write(0, Buffer.alloc(4096, 1));
  await device.read(0, Buffer.alloc(4096));
  console.log('done');
}

async function terminate(engine, path) {
  const device = await openDirectDevice(path, { engine, create: { sizeBytes } });
  await device.close();
  let ended = 0;
  for (let round = 0; round < 10; round++) {
    const worker = new Worker(new URL(import.meta.url), { workerData: { engine, path } });
    const exited = new Promise((resolve, reject) => {
      worker.once('exit', resolve);
      worker.once('error', reject);
    });
    await new Promise((resolve) => {
      worker.once('message', resolve);
    });
    await setTimeout(round);
    await worker.terminate();
    await exited;
    ended++;
  }
  console.log(`${ended} workers ended`);
}

/** Keeps the device busy with reads and writes, small and big, leased and foreign, until it is terminated. */
async function load({ engine, path }) {
  const device = await openDirectDevice(path, { engine, exclusive: false });
  const loop = async (index) => {
    const lease = ioMemory().lease(16_384);
    const foreign = new Uint8Array(600 * 1024);
    for (let round = 0; ; round++) {
      const offset = ((index * 37 + round) % 64) * 4096;
      if (index % 3 === 0) await device.write(offset, lease.bytes);
      else if (index % 3 === 1) await device.read(offset, lease.bytes);
      else await device.read(offset, foreign);
      if (round % 16 === 15) await device.flush();
    }
  };
  const loops = Array.from({ length: 48 }, (_, index) => loop(index));
  await setTimeout(5);
  parentPort.postMessage('busy');
  await Promise.all(loops);
}

/** Writes, flushes, zeroes and reads back, many at once. */
async function verify(engine, path) {
  const device = await openDirectDevice(path, { engine, create: { sizeBytes } });
  const blocks = Array.from({ length: 900 }, (_, index) => Buffer.alloc(4096, 1 + (index % 251)));
  await Promise.all(blocks.map((bytes, index) => device.write(index * 4096, bytes, { fua: index % 50 === 0 })));
  await Promise.all([device.flush(), device.writeZeroes(0, 4096)]);
  blocks[0].fill(0);
  const found = blocks.map(() => Buffer.alloc(4096));
  await Promise.all(found.map((bytes, index) => device.read(index * 4096, bytes)));
  const mismatches = found.filter((bytes, index) => !bytes.equals(blocks[index])).length;
  console.log(JSON.stringify({ features: device.engineReport().features, mismatches }));
  await device.close();
}

function count(folder) {
  return readdirSync(folder).length;
}

/** How many descriptors and threads the process has, once that has not changed for a while. */
async function settled() {
  let counts = [];
  for (let same = 0; same < 20; same++) {
    await setTimeout(10);
    const now = [count('/proc/self/fd'), count('/proc/self/task')];
    if (now.some((value, index) => value !== counts[index])) same = 0;
    counts = now;
  }
  return counts;
}

async function close(engine) {
  const cycle = async () => {
    openRing({ engine, threads: 3 }).close();
    await setTimeout(1);
  };
  await cycle();
  const before = await settled();
  for (let round = 0; round < 50; round++) await cycle();
  console.log(JSON.stringify({ before, after: await settled() }));
}

/** Reads and writes through leased memory, and tells what became of the memory. */
async function lock(engine, path) {
  const device = await openDevice(path, { engine, create: { sizeBytes } });
  const { bytes } = ioMemory().lease(4096);
  bytes.fill(7);
  await device.write(8192, bytes);
  bytes.fill(0);
  await device.read(8192, bytes);
  const { arenasRegistered, arenasRefused, arenasRefusedReason } = device.ringStatistics();
  console.log(JSON.stringify({ read: bytes[4095], arenasRegistered, arenasRefused, arenasRefusedReason }));
  await device.close();
}

/** Bytes of the heap that each operation took, of several goes the one that took least. Without --expose-gc it fails. */
async function bytesEach(run, operations) {
  let least = Number.POSITIVE_INFINITY;
  for (let go = 0; go < 6; go++) {
    globalThis.gc();
    await setTimeout(1);
    collections = 0;
    const before = process.memoryUsage().heapUsed;
    await run(operations);
    const after = process.memoryUsage().heapUsed;
    await setTimeout(1);
    if (collections === 0) least = Math.min(least, (after - before) / operations);
  }
  return least;
}

let collections = 0;

/** What an operation allocates in steady state, 32 in flight: with a callback, and with a promise that nobody awaits. */
async function allocations(engine, path) {
  new PerformanceObserver((list) => {
    collections += list.getEntries().length;
  }).observe({ entryTypes: ['gc'] });
  const device = await openDevice(path, { engine, create: { sizeBytes } });
  const { bytes } = ioMemory().lease(4096);
  const promises = (request) => async (operations) => {
    for (let done = 0; done < operations; done += 32) {
      for (let index = 0; index < 31; index++) request(index);
      await request(31);
    }
    await device.flush();
  };
  const callback = await bytesEach(await requestsWithCallbacks(engine, path, bytes), 60_000);
  const read = await bytesEach(
    promises((index) => device.read(index * 4096, bytes)),
    32_000,
  );
  const write = await bytesEach(
    promises((index) => device.write(index * 4096, bytes)),
    32_000,
  );
  console.log(JSON.stringify({ callback, read, write }));
  await device.close();
}

/** Runs so many reads on the ring itself, each from the callback of the one before. */
async function requestsWithCallbacks(engine, path, bytes) {
  const ring = openRing({ engine });
  const slot = ring.addFile(openSync(path, 'r'));
  const arena = arenaOf(bytes);
  let left = 0;
  let running = 0;
  let finished;
  class Read extends RingRequest {
    operation = RingOperation.read;
    slot = slot;
    length = 4096;
    arena = ring.arenaIndex(arena);
    arenaOffset = bytes.byteOffset - arena.start;

    settle(result) {
      if (result !== 0) throw new Error(`a read ended with ${result}`);
      this.offset = (this.offset + 4096) % sizeBytes;
      if (left-- > 0) ring.submit(this);
      else if (--running === 0) finished();
    }
  }
  const requests = Array.from({ length: 32 }, () => new Read());
  return (operations) =>
    new Promise((resolve) => {
      finished = resolve;
      running = requests.length;
      left = operations - running;
      for (const request of requests) ring.submit(request);
    });
}

if (isMainThread) {
  const [what, engine, path] = process.argv.slice(2);
  await { denied, idle, terminate, close, verify, lock, allocations }[what](engine, path);
} else {
  await load(workerData);
}
