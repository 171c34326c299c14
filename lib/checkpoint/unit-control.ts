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
  /** Those of everybody else. */
  readonly exceptPeer?: string;
  /** Those that carry this right. */
  readonly right?: Right;
}

/** Of a unit that its manager reaches over a session, and that may begin anew while the manager goes on. */
export interface UnitApart {
  /** Resolves when there is a session with the unit: only from then on its size and its records are known. */
  ready(signal?: AbortSignal): Promise<void>;
  /** Calls back when a unit that has no tables yet can be reached, the first time too. Must not throw. */
  onAnew(listener: () => void): void;
}

/** The face of a unit to its manager. */
export interface UnitControl {
  /** Name of the unit. */
  readonly unit: string;
  readonly sizeBytes: number;
  readonly means: PersistMeans;
  /** Where the manager keeps its records: physical bytes from 0 on, no extent reaches into it. A flush persists. */
  readonly records: BlockDevice;
  /** Undefined if the unit lives and ends with its manager. */
  readonly apart?: UnitApart;
  /**
   * Takes the place of all tables. The keys of regions that are gone, or no longer long enough, are revoked: resolves,
   * as `revoke` does, when no command under them is running any more.
   */
  install(tables: readonly TranslationTable[], signal?: AbortSignal): Promise<void>;
  /** ERR_HOLDFAST_PEER_LOST if the unit has no session with the peer; ERR_HOLDFAST_NOT_FOUND without such a table. */
  grant(grant: Grant, signal?: AbortSignal): Promise<void>;
  /**
   * Resolves with the number of keys when no command under them is running any more. From the call on they open
   * nothing: a command either has ended before the answer, or fails.
   */
  revoke(keys: RevokedKeys, signal?: AbortSignal): Promise<number>;
  /**
   * The range reads as zeros, durably, when resolved. ERR_HOLDFAST_BUSY if a table maps some of it,
   * ERR_HOLDFAST_OUT_OF_RANGE if it reaches into the records or beyond the memory.
   */
  erase(extent: Extent, signal?: AbortSignal): Promise<void>;
}
