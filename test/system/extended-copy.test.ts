/**
 * SCSI EXTENDED COPY between two logical units of Linux's own target (LIO) over RAM disks, in a guest with Debian's
 * kernel. The RAM disks below show what has been copied.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const guest = fileURLToPath(new URL('guest.sh', import.meta.url));

/** In the guest: prints one line of JSON for each thing that is tried. */
const copies = `
  import { readFileSync, writeFileSync, openSync, readSync, closeSync } from 'node:fs';
  import { openDevice } from '/share/holdfast/dist/storage/open-device.js';
  import { copyRange } from '/share/holdfast/dist/storage/copy-range.js';
  const [first, second] = process.argv.slice(2);
  const MiB = 1 << 20;
  const tell = (name, value) => console.log('TOLD ' + JSON.stringify([name, value]));
  const attempt = (copy) => copy.catch(({ code, message }) => ({ code, message }));
  const open = (path) => openDevice(path, { exclusive: false });
  const bytes = Buffer.alloc(32 * MiB);
  for (let i = 0; i < bytes.length; i += 4) bytes.writeUInt32LE((i * 2654435761) >>> 0, i);
  const below = (disk, start, length) => {
    const fd = openSync(disk, 'r');
    const read = Buffer.alloc(length);
    readSync(fd, read, 0, length, start);
    closeSync(fd);
    return read;
  };
  const same = (disk, start, from, length) => below(disk, start, length).equals(bytes.subarray(from, from + length));

  const source = await open(first);
  const target = await open(second);
  await source.write(0, bytes);

  // Something reads the target through the page cache before.
  const cached = openSync(second, 'r');
  const sector = Buffer.alloc(4096);
  readSync(cached, sector, 0, 4096, 20 * MiB);
  const steps = [];
  const onProgress = ({ copiedBytes, method }) => steps.push([copiedBytes / MiB, method]);
  tell('auto', await attempt(copyRange(source, 0, target, 0, 24 * MiB, { onProgress })));
  tell('steps', steps);
  await target.flush();
  readSync(cached, sector, 0, 4096, 20 * MiB);
  tell('cached reader', sector.equals(bytes.subarray(20 * MiB, 20 * MiB + 4096)));
  tell('auto below', [same('/dev/ram1', 0, 0, 24 * MiB), below('/dev/ram1', 24 * MiB, MiB).every((byte) => byte === 0)]);

  tell('ends', await attempt(copyRange(source, 100, target, 40 * MiB + 100, 2 * MiB)));
  tell('ends below', same('/dev/ram1', 40 * MiB + 100, 100, 2 * MiB));
  tell('ends by name', await attempt(copyRange(source, 100, target, 100, 2 * MiB, { method: 'extended-copy' })));

  const options = { method: 'extended-copy' };
  tell('within', await attempt(copyRange(source, 0, source, 40 * MiB, 4 * MiB, options)));
  tell('within below', same('/dev/ram0', 40 * MiB, 0, 4 * MiB));
  tell('overlap', await attempt(copyRange(source, 0, source, MiB, 4 * MiB, options)));

  const partition = await open(first + '1');
  tell('partition', await attempt(copyRange(target, 0, partition, MiB, 2 * MiB, options)));
  // It begins at 48 MiB of its disk.
  tell('partition below', same('/dev/ram0', 49 * MiB, 0, 2 * MiB));
  tell('partition overlap', await attempt(copyRange(source, 48 * MiB, partition, 512, MiB, options)));

  const controller = new AbortController();
  const stop = () => controller.abort();
  const cancelled = { ...options, signal: controller.signal, onProgress: stop };
  tell('cancelled', await attempt(copyRange(source, 0, target, 0, 32 * MiB, cancelled)));

  writeFileSync('/sys/kernel/config/target/core/iblock_1/b1/attrib/emulate_3pc', '0');
  tell('one without', await attempt(copyRange(source, 0, target, 8 * MiB, MiB)));
  const copied = Buffer.alloc(MiB);
  await target.read(8 * MiB, copied);
  tell('one without, copied', copied.equals(bytes.subarray(0, MiB)));
  writeFileSync('/sys/kernel/config/target/core/iblock_0/b0/attrib/emulate_3pc', '0');
  tell('both without', await attempt(copyRange(source, 0, target, 4 * MiB, MiB)));
  tell('both without, by name', await attempt(copyRange(source, 0, target, 0, MiB, options)));
  await Promise.all([source.close(), target.close(), partition.close()]);
  tell('end', true);
`;

const script = `
  modprobe sd_mod; modprobe sg; modprobe brd rd_nr=2 rd_size=65536
  for module in target_core_mod target_core_iblock tcm_loop; do modprobe $module; done; mkdir -p /etc/target
  target=/sys/kernel/config/target
  for i in 0 1; do
    unit=$target/core/iblock_$i/b$i; mkdir -p $unit
    echo "udev_path=/dev/ram$i" > $unit/control; echo "f00d0000$i" > $unit/wwn/vpd_unit_serial
    echo /dev/ram$i > $unit/udev_path; echo 1 > $unit/enable
  done
  port=$target/loopback/naa.6001405aaaaaaaaa/tpgt_1; mkdir -p $port/lun/lun_0 $port/lun/lun_1
  echo naa.6001405bbbbbbbbb > $port/nexus
  ln -s $target/core/iblock_0/b0 $port/lun/lun_0/x; ln -s $target/core/iblock_1/b1 $port/lun/lun_1/x
  for i in $(seq 100); do [ -b /dev/sda ] && [ -b /dev/sdb ] && break; sleep .1; done
  addpart /dev/sda 1 98304 32768 || exit 1
  for i in $(seq 100); do [ -b /dev/sda1 ] && break; sleep .1; done
  "$1" /share/copies.mjs /dev/sda /dev/sdb > /share/told 2>&1
`;

const wanted = ['qemu-system-x86_64', 'busybox', 'cpio', 'addpart'];
const missing = wanted.filter((name) => spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0);
if (!existsSync('/lib/modules') || readdirSync('/lib/modules').length === 0) missing.push('linux-image-amd64');
if (missing.length > 0) console.log(`no guest with SCSI disks here: ${missing.join(', ')} missing`);

let share: string;
beforeAll(() => {
  share = mkdtempSync(join(tmpdir(), 'holdfast-xcopy-'));
  mkdirSync(join(share, 'holdfast', 'build', 'Release'), { recursive: true });
  for (const name of ['dist', 'package.json', 'build/Release/holdfast.node']) {
    cpSync(join(root, name), join(share, 'holdfast', name), { recursive: true });
  }
  writeFileSync(join(share, 'copies.mjs'), copies);
  writeFileSync(join(share, 'script.sh'), script);
});
afterAll(() => rmSync(share, { recursive: true, force: true }));

test.skipIf(missing.length > 0)(
  'disks of one array copy by themselves, and what they do not do is done by the ring',
  () => {
    const { stdout, stderr, status } = spawnSync(guest, ['-t', '300', join(share, 'script.sh'), process.execPath], {
      env: { ...process.env, SHARE: share },
      encoding: 'utf8',
    });
    const output = existsSync(join(share, 'told')) ? readFileSync(join(share, 'told'), 'utf8') : '';
    expect(status, `${output}\n${stdout}\n${stderr}`).toBe(0);
    const lines = output.split('\n').filter((line) => line.startsWith('TOLD '));
    const told = Object.fromEntries(lines.map((line) => JSON.parse(line.slice(5))));
    const MiB = 1 << 20;

    expect(told.auto).toEqual({
      bytes: 24 * MiB,
      method: 'extended-copy',
      bytesBy: { 'extended-copy': 24 * MiB },
      declined: [],
    });
    expect(told.steps).toEqual([
      [16, 'extended-copy'],
      [24, 'extended-copy'],
    ]);
    expect(told['cached reader']).toBe(true);
    expect(told['auto below']).toEqual([true, true]);

    expect(told.ends.bytesBy).toEqual({ ring: 512, 'extended-copy': 2 * MiB - 512 });
    expect(told['ends below']).toBe(true);
    expect(told['ends by name'].code).toBe('ERR_HOLDFAST_BAD_ARGUMENT');

    expect(told.within.bytesBy).toEqual({ 'extended-copy': 4 * MiB });
    expect(told['within below']).toBe(true);
    expect(told.overlap.code).toBe('ERR_HOLDFAST_BAD_ARGUMENT');

    expect(told.partition.bytesBy).toEqual({ 'extended-copy': 2 * MiB });
    expect(told['partition below']).toBe(true);
    expect(told['partition overlap'].code).toBe('ERR_HOLDFAST_BAD_ARGUMENT');

    expect(told.cancelled.code).toBe('ERR_HOLDFAST_ABORTED');

    expect(told['both without'].bytesBy).toEqual({ ring: MiB });
    expect(told['both without'].declined[0].reason).toContain('does not copy by itself');
    expect(told['both without, by name'].code).toBe('ERR_HOLDFAST_NOT_SUPPORTED');
    expect(told['one without'].bytesBy).toEqual({ ring: MiB });
    expect(told['one without'].declined[0].reason).toContain('sense a/0d/02: the other unit cannot be reached');
    expect(told['one without, copied']).toBe(true);
    expect(told.end).toBe(true);
  },
);
