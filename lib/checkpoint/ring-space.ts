/**
 * The room in a ring of records: what the next record takes, and up to where space may be given back. Pure.
 *
 * Invariants:
 * - Nothing between the head, as it is durable, and the tail is given out.
 * - The head goes only to places that the writer knows of itself: it remembers about 64 of them, evenly spread, so that
 *   what a backup says of itself is no more than a sequence number.
 */
import { assert } from '../base/errors.ts';
import type { RingPosition } from './layout.ts';

const MARKS = 64;
/** Of the ring: the head, which costs two pages, is moved by no less unless the ring is empty then. */
const STEP_OF_RING = 8;

/** A place, and all bytes of the ring that were ever given out before it. */
interface Mark {
  readonly givenBytes: number;
  readonly position: RingPosition;
}

export class RingSpace {
  readonly ringBytes: number;
  #head: Mark;
  #tail: Mark;
  /** Between head and tail, ascending. */
  #marks: Mark[] = [];

  /** Of an empty chain; `advance` over what is there already. */
  constructor(ringBytes: number, head: RingPosition) {
    this.ringBytes = ringBytes;
    this.#head = { givenBytes: 0, position: head };
    this.#tail = this.#head;
  }

  get head(): RingPosition {
    return this.#head.position;
  }

  get tail(): RingPosition {
    return this.#tail.position;
  }

  get usedBytes(): number {
    return this.#tail.givenBytes - this.#head.givenBytes;
  }

  /** What a record of this length needs: with the rest of the ring, if it does not fit in there. */
  neededBytes(takenBytes: number): number {
    const restBytes = this.ringBytes - this.#tail.position.offset;
    return takenBytes <= restBytes ? takenBytes : restBytes + takenBytes;
  }

  fits(takenBytes: number): boolean {
    return this.usedBytes + this.neededBytes(takenBytes) <= this.ringBytes;
  }

  /** The tail goes over a record, or a wrap. */
  advance(takenBytes: number, after: RingPosition): void {
    this.#tail = { givenBytes: this.#tail.givenBytes + takenBytes, position: after };
    assert(this.usedBytes <= this.ringBytes, 'the tail of a ring never overtakes its head');
    const last = this.#marks.at(-1) ?? this.#head;
    if (this.#tail.givenBytes - last.givenBytes >= this.ringBytes / MARKS) this.#marks.push(this.#tail);
  }

  /**
   * Where the head may go when all up to `cleared` may be dropped, whatever number that is. Undefined: nowhere that is
   * worth it.
   */
  freeable(cleared: number): RingPosition | undefined {
    const first = Math.min(cleared + 1, this.#tail.position.sequence);
    if (first === this.#tail.position.sequence && this.usedBytes > 0) return this.#tail.position;
    const mark = this.#marks.findLast(({ position }) => position.sequence <= first);
    if (mark === undefined) return undefined;
    const isWorthIt = mark.givenBytes - this.#head.givenBytes >= this.ringBytes / STEP_OF_RING;
    return isWorthIt ? mark.position : undefined;
  }

  /** The head is there now, durably. */
  release(head: RingPosition): void {
    const isIt = ({ position }: Mark) => position.sequence === head.sequence && position.offset === head.offset;
    const mark = isIt(this.#tail) ? this.#tail : this.#marks.find(isIt);
    assert(mark !== undefined, 'the head of a ring goes to a place that is known');
    this.#head = mark;
    this.#marks = this.#marks.filter(({ givenBytes }) => givenBytes > mark.givenBytes);
  }
}

/**
 * Up to where records may be dropped. Everything that every registered backup has cleared; if `dropDrained`, everything
 * that one of them has. Nothing as long as none is registered: nobody has drained anything.
 */
export function droppable(cleared: readonly number[], dropDrained: boolean): number {
  if (cleared.length === 0) return 0;
  return dropDrained ? Math.max(...cleared) : Math.min(...cleared);
}
