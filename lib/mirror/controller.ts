/**
 * The controller of one member of one volume: the driver of what view.ts and standing.ts decide. It meets the peer,
 * keeps the record durable before anything depends on it, tells the mirror engine whom to replicate to, and opens and
 * closes the gate.
 *
 * Invariants:
 * - One step at a time (steps.ts). A step that waits for the peer is abandoned when the session ends.
 * - The gate is open to the own engine only if the durable record names this member in sync and either it is alone in
 *   the view, or the peer is attached and required.
 * - A view that leaves the peer out is durable here before a write is acknowledged without the peer. A view with both
 *   is durable here, and writes need the peer, before the peer may count itself in sync.
 * - Steps that wait for the peer's steps: member 0's meeting for member 1's, a source's for its target's. A target
 *   waits for nobody but in `leave`, which is answered without a step. So no circle of waiting can close.
 */

import type { TimerHandle } from '../base/clock.ts';
import type { Environment } from '../base/environment.ts';
import { assert, HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { Message, PeerSession, Reply } from '../peer/peer.ts';
import type { MirrorEngine } from './engine.ts';
import type { Gate } from './gate.ts';
import { disagreement, type Problem, refusalMessage, stateOf } from './meeting.ts';
import type { MemberStore } from './member-store.ts';
import {
  adoptMethod,
  attachMethod,
  joinMethod,
  leaveMethod,
  leftMethod,
  type Meeting,
  readyMethod,
} from './protocol.ts';
import { Resync, type ResyncProgress } from './resync.ts';
import { type CopyState, type OnLostPeer, ownCopyState, standAlone } from './standing.ts';
import { Steps } from './steps.ts';
import {
  BOTH,
  enterView,
  isInSync,
  leaveView,
  type MemberIndex,
  type MemberRecord,
  maskOf,
  meet,
  NO_VIEW,
  nextView,
  otherMember,
  type View,
  type ViewId,
} from './view.ts';

/** What this member is to its peer in the session under way. */
export type Role = 'none' | 'paired' | 'source' | 'target';

export interface ControllerOptions {
  readonly environment: Environment;
  readonly volumeId: string;
  readonly volumeName: string;
  readonly memberNames: readonly [string, string];
  readonly onLostPeer: OnLostPeer;
  readonly store: MemberStore;
  readonly engine: MirrorEngine;
  readonly gate: Gate;
  /** At start an in-sync member waits this long for its peer before it goes on alone. At least the session lease. */
  readonly startupWaitMs: number;
  readonly resyncWindow: number;
  readonly resyncPieceBytes: number;
  /** The device reads as zeros everywhere, shown and not guessed. */
  readonly isBlank: () => Promise<boolean>;
  readonly onChange: (event: ControllerEvent) => void;
}

export type ControllerEvent =
  | { readonly kind: 'met'; readonly rule: string }
  | { readonly kind: 'refused'; readonly rule: string; readonly code: string }
  | { readonly kind: 'view'; readonly view: View }
  | { readonly kind: 'gate'; readonly mode: string; readonly reason: string | undefined }
  | { readonly kind: 'resync-started'; readonly bytes: number }
  | { readonly kind: 'resync-finished'; readonly bytes: number }
  | { readonly kind: 'peer-lost' }
  | { readonly kind: 'device-failed'; readonly message: string };

export interface ControllerStatus {
  readonly role: Role;
  readonly record: MemberRecord;
  readonly ownState: CopyState;
  readonly peerState: CopyState;
  readonly gate: { readonly mode: string; readonly reason: string | undefined };
  readonly markedBytes: number;
  readonly resync: ResyncProgress | undefined;
  readonly problem: Problem | undefined;
}

export class Controller {
  readonly self: MemberIndex;
  readonly #options: ControllerOptions;
  readonly #steps = new Steps();
  #record: MemberRecord;
  #role: Role = 'none';
  /** The live session with the peer, met or not. */
  #session: PeerSession | undefined;
  /** The session whose data is accepted: the meeting has ended well. */
  #attached: PeerSession | undefined;
  /** This member is the target of the verdict that was reached in this session. */
  #targetOf: PeerSession | undefined;
  #peerLeaving: PeerSession | undefined;
  /** A view with both is being made durable: whether the disk has it already is not known. */
  #joining = false;
  #leaving = false;
  #stopped = false;
  #failed: HoldfastError | undefined;
  #takenOver: Promise<boolean> = Promise.resolve(false);
  #saidLeft: Promise<void> = Promise.resolve();
  #sayLeft: () => void = () => {};
  #problem: Problem | undefined;
  #resync: Resync | undefined;
  #lastResync: ResyncProgress | undefined;
  /** This process has been one of a pair in the view that it knows. */
  #unbroken = false;
  /** Seen once, both stop until an operator has chosen. */
  #splitBrain = false;
  /** Until then an earlier process of this member may have granted a lease, and the peer may turn up. */
  #startupUntilMs = Number.NEGATIVE_INFINITY;
  /** Until then the peer may rely on a lease that it was granted in a session that has ended. */
  #leasesUntilMs = Number.NEGATIVE_INFINITY;
  #timer: TimerHandle | undefined;

  constructor(options: ControllerOptions) {
    this.#options = options;
    this.self = options.store.member;
    this.#record = options.store.record;
  }

  get record(): MemberRecord {
    return this.#record;
  }

  get role(): Role {
    return this.#role;
  }

  get attached(): PeerSession | undefined {
    return this.#attached;
  }

  /** Nobody else may serve the volume before this time without this member's consent; Infinity if nobody ever may. */
  serveUntilMs(): number {
    const { inSync } = this.#record.known;
    if (inSync === maskOf(this.self)) return Number.POSITIVE_INFINITY;
    if (inSync !== BOTH) return Number.NEGATIVE_INFINITY;
    return this.#attached?.leaseHeldUntilMs() ?? Number.NEGATIVE_INFINITY;
  }

  start(session: PeerSession | undefined): Promise<void> {
    const { environment, startupWaitMs, store, engine } = this.#options;
    this.#startupUntilMs = environment.clock.nowMs() + startupWaitMs;
    if (store.savedMarks !== undefined) engine.marks.mergeBytes(store.savedMarks);
    else if (this.#marksAreLost()) engine.marks.markAll();
    if (session !== undefined) this.sessionUp(session);
    return this.#steps.run(() => this.#standAlone());
  }

  /**
   * A member that had access and did not stop cleanly had its differences in memory, until a resync has ended; and a
   * saved bitmap can be damaged.
   */
  #marksAreLost(): boolean {
    const { dataId, dataHolder, clean } = this.#record;
    return clean || (dataId !== NO_VIEW && dataHolder === this.self);
  }

  status(): ControllerStatus {
    const { state } = this.#options.gate;
    return {
      role: this.#role,
      record: this.#record,
      ownState: this.#failed ? 'Failed' : ownCopyState(this.#record, this.self, this.#attached !== undefined),
      peerState: this.#peerState(),
      gate: { mode: state.mode, reason: state.mode === 'closed' ? state.reason : undefined },
      markedBytes: this.#options.engine.marks.dirtyBytes,
      resync: this.#resync?.progress() ?? this.#lastResync,
      problem: this.#problem,
    };
  }

  #peerState(): CopyState {
    if (this.#role === 'paired') return 'UpToDate';
    if (this.#role === 'source') return 'Inconsistent';
    if (this.#role === 'target') return 'UpToDate';
    if (this.#record.known.number === 0) return 'DUnknown';
    return isInSync(this.#record.known, otherMember(this.self)) ? 'DUnknown' : 'Outdated';
  }

  // --- sessions

  sessionUp(session: PeerSession): void {
    if (this.#session !== undefined) this.sessionDown(this.#session);
    this.#session = session;
    if (this.self === 0) this.meetAgain(session);
    else this.#background(() => this.#askForMeeting(session));
  }

  /** Member 0 begins every meeting: after a new session, and when member 1 says that it is ready for one. */
  meetAgain(session: PeerSession): void {
    if (this.self === 0 && this.#attached === undefined) this.#background(() => this.#meetAsFirst(session));
  }

  sessionDown(session: PeerSession): void {
    if (this.#session !== session) return;
    this.#session = undefined;
    this.#leasesUntilMs = Math.max(this.#leasesUntilMs, session.leaseGrantedUntilMs());
    this.#detach('the link to the peer is lost');
    this.#options.onChange({ kind: 'peer-lost' });
    this.#background(() => this.#standAlone());
  }

  /** A request to the peer failed although its session lives: its copy no longer follows. A new meeting will mend it. */
  peerFailed(session: PeerSession, error: unknown): void {
    if (this.#attached !== session) return;
    if (this.#peerLeaving === session) {
      // It refuses writes since it has made durable that it leaves; `left` is on its way.
      this.#closeGate('the peer leaves');
      this.#options.engine.detach();
      if (this.#leaving) this.#options.engine.seal();
      return;
    }
    this.#detach('the peer could not execute a write');
    session.close(`a mirrored request failed: ${String(error)}`);
  }

  /** Resolves to true when the peer has taken over: what it has confirmed is then durable without this device. */
  deviceFailed(error: HoldfastError): Promise<boolean> {
    if (this.#failed !== undefined || this.#stopped) return this.#takenOver;
    this.#failed = error;
    this.#saidLeft = new Promise((resolve) => {
      this.#sayLeft = resolve;
    });
    this.#problem = { code: 'ERR_HOLDFAST_DEVICE_FAILED', message: error.message };
    this.#closeGate('the own device has failed');
    this.#options.onChange({ kind: 'device-failed', message: error.message });
    // While it leaves or stops, the step that does so is the last one.
    if (!this.#leaving) this.#takenOver = this.#steps.run(() => this.#leaveFailed()).catch(() => false);
    return this.#takenOver;
  }

  #detach(reason: string): void {
    this.#resync?.stop();
    this.#lastResync = undefined;
    this.#resync = undefined;
    this.#options.engine.detach();
    // While this member stops, no later step would decide about the writes that are held.
    if (this.#leaving) this.#options.engine.seal();
    this.#attached = undefined;
    this.#targetOf = undefined;
    this.#peerLeaving = undefined;
    const aloneInView = this.#record.known.inSync === maskOf(this.self) && !this.#joining;
    if (!(aloneInView && this.#options.gate.state.mode === 'local')) this.#closeGate(reason);
    this.#joining = false;
    this.#role = 'none';
  }

  // --- alone

  async #standAlone(): Promise<void> {
    const engaged = this.#attached !== undefined || this.#targetOf !== undefined;
    if (this.#stopped || this.#failed !== undefined || this.#splitBrain || engaged) return;
    const { environment, engine } = this.#options;
    this.#timer?.cancel();
    const nowMs = environment.clock.nowMs();
    // Only an access holder relies on a lease.
    const leasesUntilMs = this.#record.known.holder === this.self ? this.#startupUntilMs : this.#aloneFromMs();
    const verdict = standAlone({
      record: this.#record,
      self: this.self,
      onLostPeer: this.#options.onLostPeer,
      leasesOver: nowMs >= leasesUntilMs,
    });
    // With a session the peer is alive: only a meeting can settle who goes on.
    if (verdict.kind === 'serve') await this.#serveAlone();
    else if (verdict.kind === 'go-alone' && this.#session === undefined) {
      await engine.appliesDone();
      await this.#enter(nextView(this.#record, 0, this.#newId(), maskOf(this.self), this.self), this.#record.baseId);
      await this.#serveAlone();
    } else if (verdict.kind === 'await-leases') {
      this.#closeGate(`waiting for the peer's session lease to end (${verdict.rule})`);
      const again = () => this.#background(() => this.#standAlone());
      this.#timer = environment.clock.setTimer(leasesUntilMs - nowMs + 1, again);
    } else this.#closeGate(verdict.rule);
  }

  #aloneFromMs(): number {
    return Math.max(this.#startupUntilMs, this.#leasesUntilMs);
  }

  async #serveAlone(): Promise<void> {
    if (this.#record.clean) await this.#persist({ ...this.#record, clean: false });
    this.#options.engine.open();
    this.#openLocal();
  }

  /**
   * Makes this copy the good one by an operator's word. What the peer has and this copy has not is given up; if the
   * peer has gone on as well, their next meeting is a split brain.
   */
  force(acceptInconsistent: boolean): Promise<void> {
    return this.#steps.run(async () => {
      if (this.#attached !== undefined || this.#options.gate.state.mode === 'local') {
        throw new HoldfastError('ERR_HOLDFAST_NOT_NEEDED', 'the volume serves already; there is nothing to force');
      }
      if (this.#record.dataState === 'inconsistent' && !acceptInconsistent) {
        throw new HoldfastError(
          'ERR_HOLDFAST_INCONSISTENT',
          'this copy is in the middle of a resync: old and new blocks are mixed. Bring the peer back, or accept that with --accept-inconsistent',
        );
      }
      const { engine } = this.#options;
      this.#session?.close('forced');
      engine.seal();
      await engine.appliesDone();
      await this.#enter(nextView(this.#record, 0, this.#newId(), maskOf(this.self), this.self), this.#record.baseId);
      this.#problem = undefined;
      this.#splitBrain = false;
      await this.#serveAlone();
    });
  }

  // --- meeting

  /** The volume may have been opened after the session came up: member 0 has asked in vain then. */
  async #askForMeeting(session: PeerSession): Promise<void> {
    await session.request(readyMethod, { volume: this.#options.volumeId });
  }

  async #meetAsFirst(session: PeerSession): Promise<void> {
    if (!this.#isLive(session) || this.#attached !== undefined || this.#targetOf !== undefined) return;
    const mine = await this.#meeting();
    if (!this.#isLive(session)) return;
    const answer = await session.request(attachMethod, mine);
    await this.#conclude(session, mine, answer.control);
  }

  /** Answers member 0's attach. The answer leaves before the verdict is carried out, in one step. */
  attach(message: Message<Meeting>, session: PeerSession): Promise<Reply<Meeting>> {
    return new Promise((resolve, reject) => {
      const step = async () => {
        if (!this.#isLive(session) || this.self !== 1) throw notNow('attach');
        const mine = await this.#meeting();
        resolve({ control: mine });
        await this.#conclude(session, mine, message.control);
      };
      this.#steps.run(step).catch((error: unknown) => {
        reject(error);
        this.#abandoned(error);
      });
    });
  }

  async #meeting(): Promise<Meeting> {
    const { engine, store, volumeId, onLostPeer, memberNames } = this.#options;
    await engine.appliesDone();
    return {
      volume: volumeId,
      member: this.self,
      sizeBytes: store.sizeBytes,
      grainBytes: store.grainBytes,
      onLostPeer: onLostPeer.kind === 'suspend' ? 'suspend' : `preferred ${memberNames[onLostPeer.member]}`,
      record: { ...this.#record, history: [...this.#record.history] },
      blank: this.#record.dataState === 'created' && (await this.#options.isBlank()),
      unmarked: engine.marks.isEmpty,
      unbroken: this.#unbroken,
      failed: this.#failed !== undefined,
    };
  }

  async #conclude(session: PeerSession, mine: Meeting, theirs: Meeting): Promise<void> {
    if (!this.#isLive(session)) return;
    const problem = disagreement(mine, theirs);
    if (problem !== undefined) {
      this.#refuse(problem, 'settings');
      return;
    }
    const verdict = meet(stateOf(mine), stateOf(theirs));
    if (verdict.kind === 'refuse') {
      this.#refuse({ code: verdict.code, message: refusalMessage(verdict) }, verdict.rule);
      if (verdict.code === 'ERR_HOLDFAST_SPLIT_BRAIN') this.#stopForSplitBrain();
      return;
    }
    this.#problem = undefined;
    this.#splitBrain = false;
    // The peer's process has met this one: it relies on no lease of an earlier one any more.
    this.#startupUntilMs = Number.NEGATIVE_INFINITY;
    this.#options.onChange({ kind: 'met', rule: verdict.rule });
    if (verdict.kind === 'equal') await this.#resume(session);
    else if (verdict.source === this.self) await this.#becomeSource(session, theirs.record, verdict.scope);
    else this.#becomeTarget(session);
  }

  #stopForSplitBrain(): void {
    this.#splitBrain = true;
    this.#closeGate('split brain');
    this.#options.engine.seal();
  }

  #refuse(problem: Problem, rule: string): void {
    this.#problem = problem;
    this.#options.onChange({ kind: 'refused', rule, code: problem.code });
  }

  async #resume(session: PeerSession): Promise<void> {
    const { engine } = this.#options;
    const holds = this.#record.known.holder === this.self;
    if (holds && this.#record.clean) await this.#persist({ ...this.#record, clean: false });
    if (!this.#isLive(session)) return;
    this.#attached = session;
    this.#bePaired();
    if (holds) {
      engine.open();
      engine.attach(session, true);
      this.#openLocal();
    } else this.#openForward(session);
  }

  async #becomeSource(session: PeerSession, theirs: MemberRecord, scope: 'nothing' | 'bitmap' | 'all'): Promise<void> {
    const { engine } = this.#options;
    if (scope === 'all') engine.marks.markAll();
    await engine.appliesDone();
    // With every grain marked the bitmap counts from any view, also from the target's.
    const baseId = scope === 'all' ? theirs.dataId : this.#record.baseId;
    const view = await this.#aloneView(theirs, baseId);
    if (!this.#isLive(session)) return;
    const answer = await session.request(adoptMethod, { volume: this.#options.volumeId, view, scope });
    if (view.id !== this.#record.known.id) await this.#enter(view, baseId);
    if (!this.#isLive(session)) return;
    if (answer.data.length > 0) engine.marks.mergeBytes(answer.data);
    this.#attached = session;
    this.#role = 'source';
    engine.open();
    engine.attach(session, false);
    this.#openLocal();
    this.#startResync(session);
  }

  /**
   * The view without the target in which this source serves. If it is not alone in its view yet, the target has to
   * make the new one durable first: else it could go on by itself, too.
   */
  async #aloneView(theirs: MemberRecord, baseId: ViewId): Promise<View> {
    const { known } = this.#record;
    const view = nextView(this.#record, theirs.known.number, this.#newId(), maskOf(this.self), this.self);
    if (known.inSync !== maskOf(this.self)) return view;
    const newest = known.number > theirs.known.number || known.id === theirs.known.id;
    if (newest) await this.#persist({ ...this.#record, baseId, clean: false });
    else await this.#enter(view, baseId);
    return this.#record.known;
  }

  #becomeTarget(session: PeerSession): void {
    this.#closeGate('a resync into this copy is about to begin');
    this.#targetOf = session;
  }

  /** The target's side of `adopt`. */
  adopt(view: View, scope: 'nothing' | 'bitmap' | 'all', session: PeerSession): Promise<Reply<Record<string, never>>> {
    return this.#steps.run(async () => {
      const { engine } = this.#options;
      const sound = view.inSync === maskOf(otherMember(this.self)) && view.holder === otherMember(this.self);
      const newer = view.number > this.#record.known.number || view.id === this.#record.known.id;
      if (this.#targetOf !== session || !sound || !newer || this.#leaving) throw notNow('adopt');
      // Whatever this member had under way as access holder is over: its clients are told that they must look.
      engine.seal();
      await engine.requestsDone();
      await engine.appliesDone();
      const dataState = scope === 'nothing' ? this.#record.dataState : 'inconsistent';
      await this.#persist(leaveView(this.#record, view, dataState));
      this.#options.onChange({ kind: 'view', view });
      if (!this.#isLive(session)) throw notNow('adopt');
      this.#targetOf = undefined;
      this.#attached = session;
      this.#role = 'target';
      this.#openForward(session);
      return { control: {}, data: engine.marks.isEmpty ? [] : [engine.marks.toBytes()] };
    });
  }

  // --- resync, at the source

  #bePaired(): void {
    this.#role = 'paired';
    this.#unbroken = true;
  }

  #startResync(session: PeerSession): void {
    const { engine, environment, resyncWindow, resyncPieceBytes } = this.#options;
    const resync = new Resync({
      engine,
      session,
      clock: environment.clock,
      window: resyncWindow,
      pieceBytes: resyncPieceBytes,
    });
    this.#resync = resync;
    this.#options.onChange({ kind: 'resync-started', bytes: engine.marks.dirtyBytes });
    resync.run().then(
      () => this.#background(() => this.#join(session, resync)),
      (error: unknown) => {
        if (this.#resync === resync) this.peerFailed(session, error);
      },
    );
  }

  async #join(session: PeerSession, resync: Resync): Promise<void> {
    const { engine } = this.#options;
    if (!this.#isLive(session) || this.#resync !== resync || this.#role !== 'source') return;
    assert(engine.marks.isEmpty, 'while the target follows, a finished resync leaves nothing marked');
    engine.require();
    this.#joining = true;
    const view = nextView(this.#record, 0, this.#newId(), BOTH, this.self);
    await this.#enter(view, this.#record.baseId);
    if (!this.#isLive(session)) return;
    const joined = await this.#askToJoin(session, view);
    if (!joined || !this.#isLive(session)) return;
    this.#joining = false;
    this.#bePaired();
    this.#lastResync = resync.progress();
    this.#resync = undefined;
    this.#options.onChange({ kind: 'resync-finished', bytes: this.#lastResync.doneBytes });
    await this.#persist({ ...this.#record, baseId: view.id });
  }

  /** False if the target has refused: it has not made the view durable and will not, so that this member is alone. */
  async #askToJoin(session: PeerSession, view: View): Promise<boolean> {
    try {
      await session.request(joinMethod, { volume: this.#options.volumeId, view });
      return true;
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_OUT_OF_STEP')) throw error;
      this.#detach('the target has refused to join');
      await this.#enter(nextView(this.#record, 0, this.#newId(), maskOf(this.self), this.self), this.#record.baseId);
      await this.#serveAlone();
      session.close('the target has refused to join');
      return false;
    }
  }

  /** The target's side of `join`: what it has acknowledged so far is durable before it counts itself in sync. */
  join(view: View, session: PeerSession): Promise<Reply<Record<string, never>>> {
    return this.#steps.run(async () => {
      const { engine } = this.#options;
      const sound = view.inSync === BOTH && view.holder !== this.self && view.number > this.#record.known.number;
      if (this.#attached !== session || this.#role !== 'target' || !sound || this.#leaving) throw notNow('join');
      await engine.apply((device) => device.flush());
      await this.#enter(view, view.id);
      engine.marks.clear();
      if (!this.#isLive(session))
        throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'the session ended during the join');
      this.#bePaired();
      return { control: {} };
    });
  }

  // --- leaving in order

  /** The peer asks whether it may leave. Answered at once: a step could be waiting for the peer. */
  leaveAsked(session: PeerSession): Reply<{ granted: boolean; number: number }> {
    const granted = this.#attached === session && this.#role === 'paired' && !this.#leaving;
    if (granted) this.#peerLeaving = session;
    return { control: { granted, number: this.#record.known.number } };
  }

  /** The peer has left, durably: this member goes on alone. */
  left(view: View, flushed: boolean, session: PeerSession): Promise<Reply<Record<string, never>>> {
    return this.#steps.run(async () => {
      const sound = view.inSync === maskOf(this.self) && view.holder === this.self && !this.#stopped;
      if (this.#peerLeaving !== session || !sound || view.number <= this.#record.known.number) throw notNow('left');
      const { baseId } = this.#record;
      if (flushed) this.#options.engine.peerFlushed();
      this.#detach('the peer leaves');
      await this.#options.engine.appliesDone();
      await this.#enter(view, baseId);
      await this.#serveAlone();
      return { control: {} };
    });
  }

  /** Leaves the volume to the peer, if it is in sync and agrees. True if it goes on. */
  async #leave(): Promise<boolean> {
    const session = this.#attached;
    const { volumeId } = this.#options;
    if (session === undefined || this.#role !== 'paired') return false;
    this.#leaving = true;
    const answer = await session.request(leaveMethod, { volume: volumeId });
    if (!answer.control.granted || !this.#isLive(session)) return false;
    this.#closeGate('this member leaves');
    if (this.#failed === undefined) await this.#endRequests();
    if (!this.#isLive(session)) return false;
    const peer = otherMember(this.self);
    const view = nextView(this.#record, answer.control.number, this.#newId(), maskOf(peer), peer);
    await this.#persistLeaving(leaveView(this.#record, view, this.#record.dataState));
    this.#refuseWrites();
    this.#sayLeft();
    const flushed = this.#failed === undefined && (await this.#flushApplied());
    await session.request(leftMethod, { volume: volumeId, view, flushed });
    return true;
  }

  /** What this member may have changed and the peer has not confirmed is saved with the record. */
  async #persistLeaving(record: MemberRecord): Promise<void> {
    const { engine, store } = this.#options;
    engine.detach();
    if (this.#failed !== undefined) await this.#persist({ ...record, clean: false });
    else {
      const clean = { ...record, clean: true };
      await store.writeClean(clean, engine.marks.toBytes());
      this.#record = clean;
    }
  }

  /** From now on the peer's engine is told that this member does not follow. */
  #refuseWrites(): void {
    this.#attached = undefined;
    this.#role = 'none';
  }

  /** What the peer's engine was told to be written here is durable. */
  async #flushApplied(): Promise<boolean> {
    const { engine } = this.#options;
    await engine.appliesDone();
    await engine.device.flush();
    return true;
  }

  async #leaveFailed(): Promise<boolean> {
    const session = this.#attached;
    const left = await this.#leave().catch(() => false);
    this.#options.engine.seal();
    this.#sayLeft();
    if (left && session !== undefined) this.#openForward(session);
    else session?.close('the own device has failed');
    return left;
  }

  /**
   * Waits until it is settled whether this member accepts writes in the session: the peer can be ahead, and its first
   * write overtake the end of the meeting here. While it leaves it does not wait: the peer may be waiting for the write.
   */
  async settledFor(session: PeerSession): Promise<void> {
    if (this.#attached !== session && !this.#leaving) await this.#steps.run(async () => {});
  }

  /** Resolves when the peer has been told, if it can be, that this member leaves for its failed device. */
  async announced(): Promise<void> {
    await this.#saidLeft;
  }

  /**
   * Stops in order. If the peer is in sync it goes on; else the differences are saved, so that the next start needs no
   * full copy. Requests under way end first; those that wait fail with ERR_HOLDFAST_CLOSED.
   */
  stop(): Promise<void> {
    return this.#steps.run(async () => {
      const { engine, gate } = this.#options;
      this.#timer?.cancel();
      const left = await this.#leave().catch(() => false);
      this.#stopped = true;
      this.#leaving = true;
      gate.shut(new HoldfastError('ERR_HOLDFAST_CLOSED', `volume ${this.#options.volumeName} is closed`));
      if (left || this.#failed !== undefined) return;
      this.#resync?.stop();
      this.#resync = undefined;
      await this.#endRequests();
      engine.detach();
      engine.seal();
      this.#refuseWrites();
      await this.#flushApplied();
      await this.#options.store.writeClean({ ...this.#record, clean: true }, engine.marks.toBytes());
    });
  }

  /**
   * Clients' requests under way at this member have ended and are durable. Those that wait for a peer that is gone end
   * with an error; a peer that is lost meanwhile seals the engine, and its marks then say what it lacks.
   */
  async #endRequests(): Promise<void> {
    const { engine } = this.#options;
    if (this.#attached === undefined) engine.giveUpHeld();
    if (this.#record.known.holder === this.self) await engine.flush().catch(() => {});
    await engine.requestsDone();
  }

  // --- pieces

  #openLocal(): void {
    if (this.#stopped || this.#failed !== undefined || this.#options.gate.state.mode === 'local') return;
    this.#options.gate.set({ mode: 'local' });
    this.#options.onChange({ kind: 'gate', mode: 'local', reason: undefined });
  }

  #openForward(session: PeerSession): void {
    if (this.#stopped) return;
    this.#options.gate.set({ mode: 'forward', session });
    this.#options.onChange({ kind: 'gate', mode: 'forward', reason: undefined });
  }

  #closeGate(reason: string): void {
    const { gate } = this.#options;
    if (gate.state.mode === 'closed' && gate.state.reason === reason) return;
    gate.set({ mode: 'closed', reason });
    this.#options.onChange({ kind: 'gate', mode: 'closed', reason });
  }

  async #enter(view: View, baseId: ViewId): Promise<void> {
    await this.#persist(enterView(this.#record, view, baseId));
    this.#options.onChange({ kind: 'view', view });
  }

  async #persist(record: MemberRecord): Promise<void> {
    try {
      await this.#options.store.write(record);
    } catch (error) {
      const cause = isHoldfastError(error)
        ? error
        : new HoldfastError('ERR_HOLDFAST_IO', String(error), { cause: error });
      void this.deviceFailed(cause);
      throw cause;
    }
    this.#record = record;
  }

  #newId(): ViewId {
    const bytes = new Uint8Array(16);
    this.#options.environment.random.fill(bytes);
    return Buffer.from(bytes).toString('hex');
  }

  #isLive(session: PeerSession): boolean {
    return this.#session === session && session.open && !this.#stopped;
  }

  #background(step: () => Promise<void>): void {
    this.#steps.run(step).catch((error: unknown) => this.#abandoned(error));
  }

  /** A step ended early. A lost session has a step of its own; anything else ends the session, for a new meeting. */
  #abandoned(error: unknown): void {
    if (isHoldfastError(error, 'ERR_HOLDFAST_PEER_LOST') || this.#stopped) return;
    // It will say when it is ready.
    if (isHoldfastError(error, 'ERR_HOLDFAST_NO_SUCH_VOLUME')) return;
    this.#problem = { code: isHoldfastError(error) ? error.code : 'ERR_HOLDFAST_INTERNAL', message: String(error) };
    this.#session?.close(`a step failed: ${String(error)}`);
  }
}

function notNow(method: string): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_OUT_OF_STEP',
    `${method} does not fit the state of this member; the members meet again`,
  );
}
