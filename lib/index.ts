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
export type { AuditEntry, AuditEvent, AuditKind } from './checkpoint/audit.ts';
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
export { ComposedAccess, type ComposedPart, type Elsewhere } from './checkpoint/composed-access.ts';
export {
  type ConnectMemoryOptions,
  connectMemory,
  type MemoryConnection,
  type MemoryPeer,
} from './checkpoint/connect-memory.ts';
export {
  type ConnectMirroredMemoryOptions,
  connectMirroredMemory,
  MirroredMemoryConnection,
  type MirroredRegion,
  type MirroredUnit,
  type OpenReaderOptions,
  type OpenWriterOptions,
} from './checkpoint/connect-mirrored-memory.ts';
export { type CheckpointMode, cursorAddress } from './checkpoint/layout.ts';
export {
  type Admission,
  type ManagerAuditEvent,
  MemoryManager,
  type MemoryManagerOptions,
  type MemoryManagerStatus,
} from './checkpoint/manager.ts';
export {
  type AccessGrant,
  type ClientOptions as MemoryRequestOptions,
  MemoryClient,
  type MemoryClientOptions,
  type OpenedRegion,
  type OpenOptions as OpenRegionOptions,
} from './checkpoint/manager-client.ts';
export type { LegPlace, RegionAccessList, RegionInfo } from './checkpoint/manager-wire.ts';
export { type AccessContext, openAccess } from './checkpoint/memory-session.ts';
export { admitByRegister, type MirroredLeg } from './checkpoint/mirror-admission.ts';
export {
  type DecidedRegister,
  RemoteArbiter,
  type RemoteArbiterOptions,
  serveRegisters,
} from './checkpoint/mirror-decider.ts';
export { type ManagedLeg, managedLegs } from './checkpoint/mirror-legs.ts';
export type { Leg, LegPurpose } from './checkpoint/mirror-standing.ts';
export {
  MirroredAccess,
  type MirroredAccessOptions,
  type MirrorLegStatus,
  type MirrorLegs,
  type MirrorStatus,
  type RebuildProgress,
} from './checkpoint/mirrored-access.ts';
export {
  type MirroredCheckpoints,
  openMirroredBackup,
  openMirroredPrimary,
} from './checkpoint/mirrored-checkpoints.ts';
export { type MirroredPairOptions, mirroredPairMemory } from './checkpoint/mirrored-pair-memory.ts';
export { MirroredReader, type MirroredReaderOptions } from './checkpoint/mirrored-reader.ts';
export type {
  AccessKey,
  AddressContext,
  AddressRange,
  CommandOptions,
  Guard,
  RegionAccess,
  Right,
  StoreOptions,
  WriteOptions as RegionWriteOptions,
} from './checkpoint/one-sided.ts';
export type { Rates } from './checkpoint/pace.ts';
export { pairMemory } from './checkpoint/pair-memory.ts';
export type { PlaneLimits, PlaneOptions } from './checkpoint/plane.ts';
export { type MemoryTransport, planeTransport } from './checkpoint/plane-transport.ts';
export {
  type PairMemory,
  type PairRole,
  ProcessPair,
  type ProcessPairOptions,
  runProcessPair,
} from './checkpoint/process-pair.ts';
export type { Space } from './checkpoint/region-directory.ts';
export { type CheckpointFormatOptions, formatCheckpointRegion } from './checkpoint/region-record.ts';
export {
  type RemoteManagerOptions,
  RemoteUnit,
  type RemoteUnitOptions,
  serveRemoteManager,
} from './checkpoint/remote-unit.ts';
export {
  createMemoryUnit,
  MemoryUnit,
  type MemoryUnitOptions,
  type UnitLimits,
  type UnitStatus,
} from './checkpoint/unit.ts';
export type {
  Extent,
  Grant,
  RevokedKeys,
  TranslationTable,
  UnitApart,
  UnitControl,
} from './checkpoint/unit-control.ts';
export { mappedMemory, type UnitMemory } from './checkpoint/unit-memory.ts';
export { VOTER_FILE_BYTES, VoterFile, type VoterFileOwner } from './coherency/voter-file.ts';
export type { ControllerEvent, ControllerStatus, Role } from './mirror/controller.ts';
export type { Problem } from './mirror/meeting.ts';
export type { MemberStore } from './mirror/member-store.ts';
export { checkFits, type MemberShape, Metadata, metadataBytes } from './mirror/metadata.ts';
export type { ResyncProgress } from './mirror/resync.ts';
export type { CopyState, OnLostPeer } from './mirror/standing.ts';
export type { DataState, MemberIndex, MemberRecord, View, ViewId } from './mirror/view.ts';
export { MirroredVolume, type MirroredVolumeOptions } from './mirror/volume.ts';
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
