#!/usr/bin/env node
/**
 * The `holdfast` command: signals, errors and exit codes. The commands themselves are in program.ts.
 *
 * Ctrl-C or SIGTERM asks the command to finish cleanly; a second one ends the process at once.
 */
import { constants } from 'node:os';
import { CommanderError } from 'commander';
import { HoldfastError } from '../base/errors.ts';
import { systemEnvironment } from '../base/system-environment.ts';
import { EXIT, exitCodeOf } from './exit-code.ts';
import { buildProgram } from './program.ts';

const stop = new AbortController();
/** Taken out here, so that every command knows it. */
const debug = process.argv.includes('--debug');

function onSignal(signal: NodeJS.Signals): void {
  if (stop.signal.aborted) process.exit(128 + constants.signals[signal]);
  process.stderr.write(`holdfast: ${signal}: stopping; once more stops at once\n`);
  stop.abort(new HoldfastError('ERR_HOLDFAST_ABORTED', `stopped by ${signal}`));
}

/** Messages carry what to do; the code is for scripts and for looking it up. */
function describeError(error: unknown): { text: string; exitCode: number } {
  if (error instanceof CommanderError) return { text: '', exitCode: error.exitCode === 0 ? EXIT.ok : EXIT.usage };
  const known = error instanceof HoldfastError;
  const code = known ? error.code : 'ERR_HOLDFAST_INTERNAL';
  const message = error instanceof Error ? error.message : String(error);
  const detail = known ? '' : '; this is a mistake in holdfast: report it with what --debug prints';
  const stack = debug && error instanceof Error ? `${error.stack}\n${causes(error)}` : '';
  const interrupted = known && code === 'ERR_HOLDFAST_ABORTED' && stop.signal.aborted;
  return {
    text: `holdfast: ${message}${detail}\nholdfast: code ${code}\n${stack}`,
    exitCode: interrupted ? EXIT.interrupted : exitCodeOf(code),
  };
}

function causes(error: Error): string {
  const { cause } = error;
  return cause instanceof Error ? `caused by ${cause.stack}\n${causes(cause)}` : '';
}

/** A reader that has seen enough (`| head`) is no error. */
function onOutputError(error: NodeJS.ErrnoException): void {
  process.exit(error.code === 'EPIPE' ? EXIT.ok : EXIT.failed);
}

process.stdout.on('error', onOutputError);
process.stderr.on('error', onOutputError);
process.on('SIGINT', onSignal);
process.on('SIGTERM', onSignal);

try {
  const context = {
    environment: systemEnvironment,
    stdout: process.stdout,
    stderr: process.stderr,
    signal: stop.signal,
  };
  const program = buildProgram(context, (exitCode) => {
    process.exitCode = exitCode;
  });
  await program.parseAsync(process.argv.filter((argument) => argument !== '--debug'));
} catch (error) {
  const { text, exitCode } = describeError(error);
  process.stderr.write(text);
  process.exitCode = exitCode;
} finally {
  process.off('SIGINT', onSignal);
  process.off('SIGTERM', onSignal);
}
