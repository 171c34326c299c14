/** One process of `npm run simulate`: runs each seed that it is given, and answers with the result. */
import { PLANTED_BUGS, plantBug } from '../base/planted-bug.ts';
import { simulateMirror } from './mirror-simulation.ts';

export interface SeedRequest {
  readonly seed: number;
  readonly keepLines: number;
}

plantBug(PLANTED_BUGS.find((bug) => bug === process.argv[2]));
process.on('message', async ({ seed, keepLines }: SeedRequest) => {
  process.send!(await simulateMirror(seed, { keepLines }));
});
