import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { type NodeConfig, nodeConfig, parseClusterConfig, type VolumeConfig } from '../../lib/daemon/config.ts';
import { createMember, openVolume } from '../../lib/daemon/volume.ts';
import { createPeerNode } from '../../lib/peer/node.ts';

const MIB = 1024 * 1024;
let folder: string;
let path: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-volume-'));
  path = join(folder, 'a.img');
  await writeFile(path, new Uint8Array(5 * MIB));
});

afterEach(() => rm(folder, { recursive: true }));

function configOf(id: string): { config: NodeConfig; volume: VolumeConfig } {
  const text = JSON.stringify({
    cluster: 'office',
    keyFile: 'office.key',
    nodes: [
      { name: 'a', addresses: ['127.0.0.1:7700'] },
      { name: 'b', addresses: ['127.0.0.1:7701'] },
    ],
    volumes: [
      {
        name: 'data',
        id,
        sizeBytes: '4 MiB',
        members: [
          { node: 'a', device: path },
          { node: 'b', device: `${path}-b` },
        ],
      },
    ],
  });
  const source = join(folder, 'office.jsonc');
  const config = nodeConfig(source, parseClusterConfig(source, text), 'a');
  return { config, volume: config.volumes[0]! };
}

/** Opens the member and closes it at once. The node is not started: no peer is there. */
async function openAndClose({ config, volume }: ReturnType<typeof configOf>): Promise<void> {
  const node = createPeerNode({
    environment: systemEnvironment,
    name: 'a',
    clusterId: 'office',
    key: new Uint8Array(32),
    listen: { kind: 'tcp', host: '127.0.0.1', port: 7700 },
    peers: [{ name: 'b', addresses: [] }],
  });
  const opened = await openVolume(config, volume, node, systemEnvironment, () => {});
  await opened.close();
  await node.close();
}

async function damage(offset: number): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(Uint8Array.of(1, 2, 3), 0, 3, offset);
  await file.close();
}

test("another volume's member is refused as it is, with a damaged copy of its metadata not mended", async () => {
  const theirs = configOf('0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c11');
  await createMember(theirs.config, theirs.volume, { overwrite: [path] });
  await damage(5 * MIB - 65_536 + 100);
  const before = await readFile(path);

  const ours = openAndClose(configOf('f3a1c0de-7d0a-4d8c-9a9b-6f1d3b8f2c11'));
  await expect(ours).rejects.toMatchObject({ code: 'ERR_HOLDFAST_METADATA_MISMATCH' });
  expect(before.equals(await readFile(path))).toBe(true);

  // Its own configuration mends it: now the other copy may be lost.
  await openAndClose(theirs);
  await damage(5 * MIB - 4096 + 100);
  await openAndClose(theirs);
});
