/** The seam: all that comes in from outside. One object, handed down; nothing above it reaches for a global. */
import type { Clock } from './clock.ts';
import type { Network } from './network.ts';
import type { Random } from './random.ts';

/** Clock, random numbers and network: all that comes in from outside. The real one is `systemEnvironment`. */
export interface Environment {
  readonly clock: Clock;
  readonly random: Random;
  readonly network: Network;
}
