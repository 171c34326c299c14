import { describe, expect, test } from 'vitest';
import { type AloneVerdict, type OnLostPeer, standAlone } from '../../lib/mirror/standing.ts';
import { parseState, tableUnder } from './record-text.ts';

const rows = tableUnder('A member that is alone');
const words: Record<AloneVerdict['kind'], string> = {
  serve: 'serves',
  'go-alone': 'makes a view alone',
  'ask-majority': 'asks the majority',
  'await-leases': 'waits for the leases',
  wait: 'waits',
};

function parsePolicy(text: string): OnLostPeer {
  if (text === 'suspend' || text === 'continue' || text === 'majority') return { kind: text };
  return { kind: 'preferred', member: text === 'preferred A' ? 0 : 1 };
}

describe('a member that is alone (docs/mirror.md)', () => {
  test('the table is there', () => expect(rows.length).toBeGreaterThan(10));

  test.each(rows)(
    '%s, %s, leases over: %s, confirmed: %s → %s (%s)',
    (record, policy, leases, confirmed, expected, rule) => {
      const verdict = standAlone({
        record: parseState(record!, 0).record,
        self: 0,
        onLostPeer: parsePolicy(policy!),
        leasesOver: leases === 'yes',
        confirmed: confirmed === 'yes',
      });
      expect(words[verdict.kind]).toBe(expected);
      expect(verdict.rule).toBe(rule);
    },
  );
});
