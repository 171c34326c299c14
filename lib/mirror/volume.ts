/**
 * MirroredVolume: the volume as one member's clients see it, a BlockDevice. A request passes the gate and goes to the
 * own mirror engine; or, while the own copy is of no use, to the member that serves. When that changes or a link breaks
 * meanwhile it is tried again at the gate. While the volume may not serve, requests wait.
 */
import type { Environment } from '../base/environment.ts';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import type { PeerNode, PeerSession } from '../peer/peer.ts';
import { BaseDevice, checkRange } from '../storage/base-device.ts';
import type { BlockDevice, Geometry, IoOptions, WriteOptions, WriteZeroesOptions } from '../storage/block-device.ts';
import { Access } from './access.ts';
import { Applier } from './applier.ts';
import { Controller, type ControllerEvent, type ControllerStatus } from './controller.ts';
import { MirrorEngine, type WriteFlags } from './engine.ts';
import { checkSameProcess, type ForwardedWrite, Forwarder, isOnePiece, MAX_SPAN, pieces } from './forwarder.ts';
import { Gate, type OpenGate } from './gate.ts';
import type { MemberStore } from './member-store.ts';
import { Once } from './once.ts';
import { OwnCopy } from './own-copy.ts';
import { MAX_EXTENTS, type PolicingMessage } from './policing-wire.ts';
import { MAX_REQUESTS } from './protocol.ts';
import { MirrorService } from './service.ts';
import type { OnLostPeer } from './standing.ts';

/** A volume, its members, the own device, and limits. */
export interface MirroredVolumeOptions {
  readonly environment: Environment;
  /** Carries the session with the other member. `handle` must still be possible: open volumes before `start`. */
  readonly node: PeerNode;
  readonly name: string;
  /** 32 hexadecimal digits, the same on both members. */
  readonly volumeId: string;
  /** In the same order on both members. The first is the source of the first sync. */
  readonly memberNames: readonly [string, string];
  readonly onLostPeer: OnLostPeer;
  /** Needed with `majority`, and not used otherwise. */
  readonly arbiter?: Arbiter;
  /** The unit in which access passes from one member to the other, bytes, default 1 MiB; the same on both. */
  readonly policingExtentBytes?: number;
  /** The data area of the own device. The volume closes it. */
  readonly device: BlockDevice;
  /** The own member's metadata: see `Metadata.open`. */
  readonly store: MemberStore;
  /**
   * Whether the device is shown to read as zeros everywhere: two blank members need no first copy. Default: not shown.
   */
  readonly isBlank?: () => Promise<boolean>;
  /** Milliseconds; at least the node's session lease, which is the default if it is more than 5000. */
  readonly startupWaitMs?: number;
  /** The own device has failed if it has not answered for so long. Default 30 000 ms; the peer is given twice that. */
  readonly deviceTimeoutMs?: number;
  /** Requests (pieces of 1 MiB) of this member's clients that may be under way or wait; default and most 8192. */
  readonly maxRequests?: number;
  /** Forwarded pieces under way, default 128. */
  readonly forwardWindow?: number;
  /** Resync pieces under way, default 16, each of at most `resyncPieceBytes`, default 256 KiB. */
  readonly resyncWindow?: number;
  readonly resyncPieceBytes?: number;
  /** Told of each event, in order. Must not throw. */
  readonly onEvent?: (event: ControllerEvent) => void;
}

/** How long a volume that closes waits for what it has forwarded. */
const FORWARDED_END_MS = 2000;
/** How long a request waits before it tries again at a gate that has not changed. */
const RETRY_MS = 10;

/** Who forwarded a request, and its place among that process's requests. */
export interface ForwardedFrom {
  readonly session: PeerSession;
  readonly request: number;
  readonly doneBelow: number;
}

/** The session that a mirrored request came in by, and the number of the view in which it was made. */
export interface Origin {
  readonly session: PeerSession;
  readonly view: number;
}

type ApplyAction = (device: BlockDevice) => Promise<void>;

const DEVICE_TIMEOUT_MS = 30_000;
const POLICING_EXTENT_BYTES = 1024 * 1024;
/** A device that has to write its zeros does so many well before it is taken for failed. */
const ZEROES_PIECE_BYTES = 16 * 1024 * 1024;

/**
 * A volume on two servers, as the clients of one of them see it. An acknowledged write is on both devices, or on one
 * and marked as missing on the other. While the volume may not serve, requests wait: cancel them by their signal.
 *
 * `discard` writes zeros where the device can do that by unmapping: what it would leave behind could differ between
 * the copies.
 *
 * Requests fail with ERR_HOLDFAST_QUEUE_FULL beyond `maxRequests`, ERR_HOLDFAST_CLOSED after `close`, and as a device's
 * do. docs/mirror.md says what happens when.
 */
export class MirroredVolume extends BaseDevice {
  readonly kind = 'mirrored';
  readonly geometry: Geometry;
  readonly volumeId: string;
  readonly memberNames: readonly [string, string];
  /** @internal */
  readonly controller: Controller;
  readonly #engine: MirrorEngine;
  readonly #applier: Applier;
  readonly #gate: Gate;
  readonly #forwarder: Forwarder;
  readonly #once: Once;
  readonly #options: MirroredVolumeOptions;
  readonly #service: MirrorService;
  readonly #maxRequests: number;
  #underWay = 0;
  /** The peer's messages about access are taken in the order in which they came. */
  #policed: Promise<void> = Promise.resolve();
  #stopping: Promise<void> | undefined;

  private constructor(options: MirroredVolumeOptions, service: MirrorService) {
    super(options.name, false);
    const { store, device } = options;
    const window = options.forwardWindow ?? 128;
    this.#options = options;
    this.#service = service;
    this.volumeId = options.volumeId;
    this.memberNames = options.memberNames;
    this.geometry = { ...device.geometry, sizeBytes: store.sizeBytes };
    this.#maxRequests = Math.min(options.maxRequests ?? MAX_REQUESTS, MAX_REQUESTS);
    this.#gate = new Gate(this.#maxRequests);
    this.#forwarder = new Forwarder(options.volumeId, window);
    this.#once = new Once(MAX_SPAN * 2);
    this.#engine = this.#newEngine();
    this.#applier = new Applier(this.#engine.own);
    this.controller = new Controller({
      environment: options.environment,
      volumeId: options.volumeId,
      volumeName: options.name,
      memberNames: options.memberNames,
      onLostPeer: options.onLostPeer,
      arbiter: arbiterOf(options),
      store,
      engine: this.#engine,
      applier: this.#applier,
      gate: this.#gate,
      startupWaitMs: startupWaitMs(options),
      resyncWindow: options.resyncWindow ?? 16,
      resyncPieceBytes: Math.max(store.grainBytes, options.resyncPieceBytes ?? 256 * 1024),
      isBlank: options.isBlank ?? (async () => false),
      onChange: (event) => options.onEvent?.(event),
    });
  }

  #newEngine(): MirrorEngine {
    const { environment, volumeId, device, store, deviceTimeoutMs = DEVICE_TIMEOUT_MS } = this.#options;
    const { clock } = environment;
    const { sizeBytes, grainBytes } = store;
    const viewNumber = () => this.controller.record.known.number;
    const onPeerFailure = (session: PeerSession, error: unknown) => this.controller.peerFailed(session, error);
    const own = new OwnCopy({
      device,
      log: store.log,
      clock,
      timeoutMs: deviceTimeoutMs,
      onFailure: (error) => void this.controller.deviceFailed(error),
    });
    const access = new Access({
      volumeId,
      self: store.member,
      sizeBytes,
      extentBytes: policingExtentBytes(this.#options),
      viewNumber,
      onPeerFailure,
    });
    return new MirrorEngine({
      volumeId,
      own,
      access,
      sizeBytes,
      grainBytes,
      clock,
      peerTimeoutMs: 2 * deviceTimeoutMs,
      viewNumber,
      takenOver: () => this.controller.takenOver,
      onPeerFailure,
    });
  }

  /** Takes up the volume with the record that the store has read. It serves as soon as it may. */
  static async open(options: MirroredVolumeOptions): Promise<MirroredVolume> {
    // Nothing may depend on the record before it stands twice: if its one good copy rots, an older one counts.
    await options.store.repair();
    const service = MirrorService.of(options.node);
    const volume = new MirroredVolume(options, service);
    service.add(volume);
    volume.controller.start(options.node.session(volume.peerName));
    return volume;
  }

  /** The name of the other member's node. */
  get peerName(): string {
    return this.memberNames[this.controller.self === 0 ? 1 : 0];
  }

  /** States of both copies, whether requests are served, what is wrong. */
  get status(): ControllerStatus {
    return this.controller.status();
  }

  /** Another member may serve the volume from this time on (own monotonic clock). */
  #isCurrent(epoch: number): boolean {
    return this.#gate.epoch === epoch && this.#options.environment.clock.nowMs() < this.controller.serveUntilMs();
  }

  // --- as a BlockDevice

  protected async performRead(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Promise<void> {
    for (const { at, end } of pieces(offset, buffer.length)) {
      const part = buffer.subarray(at - offset, end - offset);
      await this.#attempt(options?.signal, (gate) =>
        gate.mode === 'local'
          ? this.#readLocal(at, part, options?.signal)
          : this.#forwarder.read(gate.session, at, part),
      );
    }
  }

  protected performWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    const flags = { fua: options?.fua ?? false, stable: options?.stable ?? false, signal: options?.signal };
    if (isOnePiece(offset, buffer.length)) return this.#writePiece(offset, buffer, flags);
    const writes = [...pieces(offset, buffer.length)].map(({ at, end }) =>
      this.#writePiece(at, buffer.subarray(at - offset, end - offset), flags),
    );
    return allEnded(writes);
  }

  #writePiece(offset: number, data: Uint8Array, flags: WriteFlags): Promise<void> {
    return this.#attemptWrite(
      flags.signal,
      () => this.#engine.write(offset, data, flags),
      (session, write) => this.#forwarder.write(session, write, offset, stableCopy(data, flags.stable), flags.fua),
    );
  }

  protected async performFlush(options: IoOptions | undefined): Promise<void> {
    await this.#attempt(options?.signal, (gate) =>
      gate.mode === 'local' ? this.#engine.flush() : this.#forwarder.flush(gate.session),
    );
  }

  protected async performDiscard(offset: number, length: number, options: IoOptions | undefined): Promise<void> {
    await this.performWriteZeroes(offset, length, { ...options, mayUnmap: true });
  }

  protected async performWriteZeroes(
    offset: number,
    length: number,
    options: WriteZeroesOptions | undefined,
  ): Promise<void> {
    const flags = { fua: options?.fua ?? false, mayUnmap: options?.mayUnmap ?? true, signal: options?.signal };
    for (const { at, end } of pieces(offset, length, ZEROES_PIECE_BYTES)) {
      const range = { offset: at, length: end - at };
      await this.#attemptWrite(
        options?.signal,
        () => this.#engine.writeZeroes(range.offset, range.length, flags),
        (session, write) => this.#forwarder.writeZeroes(session, write, range, flags),
      );
    }
  }

  /** Ends what is under way, leaves the volume to the peer if that is in sync, and closes the device. */
  override close(): Promise<void> {
    this.#stopping ??= this.controller.stop().finally(() => this.#end());
    return this.#stopping;
  }

  /** What was forwarded has some time to end; the other member may be waiting for this one. */
  async #end(): Promise<void> {
    const { clock } = this.#options.environment;
    const timer = clock.setTimer(FORWARDED_END_MS, () => this.#forwarder.close());
    await super.close().finally(() => timer.cancel());
  }

  protected async performClose(): Promise<void> {
    this.#service.remove(this);
    await this.#options.device.close();
  }

  /** One try after the other until the gate leads to a member that executes it. */
  async #attempt(
    signal: AbortSignal | undefined,
    tryOnce: (gate: OpenGate) => Promise<void>,
    ended?: () => void,
  ): Promise<void> {
    if (this.#underWay >= this.#maxRequests) throw tooMany(this.name, this.#underWay);
    this.#underWay += 1;
    try {
      for (;;) {
        const entered = this.#gate.enter(signal);
        const gate = entered instanceof Promise ? await entered : entered;
        const { epoch } = this.#gate;
        try {
          await tryOnce(gate);
          return;
        } catch (error) {
          if (!mayTryAgain(error)) throw error;
          if (this.#gate.epoch === epoch) await this.#shortWait();
        }
      }
    } finally {
      this.#underWay -= 1;
      ended?.();
    }
  }

  #attemptWrite(
    signal: AbortSignal | undefined,
    local: () => Promise<void>,
    forward: (session: PeerSession, write: ForwardedWrite) => Promise<void>,
  ): Promise<void> {
    let write: ForwardedWrite | undefined;
    const forwarded = async (session: PeerSession) => {
      write ??= await this.#forwarder.begin();
      await forward(session, write);
    };
    return this.#attempt(
      signal,
      (gate) => {
        if (gate.mode === 'forward') return forwarded(gate.session);
        if (write !== undefined) checkSameProcess(write, undefined);
        return local();
      },
      () => {
        if (write !== undefined) this.#forwarder.end(write);
      },
    );
  }

  /** What was read while access may have moved is not given to anyone: it could be old. */
  async #readLocal(offset: number, buffer: Uint8Array, signal?: AbortSignal): Promise<void> {
    const { epoch } = this.#gate;
    await this.#engine.read(offset, buffer, signal);
    if (isPlanted('lease-not-checked-after-device')) return;
    if (!this.#isCurrent(epoch)) throw accessMoved();
  }

  #shortWait(): Promise<void> {
    return new Promise((resolve) => {
      this.#options.environment.clock.setTimer(RETRY_MS, resolve);
    });
  }

  // --- what the other member asks for; called by the service

  /** @internal */
  async peerRead(session: PeerSession, offset: number, length: number): Promise<Uint8Array> {
    this.#checkPeerRange(offset, length);
    let buffer = NOTHING;
    await this.#attemptForPeer(session, () => {
      buffer = new Uint8Array(length);
      return this.#readLocal(offset, buffer);
    });
    return buffer;
  }

  /** @internal */
  peerWrite(from: ForwardedFrom, offset: number, data: Uint8Array, fua: boolean): Promise<void> {
    this.#checkPeerRange(offset, data.length);
    return this.#executeOnce(from, () => this.#engine.write(offset, data, { fua, stable: true }));
  }

  /** @internal */
  peerWriteZeroes(from: ForwardedFrom, offset: number, length: number, fua: boolean, mayUnmap: boolean): Promise<void> {
    this.#checkPeerRange(offset, length);
    return this.#executeOnce(from, () => this.#engine.writeZeroes(offset, length, { fua, mayUnmap }));
  }

  /** @internal */
  peerFlush(session: PeerSession): Promise<void> {
    return this.#attemptForPeer(session, () => this.#engine.flush());
  }

  /** Applies what the peer's mirror engine sends, straight to the own device. @internal */
  applyWrite(origin: Origin, offset: number, length: number, action: ApplyAction): Promise<void> {
    this.#checkPeerRange(offset, length);
    return this.#follow(origin, () => this.#applier.write(offset, length, action));
  }

  /** @internal */
  applyFlush(origin: Origin): Promise<void> {
    return this.#follow(origin, () => this.#applier.flush());
  }

  /** What the peer's policing module says. @internal */
  police(origin: Origin, messages: readonly PolicingMessage[]): Promise<void> {
    const turn = this.#policed.then(async () => {
      await this.controller.settledFor(origin.session);
      this.#checkOrigin(origin);
      this.#engine.access.receive(origin.session, messages);
    });
    this.#policed = turn.catch(() => {});
    return turn;
  }

  async #follow(origin: Origin, action: () => Promise<void>): Promise<void> {
    if (this.controller.attached !== origin.session) await this.controller.settledFor(origin.session);
    this.#checkOrigin(origin);
    try {
      await action();
    } catch (error) {
      // The peer hears that this member leaves before it hears that the write failed, and need not break off.
      await this.controller.announced();
      throw error;
    }
  }

  /** Only the session that the members have met in, and no older view than the one that this member knows. */
  #checkOrigin({ session, view }: Origin): void {
    const { attached, record } = this.controller;
    if (attached !== session || !session.open || view < record.known.number) throw accessMoved();
  }

  #executeOnce(from: ForwardedFrom, local: () => Promise<void>): Promise<void> {
    const { session, request, doneBelow } = from;
    return this.#once.run(session.peer.incarnation, request, doneBelow, () => this.#attemptForPeer(session, local));
  }

  /**
   * Executes what was forwarded, here only: to forward it once more would go in circles. ERR_HOLDFAST_REFUSED means
   * that it was not executed; the forwarder tries again at its own gate.
   */
  async #attemptForPeer(session: PeerSession, local: () => Promise<void>): Promise<void> {
    for (;;) {
      const gate = await this.#gateForPeer();
      // Nobody waits for the answer any more: what counts is asked for again.
      if (gate.mode !== 'local' || !session.open) throw notHolder();
      const { epoch } = this.#gate;
      try {
        await local();
        return;
      } catch (error) {
        if (!isHoldfastError(error, 'ERR_HOLDFAST_OUT_OF_STEP')) throw error;
        if (this.#gate.epoch === epoch) await this.#shortWait();
      }
    }
  }

  async #gateForPeer(): Promise<OpenGate> {
    try {
      return await this.#gate.enter(undefined);
    } catch (cause) {
      throw notHolder(cause);
    }
  }

  #checkPeerRange(offset: number, length: number): void {
    checkRange(this.name, this.geometry.sizeBytes, offset, length);
  }
}

function arbiterOf({ onLostPeer, arbiter }: MirroredVolumeOptions): Arbiter | undefined {
  if (onLostPeer.kind !== 'majority') return undefined;
  if (arbiter === undefined) {
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'majority needs an arbiter; give one (RegisterArbiter)');
  }
  return arbiter;
}

/** An earlier process of this member may have granted a lease just before it died. */
function startupWaitMs({ node, startupWaitMs: wanted }: MirroredVolumeOptions): number {
  const waitMs = wanted ?? Math.max(5000, node.leaseMs);
  if (waitMs >= node.leaseMs) return waitMs;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `startupWaitMs is ${waitMs}, but a peer may rely on a lease for ${node.leaseMs} ms; take at least that`,
  );
}

function policingExtentBytes({ store, policingExtentBytes: wanted }: MirroredVolumeOptions): number {
  const least = 2 ** Math.ceil(Math.log2(store.sizeBytes / MAX_EXTENTS));
  const extentBytes = wanted ?? Math.max(POLICING_EXTENT_BYTES, least);
  if (Number.isSafeInteger(extentBytes) && extentBytes >= Math.max(least, 4096)) return extentBytes;
  throw new HoldfastError(
    'ERR_HOLDFAST_BAD_ARGUMENT',
    `policing extents of ${extentBytes} bytes are too small for a volume of ${store.sizeBytes} bytes; take at least ${Math.max(4096, least)}`,
  );
}

function tooMany(name: string, underWay: number): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_QUEUE_FULL',
    `${underWay} requests are under way on volume ${name}; wait for some to finish`,
  );
}

const NOTHING = new Uint8Array();

/** What is forwarded may wait for credit while its caller has long been answered by another way. */
function stableCopy(data: Uint8Array, stable: boolean): Uint8Array {
  return stable ? data : new Uint8Array(data);
}

/** Access moved between the request's arrival and its execution. */
function accessMoved(): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_OUT_OF_STEP', 'this member has no access to the volume now');
}

function notHolder(cause?: unknown): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_REFUSED', 'this member has no access to the volume', { cause });
}

const TRY_AGAIN: ReadonlySet<string> = new Set([
  'ERR_HOLDFAST_CLOSED',
  'ERR_HOLDFAST_NO_SUCH_VOLUME',
  'ERR_HOLDFAST_OUT_OF_STEP',
  'ERR_HOLDFAST_PEER_LOST',
  'ERR_HOLDFAST_REFUSED',
]);

/** `closed` is the peer's word: the own gate fails by itself. */
function mayTryAgain(error: unknown): boolean {
  return isHoldfastError(error) && TRY_AGAIN.has(error.code);
}

/** Waits for all, so that no buffer is in use any more, then fails with the first error if there was one. */
async function allEnded(requests: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(requests);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
