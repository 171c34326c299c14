/**
 * What clients write, so that it can be judged: every block carries the number of the write that it comes from, all
 * over, and every request goes into the histories of its blocks.
 *
 * A write of several blocks is one operation in the histories of all of them: each block is judged by itself, since a
 * device promises nothing about several.
 */
import { assert } from '../base/errors.ts';
import { INITIAL_VALUE, type Operation } from './history.ts';

/** What a block holds that has been zeroed, where it did not begin as zeros. No write has this number. */
export const ZEROED_VALUE = -1;
/** A block's content before the first write, where that is not zeros. */
export const FILL_STAMP = 1;

/** A block carries its value at every 8 bytes: a torn one is told at once. */
export function stamp(bytes: Uint8Array, value: number): void {
  new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8).fill(value);
}

/** NaN if the block is torn. */
export function readStamp(bytes: Uint8Array): number {
  const words = new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8);
  const [value = Number.NaN] = words;
  for (let index = 1; index < words.length; index++) if (words[index] !== value) return Number.NaN;
  return value;
}

export interface RecordedOperation extends Operation {
  /** How many losses there had been when it began. */
  readonly losses: number;
  end: number;
  value: number;
  durable?: number;
}

export interface HistoriesOptions {
  /** The blocks begin with FILL_STAMP all over: then zeros are a value like others, and each block can be zeroed once. */
  readonly filled?: boolean;
}

export class Histories {
  readonly blocks = new Map<number, RecordedOperation[]>();
  readonly #filled: boolean;
  readonly #zeroed = new Set<number>();
  #time = 0;
  #stamp = FILL_STAMP;
  #losses = 0;
  #operations = 0;
  #acknowledged = new Set<RecordedOperation>();

  constructor(options: HistoriesOptions = {}) {
    this.#filled = options.filled ?? false;
  }

  /** Requests of all kinds that have begun. */
  get operations(): number {
    return this.#operations;
  }

  /** The next position in the order of events. */
  tick(): number {
    this.#time += 1;
    return this.#time;
  }

  begin(kind: 'read' | 'write', block: number, count = 1): RecordedOperation {
    if (kind === 'write') this.#stamp += 1;
    return this.#begin(kind, kind === 'write' ? this.#stamp : INITIAL_VALUE, block, count);
  }

  /** A write of zeros, or undefined where these blocks have had their one already: every value is written once. */
  beginZeroes(block: number, count = 1): RecordedOperation | undefined {
    for (let index = block; index < block + count; index++) if (!this.#filled || this.#zeroed.has(index)) return;
    for (let index = block; index < block + count; index++) this.#zeroed.add(index);
    return this.#begin('write', ZEROED_VALUE, block, count);
  }

  endRead(operation: RecordedOperation, bytes: Uint8Array): void {
    operation.value = this.valueOf(readStamp(bytes));
    operation.end = this.tick();
  }

  endWrite(operation: RecordedOperation, fua: boolean): void {
    operation.end = this.tick();
    if (fua) operation.durable = operation.end;
    else if (operation.losses === this.#losses) this.#acknowledged.add(operation);
  }

  /** The writes that a flush which begins now covers. */
  coveredByFlush(): readonly RecordedOperation[] {
    return [...this.#acknowledged];
  }

  flushed(covered: readonly RecordedOperation[]): void {
    const now = this.tick();
    for (const operation of covered) {
      if (this.#acknowledged.delete(operation)) operation.durable = now;
    }
  }

  /** What was not flushed may be lost: a later flush does not bring it back. */
  lose(): void {
    this.#losses += 1;
    this.#acknowledged.clear();
  }

  valueOf(found: number): number {
    if (!this.#filled) return found;
    if (found === FILL_STAMP) return INITIAL_VALUE;
    return found === 0 ? ZEROED_VALUE : found;
  }

  #begin(kind: 'read' | 'write', value: number, block: number, count: number): RecordedOperation {
    assert(kind === 'write' || count === 1, 'each block that is read has a value of its own');
    const operation = { kind, value, losses: this.#losses, start: this.tick(), end: Number.POSITIVE_INFINITY };
    for (let index = block; index < block + count; index++) {
      const history = this.blocks.get(index);
      if (history === undefined) this.blocks.set(index, [operation]);
      else history.push(operation);
    }
    this.#operations += 1;
    return operation;
  }
}
