/**
 * What the members of a mirrored volume say to each other: methods of a peer session, each with the schemas that both
 * directions are checked by. Offsets and lengths are bytes. `volume` is the volume's identifier.
 *
 * A meeting (after every new session; member 0 begins):
 *
 *   1 → 0  ready    I have the volume open (the session may be older)
 *   0 → 1  attach   both states; both compute the same verdict (view.ts, `meet`)
 *   if they are equal, each sends once more what it had under way, and both serve
 *   else the one that is behind is filled from the other:
 *   s → t  adopt    the source's view, which leaves the target out: durable on the target before the source relies on it
 *   s → t  write …  the marked ranges, beside live writes
 *   s → t  join     a view with both: durable on the source first, then on the target
 *
 * Leaving in order (a clean stop, a failed device):
 *
 *   l → p  leave    may I? (refused while the other leaves too, or a meeting is under way)
 *   l → p  left     a view without the leaver: durable on the leaver first, then on the peer, which goes on alone
 *
 * Once both are in sync each executes its own clients' requests and sends a copy of each write to the other, for which
 * it needs access (`access`, policing.ts). Every request that changes data carries the number of the view in which it
 * was made: a receiver that knows a newer one refuses it.
 */
import { z } from 'zod';
import type { Method } from '../peer/peer.ts';
import { policingBatchSchema } from './policing-wire.ts';
import { HISTORY_LENGTH } from './view.ts';
import { writeBodyFormat } from './write-body.ts';

/** The largest piece of data in one message. Longer requests are sent in pieces. */
export const MAX_PIECE_BYTES = 1024 * 1024;
/** Bounds the volume's size divided by its grain: 64 Mi grains, 4 TiB of 64 KiB grains. */
export const MAX_BITMAP_BYTES = 8 * 1024 * 1024;

const id = z.string().regex(/^[0-9a-f]{32}$/);
const whole = z.int().min(0);
/** Far below 2^53, so that the views after it can be counted. */
const viewNumber = z
  .int()
  .min(0)
  .max(2 ** 48);
const member = z.union([z.literal(0), z.literal(1)]);
const piece = z.int().min(1).max(MAX_PIECE_BYTES);

/** Client requests of one member under way at a time, at most. */
export const MAX_REQUESTS = 8192;
/** The last moment that a Date can hold. */
const MAX_TIME_MS = 8.64e15;
/** Extents with writes under way that one member may claim at a meeting. */
export const MAX_CLAIMS = 131_072;

export const viewSchema = z.strictObject({ number: viewNumber, id, inSync: z.int().min(0).max(3), holder: member });

const recordSchema = z.strictObject({
  known: viewSchema,
  dataId: id,
  dataHolder: member,
  history: z.array(id).max(HISTORY_LENGTH),
  baseId: id,
  dataState: z.enum(['created', 'up-to-date', 'inconsistent']),
  clean: z.boolean(),
  sinceMs: whole,
});

export const meetingSchema = z.strictObject({
  volume: id,
  member,
  sizeBytes: whole,
  grainBytes: whole,
  policingExtentBytes: whole,
  onLostPeer: z.string().max(80),
  record: recordSchema,
  blank: z.boolean(),
  unmarked: z.boolean(),
  unbroken: z.boolean(),
  failed: z.boolean(),
  /** What this copy has and the peer's may not have, bytes; and the wall time (ms) of its last change, 0 if unknown. */
  changedBytes: whole,
  changedAtMs: whole.max(MAX_TIME_MS),
});

export type Meeting = z.infer<typeof meetingSchema>;

/** A body of no bytes. */
const nothing = z.undefined();

type Shape<Request, Response> = Omit<Method<Request, Response>, 'maxRequestDataBytes' | 'maxResponseDataBytes'>;

/** Most methods carry no data beside their bodies. */
function define<Request, Response>(
  shape: Shape<Request, Response>,
  limits: { readonly requestBytes?: number; readonly responseBytes?: number } = {},
): Method<Request, Response> {
  const { requestBytes = 0, responseBytes = 0 } = limits;
  return { ...shape, maxRequestDataBytes: requestBytes, maxResponseDataBytes: responseBytes };
}

/**
 * The data on both ways are the claims: the extents with writes under way that the other side has not confirmed, 32 bits
 * each, little-endian.
 */
export const attachMethod = define(
  {
    id: 1,
    name: 'attach',
    channel: 'control',
    request: meetingSchema,
    response: meetingSchema,
  },
  { requestBytes: MAX_CLAIMS * 4, responseBytes: MAX_CLAIMS * 4 },
);

/** The answer's data is the target's bitmap; it can be a large one. */
export const adoptMethod = define(
  {
    id: 2,
    name: 'adopt',
    channel: 'bulk',
    request: z.strictObject({ volume: id, view: viewSchema, scope: z.enum(['nothing', 'bitmap', 'all']) }),
    response: nothing,
  },
  { responseBytes: MAX_BITMAP_BYTES },
);

const viewRequest = z.strictObject({ volume: id, view: viewSchema });

export const joinMethod = define({
  id: 3,
  name: 'join',
  channel: 'control',
  request: viewRequest,
  response: nothing,
});

export const leaveMethod = define({
  id: 4,
  name: 'leave',
  channel: 'control',
  request: z.strictObject({ volume: id }),
  response: z.strictObject({ granted: z.boolean(), number: viewNumber }),
});

export const leftMethod = define({
  id: 5,
  name: 'left',
  channel: 'control',
  /** `flushed`: all that the leaver has confirmed is durable. */
  request: z.strictObject({ volume: id, view: viewSchema, flushed: z.boolean() }),
  response: nothing,
});

/** Member 1 has opened the volume: member 0 may begin a meeting. */
export const readyMethod = define({
  id: 6,
  name: 'ready',
  channel: 'control',
  request: z.strictObject({ volume: id }),
  response: nothing,
});

const range = { volume: id, offset: whole };
/** The number of the sender's view. */
const fenced = { ...range, view: viewNumber };

/** From the mirror engine of one member to the other's, which writes straight to its device. */
export const writeMethod = define(
  {
    id: 10,
    name: 'write',
    channel: 'bulk',
    request: z.strictObject({ ...fenced, fua: z.boolean() }),
    requestFormat: writeBodyFormat,
    response: nothing,
  },
  { requestBytes: MAX_PIECE_BYTES },
);

const zeroRequest = z.strictObject({ ...fenced, length: whole, fua: z.boolean(), mayUnmap: z.boolean() });

export const zeroMethod = define({
  id: 11,
  name: 'zero',
  channel: 'bulk',
  request: zeroRequest,
  response: nothing,
});

export const flushMethod = define({
  id: 12,
  name: 'flush',
  channel: 'bulk',
  request: z.strictObject({ volume: id, view: viewNumber }),
  response: nothing,
});

/** Policing: who may read and write which extents (policing-wire.ts). */
export const accessMethod = define({
  id: 13,
  name: 'access',
  channel: 'control',
  request: z.strictObject({ volume: id, view: viewNumber, messages: policingBatchSchema }),
  response: nothing,
});

/**
 * From a member whose own copy is of no use now to the one that serves. `request` numbers the forwarder's requests; with it and the
 * forwarder's incarnation a request that is sent again over a new session is executed once. All below `doneBelow` are
 * settled: the holder may forget them.
 */
const forwarded = { ...range, request: whole, doneBelow: whole };

export const forwardReadMethod = define(
  {
    id: 20,
    name: 'forward-read',
    channel: 'bulk',
    request: z.strictObject({ ...range, length: piece }),
    response: nothing,
  },
  { responseBytes: MAX_PIECE_BYTES },
);

export const forwardWriteMethod = define(
  {
    id: 21,
    name: 'forward-write',
    channel: 'bulk',
    request: z.strictObject({ ...forwarded, fua: z.boolean() }),
    response: nothing,
  },
  { requestBytes: MAX_PIECE_BYTES },
);

export const forwardZeroMethod = define({
  id: 22,
  name: 'forward-zero',
  channel: 'bulk',
  request: z.strictObject({ ...forwarded, length: whole, fua: z.boolean(), mayUnmap: z.boolean() }),
  response: nothing,
});

export const forwardFlushMethod = define({
  id: 23,
  name: 'forward-flush',
  channel: 'bulk',
  request: z.strictObject({ volume: id }),
  response: nothing,
});
