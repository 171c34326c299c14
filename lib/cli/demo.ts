/**
 * `holdfast demo`: a mirrored volume in half a minute, with real server processes (two with a copy and a tie-breaker), a
 * real file, clients on both servers, a real kill -9 of one server and then of the other, and a comparison of every byte
 * at the end. It tells what it does as a short story.
 */
import { stat, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename } from 'node:path';
import type { Command } from 'commander';
import { HoldfastError } from '../base/errors.ts';
import { formatSize } from '../daemon/sizes.ts';
import type { DaemonStatus } from '../daemon/status.ts';
import { connectNbd } from '../nbd/nbd-device.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import type { CliContext } from './context.ts';
import { DemoClient } from './demo-client.ts';
import { DemoCluster, NODES, type NodeName, TIE_BREAKER, VOLUME } from './demo-cluster.ts';
import { compareDevices, compareWithDevice, copyToDevice } from './demo-compare.ts';
import { DemoStory } from './demo-story.ts';
import { Workload } from './demo-workload.ts';
import { EXIT } from './exit-code.ts';
import { Progress } from './progress.ts';

const MIB = 1024 * 1024;
const GRAIN_BYTES = 64 * 1024;
const METADATA_ROOM_BYTES = 16 * MIB;
const SPARE_BYTES = 32 * MIB;
const FREE_MARGIN_BYTES = 64 * MIB;
const IN_FLIGHT = 8;
const HOT_WINDOWS = 48;
/** Clients work for this long beside both servers, and for this long again once one goes on alone. */
const WORKING_MS = 1000;
const WAIT_MS = 60_000;

export interface DemoOptions {
  readonly input?: string;
  readonly json?: boolean;
  readonly keep?: boolean;
}

/** One server was killed and came back. */
export interface DemoTakeover {
  readonly killed: string;
  /** How long a request of the client waited, at the longest, that had worked on the killed server; and of the other. */
  readonly movedClientWaitedMs: number;
  readonly otherClientWaitedMs: number;
  /** Acknowledged from the kill until the killed server was started again. */
  readonly writesWithout: number;
  /** Distinct bytes written while only one server was there. */
  readonly missedBytes: number;
  /** What the resync sent. */
  readonly resyncBytes: number;
  readonly resyncMs: number;
}

export interface DemoResult {
  readonly ok: boolean;
  /** Size of the input. */
  readonly bytes: number;
  /** Bytes of blocks that were not what they had to be, in all comparisons together. */
  readonly mismatches: number;
  readonly volumeBytes: number;
  readonly acknowledgedWrites: number;
  readonly reads: number;
  /** Reads that found older than what was known before, or what nobody had written. */
  readonly wrongReads: number;
  readonly takeovers: readonly DemoTakeover[];
  /** The most that one resync may send: all that was ever written, in whole grains, and a quarter of the volume. */
  readonly resyncLimitBytes: number;
  readonly copyMs: number;
  readonly totalMs: number;
}

export function addDemoCommand(program: Command, context: CliContext, exit: (code: number) => void): void {
  program
    .command('demo')
    .description(
      'show a mirrored volume: copy a file in, kill one server, then the other, bring each back, compare every byte',
    )
    .option('--input <file>', 'what to copy (default: the node binary that runs this)')
    .option('--json', 'print the result as one JSON object in the last line')
    .option('--keep', 'leave devices and configuration in the temporary folder')
    .action(async (options: DemoOptions) => {
      try {
        const result = await new Demo(context, options).run();
        if (options.json) context.stdout.write(`${JSON.stringify(result)}\n`);
        if (!result.ok) exit(EXIT.failed);
      } catch (error) {
        if (options.json) context.stdout.write(`${JSON.stringify({ ok: false, error: errorFacts(error) })}\n`);
        throw error;
      }
    });
}

function errorFacts(error: unknown): { code: string; message: string } {
  const message = error instanceof Error ? error.message : String(error);
  return { code: error instanceof HoldfastError ? error.code : 'ERR_HOLDFAST_INTERNAL', message };
}

class Demo {
  readonly #context: CliContext;
  readonly #options: DemoOptions;
  readonly #inputPath: string;
  readonly #story: DemoStory;

  constructor(context: CliContext, options: DemoOptions) {
    this.#context = context;
    this.#options = options;
    this.#inputPath = options.input ?? process.execPath;
    this.#story = new DemoStory(context);
  }

  async run(): Promise<DemoResult> {
    const inputBytes = await this.#inputSize();
    const volumeBytes = Math.ceil((inputBytes + SPARE_BYTES) / MIB) * MIB;
    const deviceBytes = volumeBytes + METADATA_ROOM_BYTES;
    await assertRoom(2 * deviceBytes);
    const keep = this.#options.keep ?? false;
    const grainBytes = GRAIN_BYTES;
    await using cluster = new DemoCluster(this.#context, { volumeBytes, deviceBytes, grainBytes, keep });
    this.#story.say(`Holdfast demo, in ${cluster.folder}${keep ? ' (kept)' : ''}`);
    await this.#startServers(cluster, volumeBytes);

    const copyMs = await this.#copyIn(cluster, inputBytes);
    const readBack = await this.#readBack(cluster, inputBytes);
    const workload = this.#workload(volumeBytes);
    const takeovers = await this.#work(cluster, workload, volumeBytes);
    const { apart, unexpected } = await this.#stopAndCompare(cluster, workload, volumeBytes);

    const everWrittenBytes = Math.ceil(inputBytes / GRAIN_BYTES) * GRAIN_BYTES + workload.dirtyGrainBytes(GRAIN_BYTES);
    const resyncLimitBytes = Math.min(everWrittenBytes, Math.floor(volumeBytes / 4));
    const mismatches = readBack + apart + unexpected;
    const { acknowledged, reads, wrongReads } = workload;
    const problem = problemOf(mismatches, wrongReads, takeovers, resyncLimitBytes);
    const totalMs = Math.round(this.#story.elapsedMs);
    this.#sayEnd(problem, totalMs);
    return {
      ok: problem === undefined,
      bytes: inputBytes,
      mismatches,
      volumeBytes,
      acknowledgedWrites: acknowledged,
      reads,
      wrongReads,
      takeovers,
      resyncLimitBytes,
      copyMs,
      totalMs,
    };
  }

  #workload(volumeBytes: number): Workload {
    const { clock, random } = this.#context.environment;
    const windows = { windows: HOT_WINDOWS, windowBytes: GRAIN_BYTES };
    return new Workload({ clock, random, volumeBytes, depth: IN_FLIGHT, ...windows });
  }

  async #startServers(cluster: DemoCluster, volumeBytes: number): Promise<void> {
    await cluster.create();
    this.#story.tell(`Two devices (here files), and on both the volume "${VOLUME}" of ${formatSize(volumeBytes)}.`);
    const servers = [...NODES, TIE_BREAKER] as const;
    await Promise.all(servers.map((name) => cluster.start(name)));
    await untilOnline(cluster, 'both copies to be up to date');
    const [a, b, tie] = servers.map((name) => `${name} (process ${cluster.pid(name)})`);
    this.#story.tell(`Three servers run: ${a} and ${b}, each with a copy, and ${tie} with a vote only.`);
  }

  async #copyIn(cluster: DemoCluster, inputBytes: number): Promise<number> {
    const { clock } = this.#context.environment;
    await using device = await this.#connect(cluster, 'a');
    const startMs = clock.nowMs();
    {
      using progress = this.#progress('copy', inputBytes);
      const update = (done: number) => progress.update(done);
      await copyToDevice(this.#inputPath, inputBytes, device, update, this.#context.signal);
    }
    const copyMs = Math.max(1, Math.round(clock.nowMs() - startMs));
    const rate = formatSize((inputBytes * 1000) / copyMs);
    this.#story.tell(
      `Copied ${basename(this.#inputPath)} (${formatSize(inputBytes)}) over NBD onto server a: ${rate}/s.`,
    );
    return copyMs;
  }

  async #readBack(cluster: DemoCluster, inputBytes: number): Promise<number> {
    await using device = await this.#connect(cluster, 'b');
    let mismatches: number;
    {
      using progress = this.#progress('compare', inputBytes);
      const update = (done: number) => progress.update(done);
      mismatches = await compareWithDevice(this.#inputPath, inputBytes, device, update, this.#context.signal);
    }
    // From here on b too knows that a holds the file durably: a server that is lost is sent what it may not have.
    await device.flush();
    this.#story.tell(`Read it back through server b: ${verdict(mismatches)}.`);
    return mismatches;
  }

  /** Clients on both servers, while one is killed and comes back, and then the other. */
  async #work(cluster: DemoCluster, workload: Workload, volumeBytes: number): Promise<DemoTakeover[]> {
    const { signal, environment } = this.#context;
    const connect = (node: NodeName) => this.#connect(cluster, node);
    const options = { clock: environment.clock, signal, connect };
    await using first = new DemoClient({ ...options, servers: ['a', 'b'] });
    await using second = new DemoClient({ ...options, servers: ['b', 'a'] });
    workload.start([first, second]);
    await cluster.pause(WORKING_MS);
    this.#story.tell(
      `Two clients, one on a and one on b, write and read the same part of the volume, ${IN_FLIGHT} requests at a time.`,
    );
    const takeovers = [
      await this.#killAndBringBack(cluster, workload, volumeBytes, { killed: 'a', left: 'b', client: 0 }, first),
      await this.#killAndBringBack(cluster, workload, volumeBytes, { killed: 'b', left: 'a', client: 1 }, second),
    ];
    await workload.stop();
    const { acknowledged, reads, wrongReads } = workload;
    const judged = wrongReads === 0 ? 'none found anything but the newest' : `${wrongReads} WERE WRONG`;
    this.#story.tell(
      `Stopped the clients: ${acknowledged} writes were acknowledged, none failed; of ${reads} reads ${judged}.`,
    );
    return takeovers;
  }

  async #killAndBringBack(
    cluster: DemoCluster,
    workload: Workload,
    volumeBytes: number,
    { killed, left, client }: { readonly killed: NodeName; readonly left: NodeName; readonly client: number },
    moved: DemoClient,
  ): Promise<DemoTakeover> {
    const { clock } = this.#context.environment;
    const before = workload.acknowledged;
    workload.takeLongestMs();
    const pid = cluster.pid(killed);
    await cluster.kill(killed);
    this.#story.tell(`Killed server ${killed} (kill -9 ${pid}) in the middle of writes.`);
    await cluster.until(left, servesAlone, WAIT_MS, `server ${left} to go on alone`);
    workload.mark();
    await cluster.pause(WORKING_MS);
    const writesWithout = workload.acknowledged - before;
    const missedBytes = workload.takeMarkedBytes();
    const waited = workload.takeLongestMs().map(Math.ceil);
    const movedClientWaitedMs = waited[client]!;
    const otherClientWaitedMs = waited[1 - client]!;
    this.#story.tell(
      `Its client went on through ${left} after ${movedClientWaitedMs} ms; the client of ${left} waited ${otherClientWaitedMs} ms at most. ${writesWithout} more writes acknowledged.`,
    );

    const sentBefore = (await cluster.volume(left)).resyncedBytes;
    const startMs = clock.nowMs();
    await cluster.start(killed);
    await this.#watchResync(cluster, left);
    const resyncMs = Math.round(clock.nowMs() - startMs);
    const resyncBytes = (await cluster.volume(left)).resyncedBytes - sentBefore;
    const percent = ((resyncBytes / volumeBytes) * 100).toFixed(1);
    await moved.moveTo(killed);
    await cluster.pause(WORKING_MS / 2);
    this.#story.tell(
      `Started ${killed} again. It had missed ${formatSize(missedBytes)}; ${left} sent it ${formatSize(resyncBytes)}, ${percent} % of the volume; in ${resyncMs} ms both were equal, and its client is back.`,
    );
    return { killed, movedClientWaitedMs, otherClientWaitedMs, writesWithout, missedBytes, resyncBytes, resyncMs };
  }

  async #watchResync(cluster: DemoCluster, source: NodeName): Promise<void> {
    using progress = this.#progress('resync', GRAIN_BYTES);
    const watch = (status: DaemonStatus): boolean => {
      const resync = status.volumes[0]?.resync;
      if (resync) progress.update(resync.doneBytes, resync.totalBytes);
      return isOnline(status);
    };
    await cluster.until(source, watch, WAIT_MS, 'the resync to end');
    await untilOnline(cluster, 'both copies to be up to date');
  }

  async #stopAndCompare(
    cluster: DemoCluster,
    workload: Workload,
    volumeBytes: number,
  ): Promise<{ apart: number; unexpected: number }> {
    for (const name of ['b', 'a', TIE_BREAKER] as const) await cluster.stop(name);
    let result: { apart: number; unexpected: number };
    {
      using progress = this.#progress('compare', volumeBytes);
      result = await compareDevices(
        [cluster.device('a'), cluster.device('b')],
        this.#inputPath,
        volumeBytes,
        (offset, piece) => workload.overlay(offset, piece),
        (done) => progress.update(done),
        this.#context.signal,
      );
    }
    const both = `the two devices with each other: ${verdict(result.apart)}`;
    const expected = `with everything that was acknowledged: ${verdict(result.unexpected)}`;
    this.#story.tell(`Stopped all and compared ${formatSize(volumeBytes)}, ${both}; ${expected}.`);
    return result;
  }

  #connect(cluster: DemoCluster, node: NodeName): Promise<BlockDevice> {
    return connectNbd(cluster.exportAddress(node), {
      environment: this.#context.environment,
      exportName: VOLUME,
    });
  }

  async #inputSize(): Promise<number> {
    const found = await stat(this.#inputPath).catch((cause: NodeJS.ErrnoException) => {
      const message = `${this.#inputPath}: cannot be read (${cause.code}); give --input a file that exists`;
      throw new HoldfastError('ERR_HOLDFAST_USAGE', message, { cause });
    });
    if (!found.isFile() || found.size === 0)
      throw new HoldfastError('ERR_HOLDFAST_USAGE', `${this.#inputPath}: is no file with content; give --input one`);
    return found.size;
  }

  #progress(label: string, totalBytes: number): Progress {
    return new Progress(this.#context.stdout, this.#context.environment.clock, `   ${label}`, totalBytes);
  }

  #sayEnd(problem: string | undefined, totalMs: number): void {
    const seconds = (totalMs / 1000).toFixed(1);
    if (problem !== undefined) this.#story.say(`FAILED: ${problem}.`);
    else
      this.#story.say(
        `Every comparison held, in ${seconds} s: nothing acknowledged was lost, no read was stale, and only what a server could have missed was sent.`,
      );
  }
}

function problemOf(
  mismatches: number,
  wrongReads: number,
  takeovers: readonly DemoTakeover[],
  resyncLimitBytes: number,
): string | undefined {
  if (mismatches > 0) return `${formatSize(mismatches)} are not what they must be`;
  if (wrongReads > 0) return `${wrongReads} reads found what they must not`;
  for (const { killed, missedBytes, resyncBytes } of takeovers) {
    if (resyncBytes < missedBytes) return `${killed} was not sent all that it had missed`;
    if (resyncBytes > resyncLimitBytes)
      return `${killed} was sent ${formatSize(resyncBytes)}, more than it can have missed`;
  }
  return undefined;
}

async function untilOnline(cluster: DemoCluster, what: string): Promise<void> {
  for (const node of NODES) await cluster.until(node, isOnline, WAIT_MS, what);
}

function isOnline(status: DaemonStatus): boolean {
  return (
    status.volumes.length > 0 &&
    status.volumes.every(
      ({ state, resync, copies }) =>
        state === 'Online' && resync === null && copies.every((copy) => copy.disk === 'UpToDate'),
    )
  );
}

function servesAlone(status: DaemonStatus): boolean {
  return status.volumes.every(({ state, copies }) => {
    const peer = copies.find((copy) => !copy.local);
    return state === 'Degraded' && peer?.disk === 'Outdated';
  });
}

function verdict(mismatches: number): string {
  return mismatches === 0 ? 'equal' : `${formatSize(mismatches)} DIFFER`;
}

async function assertRoom(bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(tmpdir());
  const free = bavail * bsize;
  if (free >= bytes + FREE_MARGIN_BYTES) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_NO_SPACE',
    `the demo needs ${formatSize(bytes + FREE_MARGIN_BYTES)} in ${tmpdir()}, where ${formatSize(free)} are free; name a roomier folder by TMPDIR, or a smaller file by --input`,
  );
}
