/** A guest with Debian's kernel under emulation, which can lose its power, for the system tests. Needs the packages that guest.sh names. */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Child, exists } from './processes.ts';

const guestScript = fileURLToPath(new URL('guest.sh', import.meta.url));

/** What is not installed of what a guest needs, and of these programs. */
export function missingForGuest(...programs: string[]): string[] {
  const folders = ['/usr/bin', '/usr/sbin', '/sbin'];
  const wanted = ['qemu-system-x86_64', 'busybox', 'cpio', ...programs];
  const missing = wanted.filter((name) => !folders.some((folder) => existsSync(`${folder}/${name}`)));
  if (!existsSync('/lib/modules') || readdirSync('/lib/modules').length === 0) missing.push('linux-image-amd64');
  if (missing.length > 0) console.log(`no guest here: ${missing.join(', ')} missing`);
  return missing;
}

export interface GuestOptions {
  /** This folder is /share in the guest, of one guest at a time. Its `script.sh` is what the guest runs. */
  readonly share: string;
  /** For the script. */
  readonly words?: readonly string[];
  /** More for guest.sh. */
  readonly machine?: readonly string[];
  /** Arguments of the emulator. */
  readonly devices: string;
}

export class Guest implements AsyncDisposable {
  readonly #child: Child;
  readonly #pidFile: string;

  /** Boots. */
  constructor({ share, words = [], machine = [], devices }: GuestOptions) {
    this.#pidFile = `${share}/pid`;
    rmSync(this.#pidFile, { force: true });
    const more = `${devices} -pidfile ${this.#pidFile}`;
    const env = { ...process.env, SHARE: share };
    this.#child = new Child(guestScript, ['-t', '400', ...machine, '-x', more, `${share}/script.sh`, ...words], {
      env,
    });
  }

  /** All that its console has shown. */
  get output(): string {
    return this.#child.output;
  }

  /** Waits until `isReady` says so; fails if the guest ends before. */
  async ready(isReady: () => boolean | Promise<boolean>): Promise<void> {
    await this.#child.ready(isReady).catch((cause) => {
      throw new Error(`the guest ended before it was ready: ${this.output}`, { cause });
    });
  }

  /** A power cut: of what its processor and its memory held nothing is left. Waits for its end. */
  async kill(): Promise<void> {
    process.kill(Number(await readFile(this.#pidFile, 'utf8')), 'SIGKILL');
    await this.exit();
  }

  exit(): Promise<number | null> {
    return this.#child.exit();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.ended) return;
    if (await exists(this.#pidFile)) await this.kill();
    else await this.exit();
  }
}
