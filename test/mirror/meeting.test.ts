import { describe, expect, test } from 'vitest';
import { type MeetingVerdict, meet } from '../../lib/mirror/view.ts';
import { parseState, tableUnder } from './record-text.ts';

const rows = tableUnder('Two members that meet');

function inWords(verdict: MeetingVerdict): string {
  if (verdict.kind === 'refuse') return 'refused';
  if (verdict.kind === 'equal') return 'equal';
  return `${verdict.source === 0 ? 'A → B' : 'B → A'}, ${verdict.scope}`;
}

const swapped = (text: string) => text.replace(/[AB]/g, (name) => (name === 'A' ? 'B' : 'A'));
/** The same record with the names exchanged: access is spelt out, since A's is the default. */
function mirrored(text: string): string {
  return text.includes('access B') ? swapped(text).replace(' access A', '') : `${swapped(text)} access B`;
}

describe('two members that meet (docs/mirror.md)', () => {
  test('the table is there', () => expect(rows.length).toBeGreaterThan(25));

  test.each(rows)('%s and %s: %s (%s)', (first, second, expected, rule) => {
    const verdict = meet(parseState(first!, 0), parseState(second!, 1));
    expect(inWords(verdict)).toBe(expected);
    expect(verdict.rule).toBe(rule);
  });

  test.each(rows)('%s and %s: both sides come to the same verdict', (first, second) => {
    const one = parseState(first!, 0);
    const other = parseState(second!, 1);
    expect(meet(other, one)).toEqual(meet(one, other));
  });

  test.each(rows.filter(([first, second]) => !(first!.startsWith('created') || second!.includes('data v0'))))(
    '%s and %s: with the names exchanged, the copy goes the other way',
    (first, second, expected) => {
      const verdict = meet(parseState(mirrored(second!), 0), parseState(mirrored(first!), 1));
      expect(inWords(verdict)).toBe(swapped(expected!));
    },
  );
});
