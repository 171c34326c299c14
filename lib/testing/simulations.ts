/** The simulations that `npm run simulate` knows, under one face. */
import {
  PLANTED_BUGS,
  PLANTED_MIRRORED_BUGS,
  PLANTED_PAIR_BUGS,
  PLANTED_REGION_BUGS,
  type PlantedBug,
} from '../base/planted-bug.ts';
import { simulateMirror } from './mirror-simulation.ts';
import { simulateMirroredRegion } from './mirrored-region-simulation.ts';
import { simulateMirroredUnits } from './mirrored-units-simulation.ts';
import { simulatePair } from './pair-simulation.ts';

/** What became of one seed, of whatever it is a seed of. */
export interface SeedResult {
  readonly seed: number;
  /** Undefined if all held. */
  readonly failure: string | undefined;
  /** What it went through, for people. */
  readonly summary: string;
  /** Same seed, same hash. */
  readonly traceHash: string;
  /** What was not flushed may have been lost. */
  readonly lost: boolean;
  readonly trace: readonly string[];
}

export interface Simulation {
  /** Those that it finds. */
  readonly bugs: readonly PlantedBug[];
  run(seed: number, keepLines: number): Promise<SeedResult>;
}

export const SIMULATION_NAMES = ['volume', 'region', 'mirrored', 'pair'] as const;
export type SimulationName = (typeof SIMULATION_NAMES)[number];

export const SIMULATIONS: Readonly<Record<SimulationName, Simulation>> = {
  volume: {
    bugs: PLANTED_BUGS,
    async run(seed, keepLines) {
      const { plan, operations, unended, faults, resyncs, ...result } = await simulateMirror(seed, { keepLines });
      const counts = `${operations} operations (${unended} without end), ${faults} faults, ${resyncs} resyncs`;
      return { ...result, summary: `${counts}, plan ${JSON.stringify(plan)}` };
    },
  },
  region: {
    bugs: PLANTED_REGION_BUGS,
    async run(seed, keepLines) {
      const { operations, unended, takeOvers, rebuilds, ...result } = await simulateMirroredRegion(seed, keepLines);
      const counts = `${operations} operations (${unended} without end), ${takeOvers} take-overs, ${rebuilds} rebuilds`;
      return { ...result, seed, lost: false, summary: counts };
    },
  },
  mirrored: {
    bugs: PLANTED_MIRRORED_BUGS,
    async run(seed, keepLines) {
      const { plan, operations, unended, faults, takeOvers, rebuilds, ...result } = await simulateMirroredUnits(
        seed,
        keepLines,
      );
      const counts = `${operations} operations (${unended} without end), ${faults} faults, ${takeOvers} take-overs, ${rebuilds} rebuilds`;
      return { ...result, lost: false, summary: `${counts}, plan ${JSON.stringify(plan)}` };
    },
  },
  pair: {
    bugs: PLANTED_PAIR_BUGS,
    async run(seed, keepLines) {
      const { plan, operations, unended, faults, takeOvers, ...result } = await simulatePair(seed, { keepLines });
      const counts = `${operations} operations (${unended} without end), ${faults} faults, ${takeOvers} take-overs`;
      return { ...result, lost: false, summary: `${counts}, plan ${JSON.stringify(plan)}` };
    },
  },
};
