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

const native = (way) => async (bytes, span) => {
  child.stdin.write(`${way} ${bytes} ${span} ${runMs}\n`);
  return Number((await answers.next()).value);
};

/** The same through the public function. */
function throughJavaScript(bytes, span) {
  const memory = Buffer.allocUnsafeSlow(span).fill(7);
  const pieces = Array.from({ length: span / bytes }, (_, i) => memory.subarray(i * bytes, (i + 1) * bytes));
  const passes = (8 << 20) / span;
  const start = process.cpuUsage();
  let done = 0;
  let used;
  do {
    for (let pass = 0; pass < passes; pass++) {
      for (const piece of pieces) crc32c(piece);
    }
    done += passes * span;
    used = process.cpuUsage(start);
  } while (used.user + used.system < runMs * 1e3);
  return done / (used.user + used.system) / 1e3;
}

/** Medians of both rates, and of the ratios within each pair. */
async function pair([name, ours, theirs, bytes, span]) {
  const rates = { ours: [], theirs: [], ratio: [] };
  for (let i = -1; i < pairs; i++) {
    const first = i % 2 === 0;
    const before = first ? await ours(bytes, span) : undefined;
    const their = await theirs(bytes, span);
    const our = before ?? (await ours(bytes, span));
    if (i < 0) continue;
    rates.ours.push(our);
    rates.theirs.push(their);
    rates.ratio.push(our / their);
  }
  return { name, ...Object.fromEntries(Object.entries(rates).map(([key, values]) => [key, median(values)])) };
}

const [kernel, isal] = [native('holdfast'), native('isal')];
const inCache = 1 << 18;
const memoryBytes = 1 << 29;
const cases = [
  ['4 KiB in cache, beside ISA-L', kernel, isal, 4096, inCache],
  ['64 KiB in cache, beside ISA-L', kernel, isal, 1 << 16, inCache],
  ['1 MiB in cache, beside ISA-L', kernel, isal, 1 << 20, 1 << 20],
  ['4 KiB from memory, beside ISA-L', kernel, isal, 4096, memoryBytes],
  ['64 KiB from memory, beside ISA-L', kernel, isal, 1 << 16, memoryBytes],
  ['1 MiB from memory, beside ISA-L', kernel, isal, 1 << 20, memoryBytes],
  ['64 KiB through JavaScript, beside the kernel', throughJavaScript, kernel, 1 << 16, inCache],
  ['64 KiB copied, beside memcpy and ISA-L', native('holdfast-copy'), native('copy-then-isal'), 1 << 16, inCache],
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
