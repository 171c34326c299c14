/**
 * A power cut of everything: a guest with Debian's kernel has its file system on a mirrored volume, by way of one
 * server. Guest and both servers are killed at once in the middle of its writes. After a restart every record that an
 * fsync has acknowledged is there, through the other server as well. Needs the packages that guest.sh names.
 */
import { existsSync, readdirSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { Cluster, MIB, NODES, type NodeName } from './cluster.ts';
import { Child, exists } from './processes.ts';

const guest = fileURLToPath(new URL('guest.sh', import.meta.url));
const ACKNOWLEDGED = 40;

/** Record N is 4096 bytes that only N has; every fourth also makes a file, so that the journal has work. */
const records = `
def record(number):
    return (b"record %08d " % number) + bytes([number * 7 % 251]) * 4080
`;

const write = `
${records}
import os
log = os.open("/mnt/volume/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
number = 0
while True:
    number += 1
    assert os.write(log, record(number)) == 4096
    if number % 4 == 0:
        own = os.open("/mnt/volume/%d" % number, os.O_CREAT | os.O_WRONLY)
        os.write(own, record(number)[:3000])
        os.fsync(own)
        os.close(own)
    os.fsync(log)
    print("acknowledged", number, flush=True)
`;

const check = `
${records}
import os, sys
acknowledged = int(sys.argv[1])
log = open("/mnt/volume/log", "rb").read()
lost = [n for n in range(1, acknowledged + 1) if log[(n - 1) * 4096 : n * 4096] != record(n)]
def whole(n):
    path = "/mnt/volume/%d" % n
    return os.path.exists(path) and open(path, "rb").read() == record(n)[:3000]
lost_files = [n for n in range(4, acknowledged + 1, 4) if not whole(n)]
print("lost records", lost, "lost files", lost_files)
`;

const script = `
modprobe virtio_blk; for i in $(seq 100); do [ -b /dev/vda ] && break; sleep .1; done; mkdir -p /mnt/volume
if [ "$1" = write ]; then
  mkfs.ext4 -q -E lazy_itable_init=0 /dev/vda && mount /dev/vda /mnt/volume && sync && exec /usr/bin/python3 /share/write.py
fi
mount /dev/vda /mnt/volume || exit 1
/usr/bin/python3 /share/check.py "$2" || exit 1
umount /mnt/volume && e2fsck -fn /dev/vda > /share/fsck 2>&1
echo "fsck status $?"
`;

const wanted = ['qemu-system-x86_64', 'mkfs.ext4', 'busybox', 'cpio'];
const missing = wanted.filter((name) => !['/usr/bin', '/usr/sbin', '/sbin'].some((at) => existsSync(`${at}/${name}`)));
if (!existsSync('/lib/modules') || readdirSync('/lib/modules').length === 0) missing.push('linux-image-amd64');
if (missing.length > 0) console.log(`no guest here: ${missing.join(', ')} missing`);

class Guest {
  readonly #child: Child;
  readonly #pidFile: string;

  /** Boots with its disk on a node's export. */
  constructor(cluster: Cluster, share: string, node: NodeName, ...words: string[]) {
    this.#pidFile = `${share}/pid-${words[0]}`;
    const disk = `-blockdev driver=nbd,node-name=volume,server.type=unix,server.path=${cluster.socket(node)}`;
    const more = `${disk} -device virtio-blk-pci,drive=volume -pidfile ${this.#pidFile}`;
    const env = { ...process.env, SHARE: share };
    this.#child = new Child(guest, ['-t', '400', '-x', more, `${share}/script.sh`, ...words], { env });
  }

  get output(): string {
    return this.#child.output;
  }

  /** Number of the last record that the guest has said to be acknowledged. */
  get acknowledged(): number {
    return Number([...this.output.matchAll(/acknowledged (\d+)\r?\n/g)].at(-1)?.[1] ?? 0);
  }

  async reaches(acknowledged: number): Promise<void> {
    await this.#child.ready(async () => {
      await wait(20);
      return this.acknowledged >= acknowledged;
    });
  }

  async kill(): Promise<void> {
    process.kill(Number(await readFile(this.#pidFile, 'utf8')), 'SIGKILL');
  }

  exit(): Promise<number | null> {
    return this.#child.exit();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.ended) return;
    if (await exists(this.#pidFile)) await this.kill();
    await this.exit();
  }
}

test.skipIf(missing.length > 0)('what a guest has fsynced is there after everything was killed at once', async () => {
  await using cluster = await Cluster.running({ sizeBytes: 256 * MIB });
  const share = cluster.folder.file('share');
  await mkdir(share);
  await Promise.all([
    writeFile(`${share}/write.py`, write),
    writeFile(`${share}/check.py`, check),
    writeFile(`${share}/script.sh`, script),
  ]);
  await using writer = new Guest(cluster, share, 'a', 'write');
  await writer.reaches(ACKNOWLEDGED);
  await Promise.all([...NODES.map((node) => cluster.stop(node, 'SIGKILL')), writer.kill()]);
  await writer.exit();
  const { acknowledged } = writer;
  for (const node of NODES) await cluster.start(node);
  await cluster.online();
  for (const node of NODES) {
    await using reader = new Guest(cluster, share, node, 'check', `${acknowledged}`);
    expect(await reader.exit(), reader.output).toBe(0);
    expect(reader.output).toContain('lost records [] lost files []');
    expect(reader.output).toContain('fsck status 0');
  }
  for (const node of ['b', 'a'] as const) expect(await cluster.stop(node, 'SIGTERM')).toBe(0);
  expect(await cluster.firstDifference()).toBeUndefined();
});
