/** Two sessions face to face, in virtual time. Review test/peer/golden/session.txt. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isHoldfastError } from '../../lib/base/errors.ts';
import {
  ChannelNumber,
  controlFrame,
  type Frame,
  FrameKind,
  frameBytes,
  HEADER_BYTES,
  headFor,
  type OutgoingFrame,
} from '../../lib/peer/frame.ts';
import {
  type ChannelLimits,
  type IncomingRequest,
  type OutgoingRequest,
  REQUEST_OVERHEAD_BYTES,
  Session,
  type SessionEffect,
  type SessionEvent,
} from '../../lib/peer/session.ts';

const KIND_NAMES = new Map(Object.entries(FrameKind).map(([name, kind]) => [kind as number, name]));
const LIMITS: ChannelLimits = {
  windowBytes: 10_000,
  answerBudgetBytes: 8000,
  replyBudgetBytes: 8000,
  handlersMax: 4,
  waitingMax: 100,
};

interface Request extends OutgoingRequest {
  readonly label: string;
}

class End {
  readonly name: string;
  readonly session: Session<Request>;
  readonly inbox: Frame[] = [];
  readonly handling: IncomingRequest[] = [];
  readonly settled: string[] = [];
  ended: { reason: string; lost: string[] } | undefined;
  wakeMs = Number.POSITIVE_INFINITY;
  sequence = 0;
  /** What the socket takes. */
  roomBytes = Number.POSITIVE_INFINITY;
  peer!: End;
  readonly log: (line: string) => void;

  constructor(name: string, peer: string, limits: Partial<ChannelLimits>, log: (line: string) => void) {
    this.name = name;
    this.log = log;
    const channel = { ...LIMITS, ...limits };
    this.session = new Session({
      peer,
      heartbeatMs: 500,
      leaseMs: 3000,
      limits: { 0: channel, 1: channel },
      peerWindowBytes: { 0: channel.windowBytes, 1: channel.windowBytes },
      method: (id) => (id === 9 ? undefined : { requestDataMaxBytes: 8000, responseDataMaxBytes: 8000 }),
    });
  }

  step(event: SessionEvent<Request>): void {
    this.perform(this.session.step(event));
  }

  perform(effects: SessionEffect<Request>[]): void {
    for (const effect of effects) {
      switch (effect.kind) {
        case 'send':
          this.send(effect.frame);
          break;
        case 'flush':
          this.step({ kind: 'room', bytes: this.roomBytes });
          break;
        case 'wake':
          this.wakeMs = effect.atMs;
          break;
        case 'handle':
          this.log(`${this.name}: handles request ${effect.request.requestId}`);
          this.handling.push(effect.request);
          break;
        case 'settle':
          this.log(`${this.name}: ${effect.request.label} is answered (${KIND_NAMES.get(effect.frame.header.kind)})`);
          this.settled.push(effect.request.label);
          break;
        case 'goodbye':
          this.step({ kind: 'close', reason: 'goodbye', goodbye: false });
          break;
        case 'ended':
          this.ended = { reason: effect.reason, lost: effect.lost.map(({ label }) => label) };
          this.log(`${this.name}: ended, ${effect.reason}; lost: ${this.ended.lost.join(' ') || 'none'}`);
      }
    }
  }

  send(frame: OutgoingFrame): void {
    const { kind, channel, method, parameter, requestId, head, data, dataLength } = frame;
    const controlLength = head.length - HEADER_BYTES;
    const header = {
      kind,
      channel,
      method,
      parameter,
      requestId,
      sequence: this.sequence++,
      controlLength,
      dataLength,
      bodyChecksum: 0,
    };
    const size = dataLength > 0 ? `, ${dataLength} bytes` : '';
    const number = kind === FrameKind.grant ? `${requestId} for ${parameter} ms` : requestId;
    this.log(`${this.name} → ${this.peer.name}  ${KIND_NAMES.get(kind)} ${number}${size}`);
    this.roomBytes -= frameBytes(frame);
    this.peer.inbox.push({ header, control: head.subarray(HEADER_BYTES), data: Buffer.concat(data) });
  }

  /** Takes what has come, as the parser would hand it on. */
  receive(nowMs: number): void {
    for (let frame = this.inbox.shift(); frame !== undefined; frame = this.inbox.shift()) {
      this.session.admit(frame.header);
      this.step({ kind: 'frame', frame, nowMs });
    }
  }

  answer(request: IncomingRequest, dataLength = 0): void {
    this.handling.splice(this.handling.indexOf(request), 1);
    this.step({
      kind: 'answered',
      request,
      frame: message(FrameKind.response, request.requestId, request.channel, dataLength),
    });
  }
}

function message(
  kind: FrameKind,
  requestId: number,
  channel: ChannelNumber,
  dataLength: number,
  answerMax = 0,
): OutgoingFrame {
  const data = dataLength === 0 ? [] : [new Uint8Array(dataLength)];
  const head = headFor(new Uint8Array(0));
  return {
    kind,
    channel,
    method: kind === FrameKind.request ? 1 : 0,
    parameter: answerMax,
    requestId,
    head,
    data,
    dataLength,
  };
}

let nextId = 1;

function request(dataLength = 0, answerMax = 0, channel: ChannelNumber = ChannelNumber.bulk, label = ''): Request {
  const requestId = nextId++;
  const frame = message(FrameKind.request, requestId, channel, dataLength, answerMax);
  return { frame, cancelled: false, released: false, label: label || `request ${requestId}` };
}

function faceToFace(
  limits: Partial<ChannelLimits> = {},
  log: (line: string) => void = () => {},
): { a: End; b: End; settle: (nowMs: number) => void } {
  nextId = 1;
  const a = new End('a', 'b', limits, log);
  const b = new End('b', 'a', limits, log);
  a.peer = b;
  b.peer = a;
  a.step({ kind: 'opened', nowMs: 0 });
  b.step({ kind: 'opened', nowMs: 0 });
  const settle = (nowMs: number): void => {
    while (a.inbox.length + b.inbox.length > 0) {
      a.receive(nowMs);
      b.receive(nowMs);
    }
  };
  return { a, b, settle };
}

test('the transcript', async () => {
  const lines: string[] = [];
  const { a, b, settle } = faceToFace({}, (line) => lines.push(line));
  const chapter = (title: string): void => void lines.push('', `# ${title}`);
  const leases = (): void => {
    for (const { name, session } of [a, b]) {
      const { leaseHeldUntilMs: held, leaseGrantedUntilMs: granted, roundTripMs: trip } = session;
      lines.push(`${name}: holds until ${held}, granted until ${granted}, round trip ${trip}`);
    }
  };
  lines.push('(at 0 ms both opened)');
  chapter('10 ms later the heartbeats arrive; the grants 10 ms after that');
  const first = [a.inbox.splice(0), b.inbox.splice(0)];
  a.inbox.push(...first[0]!);
  b.inbox.push(...first[1]!);
  a.receive(10);
  const later = b.inbox.splice(first[1]!.length);
  b.receive(10);
  b.inbox.push(...later);
  leases();
  settle(20);
  leases();
  chapter('a asks twice; b answers the second first');
  a.step({ kind: 'request', request: request(1000, 0) });
  a.step({ kind: 'request', request: request(0, 4000) });
  settle(30);
  b.answer(b.handling[1]!, 4000);
  b.answer(b.handling[0]!);
  settle(40);
  chapter('b falls silent; a tries, and gives up');
  a.step({ kind: 'request', request: request() });
  b.inbox.length = 0;
  for (const nowMs of [500, 1000, 1500, 2000, 2500, 3000, 3040]) {
    lines.push(`(${nowMs} ms)`);
    a.step({ kind: 'tick', nowMs });
  }
  leases();
  await expect(lines.join('\n').concat('\n')).toMatchFileSnapshot('golden/session.txt');
});

describe('credit', () => {
  test('requests beyond the window wait, and go when answers come, in order', () => {
    const { a, b, settle } = faceToFace({ handlersMax: 100 });
    for (let index = 0; index < 5; index++) a.step({ kind: 'request', request: request(4000) });
    settle(1);
    // 4000 bytes and the overhead fit twice into 10 000.
    expect(b.handling.map(({ requestId }) => requestId)).toEqual([1, 2]);
    expect(b.session.heldBytes).toBe(2 * (4000 + REQUEST_OVERHEAD_BYTES));
    b.answer(b.handling[1]!);
    settle(2);
    expect(b.handling.map(({ requestId }) => requestId)).toEqual([1, 3]);
  });

  test('a request that can never fit, and one too many that wait, are errors of the caller', () => {
    const { a } = faceToFace({ waitingMax: 3 });
    const codeOf = (asked: Request): string => {
      try {
        a.step({ kind: 'request', request: asked });
        return 'taken';
      } catch (error) {
        return (error as { code: string }).code;
      }
    };
    expect(codeOf(request(9900))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
    expect(codeOf(request(0, 8001))).toBe('ERR_HOLDFAST_BAD_ARGUMENT');
    const outcomes = [1, 2, 3, 4, 5, 6].map(() => codeOf(request(5000)));
    expect(outcomes).toEqual([
      'taken',
      'taken',
      'taken',
      'taken',
      'ERR_HOLDFAST_QUEUE_FULL',
      'ERR_HOLDFAST_QUEUE_FULL',
    ]);
  });

  test('answers are bounded by the asker, and handlers start only when their answers fit', () => {
    const { a, b, settle } = faceToFace({ answerBudgetBytes: 8000, replyBudgetBytes: 5000 });
    for (let index = 0; index < 4; index++) a.step({ kind: 'request', request: request(0, 3000) });
    settle(1);
    // Two of 3000 fit into the asker's 8000; one into the answerer's 5000.
    expect(b.handling.map(({ requestId }) => requestId)).toEqual([1]);
    b.answer(b.handling[0]!, 3000);
    expect(b.handling.map(({ requestId }) => requestId)).toEqual([2]);
    settle(2);
    b.answer(b.handling[0]!, 3000);
    settle(3);
    expect(a.settled).toEqual(['request 1', 'request 2']);
    expect(b.handling.map(({ requestId }) => requestId)).toEqual([3]);
  });

  test('a cancelled request that waits is never sent', () => {
    const { a, b, settle } = faceToFace();
    const asked = [request(6000), request(6000), request(6000)];
    for (const each of asked) a.step({ kind: 'request', request: each });
    asked[1]!.cancelled = true;
    settle(1);
    b.answer(b.handling[0]!);
    settle(2);
    expect(b.handling.map(({ requestId }) => requestId)).toEqual([3]);
  });

  test('both directions full at once do not wait for each other', () => {
    const { a, b, settle } = faceToFace({ handlersMax: 1, waitingMax: 1000 });
    for (let index = 0; index < 200; index++) {
      a.step({ kind: 'request', request: request(2000, 2000) });
      b.step({ kind: 'request', request: request(2000, 2000) });
    }
    let rounds = 0;
    while (a.settled.length + b.settled.length < 400) {
      settle(1);
      for (const end of [a, b]) if (end.handling.length > 0) end.answer(end.handling[0]!, 2000);
      expect(++rounds).toBeLessThan(1000);
    }
    expect(a.session.heldBytes + b.session.heldBytes).toBe(0);
  });

  test('memory stays within the window whatever is asked and however it is answered; order holds; all is answered', () => {
    const action = fc.record({
      from: fc.constantFrom('a' as const, 'b' as const),
      do: fc.constantFrom('ask', 'ask', 'answer', 'room', 'stall', 'move'),
      data: fc.nat(8000),
      answer: fc.nat(8000),
      channel: fc.constantFrom(0 as const, 1 as const),
      which: fc.nat(3),
    });
    fc.assert(
      fc.property(fc.array(action, { maxLength: 150 }), (actions) => {
        const { a, b, settle } = faceToFace({ waitingMax: 1000 });
        const started = { a: [] as number[], b: [] as number[] };
        let asked = 0;
        const note = (): void => {
          for (const end of [a, b]) {
            expect(end.session.heldBytes).toBeLessThanOrEqual(2 * LIMITS.windowBytes);
            for (const { requestId, channel } of end.handling) {
              const seen = started[end.name as 'a'];
              const key = requestId * 2 + channel;
              if (seen.includes(key)) continue;
              expect(seen.filter((other) => other % 2 === channel).every((other) => other < key)).toBe(true);
              seen.push(key);
            }
          }
        };
        for (const each of actions) {
          const end = each.from === 'a' ? a : b;
          if (each.do === 'ask') {
            asked++;
            end.step({ kind: 'request', request: request(each.data, each.answer, each.channel) });
          } else if (each.do === 'answer' && end.handling.length > 0) {
            const handled = end.handling[each.which % end.handling.length]!;
            end.answer(handled, handled.answerMaxBytes);
          } else if (each.do === 'stall') end.roomBytes = 0;
          else if (each.do === 'room') {
            end.roomBytes = Number.POSITIVE_INFINITY;
            end.step({ kind: 'room', bytes: end.roomBytes });
          } else settle(1);
          note();
        }
        for (let round = 0; a.settled.length + b.settled.length < asked; round++) {
          expect(round).toBeLessThan(1000);
          for (const end of [a, b]) {
            end.roomBytes = Number.POSITIVE_INFINITY;
            end.step({ kind: 'room', bytes: end.roomBytes });
            for (const handled of [...end.handling]) end.answer(handled, handled.answerMaxBytes);
          }
          settle(1);
          note();
        }
        expect(a.session.heldBytes + b.session.heldBytes).toBe(0);
      }),
      { numRuns: 100 },
    );
  });
});

test('control goes before bulk that waits, and a stalled peer gets no endless grants', () => {
  const { a, b } = faceToFace();
  a.receive(1);
  b.inbox.length = 0;
  a.roomBytes = 1;
  for (let index = 0; index < 3; index++) a.step({ kind: 'request', request: request(2000) });
  a.step({ kind: 'request', request: request(0, 0, ChannelNumber.control, 'ping') });
  expect(b.inbox.map(({ header }) => [KIND_NAMES.get(header.kind), header.channel])).toEqual([
    ['request', 1],
    ['request', 0],
  ]);
  b.inbox.length = 0;
  a.roomBytes = -2 * 1024 * 1024;
  for (let number = 1; number <= 1000; number++) a.step({ kind: 'frame', frame: heartbeat(number), nowMs: 2 });
  expect(b.inbox).toEqual([]);
  a.step({ kind: 'room', bytes: 1 });
  const grants = b.inbox.filter(({ header }) => header.kind === FrameKind.grant);
  expect(grants.map(({ header }) => header.requestId)).toEqual([1000]);
});

function heartbeat(number: number): Frame {
  const frame = controlFrame(FrameKind.heartbeat, { requestId: number });
  const { kind, channel, method, parameter, requestId } = frame;
  const header = {
    kind,
    channel,
    method,
    parameter,
    requestId,
    sequence: 0,
    controlLength: 0,
    dataLength: 0,
    bodyChecksum: 0,
  };
  return { header, control: new Uint8Array(0), data: new Uint8Array(0) };
}

describe('a peer that does not keep to the rules', () => {
  const header = (fields: object) => ({
    kind: FrameKind.request as FrameKind,
    channel: ChannelNumber.bulk,
    method: 1,
    parameter: 0,
    requestId: 1,
    sequence: 0,
    controlLength: 0,
    dataLength: 0,
    bodyChecksum: 0,
    ...fields,
  });

  test.each([
    ['sends beyond its window', { dataLength: 8000, controlLength: 3000 }, 'beyond the window'],
    ['brings more data than the method takes', { dataLength: 8001 }, 'over its limits'],
    ['asks for more data than the method gives', { parameter: 8001 }, 'over its limits'],
    ['answers what was not asked', { kind: FrameKind.response }, 'to no request'],
    ['puts data into a heartbeat', { kind: FrameKind.heartbeat, dataLength: 1 }, 'not due in a session'],
    ['puts data into a failure', { kind: FrameKind.failure, dataLength: 1 }, 'not due in a session'],
    ['starts another handshake', { kind: FrameKind.hello }, 'not due in a session'],
  ])('%s: is refused before its bytes are held', (_name, fields, words) => {
    const { a } = faceToFace();
    try {
      a.session.admit(header(fields));
      expect.unreachable();
    } catch (error) {
      expect(isHoldfastError(error, 'ERR_HOLDFAST_BAD_FRAME')).toBe(true);
      expect((error as Error).message).toContain(words);
    }
  });

  test('an unknown method is no crime: the window bounds it', () => {
    const { a } = faceToFace();
    a.session.admit(header({ method: 9, dataLength: 9000 }));
  });

  test('more data in an answer than was asked for is refused', () => {
    const { a, b, settle } = faceToFace();
    a.step({ kind: 'request', request: request(0, 100) });
    settle(1);
    expect(b.handling).toHaveLength(1);
    a.session.admit(header({ kind: FrameKind.response, dataLength: 100 }));
    expect(() => a.session.admit(header({ kind: FrameKind.response, dataLength: 101 }))).toThrow(/where 100 may come/);
  });
});

test('at the end every request without an answer is given back once, sent or not', () => {
  const { a, b, settle } = faceToFace();
  for (const label of ['one', 'two', 'three', 'four'])
    a.step({ kind: 'request', request: request(4000, 0, ChannelNumber.bulk, label) });
  settle(1);
  b.answer(b.handling[0]!);
  settle(2);
  a.step({ kind: 'close', reason: 'enough', goodbye: false });
  a.step({ kind: 'close', reason: 'again', goodbye: false });
  expect([a.settled, a.ended]).toEqual([['one'], { reason: 'enough', lost: ['two', 'three', 'four'] }]);
});
