import { expect, it } from 'vitest';
import { systemClock } from '../../lib/base/clock.ts';
import { HoldfastError, type HoldfastErrorCode } from '../../lib/base/errors.ts';
import { DemoClient } from '../../lib/cli/demo-client.ts';
import type { NodeName } from '../../lib/cli/demo-cluster.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';

const KIB = 1024;

/** Two servers of one volume; each can be away, and fails what it is asked with a code. */
class Servers {
  readonly memory = new MemoryDevice({ sizeBytes: 64 * KIB });
  readonly failing = new Map<NodeName, HoldfastErrorCode>();
  readonly away = new Set<NodeName>();
  readonly log: string[] = [];
  readonly abort = new AbortController();

  client(): DemoClient {
    return new DemoClient({
      clock: systemClock,
      signal: this.abort.signal,
      servers: ['a', 'b'],
      connect: async (server) => {
        this.log.push(`dial ${server}`);
        if (this.away.has(server)) throw new HoldfastError('ERR_HOLDFAST_CONNECT_FAILED', `${server} is away`);
        return new ServedDevice(this, server);
      },
    });
  }
}

class ServedDevice extends MemoryDevice {
  readonly #servers: Servers;
  readonly #server: NodeName;

  constructor(servers: Servers, server: NodeName) {
    super({ sizeBytes: 64 * KIB });
    this.#servers = servers;
    this.#server = server;
  }

  protected override async performWrite(offset: number, buffer: Uint8Array): Promise<void> {
    const code = this.#servers.failing.get(this.#server);
    if (code !== undefined) throw new HoldfastError(code, `${this.#server} fails`);
    this.#servers.log.push(`write at ${this.#server}`);
    await this.#servers.memory.write(offset, buffer);
  }

  protected override async performRead(offset: number, buffer: Uint8Array): Promise<void> {
    this.#servers.log.push(`read at ${this.#server}`);
    await this.#servers.memory.read(offset, buffer);
  }

  protected override async performClose(): Promise<void> {
    this.#servers.log.push(`leave ${this.#server}`);
  }
}

const block = new Uint8Array(4 * KIB).fill(7);

it('what was not answered by a server that is gone is repeated at the other one', async () => {
  const servers = new Servers();
  await using client = servers.client();
  await client.write(0, block);
  servers.failing.set('a', 'ERR_HOLDFAST_NBD_DISCONNECTED');
  await Promise.all([client.write(0, block), client.write(4 * KIB, block)]);
  expect(client.at).toBe('b');
  const held = new Uint8Array(8 * KIB);
  await client.read(0, held);
  expect(held.every((byte) => byte === 7)).toBe(true);
  expect(servers.log.filter((line) => line.startsWith('dial'))).toEqual(['dial a', 'dial b']);
});

it('any other failure is the caller’s', async () => {
  const servers = new Servers();
  servers.failing.set('a', 'ERR_HOLDFAST_IO');
  await using client = servers.client();
  await expect(client.write(0, block)).rejects.toMatchObject({ code: 'ERR_HOLDFAST_IO' });
  expect(client.at).toBe('a');
});

it('with both away it tries in turns until one is there, or until it is told to stop', async () => {
  const servers = new Servers();
  servers.away.add('a').add('b');
  await using client = servers.client();
  const write = client.write(0, block);
  await new Promise((resolve) => setTimeout(resolve, 120));
  servers.away.delete('b');
  await write;
  expect(client.at).toBe('b');
  expect(servers.log.slice(0, 2)).toEqual(['dial a', 'dial b']);

  servers.away.add('b');
  servers.failing.set('b', 'ERR_HOLDFAST_NBD_DISCONNECTED');
  const stopped = expect(client.write(0, block)).rejects.toThrow();
  servers.abort.abort();
  await stopped;
});

it('it goes back to its server once that is there again, and leaves the other one', async () => {
  const servers = new Servers();
  servers.away.add('a');
  await using client = servers.client();
  await client.write(0, block);
  expect(client.at).toBe('b');
  servers.away.delete('a');
  servers.log.length = 0;
  await client.moveTo('a');
  await client.write(0, block);
  expect(servers.log).toEqual(['dial a', 'leave b', 'write at a']);
});
