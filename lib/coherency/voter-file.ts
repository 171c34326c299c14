/**
 * VoterFile: what a voter holds of a register (that of a volume, or of a mirrored region), in a small file of its own: a
 * superblock pair of 4 KiB copies, the first at 0, the second at 60 KiB, with the voter's state as payload. Format name
 * "tie-breaker"; this payload is its version 1. It is bound to the register and to the node: another register's or
 * another voter's state is never gone by.
 *
 * Little-endian. The register's identifier is 16 raw bytes; a volume's register has the volume's identifier.
 *
 *   offset  size  field
 *        0    16  register identifier
 *       16     8  promised ballot: counter
 *       24     8  accepted ballot: counter
 *       32     1  promised ballot: node, 0 to 15
 *       33     1  accepted ballot: node, 0 to 15
 *       34     2  length of the value, at most 128
 *       36   128  the accepted value, printable ASCII, unused bytes 0
 *      164     2  length of the node's name, at most 64
 *      166    64  the node's name, ASCII, unused bytes 0
 *      230        end
 */
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import { type Ballot, NEW_VOTER, VALUE_MAX_BYTES, type VoterState, type VoterStore } from '../peer/arbiter.ts';
import { COUNTER_MAX, checkValue, compareBallots, isValue, VOTERS_MAX } from '../peer/register.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { type SuperblockFormat, type SuperblockLayout, SuperblockPair } from '../storage/superblock-pair.ts';

/** How much room a voter's state takes on its device, in bytes. */
export const VOTER_FILE_BYTES = 64 * 1024;
const FORMAT: SuperblockFormat = { name: 'tie-breaker', version: 1 };
const LAYOUT: SuperblockLayout = { copyOffsets: [0, VOTER_FILE_BYTES - 4096], copyBytes: 4096 };
const PAYLOAD_BYTES = 230;
const NAME_MAX_BYTES = 64;

/** Whose file it is. */
export interface VoterFileOwner {
  /** 32 hexadecimal digits. */
  readonly registerId: string;
  /** Of the voter's node. */
  readonly nodeName: string;
}

export interface StoredVoter extends VoterFileOwner {
  readonly state: VoterState;
}

export function encodeVoter({ registerId, nodeName, state }: StoredVoter): Uint8Array {
  checkValue(state.value);
  if (!isValue(nodeName) || nodeName.length > NAME_MAX_BYTES)
    throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `a node's name has at most ${NAME_MAX_BYTES} characters`);
  const bytes = Buffer.alloc(PAYLOAD_BYTES);
  bytes.write(registerId, 0, 'hex');
  bytes.writeBigUInt64LE(BigInt(state.promised.counter), 16);
  bytes.writeBigUInt64LE(BigInt(state.accepted.counter), 24);
  bytes.writeUInt8(state.promised.node, 32);
  bytes.writeUInt8(state.accepted.node, 33);
  bytes.writeUInt16LE(state.value.length, 34);
  bytes.write(state.value, 36, 'latin1');
  bytes.writeUInt16LE(nodeName.length, 164);
  bytes.write(nodeName, 166, 'latin1');
  return bytes;
}

/** Checks every field: the bytes come from a disk. Throws ERR_HOLDFAST_METADATA_DAMAGED. */
export function decodeVoter(payload: Uint8Array): StoredVoter {
  if (payload.length !== PAYLOAD_BYTES) throw damaged(`it has ${payload.length} bytes instead of ${PAYLOAD_BYTES}`);
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.length);
  const promised = readBallot(bytes, 16, 32);
  const accepted = readBallot(bytes, 24, 33);
  if (compareBallots(accepted, promised) > 0) throw damaged('it has accepted more than it has promised');
  const state = { promised, accepted, value: readText(bytes, 34, VALUE_MAX_BYTES) };
  return { registerId: bytes.toString('hex', 0, 16), nodeName: readText(bytes, 164, NAME_MAX_BYTES), state };
}

function readBallot(bytes: Buffer, counterAt: number, nodeAt: number): Ballot {
  const counter = bytes.readBigUInt64LE(counterAt);
  const node = bytes.readUInt8(nodeAt);
  if (counter > BigInt(COUNTER_MAX) || node >= VOTERS_MAX) throw damaged('a ballot is out of range');
  return { counter: Number(counter), node };
}

function readText(bytes: Buffer, at: number, maxBytes: number): string {
  const length = bytes.readUInt16LE(at);
  if (length > maxBytes) throw damaged('a text is too long');
  const text = bytes.toString('latin1', at + 2, at + 2 + length);
  if (!isValue(text)) throw damaged('a text is not printable');
  return text;
}

/** A voter that has forgotten must not simply begin again: what it promised is what the others build on. */
const ANEW =
  'only while both copies are up to date and the other voters are in session, make it anew (docs/config.md has how)';

function damaged(what: string): HoldfastError {
  const message = `the voter's state cannot be right although its checksum is: ${what}; ${ANEW}`;
  return new HoldfastError('ERR_HOLDFAST_METADATA_DAMAGED', message);
}

/** A node's vote about one register, durable in a file. The head of lib/coherency/voter-file.ts has the layout. */
export class VoterFile implements VoterStore {
  readonly #pair: SuperblockPair;
  readonly #owner: VoterFileOwner;
  #state: VoterState;

  private constructor(pair: SuperblockPair, { state, ...owner }: StoredVoter) {
    this.#pair = pair;
    this.#owner = owner;
    this.#state = state;
  }

  /** Writes the state of a voter that has promised nothing yet. What was in its place is gone. */
  static async create(device: BlockDevice, owner: VoterFileOwner): Promise<void> {
    await SuperblockPair.create(device, FORMAT, LAYOUT, encodeVoter({ ...owner, state: NEW_VOTER }));
  }

  /**
   * Reads the state, and mends the file if one of its copies was damaged.
   *
   * @throws HoldfastError ERR_HOLDFAST_METADATA_MISMATCH if it is another register's or another node's; ..._MISSING,
   *   ..._DAMAGED, ..._VERSION as SuperblockPair.open; then nothing has been changed.
   */
  static async open(device: BlockDevice, owner: VoterFileOwner): Promise<VoterFile> {
    const pair = await openPair(device);
    const stored = decodeVoter(pair.payload);
    checkOwner(device, stored, owner);
    await pair.repair();
    return new VoterFile(pair, stored);
  }

  /** The newest that is durable. */
  get voter(): VoterState {
    return this.#state;
  }

  async writeVoter(state: VoterState): Promise<void> {
    await this.#pair.write(encodeVoter({ ...this.#owner, state }));
    this.#state = state;
  }
}

async function openPair(device: BlockDevice): Promise<SuperblockPair> {
  if (device.geometry.sizeBytes < VOTER_FILE_BYTES)
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_MISSING',
      `${device.name} has ${device.geometry.sizeBytes} bytes, too few for a voter's state; check that it is the right file`,
    );
  try {
    return await SuperblockPair.open(device, FORMAT, LAYOUT);
  } catch (error) {
    if (!isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED')) throw error;
    const message = `${device.name}: neither copy of the voter's state is whole; ${ANEW}`;
    throw new HoldfastError('ERR_HOLDFAST_METADATA_DAMAGED', message, { cause: error });
  }
}

function checkOwner(device: BlockDevice, stored: StoredVoter, owner: VoterFileOwner): void {
  const checks = [
    ['the register', stored.registerId, owner.registerId],
    ['the node', stored.nodeName, owner.nodeName],
  ] as const;
  for (const [what, found, wanted] of checks) {
    if (found === wanted) continue;
    throw new HoldfastError(
      'ERR_HOLDFAST_METADATA_MISMATCH',
      `the voter's state in ${device.name} belongs to another: ${what} is ${found} there, not ${wanted}; check the path, nothing was changed`,
    );
  }
}
