/**
 * Clients of both servers of a mirrored volume that write stamped blocks and read them back. Every operation goes into
 * a history, which is judged block by block: whatever was acknowledged is seen by all later reads, on either server.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { systemRandom } from '../../lib/base/random.ts';
import type { BlockDevice } from '../../lib/storage/block-device.ts';
import { checkLinearizable, type Operation, type Violation } from '../../lib/testing/history.ts';
import { Histories, readStamp, stamp } from '../../lib/testing/stamps.ts';
import { NODES, type NodeName } from './cluster.ts';

const BLOCK_BYTES = 4096;
/** So many blocks are neighbours; the clusters of them are spread over the volume. */
const NEIGHBOURS = 8;
const RECONNECT_MS = 50;

/** A volume that can be reached through two servers. */
export interface LoadTarget {
  readonly sizeBytes: number;
  connect(node: NodeName): Promise<BlockDevice>;
}

export interface StampedLoadOptions {
  readonly blocks: number;
  /** Operations under way at a time on each server. */
  readonly depth: number;
  /** The longest pause of a client between two operations, default 0. */
  readonly restMs?: number;
  /** Clients of the two servers use blocks of their own. Default false. */
  readonly apart?: boolean;
}

export class StampedLoad {
  readonly #target: LoadTarget;
  readonly #options: StampedLoadOptions;
  readonly #histories = new Histories();
  readonly #running: Promise<void>[] = [];
  #stopped = false;
  readonly acknowledged: Record<NodeName, number> = { a: 0, b: 0 };
  reads = 0;
  /** Operations whose outcome nobody knows, by the error they ended with. */
  readonly lost: Record<string, number> = {};

  constructor(target: LoadTarget, options: StampedLoadOptions) {
    this.#target = target;
    this.#options = options;
    for (const node of NODES) this.#running.push(this.#client(node));
  }

  /** Waits until so many more writes were acknowledged by clients of that server. */
  async progress(node: NodeName, writes: number): Promise<void> {
    const goal = this.acknowledged[node] + writes;
    while (this.acknowledged[node] < goal && !this.#stopped) await wait(5);
  }

  /** A mark in the order of events, to find an operation's place in it. */
  mark(): number {
    return this.#histories.tick();
  }

  /** Ends the load, which needs a volume that serves. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#running);
  }

  /** Reads every block through a server. */
  async readAll(node: NodeName): Promise<void> {
    await using device = await this.#target.connect(node);
    const { blocks } = this.#options;
    for (let block = 0; block < blocks; block += NEIGHBOURS) {
      await this.#read(device, block, Math.min(NEIGHBOURS, blocks - block));
    }
  }

  /** The first block whose history cannot have happened on one device, with what contradicts itself. */
  violation():
    | { readonly block: number; readonly found: Violation; readonly history: readonly Operation[] }
    | undefined {
    for (const [block, history] of this.#histories.blocks) {
      const found = checkLinearizable(history);
      if (found !== undefined) return { block, found, history: around(found, history) };
    }
    return undefined;
  }

  /**
   * How many blocks have lost an acknowledged write: the last read gave a value that the write had replaced. For the
   * time after the load has ended and everything was read once more.
   */
  blocksLost(): number {
    return [...this.#histories.blocks.values()].filter(hasLost).length;
  }

  /** Connects again whenever the server has gone. */
  async #client(node: NodeName): Promise<void> {
    while (!this.#stopped) {
      const device = await this.#target.connect(node).catch(() => undefined);
      if (device === undefined) {
        await wait(RECONNECT_MS);
        continue;
      }
      await Promise.all(Array.from({ length: this.#options.depth }, () => this.#lane(node, device)));
      await device.close().catch(() => {});
    }
  }

  async #lane(node: NodeName, device: BlockDevice): Promise<void> {
    while (!this.#stopped) {
      try {
        await this.#operation(node, device);
        if (this.#options.restMs !== undefined) await wait(systemRandom.below(this.#options.restMs));
      } catch (error) {
        const { code = 'unknown' } = error as { code?: string };
        this.lost[code] = (this.lost[code] ?? 0) + 1;
        if (code === 'ERR_HOLDFAST_NBD_DISCONNECTED') return;
      }
    }
  }

  async #operation(node: NodeName, device: BlockDevice): Promise<void> {
    const { block, count } = this.#somewhere(node);
    const what = systemRandom.below(100);
    if (what < 45) await this.#read(device, block, count);
    else if (what < 98) await this.#write(node, device, block, count, what < 50);
    else await this.#flush(device);
  }

  /** Mostly one block, else several of a group of neighbours. */
  #somewhere(node: NodeName): { block: number; count: number } {
    const { blocks, apart = false } = this.#options;
    let block = systemRandom.below(blocks);
    while (apart && NODES[Math.floor(block / NEIGHBOURS) % 2] !== node) block = systemRandom.below(blocks);
    if (systemRandom.below(4) > 0) return { block, count: 1 };
    const groupEnd = Math.min(block - (block % NEIGHBOURS) + NEIGHBOURS, blocks);
    return { block, count: 1 + systemRandom.below(groupEnd - block) };
  }

  async #read(device: BlockDevice, block: number, count: number): Promise<void> {
    const operations = Array.from({ length: count }, (_, index) => this.#histories.begin('read', block + index));
    const bytes = new Uint8Array(count * BLOCK_BYTES);
    await device.read(this.#offset(block), bytes);
    for (const [index, operation] of operations.entries()) {
      operation.value = readStamp(blockOf(bytes, index));
      operation.end = this.#histories.tick();
    }
    this.reads += 1;
  }

  async #write(node: NodeName, device: BlockDevice, block: number, count: number, fua: boolean): Promise<void> {
    const operations = Array.from({ length: count }, (_, index) => this.#histories.begin('write', block + index));
    const bytes = new Uint8Array(count * BLOCK_BYTES);
    for (const [index, { value }] of operations.entries()) stamp(blockOf(bytes, index), value);
    await device.write(this.#offset(block), bytes, { fua });
    for (const operation of operations) this.#histories.endWrite(operation, fua);
    this.acknowledged[node] += 1;
  }

  async #flush(device: BlockDevice): Promise<void> {
    const covered = this.#histories.coveredByFlush();
    await device.flush();
    this.#histories.flushed(covered);
  }

  #offset(block: number): number {
    const clusters = Math.ceil(this.#options.blocks / NEIGHBOURS);
    const strideBytes = Math.floor(this.#target.sizeBytes / clusters / BLOCK_BYTES) * BLOCK_BYTES;
    return Math.floor(block / NEIGHBOURS) * strideBytes + (block % NEIGHBOURS) * BLOCK_BYTES;
  }
}

function hasLost(history: readonly Operation[]): boolean {
  const ended = history.filter(({ end }) => end !== Number.POSITIVE_INFINITY);
  const last = ended.findLast(({ kind }) => kind === 'read');
  if (last === undefined) return false;
  const source = history.find(({ kind, value }) => kind === 'write' && value === last.value);
  const replaced = source?.end ?? -1;
  return ended.some(({ kind, start, end }) => kind === 'write' && start > replaced && end < last.start);
}

function blockOf(bytes: Uint8Array, index: number): Uint8Array {
  return bytes.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES);
}

/** What happened to the block while the operations in question were under way. */
function around(violation: Violation, history: readonly Operation[]): readonly Operation[] {
  const values = new Set(violation.operations.map(({ value }) => value));
  const related = history.filter(({ value }) => values.has(value));
  const from = Math.min(...related.map(({ start }) => start));
  const to = Math.max(...related.map(({ end, start }) => (end === Number.POSITIVE_INFINITY ? start : end)));
  return history.filter(({ start, end }) => end >= from && start <= to).slice(0, 100);
}
