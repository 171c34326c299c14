/**
 * One-sided access to the memory of a unit: nobody's code runs at the other end but the unit's own check of the key. A
 * transport gives it: a session between peers does (memory-session.ts); one over RDMA verbs would register a region
 * once and carry its remote key where the access key stands.
 *
 * Invariants of every implementation:
 * - The commands of one session are executed in the order of the calls.
 * - A command is checked before it changes anything: key, bounds and rights.
 * - Resolved with `persist`, or after `persist`, the bytes survive the power cut of the unit.
 * - A command that fails with ERR_HOLDFAST_PEER_LOST has happened, or not, or in part; for each aligned 8 bytes, never
 *   half.
 */

/** 128 random bits as 32 hexadecimal digits. Good for one connection only, and until it is revoked. */
export type AccessKey = string;

/**
 * `read` also allows to watch and to persist: a reader makes durable what it has seen before it acts on it, or a power
 * cut of the unit could take back what has had its effect. `write` also allows to persist and to compare and swap.
 */
export type Right = 'read' | 'write';

/** How long one command may wait. */
export interface CommandOptions {
  /** Cancels the waiting, not the command. */
  readonly signal?: AbortSignal;
}

/** Whether a store is durable when it is answered. */
export interface StoreOptions extends CommandOptions {
  /** The command ends when what it has stored is durable. Default false. */
  readonly persist?: boolean;
}

/** Write-if-valid: nothing is stored unless the aligned 8 bytes (little-endian) at `address` are `expected`. */
export interface Guard {
  readonly address: number;
  readonly expected: bigint;
}

/** As for any store; and on which condition. */
export interface WriteOptions extends StoreOptions {
  readonly guard?: Guard;
}

/** Virtual addresses, in bytes from the start of the region, that one key opens. */
export interface AddressRange {
  readonly base: number;
  readonly lengthBytes: number;
}

/** What the manager gives to whom it lets in. Together with a session to the unit it makes a RegionAccess. */
export interface AddressContext {
  /** 32 hexadecimal digits. */
  readonly region: string;
  /** Name of the unit. */
  readonly unit: string;
  /** Of the region. */
  readonly sizeBytes: number;
  readonly range: AddressRange;
  readonly rights: readonly Right[];
  readonly key: AccessKey;
  readonly epoch: number;
}

/**
 * A region, or a range of it, through one access key. Every command rejects with ERR_HOLDFAST_KEY_INVALID (unknown,
 * revoked, or of another connection: which, is not told), ERR_HOLDFAST_ACCESS (the key lacks the right),
 * ERR_HOLDFAST_OUT_OF_RANGE, ERR_HOLDFAST_FLUSH_FAILED (it could not be made durable), ERR_HOLDFAST_PEER_LOST,
 * ERR_HOLDFAST_QUEUE_FULL or ERR_HOLDFAST_ABORTED.
 */
export interface RegionAccess {
  /** Name of the unit. */
  readonly unit: string;
  readonly range: AddressRange;
  /** The manager's count of take-overs of the region when the key was given. */
  readonly epoch: number;
  /** False once the connection has ended: the key is void then. */
  readonly open: boolean;
  /** Fills `target` from `address`. */
  read(address: number, target: Uint8Array, options?: CommandOptions): Promise<void>;
  /**
   * Stores the chunks one after the other from `address` on; they are left unchanged until the promise settles.
   * ERR_HOLDFAST_FENCED if the guard does not hold.
   */
  write(address: number, chunks: readonly Uint8Array[], options?: WriteOptions): Promise<void>;
  /** What was stored in the range before is durable. */
  persist(address: number, lengthBytes: number, options?: CommandOptions): Promise<void>;
  /** Of the 8 bytes (little-endian) at an address that is a multiple of 8. Gives what was there before. */
  compareAndSwap(address: number, expected: bigint, desired: bigint, options?: StoreOptions): Promise<bigint>;
  /**
   * Resolves when something in the range has been stored after the region's change number `since`, with the newest
   * number; sometimes without cause. `since` 0: at once. Numbers begin anew with every process of the unit.
   */
  watch(address: number, lengthBytes: number, since: number, options?: CommandOptions): Promise<number>;
}
