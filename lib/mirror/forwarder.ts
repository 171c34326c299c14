/**
 * The forwarder: sends the requests of a member without access to the member that has it. Long requests go in pieces,
 * at most `window` of them under way at a time for the whole volume.
 *
 * Each write has a number. It is sent again, with that number, over a later session to the same process of the holder;
 * to another process it is not, since whether it has happened is not known (ERR_HOLDFAST_OUTCOME_UNKNOWN).
 */
import { setMaxListeners } from 'node:events';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { PeerSession } from '../peer/peer.ts';
import { outcomeUnknown } from './engine.ts';
import {
  forwardFlushMethod,
  forwardReadMethod,
  forwardWriteMethod,
  forwardZeroMethod,
  MAX_PIECE_BYTES,
} from './protocol.ts';

/** One write of a client, or a piece of one, over all the sessions that it takes. */
export interface ForwardedWrite {
  readonly request: number;
  /** The process of the holder that may have executed it. */
  sentTo: string | undefined;
}

/** How far the numbers of unsettled writes may lie apart; the holder remembers twice as many (once.ts). */
export const MAX_SPAN = 4096;

export class Forwarder {
  readonly #volume: string;
  readonly #window: number;
  #nextRequest = 1;
  /** Unsettled requests, oldest first. */
  readonly #unsettled = new Set<number>();
  #underWay = 0;
  readonly #queue: (() => void)[] = [];
  readonly #spanQueue: (() => void)[] = [];
  readonly #end = new AbortController();

  constructor(volume: string, window: number) {
    this.#volume = volume;
    this.#window = window;
    // One listener for each request under way, and no warning about it: there are at most `window`.
    setMaxListeners(window, this.#end.signal);
  }

  /** Ends what the other member has not answered, and all that comes later, with ERR_HOLDFAST_OUTCOME_UNKNOWN. */
  close(): void {
    this.#end.abort();
  }

  /** Waits while a write that is much older is still unsettled: the holder remembers every number since. */
  async begin(): Promise<ForwardedWrite> {
    while (this.#span >= MAX_SPAN) await new Promise<void>((resolve) => this.#spanQueue.push(resolve));
    const request = this.#nextRequest;
    this.#nextRequest += 1;
    this.#unsettled.add(request);
    return { request, sentTo: undefined };
  }

  end(write: ForwardedWrite): void {
    this.#unsettled.delete(write.request);
    if (this.#span < MAX_SPAN) for (const resolve of this.#spanQueue.splice(0)) resolve();
  }

  /** Numbers from the oldest unsettled one to the next. */
  get #span(): number {
    const [oldest = this.#nextRequest] = this.#unsettled;
    return this.#nextRequest - oldest;
  }

  read(session: PeerSession, offset: number, buffer: Uint8Array): Promise<void> {
    const volume = this.#volume;
    return this.#inWindow(async () => {
      const answer = await session.request(forwardReadMethod, { volume, offset, length: buffer.length }, [], {
        signal: this.#end.signal,
      });
      if (answer.data.length !== buffer.length) {
        throw new HoldfastError('ERR_HOLDFAST_IO', `the peer answered a read with ${answer.data.length} bytes`);
      }
      buffer.set(answer.data);
    });
  }

  write(session: PeerSession, write: ForwardedWrite, offset: number, data: Uint8Array, fua: boolean): Promise<void> {
    const range = { volume: this.#volume, offset };
    return this.#inWindow(() =>
      sent(
        write,
        session.request(forwardWriteMethod, { ...range, ...this.#numbers(session, write), fua }, [data], {
          signal: this.#end.signal,
        }),
      ),
    );
  }

  writeZeroes(
    session: PeerSession,
    write: ForwardedWrite,
    range: { readonly offset: number; readonly length: number },
    flags: { readonly fua: boolean; readonly mayUnmap: boolean },
  ): Promise<void> {
    const volume = this.#volume;
    return this.#inWindow(() => {
      const numbers = this.#numbers(session, write);
      return sent(
        write,
        session.request(forwardZeroMethod, { volume, ...range, ...numbers, ...flags }, [], {
          signal: this.#end.signal,
        }),
      );
    });
  }

  flush(session: PeerSession): Promise<void> {
    return this.#inWindow(async () => {
      await session.request(forwardFlushMethod, { volume: this.#volume }, [], { signal: this.#end.signal });
    });
  }

  #numbers(session: PeerSession, write: ForwardedWrite): { request: number; doneBelow: number } {
    checkSameProcess(write, session.peer.incarnation);
    write.sentTo = session.peer.incarnation;
    const [oldest = write.request] = this.#unsettled;
    return { request: write.request, doneBelow: oldest };
  }

  async #inWindow(send: () => Promise<void>): Promise<void> {
    if (this.#underWay >= this.#window) await new Promise<void>((resolve) => this.#queue.push(resolve));
    else this.#underWay += 1;
    try {
      await send();
    } catch (error) {
      throw isHoldfastError(error, 'ERR_HOLDFAST_ABORTED') ? closed(error) : error;
    } finally {
      const next = this.#queue.shift();
      if (next === undefined) this.#underWay -= 1;
      else next();
    }
  }
}

function closed(cause: unknown): HoldfastError {
  return new HoldfastError(
    'ERR_HOLDFAST_OUTCOME_UNKNOWN',
    'the volume was closed before the other member answered: a write may or may not have happened',
    { cause },
  );
}

/** The holder's process refuses only what it has not executed: anyone may execute it now. */
async function sent(write: ForwardedWrite, answer: Promise<unknown>): Promise<void> {
  try {
    await answer;
  } catch (error) {
    if (isHoldfastError(error, 'ERR_HOLDFAST_REFUSED')) write.sentTo = undefined;
    throw error;
  }
}

/** Throws if another process than the given one may have executed the write. Undefined: this member itself. */
export function checkSameProcess(write: ForwardedWrite, incarnation: string | undefined): void {
  if (write.sentTo !== undefined && write.sentTo !== incarnation) throw outcomeUnknown();
}

/** A request that need not be cut: most. */
export function isOnePiece(offset: number, length: number): boolean {
  return (offset % MAX_PIECE_BYTES) + length <= MAX_PIECE_BYTES;
}

/** The pieces of a long request: cut at multiples of the piece size on the device, so that no block is cut. */
export function* pieces(
  offset: number,
  length: number,
  pieceBytes = MAX_PIECE_BYTES,
): Generator<{ at: number; end: number }> {
  for (let at = offset; at < offset + length; ) {
    const end = Math.min(offset + length, at - (at % pieceBytes) + pieceBytes);
    yield { at, end };
    at = end;
  }
}
