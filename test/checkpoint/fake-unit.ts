/**
 * A unit as its manager sees it: memory with records, tables, keys. Writes down what a reviewer has to judge, checks that
 * the manager keeps to the unit's rules, and lets the manager die at a chosen step.
 */
import { HoldfastError } from '../../lib/base/errors.ts';
import { decodeDirectory, type Region, SPACE_UNIT_BYTES } from '../../lib/checkpoint/region-directory.ts';
import type { Extent, Grant, RevokedKeys, TranslationTable, UnitControl } from '../../lib/checkpoint/unit-control.ts';
import { BaseDevice } from '../../lib/storage/base-device.ts';
import type { Geometry } from '../../lib/storage/block-device.ts';
import { MemoryDevice } from '../../lib/storage/memory-device.ts';
import { decodeSuperblock } from '../../lib/storage/superblock-pair.ts';

export const KIB = 1024;
export const RECORDS_BYTES = 128 * KIB;
const COPY_BYTES = RECORDS_BYTES / 2;

/** What a manager changes at the unit. Reads change nothing. */
export type Step = 'write' | 'flush' | 'install' | 'grant' | 'revoke' | 'erase';

/** The manager dies before the step is done, with half of a write done, or before it hears that it is done. */
export type When = 'before' | 'half' | 'after';

export interface Death {
  readonly step: number;
  readonly when: When;
}

/** The unit's memory, which outlives every process. */
export class FakeMemory {
  readonly sizeBytes: number;
  readonly device: MemoryDevice;
  /** Each region that was ever mapped, with the first bytes of all units of 64 KiB that it has had. */
  readonly mapped = new Map<string, Set<number>>();
  /** What a manager has done that it must not. */
  readonly violations: string[] = [];

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes;
    this.device = new MemoryDevice({ sizeBytes, logicalBlockBytes: 512 });
  }

  /** Whatever a region gets reads as zeros: nobody finds there what another peer has left. */
  async map({ region, extents }: TranslationTable): Promise<void> {
    const units = this.mapped.get(region) ?? new Set();
    this.mapped.set(region, units);
    for (const { startBytes, lengthBytes } of extents)
      for (let unit = startBytes; unit < startBytes + lengthBytes; unit += SPACE_UNIT_BYTES) {
        if (units.has(unit)) continue;
        units.add(unit);
        if ((await this.bytes(unit, SPACE_UNIT_BYTES)).some((byte) => byte !== 0))
          this.violations.push(`a region got space at ${unit} that was not zeroed`);
      }
  }

  /** A longer one that begins with the same; what is new holds anything but zeros. */
  async longer(sizeBytes: number): Promise<FakeMemory> {
    const longer = new FakeMemory(sizeBytes);
    await longer.device.write(0, await this.bytes(0, this.sizeBytes));
    await longer.device.write(this.sizeBytes, new Uint8Array(sizeBytes - this.sizeBytes).fill(9));
    for (const [region, units] of this.mapped) longer.mapped.set(region, units);
    return longer;
  }

  async bytes(offset: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    await this.device.read(offset, bytes);
    return bytes;
  }
}

/** The unit's process: tables and keys, for one life. */
export class FakeUnit {
  readonly memory: FakeMemory;
  /** Peers that it has a session with. */
  readonly sessions = new Set<string>();
  readonly keys = new Map<string, Grant>();
  readonly lines: string[] = [];
  tables: readonly TranslationTable[] | undefined;
  #told = 0;
  /** Whose keys were left when a region was last taken over. */
  readonly #takers = new Map<string, string>();

  constructor(memory: FakeMemory, sessions: Iterable<string> = []) {
    this.memory = memory;
    for (const peer of sessions) this.sessions.add(peer);
  }

  say(line: string): void {
    this.lines.push(line);
  }

  keysOf(peer: string): Grant[] {
    return [...this.keys.values()].filter((grant) => grant.peer === peer);
  }

  /** Through a key, as the unit would; false if it opens nothing. */
  async store(key: string, address: number, byte: number, length = 1): Promise<boolean> {
    const grant = this.keys.get(key);
    if (!grant?.rights.includes('write')) return false;
    for (let at = address; at < address + length; at += 4 * KIB)
      await this.memory.device.write(this.#physical(grant.region, at), Uint8Array.of(byte));
    return true;
  }

  async load(key: string, address: number): Promise<number | undefined> {
    const grant = this.keys.get(key);
    if (!grant?.rights.includes('read')) return undefined;
    return (await this.memory.bytes(this.#physical(grant.region, address), 1))[0];
  }

  #physical(region: string, address: number): number {
    let left = address;
    for (const { startBytes, lengthBytes } of this.tables!.find((table) => table.region === region)!.extents) {
      if (left < lengthBytes) return startBytes + left;
      left -= lengthBytes;
    }
    throw new Error('an address beyond the table');
  }

  async install(tables: readonly TranslationTable[]): Promise<void> {
    this.tables = tables;
    for (const table of tables) await this.memory.map(table);
    let dropped = 0;
    for (const [key, { region, range }] of this.keys) {
      const table = tables.find((each) => each.region === region);
      const sizeBytes = table?.extents.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0) ?? 0;
      if (range.base + range.lengthBytes <= sizeBytes) continue;
      this.keys.delete(key);
      dropped += 1;
    }
    const pieces = tables.map(({ extents }) => extents.map(inWords).join('+'));
    this.say(`  unit: tables [${pieces.join(', ')}]${dropped > 0 ? `, ${dropped} keys void` : ''}`);
  }

  async grant(grant: Grant): Promise<void> {
    if (!this.sessions.has(grant.peer))
      throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', `there is no session with ${grant.peer}`);
    if (this.tables?.some(({ region }) => region === grant.region) !== true)
      throw new HoldfastError('ERR_HOLDFAST_NOT_FOUND', 'there is no such table');
    await this.#checkGrant(grant);
    this.keys.set(grant.key, grant);
    const { range, rights, epoch } = grant;
    this.say(
      `  unit: key for ${grant.peer}: ${rights.join('+')} ${range.lengthBytes / KIB} KiB at ${range.base / KIB}, epoch ${epoch}`,
    );
  }

  async #checkGrant({ region, peer, epoch }: Grant): Promise<void> {
    const stored = await storedDirectory(this.memory);
    const found = stored?.directory.regions.find(({ id }) => id === region);
    if (found?.epoch !== epoch) this.memory.violations.push(`a key of epoch ${epoch} where ${found?.epoch} is durable`);
    const taker = this.#takers.get(region);
    for (const other of this.keys.values()) {
      if (other.region !== region || !other.rights.includes('write') || other.epoch >= epoch) continue;
      if (other.peer !== peer && other.peer !== taker)
        this.memory.violations.push(
          `a key of epoch ${epoch} for ${peer} beside one of ${other.epoch} for ${other.peer}`,
        );
    }
  }

  async revoke(keys: RevokedKeys): Promise<number> {
    let count = 0;
    for (const [key, grant] of this.keys) {
      const fits =
        grant.region === keys.region &&
        (keys.key ?? key) === key &&
        (keys.peer ?? grant.peer) === grant.peer &&
        keys.exceptPeer !== grant.peer &&
        (keys.right === undefined || grant.rights.includes(keys.right));
      if (!fits) continue;
      this.keys.delete(key);
      count += 1;
    }
    if (keys.exceptPeer !== undefined) this.#takers.set(keys.region, keys.exceptPeer);
    const whose = keys.peer ?? (keys.exceptPeer === undefined ? 'everybody' : `all but ${keys.exceptPeer}`);
    this.say(`  unit: ${count} keys of ${whose} revoked${keys.right ? `, those to ${keys.right}` : ''}`);
    return count;
  }

  async erase(extent: Extent): Promise<void> {
    const { startBytes, lengthBytes } = extent;
    if (startBytes < RECORDS_BYTES || startBytes + lengthBytes > this.memory.sizeBytes)
      throw new HoldfastError('ERR_HOLDFAST_OUT_OF_RANGE', 'this may not be erased');
    const mapped = (this.tables ?? []).flatMap(({ extents }) => extents);
    if (mapped.some((other) => overlap(other, extent))) this.memory.violations.push('erased what a table maps');
    if (mapped.some((other) => overlap(other, extent)))
      throw new HoldfastError('ERR_HOLDFAST_BUSY', 'a table maps some of this');
    await this.memory.device.writeZeroes(startBytes, lengthBytes);
    this.say(`  unit: zeros in ${inWords(extent)}`);
  }

  /** Says what both copies of the directory hold, when they do. */
  async flushed(): Promise<void> {
    const stored = await storedDirectory(this.memory);
    if (stored === undefined || stored.sequence === this.#told) return;
    this.#told = stored.sequence;
    const { regions, erasing } = stored.directory;
    const words = [...regions.map(regionInWords), ...erasing.map((extent) => `to be zeroed ${inWords(extent)}`)];
    this.say(`  durable: ${words.join('; ') || 'nothing'}`);
  }
}

/** One manager's hold on a unit: it dies with the manager. */
export class FakeControl implements UnitControl {
  readonly unit = 'unit';
  readonly means = 'msync';
  readonly sizeBytes: number;
  readonly records: FakeRecords;
  readonly steps: Step[] = [];
  dead = false;
  readonly #unit: FakeUnit;
  readonly #death: Death | undefined;
  /** Thrown in place of the next step of this kind, without doing it. */
  readonly failures: { step: Step; error: Error; skip?: number }[] = [];

  constructor(unit: FakeUnit, death?: Death) {
    this.#unit = unit;
    this.#death = death;
    this.sizeBytes = unit.memory.sizeBytes;
    this.records = new FakeRecords(unit, this);
  }

  async step<Result>(step: Step, perform: () => Promise<Result>, half?: () => Promise<void>): Promise<Result> {
    if (this.dead) return new Promise(() => {});
    const number = this.steps.push(step) - 1;
    const failure = this.failures.find((each) => each.step === step);
    if (failure !== undefined) {
      failure.skip = (failure.skip ?? 0) - 1;
      if (failure.skip < 0) {
        this.failures.splice(this.failures.indexOf(failure), 1);
        throw failure.error;
      }
    }
    const when = this.#death?.step === number ? this.#death.when : undefined;
    if (when !== undefined) this.dead = true;
    if (when === 'half') await half?.();
    if (when === 'before' || when === 'half') return new Promise(() => {});
    const result = await perform();
    return when === 'after' ? new Promise(() => {}) : result;
  }

  install(tables: readonly TranslationTable[]): Promise<void> {
    return this.step('install', () => this.#unit.install(tables));
  }

  grant(grant: Grant): Promise<void> {
    return this.step('grant', () => this.#unit.grant(grant));
  }

  revoke(keys: RevokedKeys): Promise<number> {
    return this.step('revoke', () => this.#unit.revoke(keys));
  }

  erase(extent: Extent): Promise<void> {
    const { startBytes, lengthBytes } = extent;
    return this.step(
      'erase',
      () => this.#unit.erase(extent),
      () => this.#unit.erase({ startBytes, lengthBytes: lengthBytes / 2 }),
    );
  }
}

class FakeRecords extends BaseDevice {
  readonly kind = 'fake';
  readonly geometry: Geometry;
  readonly #unit: FakeUnit;
  readonly #control: FakeControl;

  constructor(unit: FakeUnit, control: FakeControl) {
    super('the records of unit', false);
    this.#unit = unit;
    this.#control = control;
    this.geometry = { ...unit.memory.device.geometry, sizeBytes: RECORDS_BYTES };
  }

  protected performRead(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#unit.memory.device.read(offset, buffer);
  }

  protected performWrite(offset: number, buffer: Uint8Array): Promise<void> {
    const write = (bytes: Uint8Array) => this.#unit.memory.device.write(offset, bytes);
    // Cut so that the record itself is torn.
    return this.#control.step(
      'write',
      () => write(buffer),
      () => write(buffer.subarray(0, 100)),
    );
  }

  protected performFlush(): Promise<void> {
    return this.#control.step('flush', () => this.#unit.flushed());
  }

  protected performDiscard(): Promise<void> {
    throw new Error('the manager discards nothing');
  }

  protected performWriteZeroes(): Promise<void> {
    throw new Error('the manager writes no zeros');
  }

  protected async performClose(): Promise<void> {}
}

/** What both copies hold; undefined while they differ. */
export async function storedDirectory(memory: FakeMemory) {
  const copies = await Promise.all(
    [0, COPY_BYTES].map(async (offset) => decodeSuperblock(await memory.bytes(offset, COPY_BYTES), offset).frame),
  );
  if (copies[0] === undefined || copies[0].sequence !== copies[1]?.sequence) return undefined;
  return { sequence: copies[0].sequence, directory: decodeDirectory(copies[0].payload, RECORDS_BYTES) };
}

function overlap(one: Extent, other: Extent): boolean {
  return one.startBytes < other.startBytes + other.lengthBytes && other.startBytes < one.startBytes + one.lengthBytes;
}

/** In KiB. */
function inWords({ startBytes, lengthBytes }: Extent): string {
  return `${startBytes / KIB}..${(startBytes + lengthBytes) / KIB}`;
}

function regionInWords({ name, owner, epoch, extents, access }: Region): string {
  const entries = access.map(
    ({ peer, rights, range }) =>
      `${peer} ${rights.join('+')}${range ? ` ${range.lengthBytes / KIB} KiB at ${range.base / KIB}` : ''}`,
  );
  const list = entries.length > 0 ? `, ${entries.join(', ')}` : '';
  return `${name} of ${owner} in ${extents.map(inWords).join('+')}, epoch ${epoch}${list}`;
}

/** Lets all that can go on go on. */
export async function idle(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}
