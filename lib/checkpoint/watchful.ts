/** Pairs of superblocks that one side reads while the other one writes. */
import { isHoldfastError } from '../base/errors.ts';
import type { SuperblockPair } from '../storage/superblock-pair.ts';

/** A reader may meet a writer at the first copy, and then at the second: not often. */
const LOOKS_MAX = 16;

/** Opens a pair that another may be writing: one copy is whole at every moment, but not each at the moment of its look. */
export async function openWatchfully(open: () => Promise<SuperblockPair>): Promise<SuperblockPair> {
  for (let look = 1; ; look++) {
    try {
      return await open();
    } catch (error) {
      if (look === LOOKS_MAX || !isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED')) throw error;
    }
  }
}
