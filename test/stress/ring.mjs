// Stress of the ring: workers that read, write, flush, zero and cancel at random on one file, and are terminated at
// random moments with requests in flight. Each worker knows what its part of the file may hold and checks all it reads.
//
//   npm run build && node test/stress/ring.mjs [--seconds 60] [--workers 4] [--engine io_uring|threads|both] [--file PATH]
//
// Ends with 1 if a byte was wrong, something failed that must not, or the memory of the process grew. Under the address
// and undefined-behaviour sanitizers (after `npm run test:native`; their bookkeeping grows, so memory is not judged):
//
//   LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" \
//   ASAN_OPTIONS=detect_leaks=0 HOLDFAST_ADDON=build/sanitized/RelWithDebInfo/holdfast.node node test/stress/ring.mjs
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { IoMemory } from '../../dist/storage/io-memory.js';
import { openDevice } from '../../dist/storage/open-device.js';

const blockBytes = 4096;
const blocksPerWorker = 512;
const lanesPerWorker = 24;

function random(below) {
  return Math.floor(Math.random() * below);
}

// ── A worker ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A block's content: its number and version in every 16 bytes; version 0 is zeros. */
function stamp(bytes, block, version) {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2);
  for (let at = 0; at < words.length; at += 4) {
    words[at] = version === 0 ? 0 : block + 1;
    words[at + 1] = version;
    words[at + 2] = version === 0 ? 0 : at;
    words[at + 3] = version === 0 ? 0 : version ^ block;
  }
}

class Part {
  #device;
  #memory = new IoMemory({ totalBytes: 16 * 1024 * 1024 });
  #firstBlock;
  /** By block: the versions that it may hold; undefined before the first read. */
  #may = new Array(blocksPerWorker).fill(undefined);
  #busy = new Array(blocksPerWorker).fill(false);
  #nextVersion = 1 + random(2 ** 30);
  #expected = new Uint8Array(blockBytes);
  counts = { operations: 0, cancelled: 0 };

  constructor(device, index) {
    this.#device = device;
    this.#firstBlock = index * blocksPerWorker;
  }

  async lane() {
    for (;;) {
      const count = 1 + random(4);
      const first = random(blocksPerWorker - count);
      const blocks = Array.from({ length: count }, (_, index) => first + index);
      if (blocks.some((block) => this.#busy[block])) {
        await null;
        continue;
      }
      for (const block of blocks) this.#busy[block] = true;
      await this.#something(blocks);
      for (const block of blocks) this.#busy[block] = false;
      this.counts.operations++;
      if (this.counts.operations % 64 === 0) parentPort.postMessage(this.counts);
    }
  }

  async #something(blocks) {
    const leased = random(2) === 0;
    const leases = blocks.map(() => (leased ? this.#memory.lease(blockBytes) : undefined));
    const buffers = leases.map((lease) => lease?.bytes ?? new Uint8Array(blockBytes));
    const offset = (this.#firstBlock + blocks[0]) * blockBytes;
    const what = random(16);
    if (what < 7) await this.#read(offset, blocks, buffers);
    else if (what < 14) await this.#write(offset, blocks, buffers);
    else if (what < 15) await this.#change(blocks, 0, (options) => this.#zero(offset, blocks, options));
    else await this.#device.flush();
    for (const lease of leases) lease?.release();
  }

  /** A signal that fires at some moment, or none. */
  #options() {
    if (random(4) > 0) return {};
    const controller = new AbortController();
    const abort = () => controller.abort();
    if (random(2) === 0) queueMicrotask(abort);
    else setImmediate(abort);
    return { signal: controller.signal };
  }

  /** False if it was cancelled. */
  async #finished(request) {
    try {
      await request;
      return true;
    } catch (error) {
      if (error.code !== 'ERR_HOLDFAST_ABORTED') throw error;
      this.counts.cancelled++;
      return false;
    }
  }

  async #read(offset, blocks, buffers) {
    const options = this.#options();
    const request =
      buffers.length === 1
        ? this.#device.read(offset, buffers[0], options)
        : this.#device.readVectored(offset, buffers, options);
    if (!(await this.#finished(request))) return;
    for (const [index, block] of blocks.entries()) this.#check(block, buffers[index]);
  }

  #check(block, bytes) {
    const found = new Uint32Array(bytes.buffer, bytes.byteOffset, 2)[1];
    const may = this.#may[block];
    if (may !== undefined && !may.includes(found))
      throw new Error(`block ${this.#firstBlock + block} holds version ${found}; it may hold ${may}`);
    stamp(this.#expected, this.#firstBlock + block, found);
    if (Buffer.compare(this.#expected, bytes) !== 0) throw new Error(`block ${this.#firstBlock + block} is torn`);
    this.#may[block] = [found];
  }

  #write(offset, blocks, buffers) {
    const version = this.#nextVersion++;
    for (const [index, block] of blocks.entries()) stamp(buffers[index], this.#firstBlock + block, version);
    const fua = random(8) === 0;
    return this.#change(blocks, version, (options) =>
      buffers.length === 1
        ? this.#device.write(offset, buffers[0], { ...options, fua })
        : this.#device.writeVectored(offset, buffers, { ...options, fua }),
    );
  }

  #zero(offset, blocks, options) {
    return this.#device.writeZeroes(offset, blocks.length * blockBytes, { ...options, mayUnmap: random(2) === 0 });
  }

  async #change(blocks, version, request) {
    const whole = await this.#finished(request(this.#options()));
    for (const block of blocks) {
      const before = this.#may[block];
      if (whole) this.#may[block] = [version];
      else if (before !== undefined) this.#may[block] = [...before, version];
    }
  }
}

async function work({ engine, path, index }) {
  const capacity = 8 + random(64);
  const pollMicroseconds = random(4) === 0 ? 20 : 0;
  const device = await openDevice(path, { engine, exclusive: false, capacity, pollMicroseconds });
  const part = new Part(device, index);
  await Promise.all(Array.from({ length: lanesPerWorker }, () => part.lane()));
}

// ── The one who starts and ends them ─────────────────────────────────────────────────────────────────────────────────

/** One worker after the other in one part of the file, each for a random time, until the end. */
async function succession(setting, endMs, totals) {
  while (Date.now() < endMs) {
    const worker = new Worker(new URL(import.meta.url), { workerData: setting });
    let last = { operations: 0, cancelled: 0 };
    worker.on('message', (counts) => {
      last = counts;
    });
    let failure;
    worker.on('error', (error) => {
      failure = error;
    });
    const exited = new Promise((resolve) => {
      worker.once('exit', resolve);
    });
    await Promise.race([exited, sleep(Math.min(random(3000), Math.max(0, endMs - Date.now())))]);
    await worker.terminate();
    await exited;
    if (failure !== undefined) throw failure;
    totals.workers++;
    totals.operations += last.operations;
    totals.cancelled += last.cancelled;
  }
}

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** Whether the middle third of the samples and the last one differ by more than a tenth. The first is warming up. */
function grew(samples) {
  const third = Math.floor(samples.length / 3);
  const middle = median(samples.slice(third, 2 * third));
  const last = median(samples.slice(2 * third));
  return { middle, last, grew: last > middle * 1.1 + 8 };
}

async function stress(engine, path, seconds, workers) {
  const totals = { engine, workers: 0, operations: 0, cancelled: 0 };
  const residentMiB = [];
  const sampler = setInterval(() => residentMiB.push(Math.round(process.memoryUsage.rss() / 2 ** 20)), 500);
  const endMs = Date.now() + seconds * 1000;
  await Promise.all(Array.from({ length: workers }, (_, index) => succession({ engine, path, index }, endMs, totals)));
  clearInterval(sampler);
  const memory = grew(residentMiB);
  console.log(JSON.stringify({ ...totals, residentMiB: memory }));
  const judged = process.env.HOLDFAST_ADDON === undefined;
  if (totals.operations === 0 || totals.cancelled === 0 || (judged && memory.grew)) process.exitCode = 1;
}

async function main() {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '60' },
      workers: { type: 'string', default: '4' },
      engine: { type: 'string', default: 'both' },
      file: { type: 'string' },
    },
  });
  const workers = Number(values.workers);
  const engines = values.engine === 'both' ? ['io_uring', 'threads'] : [values.engine];
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-stress-'));
  const path = values.file ?? join(folder, 'file');
  try {
    const sizeBytes = workers * blocksPerWorker * blockBytes;
    await (await openDevice(path, { create: { sizeBytes } })).close();
    for (const engine of engines) await stress(engine, path, Number(values.seconds) / engines.length, workers);
  } finally {
    if (values.file !== undefined) rmSync(path, { force: true });
    rmSync(folder, { recursive: true });
  }
}

if (isMainThread) await main();
else await work(workerData);
