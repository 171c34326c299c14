/**
 * Who of a process pair works: the decisions, pure. Each process has a machine of its own; what they share is the pair's
 * region, whose epoch (the manager's count of take-overs) has one order for all.
 *
 *   state         event                          next state    effect
 *   idle          start                          backup        follow, set-timer
 *   backup        pulse                          backup        set-timer
 *   backup        pulse: handed over, by other   taking-over   take-over
 *   backup        silence                        taking-over   take-over
 *   backup        lost                           cut-off       stop, reach
 *   cut-off       reached, own pulse last        taking-over   take-over
 *   cut-off       reached                        backup        follow, set-timer
 *   taking-over   took-over                      primary       work, pulse
 *   taking-over   failed                         cut-off       stop, reach
 *   primary       beat                           primary       pulse
 *   primary       fenced                         cut-off       stop, reach
 *   primary       lost                           cut-off       stop, reach
 *   primary       hand-over                      handing-over  drain
 *   handing-over  drained                        backup        say-handed-over, follow, set-timer
 *   handing-over  fenced, lost                   cut-off       stop, reach
 *   any           close                          closed        stop, and say-handed-over by a primary
 *
 * Invariants:
 * - Safety never depends on a clock: who takes over is by the manager's word, which has made the former primary's key
 *   void before. Time only says when it is worth the asking.
 * - Silence counts only while the unit can be reached: who hears nothing because it is cut off itself takes over from
 *   nobody. After a cut the whole time runs anew.
 * - A primary that has lost the unit does not know what became of its last updates: it gives up its state, and begins
 *   again from what the unit holds.
 * - Who handed over waits for the other one twice as long as for a silent one, so that it is not the first to take over.
 */
import type { Pulse } from './pulse.ts';

export type PairState = 'idle' | 'backup' | 'taking-over' | 'primary' | 'handing-over' | 'cut-off' | 'closed';

export type PairEvent =
  | { readonly type: 'start' }
  | { readonly type: 'pulse'; readonly pulse: Pulse }
  /** The timer that was set has run out. */
  | { readonly type: 'timer' }
  | { readonly type: 'took-over'; readonly epoch: number }
  /** What was asked of the unit or its manager did not succeed, for whatever reason but a key that is void. */
  | { readonly type: 'lost' }
  /** Another one has taken over. */
  | { readonly type: 'fenced' }
  /** Unit and manager answer again; with the last pulse that is there. */
  | { readonly type: 'reached'; readonly pulse: Pulse | undefined }
  | { readonly type: 'hand-over' }
  | { readonly type: 'drained' }
  | { readonly type: 'close' };

export type PairEffect =
  /** Watch the region, and keep a state that follows. */
  | { readonly type: 'follow' }
  /** Ask the manager; then read to the tail. */
  | { readonly type: 'take-over' }
  /** Serve. */
  | { readonly type: 'work'; readonly epoch: number }
  | { readonly type: 'pulse'; readonly pulse: Pulse }
  /** Take no more updates, and wait for those that are under way. */
  | { readonly type: 'drain' }
  /** Serve no longer, follow no longer; what has not been answered fails. */
  | { readonly type: 'stop' }
  /** Try until unit and manager answer. */
  | { readonly type: 'reach' }
  | { readonly type: 'set-timer'; readonly delayMs: number };

export interface PairTiming {
  /** Between two pulses of the primary, ms. */
  readonly heartbeatMs: number;
  /** After so long without a pulse the backup takes over, ms. */
  readonly takeOverAfterMs: number;
  /** 0 to 1: so that two that start together do not ask together. */
  readonly jitter: () => number;
}

/** Fixed for the life of the process. */
export interface PairSelf {
  /** 32 hexadecimal digits, random with every process. */
  readonly incarnation: string;
  readonly timing: PairTiming;
}

export class PairMachine {
  readonly #self: PairSelf;
  #state: PairState = 'idle';
  #epoch = 0;
  #count = 0;
  /** It has handed over, and has not heard of another primary since. */
  #yielded = false;

  constructor(self: PairSelf) {
    this.#self = self;
  }

  get state(): PairState {
    return this.#state;
  }

  step(event: PairEvent): readonly PairEffect[] {
    if (this.#state === 'closed') return [];
    switch (event.type) {
      case 'start':
        return this.#state === 'idle' ? this.#back() : [];
      case 'pulse':
        return this.#pulse(event.pulse);
      case 'timer':
        return this.#timer();
      case 'took-over':
        return this.#tookOver(event.epoch);
      case 'lost':
      case 'fenced':
        return this.#cutOff();
      case 'reached':
        return this.#reached(event.pulse);
      case 'hand-over':
        return this.#handOver();
      case 'drained':
        return this.#drained();
      case 'close':
        return this.#close();
    }
  }

  #back(): readonly PairEffect[] {
    this.#state = 'backup';
    return [{ type: 'follow' }, this.#silence()];
  }

  /** The time without a pulse after which it takes over. */
  #silence(): PairEffect {
    const { takeOverAfterMs, jitter } = this.#self.timing;
    return { type: 'set-timer', delayMs: takeOverAfterMs * (this.#yielded ? 2 : 1) * (1 + jitter() / 4) };
  }

  #pulse(pulse: Pulse): readonly PairEffect[] {
    if (this.#state !== 'backup') return [];
    const isOwn = pulse.incarnation === this.#self.incarnation;
    if (!isOwn) this.#yielded = false;
    if (pulse.kind === 'handed-over' && !isOwn) return this.#takeOver();
    return [this.#silence()];
  }

  #timer(): readonly PairEffect[] {
    if (this.#state === 'backup') return this.#takeOver();
    return this.#state === 'primary' || this.#state === 'handing-over' ? this.#beat('alive') : [];
  }

  #takeOver(): readonly PairEffect[] {
    this.#state = 'taking-over';
    return [{ type: 'take-over' }];
  }

  #tookOver(epoch: number): readonly PairEffect[] {
    if (this.#state !== 'taking-over') return [];
    this.#state = 'primary';
    this.#epoch = epoch;
    this.#count = 0;
    this.#yielded = false;
    return [{ type: 'work', epoch }, ...this.#beat('alive')];
  }

  #beat(kind: Pulse['kind']): readonly PairEffect[] {
    const { incarnation, timing } = this.#self;
    const pulse = { kind, epoch: this.#epoch, count: ++this.#count, incarnation };
    if (kind === 'handed-over') return [{ type: 'pulse', pulse }];
    return [
      { type: 'pulse', pulse },
      { type: 'set-timer', delayMs: timing.heartbeatMs },
    ];
  }

  #cutOff(): readonly PairEffect[] {
    if (this.#state === 'idle' || this.#state === 'cut-off') return [];
    this.#state = 'cut-off';
    return [{ type: 'stop' }, { type: 'reach' }];
  }

  /** Whoever pulsed last needs not wait for anybody else. */
  #reached(pulse: Pulse | undefined): readonly PairEffect[] {
    if (this.#state !== 'cut-off') return [];
    const isOwn = pulse?.kind === 'alive' && pulse.incarnation === this.#self.incarnation;
    return isOwn ? this.#takeOver() : this.#back();
  }

  #handOver(): readonly PairEffect[] {
    if (this.#state !== 'primary') return [];
    this.#state = 'handing-over';
    return [{ type: 'drain' }];
  }

  #drained(): readonly PairEffect[] {
    if (this.#state !== 'handing-over') return [];
    this.#yielded = true;
    return [...this.#beat('handed-over'), { type: 'stop' }, ...this.#back()];
  }

  #close(): readonly PairEffect[] {
    const isPrimary = this.#state === 'primary' || this.#state === 'handing-over';
    this.#state = 'closed';
    return [...(isPrimary ? this.#beat('handed-over') : []), { type: 'stop' }];
  }
}
