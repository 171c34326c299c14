/**
 * The SCSI commands of a device-side copy, as bytes. Pure: whoever has a descriptor sends them.
 *
 * Formats: T10's SPC-4 (INCITS 513): INQUIRY, the vital product data page Device Identification (83h), EXTENDED COPY
 * (LID1) with identification descriptors (E4h) and segments from block device to block device (02h), RECEIVE COPY
 * OPERATING PARAMETERS, sense data in both formats. All numbers are big-endian.
 *
 * Decoders take whatever a device sent: a length inside of it counts only as far as there are bytes, and what is too
 * short to be what it should be is `undefined`.
 */

/** A peripheral device type of 0: a disk. */
export interface Inquiry {
  readonly isDisk: boolean;
  /** It takes part in copies by third parties (3PC). */
  readonly thirdPartyCopy: boolean;
}

/** A logical unit's name, as in EXTENDED COPY's identification descriptors. */
export interface Designator {
  readonly codeSet: number;
  readonly type: number;
  /** 1 to 20 bytes. */
  readonly bytes: Uint8Array;
}

/** What a copy manager takes. */
export interface CopyParameters {
  readonly descriptorsMax: number;
  readonly segmentsMax: number;
  readonly listBytesMax: number;
  /** Of one segment; 0: no limit. */
  readonly segmentBytesMax: number;
  /** It keeps data for a later command; then lists need an identifier. */
  readonly heldDataBytesMax: number;
  /** Segments are multiples of this many bytes. */
  readonly granularityBytes: number;
  /** Lists without an identifier are taken. */
  readonly withoutListId: boolean;
  /** Types of descriptors. */
  readonly types: readonly number[];
}

export interface Sense {
  readonly key: number;
  readonly code: number;
  readonly qualifier: number;
}

export interface CopySegment {
  readonly source: Designator;
  readonly target: Designator;
  readonly blockBytes: number;
  /** In blocks. */
  readonly sourceBlock: number;
  readonly targetBlock: number;
  /** 1 to 65535. */
  readonly blocks: number;
  /** 0: a list without an identifier. */
  readonly listId: number;
}

export const senseKeys = { illegalRequest: 5, unitAttention: 6, copyAborted: 10 } as const;

export const inquiryBytes = 36;
export const identificationBytes = 1024;
export const copyParametersBytes = 512;
const designatorBytesMax = 20;
const naaType = 3;
const eui64Type = 2;
const binaryCodeSet = 1;

// ── Commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────

export function inquiryCommand(): Uint8Array {
  return Uint8Array.of(0x12, 0, 0, 0, inquiryBytes, 0);
}

/** INQUIRY for the page of identifications. */
export function identificationCommand(): Uint8Array {
  return Uint8Array.of(0x12, 1, 0x83, identificationBytes >> 8, identificationBytes & 0xff, 0);
}

export function copyParametersCommand(): Uint8Array {
  const command = new Uint8Array(16);
  command[0] = 0x84;
  command[1] = 3;
  new DataView(command.buffer).setUint32(10, copyParametersBytes);
  return command;
}

export function extendedCopyCommand(listBytes: number): Uint8Array {
  const command = new Uint8Array(16);
  command[0] = 0x83;
  new DataView(command.buffer).setUint32(10, listBytes);
  return command;
}

const headerBytes = 16;
const descriptorBytes = 32;
const segmentBytes = 28;
export const copyListBytes: number = headerBytes + 2 * descriptorBytes + segmentBytes;
export const identificationDescriptorType = 0xe4;
export const blockToBlockType = 0x02;
export const segmentBlocksMax = 0xffff;

/** EXTENDED COPY's parameters: two units, one segment. */
export function copyList(segment: CopySegment): Uint8Array {
  const list = new Uint8Array(copyListBytes);
  const view = new DataView(list.buffer);
  list[0] = segment.listId;
  // LIST ID USAGE: 11b, there is no identifier and nothing is held; 10b, there is one, and what is held may go.
  list[1] = (segment.listId === 0 ? 3 : 2) << 3;
  view.setUint16(2, 2 * descriptorBytes);
  view.setUint32(8, segmentBytes);
  writeDescriptor(list, headerBytes, segment.source, segment.blockBytes);
  writeDescriptor(list, headerBytes + descriptorBytes, segment.target, segment.blockBytes);
  const at = headerBytes + 2 * descriptorBytes;
  list[at] = blockToBlockType;
  view.setUint16(at + 2, segmentBytes - 4);
  view.setUint16(at + 4, 0);
  view.setUint16(at + 6, 1);
  view.setUint16(at + 10, segment.blocks);
  view.setBigUint64(at + 12, BigInt(segment.sourceBlock));
  view.setBigUint64(at + 20, BigInt(segment.targetBlock));
  return list;
}

function writeDescriptor(list: Uint8Array, at: number, unit: Designator, blockBytes: number): void {
  list[at] = identificationDescriptorType;
  list[at + 4] = unit.codeSet;
  list[at + 5] = unit.type;
  list[at + 7] = unit.bytes.length;
  list.set(unit.bytes, at + 8);
  list.set([(blockBytes >> 16) & 0xff, (blockBytes >> 8) & 0xff, blockBytes & 0xff], at + 29);
}

// ── Answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

export function decodeInquiry(data: Uint8Array): Inquiry | undefined {
  if (data.length < 6) return undefined;
  return { isDisk: data[0] === 0, thirdPartyCopy: (data[5]! & 0x08) !== 0 };
}

/** The name that says best which logical unit it is: the longest NAA, else an EUI-64; undefined if there is neither. */
export function decodeIdentification(data: Uint8Array): Designator | undefined {
  if (data.length < 4 || data[1] !== 0x83) return undefined;
  const end = Math.min(data.length, 4 + ((data[2]! << 8) | data[3]!));
  let best: Designator | undefined;
  for (let at = 4; at + 4 <= end; at += 4 + data[at + 3]!) {
    const found = designatorAt(data, at, end);
    if (found !== undefined && rank(found) > rank(best)) best = found;
  }
  return best;
}

function designatorAt(data: Uint8Array, at: number, end: number): Designator | undefined {
  const length = data[at + 3]!;
  const codeSet = data[at]! & 0x0f;
  const association = (data[at + 1]! >> 4) & 3;
  const type = data[at + 1]! & 0x0f;
  if (association !== 0 || codeSet !== binaryCodeSet) return undefined;
  if (at + 4 + length > end || !lengthFits(type, length)) return undefined;
  return { codeSet, type, bytes: data.slice(at + 4, at + 4 + length) };
}

function lengthFits(type: number, length: number): boolean {
  if (type === naaType) return length === 8 || length === 16;
  return type === eui64Type && (length === 8 || length === 12 || length === 16);
}

function rank(designator: Designator | undefined): number {
  if (designator === undefined) return 0;
  return designator.bytes.length + (designator.type === naaType ? designatorBytesMax : 0);
}

export function decodeCopyParameters(data: Uint8Array): CopyParameters | undefined {
  const fixedBytes = 44;
  if (data.length < fixedBytes) return undefined;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const end = Math.min(data.length, 4 + view.getUint32(0));
  const granularity = data[37]!;
  // More than a segment can ever be.
  if (end < fixedBytes || granularity > 31) return undefined;
  return {
    descriptorsMax: view.getUint16(8),
    segmentsMax: view.getUint16(10),
    listBytesMax: view.getUint32(12),
    segmentBytesMax: view.getUint32(16),
    heldDataBytesMax: view.getUint32(24),
    granularityBytes: 2 ** granularity,
    withoutListId: (data[4]! & 1) !== 0,
    types: [...data.subarray(fixedBytes, Math.min(end, fixedBytes + data[43]!))],
  };
}

/** Fixed format (70h, 71h) and descriptors (72h, 73h). */
export function decodeSense(data: Uint8Array): Sense | undefined {
  const format = (data[0] ?? 0) & 0x7f;
  if ((format === 0x70 || format === 0x71) && data.length >= 3)
    return { key: data[2]! & 0x0f, code: data[12] ?? 0, qualifier: data[13] ?? 0 };
  if ((format === 0x72 || format === 0x73) && data.length >= 4)
    return { key: data[1]! & 0x0f, code: data[2]!, qualifier: data[3]! };
  return undefined;
}

const meanings: { readonly [codes: string]: string } = {
  '04/02': 'the unit is not ready',
  '08/04': 'the units cannot reach each other',
  '0d/01': 'an error on the other unit',
  '0d/02': 'the other unit cannot be reached',
  '0d/03': 'the other unit is of another kind',
  '20/00': 'the command is not known',
  '21/00': 'a block is out of range',
  '24/00': 'a field of the command is not valid',
  '26/00': 'a field of the parameters is not valid',
  '26/06': 'too many units',
  '26/07': 'a kind of unit is not supported',
  '26/08': 'too many segments',
  '26/09': 'a kind of segment is not supported',
  '27/00': 'the unit is write-protected',
};

/** For people: `sense 5/20/00: the command is not known`. */
export function senseText(sense: Sense | undefined): string {
  if (sense === undefined) return 'no sense data';
  const hex = (value: number): string => value.toString(16).padStart(2, '0');
  const codes = `${hex(sense.code)}/${hex(sense.qualifier)}`;
  const meaning = meanings[codes];
  return `sense ${sense.key.toString(16)}/${codes}${meaning === undefined ? '' : `: ${meaning}`}`;
}
