/** A process pair's region, in the memory of a unit. */
import type { MemoryClient } from './manager-client.ts';
import type { PairMemory } from './process-pair.ts';

/** The region must be there, and both processes be allowed to read and write it. */
export function pairMemory(client: MemoryClient, region: string): PairMemory {
  return {
    follow: async (signal) => (await client.open(region, { rights: ['read'], signal })).access,
    takeOver: async (signal) => (await client.takeOver(region, { signal })).access,
  };
}
