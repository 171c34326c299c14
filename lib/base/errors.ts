/**
 * The one error class of the library. Every error that a caller can see carries a literal code; the message says what
 * is wrong and, after a semicolon or in a second sentence, what to do about it.
 */

/** Codes are part of the public interface: they are added, never renamed. Keep the list sorted. */
export type HoldfastErrorCode =
  | 'ERR_HOLDFAST_ABORTED'
  | 'ERR_HOLDFAST_ACCESS'
  | 'ERR_HOLDFAST_ADDRESS_IN_USE'
  | 'ERR_HOLDFAST_ALREADY_RUNNING'
  | 'ERR_HOLDFAST_BAD_ARGUMENT'
  | 'ERR_HOLDFAST_BAD_FRAME'
  | 'ERR_HOLDFAST_BUSY'
  | 'ERR_HOLDFAST_CLOSED'
  | 'ERR_HOLDFAST_CONFIG'
  | 'ERR_HOLDFAST_CONNECT_FAILED'
  | 'ERR_HOLDFAST_CONNECTION_LOST'
  | 'ERR_HOLDFAST_CONSENT_NEEDED'
  | 'ERR_HOLDFAST_DEMO'
  | 'ERR_HOLDFAST_DETACHED'
  | 'ERR_HOLDFAST_DEVICE_BUSY'
  | 'ERR_HOLDFAST_DEVICE_EXISTS'
  | 'ERR_HOLDFAST_DEVICE_FAILED'
  | 'ERR_HOLDFAST_DEVICE_HAS_DATA'
  | 'ERR_HOLDFAST_DEVICE_NOT_BLANK'
  | 'ERR_HOLDFAST_DEVICE_TOO_SMALL'
  | 'ERR_HOLDFAST_DUPLICATE_NAME'
  | 'ERR_HOLDFAST_FENCED'
  | 'ERR_HOLDFAST_FLUSH_FAILED'
  | 'ERR_HOLDFAST_GAP'
  | 'ERR_HOLDFAST_HANDSHAKE'
  | 'ERR_HOLDFAST_INCONSISTENT'
  | 'ERR_HOLDFAST_INTERNAL'
  | 'ERR_HOLDFAST_IO'
  | 'ERR_HOLDFAST_KEY_INVALID'
  | 'ERR_HOLDFAST_MEMORY_EXHAUSTED'
  | 'ERR_HOLDFAST_METADATA_DAMAGED'
  | 'ERR_HOLDFAST_METADATA_MISMATCH'
  | 'ERR_HOLDFAST_METADATA_MISSING'
  | 'ERR_HOLDFAST_METADATA_VERSION'
  | 'ERR_HOLDFAST_NATIVE_MISSING'
  | 'ERR_HOLDFAST_NBD_DISCONNECTED'
  | 'ERR_HOLDFAST_NBD_PROTOCOL'
  | 'ERR_HOLDFAST_NBD_REFUSED'
  | 'ERR_HOLDFAST_NO_MAJORITY'
  | 'ERR_HOLDFAST_NO_SPACE'
  | 'ERR_HOLDFAST_NO_SUCH_VOLUME'
  | 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY'
  | 'ERR_HOLDFAST_NOT_FOUND'
  | 'ERR_HOLDFAST_NOT_NEEDED'
  | 'ERR_HOLDFAST_NOT_PRIMARY'
  | 'ERR_HOLDFAST_NOT_RUNNING'
  | 'ERR_HOLDFAST_NOT_SUPPORTED'
  | 'ERR_HOLDFAST_OUT_OF_RANGE'
  | 'ERR_HOLDFAST_OUT_OF_STEP'
  | 'ERR_HOLDFAST_OUTCOME_UNKNOWN'
  | 'ERR_HOLDFAST_PEER_LOST'
  | 'ERR_HOLDFAST_QUEUE_FULL'
  | 'ERR_HOLDFAST_READ_ONLY'
  | 'ERR_HOLDFAST_REFUSED'
  | 'ERR_HOLDFAST_REMOTE'
  | 'ERR_HOLDFAST_SAME_MEMBER'
  | 'ERR_HOLDFAST_SELF_CONNECT'
  | 'ERR_HOLDFAST_SETTINGS_DIFFER'
  | 'ERR_HOLDFAST_SPLIT_BRAIN'
  | 'ERR_HOLDFAST_TIMEOUT'
  | 'ERR_HOLDFAST_UNKNOWN_METHOD'
  | 'ERR_HOLDFAST_UNKNOWN_PEER'
  | 'ERR_HOLDFAST_UNRELATED_DATA'
  | 'ERR_HOLDFAST_USAGE'
  | 'ERR_HOLDFAST_VERSION'
  | 'ERR_HOLDFAST_WRONG_CLUSTER'
  | 'ERR_HOLDFAST_WRONG_KEY'
  | 'ERR_HOLDFAST_WRONG_PEER';

/** What an error can carry beside its code and message. */
export interface HoldfastErrorOptions {
  /** The error underneath, kept for diagnosis. */
  readonly cause?: unknown;
  /** The operating system's name of the error (`EIO`, `ENOSPC` …) where there is one. */
  readonly errno?: string;
}

/**
 * Every error that the library lets a caller see. The code stays the same over releases; the message says what is wrong
 * and what to do, and may change.
 */
export class HoldfastError extends Error {
  override readonly name = 'HoldfastError';
  readonly code: HoldfastErrorCode;
  readonly errno: string | undefined;

  constructor(code: HoldfastErrorCode, message: string, options: HoldfastErrorOptions = {}) {
    super(message, 'cause' in options ? { cause: options.cause } : undefined);
    this.code = code;
    this.errno = options.errno;
  }
}

/** True for a HoldfastError, with that code if one is given. */
export function isHoldfastError(error: unknown, code?: HoldfastErrorCode): error is HoldfastError {
  return error instanceof HoldfastError && (code === undefined || error.code === code);
}

/**
 * A broken invariant of our own. It stops the component that finds it: what it guards can no longer be trusted.
 * Never for input that comes from outside.
 */
export function assert(condition: unknown, invariant: string): asserts condition {
  if (!condition) throw new HoldfastError('ERR_HOLDFAST_INTERNAL', `broken invariant: ${invariant}`);
}

/** Throws ERR_HOLDFAST_ABORTED if the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined, what: string): void {
  if (signal?.aborted)
    throw new HoldfastError('ERR_HOLDFAST_ABORTED', `${what} was cancelled`, { cause: signal.reason });
}
