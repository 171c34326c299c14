/**
 * What the manager of a unit asks before it gives a key to a leg of a mirrored region: the register, by a compare-and-swap
 * that changes nothing. A unit that was away gives no key to what it has until its leg is named again.
 *
 * Invariant: whoever gets a key to a leg uses it as this leg of this mirrored region.
 */
import { HoldfastError } from '../base/errors.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import type { Admission } from './manager.ts';
import { admits, hasLeg, type Leg, type Standing } from './mirror-standing.ts';
import { parseRegister } from './mirrored-access.ts';

/** A region of this unit that is a leg of a mirrored one. */
export interface MirroredLeg {
  /** Name of the region in this unit. */
  readonly region: string;
  /** 32 hexadecimal digits. */
  readonly registerId: string;
  readonly leg: Leg;
  readonly arbiter: Arbiter;
}

/** For MemoryManagerOptions.admit. Regions that are not among the legs are let alone. */
export function admitByRegister(legs: readonly MirroredLeg[]): (admission: Admission) => Promise<boolean> {
  const byName = new Map(legs.map((leg) => [leg.region, leg]));
  return async (admission) => {
    const { region, peer, purpose, place, signal } = admission;
    const mirrored = byName.get(region);
    if (mirrored === undefined) return false;
    if (purpose === 'create' || purpose === 'delete') {
      checkExpendable(admission, mirrored, await standingIn(mirrored.arbiter, signal));
      return true;
    }
    if (place === undefined || purpose === 'write')
      throw new HoldfastError(
        'ERR_HOLDFAST_ACCESS',
        `${region} is mirrored over two units, and used in both together only: open it by connectMirroredMemory`,
      );
    if (place.register !== mirrored.registerId || place.leg !== mirrored.leg)
      throw new HoldfastError(
        'ERR_HOLDFAST_SETTINGS_DIFFER',
        `${region} is leg ${WORDS[mirrored.leg]} of register ${mirrored.registerId} here, and ${peer} takes it for leg ${WORDS[place.leg]} of register ${place.register}; give it the same id and the units in the same order`,
      );
    const standing = await standingIn(mirrored.arbiter, signal);
    if (admits(standing, mirrored.leg, peer, purpose)) return true;
    throw notAdmitted(admission, standing);
  };
}

const WORDS = ['a', 'b'] as const;

/** A leg that has all that was acknowledged is not thrown away, and no blank one takes its place. */
function checkExpendable({ region, purpose }: Admission, { leg }: MirroredLeg, standing: Standing | undefined): void {
  if (standing === undefined || !hasLeg(standing.inSync, leg)) return;
  if (purpose === 'delete')
    throw new HoldfastError(
      'ERR_HOLDFAST_REFUSED',
      `${region} is mirrored, and in sync in this unit; to delete it take it out of the mirrored regions first, in the configuration of both units`,
    );
  throw new HoldfastError(
    'ERR_HOLDFAST_REFUSED',
    `the register of ${region} says that this unit has all that was written to it, and a new region would be blank; open it as its writer first, which leaves this unit out, then create it here`,
  );
}

function notAdmitted({ region, peer, purpose }: Admission, standing: Standing | undefined): HoldfastError {
  if (purpose === 'rebuild')
    return new HoldfastError('ERR_HOLDFAST_FENCED', `${peer} is not, or no longer, who rebuilds ${region} here`);
  if (standing === undefined)
    return new HoldfastError(
      'ERR_HOLDFAST_INCONSISTENT',
      `nobody has written ${region} yet; open it as its writer first`,
    );
  return new HoldfastError(
    'ERR_HOLDFAST_INCONSISTENT',
    `${region} is not in sync in this unit; use the other one until its writer has rebuilt it here`,
  );
}

async function standingIn(arbiter: Arbiter, signal: AbortSignal): Promise<Standing | undefined> {
  const result = await arbiter.compareAndSwap('', '', signal);
  return result.swapped ? undefined : parseRegister(result.current);
}
