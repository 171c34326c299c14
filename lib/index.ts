/**
 * The public face of Holdfast.
 *
 * @module holdfast
 */

export { crc32c, crc32cBlocks, crc32cCombine, crc32cCopy, crc32cKernel } from './base/checksum.ts';
export type { Clock, TimerHandle } from './base/clock.ts';
export type { Environment } from './base/environment.ts';
export { HoldfastError, type HoldfastErrorCode, type HoldfastErrorOptions, isHoldfastError } from './base/errors.ts';
export type {
  Address,
  Connection,
  ConnectionHandler,
  ConnectOptions,
  Listener,
  ListenOptions,
  Network,
  PresharedKeyOptions,
} from './base/network.ts';
export type { Random } from './base/random.ts';
export { systemEnvironment } from './base/system-environment.ts';
export type { WhenFull } from './checkpoint/append-log.ts';
export {
  type Checkpoint,
  CheckpointReader,
  type CheckpointReaderOptions,
  type DrainOptions,
} from './checkpoint/checkpoint-reader.ts';
export {
  type CheckpointOptions,
  CheckpointWriter,
  type CheckpointWriterOptions,
} from './checkpoint/checkpoint-writer.ts';
export { type Codec, structuredCodec } from './checkpoint/codec.ts';
export {
  type ConnectMemoryOptions,
  connectMemory,
  type MemoryConnection,
  type MemoryPeer,
} from './checkpoint/connect-memory.ts';
export { type CheckpointMode, cursorAddress } from './checkpoint/layout.ts';
export type {
  AccessKey,
  AddressRange,
  CommandOptions,
  Guard,
  RegionAccess,
  StoreOptions,
  WriteOptions as RegionWriteOptions,
} from './checkpoint/one-sided.ts';
export { pairMemory } from './checkpoint/pair-memory.ts';
export {
  type PairMemory,
  type PairRole,
  ProcessPair,
  type ProcessPairOptions,
  runProcessPair,
} from './checkpoint/process-pair.ts';
export { type CheckpointFormatOptions, formatCheckpointRegion } from './checkpoint/region-record.ts';
export type { ControllerEvent, ControllerStatus, Role } from './mirror/controller.ts';
export type { Problem } from './mirror/meeting.ts';
export type { MemberStore } from './mirror/member-store.ts';
export { checkFits, type MemberShape, Metadata, metadataBytes } from './mirror/metadata.ts';
export type { ResyncProgress } from './mirror/resync.ts';
export type { CopyState, OnLostPeer } from './mirror/standing.ts';
export type { DataState, MemberIndex, MemberRecord, View, ViewId } from './mirror/view.ts';
export { MirroredVolume, type MirroredVolumeOptions } from './mirror/volume.ts';
export { VOTER_FILE_BYTES, VoterFile, type VoterFileOwner } from './mirror/voter-file.ts';
export type { NbdExport, NbdExportStats } from './nbd/export.ts';
export { type ConnectNbdOptions, connectNbd } from './nbd/nbd-device.ts';
export {
  defaultNbdServerLimits,
  NbdServer,
  type NbdServerLimits,
  type NbdServerOptions,
  type NbdServerStats,
} from './nbd/server.ts';
export type { Arbiter, Ballot, SwapResult, VoterState, VoterStore } from './peer/arbiter.ts';
export { createPeerNode, type PeerLimits, type PeerNodeOptions } from './peer/node.ts';
export type {
  BodyFormat,
  Channel,
  LinkProblem,
  LinkStatus,
  Message,
  Method,
  PeerEvents,
  PeerInfo,
  PeerNode,
  PeerSession,
  Reply,
  RequestHandler,
  RequestOptions,
} from './peer/peer.ts';
export { RegisterArbiter, type RegisterArbiterOptions, type VoterReach } from './peer/register-driver.ts';
export { RegisterService, type Voter, type VoterOptions } from './peer/register-service.ts';
export type {
  BlockDevice,
  DeviceStats,
  Geometry,
  IoOptions,
  VectoredDevice,
  WriteOptions,
  WriteZeroesOptions,
} from './storage/block-device.ts';
export type { CopyMethod } from './storage/copy-end.ts';
export {
  type CopyProgress,
  type CopyRangeOptions,
  type CopyRangeResult,
  copyRange,
} from './storage/copy-range.ts';
export {
  type DigestAlgorithm,
  digestAlgorithms,
  digestBlocks,
  digestBytes,
  digestKeyBytes,
} from './storage/digest.ts';
export {
  type DirectDevice,
  type DirectDeviceOptions,
  type DirectReport,
  openDirectDevice,
} from './storage/direct-device.ts';
export { assertMayOverwrite, type BlankOptions, isShownBlank, type OverwriteConsent } from './storage/guard.ts';
export { type DeviceIdentity, deviceIdentity } from './storage/identity.ts';
export { type IoLease, IoMemory, type IoMemoryOptions, type IoMemoryUsage, ioMemory } from './storage/io-memory.ts';
export type { IoStatistics, OperationStatistics } from './storage/io-statistics.ts';
export { MemoryDevice, type MemoryDeviceOptions } from './storage/memory-device.ts';
export { type OpenDeviceOptions, OpenedDevice, openDevice } from './storage/open-device.ts';
export { openRegion, type PersistMeans, type Region, type RegionOptions, regionBytesMax } from './storage/region.ts';
export type { EngineName, EngineReport, RingOptions, RingStatistics } from './storage/ring.ts';
export {
  type DeviceScan,
  type ScanBatch,
  type ScanOptions,
  type ScanProgress,
  scanBlockBytesMax,
  scanBlockBytesMin,
  scanDevice,
} from './storage/scan.ts';
export { type ProbeOptions, probeSignatures, type Signature } from './storage/signatures.ts';
