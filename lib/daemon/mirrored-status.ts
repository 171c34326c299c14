/** How a mirrored region stands, in the words of a status. Pure. */
import { hasLeg, LEGS, type Leg, type Standing } from '../checkpoint/mirror-standing.ts';
import type { VoterReach } from '../peer/register-driver.ts';
import type { MirroredRegionConfig } from './config.ts';
import type { MirroredRegionStatus, Problem } from './status.ts';
import { split } from './volume-status.ts';

/** Said every second while it is under way. */
const REBUILD_HEARD_MS = 5000;

/** What a peer says of a rebuild: its last report, and the first one of the same rebuild. */
export interface RebuildHeard {
  readonly peer: string;
  readonly leg: Leg;
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly firstMs: number;
  readonly firstBytes: number;
  readonly lastMs: number;
}

/** What a node knows of a mirrored region. */
export interface MirroredRegionView {
  readonly region: MirroredRegionConfig;
  /** This node. */
  readonly self: string;
  /** Of its vote. */
  readonly stateFile: string;
  /** It has no manager of a unit, and asks nobody. */
  readonly isTieBreaker: boolean;
  /** A majority was asked just now; else the standing is as this node has voted last. */
  readonly isCurrent: boolean;
  /** This node's unit has the region; undefined: it has no unit, or that is not known. */
  readonly isCreated: boolean | undefined;
  /** The register holds something else. */
  readonly isForeign: boolean;
  /** Undefined: nobody has written the region yet, or that is not known. */
  readonly standing: Standing | undefined;
  readonly voters: readonly VoterReach[];
  readonly rebuild: RebuildHeard | undefined;
  readonly nowMs: number;
}

export function mirroredRegionStatus(view: MirroredRegionView): MirroredRegionStatus {
  const { region, stateFile, standing, isCurrent, isTieBreaker, voters } = view;
  return {
    name: region.name,
    id: region.id,
    role: isTieBreaker ? 'tie-breaker' : 'manager',
    state: stateOf(view),
    problems: problemsOf(view),
    isCurrent,
    rebuild: rebuildOf(view),
    writer: standing?.writer ?? null,
    epoch: standing?.epoch ?? null,
    units: LEGS.map((leg) => {
      const { unit, manager } = region.units[leg];
      return { unit, manager, inSync: standing === undefined ? null : hasLeg(standing.inSync, leg) };
    }),
    voters: voters.map(({ name, isInReach, problem }) => ({
      node: name,
      inReach: isInReach,
      problem: problem === undefined ? null : { code: problem.code, message: problem.message },
    })),
    stateFile,
  };
}

/** Only by the writer of now, of a unit that is not in sync, and if it is news. */
function rebuildOf({ region, standing, rebuild, nowMs }: MirroredRegionView): MirroredRegionStatus['rebuild'] {
  if (rebuild === undefined || nowMs - rebuild.lastMs > REBUILD_HEARD_MS) return null;
  const { peer, leg, doneBytes, totalBytes, firstMs, firstBytes, lastMs } = rebuild;
  if (standing?.writer !== peer || (hasLeg(standing.inSync, leg) && standing.equal)) return null;
  const isKnown = lastMs > firstMs && doneBytes > firstBytes;
  const bytesPerSecond = isKnown ? ((doneBytes - firstBytes) * 1000) / (lastMs - firstMs) : 0;
  const toGoMs = isKnown ? Math.round(((totalBytes - doneBytes) * 1000) / bytesPerSecond) : null;
  return { unit: region.units[leg].unit, doneBytes, totalBytes, bytesPerSecond: Math.round(bytesPerSecond), toGoMs };
}

function stateOf({ isTieBreaker, isCurrent, isForeign, standing, voters, self }: MirroredRegionView) {
  if (voters.some(({ name, isInReach }) => name === self && !isInReach) || isForeign) return 'Failed';
  if (isTieBreaker) return 'Voting';
  if (!isCurrent) return 'Unknown';
  if (standing === undefined) return 'New';
  if (!standing.equal) return 'TakingOver';
  return standing.inSync === 3 ? 'Online' : 'Degraded';
}

function problemsOf(view: MirroredRegionView): Problem[] {
  const { region, isForeign, isTieBreaker, isCurrent, voters, self } = view;
  const own = voters.find(({ name }) => name === self)!.problem;
  if (own !== undefined) return [{ code: own.code, ...split(own.message) }];
  if (isForeign)
    return [
      {
        code: 'ERR_HOLDFAST_METADATA_MISMATCH',
        message: `The register ${region.id} holds no record of a mirrored region.`,
        action: 'Give each region an id of its own.',
      },
    ];
  if (isTieBreaker) return [];
  const away = voters.filter(({ isInReach }) => !isInReach).map(({ name }) => name);
  if (!isCurrent)
    return [
      {
        code: 'HOLDFAST-NO-QUORUM',
        message: `No majority of ${voters.map(({ name }) => name).join(', ')} says how the region stands: nobody opens it, and its writer waits if it loses a unit.`,
        action: away.length === 0 ? '' : `Bring ${away.join(' or ')} back.`,
      },
    ];
  const awayProblems = voters
    .filter(({ isInReach }) => !isInReach)
    .map(({ name, problem }) => ({
      code: 'HOLDFAST-VOTER-AWAY',
      message: `${name} ${problem === undefined ? 'is away, and has no vote' : `does not vote: ${problem.message}`}.`,
      action: `Bring ${name} back: without it and one more nobody can say which unit is in sync.`,
    }));
  return [...awayProblems, ...standingProblems(view)];
}

/** The unit has lost its memory, or is a new one. */
function blankProblem({ region, self }: MirroredRegionView, { inSync }: Standing): Problem {
  const leg = LEGS.find((each) => region.units[each].manager === self)!;
  const make = `\`holdfast memory create-region ${region.name} SIZE\`, and allow those who use it`;
  return {
    code: 'HOLDFAST-UNIT-BLANK',
    message: `Unit ${region.units[leg].unit} has no region ${region.name}${hasLeg(inSync, leg) ? ', although it was in sync' : ''}.`,
    action: hasLeg(inSync, leg)
      ? `Let its writer open the region, or go on, without this unit; then make it here: ${make}.`
      : `Make it here, as long as in the other unit: ${make}. The region's writer fills it by itself.`,
  };
}

function standingProblems(view: MirroredRegionView): Problem[] {
  const { region, standing, isCreated } = view;
  if (standing === undefined) return [];
  if (isCreated === false) return [blankProblem(view, standing)];
  if (standing.inSync === 3 && standing.equal) return [];
  if (!standing.equal)
    return [
      {
        code: 'HOLDFAST-TAKE-OVER',
        message: `${standing.writer} takes the region over: both units are made alike before anything is acknowledged.`,
        action: 'If it stays so, open the region as its writer again.',
      },
    ];
  const [copy, other] = hasLeg(standing.inSync, 0) ? [0, 1] : [1, 0];
  if (rebuildOf(view) !== null)
    return [
      {
        code: 'HOLDFAST-RESYNC',
        message: `${standing.writer} rebuilds unit ${region.units[other!]!.unit}: until then only ${region.units[copy!]!.unit} is a copy.`,
        action: '',
      },
    ];
  return [
    {
      code: 'HOLDFAST-UNIT-OUT',
      message: `Unit ${region.units[other!]!.unit} does not have all that was acknowledged: only ${region.units[copy!]!.unit} is a copy.`,
      action: outAction(view, region.units[copy!]!, region.units[other!]!),
    },
  ];
}

type MirroredUnitConfig = MirroredRegionConfig['units'][number];

function outAction({ voters }: MirroredRegionView, copy: MirroredUnitConfig, out: MirroredUnitConfig): string {
  const isAway = ({ manager }: MirroredUnitConfig) =>
    voters.some(({ name, isInReach }) => name === manager && !isInReach);
  if (isAway(copy)) return `Bring unit ${copy.unit} back: nobody can use the region without it.`;
  if (isAway(out)) return `Bring unit ${out.unit} back; the region's writer rebuilds it by itself.`;
  return `If unit ${out.unit} is there, the region's writer rebuilds it by itself; if there is no writer, open the region as one.`;
}
