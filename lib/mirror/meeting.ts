/** What two members tell each other when they meet, seen by the one that judges it. Pure. */
import type { Meeting } from './protocol.ts';
import type { MeetingState, MeetingVerdict } from './view.ts';

/** What keeps a volume from full health: a stable code, and in words what is wrong and what to do. */
export interface Problem {
  readonly code: string;
  readonly message: string;
}

export function stateOf(meeting: Meeting): MeetingState {
  const { member, record, blank, unmarked, unbroken } = meeting;
  return { member, record, blank, unmarked, unbroken };
}

/** Settings that both sides must agree on before they compare anything. */
export function disagreement(mine: Meeting, theirs: Meeting): Problem | undefined {
  if (mine.failed || theirs.failed) {
    const whose = mine.failed ? 'own' : "peer's";
    return {
      code: 'ERR_HOLDFAST_DEVICE_FAILED',
      message: `the ${whose} device has failed; replace it and restart that server`,
    };
  }
  if (mine.member === theirs.member) {
    return {
      code: 'ERR_HOLDFAST_SAME_MEMBER',
      message: `both sides say that they are member ${mine.member}; list the members in the same order on both`,
    };
  }
  for (const setting of ['sizeBytes', 'grainBytes', 'policingExtentBytes', 'onLostPeer'] as const) {
    if (mine[setting] !== theirs[setting]) {
      return {
        code: 'ERR_HOLDFAST_SETTINGS_DIFFER',
        message: `${setting} is ${mine[setting]} here and ${theirs[setting]} at the peer; give the volume the same settings on both`,
      };
    }
  }
  return undefined;
}

export function refusalMessage(
  verdict: Extract<MeetingVerdict, { kind: 'refuse' }>,
  names: readonly [string, string],
  mine: Meeting,
  theirs: Meeting,
): string {
  switch (verdict.code) {
    case 'ERR_HOLDFAST_SPLIT_BRAIN':
      return `both copies have changed independently since they parted: ${splitPreview(names, mine, theirs)}; choose the one to keep and create the other anew with --overwrite`;
    case 'ERR_HOLDFAST_UNRELATED_DATA':
      return 'the copies have no common past; check that both belong to this volume, and create the one to give up anew with --overwrite';
    case 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY':
      return 'neither copy is known to be up to date; choose one with `holdfast force`';
  }
}

/** Which side of a split brain changed last, and what giving up either would lose. */
function splitPreview(names: readonly [string, string], mine: Meeting, theirs: Meeting): string {
  const [newer, older] = mine.changedAtMs >= theirs.changedAtMs ? [mine, theirs] : [theirs, mine];
  const lost = ({ member, changedBytes, changedAtMs }: Meeting) =>
    `giving up ${names[member]} would lose up to ${changedBytes} bytes that changed there (last ${new Date(changedAtMs).toISOString()})`;
  return `${names[newer.member]} has the newer changes, ${lost(newer)}, ${lost(older)}`;
}

export function encodeClaims(extents: readonly number[]): Uint8Array {
  const bytes = Buffer.alloc(extents.length * 4);
  for (const [index, extent] of extents.entries()) bytes.writeUInt32LE(extent, index * 4);
  return bytes;
}

/** The frame bounds the length; policing.ts checks the extents. */
export function decodeClaims(data: Uint8Array): number[] {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.length);
  return Array.from({ length: Math.floor(bytes.length / 4) }, (_, index) => bytes.readUInt32LE(index * 4));
}
