/** Ranges of any length, by one-sided commands of bounded length. */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { COMMAND_BYTES_MAX } from './layout.ts';
import type { Guard, RegionAccess } from './one-sided.ts';

/** How many commands of one long range are under way together. */
const COMMANDS_AHEAD = 4;

/** Fills `target` from the address. */
export async function readRange(
  access: RegionAccess,
  address: number,
  target: Uint8Array,
  signal?: AbortSignal,
): Promise<void> {
  const options = signal === undefined ? undefined : { signal };
  if (target.length <= COMMAND_BYTES_MAX) return access.read(address, target, options);
  await eachPiece(target, (piece, at) => access.read(address + at, piece, options));
}

/**
 * Stores the bytes from the address on, on the condition of the guard; with `persist`, resolves when they are durable.
 * More than one command's bytes do not stay together if it fails.
 */
export function writeRange(
  access: RegionAccess,
  address: number,
  bytes: Uint8Array,
  guard: Guard | undefined,
  persist: boolean,
): Promise<void> {
  const options = guard === undefined ? { persist } : { persist, guard };
  if (bytes.length <= COMMAND_BYTES_MAX) return access.write(address, [bytes], options);
  return eachPiece(bytes, (piece, at) => access.write(address + at, [piece], options));
}

/** Never settles while a command that it has given is under way: the bytes are the caller's again afterwards. */
async function eachPiece(bytes: Uint8Array, command: (piece: Uint8Array, at: number) => Promise<void>): Promise<void> {
  let next = 0;
  let failed = false;
  const worker = async () => {
    while (next < bytes.length && !failed) {
      const at = next;
      next += COMMAND_BYTES_MAX;
      try {
        await command(bytes.subarray(at, at + COMMAND_BYTES_MAX), at);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  const outcomes = await Promise.allSettled(Array.from({ length: COMMANDS_AHEAD }, worker));
  const rejected = outcomes.find((outcome) => outcome.status === 'rejected');
  if (rejected !== undefined) throw rejected.reason;
}

/** What the failed command of a writer means to its user. */
export function writerError(access: RegionAccess, error: unknown): unknown {
  if (isHoldfastError(error, 'ERR_HOLDFAST_FENCED'))
    return new HoldfastError(
      'ERR_HOLDFAST_FENCED',
      `another writer has taken over the checkpoints on ${access.unit}; this one writes no more. Leave the work to ` +
        'the other, or open a writer anew to take over from it',
      { cause: error },
    );
  if (isHoldfastError(error, 'ERR_HOLDFAST_KEY_INVALID'))
    return new HoldfastError(
      'ERR_HOLDFAST_FENCED',
      `the key of this writer to ${access.unit} has been revoked: another has taken over, or the unit or its manager ` +
        'has begun anew. Ask the manager for the region again to learn which',
      { cause: error },
    );
  return error;
}
