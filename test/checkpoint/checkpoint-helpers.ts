/** What tests of checkpoints share: a region in memory, formatted, and checkpoints that say which they are. */
import { cursorAddress, dataAddressAfter } from '../../lib/checkpoint/layout.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { type CheckpointFormatOptions, formatCheckpointRegion } from '../../lib/checkpoint/region-record.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';

export const CURSORS = 2;

/** A formatted region of which `dataBytes` are ring or slots; all that is recorded is what comes afterwards. */
export async function formatted(
  dataBytes: number,
  options: Partial<CheckpointFormatOptions> = {},
  persistTurns?: number,
): Promise<StoreRecorder> {
  const blank = new StoreRecorder(new Uint8Array(dataAddressAfter(CURSORS) + dataBytes));
  const random = new SimulatedRandom(1, 'format');
  await formatCheckpointRegion(blank.access(), { mode: 'append', cursors: CURSORS, random, ...options });
  return new StoreRecorder(blank.content, persistTurns);
}

/** What a backup is given: all of the region to read, its own cursor to write. */
export function backupAccess(
  recorder: StoreRecorder,
  cursor = 0,
): { access: RegionAccess; cursorAccess: RegionAccess } {
  const range = { base: cursorAddress(cursor), lengthBytes: cursorAddress(1) - cursorAddress(0) };
  return { access: recorder.access({ writes: false }), cursorAccess: recorder.access({ range }) };
}

/** Bytes that say which checkpoint they are, in every 8 of them. */
export function stamped(number: number, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at + 8 <= lengthBytes; at += 8) view.setFloat64(at, number, true);
  return bytes;
}

/** The number that all of them say; NaN if they do not agree. */
export function stampOf(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const number = view.getFloat64(0, true);
  for (let at = 0; at + 8 <= bytes.length; at += 8) if (view.getFloat64(at, true) !== number) return Number.NaN;
  return number;
}

/** So that all that can go on without anything from outside has gone on. */
export function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
