/**
 * Who is to be told when something in a range of a region has been stored. Pure.
 *
 * Invariants:
 * - The change number of a region grows by one with every store into it. It begins at 1, so that `since` 0 is always
 *   answered at once.
 * - A watch is answered when a store has touched its range since `since`, or when that is not known any more; it may be
 *   answered without cause, never not at all.
 * - A session waits for no more than its limit: the oldest of its watches makes room, answered without cause. One that
 *   its client has given up goes the same way.
 */
import type { HoldfastError } from '../base/errors.ts';
import type { GrantedKey } from './translation.ts';

/** Stores of a region that are remembered for watches that come later than they. */
const STORES_KEPT = 64;

interface Watch {
  readonly key: GrantedKey;
  readonly start: number;
  readonly end: number;
  readonly resolve: (change: number) => void;
  readonly reject: (error: HoldfastError) => void;
}

class WatchedRegion {
  change = 1;
  readonly watches = new Set<Watch>();
  /** Of the last stores, by change number modulo their count. */
  readonly starts = new Float64Array(STORES_KEPT);
  readonly ends = new Float64Array(STORES_KEPT);
}

export class Watches {
  readonly #perSessionMax: number;
  readonly #regions = new Map<string, WatchedRegion>();
  /** In the order in which they came. */
  readonly #ofSession = new Map<number, Set<Watch>>();

  constructor(perSessionMax: number) {
    this.#perSessionMax = perSessionMax;
  }

  /** Something was stored; answers whoever watches it. */
  stored(region: string, address: number, length: number): void {
    const watched = this.#region(region);
    watched.change += 1;
    const end = address + length;
    watched.starts[watched.change % STORES_KEPT] = address;
    watched.ends[watched.change % STORES_KEPT] = end;
    if (watched.watches.size === 0) return;
    for (const watch of watched.watches) if (watch.start < end && address < watch.end) this.#answer(watch);
  }

  /** The change number, now or later. */
  watch(key: GrantedKey, address: number, length: number, since: number): number | Promise<number> {
    const watched = this.#region(key.region.id);
    const end = address + length;
    if (hasChanged(watched, address, end, since)) return watched.change;
    return new Promise((resolve, reject) => {
      const watch: Watch = { key, start: address, end, resolve, reject };
      watched.watches.add(watch);
      const ofSession = this.#ofSession.get(key.session) ?? new Set();
      this.#ofSession.set(key.session, ofSession.add(watch));
      if (ofSession.size <= this.#perSessionMax) return;
      const [oldest] = ofSession;
      this.#answer(oldest!);
    });
  }

  isWatched(region: string): boolean {
    return (this.#regions.get(region)?.watches.size ?? 0) > 0;
  }

  /** Ends those under this key. */
  end(key: GrantedKey, error: HoldfastError): void {
    for (const watch of this.#regions.get(key.region.id)?.watches ?? [])
      if (watch.key === key) {
        this.#remove(watch);
        watch.reject(error);
      }
  }

  /** All other regions are gone, and so are their keys. */
  keepOnly(regions: ReadonlySet<string>): void {
    for (const region of this.#regions.keys()) if (!regions.has(region)) this.#regions.delete(region);
  }

  #answer(watch: Watch): void {
    this.#remove(watch);
    watch.resolve(this.#region(watch.key.region.id).change);
  }

  #remove(watch: Watch): void {
    const { region, session } = watch.key;
    this.#regions.get(region.id)?.watches.delete(watch);
    const ofSession = this.#ofSession.get(session);
    ofSession?.delete(watch);
    if (ofSession?.size === 0) this.#ofSession.delete(session);
  }

  #region(id: string): WatchedRegion {
    let watched = this.#regions.get(id);
    if (watched === undefined) {
      watched = new WatchedRegion();
      this.#regions.set(id, watched);
    }
    return watched;
  }
}

function hasChanged(region: WatchedRegion, start: number, end: number, since: number): boolean {
  const { change, starts, ends } = region;
  // A number that this process has not given yet is one of an earlier process.
  if (since === 0 || since > change || change - since > STORES_KEPT) return true;
  for (let number = since + 1; number <= change; number += 1)
    if (starts[number % STORES_KEPT]! < end && start < ends[number % STORES_KEPT]!) return true;
  return false;
}
