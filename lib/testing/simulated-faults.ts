/**
 * Faults, one after the other, of the kinds that the plan names: each begins at a moment that is drawn (after a while,
 * in the midst of clients' requests, right after the volume has changed its state) and has an end, which `heal` brings
 * forward.
 *
 * There are no block checksums yet, so that nobody can tell data that has rotted or gone astray: such faults hit the
 * metadata alone, of one machine, and only while both copies are in sync (but one of two superblocks at any time). The
 * volume must survive them or refuse with an error; it never serves stale data. (The injectors work for data as well:
 * test/testing/simulated-disk.test.ts.)
 */
import { assert } from '../base/errors.ts';
import type { FaultOperation, InjectedFault } from '../storage/faulty-device.ts';
import type { Trouble } from './losses.ts';
import type { SimulatedMachine } from './simulated-machine.ts';
import type { SimulatedRandom } from './simulated-random.ts';
import { MEMBER_NAMES, SimulatedServer } from './simulated-server.ts';
import type { FaultKind } from './simulation-plan.ts';
import type { World } from './simulation-world.ts';

const [A, B] = MEMBER_NAMES;
const WAYS = [
  [A, B],
  [B, A],
] as const;
/** Of two clocks together less than the share of a lease that its holder gives back (session.ts). */
const CLOCK_DRIFT_MOST = 0.004;
const STATE_BLOCK_BYTES = 4096;

const isPaired = (world: World): boolean => world.isPaired;
const isSomeoneAlone = ({ servers, losses }: World): boolean => servers.some((server) => losses.isAlone(server));
const STATES: Readonly<Partial<Record<FaultKind, (world: World) => boolean>>> = {
  stun: isPaired,
  'disk-dead': isPaired,
  'metadata-astray': isPaired,
  'metadata-rot': isSomeoneAlone,
};

interface Area {
  readonly offset: number;
  readonly length: number;
}

export class Faults {
  count = 0;
  readonly #world: World;
  readonly #random: SimulatedRandom;
  /** What ends the faults that have begun and not ended. */
  readonly #ends = new Set<() => void>();
  /** The server whose device is in trouble: at most one at a time, or no copy would be left. */
  #sick: SimulatedServer | undefined;
  #isHealing = false;

  constructor(world: World) {
    this.#world = world;
    this.#random = world.random('faults');
  }

  /** The safety phase. */
  async run(): Promise<void> {
    const { faults, faultCount, link } = this.#world.plan;
    this.#world.cluster.network.setAllLinks(link);
    const rates = [link.dropRate, link.duplicateRate, link.reorderRate, link.resetRate, link.stallRate];
    if (rates.some((rate = 0) => rate > 0)) this.#world.losses.begin('link');
    for (let index = 0; index < faultCount; index++) {
      const kind = this.#anyOf(faults);
      await this.#moment();
      await this.#worthwhile(kind);
      this.count += 1;
      const server = this.#anyOf(this.#world.servers);
      this.#world.note(`fault ${kind} ${server.name}`);
      this.#kinds[kind](server);
    }
    await this.#moment();
  }

  /** Every fault ends. What a slow device has been asked for meanwhile still takes its time. */
  async heal(): Promise<void> {
    this.#isHealing = true;
    for (const end of [...this.#ends]) end();
    const { cluster, plan } = this.#world;
    cluster.network.setAllLinks({ dropRate: 0, duplicateRate: 0, reorderRate: 0, resetRate: 0, stallRate: 0 });
    await cluster.scheduler.runFor(plan.leaseMs);
  }

  /** Some faults find most in one state of the volume: mostly they wait for it, for a while. */
  async #worthwhile(kind: FaultKind): Promise<void> {
    const state = STATES[kind];
    if (state === undefined || this.#random.chance(0.2)) return;
    const { scheduler } = this.#world.cluster;
    const untilMs = scheduler.nowMs + 2 * this.#world.plan.leaseMs;
    await scheduler.run(() => state(this.#world) || scheduler.nowMs >= untilMs);
  }

  async #moment(): Promise<void> {
    const { onRequest, onEvent, plan, cluster } = this.#world;
    const draw = this.#random.below(10);
    const mostMs = plan.leaseMs * (draw < 2 ? 0.02 : 1.2);
    const gapMs = this.#random.between(0, mostMs);
    let over = false;
    const now = () => {
      over = true;
    };
    if (draw < 5) this.#world.later(gapMs, now);
    else {
      // Whatever comes first: with nobody there the wait is as long as any.
      this.#world.later(mostMs, now);
      const soonMs = this.#random.between(0, draw < 8 ? 3 * plan.diskFactor : 20);
      const soon = () => this.#world.later(soonMs, now);
      this.#world.later(gapMs / 4, () => void (draw < 8 ? onRequest : onEvent).add(soon));
    }
    await cluster.scheduler.run(() => over);
  }

  readonly #kinds: Readonly<Record<FaultKind, (server: SimulatedServer) => void>> = {
    kill: (server) => this.#stopProcess(server, false),
    'kill-both': (server) => this.#stopBoth(server, false),
    'power-cut': (server) => this.#stopProcess(server, true),
    'power-cut-both': (server) => this.#stopBoth(server, true),
    'clean-stop': (server) => this.#cleanStop(server),
    partition: () => this.#cut(WAYS, this.#leases(0.02, 3)),
    'one-way-partition': (server) => this.#cut([WAYS[server.member]], this.#leases(0.02, 3)),
    clog: (server) => this.#cut([WAYS[server.member]], this.#leases(0.02, 0.5)),
    reset: () => this.#reset(),
    pause: (server) => void this.#pause(server),
    stun: (server) => this.#stun(server),
    'wall-jump': (server) => server.node.environment.clock.jumpWall(this.#random.between(-1e7, 1e7)),
    'clock-rate': (server) => this.#driftClock(server),
    'disk-error': (server) => this.#diskErrors(server),
    'disk-dead': (server) => this.#diskDies(server),
    'disk-slow': (server) => this.#diskSlow(server),
    'disk-hang': (server) => this.#diskHangs(server),
    'crash-at-data': (server) => this.#crashAt(server, ['write', 'writeZeroes'], this.#dataArea),
    'crash-at-metadata': (server) => this.#crashAt(server, ['write'], server.stateArea),
    'crash-at-flush': (server) => this.#crashAt(server, ['flush'], undefined),
    'metadata-rot': (server) =>
      this.#rot(this.#world.servers.find((each) => this.#world.losses.isAlone(each)) ?? server),
    'metadata-astray': (server) => this.#astray(server),
    'voter-kill': () => this.#stopProcess(this.#voter, false),
    'voter-power-cut': () => this.#stopProcess(this.#voter, true),
    'voter-pause': () => void this.#pause(this.#voter),
    'voter-crash-at-write': () => this.#crashAt(this.#voter, ['write'], undefined),
    'voter-rot': () => this.#rot(this.#voter),
    'voter-slow': () => this.#slow(this.#voter, this.#voter.stateArea),
    'voter-partition': () => this.#cutVoter(),
  };

  get #voter(): SimulatedMachine {
    const { tieBreaker } = this.#world;
    assert(tieBreaker !== undefined, 'faults of the tie-breaker are drawn only where there is one');
    return tieBreaker;
  }

  get #dataArea(): Area {
    return { offset: 0, length: this.#world.plan.volumeBytes };
  }

  #leases(least: number, most: number): number {
    return this.#random.between(least, most) * this.#world.plan.leaseMs;
  }

  /** Calls `end` after a while, or when everything is healed. */
  #endAfter(durationMs: number, end: () => void): void {
    const once = () => {
      if (this.#ends.delete(once)) end();
    };
    this.#ends.add(once);
    this.#world.later(durationMs, once);
  }

  #trouble(trouble: Trouble, durationMs: number, end: () => void): void {
    this.#world.losses.begin(trouble);
    this.#endAfter(durationMs, () => {
      this.#world.losses.end(trouble);
      end();
    });
  }

  // --- processes

  #stopProcess(machine: SimulatedMachine, power: boolean): void {
    if (!machine.isAlive) return;
    const { losses } = this.#world;
    const wasPaired = this.#world.isPaired;
    const downMs = this.#leases(0.005, this.#random.chance(0.5) ? 0.2 : 2.5);
    losses.begin(machine);
    const hasLost = power && machine.cutPower();
    if (!power) machine.kill();
    if (hasLost && machine instanceof SimulatedServer) losses.powerCut(machine, wasPaired);
    this.#endAfter(downMs, () => {
      losses.end(machine);
      machine.startIfDead();
    });
  }

  #cleanStop(server: SimulatedServer): void {
    if (server.volume === undefined) return;
    const { losses, plan } = this.#world;
    losses.begin(server);
    let over = false;
    const stopped = server.stop().catch((error: unknown) => this.#stopFailed(server, error));
    void Promise.race([stopped, server.gone]).then(() => {
      over = true;
    });
    const restart = () => {
      if (!over) this.#endAfter(plan.leaseMs / 4, restart);
      else {
        losses.end(server);
        server.startIfDead();
      }
    };
    this.#endAfter(this.#leases(0.01, 1.5), restart);
  }

  /** Nothing can be saved on a device that fails: the process ends all the same. */
  #stopFailed(server: SimulatedServer, error: unknown): void {
    if (this.#sick !== server) this.#world.fail(`a clean stop failed: ${String(error)}`);
    else server.kill();
  }

  /**
   * A machine stands still for longer than a lease, and finds the link cut when it goes on: it has heard of the other as
   * if just now, and not that the other has gone on without it.
   */
  #stun(drawn: SimulatedServer): void {
    const { onLostPeer } = this.#world.plan;
    // One that nobody goes on without misses nothing.
    const server = onLostPeer.kind === 'preferred' ? this.#world.servers[onLostPeer.member]!.other : drawn;
    const stillMs = this.#leases(1.1, 2.2);
    if (!this.#pause(server, stillMs)) return;
    const { network, scheduler } = this.#world.cluster;
    const { process } = server.node;
    const endMs = scheduler.nowMs + stillMs + this.#leases(0.05, 1);
    network.afterNextArrival(server.other.name, server.name, () => {
      // What arrives may be brought by the end of another fault, or be late itself.
      const isStunned = process.alive && process.paused && !this.#isHealing && scheduler.nowMs < endMs;
      if (isStunned) this.#cut(WAYS, endMs - scheduler.nowMs);
    });
  }

  #stopBoth(first: SimulatedServer, power: boolean): void {
    this.#stopProcess(first, power);
    this.#stopProcess(first.other, power);
  }

  #driftClock(server: SimulatedServer): void {
    server.clockRate = 1 + this.#random.between(-CLOCK_DRIFT_MOST, CLOCK_DRIFT_MOST);
    server.node.environment.clock.setRate(server.clockRate);
  }

  /** False if there is nothing that could. */
  #pause(machine: SimulatedMachine, durationMs = this.#leases(0.05, 2.5)): boolean {
    const { node } = machine;
    const { process } = node;
    if (!process.alive || process.paused) return false;
    node.pause();
    this.#trouble(machine, durationMs, () => {
      if (process.alive && node.process === process) node.resume();
    });
    return true;
  }

  // --- the link

  #cut(ways: readonly (readonly [string, string])[], durationMs: number): void {
    this.#world.losses.begin('link');
    this.#block(ways, durationMs, () => this.#world.losses.end('link'));
  }

  #block(ways: readonly (readonly [string, string])[], durationMs: number, end = () => {}): void {
    const { network } = this.#world.cluster;
    for (const [from, to] of ways) network.block(from, to);
    this.#endAfter(durationMs, () => {
      for (const [from, to] of ways) network.unblock(from, to);
      end();
    });
  }

  /** The tie-breaker sees one member, or none; or is seen and sees nothing. */
  #cutVoter(): void {
    const { name } = this.#voter;
    const members = this.#random.chance(0.6) ? [this.#anyOf(MEMBER_NAMES)] : MEMBER_NAMES;
    const draw = this.#random.below(4);
    const ways = members.flatMap((member) => [
      ...(draw === 0 ? [] : [[member, name] as const]),
      ...(draw === 1 ? [] : [[name, member] as const]),
    ]);
    this.#block(ways, this.#leases(0.02, 3));
  }

  #reset(): void {
    this.#trouble('link', this.#world.plan.leaseMs, () => {});
    this.#world.cluster.network.reset(A, B);
  }

  // --- devices

  #area(server: SimulatedServer): Area {
    return this.#random.chance(0.7) ? this.#dataArea : server.stateArea;
  }

  #sicken(server: SimulatedServer, durationMs: number, cure: () => void): void {
    this.#sick = server;
    server.isSick = true;
    this.#trouble(server, durationMs, () => {
      this.#sick = undefined;
      server.isSick = false;
      cure();
      this.#world.later(this.#world.plan.leaseMs / 2, () => server.restartIfFailed());
    });
  }

  #diskErrors(server: SimulatedServer): void {
    if (this.#sick !== undefined) return;
    const operations: readonly FaultOperation[] = ['read', 'write', 'flush', 'writeZeroes'];
    const on = operations.filter(() => this.#random.chance(0.5));
    const fault = server.disk.faults.inject({
      action: { kind: 'error', when: this.#random.chance(0.7) ? 'before' : 'after' },
      ...(on.length > 0 ? { on } : {}),
      ...(on.includes('flush') ? {} : { within: this.#area(server) }),
      skip: this.#random.below(4),
      ...(this.#random.chance(0.5) ? { times: 1 + this.#random.below(3) } : {}),
    });
    this.#sicken(server, this.#leases(0.1, 2), () => fault.remove());
  }

  /**
   * For good: the operator puts in another one, if the other copy is good. (A disk that dies as the source of a resync
   * leaves none; then it is one that could be brought back.)
   */
  #diskDies(server: SimulatedServer): void {
    if (this.#sick !== undefined || !this.#world.isPaired || server.other.isRotten) return;
    server.disk.faults.inject({ action: { kind: 'error' } });
    this.#sicken(server, this.#leases(0.3, 3), () => {
      if (server.isAlive) server.kill();
      if (server.other.isGood) server.replaceDisk();
      else server.disk.faults.clear();
    });
  }

  #diskSlow(server: SimulatedServer): void {
    this.#slow(server, this.#area(server));
  }

  #slow(machine: SimulatedMachine, within: Area): void {
    const delayMs = this.#leases(0.01, 0.7);
    const probability = this.#random.chance(0.5) ? 0.1 : 1;
    const fault = machine.disk.faults.inject({ action: { kind: 'delay', delayMs }, within, probability });
    this.#endAfter(this.#leases(0.1, 2), () => fault.remove());
  }

  #diskHangs(server: SimulatedServer): void {
    const on = this.#random.chance(0.3) ? 'read' : (['read', 'write', 'flush'] as const);
    const fault = server.disk.faults.inject({ action: { kind: 'hang' }, on, skip: this.#random.below(6) });
    this.#trouble(server, this.#leases(0.05, 2.5), () => fault.remove());
  }

  /** The server dies exactly when one of its next such requests begins, or is done and not answered. */
  #crashAt(machine: SimulatedMachine, on: readonly FaultOperation[], within: Area | undefined): void {
    const power = this.#random.chance(0.6);
    const trigger = () => {
      // An operator's command has the disk open.
      if (!machine.isAlive) return 'answer' as const;
      fault.remove();
      this.#stopProcess(machine, power);
      return 'gone' as const;
    };
    const fault: InjectedFault = machine.disk.faults.inject({
      action: { kind: 'trigger', when: this.#random.chance(0.5) ? 'started' : 'done', trigger },
      on,
      ...(within === undefined ? {} : { within }),
      skip: this.#random.below(this.#random.chance(0.5) ? 3 : 12),
    });
    this.#endAfter(3 * this.#world.plan.leaseMs, () => fault.remove());
  }

  // --- metadata

  /** One machine's at a time: else no majority might be left that remembers. */
  #isAnyRotten(): boolean {
    return this.#sick !== undefined || this.#world.machines.some(({ isRotten }) => isRotten);
  }

  /**
   * Bits turn over in one place; what was damaged is often read soon, by the next process. Of superblocks there are two
   * at every moment: one of them may rot at any time, also where the other copy is outdated.
   */
  #rot(machine: SimulatedMachine): void {
    if (this.#isAnyRotten()) return;
    const start = this.#anyOf(this.#world.isPaired ? machine.stateBlocks : machine.superblocks);
    const bits = this.#random.chance(0.6) ? 1 : 1 + this.#random.below(20);
    machine.isRotten = true;
    for (let bit = 0; bit < bits; bit++) {
      const at = this.#random.below(this.#random.chance(0.5) ? 64 : STATE_BLOCK_BYTES / 2);
      machine.disk.rot(start + at, this.#random.below(8));
    }
    if (this.#random.chance(0.8)) this.#stopProcess(machine, this.#random.chance(0.5));
  }

  /** The next write of metadata lands elsewhere in the metadata, if both copies are in sync then. */
  #astray(server: SimulatedServer): void {
    const to = (offset: number): number | undefined => {
      if (!this.#world.isPaired || this.#isAnyRotten()) return undefined;
      const found = this.#anyOf(server.stateBlocks);
      if (found === offset) return undefined;
      server.isRotten = true;
      fault.remove();
      return found;
    };
    const fault = server.disk.faults.inject({
      action: { kind: 'misdirect', to },
      on: 'write',
      within: server.stateArea,
    });
    this.#endAfter(4 * this.#world.plan.leaseMs, () => fault.remove());
  }

  #anyOf<Item>(items: readonly Item[]): Item {
    return items[this.#random.below(items.length)]!;
  }
}
