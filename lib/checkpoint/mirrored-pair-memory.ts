/**
 * A process pair's region, mirrored over two units.
 *
 * Who follows waits for a unit in sync that it alone cannot reach, so that nothing that it has applied can be lost with
 * the other one. The primary's pulse it takes from whichever unit answers: a unit that is slow or gone is no reason to
 * take over.
 */
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import type { MirroredMemoryConnection, MirroredRegion } from './connect-mirrored-memory.ts';
import { PULSE_ADDRESS } from './layout.ts';
import type { Standing } from './mirror-standing.ts';
import { parseRegister } from './mirrored-access.ts';
import type { MirroredReader } from './mirrored-reader.ts';
import type { AddressRange, CommandOptions, RegionAccess } from './one-sided.ts';
import type { PairMemory } from './process-pair.ts';
import { PULSE_BYTES } from './pulse.ts';

const LEG_MS = 2000;
const TAKE_OVER_MS = 5000;
const LOOK_MS = 100;

/** How long a unit, or the other process, is waited for. */
export interface MirroredPairOptions {
  /**
   * How long a unit may take to give a key. A take-over goes on without one that does not: it is rebuilt when it is
   * there. Default 2 s.
   */
  readonly legMs?: number;
  /** How long a take-over by the other process may take before it counts as cut short. Default 5 s. */
  readonly takeOverMs?: number;
}

/**
 * The region must be there in both units, and both processes be allowed to read and write it. The first time both units
 * have to be there.
 */
export function mirroredPairMemory(
  memory: MirroredMemoryConnection,
  region: MirroredRegion,
  options: MirroredPairOptions = {},
): PairMemory {
  const opener = new PairOpener(memory, region, options);
  return { follow: (signal) => opener.follow(signal), takeOver: (signal) => opener.takeOver(signal) };
}

class PairOpener {
  readonly #memory: MirroredMemoryConnection;
  readonly #region: MirroredRegion;
  readonly #legMs: number;
  readonly #takeOverMs: number;
  #last: { close(): Promise<void> } | undefined;

  constructor(memory: MirroredMemoryConnection, region: MirroredRegion, options: MirroredPairOptions) {
    this.#memory = memory;
    this.#region = region;
    this.#legMs = options.legMs ?? LEG_MS;
    this.#takeOverMs = options.takeOverMs ?? TAKE_OVER_MS;
  }

  async follow(signal: AbortSignal): Promise<RegionAccess> {
    try {
      return await this.#openReader(signal);
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY')) throw error;
      const standing = await this.#standing(signal);
      if (standing?.equal === true) throw error;
      // Nobody has written yet, or a take-over was cut short: such a region cannot be read before it is taken over.
      if (standing === undefined || !(await this.#othersTakeOver(signal))) await this.#openWriter(signal);
    }
    return this.#openReader(signal);
  }

  async takeOver(signal: AbortSignal): Promise<RegionAccess> {
    if (!(await this.#othersTakeOver(signal))) return this.#openWriter(signal);
    // Else two that need longer than they wait for a pulse would take over from each other again and again.
    throw new HoldfastError('ERR_HOLDFAST_BUSY', `the other process has just taken over ${this.#region.name}`);
  }

  async #openReader(signal: AbortSignal): Promise<RegionAccess> {
    const options = { legMs: this.#legMs, whenLegAway: 'wait', signal } as const;
    return new Followed(this.#use(await this.#memory.openReader(this.#region, options)));
  }

  async #openWriter(signal: AbortSignal): Promise<RegionAccess> {
    return this.#use(await this.#memory.openWriter(this.#region, { legMs: this.#legMs, signal }));
  }

  /** A process follows or works, never both: what it did before ends. */
  #use<Opened extends { close(): Promise<void> }>(opened: Opened): Opened {
    this.#last?.close().catch(() => {});
    this.#last = opened;
    return opened;
  }

  /** Waits for a take-over that is under way. True if there was one and it is over; false if it takes too long. */
  async #othersTakeOver(signal: AbortSignal): Promise<boolean> {
    const { clock, node } = this.#memory;
    const startMs = clock.nowMs();
    for (let looks = 0; clock.nowMs() - startMs <= this.#takeOverMs; looks += 1) {
      const standing = await this.#standing(signal);
      if (standing === undefined || standing.equal || standing.writer === node.name) return looks > 0;
      await new Promise<void>((resolve) => void clock.setTimer(LOOK_MS, resolve));
    }
    return false;
  }

  async #standing(signal: AbortSignal): Promise<Standing | undefined> {
    throwIfAborted(signal, 'looking at the register');
    const result = await this.#memory.register(this.#region).compareAndSwap('', '', signal);
    return result.swapped ? undefined : parseRegister(result.current);
  }
}

/** As the reader, but for the pulse. */
class Followed implements RegionAccess {
  readonly #reader: MirroredReader;

  constructor(reader: MirroredReader) {
    this.#reader = reader;
  }

  get unit(): string {
    return this.#reader.unit;
  }

  get range(): AddressRange {
    return this.#reader.range;
  }

  get epoch(): number {
    return this.#reader.epoch;
  }

  get open(): boolean {
    return this.#reader.open;
  }

  read(address: number, target: Uint8Array, options?: CommandOptions): Promise<void> {
    const isPulse = address === PULSE_ADDRESS && target.length === PULSE_BYTES;
    return isPulse ? this.#reader.glance(address, target, options) : this.#reader.read(address, target, options);
  }

  persist(address: number, lengthBytes: number, options?: CommandOptions): Promise<void> {
    return this.#reader.persist(address, lengthBytes, options);
  }

  watch(address: number, lengthBytes: number, since: number, options?: CommandOptions): Promise<number> {
    return this.#reader.watch(address, lengthBytes, since, options);
  }

  write(): Promise<void> {
    return this.#reader.write();
  }

  compareAndSwap(): Promise<bigint> {
    return this.#reader.compareAndSwap();
  }
}
