import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Connection } from '../../lib/base/network.ts';
import { systemNetwork } from '../../lib/base/system-network.ts';
import { ControlClient } from '../../lib/daemon/control-client.ts';
import { type ControlMethod, ControlServer } from '../../lib/daemon/control-server.ts';
import { LineCutter } from '../../lib/daemon/control-wire.ts';

let folder: string;
let path: string;
const closers: (() => Promise<void>)[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-control-'));
  path = join(folder, 'c.sock');
});

afterEach(async () => {
  for (const close of closers.splice(0)) await close();
  await rm(folder, { recursive: true });
});

async function serve(methods: Record<string, ControlMethod>): Promise<ControlServer> {
  const server = new ControlServer(new Map(Object.entries(methods)));
  await server.listen(systemNetwork, path);
  closers.push(() => server.close());
  return server;
}

async function connect(onEvent?: (event: object) => void): Promise<ControlClient> {
  const client = await ControlClient.connect(systemNetwork, path, onEvent ? { onEvent } : {});
  closers.unshift(() => client.close());
  return client;
}

/** Says something raw and gives all that comes back until the server closes. */
async function raw(bytes: string | Uint8Array, lines = 1): Promise<string[]> {
  const connection: Connection = await systemNetwork.connect({ kind: 'unix', path }, {});
  return new Promise((resolve) => {
    let text = '';
    const done = () => resolve(text.split('\n').filter((line) => line !== ''));
    connection.start({
      onData: (chunk) => {
        text += Buffer.from(chunk).toString();
        if (text.split('\n').length > lines) connection.end();
      },
      onDrain: () => {},
      onClose: done,
    });
    connection.write([typeof bytes === 'string' ? Buffer.from(bytes) : bytes]);
  });
}

describe('the transcript of the control protocol, version 1', () => {
  it('is lines of JSON, a reply for each request', async () => {
    await serve({
      status: async (params) => ({ asked: params }),
      fail: async () => {
        throw new TypeError('broken');
      },
    });
    const said = [
      '{"holdfast":1,"id":1,"method":"status","params":{"volume":"data"}}',
      '{"holdfast":1,"id":2,"method":"statsu","params":null}',
      '{"holdfast":2,"id":3,"method":"status"}',
      '{"holdfast":1,"id":4,"method":"fail","params":null}',
      'hello',
      '{"id":5}',
    ];
    const heard = await raw(`${said.join('\n')}\n`, said.length);
    expect(heard.toSorted()).toEqual(
      [
        '{"holdfast":1,"id":1,"result":{"asked":{"volume":"data"}}}',
        '{"holdfast":1,"id":2,"error":{"code":"ERR_HOLDFAST_UNKNOWN_METHOD","message":"there is no method \\"statsu\\"; there are events, status, fail"}}',
        '{"holdfast":1,"id":null,"error":{"code":"ERR_HOLDFAST_VERSION","message":"the other end speaks version 2 of the control protocol, this one 1; use the same release of holdfast for both"}}',
        '{"holdfast":1,"id":4,"error":{"code":"ERR_HOLDFAST_INTERNAL","message":"broken"}}',
        '{"holdfast":1,"id":null,"error":{"code":"ERR_HOLDFAST_BAD_FRAME","message":"the line is not JSON"}}',
        '{"holdfast":1,"id":null,"error":{"code":"ERR_HOLDFAST_BAD_FRAME","message":"the line is not a message of the control protocol"}}',
      ].toSorted(),
    );
  });
});

it('the socket is for its owner alone', async () => {
  await serve({});
  expect((await stat(path)).mode & 0o777).toBe(0o600);
});

it('a call gets its own answer, also when answers come out of order', async () => {
  const releases: (() => void)[] = [];
  await serve({
    slow: () => new Promise((resolve) => releases.push(() => resolve('slow'))),
    quick: async () => 'quick',
  });
  const client = await connect();
  const slow = client.call('slow');
  expect(await client.call('quick')).toBe('quick');
  releases[0]!();
  expect(await slow).toBe('slow');
});

it('events reach those who asked for them', async () => {
  const server = await serve({ status: async () => 'fine' });
  const heard: object[] = [];
  const listening = await connect((event) => heard.push(event));
  const other: object[] = [];
  const deaf = await connect((event) => other.push(event));
  await listening.call('events');
  server.emit({ kind: 'one' });
  server.emit({ kind: 'two' });
  await Promise.all([listening.call('status'), deaf.call('status')]);
  expect([heard, other]).toEqual([[{ kind: 'one' }, { kind: 'two' }], []]);
});

it('no server: says so, and what to do', async () => {
  await expect(ControlClient.connect(systemNetwork, path)).rejects.toMatchObject({
    code: 'ERR_HOLDFAST_NOT_RUNNING',
    message: expect.stringContaining('holdfast serve CONFIG'),
  });
});

it('a second server on the same socket is refused, the first one goes on', async () => {
  await serve({ status: async () => 'first' });
  const second = new ControlServer(new Map());
  await expect(second.listen(systemNetwork, path)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ALREADY_RUNNING' });
  expect(await (await connect()).call('status')).toBe('first');
});

it('calls that wait when the server goes away are refused', async () => {
  const server = await serve({ never: () => new Promise(() => {}) });
  const client = await connect();
  const never = client.call('never');
  const refused = expect(never).rejects.toMatchObject({ code: 'ERR_HOLDFAST_CONNECTION_LOST' });
  await server.close();
  await refused;
  await expect(client.call('never')).rejects.toMatchObject({ code: 'ERR_HOLDFAST_CONNECTION_LOST' });
});

it('a line without end is refused before it is kept', async () => {
  await serve({});
  const [answer] = await raw(Buffer.alloc(1024 * 1024, 0x20));
  expect(answer).toContain('has at most 65536 bytes');
});

it('many requests at once are worked on in turns', async () => {
  let now = 0;
  let most = 0;
  await serve({
    count: async () => {
      most = Math.max(most, ++now);
      await new Promise((resolve) => setImmediate(resolve));
      now--;
    },
  });
  const client = await connect();
  await Promise.all(Array.from({ length: 200 }, () => client.call('count')));
  expect(most).toBeLessThanOrEqual(16);
});

it('lines come out whole however the stream is cut', () => {
  fc.assert(
    fc.property(fc.array(fc.string({ maxLength: 20 })), fc.array(fc.nat({ max: 7 })), (texts, cuts) => {
      const lines = texts.map((text) => text.replaceAll('\n', ' '));
      const stream = Buffer.from(lines.map((line) => `${line}\n`).join(''));
      const cutter = new LineCutter(200);
      const heard: string[] = [];
      let at = 0;
      for (const cut of [...cuts, stream.length]) {
        for (const line of cutter.push(stream.subarray(at, at + cut))) heard.push(Buffer.from(line).toString());
        at = Math.min(stream.length, at + cut);
      }
      expect(heard).toEqual(lines);
    }),
  );
});
