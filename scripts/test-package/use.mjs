// A service that has installed the package: checksums, a region, a device and a worker, all by the prebuilt addon. Says
// in one JSON line what served them. test-package.mjs runs it, on each processor that it can.
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { crc32c, crc32cBlocks, crc32cKernel, isHoldfastError, openDevice, openRegion, probeSignatures } from 'holdfast';

const bytes = Uint8Array.from({ length: 300_001 }, (_, index) => (index * 2_654_435_761) >>> 13);

/** One bit at a time, as RFC 3720 defines it. */
function plainCrc32c(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc >>> 0;
}

async function useRegion() {
  const region = await openRegion('region', { sizeBytes: 4096, create: true });
  region.bytes.fill(1);
  await region.persist();
  await region.close();
  const again = await openRegion('region');
  assert.deepEqual([again.bytes.length, again.bytes[4095]], [4096, 1]);
  await again.close();
  return region.means;
}

async function useDevice() {
  const device = await openDevice('device', { create: { sizeBytes: 1024 * 1024 } });
  await device.write(12_345, bytes);
  await device.flush();
  const found = new Uint8Array(bytes.length);
  await device.read(12_345, found);
  assert.equal(Buffer.compare(found, bytes), 0);
  const { engine, reason } = device.report();
  await device.close();
  return { engine, reason };
}

/** libblkid comes from the system, and may be missing. */
async function useSignatures() {
  try {
    return (await probeSignatures('region')).length;
  } catch (error) {
    if (isHoldfastError(error)) return error.code;
    throw error;
  }
}

function useWorker() {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url));
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}

if (isMainThread) {
  for (const left of ['region', 'device']) rmSync(left, { force: true });
  assert.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
  assert.equal(crc32c(bytes), plainCrc32c(bytes));
  assert.equal(crc32cBlocks(bytes, 4096)[73], plainCrc32c(bytes.subarray(73 * 4096)));
  assert.equal(await useWorker(), crc32c(bytes));
  const means = await useRegion();
  const addon = Object.keys(createRequire(import.meta.url).cache).find((path) => path.endsWith('.node'));
  const { arch, version } = process;
  const signatures = await useSignatures();
  const served = { arch, version, addon, kernel: crc32cKernel(), means, signatures, ...(await useDevice()) };
  console.log(JSON.stringify(served));
} else {
  parentPort.postMessage(crc32c(bytes));
}
