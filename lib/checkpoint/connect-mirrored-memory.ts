/**
 * A process that uses regions which lie in two units each: its place among the peers, a client for each unit, and the
 * registers by way of those who decide them, in one.
 */
import { setMaxListeners } from 'node:events';
import type { Clock } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';
import { systemEnvironment } from '../base/system-environment.ts';
import { createPeerNode } from '../peer/node.ts';
import type { PeerNode } from '../peer/peer.ts';
import type { ConnectMemoryOptions, MemoryPeer } from './connect-memory.ts';
import { MemoryClient } from './manager-client.ts';
import { openAccess } from './memory-session.ts';
import { RemoteArbiter } from './mirror-decider.ts';
import { managedLegs } from './mirror-legs.ts';
import { MirroredAccess, type MirroredAccessOptions, type MirrorLegs, type MirrorStatus } from './mirrored-access.ts';
import { MirroredReader, type MirroredReaderOptions } from './mirrored-reader.ts';
import { planeTransport } from './plane-transport.ts';
import { rebuildTeller } from './rebuild-report.ts';

/** One of the two units, and who manages it. */
export interface MirroredUnit {
  /** The node with the unit. */
  readonly unit: MemoryPeer;
  /** The node with the unit's manager, if it runs apart. */
  readonly manager?: MemoryPeer;
}

/** Who this process is, and where the two units are. */
export interface ConnectMirroredMemoryOptions extends Omit<ConnectMemoryOptions, 'unit' | 'manager'> {
  /** In the same order for everybody who uses their regions: the registers call them `a` and `b`. */
  readonly units: readonly [MirroredUnit, MirroredUnit];
  /** Who is asked for the registers, in this order. Default: the managers of both units. */
  readonly deciders?: readonly MemoryPeer[];
}

/** A region that lies in both units. */
export interface MirroredRegion {
  /** The region's name, the same in both units. */
  readonly name: string;
  /** Of its register, the `id` in the daemons' configuration: 32 hexadecimal digits, dashes between them or none. */
  readonly registerId: string;
}

/** How a region is opened for writing: as MirroredAccessOptions, without what the connection knows. */
export type OpenWriterOptions = Omit<MirroredAccessOptions, 'environment' | 'legs' | 'arbiter' | 'writer'>;

/** How a region is opened for reading: as MirroredReaderOptions, without what the connection knows. */
export type OpenReaderOptions = Omit<MirroredReaderOptions, 'clock' | 'legs' | 'arbiter'>;

/**
 * Joins the cluster under `name`, which the units' configurations must list, and keeps sessions with both units, their
 * managers, and the deciders. What is asked of it waits until they are there. On a dedicated link the commands go over
 * the units' data planes, where they have one.
 *
 * ```ts
 * await using memory = await connectMirroredMemory({ name: 'till', clusterId, key, units: [{ unit: a }, { unit: b }] });
 * await using orders = await memory.openWriter({ name: 'orders', registerId });
 * await orders.write(0, [bytes], { persist: true });
 * ```
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT as `createPeerNode`; also if one unit is named twice, or one node with
 *   different addresses.
 */
export async function connectMirroredMemory(options: ConnectMirroredMemoryOptions): Promise<MirroredMemoryConnection> {
  const { environment = systemEnvironment, units, deciders = units.map(managerOf), ...self } = options;
  if (units[0].unit.name === units[1].unit.name)
    throw wrong(`${units[0].unit.name} is both units of the mirror; a mirror takes two`);
  if (deciders.length === 0) throw wrong('nobody decides; name the nodes that are asked for the registers');
  const peers = eachOnce([...units.flatMap((each) => [each.unit, managerOf(each)]), ...deciders]);
  const node = createPeerNode({ ...self, environment, peers });
  const connection = new MirroredMemoryConnection({ ...options, environment, deciders }, node);
  await node.start();
  return connection;
}

type Complete = ConnectMirroredMemoryOptions & Required<Pick<ConnectMirroredMemoryOptions, 'environment' | 'deciders'>>;

/** Made by `connectMirroredMemory`. Closing it ends the sessions, and makes the keys void that they have got. */
export class MirroredMemoryConnection implements AsyncDisposable {
  readonly node: PeerNode;
  /** One for each unit: to create, to grow, to say who may use a region; always in both. */
  readonly clients: readonly [MemoryClient, MemoryClient];
  readonly #options: Complete;
  readonly #closed = new AbortController();

  /** @internal */
  constructor(options: Complete, node: PeerNode) {
    const { clock } = options.environment;
    const transport = options.link === 'dedicated' ? planeTransport(clock) : openAccess;
    const clientOf = (each: MirroredUnit): MemoryClient =>
      new MemoryClient({ node, clock, manager: managerOf(each).name, unit: each.unit.name, transport });
    this.node = node;
    // One for each register that is being asked: how many there are, the regions in use bound.
    setMaxListeners(0, this.#closed.signal);
    this.clients = [clientOf(options.units[0]), clientOf(options.units[1])];
    this.#options = options;
  }

  /**
   * Takes the region over, and opens it for writing. Needs the right to read and to write all of it, in both units.
   *
   * @throws HoldfastError as MirroredAccess.open; ERR_HOLDFAST_BAD_ARGUMENT: an id of another form.
   */
  async openWriter(region: MirroredRegion, options: OpenWriterOptions = {}): Promise<MirroredAccess> {
    const { environment, deciders } = this.#options;
    const where = { legs: this.#legs(region), arbiter: this.register(region) };
    const { node, clock } = this;
    const told = { node, clock, registerId: registerIdOf(region), deciders: deciders.map(({ name }) => name) };
    const tell = rebuildTeller(told);
    const onStatus = (status: MirrorStatus): void => {
      tell(status);
      options.onStatus?.(status);
    };
    return MirroredAccess.open({ ...options, ...where, environment, writer: node.name, onStatus });
  }

  /**
   * Opens the region for reading. Needs the right to read all of it, in both units.
   *
   * @throws HoldfastError as MirroredReader.open; ERR_HOLDFAST_BAD_ARGUMENT: an id of another form.
   */
  async openReader(region: MirroredRegion, options: OpenReaderOptions = {}): Promise<MirroredReader> {
    const { clock } = this.#options.environment;
    return MirroredReader.open({ ...options, legs: this.#legs(region), arbiter: this.register(region), clock });
  }

  /** Of this process. */
  get clock(): Clock {
    return this.#options.environment.clock;
  }

  /**
   * The region's register, as the deciders answer for it.
   *
   * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT: an id of another form.
   */
  register(region: Pick<MirroredRegion, 'registerId'>): RemoteArbiter {
    const { environment, deciders } = this.#options;
    const names = deciders.map(({ name }) => name);
    const registerId = registerIdOf(region);
    const closed = this.#closed.signal;
    return new RemoteArbiter({ node: this.node, clock: environment.clock, registerId, deciders: names, closed });
  }

  /** Ends the sessions, and with them what is open. Idempotent. */
  close(): Promise<void> {
    this.#closed.abort();
    return this.node.close();
  }

  /** Same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #legs(mirrored: MirroredRegion): MirrorLegs {
    const { name: region } = mirrored;
    const [first, second] = this.clients;
    const [a, b] = this.#options.units;
    return managedLegs(registerIdOf(mirrored), [
      { unit: a.unit.name, client: first, region },
      { unit: b.unit.name, client: second, region },
    ]);
  }
}

function managerOf({ unit, manager = unit }: MirroredUnit): MemoryPeer {
  return manager;
}

function registerIdOf({ registerId }: Pick<MirroredRegion, 'registerId'>): string {
  const digits = registerId.replaceAll('-', '').toLowerCase();
  if (/^[0-9a-f]{32}$/.test(digits)) return digits;
  throw wrong(`"${registerId.slice(0, 80)}" is no register's id: 32 hexadecimal digits, as the configuration has them`);
}

/** A node may be a unit, a manager and a decider; it is one peer. */
function eachOnce(peers: readonly MemoryPeer[]): MemoryPeer[] {
  const byName = new Map<string, MemoryPeer>();
  for (const peer of peers) {
    const known = byName.get(peer.name);
    if (known !== undefined && JSON.stringify(known.addresses) !== JSON.stringify(peer.addresses))
      throw wrong(`${peer.name} is named with different addresses; give it the same ones in each of its parts`);
    byName.set(peer.name, peer);
  }
  return [...byName.values()];
}

function wrong(message: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
}
