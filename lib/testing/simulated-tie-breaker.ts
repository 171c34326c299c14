/** The tie-breaker in the simulation: a machine that only votes, with its state in a small file. */
import { isHoldfastError } from '../base/errors.ts';
import { VOTER_FILE_BYTES, VoterFile } from '../coherency/voter-file.ts';
import { RegisterService } from '../peer/register-service.ts';
import type { BlockDevice } from '../storage/block-device.ts';
import { OPERATOR_DELAY_MS, SimulatedMachine, VOLUME_ID } from './simulated-machine.ts';
import type { World } from './simulation-world.ts';

const BLOCK_BYTES = 4096;

export class SimulatedTieBreaker extends SimulatedMachine {
  readonly stateArea = { offset: 0, length: VOTER_FILE_BYTES };
  readonly superblocks = [0, VOTER_FILE_BYTES - BLOCK_BYTES];
  readonly stateBlocks = this.superblocks;

  constructor(world: World, name: string) {
    super(world, name, VOTER_FILE_BYTES);
  }

  async create(): Promise<void> {
    const device = this.disk.open();
    await VoterFile.create(device, this.#owner);
    await device.close();
  }

  protected async open(device: BlockDevice): Promise<void> {
    const store = await VoterFile.open(device, this.#owner);
    const node = this.makePeerNode();
    const voters = this.world.machines.map(({ name }) => name);
    RegisterService.of(node).add({ registerId: VOLUME_ID, voters, self: voters.indexOf(this.name), store });
    await node.start();
  }

  /** A voter that has forgotten must not begin again by itself: the two members are a majority without it. */
  protected startFailed(error: unknown): void {
    if (isHoldfastError(error, 'ERR_HOLDFAST_METADATA_DAMAGED') && this.isRotten) return;
    if (isHoldfastError(error, 'ERR_HOLDFAST_IO')) this.world.later(OPERATOR_DELAY_MS, () => this.startIfDead());
    else this.world.fail(`${this.name} does not start: ${error instanceof Error ? error.stack : String(error)}`);
  }

  get #owner(): { registerId: string; nodeName: string } {
    return { registerId: VOLUME_ID, nodeName: this.name };
  }
}
