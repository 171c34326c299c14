/**
 * Real NBD clients against our server, and our client against real NBD servers. Needs the Debian packages qemu-utils,
 * fio, nbdkit, libnbd-bin and python3-libnbd, and a build in dist.
 */
import { randomBytes } from 'node:crypto';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { connectNbd } from '../../lib/nbd/nbd-device.ts';
import { type ConformanceTarget, conformance } from '../conformance/block-device.ts';
import { Child, exists, run, TemporaryFolder } from './processes.ts';

const MIB = 2 ** 20;
const SIZE_BYTES = 512 * MIB;
const serverScript = fileURLToPath(new URL('nbd-server.mjs', import.meta.url));

describe('our server serves', () => {
  let folder: TemporaryFolder;
  let server: Child;
  let uri: string;

  beforeAll(async () => {
    folder = await TemporaryFolder.make();
    server = new Child(process.execPath, [serverScript, folder.file('s'), `${SIZE_BYTES}`]);
    await server.ready(() => server.output.includes('ready'));
    uri = `nbd+unix:///?socket=${folder.file('s')}`;
  });

  afterAll(async () => {
    await server.stop();
    const statistics = JSON.parse(server.output.slice(server.output.indexOf('{')));
    await folder[Symbol.asyncDispose]();
    expect(statistics).toMatchObject({ connections: 0, dropped: 0, payloadBytes: 0 });
    expect(statistics.exports.memory).toMatchObject({ connections: 0, requestsInFlight: 0, errors: 0 });
  });

  /** A file of random bytes. */
  async function randomFile(name: string, sizeBytes: number): Promise<string> {
    await writeFile(folder.file(name), randomBytes(sizeBytes));
    return folder.file(name);
  }

  const nbdsh = (...commands: string[]): Promise<string> =>
    run('nbdsh', ...commands.flatMap((command) => ['-c', command]));

  test('nbdinfo, which sees everything that is offered', async () => {
    const { exports } = JSON.parse(await run('nbdinfo', '--json', uri));
    expect(exports[0]).toMatchObject({
      'export-name': 'memory',
      description: 'a device in memory',
      'export-size': SIZE_BYTES,
      contexts: ['base:allocation'],
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_fast_zero: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 1,
      block_size_preferred: 4096,
      block_size_maximum: 32 * MIB,
    });
    expect(await run('nbdinfo', '--list', uri)).toContain('export="memory"');
    const map = JSON.parse(await run('nbdinfo', '--map', '--json', uri));
    expect(map).toEqual([{ offset: 0, length: SIZE_BYTES, type: 0, description: 'data' }]);
  });

  test.each([[1], [4]])('nbdcopy over %i connections, and the bytes come back', async (connections) => {
    const source = await randomFile('copy', 64 * MIB);
    const words = [`--connections=${connections}`, '--flush'];
    await run('nbdcopy', ...words, source, uri);
    await run('nbdcopy', ...words, uri, folder.file('back'));
    const back = await readFile(folder.file('back'));
    expect(back.length).toBe(SIZE_BYTES);
    expect(Buffer.compare(back.subarray(0, 64 * MIB), await readFile(source))).toBe(0);
  });

  test('nbdsh, with requests at odd places, of every kind', async () => {
    const printed = await nbdsh(
      `h.connect_uri("${uri}")`,
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
      `h.connect_uri("${uri}")`,
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
      `h.connect_uri("${uri}")`,
      `def expect(code, call, *words):
        try:
          call(*words)
        except nbd.Error as error:
          assert error.errnum == code, error
        else:
          raise AssertionError("no error")`,
      `expect(errno.EINVAL, h.pread, 2, ${SIZE_BYTES - 1})`,
      `expect(errno.ENOSPC, h.pwrite, b"xx", ${SIZE_BYTES - 1})`,
      `expect(errno.ENOSPC, h.zero, 2, ${SIZE_BYTES - 1})`,
      `expect(errno.EINVAL, h.trim, 2, ${SIZE_BYTES - 1})`,
      `expect(errno.EINVAL, h.pread, 512, ${2 ** 62})`,
      'h.pread(0, 0)',
      'h.pread(512, 0)',
      'print("all well")',
    );
    expect(printed).toContain('all well');
  });

  test('qemu-img: convert, compare and map', async () => {
    const source = await randomFile('image', 32 * MIB);
    await truncate(source, SIZE_BYTES);
    await run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', '-n', '-t', 'none', source, uri);
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', source, uri)).toContain('identical');
    const map = JSON.parse(await run('qemu-img', 'map', '--output=json', '-f', 'raw', uri));
    expect(map.at(-1).start + map.at(-1).length).toBe(SIZE_BYTES);
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
    const printed = await run('qemu-io', '-f', 'raw', uri, ...steps.flatMap((step) => ['-c', step]));
    // qemu-io tells a wrong pattern in words and ends well.
    expect(printed).not.toMatch(/fail|error/i);
    expect(printed.match(/^(?:wrote|read|discard)/gm)).toHaveLength(13);
  });

  test('fio, which verifies what it wrote', async () => {
    const printed = await run(
      'fio',
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${uri}`,
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
});

/** A server that someone else wrote, ready at a socket. */
async function foreign(
  command: string,
  words: (folder: TemporaryFolder) => Promise<string[]>,
): Promise<{ child: Child; socket: string; folder: TemporaryFolder }> {
  const folder = await TemporaryFolder.make();
  const socket = folder.file('s');
  const child = new Child(command, await words(folder));
  await child.ready(() => exists(socket));
  return { child, socket, folder };
}

async function foreignTarget(
  command: string,
  words: (folder: TemporaryFolder) => Promise<string[]>,
): Promise<ConformanceTarget> {
  const { child, socket, folder } = await foreign(command, words);
  return {
    device: await connectNbd({ kind: 'unix', path: socket }, { environment: systemEnvironment }),
    cleanUp: async () => {
      await child.stop();
      await folder[Symbol.asyncDispose]();
    },
  };
}

const nbdkit = (...words: string[]): Promise<ConformanceTarget> =>
  foreignTarget('nbdkit', async (folder) => ['-f', '-U', folder.file('s'), ...words]);

conformance('an export of nbdkit', () => nbdkit('memory', '16M'));

conformance('an export of nbdkit that wants blocks of 4096 bytes, at most 1 MiB', () =>
  nbdkit(
    '--filter=blocksize-policy',
    'memory',
    '16M',
    'blocksize-minimum=4096',
    'blocksize-preferred=4096',
    'blocksize-maximum=1M',
    'blocksize-error-policy=error',
  ),
);

conformance('an export of nbdkit that cannot write zeroes', () =>
  nbdkit('--filter=nozero', 'memory', '16M', 'zeromode=none'),
);

conformance('an export of qemu-nbd', () =>
  foreignTarget('qemu-nbd', async (folder) => {
    await writeFile(folder.file('disk'), '');
    await truncate(folder.file('disk'), 16 * MIB);
    return ['-k', folder.file('s'), '-f', 'raw', '-t', '--discard=unmap', folder.file('disk')];
  }),
);

test('when a foreign server is killed every request of our client fails, and none hangs', async () => {
  const { child, socket, folder } = await foreign('nbdkit', async (temporary) => [
    '-f',
    '-U',
    temporary.file('s'),
    '--filter=delay',
    'memory',
    '16M',
    'delay-read=60',
  ]);
  await using _folder = folder;
  await using device = await connectNbd({ kind: 'unix', path: socket }, { environment: systemEnvironment });
  const requests = Array.from({ length: 100 }, (_, index) => device.read(index * 4096, new Uint8Array(4096)));
  const outcomes = Promise.allSettled(requests);
  await child.stop('SIGKILL');
  for (const outcome of await outcomes)
    expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ERR_HOLDFAST_NBD_DISCONNECTED' } });
});
