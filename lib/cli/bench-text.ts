/** What `holdfast bench` shows: the line that lives while it measures, and the result. Pure. */
import { formatSize } from '../daemon/sizes.ts';
import type { DirectReport } from '../storage/direct-device.ts';
import type { BenchPattern, BenchResult, CpuMicroseconds, LatencyRange } from './bench.ts';
import type { FioResult } from './bench-fio.ts';
import { bar, formatDuration } from './progress.ts';

const BAR_WIDTH = 40;

function time(microseconds: number): string {
  if (microseconds < 1000) return `${Number(microseconds.toPrecision(4))} µs`;
  if (microseconds < 1e6) return `${Number((microseconds / 1000).toPrecision(4))} ms`;
  return `${Number((microseconds / 1e6).toPrecision(4))} s`;
}

const count = (value: number) => Math.round(value).toLocaleString('en');

function cpuText({ user, system }: CpuMicroseconds): string {
  return `${(user + system).toFixed(2)} µs a request (user ${user.toFixed(2)}, system ${system.toFixed(2)})`;
}

export interface LiveState {
  readonly label: string;
  readonly elapsedMs: number;
  readonly durationMs: number;
  /** Over the last seconds. */
  readonly requestsPerSecond: number;
  readonly blockBytes: number;
  /** Since the beginning. */
  readonly p50: number;
  readonly p99: number;
}

/** One line: bar (if there is room), time to go, rate, bandwidth, latency. */
export function liveLine(state: LiveState, columns: number): string {
  const { label, elapsedMs, durationMs, requestsPerSecond, blockBytes } = state;
  const left = formatDuration(Math.max(0, durationMs - elapsedMs));
  const rate = `${count(requestsPerSecond)}/s  ${formatSize(requestsPerSecond * blockBytes)}/s`;
  const text = `${left} to go  ${rate}  p50 ${time(state.p50)}  p99 ${time(state.p99)}`;
  const room = columns - label.length - text.length - 5;
  if (room < 10) return `${label}  ${text}`;
  return `${label} ${bar(Math.min(100, (elapsedMs / durationMs) * 100), Math.min(20, room))} ${text}`;
}

/** A row for each range, its bar as long as its share. */
export function histogramText(ranges: readonly LatencyRange[]): string[] {
  const all = ranges.reduce((sum, { requests }) => sum + requests, 0);
  const most = Math.max(...ranges.map(({ requests }) => requests));
  return ranges.map(({ fromMicroseconds, toMicroseconds, requests }) => {
    const percent = (requests / all) * 100;
    const share = requests === 0 ? '-' : percent < 0.01 ? '< 0.01 %' : `${percent.toFixed(2)} %`;
    const range = `${time(fromMicroseconds).padStart(7)} … ${time(toMicroseconds).padEnd(7)}`;
    const marks = requests === 0 ? '' : '#'.repeat(Math.round((requests / most) * BAR_WIDTH)) || '.';
    return `  ${range} ${share.padStart(9)}  ${marks}`.trimEnd();
  });
}

export interface ResultContext {
  readonly path: string;
  readonly sizeBytes: number;
  readonly report: DirectReport;
  readonly pattern: BenchPattern;
  readonly blockBytes: number;
  readonly depth: number;
}

export function resultText(context: ResultContext, result: BenchResult): string {
  const { path, sizeBytes, report, pattern, blockBytes, depth } = context;
  const { min, mean, p50, p90, p99, p999, max } = result.latencyMicroseconds;
  const cache = `${report.direct ? 'past' : 'through'} the page cache`;
  return [
    `${path}: ${formatSize(sizeBytes)}, ${cache} (${report.directReason})`,
    `  engine    ${report.engine} (${report.reason})`,
    `  did       ${pattern}, ${formatSize(blockBytes)} a request, ${depth} in flight, ${(result.elapsedMs / 1000).toFixed(2)} s`,
    `  requests  ${count(result.requestsPerSecond)}/s, ${count(result.requests)} in all`,
    `  bandwidth ${formatSize(result.bytesPerSecond)}/s`,
    `  cpu       ${cpuText(result.cpuMicrosecondsPerRequest)}`,
    `  latency   p50 ${time(p50)}, p90 ${time(p90)}, p99 ${time(p99)}, p99.9 ${time(p999)}`,
    `            min ${time(min)}, mean ${time(mean)}, max ${time(max)}`,
    ...histogramText(result.latencyHistogram),
    '',
  ].join('\n');
}

/** `fio` and `ratio` are medians over rounds in turns. */
export function compareText(fio: FioResult, ratio: number): string {
  const { p50, p99 } = fio.latencyMicroseconds;
  return [
    `fio, in turns: ${ratio.toFixed(2)} × as many requests a second by holdfast`,
    `  requests  ${count(fio.requestsPerSecond)}/s`,
    `  bandwidth ${formatSize(fio.bytesPerSecond)}/s`,
    `  cpu       ${cpuText(fio.cpuMicrosecondsPerRequest)}`,
    `  latency   p50 ${time(p50)}, p99 ${time(p99)}`,
    '',
  ].join('\n');
}
