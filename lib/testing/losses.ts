/**
 * What the power cuts of a run may have cost, decided by what happened and not by what was planned.
 *
 * A power cut that took completed writes from one device of a pair in sync costs nothing: the other copy has them. Only
 * if something else goes wrong before the pair is in sync again (the other server dies or stands still, the link
 * breaks where a policy lets one go on alone, that disk fails) what was not flushed may be lost. From then until the
 * pair is in sync again the histories are judged by what was flushed; before and after, they must be linearizable.
 *
 * Where each may go on without the other (`continue`) both can have: from the second view of one alone until an
 * operator has given up one of the copies there are two volumes, and nothing holds over both.
 */
import type { SimulatedMachine } from './simulated-machine.ts';
import type { SimulatedServer } from './simulated-server.ts';
import type { World } from './simulation-world.ts';

/** What goes wrong with whom: a machine, or the link between the members. */
export type Trouble = SimulatedMachine | 'link';

export class Losses {
  readonly #world: World;
  /** What is going wrong now, as often as it was begun. */
  readonly #troubles: Trouble[] = [];
  /** The server whose device has lost what the other's has kept. */
  #open: SimulatedServer | undefined;
  #mayHaveLost = false;
  /** Those whose newest view is of them alone. */
  readonly #alone = new Set<SimulatedServer>();
  #hasSplit = false;
  /** Position in the histories before which nothing was lost. */
  #until = Number.POSITIVE_INFINITY;
  /** Position in the histories at which the pair was in sync again after the last loss. */
  #since: number | undefined;

  constructor(world: World) {
    this.#world = world;
  }

  /** Whether anything that was acknowledged may have been lost. */
  get any(): boolean {
    return this.#since !== undefined || this.#mayHaveLost;
  }

  /** From here on nothing has been lost; undefined while that cannot be said. */
  get since(): number | undefined {
    return this.#mayHaveLost ? undefined : this.#since;
  }

  /** Up to here nothing was lost. */
  get until(): number {
    return this.#until;
  }

  /** There have been two volumes: what was flushed in the one may be missing from the other. */
  get hasSplit(): boolean {
    return this.#hasSplit;
  }

  /** What this server has, the other one has not. */
  isAlone(server: SimulatedServer): boolean {
    return this.#alone.has(server);
  }

  /** There are two volumes now. */
  get isSplit(): boolean {
    return this.#alone.size === 2;
  }

  /** A server has made a view of itself alone; or has given up what it had for the other's, or joined it. */
  enteredView(server: SimulatedServer, alone: boolean): void {
    const wasSplit = this.isSplit;
    if (alone) this.#alone.add(server);
    else this.#alone.delete(server);
    if (wasSplit || !this.isSplit) return;
    if (this.#world.plan.onLostPeer.kind !== 'continue') this.#world.fail('both members have gone on alone');
    this.#hasSplit = true;
    this.#lose();
  }

  /** The server's disk has lost something that it had completed. */
  powerCut(server: SimulatedServer, wasPaired: boolean): void {
    const isKept =
      wasPaired && this.#open === undefined && !this.#troubles.some((trouble) => this.#hurts(trouble, server));
    this.#open = server;
    if (!isKept) this.#lose();
  }

  begin(trouble: Trouble): void {
    this.#troubles.push(trouble);
    if (this.#open !== undefined && this.#hurts(trouble, this.#open)) this.#lose();
  }

  end(trouble: Trouble): void {
    const index = this.#troubles.indexOf(trouble);
    if (index >= 0) this.#troubles.splice(index, 1);
  }

  /** Called whenever the pair may have come together again. */
  look(): void {
    if (!this.#world.isPaired) return;
    this.#open = undefined;
    if (!this.#mayHaveLost) return;
    this.#mayHaveLost = false;
    this.#since = this.#world.histories.tick();
  }

  /** Whether it keeps a server that has lost something from what the other one has. */
  #hurts(trouble: Trouble, server: SimulatedServer): boolean {
    if (trouble === 'link') return this.#world.plan.onLostPeer.kind !== 'suspend';
    return trouble === server.other;
  }

  #lose(): void {
    this.#mayHaveLost = true;
    this.#until = Math.min(this.#until, this.#world.histories.tick());
    this.#world.note('what was not flushed may be lost');
    this.#world.histories.lose();
  }
}
