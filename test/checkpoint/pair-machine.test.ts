/** The table in lib/checkpoint/pair-machine.ts, row by row, and what a clock must not decide. */
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { type PairEffect, type PairEvent, PairMachine, type PairState } from '../../lib/checkpoint/pair-machine.ts';
import { decodePulse, encodePulse, type Pulse } from '../../lib/checkpoint/pulse.ts';

const SELF = 'a'.repeat(32);
const OTHER = 'b'.repeat(32);
const timing = { heartbeatMs: 200, takeOverAfterMs: 1000, jitter: () => 0 };
const pulseOf = (incarnation: string, kind: Pulse['kind'] = 'alive'): Pulse => ({
  kind,
  epoch: 7,
  count: 3,
  incarnation,
});

/** The shortest way into each state. */
const ways: { readonly [state in PairState]: readonly PairEvent[] } = {
  idle: [],
  backup: [{ type: 'start' }],
  'taking-over': [{ type: 'start' }, { type: 'timer' }],
  primary: [{ type: 'start' }, { type: 'timer' }, { type: 'took-over', epoch: 7 }],
  'handing-over': [{ type: 'start' }, { type: 'timer' }, { type: 'took-over', epoch: 7 }, { type: 'hand-over' }],
  'cut-off': [{ type: 'start' }, { type: 'lost' }],
  closed: [{ type: 'start' }, { type: 'close' }],
};

const events: { readonly [name: string]: PairEvent } = {
  start: { type: 'start' },
  pulse: { type: 'pulse', pulse: pulseOf(OTHER) },
  'pulse: handed over, by other': { type: 'pulse', pulse: pulseOf(OTHER, 'handed-over') },
  silence: { type: 'timer' },
  beat: { type: 'timer' },
  lost: { type: 'lost' },
  failed: { type: 'lost' },
  fenced: { type: 'fenced' },
  reached: { type: 'reached', pulse: pulseOf(OTHER) },
  'reached, own pulse last': { type: 'reached', pulse: pulseOf(SELF) },
  'took-over': { type: 'took-over', epoch: 8 },
  'hand-over': { type: 'hand-over' },
  drained: { type: 'drained' },
  close: { type: 'close' },
};

function machineIn(state: PairState): PairMachine {
  const machine = new PairMachine({ incarnation: SELF, timing });
  for (const event of ways[state]) machine.step(event);
  expect(machine.state).toBe(state);
  return machine;
}

function nameOf(effect: PairEffect): string {
  return effect.type === 'pulse' && effect.pulse.kind === 'handed-over' ? 'say-handed-over' : effect.type;
}

const rows = readFileSync(new URL('../../lib/checkpoint/pair-machine.ts', import.meta.url), 'utf8')
  .split('\n')
  .map((line) => /^ \* {3}([a-z-]+) {2,}(\S.*?) {2,}([a-z-]+) {2,}(\S.*)$/.exec(line))
  .filter((row) => row !== null && row[1] !== 'state')
  .map((row) => (row as RegExpExecArray).slice(1) as [string, string, string, string]);

describe('the table of states', () => {
  test('has a row for every event', () => {
    const named = new Set(rows.flatMap(([, event]) => (event === 'fenced, lost' ? ['fenced', 'lost'] : [event])));
    expect([...named].sort()).toEqual(Object.keys(events).sort());
  });

  for (const [state, eventNames, next, effects] of rows.filter(([from]) => from !== 'any')) {
    for (const name of eventNames === 'fenced, lost' ? ['fenced', 'lost'] : [eventNames]) {
      test(`${state}, ${name}: ${next}`, () => {
        const machine = machineIn(state as PairState);
        const done = machine.step(events[name] as PairEvent).map(nameOf);
        expect(machine.state).toBe(next);
        const optional = new Set(['set-timer', 'stop']);
        const wanted = effects.split(', ');
        for (const effect of wanted) expect(done).toContain(effect);
        expect(done.filter((effect) => !optional.has(effect))).toEqual(
          wanted.filter((effect) => !optional.has(effect)),
        );
      });
    }
  }

  for (const state of Object.keys(ways) as PairState[]) {
    test(`closed from ${state}: only a primary has something to hand over`, () => {
      const machine = machineIn(state);
      const done = machine.step({ type: 'close' }).map(nameOf);
      expect(machine.state).toBe('closed');
      const isPrimary = state === 'primary' || state === 'handing-over';
      expect(done).toEqual(state === 'closed' ? [] : isPrimary ? ['say-handed-over', 'stop'] : ['stop']);
    });
  }
});

describe('time', () => {
  const delays = (effects: readonly PairEffect[]) =>
    effects.flatMap((effect) => (effect.type === 'set-timer' ? [effect.delayMs] : []));

  test('every pulse begins the silence anew', () => {
    const machine = machineIn('backup');
    expect(delays(machine.step({ type: 'pulse', pulse: pulseOf(OTHER) }))).toEqual([1000]);
  });

  test('who has handed over waits twice as long, until it hears of the next one', () => {
    const machine = machineIn('handing-over');
    expect(delays(machine.step({ type: 'drained' })).at(-1)).toBe(2000);
    expect(delays(machine.step({ type: 'pulse', pulse: pulseOf(SELF, 'handed-over') }))).toEqual([2000]);
    expect(machine.state).toBe('backup');
    expect(delays(machine.step({ type: 'pulse', pulse: pulseOf(OTHER) }))).toEqual([1000]);
  });

  test('no timer counts while it is cut off', () => {
    const machine = machineIn('cut-off');
    expect(machine.step({ type: 'timer' })).toEqual([]);
    expect(machine.state).toBe('cut-off');
  });

  test('a take-over that was overtaken by a cut does not make a primary', () => {
    const machine = machineIn('taking-over');
    machine.step({ type: 'lost' });
    expect(machine.step({ type: 'took-over', epoch: 9 })).toEqual([]);
    expect(machine.state).toBe('cut-off');
  });
});

describe('the pulse', () => {
  test('golden bytes of version 1', () => {
    const bytes = encodePulse({ kind: 'alive', epoch: 5, count: 9, incarnation: '00112233445566778899aabbccddeeff' });
    expect(Buffer.from(bytes).toString('hex')).toMatchInlineSnapshot(
      `"484650554c53450001010000000000000500000000000000090000000000000000112233445566778899aabbccddeeff000000000000000000000000dfeca958"`,
    );
    expect(decodePulse(bytes)).toEqual({
      kind: 'alive',
      epoch: 5,
      count: 9,
      incarnation: '00112233445566778899aabbccddeeff',
    });
  });

  test('a single bit that is wrong makes it none', () => {
    const good = encodePulse(pulseOf(OTHER));
    for (let bit = 0; bit < good.length * 8; bit++) {
      const bad = Uint8Array.from(good);
      bad[bit >> 3]! ^= 1 << (bit & 7);
      expect(decodePulse(bad)).toBeUndefined();
    }
    expect(decodePulse(good.subarray(0, 63))).toBeUndefined();
  });
});
