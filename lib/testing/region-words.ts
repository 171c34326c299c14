/**
 * What the users of a mirrored region do with it in the simulations: the writer reads and writes words and has them made
 * durable, conditionally or not; a backup reads them. Each word has its history, which is judged (history.ts): what was
 * acknowledged was durable, so no power cut may take it back.
 */
import type { Clock } from '../base/clock.ts';
import { isHoldfastError } from '../base/errors.ts';
import type { MirroredAccess } from '../checkpoint/mirrored-access.ts';
import type { MirroredReader } from '../checkpoint/mirrored-reader.ts';
import { checkLinearizable } from './history.ts';
import type { SimulatedRandom } from './simulated-random.ts';
import { Histories, stamp } from './stamps.ts';

const WORD_BYTES = 8;
export const WORDS = 48;
/** Four to a line of memory: what is lost together does not belong together. */
const WORD_STRIDE_BYTES = 16;
/** Behind the words: what guarded writes are conditional on. */
const FENCE_ADDRESS = WORDS * WORD_STRIDE_BYTES;
/** Of the words and the fence. */
export const WORDS_BYTES = FENCE_ADDRESS + 64;
const WORKERS = 3;
const LINES_MOST = 30;

/** A process that uses the region. */
export interface RegionUser {
  readonly name: string;
  readonly clock: Clock;
  readonly random: SimulatedRandom;
}

/** The words of one region, whoever uses them. */
export class RegionWords {
  readonly histories = new Histories();
  readonly #note: (line: string) => void;
  /** Between two commands of a writer, at most. */
  readonly paceMs: number;
  /** Of a backup. */
  backupReads = 0;
  /** Acknowledged. */
  writes = 0;
  isOver = false;
  /** That was written to last: what can be read there is least safe. */
  newest = 0;
  /** Writers only read. */
  isQuiet = false;
  /** What went wrong first. */
  failure: string | undefined;

  constructor(note: (line: string) => void, paceMs: number) {
    this.#note = note;
    this.paceMs = paceMs;
  }

  get unended(): number {
    const operations = new Set([...this.histories.blocks.values()].flat());
    return [...operations].filter(({ end }) => end === Number.POSITIVE_INFINITY).length;
  }

  /** Of one who has been let in. */
  writer(user: RegionUser, access: MirroredAccess): WordWriter {
    return new WordWriter(this, user, access, this.#note);
  }

  /** One word. What it gives is durable: no power cut may take it back either. */
  async readAsBackup(reader: MirroredReader, word: number): Promise<void> {
    const operation = this.histories.begin('read', word);
    const bytes = new Uint8Array(WORD_BYTES);
    await reader.read(addressOf(word), bytes);
    this.histories.endRead(operation, bytes);
    this.backupReads += 1;
  }

  judge(): string | undefined {
    for (const [word, history] of this.histories.blocks) {
      const found = checkLinearizable(history);
      if (found === undefined) continue;
      const values = new Set(found.operations.map(({ value }) => value));
      const about = history.filter(({ value }) => values.has(value)).slice(0, LINES_MOST);
      return `word ${word}: ${found.rule}\n${about.map((operation) => JSON.stringify(operation)).join('\n')}`;
    }
    return undefined;
  }
}

/** The writer's end, from being let in until it is over. */
export class WordWriter {
  readonly #words: RegionWords;
  readonly #user: RegionUser;
  readonly #access: MirroredAccess;
  readonly #note: (line: string) => void;
  /** What it has put behind the words, if its writes are guarded. */
  #fence: bigint | undefined;
  /** Words that it has stored and not yet made durable: it does not read them. */
  readonly #volatile = new Set<number>();

  constructor(words: RegionWords, user: RegionUser, access: MirroredAccess, note: (line: string) => void) {
    this.#words = words;
    this.#user = user;
    this.#access = access;
    this.#note = note;
  }

  /** Resolves when the access has ended, or the simulation is over. */
  async work(): Promise<void> {
    await this.#raiseFence().catch(() => this.#access.close());
    await Promise.all(Array.from({ length: WORKERS }, () => this.#work()));
  }

  async readOne(word: number): Promise<void> {
    if (this.#volatile.has(word)) return;
    const { histories } = this.#words;
    const operation = histories.begin('read', word);
    const bytes = new Uint8Array(WORD_BYTES);
    await this.#access.readConfirmed(addressOf(word), bytes);
    if (!this.#volatile.has(word)) histories.endRead(operation, bytes);
  }

  /** As writers of checkpoints do. */
  async #raiseFence(): Promise<void> {
    if (this.#user.random.chance(0.3)) return;
    const access = this.#access;
    const fence = BigInt(access.epoch);
    const word = new Uint8Array(WORD_BYTES);
    await access.readConfirmed(FENCE_ADDRESS, word);
    if ((await access.compareAndSwap(FENCE_ADDRESS, wordOf(word), fence, { persist: true })) === wordOf(word))
      this.#fence = fence;
  }

  async #work(): Promise<void> {
    const { random } = this.#user;
    const access = this.#access;
    while (access.open && !this.#words.isOver) {
      const word = random.below(WORDS);
      const count = 1 + random.below(Math.min(4, WORDS - word));
      try {
        const draw = this.#words.isQuiet ? 0 : random.between(0, 10);
        if (draw < 4) await this.readOne(word);
        else if (draw < 8) await this.#write(word, count, true);
        else if (draw < 9) await this.#write(word, count, false);
        else if (draw < 9.5 || this.#fence === undefined) await this.#swap(word);
        else await this.#refused(word, this.#fence);
      } catch (error) {
        if (access.open && !isHoldfastError(error, 'ERR_HOLDFAST_NO_MAJORITY')) {
          const what = error instanceof Error ? error.stack : error;
          this.#words.failure ??= `${this.#user.name} is open, and a command fails: ${what}`;
          return;
        }
      }
      await pass(this.#user, random.between(0, this.#words.paceMs));
    }
  }

  /** Ends when it is durable. */
  async #write(word: number, count: number, persist: boolean): Promise<void> {
    const { histories } = this.#words;
    const operation = histories.begin('write', word, count);
    this.#words.newest = word;
    const words = Array.from({ length: count }, (_, index) => word + index);
    const bytes = new Uint8Array(WORD_STRIDE_BYTES * count);
    stamp(bytes, operation.value);
    if (!persist) for (const each of words) this.#volatile.add(each);
    const guard = this.#fence === undefined ? {} : { guard: { address: FENCE_ADDRESS, expected: this.#fence } };
    const access = this.#access;
    await access.write(addressOf(word), [bytes.subarray(0, 24), bytes.subarray(24)], { persist, ...guard });
    if (!persist) {
      await access.persist(addressOf(word), bytes.length);
      for (const each of words) this.#volatile.delete(each);
    }
    histories.endWrite(operation, true);
    this.#words.writes += 1;
    this.#note(`${this.#user.name} has written ${operation.value} from word ${word} on`);
  }

  /** What it finds is not confirmed, so it is not judged; what it stores is. */
  async #swap(word: number): Promise<void> {
    const { histories } = this.#words;
    const old = new Uint8Array(WORD_BYTES);
    await this.#access.read(addressOf(word), old);
    const operation = histories.begin('write', word);
    const bytes = new Uint8Array(WORD_BYTES);
    stamp(bytes, operation.value);
    const [expected, desired] = [wordOf(old), wordOf(bytes)];
    const found = await this.#access.compareAndSwap(addressOf(word), expected, desired, { persist: true });
    if (found === expected) histories.endWrite(operation, true);
  }

  /** By a guard that does not hold. Its value is not in the history: nobody may ever read it. */
  async #refused(word: number, fence: bigint): Promise<void> {
    const bytes = new Uint8Array(WORD_BYTES);
    stamp(bytes, -5);
    const guard = { address: FENCE_ADDRESS, expected: fence + 1n };
    try {
      await this.#access.write(addressOf(word), [bytes], { persist: true, guard });
      this.#words.failure ??= 'a guard that does not hold lets a write through';
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_FENCED')) throw error;
    }
  }
}

/** By the clock of the user. */
export function pass({ clock }: RegionUser, delayMs: number): Promise<void> {
  return new Promise((resolve) => void clock.setTimer(delayMs, resolve));
}

function addressOf(word: number): number {
  return word * WORD_STRIDE_BYTES;
}

function wordOf(bytes: Uint8Array): bigint {
  return new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
}

export function codeOf(error: unknown): string {
  return isHoldfastError(error) ? error.code : String(error);
}
