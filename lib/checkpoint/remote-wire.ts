/**
 * What a manager that runs apart asks the unit for: UnitControl as methods of a peer session. Numbers: 60 to 67.
 *
 * Tables go as data, little-endian: for each region its identifier (16 bytes), u16 number of extents, and for each of
 * those u64 start and u64 length in bytes; one region after the other to the end.
 */
import { z } from 'zod';
import { HoldfastError } from '../base/errors.ts';
import { NAME_PATTERN } from '../peer/handshake.ts';
import type { Method } from '../peer/peer.ts';
import { EXTENTS_MAX, REGIONS_MAX } from './region-directory.ts';
import type { Extent, TranslationTable } from './unit-control.ts';

/** The largest piece of the records in one message. */
export const RECORDS_PIECE_BYTES = 1024 * 1024;
const ID_BYTES = 16;
const TABLE_HEADER_BYTES = ID_BYTES + 2;
const EXTENT_BYTES = 16;
const TABLES_BYTES_MAX = REGIONS_MAX * (TABLE_HEADER_BYTES + EXTENTS_MAX * EXTENT_BYTES);

const hex = z.string().regex(/^[0-9a-f]{32}$/);
const whole = z.int().min(0);
const peer = z.string().regex(NAME_PATTERN);
const right = z.enum(['read', 'write']);

/** What a manager has to know of the unit before anything else. */
const unitSchema = z.strictObject({
  unit: peer,
  sizeBytes: whole,
  recordsBytes: whole,
  logicalBlockBytes: z.int().min(1).max(65_536),
  means: z.enum(['map-sync', 'msync', 'cache-flush']),
});
export type UnitDescription = z.infer<typeof unitSchema>;

export const grantSchema = z.strictObject({
  key: hex,
  region: hex,
  range: z.strictObject({ base: whole, lengthBytes: z.int().min(1) }),
  rights: z.array(right).min(1).max(2),
  peer,
  epoch: z.int().min(1),
});

const revokedSchema = z.strictObject({
  region: hex,
  key: hex.optional(),
  peer: peer.optional(),
  exceptPeer: peer.optional(),
  right: right.optional(),
});
export type RevokedRequest = z.infer<typeof revokedSchema>;

/** A body of no bytes. */
const nothing: z.ZodType<void> = z.undefined();

function define<Request, Response>(
  shape: Pick<Method<Request, Response>, 'id' | 'name' | 'request' | 'response'>,
  limits: { readonly requestBytes?: number; readonly responseBytes?: number } = {},
): Method<Request, Response> {
  const { requestBytes = 0, responseBytes = 0 } = limits;
  const channel = requestBytes + responseBytes > 0 ? 'bulk' : 'control';
  return { ...shape, channel, maxRequestDataBytes: requestBytes, maxResponseDataBytes: responseBytes };
}

export const describeMethod = define({ id: 60, name: 'unit-describe', request: nothing, response: unitSchema });

export const readRecordsMethod = define(
  {
    id: 61,
    name: 'unit-read-records',
    request: z.strictObject({ offset: whole, lengthBytes: z.int().min(1).max(RECORDS_PIECE_BYTES) }),
    response: nothing,
  },
  { responseBytes: RECORDS_PIECE_BYTES },
);

export const writeRecordsMethod = define(
  { id: 62, name: 'unit-write-records', request: z.strictObject({ offset: whole }), response: nothing },
  { requestBytes: RECORDS_PIECE_BYTES },
);

export const flushRecordsMethod = define({
  id: 63,
  name: 'unit-flush-records',
  request: nothing,
  response: nothing,
});

export const installMethod = define(
  { id: 64, name: 'unit-install', request: nothing, response: nothing },
  { requestBytes: TABLES_BYTES_MAX },
);

export const grantMethod = define({ id: 65, name: 'unit-grant', request: grantSchema, response: nothing });

export const revokeMethod = define({ id: 66, name: 'unit-revoke', request: revokedSchema, response: whole });

export const eraseMethod = define({
  id: 67,
  name: 'unit-erase',
  request: z.strictObject({ startBytes: whole, lengthBytes: whole }),
  response: nothing,
});

export function encodeTables(tables: readonly TranslationTable[]): Uint8Array {
  const lengthBytes = tables.reduce((sum, { extents }) => sum + TABLE_HEADER_BYTES + extents.length * EXTENT_BYTES, 0);
  const bytes = Buffer.alloc(lengthBytes);
  let at = 0;
  for (const { region, extents } of tables) {
    at += bytes.write(region, at, 'hex');
    at = bytes.writeUInt16LE(extents.length, at);
    for (const extent of extents) {
      at = bytes.writeBigUInt64LE(BigInt(extent.startBytes), at);
      at = bytes.writeBigUInt64LE(BigInt(extent.lengthBytes), at);
    }
  }
  return bytes;
}

/** The unit checks what they say. @throws HoldfastError ERR_HOLDFAST_BAD_FRAME if they say nothing that can be read. */
export function decodeTables(data: Uint8Array): TranslationTable[] {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const tables: TranslationTable[] = [];
  let at = 0;
  while (at < bytes.length) {
    if (bytes.length - at < TABLE_HEADER_BYTES) throw badTables();
    const region = bytes.toString('hex', at, at + ID_BYTES);
    const count = bytes.readUInt16LE(at + ID_BYTES);
    at += TABLE_HEADER_BYTES;
    if (count > EXTENTS_MAX || bytes.length - at < count * EXTENT_BYTES) throw badTables();
    const extents: Extent[] = [];
    for (let index = 0; index < count; index += 1, at += EXTENT_BYTES)
      extents.push({ startBytes: wholeAt(bytes, at), lengthBytes: wholeAt(bytes, at + 8) });
    tables.push({ region, extents });
  }
  return tables;
}

function wholeAt(bytes: Buffer, at: number): number {
  const value = bytes.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw badTables();
  return Number(value);
}

function badTables(): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_FRAME', 'the translation tables are cut short or out of range');
}
