/** Two servers with a mirrored volume, of whatever make, that faults are done to. */
import type { NodeName } from '../cluster.ts';
import type { LoadTarget } from '../stamped-load.ts';

export interface Lab extends LoadTarget, AsyncDisposable {
  /** Its clients must keep apart: those of one server use no block of the other's. */
  readonly apart: boolean;
  /** Takes the power from a server, or ends its process. */
  kill(node: NodeName): Promise<void>;
  /** Starts a server again, as its machine would do by itself. */
  start(node: NodeName): Promise<void>;
  pause(node: NodeName): void;
  resume(node: NodeName): void;
  /** What `from` sends does not reach `to` any more. */
  cut(from: NodeName, to: NodeName): Promise<void>;
  /** Everything reaches everybody again, and what a fault has switched off is switched on. */
  heal(): Promise<void>;
  /** Waits until both copies are up to date and clients are served; what stands in the way if they are not in time. */
  inOrder(limitMs: number): Promise<string | undefined>;
  /** Does what an operator has to do, for the copy of that server; says what. */
  byHand(keep: NodeName): Promise<string>;
  /** Where clients are served. */
  serving(): Promise<readonly NodeName[]>;
  /** Ends service, so that the copies can be compared. */
  rest(): Promise<void>;
  firstDifference(): Promise<number | undefined>;
}

export function otherNode(node: NodeName): NodeName {
  return node === 'a' ? 'b' : 'a';
}
