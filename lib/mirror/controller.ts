/**
 * The controller of one member of one volume: the driver of what view.ts and standing.ts decide. It meets the peer,
 * keeps the record durable before anything depends on it, tells the mirror engine whom to replicate to, and opens and
 * closes the gate.
 *
 * Invariants:
 * - One step at a time (steps.ts). A step that waits for the peer is abandoned when the session ends.
 * - The gate is open to the own engine only if the durable record names this member in sync and either it is alone in
 *   the view, or the peer is attached and required.
 * - A view that leaves the peer out is decided (quorum.ts) and durable here before a write is acknowledged without the
 *   peer. A view with both is decided and durable here, and writes need the peer, before the peer may count itself in
 *   sync.
 * - While the record does not say clean, the activity log names, durably, all that is marked; but for what a source has
 *   been told by its target, which the target's log names until it has joined.
 * - Steps that wait for the peer's steps: member 0's meeting for member 1's, a source's for its target's. A target
 *   waits for nobody but in `leave`, which is answered without a step. So no circle of waiting can close.
 */

import type { TimerHandle } from '../base/clock.ts';
import type { Environment } from '../base/environment.ts';
import { assert, HoldfastError, isHoldfastError } from '../base/errors.ts';
import { isPlanted } from '../base/planted-bug.ts';
import type { Arbiter } from '../peer/arbiter.ts';
import type { Message, PeerSession, Reply } from '../peer/peer.ts';
import type { Applier } from './applier.ts';
import type { MirrorEngine } from './engine.ts';
import type { Gate } from './gate.ts';
import { decodeClaims, disagreement, encodeClaims, type Problem, refusalMessage, stateOf } from './meeting.ts';
import type { MemberStore } from './member-store.ts';
import {
  adoptMethod,
  attachMethod,
  joinMethod,
  leaveMethod,
  leftMethod,
  MAX_CLAIMS,
  type Meeting,
  readyMethod,
} from './protocol.ts';
import { type Decision, Quorum } from './quorum.ts';
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
  /** With `majority`. */
  readonly arbiter: Arbiter | undefined;
  readonly store: MemberStore;
  readonly engine: MirrorEngine;
  readonly applier: Applier;
  readonly gate: Gate;
  /** At start an in-sync member waits this long for its peer before it goes on alone. At least the session lease. */
  readonly startupWaitMs: number;
  readonly resyncWindow: number;
  readonly resyncPieceBytes: number;
  /** The device reads as zeros everywhere, shown and not guessed. */
  readonly isBlank: () => Promise<boolean>;
  readonly onChange: (event: ControllerEvent) => void;
}

/**
 * What happened to a member: it met its peer, or may not join it (`rule` is a row of the table in docs/mirror.md); the
 * view changed; requests are let through, forwarded or kept waiting; a resync began or ended (`bytes` marked, or sent);
 * the session with the peer ended; the own device failed.
 */
export type ControllerEvent =
  | { readonly kind: 'met'; readonly rule: string }
  | { readonly kind: 'refused'; readonly rule: string; readonly code: string }
  | { readonly kind: 'view'; readonly view: View }
  | { readonly kind: 'gate'; readonly mode: string; readonly reason: string | undefined }
  | { readonly kind: 'resync-started'; readonly bytes: number }
  | { readonly kind: 'resync-finished'; readonly bytes: number }
  | { readonly kind: 'peer-lost' }
  | { readonly kind: 'device-failed'; readonly message: string };

/** A member as it stands now. */
export interface ControllerStatus {
  readonly role: Role;
  /** What is durable about it. */
  readonly record: MemberRecord;
  readonly ownState: CopyState;
  readonly peerState: CopyState;
  /** What becomes of requests: `local` (the own copy), `forward` (the peer's), `closed` with the reason in words. */
  readonly gate: { readonly mode: string; readonly reason: string | undefined };
  /** What may differ from the peer's copy, in whole grains. */
  readonly markedBytes: number;
  /** Of the resync under way from this member. */
  readonly resync: ResyncProgress | undefined;
  /** What keeps the volume from full health. */
  readonly problem: Problem | undefined;
}

/** A device that has failed may still take the record, within this time. */
const FAILED_WRITE_MS = 2000;
/** Parts of the wait at start: one that takes twice its time is no part of it, and the wait begins anew. */
const WAIT_PARTS = 8;
/** How long before a majority is asked for again. */
const RETRY_MAJORITY_MS = 1000;

interface MeetingMessage {
  readonly control: Meeting;
  /** Extents with writes under way. */
  readonly claims: readonly number[];
}

export class Controller {
  readonly self: MemberIndex;
  readonly #options: ControllerOptions;
  readonly #steps = new Steps();
  readonly #quorum: Quorum;
  #record: MemberRecord;
  #role: Role = 'none';
  /** The live session with the peer, met or not. */
  #session: PeerSession | undefined;
  /** The session whose data is accepted: the meeting has ended well. */
  #attached: PeerSession | undefined;
  /** The session in which the peer's server is there, but has not opened the volume. */
  #absentIn: PeerSession | undefined;
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
    this.#quorum = new Quorum(options.arbiter, this.self);
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

  /** Resolves to true when the peer has taken over for this member's failed device. */
  get takenOver(): Promise<boolean> {
    return this.#takenOver;
  }

  /** Nobody else may serve the volume before this time without this member's consent; Infinity if nobody ever may. */
  serveUntilMs(): number {
    const { inSync } = this.#record.known;
    if (inSync === maskOf(this.self)) return Number.POSITIVE_INFINITY;
    if (inSync !== BOTH) return Number.NEGATIVE_INFINITY;
    return this.#attached?.leaseHeldUntilMs() ?? Number.NEGATIVE_INFINITY;
  }

  start(session: PeerSession | undefined): void {
    const { environment, startupWaitMs, store, engine } = this.#options;
    this.#startupUntilMs = environment.clock.nowMs() + startupWaitMs;
    if (store.savedMarks !== undefined) engine.marks.mergeBytes(store.savedMarks);
    // A saved bitmap can be damaged.
    else if (this.#record.clean) engine.marks.markAll();
    else for (const { offset, length } of engine.own.log.named()) engine.marks.mark(offset, length);
    store.onVoterFailure((error) => void this.deviceFailed(asFailure(error)));
    engine.own.log.start({
      clock: environment.clock,
      isPinned: (offset, length) => engine.isPinned(offset, length),
      flushWanted: () => void engine.flush().catch(() => {}),
      onFailure: (error) => void this.deviceFailed(asFailure(error)),
    });
    if (session !== undefined) this.sessionUp(session);
    // Not waited for: a majority cannot be asked before the node has started.
    this.#background(() => this.#standAlone());
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
    this.#quorum.interrupt();
    if (this.self === 0) this.meetAgain(session);
    else this.#background(() => this.#askForMeeting(session));
  }

  /** Member 0 begins every meeting: after a new session, and when member 1 says that it is ready for one. */
  meetAgain(session: PeerSession): void {
    if (this.self !== 0 || this.#session !== session) return;
    // The peer has opened the volume anew without a word about the last time: what was agreed then is void.
    if (this.#attached !== undefined) session.close('the peer has opened the volume again');
    else {
      if (this.#absentIn === session) this.#quorum.interrupt();
      this.#background(() => this.#meetAsFirst(session));
    }
  }

  sessionDown(session: PeerSession): void {
    if (this.#session !== session) return;
    this.#session = undefined;
    this.#absentIn = undefined;
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
    if (this.#failed !== undefined) return this.#takenOver;
    this.#failed = error;
    // It stops, or has stopped: it looks at `#failed` before it says that nothing is missing.
    if (this.#stopped) return this.#takenOver;
    this.#problem = { code: 'ERR_HOLDFAST_DEVICE_FAILED', message: error.message };
    this.#closeGate('the own device has failed');
    this.#options.onChange({ kind: 'device-failed', message: error.message });
    // While it leaves or stops, the step that does so is the last one.
    if (this.#leaving) return this.#takenOver;
    this.#saidLeft = new Promise((resolve) => {
      this.#sayLeft = resolve;
    });
    this.#takenOver = this.#steps.run(() => this.#leaveFailed()).catch(() => false);
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
    const leasesEndMs = this.#leasesEndMs();
    const verdict = standAlone({
      record: this.#record,
      self: this.self,
      onLostPeer: this.#options.onLostPeer,
      leasesOver: nowMs >= leasesEndMs,
      confirmed: this.#quorum.confirmed,
    });
    if (verdict.kind === 'serve') await this.#serveAlone();
    else if (verdict.kind === 'wait') {
      // Nothing that it has under way can be sent again to a peer that goes on without it.
      if (verdict.rule === 'outdated') engine.seal();
      this.#closeGate(verdict.rule);
    } else if (verdict.kind === 'await-leases') {
      this.#closeGate(`waiting for the peer's session lease to end (${verdict.rule})`);
      this.#standAloneIn(leasesEndMs - nowMs + 1);
    }
    // With a session the peer is alive: only a meeting can settle who goes on.
    else if (this.#session === undefined || this.#absentIn === this.#session) await this.#goAlone();
  }

  /** When nothing is left that the peer may rely on, of this or of an earlier process. */
  #leasesEndMs(): number {
    return Math.max(this.#startupUntilMs, this.#leasesUntilMs);
  }

  /** After `delayMs`, or earlier: of the wait at start every part must be seen to pass. */
  #standAloneIn(delayMs: number): void {
    const { environment, startupWaitMs } = this.#options;
    const nowMs = environment.clock.nowMs();
    const partMs = startupWaitMs / WAIT_PARTS;
    const isAtStart = this.#startupUntilMs > nowMs;
    const waitMs = isAtStart ? Math.min(partMs, delayMs) : delayMs;
    this.#timer?.cancel();
    this.#timer = environment.clock.setTimer(waitMs, () => {
      const laterMs = environment.clock.nowMs();
      // A process that stood still has not waited: the peer may have what a power cut has taken from it, and be there.
      if (isAtStart && laterMs - nowMs - waitMs > partMs) this.#startupUntilMs = laterMs + startupWaitMs;
      this.#background(() => this.#standAlone());
    });
  }

  /** Makes a view of this member alone; or takes up the one that it is alone in, if a majority knows no newer one. */
  async #goAlone(): Promise<void> {
    const { applier, engine } = this.#options;
    await applier.done();
    if (isPlanted('view-written-late')) {
      engine.open();
      this.#openLocal();
    }
    const decision = await this.#decide((after) =>
      after.inSync === maskOf(this.self) && after.id === this.#record.known.id ? after : this.#nextView(after),
    );
    if (decision === undefined) return;
    if (decision.view.id !== this.#record.known.id) await this.#enter(decision.view, this.#record.baseId);
    await this.#serveAlone();
  }

  #nextView(after: View, inSync = maskOf(this.self), holder = this.self, atLeast = 0): View {
    return nextView(this.#record, Math.max(after.number, atLeast), this.#newId(), inSync, holder);
  }

  /**
   * Has a view decided. Undefined if it is not: this member is outdated then, durably, or has to wait for a majority.
   * Either way it serves nothing now, and tries again by itself.
   */
  async #decide(make: (after: View) => View): Promise<Decision | undefined> {
    return this.#ask(() => this.#quorum.decide(this.#record, make));
  }

  async #ask(question: () => Promise<Decision>): Promise<Decision | undefined> {
    try {
      const decision = await question();
      if (decision.kind === 'decided') return decision;
      await this.#beOutdated(decision.view);
    } catch (error) {
      if (isHoldfastError(error, 'ERR_HOLDFAST_NO_MAJORITY')) this.#closeGate('no-majority');
      else if (!isHoldfastError(error, 'ERR_HOLDFAST_ABORTED')) throw error;
      this.#standAloneIn(RETRY_MAJORITY_MS);
    }
    return undefined;
  }

  /** Others have gone on, as a majority knows. */
  async #beOutdated(view: View): Promise<void> {
    const { engine } = this.#options;
    this.#closeGate('outdated');
    engine.seal();
    await this.#persist(leaveView(this.#record, view, this.#record.dataState));
    this.#options.onChange({ kind: 'view', view });
  }

  async #serveAlone(): Promise<void> {
    const { engine } = this.#options;
    if (this.#record.clean) await this.#persist({ ...this.#record, clean: false });
    engine.access.beginAlone();
    engine.open();
    this.#openLocal();
  }

  /**
   * Makes this copy the good one by an operator's word. What the peer has and this copy has not is given up; if the
   * peer has gone on as well, their next meeting is a split brain.
   */
  force(acceptInconsistent: boolean): Promise<void> {
    return this.#steps.run(async () => {
      const { volumeName } = this.#options;
      if (this.#stopped) throw new HoldfastError('ERR_HOLDFAST_CLOSED', `volume ${volumeName} is closed`);
      if (this.#failed !== undefined) {
        throw new HoldfastError(
          'ERR_HOLDFAST_DEVICE_FAILED',
          'the own device has failed: this copy cannot be the good one; force the other one, or replace the device and restart this server',
        );
      }
      if (this.#attached !== undefined || this.#options.gate.state.mode === 'local') {
        throw new HoldfastError('ERR_HOLDFAST_NOT_NEEDED', 'the volume serves already; there is nothing to force');
      }
      if (this.#record.dataState === 'inconsistent' && !acceptInconsistent) {
        throw new HoldfastError(
          'ERR_HOLDFAST_INCONSISTENT',
          'this copy is in the middle of a resync: old and new blocks are mixed. Bring the peer back, or accept that with --accept-inconsistent',
        );
      }
      const { engine, applier } = this.#options;
      this.#session?.close('forced');
      engine.seal();
      await applier.done();
      await this.#leasesOver();
      await this.#enter(await this.#forcedView(), this.#record.baseId);
      this.#problem = undefined;
      this.#splitBrain = false;
      await this.#serveAlone();
    });
  }

  /** Until then the peer may answer reads from what it holds. */
  async #leasesOver(): Promise<void> {
    const { clock } = this.#options.environment;
    const waitMs = this.#leasesEndMs() - clock.nowMs();
    if (waitMs > 0) await new Promise<void>((resolve) => clock.setTimer(waitMs, resolve));
  }

  /** Decided by a majority if there is one; by the operator's word alone if there is not. */
  async #forcedView(): Promise<View> {
    const { record } = this;
    const wanted = (after: View) => this.#nextView(after);
    try {
      const decision = await this.#quorum.decide(record, wanted);
      if (decision.kind === 'decided') return decision.view;
      const forced = await this.#quorum.decide({ ...record, known: decision.view }, wanted);
      if (forced.kind === 'decided') return forced.view;
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_NO_MAJORITY')) throw error;
      return wanted(record.known);
    }
    throw new HoldfastError(
      'ERR_HOLDFAST_REFUSED',
      'another member changed the view at the same time; look at the status and force again if it is still needed',
    );
  }

  // --- meeting

  /** The volume may have been opened after the session came up: member 0 has asked in vain then. */
  async #askForMeeting(session: PeerSession): Promise<void> {
    try {
      await session.request(readyMethod, { volume: this.#options.volumeId });
    } catch (error) {
      await this.#peerAbsent(session, error);
    }
  }

  /** The peer's server runs, but has not opened the volume: as good as away, until it says that it is ready. */
  async #peerAbsent(session: PeerSession, error: unknown): Promise<void> {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_NO_SUCH_VOLUME')) throw error;
    if (!this.#isLive(session)) return;
    this.#absentIn = session;
    await this.#standAlone();
  }

  async #meetAsFirst(session: PeerSession): Promise<void> {
    if (!this.#isLive(session) || this.#attached !== undefined || this.#targetOf !== undefined) return;
    if (!(await this.#upToDate(session))) return;
    const mine = await this.#meeting();
    const answer = await this.#attachTo(session, mine);
    if (answer !== undefined) await this.#conclude(session, mine, answer);
  }

  async #attachTo(session: PeerSession, mine: MeetingMessage): Promise<MeetingMessage | undefined> {
    if (!this.#isLive(session)) return undefined;
    try {
      const { control, data } = await session.request(attachMethod, mine.control, [encodeClaims(mine.claims)]);
      this.#absentIn = undefined;
      return { control, claims: decodeClaims(data) };
    } catch (error) {
      await this.#peerAbsent(session, error);
      return undefined;
    }
  }

  /** Nothing is built on a view that may have been followed by another which this process does not know of. */
  async #upToDate(session: PeerSession): Promise<boolean> {
    if (!this.#quorum.confirmed) {
      const decision = await this.#ask(() => this.#quorum.confirm(this.#record));
      if (decision !== undefined && decision.view.id !== this.#record.known.id)
        await this.#enter(decision.view, this.#record.baseId);
      if (!this.#quorum.confirmed) this.#meetLater(session);
    }
    return this.#quorum.confirmed && this.#isLive(session);
  }

  #meetLater(session: PeerSession): void {
    this.#timer?.cancel();
    this.#timer = this.#options.environment.clock.setTimer(RETRY_MAJORITY_MS, () => {
      if (this.self === 0) this.meetAgain(session);
      else this.#background(() => this.#askForMeeting(session));
    });
  }

  /** Answers member 0's attach. The answer leaves before the verdict is carried out, in one step. */
  attach(message: Message<Meeting>, session: PeerSession): Promise<Reply<Meeting>> {
    return new Promise((resolve, reject) => {
      const step = async () => {
        if (!this.#isLive(session) || this.self !== 1) throw notNow('attach');
        if (!(await this.#upToDate(session))) throw notNow('attach');
        this.#absentIn = undefined;
        const mine = await this.#meeting();
        resolve({ control: mine.control, data: [encodeClaims(mine.claims)] });
        await this.#conclude(session, mine, { control: message.control, claims: decodeClaims(message.data) });
      };
      this.#steps.run(step).catch((error: unknown) => {
        reject(error);
        this.#abandoned(error);
      });
    });
  }

  async #meeting(): Promise<MeetingMessage> {
    const { engine, applier, store, volumeId, onLostPeer, memberNames } = this.#options;
    await applier.done();
    const claims = engine.access.claims();
    const control = {
      volume: volumeId,
      member: this.self,
      sizeBytes: store.sizeBytes,
      grainBytes: store.grainBytes,
      policingExtentBytes: engine.access.extentBytes,
      onLostPeer: onLostPeer.kind === 'preferred' ? `preferred ${memberNames[onLostPeer.member]}` : onLostPeer.kind,
      record: { ...this.#record, history: [...this.#record.history] },
      blank: this.#record.dataState === 'created' && (await this.#options.isBlank()),
      unmarked: engine.marks.isEmpty,
      unbroken: this.#unbroken && claims.length <= MAX_CLAIMS,
      failed: this.#failed !== undefined,
      changedBytes: engine.marks.dirtyBytes,
      changedAtMs: Math.max(engine.changedAtMs, this.#record.sinceMs),
    };
    return { control, claims: control.unbroken ? claims : [] };
  }

  async #conclude(session: PeerSession, my: MeetingMessage, their: MeetingMessage): Promise<void> {
    if (!this.#isLive(session)) return;
    const { control: mine } = my;
    const { control: theirs } = their;
    const problem = disagreement(mine, theirs);
    if (problem !== undefined) {
      this.#refuse(problem, 'settings');
      await this.#withoutCopy(session, mine.failed, theirs.failed);
      return;
    }
    const verdict = meet(stateOf(mine), stateOf(theirs));
    if (verdict.kind === 'refuse') {
      const message = refusalMessage(verdict, this.#options.memberNames, mine, theirs);
      this.#refuse({ code: verdict.code, message }, verdict.rule);
      if (verdict.code === 'ERR_HOLDFAST_SPLIT_BRAIN') this.#stopForSplitBrain();
      return;
    }
    this.#problem = undefined;
    this.#splitBrain = false;
    // The peer's process has met this one: it relies on no lease of an earlier one any more.
    this.#startupUntilMs = Number.NEGATIVE_INFINITY;
    this.#options.onChange({ kind: 'met', rule: verdict.rule });
    if (verdict.kind === 'equal') await this.#resume(session, my.claims, their.claims);
    else if (verdict.source === this.self) await this.#becomeSource(session, theirs.record, verdict.scope);
    else this.#becomeTarget(session);
  }

  /** One of the two has no device any more: the other goes on alone, as if it were away, and serves its clients too. */
  async #withoutCopy(session: PeerSession, mineFailed: boolean, theirsFailed: boolean): Promise<void> {
    if (mineFailed === theirsFailed) return;
    if (mineFailed) this.#openForward(session);
    else {
      this.#absentIn = session;
      await this.#standAlone();
    }
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

  async #resume(session: PeerSession, myClaims: readonly number[], theirClaims: readonly number[]): Promise<void> {
    const { engine } = this.#options;
    if (this.#record.clean) await this.#persist({ ...this.#record, clean: false });
    if (!this.#isLive(session)) return;
    engine.access.begin(session, this.#record.known.holder, myClaims, theirClaims);
    this.#attached = session;
    this.#bePaired();
    engine.reattach(session);
    this.#openLocal();
  }

  async #becomeSource(session: PeerSession, theirs: MemberRecord, scope: 'nothing' | 'bitmap' | 'all'): Promise<void> {
    const { engine, applier } = this.#options;
    await applier.done();
    if (scope === 'all') {
      engine.marks.markAll();
      await engine.own.attempt(() => engine.own.log.nameAll());
    }
    // With every grain marked the bitmap counts from any view, also from the target's.
    const baseId = scope === 'all' ? theirs.dataId : this.#record.baseId;
    const view = await this.#aloneView(theirs, baseId);
    // The target waits to adopt it: only a new meeting ends that.
    if (view === undefined) session.close('the view without the target could not be decided');
    if (view === undefined || !this.#isLive(session)) return;
    const answer = await session.request(adoptMethod, { volume: this.#options.volumeId, view, scope });
    if (view.id !== this.#record.known.id) await this.#enter(view, baseId);
    if (!this.#isLive(session)) return;
    if (answer.data.length > 0 && !isPlanted('bitmap-seeded-with-in-flight-only')) engine.marks.mergeBytes(answer.data);
    engine.access.beginAlone();
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
  async #aloneView(theirs: MemberRecord, baseId: ViewId): Promise<View | undefined> {
    const { known } = this.#record;
    const newest = known.number > theirs.known.number || known.id === theirs.known.id;
    if (known.inSync === maskOf(this.self) && newest) {
      await this.#persist({ ...this.#record, baseId, clean: false });
      return known;
    }
    const decision = await this.#decide((after) =>
      this.#nextView(after, maskOf(this.self), this.self, theirs.known.number),
    );
    if (decision === undefined) return undefined;
    if (known.inSync === maskOf(this.self)) await this.#enter(decision.view, baseId);
    return decision.view;
  }

  #becomeTarget(session: PeerSession): void {
    this.#closeGate('a resync into this copy is about to begin');
    this.#targetOf = session;
  }

  /** The target's side of `adopt`. */
  adopt(view: View, scope: 'nothing' | 'bitmap' | 'all', session: PeerSession): Promise<Reply<undefined>> {
    return this.#steps.run(async () => {
      const { engine, applier } = this.#options;
      const sound = view.inSync === maskOf(otherMember(this.self)) && view.holder === otherMember(this.self);
      const newer = view.number > this.#record.known.number || view.id === this.#record.known.id;
      if (this.#targetOf !== session || !sound || !newer || this.#leaving) throw notNow('adopt');
      // Whatever this member had under way as access holder is over: its clients are told that they must look. A read
      // can hang in the device; what it brings is given to nobody, since the gate has changed.
      engine.seal();
      await engine.changesDone();
      await applier.done();
      const dataState = scope === 'nothing' ? this.#record.dataState : 'inconsistent';
      await this.#persist({ ...leaveView(this.#record, view, dataState), clean: false });
      this.#options.onChange({ kind: 'view', view });
      if (!this.#isLive(session)) throw notNow('adopt');
      this.#targetOf = undefined;
      this.#attached = session;
      this.#role = 'target';
      this.#openForward(session);
      return { control: undefined, data: engine.marks.isEmpty ? [] : [engine.marks.toBytes()] };
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
    const decision = await this.#decide((after) => this.#nextView(after, BOTH));
    if (decision === undefined) session.close('the view with both could not be decided');
    if (decision === undefined || !this.#isLive(session)) return;
    const { view } = decision;
    await this.#enter(view, this.#record.baseId);
    if (!this.#isLive(session)) return;
    engine.access.connect(session);
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
      await this.#goAlone();
      session.close('the target has refused to join');
      return false;
    }
  }

  /** The target's side of `join`: what it has acknowledged so far is durable before it counts itself in sync. */
  join(view: View, session: PeerSession): Promise<Reply<undefined>> {
    return this.#steps.run(async () => {
      const { engine, applier } = this.#options;
      const sound = view.inSync === BOTH && view.holder !== this.self && view.number > this.#record.known.number;
      if (this.#attached !== session || this.#role !== 'target' || !sound || this.#leaving) throw notNow('join');
      await applier.flush();
      await this.#enter(view, view.id);
      engine.marks.clear();
      if (!this.#isLive(session))
        throw new HoldfastError('ERR_HOLDFAST_PEER_LOST', 'the session ended during the join');
      engine.access.begin(session, view.holder, [], []);
      engine.attach(session, true);
      this.#bePaired();
      this.#openLocal();
      return { control: undefined };
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
  left(view: View, flushed: boolean, session: PeerSession): Promise<Reply<undefined>> {
    return this.#steps.run(async () => {
      const sound = view.inSync === maskOf(this.self) && view.holder === this.self && !this.#stopped;
      if (this.#peerLeaving !== session || !sound || view.number <= this.#record.known.number) throw notNow('left');
      const { baseId } = this.#record;
      if (flushed) this.#options.engine.peerFlushed();
      this.#detach('the peer leaves');
      await this.#options.applier.done();
      await this.#enter(view, baseId);
      await this.#serveAlone();
      return { control: undefined };
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
    const decision = await this.#decide((after) => this.#nextView(after, maskOf(peer), peer, answer.control.number));
    if (decision === undefined) return false;
    const { view } = decision;
    await this.#beOut(leaveView(this.#record, view, this.#record.dataState));
    this.#refuseWrites();
    this.#sayLeft();
    // If it fails the peer goes on all the same, and marks what may be missing here.
    const flushed =
      this.#failed === undefined &&
      (await this.#flushApplied().then(
        () => true,
        () => false,
      ));
    await session.request(leftMethod, { volume: volumeId, view, flushed });
    return true;
  }

  /**
   * Durable, unless the device has failed altogether: then it is enough that this member would not go on by itself with
   * the record that it has.
   */
  async #beOut(record: MemberRecord): Promise<void> {
    if (this.#failed === undefined) return this.#persistLeaving(record);
    try {
      await this.#within(FAILED_WRITE_MS, this.#persistLeaving(record));
    } catch (error) {
      const { onLostPeer } = this.#options;
      const goesAlone =
        onLostPeer.kind === 'preferred' ? onLostPeer.member === this.self : onLostPeer.kind === 'continue';
      if (goesAlone) throw error;
      this.#record = record;
    }
  }

  #within(limitMs: number, work: Promise<void>): Promise<void> {
    return new Promise((resolve, reject) => {
      const late = () => reject(new HoldfastError('ERR_HOLDFAST_TIMEOUT', 'the device does not answer'));
      const timer = this.#options.environment.clock.setTimer(limitMs, late);
      work.then(resolve, reject).finally(() => timer.cancel());
    });
  }

  /** What this member may have changed and the peer has not confirmed is saved with the record. */
  async #persistLeaving(record: MemberRecord): Promise<void> {
    const { engine, store } = this.#options;
    engine.detach();
    if (this.#failed !== undefined) await this.#persist({ ...record, clean: false });
    else {
      const clean = { ...record, clean: true };
      await engine.own.attempt(() => store.writeClean(clean, engine.marks.toBytes()));
      this.#record = clean;
    }
  }

  /** From now on the peer's engine is told that this member does not follow. */
  #refuseWrites(): void {
    this.#attached = undefined;
    this.#role = 'none';
  }

  /** What the peer's engine was told to be written here is durable. */
  async #flushApplied(): Promise<void> {
    const { applier } = this.#options;
    await applier.done();
    await applier.flush();
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
    this.#quorum.interrupt();
    return this.#steps.run(() => this.#stop()).finally(() => this.#options.engine.own.close());
  }

  async #stop(): Promise<void> {
    const { engine, gate, store, volumeName } = this.#options;
    const left = await this.#leave().catch(() => false);
    this.#stopped = true;
    this.#leaving = true;
    this.#timer?.cancel();
    gate.shut(new HoldfastError('ERR_HOLDFAST_CLOSED', `volume ${volumeName} is closed`));
    if (left || this.#failed !== undefined) return;
    this.#resync?.stop();
    this.#resync = undefined;
    await this.#endRequests();
    engine.detach();
    engine.seal();
    this.#refuseWrites();
    await this.#flushApplied();
    // A flush that failed may have lost what it was to make durable; the next one would not say so again.
    if (this.#failed !== undefined) return;
    const clean = { ...this.#record, clean: true };
    await engine.own.attempt(() => store.writeClean(clean, engine.marks.toBytes()));
  }

  /**
   * Clients' requests under way at this member have ended and are durable. Those that wait for a peer that is gone end
   * with an error; a peer that is lost meanwhile seals the engine, and its marks then say what it lacks.
   */
  async #endRequests(): Promise<void> {
    const { engine } = this.#options;
    // Its `left` cannot be taken up any more: that step would come after this one.
    if (this.#attached === undefined || this.#peerLeaving !== undefined) engine.giveUpHeld();
    await engine.flush().catch(() => {});
    await engine.requestsDone();
    // What has ended since, too: once the record says clean, the log does not name it any more.
    if (this.#failed === undefined) await engine.own.flush().catch(() => {});
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
    const sinceMs = Math.floor(this.#options.environment.clock.wallMs());
    await this.#persist({ ...enterView(this.#record, view, baseId), sinceMs });
    this.#options.onChange({ kind: 'view', view });
  }

  async #persist(record: MemberRecord): Promise<void> {
    try {
      // From now on it is the log that tells what is marked.
      if (this.#record.clean && !record.clean) await this.#nameMarks();
      await this.#options.engine.own.attempt(() => this.#options.store.write(record));
    } catch (error) {
      const cause = asFailure(error);
      void this.deviceFailed(cause);
      throw cause;
    }
    this.#record = record;
  }

  async #nameMarks(): Promise<void> {
    const { marks, own } = this.#options.engine;
    for (let grain = marks.next(0); grain >= 0; ) {
      let end = grain + 1;
      while (end < marks.grains && marks.has(end)) end += 1;
      const offset = grain * marks.grainBytes;
      const length = Math.min(end * marks.grainBytes, marks.sizeBytes) - offset;
      await own.attempt(() => own.log.name(offset, length));
      grain = end < marks.grains ? marks.next(end) : -1;
    }
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

function asFailure(error: unknown): HoldfastError {
  return isHoldfastError(error) ? error : new HoldfastError('ERR_HOLDFAST_IO', String(error), { cause: error });
}

function notNow(method: string): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_OUT_OF_STEP',
    `${method} does not fit the state of this member; the members meet again`,
  );
}
