/** What a controller needs of a member's durable metadata. metadata.ts is the real one. */
import type { MemberIndex, MemberRecord } from './view.ts';

export interface MemberStore {
  readonly member: MemberIndex;
  readonly sizeBytes: number;
  readonly grainBytes: number;
  /** As it was read when the store was opened. */
  readonly record: MemberRecord;
  /** The bitmap that was saved by the last clean stop, if the record still says clean. */
  readonly savedMarks: Uint8Array | undefined;
  /** Mends a superblock that was found damaged when the store was opened; else writes nothing. Before all other writes. */
  repair(): Promise<void>;
  /** Durable, on both superblocks, when resolved. */
  write(record: MemberRecord): Promise<void>;
  /** Saves the bitmap, then the record (which says clean). */
  writeClean(record: MemberRecord, marks: Uint8Array): Promise<void>;
}
