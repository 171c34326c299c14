/** `holdfast bench`: how fast is a device, through the same engine that serves volumes. Safe unless told otherwise. */
import { type Command, Option } from 'commander';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import { formatSize } from '../daemon/sizes.ts';
import { assertMayOverwrite } from '../storage/guard.ts';
import { IoMemory } from '../storage/io-memory.ts';
import { openDevice } from '../storage/open-device.ts';
import { type BenchPattern, type BenchResult, benchDevice, isWrite } from './bench.ts';
import type { CliContext } from './context.ts';
import { numberOption, sizeOption } from './options.ts';

export interface BenchCommandOptions {
  readonly rw: BenchPattern;
  readonly bs: number;
  readonly depth: number;
  readonly seconds: number;
  readonly engine: 'auto' | 'io_uring' | 'threads';
  readonly direct: 'auto' | 'required' | 'off';
  readonly json?: boolean;
  readonly destroy?: boolean;
}

const BLOCK_BYTES_MAX = 16 * 1024 * 1024;
const BUFFERS_BYTES_MAX = 512 * 1024 * 1024;

export function addBenchCommand(program: Command, context: CliContext): void {
  const choice = (flags: string, text: string, choices: readonly string[]) =>
    new Option(flags, text).choices(choices).default(choices[0]);
  program
    .command('bench')
    .description('measure a block device or a file: requests per second, bandwidth, latency')
    .argument('<path>', 'block device or file')
    .addOption(choice('--rw <pattern>', 'what to do', ['randread', 'randwrite', 'read', 'write']))
    .option('--bs <size>', 'bytes of a request, such as 4k', sizeOption(512, BLOCK_BYTES_MAX), 4096)
    .option('--depth <n>', 'requests in flight', numberOption(1, 4096, true), 32)
    .option('--seconds <n>', 'how long', numberOption(0.1, 3600, false), 5)
    .addOption(choice('--engine <name>', 'by what means', ['auto', 'io_uring', 'threads']))
    .addOption(choice('--direct <mode>', 'past the page cache', ['auto', 'required', 'off']))
    .option('--destroy', 'permit writing, which overwrites what the device holds')
    .option('--json', 'print the result as one JSON object')
    .action((path: string, options: BenchCommandOptions) => benchCommand(path, options, context));
}

async function benchCommand(path: string, options: BenchCommandOptions, context: CliContext): Promise<void> {
  const write = isWrite(options.rw);
  if (write && !options.destroy) throw await refusal(path, options.rw);
  const slotBytes = Math.max(4096, 2 ** Math.ceil(Math.log2(options.bs)));
  const memoryBytes = slotBytes * options.depth;
  if (memoryBytes > BUFFERS_BYTES_MAX)
    throw new HoldfastError(
      'ERR_HOLDFAST_USAGE',
      `--depth ${options.depth} with --bs ${options.bs} needs ${formatSize(memoryBytes)} of memory, the most is ${formatSize(BUFFERS_BYTES_MAX)}; lower one of them`,
    );
  const arenaBytes = Math.max(4 * 1024 * 1024, slotBytes);
  const memory = new IoMemory({ arenaBytes, totalBytes: Math.ceil(memoryBytes / arenaBytes) * arenaBytes });
  await using device = await openDevice(path, { engine: options.engine, direct: options.direct, readOnly: !write });
  const result = await benchDevice(device, {
    pattern: options.rw,
    blockBytes: options.bs,
    depth: options.depth,
    durationMs: options.seconds * 1000,
    clock: context.environment.clock,
    random: context.environment.random,
    buffer: (length) => memory.lease(length).bytes,
    signal: context.signal,
  });
  const { sizeBytes } = device.geometry;
  const report = device.report();
  if (options.json) {
    const { rw, bs, depth } = options;
    const { engine, reason, direct, directReason } = report;
    const asked = { path, sizeBytes, rw, blockBytes: bs, depth };
    context.stdout.write(
      `${JSON.stringify({ ...asked, engine, engineReason: reason, direct, directReason, ...result })}\n`,
    );
  } else context.stdout.write(resultText(path, sizeBytes, report, options, result));
  throwIfAborted(context.signal, 'the measurement');
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

interface EngineFacts {
  readonly engine: string;
  readonly reason: string;
  readonly direct: boolean;
  readonly directReason: string;
}

function resultText(
  path: string,
  sizeBytes: number,
  facts: EngineFacts,
  options: BenchCommandOptions,
  result: BenchResult,
): string {
  const { min, mean, p50, p90, p99, p999, max } = result.latencyMicroseconds;
  const time = (value: number) => (value < 10_000 ? `${value.toFixed(1)} µs` : `${(value / 1000).toFixed(1)} ms`);
  const cache = `${facts.direct ? 'past' : 'through'} the page cache`;
  return [
    `${path}: ${formatSize(sizeBytes)}, ${cache} (${facts.directReason})`,
    `  engine    ${facts.engine} (${facts.reason})`,
    `  did       ${options.rw}, ${formatSize(options.bs)} a request, ${options.depth} in flight, ${(result.elapsedMs / 1000).toFixed(2)} s`,
    `  requests  ${result.requestsPerSecond.toLocaleString('en')}/s, ${result.requests.toLocaleString('en')} in all`,
    `  bandwidth ${formatSize(result.bytesPerSecond)}/s`,
    `  latency   p50 ${time(p50)}, p90 ${time(p90)}, p99 ${time(p99)}, p99.9 ${time(p999)}`,
    `            min ${time(min)}, mean ${time(mean)}, max ${time(max)}`,
    '',
  ].join('\n');
}
