/**
 * What the users of a unit ask its manager for: methods of a peer session. Rare requests, each checked by a strict
 * schema. Who asks is the session's peer, whom the handshake has authenticated; no request names its sender.
 *
 * Numbers: 50 to 59.
 */
import { z } from 'zod';
import { NAME_PATTERN } from '../peer/handshake.ts';
import type { Method } from '../peer/peer.ts';
import type { AddressContext } from './one-sided.ts';
import { ACCESS_ENTRIES_MAX, REGION_BYTES_MAX, REGION_NAME_PATTERN } from './region-directory.ts';

/** Regions in one answer. The control channel's limit has room for more than twice as many. */
export const LIST_PAGE_MAX = 64;

const hex = z.string().regex(/^[0-9a-f]{32}$/);
const whole = z.int().min(0);
const epoch = z.int().min(1);
const sizeBytes = z.int().min(1).max(REGION_BYTES_MAX);
const name = z.string().regex(REGION_NAME_PATTERN);
const peer = z.string().regex(NAME_PATTERN);
const right = z.enum(['read', 'write']);
const rights = z
  .array(right)
  .min(1)
  .max(2)
  .refine((given) => new Set(given).size === given.length, 'a right is given twice');
const range = z.strictObject({
  base: whole.max(REGION_BYTES_MAX),
  lengthBytes: z.int().min(1).max(REGION_BYTES_MAX),
});

/** A region as it is told to those who may use it. */
export interface RegionInfo {
  readonly name: string;
  /** 32 hexadecimal digits; never those of another region. */
  readonly region: string;
  readonly sizeBytes: number;
  /** From 1; one more at each take-over. */
  readonly epoch: number;
  readonly owner: string;
}

const regionInfo: z.ZodType<RegionInfo> = z.strictObject({ name, region: hex, sizeBytes, epoch, owner: peer });
const context: z.ZodType<AddressContext> = z.strictObject({
  region: hex,
  unit: peer,
  sizeBytes,
  range,
  rights,
  key: hex,
  epoch,
});

const legPlace = z.strictObject({ register: hex, leg: z.union([z.literal(0), z.literal(1)]) });
/** Which leg of which mirrored region a region is, by the one who asks for it. */
export interface LegPlace extends z.infer<typeof legPlace> {}

export const createRequest = z.strictObject({ name, sizeBytes });
/** `mirrored`: as a leg. A region that is one is not opened otherwise, and no other one is opened so. */
export const openRequest = z.strictObject({ name, rights, range: range.optional(), mirrored: legPlace.optional() });
/** `rebuild`: of a leg, by the one who rebuilds it. */
export const takeOverRequest = openRequest.extend({ rebuild: z.literal(true).optional() });
export const growRequest = z.strictObject({ name, sizeBytes });
export const listRequest = z.strictObject({ after: name.optional() });
export const nameRequest = z.strictObject({ name });
export const accessRequest = z.strictObject({ name, peer, rights, range: range.optional() });

export const closeRequest = z.strictObject({ region: hex, key: hex });

export type CreateRequest = z.infer<typeof createRequest>;
export type OpenRequest = z.infer<typeof openRequest>;
export type TakeOverRequest = z.infer<typeof takeOverRequest>;
export type GrowRequest = z.infer<typeof growRequest>;
export type ListRequest = z.infer<typeof listRequest>;
export type NameRequest = z.infer<typeof nameRequest>;
export type AccessRequest = z.infer<typeof accessRequest>;
export type CloseRequest = z.infer<typeof closeRequest>;

const listAnswer = z.strictObject({ regions: z.array(regionInfo).max(LIST_PAGE_MAX), more: z.boolean() });
export type RegionPage = z.infer<typeof listAnswer>;

const accessAnswer = z.strictObject({
  region: regionInfo,
  access: z.array(z.strictObject({ peer, rights, range: range.optional() })).max(ACCESS_ENTRIES_MAX),
});
/** Who may use a region, beside its owner. */
export interface RegionAccessList extends z.infer<typeof accessAnswer> {}

/** A body of no bytes. */
const nothing: z.ZodType<void> = z.undefined();
const WITHOUT_DATA = { channel: 'control', maxRequestDataBytes: 0, maxResponseDataBytes: 0 } as const;

function define<Request, Response>(
  id: number,
  methodName: string,
  request: z.ZodType<Request>,
  response: z.ZodType<Response>,
): Method<Request, Response> {
  return { ...WITHOUT_DATA, id, name: methodName, request, response };
}

export const createMethod = define(50, 'memory-create', createRequest, regionInfo);
export const openMethod = define(51, 'memory-open', openRequest, context);
export const growMethod = define(52, 'memory-grow', growRequest, regionInfo);
/** Regions that the asker may use, by name, from the first one after `after` on. */
export const listMethod = define(53, 'memory-list', listRequest, listAnswer);
export const deleteMethod = define(54, 'memory-delete', nameRequest, nothing);
export const allowMethod = define(55, 'memory-allow', accessRequest, nothing);
export const denyMethod = define(56, 'memory-deny', accessRequest, nothing);
export const takeOverMethod = define(57, 'memory-take-over', takeOverRequest, context);
export const accessListMethod = define(58, 'memory-access-list', nameRequest, accessAnswer);
export const closeMethod = define(59, 'memory-close', closeRequest, nothing);
