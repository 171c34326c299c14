/** Policing between two or three nodes: what they say as transcripts that a person can review, and the edges of the calls. */
import { describe, expect, test } from 'vitest';
import { NO_EFFECTS, Policing } from '../../lib/mirror/policing.ts';
import {
  type AccessMode,
  MAX_EXTENTS,
  MAX_LAMPORT,
  MAX_POLICING_MESSAGES,
  MAX_PRIORITY,
  type PolicingMessage,
  policingBatchSchema,
  policingMessageSchema,
} from '../../lib/mirror/policing-wire.ts';
import { encodeControl } from '../../lib/peer/control-body.ts';
import { World } from './policing-world.ts';

const NAMES = ['a', 'b', 'c'] as const;
type Name = (typeof NAMES)[number];

/** Who says what, and what each may do then. Messages are on their way until `pass`. */
class Transcript {
  readonly #world: World;
  readonly #extents: number;
  readonly #lines: string[] = [];

  constructor(nodes: number, extents: number) {
    this.#extents = extents;
    this.#world = new World({ nodes, extents, first: 0 }, []);
    this.#world.onReceive = (from, to, message) => this.#say(`${NAMES[from]} > ${NAMES[to]} ${inWords(message)}`);
    this.#world.onStart = (operation) => this.#say(`${NAMES[this.#nodeOf(operation)]}     starts ${operation + 1}`);
  }

  /** A client of `name` asks. Its operation's number is in the transcript, from 1. */
  ask(name: Name, mode: 'reads' | 'writes', first: number, last = first, priority = 0): number {
    const node = NAMES.indexOf(name);
    const operation = this.#world.add({ node, first, last, mode: mode === 'reads' ? 'shared' : 'exclusive', priority });
    const extents = first === last ? `extent ${first}` : `extents ${first} to ${last}`;
    this.#say(
      `-- ${operation + 1}: a client of ${name} ${mode} ${extents}${priority > 0 ? `, priority ${priority}` : ''}`,
    );
    this.#world.take({ kind: 'issue', operation });
    return operation;
  }

  finish(operation: number): void {
    this.#say(`-- ${operation + 1} ends`);
    this.#world.take({ kind: 'finish', operation });
  }

  cancel(operation: number): void {
    this.#say(`-- ${operation + 1} is cancelled`);
    this.#world.take({ kind: 'cancel', operation });
  }

  /** All messages arrive. */
  pass(): void {
    for (let step = this.#delivery(); step !== undefined; step = this.#delivery()) this.#world.take(step);
    for (let extent = 0; extent < this.#extents; extent += 1) {
      const access = this.#world.machines.map((machine, node) => `${NAMES[node]} ${machine.holds(extent)}`);
      this.#say(`      extent ${extent}: ${access.join(', ')}`);
    }
  }

  get messages(): number {
    return this.#world.messages;
  }

  toString(): string {
    return `${this.#lines.join('\n')}\n`;
  }

  #delivery() {
    return this.#world.steps().find(({ kind }) => kind === 'deliver');
  }

  #nodeOf(operation: number): number {
    return this.#world.operations[operation]!.node;
  }

  #say(line: string): void {
    this.#lines.push(line);
  }
}

function inWords(message: PolicingMessage): string {
  const { kind, mode, extent, lamport } = message;
  return `${kind} ${mode} ${extent}, time ${lamport}${kind === 'request' && message.priority > 0 ? `, priority ${message.priority}` : ''}`;
}

const file = (name: string) => new URL(`transcripts/policing-${name}.txt`, import.meta.url).pathname;

describe('transcripts', () => {
  test('the first touch elsewhere costs a request and a grant, after that none', async () => {
    const two = new Transcript(2, 2);
    two.finish(two.ask('a', 'writes', 0));
    two.pass();
    const first = two.ask('b', 'writes', 0);
    two.pass();
    two.finish(first);
    two.finish(two.ask('b', 'writes', 0));
    two.finish(two.ask('b', 'reads', 0));
    two.pass();
    expect(two.messages).toBe(2);
    await expect(two.toString()).toMatchFileSnapshot(file('first-touch'));
  });

  test('a writer finishes what is in flight, then reads go on at both', async () => {
    const two = new Transcript(2, 1);
    const write = two.ask('a', 'writes', 0);
    const shared = two.ask('b', 'reads', 0);
    two.pass();
    two.ask('a', 'reads', 0);
    const later = two.ask('a', 'writes', 0);
    two.finish(write);
    two.pass();
    two.ask('b', 'reads', 0);
    two.finish(shared);
    two.pass();
    two.finish(later);
    two.pass();
    await expect(two.toString()).toMatchFileSnapshot(file('downgrade'));
  });

  test('both share and both want to write: the one that is first in the order does', async () => {
    const two = new Transcript(2, 1);
    const read = two.ask('b', 'reads', 0);
    two.pass();
    two.finish(read);
    const writes = [two.ask('b', 'writes', 0), two.ask('a', 'writes', 0)];
    two.pass();
    two.finish(writes[1]!);
    two.pass();
    two.finish(writes[0]!);
    await expect(two.toString()).toMatchFileSnapshot(file('crossed-upgrades'));
  });

  test('a higher priority goes first, although it comes later', async () => {
    const two = new Transcript(2, 1);
    const first = two.ask('a', 'writes', 0);
    const low = two.ask('b', 'writes', 0);
    two.pass();
    const high = two.ask('a', 'writes', 0, 0, 1);
    two.finish(first);
    two.finish(high);
    two.pass();
    two.finish(low);
    await expect(two.toString()).toMatchFileSnapshot(file('priority'));
  });

  test('several extents are acquired in ascending order, and yielded to those before', async () => {
    const two = new Transcript(2, 3);
    const first = two.ask('a', 'writes', 1);
    const long = two.ask('b', 'writes', 0, 2);
    two.pass();
    const high = two.ask('a', 'writes', 0, 0, 1);
    two.pass();
    two.finish(high);
    two.pass();
    two.finish(first);
    two.pass();
    two.finish(long);
    await expect(two.toString()).toMatchFileSnapshot(file('several-extents'));
  });

  test('three nodes want to write one extent', async () => {
    const three = new Transcript(3, 1);
    const writes = [three.ask('b', 'writes', 0), three.ask('c', 'writes', 0)];
    three.pass();
    three.finish(writes[0]!);
    three.pass();
    three.ask('a', 'reads', 0);
    three.pass();
    three.finish(writes[1]!);
    three.pass();
    await expect(three.toString()).toMatchFileSnapshot(file('three-nodes'));
  });

  test('what was asked for under a cancelled request is given, and given back', async () => {
    const two = new Transcript(2, 1);
    const write = two.ask('a', 'writes', 0);
    const cancelled = two.ask('b', 'writes', 0);
    two.pass();
    two.cancel(cancelled);
    const later = two.ask('a', 'writes', 0);
    two.finish(write);
    two.pass();
    two.finish(later);
    await expect(two.toString()).toMatchFileSnapshot(file('cancelled'));
  });
});

const pair = (extents = 4) => [0, 1].map((self) => new Policing({ self, nodes: 2, extents, first: 0 }));

describe('access that nobody contests', () => {
  test('starts any number of operations without a message', () => {
    const [holder] = pair();
    for (let index = 0; index < 100; index += 1) {
      expect(holder!.tryStart(0, 3, index % 2 === 0 ? 'exclusive' : 'shared')).toBe(true);
    }
    for (let index = 0; index < 100; index += 1) {
      expect(holder!.finish(0, 3, index % 2 === 0 ? 'exclusive' : 'shared')).toBe(NO_EFFECTS);
    }
    expect(holder!.inUse()).toEqual([]);
  });

  test('is what the others have not', () => {
    const [, other] = pair();
    expect(other!.tryStart(0, 0, 'shared')).toBe(false);
    expect(other!.holds(0)).toBe('none');
  });

  test('what tryStart refuses has changed nothing', () => {
    const [holder] = pair();
    holder!.receive(1, request(2));
    const before = holder!.describe();
    expect(holder!.holds(2)).toBe('none');
    expect(holder!.tryStart(0, 3, 'shared')).toBe(false);
    expect(holder!.tryStart(2, 1, 'shared')).toBe(false);
    expect(holder!.tryStart(3, 4, 'shared')).toBe(false);
    expect(holder!.describe()).toBe(before);
  });
});

function request(extent: number, mode: AccessMode = 'exclusive', lamport = 1): PolicingMessage {
  return { kind: 'request', extent, mode, lamport, priority: 0 };
}

function grant(extent: number, mode: AccessMode = 'exclusive'): PolicingMessage {
  return { kind: 'grant', extent, mode, lamport: 1 };
}

describe('the next session', () => {
  test('begins with access at the first member, but for writes in flight', () => {
    const [holder, other] = pair();
    other!.request(7, 1, 1, 'exclusive', 0);
    holder!.receive(1, request(1));
    other!.receive(0, grant(1));
    holder!.tryStart(2, 2, 'exclusive');
    holder!.tryStart(3, 3, 'shared');
    const claims = [
      { node: 0, extents: holder!.inUse() },
      { node: 1, extents: other!.inUse() },
    ];
    expect(claims.map(({ extents }) => extents)).toEqual([[2], [1]]);
    for (const machine of [holder!, other!]) machine.restart(1, claims);
    expect([0, 1, 2, 3].map((extent) => holder!.holds(extent))).toEqual(['none', 'none', 'exclusive', 'none']);
    expect([0, 1, 2, 3].map((extent) => other!.holds(extent))).toEqual(['exclusive', 'exclusive', 'none', 'exclusive']);
    // The write goes on, and is waited for.
    expect(holder!.receive(1, request(2))).toEqual([]);
    expect(holder!.finish(2, 2, 'exclusive')).toEqual([
      { kind: 'send', to: 1, message: { kind: 'grant', extent: 2, mode: 'exclusive', lamport: expect.any(Number) } },
    ]);
    expect(holder!.finish(3, 3, 'shared')).toEqual([]);
  });

  test.each([
    [
      'both claim',
      [
        { node: 0, extents: [1] },
        { node: 1, extents: [0, 1] },
      ],
    ],
    ['an extent that does not exist', [{ node: 1, extents: [4] }]],
  ])('refuses claims that cannot be right: %s', (_, claims) => {
    const [holder] = pair();
    expect(() => holder!.restart(0, claims)).toThrow(expect.objectContaining({ code: 'ERR_HOLDFAST_OUT_OF_STEP' }));
  });

  test('does not begin without a write that is in flight', () => {
    const [holder] = pair();
    holder!.tryStart(2, 2, 'exclusive');
    expect(() => holder!.restart(1, [])).toThrow(/a write in flight keeps its access/);
  });

  test('forgets what waited', () => {
    const [holder] = pair();
    holder!.tryStart(0, 0, 'exclusive');
    holder!.receive(1, request(0));
    holder!.request(1, 0, 0, 'exclusive', 0);
    holder!.forgetWaiting();
    expect(holder!.waiting).toBe(0);
    expect(holder!.finish(0, 0, 'exclusive')).toBe(NO_EFFECTS);
    expect(holder!.tryStart(0, 0, 'exclusive')).toBe(true);
  });
});

describe('what cannot be right', () => {
  test.each([
    ['an extent that does not exist', request(4), 'ERR_HOLDFAST_BAD_FRAME'],
    ['a grant of what is here', grant(0), 'ERR_HOLDFAST_OUT_OF_STEP'],
    ['a shared grant of what is here', grant(0, 'shared'), 'ERR_HOLDFAST_OUT_OF_STEP'],
  ])('from a peer: %s', (_, message, code) => {
    const [holder] = pair();
    expect(() => holder!.receive(1, message)).toThrow(expect.objectContaining({ code }));
  });

  test('a grant that comes twice', () => {
    const [, other] = pair();
    other!.receive(0, grant(0, 'shared'));
    expect(() => other!.receive(0, grant(0, 'shared'))).toThrow(/which it does not have/);
  });

  test('from a caller', () => {
    const [holder] = pair();
    holder!.tryStart(0, 0, 'shared');
    expect(() => holder!.finish(0, 0, 'exclusive')).toThrow(/in flight/);
    expect(() => holder!.finish(3, 4, 'shared')).toThrow(/in flight/);
    expect(() => holder!.request(1, 3, 4, 'shared', 0)).toThrow(/extents of the volume/);
    expect(() => holder!.request(1, 0, 0, 'shared', MAX_PRIORITY + 1)).toThrow(/priority/);
    expect(() => holder!.cancel(1)).toThrow(/waits/);
    expect(() => holder!.receive(0, request(0))).toThrow(/from a peer/);
  });

  test('logical time stops rather than overflows, and requests still get their turn', () => {
    const [holder, other] = pair();
    holder!.tryStart(0, 0, 'exclusive');
    holder!.receive(1, request(0, 'exclusive', MAX_LAMPORT));
    expect(holder!.request(1, 0, 0, 'shared', 0)).toEqual([{ kind: 'start', id: 1 }]);
    holder!.finish(0, 0, 'exclusive');
    const [granted] = holder!.finish(0, 0, 'shared');
    expect(granted).toMatchObject({ kind: 'send', message: { kind: 'grant', lamport: MAX_LAMPORT } });
    other!.receive(0, grant(0));
    expect(other!.tryStart(0, 0, 'exclusive')).toBe(true);
  });
});

describe('on the wire', () => {
  const longest: PolicingMessage = {
    kind: 'request',
    extent: MAX_EXTENTS - 1,
    mode: 'exclusive',
    lamport: MAX_LAMPORT,
    priority: MAX_PRIORITY,
  };

  test.each([
    ['an unknown kind', { ...longest, kind: 'take' }],
    ['one field more', { ...longest, node: 1 }],
    ['an extent too high', { ...longest, extent: MAX_EXTENTS }],
    ['a negative extent', { ...longest, extent: -1 }],
    ['half an extent', { ...longest, extent: 0.5 }],
    ['a time from beyond', { ...longest, lamport: MAX_LAMPORT + 1 }],
    ['a time that is not a number', { ...longest, lamport: Number.NaN }],
    ['a priority too high', { ...longest, priority: MAX_PRIORITY + 1 }],
    ['a third mode', { ...longest, mode: 'none' }],
  ])('refuses %s', (_, message) => {
    expect(policingMessageSchema.safeParse(longest).success).toBe(true);
    expect(policingMessageSchema.safeParse(message).success).toBe(false);
  });

  test('a batch fits into a control body at its longest, and ends there', () => {
    const batch = new Array<PolicingMessage>(MAX_POLICING_MESSAGES).fill(longest);
    expect(encodeControl(policingBatchSchema.parse(batch)).length).toBeLessThan(60 * 1024);
    expect(policingBatchSchema.safeParse([...batch, longest]).success).toBe(false);
    expect(policingBatchSchema.safeParse([]).success).toBe(false);
  });
});
