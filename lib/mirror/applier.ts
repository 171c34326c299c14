/**
 * The receiver's side of mirroring: applies what the other member's engine sends straight to the own copy.
 *
 * Invariant: overlapping writes are applied in the order in which they arrived, which is the order of their origin,
 * also when a session has ended between two of them and the first is still on its way to a slow device.
 */
import { isPlanted } from '../base/planted-bug.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { RangeGrant, RangeLock } from '../storage/range-lock.ts';
import type { OwnCopy } from './own-copy.ts';

export class Applier {
  readonly #own: OwnCopy;
  readonly #locks = new RangeLock();
  #underWay = 0;
  #idle: (() => void)[] = [];

  constructor(own: OwnCopy) {
    this.#own = own;
  }

  async write(offset: number, length: number, action: (device: BlockDevice) => Promise<void>): Promise<void> {
    this.#underWay += 1;
    const mode = isPlanted('overlap-unordered-at-receiver') ? 'shared' : 'exclusive';
    const held = this.#locks.hold(offset, length, mode);
    const grant = held instanceof RangeGrant ? held : await held;
    try {
      await this.#own.change(offset, length, action);
    } finally {
      grant.release();
      this.#ended();
    }
  }

  async flush(): Promise<void> {
    this.#underWay += 1;
    try {
      await this.#own.flush();
    } finally {
      this.#ended();
    }
  }

  /** Resolves when nothing is being applied. */
  async done(): Promise<void> {
    while (this.#underWay > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  #ended(): void {
    this.#underWay -= 1;
    const idle = this.#idle;
    if (idle.length === 0) return;
    this.#idle = [];
    for (const resolve of idle) resolve();
  }
}
