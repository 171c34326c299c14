import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { connectNbd } from '../../lib/nbd/nbd-device.ts';
import { Office } from '../daemon/office.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
let office: Office;
const children: ChildProcess[] = [];

beforeEach(async () => {
  office = await Office.make();
});

afterEach(async () => {
  for (const child of children.splice(0)) if (child.exitCode === null) child.kill('SIGKILL');
  await office.remove();
});

interface Server {
  readonly child: ChildProcess;
  readonly words: () => string;
  readonly ended: Promise<number | null>;
}

/** Starts `holdfast serve`; resolves when it says that it is ready, or has ended. */
async function serve(...options: string[]): Promise<Server> {
  const child = spawn(process.execPath, [main, 'serve', office.path, ...options], { stdio: ['pipe', 'pipe', 'pipe'] });
  children.push(child);
  let text = '';
  const ended = new Promise<number | null>((resolve) => child.once('close', (code) => resolve(code)));
  await new Promise<void>((resolve) => {
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        if (text.includes('ready')) resolve();
      });
    ended.then(() => resolve());
  });
  return { child, words: () => text, ended };
}

function holdfast(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
  return { status, stdout, stderr };
}

it('create, serve, status, Ctrl-C', async () => {
  const created = holdfast('create', office.path, 'data', '--node', 'a');
  expect([created.status, created.stdout]).toEqual([0, `${office.device('a')} is now the member a of volume data.\n`]);
  const server = await serve('--node', 'a');
  expect(server.words()).toContain('a: ready; exports: data at unix:');
  const status = holdfast('status', '--config', office.path, '--node', 'a');
  expect(status.stdout).toContain('  state: Suspended\n');
  expect(status.stdout).toContain('    see: HOLDFAST-NEW\n');
  const json = holdfast('status', '--config', office.path, '--node', 'a', '--json', '--check');
  expect([json.status, JSON.parse(json.stdout).volumes[0].state]).toEqual([6, 'Suspended']);
  server.child.kill('SIGINT');
  expect(await server.ended).toBe(0);
  expect(server.words()).toContain('SIGINT: stopping; once more stops at once');
  expect(existsSync(join(office.folder, 'a.sock'))).toBe(false);
  expect(existsSync(join(office.folder, 'a.nbd'))).toBe(false);
});

it('a server that was killed is started again over what it left behind', async () => {
  await office.create('a');
  const first = await serve('--node', 'a');
  first.child.kill('SIGKILL');
  await first.ended;
  expect(existsSync(join(office.folder, 'a.sock'))).toBe(true);
  const second = await serve('--node', 'a');
  expect(second.words()).toContain('ready');
});

it('a second server is refused with its own exit code', async () => {
  await office.create('a');
  await serve('--node', 'a');
  const second = await serve('--node', 'a');
  expect(await second.ended).toBe(4);
  expect(second.words()).toContain('ERR_HOLDFAST_ALREADY_RUNNING');
});

it('stops when standard input ends, if it was told to', async () => {
  await office.create('a');
  const server = await serve('--node', 'a', '--until-stdin-ends', '--json');
  expect(
    JSON.parse(
      server
        .words()
        .split('\n')
        .find((line) => line.includes('ready'))!,
    ),
  ).toEqual({ kind: 'ready' });
  server.child.stdin!.end();
  expect(await server.ended).toBe(0);
});

it('create refuses with its own exit code what would destroy data', async () => {
  await office.create('a');
  const again = holdfast('create', office.path, 'data', '--node', 'a');
  expect([again.status, again.stderr]).toEqual([5, expect.stringContaining(`--overwrite ${office.device('a')}`)]);
  const named = holdfast('create', office.path, 'data', '--node', 'a', '--overwrite', office.device('a'));
  expect(named.status).toBe(0);
});

it('create on a volume that is not in the configuration', () => {
  const { status, stderr } = holdfast('create', office.path, 'dada', '--node', 'a');
  expect([status, stderr]).toEqual([2, expect.stringContaining('did you mean "data"?')]);
});

it('disk full: create says so and leaves nothing behind', () => {
  office.config.volumes[0].members[0].metadata = { file: 'a.meta' };
  office.save();
  // No file may grow beyond 8 KiB: to the writer that is a full disk.
  const script = 'ulimit -f 16; exec "$@"';
  const args = ['-c', script, 'sh', process.execPath, main, 'create', office.path, 'data', '--node', 'a'];
  const before = readFileSync(office.device('a'));
  const { status, stderr } = spawnSync('sh', args, { encoding: 'utf8' });
  expect([status, stderr]).toEqual([1, expect.stringContaining('code ERR_HOLDFAST_NO_SPACE')]);
  expect(existsSync(join(office.folder, 'a.meta'))).toBe(false);
  expect(Buffer.compare(readFileSync(office.device('a')), before)).toBe(0);
});

it('a server whose clients wait for its peer stops at once, and tells them', async () => {
  await office.create('a');
  const server = await serve('--node', 'a');
  const address = { kind: 'unix', path: join(office.folder, 'a.nbd') } as const;
  await using device = await connectNbd(address, { environment: systemEnvironment, exportName: 'data' });
  const write = device.write(0, Buffer.alloc(4096)).then(
    () => 'written',
    (error: { code: string }) => error.code,
  );
  // The server has the connection; whether it has read the write already makes no difference to what is expected.
  await vi.waitUntil(() => holdfast('status', '--config', office.path, '--node', 'a').stdout.includes('1 client'));
  server.child.kill('SIGTERM');
  expect(await server.ended).toBe(0);
  expect(server.words()).not.toContain('did not finish');
  expect(await write).toMatch(/^ERR_HOLDFAST_/);
});

it('the second Ctrl-C ends it at once', async () => {
  await office.create('a');
  const server = await serve('--node', 'a');
  // Stopped, it takes both signals at once when it goes on.
  server.child.kill('SIGSTOP');
  server.child.kill('SIGINT');
  server.child.kill('SIGTERM');
  server.child.kill('SIGCONT');
  expect(await server.ended).toSatisfy((code) => code === 130 || code === 143);
});
