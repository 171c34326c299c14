/**
 * fio (https://fio.readthedocs.io) beside `holdfast bench`: the same requests to the same device, by the tool that
 * people measure devices with. Its output is checked before it is used.
 */
import { spawn } from 'node:child_process';
import { z } from 'zod';
import { HoldfastError } from '../base/errors.ts';
import type { BenchPattern } from './bench.ts';

export interface FioJob {
  readonly path: string;
  readonly pattern: BenchPattern;
  readonly blockBytes: number;
  readonly depth: number;
  readonly engine: 'io_uring' | 'threads';
  readonly direct: boolean;
  readonly signal: AbortSignal;
}

export interface FioResult {
  readonly requestsPerSecond: number;
  readonly bytesPerSecond: number;
  readonly latencyMicroseconds: { readonly p50: number; readonly p99: number };
  readonly cpuMicrosecondsPerRequest: { readonly user: number; readonly system: number };
}

const OUTPUT_BYTES_MAX = 4 * 1024 * 1024;

const sideSchema = z.object({
  iops: z.number(),
  bw_bytes: z.number(),
  total_ios: z.number(),
  lat_ns: z.object({ percentile: z.record(z.string(), z.number()).optional() }),
});
const outputSchema = z.object({
  jobs: z.tuple([
    z.object({
      error: z.number(),
      usr_cpu: z.number(),
      sys_cpu: z.number(),
      job_runtime: z.number(),
      read: sideSchema,
      write: sideSchema,
    }),
  ]),
});

/** Its command line. */
export function fioArguments(job: FioJob, seconds: number): string[] {
  const write = job.pattern.endsWith('write');
  return [
    ...['--name=holdfast-bench', `--filename=${job.path.replaceAll(':', '\\:')}`, '--allow_file_create=0'],
    ...(write ? [] : ['--readonly']),
    ...[`--ioengine=${job.engine === 'io_uring' ? 'io_uring' : 'libaio'}`, `--direct=${job.direct ? 1 : 0}`],
    ...[`--rw=${job.pattern}`, `--bs=${job.blockBytes}`, `--iodepth=${job.depth}`],
    ...['--time_based', `--runtime=${Math.round(seconds * 1000)}ms`, '--randrepeat=0', '--norandommap'],
    ...['--lat_percentiles=1', '--clat_percentiles=0', '--output-format=json'],
  ];
}

/**
 * Runs fio for a time.
 *
 * @throws HoldfastError ERR_HOLDFAST_NOT_FOUND if it is not installed, ERR_HOLDFAST_NOT_SUPPORTED if it fails or says what
 *   is not understood, ERR_HOLDFAST_ABORTED.
 */
export async function runFio(job: FioJob, seconds: number): Promise<FioResult> {
  const { status, stdout, stderr } = await runProgram(fioArguments(job, seconds), job.signal);
  if (status !== 0) throw failure(`fio ended with ${status}: ${firstLine(stderr) || firstLine(stdout)}`);
  // Notes may stand before the result.
  const parsed = outputSchema.safeParse(parseJson(stdout.slice(stdout.search(/^\{/m))));
  if (!parsed.success) throw failure('the output of fio is not what it was in version 3', parsed.error);
  const [result] = parsed.data.jobs;
  if (result.error !== 0) throw failure(`fio failed with error ${result.error}`);
  const side = job.pattern.endsWith('write') ? result.write : result.read;
  const percentile = (name: string) => Math.round((side.lat_ns.percentile?.[name] ?? 0) / 10) / 100;
  // Percent of the time that the job ran, in milliseconds.
  const perRequest = (percent: number) =>
    side.total_ios > 0 ? Math.round((percent / 100) * ((result.job_runtime * 1000) / side.total_ios) * 100) / 100 : 0;
  return {
    requestsPerSecond: Math.round(side.iops),
    bytesPerSecond: side.bw_bytes,
    latencyMicroseconds: { p50: percentile('50.000000'), p99: percentile('99.000000') },
    cpuMicrosecondsPerRequest: { user: perRequest(result.usr_cpu), system: perRequest(result.sys_cpu) },
  };
}

function failure(message: string, cause?: unknown): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_NOT_SUPPORTED', `${message}; measure without --compare`, { cause });
}

function firstLine(text: string): string {
  return text.trim().split('\n', 1)[0]!;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

interface ProgramOutcome {
  readonly status: string | number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function runProgram(args: string[], signal: AbortSignal): Promise<ProgramOutcome> {
  return new Promise((resolve, reject) => {
    const child = spawn('fio', args, { stdio: ['ignore', 'pipe', 'pipe'], signal });
    const output = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (text: string) => {
        if (output[name].length < OUTPUT_BYTES_MAX) output[name] += text;
      });
    }
    child.once('error', (cause: NodeJS.ErrnoException) => {
      if (signal.aborted) reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'fio was stopped', { cause }));
      else if (cause.code === 'ENOENT')
        reject(new HoldfastError('ERR_HOLDFAST_NOT_FOUND', 'fio is not installed; install it to compare', { cause }));
      else reject(failure(`fio cannot be run (${cause.code})`, cause));
    });
    child.once('close', (code, ended) => resolve({ status: code ?? ended, ...output }));
  });
}
