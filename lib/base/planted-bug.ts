/**
 * Bugs that tests plant, to show that the simulation finds them: the place that is to go wrong asks `isPlanted`. Only
 * holdfast/testing plants; nothing that a user can set reaches this.
 */

/** Those of the mirrored volume: its simulation finds them. */
export const PLANTED_BUGS = [
  'acknowledged-before-peer',
  'view-written-late',
  'stale-member-serves',
  'lease-not-checked-after-device',
  'log-retired-before-flush',
  'bitmap-seeded-with-in-flight-only',
  'resync-over-newer-data',
  'superblock-written-once',
  'overlap-unordered-at-receiver',
  'access-before-replicated',
  'dropped-flush',
  'yield-skipped',
] as const;

/** Of the mirrored region: the simulation of two memory units finds them. */
export const PLANTED_REGION_BUGS = [
  'acknowledged-before-swap',
  'stale-leg-admitted',
  'store-into-chunk',
  'take-over-without-compare',
  'mirror-read-not-persisted',
] as const;

/** Those that the simulation of real units with a mirrored region finds. */
export const PLANTED_MIRRORED_BUGS = [
  'acknowledged-before-swap',
  'stale-leg-admitted',
  'take-over-without-compare',
  'mirror-read-not-persisted',
  'unit-answers-before-persist',
] as const;

/** Those of checkpoints: the exploration of store orders and the races of writer and reader find them. */
export const PLANTED_CHECKPOINT_BUGS = [
  'record-checksum-unchecked',
  'append-acknowledged-before-persist',
  'head-moved-before-durable',
  'cursor-read-before-durable',
  'fence-not-raised',
  'slot-checksum-unchecked',
  'slot-reused-before-persist',
  'slots-looked-at-once',
  'read-before-durable',
] as const;

/** Of a process pair, and what it stands on: the simulation of pairs finds them. */
export const PLANTED_PAIR_BUGS = [
  'update-answered-before-safe',
  'query-unconfirmed',
  'unit-answers-before-persist',
] as const;

export type PlantedBug =
  | (typeof PLANTED_BUGS)[number]
  | (typeof PLANTED_REGION_BUGS)[number]
  | (typeof PLANTED_MIRRORED_BUGS)[number]
  | (typeof PLANTED_CHECKPOINT_BUGS)[number]
  | (typeof PLANTED_PAIR_BUGS)[number];

let planted: PlantedBug | undefined;

export function isPlanted(bug: PlantedBug): boolean {
  return planted === bug;
}

/** For this process, until it is taken out with `undefined`. */
export function plantBug(bug: PlantedBug | undefined): void {
  planted = bug;
}
