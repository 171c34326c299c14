/** Three voters in the simulation, of which the first two propose. Disks outlive their processes; a write takes 1 ms. */
import { NEW_VOTER, type SwapResult, type VoterState, type VoterStore } from '../../lib/peer/arbiter.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import type { Method, PeerNode, RequestHandler } from '../../lib/peer/peer.ts';
import { RegisterArbiter } from '../../lib/peer/register-driver.ts';
import { RegisterService } from '../../lib/peer/register-service.ts';
import { SimulatedCluster, type SimulatedClusterOptions } from '../../lib/testing/simulated-cluster.ts';
import { KEY } from './helpers.ts';

export const VOTERS = ['a', 'b', 'tie'] as const;
export const REGISTER_ID = 'cafe'.repeat(8);
export type VoterName = (typeof VOTERS)[number];

export class RegisterCluster {
  readonly cluster: SimulatedCluster;
  readonly lines: string[] = [];
  readonly disks = new Map<VoterName, VoterState>(VOTERS.map((name) => [name, NEW_VOTER]));
  readonly failing = new Set<VoterName>();
  readonly nodes = new Map<VoterName, PeerNode>();
  readonly arbiters = new Map<VoterName, RegisterArbiter>();

  constructor(options: Partial<SimulatedClusterOptions> = {}) {
    this.cluster = new SimulatedCluster({ seed: 1, names: VOTERS, ...options });
  }

  /** All three, with sessions among them. */
  async startAll(): Promise<this> {
    for (const name of VOTERS) await this.start(name);
    await this.until(this.#connected());
    return this;
  }

  async start(name: VoterName, voters: readonly string[] = VOTERS, votes = true): Promise<void> {
    const machine = this.cluster.node(name);
    if (!machine.process.alive) machine.restart();
    const { environment } = machine;
    const node = createPeerNode({
      environment,
      name,
      clusterId: 'register',
      key: KEY,
      link: 'dedicated',
      listen: { kind: 'tcp', host: name, port: 7000 },
      peers: VOTERS.filter((other) => other !== name).map((other) => ({
        name: other,
        addresses: [{ kind: 'tcp', host: other, port: 7000 }],
      })),
    });
    this.#overhear(name, node);
    const voter = { registerId: REGISTER_ID, voters, self: voters.indexOf(name), store: this.#store(name) };
    const service = RegisterService.of(node);
    if (name === 'tie') {
      if (votes) service.add(voter);
    } else this.arbiters.set(name, new RegisterArbiter({ ...voter, environment, node }));
    this.nodes.set(name, node);
    await this.until(node.start());
  }

  kill(name: VoterName): void {
    this.cluster.node(name).kill();
  }

  /** The answer in words, or the error's code. */
  swap(name: VoterName, expected: string, next: string): Promise<string> {
    return this.until(this.ask(name, expected, next));
  }

  /** The same, while the test lets time pass. */
  async ask(name: VoterName, expected: string, next: string, signal?: AbortSignal): Promise<string> {
    try {
      return inWords(await this.arbiters.get(name)!.compareAndSwap(expected, next, signal), next);
    } catch (error) {
      return (error as { code: string }).code;
    }
  }

  until<Result>(promise: Promise<Result>): Promise<Result> {
    return this.cluster.scheduler.runUntil(promise, 60_000);
  }

  pass(milliseconds: number): Promise<void> {
    return this.cluster.scheduler.runFor(milliseconds);
  }

  async #connected(): Promise<void> {
    for (const [name, node] of this.nodes)
      while (VOTERS.some((other) => other !== name && node.session(other) === undefined))
        await new Promise<void>((resolve) => this.cluster.scheduler.schedule(10_000, resolve));
  }

  #store(name: VoterName): VoterStore {
    const { clock } = this.cluster.node(name).environment;
    return {
      voter: this.disks.get(name)!,
      writeVoter: (state) =>
        new Promise((resolve, reject) => {
          clock.setTimer(1, () => {
            if (this.failing.has(name)) return reject(new Error('the disk of the test fails'));
            this.disks.set(name, state);
            this.lines.push(`${name.padEnd(4)} durable: ${stateInWords(state)}`);
            resolve();
          });
        }),
    };
  }

  /** Writes down each question as it arrives, and its answer as it leaves. */
  #overhear(name: VoterName, node: PeerNode): void {
    const { handle } = node;
    node.handle = <Request, Response>(method: Method<Request, Response>, handler: RequestHandler<Request, Response>) =>
      handle.call(node, method, async (message, session) => {
        const kind = method.name.replace('register-', '');
        this.lines.push(`${session.peer.name} > ${name} ${kind}${details(message.control)}`);
        try {
          const reply = await handler(message as never, session);
          this.lines.push(`${session.peer.name} < ${name} ${kind}${details(reply.control)}`);
          return reply as never;
        } catch (error) {
          this.lines.push(`${session.peer.name} < ${name} ${kind} failed: ${(error as { code: string }).code}`);
          throw error;
        }
      });
  }
}

function inWords(result: SwapResult, next: string): string {
  return result.swapped ? `now ${next}` : `it is ${result.current}`;
}

function stateInWords({ promised, accepted, value }: VoterState): string {
  const held = accepted.counter === 0 ? 'holds nothing' : `holds ${value} of ${ballot(accepted)}`;
  return `promised ${ballot(promised)}, ${held}`;
}

function ballot({ counter, node }: { counter: number; node: number }): string {
  return `${counter}${VOTERS[node]}`;
}

type Control = {
  ballot?: Parameters<typeof ballot>[0];
  value?: string;
  granted?: boolean;
  accepted?: Parameters<typeof ballot>[0];
  promised?: Parameters<typeof ballot>[0];
};

function details(control: unknown): string {
  const { ballot: asked, value, granted, accepted, promised } = control as Control;
  if (asked !== undefined) return ` ${ballot(asked)}${value === undefined ? '' : `: ${value || 'nothing'}`}`;
  if (granted === false) return ` refused, promised ${ballot(promised!)}`;
  if (accepted === undefined) return ' granted';
  return ` granted, ${accepted.counter === 0 ? 'holds nothing' : `holds ${value} of ${ballot(accepted)}`}`;
}
