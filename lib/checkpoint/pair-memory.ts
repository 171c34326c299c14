/** A process pair's region, in the memory of a unit. */
import type { MemoryClient, OpenedRegion } from './manager-client.ts';
import type { RegionAccess } from './one-sided.ts';
import type { PairMemory } from './process-pair.ts';

/** The region must be there, and both processes be allowed to read and write it. */
export function pairMemory(client: MemoryClient, region: string): PairMemory {
  let last: OpenedRegion | undefined;
  /** A process follows or works, never both: the key of before is given back. */
  const use = (opened: OpenedRegion): RegionAccess => {
    last?.close().catch(() => {});
    last = opened;
    return opened.access;
  };
  return {
    follow: async (signal) => use(await client.open(region, { rights: ['read'], signal })),
    takeOver: async (signal) => use(await client.takeOver(region, { signal })),
  };
}
