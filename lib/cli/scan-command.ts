/** `holdfast scan`: the checksum of every block of a device or a file. Reads only. */
import { createHash } from 'node:crypto';
import { type Command, Option } from 'commander';
import { crc32cKernel } from '../base/checksum.ts';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { formatSize } from '../daemon/sizes.ts';
import type { DigestAlgorithm } from '../storage/digest.ts';
import type { DirectReport } from '../storage/direct-device.ts';
import { openDevice } from '../storage/open-device.ts';
import { type DeviceScan, type ScanBatch, scanBlockBytesMax, scanBlockBytesMin, scanDevice } from '../storage/scan.ts';
import type { CliContext } from './context.ts';
import { sizeOption } from './options.ts';
import { Progress } from './progress.ts';

interface ScanCommandOptions {
  readonly algorithm: DigestAlgorithm;
  readonly block: number;
  readonly offset: number;
  readonly length?: number;
  readonly rate?: number;
  readonly engine: 'auto' | 'io_uring' | 'threads';
  readonly direct: 'auto' | 'required' | 'off';
  readonly list?: boolean;
  readonly json?: boolean;
}

/** What is known at the end. */
interface ScanResult {
  readonly offset: number;
  readonly length: number;
  readonly blocks: number;
  readonly elapsedMs: number;
  readonly bytesPerSecond: number;
  /** SHA-256 over the checksums of all blocks, in order: the same for the same content. */
  readonly digest: string;
}

const PROGRESS_MS = 100;

export function addScanCommand(program: Command, context: CliContext): void {
  const choice = (flags: string, text: string, choices: readonly string[]) =>
    new Option(flags, text).choices(choices).default(choices[0]);
  const offset = sizeOption(0, Number.MAX_SAFE_INTEGER);
  program
    .command('scan')
    .description('checksum every block of a block device or a file; two that are equal give the same digest')
    .argument('<path>', 'block device or file')
    .addOption(choice('--algorithm <name>', 'checksum of a block', ['crc32c', 'md5', 'sha1', 'sha256']))
    .option('--block <size>', 'bytes of a block', sizeOption(scanBlockBytesMin, scanBlockBytesMax), 64 * 1024)
    .option('--offset <size>', 'where to begin', offset, 0)
    .option('--length <size>', 'how much; without it up to the end', offset)
    .option('--rate <size>', 'read no more than this in a second, such as 100M', sizeOption(1, Number.MAX_SAFE_INTEGER))
    .option('--list', 'print every block: its checksum and its offset')
    .addOption(choice('--engine <name>', 'by what means', ['auto', 'io_uring', 'threads']))
    .addOption(choice('--direct <mode>', 'past the page cache', ['auto', 'required', 'off']))
    .option('--json', 'print the result as one JSON object; with --list one more for every block before it')
    .action((path: string, options: ScanCommandOptions) => scanCommand(path, options, context));
}

async function scanCommand(path: string, options: ScanCommandOptions, context: CliContext): Promise<void> {
  const { algorithm, block: blockBytes, offset, engine, direct } = options;
  await using device = await openDevice(path, { engine, direct, readOnly: true });
  const scan = scanDevice(device, {
    ...{ algorithm, blockBytes, offset, signal: context.signal, clock: context.environment.clock },
    ...(options.length !== undefined && { length: options.length }),
    ...(options.rate !== undefined && { bytesPerSecond: options.rate }),
  });
  const result = await runScan(path, scan, options, context);
  const report = device.report();
  const { sizeBytes } = device.geometry;
  if (options.json) {
    const by = {
      engine: report.engine,
      engineReason: report.reason,
      direct: report.direct,
      directReason: report.directReason,
    };
    context.stdout.write(`${JSON.stringify({ path, sizeBytes, algorithm, blockBytes, ...by, ...result })}\n`);
    return;
  }
  // A list goes to a file or to diff: there the summary would be in the way.
  const sink = options.list ? context.stderr : context.stdout;
  sink.write(resultText(path, sizeBytes, report, options, result));
}

async function runScan(
  path: string,
  scan: DeviceScan,
  options: ScanCommandOptions,
  context: CliContext,
): Promise<ScanResult> {
  const { clock } = context.environment;
  const { totalBytes } = scan.progress();
  const hash = createHash('sha256');
  const startMs = clock.nowMs();
  let blocks = 0;
  let end = options.offset;
  using _progress = options.json ? undefined : watch(scan, totalBytes, context);
  try {
    for await (const batch of scan) {
      hash.update(batch.checksums);
      if (options.list) context.stdout.write(options.json ? batchJson(batch) : batchText(batch));
      blocks += batch.blocks;
      end = batch.offset + batch.length;
    }
  } catch (error) {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_ABORTED')) throw error;
    const message = `${path}: the scan was stopped; ${formatSize(end - options.offset)} of ${formatSize(totalBytes)} are done, --offset ${end} goes on from there`;
    throw new HoldfastError('ERR_HOLDFAST_ABORTED', message, { cause: error });
  }
  const elapsedMs = Math.round((clock.nowMs() - startMs) * 100) / 100;
  const bytesPerSecond = elapsedMs > 0 ? Math.round((totalBytes * 1000) / elapsedMs) : 0;
  return { offset: options.offset, length: totalBytes, blocks, elapsedMs, bytesPerSecond, digest: hash.digest('hex') };
}

/** The progress line, kept up to date until it is disposed of. */
function watch(scan: DeviceScan, totalBytes: number, { stderr, environment: { clock } }: CliContext): Disposable {
  const progress = new Progress(stderr, clock, 'scan', totalBytes);
  const look = () => {
    progress.update(scan.progress().doneBytes);
    timer = clock.setTimer(PROGRESS_MS, look);
  };
  let timer = clock.setTimer(PROGRESS_MS, look);
  return {
    [Symbol.dispose]() {
      timer.cancel();
      progress[Symbol.dispose]();
    },
  };
}

function batchText(batch: ScanBatch): string {
  let text = '';
  for (let index = 0; index < batch.blocks; index++)
    text += `${batch.hex(index)}  ${batch.offset + index * batch.blockBytes}\n`;
  return text;
}

function batchJson(batch: ScanBatch): string {
  let text = '';
  for (let index = 0; index < batch.blocks; index++) {
    const start = index * batch.blockBytes;
    const length = Math.min(batch.blockBytes, batch.length - start);
    text += `${JSON.stringify({ offset: batch.offset + start, length, checksum: batch.hex(index) })}\n`;
  }
  return text;
}

function resultText(
  path: string,
  sizeBytes: number,
  report: DirectReport,
  { algorithm, block, offset, rate }: ScanCommandOptions,
  result: ScanResult,
): string {
  const cache = `${report.direct ? 'past' : 'through'} the page cache`;
  const by = algorithm === 'crc32c' ? `crc32c (${crc32cKernel()})` : algorithm;
  const part = result.length === sizeBytes ? '' : `, ${formatSize(result.length)} from ${offset}`;
  const limit = rate === undefined ? '' : `, at most ${formatSize(rate)}/s`;
  return [
    `${path}: ${formatSize(sizeBytes)}, ${cache} (${report.directReason})`,
    `  engine    ${report.engine} (${report.reason})`,
    `  did       ${result.blocks.toLocaleString('en')} ${result.blocks === 1 ? 'block' : 'blocks'} of ${formatSize(block)} by ${by}${part}, ${(result.elapsedMs / 1000).toFixed(2)} s`,
    `  bandwidth ${formatSize(result.bytesPerSecond)}/s${limit}`,
    `  digest    ${result.digest} (SHA-256 over all checksums)`,
    '',
  ].join('\n');
}
