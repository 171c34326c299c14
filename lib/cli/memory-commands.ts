/** `holdfast memory …`: the file of a memory unit, and what its operator asks the unit's manager for. */
import { type Command, InvalidArgumentError } from 'commander';
import { HoldfastError, isHoldfastError } from '../base/errors.ts';
import type { Right } from '../checkpoint/one-sided.ts';
import { REGION_BYTES_MAX, REGION_NAME_PATTERN } from '../checkpoint/region-directory.ts';
import type { MirroredRegionConfig, NodeConfig } from '../daemon/config.ts';
import { loadNodeConfig } from '../daemon/config-file.ts';
import { ControlClient } from '../daemon/control-client.ts';
import { createMemoryFile, type MemoryMethod } from '../daemon/memory.ts';
import { createVote, stateFileOf, votedRegions } from '../daemon/mirrored-region.ts';
import { formatSize } from '../daemon/sizes.ts';
import { type MemoryListing, type MirroredRegionStatus, memoryListingSchema } from '../daemon/status.ts';
import { NAME_PATTERN } from '../peer/handshake.ts';
import type { CliContext } from './context.ts';
import { sizeOption } from './options.ts';
import { type ControlOptions, controlPath, withControlOptions } from './status-command.ts';
import { mirroredUnits, mirroredWriter } from './status-text.ts';

interface RangeOptions extends ControlOptions {
  readonly offset?: number;
  readonly length?: number;
}

export function addMemoryCommands(program: Command, context: CliContext): void {
  const memory = program
    .command('memory')
    .description('the memory unit of a node: its file, its regions, and who may use them');
  addCreate(memory, context);
  addList(memory, context);
  addRegions(memory, context);
  addAccess(memory, context);
}

function addCreate(memory: Command, context: CliContext): void {
  memory
    .command('create')
    .description("make the files of this node's memory unit and of its votes on mirrored regions: once, before serve")
    .argument('<config>', 'file that describes the cluster (docs/config.md)')
    .option('--node <name>', 'which node of the configuration this is')
    .action(async (path: string, options: { node?: string }) => {
      const config = await loadNodeConfig(path, options.node);
      const votes = votedRegions(config).map((region) => makeVote(config, region));
      // Where there is neither, it says so.
      const unit = config.memoryUnit !== undefined || votes.length === 0 ? [makeUnit(config, context)] : [];
      const made = await makeMissing([...unit, ...votes]);
      context.stdout.write(made.map((line) => `${line}.\n`).join(''));
    });
}

/** A file that this node needs. */
interface Maker {
  readonly path: string;
  /** Makes it, and says so. */
  readonly make: () => Promise<string>;
}

function makeUnit(config: NodeConfig, { environment }: CliContext): Maker {
  const make = async () => {
    const means = await createMemoryFile(config, environment.clock);
    const { file, sizeBytes } = config.memoryUnit!;
    return `${file} is now the memory of unit ${config.name}: ${formatSize(sizeBytes)}, by ${means}`;
  };
  return { path: config.memoryUnit?.file ?? '', make };
}

function makeVote(config: NodeConfig, region: MirroredRegionConfig): Maker {
  const path = stateFileOf(config, region);
  const make = async () => {
    await createVote(config, region);
    return `${path} is now the vote of ${config.name} on the mirrored region ${region.name}`;
  };
  return { path, make };
}

/** What is there stays as it is; if all is there, that is an error. */
async function makeMissing(makers: readonly Maker[]): Promise<string[]> {
  const said: string[] = [];
  const kept: unknown[] = [];
  for (const { path, make } of makers) {
    try {
      said.push(await make());
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_DEVICE_EXISTS')) throw error;
      kept.push(error);
      said.push(`${path} is there already, and left as it is`);
    }
  }
  if (kept.length === makers.length) throw kept[0];
  return said;
}

function addList(memory: Command, context: CliContext): void {
  withControlOptions(memory.command('list'))
    .description('show the regions of a unit, and who may use them')
    .option('--json', 'print everything as one JSON object')
    .action(async (options: ControlOptions & { json?: boolean }) => {
      const parsed = memoryListingSchema.safeParse(await ask(context, options, 'memory-list', {}));
      if (!parsed.success) {
        const message =
          'the server answered with a list that this release does not know; use the same release for both';
        throw new HoldfastError('ERR_HOLDFAST_VERSION', message, { cause: parsed.error });
      }
      context.stdout.write(options.json ? `${JSON.stringify(parsed.data)}\n` : listText(parsed.data));
    });
}

function addRegions(memory: Command, context: CliContext): void {
  const size = sizeOption(1, REGION_BYTES_MAX);
  withControlOptions(memory.command('create-region'))
    .description('make a region of zeros; it belongs to the operator, and others use it by `allow`')
    .argument('<region>', 'its name', regionName)
    .argument('<size>', 'such as 64M', size)
    .action(async (name: string, sizeBytes: number, options: ControlOptions) => {
      await ask(context, options, 'memory-create-region', { name, sizeBytes });
      context.stdout.write(`${name}: a new region of ${formatSize(sizeBytes)}.\n`);
    });

  withControlOptions(memory.command('grow-region'))
    .description('make a region longer, with zeros at its end')
    .argument('<region>', 'its name', regionName)
    .argument('<size>', 'of all of it from then on', size)
    .action(async (name: string, sizeBytes: number, options: ControlOptions) => {
      await ask(context, options, 'memory-grow-region', { name, sizeBytes });
      context.stdout.write(`${name}: has ${formatSize(sizeBytes)} now.\n`);
    });

  withControlOptions(memory.command('delete-region'))
    .description('delete a region: what it holds is zeroed, whoever uses it is shut out')
    .argument('<region>', 'its name', regionName)
    .option('--destroy <region>', 'its name once more: permit that what it holds is lost')
    .action(async (name: string, options: ControlOptions & { destroy?: string }) => {
      if (options.destroy !== name) {
        const message = `all that region ${name} holds would be lost; if it may be, say: --destroy ${name}. Nothing was changed`;
        throw new HoldfastError('ERR_HOLDFAST_CONSENT_NEEDED', message);
      }
      await ask(context, options, 'memory-delete-region', { name });
      context.stdout.write(`${name}: deleted; its space is zeroed now.\n`);
    });
}

function addAccess(memory: Command, context: CliContext): void {
  const access = (name: string, method: MemoryMethod, description: string, said: string) =>
    withControlOptions(memory.command(name))
      .description(description)
      .argument('<region>', 'its name', regionName)
      .argument('<peer>', 'name of a node', peerName)
      .argument('<rights>', 'read, write, or both: read,write', rightsOf)
      .option('--offset <size>', 'only of the range that begins here', sizeOption(0, REGION_BYTES_MAX))
      .option('--length <size>', 'and is so long', sizeOption(1, REGION_BYTES_MAX))
      .action(async (region: string, peer: string, rights: readonly Right[], options: RangeOptions) => {
        await ask(context, options, method, { name: region, peer, rights, ...rangeOf(options) });
        context.stdout.write(`${region}: ${peer} ${said} ${rights.join(' and ')}.\n`);
      });
  access('allow', 'memory-allow', 'let a node use a region, beside what it may already', 'may');
  access('deny', 'memory-deny', 'take a right from a node; its keys with that right are void at once', 'may not');
}

async function ask(context: CliContext, options: ControlOptions, method: MemoryMethod, request: object) {
  const path = await controlPath(options);
  await using client = await ControlClient.connect(context.environment.network, path, { signal: context.signal });
  return await client.call(method, request);
}

function regionName(text: string): string {
  if (!REGION_NAME_PATTERN.test(text)) throw new InvalidArgumentError('A name has 1 to 64 of A-Z a-z 0-9 . _ -');
  return text;
}

function peerName(text: string): string {
  if (!NAME_PATTERN.test(text)) throw new InvalidArgumentError('A node’s name has 1 to 64 of A-Z a-z 0-9 . _ -');
  return text;
}

function rightsOf(text: string): Right[] {
  const words = text.split(',');
  const rights = (['read', 'write'] as const).filter((right) => words.includes(right));
  if (rights.length === 0 || rights.length !== words.length)
    throw new InvalidArgumentError('Write read, or write, or read,write.');
  return rights;
}

function rangeOf({ offset, length }: RangeOptions): object {
  if (offset === undefined && length === undefined) return {};
  if (length === undefined)
    throw new HoldfastError('ERR_HOLDFAST_USAGE', 'a range has a length; give --length, or leave --offset out');
  return { range: { base: offset ?? 0, lengthBytes: length } };
}

function listText({ unit, regions, mirrored }: MemoryListing): string {
  const missing = mirrored.filter(({ name }) => !regions.some((region) => region.name === name));
  if (regions.length + missing.length === 0) return `unit ${unit} has no regions\n`;
  const lines = regions.flatMap(({ name, sizeBytes, owner, epoch, access }) => [
    `${name}  ${formatSize(sizeBytes)}, of ${owner}, epoch ${epoch}`,
    ...mirrored.filter((region) => region.name === name).map((region) => `  mirrored: ${standingText(region)}`),
    ...access.map(({ peer, rights, range }) => {
      const where = range === undefined ? '' : `, ${range.lengthBytes} bytes at ${range.base}`;
      return `  ${peer} may ${rights.join(' and ')}${where}`;
    }),
  ]);
  lines.push(
    ...missing.flatMap((region) => [
      `${region.name}  is not created in this unit: holdfast memory create-region ${region.name} SIZE`,
      `  mirrored: ${standingText(region)}`,
    ]),
  );
  return `${lines.join('\n')}\n`;
}

/** In one line; `status` has the rest. */
function standingText(region: MirroredRegionStatus): string {
  const away = region.voters.filter(({ inReach }) => !inReach).map(({ node }) => node);
  const without = away.length === 0 ? '' : `; ${away.join(' and ')} cannot be asked`;
  const writer = region.writer === null ? '' : `, written by ${mirroredWriter(region)}`;
  return `${region.state}, ${mirroredUnits(region).join(', ')}${writer}${without}`;
}
