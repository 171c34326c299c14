/** `holdfast status` and `holdfast events`: what a running server says about itself. */
import type { Command } from 'commander';
import { HoldfastError } from '../base/errors.ts';
import { loadNodeConfig } from '../daemon/config-file.ts';
import { ControlClient } from '../daemon/control-client.ts';
import { type DaemonStatus, daemonStatusSchema, isHealthy } from '../daemon/status.ts';
import { aborted, type CliContext } from './context.ts';
import { EXIT } from './exit-code.ts';
import { statusText } from './status-text.ts';

export interface ControlOptions {
  readonly control?: string;
  readonly config?: string;
  readonly node?: string;
}

/** Gives a command the options that say which server is meant. */
export function withControlOptions(command: Command): Command {
  return command
    .option('--control <socket>', 'path of the control socket of the server')
    .option('--config <file>', "find the socket in the server's configuration")
    .option('--node <name>', 'which node of the configuration is meant');
}

export async function controlPath(options: ControlOptions): Promise<string> {
  if (options.control !== undefined) return options.control;
  if (options.config !== undefined) return (await loadNodeConfig(options.config, options.node)).control;
  throw new HoldfastError('ERR_HOLDFAST_USAGE', 'which server? name it by --control SOCKET or by --config FILE');
}

export async function fetchStatus(client: ControlClient): Promise<DaemonStatus> {
  const parsed = daemonStatusSchema.safeParse(await client.call('status'));
  if (parsed.success) return parsed.data;
  const message = 'the server answered with a status that this release does not know; use the same release for both';
  throw new HoldfastError('ERR_HOLDFAST_VERSION', message, { cause: parsed.error });
}

export function addStatusCommands(program: Command, context: CliContext, exit: (code: number) => void): void {
  withControlOptions(program.command('status'))
    .description('show volumes, copies, links and exports: what is wrong, and what to do')
    .option('--json', 'print everything as one JSON object')
    .option('--check', `exit with ${EXIT.degraded} unless all is in full health`)
    .action(async (options: ControlOptions & { json?: boolean; check?: boolean }) => {
      const path = await controlPath(options);
      await using client = await ControlClient.connect(context.environment.network, path, { signal: context.signal });
      const status = await fetchStatus(client);
      context.stdout.write(options.json ? `${JSON.stringify(status)}\n` : statusText(status));
      if (options.check && !isHealthy(status)) exit(EXIT.degraded);
    });

  withControlOptions(program.command('events'))
    .description('print what happens on a server, one JSON object a line, until Ctrl-C')
    .action(async (options: ControlOptions) => {
      let gone: () => void = () => {};
      const closed = new Promise<void>((resolve) => {
        gone = resolve;
      });
      await using client = await ControlClient.connect(context.environment.network, await controlPath(options), {
        signal: context.signal,
        onEvent: (event) => context.stdout.write(`${JSON.stringify(event)}\n`),
        onClose: gone,
      });
      await client.call('events');
      await Promise.race([closed, aborted(context.signal)]);
      if (!context.signal.aborted)
        throw new HoldfastError('ERR_HOLDFAST_CONNECTION_LOST', 'the server has gone; see whether it still runs');
    });
}
