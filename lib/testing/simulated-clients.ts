/**
 * The clients: each works on one server with some requests under way at a time, now in a hurry and now at leisure,
 * most of the time where others work too. Whatever was under way when a server's process died has no end.
 */
import { isHoldfastError } from '../base/errors.ts';
import type { MirroredVolume } from '../mirror/volume.ts';
import type { SimulatedRandom } from './simulated-random.ts';
import type { SimulatedServer } from './simulated-server.ts';
import { UNIT_BYTES } from './simulation-plan.ts';
import { tell, type World } from './simulation-world.ts';
import { stamp } from './stamps.ts';

/** More than the largest piece that goes over the wire at once. */
const HUGE_UNITS = (1024 * 1024 + 64 * 1024) / UNIT_BYTES;
/** How often a client looks whether its server is back. */
const DOWN_PAUSE_MS = 25;
/** Requests of one lane that it does not wait for any more. */
const GIVEN_UP_MOST = 6;
const HUGE_RATE = 0.05;
/** What became of the request is not known. */
const UNKNOWN = ['ERR_HOLDFAST_OUTCOME_UNKNOWN', 'ERR_HOLDFAST_CLOSED'] as const;
/** These too, where devices fail: the last one where the only good copy's hangs for longer than it may. */
const DEVICE_FAILURES = [
  'ERR_HOLDFAST_IO',
  'ERR_HOLDFAST_DEVICE_FAILED',
  'ERR_HOLDFAST_NO_SPACE',
  'ERR_HOLDFAST_TIMEOUT',
] as const;

export class Clients {
  readonly #world: World;
  readonly #running: Promise<void>[] = [];
  #mayGoOn = true;
  #huge = 0;

  constructor(world: World) {
    this.#world = world;
  }

  start(): void {
    const { clients, depth } = this.#world.plan.client;
    const first = this.#world.random('clients').below(2);
    for (let client = 0; client < clients; client++) {
      const server = this.#world.servers[(first + client) % 2]!;
      for (let lane = 0; lane < depth; lane++) {
        this.#running.push(this.#lane(server, this.#world.random(`client ${client} ${lane}`)));
      }
    }
  }

  /** No new requests; resolves when those under way have ended. */
  async stop(): Promise<void> {
    this.#mayGoOn = false;
    await Promise.all(this.#running);
  }

  /** Each server's clients want the same units at once; resolves when all have been served. */
  async contend(servers: readonly SimulatedServer[], rounds: number): Promise<void> {
    const { hotUnits } = this.#world.plan.client;
    const lane = async (server: SimulatedServer, index: number): Promise<void> => {
      const random = this.#world.random(`contender ${server.name} ${index}`);
      for (let round = 0; round < rounds; round++) {
        const unit = hotUnits[random.below(Math.min(2, hotUnits.length))]!;
        if (random.chance(0.7)) await this.write(server, unit, 1, false);
        else await this.read(server, unit, 1);
      }
    };
    await Promise.all(servers.flatMap((server) => [0, 1, 2].map((index) => lane(server, index))));
  }

  async read(server: SimulatedServer, unit: number, count: number): Promise<void> {
    const bytes = new Uint8Array(count * UNIT_BYTES);
    const operations = Array.from({ length: count }, (_, index) => this.#world.histories.begin('read', unit + index));
    if (!(await this.#answered(server, (volume) => volume.read(unit * UNIT_BYTES, bytes)))) return;
    for (const [index, operation] of operations.entries()) {
      this.#world.histories.endRead(operation, bytes.subarray(index * UNIT_BYTES, (index + 1) * UNIT_BYTES));
    }
  }

  async write(server: SimulatedServer, unit: number, count: number, fua: boolean): Promise<void> {
    const bytes = new Uint8Array(count * UNIT_BYTES);
    const operation = this.#world.histories.begin('write', unit, count);
    stamp(bytes, operation.value);
    const request = (volume: MirroredVolume) => volume.write(unit * UNIT_BYTES, bytes, { fua });
    if (await this.#answered(server, request)) this.#world.histories.endWrite(operation, fua);
    // What a caller does with its memory afterwards is no one's business.
    bytes.fill(0xee);
  }

  async flush(server: SimulatedServer): Promise<void> {
    const covered = this.#world.histories.coveredByFlush();
    if (await this.#answered(server, (volume) => volume.flush())) this.#world.histories.flushed(covered);
  }

  async #zero(server: SimulatedServer, unit: number, count: number, random: SimulatedRandom): Promise<void> {
    const operation = this.#world.histories.beginZeroes(unit, count);
    if (operation === undefined) return;
    const [offset, length] = [unit * UNIT_BYTES, count * UNIT_BYTES];
    const fua = random.chance(0.3);
    const mayUnmap = random.chance(0.5);
    // The volume's discard leaves zeros.
    const isDiscard = random.chance(0.5);
    const request = (volume: MirroredVolume) =>
      isDiscard ? volume.discard(offset, length) : volume.writeZeroes(offset, length, { fua, mayUnmap });
    if (await this.#answered(server, request)) this.#world.histories.endWrite(operation, fua && !isDiscard);
  }

  async #lane(server: SimulatedServer, random: SimulatedRandom): Promise<void> {
    const { pauseMostMs } = this.#world.plan.client;
    const underWay = new Set<Promise<void>>();
    while (this.#mayGoOn) {
      await this.#world.pause(random.chance(0.5) ? random.between(0, 1) : random.between(0, pauseMostMs));
      if (server.volume === undefined || underWay.size > GIVEN_UP_MOST) await this.#world.pause(DOWN_PAUSE_MS);
      else {
        const request = Promise.race([this.#operate(server, random), server.gone]);
        underWay.add(request);
        void request.then(() => underWay.delete(request));
        await this.#patiently(request);
      }
    }
    await Promise.all(underWay);
  }

  /** Waits for it, but not for ever: the client then goes on with something else, and hears of it later. */
  async #patiently(request: Promise<void>): Promise<void> {
    const { scheduler } = this.#world.cluster;
    await new Promise<void>((resolve) => {
      const timer = scheduler.schedule(this.#world.plan.client.patienceMs * 1000, resolve);
      void request.then(() => {
        timer.cancel();
        resolve();
      });
    });
  }

  async #operate(server: SimulatedServer, random: SimulatedRandom): Promise<void> {
    const { client, volumeBytes } = this.#world.plan;
    const units = volumeBytes / UNIT_BYTES;
    const isHuge = this.#huge < client.hugeMost && random.chance(HUGE_RATE);
    if (isHuge) this.#huge += 1;
    const unit = isHuge ? random.below(units - HUGE_UNITS) : client.hotUnits[random.below(client.hotUnits.length)]!;
    const count = isHuge ? HUGE_UNITS : Math.min(1 + random.below(client.unitsMost), units - unit);
    tell(this.#world.onRequest);
    const draw = random.below(100);
    if (draw < client.writes) await this.write(server, unit, count, random.chance(client.fuaRate));
    else if (draw < client.writes + client.flushes) await this.flush(server);
    else if (draw < client.writes + client.flushes + client.zeroes) await this.#zero(server, unit, count, random);
    else await this.read(server, unit, count);
  }

  /** False if it is not known what became of the request; an error that cannot be is a failure of the run. */
  async #answered(server: SimulatedServer, request: (volume: MirroredVolume) => Promise<void>): Promise<boolean> {
    const { volume } = server;
    if (volume === undefined) return false;
    try {
      // A process that stands still hears of it when it goes on.
      await new Promise<void>((resolve) => server.node.process.run(() => resolve(request(volume))));
      return true;
    } catch (error) {
      const isKnown = (code: (typeof UNKNOWN | typeof DEVICE_FAILURES)[number]) => isHoldfastError(error, code);
      const devicesFail = this.#world.plan.faults.some((kind) => kind.startsWith('disk-'));
      if (!UNKNOWN.some(isKnown) && !(devicesFail && DEVICE_FAILURES.some(isKnown))) {
        this.#world.fail(`a client's request failed: ${error instanceof Error ? error.stack : String(error)}`);
      }
      return false;
    }
  }
}
