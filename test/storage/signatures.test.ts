/** Every image is written here, byte by byte, from the formats' descriptions: no tool is needed. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { native } from '../../lib/native.ts';
import { probeSignatures } from '../../lib/storage/signatures.ts';

const imageBytes = 8 << 20;
const uuid = '00112233-4455-6677-8899-aabbccddeeff';
const uuidBytes = Buffer.from(uuid.replaceAll('-', ''), 'hex');

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-signatures-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function imageFile(name: string, ...writers: ((image: Buffer) => void)[]): string {
  const image = Buffer.alloc(imageBytes);
  for (const write of writers) write(image);
  const path = join(folder, name);
  writeFileSync(path, image);
  return path;
}

/** The ext2 superblock at 1024: Documentation/filesystems/ext4/super.rst. */
function ext2(image: Buffer, label = 'photos'): void {
  const at = 1024;
  image.writeUInt32LE(2048, at); // inodes
  image.writeUInt32LE(imageBytes / 1024, at + 4); // blocks
  image.writeUInt32LE(1, at + 20); // first data block
  image.writeUInt32LE(8192, at + 32); // blocks a group
  image.writeUInt32LE(2048, at + 40); // inodes a group
  image.writeUInt16LE(0xef53, at + 56); // magic
  image.writeUInt16LE(1, at + 58); // clean
  image.writeUInt32LE(1, at + 76); // dynamic revision
  image.writeUInt32LE(11, at + 84); // first inode
  image.writeUInt16LE(128, at + 88); // inode size
  image.writeUInt32LE(2, at + 96); // incompatible features: directory entries have a type
  uuidBytes.copy(image, at + 104);
  image.write(label, at + 120, 16, 'latin1');
}

/** The swap header: include/linux/swap.h, union swap_header. */
function swap(image: Buffer): void {
  image.writeUInt32LE(1, 1024); // version
  image.writeUInt32LE(imageBytes / 4096 - 1, 1028); // last page
  uuidBytes.copy(image, 1036);
  image.write('SWAPSPACE2', 4086, 'latin1');
}

/** A LUKS 1 header: LUKS On-Disk Format Specification, figure 1. */
function luks(image: Buffer): void {
  image.write('LUKS\xba\xbe', 0, 'latin1');
  image.writeUInt16BE(1, 6);
  image.write('aes', 8, 'latin1');
  image.write(uuid, 168, 'latin1');
}

/** A master boot record with one Linux partition. */
function masterBootRecord(image: Buffer, partitionType = 0x83): void {
  image.writeUInt32LE(0xdecafbad, 440);
  image.writeUInt8(partitionType, 446 + 4);
  image.writeUInt32LE(1, 446 + 8);
  image.writeUInt32LE(imageBytes / 512 - 1, 446 + 12);
  image.writeUInt16LE(0xaa55, 510);
}

function crc32(bytes: Buffer): number {
  let register = 0xffffffff;
  for (const byte of bytes) {
    register ^= byte;
    for (let bit = 0; bit < 8; bit++) register = (register >>> 1) ^ (register & 1 ? 0xedb88320 : 0);
  }
  return ~register >>> 0;
}

/** A GUID partition table without partitions: UEFI 2.10, 5.3. */
function guidPartitionTable(image: Buffer): void {
  const sectors = imageBytes / 512;
  masterBootRecord(image, 0xee);
  const header = image.subarray(512, 512 + 92);
  header.write('EFI PART', 0, 'latin1');
  header.writeUInt32LE(0x10000, 8);
  header.writeUInt32LE(92, 12);
  header.writeBigUInt64LE(1n, 24); // this header
  header.writeBigUInt64LE(BigInt(sectors - 1), 32); // the other one
  header.writeBigUInt64LE(34n, 40); // first and last sector for partitions
  header.writeBigUInt64LE(BigInt(sectors - 34), 48);
  uuidBytes.copy(header, 56);
  header.writeBigUInt64LE(2n, 72); // entries
  header.writeUInt32LE(128, 80);
  header.writeUInt32LE(128, 84);
  header.writeUInt32LE(crc32(image.subarray(1024, 1024 + 128 * 128)), 88);
  header.writeUInt32LE(crc32(header), 16);
}

describe('probing', () => {
  test('finds nothing on zeros', async () => {
    expect(await probeSignatures(imageFile('zeros'))).toEqual([]);
  });

  test('finds nothing in text', async () => {
    const path = imageFile('text', (image) => image.fill('holdfast makes ropes fast. '));
    expect(await probeSignatures(path)).toEqual([]);
  });

  test('finds a file system, with label and identifier', async () => {
    const [found, ...others] = await probeSignatures(imageFile('ext2', ext2));
    expect(found).toMatchObject({ type: 'ext2', usage: 'filesystem', label: 'photos', uuid });
    expect(others).toEqual([]);
  });

  test('finds swap space', async () => {
    expect(await probeSignatures(imageFile('swap', swap))).toMatchObject([{ type: 'swap', usage: 'other' }]);
  });

  test('finds an encrypted device', async () => {
    const found = await probeSignatures(imageFile('luks', luks));
    expect(found).toMatchObject([{ type: 'crypto_LUKS', usage: 'crypto', version: '1', uuid }]);
  });

  test('finds a master boot record', async () => {
    const found = await probeSignatures(imageFile('dos', (image) => masterBootRecord(image)));
    expect(found).toEqual([{ type: 'dos', usage: 'partition table', uuid: 'decafbad' }]);
  });

  test('finds a GUID partition table', async () => {
    const found = await probeSignatures(imageFile('gpt', guidPartitionTable));
    expect(found).toMatchObject([{ type: 'gpt', usage: 'partition table' }]);
  });

  test('signatures that contradict each other are all told', async () => {
    const found = await probeSignatures(imageFile('both', ext2, swap));
    expect(found.map(({ type }) => type).sort()).toEqual(['ext2', 'swap']);
  });

  test('looks only at the range that it is given', async () => {
    const path = imageFile('inside', (image) => ext2(image.subarray(1 << 20)));
    expect(await probeSignatures(path)).toEqual([]);
    expect(await probeSignatures(path, { offset: 1 << 20 })).toMatchObject([{ type: 'ext2' }]);
    expect(await probeSignatures(path, { sizeBytes: 1 << 20 })).toEqual([]);
  });

  test('a label with control characters cannot reach a terminal', async () => {
    const path = imageFile('label', (image) => ext2(image, 'a\x1b[2J\x07b'));
    const [found] = await probeSignatures(path);
    expect(found!.label).toBe('a?[2J?b');
  });

  test('many at once give the same answers', async () => {
    const paths = [imageFile('many-ext2', ext2), imageFile('many-swap', swap), imageFile('many-zeros')];
    const rounds = await Promise.all(
      Array.from({ length: 20 }, () => Promise.all(paths.map((path) => probeSignatures(path)))),
    );
    for (const round of rounds) expect(round.map((found) => found[0]?.type)).toEqual(['ext2', 'swap', undefined]);
  });

  test('a missing file is an error with its name in it', async () => {
    await expect(probeSignatures(join(folder, 'nothing'))).rejects.toMatchObject({
      code: 'ERR_HOLDFAST_IO',
      errno: 'ENOENT',
      message: expect.stringContaining('nothing'),
    });
  });

  test.each([{ offset: -1 }, { offset: 0.5 }, { sizeBytes: 0 }, { sizeBytes: Number.NaN }])(
    'refuses %o',
    async (options) => {
      await expect(probeSignatures(folder, options)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_BAD_ARGUMENT' });
    },
  );

  test('without libblkid nothing is called blank: an error says what to install', () => {
    const broken = join(folder, 'libblkid.so.1');
    writeFileSync(broken, 'not a library');
    const script = `import { probeSignatures } from ${JSON.stringify(new URL('../../dist/storage/signatures.js', import.meta.url).href)};
      await probeSignatures('/dev/null').then(console.log, (error) => console.log(error.code, error.message));`;
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      env: { ...process.env, LD_LIBRARY_PATH: folder },
      encoding: 'utf8',
    });
    expect(stdout).toMatch(/^ERR_HOLDFAST_NOT_SUPPORTED .*install the package libblkid1/);
  });
});

describe('the addon', () => {
  test('says of what is no block device that it is none', async () => {
    const { open } = await import('node:fs/promises');
    await using file = await open(imageFile('file'));
    expect(() => native().identify.deviceGeometry(file.fd)).toThrow(expect.objectContaining({ code: 'ENOTTY' }));
    expect(() => native().identify.deviceGeometry(-1)).toThrow(TypeError);
    expect(() => native().identify.deviceGeometry(1 << 20)).toThrow(expect.objectContaining({ code: 'EBADF' }));
  });

  test('finds where data begin in a file with holes', async () => {
    const { open } = await import('node:fs/promises');
    await using file = await open(join(folder, 'holes'), 'w+');
    await file.truncate(1 << 20);
    const { seekData } = native().identify;
    const hasHoles = seekData(file.fd, 0) === -1;
    await file.write('x', 512 << 10);
    await file.sync();
    if (hasHoles) expect(seekData(file.fd, 0)).toBe(512 << 10);
    else expect(seekData(file.fd, 0)).toBe(0);
    expect(seekData(file.fd, 1 << 20)).toBe(-1);
  });
});
