// CRC-32C through the public function, beside the npm package @node-rs/crc32, on one core.
//
//   npm run build && node bench/checksum.mjs [--json]
//
// Sizes: a frame's header; a block; a read-ahead's worth; and 64 KiB blocks over 512 MiB, which come from memory.
import { randomFillSync } from 'node:crypto';
import { crc32c as theirs } from '@node-rs/crc32';
import { crc32cKernel, crc32c as ours } from '../dist/index.js';
import { sideBySide } from './side-by-side.mjs';

const memory = Buffer.allocUnsafeSlow(512 << 20);
for (let at = 0; at < memory.length; at += 1 << 20) randomFillSync(memory, at, 1 << 20);
if (ours(memory) !== theirs(memory)) throw new Error('the two disagree');

const runMs = 150;

/** Gigabytes a second, over pieces of `bytes` bytes from the first `span` bytes of the memory. */
function rate(crc32c, bytes, span) {
  const pieces = Array.from({ length: span / bytes }, (_, i) => memory.subarray(i * bytes, (i + 1) * bytes));
  return () => {
    const start = performance.now();
    let done = 0;
    do {
      for (const piece of pieces) crc32c(piece);
      done += span;
    } while (performance.now() - start < runMs);
    return done / (performance.now() - start) / 1e6;
  };
}

const cases = [
  ['64 B', 64, 4096],
  ['4 KiB', 4096, 1 << 18],
  ['64 KiB', 1 << 16, 1 << 18],
  ['64 KiB from memory', 1 << 16, memory.length],
];
const results = {};
for (const [name, bytes, span] of cases) {
  results[name] = await sideBySide({ holdfast: rate(ours, bytes, span), '@node-rs/crc32': rate(theirs, bytes, span) });
}

if (process.argv.includes('--json')) {
  console.log(JSON.stringify({ kernel: crc32cKernel(), gigabytesPerSecond: results }));
} else {
  console.log(`CRC-32C in GB/s, medians of 5 rounds in turns; kernel ${crc32cKernel()}, Node ${process.version}`);
  for (const [name, { holdfast, '@node-rs/crc32': peer }] of Object.entries(results)) {
    const ratio = (holdfast / peer).toFixed(1);
    console.log(
      `${name.padEnd(20)} holdfast ${holdfast.toFixed(2).padStart(6)}   @node-rs/crc32 ${peer.toFixed(2).padStart(6)}   ×${ratio}`,
    );
  }
}
