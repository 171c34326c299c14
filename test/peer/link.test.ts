import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BACKOFF_MAX_MS, BACKOFF_MIN_MS, Link, type LinkEffect, type LinkEvent } from '../../lib/peer/link.ts';

const PROBLEM = { code: 'ERR_HOLDFAST_CONNECT_FAILED', message: 'cannot connect' };

function link(addressCount = 2): Link {
  return new Link({ addressCount, heartbeatMs: 500 });
}

const failed = (nowMs = 0): LinkEvent => ({ kind: 'dial-failed', problem: PROBLEM, nowMs, jitter: 1 });
const choose = (connection: number, incarnation: string, silenceMs = 0): LinkEvent => ({
  kind: 'choose',
  connection,
  incarnation,
  heardMs: 1000 - silenceMs,
  nowMs: 1000,
});
const established = (connection: number, incarnation: string): LinkEvent => ({
  kind: 'established',
  connection,
  incarnation,
});

test('it dials its addresses in turn, waits longer and longer up to the cap, and starts anew after a session', () => {
  const it = link();
  const seen: (number | string)[] = [];
  let effects = it.step({ kind: 'start' });
  for (let round = 0; round < 8; round++) {
    expect(effects).toEqual([{ kind: 'dial', address: round % 2 }]);
    const [wait] = it.step(failed());
    seen.push((wait as { delayMs: number }).delayMs);
    effects = it.step({ kind: 'dial-due' });
  }
  expect(seen).toEqual([100, 200, 400, 800, 1600, 2000, 2000, 2000]);
  expect(it.step(established(1, 'x'))).toEqual([{ kind: 'cancel-dial' }]);
  expect([it.state, it.problem(0)]).toEqual(['Connected', undefined]);
  expect(it.step({ kind: 'session-ended', connection: 1, jitter: 0 })).toEqual([{ kind: 'dial-in', delayMs: 50 }]);
});

test('without addresses it waits to be dialled', () => {
  const it = link(0);
  expect(it.step({ kind: 'start' })).toEqual([]);
  expect(it.state).toBe('Connecting');
  expect(it.step(choose(1, 'x'))).toEqual([{ kind: 'accept', connection: 1 }]);
});

describe('the chooser, with a session of incarnation x on connection 1,', () => {
  const ends = (reason: string): LinkEffect => ({ kind: 'end-session', connection: 1, reason });
  const accepts: LinkEffect = { kind: 'accept', connection: 2 };
  test.each<[string, LinkEvent, LinkEffect[]]>([
    ['heard just now, refuses x', choose(2, 'x'), [{ kind: 'refuse', connection: 2, reason: 'session-exists' }]],
    ['silent for two heartbeats, takes x', choose(2, 'x', 1000), [ends('the peer made a new connection'), accepts]],
    ['heard just now, takes y', choose(2, 'y'), [ends('the peer was restarted'), accepts]],
  ])('%s', (_name, event, effects) => {
    const it = link();
    it.step({ kind: 'start' });
    it.step(established(1, 'x'));
    expect(it.step(event)).toEqual(effects);
  });

  test('refuses x, once y has superseded it, as long as y is in session', () => {
    const it = link();
    it.step({ kind: 'start' });
    it.step(established(1, 'x'));
    it.step(choose(2, 'y'));
    it.step(established(2, 'y'));
    expect(it.step(choose(3, 'x'))).toEqual([{ kind: 'refuse', connection: 3, reason: 'duplicate-name' }]);
    it.step({ kind: 'session-ended', connection: 1, jitter: 0 });
    expect(it.step(choose(4, 'x'))).toEqual([{ kind: 'refuse', connection: 4, reason: 'duplicate-name' }]);
    it.step({ kind: 'session-ended', connection: 2, jitter: 0 });
    expect(it.step(choose(5, 'x'))).toEqual([{ kind: 'accept', connection: 5 }]);
  });

  test('the last word of a dead process came late, superseded the new one, and shut it out for ever', () => {
    const it = link();
    it.step({ kind: 'start' });
    it.step(established(1, 'new'));
    it.step(choose(2, 'dead'));
    it.step(established(2, 'dead'));
    it.step({ kind: 'session-ended', connection: 2, jitter: 0 });
    expect(it.step(choose(3, 'new'))).toEqual([{ kind: 'accept', connection: 3 }]);
  });
});

test('a problem that a handshake told is shown before "cannot connect" for a while, and never beside a session for long', () => {
  const it = link();
  const problem = { code: 'ERR_HOLDFAST_WRONG_KEY', message: 'the keys differ' };
  it.step({ kind: 'start' });
  it.step({ kind: 'handshake-failed', problem, dialled: false, nowMs: 100, jitter: 0 });
  it.step(failed(200));
  expect(it.problem(5000)).toBe(problem);
  expect(it.problem(20_000)).toBe(PROBLEM);
  it.step(established(1, 'x'));
  expect(it.problem(20_000)).toBeUndefined();
  it.step({ kind: 'handshake-failed', problem, dialled: false, nowMs: 21_000, jitter: 0 });
  expect([it.problem(22_000), it.problem(40_000)]).toEqual([problem, undefined]);
});

test('after the stop nothing is dialled or accepted any more', () => {
  const it = link();
  it.step({ kind: 'start' });
  it.step(established(1, 'x'));
  expect(it.step({ kind: 'stop' })).toEqual([{ kind: 'end-session', connection: 1, reason: 'this node is closing' }]);
  expect(it.state).toBe('StandAlone');
  expect(it.step({ kind: 'session-ended', connection: 1, jitter: 0 })).toEqual([]);
  expect(it.step({ kind: 'dial-due' })).toEqual([]);
  expect(it.step(choose(2, 'x'))).toMatchObject([{ kind: 'refuse' }]);
});

test('whatever happens: one session, one dial, none of the two together, and a dial always follows', () => {
  const event = fc.oneof(
    fc.constantFrom<LinkEvent>({ kind: 'dial-due' }, failed()),
    fc
      .record({ dialled: fc.boolean() })
      .map(
        ({ dialled }): LinkEvent => ({ kind: 'handshake-failed', problem: undefined, dialled, nowMs: 0, jitter: 0.5 }),
      ),
    fc.tuple(fc.nat(2000), fc.constantFrom('x', 'y', 'z')).map(([silenceMs, name]) => choose(0, name, silenceMs)),
    fc.constantFrom('x', 'y', 'z').map((name) => established(0, name)),
    fc.constant<LinkEvent>({ kind: 'session-ended', connection: 0, jitter: 0 }),
  );
  fc.assert(
    fc.property(fc.array(event, { maxLength: 40 }), (events) => {
      const it = link();
      let session: number | undefined;
      let dialling = false;
      let due = false;
      let number = 0;
      const perform = (effects: LinkEffect[]): void => {
        for (const effect of effects) {
          if (effect.kind === 'dial') {
            expect([dialling, session]).toEqual([false, undefined]);
            dialling = true;
          } else if (effect.kind === 'cancel-dial') {
            expect(dialling).toBe(true);
            dialling = false;
          } else if (effect.kind === 'dial-in') {
            expect(effect.delayMs).toBeGreaterThanOrEqual(BACKOFF_MIN_MS / 2);
            expect(effect.delayMs).toBeLessThanOrEqual(BACKOFF_MAX_MS);
            due = true;
          } else if (effect.kind === 'end-session') {
            expect(effect.connection).toBe(session);
            session = undefined;
          } else if (effect.kind === 'accept') {
            perform(it.step(established(effect.connection, incarnation)));
            session = effect.connection;
          }
        }
      };
      let incarnation = 'x';
      perform(it.step({ kind: 'start' }));
      for (const each of events) {
        // Only what the driver can say.
        if (each.kind === 'dial-failed' || (each.kind === 'handshake-failed' && each.dialled)) {
          if (!dialling) continue;
          dialling = false;
        }
        if (each.kind === 'dial-due') {
          if (!due) continue;
          due = false;
        }
        if (each.kind === 'session-ended') {
          if (session === undefined) continue;
          const ended = session;
          session = undefined;
          perform(it.step({ ...each, connection: ended }));
        } else if (each.kind === 'choose') {
          incarnation = each.incarnation;
          perform(it.step({ ...each, connection: ++number }));
        } else if (each.kind === 'established') {
          const effects = it.step({ ...each, connection: ++number });
          perform(effects);
          session = number;
          due = false;
        } else perform(it.step(each));
        expect(session !== undefined || dialling || due).toBe(true);
      }
    }),
    { numRuns: 500 },
  );
});
