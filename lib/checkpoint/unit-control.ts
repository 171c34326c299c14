/**
 * What the manager of a unit may do with it. The unit itself implements it for a manager in the same process; for one
 * that runs apart, a session between peers carries it (remote-unit.ts). Until a manager has installed tables, the unit
 * refuses every command.
 */
import type { BlockDevice } from '../storage/block-device.ts';
import type { PersistMeans } from '../storage/region.ts';
import type { AccessKey, AddressRange, Right } from './one-sided.ts';

/** Physical bytes of the unit's memory. */
export interface Extent {
  readonly startBytes: number;
  readonly lengthBytes: number;
}

/** Maps the virtual addresses of a region, in order, to extents. */
export interface TranslationTable {
  /** 32 hexadecimal digits; never used for another region. */
  readonly region: string;
  readonly extents: readonly Extent[];
}

/** What a key opens, and to whom. */
export interface Grant {
  readonly key: AccessKey;
  readonly region: string;
  readonly range: AddressRange;
  readonly rights: readonly Right[];
  /** Only over the session that the unit has with this peer when it takes the grant. */
  readonly peer: string;
  readonly epoch: number;
}

/** The keys of a region, all of them or those that fit every field that is given. */
export interface RevokedKeys {
  readonly region: string;
  readonly key?: AccessKey;
  readonly peer?: string;
  /** Those that carry this right. */
  readonly right?: Right;
}

export interface UnitControl {
  /** Name of the unit. */
  readonly unit: string;
  readonly sizeBytes: number;
  readonly means: PersistMeans;
  /** Where the manager keeps its records: physical bytes from 0 on, no extent reaches into it. A flush persists. */
  readonly records: BlockDevice;
  /** Takes the place of all tables. The keys of regions that are gone, or no longer long enough, are revoked. */
  install(tables: readonly TranslationTable[], signal?: AbortSignal): Promise<void>;
  /** ERR_HOLDFAST_PEER_LOST if the unit has no session with the peer; ERR_HOLDFAST_NOT_FOUND without such a table. */
  grant(grant: Grant, signal?: AbortSignal): Promise<void>;
  /**
   * Resolves with the number of keys when no command under them is running any more. From the call on they open
   * nothing: a command either has ended before the answer, or fails.
   */
  revoke(keys: RevokedKeys, signal?: AbortSignal): Promise<number>;
}
