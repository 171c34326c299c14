/**
 * How a client's commands reach a unit: over the plane of the unit, where it has one that can be reached, else over the
 * session with it. All regions that are opened over one session share one connection to the plane.
 */
import type { Clock } from '../base/clock.ts';
import type { PeerSession } from '../peer/peer.ts';
import { openAccess } from './memory-session.ts';
import type { AddressContext, RegionAccess } from './one-sided.ts';
import { openPlaneAccess } from './plane-access.ts';
import type { PlaneSession } from './plane-client.ts';
import { connectPlane } from './plane-ticket.ts';

/** How the commands of one open region reach its unit. */
export type MemoryTransport = (session: PeerSession, context: AddressContext) => RegionAccess | Promise<RegionAccess>;

/** Only for clusters whose link is dedicated: to a plane commands and keys go in the clear. */
export function planeTransport(clock: Clock): MemoryTransport {
  /** None: the unit has no plane, or it cannot be reached. */
  const planes = new WeakMap<PeerSession, Promise<PlaneSession | undefined>>();
  const connect = (session: PeerSession): Promise<PlaneSession | undefined> => {
    const plane = connectPlane(session, { clock }).catch(() => undefined);
    planes.set(session, plane);
    return plane;
  };
  return async (session, context) => {
    const known = planes.get(session) ?? connect(session);
    let plane = await known;
    // Unless another one has begun to: a second connection would take the place of the first.
    if (plane?.open === false) plane = await (planes.get(session) === known ? connect(session) : planes.get(session));
    return plane === undefined ? openAccess(session, context) : openPlaneAccess(plane, context);
  };
}
