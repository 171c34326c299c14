/**
 * Views and lineages of a mirrored volume, and what follows from two of them meeting. All of it pure.
 *
 * A *view* says who may serve: (number, identifier, in-sync members, access holder). Each change of view makes a new
 * random identifier. A member's *data identifier* is that of the last view in which its own data was in sync, and its
 * *history* lists the ones before: the lineage of its data. Comparing two lineages says which copy is newer, as DRBD's
 * generation identifiers do (drbd_receiver.c, uuid_compare: named rules); the words of the verdict are ours.
 */
import { HoldfastError } from '../base/errors.ts';

/** Members are numbered by their place in the volume's configuration. */
export type MemberIndex = 0 | 1;

export function otherMember(member: MemberIndex): MemberIndex {
  return member === 0 ? 1 : 0;
}

/** 128 bits as 32 lower-case hexadecimal digits. */
export type ViewId = string;

export const NO_VIEW: ViewId = '0'.repeat(32);

/** Who is in sync, as it was decided once: the generation of a volume. */
export interface View {
  /** Grows by at least one with every change. */
  readonly number: number;
  /** Random: two views with one number are not the same. */
  readonly id: ViewId;
  /** Bit n: member n is in sync. Only such members may serve. */
  readonly inSync: number;
  /** The member that has access to every extent when a session begins (policing.ts). */
  readonly holder: MemberIndex;
}

/** How many earlier identifiers are kept. More changes of view than this while a member is away make it unrelated. */
export const HISTORY_LENGTH = 64;

/**
 * `created`: no data yet. `up-to-date`: all of the data identifier's view. `inconsistent`: a resync into this copy has
 * begun and not ended.
 */
export type DataState = 'created' | 'up-to-date' | 'inconsistent';

/** What a member knows durably about a volume. The order of its fields on disk is in metadata.ts. */
export interface MemberRecord {
  /** The newest view that this member has learnt of. It may leave this member out. */
  readonly known: View;
  /** The view that the own data is of. */
  readonly dataId: ViewId;
  /** Who had access in that view: if it was this member, its own bitmap matters until a resync has ended. */
  readonly dataHolder: MemberIndex;
  /** Newest first. */
  readonly history: readonly ViewId[];
  /** The last view in which both copies were equal: what the bitmap counts from. */
  readonly baseId: ViewId;
  readonly dataState: DataState;
  /** Stopped cleanly: the saved bitmap holds every difference from the peer. */
  readonly clean: boolean;
  /** When this view was entered, whole milliseconds of the wall clock: for showing to people only. 0: not known. */
  readonly sinceMs: number;
}

export const CREATED_RECORD: MemberRecord = {
  known: { number: 0, id: NO_VIEW, inSync: 0, holder: 0 },
  dataId: NO_VIEW,
  dataHolder: 0,
  history: [],
  baseId: NO_VIEW,
  dataState: 'created',
  clean: false,
  sinceMs: 0,
};

export function maskOf(...members: readonly MemberIndex[]): number {
  return members.reduce<number>((mask, member) => mask | (1 << member), 0);
}

export const BOTH = maskOf(0, 1);

export function isInSync(view: View, member: MemberIndex): boolean {
  return (view.inSync & (1 << member)) !== 0;
}

/** The member's own data is in sync in the newest view that it knows. */
export function mayServe(record: MemberRecord, self: MemberIndex): boolean {
  return record.dataState === 'up-to-date' && isInSync(record.known, self);
}

/** A view that follows `record.known`. */
export function nextView(record: MemberRecord, atLeast: number, id: ViewId, inSync: number, holder: MemberIndex): View {
  return { number: Math.max(record.known.number, atLeast) + 1, id, inSync, holder };
}

/** What an arbiter keeps of a view: `number identifier in-sync holder`. */
export function encodeView({ number, id, inSync, holder }: View): string {
  return number === 0 ? '' : `${number} ${id} ${inSync} ${holder}`;
}

/** Empty: no view yet. Throws ERR_HOLDFAST_METADATA_DAMAGED: it comes from a voter's disk. */
export function decodeView(text: string): View {
  if (text === '') return CREATED_RECORD.known;
  const [, number, id, inSync, holder] = /^([1-9][0-9]{0,14}) ([0-9a-f]{32}) ([1-3]) ([01])$/.exec(text) ?? [];
  if (number === undefined || id === undefined) {
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_DAMAGED',
      `the voters of this volume hold something that is no view (${JSON.stringify(text.slice(0, 128))}); is the identifier in use for another purpose?`,
    );
  }
  return { number: Number(number), id, inSync: Number(inSync), holder: holder === '0' ? 0 : 1 };
}

/**
 * What the view that a majority knows means to a member whose record is of another one.
 *
 * `mine`: it names this member alone, and this member's data is entitled to it: it was decided, and the process died
 * before its own record said so. `follow`: it names both, and this member is entitled to propose the next one: the peer
 * has not joined, since this member's record comes first. `older`: an operator has forced a later one here, or the
 * arbiter is new. `outdated`: others have gone on.
 */
export function compareWithDecided(
  record: MemberRecord,
  self: MemberIndex,
  decided: View,
): 'same' | 'mine' | 'follow' | 'older' | 'outdated' {
  if (decided.id === record.known.id) return 'same';
  if (decided.number < record.known.number) return 'older';
  if (!isInSync(decided, self) || !mayServe(record, self)) return 'outdated';
  return decided.inSync === maskOf(self) ? 'mine' : 'follow';
}

/** The record after this member has become part of a view as an in-sync member. */
export function enterView(record: MemberRecord, view: View, baseId: ViewId): MemberRecord {
  const before = record.dataId === NO_VIEW ? [] : [record.dataId];
  const history = [...before, ...record.history].slice(0, HISTORY_LENGTH);
  return {
    known: view,
    dataId: view.id,
    dataHolder: view.holder,
    history,
    baseId,
    dataState: 'up-to-date',
    clean: false,
    sinceMs: 0,
  };
}

/** The record after this member has learnt of a view that leaves it out. Its data, and their lineage, stay. */
export function leaveView(record: MemberRecord, view: View, dataState: DataState): MemberRecord {
  return { ...record, known: view, dataState };
}

export type Lineage = 'same' | 'mine-newer' | 'theirs-newer' | 'diverged' | 'unrelated';

export interface DataLineage {
  readonly dataId: ViewId;
  readonly history: readonly ViewId[];
}

/** Which of two copies' data descends from the other's. */
export function compareLineages(mine: DataLineage, theirs: DataLineage): Lineage {
  if (mine.dataId === theirs.dataId) return 'same';
  if (mine.history.includes(theirs.dataId)) return 'mine-newer';
  if (theirs.history.includes(mine.dataId)) return 'theirs-newer';
  return mine.history.some((id) => theirs.history.includes(id)) ? 'diverged' : 'unrelated';
}

/** What a member tells its peer when they meet. */
export interface MeetingState {
  readonly member: MemberIndex;
  readonly record: MemberRecord;
  /** The device has been shown to read as zeros everywhere. Only looked at while both are `created`. */
  readonly blank: boolean;
  /** The bitmap of this side has no grain set. */
  readonly unmarked: boolean;
  /**
   * This process has been in sync since the view was made or resumed: everything that the member has acknowledged is on
   * its device. After a restart the power may have been cut, and what was not flushed be lost.
   */
  readonly unbroken: boolean;
}

export type RefusalCode =
  | 'ERR_HOLDFAST_SPLIT_BRAIN'
  | 'ERR_HOLDFAST_UNRELATED_DATA'
  | 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY';

/** The rule that decided is named, for status, logs and the table in docs/mirror.md. */
export type MeetingVerdict =
  | { readonly kind: 'equal'; readonly rule: string }
  | {
      readonly kind: 'resync';
      readonly rule: string;
      readonly source: MemberIndex;
      readonly scope: 'nothing' | 'bitmap' | 'all';
    }
  | { readonly kind: 'refuse'; readonly rule: string; readonly code: RefusalCode };

/**
 * What two members do when they meet. Symmetric: both sides compute the same verdict from the same two states.
 * docs/mirror.md has the table; test/mirror/meeting.test.ts is the table.
 */
export function meet(one: MeetingState, other: MeetingState): MeetingVerdict {
  const [first, second] = one.member === 0 ? [one, other] : [other, one];
  const firstNew = first.record.dataId === NO_VIEW;
  const secondNew = second.record.dataId === NO_VIEW;
  if (firstNew && secondNew) return meetCreated(first, second);
  if (firstNew) return fromSource(second, 'first-is-new', scopeForNew(second, first));
  if (secondNew) return fromSource(first, 'second-is-new', scopeForNew(first, second));
  switch (compareLineages(first.record, second.record)) {
    case 'same':
      return meetSame(first, second);
    case 'mine-newer':
      return fromSource(first, 'first-newer', scopeOf(first, second));
    case 'theirs-newer':
      return fromSource(second, 'second-newer', scopeOf(second, first));
    case 'diverged':
      return { kind: 'refuse', rule: 'split-brain', code: 'ERR_HOLDFAST_SPLIT_BRAIN' };
    case 'unrelated':
      return { kind: 'refuse', rule: 'unrelated', code: 'ERR_HOLDFAST_UNRELATED_DATA' };
  }
}

function meetCreated(first: MeetingState, second: MeetingState): MeetingVerdict {
  const fresh = first.record.dataState === 'created' && second.record.dataState === 'created';
  const blank = fresh && first.blank && second.blank;
  return { kind: 'resync', rule: blank ? 'both-blank' : 'both-new', source: 0, scope: blank ? 'nothing' : 'all' };
}

/**
 * Two processes that have been a pair in this view and still live have lost nothing: what differs is only what was
 * under way when the session broke, and each sends its own once more. A copy that was stopped cleanly has lost nothing
 * either; one that was not may have had a power cut, whoever had access.
 */
function meetSame(first: MeetingState, second: MeetingState): MeetingVerdict {
  const newest = first.record.known.number >= second.record.known.number ? first.record.known : second.record.known;
  const firstGood = mayServe(first.record, 0);
  const secondGood = mayServe(second.record, 1);
  if (firstGood && secondGood) {
    if (first.unbroken && second.unbroken) return { kind: 'equal', rule: 'same-and-unbroken' };
    if (first.unmarked && second.unmarked) return { kind: 'equal', rule: 'same-and-unmarked' };
    if (first.unbroken !== second.unbroken) {
      return { kind: 'resync', rule: 'same-from-unbroken', source: first.unbroken ? 0 : 1, scope: 'bitmap' };
    }
    if (first.record.clean !== second.record.clean) {
      return { kind: 'resync', rule: 'same-from-clean', source: first.record.clean ? 0 : 1, scope: 'bitmap' };
    }
    return { kind: 'resync', rule: 'same-from-holder', source: newest.holder, scope: 'bitmap' };
  }
  if (firstGood) return fromSource(first, 'same-first-good', 'bitmap');
  if (secondGood) return fromSource(second, 'same-second-good', 'bitmap');
  return { kind: 'refuse', rule: 'none-up-to-date', code: 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY' };
}

function fromSource(source: MeetingState, rule: string, scope: 'bitmap' | 'all'): MeetingVerdict {
  if (!mayServe(source.record, source.member)) {
    return { kind: 'refuse', rule: `${rule}-but-not-up-to-date`, code: 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY' };
  }
  return { kind: 'resync', rule, source: source.member, scope };
}

/** A first sync that was broken off goes on where it was, if it came from the view that the source is still in. */
function scopeForNew(source: MeetingState, target: MeetingState): 'bitmap' | 'all' {
  const begun = target.record.dataState === 'inconsistent' && target.record.known.id === source.record.dataId;
  return begun && source.record.baseId === NO_VIEW ? 'bitmap' : 'all';
}

/** The source's bitmap counts from its base: it is of use only if the target's data is of that view. */
function scopeOf(source: MeetingState, target: MeetingState): 'bitmap' | 'all' {
  return source.record.baseId === target.record.dataId ? 'bitmap' : 'all';
}
