/** How a demo tells what it does: numbered steps, each with the time since the demo began. */
import type { CliContext } from './context.ts';

export class DemoStory {
  readonly #context: CliContext;
  readonly #startMs: number;
  #step = 0;

  constructor(context: CliContext) {
    this.#context = context;
    this.#startMs = context.environment.clock.nowMs();
  }

  /** Milliseconds since the demo began. */
  get elapsedMs(): number {
    return this.#context.environment.clock.nowMs() - this.#startMs;
  }

  say(text: string): void {
    this.#context.stdout.write(`${text}\n`);
  }

  /** The next step. */
  tell(text: string): void {
    this.#step++;
    const seconds = (this.elapsedMs / 1000).toFixed(1);
    this.say(`${String(this.#step).padStart(2)}. ${seconds.padStart(5)} s  ${text}`);
  }
}
