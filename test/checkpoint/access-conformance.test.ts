import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { openPlaneAccess } from '../../lib/checkpoint/plane-access.ts';
import type { PlaneSession } from '../../lib/checkpoint/plane-client.ts';
import { accessConformance } from '../conformance/region-access.ts';
import { UnitOverNetwork } from './unit-over-network.ts';

accessConformance('over sessions between peers', async () => {
  const network = await new UnitOverNetwork().start(false);
  return {
    control: network.unit,
    access: async (peer, context) => openAccess(network.session(peer), context),
    endSession: (peer) => network.endSession(peer),
    cleanUp: () => network.close(),
  };
});

accessConformance('over the plane', async () => {
  const network = await new UnitOverNetwork().start(true);
  const connections = new Map<string, PlaneSession>();
  return {
    control: network.unit,
    access: async (peer, context) => {
      const connection = connections.get(peer) ?? (await network.connect(peer));
      connections.set(peer, connection);
      return openPlaneAccess(connection, context);
    },
    endSession: (peer) => network.endSession(peer),
    cleanUp: () => network.close(),
  };
});

accessConformance('over both, in one region', async () => {
  const network = await new UnitOverNetwork().start(true);
  const connection = await network.connect('ben');
  return {
    control: network.unit,
    access: async (peer, context) =>
      peer === 'ann' ? openAccess(network.session(peer), context) : openPlaneAccess(connection, context),
    endSession: (peer) => network.endSession(peer),
    cleanUp: () => network.close(),
  };
});
