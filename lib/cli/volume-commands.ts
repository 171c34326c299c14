/** `holdfast create` and `holdfast force`: what an operator does to a member of a volume. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { HoldfastError } from '../base/errors.ts';
import type { NodeConfig, VolumeConfig } from '../daemon/config.ts';
import { loadNodeConfig } from '../daemon/config-file.ts';
import { ControlClient } from '../daemon/control-client.ts';
import { nearest } from '../daemon/nearest.ts';
import { createStateFile } from '../daemon/tie-breaker.ts';
import { createMember } from '../daemon/volume.ts';
import type { CliContext } from './context.ts';
import { type ControlOptions, controlPath, withControlOptions } from './status-command.ts';

const collect = (path: string, before: readonly string[]): string[] => [...before, resolve(path)];

export function addVolumeCommands(program: Command, context: CliContext): void {
  program
    .command('create')
    .description("make this node's member of a volume, or its tie-breaker's state: once on each server, before serve")
    .argument('<config>', 'file that describes the cluster (docs/config.md)')
    .argument('<volume>', 'name of the volume')
    .option('--node <name>', 'which node of the configuration this is')
    .option('--overwrite <path>', 'permit that this device or file loses what it holds (repeat for more)', collect, [])
    .action(async (path: string, name: string, options: { node?: string; overwrite: string[] }) => {
      const config = await loadNodeConfig(path, options.node);
      const volume = volumeNamed(config, name);
      const own = volume.members.find((member) => member.node === config.name);
      const { overwrite } = options;
      if (own === undefined) {
        await createStateFile(config, volume, { overwrite });
        const { stateFile } = volume.tieBreaker!;
        context.stdout.write(
          `${stateFile} is now the state of ${config.name}, tie-breaker of volume ${volume.name}.\n`,
        );
      } else {
        await createMember(config, volume, { overwrite });
        context.stdout.write(`${own.device} is now the member ${config.name} of volume ${volume.name}.\n`);
      }
    });

  withControlOptions(program.command('force'))
    .description("make this node's copy the good one, although its peer may hold newer data, which is then lost")
    .argument('<volume>', 'name of the volume')
    .option('--accept-inconsistent', 'even in the middle of a resync, with old and new blocks mixed')
    .action(async (volume: string, options: ControlOptions & { acceptInconsistent?: boolean }) => {
      const path = await controlPath(options);
      await using client = await ControlClient.connect(context.environment.network, path, { signal: context.signal });
      await client.call('force', { volume, acceptInconsistent: options.acceptInconsistent ?? false });
      context.stdout.write(`${volume}: this copy is the good one now, and serves.\n`);
    });
}

function volumeNamed(config: NodeConfig, name: string): VolumeConfig {
  const volumes = [...config.volumes, ...config.tieBreakerOf];
  const found = volumes.find((volume) => volume.name === name);
  if (found) return found;
  const names = volumes.map((volume) => volume.name);
  const near = nearest(name, names);
  const hint = near ? `did you mean "${near}"?` : `it has ${names.join(', ') || 'none'}`;
  throw new HoldfastError(
    'ERR_HOLDFAST_USAGE',
    `${config.source}: node ${config.name} is neither member nor tie-breaker of a volume "${name}"; ${hint}`,
  );
}
