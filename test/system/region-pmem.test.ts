/**
 * A region on persistent memory: an emulated NVDIMM in a guest with Debian's kernel, ext4 with DAX on it. The guest is
 * switched off without a sync right after `persist`; a second boot reads the file.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const guest = fileURLToPath(new URL('guest.sh', import.meta.url));
const nvdimmBytes = 512 << 20;

const store = `
  import { openRegion } from '/share/holdfast/dist/storage/region.js';
  const region = await openRegion('/mnt/p/region', { sizeBytes: 8 << 20, create: true });
  region.bytes.set(Buffer.from('stored by a region'), 4096);
  await region.persist(4096, 18);
  region.bytes.fill(120, 4 << 20, 6 << 20);
  await region.persist(4 << 20, 2 << 20);
  await region.grow(16 << 20);
  await region.write((15 << 20) + 5, new Uint8Array(1 << 19).fill(121));
  await region.publish(8, 0x4847464544434241n);
  console.log('means ' + region.means);
`;

const script = `
  modprobe nfit; modprobe nd_pmem; mkdir -p /mnt/p
  for i in $(seq 50); do [ -b /dev/pmem0 ] && break; sleep .1; done
  if [ "$1" = second ]; then
    mount -o dax /dev/pmem0 /mnt/p || exit 1
    strings -n 8 /mnt/p/region | head -2
    tail -c +15728646 /mnt/p/region | head -c 524288 | tr -d y | wc -c; stat -c %s /mnt/p/region
    tail -c +4194305 /mnt/p/region | head -c 2097152 | tr -d x | wc -c
    exit
  fi
  ndctl create-namespace -f -m fsdax -M mem -e namespace0.0 > /dev/null 2>&1; sleep .5
  mkfs.ext4 -q -F -b 4096 /dev/pmem0 && mount -o dax=always /dev/pmem0 /mnt/p || exit 1
  "$2" /share/store.mjs || exit 1
  echo 0 > /share/.rc; echo o > /proc/sysrq-trigger; sleep 20
`;

const wanted = ['qemu-system-x86_64', 'ndctl', 'mkfs.ext4', 'busybox', 'cpio', 'strings'];
const missing = wanted.filter((name) => spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0);
if (!existsSync('/lib/modules') || readdirSync('/lib/modules').length === 0) missing.push('linux-image-amd64');
if (missing.length > 0) console.log(`no guest with persistent memory here: ${missing.join(', ')} missing`);

let share: string;
beforeAll(() => {
  share = mkdtempSync(join(tmpdir(), 'holdfast-pmem-'));
  mkdirSync(join(share, 'holdfast', 'build', 'Release'), { recursive: true });
  for (const name of ['dist', 'package.json', 'build/Release/holdfast.node']) {
    cpSync(join(root, name), join(share, 'holdfast', name), { recursive: true });
  }
  writeFileSync(join(share, 'store.mjs'), store);
  writeFileSync(join(share, 'script.sh'), script);
  writeFileSync(join(share, 'nvdimm'), '');
  truncateSync(join(share, 'nvdimm'), nvdimmBytes);
});
afterAll(() => rmSync(share, { recursive: true, force: true }));

function boot(round: 'first' | 'second'): string {
  const devices =
    `-object memory-backend-file,id=memory,share=on,mem-path=${join(share, 'nvdimm')},size=${nvdimmBytes} ` +
    '-device nvdimm,id=nvdimm,memdev=memory';
  const machine = ['-M', 'q35,nvdimm=on', '-m', '1G,slots=2,maxmem=4G', '-t', '240', '-x', devices];
  const { stdout, stderr, status } = spawnSync(guest, [...machine, join(share, 'script.sh'), round, process.execPath], {
    env: { ...process.env, SHARE: share },
    encoding: 'utf8',
  });
  expect(status, `${stdout}\n${stderr}`).toBe(0);
  return stdout;
}

test.skipIf(missing.length > 0)('what is persisted to an NVDIMM by MAP_SYNC is there after a power cut', () => {
  expect(boot('first')).toContain('means map-sync');
  const second = boot('second');
  expect(second).toContain('stored by a region');
  expect(second.match(/^0\r?$/gm)).toHaveLength(2);
  expect(second).toContain('ABCDEFGH');
  expect(second).toContain(String(16 << 20));
});
