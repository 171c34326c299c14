/** The commands of `holdfast`, and what `--help` says. Each is in a file of its own. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { makeKey } from '../daemon/config-file.ts';
import { addBenchCommand } from './bench-command.ts';
import type { CliContext } from './context.ts';
import { addDemoCommand } from './demo.ts';
import { EXIT } from './exit-code.ts';
import { addMemoryCommands } from './memory-commands.ts';
import { addPairDemoCommand } from './pair-demo.ts';
import { packageRoot, release } from './release.ts';
import { addScanCommand } from './scan-command.ts';
import { addServeCommand } from './serve-command.ts';
import { addStatusCommands } from './status-command.ts';
import { addVolumeCommands } from './volume-commands.ts';

const EXIT_CODES = `
Exit codes: ${EXIT.ok} done, ${EXIT.failed} failed, ${EXIT.usage} wrong command line, ${EXIT.config} wrong configuration, ${EXIT.notRunning} no server answers (or one does
already), ${EXIT.refused} refused because data would be lost, ${EXIT.degraded} status --check found something, ${EXIT.interrupted} interrupted.`;

/** `exit` sets the exit code of a command that has done its work and still has something to say by it. */
export function buildProgram(context: CliContext, exit: (code: number) => void): Command {
  const program = new Command('holdfast')
    .description('Replicated storage: mirrored volumes over raw devices and files, served to NBD clients.')
    .version(release())
    .option('--debug', 'print stack traces with errors')
    .showHelpAfterError('(holdfast COMMAND --help explains)')
    .configureOutput({
      writeOut: (text) => context.stdout.write(text),
      writeErr: (text) => context.stderr.write(text),
    })
    .addHelpText('after', EXIT_CODES)
    .exitOverride();
  addServeCommand(program, context);
  addVolumeCommands(program, context);
  addMemoryCommands(program, context);
  addStatusCommands(program, context, exit);
  addBenchCommand(program, context);
  addScanCommand(program, context);
  addDemoCommand(program, context, exit);
  addPairDemoCommand(program, context, exit);
  addMakeKeyCommand(program, context);
  addBuildNativeCommand(program, exit);
  return program;
}

function addMakeKeyCommand(program: Command, context: CliContext): void {
  program
    .command('make-key')
    .description("make a cluster's key, in a new file that only its owner can read")
    .argument('<file>', 'where to write it; copy it to all servers, by a safe way')
    .action(async (file: string) => {
      const key = new Uint8Array(32);
      context.environment.random.fill(key);
      await makeKey(file, key);
      context.stdout.write(`${file}: a new key, mode 0600. Give it to every server of the cluster as "keyFile".\n`);
    });
}

function addBuildNativeCommand(program: Command, exit: (code: number) => void): void {
  program
    .command('build-native')
    .description('build the native addon on this machine (needs python3, make and g++)')
    .option('--force', 'build even if nothing has changed')
    .action(async (options: { force?: boolean }) => {
      const script = fileURLToPath(new URL('scripts/build-native.mjs', packageRoot));
      const child = spawn(process.execPath, [script, ...(options.force ? ['--force'] : [])], { stdio: 'inherit' });
      exit(
        await new Promise<number>((resolve, reject) => {
          child.once('error', reject);
          child.once('exit', (code) => resolve(code === 0 ? EXIT.ok : EXIT.failed));
        }),
      );
    });
}
