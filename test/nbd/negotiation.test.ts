import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type ExportFacts, ServerNegotiation } from '../../lib/nbd/negotiation.ts';
import { encodeInfoRequest, encodeOption, encodeText, Info, Option, writeU32 } from '../../lib/nbd/wire.ts';
import { Conversation, NegotiationFeeder } from './transcript.ts';

function facts(name: string, description?: string): ExportFacts {
  return {
    name,
    description,
    sizeBytes: 1048576,
    transmissionFlags: 0b1101101,
    minimumBlockBytes: 1,
    preferredBlockBytes: 4096,
    maximumPayloadBytes: 33554432,
  };
}

const known = new Map([
  ['disk', facts('disk', 'the disk')],
  ['other', facts('other')],
]);

function negotiation(): ServerNegotiation {
  return new ServerNegotiation({
    names: () => known.keys(),
    find: (name) => known.get(name === '' ? 'disk' : name),
  });
}

function u32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  writeU32(bytes, 0, value);
  return bytes;
}

function metaRequest(exportName: string, queries: readonly string[]): Uint8Array {
  const name = encodeText(exportName);
  return Buffer.concat([
    u32(name.length),
    name,
    u32(queries.length),
    ...queries.flatMap((query) => [u32(query.length), encodeText(query)]),
  ]);
}

describe('the handshake of a server', () => {
  test('with a modern client, as qemu and libnbd speak', () => {
    const queries = ['qemu:dirty-bitmap:x', 'base:allocation'];
    const talk = new Conversation(negotiation())
      .option(Option.structuredReply)
      .option(Option.list)
      .option(Option.listMetaContext, metaRequest('', []), 'of the default export')
      .option(Option.setMetaContext, metaRequest('', queries), `${queries}`)
      .option(Option.info, encodeInfoRequest('', [Info.name, Info.description, Info.blockSize]), 'name and all')
      .option(Option.go, encodeInfoRequest('disk', [Info.blockSize]), 'disk, with block sizes');
    expect(`\n${talk.lines.join('\n')}\n`).toMatchInlineSnapshot(`
      "
      C: client flags 3
      C: structuredReply
        S: structuredReply: ack
      C: list
        S: list: server "disk" "the disk"
        S: list: server "other" ""
        S: list: ack
      C: listMetaContext of the default export
        S: listMetaContext: metaContext 0 "base:allocation"
        S: listMetaContext: ack
      C: setMetaContext qemu:dirty-bitmap:x,base:allocation
        S: setMetaContext: metaContext 1 "base:allocation"
        S: setMetaContext: ack
      C: info name and all
        S: info: info export of 1048576 bytes, flags 0b11101101
        S: info: info name "disk"
        S: info: info description "the disk"
        S: info: info blocks of 1, better 4096, at most 33554432
        S: info: ack
      C: go disk, with block sizes
        S: go: info export of 1048576 bytes, flags 0b11101101
        S: go: info blocks of 1, better 4096, at most 33554432
        S: go: ack
        → transmission of "disk", structured replies, block status
      "
    `);
  });

  test('with an old client that knows only NBD_OPT_EXPORT_NAME', () => {
    const plain = new Conversation(negotiation(), 0).option(Option.exportName, 'disk');
    const noZeroes = new Conversation(negotiation(), 3).option(Option.exportName, 'disk');
    const unknown = new Conversation(negotiation(), 3).option(Option.exportName, 'nothing');
    const other = new Conversation(negotiation(), 0).option(Option.list);
    const lines = [plain, noZeroes, unknown, other].flatMap((talk) => [...talk.lines, '']);
    expect(`\n${lines.join('\n')}`).toMatchInlineSnapshot(`
      "
      C: client flags 0
      C: exportName disk
        S: export of 1048576 bytes, and 124 zeroes
        → transmission of "disk", simple replies

      C: client flags 3
      C: exportName disk
        S: export of 1048576 bytes, and 0 zeroes
        → transmission of "disk", simple replies

      C: client flags 3
      C: exportName nothing
        → drop: NBD_OPT_EXPORT_NAME with a name that is not exported

      C: client flags 0
      C: list
        → drop: a client that does not speak fixed newstyle sent an option other than NBD_OPT_EXPORT_NAME
      "
    `);
  });

  test('answers what it cannot do, and goes on', () => {
    const talk = new Conversation(negotiation())
      .option(Option.startTls)
      .option(Option.startTls, 'and data')
      .option(11)
      .option(4, 'peek')
      .option(0xffffffff, new Uint8Array(100_000))
      .option(Option.list, new Uint8Array(100_000))
      .option(Option.list, 'and data')
      .option(Option.structuredReply, 'and data')
      .option(Option.setMetaContext, metaRequest('disk', ['base:allocation']), 'base:allocation')
      .option(Option.go, encodeInfoRequest('nothing', []), 'nothing')
      .option(Option.abort, 'bye');
    expect(`\n${talk.lines.join('\n')}\n`).toMatchInlineSnapshot(`
      "
      C: client flags 3
      C: startTls
        S: startTls: errPolicy "TLS is not configured on this server"
      C: startTls and data
        S: startTls: errInvalid "NBD_OPT_STARTTLS takes no data"
      C: 0xb
        S: 0xb: errUnsup "option 11 is not supported"
      C: 0x4 peek
        S: 0x4: errUnsup "option 4 is not supported"
      C: 0xffffffff 100000 bytes
        S: 0xffffffff: errUnsup "option 4294967295 is not supported"
      C: list 100000 bytes
        S: list: errTooBig "at most 16384 bytes of option data"
      C: list and data
        S: list: errInvalid "NBD_OPT_LIST takes no data"
      C: structuredReply and data
        S: structuredReply: errInvalid "NBD_OPT_STRUCTURED_REPLY takes no data"
      C: setMetaContext base:allocation
        S: setMetaContext: errInvalid "negotiate structured replies before metadata contexts"
      C: go nothing
        S: go: errUnknown "there is no export \\"nothing\\""
      C: abort bye
        S: abort: ack
        → end: the client aborted the negotiation
      "
    `);
  });

  test('a metadata context is lost by a later selection that fails, and belongs to its export', () => {
    const select = metaRequest('disk', ['base:allocation']);
    const chosen = (): Conversation =>
      new Conversation(negotiation()).option(Option.structuredReply).option(Option.setMetaContext, select);
    const go = (name: string): Uint8Array => encodeInfoRequest(name, []);
    expect(chosen().option(Option.go, go('disk')).last).toMatch(/"disk", structured replies, block status$/);
    expect(chosen().option(Option.go, go('other')).last).toMatch(/"other", structured replies$/);
    const failed = chosen().option(Option.setMetaContext, 'rubbish').option(Option.go, go('disk'));
    expect(failed.last).toMatch(/"disk", structured replies$/);
    const wildcard = chosen().option(Option.setMetaContext, metaRequest('disk', ['base:']));
    expect(wildcard.option(Option.go, go('disk')).last).toMatch(/"disk", structured replies$/);
  });
});

describe('a hostile client', () => {
  test.each([
    ['a name longer than the option (CVE-2022-26496)', Buffer.concat([u32(0xfffffffa), encodeText('disk\0\0')])],
    ['a name that leaves no room for the count', Buffer.concat([u32(5), encodeText('diskx\0')])],
    ['a count that does not match', Buffer.concat([u32(4), encodeText('disk'), Buffer.from([0xff, 0xff])])],
    ['a name with a NUL', Buffer.concat([u32(4), encodeText('di\0k'), Buffer.from([0, 0])])],
    ['a name that is not UTF-8', Buffer.concat([u32(4), Buffer.from([0xff, 0xfe, 0x80, 0x80, 0, 0])])],
    ['no data', new Uint8Array(0)],
  ])('sends NBD_OPT_GO with %s and gets an error', (_what, data) => {
    const talk = new Conversation(negotiation()).option(Option.go, data);
    expect(talk.lines).toHaveLength(3);
    expect(talk.last).toMatch(/go: errInvalid/);
  });

  test('names an export in more than 4096 bytes and gets an error', () => {
    const go = (length: number): Conversation =>
      new Conversation(negotiation()).option(Option.go, encodeInfoRequest('x'.repeat(length), []));
    expect(go(4097).last).toMatch(/go: errTooBig "the export name is longer than 4096 bytes"/);
    expect(go(4096).last).toMatch(/go: errUnknown/);
    expect(new Conversation(negotiation()).option(Option.exportName, 'x'.repeat(4097)).last).toMatch(/→ drop/);
  });

  test('selects metadata contexts with lengths that overflow and gets an error', () => {
    const select = (...parts: Uint8Array[]): string =>
      new Conversation(negotiation())
        .option(Option.structuredReply)
        .option(Option.setMetaContext, Buffer.concat([u32(4), encodeText('disk'), ...parts])).last;
    expect(select(u32(0xffffffff), u32(0xffffffff))).toMatch(/errTooBig "at most 64 queries"/);
    expect(select(u32(1), u32(0xffffffff))).toMatch(/errInvalid "the query is longer than the option"/);
    expect(select(u32(2), u32(0))).toMatch(/errInvalid "the option is shorter than its queries"/);
    expect(select(u32(0), u32(0))).toMatch(/errInvalid "the option is longer than its queries"/);
  });

  test('announces a huge option and is dropped before anything of it is held', () => {
    const header = encodeOption(Option.go, new Uint8Array(0));
    writeU32(header, 12, 0xffffffff);
    const talk = new Conversation(negotiation()).raw('go with 4 GiB', header);
    expect(talk.last).toBe('  → drop: an option with 4294967295 bytes of data');
  });

  test('floods with options and is dropped', () => {
    const talk = new Conversation(negotiation());
    for (let count = 0; count < 128; count += 1) talk.option(Option.list);
    expect(talk.last).toBe('  S: list: ack');
    expect(talk.option(Option.list).last).toBe('  → drop: more than 128 options');
  });

  test('sets unknown client flags and is dropped', () => {
    expect(new Conversation(negotiation(), 4).last).toBe('  → drop: unknown client flags 0x4');
  });

  test('speaks HTTP and is dropped', () => {
    const feeder = new NegotiationFeeder(negotiation());
    const effects = feeder.feed(encodeText('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'));
    expect(effects.map((effect) => effect.type)).toEqual(['drop']);
  });

  test('does not finish before the deadline and is dropped, once', () => {
    expect(new Conversation(negotiation()).deadline().last).toBe('  → drop: the handshake took too long');
    const half = encodeOption(Option.go, new Uint8Array(9)).subarray(0, 20);
    const talk = new Conversation(negotiation()).raw('half an option', half).deadline().deadline();
    expect(talk.lines.slice(-3)).toEqual(['* the deadline', '  → drop: the handshake took too long', '* the deadline']);
  });
});

describe('any bytes in any pieces', () => {
  const options = fc.oneof(
    fc.constantFrom(
      encodeOption(Option.structuredReply, new Uint8Array(0)),
      encodeOption(Option.list, new Uint8Array(0)),
      encodeOption(Option.info, encodeInfoRequest('disk', [3])),
      encodeOption(Option.setMetaContext, metaRequest('disk', ['base:allocation'])),
      encodeOption(Option.go, encodeInfoRequest('nowhere', [])),
      encodeOption(0xdeadbeef, new Uint8Array(20_000)),
    ),
    fc
      .tuple(fc.constantFrom(...Object.values(Option), 11, 99), fc.uint8Array({ maxLength: 64 }))
      .map(([option, data]) => encodeOption(option, data)),
  );
  const streams = fc
    .tuple(
      fc.constantFrom(0, 1, 2, 3, 4),
      fc.array(options, { maxLength: 6 }),
      fc.uint8Array({ maxLength: 48 }),
      fc.option(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 }))),
    )
    .map(([flags, said, tail, damage]) => {
      const bytes = Buffer.concat([u32(flags), ...said, tail]);
      if (damage !== null) {
        const at = damage[0] % bytes.length;
        bytes[at] = bytes[at]! ^ damage[1];
      }
      return bytes;
    });
  const cuts = fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 50 });

  test('the outcome does not depend on how the stream is cut, and nothing throws', () => {
    const check = fc.property(streams, cuts, (bytes, lengths) => {
      const whole = new NegotiationFeeder(negotiation());
      whole.feed(bytes);
      const cut = new NegotiationFeeder(negotiation());
      for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
        const length = lengths[turn % lengths.length]!;
        cut.feed(bytes.subarray(at, at + length));
        at += length;
      }
      expect(cut.effects).toEqual(whole.effects);
      expect(cut.negotiation.state).toBe(whole.negotiation.state);
      const last = whole.effects.at(-1)?.type;
      if (whole.negotiation.state === 'closed') expect(['drop', 'end']).toContain(last);
      if (whole.negotiation.state === 'transmission') expect(last).toBe('transmit');
    });
    fc.assert(check, { numRuns: 300 });
  });
});
