/**
 * What stands on a device or in a file: file systems, RAID members, partition tables …, recognised by libblkid, as
 * `blkid -p` does. Nothing here has a table of its own.
 *
 * The library is found at run time. Where it is missing nothing can be said, so nothing may be taken to be blank.
 */
import { HoldfastError } from '../base/errors.ts';
import { native } from '../native.ts';

/** One thing that was recognised. Texts come from the device; control characters are replaced. */
export interface Signature {
  /** The name that `blkid` and `wipefs` use: `ext4`, `xfs`, `LVM2_member`, `gpt`, `dos` … */
  readonly type: string;
  /** `filesystem`, `raid`, `crypto`, `other`, or `partition table`. */
  readonly usage: string;
  readonly label?: string;
  readonly uuid?: string;
  readonly version?: string;
}

/** Which part of the device is looked at. */
export interface ProbeOptions {
  /** Where to start, in bytes from the device's start. Default 0. */
  readonly offset?: number;
  /** How much of it is looked at, in bytes. Default: to the end. */
  readonly sizeBytes?: number;
}

/**
 * All signatures on the device or file; empty if nothing is recognised. Signatures that contradict each other (left
 * over from several uses) are all listed; if none can be told apart, one of type `ambivalent` stands for them.
 *
 * @throws HoldfastError ERR_HOLDFAST_NOT_SUPPORTED if libblkid is not installed, ERR_HOLDFAST_IO with `errno` if the
 *   device cannot be read.
 */
export async function probeSignatures(path: string, options: ProbeOptions = {}): Promise<Signature[]> {
  const { offset = 0, sizeBytes = 0 } = options;
  if (!isSize(offset) || !isSize(sizeBytes) || (options.sizeBytes !== undefined && sizeBytes === 0)) {
    throw new HoldfastError(
      'ERR_HOLDFAST_BAD_ARGUMENT',
      `offset and sizeBytes are whole numbers of bytes, the size at least 1; not ${offset} and ${sizeBytes}`,
    );
  }
  const { signatures, ambivalent, libraryMissing } = await probe(path, offset, sizeBytes);
  if (libraryMissing !== '') {
    throw new HoldfastError(
      'ERR_HOLDFAST_NOT_SUPPORTED',
      `what stands on ${path} cannot be recognised without libblkid (${libraryMissing}); install the package libblkid1`,
    );
  }
  const found = signatures.flatMap(describe);
  if (ambivalent && found.length === 0) return [{ type: 'ambivalent', usage: 'other' }];
  return found;
}

function isSize(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

async function probe(path: string, offset: number, sizeBytes: number) {
  try {
    return await native().identify.probeSignatures(path, offset, sizeBytes);
  } catch (cause) {
    if (cause instanceof HoldfastError) throw cause;
    const { code, message } = cause as Error & { code?: string };
    throw new HoldfastError(
      'ERR_HOLDFAST_IO',
      `what stands on ${path} could not be read (${message}); check the path, its permissions and the device`,
      { cause, ...(code && { errno: code }) },
    );
  }
}

/** A probe's values hold a superblock, a partition table, or both. */
function describe(values: Record<string, string>): Signature[] {
  const found: Signature[] = [];
  if (values.TYPE !== undefined) {
    const { TYPE: type, USAGE: usage = 'other', LABEL: label, UUID: uuid, VERSION: version } = values;
    found.push(signature({ type, usage, label, uuid, version }));
  }
  if (values.PTTYPE !== undefined) {
    found.push(signature({ type: values.PTTYPE, usage: 'partition table', uuid: values.PTUUID }));
  }
  return found;
}

function signature(fields: { [name in keyof Signature]?: string | undefined }): Signature {
  const present = Object.entries(fields).filter(([, value]) => value !== undefined && value !== '');
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is taken out
  const clean = present.map(([name, value]) => [name, value!.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?')]);
  return Object.fromEntries(clean) as Signature;
}
