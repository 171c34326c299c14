/**
 * A few policing machines, what their clients will ask, and the messages under way between them (in order between any
 * two). A test chooses what happens next; each step checks what must always hold.
 */
import { assert } from '../../lib/base/errors.ts';
import { Policing, type PolicingEffect, type PolicingOptions } from '../../lib/mirror/policing.ts';
import type { AccessMode, PolicingMessage } from '../../lib/mirror/policing-wire.ts';

export interface Operation {
  readonly node: number;
  readonly first: number;
  readonly last: number;
  readonly mode: AccessMode;
  readonly priority?: number;
  /** Its client may give up while it waits. */
  readonly mayBeCancelled?: boolean;
}

type State = 'to come' | 'waiting' | 'in flight' | 'finished' | 'cancelled';

export type Step =
  | { readonly kind: 'issue' | 'cancel' | 'finish'; readonly operation: number }
  | { readonly kind: 'new session'; readonly first: number }
  | { readonly kind: 'deliver'; readonly from: number; readonly to: number };

export class World {
  readonly operations: Operation[];
  readonly machines: Policing[];
  readonly #nodes: number;
  readonly #extents: number;
  readonly #states: State[];
  /** By sender * nodes + receiver. */
  readonly #links: PolicingMessage[][];
  /** Reads in flight when a session ended: access may have gone elsewhere under them. */
  readonly #outlived: Set<number>;
  /** How many more sessions may end. */
  newSessions = 0;
  messages = 0;
  onSend: ((from: number, to: number, message: PolicingMessage) => void) | undefined;
  onReceive: ((from: number, to: number, message: PolicingMessage) => void) | undefined;
  onStart: ((operation: number) => void) | undefined;

  constructor(options: Omit<PolicingOptions, 'self'>, operations: readonly Operation[], of?: World) {
    const { nodes, extents } = options;
    this.operations = [...operations];
    this.#nodes = nodes;
    this.#extents = extents;
    this.machines =
      of?.machines.map((machine) => machine.copy()) ??
      Array.from({ length: nodes }, (_, self) => new Policing({ ...options, self }));
    this.#states = of ? [...of.#states] : operations.map(() => 'to come');
    this.#outlived = new Set(of === undefined ? [] : of.#outlived);
    this.newSessions = of?.newSessions ?? 0;
    this.#links = of ? of.#links.map((link) => [...link]) : Array.from({ length: nodes * nodes }, () => []);
  }

  copy(): World {
    const options = { nodes: this.#nodes, extents: this.#extents, first: 0 };
    return new World(options, this.operations, this);
  }

  add(operation: Operation): number {
    this.#states.push('to come');
    return this.operations.push(operation) - 1;
  }

  state(operation: number): State {
    return this.#states[operation]!;
  }

  /** Same for worlds in the same state. */
  describe(): string {
    const machines = this.machines.map((machine) => machine.describe());
    const rest = [this.#states, [...this.#outlived], this.newSessions, JSON.stringify(this.#links)];
    return `${machines.join('\n')}\n${rest.join('\n')}`;
  }

  /** What a token gives to a node, in the machine's own numbers: 0 none, 1 shared, 2 exclusive. */
  token(node: number, other: number, extent: number): number {
    const tokens = this.machines[node]!.describe().split(' | ')[1]!.split(',').map(Number);
    return (tokens[extent]! >>> (2 * other)) & 3;
  }

  /** All that may happen next. The operations of a node are asked in their order. */
  steps(): Step[] {
    const steps: Step[] = [];
    const issuing = new Set<number>();
    this.operations.forEach(({ node, mayBeCancelled }, operation) => {
      const state = this.#states[operation];
      if (state === 'to come' && !issuing.has(node)) {
        issuing.add(node);
        steps.push({ kind: 'issue', operation });
      }
      if (state === 'waiting' && mayBeCancelled) steps.push({ kind: 'cancel', operation });
      if (state === 'in flight') steps.push({ kind: 'finish', operation });
    });
    if (this.newSessions > 0) this.machines.forEach((_, first) => void steps.push({ kind: 'new session', first }));
    this.#links.forEach((link, index) => {
      if (link.length === 0) return;
      steps.push({ kind: 'deliver', from: Math.floor(index / this.#nodes), to: index % this.#nodes });
    });
    return steps;
  }

  take(step: Step): void {
    if (step.kind === 'deliver') {
      const message = this.#links[step.from * this.#nodes + step.to]!.shift()!;
      this.onReceive?.(step.from, step.to, message);
      this.#perform(step.to, this.machines[step.to]!.receive(step.from, message));
    } else if (step.kind === 'issue') {
      this.#issue(step.operation);
    } else if (step.kind === 'new session') {
      this.#beginSession(step.first);
    } else if (step.kind === 'cancel') {
      this.#states[step.operation] = 'cancelled';
      const { node } = this.operations[step.operation]!;
      this.#perform(node, this.machines[node]!.cancel(step.operation));
    } else {
      const { node, first, last, mode } = this.operations[step.operation]!;
      this.#states[step.operation] = 'finished';
      this.#perform(node, this.machines[node]!.finish(first, last, mode));
    }
    this.#checkTokens();
  }

  /** Nothing more can happen: everybody must have got what he asked for. */
  checkEnd(): void {
    for (const [operation, state] of this.#states.entries())
      assert(state === 'finished' || state === 'cancelled', `operation ${operation} starts; it is ${state}`);
    for (const machine of this.machines) assert(machine.waiting === 0, 'no request is left over');
  }

  /** What was under way between the nodes is lost. What waits is asked for again, what is in flight goes on. */
  #beginSession(first: number): void {
    this.newSessions -= 1;
    for (const link of this.#links) link.length = 0;
    for (const [operation, state] of this.#states.entries()) {
      if (state === 'waiting') this.#states[operation] = 'to come';
      if (state === 'in flight' && this.operations[operation]!.mode === 'shared') this.#outlived.add(operation);
    }
    const claims = this.machines.map((machine, node) => ({ node, extents: machine.inUse() }));
    for (const machine of this.machines) {
      machine.forgetWaiting();
      machine.restart(first, claims);
    }
  }

  #issue(operation: number): void {
    const { node, first, last, mode, priority = 0 } = this.operations[operation]!;
    const machine = this.machines[node]!;
    if (machine.tryStart(first, last, mode)) {
      this.#start(operation);
    } else {
      this.#states[operation] = 'waiting';
      this.#perform(node, machine.request(operation, first, last, mode, priority));
    }
  }

  #perform(node: number, effects: readonly PolicingEffect[]): void {
    for (const effect of effects) {
      if (effect.kind === 'start') {
        assert(this.#states[effect.id] === 'waiting', 'only what waits is started');
        this.#start(effect.id);
      } else {
        this.messages += 1;
        this.#links[node * this.#nodes + effect.to]!.push(effect.message);
        this.onSend?.(node, effect.to, effect.message);
      }
    }
  }

  #start(operation: number): void {
    const started = this.operations[operation]!;
    for (const [other, state] of this.#states.entries()) {
      if (state !== 'in flight' || this.#outlived.has(other)) continue;
      const { node, first, last, mode } = this.operations[other]!;
      if (node === started.node || first > started.last || last < started.first) continue;
      const bothRead = mode === 'shared' && started.mode === 'shared';
      assert(bothRead, `operation ${operation} excludes operation ${other} of another node, which is in flight`);
    }
    this.#states[operation] = 'in flight';
    this.onStart?.(operation);
  }

  /** One token for each extent and two nodes: at one of them, or shared, when all that is under way has arrived. */
  #checkTokens(): void {
    const tokens = this.machines.map((machine) => machine.describe().split(' | ')[1]!.split(',').map(Number));
    for (let extent = 0; extent < this.#extents; extent += 1) {
      for (let low = 0; low < this.#nodes; low += 1) {
        for (let high = low + 1; high < this.#nodes; high += 1) {
          const token = (node: number, other: number) => (tokens[node]![extent]! >>> (2 * other)) & 3;
          const under = (from: number, to: number) => this.#grantsUnderWay(from, to, extent);
          const toHigh = under(low, high);
          const toLow = under(high, low);
          const atLow = toLow.at(-1) ?? token(low, high);
          const atHigh = toHigh.at(-1) ?? token(high, low);
          const whole = atLow + atHigh === 2 && (toHigh.length === 0 || toLow.length === 0);
          assert(whole, `the token of extent ${extent} between ${low} and ${high} is there once: ${atLow}, ${atHigh}`);
        }
      }
    }
  }

  #grantsUnderWay(from: number, to: number, extent: number): number[] {
    return this.#links[from * this.#nodes + to]!.filter(
      (message) => message.kind === 'grant' && message.extent === extent,
    ).map(({ mode }) => (mode === 'exclusive' ? 2 : 1));
  }
}
