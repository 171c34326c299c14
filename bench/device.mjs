// Reads (or writes) of one block at random places, many at once, through the public `device.read`, beside fio's
// io_uring and node's own fs.read, on one device, in one run, in turns.
//
//   npm run build && node bench/device.mjs [--device PATH] [--rw randread|randwrite] [--bs 4096] [--depth 32]
//                                          [--seconds 2] [--rounds 5] [--engine auto|io_uring|threads] [--json]
//
// Without --device (needs root): a loop device over a file in /dev/shm, filled with random bytes, removed afterwards.
// `--rw randwrite` overwrites the device; on one that is named it must be asked for with --destroy as well.
import { execFileSync, spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, constants, openSync, read, rmSync, write, writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { ioMemory, openDevice } from '../dist/index.js';
import { sideBySide } from './side-by-side.mjs';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string' },
    rw: { type: 'string', default: 'randread' },
    bs: { type: 'string', default: '4096' },
    depth: { type: 'string', default: '32' },
    seconds: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '5' },
    engine: { type: 'string', default: 'auto' },
    destroy: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});
const blockBytes = Number(options.bs);
const depth = Number(options.depth);
const seconds = Number(options.seconds);
const writes = options.rw === 'randwrite';
const rampMs = 300;

if (writes && options.device !== undefined && !options.destroy) {
  console.error(`--rw randwrite overwrites ${options.device}; add --destroy if that is meant`);
  process.exit(1);
}

/** A loop device over RAM, and what takes it down. */
function makeLoopDevice() {
  const backing = `/dev/shm/holdfast-bench-${process.pid}`;
  const file = openSync(backing, 'wx', 0o600);
  const piece = Buffer.alloc(1 << 20);
  for (let at = 0; at < 1024; at++) writeSync(file, randomFillSync(piece));
  closeSync(file);
  try {
    const path = execFileSync('losetup', ['--find', '--show', backing], { encoding: 'utf8' }).trim();
    return {
      path,
      remove() {
        execFileSync('losetup', ['--detach', path]);
        rmSync(backing);
      },
    };
  } catch (error) {
    rmSync(backing);
    throw error;
  }
}

function randomOffsets(sizeBytes) {
  const blocks = Math.floor(sizeBytes / blockBytes);
  let state = 0x9e3779b9;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) % blocks) * blockBytes;
  };
}

/** Requests a second of `depth` lanes, each of which calls `request` over and over. */
async function measure(request) {
  let done = 0;
  let stop = false;
  const lane = async () => {
    const lease = ioMemory().lease(blockBytes);
    if (writes) randomFillSync(lease.bytes);
    while (!stop) {
      await request(lease.bytes);
      done++;
    }
    lease.release();
  };
  const lanes = Promise.all(Array.from({ length: depth }, lane));
  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  await sleep(rampMs);
  const before = { done, at: performance.now() };
  await sleep(seconds * 1000);
  const rate = ((done - before.done) * 1000) / (performance.now() - before.at);
  stop = true;
  await lanes;
  return rate;
}

async function holdfast(path) {
  const device = await openDevice(path, { direct: 'required', engine: options.engine, readOnly: !writes });
  try {
    report = device.report();
    const next = randomOffsets(device.geometry.sizeBytes);
    return await measure((bytes) => (writes ? device.write(next(), bytes) : device.read(next(), bytes)));
  } finally {
    await device.close();
  }
}

async function nodeFs(path, sizeBytes) {
  const fd = openSync(path, (writes ? constants.O_RDWR : constants.O_RDONLY) | constants.O_DIRECT);
  const next = randomOffsets(sizeBytes);
  const call = writes ? write : read;
  try {
    return await measure(
      (bytes) =>
        new Promise((resolve, reject) => {
          call(fd, bytes, 0, blockBytes, next(), (error) => (error ? reject(error) : resolve()));
        }),
    );
  } finally {
    closeSync(fd);
  }
}

function fioArguments(path) {
  return [
    ...['--name=peer', `--filename=${path}`, '--ioengine=io_uring', '--direct=1', `--rw=${options.rw}`],
    ...[`--bs=${blockBytes}`, `--iodepth=${depth}`, '--time_based', `--runtime=${seconds}`, `--ramp_time=${rampMs}ms`],
    ...['--gtod_reduce=1', '--output-format=json'],
  ];
}

function fio(path) {
  const { stdout, status, error } = spawnSync('fio', fioArguments(path), { encoding: 'utf8' });
  if (status !== 0) throw new Error(`fio failed: ${error?.message ?? stdout}`);
  const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs;
  return (writes ? job.write : job.read).iops;
}

let report;
const made = options.device === undefined ? makeLoopDevice() : undefined;
const path = made?.path ?? options.device;
try {
  const probe = await openDevice(path, { readOnly: true });
  const { sizeBytes } = probe.geometry;
  await probe.close();
  const ways = { holdfast: () => holdfast(path), fio: () => fio(path), 'node fs': () => nodeFs(path, sizeBytes) };
  const rates = await sideBySide(ways, Number(options.rounds));
  const ratio = rates.holdfast / rates.fio;
  if (options.json) {
    console.log(JSON.stringify({ rates, ratio, report, fio: ['fio', ...fioArguments(path)] }));
  } else {
    console.log(`${options.rw} of ${blockBytes} bytes, depth ${depth}, ${path}; medians of ${options.rounds} rounds`);
    console.log(
      `holdfast   ${Math.round(rates.holdfast)} /s   ${report.engine} (${report.reason}), Node ${process.version}`,
    );
    console.log(`fio        ${Math.round(rates.fio)} /s   fio ${fioArguments(path).join(' ')}`);
    console.log(
      `node fs    ${Math.round(rates['node fs'])} /s   UV_THREADPOOL_SIZE ${process.env.UV_THREADPOOL_SIZE ?? 4}`,
    );
    console.log(
      `holdfast : fio = ${ratio.toFixed(2)}   holdfast : node fs = ${(rates.holdfast / rates['node fs']).toFixed(1)}`,
    );
  }
} finally {
  made?.remove();
}
