// A memory unit's data plane beside Redis, on loopback and on one disk, in turns:
//
//   npm run build && node bench/memory-unit.mjs [--folder DIRECTORY] [--rounds 3] [--seconds 1] [--json]
//                                               [--cases 'read 1x1, read 1x16, …, write 1, write 32']
//
// read CxP: one-sided reads of 4 KiB over C connections with P commands under way on each, beside GET of 4 KiB by
// `redis-benchmark -c C -P P`. write D: 4 KiB each, acknowledged when it survives a power cut, one after the other into a
// region on a file, D under way on one connection; beside SET of 4 KiB with appendfsync always, by D connections and by
// one with D under way, of which the faster one counts. All random over, or cycling through, 64 MiB.
//
// Our client is JavaScript, one promise a command; theirs is redis-benchmark. Needs redis-server (Debian's). The folder
// (default: the one for temporary files) is on a real disk.
import { execFile, fork, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { systemEnvironment } from '../dist/base/system-environment.js';
import { openPlaneAccess } from '../dist/checkpoint/plane-access.js';
import { connectPlane } from '../dist/checkpoint/plane-ticket.js';
import { createMemoryUnit } from '../dist/checkpoint/unit.js';
import { mappedMemory } from '../dist/checkpoint/unit-memory.js';
import { createPeerNode } from '../dist/peer/node.js';
import { openRegion } from '../dist/storage/region.js';
import { alternate, median } from './side-by-side.mjs';

const { values: options } = parseArgs({
  options: {
    folder: { type: 'string', default: tmpdir() },
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '1' },
    cases: {
      type: 'string',
      default: 'read 1x1, read 1x16, read 1x32, read 32x1, read 32x16, read 32x32, write 1, write 32',
    },
    json: { type: 'boolean', default: false },
    serve: { type: 'string' },
  },
});

const blockBytes = 4096;
const recordsBytes = 1 << 20;
const regionBytes = 64 << 20;
const blocks = regionBytes / blockBytes;
const region = 'a'.repeat(32);
const connectionsMax = 32;
const seconds = Number(options.seconds);
const key = Buffer.from('a key of the bench, and not more');
const tmpfsMagic = 0x01021994;
const nodeNames = Array.from({ length: connectionsMax }, (_, index) => `client${index}`);

// ── The unit, in a process of its own ────────────────────────────────────────────────────────────────────────────────

async function serve(path) {
  const listener = await systemEnvironment.network.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, {}, () => {});
  await listener.close();
  const node = createPeerNode({
    ...{ environment: systemEnvironment, name: 'unit', clusterId: 'bench', key, link: 'dedicated' },
    listen: listener.address,
    peers: nodeNames.map((name) => ({ name, addresses: [] })),
  });
  const file = await openRegion(path, { sizeBytes: recordsBytes + regionBytes, create: true });
  // Pages that the file system has not seen written cost more than those that it has.
  file.bytes.fill(1);
  await file.persist();
  const unit = createMemoryUnit({
    ...{
      name: 'unit',
      memory: mappedMemory(file, systemEnvironment.clock),
      clock: systemEnvironment.clock,
      node,
      recordsBytes,
    },
    plane: { ...systemEnvironment, host: '127.0.0.1', region: file },
  });
  const extents = [{ startBytes: recordsBytes, lengthBytes: regionBytes }];
  await unit.install([{ region, extents }]);
  await node.start();
  const grants = { region, range: { base: 0, lengthBytes: regionBytes }, rights: ['read', 'write'], epoch: 1 };
  process.on('message', async (message) => {
    if (message === 'end') {
      await node.close();
      await unit.close();
      process.exit(0);
    }
    if (message !== 'cpu') await unit.grant({ ...grants, peer: message.peer, key: message.key });
    process.send(message === 'cpu' ? process.cpuUsage() : 'granted');
  });
  process.send(listener.address);
}

const microseconds = ({ user, system }) => user + system;

class Unit {
  static async start(path) {
    const child = fork(fileURLToPath(import.meta.url), ['--serve', path]);
    const [address] = await once(child, 'message');
    const unit = new Unit();
    Object.assign(unit, { child, address, nodes: [], accesses: [] });
    return unit;
  }

  async ask(message) {
    this.child.send(message);
    const [answer] = await once(this.child, 'message');
    return answer;
  }

  async connect(count) {
    while (this.accesses.length < count) {
      const name = nodeNames[this.accesses.length];
      const common = { environment: systemEnvironment, clusterId: 'bench', key, link: 'dedicated' };
      const node = createPeerNode({ ...common, name, peers: [{ name: 'unit', addresses: [this.address] }] });
      this.nodes.push(node);
      await node.start();
      while (node.session('unit') === undefined) await sleep(5);
      const context = {
        key: this.accesses.length.toString(16).padStart(32, '0'),
        range: { base: 0, lengthBytes: regionBytes },
        epoch: 1,
      };
      const plane = await connectPlane(node.session('unit'), { clock: systemEnvironment.clock });
      await this.ask({ peer: name, key: context.key });
      this.accesses.push(openPlaneAccess(plane, context));
    }
    return this.accesses.slice(0, count);
  }

  /** Runs `each(access)` again and again, `depth` at a time on each connection. */
  async measure(connections, depth, each) {
    const accesses = await this.connect(connections);
    const serverBefore = microseconds(await this.ask('cpu'));
    const clientBefore = microseconds(process.cpuUsage());
    const begun = performance.now();
    const end = begun + seconds * 1000;
    let done = 0;
    let ended = false;
    const latencies = [];
    const timed = connections * depth === 1;
    const worker = async (access) => {
      const bytes = new Uint8Array(blockBytes);
      while (!ended) {
        const start = timed ? performance.now() : 0;
        await each(access, bytes);
        done++;
        if (timed) latencies.push(performance.now() - start);
        if ((timed || done % 64 === 0) && performance.now() > end) ended = true;
      }
    };
    await Promise.all(accesses.flatMap((access) => Array.from({ length: depth }, () => worker(access))));
    const perSecond = (done * 1000) / (performance.now() - begun);
    const client = microseconds(process.cpuUsage()) - clientBefore;
    const server = microseconds(await this.ask('cpu')) - serverBefore;
    return { perSecond, cpuUs: (client + server) / done, serverCpuUs: server / done, p50Us: 1000 * middle(latencies) };
  }

  async stop() {
    for (const node of this.nodes) await node.close();
    this.child.send('end');
    await once(this.child, 'exit');
  }
}

const middle = (values) => (values.length === 0 ? Number.NaN : median(values));

// ── Redis ────────────────────────────────────────────────────────────────────────────────────────────────────────────

class Redis {
  static async start(folder, durable) {
    const listener = await systemEnvironment.network.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, {}, () => {});
    await listener.close();
    const redis = new Redis();
    redis.port = String(listener.address.port);
    redis.folder = join(folder, `redis-${redis.port}`);
    mkdirSync(redis.folder);
    const always = ['--appendonly', 'yes', '--appendfsync', 'always', '--auto-aof-rewrite-percentage', '0'];
    const parameters = ['--bind', '127.0.0.1', '--port', redis.port, '--save', '', '--dir', redis.folder];
    redis.child = spawn('redis-server', [...parameters, ...(durable ? always : [])], { stdio: 'ignore' });
    const ping = () => spawnSync('redis-cli', ['-p', redis.port, 'ping'], { encoding: 'utf8' }).stdout;
    while (!ping().startsWith('PONG')) await sleep(20);
    return redis;
  }

  /** Its processor time so far. */
  cpuUs() {
    const fields = readFileSync(`/proc/${this.child.pid}/stat`, 'utf8').split(') ')[1].split(' ');
    return (Number(fields[11]) + Number(fields[12])) * (1e6 / 100);
  }

  async run(command, connections, depth, requests) {
    const benchmark = [
      'redis-benchmark',
      '-p',
      this.port,
      '-t',
      command,
      '-d',
      String(blockBytes),
      '-r',
      String(blocks),
    ];
    benchmark.push('-c', String(connections), '-P', String(depth), '-n', String(Math.ceil(requests)), '--csv');
    const before = this.cpuUs();
    // `times` tells the processor time of what the shell has run, in its second line.
    const { stdout: output } = await promisify(execFile)('bash', ['-c', `${benchmark.join(' ')}; times`]);
    const figures = output
      .match(/^"(?:GET|SET)",(.*)$/m)[1]
      .replaceAll('"', '')
      .split(',')
      .map(Number);
    const spent = [
      ...output
        .trim()
        .split('\n')
        .at(-1)
        .matchAll(/(\d+)m([\d.]+)s/g),
    ];
    const client = spent.reduce((sum, [, minutes, rest]) => sum + (Number(minutes) * 60 + Number(rest)) * 1e6, 0);
    const server = this.cpuUs() - before;
    const done = Math.ceil(requests);
    const [perSecond, , , p50Ms] = figures;
    return { perSecond, cpuUs: (client + server) / done, serverCpuUs: server / done, p50Us: p50Ms * 1000 };
  }

  /** For about as long as asked for. */
  async measure(command, connections, depth) {
    const trial = await this.run(
      command,
      connections,
      depth,
      Math.max(2000, 64 * depth * connections) * Math.min(seconds, 1),
    );
    return this.run(command, connections, depth, trial.perSecond * seconds);
  }

  async stop() {
    this.child.kill();
    await once(this.child, 'exit');
    rmSync(this.folder, { recursive: true });
  }
}

// ── Both ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

async function compareReads(unit, redis, connections, depth) {
  const read = (access, bytes) => access.read(Math.floor(Math.random() * blocks) * blockBytes, bytes);
  return alternate(
    {
      holdfast: () => unit.measure(connections, depth, read),
      redis: () => redis.measure('get', connections, depth),
    },
    Number(options.rounds),
  );
}

async function compareWrites(unit, folder, depth) {
  let at = 0;
  const write = (access, bytes) => {
    const address = at;
    at = (at + blockBytes) % regionBytes;
    return access.write(address, [bytes], { persist: true });
  };
  const bySet = async () => {
    const redis = await Redis.start(folder, true);
    try {
      const ways = [await redis.measure('set', depth, 1)];
      if (depth > 1) ways.push(await redis.measure('set', 1, depth));
      return ways.sort((one, other) => other.perSecond - one.perSecond)[0];
    } finally {
      await redis.stop();
    }
  };
  return alternate({ holdfast: () => unit.measure(1, depth, write), redis: bySet }, Number(options.rounds));
}

/** Medians; the ratio is the median of the pairs'. */
function summary({ holdfast, redis }) {
  const of = (rounds, field) => middle(rounds.map((round) => round[field]));
  const ratio = (field) => middle(holdfast.map((round, index) => round[field] / redis[index][field]));
  const fields = ['perSecond', 'p50Us', 'cpuUs', 'serverCpuUs'];
  return Object.fromEntries(
    fields.map((field) => [field, { holdfast: of(holdfast, field), redis: of(redis, field), ratio: ratio(field) }]),
  );
}

function line(name, { perSecond, p50Us, cpuUs, serverCpuUs }) {
  const figures = ({ holdfast, redis, ratio }, digits) =>
    `${holdfast.toFixed(digits)} / ${redis.toFixed(digits)} = ${ratio.toFixed(2)}`;
  const latency = Number.isNaN(p50Us.holdfast) ? '' : `   p50 us ${figures(p50Us, 0)}`;
  const processor = `   cpu us/op ${figures(cpuUs, 1)} (server ${figures(serverCpuUs, 1)})`;
  return `${name.padEnd(11)} per s ${figures(perSecond, 0)}${latency}${processor}`;
}

async function compare() {
  const folder = mkdtempSync(join(options.folder, 'holdfast-bench-'));
  let unit;
  let redis;
  try {
    if (statfsSync(folder).type === tmpfsMagic) throw new Error(`${folder} is in memory; name a --folder on a disk`);
    unit = await Unit.start(join(folder, 'memory'));
    redis = await Redis.start(folder, false);
    await redis.run('set', 32, 16, 16 * blocks);
    const results = {};
    for (const name of options.cases.split(',').map((text) => text.trim())) {
      const [kind, shape] = name.split(' ');
      const [connections, depth] = shape.split('x').map(Number);
      const measured =
        kind === 'read'
          ? await compareReads(unit, redis, connections, depth)
          : await compareWrites(unit, folder, connections);
      results[name] = summary(measured);
      if (!options.json) console.log(line(name, results[name]));
    }
    if (options.json) console.log(JSON.stringify(results));
  } finally {
    await redis?.stop();
    await unit?.stop();
    rmSync(folder, { recursive: true });
  }
}

if (options.serve === undefined) await compare();
else await serve(options.serve);
