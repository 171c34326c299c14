/** The real outside: the machine's clock, its random numbers and its network. */
import { systemClock } from './clock.ts';
import type { Environment } from './environment.ts';
import { systemRandom } from './random.ts';
import { systemNetwork } from './system-network.ts';

/** The real outside: the machine's clock, its random numbers and its network. */
export const systemEnvironment: Environment = { clock: systemClock, random: systemRandom, network: systemNetwork };
