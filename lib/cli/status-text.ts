/** Status in words, as `zpool status` has it: what the state is, what is wrong, what to do, under which code. Pure. */
import { formatSize } from '../daemon/sizes.ts';
import type {
  CopyStatus,
  DaemonStatus,
  ExportStatus,
  LinkReport,
  ManagerReport,
  MemoryStatus,
  MirroredRegionStatus,
  Problem,
  Refusal,
  ResyncStatus,
  TieBreakerStatus,
  UnitReport,
  VolumeStatus,
  VoterStatus,
} from '../daemon/status.ts';
import { formatDuration, shownPercent } from './progress.ts';

export function statusText(status: DaemonStatus): string {
  const engine = status.engine ? `, ${status.engine.name} (${status.engine.reason})` : '';
  const lines = [
    `  node: ${status.node} of ${status.cluster}, up ${formatDuration(status.upMs)}${engine}`,
    ...block('links', status.links.map(linkLine)),
    ...block('exports', status.exports.map(exportLine)),
    ...status.volumes.flatMap((volume) => ['', ...volumeLines(volume)]),
    ...status.tieBreakers.flatMap((tieBreaker) => ['', ...tieBreakerLines(tieBreaker)]),
    ...status.mirroredRegions.flatMap((region) => ['', ...mirroredLines(region)]),
    ...(status.memory ? ['', ...memoryLines(status.memory)] : []),
  ];
  return `${lines.join('\n')}\n`;
}

/** `title: first`, and the others below it. */
function block(title: string, rows: readonly string[]): string[] {
  return rows.map((row, index) => field(index === 0 ? title : '', row));
}

function field(title: string, text: string): string {
  const name = title === '' ? ' '.repeat(9) : `${title.padStart(7)}: `;
  return `${name}${text.replaceAll('\n', `\n${' '.repeat(9)}`)}`;
}

function volumeLines(volume: VolumeStatus): string[] {
  const serving = volume.serving.length === 0 ? '' : `, served by ${volume.serving.join(' and ')}`;
  return [
    field('volume', `${volume.name}, ${formatSize(volume.sizeBytes)}${serving}`),
    field('state', volume.state),
    ...volume.problems.flatMap(problemAndAction),
    ...(volume.resync ? [field('resync', resyncLine(volume.resync))] : []),
    ...block('copies', volume.copies.map(copyLine)),
    ...block('voters', volume.voters.map(voterLine)),
  ];
}

function problemAndAction({ message, action, code }: Problem): string[] {
  return [field('status', message), ...(action === '' ? [] : [field('action', action)]), field('see', code)];
}

function tieBreakerLines({ volume, stateFile, members, problem }: TieBreakerStatus): string[] {
  return [
    field('volume', `${volume}, no copy here: this node is its tie-breaker`),
    field('state', problem === null ? 'Voting' : 'Failed'),
    ...problemLines(problem),
    field('file', stateFile),
    ...block(
      'members',
      members.map(({ node, connected }) => `${node}  ${connected ? 'Connected' : 'Connecting'}`),
    ),
  ];
}

function mirroredLines(region: MirroredRegionStatus): string[] {
  const { name, role, state, problems, voters, stateFile } = region;
  const part = role === 'tie-breaker' ? ': this node is its tie-breaker' : '';
  return [
    field('region', `${name}, mirrored over ${region.units.map(({ unit }) => unit).join(' and ')}${part}`),
    field('state', state),
    ...problems.flatMap(problemAndAction),
    ...(region.rebuild ? [field('rebuild', `of ${region.rebuild.unit}: ${progressText(region.rebuild)}`)] : []),
    ...block('units', mirroredUnits(region)),
    ...(region.writer === null ? [] : [field('writer', mirroredWriter(region))]),
    ...block('voters', voters.map(voterLine)),
    field('file', stateFile),
  ];
}

/** As far as this node knows. */
export function mirroredUnits({ units, isCurrent }: MirroredRegionStatus): string[] {
  const known = isCurrent ? '' : ' when this node voted last';
  const word = (inSync: boolean | null) => {
    if (inSync === null) return isCurrent ? 'not written yet' : 'not known';
    return `${inSync ? 'in sync' : 'out of sync'}${known}`;
  };
  return units.map(({ unit, inSync }) => `${unit} ${word(inSync)}`);
}

/** Who it is, if there is one. */
export function mirroredWriter({ writer, epoch }: MirroredRegionStatus): string {
  return `${writer}, epoch ${epoch}`;
}

/** As many as a screen has room for; --json has more. */
const REFUSALS_MAX = 5;

function memoryLines({ unit, manager, refusals }: MemoryStatus): string[] {
  return [
    ...(unit ? unitLines(unit) : []),
    ...(manager ? managerLines(manager) : []),
    ...block('refused', refusals.slice(-REFUSALS_MAX).map(refusalLine)),
  ];
}

function unitLines({ name, file, sizeBytes, means, keys, failure }: UnitReport): string[] {
  return [
    field(
      'memory',
      `unit ${name}, ${formatSize(sizeBytes)} by ${means}, ${keys === 1 ? '1 key' : `${keys} keys`}  ${file}`,
    ),
    field('state', failure === null ? 'Online' : 'Failed'),
    ...problemLines(failure),
  ];
}

function managerLines({ unit, regions, space, problem }: ManagerReport): string[] {
  const erasing = space && space.erasingBytes > 0 ? `, ${formatSize(space.erasingBytes)} being zeroed` : '';
  const room = space ? `, ${formatSize(space.freeBytes)} free${erasing}` : '; the unit is not there yet';
  return [
    field('manager', `of unit ${unit}: ${regions === 1 ? '1 region' : `${regions} regions`}${room}`),
    ...problemLines(problem),
  ];
}

function problemLines(problem: { code: string; message: string } | null): string[] {
  return problem === null ? [] : [field('status', problem.message), field('see', problem.code)];
}

function refusalLine({ peer, region, reason, code, count }: Refusal): string {
  const where = region === null ? '' : ` at region ${region}`;
  return `${peer ?? 'nobody known'}${where}: ${reason} (${code})${count === 1 ? '' : `, ${count} times`}`;
}

function voterLine({ node, inReach, problem }: VoterStatus): string {
  const why = problem === null ? '' : `: ${problem.message} (${problem.code})`;
  return `${node}  ${inReach ? 'in reach' : 'out of reach'}${why}`;
}

function resyncLine(resync: ResyncStatus): string {
  const { totalBytes, role, peer } = resync;
  const direction = role === 'SyncSource' || role === 'PausedSyncS' ? `to ${peer}` : `from ${peer}`;
  if (totalBytes === 0) return `${role}, ${direction}; how far it is, is known there`;
  return `${role}, ${direction}: ${progressText(resync)}`;
}

type Progress = Pick<ResyncStatus, 'doneBytes' | 'totalBytes' | 'bytesPerSecond' | 'toGoMs'>;

function progressText({ doneBytes, totalBytes, bytesPerSecond, toGoMs }: Progress): string {
  const toGo = toGoMs === null ? 'time to go not known yet' : `${formatDuration(toGoMs)} to go`;
  const percent = shownPercent(doneBytes, totalBytes).toFixed(1);
  const amount = `${formatSize(Math.min(doneBytes, totalBytes))} of ${formatSize(totalBytes)}`;
  return `${percent} %, ${amount}, ${formatSize(bytesPerSecond)}/s, ${toGo}`;
}

function copyLine(copy: CopyStatus): string {
  const outOfSync = copy.outOfSyncBytes > 0 ? `, ${formatSize(copy.outOfSyncBytes)} out of sync` : '';
  return `${copy.node}  ${copy.disk}${outOfSync}${copy.device === null ? '' : `  ${copy.device}`}`;
}

function linkLine(link: LinkReport): string {
  const path = link.path === null ? '' : ` at ${link.path}`;
  const time = link.roundTripMs === null ? '' : `, ${link.roundTripMs.toFixed(2)} ms`;
  const problem = link.problem ? `: ${link.problem.message} (${link.problem.code})` : '';
  return `${link.peer}  ${link.client && link.state === 'Connecting' ? 'client, away' : link.state}${path}${time}${problem}`;
}

function exportLine(exported: ExportStatus): string {
  const count = exported.connections;
  const clients = count === 1 ? '1 client' : `${count} clients`;
  return `${exported.name} at ${exported.address}, ${exported.target}${exported.readOnly ? ', read-only' : ''}, ${clients}`;
}
