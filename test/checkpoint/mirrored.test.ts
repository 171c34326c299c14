/** The writer of a mirrored region as a table: what it has seen, what comes, what it does. */
import { describe, expect, test } from 'vitest';
import { formatStanding, hasLeg, LEGS, type LegMask, type Standing } from '../../lib/checkpoint/mirror-standing.ts';
import { type MirrorEffect, type MirrorEvent, MirrorWriter } from '../../lib/checkpoint/mirrored.ts';

const NONCE = 'feedfacefeedface';

function value(text: string): Standing {
  const [epoch, legs, change = '1', writer = 'w', nonce = NONCE] = text.split(' ') as [string, string];
  const inSync = (legs === 'a' ? 1 : legs === 'b' ? 2 : 3) as LegMask;
  return { epoch: Number(epoch), inSync, equal: legs !== 'a~b', writer, nonce, change: Number(change) };
}

function legNames(mask: LegMask): string {
  return LEGS.filter((leg) => hasLeg(mask, leg))
    .map((leg) => 'ab'[leg])
    .join('');
}

function short(standing: Standing | undefined): string {
  return standing === undefined ? 'nothing' : formatStanding(standing).split(' ').slice(1, 3).join(' ');
}

function words(effect: MirrorEffect): string {
  switch (effect.kind) {
    case 'persist':
      return `persist ${effect.what === 'rest' ? 'the rest of ' : ''}${'ab'[effect.leg]}`;
    case 'take-over':
    case 'probe':
    case 'reopen':
      return `${effect.kind} ${'ab'[effect.leg]}`;
    case 'swap':
      return `swap ${short(effect.expected)} -> ${short(effect.next)} (change ${effect.next.change})`;
    case 'copy':
      return `${effect.compare ? 'compare and copy' : 'copy'} ${'ab'[effect.from]} to ${'ab'[effect.to]}`;
    case 'send':
      return `send ${effect.id} to ${legNames(effect.legs)}`;
    case 'acknowledge':
      return `acknowledge ${effect.id} on ${legNames(effect.storedOn)} under ${short(effect.named)}`;
    case 'serve':
      return `serve under ${short(effect.named)}`;
    case 'end':
      return `end: ${effect.why}`;
    default:
      return effect.kind;
  }
}

/** An event in words, as the rows below have them. */
function parse(text: string): MirrorEvent {
  const [kind, ...rest] = text.split(' ') as [MirrorEvent['kind'], ...string[]];
  const leg = rest.at(-1) === 'b' ? 1 : 0;
  switch (kind) {
    case 'stands':
      return { kind, standing: rest.length === 0 ? undefined : value(rest.join(' ')) };
    case 'swap-lost':
      return { kind, current: rest.length === 0 ? undefined : value(rest.join(' ')) };
    case 'store':
      return { kind, id: Number(rest[0]) };
    case 'stored':
      return { kind, id: Number(rest[0]), leg };
    case 'begin':
    case 'swapped':
    case 'close':
      return { kind };
    default:
      return { kind, leg };
  }
}

function run(events: readonly string[]): { machine: MirrorWriter; effects: string[] } {
  const machine = new MirrorWriter('w', NONCE);
  let effects: readonly MirrorEffect[] = [];
  for (const event of events) effects = machine.step(parse(event));
  return { machine, effects: effects.map(words) };
}

const TOOK_BOTH = ['begin', 'stands 4 ab', 'leg-opened a', 'leg-opened b'];
const EQUALISING = [...TOOK_BOTH, 'swapped'];
const BOTH = [...EQUALISING, 'persisted a', 'copied b', 'persisted b', 'swapped'];
const ALONE = ['begin', 'stands 4 a', 'leg-opened a', 'swapped', 'persisted a'];
const WRITTEN_ON_A = [...BOTH, 'store 0', 'stored 0 a'];
const B_FAILED = [...WRITTEN_ON_A, 'leg-failed b'];
const A_LEFT = [...B_FAILED, 'answers a'];
const FILLING = [...ALONE, 'store 0', 'leg-opened b', 'store 1'];
const FILLED = [...FILLING, 'copied b', 'store 2'];
const ENDED = ['stored 1 a', 'stored 1 b', 'stored 2 a', 'stored 2 b'];
const SETTLING = [...ALONE, 'leg-opened b', 'copied b', 'persisted b'];
const JOINING = [...SETTLING, 'persisted b'];

type Row = readonly [what: string, before: readonly string[], event: string, expected: readonly string[]];

function table(rows: readonly Row[]): void {
  test.each(rows)('%s', (_what, before, event, expected) => {
    expect(run([...before, event]).effects).toEqual(expected);
  });
}

describe('take-over', () => {
  table([
    ['asks what stands', [], 'begin', ['read-register']],
    ['a new region: both', ['begin'], 'stands', ['take-over a', 'take-over b']],
    ['both in sync: both', ['begin'], 'stands 4 ab', ['take-over a', 'take-over b']],
    ['both, not yet alike: both', ['begin'], 'stands 4 a~b', ['take-over a', 'take-over b']],
    ['one in sync: that one', ['begin'], 'stands 4 b', ['take-over b']],
    ['waits for the other one', ['begin', 'stands 4 ab'], 'leg-opened a', []],
    ['claims both, not alike', TOOK_BOTH.slice(0, -1), 'leg-opened b', ['swap 4 ab -> 5 a~b (change 1)']],
    ['the other one is away', TOOK_BOTH.slice(0, -1), 'leg-failed b', ['swap 4 ab -> 5 a (change 1)']],
    ['the one that was there is lost', TOOK_BOTH.slice(0, -1), 'leg-failed a', []],
    ['both are away', ['begin', 'stands 4 ab', 'leg-failed a'], 'leg-failed b', ['end: no-copy']],
    ['the one in sync is away', ['begin', 'stands 4 b'], 'leg-failed b', ['end: no-copy']],
    ['a new region, one away', ['begin', 'stands', 'leg-opened a'], 'leg-failed b', ['end: no-copy']],
    ['compares what was under way', TOOK_BOTH, 'swapped', ['persist a', 'compare and copy a to b']],
    ['makes durable what is there', ALONE.slice(0, -2), 'swapped', ['persist a']],
    ['another one was faster', TOOK_BOTH, 'swap-lost 5 b 1 other', ['take-over b']],
    ['serves alone, and asks for the other one', ALONE.slice(0, -1), 'persisted a', ['serve under 5 a', 'reopen b']],
    ['makes durable what was copied', EQUALISING, 'copied b', ['persist b']],
    ['then says that they are alike', [...EQUALISING, 'copied b'], 'persisted b', ['swap 5 a~b -> 5 ab (change 2)']],
    ['then serves', BOTH.slice(0, -1), 'swapped', ['serve under 5 ab']],
    ['but not before both are durable', [...EQUALISING, 'copied b', 'persisted b'], 'swapped', []],
    ['the target is lost', EQUALISING, 'leg-failed b', ['probe a']],
    ['and the source answers', [...EQUALISING, 'leg-failed b'], 'answers a', ['swap 5 a~b -> 5 a (change 2)']],
    ['the source is lost: the other one will do', EQUALISING, 'leg-failed a', ['persist b', 'probe b']],
    ['if it answers', [...EQUALISING, 'leg-failed a'], 'answers b', ['swap 5 a~b -> 5 b (change 2)']],
    ['both are lost', [...EQUALISING, 'leg-failed a'], 'leg-failed b', ['end: no-copy']],
    ['both are lost while one is left out', [...EQUALISING, 'leg-failed a', 'answers b'], 'leg-failed b', []],
    [
      'both are lost, and that is known',
      [...EQUALISING, 'leg-failed a', 'answers b', 'leg-failed b'],
      'swapped',
      ['end: no-copy'],
    ],
    ['one is lost while it claims', TOOK_BOTH, 'leg-failed a', ['probe b']],
    ['and the other one does not answer', [...TOOK_BOTH, 'leg-failed a'], 'swapped', ['persist b']],
    [
      'and the other one answers',
      [...TOOK_BOTH, 'leg-failed a', 'answers b'],
      'swapped',
      ['persist b', 'swap 5 a~b -> 5 b (change 2)'],
    ],
    ['and another one was faster', [...TOOK_BOTH, 'leg-failed a', 'swap-lost 5 ab 1 other'], 'answers b', []],
    [
      'serves with the one that is left',
      [...EQUALISING, 'leg-failed a', 'persisted b', 'answers b'],
      'swapped',
      ['serve under 5 b', 'reopen a'],
    ],
    ['fenced before it served', [...EQUALISING, 'copied b', 'persisted b'], 'swap-lost 6 a 1 other 0', ['end: fenced']],
  ]);

  test('two that take over from each other again and again: one gives in', () => {
    const machine = new MirrorWriter('w', NONCE);
    machine.step({ kind: 'begin' });
    let effects = machine.step(parse('stands 1 a'));
    let rounds = 0;
    for (; machine.phase !== 'ended' && rounds < 100; rounds += 1) {
      machine.step(parse('leg-opened a'));
      effects = machine.step(parse(`swap-lost ${2 + rounds} a 1 other`));
    }
    expect(effects.map(words)).toEqual(['end: contended']);
    expect(rounds).toBe(8);
  });
});

describe('stores', () => {
  table([
    ['go to both', BOTH, 'store 0', ['send 0 to ab']],
    ['are not acknowledged by one', [...BOTH, 'store 0'], 'stored 0 a', []],
    ['are acknowledged by both', WRITTEN_ON_A, 'stored 0 b', ['acknowledge 0 on ab under 5 ab']],
    ['go to the one that is named', ALONE, 'store 0', ['send 0 to a']],
    ['are acknowledged by it', [...ALONE, 'store 0'], 'stored 0 a', ['acknowledge 0 on a under 5 a']],
    ['wait for the other leg when one is lost', WRITTEN_ON_A, 'leg-failed b', ['probe a']],
    ['then for the register', B_FAILED, 'answers a', ['swap 5 ab -> 5 a (change 3)']],
    ['are sent to the other one meanwhile', B_FAILED, 'store 1', ['send 1 to a']],
    ['and not acknowledged by it', [...B_FAILED, 'store 1'], 'stored 1 a', []],
    ['the other one is lost as well: it ends, and both are named', B_FAILED, 'leg-failed a', ['end: no-copy']],
    ['are acknowledged after it', A_LEFT, 'swapped', ['reopen b', 'acknowledge 0 on a under 5 a']],
    ['those that follow go to the one that is left', A_LEFT, 'store 1', ['send 1 to a']],
    ['and wait for the register too', [...A_LEFT, 'store 1'], 'stored 1 a', []],
    ['are lost on the leg that was left', A_LEFT, 'stored 0 b', []],
    ['fail when another has taken over', A_LEFT, 'swap-lost 6 b 1 other 0', ['end: fenced']],
    ['the leg is lost before the write', [...BOTH, 'leg-failed b', 'answers a', 'swapped'], 'store 0', ['send 0 to a']],
    [
      'the leg is lost after the write',
      [...WRITTEN_ON_A, 'stored 0 b', 'leg-failed a'],
      'answers b',
      ['swap 5 ab -> 5 b (change 3)'],
    ],
    [
      'one that both had is acknowledged all the same',
      [...BOTH, 'store 0', 'stored 0 a', 'leg-failed a'],
      'stored 0 b',
      ['acknowledge 0 on ab under 5 ab'],
    ],
    ['both lost: nothing is acknowledged', A_LEFT, 'leg-failed a', []],
    ['both lost: it ends', [...A_LEFT, 'leg-failed a'], 'swapped', ['reopen b', 'end: no-copy']],
    ['the only one is lost', [...ALONE, 'store 0'], 'leg-failed a', ['end: no-copy']],
    ['nothing after the end', [...ALONE, 'leg-failed a'], 'stored 0 a', []],
    ['an earlier change of its own stands', A_LEFT, 'swap-lost 5 a 7', ['reopen b', 'acknowledge 0 on a under 5 a']],
    ['closed', [...BOTH, 'store 0'], 'close', ['end: closed']],
  ]);
});

describe('a leg that is filled', () => {
  table([
    ['is copied to, as a whole', ALONE, 'leg-opened b', ['copy a to b']],
    ['gets new stores', [...ALONE, 'leg-opened b'], 'store 0', ['send 0 to ab']],
    ['which are acknowledged without it', FILLING, 'stored 1 a', ['acknowledge 1 on a under 5 a']],
    ['makes all durable', FILLING, 'copied b', ['persist b']],
    ['does not join before all stores have ended', FILLED, 'persisted b', []],
    [
      'nor before those that it did not get',
      [...FILLED, 'persisted b', ...ENDED.slice(1)],
      'stored 1 a',
      ['acknowledge 1 on ab under 5 a'],
    ],
    [
      'makes what they stored durable, when they have',
      [...FILLED, ...ENDED, 'persisted b'],
      'stored 0 a',
      ['acknowledge 0 on a under 5 a', 'persist the rest of b'],
    ],
    ['at once if nothing is under way', SETTLING.slice(0, -1), 'persisted b', ['persist the rest of b']],
    ['then joins', SETTLING, 'persisted b', ['swap 5 a -> 5 ab (change 2)']],
    ['is lost before that', SETTLING, 'leg-failed b', ['reopen b']],
    ['its source is lost before that', SETTLING, 'leg-failed a', ['end: no-copy']],
    ['is named, and counts', [...JOINING, 'swapped', 'store 0'], 'stored 0 a', []],
    ['is lost', FILLED, 'leg-failed b', ['reopen b']],
    ['is lost while it is named', JOINING, 'leg-failed b', ['probe a']],
    [
      'a store without a leg that failed while it was named was acknowledged, and the leg was named',
      [...JOINING, 'leg-failed b', 'store 0'],
      'stored 0 a',
      [],
    ],
    [
      'that store, once the leg is not named any more',
      [...JOINING, 'leg-failed b', 'store 0', 'stored 0 a', 'swapped', 'answers a'],
      'swapped',
      ['reopen b', 'acknowledge 0 on a under 5 a'],
    ],
    [
      'is lost while it is named: then the register says so again',
      [...JOINING, 'leg-failed b', 'answers a'],
      'swapped',
      ['swap 5 ab -> 5 a (change 3)'],
    ],
    ['its source is lost: no copy is left, and it is not used', FILLED, 'leg-failed a', ['end: no-copy']],
    ['its source is lost while it is named', JOINING, 'leg-failed a', ['probe b']],
    [
      'its source is lost, and it is named: it is the copy',
      [...JOINING, 'leg-failed a', 'swapped'],
      'answers b',
      ['swap 5 ab -> 5 b (change 3)'],
    ],
    [
      'its source is lost, and it is not named: no copy is left',
      [...JOINING, 'leg-failed a'],
      'swap-lost 5 a 1',
      ['end: no-copy'],
    ],
  ]);
});

test('what the legs are meanwhile', () => {
  expect(run(BOTH).machine.legs).toEqual(['in', 'in']);
  expect(run(A_LEFT).machine.legs).toEqual(['in', 'broken']);
  expect(run(FILLING).machine.legs).toEqual(['in', 'copying']);
  expect(run(FILLED).machine.legs).toEqual(['in', 'persisting']);
  expect(run(SETTLING).machine.legs).toEqual(['in', 'settling']);
  expect(run(JOINING).machine.legs).toEqual(['in', 'joining']);
  expect(run([...JOINING, 'swapped']).machine.source).toBe(0);
});

test('a reader saw a store on the source alone, and it was lost: none is given while a leg joins', () => {
  expect(run(FILLED).machine.holdsStores).toBe(false);
  expect(run([...FILLED, 'persisted b']).machine.holdsStores).toBe(true);
  expect(run(SETTLING).machine.holdsStores).toBe(true);
  expect(run(JOINING).machine.holdsStores).toBe(true);
  expect(run([...JOINING, 'swapped']).machine.holdsStores).toBe(false);
  expect(run([...JOINING, 'leg-failed b']).machine.holdsStores).toBe(false);
});

test('a leg that hangs is spared where the other one can do without it', () => {
  const spared = (events: readonly string[]): string => {
    const { machine } = run(events);
    return LEGS.filter((leg) => machine.canSpare(leg))
      .map((leg) => 'ab'[leg])
      .join('');
  };
  expect(spared(TOOK_BOTH)).toBe('');
  // They are not alike, and nobody was told of what one alone has: either will do.
  expect(spared(EQUALISING)).toBe('ab');
  expect(spared([...EQUALISING, 'leg-failed a'])).toBe('');
  expect(spared(BOTH)).toBe('ab');
  expect(spared(B_FAILED)).toBe('');
  expect(spared([...A_LEFT, 'swapped'])).toBe('');
  // One that is filled is no copy.
  expect(spared(FILLING)).toBe('b');
  expect(spared(FILLED)).toBe('b');
  expect(spared(SETTLING)).toBe('b');
  expect(spared(JOINING)).toBe('b');
  expect(spared([...JOINING, 'swapped'])).toBe('ab');
});
