/** Two units, a register and writers in virtual time, with a transcript of what each is told. */
import { isHoldfastError } from '../../lib/base/errors.ts';
import { MirroredAccess, type MirroredAccessOptions, type MirrorStatus } from '../../lib/checkpoint/mirrored-access.ts';
import { Scheduler } from '../../lib/testing/scheduler.ts';
import { SimulatedClock, SimulatedProcess } from '../../lib/testing/simulated-clock.ts';
import { SimulatedRandom } from '../../lib/testing/simulated-random.ts';
import {
  legsOf,
  type RegionClient,
  type RegionWorld,
  SimulatedRegionUnit,
  SimulatedRegister,
} from '../../lib/testing/simulated-region-units.ts';

export const REGION_BYTES = 4096;
const LIMIT_MS = 20_000;

export interface StageClient extends RegionClient {
  readonly clock: SimulatedClock;
  readonly random: SimulatedRandom;
}

export class Stage {
  readonly scheduler = new Scheduler();
  readonly lines: string[] = [];
  readonly world: RegionWorld;
  readonly register: SimulatedRegister;
  readonly a: SimulatedRegionUnit;
  readonly b: SimulatedRegionUnit;

  constructor(sizes: readonly [number, number] = [REGION_BYTES, REGION_BYTES]) {
    this.world = {
      scheduler: this.scheduler,
      random: new SimulatedRandom(1, 'stage'),
      // A writer's own random number says nothing to a reader.
      note: (line) => this.lines.push(line.replace(/ [0-9a-f]{16} /, ' ')),
    };
    this.register = new SimulatedRegister(this.world);
    this.a = new SimulatedRegionUnit(this.world, this.register, 'unit-a', 0, sizes[0]);
    this.b = new SimulatedRegionUnit(this.world, this.register, 'unit-b', 1, sizes[1]);
  }

  get transcript(): string {
    return `${this.lines.join('\n')}\n`;
  }

  say(line: string): void {
    this.lines.push(`-- ${line}`);
  }

  client(name: string): StageClient {
    const process = new SimulatedProcess(name);
    const clock = new SimulatedClock(this.scheduler, process, 0);
    return { name, process, clock, random: new SimulatedRandom(1, name), isCutFromRegister: false };
  }

  open(client: StageClient, options: Partial<MirroredAccessOptions> = {}): Promise<MirroredAccess> {
    return this.until(this.opening(client, options));
  }

  opening(client: StageClient, options: Partial<MirroredAccessOptions> = {}): Promise<MirroredAccess> {
    let told = '';
    return MirroredAccess.open({
      environment: client,
      legs: legsOf([this.a, this.b], client),
      arbiter: this.register.arbiterOf(client),
      writer: client.name,
      chunkBytes: 1024,
      onStatus: (status) => {
        const text = inWords(status);
        if (text !== told) this.lines.push(`   ${client.name}: ${text}`);
        told = text;
      },
      ...options,
    });
  }

  /** A write of one byte value all over the range, durable. Says what became of it. */
  async write(access: MirroredAccess, address: number, value: number, lengthBytes = 64): Promise<void> {
    this.lines.push(`   writes ${value} at ${address}`);
    try {
      await access.write(address, [new Uint8Array(lengthBytes).fill(value)], { persist: true });
      this.lines.push(`   ${value} at ${address} is acknowledged`);
    } catch (error) {
      this.lines.push(`   ${value} at ${address} fails: ${codeOf(error)}`);
    }
  }

  async read(access: MirroredAccess, address: number): Promise<number> {
    const bytes = new Uint8Array(1);
    await this.until(access.readConfirmed(address, bytes));
    this.lines.push(`   reads ${bytes[0]} at ${address}`);
    return bytes[0]!;
  }

  until<Result>(promise: Promise<Result>): Promise<Result> {
    return this.scheduler.runUntil(promise, LIMIT_MS);
  }

  pass(durationMs: number): Promise<void> {
    return this.scheduler.runFor(durationMs);
  }

  async inSync(access: MirroredAccess): Promise<void> {
    const limitMs = this.scheduler.nowMs + LIMIT_MS;
    const isSo = (): boolean => access.status.legs.every(({ state }) => state === 'in-sync');
    await this.scheduler.run(() => isSo() || this.scheduler.nowMs > limitMs);
    if (!isSo()) throw new Error(`the legs are not in sync in ${LIMIT_MS} ms`);
  }

  /** What lies in a unit. */
  peek(unit: SimulatedRegionUnit, address: number): number {
    const bytes = new Uint8Array(1);
    unit.read(address, bytes);
    return bytes[0]!;
  }
}

export function codeOf(error: unknown): string {
  return isHoldfastError(error) ? error.code : String(error);
}

function inWords({ state, legs, rebuild, problem }: MirrorStatus): string {
  const leg = legs.map(({ unit, state: word, problem: why }) => {
    return `${unit} ${word}${why === undefined || word === 'in-sync' ? '' : ` (${why.code})`}`;
  });
  const progress = rebuild === undefined ? '' : `, ${rebuild.unit} ${rebuild.doneBytes} of ${rebuild.totalBytes}`;
  return `${state}: ${leg.join(', ')}${progress}${problem === undefined ? '' : `; ${problem.code}`}`;
}
