/** What an NBD server exports: a block device, and how clients may use it. */
import type { BlockDevice } from '../storage/block-device.ts';
import type { ExportFacts } from './negotiation.ts';
import { TransmissionFlag } from './wire.ts';

/** A block device, and how NBD clients may use it. */
export interface NbdExport {
  readonly device: BlockDevice;
  /** Shown to clients that ask (NBD_INFO_DESCRIPTION). */
  readonly description?: string;
  /** Writes are refused. Default: as the device says. */
  readonly readOnly?: boolean;
  /**
   * A flush on one connection covers the writes that completed on all of them, whichever server they went to. Only
   * then may a client spread its requests over several connections (NBD_FLAG_CAN_MULTI_CONN). Default false.
   */
  readonly multiConnection?: boolean;
}

/** Counters of one export since it was added. */
export interface NbdExportStats {
  readonly connections: number;
  readonly requestsInFlight: number;
  readonly reads: number;
  readonly readBytes: number;
  readonly writes: number;
  readonly writtenBytes: number;
  readonly flushes: number;
  readonly trims: number;
  readonly zeroes: number;
  /** Requests that were refused before they reached the device: out of range, read-only, malformed. */
  readonly refused: number;
  /** Requests that the device failed. */
  readonly errors: number;
}

export type MutableStats = { -readonly [Key in keyof NbdExportStats]: number };

export function newStats(): MutableStats {
  return {
    connections: 0,
    requestsInFlight: 0,
    reads: 0,
    readBytes: 0,
    writes: 0,
    writtenBytes: 0,
    flushes: 0,
    trims: 0,
    zeroes: 0,
    refused: 0,
    errors: 0,
  };
}

export function isReadOnly(nbdExport: NbdExport): boolean {
  return nbdExport.readOnly ?? nbdExport.device.readOnly;
}

const SMALLEST_PREFERRED_BYTES = 4096;

/** From the geometry alone: the device is not touched. */
export function factsOf(name: string, nbdExport: NbdExport, maximumPayloadBytes: number): ExportFacts {
  const { geometry } = nbdExport.device;
  const flag = TransmissionFlag;
  let flags = flag.hasFlags | flag.sendFlush | flag.sendFua | flag.sendWriteZeroes | flag.sendFastZero | flag.sendCache;
  if (isReadOnly(nbdExport)) flags |= flag.readOnly;
  if (geometry.rotational) flags |= flag.rotational;
  if (geometry.discard) flags |= flag.sendTrim;
  if (nbdExport.multiConnection === true) flags |= flag.canMultiConn;
  return {
    name,
    description: nbdExport.description,
    sizeBytes: geometry.sizeBytes,
    transmissionFlags: flags,
    // Every BlockDevice serves any alignment.
    minimumBlockBytes: 1,
    preferredBlockBytes: Math.min(Math.max(geometry.physicalBlockBytes, SMALLEST_PREFERRED_BYTES), maximumPayloadBytes),
    maximumPayloadBytes,
  };
}
