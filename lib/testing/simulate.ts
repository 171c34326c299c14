/**
 * `npm run simulate -- --seeds N [--seed S]`: runs N seeds from S (default: a random start) of the mirrored volume's
 * simulation. Prints each failing seed with what went wrong and the last lines of its trace; the last line is
 * `N passed, N failed`. Exit status 1 if any failed.
 */
import { parseArgs } from 'node:util';
import { systemClock } from '../base/clock.ts';
import { systemRandom } from '../base/random.ts';
import { type SimulationResult, simulateMirror } from './mirror-simulation.ts';

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '100' },
    seed: { type: 'string' },
    verbose: { type: 'boolean', default: false },
  },
});

function wholeNumber(text: string, option: string): number {
  const number = Number(text);
  if (Number.isSafeInteger(number) && number >= 0) return number;
  console.error(`--${option} takes a whole number, not ${text}`);
  process.exit(2);
}

function report(result: SimulationResult): void {
  const { seed, plan, failure, traceHash, operations, unended, faults, resyncs } = result;
  const counts = `${operations} operations (${unended} without end), ${faults} faults, ${resyncs} resyncs`;
  if (failure === undefined) {
    if (values.verbose) console.log(`seed ${seed}: ${counts}, trace ${traceHash}`);
    return;
  }
  console.log(`\nseed ${seed} FAILED: ${failure}`);
  console.log(`  ${counts}, trace ${traceHash}\n  plan ${JSON.stringify(plan)}`);
  if (values.verbose) for (const line of result.trace) console.log(`  ${line}`);
  console.log(`  again: npm run simulate -- --seeds 1 --seed ${seed} --verbose`);
}

const seeds = wholeNumber(values.seeds, 'seeds');
const first = values.seed === undefined ? systemRandom.below(2 ** 32) : wholeNumber(values.seed, 'seed');
const startedMs = systemClock.nowMs();
let failed = 0;
for (let seed = first; seed < first + seeds; seed += 1) {
  const result = await simulateMirror(seed);
  if (result.failure !== undefined) failed += 1;
  report(result);
}
const rate = (seeds * 1000) / (systemClock.nowMs() - startedMs);
console.log(`${seeds} seeds from ${first}, ${rate.toFixed(1)} seeds a second`);
console.log(`${seeds - failed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
