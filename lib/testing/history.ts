/**
 * Histories of reads and writes of one block, and the judgement of them.
 *
 * Every write has a value of its own. Then a history is linearizable exactly if no read ends before its write begins,
 * no two forward zones overlap, and no backward zone lies inside a forward one (Gibbons and Korach, "Testing Shared
 * Memories", SIAM J. Comput. 26(4), 1997, section 4): O(n log n). Linearizability is local, so each block is judged by
 * itself.
 *
 * Times are positions in one order of events: whole numbers, each used once. An operation that never ended (its process
 * died, its outcome is unknown) has no end: it may have happened at any time after its start, or not at all.
 */

/** The value of a block that was never written. */
export const INITIAL_VALUE = 0;

/**
 * A read or write of one block. Times are whole numbers in one order of events, each used once; every write has a value
 * of its own.
 */
export interface Operation {
  readonly kind: 'read' | 'write';
  readonly value: number;
  readonly start: number;
  /** Infinity if it never ended. */
  readonly end: number;
  /** The write's data was durable against a power cut from this time on (its own FUA, or a later flush). */
  readonly durable?: number;
}

/** The rule that a history breaks, and the operations that show it. */
export interface Violation {
  /** The zone rules are those of Gibbons and Korach, "Testing Shared Memories", SIAM J. Comput. 26(4), 1997. */
  readonly rule: 'unknown-value' | 'read-before-write' | 'zones-overlap' | 'zone-inside-zone' | 'older-than-flushed';
  readonly operations: readonly Operation[];
}

interface Zone {
  readonly write: Operation;
  /** The first end and the last start among the operations with this value. */
  firstEnd: number;
  lastStart: number;
}

/** Undefined if the history is linearizable. */
export function checkLinearizable(history: readonly Operation[]): Violation | undefined {
  const zones = gatherZones(history);
  if (!(zones instanceof Map)) return zones;
  const forward = [...zones.values()].filter((zone) => zone.firstEnd < zone.lastStart);
  forward.sort((a, b) => a.firstEnd - b.firstEnd);
  for (let index = 1; index < forward.length; index += 1) {
    const [before, after] = [forward[index - 1]!, forward[index]!];
    if (before.lastStart > after.firstEnd) return violation('zones-overlap', before, after);
  }
  for (const zone of zones.values()) {
    if (zone.firstEnd < zone.lastStart) continue;
    const around = lastBefore(forward, zone.lastStart);
    if (around !== undefined && zone.firstEnd < around.lastStart) return violation('zone-inside-zone', around, zone);
  }
  return undefined;
}

/** A zone for each value, or what is wrong already. Writes that never ended and that nobody has read have none. */
function gatherZones(history: readonly Operation[]): Map<number, Zone> | Violation {
  const initial: Operation = { kind: 'write', value: INITIAL_VALUE, start: -1, end: -1 };
  const zones = new Map<number, Zone>([[INITIAL_VALUE, { write: initial, firstEnd: -1, lastStart: -1 }]]);
  for (const write of history) {
    if (write.kind === 'write') zones.set(write.value, { write, firstEnd: write.end, lastStart: write.start });
  }
  for (const read of history) {
    if (read.kind === 'write' || read.end === Number.POSITIVE_INFINITY) continue;
    const zone = zones.get(read.value);
    if (zone === undefined) return { rule: 'unknown-value', operations: [read] };
    if (read.end < zone.write.start) return { rule: 'read-before-write', operations: [zone.write, read] };
    zone.firstEnd = Math.min(zone.firstEnd, read.end);
    zone.lastStart = Math.max(zone.lastStart, read.start);
  }
  return zones;
}

/** The last of the sorted zones whose first end is before the time. */
function lastBefore(zones: readonly Zone[], time: number): Zone | undefined {
  let low = 0;
  let high = zones.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (zones[middle]!.firstEnd < time) low = middle + 1;
    else high = middle;
  }
  return zones[low - 1];
}

function violation(rule: Violation['rule'], ...zones: readonly Zone[]): Violation {
  return { rule, operations: zones.map((zone) => zone.write) };
}

/**
 * What must hold even where what was not flushed may be lost: no read gives a value that an acknowledged and durable
 * write had replaced before. Undefined if it holds. O(n log n): reads in the order of their starts, beside writes in
 * the order in which they became durable.
 */
export function checkFlushed(history: readonly Operation[]): Violation | undefined {
  const writes = new Map<number, Operation>();
  for (const write of history) if (write.kind === 'write') writes.set(write.value, write);
  const durable = [...writes.values()].filter((write) => write.durable !== undefined);
  durable.sort((a, b) => a.durable! - b.durable!);
  const reads = history.filter(({ kind, end }) => kind === 'read' && end !== Number.POSITIVE_INFINITY);
  reads.sort((a, b) => a.start - b.start);
  let next = 0;
  /** Of the writes that were durable before the read began, the one that began last. */
  let latest: Operation | undefined;
  for (const read of reads) {
    for (; next < durable.length && durable[next]!.durable! < read.start; next++) {
      if (latest === undefined || durable[next]!.start > latest.start) latest = durable[next];
    }
    const source = writes.get(read.value);
    if (source === undefined && read.value !== INITIAL_VALUE) return { rule: 'unknown-value', operations: [read] };
    if (source !== undefined && read.end < source.start)
      return { rule: 'read-before-write', operations: [source, read] };
    if (latest !== undefined && latest.start > (source?.end ?? -1))
      return { rule: 'older-than-flushed', operations: [latest, read] };
  }
  return undefined;
}

/** Linearizability up to a time: what had not ended by then may have happened, or not. */
export function checkLinearizableUntil(history: readonly Operation[], until: number): Violation | undefined {
  const begun = history.filter(({ start }) => start < until);
  return checkLinearizable(begun.map((each) => (each.end < until ? each : { ...each, end: Number.POSITIVE_INFINITY })));
}

/**
 * Linearizability from a time on, whatever had happened before: what was lost by then may have taken the block back to
 * any older value, and a write that was under way at that time may come late. So each value from before counts as one
 * write that can happen at any time after it. Undefined if it holds.
 */
export function checkLinearizableSince(history: readonly Operation[], since: number): Violation | undefined {
  const rest = history.filter(({ start }) => start > since);
  const readLater = new Set(rest.map(({ value }) => value));
  const late = history.filter(({ kind, start, value }) => kind === 'write' && start <= since && readLater.has(value));
  const reborn = late.map(({ value }): Operation => {
    return { kind: 'write', value, start: since, end: Number.POSITIVE_INFINITY };
  });
  return checkLinearizable([...reborn, ...rest]);
}
