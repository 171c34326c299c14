// Checkpoints beside what else keeps a service's state, on loopback and on one disk, in turns:
//
//   npm run build && node bench/checkpoint.mjs [--folder DIRECTORY] [--rounds 3] [--seconds 1] [--link dedicated|tls]
//                                              [--cases 'append 1, append 32, recover'] [--json]
//
// append D: records of 4 KiB, each acknowledged when it survives a power cut, D under way: CheckpointWriter.append to a
// unit that `holdfast serve` runs; RPUSH-like SET of 4 KiB to Redis with appendfsync always, through @redis/client on one
// connection; put of 4 KiB to etcd through etcd3. Each server in a process of its own, each client in this one.
// recover: a backup reads --recover-mib MiB (1024) of checkpoints, checked and made durable, in portions of 16 MiB into the
// same memory, beside what plain sockets of Node.js carry from one process to another.
//
// Needs redis-server and etcd-server (Debian's). The folder (default: the one for temporary files) is on a real disk.
import { execFileSync, fork, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { createClient } from '@redis/client';
import { Etcd3 } from 'etcd3';
import { CheckpointReader, CheckpointWriter, connectMemory, formatCheckpointRegion } from '../dist/index.js';
import { alternate, median } from './side-by-side.mjs';

const { values: options } = parseArgs({
  options: {
    folder: { type: 'string', default: tmpdir() },
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '1' },
    link: { type: 'string', default: 'dedicated' },
    cases: { type: 'string', default: 'append 1, append 32, recover' },
    'recover-mib': { type: 'string', default: '1024' },
    json: { type: 'boolean', default: false },
    send: { type: 'string' },
  },
});

const recordBytes = 4096;
const mebibyte = 1 << 20;
const seconds = Number(options.seconds);
const recoverBytes = Number(options['recover-mib']) * mebibyte;
const main = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
const tmpfsMagic = 0x01021994;
const record = randomBytes(recordBytes);

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

/** Processor time of a process so far, µs. */
function cpuOf(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return (Number(fields[11]) + Number(fields[12])) * (1e6 / 100);
}

// ── Holdfast ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** More than is appended in a round. */
const appendBytes = 512 * mebibyte * Math.ceil(seconds);

class Holdfast {
  static async start(folder) {
    const port = await freePort();
    const config = join(folder, 'bench.jsonc');
    const unit = { file: 'unit.memory', sizeBytes: appendBytes + 2 * recoverBytes + 64 * mebibyte };
    writeFileSync(
      config,
      JSON.stringify({
        cluster: 'bench',
        keyFile: 'bench.key',
        link: options.link,
        nodes: [
          { name: 'unit', addresses: [`127.0.0.1:${port}`], control: 'unit.sock', memoryUnit: unit },
          { name: 'primary' },
        ],
      }),
    );
    const holdfast = (...args) => execFileSync(process.execPath, [main, ...args]);
    holdfast('make-key', join(folder, 'bench.key'));
    holdfast('memory', 'create', config, '--node', 'unit');
    const server = new Holdfast();
    server.child = spawn(process.execPath, [main, 'serve', config, '--node', 'unit', '--until-stdin-ends'], {
      stdio: ['pipe', 'ignore', 'inherit'],
    });
    server.connection = await connectMemory({
      ...{ name: 'primary', clusterId: 'bench', link: options.link },
      key: readKey(join(folder, 'bench.key')),
      unit: { name: 'unit', addresses: [{ kind: 'tcp', host: '127.0.0.1', port }] },
    });
    return server;
  }

  async region(name, sizeBytes, format) {
    await this.connection.client.create(name, sizeBytes);
    const { access } = await this.connection.client.open(name);
    await formatCheckpointRegion(access, format);
    return access;
  }

  /** A ring that is read as it is written, by a backup that clears what it has. */
  async startAppending() {
    const access = await this.region('series', appendBytes, { mode: 'append', cursors: 1 });
    this.writer = await CheckpointWriter.open(access, { whenFull: 'error' });
    // Pages that the file system has not seen written cost more than those that it has.
    const lap = Math.floor((appendBytes / (recordBytes + 64)) * 0.9);
    for (let sent = 0; sent < lap; sent += 256)
      await Promise.all(Array.from({ length: 256 }, () => this.writer.append(record)));
    await this.writer.close();
    this.access = access;
  }

  /** A round begins with an empty ring. */
  async prepare() {
    await formatCheckpointRegion(this.access, { mode: 'append', cursors: 1, replace: true });
    this.writer = await CheckpointWriter.open(this.access, { whenFull: 'error' });
    return { pid: this.child.pid, each: () => this.writer.append(record), end: () => this.writer.close() };
  }

  async recover() {
    const access = await this.region('recovery', recoverBytes + 64 * mebibyte, { mode: 'append', cursors: 1 });
    const writer = await CheckpointWriter.open(access);
    const count = Math.floor(recoverBytes / (64 * 1024));
    const part = randomBytes(64 * 1024);
    for (let sent = 0; sent < count; sent += 64)
      await Promise.all(Array.from({ length: 64 }, () => writer.append(part)));
    await writer.close();
    return async () => {
      const reader = await CheckpointReader.open(access);
      const begun = performance.now();
      let bytes = 0;
      const portions = { into: new Uint8Array(16 * mebibyte), maxBytes: 64 * mebibyte };
      for (let portion = await reader.drain(portions); portion.length > 0; portion = await reader.drain(portions))
        for (const { value } of portion) bytes += value.length;
      return bytes / (performance.now() - begun) / 1e6;
    };
  }

  async stop() {
    await this.connection.close();
    this.child.stdin.end();
    await once(this.child, 'exit');
  }
}

/** As a cluster's key file has it. */
function readKey(path) {
  const text = readFileSync(path);
  const hex = text.toString('latin1').trim();
  return /^[0-9a-f]+$/i.test(hex) ? Buffer.from(hex, 'hex') : text;
}

// ── Peers ────────────────────────────────────────────────────────────────────────────────────────────────────────────

async function startRedis(folder) {
  const port = await freePort();
  mkdirSync(join(folder, 'redis'));
  const durable = ['--appendonly', 'yes', '--appendfsync', 'always', '--auto-aof-rewrite-percentage', '0'];
  const place = ['--bind', '127.0.0.1', '--port', String(port), '--save', '', '--dir', join(folder, 'redis')];
  const child = spawn('redis-server', [...place, ...durable], { stdio: 'ignore' });
  const client = createClient({ socket: { host: '127.0.0.1', port } });
  client.on('error', () => {});
  await client.connect();
  let next = 0;
  return {
    prepare: async () => ({
      pid: child.pid,
      each: () => client.set(`record ${next++ % 16384}`, record),
      end: async () => {},
    }),
    stop: async () => {
      client.destroy();
      child.kill();
      await once(child, 'exit');
    },
  };
}

async function startEtcd(folder) {
  const [port, peerPort] = [await freePort(), await freePort()];
  const urls = [`http://127.0.0.1:${port}`, `http://127.0.0.1:${peerPort}`];
  const clientUrls = ['--listen-client-urls', urls[0], '--advertise-client-urls', urls[0]];
  const peerUrls = ['--listen-peer-urls', urls[1], '--initial-advertise-peer-urls', urls[1]];
  const place = ['--data-dir', join(folder, 'etcd'), '--initial-cluster', `default=${urls[1]}`];
  const child = spawn('etcd', [...place, ...clientUrls, ...peerUrls], { stdio: 'ignore' });
  const client = new Etcd3({ hosts: urls[0] });
  while (
    (await client
      .put('ready')
      .value('1')
      .catch(() => undefined)) === undefined
  )
    await sleep(50);
  let next = 0;
  const put = () => client.put(`record ${next++ % 1024}`).value(record);
  return {
    prepare: async () => ({ pid: child.pid, each: put, end: async () => {} }),
    stop: async () => {
      client.close();
      child.kill();
      await once(child, 'exit');
    },
  };
}

// ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────

async function measure(server, depth) {
  const { pid, each, end } = await server.prepare();
  const before = { server: cpuOf(pid), client: process.cpuUsage() };
  const latencies = [];
  const begun = performance.now();
  const until = begun + seconds * 1000;
  let done = 0;
  const lane = async () => {
    while (performance.now() < until) {
      const start = performance.now();
      await each();
      latencies.push(performance.now() - start);
      done += 1;
    }
  };
  await Promise.all(Array.from({ length: depth }, lane));
  const perSecond = (done * 1000) / (performance.now() - begun);
  const { user, system } = process.cpuUsage(before.client);
  const serverUs = (cpuOf(pid) - before.server) / done;
  await end();
  return { perSecond, p50Us: 1000 * median(latencies), clientUs: (user + system) / done, serverUs };
}

/**
 * What one process sends another through a plain socket, GB/s: the bench as its own sender. `reused`: into one buffer, as
 * Holdfast's reader does; else each chunk is a buffer of its own.
 */
async function plainSockets(reused) {
  const child = fork(fileURLToPath(import.meta.url), ['--send', String(recoverBytes)]);
  const [port] = await once(child, 'message');
  let bytes = 0;
  const count = (length) => {
    bytes += length;
    return true;
  };
  const onread = reused && { buffer: new Uint8Array(256 * 1024), callback: count };
  const begun = performance.now();
  const socket = connect({ host: '127.0.0.1', port, ...(onread && { onread }) });
  if (!reused) socket.on('data', (chunk) => count(chunk.length));
  await once(socket, 'close');
  const rate = bytes / (performance.now() - begun) / 1e6;
  await once(child, 'exit');
  return rate;
}

async function send(lengthBytes) {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  process.send(server.address().port);
  const [socket] = await once(server, 'connection');
  const piece = randomBytes(mebibyte);
  for (let sent = 0; sent < lengthBytes; sent += piece.length) if (!socket.write(piece)) await once(socket, 'drain');
  socket.end();
  server.close();
  process.disconnect();
}

function line(name, { perSecond, p50Us, clientUs, serverUs }) {
  const processor = `processor ${clientUs.toFixed(1)} (client) + ${serverUs.toFixed(1)} (server) µs`;
  return `  ${name.padEnd(9)} ${perSecond.toFixed(0).padStart(7)} /s   median ${p50Us.toFixed(0).padStart(6)} µs   ${processor}`;
}

const medians = (results) =>
  Object.fromEntries(Object.keys(results[0]).map((field) => [field, median(results.map((result) => result[field]))]));

async function benchAppend(servers, depth) {
  const ways = Object.entries(servers).map(([name, server]) => [name, () => measure(server, depth)]);
  const results = await alternate(Object.fromEntries(ways), Number(options.rounds));
  const middle = Object.fromEntries(Object.entries(results).map(([name, rounds]) => [name, medians(rounds)]));
  const ratio = (peer, field) => median(results.holdfast.map((own, round) => own[field] / results[peer][round][field]));
  if (options.json) return console.log(JSON.stringify({ depth, ...middle }));
  console.log(`append of 4 KiB, durable, ${depth} under way; medians of ${options.rounds} rounds`);
  for (const [name, result] of Object.entries(middle)) console.log(line(name, result));
  for (const peer of Object.keys(servers).filter((name) => name !== 'holdfast'))
    console.log(
      `  holdfast : ${peer} = ${ratio(peer, 'perSecond').toFixed(2)}, latency ${ratio(peer, 'p50Us').toFixed(2)}`,
    );
}

async function benchRecovery(holdfast) {
  const recover = await holdfast.recover();
  const ways = { holdfast: recover, sockets: () => plainSockets(false), reusing: () => plainSockets(true) };
  const results = await alternate(ways, Number(options.rounds));
  const ratio = (peer) => median(results.holdfast.map((rate, round) => rate / results[peer][round])).toFixed(2);
  if (options.json) return console.log(JSON.stringify({ recovery: results }));
  const [own, sockets, reusing] = Object.keys(ways).map((way) => `${median(results[way]).toFixed(2)} GB/s`);
  console.log(`recovery of ${options['recover-mib']} MiB of checkpoints; medians of ${options.rounds} rounds`);
  console.log(`  holdfast ${own}   plain sockets ${sockets}, into one buffer ${reusing}`);
  console.log(`  holdfast : plain sockets = ${ratio('sockets')}, into one buffer ${ratio('reusing')}`);
}

async function run() {
  const folder = mkdtempSync(join(options.folder, 'holdfast-bench-'));
  if (statfsSync(folder).type === tmpfsMagic) console.error(`${folder} is in RAM: give --folder one on a disk`);
  const cases = options.cases.split(',').map((text) => text.trim());
  const started = [];
  try {
    const holdfast = await Holdfast.start(folder);
    started.push(holdfast);
    const depths = cases.filter((name) => name.startsWith('append')).map((name) => Number(name.split(' ')[1]));
    if (depths.length > 0) {
      const servers = { holdfast, redis: await startRedis(folder), etcd: await startEtcd(folder) };
      started.push(servers.redis, servers.etcd);
      await holdfast.startAppending();
      for (const depth of depths) await benchAppend(servers, depth);
    }
    if (cases.includes('recover')) await benchRecovery(holdfast);
  } finally {
    for (const server of started) await server.stop();
    rmSync(folder, { recursive: true });
  }
}

await (options.send === undefined ? run() : send(Number(options.send)));
