/**
 * What a seed draws before anything runs: a swarm (Groce et al., "Swarm testing", ISSTA 2012). Each seed has a mix of
 * its own, with many kinds of fault left out altogether: what hides behind a common fault is found where that one is
 * missing. All that is drawn later, while it runs, follows the plan.
 */
import type { OnLostPeer } from '../mirror/standing.ts';
import type { LinkOptions } from './simulated-network.ts';
import type { SimulatedRandom } from './simulated-random.ts';

/** The unit of the histories: requests cover whole units, and the disks never tear one. */
export const UNIT_BYTES = 512;

/** All kinds of fault that a simulation can inject. */
export const FAULT_KINDS = [
  'kill',
  'kill-both',
  'power-cut',
  'power-cut-both',
  'clean-stop',
  'partition',
  'one-way-partition',
  'clog',
  'reset',
  'pause',
  'stun',
  'wall-jump',
  'clock-rate',
  'disk-error',
  'disk-dead',
  'disk-slow',
  'disk-hang',
  'crash-at-data',
  'crash-at-metadata',
  'crash-at-flush',
  'metadata-rot',
  'metadata-astray',
  // Where a majority decides:
  'voter-kill',
  'voter-power-cut',
  'voter-pause',
  'voter-crash-at-write',
  'voter-rot',
  'voter-slow',
  'voter-partition',
] as const;
/** One of `FAULT_KINDS`. */
export type FaultKind = (typeof FAULT_KINDS)[number];

/** What the volume holds when it is created. */
export type Content =
  /** Zeros on both devices, and known to be: no first copy is made. */
  | 'blank'
  /** Zeros on the first, and nobody knows. */
  | 'zeros'
  /** Data on the first: zeros are a value then, and can be written. */
  | 'filled';

/** What the clients of a simulation do. */
export interface ClientPlan {
  readonly clients: number;
  /** Requests that each has under way at a time. */
  readonly depth: number;
  /** Between two requests of one: mostly none, else up to this. */
  readonly pauseMostMs: number;
  /** How long one waits for an answer before it goes on with something else. */
  readonly patienceMs: number;
  /** Where requests begin, in units. */
  readonly hotUnits: readonly number[];
  readonly unitsMost: number;
  /** Shares in per cent; what is left are reads. */
  readonly writes: number;
  readonly flushes: number;
  readonly zeroes: number;
  /** Of the writes. */
  readonly fuaRate: number;
  /** How many requests of more than the largest piece of the peers' protocol there may be. */
  readonly hugeMost: number;
}

/**
 * What a seed draws before anything runs: sizes, speeds, the kinds of fault. Many kinds are left out of each ("Swarm
 * testing", ISSTA 2012).
 */
export interface SimulationPlan {
  readonly onLostPeer: OnLostPeer;
  readonly content: Content;
  readonly volumeBytes: number;
  readonly grainBytes: number;
  readonly logExtentBytes: number;
  readonly policingExtentBytes: number;
  readonly deviceTimeoutMs: number;
  /** Of the disks. 4096: most requests are unaligned, and a write is torn in larger pieces. */
  readonly logicalBlockBytes: number;
  readonly cacheBytes: number;
  /** How much slower the disks are than they usually are. */
  readonly diskFactor: number;
  readonly leaseMs: number;
  readonly link: Partial<LinkOptions>;
  readonly client: ClientPlan;
  /** What can happen; a kind that is there twice happens twice as often. */
  readonly faults: readonly FaultKind[];
  readonly faultCount: number;
  /** After the healing, whose loss is made permanent. The others have to go on if the policy lets them. */
  readonly lostAtEnd: 0 | 1 | 'tie-breaker' | undefined;
}

/** What a mix of everything comes to too rarely, some seeds look for on purpose. */
interface Theme {
  readonly policies: readonly OnLostPeer[];
  readonly faults: readonly FaultKind[];
}

const THEMES: readonly Theme[] = [
  // A server that does not know that the other has gone on.
  {
    policies: [{ kind: 'preferred', member: 0 }, { kind: 'preferred', member: 1 }, { kind: 'majority' }],
    faults: ['stun'],
  },
  // One that goes on alone, and is restarted with a damaged superblock.
  {
    policies: [
      { kind: 'preferred', member: 0 },
      { kind: 'preferred', member: 1 },
    ],
    faults: ['metadata-rot', 'partition', 'partition'],
  },
  // One that dies while it makes its new view durable.
  {
    policies: [{ kind: 'preferred', member: 0 }, { kind: 'preferred', member: 1 }, { kind: 'majority' }],
    faults: ['crash-at-metadata', 'partition'],
  },
];
const THEME_RATE = 0.3;

export function drawPlan(random: SimulatedRandom): SimulationPlan {
  const plan = drawMix(random);
  if (!random.chance(THEME_RATE)) return plan;
  const theme = pick(random, THEMES);
  const client = { ...plan.client, clients: Math.max(2, plan.client.clients), writes: 35 };
  return { ...plan, onLostPeer: pick(random, theme.policies), faults: theme.faults, client, link: {} };
}

function drawMix(random: SimulatedRandom): SimulationPlan {
  const isLarge = random.chance(0.015);
  const leaseMs = pick(random, [600, 1000, 3000]);
  const faultCount = 2 + random.below(9);
  const grainBytes = random.chance(0.7) ? 4096 : 16_384;
  const volumeBytes = isLarge ? 2.5 * 1024 * 1024 : grainBytes * (4 + random.below(20));
  const onLostPeer = pick(random, POLICIES);
  return {
    onLostPeer,
    content: pick(random, ['blank', 'zeros', 'filled', 'filled'] as const),
    volumeBytes,
    grainBytes,
    logExtentBytes: grainBytes * pick(random, [1, 2, 4]),
    policingExtentBytes: grainBytes * pick(random, [1, 1, 2, 8]),
    deviceTimeoutMs: leaseMs * pick(random, [2, 10]),
    logicalBlockBytes: random.chance(0.75) ? 512 : 4096,
    cacheBytes: random.chance(0.8) ? 4 * 1024 * 1024 : 16_384,
    diskFactor: pick(random, [0.2, 1, 1, 3, 20]),
    leaseMs,
    link: drawLink(random),
    client: drawClient(random, volumeBytes / UNIT_BYTES, (faultCount * leaseMs) / 2, leaseMs, isLarge),
    faults: drawFaults(random, onLostPeer.kind === 'majority'),
    faultCount,
    lostAtEnd: pick(random, [undefined, undefined, undefined, 0, 1, 'tie-breaker'] as const),
  };
}

const POLICIES: readonly OnLostPeer[] = [
  { kind: 'suspend' },
  { kind: 'preferred', member: 0 },
  { kind: 'preferred', member: 1 },
  { kind: 'continue' },
  { kind: 'majority' },
  { kind: 'majority' },
  { kind: 'majority' },
];

function pick<Item>(random: SimulatedRandom, items: readonly Item[]): Item {
  return items[random.below(items.length)]!;
}

function drawFaults(random: SimulatedRandom, isVoted: boolean): FaultKind[] {
  const possible = FAULT_KINDS.filter((kind) => isVoted || !kind.startsWith('voter-'));
  const kinds = possible.filter(() => random.chance(0.3));
  const twice = kinds.filter(() => random.chance(0.3));
  return kinds.length > 0 ? [...kinds, ...twice] : [pick(random, possible)];
}

function drawLink(random: SimulatedRandom): Partial<LinkOptions> {
  const slow = random.chance(0.25) ? { delayMinMs: 1, delayMaxMs: 40, bytesPerMs: 2000 } : {};
  const uneven = random.chance(0.2) ? { delayMinMs: 0, delayMaxMs: 8 } : {};
  const stalling = random.chance(0.15) ? { stallRate: 0.002 } : {};
  if (!random.chance(0.15)) return { ...slow, ...uneven, ...stalling };
  const rate = () => (random.chance(0.5) ? 0.003 : 0);
  const lossy = { dropRate: rate(), duplicateRate: rate(), reorderRate: rate(), resetRate: rate() };
  return { ...slow, ...uneven, ...stalling, ...lossy };
}

/** Many requests find no more than a few in the right places do, and take the time of another seed. */
function drawClient(
  random: SimulatedRandom,
  units: number,
  durationMs: number,
  leaseMs: number,
  isLarge: boolean,
): ClientPlan {
  const clients = pick(random, [1, 2, 2, 3, 4]);
  const depth = pick(random, [1, 1, 2, 4]);
  const requests = random.between(60, 500);
  const hotCount = 1 + random.below(6);
  // Neighbours, the edges of grains, and places far apart.
  const hotUnits = Array.from({ length: hotCount }, () => {
    const unit = random.below(units);
    return random.chance(0.4) ? unit - (unit % 8) : unit;
  });
  const writes = 20 + random.below(60);
  return {
    clients,
    depth,
    pauseMostMs: (4 * clients * depth * durationMs) / requests,
    patienceMs: leaseMs * pick(random, [0.05, 0.3, 10]),
    hotUnits,
    unitsMost: pick(random, [1, 2, 4, 9]),
    writes,
    flushes: pick(random, [0, 2, 10]),
    zeroes: pick(random, [0, 5]),
    fuaRate: pick(random, [0, 0.1, 0.5]),
    hugeMost: isLarge ? 4 : 0,
  };
}
