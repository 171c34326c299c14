// A service in strict TypeScript, which also checks all declarations of the package (`skipLibCheck` is off): what they
// refer to must be there.
import { type BlockDevice, crc32cBlocks, type HoldfastErrorCode, isHoldfastError, openDevice } from 'holdfast';
import { FaultPlan, FaultyDevice } from 'holdfast/testing';

export async function checksums(device: BlockDevice): Promise<Uint32Array> {
  const bytes = new Uint8Array(device.geometry.sizeBytes);
  await device.read(0, bytes);
  return crc32cBlocks(bytes, 4096);
}

export async function open(path: string): Promise<BlockDevice | HoldfastErrorCode> {
  try {
    return new FaultyDevice(await openDevice(path, { create: { sizeBytes: 65_536 } }), { plan: new FaultPlan() });
  } catch (error) {
    if (isHoldfastError(error)) return error.code;
    throw error;
  }
}

// @ts-expect-error Offsets are numbers: if this were accepted, the types would have been lost on the way.
export const refused = (device: BlockDevice) => device.read('0', new Uint8Array(512));
