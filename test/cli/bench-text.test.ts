import { expect, it } from 'vitest';
import { fioArguments } from '../../lib/cli/bench-fio.ts';
import { histogramText, liveLine } from '../../lib/cli/bench-text.ts';

const state = {
  label: 'randread',
  elapsedMs: 2500,
  durationMs: 5000,
  requestsPerSecond: 287_123.4,
  blockBytes: 4096,
  p50: 108.25,
  p99: 1730,
};

it('the live line: a bar where there is room', () => {
  const text = '3 s to go  287,123/s  1.10 GiB/s  p50 108.3 µs  p99 1.73 ms';
  expect(liveLine(state, 120)).toBe(`randread [##########..........] ${text}`);
  expect(liveLine(state, 0)).toBe(`randread  ${text}`);
  expect(liveLine({ ...state, elapsedMs: 6000 }, 120)).toContain('[####################] 0 s to go');
});

it('the histogram: shares, and a mark for what is rare', () => {
  const range = (fromMicroseconds: number, toMicroseconds: number, requests: number) => ({
    fromMicroseconds,
    toMicroseconds,
    requests,
  });
  const rows = histogramText([
    range(20, 50, 60_000),
    range(50, 100, 30_000),
    range(100, 200, 0),
    range(200_000, 500_000, 1),
  ]);
  expect(rows).toEqual([
    `    20 µs … 50 µs     66.67 %  ${'#'.repeat(40)}`,
    `    50 µs … 100 µs    33.33 %  ${'#'.repeat(20)}`,
    '   100 µs … 200 µs          -',
    '   200 ms … 500 ms   < 0.01 %  .',
  ]);
});

it('fio is asked for the same, and cannot write where nothing may be written', () => {
  const job = {
    ...{ path: '/dev/disk/by-path/pci-0000:00', pattern: 'randread' as const, blockBytes: 4096, depth: 32 },
    ...{ engine: 'io_uring' as const, direct: true, signal: new AbortController().signal },
  };
  const read = fioArguments(job, 1.5);
  expect(read).toEqual(
    expect.arrayContaining(['--readonly', '--filename=/dev/disk/by-path/pci-0000\\:00', '--rw=randread', '--bs=4096']),
  );
  expect(read).toEqual(
    expect.arrayContaining(['--ioengine=io_uring', '--direct=1', '--runtime=1500ms', '--iodepth=32']),
  );
  const write = fioArguments({ ...job, pattern: 'write', engine: 'threads', direct: false }, 1);
  expect(write).not.toContain('--readonly');
  expect(write).toEqual(expect.arrayContaining(['--ioengine=libaio', '--direct=0', '--rw=write']));
});
