/** The public face of Holdfast. */
export { HoldfastError, type HoldfastErrorCode, isHoldfastError } from './base/errors.ts';
export type {
  BlockDevice,
  DeviceStats,
  Geometry,
  IoOptions,
  WriteOptions,
  WriteZeroesOptions,
} from './storage/block-device.ts';
export { MemoryDevice, type MemoryDeviceOptions } from './storage/memory-device.ts';
