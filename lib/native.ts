/**
 * The one door to the native addon: finds it, loads it once a thread, types it. Nothing else in lib/ loads native code.
 *
 * Order: a local build (`build/Release`, from a checkout or from `holdfast build-native`) goes before the prebuilt
 * binary that the package brings (`prebuilds/`, in prebuildify's layout). It is loaded at first use, not at import: the
 * command line must run without it, to be able to build it.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { HoldfastError } from './base/errors.ts';

/** native/checksum. Checksums are finished ones, as RFC 3720 prints them. */
export interface NativeChecksum {
  crc32c(bytes: Uint8Array, seed: number): number;
  /** Copies to the start of `target`, in one pass. */
  crc32cCopy(source: Uint8Array, target: Uint8Array, seed: number): number;
  /** By a named kernel, whichever is selected: for tests and benchmarks. */
  crc32cBy(kernel: string, bytes: Uint8Array, seed: number): number;
  /** Fills `checksums`, one entry a block; the last block may be short. */
  crc32cBlocks(bytes: Uint8Array, blockBytes: number, checksums: Uint32Array): void;
  crc32cCombine(crcA: number, crcB: number, lengthB: number): number;
  /** All kernels in the binary, slowest first. */
  kernels(): { name: string; supported: boolean }[];
  selectedKernel(): string;
  /** For the whole process. False if there is no such kernel, or not on this processor. */
  selectKernel(name: string): boolean;
}

/** native/copy. Off the event loop. Errors carry an errno's name as `code`. */
export interface NativeCopy {
  /** Lets the target share the source's blocks (FICLONERANGE), all of the range; the number is its length. */
  cloneRange(
    sourceFd: number,
    sourceOffset: number,
    targetFd: number,
    targetOffset: number,
    length: number,
  ): Promise<number>;
  /** copy_file_range(2), once: may copy less than `length`, or nothing. */
  copyFileRange(
    sourceFd: number,
    sourceOffset: number,
    targetFd: number,
    targetOffset: number,
    length: number,
  ): Promise<number>;
  /** Writes what is cached of the range to the device, and drops it from the cache. */
  dropCache(fd: number, offset: number, length: number): Promise<void>;
  /** One SCSI command through SG_IO, with data one way: at most 64 KiB. */
  scsi(
    fd: number,
    cdb: Uint8Array,
    dataToSend: Uint8Array,
    bytesToReceive: number,
    timeoutMs: number,
  ): Promise<NativeScsiResult>;
}

export interface NativeScsiResult {
  /** The device's: 0 is GOOD, 2 CHECK CONDITION (see `sense`). */
  status: number;
  /** The adapter's and the kernel's: not 0 if it is not known what became of the command. */
  hostStatus: number;
  driverStatus: number;
  sense: Uint8Array;
  /** What the device sent, no more. */
  data: Uint8Array;
}

/** native/identify. Errors carry an errno's name as `code`. */
export interface NativeIdentify {
  /** Blocks a thread of the pool, not the loop. `libraryMissing` is empty, or says why libblkid cannot be used. */
  probeSignatures(
    path: string,
    offset: number,
    sizeBytes: number,
  ): Promise<{ signatures: Record<string, string>[]; ambivalent: boolean; libraryMissing: string }>;
  /** Of an open block device; ENOTTY for anything else. */
  deviceGeometry(fd: number): NativeGeometry;
  /**
   * Where the next data at or after `offset` begin, −1 if only a hole is left. File systems that cannot tell call
   * everything data. Moves the descriptor's position.
   */
  seekData(fd: number, offset: number): number;
}

/** What the kernel says of a block device (BLK… ioctls). `optimalIoBytes` is 0 where it has no opinion. */
export interface NativeGeometry {
  sizeBytes: number;
  logicalBlockBytes: number;
  physicalBlockBytes: number;
  minimumIoBytes: number;
  optimalIoBytes: number;
  rotational: boolean;
  readOnly: boolean;
  /** Its number, as in /sys/dev/block/MAJOR:MINOR. */
  major: number;
  minor: number;
}

/** native/region. Errors carry an errno's name as `code`. */
export interface NativeRegion {
  /** `sizeBytes` 0: as long as the file is. */
  open(
    path: string,
    sizeBytes: number,
    sizeLimitBytes: number,
    create: boolean,
    means: 'auto' | NativeOpenRegion['means'],
  ): Promise<NativeOpenRegion>;
  /** A longer mapping of the same file, beside this one; both hold its lock until they are closed. */
  grow(handle: object, sizeBytes: number, sizeLimitBytes: number): Promise<NativeOpenRegion>;
  /** Copies the bytes in. True if they are durable already, else `persist` makes them. */
  write(handle: object, offset: number, bytes: Uint8Array): boolean;
  persist(handle: object, offset: number, length: number): Promise<void>;
  /** At once, if this can be done without blocking; else false, and nothing has been done. */
  persistDirect(handle: object, offset: number, length: number): boolean;
  /** Detaches the buffer; the memory goes when nobody has it any more. */
  close(handle: object): void;
}

export interface NativeOpenRegion {
  handle: object;
  buffer: ArrayBuffer;
  sizeBytes: number;
  means: 'map-sync' | 'cache-flush' | 'msync';
}

/** A plane of native/plane, opaque: the unit's end. */
export type NativePlaneHandle = { readonly nativePlane: unique symbol };
/** The client's end. */
export type NativePlaneClientHandle = { readonly nativePlaneClient: unique symbol };

/** `awaits`: not 0 if commands under the keys are still running; an event of this number tells when none is. */
export interface NativeRevocation {
  keys: number;
  awaits: number;
}

/**
 * native/plane. Keys, tickets and names of regions are 16 bytes. Rights: 1 read, 2 write, 3 both. Errors carry an errno's
 * name as `code`.
 */
export interface NativePlane {
  /** `onEvents`: there are events to be taken. The region, of this handle, stays mapped and locked until the end. */
  serverStart(
    region: object,
    host: string,
    port: number,
    commandsPerConnection: number,
    watchesPerConnection: number,
    answerBytesPerConnection: number,
    lingerMicroseconds: number,
    /** 0: no limit. */
    commandsPerSecond: number,
    bytesPerSecond: number,
    onEvents: () => void,
  ): { handle: NativePlaneHandle; port: number };
  /** By a longer mapping of the same file. */
  serverReplaceRegion(plane: NativePlaneHandle, region: object): void;
  /** Names one after the other; how many extents each has; start and length of each. Undefined: one is outside. */
  serverInstall(
    plane: NativePlaneHandle,
    names: Uint8Array,
    counts: Float64Array,
    extents: Float64Array,
  ): NativeRevocation | undefined;
  /** False: no such region, not that long, such a key already, or too many. */
  serverGrant(
    plane: NativePlaneHandle,
    key: Uint8Array,
    region: Uint8Array,
    base: number,
    length: number,
    rights: number,
    session: number,
  ): boolean;
  serverRevoke(
    plane: NativePlaneHandle,
    region: Uint8Array | undefined,
    key: Uint8Array | undefined,
    session: number | undefined,
    /** All but its keys. */
    sparedSession: number | undefined,
    /** Keys that have one of them; 0: all. */
    rights: number,
  ): NativeRevocation;
  /** False: too many. The peer's number: whose rate it is. */
  serverAdmit(plane: NativePlaneHandle, ticket: Uint8Array, session: number, peer: number): boolean;
  /** For how long, ms, a command of the peer that comes another way waits before it begins. It counts from now on. */
  serverDelay(plane: NativePlaneHandle, peer: number, bytes: number): number;
  serverWithdraw(plane: NativePlaneHandle, ticket: Uint8Array): void;
  /** Its keys, tickets and connection. */
  serverEndSession(plane: NativePlaneHandle, session: number): NativeRevocation;
  /** Somebody else has stored there. */
  serverChanged(plane: NativePlaneHandle, region: Uint8Array, address: number, length: number): void;
  /** Whether stores in the region are told by events. Its change number; 0: there is no such region. */
  serverObserve(plane: NativePlaneHandle, region: Uint8Array, observe: boolean): number;
  /** No command is executed while the action runs, which may not use the plane. */
  serverExclusively(plane: NativePlaneHandle, action: () => void): void;
  /** Into `bytes`, 56 each (native/plane/server.h). */
  serverTakeEvents(plane: NativePlaneHandle, bytes: Uint8Array): { count: number; dropped: number };
  serverState(plane: NativePlaneHandle): NativePlaneState;
  /** Resolves when the threads have ended, and with them what the disk was asked for. Once. */
  serverClose(plane: NativePlaneHandle): Promise<void>;
  /** The memory's layout is in native/plane/client.h. */
  clientCreate(memory: Uint8Array, capacity: number, onResults: (count: number) => void): NativePlaneClientHandle;
  /** The number of a session, or a negative errno. `host` is a numeric address. */
  clientConnect(client: NativePlaneClientHandle, host: string, port: number, ticket: Uint8Array): number;
  clientDisconnect(client: NativePlaneClientHandle, session: number): void;
  /**
   * The data of the entry that comes next with this id go straight to the target, whenever they come, unless it is
   * detached by then; without a target: those of the command that has this id go nowhere.
   */
  clientAim(client: NativePlaneClientHandle, id: number, target?: Uint8Array): void;
  clientSubmit(client: NativePlaneClientHandle): void;
  clientClose(client: NativePlaneClientHandle): void;
}

/** Counted since the start, but for `connections`, `keys` and `persistError`, an errno. */
export interface NativePlaneState {
  connections: number;
  keys: number;
  commands: number;
  refused: number;
  reads: number;
  readBytes: number;
  /** Swaps too. */
  writes: number;
  writtenBytes: number;
  /** How often the disk was asked, and for how many commands. */
  persists: number;
  persistedCommands: number;
  persistError: number;
}

/** A ring of native/ring, opaque. */
export type NativeRingHandle = { readonly nativeRing: unique symbol };

/** native/ring: the binding of lib/storage/ring.ts, and what `fs` cannot ask of an open file. */
export interface NativeRing {
  /** `engine`: 0 is the thread pool, 1 + the best style to try is io_uring. `error` is an errno, `stage` the call that failed. */
  create(
    memory: Uint8Array,
    capacity: number,
    engine: number,
    threads: number,
    pollMicroseconds: number,
    onResults: (count: number) => void,
  ):
    | { handle: NativeRingHandle; style: number; threads: number; registersFiles: boolean; error?: undefined }
    | { handle?: undefined; error: number; stage: string };
  submit(ring: NativeRingHandle): void;
  /** Also looks for results, if only one operation is in flight: how many the caller finds and settles. Not from `onResults`. */
  submitAndPoll(ring: NativeRingHandle): number;
  /** Asks that an operation handed over is not begun, if it has not. */
  cancel(ring: NativeRingHandle, id: number): void;
  /** The slot, or a negative errno. The ring keeps a descriptor of its own until `removeFile`. */
  addFile(ring: NativeRingHandle, fd: number): number;
  removeFile(ring: NativeRingHandle, slot: number): void;
  /** The index, or -1 if there are too many. */
  addArena(ring: NativeRingHandle, bytes: Uint8Array): number;
  removeArena(ring: NativeRingHandle, index: number): void;
  /** Adds what was counted on a file to `figures` (native/ring/statistics.h); on all files if there is no such slot. */
  statistics(ring: NativeRingHandle, slot: number, figures: Float64Array): void;
  /** Of a file; of the ring if there is no such slot. */
  state(ring: NativeRingHandle, slot: number): NativeRingState;
  /** Nothing may be in flight. */
  close(ring: NativeRingHandle): void;
  /** The address of the first byte modulo `alignment`. */
  misalignment(bytes: Uint8Array, alignment: number): number;
  /** 0, or an errno: EAGAIN if somebody else holds it. Released when the descriptor is closed. */
  lockFile(fd: number, exclusive: boolean): number;
  /** What direct I/O needs; zeros where it is not supported; undefined if the kernel does not say. */
  directAlignment(fd: number): { memoryBytes: number; offsetBytes: number } | undefined;
}

/** native/digest. */
export interface NativeDigest {
  /**
   * The digest of each block, one after the other, off the event loop; the last block may be short. `bytes` are over
   * shared memory and stand still until it has settled. Throws as `code` EOPNOTSUPP if it is not available, ENOMEM.
   */
  digestBlocks(
    algorithm: string,
    key: Uint8Array | undefined,
    bytes: Uint8Array,
    blockBytes: number,
  ): Promise<Uint8Array<ArrayBuffer>>;
  /** This process's OpenSSL does it, with a key of this length. */
  isAvailable(algorithm: string, key: Uint8Array | undefined): boolean;
}

/** A scan of native/scan, opaque. */
export type NativeScanHandle = { readonly nativeScan: unique symbol };

export interface NativeScanSettings {
  /** Duplicated: the scan keeps a descriptor of its own until `close`. */
  readonly fd: number;
  /** The range, in bytes. */
  readonly offset: number;
  readonly length: number;
  readonly blockBytes: number;
  /** Blocks that are read at once, such reads in a batch, and finished batches that may wait to be taken. */
  readonly pieceBlocks: number;
  readonly batchPieces: number;
  readonly batches: number;
  /** Reads in flight, for each of the threads that checksum. */
  readonly depth: number;
  readonly lanes: number;
  /** Reads are widened to multiples of it: a power of two. */
  readonly alignmentBytes: number;
  /** As `NativeRing.create` takes it. */
  readonly engine: number;
  /** Infinity: as fast as it goes. */
  readonly bytesPerSecond: number;
  /** As `NativeDigest` takes them. */
  readonly algorithm: string;
  readonly key: Uint8Array | undefined;
}

/** native/scan: the binding of lib/storage/scan-file.ts. */
export interface NativeScan {
  /** `onReady` is called when a batch can be taken, and once more when the scan has ended. Throws an errno's name as `code`. */
  start(settings: NativeScanSettings, onReady: () => void): NativeScanHandle;
  /** Copies the checksums of the next batch in order; the number of its blocks, or 0 if it is not finished. */
  take(scan: NativeScanHandle, checksums: Uint8Array): number;
  doneBytes(scan: NativeScanHandle): number;
  setRate(scan: NativeScanHandle, bytesPerSecond: number): void;
  /** Starts no further read. It has ended when those in flight have. */
  cancel(scan: NativeScanHandle): void;
  /** Nothing more will come; what is finished can still be taken. */
  ended(scan: NativeScanHandle): boolean;
  /** Once it has ended: lets go of the file. */
  close(scan: NativeScanHandle): void;
  /** Whether the event loop stays alive for it. */
  keepAlive(scan: NativeScanHandle, wanted: boolean): void;
  /** `result`: a negative errno, 1 if the file ended early, 2 if the digest's library failed. */
  failure(scan: NativeScanHandle): { result: number; offset: number; length: number } | undefined;
}

export interface NativeRingState {
  inFlight: number;
  inFlightMax: number;
  /** These only of the ring. */
  handOvers: number;
  batches: number;
  arenasRegistered: number;
  arenasRefused: number;
  /** An errno, of the last one refused. */
  arenaRefusal: number;
}

export interface NativeAddon {
  readonly checksum: NativeChecksum;
  readonly copy: NativeCopy;
  readonly digest: NativeDigest;
  readonly identify: NativeIdentify;
  readonly plane: NativePlane;
  readonly region: NativeRegion;
  readonly ring: NativeRing;
  readonly scan: NativeScan;
}

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);

let loaded: NativeAddon | undefined;

/**
 * The addon.
 *
 * @throws HoldfastError ERR_HOLDFAST_NATIVE_MISSING if there is neither a local build nor a prebuilt binary for this
 *   platform, or if the one found does not load (`cause` says why).
 */
export function native(): NativeAddon {
  loaded ??= load();
  return loaded;
}

function load(): NativeAddon {
  try {
    return require(findAddon()) as NativeAddon;
  } catch (cause) {
    throw new HoldfastError(
      'ERR_HOLDFAST_NATIVE_MISSING',
      `no native addon for ${process.platform}-${process.arch} could be loaded; ` +
        'run `holdfast build-native` (it needs python3, make and g++; on Alpine linux-headers too)',
      { cause },
    );
  }
}

/** HOLDFAST_ADDON names one build and no other: how the sanitizers' build is exercised. */
function findAddon(): string {
  const named = process.env.HOLDFAST_ADDON;
  if (named !== undefined) return named;
  const local = join(root, 'build', 'Release', 'holdfast.node');
  if (existsSync(local)) return local;
  const { resolve } = require('node-gyp-build') as { resolve(directory: string): string };
  return resolve(root);
}
