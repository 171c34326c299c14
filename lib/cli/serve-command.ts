/** `holdfast serve`: runs one server of a configuration until it is told to stop. */
import type { Command } from 'commander';
import { formatAddress } from '../base/network.ts';
import type { NodeConfig } from '../daemon/config.ts';
import { loadKey, loadNodeConfig } from '../daemon/config-file.ts';
import { Daemon, type DaemonEvent } from '../daemon/daemon.ts';
import { votedRegions } from '../daemon/mirrored-region.ts';
import { formatSize } from '../daemon/sizes.ts';
import { aborted, type CliContext } from './context.ts';
import { release } from './release.ts';

interface ServeOptions {
  readonly node?: string;
  readonly json?: boolean;
  readonly untilStdinEnds?: boolean;
}

export function addServeCommand(program: Command, context: CliContext): void {
  program
    .command('serve')
    .description('run one server of a configuration: its volumes, links and exports, until Ctrl-C or SIGTERM')
    .argument('<config>', 'file that describes the cluster (docs/config.md)')
    .option('--node <name>', 'which node of the configuration this is')
    .option('--json', 'say what happens as one JSON object a line')
    .option('--until-stdin-ends', 'stop when standard input ends: for a parent that must leave no server behind')
    .action(async (path: string, options: ServeOptions) => {
      const config = await loadNodeConfig(path, options.node);
      const key = config.keyFile === undefined ? undefined : await loadKey(config.keyFile);
      const say = (event: DaemonEvent): void => {
        context.stdout.write(options.json ? `${JSON.stringify(event)}\n` : sentence(config, event));
      };
      await using _daemon = await Daemon.start(config, {
        environment: context.environment,
        key,
        release: release(),
        pid: process.pid,
        onEvent: say,
      });
      await Promise.race([aborted(context.signal), ...(options.untilStdinEnds ? [stdinEnd()] : [])]);
      // An open pipe would keep the process alive after the server has stopped.
      process.stdin.destroy();
      say({ kind: 'stopping' });
    });
}

/** An event as a line for people. */
function sentence(config: NodeConfig, event: DaemonEvent): string {
  const { kind, ...details } = event;
  if (kind !== 'ready') {
    const more = Object.entries(details).map(([name, value]) => ` ${name}=${plain(value)}`);
    return `${config.name}: ${kind}${more.join('')}\n`;
  }
  const exported = config.exports.map((one) => `${one.name} at ${formatAddress(one.address)}`);
  const votes = config.tieBreakerOf.map((volume) => volume.name);
  const tieBreaker = votes.length === 0 ? '' : `; tie-breaker of ${votes.join(', ')}`;
  const memory = config.memoryUnit === undefined ? '' : `; memory unit of ${formatSize(config.memoryUnit.sizeBytes)}`;
  const manager = config.managerOf === undefined ? '' : `; manager of unit ${config.managerOf.unit}`;
  const mirrored = votedRegions(config).map((region) => region.name);
  const vote = mirrored.length === 0 ? '' : `; a vote on ${mirrored.join(', ')}`;
  const rest = `${tieBreaker}${memory}${manager}${vote}`;
  return `${config.name}: ready; exports: ${exported.join(', ') || 'none'}${rest}; control socket ${config.control}\n`;
}

function plain(value: unknown): string {
  return typeof value === 'string' && !/\s/.test(value) ? value : JSON.stringify(value);
}

function stdinEnd(): Promise<void> {
  return new Promise((resolve) => {
    process.stdin.once('end', resolve);
    process.stdin.once('error', () => resolve());
    process.stdin.resume();
  });
}
