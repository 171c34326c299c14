/**
 * A power cut of everything: a guest with Debian's kernel has its file system on a mirrored volume, by way of one
 * server. Guest and both servers are killed at once in the middle of its writes. After a restart every record that an
 * fsync has acknowledged is there, through the other server as well. Needs the packages that guest.sh names.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Cluster, MIB, NODES, type NodeName } from './cluster.ts';
import { Guest, missingForGuest } from './guest.ts';

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

const missing = missingForGuest('mkfs.ext4');

/** Boots with its disk on a node's export. */
function boot(cluster: Cluster, share: string, node: NodeName, ...words: string[]): Guest {
  const disk = `-blockdev driver=nbd,node-name=volume,server.type=unix,server.path=${cluster.socket(node)}`;
  return new Guest({ share, words, devices: `${disk} -device virtio-blk-pci,drive=volume` });
}

/** Number of the last record that the guest has said to be acknowledged. */
function acknowledgedBy(guest: Guest): number {
  return Number([...guest.output.matchAll(/acknowledged (\d+)\r?\n/g)].at(-1)?.[1] ?? 0);
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
  await using writer = boot(cluster, share, 'a', 'write');
  await writer.ready(() => acknowledgedBy(writer) >= ACKNOWLEDGED);
  await Promise.all([...NODES.map((node) => cluster.stop(node, 'SIGKILL')), writer.kill()]);
  const acknowledged = acknowledgedBy(writer);
  for (const node of NODES) await cluster.start(node);
  await cluster.online();
  for (const node of NODES) {
    await using reader = boot(cluster, share, node, 'check', `${acknowledged}`);
    expect(await reader.exit(), reader.output).toBe(0);
    expect(reader.output).toContain('lost records [] lost files []');
    expect(reader.output).toContain('fsck status 0');
  }
  for (const node of ['b', 'a'] as const) expect(await cluster.stop(node, 'SIGTERM')).toBe(0);
  expect(await cluster.firstDifference()).toBeUndefined();
});
