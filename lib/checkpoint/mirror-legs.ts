/** The legs of a mirrored region, as the managers of its two units let this peer in. */
import type { MemoryClient, OpenedRegion, OpenOptions } from './manager-client.ts';
import type { LegPurpose } from './mirror-standing.ts';
import type { MirrorLegs } from './mirrored-access.ts';
import type { RegionAccess } from './one-sided.ts';

/** One unit of the two. */
export interface ManagedLeg {
  /** Name of the unit. */
  readonly unit: string;
  readonly client: MemoryClient;
  /** Name of the region in this unit. */
  readonly region: string;
}

/** Keys that are being given back: of more of them none is, until the sessions end. */
const RELEASES_MAX = 16;

/**
 * Both units of a mirrored region, each through the client of its manager.
 *
 * @param registerId of the region's register: a manager that has the region for another one's, or as the other leg, refuses.
 */
export function managedLegs(registerId: string, legs: readonly [ManagedLeg, ManagedLeg]): MirrorLegs {
  const opened = new WeakMap<RegionAccess, OpenedRegion>();
  let releases = 0;
  return {
    units: [legs[0].unit, legs[1].unit],
    open: async (leg, purpose, signal) => {
      const mirrored = { register: registerId, leg };
      const region = await openLeg(legs[leg], purpose, { mirrored, signal });
      opened.set(region.access, region);
      return region.access;
    },
    release: (access) => {
      const region = opened.get(access);
      // With the session the key has gone.
      if (region === undefined || !access.open || releases === RELEASES_MAX) return;
      releases += 1;
      const over = () => {
        releases -= 1;
      };
      void region.close().then(over, over);
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
