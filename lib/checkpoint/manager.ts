/**
 * MemoryManager: says which regions a unit's memory has, who may use them, and gives keys. It is no party to the
 * commands under those keys. Its directory (region-directory.ts) lies in the unit's records, as a superblock pair: the
 * first copy at 0, the second at half of the records (rounded down to 4 KiB), each at most 256 KiB.
 *
 * Who asks is a name that the peer session has authenticated. The owner of a region and the manager's administrators
 * change it; the owner uses it, and those whom its access list lets; a peer never learns another's keys.
 *
 * Invariants:
 * - Operations have one order. Each changes the directory durably first and the unit after that: whoever kills the manager
 *   leaves the old state or the new one, and what the unit still lacks of the new one it gets before anything else.
 * - What is to be revoked is owed from before the change that needs it: no key is given, and nothing else changes, as
 *   long as something is owed. A manager's first act is to revoke every key: it cannot know which ones were owed.
 * - A write to the directory that failed may have happened: the directory is read again before the next operation.
 * - Space of a deleted region is free once the unit has zeroed it, durably, and with no table that maps it.
 * - Take-over: the new epoch is durable; then the keys of others that can write are revoked, and no command under them
 *   runs any more; then the key is given. Two that race have one order: the first one's key falls to the second.
 * - Bounded: operations that wait, of each peer and of all; regions, their pieces and access lists by the directory.
 */
import type { Environment } from '../base/environment.ts';
import { assert, HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { Method, PeerNode } from '../peer/peer.ts';
import { type SuperblockLayout, SuperblockPair, superblockHeaderBytes } from '../storage/superblock-pair.ts';
import {
  type AccessRequest,
  accessListMethod,
  accessRequest,
  allowMethod,
  type CloseRequest,
  type CreateRequest,
  closeMethod,
  closeRequest,
  createMethod,
  createRequest,
  deleteMethod,
  denyMethod,
  type GrowRequest,
  growMethod,
  growRequest,
  type LegPlace,
  LIST_PAGE_MAX,
  type ListRequest,
  listMethod,
  listRequest,
  type NameRequest,
  nameRequest,
  type OpenRequest,
  openMethod,
  openRequest,
  type RegionAccessList,
  type RegionInfo,
  type RegionPage,
  type TakeOverRequest,
  takeOverMethod,
  takeOverRequest,
} from './manager-wire.ts';
import type { AddressContext, AddressRange, Right } from './one-sided.ts';
import {
  type AccessEntry,
  allowed,
  checkInside,
  DIRECTORY_FORMAT,
  type Directory,
  decodeDirectory,
  denied,
  encodeDirectory,
  erased,
  findRegion,
  grown,
  mayUse,
  newDirectory,
  problemIn,
  type Region,
  type Space,
  spaceOf,
  tablesOf,
  takenOver,
  withMemory,
  withoutRegion,
  withRegion,
} from './region-directory.ts';
import type { Extent, RevokedKeys, UnitControl } from './unit-control.ts';

const BLOCK_BYTES = 4096;
const COPY_BYTES_MAX = 256 * 1024;
/** Zeroed in one command: a take-over waits behind no more than this. */
const ERASE_BYTES = 16 * 1024 * 1024;
/** Zeroed before the directory says so: a manager that starts again does this much again. */
const ERASED_TOGETHER_BYTES = 1024 * 1024 * 1024;
const WAITING_MAX = 256;
const WAITING_PER_PEER_MAX = 16;

/** What has happened, or was refused, for the audit log. Never carries a key. */
export interface ManagerAuditEvent {
  /** Who asked. */
  readonly peer: string;
  readonly event: 'created' | 'opened' | 'grown' | 'deleted' | 'allowed' | 'denied' | 'taken-over' | 'refused';
  /** Name of the region. */
  readonly region: string;
  readonly reason: string;
}

/** Who is about to get a key, or to create or delete a region; which one, for what. */
export interface Admission {
  /** Name of the region. */
  readonly region: string;
  readonly peer: string;
  readonly purpose: 'read' | 'write' | 'take-over' | 'rebuild' | 'create' | 'delete';
  /** Who asks for a key takes the region for this leg of a mirrored one. */
  readonly place: LegPlace | undefined;
  readonly signal: AbortSignal;
}

/** Whose memory it manages, and who may ask for what. */
export interface MemoryManagerOptions {
  readonly environment: Pick<Environment, 'random'>;
  /** The unit. */
  readonly control: UnitControl;
  /** Peers that may change every region's size and access list, and delete it. Default none. */
  readonly administrators?: readonly string[];
  /** Peers that may create regions. Default all. */
  readonly creators?: readonly string[];
  /** What one owner may have. Default 256 regions, and all of the memory. */
  readonly regionsPerOwnerMax?: number;
  readonly bytesPerOwnerMax?: number;
  /** Must not throw. */
  readonly audit?: (event: ManagerAuditEvent) => void;
  /**
   * Asked in the operation's turn, before anything is changed or given; throws to refuse. True: the region is a leg of a
   * mirrored one (mirror-admission.ts): a take-over also ends the peer's own former keys. False: it is no such leg, and
   * is not opened as one.
   */
  readonly admit?: (admission: Admission) => Promise<boolean>;
}

/** How the unit's memory is used, and whether the manager can work. */
export interface MemoryManagerStatus {
  readonly regions: number;
  /** Undefined until the directory has been read. */
  readonly space: Space | undefined;
  /** What the unit last failed at, if it has not been done since. */
  readonly problem: { readonly code: string; readonly message: string } | undefined;
}

interface Loaded {
  readonly pair: SuperblockPair;
  readonly directory: Directory;
}

/** What an operation of a peer is about. */
interface Operation {
  readonly peer: string;
  readonly region: string;
}

/** Says which regions a unit has, who may use them, and gives the keys. */
export class MemoryManager implements AsyncDisposable {
  readonly #options: MemoryManagerOptions;
  readonly #control: UnitControl;
  readonly #administrators: ReadonlySet<string>;
  readonly #closed = new AbortController();
  #opened = false;
  #loaded: Loaded | undefined;
  /** As it was durable last, also while it is being written or cannot be read. */
  #known: Directory | undefined;
  /** The unit has begun anew since the directory was read: what it has is what counts. */
  #anew = false;
  /** The unit has the tables of the directory as it is. */
  #installed = false;
  /** Undefined before the first reading of the directory. */
  #owed: RevokedKeys[] | undefined;
  #lastTurn: Promise<void> = Promise.resolve();
  #waiting = 0;
  readonly #waitingOf = new Map<string, number>();
  #sweep: Promise<void> | undefined;
  #problem: HoldfastError | undefined;

  /** Does nothing with the unit before `open`. */
  constructor(options: MemoryManagerOptions) {
    this.#options = options;
    this.#control = options.control;
    this.#administrators = new Set(options.administrators);
    this.#control.apart?.onAnew(() => {
      this.#anew = true;
      if (this.#opened) void this.#restore();
    });
  }

  /**
   * Writes a directory without regions. What was in the unit's memory is lost, and never given to anybody.
   *
   * @param options `blank`: the memory is known to hold nothing but zeros, and need not be zeroed first.
   */
  static async format(control: UnitControl, options: { blank?: boolean; signal?: AbortSignal } = {}): Promise<void> {
    await control.apart?.ready(options.signal);
    const { records, sizeBytes } = control;
    const layout = layoutOf(control);
    const directory = newDirectory(records.geometry.sizeBytes, sizeBytes, options.blank ?? false);
    await SuperblockPair.create(records, DIRECTORY_FORMAT, layout, encodeDirectory(directory, roomOf(layout)));
  }

  /**
   * Reads the directory of a unit that is not apart, and changes nothing. Gives for how many bytes of memory it was
   * written: with less it is not opened. Throws what `open` does.
   */
  static async check(control: UnitControl): Promise<number> {
    const { records, sizeBytes } = control;
    const { payload } = await SuperblockPair.open(records, DIRECTORY_FORMAT, layoutOf(control));
    const recordsBytes = records.geometry.sizeBytes;
    const directory = decodeDirectory(payload, recordsBytes);
    withMemory(directory, recordsBytes, sizeBytes);
    return directory.memoryBytes;
  }

  /** Answers the peers of this node. Before the node starts. */
  serve(node: PeerNode): void {
    answer(node, createMethod, (peer, request) => this.create(peer, request));
    answer(node, openMethod, (peer, request) => this.openRegion(peer, request));
    answer(node, closeMethod, (peer, request) => this.closeRegion(peer, request));
    answer(node, growMethod, (peer, request) => this.grow(peer, request));
    answer(node, listMethod, (peer, request) => this.list(peer, request));
    answer(node, deleteMethod, (peer, request) => this.delete(peer, request));
    answer(node, allowMethod, (peer, request) => this.allow(peer, request));
    answer(node, denyMethod, (peer, request) => this.deny(peer, request));
    answer(node, takeOverMethod, (peer, request) => this.takeOver(peer, request));
    answer(node, accessListMethod, (peer, request) => this.accessList(peer, request));
  }

  /**
   * Waits for a unit that is apart, reads the directory, installs the tables and revokes all keys of before.
   *
   * @throws HoldfastError ERR_HOLDFAST_METADATA_MISSING if the unit has never been formatted; ..._DAMAGED, ..._VERSION,
   *   ..._MISMATCH if the unit has less memory than the directory was written for; ERR_HOLDFAST_PEER_LOST.
   */
  async open(signal?: AbortSignal): Promise<void> {
    const both = signal === undefined ? this.#closed.signal : AbortSignal.any([signal, this.#closed.signal]);
    await this.#control.apart?.ready(both);
    this.#opened = true;
    await this.#inTurn('', () => this.#settle());
    this.#startSweep();
  }

  /** For showing to people. */
  status(): MemoryManagerStatus {
    const directory = this.#loaded?.directory;
    const problem = this.#problem;
    return {
      regions: directory?.regions.length ?? 0,
      space: directory && spaceOf(directory, this.#recordsBytes),
      problem: problem && { code: problem.code, message: problem.message },
    };
  }

  /** No operation any more; those under way end, or fail. The keys that have been given stay good. */
  async close(): Promise<void> {
    this.#closed.abort(new HoldfastError('ERR_HOLDFAST_CLOSED', 'the manager is closed'));
    await this.#lastTurn;
    await this.#sweep;
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  // What peers ask for

  /** A new region that belongs to the peer; all zeros. */
  async create(peer: string, request: CreateRequest): Promise<RegionInfo> {
    const { name, sizeBytes } = valid(createRequest.safeParse(request));
    return this.#operate({ peer, region: name }, async () => {
      const directory = this.#directory();
      this.#checkQuota(peer, directory, 1, sizeBytes);
      const region = { id: this.#randomId(), name, owner: peer, sizeBytes };
      const next = withRegion(directory, this.#recordsBytes, region);
      await this.#admit({ peer, region: name, purpose: 'create' });
      await this.#change(next);
      await this.#settle();
      this.#audit({ peer, event: 'created', region: name, reason: `${sizeBytes} bytes` });
      return infoOf(this.#region(name));
    });
  }

  /** A key for the range, by default all of the region, over the session that the unit has with the peer now. */
  async openRegion(peer: string, request: OpenRequest): Promise<AddressContext> {
    const asked = valid(openRequest.safeParse(request));
    return this.#operate({ peer, region: asked.name }, async () => {
      const { region, range } = this.#usable(peer, asked);
      await this.#admitKey(peer, asked, asked.rights.includes('write') ? 'write' : 'read');
      const context = await this.#grant(peer, region, asked.rights, range);
      this.#audit({ peer, event: 'opened', region: region.name, reason: inWords(asked.rights, range) });
      return context;
    });
  }

  /** The peer needs a key no more. That there was such a key is not said. */
  async closeRegion(peer: string, request: CloseRequest): Promise<void> {
    const { region, key } = valid(closeRequest.safeParse(request));
    return this.#operate({ peer, region: '' }, async () => {
      await this.#control.revoke({ region, key, peer }, this.#closed.signal);
    });
  }

  /** More virtual addresses at the end; they read as zeros. Keys of before keep their range. */
  async grow(peer: string, request: GrowRequest): Promise<RegionInfo> {
    const { name, sizeBytes } = valid(growRequest.safeParse(request));
    return this.#operate({ peer, region: name }, async () => {
      const region = this.#changeable(peer, name);
      this.#checkQuota(region.owner, this.#directory(), 0, sizeBytes - region.sizeBytes);
      await this.#change(grown(this.#directory(), this.#recordsBytes, region, sizeBytes));
      await this.#settle();
      this.#audit({ peer, event: 'grown', region: name, reason: `${region.sizeBytes} to ${sizeBytes} bytes` });
      return infoOf(this.#region(name));
    });
  }

  /** Those that the peer may use or change, by name, a page at a time. */
  async list(peer: string, request: ListRequest): Promise<RegionPage> {
    const { after = '' } = valid(listRequest.safeParse(request));
    return this.#operate({ peer, region: '' }, async () => {
      const mayKnow = ({ owner, access }: Region) => owner === peer || access.some((entry) => entry.peer === peer);
      const found = this.#directory().regions.filter(
        (region) => region.name > after && (this.#administrators.has(peer) || mayKnow(region)),
      );
      return { regions: found.slice(0, LIST_PAGE_MAX).map(infoOf), more: found.length > LIST_PAGE_MAX };
    });
  }

  /** The region is gone, and its keys with it, when resolved; its space is zeroed after that. */
  async delete(peer: string, request: NameRequest): Promise<void> {
    const { name } = valid(nameRequest.safeParse(request));
    return this.#operate({ peer, region: name }, async () => {
      const region = this.#changeable(peer, name);
      await this.#admit({ peer, region: name, purpose: 'delete' });
      this.#owe({ region: region.id });
      await this.#change(withoutRegion(this.#directory(), region));
      await this.#settle();
      this.#audit({ peer, event: 'deleted', region: name, reason: 'its space is zeroed now' });
    });
  }

  /** Adds to what a peer may do. */
  async allow(peer: string, request: AccessRequest): Promise<void> {
    const asked = valid(accessRequest.safeParse(request));
    return this.#operate({ peer, region: asked.name }, async () => {
      const { region, entry } = this.#listed(peer, asked);
      await this.#commit(allowed(this.#directory(), region, entry));
      this.#audit({ peer, event: 'allowed', region: region.name, reason: entryInWords(entry) });
    });
  }

  /** Takes from what a peer may do. Its keys with these rights are revoked: what it still may, it opens again. */
  async deny(peer: string, request: AccessRequest): Promise<void> {
    const asked = valid(accessRequest.safeParse(request));
    return this.#operate({ peer, region: asked.name }, async () => {
      const { region, entry } = this.#listed(peer, asked);
      const next = denied(this.#directory(), region, entry);
      for (const right of entry.rights) this.#owe({ region: region.id, peer: entry.peer, right });
      await this.#commit(next);
      await this.#settle();
      this.#audit({ peer, event: 'denied', region: region.name, reason: entryInWords(entry) });
    });
  }

  /**
   * A key for a peer that goes on where another one stopped: no other peer can write to the region when it is resolved.
   * Needs the right to write all of it.
   */
  async takeOver(peer: string, request: TakeOverRequest): Promise<AddressContext> {
    const asked = valid(takeOverRequest.safeParse(request));
    return this.#operate({ peer, region: asked.name }, async () => {
      const { region, range } = this.#usable(peer, asked);
      // It ends the writing of all others, everywhere in the region.
      if (!mayUse(region, peer, ['write'], { base: 0, lengthBytes: region.sizeBytes }))
        throw refusal(peer, region.name, 'may not write all of it, and so not take it over');
      const isLeg = await this.#admitKey(peer, asked, asked.rebuild === true ? 'rebuild' : 'take-over');
      const next = takenOver(this.#directory(), region);
      this.#owe({ region: region.id, right: 'write', ...(isLeg ? {} : { exceptPeer: peer }) });
      await this.#commit(next);
      await this.#settle();
      const context = await this.#grant(peer, this.#region(region.name), asked.rights, range);
      this.#audit({ peer, event: 'taken-over', region: region.name, reason: `epoch ${context.epoch}` });
      return context;
    });
  }

  /** Its directory has been read. */
  get isKnown(): boolean {
    return this.#known !== undefined;
  }

  /** Whether there is such a region, as far as the directory is known. */
  has(name: string): boolean {
    return this.#known !== undefined && findRegion(this.#known, name) !== undefined;
  }

  /**
   * Whether the peer has this right to all of the region, as far as the directory is known.
   *
   * @throws HoldfastError ERR_HOLDFAST_BUSY as long as it has never been read.
   */
  allows(peer: string, name: string, right: Right): boolean {
    if (this.#known === undefined)
      throw new HoldfastError('ERR_HOLDFAST_BUSY', 'the manager has not read its directory yet; ask later');
    const region = findRegion(this.#known, name);
    return region !== undefined && mayUse(region, peer, [right], { base: 0, lengthBytes: region.sizeBytes });
  }

  /** For its owner and the administrators. */
  async accessList(peer: string, request: NameRequest): Promise<RegionAccessList> {
    const { name } = valid(nameRequest.safeParse(request));
    return this.#operate({ peer, region: name }, async () => {
      const region = this.#changeable(peer, name);
      const access = region.access.map(({ range, rights, ...entry }) => ({
        ...entry,
        rights: [...rights],
        ...(range && { range }),
      }));
      return { region: infoOf(region), access };
    });
  }

  // Checks

  #region(name: string): Region {
    const region = findRegion(this.#directory(), name);
    if (region === undefined) throw new HoldfastError('ERR_HOLDFAST_NOT_FOUND', `there is no region ${name}`);
    return region;
  }

  #changeable(peer: string, name: string): Region {
    const region = this.#region(name);
    if (region.owner !== peer && !this.#administrators.has(peer)) throw refusal(peer, name, 'is not its owner');
    return region;
  }

  #usable(peer: string, asked: OpenRequest): { region: Region; range: AddressRange } {
    const region = this.#region(asked.name);
    const range = asked.range ?? { base: 0, lengthBytes: region.sizeBytes };
    const who = region.owner === peer || region.access.some((entry) => entry.peer === peer);
    if (!who) throw refusal(peer, region.name, 'is not on its access list');
    checkInside(region, range);
    if (!mayUse(region, peer, asked.rights, range))
      throw refusal(peer, region.name, `may not ${asked.rights.join(' and ')} all of that range`);
    return { region, range };
  }

  #listed(peer: string, asked: AccessRequest): { region: Region; entry: AccessEntry } {
    const region = this.#changeable(peer, asked.name);
    if (asked.peer === region.owner)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `${asked.peer} owns ${region.name}, and may do everything`);
    if (asked.range !== undefined) checkInside(region, asked.range);
    return { region, entry: { peer: asked.peer, rights: asked.rights, range: asked.range } };
  }

  #checkQuota(owner: string, directory: Directory, moreRegions: number, moreBytes: number): void {
    const { creators, regionsPerOwnerMax = 256, bytesPerOwnerMax = Number.POSITIVE_INFINITY } = this.#options;
    if (moreRegions > 0 && creators !== undefined && !creators.includes(owner))
      throw new HoldfastError('ERR_HOLDFAST_ACCESS', `${owner} may not create regions here; ask who runs the manager`);
    const own = directory.regions.filter((region) => region.owner === owner);
    const bytes = own.reduce((sum, { sizeBytes }) => sum + sizeBytes, moreBytes);
    if (own.length + moreRegions > regionsPerOwnerMax || (moreBytes > 0 && bytes > bytesPerOwnerMax))
      throw new HoldfastError(
        'ERR_HOLDFAST_NO_SPACE',
        `${owner} would have ${own.length + moreRegions} regions and ${bytes} bytes; the manager gives a peer ${regionsPerOwnerMax} and ${bytesPerOwnerMax}`,
      );
  }

  /** Whether the region is a leg of a mirrored one. */
  async #admitKey(
    peer: string,
    { name: region, mirrored: place }: OpenRequest,
    purpose: Admission['purpose'],
  ): Promise<boolean> {
    const isLeg = await this.#admit({ peer, region, purpose, place });
    if (isLeg || place === undefined) return isLeg;
    throw new HoldfastError(
      'ERR_HOLDFAST_SETTINGS_DIFFER',
      `${region} is not mirrored here; name it among the mirrored regions in the configuration of its manager`,
    );
  }

  async #admit(admission: Omit<Admission, 'signal' | 'place'> & Partial<Admission>): Promise<boolean> {
    const { admit } = this.#options;
    return (await admit?.({ place: undefined, ...admission, signal: this.#closed.signal })) ?? false;
  }

  // The unit

  get #recordsBytes(): number {
    return this.#control.records.geometry.sizeBytes;
  }

  #randomId(): string {
    const bytes = Buffer.alloc(16);
    this.#options.environment.random.fill(bytes);
    return bytes.toString('hex');
  }

  async #grant(
    peer: string,
    { id, sizeBytes, epoch }: Region,
    rights: OpenRequest['rights'],
    range: AddressRange,
  ): Promise<AddressContext> {
    const key = this.#randomId();
    try {
      await this.#control.grant({ key, region: id, range, rights, peer, epoch }, this.#closed.signal);
    } catch (error) {
      // Nobody knows the key, but it may be there.
      this.#owe({ region: id, key });
      if (isHoldfastError(error, 'ERR_HOLDFAST_NOT_FOUND')) this.#installed = false;
      throw error;
    }
    return { region: id, unit: this.#control.unit, sizeBytes, range, rights, key, epoch };
  }

  #owe(keys: RevokedKeys): void {
    assert(this.#owed !== undefined, 'the directory has been read');
    this.#owed.push(keys);
  }

  /** Whatever the unit still lacks of what the directory says. */
  async #settle(): Promise<void> {
    const { signal } = this.#closed;
    if (this.#anew) this.#loaded = undefined;
    this.#anew = false;
    this.#loaded ??= await this.#load();
    const { directory } = this.#loaded;
    this.#owed ??= directory.regions.map(({ id }) => ({ region: id }));
    if (!this.#installed) {
      await this.#control.install(tablesOf(directory), signal);
      this.#installed = true;
    }
    for (let owed = this.#owed[0]; owed !== undefined; owed = this.#owed[0]) {
      await this.#control.revoke(owed, signal);
      this.#owed.shift();
    }
    this.#problem = undefined;
  }

  async #load(): Promise<Loaded> {
    const { records, sizeBytes } = this.#control;
    this.#installed = false;
    const pair = await SuperblockPair.open(records, DIRECTORY_FORMAT, layoutOf(this.#control));
    const directory = decodeDirectory(pair.payload, this.#recordsBytes);
    const whole = withMemory(directory, this.#recordsBytes, sizeBytes);
    await pair.repair();
    if (whole.memoryBytes > directory.memoryBytes) await pair.write(this.#encode(whole));
    this.#known = whole;
    return { pair, directory: whole };
  }

  #directory(): Directory {
    assert(this.#loaded !== undefined, 'the directory has been read');
    return this.#loaded.directory;
  }

  /** Durable when resolved. The unit gets other tables by the next `settle`. */
  async #change(next: Directory): Promise<void> {
    this.#installed = false;
    await this.#commit(next);
  }

  async #commit(next: Directory): Promise<void> {
    assert(this.#loaded !== undefined, 'the directory has been read');
    const { pair } = this.#loaded;
    const payload = this.#encode(next);
    // What was tried may be what is there: it is read again unless this ends well.
    this.#loaded = undefined;
    await pair.write(payload);
    this.#loaded = { pair, directory: next };
    this.#known = next;
  }

  #encode(directory: Directory): Uint8Array {
    const problem = problemIn(directory, this.#recordsBytes);
    assert(problem === undefined, `a directory that is written can be read (${problem})`);
    return encodeDirectory(directory, roomOf(layoutOf(this.#control)));
  }

  // Turns

  async #operate<Result>({ peer, region }: Operation, work: () => Promise<Result>): Promise<Result> {
    try {
      const result = await this.#inTurn(peer, async () => {
        await this.#settle();
        return work();
      });
      this.#startSweep();
      return result;
    } catch (error) {
      const reason = isHoldfastError(error) ? error.code : 'ERR_HOLDFAST_INTERNAL';
      this.#audit({ peer, event: 'refused', region, reason });
      throw error;
    }
  }

  async #inTurn<Result>(peer: string, work: () => Promise<Result>): Promise<Result> {
    this.#closed.signal.throwIfAborted();
    const ofPeer = this.#waitingOf.get(peer) ?? 0;
    if (this.#waiting >= WAITING_MAX || ofPeer >= WAITING_PER_PEER_MAX)
      throw new HoldfastError('ERR_HOLDFAST_BUSY', `${ofPeer} requests of ${peer} wait for the manager; ask later`);
    this.#waiting += 1;
    this.#waitingOf.set(peer, ofPeer + 1);
    const turn = this.#lastTurn.then(() => {
      this.#closed.signal.throwIfAborted();
      return work();
    });
    this.#lastTurn = turn.then(
      () => {},
      () => {},
    );
    try {
      return await turn;
    } finally {
      this.#waiting -= 1;
      const left = this.#waitingOf.get(peer)! - 1;
      if (left === 0) this.#waitingOf.delete(peer);
      else this.#waitingOf.set(peer, left);
    }
  }

  /** The unit has begun anew. */
  async #restore(): Promise<void> {
    try {
      await this.#inTurn('', () => this.#settle());
      this.#startSweep();
    } catch (error) {
      this.#failed(error);
    }
  }

  // Zeroing

  #startSweep(): void {
    if (this.#sweep !== undefined || !this.#loaded?.directory.erasing.length) return;
    this.#sweep = this.#eraseAll().then(
      () => {
        this.#sweep = undefined;
        // What was deleted when this one had just looked for the last time.
        this.#startSweep();
      },
      (error: unknown) => {
        this.#sweep = undefined;
        this.#failed(error);
      },
    );
  }

  async #eraseAll(): Promise<void> {
    for (;;) {
      const next = await this.#inTurn('', async () => {
        await this.#settle();
        return this.#directory().erasing[0];
      });
      if (next === undefined) return;
      const lengthBytes = Math.min(next.lengthBytes, ERASED_TOGETHER_BYTES);
      await this.#erase({ startBytes: next.startBytes, lengthBytes });
      await this.#inTurn('', async () => {
        await this.#settle();
        await this.#commit(erased(this.#directory(), next.startBytes, lengthBytes));
      });
    }
  }

  async #erase({ startBytes, lengthBytes }: Extent): Promise<void> {
    const { signal } = this.#closed;
    for (let done = 0; done < lengthBytes; done += ERASE_BYTES) {
      const piece = { startBytes: startBytes + done, lengthBytes: Math.min(ERASE_BYTES, lengthBytes - done) };
      await this.#control.erase(piece, signal);
    }
  }

  /** Of what nobody waits for: it is done again with the next operation. */
  #failed(error: unknown): void {
    if (this.#closed.signal.aborted) return;
    const message = error instanceof Error ? error.message : String(error);
    this.#problem = isHoldfastError(error)
      ? error
      : new HoldfastError('ERR_HOLDFAST_INTERNAL', message, { cause: error });
  }

  #audit(event: ManagerAuditEvent): void {
    this.#options.audit?.(event);
  }
}

/** The session tells who asks. */
function answer<Request, Response>(
  node: PeerNode,
  method: Method<Request, Response>,
  perform: (peer: string, request: Request) => Promise<Response>,
): void {
  node.handle(method, async ({ control }, { peer }) => ({ control: await perform(peer.name, control) }));
}

function layoutOf({ records }: UnitControl): SuperblockLayout {
  const half = Math.floor(records.geometry.sizeBytes / 2);
  const secondOffset = half - (half % BLOCK_BYTES);
  if (secondOffset === 0)
    throw new HoldfastError(
      'ERR_HOLDFAST_DEVICE_TOO_SMALL',
      `the unit gives ${records.geometry.sizeBytes} bytes to its manager's records; it needs ${2 * BLOCK_BYTES} at least`,
    );
  return { copyOffsets: [0, secondOffset], copyBytes: Math.min(secondOffset, COPY_BYTES_MAX) };
}

function roomOf(layout: SuperblockLayout): number {
  return layout.copyBytes - superblockHeaderBytes;
}

function infoOf({ name, id, sizeBytes, epoch, owner }: Region): RegionInfo {
  return { name, region: id, sizeBytes, epoch, owner };
}

function refusal(peer: string, region: string, why: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_ACCESS', `${peer} ${why} (region ${region}); ask its owner to allow it`);
}

function inWords(rights: readonly string[], range: AddressRange): string {
  return `${rights.join(' and ')}, ${range.lengthBytes} bytes at ${range.base}`;
}

function entryInWords({ peer, rights, range }: AccessEntry): string {
  return `${peer}: ${range === undefined ? rights.join(' and ') : inWords(rights, range)}`;
}

type Parsed<Value> =
  | { readonly success: true; readonly data: Value }
  | {
      readonly success: false;
      readonly error: {
        readonly issues: readonly { readonly message: string; readonly path: readonly PropertyKey[] }[];
      };
    };

/** For callers in this process; what comes over a session has been checked by the same schema. */
function valid<Value>(parsed: Parsed<Value>): Value {
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `the request cannot be: ${issue?.path.join('.') ?? ''} ${issue?.message ?? 'unknown'}`,
  );
}
