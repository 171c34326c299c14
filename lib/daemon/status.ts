/**
 * What a server says about itself: the whole of `holdfast status --json`, and what the words of `holdfast status` are
 * made from. Names and states of copies and links are DRBD's, since the field knows them. Fields are added, never renamed.
 */
import { z } from 'zod';

/** What is wrong and what to do about it, under a code that stays the same. */
export const problemSchema = z.object({
  code: z.string(),
  /** What is wrong. */
  message: z.string(),
  /** What to do; empty if nothing needs to be done. */
  action: z.string(),
});

const diskState = z.enum([
  'UpToDate',
  'Consistent',
  'Inconsistent',
  'Outdated',
  'Failed',
  'Diskless',
  'DUnknown',
  'Attaching',
]);

const copySchema = z.object({
  node: z.string(),
  local: z.boolean(),
  disk: diskState,
  /** Path of the device, for this node's own copy. */
  device: z.string().nullable(),
  /** Marked for resync, as far as this node knows. */
  outOfSyncBytes: z.number(),
});

const voterSchema = z.object({
  node: z.string(),
  /** It can be asked now. */
  inReach: z.boolean(),
  /** Why it does not vote although there is a session with it. */
  problem: z.object({ code: z.string(), message: z.string() }).nullable(),
});

export const resyncSchema = z.object({
  role: z.enum(['SyncSource', 'SyncTarget', 'PausedSyncS', 'PausedSyncT']),
  peer: z.string(),
  doneBytes: z.number(),
  /** 0 at a target: only the source knows. */
  totalBytes: z.number(),
  bytesPerSecond: z.number(),
  /** Null as long as the rate is not known. */
  toGoMs: z.number().nullable(),
});

export const volumeStatusSchema = z.object({
  name: z.string(),
  id: z.string(),
  sizeBytes: z.number(),
  /** Online: all copies in order. Degraded: it serves, on fewer copies. Suspended: requests wait. Failed: they fail. */
  state: z.enum(['Online', 'Degraded', 'Suspended', 'Failed']),
  problems: z.array(problemSchema),
  copies: z.array(copySchema),
  resync: resyncSchema.nullable(),
  /** Who decides by majority who serves; none without `"quorum": "majority"`. */
  voters: z.array(voterSchema).default([]),
  /** The nodes whose copies serve, as far as this one knows; none while requests wait. */
  serving: z.array(z.string()),
  /** Sent by resyncs to or from this node since its process started. */
  resyncedBytes: z.number(),
});

/** A volume that this node has a vote in and no copy of. */
const tieBreakerSchema = z.object({
  volume: z.string(),
  id: z.string(),
  stateFile: z.string(),
  members: z.array(z.object({ node: z.string(), connected: z.boolean() })),
  /** Why it does not vote any more. */
  problem: z.object({ code: z.string(), message: z.string() }).nullable(),
});

/** A region that lies in two memory units, at a node that votes on how it stands. */
const mirroredRegionSchema = z.object({
  name: z.string(),
  /** Of its register. */
  id: z.string(),
  role: z.enum(['manager', 'tie-breaker']),
  /**
   * New: nobody has written it yet. Online: both units are in sync. Degraded: one is. TakingOver: both are being made
   * alike. Unknown: no majority can be asked. Voting: this node asks nobody. Failed: this node does not vote.
   */
  state: z.enum(['New', 'Online', 'Degraded', 'TakingOver', 'Unknown', 'Voting', 'Failed']),
  problems: z.array(problemSchema),
  /** The voters were asked just now; else writer, epoch and units are as this node has voted last, and may be old. */
  isCurrent: z.boolean(),
  /** A unit that its writer rebuilds now, as the writer says. */
  rebuild: z
    .object({
      unit: z.string(),
      doneBytes: z.number(),
      totalBytes: z.number(),
      bytesPerSecond: z.number(),
      /** Null as long as the rate is not known. */
      toGoMs: z.number().nullable(),
    })
    .nullable(),
  /** Name of the peer that may write; null: nobody yet. */
  writer: z.string().nullable(),
  /** Counts the take-overs. */
  epoch: z.number().nullable(),
  /** In sync: has all that was acknowledged. */
  units: z.array(z.object({ unit: z.string(), manager: z.string(), inSync: z.boolean().nullable() })),
  voters: z.array(voterSchema),
  /** Of this node's vote. */
  stateFile: z.string(),
});

const unitReportSchema = z.object({
  name: z.string(),
  file: z.string(),
  sizeBytes: z.number(),
  /** How what is acknowledged is made durable. */
  means: z.enum(['map-sync', 'msync', 'cache-flush']),
  /** That the manager has told it of; it knows no names. */
  regions: z.number(),
  /** That peers hold now. */
  keys: z.number(),
  /** Since the start. */
  reads: z.number(),
  readBytes: z.number(),
  writes: z.number(),
  writtenBytes: z.number(),
  /** Of the data plane; null: the unit has none. */
  plane: z.object({ host: z.string(), port: z.number(), connections: z.number() }).nullable(),
  persists: z.number(),
  refused: z.number(),
  /** Why nothing can be made durable any more. */
  failure: z.object({ code: z.string(), message: z.string() }).nullable(),
});

const managerReportSchema = z.object({
  /** Name of the unit. */
  unit: z.string(),
  regions: z.number(),
  /** Null until the directory has been read. */
  space: z.object({ freeBytes: z.number(), erasingBytes: z.number(), regionBytes: z.number() }).nullable(),
  /** What it failed at last, or what it waits for. */
  problem: z.object({ code: z.string(), message: z.string() }).nullable(),
});

const refusalSchema = z.object({
  /** Null: somebody who is no peer. */
  peer: z.string().nullable(),
  /** The unit tells the region's identifier, the manager its name. */
  region: z.string().nullable(),
  code: z.string(),
  reason: z.string(),
  /** Milliseconds since 1970. */
  firstMs: z.number(),
  lastMs: z.number(),
  count: z.number(),
});

export const memoryStatusSchema = z.object({
  /** Null where only the manager is. */
  unit: unitReportSchema.nullable(),
  /** Null where only the unit is. */
  manager: managerReportSchema.nullable(),
  /** The last ones, the newest last. */
  refusals: z.array(refusalSchema),
});

/** What `holdfast memory list` shows. */
export const memoryListingSchema = z.object({
  unit: z.string(),
  /** Those that the configuration names for this unit, also if they are not created here yet. */
  mirrored: z.array(mirroredRegionSchema).default([]),
  regions: z.array(
    z.object({
      name: z.string(),
      region: z.string(),
      sizeBytes: z.number(),
      epoch: z.number(),
      owner: z.string(),
      access: z.array(
        z.object({
          peer: z.string(),
          rights: z.array(z.enum(['read', 'write'])),
          range: z.object({ base: z.number(), lengthBytes: z.number() }).optional(),
        }),
      ),
    }),
  ),
});

export const linkStatusSchema = z.object({
  peer: z.string(),
  /** It only dials, and may be away. */
  client: z.boolean().default(false),
  state: z.enum(['Connected', 'Connecting', 'StandAlone']),
  path: z.string().nullable(),
  roundTripMs: z.number().nullable(),
  problem: z.object({ code: z.string(), message: z.string() }).nullable(),
});

export const exportStatusSchema = z.object({
  name: z.string(),
  address: z.string(),
  target: z.string(),
  readOnly: z.boolean(),
  connections: z.number(),
});

export const daemonStatusSchema = z.object({
  /** Version of this layout. */
  holdfast: z.literal(1),
  release: z.string(),
  cluster: z.string(),
  node: z.string(),
  pid: z.number(),
  upMs: z.number(),
  engine: z.object({ name: z.string(), reason: z.string() }).nullable(),
  links: z.array(linkStatusSchema),
  volumes: z.array(volumeStatusSchema),
  tieBreakers: z.array(tieBreakerSchema).default([]),
  exports: z.array(exportStatusSchema),
  mirroredRegions: z.array(mirroredRegionSchema).default([]),
  /** Null where there is neither a unit nor a manager. */
  memory: memoryStatusSchema.nullable().default(null),
});

export type Problem = z.infer<typeof problemSchema>;
export type CopyStatus = z.infer<typeof copySchema>;
export type ResyncStatus = z.infer<typeof resyncSchema>;
export type VolumeStatus = z.infer<typeof volumeStatusSchema>;
export type VoterStatus = z.infer<typeof voterSchema>;
export type TieBreakerStatus = z.infer<typeof tieBreakerSchema>;
export type MirroredRegionStatus = z.infer<typeof mirroredRegionSchema>;
export type LinkReport = z.infer<typeof linkStatusSchema>;
export type ExportStatus = z.infer<typeof exportStatusSchema>;
export type UnitReport = z.infer<typeof unitReportSchema>;
export type ManagerReport = z.infer<typeof managerReportSchema>;
export type Refusal = z.infer<typeof refusalSchema>;
export type MemoryStatus = z.infer<typeof memoryStatusSchema>;
export type MemoryListing = z.infer<typeof memoryListingSchema>;
export type DaemonStatus = z.infer<typeof daemonStatusSchema>;

/** True if there is nothing that anybody should look at. */
export function isHealthy(status: DaemonStatus): boolean {
  return (
    status.volumes.every((volume) => volume.state === 'Online') &&
    status.volumes.every((volume) => volume.voters.every((voter) => voter.inReach)) &&
    status.tieBreakers.every((tieBreaker) => tieBreaker.problem === null) &&
    status.mirroredRegions.every(isWell) &&
    (status.memory?.unit?.failure ?? null) === null &&
    (status.memory?.manager?.problem ?? null) === null &&
    status.links.every((link) => link.client || link.state === 'Connected')
  );
}

function isWell({ state, role, problems, voters }: MirroredRegionStatus): boolean {
  if (role === 'tie-breaker') return state === 'Voting';
  return (state === 'New' || state === 'Online') && problems.length === 0 && voters.every(({ inReach }) => inReach);
}
