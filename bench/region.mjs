// Store and persist in a region, beside the same in plain C (bench/region.c, built here with cc), in turns on one file.
//
//   npm run build && node bench/region.mjs [--folder DIRECTORY] [--json]
//
// cache-flush: on a file in /dev/shm, since few machines have persistent memory. It is the way of `map-sync`, on RAM.
// msync: on a file in the folder (default: the folder for temporary files).
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openRegion } from '../dist/index.js';
import { sideBySide } from './side-by-side.mjs';

const runMs = 200;
const sizeBytes = 8 << 20;
const json = process.argv.includes('--json');
const folderAt = process.argv.indexOf('--folder');

const disk = mkdtempSync(join(folderAt < 0 ? tmpdir() : process.argv[folderAt + 1], 'holdfast-bench-'));
const memory = mkdtempSync('/dev/shm/holdfast-bench-');
const program = join(disk, 'region');
const source = fileURLToPath(new URL('region.c', import.meta.url));

function run(command, ...parameters) {
  const { status, stdout, stderr, error } = spawnSync(command, parameters, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command}: ${error?.message ?? stderr}`);
  return stdout;
}

/** Nanoseconds an operation. */
async function timed(region, bytes, store) {
  const data = new Uint8Array(bytes).fill(1);
  const start = performance.now();
  let at = 0;
  let done = 0;
  do {
    for (let i = 0; i < 16; i++) {
      data[0] = i;
      await store(region, at, data);
      at = at + 2 * bytes <= region.sizeBytes ? at + bytes : 0;
    }
    done += 16;
  } while (performance.now() - start < runMs);
  return ((performance.now() - start) * 1e6) / done;
}

async function storeAndPersist(region, at, data) {
  region.bytes.set(data, at);
  await region.persist(at, data.length);
}
const write = (region, at, data) => region.write(at, data);

async function measure(means, folder, bytes) {
  const path = join(folder, `region-${means}`);
  const region = await openRegion(path, { sizeBytes, create: true, means });
  region.bytes.fill(0);
  await region.persist();
  const inC = (way) => () => Number(run(program, path, String(bytes), way, String(runMs)));
  const ways = {
    'set + persist': () => timed(region, bytes, storeAndPersist),
    write: () => timed(region, bytes, write),
  };
  if (means === 'msync') ways['C: memcpy + msync'] = inC('msync');
  else Object.assign(ways, { 'C: memcpy + clwb': inC('flush'), 'C: non-temporal': inC('stream') });
  try {
    return await sideBySide(ways);
  } finally {
    await region.close();
    rmSync(path);
  }
}

try {
  run('cc', '-O2', '-o', program, source);
  const results = {};
  for (const [means, folder] of [
    ['cache-flush', memory],
    ['msync', disk],
  ]) {
    for (const bytes of [64, 4096]) results[`${bytes} B, ${means}`] = await measure(means, folder, bytes);
  }
  if (json) console.log(JSON.stringify({ nanoseconds: results }));
  else {
    console.log(`store + persist, nanoseconds each, medians of 5 rounds in turns; Node ${process.version}`);
    for (const [name, ways] of Object.entries(results)) {
      const figures = Object.entries(ways).map(([way, ns]) => `${way} ${ns.toFixed(0)}`);
      console.log(`${name.padEnd(20)} ${figures.join('   ')}`);
    }
  }
} finally {
  for (const folder of [disk, memory]) rmSync(folder, { recursive: true });
}
