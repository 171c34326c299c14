/**
 * What the register of a mirrored region says: who may write, and which of its two legs (one in each unit) have all that
 * was acknowledged. Pure: the value as text, which changes of it are sound, and whom a unit's manager may let in.
 *
 * Invariants:
 * - No value is ever used twice: whoever knew it before and finds it again knows that it stood all the while.
 * - A leg is named only if it has every acknowledged write. `equal` is false from a take-over until both legs have been
 *   made alike: until then either of them alone can be the copy, nothing new is acknowledged, and nobody reads.
 */
import { isPlanted } from '../base/planted-bug.ts';
import { NAME_PATTERN } from '../peer/handshake.ts';

/** One of the two units of a mirrored region. */
export type Leg = 0 | 1;
export const LEGS: readonly Leg[] = [0, 1];
/** Bit n: leg n. */
export type LegMask = 0 | 1 | 2 | 3;
export const BOTH_LEGS: LegMask = 3;

/** Far below 2^53: room for the epochs after it. */
export const EPOCH_MAX = 2 ** 48;
const CHANGES_MAX = 2 ** 32;

/** A value of the register. */
export interface Standing {
  /** Grows by one with every take-over. */
  readonly epoch: number;
  readonly inSync: LegMask;
  /** The legs named are alike, byte for byte, but for writes under way. */
  readonly equal: boolean;
  /** Name of the peer that may write. */
  readonly writer: string;
  /** 16 hexadecimal digits of its own, random: tells two of its processes apart. */
  readonly nonce: string;
  /** Grows by one with every change that this writer makes. */
  readonly change: number;
}

export function maskOf(leg: Leg): LegMask {
  return leg === 0 ? 1 : 2;
}

export function hasLeg(mask: LegMask, leg: Leg): boolean {
  return (mask & maskOf(leg)) !== 0;
}

export function withLeg(mask: LegMask, leg: Leg): LegMask {
  return (mask | maskOf(leg)) as LegMask;
}

export function withoutLeg(mask: LegMask, leg: Leg): LegMask {
  return (mask & ~maskOf(leg)) as LegMask;
}

export function otherLeg(leg: Leg): Leg {
  return leg === 0 ? 1 : 0;
}

const LEG_WORDS = ['a', 'b', 'ab', 'a~b'] as const;
const VALUE_PATTERN = /^HFM1 ([1-9][0-9]{0,14}) (a|b|ab|a~b) ([^ ]{1,64}) ([0-9a-f]{16}) ([1-9][0-9]{0,9})$/;

/** At most 118 characters of printable ASCII. */
export function formatStanding({ epoch, inSync, equal, writer, nonce, change }: Standing): string {
  const legs = inSync === BOTH_LEGS && !equal ? 'a~b' : LEG_WORDS[inSync - 1];
  return `HFM1 ${epoch} ${legs} ${writer} ${nonce} ${change}`;
}

/** Undefined if the text is no such value. */
export function parseStanding(text: string): Standing | undefined {
  const match = VALUE_PATTERN.exec(text);
  if (match === null) return undefined;
  const [, epochText, legs, writer, nonce, changeText] = match as unknown as [string, string, string, ...string[]];
  const epoch = Number(epochText);
  const change = Number(changeText);
  if (epoch > EPOCH_MAX || change > CHANGES_MAX || !NAME_PATTERN.test(writer!)) return undefined;
  const inSync: LegMask = legs === 'a' ? 1 : legs === 'b' ? 2 : BOTH_LEGS;
  return { epoch, inSync, equal: legs !== 'a~b', writer: writer!, nonce: nonce!, change };
}

/** Whether a peer may put `next` in the place of `before` (undefined: nothing yet). What it has copied, nobody checks. */
export function isSoundChange(before: Standing | undefined, next: Standing, peer: string): boolean {
  if (next.writer !== peer) return false;
  if (before === undefined) return next.epoch === 1 && next.inSync === BOTH_LEGS && !next.equal && next.change === 1;
  if (next.epoch === before.epoch) {
    const isSameWriter = next.writer === before.writer && next.nonce === before.nonce;
    return isSameWriter && next.change === before.change + 1 && next.equal;
  }
  const isWithin = (next.inSync & ~before.inSync) === 0;
  return next.epoch === before.epoch + 1 && next.change === 1 && isWithin && next.equal === (next.inSync !== BOTH_LEGS);
}

/** What a key is asked for. */
export type LegPurpose = 'take-over' | 'rebuild' | 'read';

/** Whether the manager of a unit may give a peer a key to its leg, by what the register says now. */
export function admits(standing: Standing | undefined, leg: Leg, peer: string, purpose: LegPurpose): boolean {
  if (standing === undefined) return purpose === 'take-over';
  const isNamed = hasLeg(standing.inSync, leg);
  switch (purpose) {
    case 'take-over':
      return isNamed || isPlanted('stale-leg-admitted');
    case 'rebuild':
      return !isNamed && standing.writer === peer;
    case 'read':
      return isNamed && standing.equal;
  }
}
