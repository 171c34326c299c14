/**
 * Progress of something long: a bar on a terminal, plain lines elsewhere. Done and total may both change on the way (a
 * resync follows live writes); what is shown never passes 100 %, and never says 100 % before the end.
 */
import type { Clock, TimerHandle } from '../base/clock.ts';
import { formatSize } from '../daemon/sizes.ts';

export interface ProgressSink {
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
  write(text: string): unknown;
}

const RATE_WINDOW_MS = 3000;
const REDRAW_MS = 100;
const PLAIN_LINE_MS = 2000;
const STALL_MS = 5000;

/** Rate over the last seconds, from samples of what is done. Pure. */
export class RateMeter {
  readonly #samples: { atMs: number; done: number }[] = [];
  #lastChangeMs = 0;

  sample(atMs: number, done: number): void {
    const last = this.#samples.at(-1);
    if (!last || last.done !== done) this.#lastChangeMs = atMs;
    this.#samples.push({ atMs, done });
    while (this.#samples.length > 2 && this.#samples[1]!.atMs < atMs - RATE_WINDOW_MS) this.#samples.shift();
  }

  /** Per second; 0 as long as it is not known. */
  get rate(): number {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (!first || !last || last.atMs === first.atMs) return 0;
    return Math.max(0, ((last.done - first.done) * 1000) / (last.atMs - first.atMs));
  }

  /** How long nothing has moved. */
  stalledMs(atMs: number): number {
    return this.#samples.length === 0 ? 0 : atMs - this.#lastChangeMs;
  }
}

export interface ProgressState {
  readonly label: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
  readonly stalledMs: number;
}

/** Percent to show: rounded down, so that it says 100 only when nothing is left. */
export function shownPercent(done: number, total: number): number {
  if (total <= 0 || done >= total) return 100;
  return Math.min(99.9, Math.floor((Math.max(0, done) / total) * 1000) / 10);
}

export function formatDuration(ms: number): string {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** One line: bar (if there is room), percent, done of total, rate, time to go or why there is none. */
export function progressLine(state: ProgressState, columns: number): string {
  const { label, doneBytes, totalBytes, bytesPerSecond } = state;
  const percent = shownPercent(doneBytes, totalBytes);
  const left = Math.max(0, totalBytes - doneBytes);
  const toGo =
    state.stalledMs >= STALL_MS
      ? `waiting, nothing moved for ${formatDuration(state.stalledMs)}`
      : bytesPerSecond > 0
        ? `${formatDuration((left * 1000) / bytesPerSecond)} to go`
        : 'time to go not known yet';
  const amounts = `${formatSize(Math.min(doneBytes, totalBytes))} of ${formatSize(totalBytes)}`;
  const text = `${percent.toFixed(1).padStart(5)} %  ${amounts}  ${formatSize(bytesPerSecond)}/s  ${toGo}`;
  const room = columns - label.length - text.length - 6;
  if (room < 10) return `${label} ${text}`;
  return `${label} ${bar(percent, Math.min(30, room))} ${text}`;
}

/** `[####......]`, `width` characters between the brackets. */
export function bar(percent: number, width: number): string {
  const filled = Math.floor((percent / 100) * width);
  return `[${'#'.repeat(filled)}${'.'.repeat(width - filled)}]`;
}

/** One line that changes: in place on a terminal, a new line now and then elsewhere. */
export class LiveLine implements Disposable {
  readonly #sink: ProgressSink;
  readonly #clock: Clock;
  /** `columns` is 0 where there is no terminal. */
  readonly #text: (columns: number, nowMs: number) => string;
  #timer: TimerHandle | undefined;
  #lastLineMs: number;
  #drawn = false;

  constructor(sink: ProgressSink, clock: Clock, text: (columns: number, nowMs: number) => string) {
    this.#sink = sink;
    this.#clock = clock;
    this.#text = text;
    this.#lastLineMs = clock.nowMs();
    this.#tick();
  }

  /** Removes the line. What to say at the end is the caller's. */
  [Symbol.dispose](): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    if (this.#drawn) this.#sink.write('\r\u001b[K');
    this.#drawn = false;
  }

  #tick(): void {
    this.#timer = this.#clock.setTimer(REDRAW_MS, () => {
      this.#draw();
      this.#tick();
    });
  }

  #draw(): void {
    const now = this.#clock.nowMs();
    const isTerminal = this.#sink.isTTY === true;
    const text = this.#text(isTerminal ? (this.#sink.columns ?? 80) - 1 : 0, now);
    if (isTerminal) {
      this.#sink.write(`\r\u001b[K${text}`);
      this.#drawn = true;
    } else if (now - this.#lastLineMs >= PLAIN_LINE_MS) {
      this.#sink.write(`${text}\n`);
      this.#lastLineMs = now;
    }
  }
}

export class Progress implements Disposable {
  readonly #line: LiveLine;
  readonly #label: string;
  readonly #meter = new RateMeter();
  #doneBytes = 0;
  #totalBytes: number;

  constructor(sink: ProgressSink, clock: Clock, label: string, totalBytes: number) {
    this.#label = label;
    this.#totalBytes = totalBytes;
    this.#meter.sample(clock.nowMs(), 0);
    this.#line = new LiveLine(sink, clock, (columns, nowMs) => this.#text(columns, nowMs));
  }

  update(doneBytes: number, totalBytes = this.#totalBytes): void {
    this.#doneBytes = doneBytes;
    this.#totalBytes = totalBytes;
  }

  /** Removes the bar. What to say at the end is the caller's. */
  [Symbol.dispose](): void {
    this.#line[Symbol.dispose]();
  }

  #text(columns: number, nowMs: number): string {
    this.#meter.sample(nowMs, this.#doneBytes);
    const state = {
      label: this.#label,
      doneBytes: this.#doneBytes,
      totalBytes: this.#totalBytes,
      bytesPerSecond: this.#meter.rate,
      stalledMs: this.#meter.stalledMs(nowMs),
    };
    return progressLine(state, columns);
  }
}
