/**
 * Faults of real servers and of the links between them, drawn from a seed: SIGKILL, SIGSTOP, orderly stops, links that
 * lose or refuse what comes one way or both. A fault strikes, lasts, and is mended.
 */
import { setTimeout as wait } from 'node:timers/promises';
import type { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import type { Cluster, ServerName } from './cluster.ts';
import type { NamespaceNetwork } from './namespaces.ts';

type ProcessFault = 'kill' | 'stop' | 'pause';
type LinkFault = 'cut' | 'refuse';
/** From whom to whom. */
type Way = readonly [from: ServerName, to: ServerName];

export type Fault =
  | { readonly kind: ProcessFault; readonly servers: readonly ServerName[] }
  | { readonly kind: LinkFault; readonly ways: readonly Way[] };

/** How long a server may take to start, or to end after SIGTERM. */
const PROCESS_LIMIT_MS = 30_000;

export function describeFault(fault: Fault): string {
  if (!('ways' in fault)) return `${fault.kind} ${fault.servers.join(' ')}`;
  return `${fault.kind} ${fault.ways.map(([from, to]) => `${from}→${to}`).join(' ')}`;
}

export function drawFault(random: SimulatedRandom, servers: readonly ServerName[]): Fault {
  // One with a copy twice as often.
  const some = servers.flatMap((server) => (server === 'c' ? [server] : [server, server]));
  const one = (): ServerName => some[random.below(some.length)]!;
  const pick = random.below(100);
  if (pick < 25) return { kind: 'kill', servers: [one()] };
  if (pick < 45) return { kind: 'pause', servers: [one()] };
  if (pick < 52) return { kind: 'stop', servers: [one()] };
  return { kind: random.below(5) > 0 ? 'cut' : 'refuse', ways: drawWays(random, servers) };
}

/** The link between two, or all links of one; both ways or one. */
function drawWays(random: SimulatedRandom, servers: readonly ServerName[]): readonly Way[] {
  const [first, ...others] = shuffled(random, servers);
  const far = random.below(3) > 0 ? others.slice(0, 1) : others;
  const out = far.map((other): Way => [first!, other]);
  const back = far.map((other): Way => [other, first!]);
  const direction = random.below(4);
  if (direction === 0) return out;
  return direction === 1 ? back : [...out, ...back];
}

/** Faults that leave no server, or that need not: several at once. */
export function drawSevereFaults(random: SimulatedRandom, servers: readonly ServerName[]): readonly Fault[] {
  const some = shuffled(random, servers).slice(0, 2 + random.below(servers.length - 1));
  const pick = random.below(10);
  if (pick < 3) return [{ kind: 'kill', servers: some }];
  if (pick < 5) return [{ kind: 'pause', servers: some }];
  if (pick < 6) return [{ kind: 'stop', servers: some }];
  return Array.from({ length: 2 + random.below(2) }, () => drawFault(random, servers));
}

function shuffled<Item>(random: SimulatedRandom, items: readonly Item[]): Item[] {
  const rest = [...items];
  return Array.from({ length: rest.length }, () => rest.splice(random.below(rest.length), 1)[0]!);
}

/** Fails if the work is not done in time: nothing here may take for ever. */
export async function within<Result>(limitMs: number, what: string, work: Promise<Result>): Promise<Result> {
  const abort = new AbortController();
  const late = wait(limitMs, undefined, { signal: abort.signal }).then(() => {
    throw new Error(`not within ${limitMs} ms: ${what}`);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    abort.abort();
    late.catch(() => {});
  }
}

/** Does faults to a cluster, and undoes them. */
export class FaultDriver {
  readonly #cluster: Cluster;
  readonly #network: NamespaceNetwork;
  readonly #down = new Set<ServerName>();
  readonly #paused = new Set<ServerName>();

  constructor(cluster: Cluster, network: NamespaceNetwork) {
    this.#cluster = cluster;
    this.#network = network;
  }

  async strike(fault: Fault): Promise<void> {
    if ('ways' in fault) {
      for (const [from, to] of fault.ways) {
        if (fault.kind === 'cut') await this.#network.cut(from, to);
        else await this.#network.refuse(from, to);
      }
      return;
    }
    const up = fault.servers.filter((server) => !this.#down.has(server));
    if (fault.kind === 'pause') {
      for (const server of up) {
        this.#cluster.server(server).process.kill('SIGSTOP');
        this.#paused.add(server);
      }
    } else await Promise.all(up.map((server) => this.#end(server, fault.kind === 'kill')));
  }

  async #end(server: ServerName, kill: boolean): Promise<void> {
    // One that stands still cannot stop in order.
    const signal = kill || this.#paused.has(server) ? 'SIGKILL' : 'SIGTERM';
    const status = await within(PROCESS_LIMIT_MS, `${signal} ends ${server}`, this.#cluster.stop(server, signal));
    if (signal === 'SIGTERM' && status !== 0) throw new Error(`${server} ended with status ${status} after SIGTERM`);
    this.#paused.delete(server);
    this.#down.add(server);
  }

  /** Resumes, starts and heals everything, in an order drawn from the seed. */
  async mend(random: SimulatedRandom): Promise<void> {
    const steps = [() => this.#network.heal(), () => this.#resume(), () => this.#start()];
    for (const step of shuffled(random, steps)) {
      await step();
      if (random.below(2) > 0) await wait(random.below(300));
    }
  }

  #resume(): void {
    for (const server of this.#paused) this.#cluster.server(server).process.kill('SIGCONT');
    this.#paused.clear();
  }

  async #start(): Promise<void> {
    const starts = [...this.#down].map((server) =>
      within(PROCESS_LIMIT_MS, `${server} starts`, this.#cluster.start(server)),
    );
    this.#down.clear();
    await Promise.all(starts);
  }

  /** Fails if a server has ended that nobody stopped. */
  checkAlive(): void {
    for (const server of this.#cluster.names) {
      const { ended, process } = this.#cluster.server(server);
      if (ended && !this.#down.has(server))
        throw new Error(`${server} ended by itself: status ${process.exitCode}, signal ${process.signalCode}`);
    }
  }
}
