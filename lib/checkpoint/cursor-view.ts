/**
 * A backup's cursor in a mirrored region of its own, as the primary sees it. As long as the backup has never been there
 * the cursor is blank. While it cannot be read whoever reads it waits: what the backup has cleared is not known then.
 */
import type { Clock } from '../base/clock.ts';
import { EitherSignal } from '../base/either-signal.ts';
import { HoldfastError, isHoldfastError, throwIfAborted } from '../base/errors.ts';
import type { ComposedPart } from './composed-access.ts';
import { orAbort } from './mirrored-access.ts';
import type { MirroredReader } from './mirrored-reader.ts';
import type { AddressRange, CommandOptions } from './one-sided.ts';

const RETRY_FIRST_MS = 20;
const RETRY_MS = 2000;
/** As long as nobody has written it, this often it is looked whether somebody has. */
const LOOK_MS = 1000;
/** The change number as long as it is blank; those of the reader come after it. */
const BLANK = 1;

/** Where the cursor lies. */
export interface CursorViewOptions {
  readonly clock: Clock;
  /** For messages to people. */
  readonly name: string;
  /** Of the cursor. */
  readonly lengthBytes: number;
  readonly openReader: (signal: AbortSignal) => Promise<MirroredReader>;
  /** Whether nobody has ever written it, as its register says. */
  readonly isBlank: (signal: AbortSignal) => Promise<boolean>;
}

export class CursorView implements ComposedPart {
  readonly epoch = 0;
  readonly range: AddressRange;
  readonly #options: CursorViewOptions;
  readonly #closed = new AbortController();
  #reader: MirroredReader | undefined;
  #opening: Promise<MirroredReader | undefined> | undefined;

  constructor(options: CursorViewOptions) {
    this.#options = options;
    this.range = { base: 0, lengthBytes: options.lengthBytes };
  }

  get unit(): string {
    return this.#options.name;
  }

  get open(): boolean {
    return !this.#closed.signal.aborted;
  }

  async read(address: number, target: Uint8Array, options?: CommandOptions): Promise<void> {
    await this.#patiently(options, async (signal) => {
      const reader = await this.#opened();
      if (reader === undefined) target.fill(0);
      else await reader.read(address, target, { signal });
    });
  }

  /** What it gives is durable without it. */
  async persist(address: number, lengthBytes: number, options?: CommandOptions): Promise<void> {
    await this.#patiently(options, async (signal) => {
      await (await this.#opened())?.persist(address, lengthBytes, { signal });
    });
  }

  async watch(address: number, lengthBytes: number, since: number, options?: CommandOptions): Promise<number> {
    return this.#patiently(options, async (signal) => {
      let reader = await this.#opened();
      if (reader === undefined && since < BLANK) return BLANK;
      for (; reader === undefined; reader = await this.#opened()) {
        await this.#pause(LOOK_MS, signal);
        throwIfAborted(signal, 'watching a cursor');
      }
      return BLANK + (await reader.watch(address, lengthBytes, Math.max(0, since - BLANK), { signal }));
    });
  }

  /** The backup alone writes its cursor: ERR_HOLDFAST_ACCESS. */
  write(): Promise<void> {
    return Promise.reject(this.#notOwn());
  }

  /** The backup alone writes its cursor: ERR_HOLDFAST_ACCESS. */
  compareAndSwap(): Promise<bigint> {
    return Promise.reject(this.#notOwn());
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await this.#reader?.close();
  }

  /** Undefined as long as it is blank. One asks at a time. */
  async #opened(): Promise<MirroredReader | undefined> {
    if (this.#reader !== undefined) return this.#reader;
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined;
    });
    return this.#opening;
  }

  async #open(): Promise<MirroredReader | undefined> {
    const { signal } = this.#closed;
    try {
      const reader = await this.#options.openReader(signal);
      if (signal.aborted) await reader.close();
      this.#reader = reader;
      return reader;
    } catch (error) {
      const mayBeBlank = isHoldfastError(error, 'ERR_HOLDFAST_NO_UP_TO_DATE_COPY');
      if (mayBeBlank && (await this.#options.isBlank(signal))) return undefined;
      throw error;
    }
  }

  /** Again as long as the units or the register cannot be reached. */
  async #patiently<Result>(
    options: CommandOptions | undefined,
    work: (signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    using either = new EitherSignal(this.#closed.signal, options?.signal);
    const { signal } = either;
    for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_MS)) {
      throwIfAborted(signal, 'reading a cursor');
      try {
        return await orAbort(work(signal), signal);
      } catch (error) {
        if (!isAway(error)) throw error;
      }
      await this.#pause(delayMs, signal);
    }
  }

  #pause(delayMs: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const over = (): void => {
        timer.cancel();
        signal.removeEventListener('abort', over);
        resolve();
      };
      const timer = this.#options.clock.setTimer(delayMs, over);
      signal.addEventListener('abort', over, { once: true });
      if (signal.aborted) over();
    });
  }

  #notOwn(): HoldfastError {
    const { name } = this.#options;
    return new HoldfastError('ERR_HOLDFAST_ACCESS', `${name} is written by its backup alone; open it as that backup`);
  }
}

function isAway(error: unknown): boolean {
  return (
    [
      'ERR_HOLDFAST_NO_UP_TO_DATE_COPY',
      'ERR_HOLDFAST_NO_MAJORITY',
      'ERR_HOLDFAST_PEER_LOST',
      'ERR_HOLDFAST_BUSY',
    ] as const
  ).some((code) => isHoldfastError(error, code));
}
