/** `holdfast bench`: how fast is a device, through the same engine that serves volumes. Safe unless told otherwise. */
import { type Command, Option } from 'commander';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import { formatSize } from '../daemon/sizes.ts';
import type { DirectReport } from '../storage/direct-device.ts';
import { assertMayOverwrite } from '../storage/guard.ts';
import { IoMemory } from '../storage/io-memory.ts';
import { openDevice } from '../storage/open-device.ts';
import { type BenchPattern, DeviceBench, isWrite } from './bench.ts';
import { type FioJob, type FioResult, runFio } from './bench-fio.ts';
import { compareText, liveLine, resultText } from './bench-text.ts';
import type { CliContext } from './context.ts';
import { numberOption, sizeOption } from './options.ts';
import { LiveLine, RateMeter } from './progress.ts';

export interface BenchCommandOptions {
  readonly rw: BenchPattern;
  readonly bs: number;
  readonly depth: number;
  readonly seconds: number;
  readonly engine: 'auto' | 'io_uring' | 'threads';
  readonly direct: 'auto' | 'required' | 'off';
  readonly json?: boolean;
  readonly destroy?: boolean;
  readonly compare?: boolean;
}

const BLOCK_BYTES_MAX = 16 * 1024 * 1024;
const BUFFERS_BYTES_MAX = 512 * 1024 * 1024;
/** In turns, so that a machine that gets busier in the middle does not favour one of the two. */
const COMPARE_ROUNDS = 3;

export function addBenchCommand(program: Command, context: CliContext): void {
  const choice = (flags: string, text: string, choices: readonly string[]) =>
    new Option(flags, text).choices(choices).default(choices[0]);
  program
    .command('bench')
    .description('measure a block device or a file: requests per second, bandwidth, latency, processor time')
    .argument('<path>', 'block device or file')
    .addOption(choice('--rw <pattern>', 'what to do', ['randread', 'randwrite', 'read', 'write']))
    .option('--bs <size>', 'bytes of a request, such as 4k', sizeOption(512, BLOCK_BYTES_MAX), 4096)
    .option('--depth <n>', 'requests in flight', numberOption(1, 4096, true), 32)
    .option('--seconds <n>', 'how long', numberOption(0.1, 3600, false), 5)
    .addOption(choice('--engine <name>', 'by what means', ['auto', 'io_uring', 'threads']))
    .addOption(choice('--direct <mode>', 'past the page cache', ['auto', 'required', 'off']))
    .option('--destroy', 'permit writing, which overwrites what the device holds')
    .option('--compare', 'run fio beside it, in turns, if it is installed')
    .option('--json', 'print the result as one JSON object')
    .action((path: string, options: BenchCommandOptions) => benchCommand(path, options, context));
}

async function benchCommand(path: string, options: BenchCommandOptions, context: CliContext): Promise<void> {
  const write = isWrite(options.rw);
  if (write && !options.destroy) throw await refusal(path, options.rw);
  const memory = benchMemory(options);
  await using device = await openDevice(path, { engine: options.engine, direct: options.direct, readOnly: !write });
  const bench = new DeviceBench(device, {
    pattern: options.rw,
    blockBytes: options.bs,
    depth: options.depth,
    clock: context.environment.clock,
    random: context.environment.random,
    cpu: () => process.cpuUsage(),
    buffer: (length) => memory.lease(length).bytes,
    signal: context.signal,
  });
  const report = device.report();
  const { sizeBytes } = device.geometry;
  const compared = await measure(path, bench, report, options, context);
  const result = bench.result();
  if (options.json) {
    const { rw, bs, depth } = options;
    const { engine, reason, direct, directReason } = report;
    const asked = { path, sizeBytes, rw, blockBytes: bs, depth };
    const facts = { engine, engineReason: reason, direct, directReason };
    context.stdout.write(`${JSON.stringify({ ...asked, ...facts, ...result, ...compared })}\n`);
  } else {
    const asked = { path, sizeBytes, report, pattern: options.rw, blockBytes: options.bs, depth: options.depth };
    context.stdout.write(resultText(asked, result));
    if (compared !== undefined) context.stdout.write(compareText(compared.fio, compared.ratio));
  }
  throwIfAborted(context.signal, 'the measurement');
}

/** A buffer for each request in flight, as the device likes it. */
function benchMemory(options: BenchCommandOptions): IoMemory {
  const slotBytes = Math.max(4096, 2 ** Math.ceil(Math.log2(options.bs)));
  const memoryBytes = slotBytes * options.depth;
  if (memoryBytes > BUFFERS_BYTES_MAX)
    throw new HoldfastError(
      'ERR_HOLDFAST_USAGE',
      `--depth ${options.depth} with --bs ${options.bs} needs ${formatSize(memoryBytes)} of memory, the most is ${formatSize(BUFFERS_BYTES_MAX)}; lower one of them`,
    );
  const arenaBytes = Math.max(4 * 1024 * 1024, slotBytes);
  return new IoMemory({ arenaBytes, totalBytes: Math.ceil(memoryBytes / arenaBytes) * arenaBytes });
}

/** Beside fio, where that is asked for and there. */
interface Comparison {
  readonly fio: FioResult;
  /** Requests a second: holdfast's by fio's, the median of the rounds. */
  readonly ratio: number;
}

async function measure(
  path: string,
  bench: DeviceBench,
  report: DirectReport,
  options: BenchCommandOptions,
  context: CliContext,
): Promise<Comparison | undefined> {
  const { rw: pattern, bs: blockBytes, depth } = options;
  const rounds = options.compare ? COMPARE_ROUNDS : 1;
  const roundMs = (options.seconds * 1000) / rounds;
  const job: FioJob = { path, pattern, blockBytes, depth, ...report, signal: context.signal };
  const found: { readonly fio: FioResult; readonly ratio: number }[] = [];
  using _line = options.json ? undefined : watch(bench, options, context);
  for (let round = 0; round < rounds && !context.signal.aborted; round++) {
    const before = bench.result();
    await bench.run(roundMs);
    if (!options.compare || context.signal.aborted) continue;
    const after = bench.result();
    const rate = ((after.requests - before.requests) * 1000) / (after.elapsedMs - before.elapsedMs);
    const fio = await fioIfInstalled(job, roundMs / 1000);
    if (context.signal.aborted) break;
    if (fio === undefined) {
      context.stderr.write('holdfast: fio is not installed; this is measured without it\n');
      await bench.run(options.seconds * 1000 - roundMs);
      break;
    }
    found.push({ fio, ratio: rate / fio.requestsPerSecond });
  }
  if (found.length === 0) return undefined;
  const byRatio = found.toSorted((a, b) => a.ratio - b.ratio)[found.length >> 1]!;
  return { fio: byRatio.fio, ratio: Math.round(byRatio.ratio * 1000) / 1000 };
}

/** Undefined if it is not, or if it was stopped. */
async function fioIfInstalled(job: FioJob, seconds: number): Promise<FioResult | undefined> {
  try {
    return await runFio(job, seconds);
  } catch (error) {
    if (isHoldfastError(error, 'ERR_HOLDFAST_NOT_FOUND') || isHoldfastError(error, 'ERR_HOLDFAST_ABORTED'))
      return undefined;
    throw error;
  }
}

/** The line that lives while it measures. */
function watch(
  bench: DeviceBench,
  options: BenchCommandOptions,
  { stderr, environment: { clock } }: CliContext,
): LiveLine {
  const meter = new RateMeter();
  meter.sample(clock.nowMs(), 0);
  return new LiveLine(stderr, clock, (columns, nowMs) => {
    if (!bench.running) return 'fio runs, in turns with holdfast';
    const { elapsedMs, requests, latencyMicroseconds } = bench.result();
    meter.sample(nowMs, requests);
    const { p50, p99 } = latencyMicroseconds;
    const state = {
      ...{ label: options.rw, elapsedMs, durationMs: options.seconds * 1000, blockBytes: options.bs, p50, p99 },
      requestsPerSecond: meter.rate,
    };
    return liveLine(state, columns);
  });
}

/** Says what writing would destroy. */
async function refusal(path: string, pattern: BenchPattern): Promise<HoldfastError> {
  const found = await assertMayOverwrite(path).then(
    () => 'nothing known was found on it',
    (error: unknown) => {
      if (isHoldfastError(error, 'ERR_HOLDFAST_DEVICE_HAS_DATA')) return error.message;
      if (isHoldfastError(error, 'ERR_HOLDFAST_DEVICE_NOT_BLANK')) return error.message;
      throw error;
    },
  );
  const message = `${path}: --rw ${pattern} overwrites it (${found}); if all of it may be lost, say --destroy`;
  return new HoldfastError('ERR_HOLDFAST_CONSENT_NEEDED', message);
}
