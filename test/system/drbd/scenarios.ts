/**
 * What is done to two servers, the same to every make of them, and the verdict. Clients of both write stamped blocks
 * and read them all the while; where only one server serves, those of the other wait for it.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { NODES, type NodeName } from '../cluster.ts';
import { within } from '../faults.ts';
import { StampedLoad } from '../stamped-load.ts';
import { type Lab, otherNode } from './lab.ts';

/** Longer than any lease, or time-out and promotion, of those compared. */
const LONG_MS = 20_000;
const GOES_ON_WITHIN_MS = 30_000;
const IN_ORDER_WITHIN_MS = 45_000;
const ENDS_WITHIN_MS = 30_000;
const WRITES_OF_PROGRESS = 20;
const WRITES_BEFORE = 150;

export interface Scenario {
  readonly name: string;
  /** a takes the writes, or the first ones. */
  play(play: Play): Promise<void>;
}

export interface Verdict {
  /** Milliseconds from the fault until somebody's writes went on; 'no' if not before it was mended. */
  readonly wentOnMs: number | 'no' | undefined;
  /** What the clients saw was possible on one device; else the rule of the checker that it broke. */
  readonly linearizable: true | string;
  /** Blocks in which an acknowledged write is gone and the one before it is back. */
  readonly blocksLost: number;
  /** Writes that were acknowledged after the fault by the server whose copy an operator had to give up. */
  readonly discarded: number;
  readonly acknowledged: Readonly<Record<NodeName, number>>;
  /** What an operator had to do. */
  readonly byHand: string | undefined;
  readonly identical: boolean;
  readonly remarks: readonly string[];
}

/** One scenario under way. */
export class Play {
  readonly lab: Lab;
  readonly load: StampedLoad;
  readonly remarks: string[] = [];
  wentOnMs: number | 'no' | undefined;
  #atFault: Record<NodeName, number> = { a: 0, b: 0 };

  constructor(lab: Lab) {
    this.lab = lab;
    this.load = new StampedLoad(lab, { blocks: 64, depth: 4, restMs: 10, apart: lab.apart });
  }

  /** Some work, to have something that can be lost. */
  async work(node: NodeName = 'a', writes = WRITES_BEFORE): Promise<void> {
    await within(ENDS_WITHIN_MS, `${writes} writes by ${node}`, this.load.progress(node, writes));
    this.#atFault = { ...this.load.acknowledged };
  }

  /** Whether anybody's writes go on, since now. */
  async goesOn(): Promise<void> {
    const began = Date.now();
    const progress = Promise.race(NODES.map((node) => this.load.progress(node, WRITES_OF_PROGRESS)));
    this.wentOnMs = await within(GOES_ON_WITHIN_MS, 'writes go on', progress).then(
      () => Date.now() - began,
      () => 'no' as const,
    );
  }

  /** Writes that were acknowledged by a server since the last fault. */
  sinceFault(node: NodeName): number {
    return this.load.acknowledged[node] - this.#atFault[node];
  }
}

export const SCENARIOS: readonly Scenario[] = [
  {
    name: 'no fault',
    async play({ load }) {
      await load.progress('a', 500);
    },
  },
  {
    name: 'the server that takes the writes is killed',
    async play(play) {
      await play.work();
      await play.lab.kill('a');
      await play.goesOn();
      await play.lab.start('a');
    },
  },
  {
    name: 'the other server is killed',
    async play(play) {
      await play.work();
      await play.lab.kill('b');
      await play.goesOn();
      await play.lab.start('b');
    },
  },
  {
    name: 'both are killed at once',
    async play(play) {
      await play.work();
      await Promise.all(NODES.map((node) => play.lab.kill(node)));
      await Promise.all(NODES.map((node) => play.lab.start(node)));
      await play.goesOn();
    },
  },
  {
    name: 'the server that takes the writes stands still for 20 s',
    async play(play) {
      await play.work();
      play.lab.pause('a');
      await play.goesOn();
      await wait(LONG_MS - (typeof play.wentOnMs === 'number' ? play.wentOnMs : LONG_MS));
      play.lab.resume('a');
      await wait(3000);
      await play.lab.heal();
    },
  },
  {
    name: 'the other server stands still for 20 s',
    async play(play) {
      await play.work();
      play.lab.pause('b');
      await play.goesOn();
      await wait(LONG_MS - (typeof play.wentOnMs === 'number' ? play.wentOnMs : LONG_MS));
      play.lab.resume('b');
      await wait(3000);
      await play.lab.heal();
    },
  },
  { name: 'the link is cut for 20 s', play: (play) => cut(play, [...NODES]) },
  { name: 'the link loses what a sends, for 20 s', play: (play) => cut(play, ['a']) },
  { name: 'the link loses what b sends, for 20 s', play: (play) => cut(play, ['b']) },
  {
    name: 'b is killed, a goes on and is killed, b comes back alone for 40 s, then a',
    async play(play) {
      await play.work();
      await play.lab.kill('b');
      await play.goesOn();
      await play.work('a', 50);
      await play.lab.kill('a');
      await play.lab.start('b');
      const served = within(40_000, 'b serves', play.load.progress('b', WRITES_OF_PROGRESS));
      play.remarks.push(
        await served.then(
          () => 'the old copy served',
          () => 'the old copy did not serve',
        ),
      );
      await play.lab.start('a');
    },
  },
];

async function cut(play: Play, from: readonly NodeName[]): Promise<void> {
  await play.work();
  await Promise.all(from.map((node) => play.lab.cut(node, otherNode(node))));
  await play.goesOn();
  await wait(Math.max(0, LONG_MS - (typeof play.wentOnMs === 'number' ? play.wentOnMs : LONG_MS)));
  await play.lab.heal();
}

/** Plays a scenario and judges it. The lab has a new volume, in order. */
export async function judge(lab: Lab, scenario: Scenario): Promise<Verdict> {
  const play = new Play(lab);
  await scenario.play(play);
  const { load, remarks } = play;
  let byHand: string | undefined;
  let discarded = 0;
  const lack = await lab.inOrder(IN_ORDER_WITHIN_MS);
  if (lack !== undefined) {
    remarks.push(lack);
    const keep = play.sinceFault('a') >= play.sinceFault('b') ? 'a' : 'b';
    byHand = await lab.byHand(keep);
    discarded = play.sinceFault(otherNode(keep));
    if ((await lab.inOrder(IN_ORDER_WITHIN_MS)) !== undefined) {
      remarks.push('and once more as soon as clients of both write');
      await within(ENDS_WITHIN_MS, 'the load ends', load.stop());
      await lab.byHand(keep);
      const still = await lab.inOrder(IN_ORDER_WITHIN_MS);
      if (still !== undefined) throw new Error(`not in order even by hand: ${still}`);
    }
  }
  await within(ENDS_WITHIN_MS, 'the load ends', load.stop());
  for (const node of await lab.serving()) await within(ENDS_WITHIN_MS, `${node} reads all`, load.readAll(node));
  const violation = load.violation();
  await lab.rest();
  return {
    wentOnMs: play.wentOnMs,
    linearizable: violation === undefined || violation.found.rule,
    blocksLost: load.blocksLost(),
    discarded,
    acknowledged: load.acknowledged,
    byHand,
    identical: (await lab.firstDifference()) === undefined,
    remarks,
  };
}
