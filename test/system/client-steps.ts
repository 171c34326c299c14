/**
 * What real NBD clients do with an export of ours, the same for every kind of export. Needs the Debian packages
 * qemu-utils, fio, libnbd-bin and python3-libnbd.
 */
import { randomBytes } from 'node:crypto';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { run, type TemporaryFolder } from './processes.ts';

const MIB = 2 ** 20;
/** Size of the export. Its content is overwritten. */
export const CLIENT_STEPS_BYTES = 512 * MIB;

export interface ClientTarget {
  readonly uri: string;
  readonly folder: TemporaryFolder;
  /** What nbdinfo must say of the export besides what it says of all of them. */
  readonly exported: { readonly 'export-name': string; readonly [detail: string]: unknown };
}

/** Registers the tests; `server` is called when they run. */
export function clientSteps(server: () => ClientTarget): void {
  /** A file of random bytes. */
  async function randomFile(name: string, sizeBytes: number): Promise<string> {
    await writeFile(server().folder.file(name), randomBytes(sizeBytes));
    return server().folder.file(name);
  }

  const nbdsh = (...commands: string[]): Promise<string> =>
    run('nbdsh', ...commands.flatMap((command) => ['-c', command]));

  test('nbdinfo, which sees everything that is offered', async () => {
    const { exported } = server();
    const { exports } = JSON.parse(await run('nbdinfo', '--json', server().uri));
    expect(exports[0]).toMatchObject({
      ...exported,
      'export-size': CLIENT_STEPS_BYTES,
      contexts: ['base:allocation'],
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_maximum: 32 * MIB,
    });
    expect(await run('nbdinfo', '--list', server().uri)).toContain(`export="${exported['export-name']}"`);
    const map = JSON.parse(await run('nbdinfo', '--map', '--json', server().uri));
    expect(map).toEqual([{ offset: 0, length: CLIENT_STEPS_BYTES, type: 0, description: 'data' }]);
  });

  test.each([[1], [4]])('nbdcopy over %i connections, and the bytes come back', async (connections) => {
    const source = await randomFile('copy', 64 * MIB);
    const words = [`--connections=${connections}`, '--flush'];
    await run('nbdcopy', ...words, source, server().uri);
    await run('nbdcopy', ...words, server().uri, server().folder.file('back'));
    const back = await readFile(server().folder.file('back'));
    expect(back.length).toBe(CLIENT_STEPS_BYTES);
    expect(Buffer.compare(back.subarray(0, 64 * MIB), await readFile(source))).toBe(0);
  });

  test('nbdsh, with requests at odd places, of every kind', async () => {
    const printed = await nbdsh(
      `h.connect_uri("${server().uri}")`,
      'h.pwrite(b"hold" * 1000, 4097, nbd.CMD_FLAG_FUA)',
      'assert h.pread(4000, 4097) == b"hold" * 1000',
      'h.zero(1001, 4100, nbd.CMD_FLAG_NO_HOLE)',
      'assert h.pread(1006, 4097) == b"hol" + b"\\0" * 1001 + b"ho"',
      'h.trim(4096, 8192)',
      'h.cache(4096, 0)',
      'h.flush()',
      'pieces = []',
      'h.pread_structured(8 << 20, 0, lambda *piece: pieces.append(piece[1]), nbd.CMD_FLAG_DF)',
      'assert pieces == [0]',
      'print("all well")',
    );
    expect(printed).toContain('all well');
  });

  test('nbdsh without structured replies, and by NBD_OPT_EXPORT_NAME', async () => {
    const printed = await nbdsh(
      'h.set_request_structured_replies(False)',
      'h.set_handshake_flags(0)',
      `h.connect_uri("${server().uri}")`,
      'assert not h.get_structured_replies_negotiated()',
      'h.pwrite(b"x" * 70000, 1)',
      'assert h.pread(70000, 1) == b"x" * 70000',
      'print("all well")',
    );
    expect(printed).toContain('all well');
  });

  test('a client that breaks the rules: errors, and the connection lives on', async () => {
    const printed = await nbdsh(
      'import errno',
      'h.set_strict_mode(0)',
      `h.connect_uri("${server().uri}")`,
      `def expect(code, call, *words):
        try:
          call(*words)
        except nbd.Error as error:
          assert error.errnum == code, error
        else:
          raise AssertionError("no error")`,
      `expect(errno.EINVAL, h.pread, 2, ${CLIENT_STEPS_BYTES - 1})`,
      `expect(errno.ENOSPC, h.pwrite, b"xx", ${CLIENT_STEPS_BYTES - 1})`,
      `expect(errno.ENOSPC, h.zero, 2, ${CLIENT_STEPS_BYTES - 1})`,
      `expect(errno.EINVAL, h.trim, 2, ${CLIENT_STEPS_BYTES - 1})`,
      `expect(errno.EINVAL, h.pread, 512, ${2 ** 62})`,
      'h.pread(0, 0)',
      'h.pread(512, 0)',
      'print("all well")',
    );
    expect(printed).toContain('all well');
  });

  test('qemu-img: convert, compare and map', async () => {
    const source = await randomFile('image', 32 * MIB);
    await truncate(source, CLIENT_STEPS_BYTES);
    await run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', '-n', '-t', 'none', source, server().uri);
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', source, server().uri)).toContain('identical');
    const map = JSON.parse(await run('qemu-img', 'map', '--output=json', '-f', 'raw', server().uri));
    expect(map.at(-1).start + map.at(-1).length).toBe(CLIENT_STEPS_BYTES);
  });

  test('qemu-io: patterns, zeroes, force unit access, discard, asynchronous writes', async () => {
    const steps = [
      'write -P 0xab 1M 1M',
      'read -P 0xab 1M 1M',
      'write -z 1M 64k',
      'read -P 0 1M 64k',
      'write -z -u 2000k 3k',
      'read -P 0 2000k 3k',
      'write -f -P 0x11 2M 4k',
      'read -P 0x11 2M 4k',
      'discard 4M 1M',
      'flush',
      'aio_write -P 7 8M 1M',
      'aio_write -P 8 9M 1M',
      'aio_flush',
      'read -P 7 8M 1M',
      'read -P 8 9M 1M',
    ];
    const printed = await run('qemu-io', '-f', 'raw', server().uri, ...steps.flatMap((step) => ['-c', step]));
    // qemu-io tells a wrong pattern in words and ends well.
    expect(printed).not.toMatch(/fail|error/i);
    expect(printed.match(/^(?:wrote|read|discard)/gm)).toHaveLength(13);
  });

  test('fio, which verifies what it wrote', async () => {
    const printed = await run(
      'fio',
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${server().uri}`,
      '--rw=randrw',
      '--bs=512-64k',
      '--iodepth=32',
      '--size=64M',
      '--io_size=128M',
      '--verify=crc32c',
      '--verify_fatal=1',
      '--fsync=64',
      '--trim_percentage=5',
      '--verify_state_save=0',
    );
    expect(printed).toMatch(/err= 0/);
  });
}
