/**
 * The judgement of one run: every block's history must be linearizable; where the run has lost what was not flushed
 * (losses.ts) it must be so until then, nothing that was flushed may be missing, and once the pair is in sync again it
 * must be linearizable again. And the copies are equal, byte for byte.
 */
import {
  checkFlushed,
  checkLinearizable,
  checkLinearizableSince,
  checkLinearizableUntil,
  type Operation,
  type Violation,
} from './history.ts';
import type { Losses } from './losses.ts';
import { UNIT_BYTES } from './simulation-plan.ts';
import type { World } from './simulation-world.ts';

const LINES_MOST = 40;

/** Undefined if all histories hold. */
export function judgeHistories(world: World): string | undefined {
  for (const [unit, history] of world.histories.blocks) {
    const found = judge(world, history);
    if (found !== undefined) return `unit ${unit}: ${found.rule}\n${around(found, history).join('\n')}`;
  }
  return undefined;
}

function judge({ losses }: World, history: readonly Operation[]): Violation | undefined {
  if (!losses.any) return checkLinearizable(history);
  const found = checkLinearizableUntil(history, losses.until) ?? checkMeanwhile(losses, history);
  if (found !== undefined || losses.since === undefined) return found;
  return checkLinearizableSince(history, losses.since);
}

/** Of two volumes only this can be said: each gives what somebody has written to it. */
function checkMeanwhile(losses: Losses, history: readonly Operation[]): Violation | undefined {
  const unflushed = history.map(({ kind, value, start, end }) => ({ kind, value, start, end }));
  return checkFlushed(losses.hasSplit ? unflushed : history);
}

/** What happened to the unit while the operations in question were under way. */
function around(violation: Violation, history: readonly Operation[]): string[] {
  const values = new Set(violation.operations.map(({ value }) => value));
  const about = history.filter(({ value }) => values.has(value));
  return about.slice(0, LINES_MOST).map((operation) => JSON.stringify(operation));
}

/** Undefined if the copies are equal. */
export function compareCopies({ plan, servers }: World): string | undefined {
  const [first, second] = servers.map(({ disk }) => {
    const bytes = Buffer.alloc(plan.volumeBytes);
    disk.peek(0, bytes);
    return bytes;
  }) as [Buffer, Buffer];
  if (first.equals(second)) return undefined;
  const differs: number[] = [];
  for (let unit = 0; unit < plan.volumeBytes / UNIT_BYTES; unit++) {
    const [from, to] = [unit * UNIT_BYTES, (unit + 1) * UNIT_BYTES];
    if (!first.subarray(from, to).equals(second.subarray(from, to))) differs.push(unit);
  }
  return `the copies differ in units ${differs.slice(0, LINES_MOST).join(', ')}`;
}
