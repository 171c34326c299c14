/**
 * Two servers and a third without a copy, each in a network namespace of its own, under faults of processes and links
 * drawn from a seed, while clients of both servers read and write the same blocks. What the clients saw is judged: it
 * must have been possible on one device. In the end both copies are the same, byte for byte.
 *
 * HOLDFAST_PARTITIONS_SECONDS: for how long there are faults, default 60. HOLDFAST_PARTITIONS_SEED: the seed, else one
 * is drawn; it gives the same faults at about the same times, not the same run. Needs root, and the Debian packages
 * iproute2 and nftables; a build in dist.
 */
import { writeSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { systemRandom } from '../../lib/base/random.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { Cluster, MIB, NODES, type ServerName } from './cluster.ts';
import { describeFault, drawFault, drawSevereFaults, type Fault, FaultDriver, within } from './faults.ts';
import { lacksNamespaces, NamespaceNetwork } from './namespaces.ts';
import { StampedLoad } from './stamped-load.ts';

const seconds = Number(process.env.HOLDFAST_PARTITIONS_SECONDS ?? 60);
const seed = Number(process.env.HOLDFAST_PARTITIONS_SEED ?? systemRandom.below(2 ** 32));
const SERVERS: readonly ServerName[] = ['a', 'b', 'c'];
const LEASE_MS = 1500;
/** After any single fault, somebody's writes go on within this time; after all is mended, everybody's. */
const GOES_ON_WITHIN_MS = 15_000;
const STOPS_WITHIN_MS = 15_000;
const STATUS_LIMIT_MS = 2000;
const ONLINE_WITHIN_MS = 60_000;
/** More than can have been under way when the fault struck. */
const WRITES_OF_PROGRESS = 20;

/** What happened when: faults are printed, the servers' words are kept for the case of a failure. */
class Log {
  readonly #beganMs = Date.now();
  readonly #lines: string[] = [];

  keep(who: string, text: string): void {
    const at = ((Date.now() - this.#beganMs) / 1000).toFixed(3);
    for (const line of text.trimEnd().split('\n')) this.#lines.push(`${at.padStart(9)} s  ${who}  ${line}`);
  }

  say(text: string): void {
    this.keep('---', text);
    // At once and bare: vitest would put its own words around each line.
    writeSync(1, `${this.#lines.at(-1)}\n`);
  }

  async save(): Promise<string> {
    const path = join(tmpdir(), `holdfast-partitions-${seed}-${process.pid}.log`);
    await writeFile(path, `${this.#lines.join('\n')}\n`);
    return path;
  }
}

class Run {
  readonly #random = new SimulatedRandom(seed);
  readonly #log: Log;
  readonly #cluster: Cluster;
  readonly #faults: FaultDriver;
  readonly load: StampedLoad;

  constructor(log: Log, cluster: Cluster, network: NamespaceNetwork) {
    this.#log = log;
    this.#cluster = cluster;
    this.#faults = new FaultDriver(cluster, network);
    this.load = new StampedLoad(cluster, { blocks: 128, depth: 4, restMs: 5 });
  }

  /** From order to fault and back. A single fault out of good order leaves a majority, and so somebody who goes on. */
  async round(): Promise<void> {
    // Often in the middle of a resync or of a meeting, too.
    const orderly = this.#random.below(3) > 0;
    if (orderly) await this.everythingInOrder();
    else await wait(this.#random.below(1500));
    if (this.#random.below(4) === 0) {
      for (const fault of drawSevereFaults(this.#random, SERVERS)) await this.#strike(fault, false);
    } else await this.#strike(drawFault(this.#random, SERVERS), orderly);
    await this.#faults.mend(this.#random);
    this.#log.say('mended');
  }

  async #strike(fault: Fault, single: boolean): Promise<void> {
    this.#log.say(`${describeFault(fault)}, event ${this.load.mark()}`);
    await this.#faults.strike(fault);
    if (single) await this.#someoneGoesOn();
    await wait(this.#random.below(LEASE_MS * 3));
    this.#faults.checkAlive();
  }

  async #someoneGoesOn(): Promise<void> {
    const began = Date.now();
    const progress = NODES.map((node) => this.load.progress(node, WRITES_OF_PROGRESS));
    await within(GOES_ON_WITHIN_MS, "somebody's writes go on", Promise.race(progress));
    this.#log.say(`writes went on within ${Date.now() - began} ms`);
  }

  /** Both copies are up to date, and both servers serve. */
  async everythingInOrder(): Promise<void> {
    await within(ONLINE_WITHIN_MS, 'both copies are up to date', this.#cluster.online());
    const progress = NODES.map((node) => this.load.progress(node, WRITES_OF_PROGRESS));
    await within(GOES_ON_WITHIN_MS, "everybody's writes go on", Promise.all(progress));
    this.#log.say(`in order, event ${this.load.mark()}`);
  }
}

async function expectOneDevice(cluster: Cluster, load: StampedLoad): Promise<void> {
  await within(GOES_ON_WITHIN_MS, 'the load ends', load.stop());
  for (const node of NODES) {
    const { copies } = await cluster.status(node);
    expect(copies.map(({ disk }) => disk)).toEqual(['UpToDate', 'UpToDate']);
  }
  for (const node of NODES) await within(ONLINE_WITHIN_MS, `${node} reads all`, load.readAll(node));
  expect(load.violation()).toBeUndefined();
  for (const name of ['b', 'a', 'c'] as const) {
    expect(await within(STOPS_WITHIN_MS, `${name} stops`, cluster.stop(name, 'SIGTERM'))).toBe(0);
  }
  expect(await cluster.firstDifference()).toBeUndefined();
}

test(
  `two servers and a third are one device to their clients for ${seconds} s of faults`,
  async (context) => {
    const lack = await lacksNamespaces();
    if (lack !== undefined) return context.skip(lack);
    const log = new Log();
    log.say(`HOLDFAST_PARTITIONS_SEED=${seed} HOLDFAST_PARTITIONS_SECONDS=${seconds}`);
    await using network = await NamespaceNetwork.make(SERVERS);
    await using cluster = await Cluster.running({
      sizeBytes: 64 * MIB,
      leaseMs: LEASE_MS,
      majority: true,
      network,
      onOutput: (server, text) => log.keep(` ${server} `, text),
    });
    const run = new Run(log, cluster, network);
    try {
      const endMs = Date.now() + seconds * 1000;
      while (Date.now() < endMs) await run.round();
      await run.everythingInOrder();
      await expectOneDevice(cluster, run.load);
      const { acknowledged, reads, lost } = run.load;
      log.say(`writes acknowledged ${JSON.stringify(acknowledged)}, reads ${reads}, lost ${JSON.stringify(lost)}`);
      for (const node of NODES) expect(acknowledged[node]).toBeGreaterThan(100);
    } catch (error) {
      log.say(`failed: ${(error as Error).message}`);
      for (const node of NODES) {
        const status = await within(STATUS_LIMIT_MS, 'an answer', cluster.status(node)).catch(String);
        log.keep(` ${node} `, `status ${JSON.stringify(status)}`);
      }
      log.say(`all that happened is in ${await log.save()}`);
      throw error;
    }
  },
  seconds * 1000 + 400_000,
);
