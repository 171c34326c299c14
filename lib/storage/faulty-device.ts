/**
 * A filter over any BlockDevice that misbehaves by rule (the idea is nbdkit's: cross-cutting behaviour as a filter with
 * a `next`). Rules live in a `FaultPlan`, which may outlive the device that it is used by. Every rule that matches a
 * request acts on it, in the order in which they were injected.
 */
import type { Clock } from '../base/clock.ts';
import { assert, HoldfastError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { BaseDevice } from './base-device.ts';
import type { BlockDevice, Geometry, IoOptions, WriteOptions, WriteZeroesOptions } from './block-device.ts';

/** The requests that a rule can be for. */
export type FaultOperation = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';

/** What a fault does to a request. */
export type FaultAction =
  /** Fails the request: without doing it, or (`after`) although it was done. Default EIO. */
  | { readonly kind: 'error'; readonly errno?: 'EIO' | 'ENOSPC'; readonly when?: 'before' | 'after' }
  | { readonly kind: 'delay'; readonly delayMs: number }
  /** Keeps the request back until the fault is removed. */
  | { readonly kind: 'hang' }
  /** Turns over one bit of what is read, or of what reaches the device; by default the first of the request. */
  | { readonly kind: 'flip-bit'; readonly offset?: number; readonly bit?: number }
  | {
      readonly kind: 'misdirect';
      /** Where the data of a write lands, in bytes from the device's start. Undefined: where it belongs. */
      readonly to: (offset: number, length: number) => number | undefined;
    }
  | {
      readonly kind: 'trigger';
      readonly when: 'started' | 'done';
      /**
       * Called when the request is on its way to the device (`started`), or `done` there and not answered yet. It is
       * never answered after `gone`: whoever asked is not there any more.
       */
      readonly trigger: () => 'gone' | 'answer';
    };

/** Which requests a fault acts on, and how. */
export interface FaultRule {
  readonly action: FaultAction;
  /** Which requests; default all. */
  readonly on?: FaultOperation | readonly FaultOperation[];
  /** Only requests that touch this range of bytes (flushes touch none). */
  readonly within?: { readonly offset: number; readonly length: number };
  /** Lets so many matching requests pass first; default 0. */
  readonly skip?: number;
  /** Acts so many times, then no more; default without end. */
  readonly times?: number;
  /** Acts on a matching request with this chance, 0 … 1; default 1. The plan needs a `random` for it. */
  readonly probability?: number;
}

/** A rule that is in force until it is removed. */
export interface InjectedFault {
  readonly action: FaultAction;
  /** Requests that it has acted on. */
  readonly hits: number;
  /** Ends the rule, and lets go of the requests that hang by it. */
  remove(): void;
}

class ActiveFault implements InjectedFault {
  readonly rule: FaultRule;
  hits = 0;
  matches = 0;
  removed = false;
  readonly #hanging: (() => void)[] = [];
  readonly #onRemove: () => void;

  constructor(rule: FaultRule, onRemove: () => void) {
    this.rule = rule;
    this.#onRemove = onRemove;
  }

  get action(): FaultAction {
    return this.rule.action;
  }

  remove(): void {
    this.removed = true;
    this.#onRemove();
    for (const resume of this.#hanging.splice(0)) resume();
  }

  untilRemoved(): Promise<void> {
    if (this.removed) return Promise.resolve();
    return new Promise((resolve) => this.#hanging.push(resolve));
  }
}

const NONE: readonly ActiveFault[] = [];

/** A new one each time: one for all would keep whoever waits for it, for ever. */
function never(): Promise<never> {
  return new Promise(() => {});
}

/** The rules of one or more devices; it may outlive them. Every rule that matches acts, in the order of injection. */
export class FaultPlan {
  readonly #faults: ActiveFault[] = [];
  readonly #random: Random | undefined;

  /** @param random decides where a rule has a probability. */
  constructor(random?: Random) {
    this.#random = random;
  }

  /** From now on the rule acts. */
  inject(rule: FaultRule): InjectedFault {
    if (rule.probability !== undefined && this.#random === undefined)
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', 'a probability needs a plan with a random; give it one');
    const fault: ActiveFault = new ActiveFault(rule, () => {
      const index = this.#faults.indexOf(fault);
      if (index >= 0) this.#faults.splice(index, 1);
    });
    this.#faults.push(fault);
    return fault;
  }

  /** Removes every rule. */
  clear(): void {
    for (const fault of [...this.#faults]) fault.remove();
  }

  /** The faults that act on this request; counts it. @internal */
  match(operation: FaultOperation, offset: number, length: number): readonly ActiveFault[] {
    if (this.#faults.length === 0) return NONE;
    return this.#faults.filter((fault) => {
      const { on, within, skip = 0, times = Number.POSITIVE_INFINITY, probability } = fault.rule;
      const isMeant = typeof on === 'string' ? on === operation : (on?.includes(operation) ?? true);
      if (!isMeant) return false;
      if (within !== undefined && (offset >= within.offset + within.length || within.offset >= offset + length))
        return false;
      if (fault.matches++ < skip || fault.hits >= times) return false;
      if (probability !== undefined && this.#random!.below(2 ** 32) >= probability * 2 ** 32) return false;
      fault.hits++;
      return true;
    });
  }
}

/** What the faults follow. */
export interface FaultyDeviceOptions {
  /** Default: a plan of its own, without a random. */
  readonly plan?: FaultPlan;
  /** Needed by `delay`. */
  readonly clock?: Clock;
}

/**
 * A device that misbehaves by rule, over any other one.
 *
 * ```ts
 * const device = new FaultyDevice(new MemoryDevice({ sizeBytes: 65_536 }));
 * device.inject({ action: { kind: 'error', errno: 'EIO' }, on: 'write', skip: 2, times: 1 });
 * ```
 */
export class FaultyDevice extends BaseDevice {
  readonly kind = 'faulty';
  readonly geometry: Geometry;
  readonly plan: FaultPlan;
  readonly #next: BlockDevice;
  readonly #clock: Clock | undefined;

  /** Takes over `next`, which is closed with this. */
  constructor(next: BlockDevice, options: FaultyDeviceOptions = {}) {
    super(next.name, next.readOnly);
    this.geometry = next.geometry;
    this.plan = options.plan ?? new FaultPlan();
    this.#next = next;
    this.#clock = options.clock;
  }

  /** Same as `plan.inject`. */
  inject(rule: FaultRule): InjectedFault {
    return this.plan.inject(rule);
  }

  protected async performRead(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Promise<void> {
    const faults = this.plan.match('read', offset, buffer.byteLength);
    if (faults.length === 0) return this.#next.read(offset, buffer, options);
    await this.#through(faults, 'read', offset, buffer.byteLength, () => this.#next.read(offset, buffer, options));
    for (const { action } of faults) flipBit(action, offset, buffer);
  }

  protected async performWrite(offset: number, buffer: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    const faults = this.plan.match('write', offset, buffer.byteLength);
    if (faults.length === 0) return this.#next.write(offset, buffer, options);
    const flips = faults.filter(({ action }) => action.kind === 'flip-bit');
    const bytes = flips.length > 0 ? buffer.slice() : buffer;
    for (const { action } of flips) flipBit(action, offset, bytes);
    const at = landsAt(faults, offset, buffer.byteLength);
    await this.#through(faults, 'write', offset, buffer.byteLength, () => this.#next.write(at, bytes, options));
  }

  protected performFlush(options: IoOptions | undefined): Promise<void> {
    return this.#through(this.plan.match('flush', 0, 0), 'flush', 0, 0, () => this.#next.flush(options));
  }

  protected performDiscard(offset: number, length: number, options: IoOptions | undefined): Promise<void> {
    const faults = this.plan.match('discard', offset, length);
    return this.#through(faults, 'discard', offset, length, () => this.#next.discard(offset, length, options));
  }

  protected performWriteZeroes(offset: number, length: number, options: WriteZeroesOptions | undefined): Promise<void> {
    const faults = this.plan.match('writeZeroes', offset, length);
    return this.#through(faults, 'writeZeroes', offset, length, () => this.#next.writeZeroes(offset, length, options));
  }

  protected performClose(): Promise<void> {
    return this.#next.close();
  }

  #through(
    faults: readonly ActiveFault[],
    operation: FaultOperation,
    offset: number,
    length: number,
    perform: () => Promise<void>,
  ): Promise<void> {
    return faults.length === 0 ? perform() : this.#misbehave(faults, operation, offset, length, perform);
  }

  async #misbehave(
    faults: readonly ActiveFault[],
    operation: FaultOperation,
    offset: number,
    length: number,
    perform: () => Promise<void>,
  ): Promise<void> {
    for (const fault of faults) {
      const { action } = fault;
      if (action.kind === 'hang') await fault.untilRemoved();
      else if (action.kind === 'delay') await this.#wait(action.delayMs);
    }
    const errors = faults.map(({ action }) => action).filter((action) => action.kind === 'error');
    const before = errors.find((error) => error.when !== 'after');
    if (before !== undefined) throw this.#failure(before.errno ?? 'EIO', operation, offset, length);
    const performed = perform();
    if (pull(faults, 'started') === 'gone') return never();
    await performed;
    if (pull(faults, 'done') === 'gone') return never();
    const after = errors[0];
    if (after !== undefined) throw this.#failure(after.errno ?? 'EIO', operation, offset, length);
  }

  #wait(delayMs: number): Promise<void> {
    const clock = this.#clock;
    assert(clock !== undefined, 'a device with delays has a clock');
    return new Promise((resolve) => clock.setTimer(delayMs, resolve));
  }

  #failure(errno: 'EIO' | 'ENOSPC', operation: FaultOperation, offset: number, length: number): HoldfastError {
    const code = errno === 'ENOSPC' ? 'ERR_HOLDFAST_NO_SPACE' : 'ERR_HOLDFAST_IO';
    return new HoldfastError(
      code,
      `${this.name}: ${operation} of ${length} bytes at ${offset} failed with ${errno}, as injected`,
      { errno },
    );
  }
}

function pull(faults: readonly ActiveFault[], when: 'started' | 'done'): 'gone' | 'answer' {
  let outcome: 'gone' | 'answer' = 'answer';
  for (const { action } of faults) {
    if (action.kind === 'trigger' && action.when === when && action.trigger() === 'gone') outcome = 'gone';
  }
  return outcome;
}

function landsAt(faults: readonly ActiveFault[], offset: number, length: number): number {
  for (const { action } of faults) {
    if (action.kind === 'misdirect') return action.to(offset, length) ?? offset;
  }
  return offset;
}

function flipBit(action: FaultAction, offset: number, bytes: Uint8Array): void {
  if (action.kind !== 'flip-bit') return;
  const at = (action.offset ?? offset) - offset;
  if (at >= 0 && at < bytes.byteLength) bytes[at]! ^= 1 << (action.bit ?? 0);
}
