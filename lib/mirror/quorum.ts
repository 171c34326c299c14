/**
 * Who decides about the next view of a volume: with an arbiter, a majority of its voters; without one, the member
 * itself, by the rules of standing.ts.
 *
 * Invariant: with an arbiter no view is acted upon before it is the arbiter's value. An attempt of which the answer was
 * lost may still come true, so that the newest view has to be asked for (`confirm`) before anything is built on the one
 * that this member knows.
 */
import { assert, HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import { compareWithDecided, decodeView, encodeView, type MemberIndex, type MemberRecord, type View } from './view.ts';

/** More changes than this under the eyes of one attempt are no race any more. */
const ATTEMPTS_MAX = 16;

export type Decision =
  | { readonly kind: 'decided'; readonly view: View }
  /** Others have gone on: this member is not in the newest view. */
  | { readonly kind: 'superseded'; readonly view: View };

export class Quorum {
  readonly #arbiter: Arbiter | undefined;
  readonly #self: MemberIndex;
  #confirmed: boolean;
  #attempt: AbortController | undefined;

  constructor(arbiter: Arbiter | undefined, self: MemberIndex) {
    this.#arbiter = arbiter;
    this.#self = self;
    this.#confirmed = arbiter === undefined;
  }

  /** The view that this member knows is the newest, as far as this process can have changed it. */
  get confirmed(): boolean {
    return this.#confirmed;
  }

  /** Ends an attempt under way; its outcome is then not known. */
  interrupt(): void {
    this.#attempt?.abort();
  }

  /**
   * Has the view decided that `make` puts in the place of the newest one.
   *
   * @throws HoldfastError ERR_HOLDFAST_NO_MAJORITY, ERR_HOLDFAST_ABORTED: it may have been decided all the same.
   */
  async decide(record: MemberRecord, make: (after: View) => View): Promise<Decision> {
    let after = record.known;
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      const view = make(after);
      const current = await this.#swap(after, view);
      if (current === undefined) return { kind: 'decided', view };
      switch (compareWithDecided(record, this.#self, current)) {
        case 'mine':
          if (view.inSync === current.inSync) return { kind: 'decided', view: current };
          break;
        case 'outdated':
          if (isPlanted('stale-member-serves')) return { kind: 'decided', view };
          return { kind: 'superseded', view: current };
        default:
      }
      after = current;
    }
    throw new HoldfastError('ERR_HOLDFAST_NO_MAJORITY', 'the view changes faster than this member can follow');
  }

  /** Hears from a majority what the newest view is. Resolves with it, or with the known one if that may follow. */
  async confirm(record: MemberRecord): Promise<Decision> {
    let after = record.known;
    // Who has never been in a view has nothing to build on.
    if (after.number === 0) this.#confirmed = true;
    if (this.#arbiter === undefined || after.number === 0) return { kind: 'decided', view: after };
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      const current = await this.#swap(after, record.known);
      if (current === undefined) return { kind: 'decided', view: record.known };
      const relation = compareWithDecided(record, this.#self, current);
      if (relation === 'mine') return { kind: 'decided', view: current };
      if (relation === 'outdated') return { kind: 'superseded', view: current };
      if (relation === 'follow') return { kind: 'decided', view: record.known };
      after = current;
    }
    throw new HoldfastError('ERR_HOLDFAST_NO_MAJORITY', 'the view changes faster than this member can follow');
  }

  /** Undefined if `next` is the arbiter's value now, else what is. */
  async #swap(after: View, next: View): Promise<View | undefined> {
    if (this.#arbiter === undefined) return undefined;
    assert(this.#attempt === undefined, 'one attempt at a time');
    const attempt = new AbortController();
    this.#attempt = attempt;
    this.#confirmed = false;
    try {
      const result = await this.#arbiter.compareAndSwap(encodeView(after), encodeView(next), attempt.signal);
      this.#confirmed = true;
      return result.swapped ? undefined : decodeView(result.current);
    } finally {
      this.#attempt = undefined;
    }
  }
}
