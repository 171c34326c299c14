/** One process of `npm run simulate`: runs each seed that it is given, and answers with the result. */
import { plantBug } from '../base/planted-bug.ts';
import { SIMULATIONS, type SimulationName } from './simulations.ts';

export interface SeedRequest {
  readonly seed: number;
  readonly keepLines: number;
}

const [of, plant] = process.argv.slice(2);
const { bugs, run } = SIMULATIONS[of as SimulationName];
plantBug(bugs.find((bug) => bug === plant));
process.on('message', async ({ seed, keepLines }: SeedRequest) => {
  process.send!(await run(seed, keepLines));
});
