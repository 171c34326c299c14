/** The public face of Holdfast. */
export { HoldfastError, type HoldfastErrorCode, isHoldfastError } from './base/errors.ts';
export type { NbdExport, NbdExportStats } from './nbd/export.ts';
export {
  defaultNbdServerLimits,
  NbdServer,
  type NbdServerLimits,
  type NbdServerOptions,
  type NbdServerStats,
} from './nbd/server.ts';
export type {
  BlockDevice,
  DeviceStats,
  Geometry,
  IoOptions,
  WriteOptions,
  WriteZeroesOptions,
} from './storage/block-device.ts';
export { MemoryDevice, type MemoryDeviceOptions } from './storage/memory-device.ts';
