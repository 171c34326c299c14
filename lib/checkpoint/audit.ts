/**
 * What the guardians of a unit's memory have let happen and what they have refused, for people to look at later. Bounded.
 *
 * Invariants:
 * - No key, nor any part of one, is ever in it.
 * - What happens again is counted where it stands, so that whoever is refused a million times does not push out what
 *   others did.
 */
import type { Clock } from '../base/clock.ts';
import type { HoldfastErrorCode } from '../base/errors.ts';

/** What an entry is about. */
export type AuditKind = 'installed' | 'granted' | 'revoked' | 'refused';

/** One thing that happened at a unit: a grant, a revocation, a refusal. */
export interface AuditEntry {
  readonly kind: AuditKind;
  /** Who asked, or to whom it happened; undefined: nobody in particular. */
  readonly peer: string | undefined;
  /** 32 hexadecimal digits. */
  readonly region: string | undefined;
  /** Of what was refused. */
  readonly code: HoldfastErrorCode | undefined;
  /** A sentence without anything secret. */
  readonly reason: string;
}

/** An entry, and how often it has come. */
export interface AuditEvent extends AuditEntry {
  /** Milliseconds since 1970, of the first time and of the last one. */
  readonly firstMs: number;
  readonly lastMs: number;
  readonly count: number;
}

export class AuditLog {
  readonly #clock: Clock;
  readonly #entriesMax: number;
  readonly #onEvent: ((entry: AuditEntry) => void) | undefined;
  /** By what is equal in them; the one that has changed last is at the end. */
  readonly #events = new Map<string, AuditEvent>();

  /** `onEvent` is told of each, also of those that are only counted. Must not throw. */
  constructor(clock: Clock, entriesMax: number, onEvent?: (entry: AuditEntry) => void) {
    this.#clock = clock;
    this.#entriesMax = entriesMax;
    this.#onEvent = onEvent;
  }

  record(entry: AuditEntry): void {
    const { kind, peer, region, code, reason } = entry;
    const sameness = JSON.stringify([kind, peer, region, code, reason]);
    const lastMs = this.#clock.wallMs();
    const earlier = this.#events.get(sameness);
    this.#events.delete(sameness);
    this.#events.set(sameness, {
      ...entry,
      firstMs: earlier?.firstMs ?? lastMs,
      lastMs,
      count: (earlier?.count ?? 0) + 1,
    });
    if (this.#events.size > this.#entriesMax) {
      const [oldest] = this.#events.keys();
      this.#events.delete(oldest!);
    }
    this.#onEvent?.(entry);
  }

  /** The one that has happened last is the last. */
  events(): readonly AuditEvent[] {
    return [...this.#events.values()];
  }
}
