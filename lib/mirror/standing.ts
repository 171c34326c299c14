/**
 * What a member may do while it is not in session with its peer. Pure; docs/mirror.md has the table, and
 * test/mirror/standing.test.ts is the table.
 */
import { BOTH, isInSync, type MemberIndex, type MemberRecord, maskOf, mayServe } from './view.ts';

/**
 * What a member does that has lost its peer. `suspend`: nothing. `preferred`: only that one goes on. `continue`: each
 * does; if both have, they find a split brain when they meet. `majority`: the one that a majority of the voters lets.
 */
export type OnLostPeer =
  | { readonly kind: 'suspend' }
  | { readonly kind: 'preferred'; readonly member: MemberIndex }
  | { readonly kind: 'continue' }
  | { readonly kind: 'majority' };

export interface AloneSituation {
  readonly record: MemberRecord;
  readonly self: MemberIndex;
  readonly onLostPeer: OnLostPeer;
  /** Nothing that the peer may rely on is left: every lease that was granted to it, by this or an earlier process, is over. */
  readonly leasesOver: boolean;
  /** With `majority`: this process has heard from a majority that the view which it knows is the newest. */
  readonly confirmed: boolean;
}

export type AloneVerdict =
  /** Serves: it is the only in-sync member of the newest view. */
  | { readonly kind: 'serve'; readonly rule: string }
  /** Makes a view of itself alone, durably, then serves. */
  | { readonly kind: 'go-alone'; readonly rule: string }
  /** Has a majority decide that the view is of this member alone; serves if it does. */
  | { readonly kind: 'ask-majority'; readonly rule: string }
  /** As soon as all leases are over, the answer may be another. */
  | { readonly kind: 'await-leases'; readonly rule: string }
  /** Serves nothing until it has met its peer, or is forced by name. */
  | { readonly kind: 'wait'; readonly rule: string };

export function standAlone(situation: AloneSituation): AloneVerdict {
  const { record, self, onLostPeer, leasesOver, confirmed } = situation;
  const needsMajority = onLostPeer.kind === 'majority' && !confirmed;
  if (record.dataState === 'created') return { kind: 'wait', rule: 'created' };
  if (record.dataState === 'inconsistent') return { kind: 'wait', rule: 'inconsistent' };
  if (!isInSync(record.known, self)) return { kind: 'wait', rule: 'outdated' };
  if (record.known.inSync === maskOf(self)) {
    return { kind: needsMajority ? 'ask-majority' : 'serve', rule: 'alone-in-view' };
  }
  if (onLostPeer.kind === 'suspend') return { kind: 'wait', rule: 'suspend' };
  if (onLostPeer.kind === 'preferred' && onLostPeer.member !== self) return { kind: 'wait', rule: 'peer-is-preferred' };
  if (!leasesOver) return { kind: 'await-leases', rule: onLostPeer.kind };
  return { kind: onLostPeer.kind === 'majority' ? 'ask-majority' : 'go-alone', rule: onLostPeer.kind };
}

/** The states of a copy, in DRBD's words. */
export type CopyState = 'UpToDate' | 'Consistent' | 'Inconsistent' | 'Outdated' | 'Failed' | 'Diskless' | 'DUnknown';

/** What a member can say of its own copy from its record alone. */
export function ownCopyState(record: MemberRecord, self: MemberIndex, inTouch: boolean): CopyState {
  if (record.dataState !== 'up-to-date') return 'Inconsistent';
  if (!mayServe(record, self)) return 'Outdated';
  return record.known.inSync === BOTH && !inTouch ? 'Consistent' : 'UpToDate';
}
