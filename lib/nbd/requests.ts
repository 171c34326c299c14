/**
 * What a server does with a request before it reaches a device: pure checks, in the order of the NBD protocol
 * document's sections "Request types", "Command flags" and "Error values".
 */
import { isHoldfastError } from '../base/errors.ts';
import { Command, CommandFlag, DEFAULT_MAX_PAYLOAD_BYTES, Errno, type RequestHeader } from './wire.ts';

/** What the checks need to know of the connection's export. */
export interface RequestRules {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly structuredReplies: boolean;
  readonly blockStatus: boolean;
  readonly maximumPayloadBytes: number;
  /** Zeroes are written by the device itself. */
  readonly fastZeroes: boolean;
}

export interface Refusal {
  readonly errno: number;
  readonly message: string;
}

const allowedFlags: Readonly<Record<number, number>> = {
  [Command.read]: CommandFlag.fua | CommandFlag.df,
  [Command.write]: CommandFlag.fua,
  [Command.disconnect]: CommandFlag.fua,
  [Command.flush]: CommandFlag.fua,
  [Command.trim]: CommandFlag.fua,
  [Command.cache]: CommandFlag.fua,
  [Command.writeZeroes]: CommandFlag.fua | CommandFlag.noHole | CommandFlag.fastZero,
  [Command.blockStatus]: CommandFlag.fua | CommandFlag.reqOne,
};

const refusals = {
  unknownCommand: { errno: Errno.EINVAL, message: 'unknown command' },
  unknownFlag: { errno: Errno.EINVAL, message: 'a flag that the command does not have' },
  dfWithoutStructured: { errno: Errno.EINVAL, message: 'NBD_CMD_FLAG_DF without structured replies' },
  readOnly: { errno: Errno.EPERM, message: 'the export is read-only' },
  beyondEnd: { errno: Errno.EINVAL, message: 'the request reaches beyond the end of the export' },
  noSpace: { errno: Errno.ENOSPC, message: 'the request reaches beyond the end of the export' },
  tooLong: { errno: Errno.EINVAL, message: 'the request is longer than the maximum payload of the export' },
  tooLongToRead: { errno: Errno.EOVERFLOW, message: 'the request is longer than the maximum payload of the export' },
  flushRange: { errno: Errno.EINVAL, message: 'a flush has no offset and no length' },
  noContext: { errno: Errno.EINVAL, message: 'no metadata context was selected for this export' },
  notFast: { errno: Errno.ENOTSUP, message: 'zeroes are not faster here than a write' },
  emptyStatus: { errno: Errno.EINVAL, message: 'a block status request of no length' },
} as const satisfies Record<string, Refusal>;

/** True if the payload that follows a write's header is more than anyone may send: the connection is to be dropped. */
export function isAbusiveWrite(request: RequestHeader, rules: RequestRules): boolean {
  return (
    request.command === Command.write && request.length > Math.max(rules.maximumPayloadBytes, DEFAULT_MAX_PAYLOAD_BYTES)
  );
}

/** Undefined if the request may go on to the device. */
export function refuse(request: RequestHeader, rules: RequestRules): Refusal | undefined {
  const allowed = allowedFlags[request.command];
  if (allowed === undefined) return refusals.unknownCommand;
  if ((request.flags & ~allowed) !== 0) return refusals.unknownFlag;
  switch (request.command) {
    case Command.read:
      return refuseRead(request, rules);
    case Command.write:
      if (rules.readOnly) return refusals.readOnly;
      if (request.length > rules.maximumPayloadBytes) return refusals.tooLong;
      return isInside(request, rules) ? undefined : refusals.noSpace;
    case Command.writeZeroes:
      if (rules.readOnly) return refusals.readOnly;
      if (!isInside(request, rules)) return refusals.noSpace;
      return (request.flags & CommandFlag.fastZero) !== 0 && !rules.fastZeroes ? refusals.notFast : undefined;
    case Command.trim:
      if (rules.readOnly) return refusals.readOnly;
      return isInside(request, rules) ? undefined : refusals.beyondEnd;
    case Command.cache:
      return isInside(request, rules) ? undefined : refusals.beyondEnd;
    case Command.flush:
      return request.offset === 0 && request.length === 0 ? undefined : refusals.flushRange;
    case Command.blockStatus:
      if (!rules.blockStatus) return refusals.noContext;
      if (request.length === 0) return refusals.emptyStatus;
      return isInside(request, rules) ? undefined : refusals.beyondEnd;
    default:
      return undefined;
  }
}

function refuseRead(request: RequestHeader, rules: RequestRules): Refusal | undefined {
  if ((request.flags & CommandFlag.df) !== 0 && !rules.structuredReplies) return refusals.dfWithoutStructured;
  if (!isInside(request, rules)) return refusals.beyondEnd;
  if (request.length <= rules.maximumPayloadBytes) return undefined;
  return rules.structuredReplies ? refusals.tooLongToRead : refusals.tooLong;
}

function isInside(request: RequestHeader, rules: RequestRules): boolean {
  return request.offset <= rules.sizeBytes && request.length <= rules.sizeBytes - request.offset;
}

/** The NBD error for what a device threw. */
export function errnoOf(error: unknown): number {
  if (!isHoldfastError(error)) return Errno.EIO;
  switch (error.code) {
    case 'ERR_HOLDFAST_READ_ONLY':
      return Errno.EPERM;
    case 'ERR_HOLDFAST_NO_SPACE':
      return Errno.ENOSPC;
    case 'ERR_HOLDFAST_OUT_OF_RANGE':
    case 'ERR_HOLDFAST_BAD_ARGUMENT':
      return Errno.EINVAL;
    case 'ERR_HOLDFAST_CLOSED':
      return Errno.ESHUTDOWN;
    default:
      return Errno.EIO;
  }
}
