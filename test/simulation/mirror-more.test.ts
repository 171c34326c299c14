// A file of its own, so that the other half of the seeds runs beside the first one.
import { runSeeds } from './run-seeds.ts';

runSeeds(251, 500);
