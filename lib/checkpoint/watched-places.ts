/**
 * Several places that are watched as one: each counts its changes for itself, and those numbers have nothing in common;
 * here they become one series.
 *
 * Bound: of so many of the last numbers it is remembered what each place had counted by then. A watch from an older one
 * is answered at once, as it may be.
 */
import { EitherSignal } from '../base/either-signal.ts';
import { HoldfastError, throwIfAborted } from '../base/errors.ts';
import type { RegionAccess } from './one-sided.ts';

const NUMBERS_KEPT = 64;

/** A range, and who gives access to it. */
export interface WatchedPlace {
  readonly access: RegionAccess;
  readonly address: number;
  readonly lengthBytes: number;
}

export class WatchedPlaces {
  /** What each place had counted when the number was given. */
  readonly #counted = new Map<number, ReadonlyMap<RegionAccess, number>>();
  #number = 0;

  /**
   * As RegionAccess.watch, for whichever of the places changes first. One that fails is told of and waited for no more;
   * if all have failed, it rejects as the last one did.
   */
  async watch(
    places: readonly WatchedPlace[],
    since: number,
    signal: AbortSignal,
    onFailed: (place: WatchedPlace, error: unknown) => void = () => {},
  ): Promise<number> {
    throwIfAborted(signal, 'the watch');
    const counted = this.#counted.get(since);
    const over = new AbortController();
    using both = new EitherSignal(signal, over.signal);
    const either = both.signal;
    const watchOne = async (place: WatchedPlace): Promise<[RegionAccess, number]> => {
      const { access, address, lengthBytes } = place;
      try {
        return [access, await access.watch(address, lengthBytes, counted?.get(access) ?? 0, { signal: either })];
      } catch (error) {
        if (!either.aborted) onFailed(place, error);
        throw error;
      }
    };
    try {
      const [access, count] = await Promise.any(places.map(watchOne));
      return this.#give(new Map(counted).set(access, count));
    } catch (error) {
      throwIfAborted(signal, 'the watch');
      if (error instanceof AggregateError && error.errors.length > 0) throw error.errors.at(-1);
      throw new HoldfastError('ERR_HOLDFAST_INTERNAL', 'a watch needs a place', { cause: error });
    } finally {
      over.abort();
    }
  }

  #give(counted: ReadonlyMap<RegionAccess, number>): number {
    this.#number += 1;
    this.#counted.set(this.#number, counted);
    this.#counted.delete(this.#number - NUMBERS_KEPT);
    return this.#number;
  }
}
