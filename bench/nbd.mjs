// One device exported by our NBD server, by nbdkit and by qemu-nbd, each asked by the same fio over a Unix socket, in
// one run, in turns.
//
//   npm run build && node bench/nbd.mjs [--device PATH] [--rounds 3] [--seconds 2] [--connections 1] [--json]
//                                       [--cases '4k randread 32, 1m write 8'] [--servers holdfast,nbdkit,qemu-nbd]
//
// Without --device (needs root): a loop device over a file in /dev/shm, removed afterwards. A device that is named is
// overwritten by the cases that write.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { NbdServer, openDevice, systemEnvironment } from '../dist/index.js';
import { sideBySide } from './side-by-side.mjs';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '2' },
    connections: { type: 'string', default: '1' },
    servers: { type: 'string', default: 'holdfast,nbdkit,qemu-nbd' },
    cases: {
      type: 'string',
      default: '4k randread 1, 4k randread 32, 4k randwrite 32, 1m read 8, 1m write 8',
    },
    json: { type: 'boolean', default: false },
    serve: { type: 'string' },
  },
});

if (options.serve === undefined) await compare();
else await serve(options.serve, options.device);

/** Our server, as a process of its own. */
async function serve(path, devicePath) {
  const device = await openDevice(devicePath, { direct: 'required' });
  const server = new NbdServer({
    environment: systemEnvironment,
    address: { kind: 'unix', path },
    exports: new Map([['', { device, multiConnection: true }]]),
  });
  process.once('SIGTERM', async () => {
    await server.close();
    await device.close();
    process.exit(0);
  });
  await server.listen();
}

function makeLoopDevice() {
  const backing = `/dev/shm/holdfast-bench-nbd-${process.pid}`;
  const file = openSync(backing, 'wx', 0o600);
  const piece = Buffer.alloc(1 << 20);
  for (let at = 0; at < 1024; at++) writeSync(file, randomFillSync(piece));
  closeSync(file);
  const path = execFileSync('losetup', ['--find', '--show', backing], { encoding: 'utf8' }).trim();
  return {
    path,
    remove() {
      execFileSync('losetup', ['--detach', path]);
      rmSync(backing);
    },
  };
}

function commandOf(server, socket, device) {
  const connections = Math.max(Number(options.connections), 1);
  if (server === 'nbdkit') return ['nbdkit', ['-f', '-U', socket, 'file', device]];
  if (server === 'qemu-nbd')
    return [
      'qemu-nbd',
      ['-k', socket, '-f', 'raw', '-t', '-e', `${connections + 1}`, '--cache=none', '--aio=io_uring', device],
    ];
  return [process.execPath, [fileURLToPath(import.meta.url), '--serve', socket, '--device', device]];
}

function fioArguments(socket, { blockSize, mode, depth }) {
  return [
    ...['--name=client', '--ioengine=nbd', `--uri=nbd+unix:///?socket=${socket}`, `--rw=${mode}`, `--bs=${blockSize}`],
    ...[`--iodepth=${depth}`, `--numjobs=${options.connections}`, '--group_reporting', '--size=1000M', '--time_based'],
    ...[`--runtime=${options.seconds}`, '--ramp_time=300ms', '--gtod_reduce=1', '--output-format=json'],
  ];
}

async function measure(server, device, what) {
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-bench-'));
  const socket = join(folder, 's');
  const [command, words] = commandOf(server, socket, device);
  const child = spawn(command, words, { stdio: 'inherit' });
  const exited = once(child, 'exit');
  try {
    while (!existsSync(socket)) {
      if (child.exitCode !== null) throw new Error(`${server} did not start`);
      await sleep(20);
    }
    const { stdout, status } = spawnSync('fio', fioArguments(socket, what), { encoding: 'utf8' });
    if (status !== 0) throw new Error(`fio failed: ${stdout}`);
    const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs;
    return (what.mode.includes('read') ? job.read : job.write).iops;
  } finally {
    child.kill('SIGTERM');
    await exited;
    rmSync(folder, { recursive: true });
  }
}

async function compare() {
  const cases = options.cases.split(',').map((words) => {
    const [blockSize, mode, depth] = words.trim().split(/\s+/);
    return { blockSize, mode, depth: Number(depth) };
  });
  const servers = options.servers.split(',');
  const made = options.device === undefined ? makeLoopDevice() : undefined;
  const device = made?.path ?? options.device;
  const results = [];
  try {
    for (const what of cases) {
      const ways = Object.fromEntries(servers.map((server) => [server, () => measure(server, device, what)]));
      const rates = await sideBySide(ways, Number(options.rounds));
      results.push({ ...what, rates });
      if (options.json) continue;
      const columns = servers.map((server) => {
        const ratio = (rates.holdfast / rates[server]).toFixed(2);
        return `${server} ${Math.round(rates[server])} /s${server === 'holdfast' ? '' : ` (ours: ${ratio} of it)`}`;
      });
      console.log(`${what.blockSize} ${what.mode}, depth ${what.depth}: ${columns.join('   ')}`);
    }
  } finally {
    made?.remove();
  }
  const fio = ['fio', ...fioArguments('SOCKET', cases[0])].join(' ');
  if (options.json) console.log(JSON.stringify({ results, connections: Number(options.connections), fio }));
  else console.log(`medians of ${options.rounds} rounds, ${options.connections} connection(s); ${fio}`);
}
