/**
 * A node's memory unit and its manager, from the configuration: the creation of the unit's file, the opening of both,
 * what an operator asks the manager for, and what they say of themselves.
 *
 * To the manager an operator has the name of the manager's own node, which no session can have, and is one of its
 * administrators.
 */
import { open as openFile, stat, unlink } from 'node:fs/promises';
import type { Clock, TimerHandle } from '../base/clock.ts';
import type { Environment } from '../base/environment.ts';
import { HoldfastError, type HoldfastErrorCode, isHoldfastError } from '../base/errors.ts';
import type { Address } from '../base/network.ts';
import { type AuditEntry, type AuditEvent, AuditLog } from '../checkpoint/audit.ts';
import { type ManagerAuditEvent, MemoryManager } from '../checkpoint/manager.ts';
import type { AccessRequest, CreateRequest, GrowRequest, NameRequest } from '../checkpoint/manager-wire.ts';
import { admitByRegister, type MirroredLeg } from '../checkpoint/mirror-admission.ts';
import { serveRegisters } from '../checkpoint/mirror-decider.ts';
import type { Right } from '../checkpoint/one-sided.ts';
import { serveRebuildReports } from '../checkpoint/rebuild-report.ts';
import { RemoteUnit, serveRemoteManager } from '../checkpoint/remote-unit.ts';
import { createMemoryUnit, type MemoryUnit, type MemoryUnitOptions } from '../checkpoint/unit.ts';
import { mappedMemory } from '../checkpoint/unit-memory.ts';
import type { PeerNode } from '../peer/peer.ts';
import { openRegion, type PersistMeans, type Region } from '../storage/region.ts';
import type { MemoryUnitConfig, NodeConfig } from './config.ts';
import type { DaemonEvent } from './daemon.ts';
import { EventGate } from './event-gate.ts';
import { Held } from './held.ts';
import type { MirroredRegion } from './mirrored-region.ts';
import { nearest } from './nearest.ts';
import type { ManagerReport, MemoryListing, MemoryStatus, Refusal, UnitReport } from './status.ts';

/** For the manager's records, at the start of the file; fixed by the creation. */
const RECORDS_BYTES = 1024 * 1024;
const PAGE_BYTES = 4096;
const BEGIN_AGAIN_MS = 1000;
/** Different refusals that are kept beside the unit's own audit log; and of both, those that status shows. */
const REFUSALS_KEPT = 100;
const REFUSALS_SHOWN = 20;

/** What the control socket asks of it. */
export const MEMORY_METHODS = [
  'memory-list',
  'memory-create-region',
  'memory-grow-region',
  'memory-delete-region',
  'memory-allow',
  'memory-deny',
] as const;
export type MemoryMethod = (typeof MEMORY_METHODS)[number];

// --- creation

/**
 * Makes the file of this node's unit, with a directory of no regions. Gives the means by which it will be durable.
 *
 * @throws HoldfastError ERR_HOLDFAST_USAGE if the node has no unit, ERR_HOLDFAST_DEVICE_EXISTS if there is a file
 *   already, what mapping a file throws. Then nothing was changed.
 */
export async function createMemoryFile(config: NodeConfig, clock: Clock): Promise<PersistMeans> {
  const { memoryUnit } = config;
  if (memoryUnit === undefined)
    throw new HoldfastError(
      'ERR_HOLDFAST_USAGE',
      `${config.source}: node ${config.name} has no "memoryUnit"; give it one, or name another node`,
    );
  const { file, sizeBytes, means } = memoryUnit;
  await makeEmptyFile(file);
  try {
    await using unit = unreachableUnit(memoryUnit, await openRegion(file, { sizeBytes, means }), clock);
    await MemoryManager.format(unit, { blank: true });
    return unit.means;
  } catch (error) {
    await unlink(file);
    throw error;
  }
}

async function makeEmptyFile(path: string): Promise<void> {
  const file = await openFile(path, 'wx', 0o600).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code !== 'EEXIST')
      throw new HoldfastError('ERR_HOLDFAST_IO', `${path} cannot be made: ${cause.message}`, { cause });
    const message = `${path} is there already, and others may count on what it holds; remove it first if nobody does. Nothing was changed`;
    throw new HoldfastError('ERR_HOLDFAST_DEVICE_EXISTS', message, { cause });
  });
  await file.close();
}

function unreachableUnit({ unit }: MemoryUnitConfig, region: Region, clock: Clock): MemoryUnit {
  return createMemoryUnit({ name: unit, memory: mappedMemory(region, clock), clock, recordsBytes: RECORDS_BYTES });
}

// --- opening

/** Maps the file, after a look at it: nothing that is no unit's memory is changed. */
async function openFileOfUnit(config: NodeConfig, memoryUnit: MemoryUnitConfig, clock: Clock): Promise<Region> {
  const { file, sizeBytes, means } = memoryUnit;
  const create = `holdfast memory create ${config.source} --node ${config.name}`;
  const stats = await stat(file).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code !== 'ENOENT')
      throw new HoldfastError('ERR_HOLDFAST_IO', `${file} cannot be opened: ${cause.message}`, { cause });
    const message = `the memory of unit ${config.name} is not created here yet (there is no ${file}); run: ${create}`;
    throw new HoldfastError('ERR_HOLDFAST_METADATA_MISSING', message, { cause });
  });
  const isOther = (cause?: unknown) =>
    new HoldfastError(
      'ERR_HOLDFAST_METADATA_MISSING',
      `${file} is not the memory of a unit; give the right "file". A new one, where there is none, is made by: ${create}`,
      { cause },
    );
  // To map it would make whole pages of it.
  if (!stats.isFile() || stats.size <= RECORDS_BYTES || stats.size % PAGE_BYTES !== 0) throw isOther();
  try {
    await using unit = unreachableUnit(memoryUnit, await openRegion(file, { means }), clock);
    const leastBytes = await MemoryManager.check(unit);
    if (sizeBytes < leastBytes)
      throw new HoldfastError(
        'ERR_HOLDFAST_METADATA_MISMATCH',
        `${config.source}: the memory of unit ${config.name} cannot be made smaller, its regions may be anywhere in ${leastBytes} bytes; set its "sizeBytes" to that again, or to more`,
      );
  } catch (error) {
    throw isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISSING') ? isOther(error) : error;
  }
  return openRegion(file, { sizeBytes, means });
}

export interface MemoryOptions {
  readonly environment: Environment;
  /** Undefined where there is no other node. Not started yet. */
  readonly node: PeerNode | undefined;
  /** Those that this node votes on. */
  readonly mirrored: readonly MirroredRegion[];
  /** Not told of all when there are too many. */
  readonly onEvent: (event: DaemonEvent) => void;
}

/**
 * Opens what this node has of a unit, the memory or the manager or both; undefined if neither. Before the node starts.
 *
 * @throws HoldfastError ERR_HOLDFAST_METADATA_MISSING if the file is not there or is not a unit's memory,
 *   ERR_HOLDFAST_METADATA_MISMATCH if the unit is to have less memory than it had; what mapping it and reading its
 *   directory throws.
 */
export async function openMemory(config: NodeConfig, options: MemoryOptions): Promise<Memory | undefined> {
  const { memoryUnit, managerOf } = config;
  if (memoryUnit === undefined && managerOf === undefined) return undefined;
  const memory = new Memory(config, options);
  try {
    await memory.open();
    return memory;
  } catch (error) {
    await memory.close().catch(() => {});
    throw error;
  }
}

/** The unit or the manager that a node has, or both. */
export class Memory {
  readonly #config: NodeConfig;
  readonly #options: MemoryOptions;
  readonly #held = new Held();
  readonly #gate: EventGate;
  /** What the manager has refused, and who was turned away at the door. */
  readonly #refusals: AuditLog;
  #unit: MemoryUnit | undefined;
  #manager: MemoryManager | undefined;
  /** Why a manager that is apart from its unit has not begun. */
  #notBegun: HoldfastError | undefined;
  #again: TimerHandle | undefined;
  #isClosed = false;

  /** @internal */
  constructor(config: NodeConfig, options: MemoryOptions) {
    this.#config = config;
    this.#options = options;
    const { clock } = options.environment;
    this.#refusals = new AuditLog(clock, REFUSALS_KEPT);
    this.#gate = new EventGate(clock, options.onEvent);
  }

  /** @internal */
  async open(): Promise<void> {
    const { memoryUnit, managerOf } = this.#config;
    if (memoryUnit !== undefined) this.#unit = await this.#openUnit(memoryUnit);
    if (managerOf !== undefined) this.#manager = await this.#openManager(managerOf);
  }

  async #openUnit(config: MemoryUnitConfig): Promise<MemoryUnit> {
    const { node, environment } = this.#options;
    const { clock } = environment;
    const region = await openFileOfUnit(this.#config, config, clock);
    const unit = createMemoryUnit({
      name: config.unit,
      memory: mappedMemory(region, clock),
      clock,
      recordsBytes: RECORDS_BYTES,
      ...(node && { node }),
      limits: config.rates,
      ...this.#planeOf(config, region),
      onAudit: (entry) => this.#tell(entry),
    });
    this.#held.add(unit);
    if (node !== undefined && config.manager !== config.unit)
      serveRemoteManager({
        node,
        control: unit,
        manager: config.manager,
        onRefused: (peer, method) => this.#refuse(peer, 'ERR_HOLDFAST_REFUSED', `${method}: is no manager`),
      });
    return unit;
  }

  /** A plane speaks in the clear, and clients are told where it is. Without one they use their sessions. */
  #planeOf({ planePort: port = 0 }: MemoryUnitConfig, region: Region): Pick<MemoryUnitOptions, 'plane'> {
    const { link, listen, addresses } = this.#config;
    if (link !== 'dedicated' || !isNumericAddress(listen)) return {};
    const best = addresses[0];
    const reachedAt = isNumericAddress(best) ? best.host : listen.host;
    return { plane: { ...this.#options.environment, host: listen.host, reachedAt, port, region } };
  }

  async #openManager({ unit, administrators, creators }: MemoryUnitConfig): Promise<MemoryManager> {
    const { node, environment } = this.#options;
    const control = this.#unit?.unit === unit ? this.#unit : new RemoteUnit({ node: node!, unit });
    const manager = new MemoryManager({
      environment,
      control,
      administrators: [...administrators, this.#config.name],
      ...(creators && { creators: [...creators, this.#config.name] }),
      admit: admitByRegister(this.#legs()),
      audit: (event) => this.#audit(event),
    });
    this.#held.add(manager);
    for (const mirrored of this.#options.mirrored)
      mirrored.managedBy(() => (manager.isKnown ? manager.has(mirrored.region.name) : undefined));
    if (node !== undefined) {
      manager.serve(node);
      const decided = this.#options.mirrored.flatMap((mirrored) => {
        const allows = (peer: string, right: Right) => manager.allows(peer, mirrored.region.name, right);
        const onRebuild = mirrored.heardOfRebuild.bind(mirrored);
        const { arbiter } = mirrored;
        return arbiter === undefined ? [] : [{ registerId: mirrored.region.id, arbiter, allows, onRebuild }];
      });
      serveRegisters(node, decided);
      serveRebuildReports(node, decided);
    }
    if (control === this.#unit) await manager.open();
    else this.#beginApart(manager);
    return manager;
  }

  /** Those of the mirrored regions that lie in the unit that this node manages. */
  #legs(): MirroredLeg[] {
    return this.#options.mirrored.flatMap(({ leg }) => leg ?? []);
  }

  /** As often as it takes: the unit may be there later, or be mended. */
  #beginApart(manager: MemoryManager): void {
    manager.open().catch((error: unknown) => {
      if (this.#isClosed) return;
      if (isHoldfastError(error)) this.#notBegun = error;
      const { clock } = this.#options.environment;
      this.#again = clock.setTimer(BEGIN_AGAIN_MS, () => this.#beginApart(manager));
    });
  }

  /** Somebody who has not proven to be a peer. */
  strangerRefused(remote: string, error: Error, claimed: string | undefined): void {
    const code = isHoldfastError(error) ? error.code : 'ERR_HOLDFAST_HANDSHAKE';
    // Without the port, and no name that is made up: or one could be many, and push out what others did.
    const known = this.#config.peers.some(({ name }) => name === claimed);
    const who = known ? `, as ${claimed}` : '';
    this.#refusals.record(refusal(undefined, undefined, code, `a stranger from ${remote.replace(/:\d+$/, '')}${who}`));
  }

  #refuse(peer: string, code: HoldfastErrorCode, reason: string): void {
    const entry = refusal(peer, undefined, code, reason);
    this.#refusals.record(entry);
    this.#tell(entry);
  }

  #audit({ peer, event, region, reason }: ManagerAuditEvent): void {
    if (event !== 'refused') {
      this.#gate.tell({ kind: `memory-region-${event}`, region, peer, reason });
      return;
    }
    const entry = refusal(peer, region, reason as HoldfastErrorCode, 'by the manager');
    // A name that is made up could be many, and push out what others did.
    this.#refusals.record(this.#manager?.has(region) ? entry : { ...entry, region: undefined });
    this.#tell(entry);
  }

  #tell({ kind, peer, region, code, reason }: AuditEntry): void {
    const details = { ...(peer && { peer }), ...(region && { region }), ...(code && { code }) };
    this.#gate.tell({ kind: `memory-${kind}`, ...details, reason });
  }

  // --- what an operator asks

  /** Answers the control socket. The manager checks what it is asked, whoever asks. */
  async operate(method: MemoryMethod, request: unknown): Promise<unknown> {
    const { name } = this.#config;
    const manager = this.#managing();
    switch (method) {
      case 'memory-list':
        return this.#list(manager);
      case 'memory-create-region':
        return manager.create(name, request as CreateRequest);
      case 'memory-grow-region':
        return manager.grow(name, request as GrowRequest);
      case 'memory-delete-region':
        return manager.delete(name, request as NameRequest);
      case 'memory-allow':
        this.#checkKnown((request as AccessRequest | null)?.peer);
        return manager.allow(name, request as AccessRequest);
      case 'memory-deny':
        return manager.deny(name, request as AccessRequest);
    }
  }

  #managing(): MemoryManager {
    if (this.#manager !== undefined) return this.#manager;
    const { unit, manager } = this.#config.memoryUnit!;
    throw new HoldfastError(
      'ERR_HOLDFAST_NOT_FOUND',
      `the manager of unit ${unit} is at node ${manager}; ask there: --node ${manager}`,
    );
  }

  /** A misspelt name would be let in, and the one that was meant would not. */
  #checkKnown(peer: unknown): void {
    const names = this.#config.peers.map(({ name }) => name);
    if (typeof peer !== 'string' || names.includes(peer)) return;
    const near = nearest(peer, names);
    const hint = near === undefined ? `it has ${names.join(', ') || 'no other'}` : `did you mean "${near}"?`;
    const message = `there is no node "${peer.slice(0, 80)}" in the configuration; ${hint}`;
    throw new HoldfastError('ERR_HOLDFAST_UNKNOWN_PEER', message);
  }

  async #list(manager: MemoryManager): Promise<MemoryListing> {
    const { name, managerOf } = this.#config;
    const regions: MemoryListing['regions'] = [];
    for (let more = true, after: string | undefined; more; ) {
      const page = await manager.list(name, after === undefined ? {} : { after });
      for (const region of page.regions) {
        // One that is deleted meanwhile is left out.
        const list = await manager.accessList(name, { name: region.name }).catch(unlessGone);
        if (list !== undefined) regions.push({ ...list.region, access: list.access });
      }
      more = page.more;
      after = page.regions.at(-1)?.name;
    }
    const mirrored = this.#options.mirrored.filter(({ leg }) => leg !== undefined);
    await Promise.all(mirrored.map((region) => region.refresh()));
    return { unit: managerOf!.unit, regions, mirrored: mirrored.map((region) => region.status()) };
  }

  // --- status

  status(): MemoryStatus {
    const refusals = [...(this.#unit?.auditEvents() ?? []), ...this.#refusals.events()]
      .filter(({ kind }) => kind === 'refused')
      .sort((one, other) => one.lastMs - other.lastMs);
    return {
      unit: this.#unitReport(),
      manager: this.#managerReport(),
      refusals: refusals.slice(-REFUSALS_SHOWN).map(refusalReport),
    };
  }

  #unitReport(): UnitReport | null {
    if (this.#unit === undefined) return null;
    const { failure, plane = null, ...counters } = this.#unit.status;
    return {
      name: this.#unit.unit,
      file: this.#config.memoryUnit!.file,
      ...counters,
      plane,
      failure: failure === undefined ? null : { code: failure.code, message: failure.message },
    };
  }

  #managerReport(): ManagerReport | null {
    if (this.#manager === undefined) return null;
    const { regions, space, problem } = this.#manager.status();
    const notBegun = space === undefined ? this.#notBegun : undefined;
    const wrong = problem ?? notBegun;
    return {
      unit: this.#config.managerOf!.unit,
      regions,
      space: space === undefined ? null : { ...space },
      problem: wrong === undefined ? null : { code: wrong.code, message: wrong.message },
    };
  }

  /** The node is closed before. Idempotent. */
  close(): Promise<void> {
    this.#isClosed = true;
    this.#again?.cancel();
    return this.#held.close();
  }
}

function refusal(
  peer: string | undefined,
  region: string | undefined,
  code: HoldfastErrorCode,
  reason: string,
): AuditEntry {
  return { kind: 'refused', peer, region: region === '' ? undefined : region, code, reason };
}

function refusalReport({ peer, region, code, reason, firstMs, lastMs, count }: AuditEvent): Refusal {
  const what = { peer: peer ?? null, region: region ?? null, code: code ?? '', reason };
  return { ...what, firstMs, lastMs, count };
}

function unlessGone(error: unknown): undefined {
  if (!isHoldfastError(error, 'ERR_HOLDFAST_NOT_FOUND')) throw error;
}

type TcpAddress = Extract<Address, { kind: 'tcp' }>;

/** Of one interface; not of all of them. */
function isNumericAddress(address: Address | undefined): address is TcpAddress {
  if (address?.kind !== 'tcp') return false;
  const { host } = address;
  return /^(\d{1,3}\.){3}\d{1,3}$|:/.test(host) && host !== '0.0.0.0' && host !== '::';
}
