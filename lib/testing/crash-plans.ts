/**
 * Which crash states of one epoch to try. Pure. An epoch is a stretch in which nothing becomes durable; its *pending*
 * writes are those that a crash at its end could take back. A plan keeps some of them, tears at most two of the kept
 * (two copies of one thing must not be in doubt together), or lets one pair of writes that overlapped in flight fall in
 * the other order.
 *
 * Up to `exhaustiveWrites` pending writes (10): every subset, and with every subset each tear, each two tears and each
 * exchange, as long as those of a sort are not more than `statesMax`; else that many of them by lot. With more writes:
 * all omissions of one, all of two if they are not more than `statesMax`, everything up to each write, nothing, and by
 * lot `statesMax` of each sort.
 */
import type { SimulatedRandom } from './simulated-random.ts';

/** Which pieces of a torn write are there. */
export type Cut =
  | { readonly kind: 'first' | 'last'; readonly pieces: number }
  | { readonly kind: 'even' | 'odd'; readonly pieces: 0 };

export interface Tear {
  readonly write: number;
  readonly cut: Cut;
}

export interface CrashPlan {
  /** Pending writes, by their place among them, ascending. */
  readonly kept: readonly number[];
  /** At most two. */
  readonly torn: readonly Tear[];
  /** The first of the pair falls after the second. Places as in EpochShape. */
  readonly exchanged?: readonly [number, number];
}

export interface EpochShape {
  /** For each pending write, in how many pieces it can be torn. */
  readonly pieces: readonly number[];
  /**
   * Pairs of writes that overlapped while both were in flight, at least one of them pending. Places from `pieces.length`
   * on are writes that are there in every state.
   */
  readonly pairs: readonly (readonly [number, number])[];
}

export interface PlanLimits {
  readonly exhaustiveWrites: number;
  readonly statesMax: number;
}

/** Longer writes are torn at their first, middle and last piece only. */
const ALL_CUTS_PIECES = 16;

export function cutsOf(pieces: number): Cut[] {
  if (pieces < 2) return [];
  const places =
    pieces <= ALL_CUTS_PIECES
      ? Array.from({ length: pieces - 1 }, (_, index) => index + 1)
      : [1, pieces >> 1, pieces - 1];
  const cuts: Cut[] = places.flatMap((place) => [
    { kind: 'first', pieces: place },
    { kind: 'last', pieces: place },
  ]);
  if (pieces > 2) cuts.push({ kind: 'even', pieces: 0 }, { kind: 'odd', pieces: 0 });
  return cuts;
}

export function isPieceThere(cut: Cut, piece: number, pieces: number): boolean {
  if (cut.kind === 'first') return piece < cut.pieces;
  if (cut.kind === 'last') return piece >= pieces - cut.pieces;
  return piece % 2 === (cut.kind === 'even' ? 0 : 1);
}

/** Says whether what `plansOf` gives is all that there is. */
export function isExhaustive(shape: EpochShape, limits: PlanLimits): boolean {
  return shape.pieces.length <= limits.exhaustiveWrites && SORTS.every((sort) => sort.count(shape) <= limits.statesMax);
}

export function* plansOf(shape: EpochShape, limits: PlanLimits, random: SimulatedRandom): Generator<CrashPlan> {
  const count = shape.pieces.length;
  const isSmall = count <= limits.exhaustiveWrites;
  if (isSmall) for (let mask = 0; mask < 2 ** count; mask += 1) yield { kept: bitsOf(mask, count), torn: [] };
  else yield* chosenSubsets(count, limits, random);
  for (const sort of SORTS) {
    if (isSmall && sort.count(shape) <= limits.statesMax) yield* everyVariant(shape, sort);
    else yield* drawnVariants(shape, sort, limits.statesMax, random);
  }
}

function* chosenSubsets(count: number, limits: PlanLimits, random: SimulatedRandom): Generator<CrashPlan> {
  const all = Array.from({ length: count }, (_, index) => index);
  const plan = (kept: number[]): CrashPlan => ({ kept, torn: [] });
  yield plan([]);
  yield plan(all);
  for (const omitted of all) yield plan(all.filter((write) => write !== omitted));
  for (const last of all) yield plan(all.slice(0, last));
  if ((count * (count - 1)) / 2 <= limits.statesMax) {
    for (const one of all)
      for (const other of all.slice(one + 1)) yield plan(all.filter((write) => write !== one && write !== other));
  }
  for (let drawn = 0; drawn < limits.statesMax; drawn += 1) yield plan(drawKept(all, random));
}

/** What a plan does beside keeping; it goes with every subset that keeps the writes concerned. */
type Variant = Pick<CrashPlan, 'torn' | 'exchanged'>;

interface Sort {
  /** How many plans of this sort there are. */
  readonly count: (shape: EpochShape) => number;
  readonly each: (shape: EpochShape) => Generator<Variant>;
  /** One of them by lot; undefined if there are none. */
  readonly draw: (shape: EpochShape, random: SimulatedRandom) => Variant | undefined;
}

const ONE_TEAR: Sort = {
  count: ({ pieces }) => sum(pieces.map(cutCount)) * 2 ** (pieces.length - 1),
  *each({ pieces }) {
    for (const [write, count] of pieces.entries()) for (const cut of cutsOf(count)) yield { torn: [{ write, cut }] };
  },
  draw(shape, random) {
    const tearable = tearableOf(shape);
    if (tearable.length === 0) return undefined;
    return { torn: [drawTear(shape, tearable[random.below(tearable.length)]!, random)] };
  },
};

const TWO_TEARS: Sort = {
  count({ pieces }) {
    const cuts = pieces.map(cutCount);
    const total = sum(cuts);
    const pairs = (total * total - sum(cuts.map((count) => count * count))) / 2;
    return pairs * 2 ** (pieces.length - 2);
  },
  *each({ pieces }) {
    for (const [first, firstPieces] of pieces.entries())
      for (let second = first + 1; second < pieces.length; second += 1)
        for (const cut of cutsOf(firstPieces))
          for (const other of cutsOf(pieces[second]!))
            yield {
              torn: [
                { write: first, cut },
                { write: second, cut: other },
              ],
            };
  },
  draw(shape, random) {
    const tearable = tearableOf(shape);
    if (tearable.length < 2) return undefined;
    const place = random.below(tearable.length);
    const other = (place + 1 + random.below(tearable.length - 1)) % tearable.length;
    const [first, second] = [Math.min(place, other), Math.max(place, other)];
    return { torn: [first, second].map((index) => drawTear(shape, tearable[index]!, random)) };
  },
};

const EXCHANGE: Sort = {
  count: ({ pieces, pairs }) => pairs.length * 2 ** (pieces.length - 1),
  *each({ pairs }) {
    for (const exchanged of pairs) yield { torn: [], exchanged };
  },
  draw({ pairs }, random) {
    if (pairs.length === 0) return undefined;
    return { torn: [], exchanged: pairs[random.below(pairs.length)]! };
  },
};

const SORTS = [ONE_TEAR, TWO_TEARS, EXCHANGE] as const;

function* everyVariant(shape: EpochShape, sort: Sort): Generator<CrashPlan> {
  const count = shape.pieces.length;
  for (const variant of sort.each(shape)) {
    const needed = concernedBy(variant, count).reduce((mask, write) => mask | (1 << write), 0);
    for (let mask = 0; mask < 2 ** count; mask += 1)
      if ((mask & needed) === needed) yield { kept: bitsOf(mask, count), ...variant };
  }
}

function* drawnVariants(shape: EpochShape, sort: Sort, states: number, random: SimulatedRandom): Generator<CrashPlan> {
  const all = shape.pieces.map((_, index) => index);
  for (let drawn = 0; drawn < states; drawn += 1) {
    const variant = sort.draw(shape, random);
    if (variant === undefined) return;
    const kept = new Set([...drawKept(all, random), ...concernedBy(variant, all.length)]);
    yield { kept: [...kept].sort((one, other) => one - other), ...variant };
  }
}

/** The pending writes that a plan with this variant must keep. */
function concernedBy({ torn, exchanged }: Variant, pending: number): number[] {
  return [...torn.map(({ write }) => write), ...(exchanged ?? []).filter((write) => write < pending)];
}

function tearableOf({ pieces }: EpochShape): number[] {
  return [...pieces.keys()].filter((write) => pieces[write]! > 1);
}

function drawTear({ pieces }: EpochShape, write: number, random: SimulatedRandom): Tear {
  const cuts = cutsOf(pieces[write]!);
  return { write, cut: cuts[random.below(cuts.length)]! };
}

function cutCount(pieces: number): number {
  return cutsOf(pieces).length;
}

function sum(counts: readonly number[]): number {
  return counts.reduce((total, count) => total + count, 0);
}

/** From nearly nothing to nearly everything: each end is rare if every write is drawn alone with one chance. */
function drawKept(all: readonly number[], random: SimulatedRandom): number[] {
  const ofEight = 1 + random.below(7);
  return all.filter(() => random.below(8) < ofEight);
}

function bitsOf(mask: number, count: number): number[] {
  const bits: number[] = [];
  for (let bit = 0; bit < count; bit += 1) if ((mask & (1 << bit)) !== 0) bits.push(bit);
  return bits;
}

// --- a plan in words, so that one state can be tried alone

/** As `keep 0 2 3, tear 2 first 1, exchange 0 3`, by the writes' numbers in the recording. */
export function planInWords(plan: CrashPlan, indexes: readonly number[]): string {
  const name = (write: number) => String(indexes[write]);
  const words = [`keep${plan.kept.map((write) => ` ${name(write)}`).join('')}`];
  for (const { write, cut } of plan.torn)
    words.push(`tear ${name(write)} ${cut.kind}${cut.pieces > 0 ? ` ${cut.pieces}` : ''}`);
  if (plan.exchanged !== undefined) words.push(`exchange ${plan.exchanged.map(name).join(' ')}`);
  return words.join(', ');
}

/** Undefined if the words are none of this epoch, of whose `indexes` the first `pending` can be kept or not. */
export function planFromWords(words: string, indexes: readonly number[], pending: number): CrashPlan | undefined {
  if (!/^keep( \d+)*(, tear \d+ ((first|last) \d+|even|odd))*(, exchange \d+ \d+)?$/.test(words)) return undefined;
  const place = (index: string | undefined) => indexes.indexOf(Number(index));
  const [keep, ...rest] = words.split(', ').map((part) => part.split(' ').slice(1));
  const kept = keep!.map(place);
  const torn: Tear[] = [];
  let exchanged: readonly [number, number] | undefined;
  for (const [one, kind, pieces] of rest) {
    if (kind === 'first' || kind === 'last') torn.push({ write: place(one), cut: { kind, pieces: Number(pieces) } });
    else if (kind === 'even' || kind === 'odd') torn.push({ write: place(one), cut: { kind, pieces: 0 } });
    else exchanged = [place(one), place(kind)];
  }
  const isThere = (write: number) => kept.includes(write) || write >= pending;
  const fits =
    kept.every((write) => write >= 0 && write < pending) &&
    torn.every(({ write }) => kept.includes(write)) &&
    (exchanged ?? []).every((write) => write >= 0 && isThere(write));
  if (!fits) return undefined;
  return { kept, torn, ...(exchanged !== undefined && { exchanged }) };
}
