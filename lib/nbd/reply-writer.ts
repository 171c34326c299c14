/**
 * Replies on their way out. All that is answered in one turn of the event loop leaves in one write: headers and small
 * payloads are laid side by side in a slab, large payloads go as they are. A slab is used again, and a payload given
 * back, only when the connection says that it has gone.
 */
import type { Connection } from '../base/network.ts';
import type { PayloadLease } from './payload-pool.ts';

/** The first slab, and the biggest: each that is outgrown before its bytes have gone is followed by one twice as big. */
const SMALLEST_SLAB_BYTES = 32 * 1024;
const BIGGEST_SLAB_BYTES = 256 * 1024;
/** Up to here a copy is cheaper than one more buffer in the write. */
const COPY_LIMIT_BYTES = 16 * 1024;

export interface ReplyWriterEvents {
  /** The connection takes no more for now. */
  onBlocked(): void;
  /** Payloads have gone and were given back. */
  onReclaimed(): void;
}

export class ReplyWriter {
  readonly #connection: Connection;
  readonly #events: ReplyWriterEvents;
  #chunks: Uint8Array[] = [];
  #slab = new Uint8Array(0);
  /** The part of the slab that is not yet in `#chunks`. */
  #from = 0;
  #to = 0;
  /** Large payloads that may not have gone, in order, each with the place in the stream where it ends. */
  readonly #sent: { readonly lease: PayloadLease; readonly end: number }[] = [];
  /** Bytes given to `#chunks` since the beginning. */
  #position = 0;
  #sentBytes = 0;
  #scheduled = false;
  #closed = false;
  readonly #flushSoon = (): void => {
    this.#scheduled = false;
    this.flush();
  };

  readonly #gone = (): void => {
    this.reclaim();
    this.#events.onReclaimed();
  };

  constructor(connection: Connection, events: ReplyWriterEvents) {
    this.#connection = connection;
    this.#events = events;
  }

  /** Room for `count` bytes of a header, to be filled at once. Returns where in `slab` they begin. */
  reserve(count: number): number {
    if (this.#to + count > this.#slab.length) this.#newSlab();
    const at = this.#to;
    this.#to += count;
    this.#schedule();
    return at;
  }

  get slab(): Uint8Array {
    return this.#slab;
  }

  /** Bytes of large payloads that are still held. */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  /** Sends the lease's bytes after what was reserved last, and gives the lease back. */
  payload(lease: PayloadLease): void {
    const { bytes } = lease;
    if (bytes.length <= COPY_LIMIT_BYTES) {
      if (this.#to + bytes.length > this.#slab.length) this.#newSlab();
      this.#slab.set(bytes, this.#to);
      this.#to += bytes.length;
      lease.release();
    } else if (this.#closed) lease.release();
    else {
      this.#cut();
      this.#push(bytes);
      this.#sent.push({ lease, end: this.#position });
      this.#sentBytes += bytes.length;
    }
    this.#schedule();
  }

  bytes(bytes: Uint8Array): void {
    this.#cut();
    this.#push(bytes);
    this.#schedule();
  }

  flush(): void {
    if (this.#closed) return;
    this.#cut();
    const chunks = this.#chunks;
    if (chunks.length > 0) {
      this.#chunks = [];
      // Others may wait for the payloads' memory, so it matters when they have gone; slabs can wait for the next flush.
      if (!this.#connection.write(chunks, this.#sent.length > 0 ? this.#gone : undefined)) this.#events.onBlocked();
    }
    this.reclaim();
  }

  /** Takes back what has gone. */
  reclaim(): void {
    if (this.#chunks.length > 0) return;
    const waiting = this.#connection.bufferedBytes;
    const gone = this.#position - waiting;
    while (this.#sent.length > 0 && this.#sent[0]!.end <= gone) this.#releaseFirst();
    if (waiting > 0 || this.#from !== this.#to) return;
    this.#from = 0;
    this.#to = 0;
  }

  /** The connection is gone, and everything that was on its way. */
  close(): void {
    this.#closed = true;
    this.#chunks = [];
    while (this.#sent.length > 0) this.#releaseFirst();
  }

  #releaseFirst(): void {
    const { lease } = this.#sent.shift()!;
    this.#sentBytes -= lease.bytes.length;
    lease.release();
  }

  #push(bytes: Uint8Array): void {
    this.#chunks.push(bytes);
    this.#position += bytes.length;
  }

  #schedule(): void {
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    queueMicrotask(this.#flushSoon);
  }

  #cut(): void {
    if (this.#from === this.#to) return;
    this.#push(this.#slab.subarray(this.#from, this.#to));
    this.#from = this.#to;
  }

  #newSlab(): void {
    this.#cut();
    const wanted = Math.max(SMALLEST_SLAB_BYTES, 2 * this.#slab.length);
    this.#slab = new Uint8Array(Math.min(wanted, BIGGEST_SLAB_BYTES));
    this.#from = 0;
    this.#to = 0;
  }
}
