/** One thread of `npm run simulate`: runs each seed that it is given, and answers with the result. */
import { parentPort, workerData } from 'node:worker_threads';
import { type PlantedBug, plantBug } from '../base/planted-bug.ts';
import { simulateMirror } from './mirror-simulation.ts';

export interface SeedRequest {
  readonly seed: number;
  readonly keepLines: number;
}

plantBug((workerData as { readonly plant: PlantedBug | undefined }).plant);
parentPort!.on('message', async ({ seed, keepLines }: SeedRequest) => {
  parentPort!.postMessage(await simulateMirror(seed, { keepLines }));
});
