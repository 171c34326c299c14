/** Change numbers of one leg after another, as one series that grows: those of two units have nothing in common. */
import type { CommandOptions, RegionAccess } from './one-sided.ts';

export class ChangeNumbers {
  #source: RegionAccess | undefined;
  #base = 0;
  #highest = 0;

  /** As RegionAccess.watch. Undefined if another leg has been asked meanwhile: what this one says means nothing then. */
  async watch(
    access: RegionAccess,
    address: number,
    lengthBytes: number,
    since: number,
    options: CommandOptions,
  ): Promise<number | undefined> {
    if (this.#source !== access) {
      this.#source = access;
      this.#base = this.#highest === 0 ? 0 : this.#highest + 1;
    }
    const base = this.#base;
    // What the leg before had counted is before all that this one counts: it answers at once.
    const number = base + (await access.watch(address, lengthBytes, Math.max(0, since - base), options));
    if (this.#source !== access) return undefined;
    this.#highest = Math.max(this.#highest, number);
    return number;
  }
}
