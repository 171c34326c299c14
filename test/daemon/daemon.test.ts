import { createHash } from 'node:crypto';
import { chmodSync, existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { ControlClient } from '../../lib/daemon/control-client.ts';
import { connectNbd } from '../../lib/nbd/nbd-device.ts';
import { freePort } from '../free-port.ts';
import { MIB, Office, type OfficeOptions, online, until, VOLUME_BYTES } from './office.ts';

let office: Office;
const offices: Office[] = [];

async function make(options?: OfficeOptions): Promise<Office> {
  office = await Office.make(options);
  offices.push(office);
  return office;
}

afterEach(async () => {
  for (const each of offices.splice(0)) await each.remove();
});

const digest = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

async function pair(options?: OfficeOptions) {
  await make(options);
  await office.create('a');
  await office.create('b');
  const a = await office.start('a');
  const b = await office.start('b');
  await Promise.all([until(a, online), until(b, online)]);
  return { a, b };
}

function client(name: 'a' | 'b') {
  const path = join(office.folder, `${name}.nbd`);
  return connectNbd({ kind: 'unix', path }, { environment: systemEnvironment, exportName: 'data' });
}

/** The code and message that a step is refused with; fails if it is not refused. */
async function refused(step: Promise<unknown>): Promise<{ code: string; message: string }> {
  const error = await step.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toMatchObject({ code: expect.stringMatching(/^ERR_HOLDFAST_/) });
  const { code, message } = error as { code: string; message: string };
  return { code, message };
}

describe('two servers of one configuration', () => {
  it('give both their clients the same volume, and leave equal devices', async () => {
    const { a, b } = await pair();
    const bytes = Buffer.alloc(VOLUME_BYTES);
    for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(at ^ 0x5bd1e995, at);
    {
      await using device = await client('a');
      await device.write(0, bytes.subarray(0, 3 * MIB));
      await device.flush();
    }
    {
      await using device = await client('b');
      await device.write(3 * MIB, bytes.subarray(3 * MIB));
      const held = Buffer.alloc(VOLUME_BYTES);
      await device.read(0, held);
      expect(Buffer.compare(held, bytes)).toBe(0);
      expect(b.status().exports[0]!.connections).toBe(1);
    }
    await b.close();
    await a.close();
    for (const name of ['a', 'b'] as const)
      expect(Buffer.compare(readFileSync(office.device(name)).subarray(0, VOLUME_BYTES), bytes)).toBe(0);
  });

  it('go on alone by preference, say so, and make the one that was away equal again', async () => {
    const { a, b } = await pair({ metadata: 'internal' });
    await b.close();
    const alone = await until(a, (status) => status.volumes[0]!.state === 'Degraded');
    expect(alone.volumes[0]!.problems.map((problem) => problem.code)).toEqual(['HOLDFAST-PEER-AWAY']);
    {
      await using device = await client('a');
      await device.write(MIB, Buffer.alloc(MIB, 7));
    }
    const again = await office.start('b');
    await Promise.all([until(a, online), until(again, online)]);
    expect(a.status().volumes[0]!.resyncedBytes).toBeGreaterThanOrEqual(MIB);
    expect(a.status().volumes[0]!.resyncedBytes).toBeLessThan(VOLUME_BYTES);
    await again.close();
    await a.close();
    const area = (name: 'a' | 'b') => readFileSync(office.device(name)).subarray(0, VOLUME_BYTES);
    expect(Buffer.compare(area('a'), area('b'))).toBe(0);
  });

  it('keep metadata in files of their own where they are told to', async () => {
    await make({ deviceBytes: VOLUME_BYTES });
    for (const [index, name] of (['a', 'b'] as const).entries())
      office.config.volumes[0].members[index].metadata = { file: `${name}.meta` };
    office.save();
    await office.create('a');
    await office.create('b');
    const a = await office.start('a');
    await office.start('b');
    await until(a, online);
  });

  it('a copy that is out of date waits, says what to do, and serves when it is forced by name', async () => {
    const { a, b } = await pair({ onLostPeer: 'suspend' });
    await a.close();
    await b.close();
    const again = await office.start('a');
    const waiting = await until(again, (status) => status.volumes[0]!.problems.length > 0);
    expect(waiting.volumes[0]!.state).toBe('Suspended');
    expect(waiting.volumes[0]!.copies[0]!.disk).toBe('Outdated');
    expect(waiting.volumes[0]!.problems[0]).toMatchObject({
      code: 'HOLDFAST-OUTDATED',
      action: expect.stringContaining('holdfast force data'),
    });
    await using control = await ControlClient.connect(systemEnvironment.network, join(office.folder, 'a.sock'));
    const wrong = control.call('force', { volume: 'dada', acceptInconsistent: false });
    expect((await refused(wrong)).code).toBe('ERR_HOLDFAST_NO_SUCH_VOLUME');
    await control.call('force', { volume: 'data', acceptInconsistent: false });
    await until(again, (status) => status.volumes[0]!.state === 'Degraded');
    await using device = await client('a');
    await device.write(0, Buffer.alloc(4096, 1));
    const twice = control.call('force', { volume: 'data', acceptInconsistent: false });
    expect((await refused(twice)).code).toBe('ERR_HOLDFAST_NOT_NEEDED');
  });
});

describe('bad input is told with code and mend, and nothing is changed', () => {
  it('a device that is too small', async () => {
    await make({ deviceBytes: VOLUME_BYTES });
    const before = digest(office.device('a'));
    const { code, message } = await refused(office.create('a'));
    expect(code).toBe('ERR_HOLDFAST_DEVICE_TOO_SMALL');
    expect(message).toContain('use a larger device or a smaller sizeBytes');
    expect(digest(office.device('a'))).toBe(before);
  });

  it('a device with a file system on it, unless it is named', async () => {
    await make();
    const image = readFileSync(office.device('a'));
    // The ext2 superblock (Documentation/filesystems/ext4/super.rst): counts, magic and label.
    image.writeUInt32LE(1280, 1024 + 4);
    image.writeUInt32LE(16, 1024);
    image.writeUInt32LE(2, 1024 + 24);
    image.writeUInt16LE(0xef53, 1024 + 56);
    image.writeUInt16LE(1, 1024 + 58);
    image.write('photos', 1024 + 120);
    writeFileSync(office.device('a'), image);
    const before = digest(office.device('a'));
    const { code, message } = await refused(office.create('a'));
    expect(code).toBe('ERR_HOLDFAST_DEVICE_NOT_BLANK');
    expect(message).toContain('ext2');
    expect(message).toContain(`--overwrite ${office.device('a')}`);
    expect(digest(office.device('a'))).toBe(before);
    await office.create('a', [office.device('a')]);
    expect(digest(office.device('a'))).not.toBe(before);
  });

  it('a device that is a member already is not created anew by accident', async () => {
    await make();
    await office.create('a');
    const before = digest(office.device('a'));
    expect((await refused(office.create('a'))).message).toContain('Holdfast metadata');
    expect(digest(office.device('a'))).toBe(before);
  });

  it('a volume that was not created', async () => {
    await make();
    const { code, message } = await refused(office.start('a'));
    expect(code).toBe('ERR_HOLDFAST_METADATA_MISSING');
    expect(message).toContain(`holdfast create ${office.path} data --node a`);
    expect(existsSync(join(office.folder, 'a.sock'))).toBe(false);
  });

  it('metadata of another volume, another size, another member', async () => {
    await make();
    await office.create('a');
    const before = digest(office.device('a'));
    office.config.volumes[0].id = '11111111-7d0a-4d8c-9a9b-6f1d3b8f2c11';
    office.save();
    expect((await refused(office.start('a'))).code).toBe('ERR_HOLDFAST_METADATA_MISMATCH');
    office.config.volumes[0].id = '0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c11';
    office.config.volumes[0].sizeBytes = 2 * MIB;
    office.save();
    expect((await refused(office.start('a'))).message).toContain('sizeBytes is 4194304 there, 2097152 in the');
    office.config.volumes[0].sizeBytes = VOLUME_BYTES;
    office.config.volumes[0].members.reverse();
    office.save();
    expect((await refused(office.start('a'))).message).toContain('the member is 0 (a) there, 1 (a)');
    expect(digest(office.device('a'))).toBe(before);
  });

  it('a metadata file that belongs to another device', async () => {
    await make();
    office.config.volumes[0].members[0].metadata = { file: 'a.meta' };
    office.save();
    await office.create('a');
    office.config.volumes[0].members[0].device = 'other.img';
    office.save();
    writeFileSync(join(office.folder, 'other.img'), '');
    truncateSync(join(office.folder, 'other.img'), 5 * MIB);
    expect((await refused(office.start('a'))).message).toContain('the device is');
  });

  it('half-written metadata: one bad copy is mended, two are refused', async () => {
    await make();
    await office.create('a');
    const path = office.device('a');
    const image = readFileSync(path);
    const copies = [image.length - 64 * 1024, image.length - 4096];
    for (const copy of copies) expect(image.toString('latin1', copy, copy + 8)).toBe('HOLDFAST');
    const good = Buffer.from(image);
    image.fill(0xee, copies[1]! + 1000, copies[1]! + 2000);
    writeFileSync(path, image);
    await (await office.start('a')).close();
    const mended = readFileSync(path);
    expect(mended.subarray(copies[1], copies[1]! + 64)).not.toEqual(image.subarray(copies[1], copies[1]! + 64));
    good.fill(0xee, copies[0]! + 1000, copies[0]! + 2000);
    good.fill(0xee, copies[1]! + 1000, copies[1]! + 2000);
    writeFileSync(path, good);
    const before = digest(path);
    const { code } = await refused(office.start('a'));
    expect(code).toBe('ERR_HOLDFAST_METADATA_DAMAGED');
    expect(digest(path)).toBe(before);
  });

  it('a device that a server holds already', async () => {
    await make();
    await office.create('a');
    await office.start('a');
    office.config.nodes[0].control = 'second.sock';
    office.config.nodes[0].addresses = [`127.0.0.1:${await freePort()}`];
    office.save();
    expect((await refused(office.start('a'))).code).toBe('ERR_HOLDFAST_DEVICE_BUSY');
    expect(existsSync(join(office.folder, 'second.sock'))).toBe(false);
  });

  it('a server of the same configuration that runs already', async () => {
    await make();
    await office.create('a');
    await office.start('a');
    expect((await refused(office.start('a'))).code).toBe('ERR_HOLDFAST_ALREADY_RUNNING');
  });

  it('a port in use, for peers and for clients', async () => {
    await make();
    await office.create('a');
    const port = await freePort();
    const address = { kind: 'tcp', host: '127.0.0.1', port } as const;
    const listener = await systemEnvironment.network.listen(address, {}, (connection) => connection.destroy());
    const own = office.config.nodes[0].addresses;
    try {
      office.config.nodes[0].addresses = [`127.0.0.1:${port}`];
      office.save();
      expect((await refused(office.start('a'))).code).toBe('ERR_HOLDFAST_ADDRESS_IN_USE');
      office.config.nodes[0].addresses = own;
      office.config.nodes[0].exports[0].address = `127.0.0.1:${port}`;
      office.save();
      const { code, message } = await refused(office.start('a'));
      expect(code).toBe('ERR_HOLDFAST_ADDRESS_IN_USE');
      expect(message).toContain('the export "data" cannot be served');
    } finally {
      await listener.close();
    }
    // Nothing was left open by the failed starts.
    await office.start('a');
  });

  it('a key that others may read, or that is none', async () => {
    await make();
    await office.create('a');
    writeFileSync(join(office.folder, 'office.key'), '5a'.repeat(31));
    expect((await refused(office.start('a'))).message).toContain('is not a key of 32 bytes');
    chmodSync(join(office.folder, 'office.key'), 0o644);
    expect((await refused(office.start('a'))).message).toContain('others may read the key (mode 0644); run: chmod 600');
  });

  it.each([
    ['key', 'ERR_HOLDFAST_WRONG_KEY'],
    ['cluster', 'ERR_HOLDFAST_WRONG_CLUSTER'],
  ])('a peer with another %s is turned away, in words on a server', async (what, code) => {
    await make();
    await office.create('a');
    await office.create('b');
    const a = await office.start('a');
    if (what === 'key') writeFileSync(join(office.folder, 'office.key'), 'a5'.repeat(32), { mode: 0o600 });
    else office.config.cluster = 'home';
    office.save();
    const b = await office.start('b');
    const problem = (status: ReturnType<typeof a.status>) => status.links[0]!.problem;
    await Promise.any([
      until(a, (status) => problem(status)?.code === code),
      until(b, (status) => problem(status)?.code === code),
    ]);
    for (const server of [a, b]) {
      expect(server.status().links[0]!.state).not.toBe('Connected');
      expect(server.status().volumes[0]!.state).toBe('Suspended');
    }
  });

  it("a stranger's HTTP on the peer port is dropped, and the servers go on", async () => {
    const { a } = await pair();
    const [host, port] = office.config.nodes[0].addresses[0].split(':');
    const answer = await new Promise<string>((resolve) => {
      const socket = connect(Number(port), host, () => socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n'));
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk.toString('latin1');
      });
      socket.on('error', () => {});
      socket.on('close', () => resolve(text));
    });
    expect(answer).not.toContain('HTTP/');
    expect(online(a.status())).toBe(true);
    await using device = await client('a');
    await device.write(0, Buffer.alloc(4096, 1));
  });

  it('an export that is not there', async () => {
    await make();
    await office.create('a');
    await office.start('a');
    const address = { kind: 'unix', path: join(office.folder, 'a.nbd') } as const;
    const step = connectNbd(address, { environment: systemEnvironment, exportName: 'dada' });
    expect((await refused(step)).code).toBe('ERR_HOLDFAST_NBD_REFUSED');
  });
});

it('a raw device is exported, read-only if so said', async () => {
  await make();
  office.config.volumes = [];
  office.config.nodes[0].exports = [
    { device: 'a.img', name: 'raw', address: 'unix:a.nbd' },
    { device: 'b.img', name: 'look', address: 'unix:a.nbd', readOnly: true },
  ];
  office.config.nodes[1].exports = [];
  office.save();
  await office.start('a');
  expect(statSync(join(office.folder, 'a.nbd')).mode & 0o777).toBe(0o600);
  const address = { kind: 'unix', path: join(office.folder, 'a.nbd') } as const;
  await using raw = await connectNbd(address, { environment: systemEnvironment, exportName: 'raw' });
  await raw.write(100, Buffer.from('hello'));
  await raw.flush();
  expect(readFileSync(office.device('a')).toString('latin1', 100, 105)).toBe('hello');
  await using look = await connectNbd(address, { environment: systemEnvironment, exportName: 'look' });
  expect(look.readOnly).toBe(true);
});
