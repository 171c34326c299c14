/** Finds the newest checkpoint of two slots while a writer may be filling them anew. */
import { HoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import { readRange } from './commands.ts';
import type { RegionRecord } from './layout.ts';
import type { RegionAccess } from './one-sided.ts';
import {
  decodeSlotHeader,
  isWhole,
  judgeSlots,
  SLOT_HEADER_BYTES,
  type Slot,
  type SlotView,
  type SlotViews,
  slotAddress,
} from './slots.ts';

/** A writer that fills both slots between two looks is fast; one that does it so often has damaged slots. */
const LOOKS_MAX = 64;

export interface SlotContent {
  readonly sequence: number;
  readonly epoch: number;
  readonly checkpoint: Uint8Array;
}

/** Undefined if there is none yet. What it gives is durable. */
export async function findNewest(
  access: RegionAccess,
  region: RegionRecord,
  signal?: AbortSignal,
): Promise<SlotContent | undefined> {
  let before: SlotViews | undefined;
  for (let looks = 0; looks < LOOKS_MAX; looks++) {
    const look = new SlotsLook(access, region, signal);
    const now = await look.take();
    const verdict = judgeSlots(before, now);
    if (verdict.kind === 'none') return undefined;
    if (verdict.kind === 'take') {
      const { header } = now[verdict.slot];
      await look.persist(verdict.slot);
      return { sequence: header!.sequence, epoch: header!.epoch, checkpoint: look.checkpoint! };
    }
    before = now;
  }
  throw new HoldfastError(
    'ERR_HOLDFAST_METADATA_DAMAGED',
    `neither checkpoint in the region on ${access.unit} stands still and is whole; if no writer is at work, both are lost`,
  );
}

class SlotsLook {
  readonly #access: RegionAccess;
  readonly #region: RegionRecord;
  readonly #signal: AbortSignal | undefined;
  /** The one that was found whole. */
  checkpoint: Uint8Array | undefined;

  constructor(access: RegionAccess, region: RegionRecord, signal: AbortSignal | undefined) {
    this.#access = access;
    this.#region = region;
    this.#signal = signal;
  }

  /** The headers, first slot first; then the newer checkpoint, and the older one if that is not whole. */
  async take(): Promise<SlotViews> {
    const headers = [new Uint8Array(SLOT_HEADER_BYTES), new Uint8Array(SLOT_HEADER_BYTES)] as const;
    await Promise.all(
      ([0, 1] as const).map((slot) => readRange(this.#access, this.#address(slot), headers[slot], this.#signal)),
    );
    const views = [this.#view(headers[0], 0), this.#view(headers[1], 1)] as [SlotView, SlotView];
    const numbers = views.map(({ header }) => header?.sequence ?? 0) as [number, number];
    const order: readonly Slot[] = numbers[0] > numbers[1] ? [0, 1] : [1, 0];
    for (const slot of order) {
      if (views[slot].header === undefined) continue;
      views[slot] = await this.#readWhole(slot, views[slot]);
      if (views[slot].whole) break;
    }
    return views;
  }

  async persist(slot: Slot): Promise<void> {
    if (isPlanted('read-before-durable')) return;
    const lengthBytes = SLOT_HEADER_BYTES + this.checkpoint!.length;
    await this.#access.persist(this.#address(slot), lengthBytes, this.#signal && { signal: this.#signal });
  }

  /** What was to be there, if it is still; whatever is there now counts from the next look on. */
  async #readWhole(slot: Slot, seen: SlotView): Promise<SlotView> {
    const bytes = new Uint8Array(SLOT_HEADER_BYTES + seen.header!.lengthBytes);
    await readRange(this.#access, this.#address(slot), bytes, this.#signal);
    const header = decodeSlotHeader(bytes, this.#region, slot);
    const isSame = header !== undefined && header.sequence === seen.header!.sequence;
    const checkpoint = bytes.subarray(SLOT_HEADER_BYTES);
    if (!isSame || !isWhole(header, checkpoint)) return seen;
    this.checkpoint = checkpoint;
    return { ...seen, whole: true };
  }

  #view(bytes: Uint8Array, slot: Slot): SlotView {
    const blank = bytes.every((byte) => byte === 0);
    return { header: decodeSlotHeader(bytes, this.#region, slot), whole: false, blank };
  }

  #address(slot: Slot): number {
    return slotAddress(this.#region, slot);
  }
}
