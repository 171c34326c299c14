import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatDuration, Progress, progressLine, RateMeter, shownPercent } from '../../lib/cli/progress.ts';

const MIB = 1024 * 1024;

class ManualClock {
  #now = 0;
  #timers: { at: number; callback: () => void }[] = [];
  nowMs = () => this.#now;
  wallMs = () => this.#now;
  setTimer(delayMs: number, callback: () => void) {
    const timer = { at: this.#now + delayMs, callback };
    this.#timers.push(timer);
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((other) => other !== timer);
      },
    };
  }
  advance(ms: number): void {
    const end = this.#now + ms;
    for (;;) {
      const [next] = this.#timers.filter((timer) => timer.at <= end).toSorted((a, b) => a.at - b.at);
      if (!next) break;
      this.#timers = this.#timers.filter((other) => other !== next);
      this.#now = next.at;
      next.callback();
    }
    this.#now = end;
  }
  get idle(): boolean {
    return this.#timers.length === 0;
  }
}

describe('what is shown', () => {
  it('never passes 100 %, and says 100 % only when nothing is left', () => {
    fc.assert(
      fc.property(fc.nat(), fc.nat(), (done, total) => {
        const percent = shownPercent(done, total);
        expect(percent).toBeGreaterThanOrEqual(0);
        expect(percent).toBeLessThanOrEqual(100);
        expect(percent === 100).toBe(done >= total);
      }),
    );
  });

  it('a bar where there is room, a line where there is none', () => {
    const state = {
      label: 'resync',
      doneBytes: 25 * MIB,
      totalBytes: 100 * MIB,
      bytesPerSecond: 5 * MIB,
      stalledMs: 0,
    };
    expect(progressLine(state, 100)).toBe(
      'resync [#######.......................]  25.0 %  25 MiB of 100 MiB  5 MiB/s  15 s to go',
    );
    expect(progressLine(state, 0)).toBe('resync  25.0 %  25 MiB of 100 MiB  5 MiB/s  15 s to go');
  });

  it('says that it waits instead of standing still without a word', () => {
    const state = { label: 'resync', doneBytes: 9997, totalBytes: 10_000, bytesPerSecond: 0, stalledMs: 7000 };
    expect(progressLine(state, 0)).toContain('99.9 %');
    expect(progressLine(state, 0)).toContain('waiting, nothing moved for 7 s');
  });

  it.each([
    [0, '0 s'],
    [59_000, '59 s'],
    [61_000, '1 min 1 s'],
    [3_600_000, '1 h 0 min'],
    [200_000_000, '2 d 7 h'],
  ])('%i ms are %s', (ms, text) => {
    expect(formatDuration(ms)).toBe(text);
  });
});

it('the rate is that of the last seconds', () => {
  const meter = new RateMeter();
  for (let second = 0; second <= 10; second++) meter.sample(second * 1000, second * 10);
  for (let second = 11; second <= 20; second++) meter.sample(second * 1000, 100 + (second - 10) * 1000);
  expect(meter.rate).toBe(1000);
  for (let second = 21; second <= 30; second++) meter.sample(second * 1000, 10_100);
  expect(meter.rate).toBe(0);
  expect(meter.stalledMs(31_000)).toBe(11_000);
});

it('plain lines now and then where there is no terminal, and no timer left behind', () => {
  const clock = new ManualClock();
  const lines: string[] = [];
  const sink = { isTTY: false, write: (text: string) => lines.push(text) };
  {
    using progress = new Progress(sink, clock, 'copy', 100 * MIB);
    for (let step = 1; step <= 100; step++) {
      progress.update(step * MIB);
      clock.advance(100);
    }
  }
  expect(lines).toHaveLength(5);
  expect(lines[0]).toBe('copy  20.0 %  20 MiB of 100 MiB  10 MiB/s  8 s to go\n');
  expect(clock.idle).toBe(true);
});

it('on a terminal the bar is drawn in place and removed at the end', () => {
  const clock = new ManualClock();
  const written: string[] = [];
  const sink = { isTTY: true, columns: 100, write: (text: string) => written.push(text) };
  {
    using progress = new Progress(sink, clock, 'copy', 10 * MIB);
    progress.update(5 * MIB);
    clock.advance(100);
  }
  expect(written[0]).toContain(`\r\u001b[Kcopy [${'#'.repeat(15)}${'.'.repeat(15)}]  50.0 %`);
  expect(written.at(-1)).toBe('\r\u001b[K');
});
