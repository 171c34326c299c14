/** The legs of a mirrored region, as the managers of its two units let this peer in. */
import type { MemoryClient, OpenedRegion, OpenOptions } from './manager-client.ts';
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

/**
 * Both units of a mirrored region, each through the client of its manager.
 *
 * @param registerId of the region's register: a manager that has the region for another one's, or as the other leg, refuses.
 */
export function managedLegs(registerId: string, legs: readonly [ManagedLeg, ManagedLeg]): MirrorLegs {
  return {
    units: [legs[0].unit, legs[1].unit],
    open: async (leg, purpose, signal) => {
      const mirrored = { register: registerId, leg };
      return (await openLeg(legs[leg], purpose, { mirrored, signal })).access;
    },
  };
}

function openLeg({ client, region }: ManagedLeg, purpose: LegPurpose, options: OpenOptions): Promise<OpenedRegion> {
  switch (purpose) {
    case 'take-over':
      return client.takeOver(region, options);
    case 'rebuild':
      return client.rebuild(region, options);
    case 'read':
      return client.open(region, { ...options, rights: ['read'] });
  }
}
