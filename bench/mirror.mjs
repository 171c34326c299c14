// A mirrored volume between two processes over loopback, asked at the first and at the second member; with --also the
// same with another build of Holdfast, in turns, in one run.
//
//   npm run build && node bench/mirror.mjs [--also DIST_OF_ANOTHER_CHECKOUT] [--rounds 5] [--seconds 1] [--json]
//
// The devices are memory: what is measured is the way of a request through mirror engine and peer session. Figures are
// requests a second, medians; the ratio is this build to the other.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { sideBySide } from './side-by-side.mjs';

const VOLUME_BYTES = 256 * 1024 * 1024;
const CASES = [
  { name: '4k randwrite 1', write: true, bytes: 4096, depth: 1 },
  { name: '4k randwrite 32', write: true, bytes: 4096, depth: 32 },
  { name: '4k randread 32', write: false, bytes: 4096, depth: 32 },
  { name: '1m write 8', write: true, bytes: 1024 * 1024, depth: 8 },
];
const here = fileURLToPath(new URL('../dist', import.meta.url));

const { values: options } = parseArgs({
  options: {
    also: { type: 'string' },
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '1' },
    json: { type: 'boolean', default: false },
    member: { type: 'string' },
    dist: { type: 'string' },
    folder: { type: 'string' },
  },
});

if (options.member === undefined) await compare();
else await member(Number(options.member), options.dist, options.folder);

async function compare() {
  const builds = { 'this build': here, ...(options.also && { 'other build': resolve(options.also) }) };
  const results = [];
  for (const at of [0, 1]) {
    for (const { name } of CASES) {
      const ways = Object.fromEntries(
        Object.entries(builds).map(([build, dist]) => [build, () => measure(dist, at, name)]),
      );
      const medians = await sideBySide(ways, Number(options.rounds));
      const ratio = options.also && medians['this build'] / medians['other build'];
      results.push({ member: at, case: name, medians, ratio });
      if (!options.json) console.log(inWords(at, name, medians, ratio));
    }
  }
  if (options.json) console.log(JSON.stringify(results, undefined, 2));
}

function inWords(at, name, medians, ratio) {
  const figures = Object.entries(medians).map(([build, perSecond]) => `${build} ${Math.round(perSecond)}/s`);
  return `member ${at} ${name}: ${figures.join(', ')}${ratio ? `, ratio ${ratio.toFixed(2)}` : ''}`;
}

/** Two fresh processes; the one that is asked measures. */
async function measure(dist, at, name) {
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-bench-'));
  const start = (index) =>
    fork(fileURLToPath(import.meta.url), ['--member', `${index}`, '--dist', dist, '--folder', folder]);
  const processes = [start(0), start(1)];
  try {
    await Promise.all(processes.map((child) => once(child, 'message')));
    processes[at].send({ name, milliseconds: Number(options.seconds) * 1000 });
    const [perSecond] = await once(processes[at], 'message');
    return perSecond;
  } finally {
    for (const child of processes) child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  }
}

async function member(self, dist, folder) {
  const { MemoryDevice, Metadata, MirroredVolume, createPeerNode, systemEnvironment } = await import(
    join(dist, 'index.js')
  );
  const names = ['a', 'b'];
  const name = names[self];
  const address = (of) => ({ kind: 'unix', path: join(folder, of) });
  const device = new MemoryDevice({ sizeBytes: VOLUME_BYTES + 1024 * 1024 });
  await Metadata.create(device, {
    volumeId: 'be'.repeat(16),
    sizeBytes: VOLUME_BYTES,
    grainBytes: 65_536,
    activityLogExtentBytes: 4 * 1024 * 1024,
    member: self,
    memberName: name,
    deviceIdentity: 'memory',
  });
  const node = createPeerNode({
    environment: systemEnvironment,
    name,
    clusterId: 'bench',
    key: new Uint8Array(32),
    link: 'dedicated',
    listen: address(name),
    peers: [{ name: names[1 - self], addresses: [address(names[1 - self])] }],
  });
  const volume = await MirroredVolume.open({
    environment: systemEnvironment,
    node,
    name: 'bench',
    volumeId: 'be'.repeat(16),
    memberNames: names,
    onLostPeer: { kind: 'suspend' },
    device,
    store: await Metadata.open(device),
    isBlank: async () => true,
  });
  await node.start();
  while (volume.status.role !== 'paired') await new Promise((wake) => setTimeout(wake, 10));
  process.on('message', async ({ name: wanted, milliseconds }) => {
    const which = CASES.find((each) => each.name === wanted);
    // What is touched for the first time costs a write of the activity log; that is not what is measured.
    for (let at = 0; at < VOLUME_BYTES; at += 1024 * 1024) await volume.write(at, new Uint8Array(4096));
    await load(volume, which, milliseconds / 4);
    process.send(await load(volume, which, milliseconds));
  });
  process.send('ready');
}

/** Requests a second at a constant depth. */
async function load(volume, { write, bytes, depth }, milliseconds) {
  const until = performance.now() + milliseconds;
  let done = 0;
  const places = VOLUME_BYTES / bytes;
  await Promise.all(
    Array.from({ length: depth }, async () => {
      const buffer = new Uint8Array(bytes).fill(1);
      while (performance.now() < until) {
        const offset = Math.floor(Math.random() * places) * bytes;
        if (write) await volume.write(offset, buffer, { stable: true });
        else await volume.read(offset, buffer);
        done += 1;
      }
    }),
  );
  return (done * 1000) / milliseconds;
}
