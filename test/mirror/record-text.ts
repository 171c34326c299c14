/** Reads the records of docs/mirror.md's tables. */
import { readFileSync } from 'node:fs';
import type { DataState, MeetingState, MemberIndex, MemberRecord } from '../../lib/mirror/view.ts';
import { NO_VIEW } from '../../lib/mirror/view.ts';

export function viewId(name: string): string {
  const number = Number(name.slice(1));
  return number === 0 ? NO_VIEW : number.toString(16).padStart(32, 'a');
}

export function parseState(text: string, member: MemberIndex): MeetingState {
  const has = (word: string) => text.includes(word);
  const after = (word: string) => new RegExp(`${word} (\\S+)`).exec(text)?.[1];
  return {
    member,
    record: parseRecord(text, has, after),
    blank: has('blank'),
    unmarked: !has('marked'),
    unbroken: has('unbroken'),
  };
}

function parseRecord(
  text: string,
  has: (word: string) => boolean,
  after: (word: string) => string | undefined,
): MemberRecord {
  const view = /^v(\d+)\{([AB]*)\}/.exec(text);
  const dataState: DataState = has('created') ? 'created' : has('inconsistent') ? 'inconsistent' : 'up-to-date';
  const number = Number(view?.[1] ?? 0);
  const inSync = (view?.[2]?.includes('A') ? 1 : 0) + (view?.[2]?.includes('B') ? 2 : 0);
  return {
    known: { number, id: viewId(`v${number}`), inSync, holder: has('access B') ? 1 : 0 },
    dataId: viewId(after('data') ?? `v${number}`),
    dataHolder: 0,
    history: (after('past') ?? '').split(',').filter(Boolean).map(viewId),
    baseId: viewId(after('base') ?? `v${number}`),
    dataState,
    clean: has('clean'),
    sinceMs: 0,
  };
}

/** The rows of the table under a heading of docs/mirror.md, cells without back-quotes. */
export function tableUnder(heading: string): string[][] {
  const text = readFileSync(new URL('../../docs/mirror.md', import.meta.url), 'utf8');
  const section = text.split(`## ${heading}\n`)[1]!.split('\n## ')[0]!;
  const rows = section.split('\n').filter((line) => line.startsWith('|'));
  return rows.slice(2).map((row) =>
    row
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim().replaceAll('`', '')),
  );
}
