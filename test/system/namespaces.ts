/**
 * A network of servers in network namespaces: each has one of its own, joined by veth pairs to a bridge in one more.
 * What arrives at a server is dropped, or refused, by nftables there: links are cut one way or both.
 *
 * Nothing of it has a name outside, and nothing is left behind however this process ends: a namespace and all that is
 * in it lives as long as the process that holds it, and that one ends with us. So do the servers, even stopped ones.
 * Needs root, and the Debian packages iproute2, nftables and util-linux.
 */
import { existsSync } from 'node:fs';
import { readlink } from 'node:fs/promises';
import type { ClusterNetwork, ServerName } from './cluster.ts';
import { Child, run } from './processes.ts';

const PORT = 7700;
const NETWORK = '10.79.0';
/** `silent`: packets from there are lost. `refused`: connections from there are reset. */
const RULES = `
table inet links {
  set silent { type ipv4_addr; }
  set refused { type ipv4_addr; }
  chain input {
    type filter hook input priority 0;
    ip saddr @silent drop
    ip saddr @refused meta l4proto tcp reject with tcp reset
  }
}`;
/** The kernel kills the process when the one that started it ends. */
const ENDS_WITH_US = ['setpriv', '--pdeathsig', 'KILL'];

/** Why there can be no such network here; undefined if there can. */
export async function lacksNamespaces(): Promise<string | undefined> {
  const wanted = ['ip', 'nft', 'nsenter', 'setpriv', 'unshare'];
  const missing = wanted.filter(
    (name) => !['/usr/bin', '/usr/sbin', '/sbin'].some((at) => existsSync(`${at}/${name}`)),
  );
  if (missing.length > 0) return `${missing.join(', ')} missing: install iproute2, nftables and util-linux`;
  if (process.getuid?.() !== 0) return 'the kernel gives network namespaces to root only: run this as root';
  try {
    await run('unshare', '--net', 'nft', RULES);
    await run('unshare', '--net', 'ip', 'link', 'add', 'type', 'veth');
    await run('unshare', '--net', 'ip', 'link', 'add', 'type', 'bridge');
    return undefined;
  } catch (error) {
    return `the kernel gives no network namespaces with bridge and nftables here: ${(error as Error).message.trim()}`;
  }
}

export class NamespaceNetwork implements ClusterNetwork, AsyncDisposable {
  readonly #servers: readonly ServerName[];
  readonly #holders = new Map<string, Child>();

  private constructor(servers: readonly ServerName[]) {
    this.#servers = servers;
  }

  static async make(servers: readonly ServerName[]): Promise<NamespaceNetwork> {
    const network = new NamespaceNetwork(servers);
    try {
      await network.#join();
    } catch (error) {
      await network[Symbol.asyncDispose]();
      throw error;
    }
    return network;
  }

  async #join(): Promise<void> {
    await this.#hold('bridge');
    await this.#run('bridge', 'ip', 'link', 'add', 'bridge', 'type', 'bridge');
    await this.#run('bridge', 'ip', 'link', 'set', 'bridge', 'up');
    for (const server of this.#servers) {
      const { pid } = (await this.#hold(server)).process;
      const peer = ['peer', 'name', 'far', 'netns', `${pid}`];
      await this.#run('bridge', 'ip', 'link', 'add', 'name', `to-${server}`, 'type', 'veth', ...peer);
      await this.#run('bridge', 'ip', 'link', 'set', `to-${server}`, 'master', 'bridge', 'up');
      await this.#run(server, 'ip', 'link', 'set', 'lo', 'up');
      await this.#run(server, 'ip', 'address', 'add', `${this.#host(server)}/24`, 'dev', 'far');
      await this.#run(server, 'ip', 'link', 'set', 'far', 'up');
      await this.#run(server, 'nft', RULES);
    }
  }

  /** Makes a namespace that lives as long as its holder. */
  async #hold(name: string): Promise<Child> {
    const [command, ...words] = [...ENDS_WITH_US, 'unshare', '--net', 'cat'];
    const holder = new Child(command!, words, { stdin: 'open' });
    this.#holders.set(name, holder);
    const own = await readlink('/proc/self/ns/net');
    await holder.ready(async () => (await readlink(`/proc/${holder.process.pid}/ns/net`)) !== own);
    return holder;
  }

  #inside(name: string): string[] {
    return ['nsenter', `--net=/proc/${this.#holders.get(name)!.process.pid}/ns/net`];
  }

  async #run(name: string, ...command: string[]): Promise<void> {
    const [nsenter, ...words] = [...this.#inside(name), ...command];
    await run(nsenter!, ...words);
  }

  #host(server: ServerName): string {
    return `${NETWORK}.${1 + this.#servers.indexOf(server)}`;
  }

  address(server: ServerName): string {
    return `${this.#host(server)}:${PORT}`;
  }

  commandAt(server: ServerName, command: readonly string[]): readonly string[] {
    return [...ENDS_WITH_US, ...this.#inside(server), ...command];
  }

  /** What `from` sends does not reach `to` any more. The other way stays as it is. */
  async cut(from: ServerName, to: ServerName): Promise<void> {
    await this.#run(to, 'nft', `add element inet links silent { ${this.#host(from)} }`);
  }

  /** What `from` sends to `to` is answered by a reset. */
  async refuse(from: ServerName, to: ServerName): Promise<void> {
    await this.#run(to, 'nft', `add element inet links refused { ${this.#host(from)} }`);
  }

  /** Undoes all cuts and refusals. */
  async heal(): Promise<void> {
    for (const server of this.#servers)
      await this.#run(server, 'nft', 'flush set inet links silent; flush set inet links refused');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const holder of this.#holders.values()) if (!holder.ended) await holder.stop('SIGKILL');
  }
}
