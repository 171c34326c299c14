import { beforeEach, describe, expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import type { NativeScsiResult } from '../../lib/native.ts';
import { Declined, ExtendedCopy, type ScsiSend } from '../../lib/storage/extended-copy.ts';

const good = (data: Uint8Array = new Uint8Array(0)): NativeScsiResult => ({
  status: 0,
  hostStatus: 0,
  driverStatus: 0,
  sense: new Uint8Array(0),
  data,
});
const check = (key: number, code: number, qualifier: number): NativeScsiResult => ({
  ...good(),
  status: 2,
  driverStatus: 8,
  sense: Uint8Array.of(0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0),
});
const errno = (code: string): Error => Object.assign(new Error(`ioctl SG_IO: ${code}`), { code });

/** An array with two units of bytes, which does what the commands say, unless `answer` says something else. */
class FakeArray {
  readonly blockBytes = 512;
  readonly units = { source: new Uint8Array(1 << 20), target: new Uint8Array(1 << 20) };
  readonly names = { source: name(1), target: name(2) };
  readonly sent: string[] = [];
  thirdPartyCopy = true;
  /** Maximum descriptors, segments, list length, segment length, held data; log of granularity; no identifiers. */
  limits = { descriptors: 2, segments: 1, list: 1024, segment: 1 << 18, held: 0, granularity: 9, withoutListId: true };
  types = [0x02, 0xe4];
  /** Answers in place of the array, once each, by what is asked. */
  readonly instead = new Map<string, (NativeScsiResult | Error)[]>();
  readonly lists: Uint8Array[] = [];

  readonly send: ScsiSend = async (end, command, data, bytes) => {
    const kind = this.#kindOf(command);
    this.sent.push(`${kind} ${end}`);
    const answer = this.instead.get(kind)?.shift();
    if (answer instanceof Error) throw answer;
    if (answer !== undefined) return answer;
    return this.#answer(kind, end, data, bytes);
  };

  #kindOf(command: Uint8Array): string {
    const kinds: Record<number, string> = { 18: command[1] === 1 ? 'name' : 'inquiry', 131: 'copy', 132: 'limits' };
    return kinds[command[0]!] ?? 'unknown';
  }

  #answer(kind: string, end: 'source' | 'target', data: Uint8Array, bytes: number): NativeScsiResult {
    if (kind === 'name') return good(Uint8Array.of(0, 0x83, 0, 20, 1, 3, 0, 16, ...this.names[end]).subarray(0, bytes));
    if (kind === 'inquiry') return good(Uint8Array.of(0, 0, 6, 2, 91, this.thirdPartyCopy ? 8 : 0));
    if (kind === 'limits') return good(this.#limits());
    return this.#copy(data);
  }

  #limits(): Uint8Array {
    const data = new Uint8Array(44 + this.types.length);
    const view = new DataView(data.buffer);
    const { descriptors, segments, list, segment, held, granularity, withoutListId } = this.limits;
    view.setUint32(0, data.length - 4);
    data[4] = withoutListId ? 1 : 0;
    view.setUint16(8, descriptors);
    view.setUint16(10, segments);
    view.setUint32(12, list);
    view.setUint32(16, segment);
    view.setUint32(24, held);
    data[37] = granularity;
    data[43] = this.types.length;
    data.set(this.types, 44);
    return data;
  }

  #copy(list: Uint8Array): NativeScsiResult {
    this.lists.push(list);
    const view = new DataView(list.buffer, list.byteOffset);
    const found = [16, 48].map((at) => {
      const wanted = Buffer.from(list.subarray(at + 8, at + 8 + list[at + 7]!));
      const end = (['source', 'target'] as const).find((each) => wanted.equals(this.names[each]));
      return end === undefined ? undefined : this.units[end];
    });
    const [from, to] = [found[view.getUint16(84)], found[view.getUint16(86)]];
    if (from === undefined || to === undefined) return check(10, 0x0d, 2);
    const [start, place, blocks] = [Number(view.getBigUint64(92)), Number(view.getBigUint64(100)), view.getUint16(90)];
    to.set(from.subarray(start * this.blockBytes, (start + blocks) * this.blockBytes), place * this.blockBytes);
    return good();
  }
}

function name(last: number): Uint8Array {
  return Uint8Array.of(0x60, 0x01, 0x40, 0x5d, 0xfa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last);
}

let array: FakeArray;

beforeEach(() => {
  array = new FakeArray();
  array.units.source.forEach((_, i, unit) => {
    unit[i] = (i * 7 + (i >> 9)) & 0xff;
  });
});

const open = (sameUnit = false): Promise<ExtendedCopy> => ExtendedCopy.open(array.send, array.blockBytes, sameUnit);

describe('asking', () => {
  test('who they are and what the target can, then the copy', async () => {
    const copy = await open();
    expect([copy.grainBytes, copy.stepBytes]).toEqual([512, 1 << 18]);
    await copy.copy(1024, 512 * 9, 4096);
    expect(array.sent).toEqual(['name source', 'name target', 'inquiry target', 'limits target', 'copy target']);
    const expected = new Uint8Array(1 << 20);
    expected.set(array.units.source.subarray(1024, 1024 + 4096), 512 * 9);
    expect(Buffer.compare(array.units.target, expected)).toBe(0);
  });

  test('the source does it where the target does not', async () => {
    array.instead.set('limits', [check(5, 0x20, 0)]);
    const copy = await open();
    await copy.copy(0, 0, 512);
    expect(array.sent.slice(2)).toEqual([
      'inquiry target',
      'limits target',
      'inquiry source',
      'limits source',
      'copy source',
    ]);
    expect(array.units.target[7]).toBe(array.units.source[7]);
  });

  test('goes on after what a unit has to say first', async () => {
    array.instead.set('limits', [check(6, 0x3f, 0x0e), check(6, 0x29, 0)]);
    await open();
    expect(array.sent.filter((sent) => sent === 'limits target')).toHaveLength(3);
  });

  test.each<[string, () => void, RegExp]>([
    [
      'has something new to say each time',
      () =>
        array.instead.set(
          'name',
          [1, 2, 3].map(() => check(6, 0x29, 0)),
        ),
      /29/,
    ],
    ['takes no commands', () => array.instead.set('name', [errno('EPERM')]), /EPERM/],
    ['does not answer', () => array.instead.set('name', [{ ...good(), hostStatus: 3 }]), /host status 3/],
    ['does not answer in time', () => array.instead.set('name', [{ ...good(), driverStatus: 6 }]), /driver status 6/],
    ['has no name', () => array.instead.set('name', [good(Uint8Array.of(0, 0x83, 0, 0))]), /no name/],
    ['has the name of the other', () => array.names.target.set(array.names.source), /one name/],
    ['copies nothing by itself', () => Object.assign(array, { thirdPartyCopy: false }), /does not copy by itself/],
    [
      'does not know the question',
      () =>
        array.instead.set(
          'limits',
          [1, 2].map(() => check(5, 0x20, 0)),
        ),
      /not known/,
    ],
    [
      'answers too little',
      () =>
        array.instead.set(
          'limits',
          [1, 2].map(() => good(new Uint8Array(43))),
        ),
      /not say/,
    ],
    ['takes one unit', () => Object.assign(array.limits, { descriptors: 1 }), /block device to block device/],
    ['takes no segment', () => Object.assign(array.limits, { segments: 0 }), /block device to block device/],
    ['takes no list so long', () => Object.assign(array.limits, { list: 91 }), /block device to block device/],
    ['takes other segments', () => Object.assign(array, { types: [0x0b, 0xe4] }), /block device to block device/],
    ['takes other names', () => Object.assign(array, { types: [0x02, 0xe0] }), /block device to block device/],
    ['takes segments of less than a block', () => Object.assign(array.limits, { segment: 511 }), /at most 511/],
    ['has grains larger than a step', () => Object.assign(array.limits, { granularity: 31 }), /at most/],
    ['is reserved', () => array.instead.set('name', [{ ...good(), status: 0x18 }]), /reserved/],
  ])('a disk that %s is a reason not to', async (_, spoil, reason) => {
    spoil();
    const error = await open().catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(Declined);
    expect((error as Declined).message).toMatch(reason);
    expect(array.sent).not.toContain('copy target');
  });

  test('one unit as both ends is fine where it is known to be one', async () => {
    array.names.target.set(array.names.source);
    const copy = await open(true);
    await copy.copy(0, 1 << 19, 512);
    expect(array.units.source.subarray(1 << 19, (1 << 19) + 512)).toEqual(array.units.source.subarray(0, 512));
  });
});

describe('limits', () => {
  test.each<[string, Partial<FakeArray['limits']>, number, number]>([
    ['no limit of a segment', { segment: 0 }, 512, 16 << 20],
    ['a small one', { segment: 5000 }, 512, 4608],
    ['one larger than a count of blocks', { segment: 2 ** 32 - 1 }, 512, 16 << 20],
    ['grains of 64 KiB', { segment: 200_000, granularity: 16 }, 65_536, 196_608],
    ['grains below a block', { granularity: 0 }, 512, 1 << 18],
  ])('%s', async (_, limits, grainBytes, stepBytes) => {
    Object.assign(array.limits, limits);
    const copy = await open();
    expect([copy.grainBytes, copy.stepBytes]).toEqual([grainBytes, stepBytes]);
  });

  test('lists carry an identifier only for a disk that wants one', async () => {
    await (await open()).copy(0, 0, 512);
    Object.assign(array.limits, { withoutListId: false });
    await (await open()).copy(0, 0, 512);
    Object.assign(array.limits, { held: 100 });
    await (await open()).copy(0, 0, 512);
    await (await open()).copy(0, 0, 512);
    const ids = array.lists.map((list) => [list[0]! > 0, list[1]]);
    expect(ids).toEqual([
      [false, 0x18],
      [false, 0x18],
      [true, 0x10],
      [true, 0x10],
    ]);
    expect(array.lists[2]![0]).not.toBe(array.lists[3]![0]);
  });
});

describe('a copy', () => {
  const copyAfter = async (...answers: (NativeScsiResult | Error)[]): Promise<unknown> => {
    const copy = await open();
    array.instead.set('copy', answers);
    return copy.copy(0, 0, 512).then(
      () => 'copied',
      (error: unknown) => error,
    );
  };

  test('is sent again after what the unit has to say, once both are known to be the same', async () => {
    expect(await copyAfter(check(6, 0x2a, 1))).toBe('copied');
    expect(array.sent.slice(4)).toEqual(['copy target', 'name source', 'name target', 'copy target']);
  });

  test('is not sent again to a disk that has become another one', async () => {
    const copy = await open();
    array.instead.set('copy', [check(6, 0x3f, 3)]);
    array.names.target.set(name(9));
    await expect(copy.copy(0, 0, 512)).rejects.toThrow('another');
    expect(array.sent.filter((sent) => sent.startsWith('copy'))).toHaveLength(1);
  });

  test('is not sent for ever', async () => {
    const error = await copyAfter(...[1, 2, 3].map(() => check(6, 0x29, 0)));
    expect(error).toBeInstanceOf(Declined);
    expect(array.sent.filter((sent) => sent.startsWith('copy'))).toHaveLength(3);
  });

  test.each<[string, NativeScsiResult | Error, string, RegExp]>([
    ['that is not known', check(5, 0x20, 0), 'ERR_HOLDFAST_NOT_SUPPORTED', /not known/],
    ['whose other end is not reached', check(10, 0x0d, 2), 'ERR_HOLDFAST_NOT_SUPPORTED', /cannot be reached/],
    ['that fails in the medium', check(3, 0x11, 0), 'ERR_HOLDFAST_IO', /3\/11\/00/],
    ['with no sense data', { ...check(0, 0, 0), sense: new Uint8Array(0) }, 'ERR_HOLDFAST_IO', /no sense data/],
    ['to a busy disk', { ...good(), status: 8 }, 'ERR_HOLDFAST_DEVICE_BUSY', /busy/],
    ['with an unheard-of status', { ...good(), status: 0x55 }, 'ERR_HOLDFAST_IO', /85/],
    ['that the kernel does not send', errno('EPERM'), 'ERR_HOLDFAST_NOT_SUPPORTED', /EPERM/],
  ])('%s is declined', async (_, answer, code, message) => {
    const error = await copyAfter(answer);
    expect(error).toBeInstanceOf(Declined);
    expect((error as Declined).code).toBe(code);
    expect((error as Declined).message).toMatch(message);
  });

  test.each<[string, NativeScsiResult | Error]>([
    ['that timed out', { ...good(), hostStatus: 3 }],
    ['that the driver gave up', { ...good(), driverStatus: 6 }],
    ['whose disk is gone', errno('ENODEV')],
  ])('%s has an unknown outcome, and nothing else is tried', async (_, answer) => {
    const error = await copyAfter(answer);
    expect(error).toBeInstanceOf(HoldfastError);
    expect((error as HoldfastError).code).toBe('ERR_HOLDFAST_OUTCOME_UNKNOWN');
  });
});
