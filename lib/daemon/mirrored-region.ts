/**
 * A node's part in a region that lies in two memory units, from the configuration: the creation of its vote's file, the
 * vote, and how the region stands. The node with the manager of one of the units proposes, too: for itself, before it
 * lets anybody in, and for the region's users. A tie-breaker only votes.
 */
import { createHash } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { EitherSignal } from '../base/either-signal.ts';
import type { Environment } from '../base/environment.ts';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { MirroredLeg } from '../checkpoint/mirror-admission.ts';
import { type Leg, parseStanding } from '../checkpoint/mirror-standing.ts';
import type { LegRebuild } from '../checkpoint/rebuild-report.ts';
import type { VoterFile, VoterFileOwner } from '../coherency/voter-file.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import type { PeerNode } from '../peer/peer.ts';
import { RegisterArbiter, type VoterReach } from '../peer/register-driver.ts';
import { RegisterService, type Voter } from '../peer/register-service.ts';
import type { MirroredRegionConfig, NodeConfig } from './config.ts';
import { Held } from './held.ts';
import { mirroredRegionStatus, type RebuildHeard } from './mirrored-status.ts';
import { makeStateFile, openStateFile } from './state-file.ts';
import type { MirroredRegionStatus } from './status.ts';

/** How long a status waits for the voters, and a manager, in whose turn others wait. */
const ASK_MS = 1000;

/** Who has a vote, in the same order on every node: ballots name voters by their place. */
function votersOf({ units, tieBreaker }: MirroredRegionConfig): string[] {
  return [...units.map(({ manager }) => manager), tieBreaker.node];
}

/** Bound to the units in their order, too: the other way round the register would call the stale one in sync. */
function ownerOf(config: NodeConfig, { id, units }: MirroredRegionConfig): VoterFileOwner {
  const bound = createHash('sha256').update([id, ...units.map(({ unit }) => unit)].join('\n'));
  return { registerId: bound.digest('hex').slice(0, 32), nodeName: config.name };
}

/** The file of this node's vote. */
export function stateFileOf(config: NodeConfig, { units, tieBreaker }: MirroredRegionConfig): string {
  return (units.find(({ manager }) => manager === config.name) ?? tieBreaker).stateFile;
}

/** Those that this node votes on. */
export function votedRegions(config: NodeConfig): MirroredRegionConfig[] {
  return config.mirroredRegions.filter((region) => votersOf(region).includes(config.name));
}

/**
 * Makes the file of this node's vote. It is never made anew.
 *
 * @throws HoldfastError ERR_HOLDFAST_DEVICE_EXISTS
 */
export async function createVote(config: NodeConfig, region: MirroredRegionConfig): Promise<void> {
  const mend = 'docs/config.md says when it may be made anew';
  await makeStateFile(stateFileOf(config, region), ownerOf(config, region), { mend });
}

export interface MirroredRegionOptions {
  readonly environment: Environment;
  /** Not started yet. */
  readonly node: PeerNode;
}

/** Opens this node's vote; it is counted from now on. Before the node starts. */
export async function openMirroredRegion(
  config: NodeConfig,
  region: MirroredRegionConfig,
  options: MirroredRegionOptions,
): Promise<MirroredRegion> {
  const held = new Held();
  try {
    const path = stateFileOf(config, region);
    const missing = `the vote of ${config.name} in the mirrored region "${region.name}" is not here; if the region is new, run: holdfast memory create ${config.source} --node ${config.name}. If the file is lost, docs/config.md says when it may be made anew`;
    const store = await openStateFile(path, ownerOf(config, region), held, missing).catch((error: unknown) => {
      throw withOrder(error, region);
    });
    return new MirroredRegion(config, region, options, store, held);
  } catch (error) {
    await held.close().catch(() => {});
    throw error;
  }
}

function withOrder(error: unknown, { name, units }: MirroredRegionConfig): unknown {
  if (!isHoldfastError(error, 'ERR_HOLDFAST_METADATA_MISMATCH')) return error;
  const order = units.map(({ unit }) => unit).join(', ');
  return new HoldfastError(
    'ERR_HOLDFAST_METADATA_MISMATCH',
    `${error.message}. It is the vote on another region, or was made when the units of "${name}" were not ${order}, in this order; a region that is mirrored in another way needs a new id`,
    { cause: error },
  );
}

/** A region's vote at this node. */
export class MirroredRegion {
  readonly region: MirroredRegionConfig;
  /** The one whose manager this node has. */
  readonly leg: MirroredLeg | undefined;
  readonly #config: NodeConfig;
  readonly #options: MirroredRegionOptions;
  readonly #store: VoterFile;
  readonly #held: Held;
  readonly #voter: Voter | undefined;
  readonly #arbiter: RegisterArbiter | undefined;
  /** The same, for questions. */
  readonly #asked: Arbiter | undefined;
  /** What the voters said when they were asked last; undefined: they did not. */
  #current: string | undefined;
  #asking: Promise<void> | undefined;
  /** Whether the unit has the region, as its manager knows; undefined: it does not know yet. */
  #isCreated: () => boolean | undefined = () => undefined;
  #rebuild: RebuildHeard | undefined;

  /** By openMirroredRegion. @internal */
  constructor(
    config: NodeConfig,
    region: MirroredRegionConfig,
    options: MirroredRegionOptions,
    store: VoterFile,
    held: Held,
  ) {
    this.region = region;
    this.#config = config;
    this.#options = options;
    this.#store = store;
    this.#held = held;
    const voters = votersOf(region);
    const vote = { registerId: region.id, voters, self: voters.indexOf(config.name), store };
    const leg = region.units.findIndex(({ manager }) => manager === config.name);
    if (leg < 0) {
      this.#voter = held.add(RegisterService.of(options.node).add(vote));
      return;
    }
    const arbiter = held.add(new RegisterArbiter({ ...options, ...vote }));
    this.#arbiter = arbiter;
    this.#asked = withinMs(ASK_MS, arbiter, options.environment.clock);
    this.leg = { region: region.name, registerId: region.id, leg: leg as Leg, arbiter: this.#asked };
  }

  /** As the region's users have it decided. Undefined at the tie-breaker. */
  get arbiter(): Arbiter | undefined {
    return this.#arbiter;
  }

  /** Asks the other voters how it stands, for a second at most; several at once ask once. A tie-breaker asks nobody. */
  refresh(): Promise<void> {
    this.#asking ??= this.#ask().finally(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }

  async #ask(): Promise<void> {
    // Until it is over, whoever has asked before is told what the voters have said then.
    this.#current = await this.#standing();
  }

  async #standing(): Promise<string | undefined> {
    const inReach = this.#voters().filter(({ isInReach }) => isInReach);
    if (this.#asked === undefined || 2 * inReach.length <= votersOf(this.region).length) return undefined;
    try {
      const result = await this.#asked.compareAndSwap('', '');
      return result.swapped ? '' : result.current;
    } catch (error) {
      if (!(error instanceof HoldfastError)) throw error;
      return undefined;
    }
  }

  /** By the manager of the unit with this leg. */
  managedBy(isCreated: () => boolean | undefined): void {
    this.#isCreated = isCreated;
  }

  /** From its writer, or who says so. */
  heardOfRebuild(peer: string, { leg, progress }: LegRebuild): void {
    if (progress === null) {
      if (this.#rebuild?.peer === peer) this.#rebuild = undefined;
      return;
    }
    const { doneBytes, totalBytes } = progress;
    const nowMs = this.#options.environment.clock.nowMs();
    const before = this.#rebuild;
    const isSame = before?.peer === peer && before.leg === leg && before.doneBytes <= doneBytes;
    const since = isSame ? before : { firstMs: nowMs, firstBytes: doneBytes };
    const { firstMs, firstBytes } = since;
    this.#rebuild = { peer, leg, doneBytes, totalBytes, firstMs, firstBytes, lastMs: nowMs };
  }

  /** As it was asked for last. */
  status(): MirroredRegionStatus {
    const isTieBreaker = this.#arbiter === undefined;
    const value = this.#current ?? this.#store.voter.value;
    return mirroredRegionStatus({
      region: this.region,
      self: this.#config.name,
      stateFile: stateFileOf(this.#config, this.region),
      isTieBreaker,
      isCurrent: this.#current !== undefined,
      isCreated: this.#isCreated(),
      isForeign: value !== '' && parseStanding(value) === undefined,
      standing: parseStanding(value),
      voters: this.#voters(),
      rebuild: this.#rebuild && this.#options.node.session(this.#rebuild.peer)?.open ? this.#rebuild : undefined,
      nowMs: this.#options.environment.clock.nowMs(),
    });
  }

  #voters(): readonly VoterReach[] {
    if (this.#arbiter !== undefined) return this.#arbiter.reach;
    const failure = this.#voter?.failure;
    const { name: self } = this.#config;
    return votersOf(this.region).map((name) => {
      const problem = name === self && failure ? { code: failure.code, message: failure.message } : undefined;
      const isConnected = name === self || this.#options.node.session(name)?.open === true;
      return { name, isInReach: isConnected && problem === undefined, problem };
    });
  }

  /** Votes no more and releases the file. Idempotent. */
  close(): Promise<void> {
    return this.#held.close();
  }
}

/** Gives up after so long: what was asked may be decided later, as after any ERR_HOLDFAST_NO_MAJORITY. */
function withinMs(limitMs: number, arbiter: Arbiter, clock: Clock): Arbiter {
  return {
    async compareAndSwap(expected, next, signal) {
      const late = new AbortController();
      using either = new EitherSignal(late.signal, signal);
      const timer = clock.setTimer(limitMs, () => late.abort());
      try {
        return await arbiter.compareAndSwap(expected, next, either.signal);
      } catch (error) {
        if (!late.signal.aborted || signal?.aborted) throw error;
        throw new HoldfastError(
          'ERR_HOLDFAST_NO_MAJORITY',
          `no majority of the voters has said within ${limitMs} ms how the region stands; holdfast status says who is away`,
          { cause: error },
        );
      } finally {
        timer.cancel();
      }
    },
  };
}
