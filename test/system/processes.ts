/** Real processes for the system tests: each is a direct child, and is stopped by its own id. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { promisify } from 'node:util';

const execute = promisify(execFile);

/** Runs a command to its end; what it prints. A failure carries what it said. */
export async function run(command: string, ...words: string[]): Promise<string> {
  // The Debian packages' Python modules belong to the system's Python, whatever comes first in PATH.
  const env = { ...process.env, PATH: `/usr/bin:${process.env.PATH}` };
  const { stdout } = await execute(command, words, { env, maxBuffer: 64 * 1024 * 1024 });
  return stdout;
}

export interface ChildOptions {
  readonly stdin?: 'open' | 'closed';
  readonly env?: NodeJS.ProcessEnv;
}

export class Child implements AsyncDisposable {
  readonly process: ChildProcess;
  readonly #exited: Promise<unknown>;
  #output = '';

  /** `stdin` open: a pipe that ends with this process. */
  constructor(command: string, words: readonly string[], options: ChildOptions = {}) {
    const { stdin = 'closed', env = process.env } = options;
    const input = stdin === 'open' ? 'pipe' : 'ignore';
    this.process = spawn(command, words, { stdio: [input, 'pipe', 'inherit'], env });
    this.process.stdout!.on('data', (chunk: Buffer) => {
      this.#output += chunk.toString();
    });
    this.#exited = once(this.process, 'exit');
  }

  get output(): string {
    return this.#output;
  }

  get ended(): boolean {
    return this.process.exitCode !== null || this.process.signalCode !== null;
  }

  /** Resolves at its end with its exit status; null if a signal ended it. */
  async exit(): Promise<number | null> {
    await this.#exited;
    return this.process.exitCode;
  }

  /** Waits until `isReady` says so; fails if the process ends before. */
  async ready(isReady: () => boolean | Promise<boolean>): Promise<void> {
    while (!(await isReady())) {
      if (this.ended)
        throw new Error(`${this.process.spawnfile} ended before it was ready: ${this.#output.slice(-500)}`);
      await wait(10);
    }
  }

  /** Sends the signal and waits for the end; its exit status, null if a signal ended it. */
  stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    this.process.kill(signal);
    return this.exit();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.ended) await this.stop();
  }
}

/** True once a process accepts connections at a Unix socket: the file is there a moment before. */
export async function listens(path: string): Promise<boolean> {
  const acceptsConnections = '00010000';
  const lines = (await readFile('/proc/net/unix', 'utf8')).split('\n');
  return lines.some((line) => line.endsWith(` ${path}`) && line.split(' ')[3] === acceptsConnections);
}

export async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

export class TemporaryFolder implements AsyncDisposable {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  static async make(): Promise<TemporaryFolder> {
    return new TemporaryFolder(await mkdtemp(join(tmpdir(), 'holdfast-')));
  }

  file(name: string): string {
    return join(this.path, name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.path, { recursive: true });
  }
}
