// Reads and writes, many at once, through the public `device.read` and `device.write`, beside fio's io_uring and node's
// own fs.read and fs.write: on one device, in one run, in turns. Requests a second, and processor time for each (of the
// whole process, kernel threads that work for it included).
//
//   npm run build && node bench/device.mjs [--device PATH | --zram] [--rw randread|randwrite|read|write] [--bs 4096]
//                                          [--depth 32] [--all] [--seconds 2] [--rounds 5] [--json]
//                                          [--engine auto|io_uring|threads] [--poll MICROSECONDS]
//
// --all runs what the project promises: 4 KiB random reads and writes at depth 32 and 128 and reads at depth 1, and
// 1 MiB in sequence at depth 8. Without --device (needs root): a loop device over a file in /dev/shm, filled with random
// bytes, or with --zram a zram device; removed afterwards. On a device that is named, writing must be asked for with
// --destroy as well. Ratios are medians over the pairs of one round.
import { execFileSync, spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, constants, openSync, read, readFileSync, rmSync, write, writeFileSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { ioMemory, openDevice } from '../dist/index.js';
import { alternate, median } from './side-by-side.mjs';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string' },
    zram: { type: 'boolean', default: false },
    rw: { type: 'string', default: 'randread' },
    bs: { type: 'string', default: '4096' },
    depth: { type: 'string', default: '32' },
    all: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '5' },
    engine: { type: 'string', default: 'auto' },
    poll: { type: 'string', default: '0' },
    destroy: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});
const seconds = Number(options.seconds);
const rampMs = 300;
const mebibyte = 1 << 20;

/** What is measured: a pattern as fio names it, a size and how many at once. */
const cases = options.all
  ? [
      ...['randread', 'randwrite'].flatMap((rw) => [32, 128].map((depth) => ({ rw, blockBytes: 4096, depth }))),
      { rw: 'randread', blockBytes: 4096, depth: 1 },
      ...['read', 'write'].map((rw) => ({ rw, blockBytes: mebibyte, depth: 8 })),
    ]
  : [{ rw: options.rw, blockBytes: Number(options.bs), depth: Number(options.depth) }];

const isWrite = ({ rw }) => rw.endsWith('write');

if (cases.some(isWrite) && options.device !== undefined && !options.destroy) {
  console.error(`this overwrites ${options.device}; add --destroy if that is meant`);
  process.exit(1);
}

// ── Devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Fills a gibibyte with random bytes. */
function fill(path, flags) {
  const file = openSync(path, flags, 0o600);
  const piece = Buffer.alloc(mebibyte);
  for (let at = 0; at < 1024; at++) writeSync(file, randomFillSync(piece));
  closeSync(file);
}

/** A loop device over RAM, and what takes it down. */
function makeLoopDevice() {
  const backing = `/dev/shm/holdfast-bench-${process.pid}`;
  fill(backing, 'wx');
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

function makeZramDevice() {
  const number = readFileSync('/sys/class/zram-control/hot_add', 'utf8').trim();
  const path = `/dev/zram${number}`;
  const remove = () => writeFileSync('/sys/class/zram-control/hot_remove', number);
  try {
    writeFileSync(`/sys/block/zram${number}/disksize`, '1G');
    fill(path, 'r+');
    return { path, remove };
  } catch (error) {
    remove();
    throw error;
  }
}

// ── Ways to do it ────────────────────────────────────────────────────────────────────────────────────────────────────

function nextOffsets({ rw, blockBytes }, sizeBytes) {
  const blocks = Math.floor(sizeBytes / blockBytes);
  if (!rw.startsWith('rand')) {
    let block = -1;
    return () => {
      block = block + 1 === blocks ? 0 : block + 1;
      return block * blockBytes;
    };
  }
  let state = 0x9e3779b9;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) % blocks) * blockBytes;
  };
}

/** `depth` lanes, each of which calls `request` over and over: {rate, cpuUs}, requests a second and time for each. */
async function measure({ rw, blockBytes, depth }, request) {
  let done = 0;
  let stop = false;
  const lane = async () => {
    const lease = ioMemory().lease(blockBytes);
    if (rw.endsWith('write')) randomFillSync(lease.bytes);
    while (!stop) {
      await request(lease.bytes);
      done++;
    }
    lease.release();
  };
  const lanes = Promise.all(Array.from({ length: depth }, lane));
  await sleep(rampMs);
  const before = { done, at: performance.now(), cpu: process.cpuUsage() };
  await sleep(seconds * 1000);
  const requests = done - before.done;
  const { user, system } = process.cpuUsage(before.cpu);
  const rate = (requests * 1000) / (performance.now() - before.at);
  stop = true;
  await lanes;
  return { rate, cpuUs: (user + system) / requests };
}

async function holdfast(path, what) {
  const { engine } = options;
  const pollMicroseconds = Number(options.poll);
  const readOnly = !isWrite(what);
  const device = await openDevice(path, { direct: 'required', engine, readOnly, pollMicroseconds });
  try {
    report = device.report();
    const next = nextOffsets(what, device.geometry.sizeBytes);
    return await measure(what, (bytes) => (readOnly ? device.read(next(), bytes) : device.write(next(), bytes)));
  } finally {
    await device.close();
  }
}

async function nodeFs(path, what, sizeBytes) {
  const fd = openSync(path, (isWrite(what) ? constants.O_RDWR : constants.O_RDONLY) | constants.O_DIRECT);
  const next = nextOffsets(what, sizeBytes);
  const call = isWrite(what) ? write : read;
  try {
    return await measure(
      what,
      (bytes) =>
        new Promise((resolve, reject) => {
          call(fd, bytes, 0, what.blockBytes, next(), (error) => (error ? reject(error) : resolve()));
        }),
    );
  } finally {
    closeSync(fd);
  }
}

function fioArguments(path, { rw, blockBytes, depth }) {
  return [
    ...['--name=peer', '--thread', `--filename=${path}`, '--ioengine=io_uring', '--direct=1', `--rw=${rw}`],
    ...[`--bs=${blockBytes}`, `--iodepth=${depth}`, '--time_based', `--runtime=${seconds}`, `--ramp_time=${rampMs}ms`],
    ...['--gtod_reduce=1', '--output-format=json'],
  ];
}

/** Processor time of a process so far, in microseconds: proc(5), /proc/PID/stat, in ticks of 10 ms. */
function cpuTimeUs(pid) {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const [user, system] = text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .slice(11, 13);
  return (Number(user) + Number(system)) * 10_000;
}

/** fio's own figure for the processor leaves out the kernel's threads that work for it, so it is taken from outside. */
async function fio(path, what) {
  const child = spawn('fio', fioArguments(path, what), { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (piece) => {
    text += piece;
  });
  const over = new Promise((resolve, reject) => child.once('close', resolve).once('error', reject));
  await Promise.race([over, sleep(rampMs + 300)]);
  const before = { at: performance.now(), cpu: cpuTimeUs(child.pid) };
  await Promise.race([over, sleep(seconds * 1000 - 400)]);
  const cpu = cpuTimeUs(child.pid) - before.cpu;
  const elapsedSeconds = (performance.now() - before.at) / 1000;
  const status = await over;
  if (status !== 0) throw new Error(`fio ended with ${status}: ${text}`);
  const [job] = JSON.parse(text.slice(text.indexOf('{'))).jobs;
  const rate = (isWrite(what) ? job.write : job.read).iops;
  return { rate, cpuUs: cpu / elapsedSeconds / rate };
}

// ── The comparison ───────────────────────────────────────────────────────────────────────────────────────────────────

async function compare(path, what, sizeBytes) {
  const ways = {
    holdfast: () => holdfast(path, what),
    fio: () => fio(path, what),
    'node fs': () => nodeFs(path, what, sizeBytes),
  };
  const measured = await alternate(ways, Number(options.rounds));
  const ratio = (figure, peer) =>
    median(measured.holdfast.map((mine, round) => mine[figure] / measured[peer][round][figure]));
  return {
    ...what,
    rates: Object.fromEntries(Object.keys(ways).map((way) => [way, median(measured[way].map(({ rate }) => rate))])),
    cpuUs: Object.fromEntries(Object.keys(ways).map((way) => [way, median(measured[way].map(({ cpuUs }) => cpuUs))])),
    toFio: ratio('rate', 'fio'),
    toNodeFs: ratio('rate', 'node fs'),
    cpuToFio: ratio('cpuUs', 'fio'),
    fio: ['fio', ...fioArguments(path, what)],
  };
}

function print(found, path) {
  const { rw, blockBytes, depth, rates, cpuUs, toFio, toNodeFs, cpuToFio } = found;
  console.log(`${rw} of ${blockBytes} bytes, depth ${depth}, ${path}; medians of ${options.rounds} rounds`);
  const line = (way, note) =>
    console.log(
      `  ${way.padEnd(9)}${Math.round(rates[way])} /s   ${cpuUs[way].toFixed(2)} µs of processor each   ${note}`,
    );
  line('holdfast', `${report.engine}, ${report.features.join(', ')}; Node ${process.version}`);
  line('fio', found.fio.join(' '));
  line('node fs', `UV_THREADPOOL_SIZE ${process.env.UV_THREADPOOL_SIZE ?? 4}`);
  const latency = depth === 1 ? `, latency ${(1 / toFio).toFixed(2)}` : '';
  console.log(
    `  holdfast : fio = ${toFio.toFixed(2)}${latency}, processor ${cpuToFio.toFixed(2)}   ` +
      `holdfast : node fs = ${toNodeFs.toFixed(1)}`,
  );
}

let report;
let made;
if (options.device === undefined) made = options.zram ? makeZramDevice() : makeLoopDevice();
const path = made?.path ?? options.device;
try {
  const probe = await openDevice(path, { readOnly: true });
  const { sizeBytes } = probe.geometry;
  await probe.close();
  const all = [];
  for (const what of cases) {
    const found = await compare(path, what, sizeBytes);
    all.push(found);
    if (!options.json) print(found, path);
  }
  if (options.json) console.log(JSON.stringify({ report, cases: all }));
} finally {
  made?.remove();
}
