// CRC-32C beside Intel's ISA-L, crc32_iscsi: in cache and from memory, without JavaScript; through the public function
// beside the same kernel; and copying and checksumming in one pass beside memcpy and then ISA-L.
//
//   npm run build && node bench/checksum-isal.mjs [--pairs 31] [--json]
//
// Needs Debian's libisal-dev and g++. Pairs of short runs, in turns, each beginning half of the pairs; medians of
// the rates, and of the pairs' ratios. Rates are by processor time, so that who else runs counts less; a neighbour
// on the same physical core still does, and costs the wider kernels more.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { crc32c, crc32cKernel } from '../dist/index.js';
import { median } from './side-by-side.mjs';

const { values: options } = parseArgs({
  options: { pairs: { type: 'string', default: '31' }, json: { type: 'boolean', default: false } },
});
const pairs = Number(options.pairs);
const runMs = 4;
const root = fileURLToPath(new URL('..', import.meta.url));

/** The kernels that the addon is linked from, so that what is measured is what is shipped. */
function kernelObjects() {
  const objects = join(root, 'build', 'Release', 'obj.target');
  return readdirSync(objects, { recursive: true })
    .filter((name) => /\/checksum\/crc32c\w*\.o$/.test(name))
    .map((name) => join(objects, name));
}

function build(directory) {
  const program = join(directory, 'checksum-isal');
  const source = join(root, 'bench', 'checksum-isal.cc');
  execFileSync(
    'g++',
    ['-std=c++20', '-O2', '-Wall', '-I', join(root, 'native'), source, ...kernelObjects(), '-lisal', '-o', program],
    { stdio: 'inherit' },
  );
  return program;
}

const directory = mkdtempSync(join(tmpdir(), 'holdfast-bench-'));
const child = spawn(build(directory), { stdio: ['pipe', 'pipe', 'inherit'] });
rmSync(directory, { recursive: true });
const answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]();

async function measure(way, bytes, from, span, ms) {
  child.stdin.write(`${way} ${bytes} ${from} ${span} ${ms}\n`);
  return Number((await answers.next()).value);
}

const inCache = 1 << 18;
const slice = 1 << 26;
const slices = 8;
let at = 0;

/** In cache: over and over the same bytes. */
const cached = (way) => (bytes) => measure(way, bytes, 0, Math.max(bytes, inCache), runMs);

/** From memory: once over 64 MiB, and the next time over the next of eight. */
const uncached = (way) => (bytes) => measure(way, bytes, slice * (at++ % slices), slice, 0);

/** The same through the public function. */
function throughJavaScript(bytes) {
  const memory = Buffer.allocUnsafeSlow(inCache).fill(7);
  const pieces = Array.from({ length: inCache / bytes }, (_, i) => memory.subarray(i * bytes, (i + 1) * bytes));
  const passes = (8 << 20) / inCache;
  const start = process.cpuUsage();
  let done = 0;
  let used;
  do {
    for (let pass = 0; pass < passes; pass++) {
      for (const piece of pieces) crc32c(piece);
    }
    done += passes * inCache;
    used = process.cpuUsage(start);
  } while (used.user + used.system < runMs * 1e3);
  return done / (used.user + used.system) / 1e3;
}

/** Medians of both rates, and of the ratios within each pair. */
async function pair([name, ours, theirs, bytes]) {
  const rates = { ours: [], theirs: [], ratio: [] };
  for (let i = -1; i < pairs; i++) {
    const first = i % 2 === 0;
    const before = first ? await ours(bytes) : undefined;
    const their = await theirs(bytes);
    const our = before ?? (await ours(bytes));
    if (i < 0) continue;
    rates.ours.push(our);
    rates.theirs.push(their);
    rates.ratio.push(our / their);
  }
  return { name, ...Object.fromEntries(Object.entries(rates).map(([key, values]) => [key, median(values)])) };
}

const cases = [
  ['4 KiB in cache, beside ISA-L', cached('holdfast'), cached('isal'), 4096],
  ['64 KiB in cache, beside ISA-L', cached('holdfast'), cached('isal'), 1 << 16],
  ['1 MiB in cache, beside ISA-L', cached('holdfast'), cached('isal'), 1 << 20],
  ['4 KiB from memory, beside ISA-L', uncached('holdfast'), uncached('isal'), 4096],
  ['64 KiB from memory, beside ISA-L', uncached('holdfast'), uncached('isal'), 1 << 16],
  ['1 MiB from memory, beside ISA-L', uncached('holdfast'), uncached('isal'), 1 << 20],
  ['64 KiB through JavaScript, beside the kernel', throughJavaScript, cached('holdfast'), 1 << 16],
  ['64 KiB through JavaScript, beside ISA-L', throughJavaScript, cached('isal'), 1 << 16],
  ['64 KiB copied, beside memcpy and ISA-L', cached('holdfast-copy'), cached('copy-then-isal'), 1 << 16],
];
const results = [];
for (const each of cases) results.push(await pair(each));
child.stdin.end();
await once(child, 'exit');

if (options.json) {
  console.log(JSON.stringify({ kernel: crc32cKernel(), pairs, gigabytesPerSecond: results }));
} else {
  console.log(`CRC-32C in GB/s, medians of ${pairs} pairs; kernel ${crc32cKernel()}, Node ${process.version}`);
  for (const { name, ours, theirs, ratio } of results) {
    const rates = `${ours.toFixed(1).padStart(6)} beside ${theirs.toFixed(1).padStart(6)}`;
    console.log(`${name.padEnd(46)}${rates}   × ${ratio.toFixed(2)}`);
  }
}
