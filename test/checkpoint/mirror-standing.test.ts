import { expect, test } from 'vitest';
import {
  admits,
  formatStanding,
  isSoundChange,
  type LegMask,
  parseStanding,
  type Standing,
} from '../../lib/checkpoint/mirror-standing.ts';
import { isValue } from '../../lib/peer/register.ts';

const NONCE = '0123456789abcdef';

function standing(inSync: LegMask, overrides: Partial<Standing> = {}): Standing {
  return { epoch: 3, inSync, equal: true, writer: 'primary', nonce: NONCE, change: 2, ...overrides };
}

test('what stands is written as one line, and read back', () => {
  const lines = [standing(1), standing(2), standing(3), standing(3, { equal: false })].map(formatStanding);
  expect(lines).toEqual([
    `HFM1 3 a primary ${NONCE} 2`,
    `HFM1 3 b primary ${NONCE} 2`,
    `HFM1 3 ab primary ${NONCE} 2`,
    `HFM1 3 a~b primary ${NONCE} 2`,
  ]);
  for (const line of lines) expect(formatStanding(parseStanding(line)!)).toBe(line);
});

test('the longest value fits into a register', () => {
  const line = formatStanding(standing(3, { equal: false, epoch: 2 ** 48, writer: 'w'.repeat(64), change: 2 ** 32 }));
  expect(isValue(line)).toBe(true);
  expect(parseStanding(line)?.epoch).toBe(2 ** 48);
});

test.each([
  '',
  'x',
  `HFM1 0 a primary ${NONCE} 2`,
  `HFM1 03 a primary ${NONCE} 2`,
  `HFM1 3 c primary ${NONCE} 2`,
  `HFM1 3 a -primary ${NONCE} 2`,
  `HFM1 3 a primary ${NONCE}0 2`,
  `HFM1 3 a primary ${NONCE} 0`,
  `HFM1 3 a primary ${NONCE} 2 `,
  `HFM1 ${2 ** 48 + 1} a primary ${NONCE} 2`,
  `HFM1 3 a primary ${NONCE} ${2 ** 32 + 1}`,
])('%j is no value of a mirrored region', (text) => {
  expect(parseStanding(text)).toBeUndefined();
});

test.each([
  ['a new region is taken over with both', undefined, standing(3, { epoch: 1, equal: false, change: 1 }), true],
  ['a new region is not taken over with one', undefined, standing(1, { epoch: 1, change: 1 }), false],
  ['a take-over with both', standing(3), standing(3, { epoch: 4, equal: false, change: 1 }), true],
  ['a take-over with both that are said to be equal', standing(3), standing(3, { epoch: 4, change: 1 }), false],
  ['a take-over with one of both', standing(3), standing(2, { epoch: 4, change: 1 }), true],
  ['a take-over with a leg that was out', standing(1), standing(2, { epoch: 4, change: 1 }), false],
  ['a take-over that skips an epoch', standing(3), standing(1, { epoch: 5, change: 1 }), false],
  ['a take-over back to an old epoch', standing(3), standing(1, { epoch: 2, change: 1 }), false],
  ['a leg is left out', standing(3), standing(1, { change: 3 }), true],
  ['a leg is back', standing(1), standing(3, { change: 3 }), true],
  ['a leg is back, not equal', standing(1), standing(3, { change: 3, equal: false }), false],
  ['the same change again', standing(1), standing(3), false],
  ['by another process of the same peer', standing(3), standing(1, { change: 3, nonce: `f${NONCE.slice(1)}` }), false],
  ['in the name of another peer', standing(3), standing(1, { epoch: 4, change: 1, writer: 'other' }), false],
] as const)('%s', (_what, before, next, isSound) => {
  expect(isSoundChange(before, next, 'primary')).toBe(isSound);
});

const unequal = standing(3, { equal: false });
test.each([
  ['a new region', undefined, { 'take-over': 'ab', rebuild: '', read: '' }],
  ['both in sync', standing(3), { 'take-over': 'ab', rebuild: '', read: 'ab' }],
  ['both, not equal', unequal, { 'take-over': 'ab', rebuild: '', read: '' }],
  ['the first one', standing(1), { 'take-over': 'a', rebuild: 'b', read: 'a' }],
  ['the second one', standing(2), { 'take-over': 'b', rebuild: 'a', read: 'b' }],
] as const)('who is let in: %s', (_what, value, expected) => {
  for (const purpose of ['take-over', 'rebuild', 'read'] as const) {
    const legs = ([0, 1] as const).filter((leg) => admits(value, leg, 'primary', purpose));
    expect(legs.map((leg) => 'ab'[leg]).join(''), purpose).toBe(expected[purpose]);
  }
});

test('only the writer may rebuild', () => {
  expect(admits(standing(1), 1, 'other', 'rebuild')).toBe(false);
});
