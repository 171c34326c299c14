/**
 * What a volume's controller knows, in words: state, what is wrong, what to do, under a stable code. Pure. docs/cli.md
 * lists the codes.
 */
import type { ControllerStatus } from '../mirror/controller.ts';
import type { VoterReach } from '../peer/register-driver.ts';
import type { VolumeConfig } from './config.ts';
import type { CopyStatus, Problem, ResyncStatus, VolumeStatus } from './status.ts';

export interface VolumeFacts {
  readonly config: VolumeConfig;
  /** The node that says so, and its place among the members. */
  readonly node: string;
  /** There is a session with the peer. */
  readonly linked: boolean;
  readonly status: ControllerStatus;
  /** Sent or received by finished resyncs and the one under way. */
  readonly resyncedBytes: number;
  /** None where no majority decides. */
  readonly voters: readonly VoterReach[];
}

export function volumeStatus(facts: VolumeFacts): VolumeStatus {
  const { config, status } = facts;
  const own = config.members.find((member) => member.node === facts.node)!;
  const peer = config.members.find((member) => member.node !== facts.node)!;
  const state = stateOf(status);
  return {
    name: config.name,
    id: config.id,
    sizeBytes: config.sizeBytes,
    state,
    problems: problemsOf(facts, peer.node),
    copies: [
      {
        node: own.node,
        local: true,
        disk: status.ownState,
        device: own.device,
        outOfSyncBytes: status.role === 'target' ? (status.resync?.totalBytes ?? 0) : 0,
      },
      peerCopy(status, peer.node),
    ],
    resync: resyncOf(status, peer.node),
    voters: facts.voters.map(({ name, isInReach, problem }) => ({
      node: name,
      inReach: isInReach,
      problem: problem ?? null,
    })),
    serving: servingOf(status, own.node, peer.node),
    resyncedBytes: facts.resyncedBytes,
  };
}

function servingOf({ gate, role }: ControllerStatus, own: string, peer: string): string[] {
  if (gate.mode === 'closed') return [];
  if (gate.mode === 'forward') return [peer];
  return role === 'paired' ? [own, peer].sort() : [own];
}

/** A peer that requests are forwarded to serves, so its copy is up to date whatever was marked before. */
function peerCopy(status: ControllerStatus, peer: string): CopyStatus {
  const serves = status.gate.mode === 'forward';
  return {
    node: peer,
    local: false,
    disk: serves ? 'UpToDate' : status.peerState,
    device: null,
    outOfSyncBytes: serves ? 0 : status.markedBytes,
  };
}

function stateOf(status: ControllerStatus): VolumeStatus['state'] {
  if (status.gate.mode === 'closed') return status.ownState === 'Failed' ? 'Failed' : 'Suspended';
  const whole = status.role === 'paired' && status.ownState === 'UpToDate' && status.peerState === 'UpToDate';
  return whole && status.problem === undefined ? 'Online' : 'Degraded';
}

function resyncOf(status: ControllerStatus, peer: string): ResyncStatus | null {
  if (status.role === 'target')
    return { role: 'SyncTarget', peer, doneBytes: 0, totalBytes: 0, bytesPerSecond: 0, toGoMs: null };
  if (status.role !== 'source' || !status.resync) return null;
  const { doneBytes, totalBytes, rate, etaMs } = status.resync;
  return { role: 'SyncSource', peer, doneBytes, totalBytes, bytesPerSecond: Math.round(rate), toGoMs: etaMs ?? null };
}

/** Why requests wait, by the rule that the controller names. */
const SUSPENDED: Readonly<Record<string, (peer: string, volume: string, away: readonly string[]) => Problem>> = {
  created: (peer) => ({
    code: 'HOLDFAST-NEW',
    message: `The volume is new and has not met its copy at ${peer} yet; requests wait.`,
    action: `Start the server ${peer}.`,
  }),
  inconsistent: (peer, volume) => ({
    code: 'HOLDFAST-INCONSISTENT',
    message: `A resync into this copy was broken off: old and new blocks are mixed; requests wait.`,
    action: `Start the server ${peer}; the resync goes on by itself. Only if ${peer} is lost for good: holdfast force ${volume} --accept-inconsistent.`,
  }),
  outdated: (peer, volume) => ({
    code: 'HOLDFAST-OUTDATED',
    message: `${peer} went on without this copy, which is out of date; requests wait.`,
    action: `Start the server ${peer}. Only if it is lost for good, with its newer data: holdfast force ${volume}.`,
  }),
  suspend: (peer, volume) => ({
    code: 'HOLDFAST-SUSPENDED',
    message: `${peer} is away, and onLostPeer is "suspend"; requests wait.`,
    action: `Bring ${peer} back. Only if it is surely down and stays so: holdfast force ${volume}.`,
  }),
  'peer-is-preferred': (peer, volume) => ({
    code: 'HOLDFAST-NOT-PREFERRED',
    message: `${peer} is away, and it is the one that goes on alone; requests wait here.`,
    action: `Bring ${peer} back. Only if it is surely down and stays so: holdfast force ${volume}.`,
  }),
  'no-majority': (peer, volume, away) => ({
    code: 'HOLDFAST-NO-QUORUM',
    message: `No majority of the voters can be asked whether ${peer} went on (away: ${away.join(', ') || 'none just now'}); requests wait.`,
    action: `Bring one of ${away.join(', ') || peer} back. Only if ${peer} is surely down and stays so: holdfast force ${volume}.`,
  }),
};

function problemsOf({ config, linked, status, voters }: VolumeFacts, peer: string): Problem[] {
  const problems: Problem[] = [];
  if (status.problem) problems.push({ code: status.problem.code, ...split(status.problem.message) });
  if (status.gate.mode === 'closed') problems.push(...suspensionOf(status, peer, config.name, namesOfAway(voters)));
  else if (status.ownState === 'Failed') problems.push(withoutOwnCopy(peer, config.name));
  else if (status.role === 'none') problems.push(alone(peer, linked));
  else if (status.role === 'source' || status.role === 'target')
    problems.push({
      code: 'HOLDFAST-RESYNC',
      message: `The copy at ${status.role === 'source' ? peer : 'this node'} is being made equal; clients go on.`,
      action: '',
    });
  const tieBreaker = voters.find((voter) => voter.name === config.tieBreaker?.node);
  if (tieBreaker !== undefined && !tieBreaker.isInReach) problems.push(withoutVoter(tieBreaker, peer));
  return problems;
}

function namesOfAway(voters: readonly VoterReach[]): string[] {
  return voters.filter((voter) => !voter.isInReach).map((voter) => voter.name);
}

function withoutVoter({ name, problem }: VoterReach, peer: string): Problem {
  return {
    code: 'HOLDFAST-VOTER-AWAY',
    message: `The tie-breaker ${name} ${problem === undefined ? 'is away' : `does not vote: ${problem.message}`}.`,
    action: `Bring ${name} back: without it nobody can decide who goes on when this node and ${peer} lose each other.`,
  };
}

function withoutOwnCopy(peer: string, volume: string): Problem {
  return {
    code: 'HOLDFAST-NO-OWN-COPY',
    message: `This node's device has failed; requests go through ${peer}.`,
    action: `Stop this server, mend or replace the device, and make the member anew: holdfast create CONFIG ${volume} --overwrite DEVICE.`,
  };
}

function alone(peer: string, linked: boolean): Problem {
  if (linked)
    return {
      code: 'HOLDFAST-PEER-LEFT',
      message: `${peer} is there, but its copy has left; this node goes on alone and marks what ${peer} misses.`,
      action: `See the status at ${peer}.`,
    };
  return {
    code: 'HOLDFAST-PEER-AWAY',
    message: `${peer} is away; this node goes on alone and marks what ${peer} misses.`,
    action: `Bring ${peer} back; what it missed is sent by itself.`,
  };
}

function suspensionOf(status: ControllerStatus, peer: string, volume: string, away: readonly string[]): Problem[] {
  const reason = status.gate.reason ?? 'starting';
  const known = Object.hasOwn(SUSPENDED, reason) ? SUSPENDED[reason] : undefined;
  if (known) return [known(peer, volume, away)];
  // Said by the controller's own problem already.
  if (status.problem) return [];
  return [{ code: 'HOLDFAST-WAITING', message: `Requests wait: ${reason}.`, action: '' }];
}

/** Messages say what is wrong and, after a semicolon, what to do. */
export function split(message: string): { message: string; action: string } {
  const at = message.indexOf('; ');
  if (at < 0) return { message, action: '' };
  const action = message.slice(at + 2);
  return { message: message.slice(0, at), action: action.charAt(0).toUpperCase() + action.slice(1) };
}
