/**
 * `npm run simulate -- --seeds N [--of volume|region|mirrored|pair] [--seed S] [--jobs J] [--plant BUG] [--verbose]`: runs
 * N seeds from S (default: a random start) of the simulation of a mirrored volume (default), a mirrored region (over two
 * memory units that are modelled; `mirrored`: over real ones) or a process pair, J at a time (default: one a processor).
 * Prints each failing seed with what went wrong and how to run it again; the last line is `N passed, N failed`. Exit
 * status 1 if any failed.
 *
 * `--plant BUG` puts a known bug in, and stops at the first seed that finds it; exit status 1 if none does.
 */
import { execFileSync, fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { systemClock } from '../base/clock.ts';
import type { PlantedBug } from '../base/planted-bug.ts';
import { systemRandom } from '../base/random.ts';
import { formatDuration, RateMeter } from '../cli/progress.ts';
import { packageRoot, release } from '../cli/release.ts';
import type { SeedRequest } from './simulate-worker.ts';
import { type SeedResult, SIMULATION_NAMES, SIMULATIONS, type SimulationName } from './simulations.ts';

const VERBOSE_LINES = 100_000;
const PROGRESS_MS = 1000;
/** On a terminal the line is drawn again; elsewhere a line now and then is enough. */
const PLAIN_PROGRESS_MS = 30_000;
const WORKER = fileURLToPath(new URL('simulate-worker.js', import.meta.url));
/** All processors have seeds to run: helpers of V8 only get in the way, and what a seed leaves dies young. */
const NODE_FLAGS = ['--single-threaded', '--max-semi-space-size=64'];
/** A seed takes some milliseconds. One that takes this long spins. */
const SPIN_MS = 120_000;

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '100' },
    of: { type: 'string', default: 'volume' },
    seed: { type: 'string' },
    jobs: { type: 'string' },
    plant: { type: 'string' },
    verbose: { type: 'boolean', default: false },
  },
});

function refuse(message: string): never {
  console.error(message);
  process.exit(2);
}

function wholeNumber(text: string, option: string): number {
  const number = Number(text);
  return Number.isSafeInteger(number) && number >= 0 ? number : refuse(`--${option} takes a whole number, not ${text}`);
}

function simulationName(name: string): SimulationName {
  return SIMULATION_NAMES.find((known) => known === name) ?? refuse(`--of takes one of ${SIMULATION_NAMES.join(', ')}`);
}

function plantedBug(name: string | undefined): PlantedBug | undefined {
  if (name === undefined) return undefined;
  const { bugs } = SIMULATIONS[of];
  return bugs.find((bug) => bug === name) ?? refuse(`--plant takes one of ${bugs.join(', ')}`);
}

/** What the seeds are seeds of: they mean nothing in another state of the code. */
function commit(): string {
  if (process.env.HOLDFAST_COMMIT !== undefined) return process.env.HOLDFAST_COMMIT;
  try {
    const about = execFileSync('git', ['describe', '--always', '--dirty'], {
      cwd: packageRoot,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return about.trim();
  } catch {
    return `version ${release()}`;
  }
}

const of = simulationName(values.of);
const seeds = wholeNumber(values.seeds, 'seeds');
const first = values.seed === undefined ? systemRandom.below(2 ** 32) : wholeNumber(values.seed, 'seed');
const plant = plantedBug(values.plant);
const jobs = Math.max(1, Math.min(seeds, wholeNumber(values.jobs ?? String(availableParallelism()), 'jobs')));
const code = commit();
const meter = new RateMeter();
const startedMs = systemClock.nowMs();
let next = first;
let done = 0;
let failed = 0;
let lost = 0;
let stopping = false;

function clearLine(): void {
  if (process.stderr.isTTY) process.stderr.write('\r\u001b[K');
}

function report({ seed, failure, summary, traceHash, trace }: SeedResult): void {
  if (failure === undefined) {
    if (values.verbose) console.log(`seed ${seed}: ${summary}, trace ${traceHash}`);
    return;
  }
  clearLine();
  console.log(`\nseed ${seed} at ${code} FAILED: ${failure}`);
  console.log(`  ${summary}, trace ${traceHash}`);
  if (values.verbose) for (const line of trace) console.log(`  ${line}`);
  const planted = plant === undefined ? '' : ` --plant ${plant}`;
  const which = of === 'volume' ? '' : ` --of ${of}`;
  console.log(`  again: npm run simulate -- --seeds 1 --seed ${seed}${which}${planted} --verbose`);
}

function progress(): void {
  meter.sample(systemClock.nowMs(), done);
  const toGoMs = meter.rate > 0 ? ((seeds - done) * 1000) / meter.rate : undefined;
  const toGo = toGoMs === undefined ? 'time to go not known yet' : `${formatDuration(toGoMs)} to go`;
  const line = `${done} of ${seeds} seeds, ${failed} failed, ${meter.rate.toFixed(0)} seeds/s, ${toGo}`;
  process.stderr.write(process.stderr.isTTY ? `\r\u001b[K${line}` : `${line}\n`);
}

function onResult(result: SeedResult): void {
  done += 1;
  if (result.failure !== undefined) failed += 1;
  if (result.lost) lost += 1;
  report(result);
  if (plant !== undefined && failed > 0) stopping = true;
}

/** One process that runs a seed after the other. Resolves when there are no more. */
function runJob(): Promise<void> {
  return new Promise((resolve) => {
    const worker = fork(WORKER, plant === undefined ? [of] : [of, plant], {
      execArgv: NODE_FLAGS,
      serialization: 'advanced',
    });
    let watchdog = systemClock.setTimer(SPIN_MS, () => {});
    let seed = 0;
    let why: string | undefined;
    const give = (): void => {
      watchdog.cancel();
      if (stopping || next >= first + seeds) {
        worker.disconnect();
        return;
      }
      seed = next;
      next += 1;
      watchdog = systemClock.setTimer(SPIN_MS, () => {
        why = `it spins: no end after ${SPIN_MS} ms`;
        worker.kill('SIGKILL');
      });
      worker.send({ seed, keepLines: values.verbose ? VERBOSE_LINES : 0 } satisfies SeedRequest);
    };
    worker.on('message', (result) => {
      onResult(result as SeedResult);
      give();
    });
    worker.on('exit', (code, signal) => {
      watchdog.cancel();
      if (code === 0) resolve();
      else
        resolve(giveUp(seed, why ?? `it broke out of the simulation (${signal ?? `exit status ${code}`}, see above)`));
    });
    give();
  });
}

function giveUp(seed: number, why: string): Promise<void> | undefined {
  done += 1;
  failed += 1;
  clearLine();
  console.log(`\nseed ${seed} at ${code} FAILED: ${why}`);
  return stopping ? undefined : runJob();
}

function end(): never {
  clearLine();
  const rate = (done * 1000) / (systemClock.nowMs() - startedMs);
  console.log(`${done} seeds from ${first} at ${code}, ${rate.toFixed(1)} seeds a second with ${jobs} jobs`);
  console.log(`in ${lost} of them what was not flushed may have been lost`);
  if (plant !== undefined) console.log(failed > 0 ? `${plant} was found` : `${plant} was NOT found`);
  console.log(`${done - failed} passed, ${failed} failed`);
  process.exit((failed === 0) === (plant === undefined) ? 0 : 1);
}

process.once('SIGINT', end);
const isTerminal = process.stderr.isTTY;
const tick = (): void => {
  progress();
  systemClock.setTimer(isTerminal ? PROGRESS_MS : PLAIN_PROGRESS_MS, tick);
};
systemClock.setTimer(isTerminal ? PROGRESS_MS : PLAIN_PROGRESS_MS, tick);
await Promise.all(Array.from({ length: jobs }, runJob));
end();
