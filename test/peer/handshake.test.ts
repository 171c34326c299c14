/** The handshake as a transcript: who says what, and what each then knows. Review test/peer/golden/handshake.txt. */
import { decode } from '@msgpack/msgpack';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { encodeControl } from '../../lib/peer/control-body.ts';
import { FrameKind } from '../../lib/peer/frame.ts';
import { Handshake, type HandshakeEffect, type HandshakeSelf } from '../../lib/peer/handshake.ts';
import { KEY } from './helpers.ts';

const KIND_NAMES = new Map(Object.entries(FrameKind).map(([name, kind]) => [kind as number, name]));

function self(name: string, fields: Partial<HandshakeSelf> = {}): HandshakeSelf {
  return {
    name,
    clusterId: 'c1',
    incarnation: name.charCodeAt(0).toString(16).padStart(32, '0'),
    features: ['scan', 'trim'],
    minVersion: 1,
    maxVersion: 1,
    key: KEY,
    controlWindowBytes: 1_048_576,
    bulkWindowBytes: 8_388_608,
    isPeer: (peer) => ['a', 'b', 'c'].includes(peer),
    ...fields,
  };
}

interface Side {
  readonly name: string;
  readonly handshake: Handshake;
}

function show(value: unknown): string {
  if (value instanceof Uint8Array) return `<${value.length} bytes ${Buffer.from(value).toString('hex').slice(0, 8)}…>`;
  if (Array.isArray(value)) return `[${value.map(show).join(' ')}]`;
  if (typeof value === 'object' && value !== null)
    return Object.entries(value)
      .map(([key, field]) => `${key}=${show(field)}`)
      .join(' ');
  return String(value);
}

interface Meeting {
  readonly dialler: HandshakeSelf;
  readonly dials?: string;
  readonly acceptor: HandshakeSelf;
  readonly transportIdentity?: string;
  /** What the chooser decides. */
  readonly choice?: 'accept' | 'session-exists' | 'duplicate-name';
  /** Changes a control body on its way. */
  readonly tamper?: (kind: string, control: Uint8Array) => Uint8Array;
}

/** Lets the two ends talk until both are silent, and writes down what was said. */
function meet(meeting: Meeting): { lines: string[]; dialler: Handshake; acceptor: Handshake } {
  const { dialler, acceptor, dials = acceptor.name, transportIdentity, choice = 'accept', tamper } = meeting;
  const nonce = (byte: number): Uint8Array => new Uint8Array(32).fill(byte);
  const near: Side = {
    name: dialler.name,
    handshake: new Handshake({ self: dialler, nonce: nonce(1), dials, transportIdentity: undefined, remote: 'there' }),
  };
  const far: Side = {
    name: acceptor.name === dialler.name ? `${acceptor.name}'` : acceptor.name,
    handshake: new Handshake({ self: acceptor, nonce: nonce(2), dials: undefined, transportIdentity, remote: 'here' }),
  };
  const lines: string[] = [];
  const inbox: { to: Side; from: Side; frame: FrameKind; control: Uint8Array }[] = [];
  const perform = (side: Side, other: Side, effects: HandshakeEffect[]): void => {
    for (const effect of effects) {
      if (effect.kind === 'send') {
        const kind = KIND_NAMES.get(effect.frame)!;
        const control = tamper?.(kind, effect.control) ?? effect.control;
        lines.push(`${side.name} → ${other.name}  ${kind} ${show(decode(control))}`);
        inbox.push({ to: other, from: side, frame: effect.frame, control });
      } else if (effect.kind === 'authenticated') {
        lines.push(`${side.name}: knows ${show(effect.peer)}; ${effect.chooses ? 'chooses' : 'awaits the choice'}`);
        if (!effect.chooses) continue;
        const event = choice === 'accept' ? { kind: choice } : ({ kind: 'refuse', reason: choice } as const);
        perform(side, other, side.handshake.step(event));
      } else if (effect.kind === 'established') lines.push(`${side.name}: established with ${effect.peer.name}`);
      else lines.push(`${side.name}: ${effect.benign ? 'stops' : effect.error.code}: ${effect.error.message}`);
    }
  };
  perform(far, near, far.handshake.step({ kind: 'opened' }));
  perform(near, far, near.handshake.step({ kind: 'opened' }));
  for (let mail = inbox.shift(); mail !== undefined; mail = inbox.shift())
    perform(mail.to, mail.from, mail.to.handshake.step({ kind: 'frame', frame: mail.frame, control: mail.control }));
  return { lines, dialler: near.handshake, acceptor: far.handshake };
}

const other = Buffer.from('another key, of 32 bytes as well');

const stories: readonly [string, Meeting][] = [
  ['a dials b: a chooses, since its name sorts first', { dialler: self('a'), acceptor: self('b') }],
  ['b dials a: a chooses', { dialler: self('b'), acceptor: self('a') }],
  [
    'features and versions are what both have',
    {
      dialler: self('a', { features: ['scan', 'new'], maxVersion: 3 }),
      acceptor: self('b', { features: ['new', 'old'], minVersion: 2, maxVersion: 5 }),
    },
  ],
  ['a has a session with b already', { dialler: self('b'), acceptor: self('a'), choice: 'session-exists' }],
  ['a knows that b was superseded', { dialler: self('a'), acceptor: self('b'), choice: 'duplicate-name' }],
  ['another cluster', { dialler: self('a'), acceptor: self('b', { clusterId: 'c2' }) }],
  ['another key', { dialler: self('a', { key: other }), acceptor: self('b') }],
  ['a version too old', { dialler: self('a'), acceptor: self('b', { minVersion: 2, maxVersion: 4 }) }],
  ['a unknown to b', { dialler: self('a'), acceptor: self('b', { isPeer: () => false }) }],
  ['b dialled where c is', { dialler: self('a'), dials: 'b', acceptor: self('c') }],
  ['two nodes called a', { dialler: self('a'), dials: 'b', acceptor: self('a', { incarnation: 'f'.repeat(32) }) }],
  ['a dials itself', { dialler: self('a'), dials: 'b', acceptor: self('a') }],
  ['the transport proved another name', { dialler: self('a'), acceptor: self('b'), transportIdentity: 'c' }],
];

test('the transcript', async () => {
  const text = stories.map(([title, meeting]) => [`# ${title}`, ...meet(meeting).lines, ''].join('\n')).join('\n');
  await expect(text).toMatchFileSnapshot('golden/handshake.txt');
});

test('a proof that is reflected proves nothing', () => {
  const dialler = new Handshake({
    self: self('a'),
    nonce: new Uint8Array(32),
    dials: 'b',
    transportIdentity: undefined,
    remote: 'there',
  });
  const [hello] = dialler.step({ kind: 'opened' });
  const said = decode((hello as { control: Uint8Array }).control) as Record<string, unknown>;
  // The other end has no key: it says what it was told, with the names turned round.
  const reflected = encodeControl({ ...said, from: 'b', to: 'a', incarnation: 'b'.repeat(32) });
  const [proof] = dialler.step({ kind: 'frame', frame: FrameKind.hello, control: reflected });
  const effects = dialler.step({
    kind: 'frame',
    frame: FrameKind.proof,
    control: (proof as { control: Uint8Array }).control,
  });
  expect(effects.at(-1)).toMatchObject({ kind: 'failed', error: { code: 'ERR_HOLDFAST_WRONG_KEY' } });
});

test('a message that was changed on the way, in any byte, never leads to two ends that believe each other', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('hello', 'proof'),
      fc.nat(400),
      fc.integer({ min: 1, max: 255 }),
      (target, at, flip) => {
        let changed = false;
        const { dialler, acceptor } = meet({
          dialler: self('a'),
          acceptor: self('b'),
          tamper(kind, control) {
            if (changed || kind !== target) return control;
            changed = true;
            const copy = control.slice();
            copy[at % copy.length]! ^= flip;
            return encodable(copy) ? copy : encodeControl({});
          },
        });
        expect(changed).toBe(true);
        expect([dialler.state, acceptor.state]).not.toContain('established');
      },
    ),
    { numRuns: 300 },
  );
});

function encodable(bytes: Uint8Array): boolean {
  try {
    decode(bytes);
    return true;
  } catch {
    return false;
  }
}

test('whatever comes in whatever order, a handshake neither throws nor is established without a proof', () => {
  const control = fc.oneof(
    fc.uint8Array({ maxLength: 200 }),
    fc.constant(encodeControl({ mac: new Uint8Array(32) })),
    fc.constant(encodeControl({ reason: 'wrong-key' })),
    fc.constant(encodeControl({ reason: '__proto__' })),
    fc.constant(meetHello()),
  );
  const event = fc.oneof(
    fc.record({ kind: fc.constant('frame' as const), frame: fc.constantFrom(...Object.values(FrameKind)), control }),
    fc.constantFrom({ kind: 'accept' as const }, { kind: 'refuse', reason: 'self' } as const),
    fc.constant({ kind: 'deadline', afterMs: 5000 } as const),
  );
  fc.assert(
    fc.property(fc.boolean(), fc.array(event, { maxLength: 8 }), (dials, events) => {
      const handshake = new Handshake({
        self: self('b'),
        nonce: new Uint8Array(32),
        dials: dials ? 'a' : undefined,
        transportIdentity: undefined,
        remote: 'there',
      });
      handshake.step({ kind: 'opened' });
      for (const each of events) handshake.step(each);
      expect(handshake.state).not.toBe('established');
      expect(handshake.state).not.toBe('chooses');
    }),
    { numRuns: 500 },
  );
});

function meetHello(): Uint8Array {
  const dialler = new Handshake({
    self: self('a'),
    nonce: new Uint8Array(32).fill(9),
    dials: 'b',
    transportIdentity: undefined,
    remote: 'there',
  });
  return (dialler.step({ kind: 'opened' })[0] as { control: Uint8Array }).control;
}
