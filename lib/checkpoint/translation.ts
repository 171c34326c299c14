/**
 * Translation and protection of addresses: which physical extents a region's virtual addresses stand for, and which key
 * opens what to whom. Pure: the unit (unit.ts) asks here before it touches its memory.
 *
 * Invariants:
 * - No two extents overlap, and none reaches outside the bytes that regions may have. They are whole pages, so that an
 *   aligned word never lies in two.
 * - A key opens one range of one region with its rights, over the session that it was given for, and nothing after it
 *   was revoked, its session has ended or its region is gone. It never comes back.
 * - A void key is kept as long as commands under it run, and not longer.
 * - Tables are checked whole before anything is changed. Everything is counted against a limit.
 */
import { HoldfastError } from '../base/errors.ts';
import type { Right } from './one-sided.ts';
import type { Extent, Grant, RevokedKeys, TranslationTable } from './unit-control.ts';

/** Extents begin and end at multiples of this. */
export const EXTENT_ALIGNMENT_BYTES = 4096;

const REGION_PATTERN = /^[0-9a-f]{32}$/;
const KEY_PATTERN = /^[0-9a-f]{32}$/;

export interface TranslationLimits {
  readonly regionsMax: number;
  /** Of all regions together. */
  readonly extentsMax: number;
  readonly keysMax: number;
  readonly keysPerSessionMax: number;
}

/** A region as the unit sees it. The same object as long as tables with it are installed. */
export class MappedRegion {
  readonly id: string;
  #extents: readonly Extent[] = [];
  /** Virtual address at which each extent begins. */
  #starts: readonly number[] = [];
  #sizeBytes = 0;

  constructor(id: string) {
    this.id = id;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  set extents(extents: readonly Extent[]) {
    const starts: number[] = [];
    let sizeBytes = 0;
    for (const { lengthBytes } of extents) {
      starts.push(sizeBytes);
      sizeBytes += lengthBytes;
    }
    this.#extents = extents;
    this.#starts = starts;
    this.#sizeBytes = sizeBytes;
  }

  /** The physical bytes of a range inside the region, in the order of its addresses. */
  locate(address: number, length: number): readonly Extent[] {
    let index = this.#extentAt(address);
    const spans: Extent[] = [];
    let at = address;
    let left = length;
    while (left > 0) {
      const { startBytes, lengthBytes } = this.#extents[index]!;
      const inside = at - this.#starts[index]!;
      const taken = Math.min(left, lengthBytes - inside);
      spans.push({ startBytes: startBytes + inside, lengthBytes: taken });
      at += taken;
      left -= taken;
      index += 1;
    }
    return spans;
  }

  /** Whether it has some of these physical bytes. */
  uses(start: number, end: number): boolean {
    return this.#extents.some((extent) => extent.startBytes < end && start < endOf(extent));
  }

  #extentAt(address: number): number {
    let low = 0;
    let high = this.#starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.#starts[middle]! <= address) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

/** A key that was given. */
export interface GrantedKey {
  readonly grant: Grant;
  readonly region: MappedRegion;
  /** Of the one session over which it is good. */
  readonly session: number;
  /** Opens nothing any more. */
  readonly void: boolean;
  /** Commands that run under it. */
  readonly running: number;
}

interface KeyEntry extends GrantedKey {
  void: boolean;
  running: number;
}

/** Why a command may not be executed; `reason` is for the audit log, not for the one who asks. */
export interface Refusal {
  readonly code: 'ERR_HOLDFAST_KEY_INVALID' | 'ERR_HOLDFAST_ACCESS' | 'ERR_HOLDFAST_OUT_OF_RANGE';
  readonly reason: string;
  /** The region, where the key has told which. */
  readonly region: string | undefined;
}

export class TranslationTables {
  /** Bytes that extents may use. */
  readonly #memory: Extent;
  readonly #limits: TranslationLimits;
  readonly #regions = new Map<string, MappedRegion>();
  readonly #keys = new Map<string, KeyEntry>();
  readonly #keysOfSession = new Map<number, number>();

  constructor(memory: Extent, limits: TranslationLimits) {
    this.#memory = memory;
    this.#limits = limits;
  }

  get regionCount(): number {
    return this.#regions.size;
  }

  /** Void ones included, as long as commands run under them. */
  get keyCount(): number {
    return this.#keys.size;
  }

  /**
   * Takes the place of all tables.
   *
   * @returns the keys that are void by it: of regions that are gone or no longer long enough.
   * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT or ERR_HOLDFAST_OUT_OF_RANGE, with nothing changed.
   */
  install(tables: readonly TranslationTable[]): readonly GrantedKey[] {
    this.#check(tables);
    const present = new Set(tables.map(({ region }) => region));
    for (const id of this.#regions.keys()) if (!present.has(id)) this.#regions.delete(id);
    for (const { region: id, extents } of tables) {
      const region = this.#regions.get(id) ?? new MappedRegion(id);
      region.extents = extents.map(({ startBytes, lengthBytes }) => ({ startBytes, lengthBytes }));
      this.#regions.set(id, region);
    }
    return this.#voidWhere(
      ({ grant, region }) =>
        this.#regions.get(grant.region) !== region || grant.range.base + grant.range.lengthBytes > region.sizeBytes,
    );
  }

  /** @throws HoldfastError ERR_HOLDFAST_OUT_OF_RANGE, ERR_HOLDFAST_BUSY if a table maps some of it. */
  checkUnmapped({ startBytes, lengthBytes }: Extent): void {
    const { startBytes: first, lengthBytes: room } = this.#memory;
    const whole = isWhole(startBytes) && isWhole(lengthBytes);
    if (!whole || startBytes < first || lengthBytes > room || startBytes - first > room - lengthBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_OUT_OF_RANGE',
        `${lengthBytes} bytes at ${startBytes} are not among the ${room} bytes at ${first} for regions`,
      );
    for (const region of this.#regions.values())
      if (region.uses(startBytes, startBytes + lengthBytes))
        throw new HoldfastError('ERR_HOLDFAST_BUSY', `the region ${region.id} has some of it; delete that one first`);
  }

  #check(tables: readonly TranslationTable[]): void {
    const { regionsMax, extentsMax } = this.#limits;
    const ids = new Set<string>();
    const all: Extent[] = [];
    for (const { region, extents } of tables) {
      if (!REGION_PATTERN.test(region) || ids.has(region))
        throw wrong(`${JSON.stringify(region)} is not the identifier of a region, or is there twice`);
      ids.add(region);
      for (const extent of extents) all.push(extent);
      if (ids.size > regionsMax || all.length > extentsMax)
        throw wrong(`there are more than ${regionsMax} regions or ${extentsMax} extents; raise the limit`);
    }
    for (const extent of all) this.#checkExtent(extent);
    all.sort((one, other) => one.startBytes - other.startBytes);
    for (let index = 1; index < all.length; index += 1)
      if (endOf(all[index - 1]!) > all[index]!.startBytes)
        throw wrong(`two extents share the byte ${all[index]!.startBytes}`);
  }

  #checkExtent({ startBytes, lengthBytes }: Extent): void {
    const { startBytes: first, lengthBytes: room } = this.#memory;
    if (![startBytes, lengthBytes].every((bytes) => isWhole(bytes) && bytes % EXTENT_ALIGNMENT_BYTES === 0))
      throw wrong(`an extent of ${lengthBytes} bytes at ${startBytes} is not whole pages`);
    if (lengthBytes === 0 || startBytes < first || lengthBytes > room || startBytes - first > room - lengthBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_OUT_OF_RANGE',
        `an extent of ${lengthBytes} bytes at ${startBytes} is not inside the ${room} bytes at ${first} for regions`,
      );
  }

  /**
   * Takes a key for the session with this ordinal.
   *
   * @throws HoldfastError ERR_HOLDFAST_NOT_FOUND without a table of the region, ERR_HOLDFAST_OUT_OF_RANGE,
   *   ERR_HOLDFAST_BAD_ARGUMENT, ERR_HOLDFAST_QUEUE_FULL beyond a limit.
   */
  grant(grant: Grant, session: number): void {
    const { key, range, rights } = grant;
    const region = this.#regions.get(grant.region);
    if (region === undefined)
      throw new HoldfastError('ERR_HOLDFAST_NOT_FOUND', `there is no table of the region ${grant.region}; install it`);
    if (!KEY_PATTERN.test(key) || this.#keys.has(key))
      throw wrong('a key has 32 hexadecimal digits, and is given once');
    if (rights.length === 0) throw wrong('a key without a right opens nothing');
    if (!isWhole(range.base) || !isWhole(range.lengthBytes) || range.base + range.lengthBytes > region.sizeBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_OUT_OF_RANGE',
        `${range.lengthBytes} bytes at ${range.base} are not inside the region of ${region.sizeBytes} bytes`,
      );
    const { keysMax, keysPerSessionMax } = this.#limits;
    const ofSession = this.#keysOfSession.get(session) ?? 0;
    if (this.#keys.size >= keysMax || ofSession >= keysPerSessionMax)
      throw new HoldfastError(
        'ERR_HOLDFAST_QUEUE_FULL',
        `${ofSession} keys are given over this session and ${this.#keys.size} in all; let some be revoked`,
      );
    this.#keysOfSession.set(session, ofSession + 1);
    const copy = { ...grant, range: { ...range }, rights: [...rights] };
    this.#keys.set(key, { grant: copy, region, session, void: false, running: 0 });
  }

  /** The key, if it opens this range to this session with this right, or with any; else why not. */
  resolve(
    key: string,
    session: number,
    address: number,
    length: number,
    right: Right | undefined,
  ): GrantedKey | Refusal {
    const entry = this.#keys.get(key);
    if (entry === undefined) return unknownKey;
    if (entry.session !== session)
      return { code: 'ERR_HOLDFAST_KEY_INVALID', reason: 'the key of another session', region: entry.grant.region };
    if (entry.void)
      return { code: 'ERR_HOLDFAST_KEY_INVALID', reason: 'a key that was revoked', region: entry.grant.region };
    const { rights, range, region } = entry.grant;
    if (right !== undefined && !rights.includes(right))
      return { code: 'ERR_HOLDFAST_ACCESS', reason: `no right to ${right}`, region };
    if (address < range.base || length > range.lengthBytes || address - range.base > range.lengthBytes - length)
      return { code: 'ERR_HOLDFAST_OUT_OF_RANGE', reason: 'a range that the key does not open', region };
    return entry;
  }

  /** A command runs under the key until `leave`. */
  enter(key: GrantedKey): void {
    (key as KeyEntry).running += 1;
  }

  /** True if that was the last command under a key that is void. */
  leave(key: GrantedKey): boolean {
    const entry = key as KeyEntry;
    entry.running -= 1;
    if (!entry.void || entry.running > 0) return false;
    this.#keys.delete(entry.grant.key);
    return true;
  }

  /**
   * From now on the keys open nothing.
   *
   * @returns how many there were; and all keys, of these and of those that were void before, under which commands run.
   */
  revoke(keys: RevokedKeys): { readonly revoked: readonly GrantedKey[]; readonly running: readonly GrantedKey[] } {
    const fits = ({ grant }: KeyEntry): boolean =>
      grant.region === keys.region &&
      (keys.key === undefined || grant.key === keys.key) &&
      (keys.peer === undefined || grant.peer === keys.peer) &&
      grant.peer !== keys.exceptPeer &&
      (keys.right === undefined || grant.rights.includes(keys.right));
    const revoked = this.#voidWhere(fits);
    const running = [...this.#keys.values()].filter((entry) => entry.void && fits(entry));
    return { revoked, running };
  }

  /** The session is over, and its keys with it. */
  endSession(session: number): readonly GrantedKey[] {
    return this.#keysOfSession.has(session) ? this.#voidWhere((entry) => entry.session === session) : [];
  }

  #voidWhere(fits: (entry: KeyEntry) => boolean): readonly GrantedKey[] {
    const voided: KeyEntry[] = [];
    for (const entry of this.#keys.values()) {
      if (entry.void || !fits(entry)) continue;
      entry.void = true;
      voided.push(entry);
      if (entry.running === 0) this.#keys.delete(entry.grant.key);
      const left = this.#keysOfSession.get(entry.session)! - 1;
      if (left === 0) this.#keysOfSession.delete(entry.session);
      else this.#keysOfSession.set(entry.session, left);
    }
    return voided;
  }
}

const unknownKey: Refusal = {
  code: 'ERR_HOLDFAST_KEY_INVALID',
  reason: 'a key that is not known: invented, revoked, or of a session that has ended',
  region: undefined,
};

function isWhole(bytes: number): boolean {
  return Number.isSafeInteger(bytes) && bytes >= 0;
}

function endOf({ startBytes, lengthBytes }: Extent): number {
  return startBytes + lengthBytes;
}

function wrong(message: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `these tables cannot be: ${message}`);
}
