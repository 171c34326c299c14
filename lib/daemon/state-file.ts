/** The file with a node's vote about one register: its creation, which never overwrites unasked, and its opening. */

import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { VOTER_FILE_BYTES, VoterFile, type VoterFileOwner } from '../coherency/voter-file.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { openDevice } from '../storage/open-device.ts';
import { Held } from './held.ts';

/**
 * Makes the file of a voter that has promised nothing.
 *
 * @param options `overwrite`: a file that is there loses what it holds. `mend`: what to do where there is one.
 * @throws HoldfastError ERR_HOLDFAST_DEVICE_EXISTS if there is a file: a voter must not forget what it has promised.
 */
export async function makeStateFile(
  path: string,
  owner: VoterFileOwner,
  options: { readonly overwrite?: boolean; readonly mend: string },
): Promise<void> {
  const held = new Held();
  try {
    const file = options.overwrite ? openDevice(path, { exclusive: true }) : newFile(path, options.mend);
    await VoterFile.create(held.add(await file), owner);
  } finally {
    await held.close();
  }
}

async function newFile(path: string, mend: string): Promise<BlockDevice> {
  try {
    return await openDevice(path, { create: { sizeBytes: VOTER_FILE_BYTES } });
  } catch (error) {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_DEVICE_EXISTS')) throw error;
    const message = `${path} is there already; a voter must not forget what it has promised. ${mend}. Nothing was changed`;
    throw new HoldfastError('ERR_HOLDFAST_DEVICE_EXISTS', message, { cause: error });
  }
}

/**
 * Opens the file; `held` closes it.
 *
 * @param missing what to say if it is not there: whose vote it is, and how it is made.
 * @throws HoldfastError ERR_HOLDFAST_METADATA_MISSING, and as VoterFile.open.
 */
export async function openStateFile(
  path: string,
  owner: VoterFileOwner,
  held: Held,
  missing: string,
): Promise<VoterFile> {
  try {
    return await VoterFile.open(held.add(await openDevice(path, { exclusive: true })), owner);
  } catch (error) {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_NOT_FOUND')) throw error;
    throw new HoldfastError('ERR_HOLDFAST_METADATA_MISSING', `${missing} (${error.message})`, { cause: error });
  }
}
