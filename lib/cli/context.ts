/** What a command gets from the outside. */
import type { Environment } from '../base/environment.ts';
import type { ProgressSink } from './progress.ts';

export interface CliContext {
  readonly environment: Environment;
  readonly stdout: ProgressSink;
  readonly stderr: ProgressSink;
  /** Fires at the first Ctrl-C or SIGTERM: finish cleanly. The second one ends the process at once. */
  readonly signal: AbortSignal;
}

/** Resolves when the signal fires, at once if it has. */
export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
