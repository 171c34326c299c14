/**
 * `holdfast demo`: a mirrored volume in two minutes, with real server processes, a real file, a real kill -9 and a
 * comparison of every byte at the end. It tells what it does as a short story.
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
import { DemoCluster, type NodeName, VOLUME } from './demo-cluster.ts';
import { compareDevices, compareWithDevice, copyToDevice } from './demo-compare.ts';
import { Workload } from './demo-workload.ts';
import { EXIT } from './exit-code.ts';
import { Progress } from './progress.ts';

const MIB = 1024 * 1024;
const GRAIN_BYTES = 64 * 1024;
const METADATA_ROOM_BYTES = 16 * MIB;
const SPARE_BYTES = 32 * MIB;
const FREE_MARGIN_BYTES = 64 * MIB;
const WRITERS = 8;
const HOT_WINDOWS = 48;
/** Writes run for this long beside both servers, and for this long again once one has gone on alone. */
const WRITING_MS = 1000;
const WAIT_MS = 60_000;

export interface DemoOptions {
  readonly input?: string;
  readonly json?: boolean;
  readonly keep?: boolean;
}

export interface DemoResult {
  readonly ok: boolean;
  /** Size of the input. */
  readonly bytes: number;
  /** Bytes of blocks that were not what they had to be, in all comparisons together. */
  readonly mismatches: number;
  readonly volumeBytes: number;
  /** Distinct bytes written between the flush before the kill and the return of the killed server. */
  readonly dirtyBytes: number;
  /** What the resync sent. */
  readonly resyncBytes: number;
  /** The most that it may send: dirtyBytes in whole grains of the bitmap. */
  readonly resyncLimitBytes: number;
  readonly acknowledgedWrites: number;
  readonly longestWriteMs: number;
  readonly copyMs: number;
  readonly resyncMs: number;
  readonly totalMs: number;
}

export function addDemoCommand(program: Command, context: CliContext, exit: (code: number) => void): void {
  program
    .command('demo')
    .description('show a mirrored volume: copy a file in, kill a server, bring it back, compare every byte')
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
  readonly #startMs: number;
  #step = 0;

  constructor(context: CliContext, options: DemoOptions) {
    this.#context = context;
    this.#options = options;
    this.#inputPath = options.input ?? process.execPath;
    this.#startMs = context.environment.clock.nowMs();
  }

  async run(): Promise<DemoResult> {
    const inputBytes = await this.#inputSize();
    const volumeBytes = Math.ceil((inputBytes + SPARE_BYTES) / MIB) * MIB;
    const deviceBytes = volumeBytes + METADATA_ROOM_BYTES;
    await assertRoom(2 * deviceBytes);
    await using cluster = new DemoCluster(this.#context, {
      volumeBytes,
      deviceBytes,
      keep: this.#options.keep ?? false,
    });
    this.#say(`Holdfast demo, in ${cluster.folder}${this.#options.keep ? ' (kept)' : ''}`);
    await this.#startServers(cluster, volumeBytes);

    const copyMs = await this.#copyIn(cluster, inputBytes);
    const readBack = await this.#readBack(cluster, inputBytes);
    const workload = new Workload({
      clock: this.#context.environment.clock,
      random: this.#context.environment.random,
      volumeBytes,
      depth: WRITERS,
      windows: HOT_WINDOWS,
      windowBytes: GRAIN_BYTES,
    });
    await this.#killWhileWriting(cluster, workload);
    const { resyncBytes, resyncMs } = await this.#bringBack(cluster, workload, volumeBytes);
    const { apart, unexpected } = await this.#stopAndCompare(cluster, workload, volumeBytes);

    const resyncLimitBytes = workload.dirtyGrainBytes(GRAIN_BYTES);
    const mismatches = readBack + apart + unexpected;
    const resyncFits = workload.dirtyBytes <= resyncBytes && resyncBytes <= resyncLimitBytes;
    const ok = mismatches === 0 && resyncFits && resyncBytes < volumeBytes / 4;
    const { clock } = this.#context.environment;
    const totalMs = Math.round(clock.nowMs() - this.#startMs);
    this.#sayEnd(ok, mismatches, resyncFits, totalMs);
    return {
      ok,
      bytes: inputBytes,
      mismatches,
      volumeBytes,
      dirtyBytes: workload.dirtyBytes,
      resyncBytes,
      resyncLimitBytes,
      acknowledgedWrites: workload.acknowledged,
      longestWriteMs: Math.round(workload.longestMs),
      copyMs,
      resyncMs,
      totalMs,
    };
  }

  async #startServers(cluster: DemoCluster, volumeBytes: number): Promise<void> {
    await cluster.create();
    this.#tell(`Two devices (here files), and on both the volume "${VOLUME}" of ${formatSize(volumeBytes)}.`);
    await cluster.start('a');
    await cluster.start('b');
    await cluster.until('a', isOnline, WAIT_MS, 'both copies to be up to date');
    await cluster.until('b', isOnline, WAIT_MS, 'both copies to be up to date');
    this.#tell(
      `Two servers run: a (process ${cluster.pid('a')}) and b (process ${cluster.pid('b')}). Each holds a copy.`,
    );
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
    this.#tell(`Copied ${basename(this.#inputPath)} (${formatSize(inputBytes)}) over NBD onto server a: ${rate}/s.`);
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
    this.#tell(`Read it back through server b: ${verdict(mismatches)}.`);
    return mismatches;
  }

  async #killWhileWriting(cluster: DemoCluster, workload: Workload): Promise<void> {
    await using device = await this.#connect(cluster, 'a');
    await device.flush();
    workload.start(device);
    await cluster.pause(WRITING_MS);
    const before = workload.acknowledged;
    const pid = cluster.pid('b');
    await cluster.kill('b');
    this.#tell(`Killed server b (kill -9 ${pid}) while ${WRITERS} writes at a time were in flight.`);
    await cluster.until('a', (status) => servesAlone(status), WAIT_MS, 'server a to go on alone');
    await cluster.pause(WRITING_MS);
    await workload.stop();
    const after = workload.acknowledged - before;
    const longest = Math.ceil(workload.longestMs);
    this.#tell(
      `Server a went on alone: ${after} more writes acknowledged, none failed; the slowest took ${longest} ms.`,
    );
  }

  async #bringBack(
    cluster: DemoCluster,
    workload: Workload,
    volumeBytes: number,
  ): Promise<{ resyncBytes: number; resyncMs: number }> {
    const { clock } = this.#context.environment;
    const before = (await cluster.volume('a')).resyncedBytes;
    await cluster.start('b');
    const startMs = clock.nowMs();
    {
      using progress = this.#progress('resync', workload.dirtyGrainBytes(GRAIN_BYTES));
      const watch = (status: DaemonStatus): boolean => {
        const resync = status.volumes[0]?.resync;
        if (resync) progress.update(resync.doneBytes, resync.totalBytes);
        return isOnline(status);
      };
      await cluster.until('a', watch, WAIT_MS, 'the resync to end');
    }
    const resyncMs = Math.round(clock.nowMs() - startMs);
    const resyncBytes = (await cluster.volume('a')).resyncedBytes - before;
    const percent = ((resyncBytes / volumeBytes) * 100).toFixed(1);
    this.#tell(
      `Started b again. It had missed ${formatSize(workload.dirtyBytes)}; a sent it ${formatSize(resyncBytes)}, ${percent} % of the volume, in ${resyncMs} ms.`,
    );
    return { resyncBytes, resyncMs };
  }

  async #stopAndCompare(
    cluster: DemoCluster,
    workload: Workload,
    volumeBytes: number,
  ): Promise<{ apart: number; unexpected: number }> {
    await cluster.stop('b');
    await cluster.stop('a');
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
    this.#tell(`Stopped both and compared ${formatSize(volumeBytes)}, ${both}; ${expected}.`);
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

  #say(text: string): void {
    this.#context.stdout.write(`${text}\n`);
  }

  #tell(text: string): void {
    this.#step++;
    const seconds = ((this.#context.environment.clock.nowMs() - this.#startMs) / 1000).toFixed(1);
    this.#say(`${String(this.#step).padStart(2)}. ${seconds.padStart(5)} s  ${text}`);
  }

  #sayEnd(ok: boolean, mismatches: number, resyncFits: boolean, totalMs: number): void {
    const seconds = (totalMs / 1000).toFixed(1);
    if (ok)
      this.#say(
        `Every comparison held, in ${seconds} s: nothing acknowledged was lost, and only what b had missed was sent.`,
      );
    else if (mismatches > 0) this.#say(`FAILED: ${formatSize(mismatches)} are not what they must be.`);
    else if (!resyncFits) this.#say('FAILED: the resync did not send exactly the grains that were written.');
    else this.#say('FAILED: the resync sent a large part of the volume.');
  }
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
