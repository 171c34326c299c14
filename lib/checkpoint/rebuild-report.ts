/**
 * How far the rebuild of a mirrored region's leg is, told by its writer to those who decide about the region, so that an
 * operator sees it at a unit. Number 71. Nothing depends on it: what is not heard is said again a second later.
 *
 * Invariant: to each decider one report at a time, then the newest; while it goes on at most one a second.
 */
import { z } from 'zod';
import type { Clock } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';
import type { Method, PeerNode } from '../peer/peer.ts';
import { LEGS, type Leg } from './mirror-standing.ts';
import type { MirrorStatus } from './mirrored-access.ts';
import type { Right } from './one-sided.ts';
import { REGION_BYTES_MAX } from './region-directory.ts';

const TELL_MS = 1000;

const bytes = z.int().min(0).max(REGION_BYTES_MAX);
const report = z.strictObject({
  register: z.string().regex(/^[0-9a-f]{32}$/),
  leg: z.union([z.literal(0), z.literal(1)]),
  /** Null: it is over, whatever has become of it. */
  progress: z.strictObject({ doneBytes: bytes, totalBytes: bytes.min(1) }).nullable(),
});
type Report = z.infer<typeof report>;
const nothing: z.ZodType<void> = z.undefined();

export const regionRebuildMethod: Method<Report, void> = {
  id: 71,
  name: 'region-rebuild',
  channel: 'control',
  request: report,
  response: nothing,
  maxRequestDataBytes: 0,
  maxResponseDataBytes: 0,
};

/** How far it is, as the region's writer says. */
export interface LegRebuild {
  readonly leg: Leg;
  /** Null: it is over, whatever has become of it. */
  readonly progress: { readonly doneBytes: number; readonly totalBytes: number } | null;
}

/** A region whose rebuilds this node hears of. */
export interface RebuiltRegion {
  /** 32 hexadecimal digits. */
  readonly registerId: string;
  readonly allows: (peer: string, right: Right) => boolean;
  /** `peer` says so, who may write the region. Must not throw. */
  readonly onRebuild: (peer: string, rebuild: LegRebuild) => void;
}

/** Hears the writers. Before the node starts. */
export function serveRebuildReports(node: PeerNode, regions: readonly RebuiltRegion[]): void {
  const byId = new Map(regions.map((region) => [region.registerId, region]));
  node.handle(regionRebuildMethod, async ({ control }, session) => {
    const { register: id, leg, progress } = control;
    const peer = session.peer.name;
    const region = byId.get(id);
    if (region === undefined || !region.allows(peer, 'write'))
      throw new HoldfastError('ERR_HOLDFAST_ACCESS', `${peer} may not write what register ${id} is for`);
    if (progress !== null && progress.doneBytes > progress.totalBytes)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'more cannot be done than there is');
    region.onRebuild(peer, { leg, progress });
    return { control: undefined };
  });
}

/** To whom about what. */
export interface RebuildTellerOptions {
  readonly node: PeerNode;
  readonly clock: Clock;
  readonly registerId: string;
  /** Names of those that are told. */
  readonly deciders: readonly string[];
}

/** For MirroredAccessOptions.onStatus: tells the deciders of a rebuild that is under way, and when it is not any more. */
export function rebuildTeller(options: RebuildTellerOptions): (status: MirrorStatus) => void {
  const { clock, deciders } = options;
  const listeners = deciders.map((name) => new Listener(options, name));
  let told: Report | undefined;
  let toldMs = Number.NEGATIVE_INFINITY;
  return ({ rebuild, legs }) => {
    const leg = LEGS.find((each) => legs[each].unit === rebuild?.unit);
    const isUnderWay = rebuild !== undefined && leg !== undefined;
    if (!isUnderWay && (told === undefined || told.progress === null)) return;
    const isSame = isUnderWay && told?.leg === leg && told.progress !== null;
    if (isSame && clock.nowMs() - toldMs < TELL_MS) return;
    const progress = isUnderWay ? { doneBytes: rebuild.doneBytes, totalBytes: rebuild.totalBytes } : null;
    told = { register: options.registerId, leg: leg ?? told!.leg, progress };
    toldMs = clock.nowMs();
    for (const listener of listeners) listener.tell(told);
  };
}

/** A decider. */
class Listener {
  readonly #options: RebuildTellerOptions;
  readonly #name: string;
  #next: Report | undefined;
  #isTelling = false;

  constructor(options: RebuildTellerOptions, name: string) {
    this.#options = options;
    this.#name = name;
  }

  tell(news: Report): void {
    this.#next = news;
    if (!this.#isTelling) void this.#tellNext();
  }

  async #tellNext(): Promise<void> {
    this.#isTelling = true;
    for (let news = this.#next; news !== undefined; news = this.#next) {
      this.#next = undefined;
      const session = this.#options.node.session(this.#name);
      await session?.request(regionRebuildMethod, news).catch(() => {});
    }
    this.#isTelling = false;
  }
}
