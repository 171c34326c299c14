/**
 * SCSI EXTENDED COPY: one disk of an array reads from another, or from itself, and the bytes never come here.
 *
 * What is asked first: who the two units are (by the names that the array knows), and what the unit that does the copy
 * takes (its operating parameters). Anything that it does not answer as it should is a reason not to copy this way. Once
 * a copy has been sent there is a third outcome beside done and refused, that nobody knows: the caller must not write
 * there by another way, because the array may still be at it.
 */
import { HoldfastError, type HoldfastErrorCode } from '../base/errors.ts';
import type { NativeScsiResult } from '../native.ts';
import {
  blockToBlockType,
  type CopyParameters,
  copyList,
  copyListBytes,
  copyParametersBytes,
  copyParametersCommand,
  type Designator,
  decodeCopyParameters,
  decodeIdentification,
  decodeInquiry,
  decodeSense,
  extendedCopyCommand,
  identificationBytes,
  identificationCommand,
  identificationDescriptorType,
  inquiryBytes,
  inquiryCommand,
  segmentBlocksMax,
  senseKeys,
  senseText,
} from './scsi.ts';
import { errnoOf } from './system-error.ts';

/** A way of copying that cannot, or can no further. Another may. */
export class Declined extends Error {
  readonly code: HoldfastErrorCode;

  constructor(reason: string, code: HoldfastErrorCode = 'ERR_HOLDFAST_NOT_SUPPORTED', cause?: unknown) {
    super(reason, { cause });
    this.code = code;
  }
}

type End = 'source' | 'target';

/** Sends a command to one of the disks. */
export type ScsiSend = (
  end: End,
  command: Uint8Array,
  dataToSend: Uint8Array,
  bytesToReceive: number,
  timeoutMs: number,
) => Promise<NativeScsiResult>;

const askTimeoutMs = 10_000;
const copyTimeoutMs = 60_000;
/** Short enough that who cancels or closes does not wait long. */
const stepBytesMax = 16 * 1024 * 1024;
const attempts = 3;
const statusGood = 0x00;
const statusCheck = 0x02;
const statusesBusy = new Set([0x08, 0x18, 0x28]);
/** The kernel says only that there is sense data. */
const driverSense = 0x08;
/** SG_IO did not send the command. */
const notSent = new Set(['EPERM', 'EACCES', 'ENOTTY', 'EINVAL', 'ENOMEM', 'EFAULT']);
const nothing = new Uint8Array(0);

let lastListId = 0;

interface Units {
  readonly source: Designator;
  readonly target: Designator;
}

export class ExtendedCopy {
  /** Offsets and lengths are multiples of this. */
  readonly grainBytes: number;
  /** The most in one go; a multiple of `grainBytes`. */
  readonly stepBytes: number;
  readonly #send: ScsiSend;
  readonly #manager: End;
  readonly #blockBytes: number;
  readonly #listId: number;
  #units: Units;

  private constructor(send: ScsiSend, manager: End, units: Units, parameters: CopyParameters, blockBytes: number) {
    this.#send = send;
    this.#manager = manager;
    this.#units = units;
    this.#blockBytes = blockBytes;
    this.grainBytes = Math.max(blockBytes, parameters.granularityBytes);
    const limit = Math.min(parameters.segmentBytesMax || stepBytesMax, segmentBlocksMax * blockBytes, stepBytesMax);
    this.stepBytes = Math.floor(limit / this.grainBytes) * this.grainBytes;
    if (this.stepBytes === 0) throw new Declined(`a segment of the disk has at most ${limit} bytes`);
    const needsListId = !parameters.withoutListId && parameters.heldDataBytesMax > 0;
    lastListId = (lastListId % 255) + 1;
    this.#listId = needsListId ? lastListId : 0;
  }

  /** Asks both disks. `sameUnit`: they are known to be one. Throws `Declined`. */
  static async open(send: ScsiSend, blockBytes: number, sameUnit: boolean): Promise<ExtendedCopy> {
    const units = await identify(send);
    if (!sameUnit && sameDesignator(units.source, units.target))
      throw new Declined('the two disks have one name, as if they were one');
    let reason: Declined | undefined;
    for (const manager of ['target', 'source'] as const) {
      try {
        return new ExtendedCopy(send, manager, units, await askParameters(send, manager), blockBytes);
      } catch (error) {
        if (!(error instanceof Declined)) throw error;
        reason ??= error;
      }
    }
    throw reason;
  }

  /**
   * Offsets in bytes on the disks. Resolved: all of it has been copied.
   *
   * Throws `Declined`: perhaps some of it has been copied, and no more will be. ERR_HOLDFAST_OUTCOME_UNKNOWN: more may.
   */
  async copy(sourceOffset: number, targetOffset: number, bytes: number): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      const list = copyList({
        ...this.#units,
        blockBytes: this.#blockBytes,
        sourceBlock: sourceOffset / this.#blockBytes,
        targetBlock: targetOffset / this.#blockBytes,
        blocks: bytes / this.#blockBytes,
        listId: this.#listId,
      });
      const result = await this.#sendCopy(list);
      if (result.status === statusGood) return;
      const sense = decodeSense(result.sense);
      const again = result.status === statusCheck && sense?.key === senseKeys.unitAttention && attempt < attempts;
      if (!again) throw refusal(result);
      // Something about the unit has changed, perhaps which one it is.
      await this.#identifyAgain();
    }
  }

  async #sendCopy(list: Uint8Array): Promise<NativeScsiResult> {
    let result: NativeScsiResult;
    try {
      result = await this.#send(this.#manager, extendedCopyCommand(list.length), list, 0, copyTimeoutMs);
    } catch (error) {
      if (error instanceof HoldfastError) throw error;
      const errno = errnoOf(error) ?? '';
      if (notSent.has(errno)) throw new Declined(`the kernel does not send the command (${errno})`, undefined, error);
      throw outcomeUnknown(errno, error);
    }
    if (neverEnded(result)) throw outcomeUnknown(adapterText(result));
    return result;
  }

  async #identifyAgain(): Promise<void> {
    const found = await identify(this.#send);
    const same = sameDesignator(found.source, this.#units.source) && sameDesignator(found.target, this.#units.target);
    if (!same) throw new Declined('a disk has become another one', 'ERR_HOLDFAST_IO');
    this.#units = found;
  }
}

function outcomeUnknown(what: string, cause?: unknown): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_OUTCOME_UNKNOWN',
    `it is not known whether the disk has copied, or still copies (${what}); ` +
      'wait until it is known to be idle, then copy the range again',
    { cause },
  );
}

function neverEnded(result: NativeScsiResult): boolean {
  return result.hostStatus !== 0 || (result.driverStatus & ~driverSense) !== 0;
}

function adapterText({ hostStatus, driverStatus }: NativeScsiResult): string {
  return `host status ${hostStatus}, driver status ${driverStatus}`;
}

function refusal(result: NativeScsiResult): Declined {
  if (statusesBusy.has(result.status))
    return new Declined(`the disk is busy or reserved (status ${result.status})`, 'ERR_HOLDFAST_DEVICE_BUSY');
  if (result.status !== statusCheck)
    return new Declined(`the disk answered status ${result.status}`, 'ERR_HOLDFAST_IO');
  const sense = decodeSense(result.sense);
  const unsupported = sense?.key === senseKeys.illegalRequest || sense?.key === senseKeys.copyAborted;
  return new Declined(
    `the disk refused (${senseText(sense)})`,
    unsupported ? 'ERR_HOLDFAST_NOT_SUPPORTED' : 'ERR_HOLDFAST_IO',
  );
}

/** A question that changes nothing. */
async function ask(send: ScsiSend, end: End, command: Uint8Array, bytes: number): Promise<Uint8Array> {
  for (let attempt = 1; ; attempt++) {
    let result: NativeScsiResult;
    try {
      result = await send(end, command, nothing, bytes, askTimeoutMs);
    } catch (error) {
      if (error instanceof HoldfastError) throw error;
      throw new Declined(`the ${end} takes no SCSI command (${errnoOf(error)})`, undefined, error);
    }
    if (neverEnded(result)) throw new Declined(`the ${end} does not answer (${adapterText(result)})`);
    if (result.status === statusGood) return result.data;
    const isAttention = decodeSense(result.sense)?.key === senseKeys.unitAttention;
    if (!isAttention || attempt === attempts) throw refusal(result);
  }
}

async function identify(send: ScsiSend): Promise<Units> {
  return { source: await identifyOne(send, 'source'), target: await identifyOne(send, 'target') };
}

async function identifyOne(send: ScsiSend, end: End): Promise<Designator> {
  const unit = decodeIdentification(await ask(send, end, identificationCommand(), identificationBytes));
  if (unit === undefined) throw new Declined(`the ${end} has no name (NAA or EUI-64) that another disk would know`);
  return unit;
}

async function askParameters(send: ScsiSend, end: End): Promise<CopyParameters> {
  const inquiry = decodeInquiry(await ask(send, end, inquiryCommand(), inquiryBytes));
  if (inquiry === undefined || !inquiry.isDisk || !inquiry.thirdPartyCopy)
    throw new Declined(`the ${end} does not copy by itself (its inquiry data say so)`);
  const found = decodeCopyParameters(await ask(send, end, copyParametersCommand(), copyParametersBytes));
  if (found === undefined) throw new Declined(`the ${end} does not say what it can copy`);
  const takesTypes =
    found.types.length === 0 ||
    (found.types.includes(blockToBlockType) && found.types.includes(identificationDescriptorType));
  if (!takesTypes || found.descriptorsMax < 2 || found.segmentsMax < 1 || found.listBytesMax < copyListBytes - 16)
    throw new Declined(`the ${end} does not copy from block device to block device`);
  return found;
}

function sameDesignator(a: Designator, b: Designator): boolean {
  return a.type === b.type && Buffer.compare(a.bytes, b.bytes) === 0;
}
