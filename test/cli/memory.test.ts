import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CommanderError } from 'commander';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { exitCodeOf } from '../../lib/cli/exit-code.ts';
import { buildProgram } from '../../lib/cli/program.ts';
import { Office } from '../daemon/office.ts';
import { freePort } from '../free-port.ts';

let office: Office;

beforeEach(async () => {
  office = await Office.make();
  const [a, b] = office.config.nodes;
  office.config.volumes = [];
  Object.assign(a, { exports: [], memoryUnit: { file: 'a.memory', sizeBytes: '4 MiB' } });
  Object.assign(b, { exports: [], addresses: [] });
  office.save();
});

afterEach(() => office.remove());

/** The command in this process: a real one for each would take most of the time. */
async function holdfast(...args: string[]) {
  const result = { status: 0, stdout: '', stderr: '' };
  const context = {
    environment: systemEnvironment,
    stdout: { write: (text: string) => (result.stdout += text) },
    stderr: { write: (text: string) => (result.stderr += text) },
    signal: new AbortController().signal,
  };
  const program = buildProgram(context, (status) => {
    result.status = status;
  });
  try {
    await program.parseAsync(['node', 'holdfast', ...args]);
  } catch (error) {
    if (error instanceof CommanderError) result.status = 2;
    else if (error instanceof HoldfastError) {
      result.status = exitCodeOf(error.code);
      result.stderr += `${error.message} ${error.code}`;
    } else throw error;
  }
  return result;
}

const memory = (...args: string[]) => holdfast('memory', ...args, '--config', office.path, '--node', 'a');
const create = () => holdfast('memory', 'create', office.path, '--node', 'a');
const serve = () => office.start('a');

it('create, serve, and what an operator does with regions', async () => {
  const file = join(office.folder, 'a.memory');
  expect((await create()).stdout).toBe(`${file} is now the memory of unit a: 4 MiB, by msync.\n`);
  await serve();
  expect((await memory('list')).stdout).toBe('unit a has no regions\n');
  expect((await memory('create-region', 'log', '64k')).stdout).toBe('log: a new region of 64 KiB.\n');
  expect((await memory('grow-region', 'log', '1M')).stdout).toBe('log: has 1 MiB now.\n');
  expect((await memory('allow', 'log', 'b', 'read,write')).stdout).toBe('log: b may read and write.\n');
  expect((await memory('deny', 'log', 'b', 'write')).stdout).toBe('log: b may not write.\n');
  expect((await memory('allow', 'log', 'b', 'write', '--offset', '4k', '--length', '8k')).status).toBe(0);
  expect((await memory('list')).stdout).toBe(
    'log  1 MiB, of a, epoch 1\n  b may read\n  b may write, 8192 bytes at 4096\n',
  );
  expect(JSON.parse((await memory('list', '--json')).stdout)).toMatchObject({ unit: 'a', regions: [{ name: 'log' }] });
  const { status, stdout } = await holdfast('status', '--config', office.path, '--node', 'a', '--check');
  expect(stdout).toContain(
    ` memory: unit a, 4 MiB by msync, 0 keys  ${file}\n  state: Online\nmanager: of unit a: 1 region`,
  );
  expect(stdout).toContain('  links: b  client, away\n');
  expect(status).toBe(0);
});

it('a region that lies in two units: its files, its list and its status', async () => {
  const { config } = office;
  config.nodes[1].addresses = [`127.0.0.1:${await freePort()}`];
  config.nodes[1].memoryUnit = { file: 'b.memory', sizeBytes: '4 MiB' };
  config.nodes.push({ name: 'tie', addresses: [`127.0.0.1:${await freePort()}`], control: 'tie.sock' });
  const mirroredRegions = [
    {
      name: 'orders',
      id: '5b0f3c52-8a5e-4f0e-9d6c-2f6c1d9e7a10',
      units: ['a', 'b'].map((unit) => ({ unit, stateFile: `${unit}.vote` })),
      tieBreaker: { node: 'tie', stateFile: 'tie.vote' },
    },
  ];
  office.save();
  await create();
  Object.assign(config, { mirroredRegions });
  office.save();
  const [unit, vote] = ['a.memory', 'a.vote'].map((name) => join(office.folder, name));
  expect(await create()).toMatchObject({
    status: 0,
    stdout: `${unit} is there already, and left as it is.\n${vote} is now the vote of a on the mirrored region orders.\n`,
  });
  expect(await create()).toMatchObject({ status: 5, stderr: expect.stringContaining('a.memory is there already') });
  for (const node of ['b', 'tie'])
    expect((await holdfast('memory', 'create', office.path, '--node', node)).status).toBe(0);
  await Promise.all((['a', 'b', 'tie'] as const).map((node) => office.start(node)));
  await vi.waitFor(async () =>
    expect((await memory('list')).stdout).toBe(
      'orders  is not created in this unit: holdfast memory create-region orders SIZE\n  mirrored: New, a not written yet, b not written yet\n',
    ),
  );
  await memory('create-region', 'orders', '64k');
  expect((await memory('list')).stdout).toBe(
    'orders  64 KiB, of a, epoch 1\n  mirrored: New, a not written yet, b not written yet\n',
  );
  const { status, stdout } = await holdfast('status', '--config', office.path, '--node', 'a', '--check');
  expect(stdout).toContain(' region: orders, mirrored over a and b\n  state: New\n');
  expect(stdout).toContain(` voters: a  in reach\n         b  in reach\n         tie  in reach\n   file: ${vote}\n`);
  expect(status).toBe(0);
});

it('what would be lost is lost only when it is named', async () => {
  await create();
  const before = readFileSync(join(office.folder, 'a.memory'));
  expect(await create()).toMatchObject({ status: 5, stderr: expect.stringContaining('a.memory is there already') });
  expect(readFileSync(join(office.folder, 'a.memory')).equals(before)).toBe(true);
  await serve();
  await memory('create-region', 'log', '64k');
  for (const consent of [[], ['--destroy', 'lag']]) {
    const refused = { status: 5, stderr: expect.stringContaining('--destroy log. Nothing was changed') };
    expect(await memory('delete-region', 'log', ...consent)).toMatchObject(refused);
  }
  expect((await memory('list')).stdout).toContain('log  64 KiB');
  expect((await memory('delete-region', 'log', '--destroy', 'log')).status).toBe(0);
  expect((await memory('list')).stdout).toBe('unit a has no regions\n');
});

it('what cannot be is told, each with its exit code', async () => {
  const isRefused = async (status: number, words: string, ...args: string[]) =>
    expect(await memory(...args), args.join(' ')).toMatchObject({ status, stderr: expect.stringContaining(words) });
  await isRefused(4, 'no server answers on the control socket', 'list');
  const elsewhere = await holdfast('memory', 'create', office.path, '--node', 'b');
  expect(elsewhere).toMatchObject({ status: 2, stderr: expect.stringContaining('node b has no "memoryUnit"') });
  const unserved = await holdfast('serve', office.path, '--node', 'a');
  expect(unserved).toMatchObject({ status: 1, stderr: expect.stringContaining('run: holdfast memory create') });
  expect(existsSync(join(office.folder, 'a.memory'))).toBe(false);
  await create();
  await serve();
  await isRefused(2, 'A name has 1 to 64', 'create-region', '../log', '64k');
  await isRefused(2, 'Write bytes', 'create-region', 'log', '64 parsecs');
  await isRefused(1, 'ERR_HOLDFAST_NO_SPACE', 'create-region', 'log', '1G');
  await isRefused(1, 'there is no region log', 'grow-region', 'log', '1M');
  await isRefused(2, 'Write read, or write', 'allow', 'log', 'b', 'reed');
  await isRefused(2, 'give --length', 'allow', 'log', 'b', 'read', '--offset', '4k');
  await isRefused(1, 'there is no node "bb" in the configuration; did you mean "b"?', 'allow', 'log', 'bb', 'read');
});
