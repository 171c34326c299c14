/**
 * Real NBD clients against our server, and our client against real NBD servers. Needs the Debian packages qemu-utils,
 * fio, nbdkit, libnbd-bin and python3-libnbd, and a build in dist.
 */
import { truncate, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { connectNbd } from '../../lib/nbd/nbd-device.ts';
import { type ConformanceTarget, conformance } from '../conformance/block-device.ts';
import { CLIENT_STEPS_BYTES, clientSteps } from './client-steps.ts';
import { Child, listens, TemporaryFolder } from './processes.ts';

const MIB = 2 ** 20;
const serverScript = fileURLToPath(new URL('nbd-server.mjs', import.meta.url));

describe('our server serves', () => {
  let folder: TemporaryFolder;
  let server: Child;
  let uri: string;

  beforeAll(async () => {
    folder = await TemporaryFolder.make();
    server = new Child(process.execPath, [serverScript, folder.file('s'), `${CLIENT_STEPS_BYTES}`]);
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

  clientSteps(() => ({
    uri,
    folder,
    exported: {
      'export-name': 'memory',
      description: 'a device in memory',
      can_fast_zero: true,
      block_size_minimum: 1,
      block_size_preferred: 4096,
    },
  }));
});

/** A server that someone else wrote, ready at a socket. */
async function foreign(
  command: string,
  words: (folder: TemporaryFolder) => Promise<string[]>,
): Promise<{ child: Child; socket: string; folder: TemporaryFolder }> {
  const folder = await TemporaryFolder.make();
  const socket = folder.file('s');
  const child = new Child(command, await words(folder));
  await child.ready(() => listens(socket));
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
