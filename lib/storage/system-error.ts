/** What the operating system says when a device or file is opened or looked at, as codes and what to do about it. */
import { HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';

const meanings: Record<string, readonly [HoldfastErrorCode, string]> = {
  ENOENT: ['ERR_HOLDFAST_NOT_FOUND', 'check the path'],
  ENOTDIR: ['ERR_HOLDFAST_NOT_FOUND', 'check the path'],
  ENXIO: ['ERR_HOLDFAST_NOT_FOUND', 'there is no device behind it'],
  EACCES: ['ERR_HOLDFAST_ACCESS', 'change its permissions, or run as a user who may open it'],
  EPERM: ['ERR_HOLDFAST_ACCESS', 'change its permissions, or run as a user who may open it'],
  EROFS: ['ERR_HOLDFAST_READ_ONLY', 'open it with readOnly'],
  EBUSY: ['ERR_HOLDFAST_DEVICE_BUSY', 'it is mounted or held by another program: unmount it (lsblk shows who)'],
  EEXIST: ['ERR_HOLDFAST_DEVICE_EXISTS', 'open it as it is, or remove it first'],
  ENOSPC: ['ERR_HOLDFAST_NO_SPACE', 'free some space'],
  EDQUOT: ['ERR_HOLDFAST_NO_SPACE', 'free some space'],
  EFBIG: ['ERR_HOLDFAST_NO_SPACE', 'the file system does not hold files of this size'],
};

/** The errno's name in an error of node:fs. */
export function errnoOf(error: unknown): string | undefined {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return typeof code === 'string' ? code : undefined;
}

/** `what` was being done with `path`: "opening it". */
export function systemError(path: string, what: string, cause: unknown): HoldfastError {
  if (cause instanceof HoldfastError) return cause;
  const errno = errnoOf(cause) ?? 'unknown error';
  const [code, mend] = meanings[errno] ?? ['ERR_HOLDFAST_IO', "check the device and the kernel's log"];
  return new HoldfastError(code, `${path}: ${what} failed: ${errno}; ${mend}`, { cause, errno });
}
