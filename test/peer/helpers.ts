import { z } from 'zod';
import type { Environment } from '../../lib/base/environment.ts';
import type { Address } from '../../lib/base/network.ts';
import { createPeerNode, type PeerNodeOptions } from '../../lib/peer/node.ts';
import type { Method, PeerNode, PeerSession } from '../../lib/peer/peer.ts';

export const KEY = Buffer.from('a key of the cluster, 32 bytes..');

export function method(fields: Partial<Method<number, number>> = {}): Method<number, number> {
  return {
    id: 1,
    name: 'echo',
    channel: 'bulk',
    request: z.number(),
    response: z.number(),
    maxRequestDataBytes: 1024 * 1024,
    maxResponseDataBytes: 1024 * 1024,
    ...fields,
  };
}

/** Answers with the number plus one, and the data as it came. */
export const ECHO = method();
/** The same, over the control channel, without data. */
export const PING = method({
  id: 2,
  name: 'ping',
  channel: 'control',
  maxRequestDataBytes: 0,
  maxResponseDataBytes: 0,
});

export interface TestNode {
  readonly node: PeerNode;
  readonly ups: PeerSession[];
  /** Reasons. */
  readonly downs: string[];
}

export function testNode(
  environment: Environment,
  name: string,
  listen: Address | undefined,
  peers: PeerNodeOptions['peers'],
  options: Partial<PeerNodeOptions> = {},
  prepare: (node: PeerNode) => void = echoes,
): TestNode {
  const node = createPeerNode({
    environment,
    name,
    clusterId: 'test',
    key: KEY,
    peers,
    ...(listen && { listen }),
    ...options,
  });
  const ups: PeerSession[] = [];
  const downs: string[] = [];
  node.subscribe({
    onSessionUp: (session) => void ups.push(session),
    onSessionDown: (_session, reason) => void downs.push(reason),
  });
  prepare(node);
  return { node, ups, downs };
}

export function echoes(node: PeerNode): void {
  node.handle(ECHO, async ({ control, data }) => ({ control: control + 1, data: [data] }));
  node.handle(PING, async ({ control }) => ({ control: control + 1 }));
}
