/**
 * What the policing modules of a volume's members say to each other: requests for tokens and grants of tokens. They are
 * sent reliably and in order between any two nodes, and are worth nothing after the session that they were sent in.
 */
import { z } from 'zod';

/** A volume has at most so many extents: 64 TiB of 4 MiB extents. */
export const MAX_EXTENTS = 2 ** 24;
/** The highest priority; 0 is the lowest. */
export const MAX_PRIORITY = 7;
/** Logical time stops here, far below 2^53: a million requests a second take 35 years. */
export const MAX_LAMPORT = 2 ** 50;
/** Messages in one frame; they fit into a control body at their longest. */
export const MAX_POLICING_MESSAGES = 512;
const extent = z
  .int()
  .min(0)
  .max(MAX_EXTENTS - 1);
const mode = z.enum(['shared', 'exclusive']);
const lamport = z.int().min(0).max(MAX_LAMPORT);

/** shared: may read; exclusive: may write, and read. */
export type AccessMode = z.infer<typeof mode>;

/** The sender lacks the token for this; it takes the place of its earlier request for the extent. */
const accessRequestSchema = z.strictObject({
  kind: z.literal('request'),
  extent,
  mode,
  /** When the client's operation asked; with the priority and the sender's number its place in the order. */
  lamport,
  priority: z.int().min(0).max(MAX_PRIORITY),
});

/** exclusive: the token is the receiver's; shared: both may read. */
const accessGrantSchema = z.strictObject({ kind: z.literal('grant'), extent, mode, lamport });

export const policingMessageSchema = z.discriminatedUnion('kind', [accessRequestSchema, accessGrantSchema]);
export type PolicingMessage = z.infer<typeof policingMessageSchema>;

/** In the order in which the machine gave them. */
export const policingBatchSchema = z.array(policingMessageSchema).min(1).max(MAX_POLICING_MESSAGES);
