/** Holdfast's two servers, and a third without a copy, in network namespaces. A kill is the SIGKILL of the process. */
import type { BlockDevice } from '../../../lib/storage/block-device.ts';
import { Cluster, MIB, NODES, type NodeName } from '../cluster.ts';
import { within } from '../faults.ts';
import { NamespaceNetwork } from '../namespaces.ts';
import type { Lab } from './lab.ts';

const SERVERS = ['a', 'b', 'c'] as const;
const STATUS_LIMIT_MS = 2000;

export class HoldfastLab implements Lab {
  readonly apart = false;
  readonly sizeBytes: number;
  readonly #cluster: Cluster;
  readonly #network: NamespaceNetwork;

  private constructor(cluster: Cluster, network: NamespaceNetwork) {
    this.#cluster = cluster;
    this.#network = network;
    this.sizeBytes = cluster.sizeBytes;
  }

  static async start(): Promise<HoldfastLab> {
    const network = await NamespaceNetwork.make(SERVERS);
    const cluster = await Cluster.running({ sizeBytes: 32 * MIB, majority: true, network });
    return new HoldfastLab(cluster, network);
  }

  connect(node: NodeName): Promise<BlockDevice> {
    return this.#cluster.connect(node);
  }

  async kill(node: NodeName): Promise<void> {
    await this.#cluster.stop(node, 'SIGKILL');
  }

  start(node: NodeName): Promise<void> {
    return this.#cluster.start(node);
  }

  pause(node: NodeName): void {
    this.#cluster.server(node).process.kill('SIGSTOP');
  }

  resume(node: NodeName): void {
    this.#cluster.server(node).process.kill('SIGCONT');
  }

  cut(from: NodeName, to: NodeName): Promise<void> {
    return this.#network.cut(from, to);
  }

  heal(): Promise<void> {
    return this.#network.heal();
  }

  async inOrder(limitMs: number): Promise<string | undefined> {
    try {
      await within(limitMs, 'both copies are up to date', this.#cluster.online());
      return undefined;
    } catch {
      return this.#problems();
    }
  }

  async #problems(): Promise<string> {
    const said = NODES.map(async (node) => {
      const { state, problems } = await this.#cluster.status(node);
      return `${node}: ${state} ${problems.map(({ code }) => code).join(' ')}`;
    });
    return (await Promise.all(said)).join('; ');
  }

  async byHand(): Promise<string> {
    throw new Error(`no operator is needed in any of these, and here one is: ${await this.#problems()}`);
  }

  async serving(): Promise<readonly NodeName[]> {
    const serves = await Promise.all(
      NODES.map((node) =>
        within(STATUS_LIMIT_MS, `${node} answers`, this.#cluster.status(node)).then(
          ({ state }) => state === 'Online' || state === 'Degraded',
          () => false,
        ),
      ),
    );
    return NODES.filter((_node, index) => serves[index]);
  }

  async rest(): Promise<void> {
    for (const name of ['b', 'a', 'c'] as const) await this.#cluster.stop(name, 'SIGTERM');
  }

  firstDifference(): Promise<number | undefined> {
    return this.#cluster.firstDifference();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#cluster[Symbol.asyncDispose]();
    await this.#network[Symbol.asyncDispose]();
  }
}
