/**
 * The directory of a unit's regions: what the manager must never forget. Pure: values in, values out; the manager
 * (manager.ts) keeps it in a superblock pair on the unit's records.
 *
 * Space is given out in whole units of 64 KiB, first fit; a region whose space is deleted leaves it to `erasing`, and
 * nobody gets it before it has been zeroed. A region is in one piece where there is room, else in as few as possible.
 *
 * Invariants (`problemIn`; checked before each write and after each read):
 * - No two extents of regions and of `erasing` overlap; all lie behind the records and inside the memory.
 * - A region's extents have exactly the units that its size needs. Names and identifiers are unique.
 *
 * Format "HFREGIONS" version 1, little-endian; a unit is 64 KiB:
 *
 *   offset  size  field
 *        0     8  bytes of the unit's memory that the directory knows of; what has been added since comes to `erasing`
 *        8     2  number of regions, at most 1024
 *       10     2  0
 *       12     4  number of extents that wait to be zeroed
 *       16     …  the regions, by name; then the extents that wait, as a region's
 *
 *   region: 0  16  identifier
 *          16   8  size, bytes
 *          24   8  epoch: 1, and one more at each take-over
 *          32   2  number of extents, at most 64
 *          34   2  number of entries of the access list, at most 64
 *          36   1  length of the name, 1 to 64
 *          37   1  length of the owner's name, 1 to 64
 *          38   2  0
 *          40   …  the name, the owner's name (ASCII); then the extents, in the order of their virtual addresses:
 *                  u32 first unit, u32 number of units; then the access list
 *   entry:  0   1  rights: bit 0 read, bit 1 write
 *           1   1  length of the peer's name, 1 to 64
 *           2   1  1: for the range that follows; 0: for all of the region, as long as it may grow
 *           3   1  0
 *           4   …  the peer's name; then, with a range, u64 its base and u64 its length, bytes
 */
import { HoldfastError } from '../base/errors.ts';
import { NAME_PATTERN } from '../peer/handshake.ts';
import type { SuperblockFormat } from '../storage/superblock-pair.ts';
import type { AddressRange, Right } from './one-sided.ts';
import type { Extent, TranslationTable } from './unit-control.ts';

export const DIRECTORY_FORMAT: SuperblockFormat = { name: 'HFREGIONS', version: 1 };
/** Space is given out in whole ones. */
export const SPACE_UNIT_BYTES = 64 * 1024;
export const REGIONS_MAX = 1024;
export const EXTENTS_MAX = 64;
export const ACCESS_ENTRIES_MAX = 64;
/** Far below 2^53, and in units below 2^32. */
export const REGION_BYTES_MAX = 2 ** 47;
const EPOCH_MAX = 2 ** 48;
export const REGION_NAME_PATTERN = /^[A-Za-z0-9._-]{1,64}$/;
const ID_PATTERN = /^[0-9a-f]{32}$/;
const RIGHTS: readonly Right[] = ['read', 'write'];

/** A peer that is not the owner, and what it may do, where. */
export interface AccessEntry {
  readonly peer: string;
  /** In the order read, write; one at least. */
  readonly rights: readonly Right[];
  /** Undefined: all of the region, as long as it may grow. */
  readonly range: AddressRange | undefined;
}

export interface Region {
  /** 32 hexadecimal digits. */
  readonly id: string;
  readonly name: string;
  /** The peer that created it: it may do everything. */
  readonly owner: string;
  readonly sizeBytes: number;
  /** From 1; one more at each take-over. */
  readonly epoch: number;
  /** In the order of the virtual addresses. */
  readonly extents: readonly Extent[];
  readonly access: readonly AccessEntry[];
}

export interface Directory {
  /** Of the unit, as far as the directory knows of it. */
  readonly memoryBytes: number;
  /** By name. */
  readonly regions: readonly Region[];
  /** Nobody's: to be zeroed before anybody gets it. */
  readonly erasing: readonly Extent[];
}

// Space

function roundDown(bytes: number): number {
  return bytes - (bytes % SPACE_UNIT_BYTES);
}

function roundUp(bytes: number): number {
  return roundDown(bytes + SPACE_UNIT_BYTES - 1);
}

function totalBytes(extents: readonly Extent[]): number {
  return extents.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
}

function endOf({ startBytes, lengthBytes }: Extent): number {
  return startBytes + lengthBytes;
}

/** Where the space of regions begins, behind records of this many bytes. */
export function firstByteBehind(recordsBytes: number): number {
  return roundUp(recordsBytes);
}

/**
 * A directory without regions.
 *
 * @param blank the memory holds nothing but zeros; else all of it is zeroed first.
 */
export function newDirectory(recordsBytes: number, memoryBytes: number, blank: boolean): Directory {
  const none = { memoryBytes: Math.min(firstByteBehind(recordsBytes), memoryBytes), regions: [], erasing: [] };
  return blank ? { ...none, memoryBytes } : withMemory(none, recordsBytes, memoryBytes);
}

/** After the unit's memory has become larger: what has been added is zeroed before it is given out. */
export function withMemory(directory: Directory, recordsBytes: number, memoryBytes: number): Directory {
  if (memoryBytes < directory.memoryBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_MISMATCH',
      `the unit has ${memoryBytes} bytes of memory, and its directory of regions was written for ${directory.memoryBytes}; give it all of its memory again`,
    );
  const startBytes = Math.max(roundDown(directory.memoryBytes), firstByteBehind(recordsBytes));
  const lengthBytes = roundDown(memoryBytes) - startBytes;
  const added = lengthBytes > 0 ? [{ startBytes, lengthBytes }] : [];
  return { ...directory, memoryBytes, erasing: [...directory.erasing, ...added] };
}

/** What nobody has and nothing waits for, by address. */
export function holesIn(directory: Directory, recordsBytes: number): Extent[] {
  const taken = [...directory.regions.flatMap(({ extents }) => extents), ...directory.erasing];
  taken.sort((one, other) => one.startBytes - other.startBytes);
  const end = roundDown(directory.memoryBytes);
  const holes: Extent[] = [];
  let at = firstByteBehind(recordsBytes);
  for (const extent of [...taken, { startBytes: Math.max(at, end), lengthBytes: 0 }]) {
    if (extent.startBytes > at) holes.push({ startBytes: at, lengthBytes: extent.startBytes - at });
    at = Math.max(at, endOf(extent));
  }
  return holes;
}

/** How the unit's memory is used, in bytes. */
export interface Space {
  readonly freeBytes: number;
  /** Still to be zeroed. */
  readonly erasingBytes: number;
  readonly regionBytes: number;
}

export function spaceOf(directory: Directory, recordsBytes: number): Space {
  return {
    freeBytes: totalBytes(holesIn(directory, recordsBytes)),
    erasingBytes: totalBytes(directory.erasing),
    regionBytes: totalBytes(directory.regions.flatMap(({ extents }) => extents)),
  };
}

/** The lowest hole that is long enough; if there is none, the longest ones. Undefined if that makes too many pieces. */
function firstFit(holes: readonly Extent[], lengthBytes: number, extentsMax: number): Extent[] | undefined {
  const whole = holes.find((hole) => hole.lengthBytes >= lengthBytes);
  const candidates = whole ? [whole] : [...holes].sort((one, other) => other.lengthBytes - one.lengthBytes);
  const found: Extent[] = [];
  let missingBytes = lengthBytes;
  for (const { startBytes, lengthBytes: holeBytes } of candidates) {
    if (missingBytes === 0) break;
    found.push({ startBytes, lengthBytes: Math.min(holeBytes, missingBytes) });
    missingBytes -= Math.min(holeBytes, missingBytes);
  }
  return missingBytes === 0 && found.length <= extentsMax ? found : undefined;
}

/** More space behind `extents`, in place if what follows the last one is free. */
function extended(
  directory: Directory,
  recordsBytes: number,
  extents: readonly Extent[],
  moreBytes: number,
): readonly Extent[] {
  let holes = holesIn(directory, recordsBytes);
  let kept = extents;
  let missingBytes = moreBytes;
  const last = extents.at(-1);
  const next = last && holes.find(({ startBytes }) => startBytes === endOf(last));
  if (last !== undefined && next !== undefined) {
    const taken = Math.min(next.lengthBytes, moreBytes);
    missingBytes -= taken;
    kept = [...extents.slice(0, -1), { ...last, lengthBytes: last.lengthBytes + taken }];
    holes = holes.filter((hole) => hole !== next);
  }
  const found = missingBytes === 0 ? [] : firstFit(holes, missingBytes, EXTENTS_MAX - kept.length);
  if (found !== undefined) return [...kept, ...found];
  const { freeBytes, erasingBytes } = spaceOf(directory, recordsBytes);
  const soon = erasingBytes > 0 ? `, and ${erasingBytes} more once they are zeroed: try again then` : '';
  const pieces = freeBytes >= moreBytes ? ` in more than ${EXTENTS_MAX} pieces` : '';
  throw new HoldfastError(
    'ERR_HOLDFAST_NO_SPACE',
    `${moreBytes} bytes are asked for, and the unit has ${freeBytes} free${pieces}${soon}; delete regions, or add memory`,
  );
}

// Changes

function byName(one: Region, other: Region): number {
  return one.name < other.name ? -1 : 1;
}

export function findRegion(directory: Directory, name: string): Region | undefined {
  return directory.regions.find((region) => region.name === name);
}

/** @throws HoldfastError ERR_HOLDFAST_DUPLICATE_NAME, or ERR_HOLDFAST_NO_SPACE without room for it or its record. */
export function withRegion(
  directory: Directory,
  recordsBytes: number,
  region: Pick<Region, 'id' | 'name' | 'owner' | 'sizeBytes'>,
): Directory {
  if (findRegion(directory, region.name) !== undefined)
    throw new HoldfastError(
      'ERR_HOLDFAST_DUPLICATE_NAME',
      `there is a region ${region.name} already; choose another name`,
    );
  if (directory.regions.length >= REGIONS_MAX)
    throw new HoldfastError(
      'ERR_HOLDFAST_NO_SPACE',
      `the unit has ${REGIONS_MAX} regions, as many as can be; delete one`,
    );
  const extents = extended(directory, recordsBytes, [], roundUp(region.sizeBytes));
  const regions = [...directory.regions, { ...region, epoch: 1, extents, access: [] }];
  return { ...directory, regions: regions.sort(byName) };
}

function changed(directory: Directory, region: Region, fields: Partial<Region>): Directory {
  const regions = directory.regions.map((each) => (each.id === region.id ? { ...each, ...fields } : each));
  return { ...directory, regions };
}

/** @throws HoldfastError ERR_HOLDFAST_NO_SPACE; ERR_HOLDFAST_BAD_ARGUMENT if it would become smaller. */
export function grown(directory: Directory, recordsBytes: number, region: Region, sizeBytes: number): Directory {
  if (sizeBytes < region.sizeBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `region ${region.name} has ${region.sizeBytes} bytes; it can grow, but not shrink to ${sizeBytes}`,
    );
  const moreBytes = roundUp(sizeBytes) - roundUp(region.sizeBytes);
  const extents = moreBytes === 0 ? region.extents : extended(directory, recordsBytes, region.extents, moreBytes);
  return changed(directory, region, { sizeBytes, extents });
}

/** Its space is nobody's, until it is zeroed. */
export function withoutRegion(directory: Directory, region: Region): Directory {
  return {
    ...directory,
    regions: directory.regions.filter(({ id }) => id !== region.id),
    erasing: [...directory.erasing, ...region.extents],
  };
}

/** The first `lengthBytes` of an extent that waited have been zeroed, and are free. */
export function erased(directory: Directory, startBytes: number, lengthBytes: number): Directory {
  const erasing = directory.erasing.flatMap((extent) => {
    if (extent.startBytes !== startBytes) return [extent];
    const rest = extent.lengthBytes - lengthBytes;
    return rest > 0 ? [{ startBytes: startBytes + lengthBytes, lengthBytes: rest }] : [];
  });
  return { ...directory, erasing };
}

export function takenOver(directory: Directory, region: Region): Directory {
  return changed(directory, region, { epoch: region.epoch + 1 });
}

// Access

function inOrder(rights: readonly Right[]): Right[] {
  return RIGHTS.filter((right) => rights.includes(right));
}

function sameRange(one: AddressRange | undefined, other: AddressRange | undefined): boolean {
  return one?.base === other?.base && one?.lengthBytes === other?.lengthBytes;
}

/** @throws HoldfastError ERR_HOLDFAST_OUT_OF_RANGE */
export function checkInside(region: Region, range: AddressRange): void {
  if (range.lengthBytes >= 1 && range.base <= region.sizeBytes - range.lengthBytes) return;
  throw new HoldfastError(
    'ERR_HOLDFAST_OUT_OF_RANGE',
    `${range.lengthBytes} bytes at ${range.base} are outside region ${region.name}; it has ${region.sizeBytes} bytes`,
  );
}

/** Adds to what the peer may already do. @throws HoldfastError ERR_HOLDFAST_NO_SPACE if the list is full. */
export function allowed(directory: Directory, region: Region, entry: AccessEntry): Directory {
  const isSame = (each: AccessEntry) => each.peer === entry.peer && sameRange(each.range, entry.range);
  const both = ({ rights }: AccessEntry) => ({ ...entry, rights: inOrder([...rights, ...entry.rights]) });
  if (region.access.some(isSame)) {
    const access = region.access.map((each) => (isSame(each) ? both(each) : each));
    return changed(directory, region, { access });
  }
  if (region.access.length >= ACCESS_ENTRIES_MAX)
    throw new HoldfastError(
      'ERR_HOLDFAST_NO_SPACE',
      `the access list of ${region.name} has ${ACCESS_ENTRIES_MAX} entries, as many as can be; deny somebody first`,
    );
  return changed(directory, region, { access: [...region.access, both(entry)] });
}

/** Takes the rights out of every entry of the peer that reaches into the range: rather too much than too little. */
export function denied(directory: Directory, region: Region, entry: AccessEntry): Directory {
  const touches = (range: AddressRange | undefined) =>
    range === undefined ||
    entry.range === undefined ||
    (range.base < entry.range.base + entry.range.lengthBytes && entry.range.base < range.base + range.lengthBytes);
  const access = region.access.flatMap((each) => {
    if (each.peer !== entry.peer || !touches(each.range)) return [each];
    const rights = each.rights.filter((right) => !entry.rights.includes(right));
    return rights.length > 0 ? [{ ...each, rights }] : [];
  });
  return changed(directory, region, { access });
}

/** True if the peer may do all of this everywhere in the range; one entry has to allow each right. */
export function mayUse(region: Region, peer: string, rights: readonly Right[], range: AddressRange): boolean {
  if (region.owner === peer) return true;
  const covers = (entry: AccessEntry) =>
    entry.peer === peer &&
    (entry.range === undefined ||
      (entry.range.base <= range.base && range.base + range.lengthBytes <= entry.range.base + entry.range.lengthBytes));
  return rights.every((right) => region.access.some((entry) => covers(entry) && entry.rights.includes(right)));
}

// For the unit

export function tablesOf(directory: Directory): TranslationTable[] {
  return directory.regions.map(({ id, extents }) => ({ region: id, extents }));
}

// Checks

/** In words what breaks an invariant. */
export function problemIn(directory: Directory, recordsBytes: number): string | undefined {
  const { regions, memoryBytes, erasing } = directory;
  if (!isWhole(memoryBytes, REGION_BYTES_MAX)) return `the memory has ${memoryBytes} bytes`;
  if (regions.length > REGIONS_MAX) return `it has ${regions.length} regions`;
  if (new Set(regions.map(({ name }) => name)).size < regions.length) return 'two regions have one name';
  if (new Set(regions.map(({ id }) => id)).size < regions.length) return 'two regions have one identifier';
  for (const region of regions) {
    const problem = problemWith(region);
    if (problem !== undefined) return problem;
  }
  return problemWithExtents([...regions.flatMap(({ extents }) => extents), ...erasing], recordsBytes, memoryBytes);
}

function isWhole(value: number, max: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= max;
}

function problemWith(region: Region): string | undefined {
  const { id, name, owner, sizeBytes, epoch, extents, access } = region;
  if (!REGION_NAME_PATTERN.test(name)) return 'a region has a name that cannot be';
  if (!ID_PATTERN.test(id)) return `${name} has an identifier that cannot be`;
  if (!NAME_PATTERN.test(owner)) return `the owner of ${name} has a name that cannot be`;
  if (!isWhole(sizeBytes, REGION_BYTES_MAX) || sizeBytes === 0) return `${name} has ${sizeBytes} bytes`;
  if (!isWhole(epoch, EPOCH_MAX) || epoch === 0) return `${name} is in epoch ${epoch}`;
  if (extents.length > EXTENTS_MAX || totalBytes(extents) !== roundUp(sizeBytes))
    return `the space of ${name} does not fit its size`;
  if (access.length > ACCESS_ENTRIES_MAX) return `${name} has an access list of ${access.length} entries`;
  if (access.some((entry) => !isEntry(entry, sizeBytes)))
    return `the access list of ${name} has an entry that cannot be`;
  return undefined;
}

function isEntry({ peer, rights, range }: AccessEntry, sizeBytes: number): boolean {
  if (!NAME_PATTERN.test(peer) || rights.length === 0) return false;
  if (range === undefined) return true;
  const { base, lengthBytes } = range;
  return isWhole(base, sizeBytes) && isWhole(lengthBytes, sizeBytes - base) && lengthBytes > 0;
}

function problemWithExtents(extents: readonly Extent[], recordsBytes: number, memoryBytes: number): string | undefined {
  let at = firstByteBehind(recordsBytes);
  for (const extent of [...extents].sort((one, other) => one.startBytes - other.startBytes)) {
    const { startBytes, lengthBytes } = extent;
    if (lengthBytes <= 0 || startBytes % SPACE_UNIT_BYTES !== 0 || lengthBytes % SPACE_UNIT_BYTES !== 0)
      return `${lengthBytes} bytes at ${startBytes} are no extent`;
    if (startBytes < at) return `two extents overlap at ${startBytes}, or one reaches into the records`;
    at = endOf(extent);
  }
  return at > firstByteBehind(recordsBytes) && at > memoryBytes
    ? `an extent ends at ${at}, beyond the memory`
    : undefined;
}

// Format

const HEADER_BYTES = 16;
const REGION_BYTES = 40;
const ENTRY_BYTES = 4;
const EXTENT_BYTES = 8;
const RANGE_BYTES = 16;

function encodedBytes({ regions, erasing }: Directory): number {
  let bytes = HEADER_BYTES + erasing.length * EXTENT_BYTES;
  for (const { name, owner, extents, access } of regions) {
    bytes += REGION_BYTES + name.length + owner.length + extents.length * EXTENT_BYTES;
    for (const { peer, range } of access) bytes += ENTRY_BYTES + peer.length + (range ? RANGE_BYTES : 0);
  }
  return bytes;
}

/** @throws HoldfastError ERR_HOLDFAST_NO_SPACE if it takes more than `roomBytes`. */
export function encodeDirectory(directory: Directory, roomBytes: number): Uint8Array {
  const lengthBytes = encodedBytes(directory);
  if (lengthBytes > roomBytes)
    throw new HoldfastError(
      'ERR_HOLDFAST_NO_SPACE',
      `the directory would take ${lengthBytes} bytes of the ${roomBytes} that the unit has for it; delete regions, or shorten access lists`,
    );
  const writer = new Writer(lengthBytes);
  writer.u64(directory.memoryBytes).u16(directory.regions.length).u16(0).u32(directory.erasing.length);
  for (const region of directory.regions) encodeRegion(writer, region);
  for (const extent of directory.erasing) encodeExtent(writer, extent);
  return writer.bytes;
}

function encodeRegion(writer: Writer, { id, name, owner, sizeBytes, epoch, extents, access }: Region): void {
  writer.id(id).u64(sizeBytes).u64(epoch).u16(extents.length).u16(access.length);
  writer.u8(name.length).u8(owner.length).u16(0).text(name).text(owner);
  for (const extent of extents) encodeExtent(writer, extent);
  for (const { peer, rights, range } of access) {
    writer.u8(RIGHTS.reduce((bits, right, bit) => bits | (rights.includes(right) ? 1 << bit : 0), 0));
    writer
      .u8(peer.length)
      .u8(range ? 1 : 0)
      .u8(0)
      .text(peer);
    if (range !== undefined) writer.u64(range.base).u64(range.lengthBytes);
  }
}

function encodeExtent(writer: Writer, { startBytes, lengthBytes }: Extent): void {
  writer.u32(startBytes / SPACE_UNIT_BYTES).u32(lengthBytes / SPACE_UNIT_BYTES);
}

/** Checks everything: the bytes come from a device. @throws HoldfastError ERR_HOLDFAST_METADATA_DAMAGED */
export function decodeDirectory(payload: Uint8Array, recordsBytes: number): Directory {
  const reader = new Reader(payload);
  const memoryBytes = reader.u64();
  const regionCount = reader.u16();
  reader.zero(2);
  const erasingCount = reader.u32();
  const regions = reader.list(regionCount, REGION_BYTES, () => decodeRegion(reader));
  const erasing = reader.list(erasingCount, EXTENT_BYTES, () => decodeExtent(reader));
  reader.end();
  const directory = { memoryBytes, regions, erasing };
  const problem = problemIn(directory, recordsBytes);
  if (problem !== undefined) throw damaged(problem);
  return directory;
}

function decodeRegion(reader: Reader): Region {
  const id = reader.id();
  const sizeBytes = reader.u64();
  const epoch = reader.u64();
  const extentCount = reader.u16();
  const entryCount = reader.u16();
  const nameLength = reader.u8();
  const ownerLength = reader.u8();
  reader.zero(2);
  const name = reader.text(nameLength);
  const owner = reader.text(ownerLength);
  const extents = reader.list(extentCount, EXTENT_BYTES, () => decodeExtent(reader));
  const access = reader.list(entryCount, ENTRY_BYTES, () => decodeEntry(reader));
  return { id, name, owner, sizeBytes, epoch, extents, access };
}

function decodeExtent(reader: Reader): Extent {
  return { startBytes: reader.u32() * SPACE_UNIT_BYTES, lengthBytes: reader.u32() * SPACE_UNIT_BYTES };
}

function decodeEntry(reader: Reader): AccessEntry {
  const bits = reader.u8();
  const peerLength = reader.u8();
  const hasRange = reader.u8();
  reader.zero(1);
  if (bits >= 1 << RIGHTS.length || hasRange > 1) throw damaged('an entry of an access list has unknown bits');
  const peer = reader.text(peerLength);
  const range = hasRange === 1 ? { base: reader.u64(), lengthBytes: reader.u64() } : undefined;
  return { peer, rights: RIGHTS.filter((_, bit) => bits & (1 << bit)), range };
}

function damaged(what: string): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    `the directory of regions cannot be right although its checksum is: ${what}; restore the unit's memory, or format it anew`,
  );
}

class Writer {
  readonly bytes: Buffer;
  #at = 0;

  constructor(lengthBytes: number) {
    this.bytes = Buffer.alloc(lengthBytes);
  }

  u8(value: number): this {
    this.#at = this.bytes.writeUInt8(value, this.#at);
    return this;
  }

  u16(value: number): this {
    this.#at = this.bytes.writeUInt16LE(value, this.#at);
    return this;
  }

  u32(value: number): this {
    this.#at = this.bytes.writeUInt32LE(value, this.#at);
    return this;
  }

  u64(value: number): this {
    this.#at = this.bytes.writeBigUInt64LE(BigInt(value), this.#at);
    return this;
  }

  id(hex: string): this {
    this.#at += this.bytes.write(hex, this.#at, 'hex');
    return this;
  }

  text(text: string): this {
    this.#at += this.bytes.write(text, this.#at, 'latin1');
    return this;
  }
}

class Reader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(payload: Uint8Array) {
    this.#bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength);
  }

  #take(lengthBytes: number): number {
    const at = this.#at;
    if (lengthBytes > this.#bytes.length - at) throw damaged('it ends in the middle of something');
    this.#at += lengthBytes;
    return at;
  }

  u8(): number {
    return this.#bytes.readUInt8(this.#take(1));
  }

  u16(): number {
    return this.#bytes.readUInt16LE(this.#take(2));
  }

  u32(): number {
    return this.#bytes.readUInt32LE(this.#take(4));
  }

  u64(): number {
    const value = this.#bytes.readBigUInt64LE(this.#take(8));
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged('a number is out of range');
    return Number(value);
  }

  id(): string {
    const at = this.#take(16);
    return this.#bytes.toString('hex', at, at + 16);
  }

  text(lengthBytes: number): string {
    const at = this.#take(lengthBytes);
    return this.#bytes.toString('latin1', at, at + lengthBytes);
  }

  zero(lengthBytes: number): void {
    const at = this.#take(lengthBytes);
    if (this.#bytes.subarray(at, at + lengthBytes).some((byte) => byte !== 0))
      throw damaged('bytes that are not used are not 0');
  }

  /** Each takes at least `leastBytes`: a count that cannot be is found out before anything is made. */
  list<Item>(count: number, leastBytes: number, read: () => Item): Item[] {
    if (count * leastBytes > this.#bytes.length - this.#at) throw damaged('it promises more than it holds');
    return Array.from({ length: count }, read);
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw damaged('something follows its end');
  }
}
