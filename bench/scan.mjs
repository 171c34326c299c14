// The scan of a device, beside a plain program that reads it with io_uring and checksums it by the same kernel
// (bench/scan-peer.cc, built here with g++ and liburing), on one device, in one run, in turns.
//
//   npm run build && node bench/scan.mjs [--path PATH] [--block 65536] [--rounds 9] [--json]
//
// Without --path (needs root): a loop device over a file in /dev/shm with 2 GiB of random bytes, and then that file itself;
// both are removed afterwards. Nothing is written to a path that is named.
import { execFileSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { crc32c, crc32cKernel, openDevice, scanDevice } from '../dist/index.js';
import { median } from './side-by-side.mjs';

const { values: options } = parseArgs({
  options: {
    path: { type: 'string' },
    block: { type: 'string', default: '65536' },
    rounds: { type: 'string', default: '9' },
    piece: { type: 'string', default: '524288' },
    depth: { type: 'string', default: '8' },
    json: { type: 'boolean', default: false },
  },
});
const blockBytes = Number(options.block);
const native = fileURLToPath(new URL('../native', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'holdfast-bench-'));

/** The flags of binding.gyp for a kernel. */
function flagsOf(name) {
  if (name.includes('avx512')) return ['-msse4.2', '-mpclmul', '-mavx512f', '-mavx512vl', '-mvpclmulqdq'];
  if (name.includes('sse42')) return ['-msse4.2', '-mpclmul'];
  return name.includes('armv8') ? ['-march=armv8-a+crc+crypto'] : [];
}

/** The program with the kernels' own sources in it. */
function buildPeer() {
  const others = { x64: 'armv8', arm64: /sse42|avx512/ }[process.arch];
  const kernels = readdirSync(join(native, 'checksum')).filter(
    (name) => /^crc32c.*\.cc$/.test(name) && !name.match(others),
  );
  const common = ['-std=c++20', '-O3', '-w', `-I${native}`];
  const objects = kernels.map((name) => {
    const object = join(folder, `${name}.o`);
    execFileSync('g++', [...common, ...flagsOf(name), '-c', join(native, 'checksum', name), '-o', object]);
    return object;
  });
  const program = join(folder, 'scan-peer');
  const source = fileURLToPath(new URL('scan-peer.cc', import.meta.url));
  execFileSync('g++', [...common, source, ...objects, '-o', program, '-luring']);
  return program;
}

/** A file in memory and a loop device over it, and what takes them down. */
function makeDevices() {
  const file = `/dev/shm/holdfast-bench-${process.pid}`;
  const fd = openSync(file, 'wx', 0o600);
  const piece = Buffer.alloc(1 << 20);
  for (let at = 0; at < 2048; at++) writeSync(fd, randomFillSync(piece));
  closeSync(fd);
  const loop = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim();
  return {
    paths: [loop, file],
    remove() {
      execFileSync('losetup', ['--detach', loop]);
      rmSync(file);
    },
  };
}

async function ours(device) {
  const cpu = process.cpuUsage();
  const start = performance.now();
  let digest = 0;
  for await (const batch of scanDevice(device, { blockBytes })) digest = crc32c(batch.checksums, digest);
  const seconds = (performance.now() - start) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  return { rate: device.geometry.sizeBytes / seconds / 1e9, digest, cpuSeconds: (user + system) / 1e6 };
}

function theirs(program, path, sizeBytes) {
  const args = [path, options.block, options.piece, options.depth];
  const [ns, digest] = execFileSync(program, args, { encoding: 'utf8' }).split(' ').map(Number);
  return { rate: sizeBytes / ns, digest };
}

async function compare(program, path) {
  const device = await openDevice(path, { readOnly: true, direct: 'required' });
  const { sizeBytes } = device.geometry;
  const pairs = [];
  for (let round = 0; round < Number(options.rounds); round++) {
    const us = await ours(device);
    const peer = theirs(program, path, sizeBytes);
    if (us.digest !== peer.digest) throw new Error('the two disagree');
    pairs.push({ holdfast: us.rate, peer: peer.rate, cpuSeconds: us.cpuSeconds });
  }
  const { engine, reason } = device.report();
  await device.close();
  const middle = (value) => median(pairs.map(value));
  return {
    ...{ path, sizeBytes, blockBytes, engine, reason, kernel: crc32cKernel() },
    holdfast: middle((pair) => pair.holdfast),
    peer: middle((pair) => pair.peer),
    ratio: middle((pair) => pair.holdfast / pair.peer),
    cpuSeconds: middle((pair) => pair.cpuSeconds),
  };
}

let made;
try {
  const program = buildPeer();
  made = options.path === undefined ? makeDevices() : undefined;
  for (const path of made?.paths ?? [options.path]) {
    const result = await compare(program, path);
    if (options.json) {
      console.log(JSON.stringify(result));
      continue;
    }
    console.log(
      `scan of ${path}, blocks of ${blockBytes} bytes, kernel ${result.kernel}; medians of ${options.rounds} pairs`,
    );
    console.log(
      `holdfast   ${result.holdfast.toFixed(2)} GB/s   ${result.engine} (${result.reason}), Node ${process.version}`,
    );
    console.log(`scan-peer  ${result.peer.toFixed(2)} GB/s   ${options.depth} reads of ${options.piece} bytes`);
    console.log(`holdfast : scan-peer = ${result.ratio.toFixed(2)}`);
  }
} finally {
  made?.remove();
  rmSync(folder, { recursive: true });
}
