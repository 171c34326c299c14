/**
 * Golden bytes: what sg_xcopy and sg_copy_results (Debian's sg3-utils 1.46) sent to, and got from, two logical units of
 * Linux's own target (LIO, kernel 6.1).
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  copyList,
  copyParametersCommand,
  decodeCopyParameters,
  decodeIdentification,
  decodeInquiry,
  decodeSense,
  extendedCopyCommand,
  identificationCommand,
  inquiryCommand,
  senseText,
} from '../../lib/storage/scsi.ts';

const bytes = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex.replaceAll(/\s/g, ''), 'hex'));
const hex = (data: Uint8Array): string => Buffer.from(data).toString('hex');

const inquiry = bytes(`
  00 00 06 02 5b b8 00 02  4c 49 4f 2d 4f 52 47 20
  49 42 4c 4f 43 4b 20 20  20 20 20 20 20 20 20 20  34 2e 30 20`);
const identification = bytes(`
  00 83 00 89 01 03 00 10  60 01 40 5d fa 00 00 00
  00 00 00 00 00 00 00 00  02 01 00 19 4c 49 4f 2d
  4f 52 47 20 49 42 4c 4f  43 4b 3a 68 6f 6c 64 66
  61 73 74 30 00 61 94 00  04 00 00 00 01 61 95 00
  04 00 00 00 00 01 06 00  04 00 00 00 00 63 98 00
  20 6e 61 61 2e 36 30 30  31 34 30 35 61 61 61 61
  61 61 61 61 61 2c 74 2c  30 78 30 30 30 31 00 00
  00 63 a8 00 18 6e 61 61  2e 36 30 30 31 34 30 35
  61 61 61 61 61 61 61 61  61 00 00 00 00`);
const parameters = bytes(`
  00 00 00 2a 01 00 00 00  00 02 00 01 00 00 04 00
  10 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
  00 00 00 01 01 09 09 09  00 00 00 02 02 e4`);
const list = bytes(`
  01 11 00 40 00 00 00 00  00 00 00 1c 00 00 00 00
  e4 00 00 00 01 03 00 10  60 01 40 5d fa 00 00 00
  00 00 00 00 00 00 00 00  00 00 00 00 00 00 02 00
  e4 00 00 00 01 03 00 10  60 01 40 5d fa 10 00 00
  00 00 00 00 00 00 00 00  00 00 00 00 00 00 02 00
  02 00 00 18 00 00 00 01  00 00 00 64 00 00 00 00
  00 00 10 00 00 00 00 00  00 00 00 4d`);

const source = { codeSet: 1, type: 3, bytes: bytes('6001405dfa0000000000000000000000') };
const target = { codeSet: 1, type: 3, bytes: bytes('6001405dfa1000000000000000000000') };
const segment = { source, target, blockBytes: 512, sourceBlock: 4096, targetBlock: 77, blocks: 100, listId: 1 };

describe('commands', () => {
  test('are those that other programs send', () => {
    expect(hex(inquiryCommand())).toBe('120000002400');
    expect(hex(identificationCommand())).toBe('120183040000');
    expect(hex(copyParametersCommand())).toBe('84030000000000000000000002000000');
    expect(hex(extendedCopyCommand(0x6c))).toBe('830000000000000000000000006c0000');
  });

  test('a list of two units and a segment is the one that sg_xcopy sends', () => {
    // It asks for LIST ID USAGE 10b with a priority of 1; a priority of 0 is the highest.
    const expected = list.slice();
    expected[1] = 0x10;
    expect(hex(copyList(segment))).toBe(hex(expected));
  });

  test('a list without an identifier says that nothing is held', () => {
    const made = copyList({ ...segment, listId: 0 });
    expect([made[0], made[1]]).toEqual([0, 0x18]);
  });

  test('numbers larger than 32 bits and the largest block fit', () => {
    const made = copyList({
      ...segment,
      sourceBlock: 2 ** 45 + 3,
      targetBlock: 2 ** 40 + 5,
      blocks: 65_535,
      blockBytes: 0x012345,
    });
    expect(hex(made.subarray(80))).toBe('02000018000000010000ffff00002000000000030000010000000005');
    expect([hex(made.subarray(45, 48)), hex(made.subarray(77, 80))]).toEqual(['012345', '012345']);
  });
});

describe('answers', () => {
  test('to INQUIRY', () => {
    expect(decodeInquiry(inquiry)).toEqual({ isDisk: true, thirdPartyCopy: true });
    expect(decodeInquiry(bytes('00 00 06 02 5b b0'))).toEqual({ isDisk: true, thirdPartyCopy: false });
    // No unit there (peripheral qualifier 3), and a CD drive.
    expect(decodeInquiry(bytes('7f 00 06 02 5b b8'))?.isDisk).toBe(false);
    expect(decodeInquiry(bytes('05 80 06 02 5b b8'))?.isDisk).toBe(false);
    expect(decodeInquiry(bytes('00 00 06 02 5b'))).toBeUndefined();
  });

  test('with identifications give the name of the unit, not of the port or the target', () => {
    expect(decodeIdentification(identification)).toEqual(source);
  });

  test.each([
    ['the longer NAA', '01 03 00 08 50014381 07654321  01 03 00 10 600508b1001c4d2f 8a7b6c5d4e3f2a1b', 3, 16],
    ['an NAA before an EUI-64', '01 02 00 10 0011223344556677 8899aabbccddeeff 01 03 00 08 50014381 07654321', 3, 8],
    ['an EUI-64 where there is no NAA', '02 01 00 04 41424344 01 02 00 08 0011223344556677', 2, 8],
  ])('with identifications: %s', (_, page, type, length) => {
    const body = bytes(page);
    const found = decodeIdentification(Uint8Array.of(0, 0x83, body.length >> 8, body.length, ...body));
    expect([found?.type, found?.bytes.length]).toEqual([type, length]);
  });

  test.each([
    ['nothing', ''],
    ['a page of another kind', '00 80 00 0c 01 03 00 08 5001438107654321'],
    ['a name longer than the page', '00 83 00 0c 01 03 00 10 6001405dfa000000'],
    ['a name longer than what came', '00 83 00 14 01 03 00 10 6001405dfa000000'],
    ['a page that is longer than what came', '00 83 ff ff 01 03 00 10 6001405dfa'],
    ['an NAA of 20 bytes', '00 83 00 18 01 03 00 14 6001405dfa0000006001405dfa0000006001405d'],
    ['an NAA of no bytes', '00 83 00 04 01 03 00 00'],
    ['a name of the port', '00 83 00 0c 01 13 00 08 5001438107654321'],
    ['a name in ASCII', '00 83 00 0c 02 03 00 08 5001438107654321'],
    ['a serial number only', '00 83 00 08 02 01 00 04 41424344'],
  ])('with no good name are refused: %s', (_, page) => {
    expect(decodeIdentification(bytes(page))).toBeUndefined();
  });

  test('with operating parameters', () => {
    expect(decodeCopyParameters(parameters)).toEqual({
      descriptorsMax: 2,
      segmentsMax: 1,
      listBytesMax: 1024,
      segmentBytesMax: 268_435_456,
      heldDataBytesMax: 0,
      granularityBytes: 512,
      withoutListId: true,
      types: [0x02, 0xe4],
    });
  });

  test('with operating parameters whose lengths lie', () => {
    const lies = parameters.slice();
    // The list of types, longer than the whole.
    lies[43] = 255;
    expect(decodeCopyParameters(lies)?.types).toEqual([0x02, 0xe4]);
    // The whole, longer than what came.
    lies.set([0xff, 0xff, 0xff, 0xff]);
    expect(decodeCopyParameters(lies)?.types).toEqual([0x02, 0xe4]);
    // The whole, shorter than the list of types.
    lies.set([0, 0, 0, 0x29]);
    expect(decodeCopyParameters(lies)?.types).toEqual([0x02]);
    lies.set([0, 0, 0, 0x27]);
    expect(decodeCopyParameters(lies)).toBeUndefined();
    const huge = parameters.slice();
    huge[37] = 200;
    expect(decodeCopyParameters(huge)).toBeUndefined();
    expect(decodeCopyParameters(parameters.subarray(0, 43))).toBeUndefined();
  });

  test.each([
    ['70 00 06 00 00 00 00 0a 00 00 00 00 3f 0e 00 00 00 00', { key: 6, code: 0x3f, qualifier: 0x0e }],
    ['f1 00 2a 00 00 00 00 0a 00 00 00 00 0d 02 00 00 00 00', { key: 10, code: 0x0d, qualifier: 2 }],
    ['72 05 20 00 00 00 00 00', { key: 5, code: 0x20, qualifier: 0 }],
    ['f3 05 20 01', { key: 5, code: 0x20, qualifier: 1 }],
    // Cut off before the codes.
    ['70 00 05', { key: 5, code: 0, qualifier: 0 }],
    ['70 00', undefined],
    ['72 05 20', undefined],
    ['7f 05 20 00', undefined],
    ['', undefined],
  ])('with sense data %s', (data, sense) => {
    expect(decodeSense(bytes(data))).toEqual(sense);
  });

  test('are told in words', () => {
    expect(senseText({ key: 5, code: 0x20, qualifier: 0 })).toBe('sense 5/20/00: the command is not known');
    expect(senseText({ key: 11, code: 0x44, qualifier: 0 })).toBe('sense b/44/00');
    expect(senseText(undefined)).toBe('no sense data');
  });

  test('of any bytes at all are decoded to something true of them, or refused', () => {
    const near = fc
      .tuple(
        fc.constantFrom(inquiry, identification, parameters),
        fc.array(fc.tuple(fc.nat(140), fc.nat(255))),
        fc.nat(),
      )
      .map(([golden, changes, cut]) => {
        const data = golden.slice(0, cut % (golden.length + 1));
        for (const [at, value] of changes) if (at < data.length) data[at] = value;
        return data;
      });
    fc.assert(
      fc.property(fc.oneof(near, fc.uint8Array({ maxLength: 300 })), (data) => {
        decodeInquiry(data);
        decodeSense(data);
        const unit = decodeIdentification(data);
        if (unit !== undefined) {
          expect([8, 12, 16]).toContain(unit.bytes.length);
          expect(hex(data)).toContain(hex(unit.bytes));
        }
        const found = decodeCopyParameters(data);
        if (found !== undefined) expect(found.types.length).toBeLessThanOrEqual(data.length - 44);
      }),
      { numRuns: 2000 },
    );
  });
});
