/**
 * What the manager of a unit asks before it gives a key to a leg of a mirrored region: the register, by a compare-and-swap
 * that changes nothing. A unit that was away gives no key to what it has until its leg is named again.
 */
import { HoldfastError } from '../base/errors.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import type { Admission } from './manager.ts';
import { admits, type Leg, type Standing } from './mirror-standing.ts';
import { parseRegister } from './mirrored-access.ts';

/** A region of this unit that is a leg of a mirrored one. */
export interface MirroredLeg {
  /** Name of the region in this unit. */
  readonly region: string;
  readonly leg: Leg;
  readonly arbiter: Arbiter;
}

/** For MemoryManagerOptions.admit. Regions that are not among the legs are let alone. */
export function admitByRegister(legs: readonly MirroredLeg[]): (admission: Admission) => Promise<boolean> {
  const byName = new Map(legs.map((leg) => [leg.region, leg]));
  return async ({ region, peer, purpose, signal }) => {
    const mirrored = byName.get(region);
    if (mirrored === undefined) return false;
    if (purpose === 'write')
      throw new HoldfastError(
        'ERR_HOLDFAST_ACCESS',
        `${region} is mirrored over two units: to write to it, take over both of its legs (MirroredAccess)`,
      );
    const standing = await standingIn(mirrored.arbiter, signal);
    if (admits(standing, mirrored.leg, peer, purpose)) return true;
    if (purpose === 'rebuild')
      throw new HoldfastError('ERR_HOLDFAST_FENCED', `${peer} is not, or no longer, who rebuilds ${region} here`);
    throw new HoldfastError(
      'ERR_HOLDFAST_INCONSISTENT',
      `${region} is not in sync in this unit; use the other one until its writer has rebuilt it here`,
    );
  };
}

async function standingIn(arbiter: Arbiter, signal: AbortSignal): Promise<Standing | undefined> {
  const result = await arbiter.compareAndSwap('', '', signal);
  return result.swapped ? undefined : parseRegister(result.current);
}
