/** The legs of a mirrored region, as the managers of its two units let this peer in. */
import type { MemoryClient, OpenedRegion } from './manager-client.ts';
import type { LegPurpose } from './mirror-standing.ts';
import type { MirrorLegs } from './mirrored-access.ts';

/** One unit of the two. */
export interface ManagedLeg {
  /** Name of the unit. */
  readonly unit: string;
  readonly client: MemoryClient;
  /** Name of the region in this unit. */
  readonly region: string;
}

/** Both units of a mirrored region, each through the client of its manager. */
export function managedLegs(legs: readonly [ManagedLeg, ManagedLeg]): MirrorLegs {
  return {
    units: [legs[0].unit, legs[1].unit],
    open: async (leg, purpose, signal) => (await openLeg(legs[leg], purpose, signal)).access,
  };
}

function openLeg({ client, region }: ManagedLeg, purpose: LegPurpose, signal: AbortSignal): Promise<OpenedRegion> {
  switch (purpose) {
    case 'take-over':
      return client.takeOver(region, { signal });
    case 'rebuild':
      return client.rebuild(region, { signal });
    case 'read':
      return client.open(region, { signal, rights: ['read'] });
  }
}
