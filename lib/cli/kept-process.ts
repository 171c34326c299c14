/** A child process of a demo, whose last words are kept for the case that something goes wrong. */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { HoldfastError } from '../base/errors.ts';

const KEPT_OUTPUT_BYTES = 16 * 1024;

export class KeptProcess {
  readonly process: ChildProcess;
  /** Resolves with the exit code, or the signal that ended it. */
  readonly ended: Promise<number | NodeJS.Signals>;
  #output = '';

  /** Runs this Node.js with a script. The child's input is a pipe if `options` do not say otherwise. */
  constructor(args: readonly string[], options: SpawnOptions = {}) {
    this.process = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'pipe'], ...options });
    this.ended = new Promise((resolve) => {
      this.process.once('error', () => resolve(-1));
      this.process.once('close', (code, signal) => resolve(code ?? signal ?? -1));
    });
    for (const stream of [this.process.stdout, this.process.stderr])
      stream?.on('data', (chunk: Buffer) => {
        this.#output = (this.#output + chunk.toString()).slice(-KEPT_OUTPUT_BYTES);
      });
  }

  /** Undefined while it runs. */
  get end(): number | NodeJS.Signals | undefined {
    return this.process.exitCode ?? this.process.signalCode ?? undefined;
  }

  /** The last of what it has printed. */
  get output(): string {
    return this.#output;
  }

  /** SIGKILL: the process gets no chance to finish anything. */
  async kill(): Promise<void> {
    this.process.kill('SIGKILL');
    await this.ended;
  }

  /** ERR_HOLDFAST_DEMO with its last words. */
  error(what: string): HoldfastError {
    return new HoldfastError('ERR_HOLDFAST_DEMO', `${what}; its last words:\n${this.#output.trimEnd()}`);
  }
}
