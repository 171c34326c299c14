/**
 * What a configuration may say: one strict schema, so that a misspelt setting is an error and never silently ignored.
 * docs/config.md describes every setting; a test parses its sample by this schema.
 */
import { z } from 'zod';
import { parseAddress, socketPathProblem } from './address.ts';
import { parseSize } from './sizes.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
/** The unit of comparison and repair; sizes of volumes are multiples of it. */
export const BLOCK_BYTES = 4 * KIB;

const name = z
  .string()
  .regex(/^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$/, 'is not a name; use 1 to 64 of A-Z a-z 0-9 . _ -');

const path = z
  .string()
  .min(1, 'is empty; give a path')
  .max(4096, 'is too long for a path')
  .refine((text) => !text.includes('\0'), 'holds a zero byte; give a path');

const uuid = z
  .string()
  .regex(
    /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i,
    'is not a UUID; `uuidgen` or `node -p "crypto.randomUUID()"` makes one',
  )
  .transform((text) => text.toLowerCase());

/** A UUID, with dashes or without; without from here on. */
const registerId = z
  .string()
  .transform((text) => text.replaceAll('-', '').toLowerCase())
  .pipe(z.string().regex(/^[0-9a-f]{32}$/, 'is not a UUID; `uuidgen` or `node -p "crypto.randomUUID()"` makes one'));

const address = z.string().transform((text, context) => {
  const parsed = parseAddress(text);
  const problem =
    typeof parsed === 'string' ? parsed : parsed.kind === 'unix' ? socketPathProblem(parsed.path) : undefined;
  if (typeof parsed !== 'string' && problem === undefined) return parsed;
  context.addIssue({ code: 'custom', message: problem ?? '' });
  return z.NEVER;
});

/** A size in bytes, or with a unit. */
function size(limits: { min: number; max: number; powerOfTwo?: boolean }) {
  return z
    .union([z.number(), z.string()], 'is not a size; write bytes or a text such as "64 KiB"')
    .transform((value, context) => {
      const bytes = typeof value === 'number' ? value : parseSize(value);
      const problem = sizeProblem(bytes, limits);
      if (bytes !== undefined && problem === undefined) return bytes;
      context.addIssue({ code: 'custom', message: problem ?? '' });
      return z.NEVER;
    });
}

function sizeProblem(
  bytes: number | undefined,
  limits: { min: number; max: number; powerOfTwo?: boolean },
): string | undefined {
  if (bytes === undefined || !Number.isSafeInteger(bytes))
    return 'is not a size; write bytes or a text such as "64 KiB"';
  if (bytes < limits.min) return `is too small; the least is ${limits.min} bytes`;
  if (bytes > limits.max) return `is too large; the most is ${limits.max} bytes`;
  if (limits.powerOfTwo && !Number.isInteger(Math.log2(bytes)))
    return `${bytes} is not a power of two; take ${2 ** Math.round(Math.log2(bytes))}`;
  if (bytes % BLOCK_BYTES !== 0)
    return `${bytes} is not a multiple of ${BLOCK_BYTES}; take ${bytes - (bytes % BLOCK_BYTES)}`;
  return undefined;
}

const milliseconds = (min: number, max: number) =>
  z
    .number()
    .int('is not a whole number of milliseconds')
    .min(min, `is too short; the least is ${min} ms`)
    .max(max, `is too long; the most is ${max} ms`);

const metadata = z
  .union([z.literal('internal'), z.strictObject({ file: path })], 'write "internal" or {"file": PATH}')
  .default('internal');

const member = z.strictObject({ node: name, device: path, metadata });

/** Without a majority that decides; then the default is "suspend". */
const onLostPeer = z
  .union(
    [z.enum(['suspend', 'continue']), z.strictObject({ preferred: name })],
    'write "suspend", "continue" or {"preferred": NODE}',
  )
  .optional();

/** Has a vote and no copy. */
const tieBreaker = z.strictObject({ node: name, stateFile: path });

const volume = z.strictObject({
  name,
  id: uuid,
  sizeBytes: size({ min: MIB, max: 8 * KIB ** 5 - BLOCK_BYTES }),
  ackMode: z.literal('durable').default('durable'),
  quorum: z.enum(['none', 'majority']).default('none'),
  tieBreaker: tieBreaker.optional(),
  onLostPeer,
  members: z
    .array(member)
    .length(2, 'a volume has two members in this version; name both, the one that first holds access first'),
  policingExtentBytes: size({ min: 64 * KIB, max: 1024 * MIB, powerOfTwo: true }).default(MIB),
  activityLogExtentBytes: size({ min: 64 * KIB, max: 1024 * MIB, powerOfTwo: true }).default(4 * MIB),
  bitmapGrainBytes: size({ min: BLOCK_BYTES, max: 64 * MIB, powerOfTwo: true }).default(64 * KIB),
});

/** A region of the same name in two units. */
const mirroredRegion = z.strictObject({
  name,
  id: registerId,
  units: z
    /** `stateFile`: of the vote, at the node with the unit's manager. */
    .array(z.strictObject({ unit: name, stateFile: path }))
    .length(2, 'a mirrored region lies in two units; name both, in an order that stays'),
  tieBreaker,
});

const exported = z.strictObject({
  /** Clients ask for it by this name; default: the volume's name. */
  name: name.optional(),
  address,
  volume: name.optional(),
  device: path.optional(),
  readOnly: z.boolean().default(false),
  allowRemote: z.boolean().default(false),
});

const peerNames = z.array(name).max(16, 'has more than 16 names');

/** Memory that peers read and write by one-sided commands, named as its node is. */
const rate = z.number().positive('is no rate; give a number above 0').max(1e12, 'is no limit any more; leave it out');

const memoryUnit = z.strictObject({
  file: path,
  sizeBytes: size({ min: 2 * MIB, max: 128 * KIB ** 4 }),
  means: z.enum(['auto', 'map-sync', 'msync', 'cache-flush']).default('auto'),
  /** The node that keeps its regions and gives the keys; default: its own. */
  manager: name.optional(),
  administrators: peerNames.default([]),
  /** Default: every peer may create regions. */
  creators: peerNames.optional(),
  /** Of the data plane, at the address where the node listens; default: any free one. */
  planePort: z.int().min(1, 'is no port').max(65_535, 'is no port').optional(),
  /** Of each peer. Default: no limit. */
  commandsPerSecond: rate.optional(),
  bytesPerSecond: rate.optional(),
});

const node = z.strictObject({
  name,
  /** Where the others reach it, best path first. Without any it only dials: a client. */
  addresses: z.array(address).max(8, 'has more than 8 addresses').default([]),
  /** Where it listens, if that is not the first of its addresses (behind a translated address, say). */
  listen: address.optional(),
  control: path.optional(),
  engine: z.enum(['auto', 'io_uring', 'threads']).default('auto'),
  direct: z.enum(['auto', 'required', 'off']).default('auto'),
  exports: z.array(exported).max(1024, 'has more than 1024 exports').default([]),
  memoryUnit: memoryUnit.optional(),
});

export const configSchema = z.strictObject({
  /** Only for an editor's completion. */
  $schema: z.string().optional(),
  cluster: name,
  /** Which of the nodes this machine is, unless `--node` says so. */
  node: name.optional(),
  keyFile: path.optional(),
  link: z.enum(['tls', 'dedicated']).default('tls'),
  heartbeatMs: milliseconds(10, 60_000).default(500),
  leaseMs: milliseconds(50, 600_000).default(3000),
  nodes: z.array(node).min(1, 'names no node; each server is one').max(16, 'has more than 16 nodes'),
  volumes: z.array(volume).max(1024, 'has more than 1024 volumes').default([]),
  mirroredRegions: z.array(mirroredRegion).max(256, 'has more than 256 mirrored regions').default([]),
});

export type ClusterSettings = z.output<typeof configSchema>;
export type NodeSettings = ClusterSettings['nodes'][number];
export type VolumeSettings = ClusterSettings['volumes'][number];
export type MirroredRegionSettings = ClusterSettings['mirroredRegions'][number];
export type ExportSettings = NodeSettings['exports'][number];
