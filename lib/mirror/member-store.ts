/** What a controller needs of a member's durable metadata. metadata.ts is the real one. */
import type { VoterStore } from '../peer/arbiter.ts';
import type { ActivityLog } from './activity-log.ts';
import type { MemberIndex, MemberRecord } from './view.ts';

/** The parts that write to it need not know of each other: each write carries the newest of everything. */
export interface MemberStore extends VoterStore {
  readonly member: MemberIndex;
  readonly sizeBytes: number;
  readonly grainBytes: number;
  /** As it was read when the store was opened. */
  readonly record: MemberRecord;
  /** The bitmap that was saved by the last clean stop, if the record still says clean. */
  readonly savedMarks: Uint8Array | undefined;
  /** If the record said clean when it was opened, it names nothing: the saved bitmap counts. @internal */
  readonly log: ActivityLog;
  /** Mends what was found damaged when the store was opened; else writes nothing. Before all other writes. */
  repair(): Promise<void>;
  /** Durable, on both superblocks, when resolved. */
  write(record: MemberRecord): Promise<void>;
  /** The one who is told when a voter's state could not be written: the device has failed. */
  onVoterFailure(listener: (error: unknown) => void): void;
  /** Saves the bitmap, then the record (which says clean). */
  writeClean(record: MemberRecord, marks: Uint8Array): Promise<void>;
}
