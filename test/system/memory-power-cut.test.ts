/**
 * Power cuts of a memory unit: `holdfast serve` in a guest with Debian's kernel, its memory on an emulated NVDIMM. A
 * primary outside of the guest appends records; the emulator is killed at a random moment, and the guest boots again on
 * the same NVDIMM. The primary's commands come over its session (TLS), and, from another boot on, over the data plane.
 *
 * What a cut takes: all that the guest's processor and its ordinary memory held, and with it the page cache and what its
 * file system had not committed. Left is what had reached the NVDIMM's file.
 * - On ext4 with DAX (`map-sync`) the unit's stores go to the persistent memory itself, in blocks that the file system
 *   does not lose, each before its acknowledgement, and what a cut between any two instructions leaves is recovered from.
 *   But the emulator has no cache lines that wait to be written back: a store has reached the file once it was done, and
 *   a unit that does not write its lines back would pass. Lines are lost in the simulation only
 *   (lib/testing/simulated-memory.ts).
 * - On the same without DAX (`msync`) the stores are in the page cache until a persist, and a unit that answers before
 *   its persist has ended is found out.
 */
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { systemRandom } from '../../lib/base/random.ts';
import { systemEnvironment } from '../../lib/base/system-environment.ts';
import { CheckpointReader } from '../../lib/checkpoint/checkpoint-reader.ts';
import { CheckpointWriter } from '../../lib/checkpoint/checkpoint-writer.ts';
import type { MemoryConnection } from '../../lib/checkpoint/connect-memory.ts';
import { MemoryClient } from '../../lib/checkpoint/manager-client.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import { openPlaneAccess } from '../../lib/checkpoint/plane-access.ts';
import { connectPlane } from '../../lib/checkpoint/plane-ticket.ts';
import type { MemoryTransport } from '../../lib/checkpoint/plane-transport.ts';
import { formatCheckpointRegion } from '../../lib/checkpoint/region-record.ts';
import { loadKey, loadNodeConfig } from '../../lib/daemon/config-file.ts';
import { createPeerNode } from '../../lib/peer/node.ts';
import packageJson from '../../package.json' with { type: 'json' };
import { freePort } from '../free-port.ts';
import { MIB } from './cluster.ts';
import { Guest, missingForGuest } from './guest.ts';
import { run, TemporaryFolder } from './processes.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
/** Of the boots, each of which ends in a cut but the last one. */
const LINKS = ['tls', 'dedicated', 'tls'] as const;
const CUTS = LINKS.length - 1;
const DEPTH = 16;
const RECORD_BYTES = 4096;
const NVDIMM_BYTES = 256 * MIB;
const REGION_BYTES = 64 * MIB;
const GUEST_ADDRESS = '10.9.1.15';
const PORT = 7700;

const script = `
node=$2 config=/share/cluster.jsonc
mkdir -p /mnt/p /run/holdfast && tar -xf /share/holdfast.tar -C /run/holdfast || exit 1
holdfast() { "$node" /run/holdfast/dist/cli/main.js "$@"; }
modprobe nfit; modprobe nd_pmem
ip address add ${GUEST_ADDRESS}/24 dev eth1 && ip link set eth1 up || exit 1
for i in $(seq 100); do [ -b /dev/pmem0 ] && break; sleep .1; done
if [ "$1" = first ]; then
  ndctl create-namespace -f -m fsdax -M mem -e namespace0.0 > /dev/null 2>&1; sleep .5
  mkfs.ext4 -q -F -b 4096 /dev/pmem0 || exit 1
fi
mount -o dax=$3 /dev/pmem0 /mnt/p || exit 1
if [ "$1" = first ]; then holdfast memory create $config --node unit || exit 1; fi
holdfast serve $config --node unit &
until [ -S /run/unit.control ]; do kill -0 $! || exit 1; sleep .2; done
holdfast status --config $config --node unit --json
wait
`;

const missing = missingForGuest('ndctl', 'mkfs.ext4', 'ip');

type Means = 'map-sync' | 'msync';
type Link = (typeof LINKS)[number];

/** The machine with the unit: what of it a power cut leaves. */
class Machine {
  readonly #share: string;
  readonly #port: number;
  readonly #planePort: number;
  readonly #means: Means;

  private constructor(share: string, port: number, planePort: number, means: Means) {
    this.#share = share;
    this.#port = port;
    this.#planePort = planePort;
    this.#means = means;
  }

  static async make(share: string, means: Means): Promise<Machine> {
    const machine = new Machine(share, await freePort(), await freePort(), means);
    await machine.#packProgram();
    await run(process.execPath, join(root, 'dist/cli/main.js'), 'make-key', join(share, 'cluster.key'));
    await writeFile(join(share, 'script.sh'), script);
    await writeFile(machine.#nvdimm, '');
    await truncate(machine.#nvdimm, NVDIMM_BYTES);
    return machine;
  }

  get #config(): string {
    return join(this.#share, 'cluster.jsonc');
  }

  get #nvdimm(): string {
    return join(this.#share, 'nvdimm');
  }

  /** In one file: to open hundreds of them in the share takes an emulated machine long. */
  async #packProgram(): Promise<void> {
    const packages = Object.keys(packageJson.dependencies).map((name) => `node_modules/${name}`);
    const parts = ['dist', 'package.json', 'build/Release/holdfast.node', ...packages];
    const unused = ['--exclude=*.map', '--exclude=*.ts'];
    await run('tar', '-cf', join(this.#share, 'holdfast.tar'), '-C', root, ...unused, ...parts);
  }

  #settings(link: Link): object {
    const memoryUnit = {
      file: '/mnt/p/unit.memory',
      sizeBytes: REGION_BYTES + 8 * MIB,
      planePort: this.#planePort,
    };
    const addresses = [`127.0.0.1:${this.#port}`];
    const unit = {
      name: 'unit',
      addresses,
      listen: `${GUEST_ADDRESS}:${PORT}`,
      control: '/run/unit.control',
      memoryUnit,
    };
    // Emulation is slow: it may be silent for seconds.
    const times = { heartbeatMs: 1000, leaseMs: 15_000 };
    return { cluster: 'memory', keyFile: 'cluster.key', link, ...times, nodes: [unit, { name: 'primary' }] };
  }

  async boot(round: 'first' | 'again', link: Link): Promise<Guest> {
    await writeFile(this.#config, JSON.stringify(this.#settings(link)));
    const forward = (outside: number, inside: number) => `hostfwd=tcp:127.0.0.1:${outside}-${GUEST_ADDRESS}:${inside}`;
    const forwards = [forward(this.#port, PORT), forward(this.#planePort, this.#planePort)];
    const devices = [
      `-object memory-backend-file,id=memory,share=on,mem-path=${this.#nvdimm},size=${NVDIMM_BYTES}`,
      '-device nvdimm,id=nvdimm,memdev=memory',
      `-netdev user,id=way,net=10.9.1.0/24,${forwards.join(',')}`,
      '-device virtio-net-pci,netdev=way,romfile=',
    ].join(' ');
    const machine = ['-M', 'q35,nvdimm=on', '-m', '1G,slots=2,maxmem=4G'];
    const words = [round, process.execPath, this.#means === 'map-sync' ? 'always' : 'never'];
    return new Guest({ share: this.#share, words, machine, devices });
  }

  /** As the primary, who does not take the session where there is to be a plane. */
  async connect(): Promise<Pick<MemoryConnection, 'client'> & AsyncDisposable> {
    const config = await loadNodeConfig(this.#config, 'primary');
    const { name, cluster: clusterId, link, heartbeatMs, leaseMs, peers } = config;
    const key = await loadKey(config.keyFile!);
    const environment = systemEnvironment;
    const { clock } = environment;
    const node = createPeerNode({ environment, name, clusterId, key, link, heartbeatMs, leaseMs, peers });
    const overPlane: MemoryTransport = async (session, context) =>
      openPlaneAccess(await connectPlane(session, { clock, timeoutMs: 30_000 }), context);
    const transport = link === 'dedicated' ? overPlane : openAccess;
    const client = new MemoryClient({ node, clock, manager: 'unit', unit: 'unit', transport });
    await node.start();
    return { client, [Symbol.asyncDispose]: () => node.close() };
  }
}

/** What the unit's status has said; undefined before. */
function meansOf(guest: Guest): string | undefined {
  return /"means":"([^"]*)"/.exec(guest.output)?.[1];
}

/** Record N is 4096 bytes that only N has. */
function record(number: number): Buffer {
  return Buffer.alloc(RECORD_BYTES, `record ${number} `);
}

/** Numbers of the last records. */
interface Counts {
  sent: number;
  acknowledged: number;
}

/** Keeps so many appends in flight until they fail; the codes of their failures. */
async function load(writer: CheckpointWriter, counts: Counts): Promise<Set<unknown>> {
  const lane = async (): Promise<never> => {
    for (;;) {
      const number = ++counts.sent;
      expect(await writer.append(record(number))).toBe(number);
      expect(number).toBe(counts.acknowledged + 1);
      counts.acknowledged = number;
    }
  };
  const lanes = await Promise.allSettled(Array.from({ length: DEPTH }, lane));
  return new Set(lanes.map((ended) => ended.status === 'rejected' && (ended.reason.code ?? ended.reason)));
}

/** Number of the last record that is there; all from the first to that one are, and whole. */
async function readBack(access: RegionAccess): Promise<number> {
  // By its name everything is kept for it: it never clears.
  const reader = await CheckpointReader.open(access, { name: 'backup' });
  const checkpoints = await reader.readAll();
  checkpoints.forEach(({ sequence, value }, index) => {
    expect(sequence).toBe(index + 1);
    expect(record(sequence).equals(value), `record ${sequence} is as it was sent`).toBe(true);
  });
  return checkpoints.length;
}

test.skipIf(missing.length > 0).concurrent.each<[Means]>([['map-sync'], ['msync']])(
  `${CUTS} times a unit that is durable by %s loses its power under load: every acknowledged record is there`,
  async (means) => {
    await using folder = await TemporaryFolder.make();
    const machine = await Machine.make(folder.path, means);
    const counts: Counts = { sent: 0, acknowledged: 0 };
    for (let cut = 0; cut <= CUTS; cut++) {
      const link = LINKS[cut]!;
      await using guest = await machine.boot(cut === 0 ? 'first' : 'again', link);
      await guest.ready(() => meansOf(guest) !== undefined);
      expect(meansOf(guest)).toBe(means);
      await using memory = await machine.connect();
      if (cut === 0) {
        await memory.client.create('log', REGION_BYTES);
        await formatCheckpointRegion((await memory.client.open('log')).access, { mode: 'append' });
      }
      const { access } = await memory.client.open('log');
      const found = await readBack(access);
      console.log(`${means}, after ${cut} cuts, over ${link}`, { ...counts, found });
      expect(found).toBeGreaterThanOrEqual(counts.acknowledged);
      expect(found).toBeLessThanOrEqual(counts.sent);
      if (cut === CUTS) break;
      const writer = await CheckpointWriter.open(access);
      expect(writer.durableSequence).toBe(found);
      counts.acknowledged = found;
      counts.sent = found;
      const failures = load(writer, counts);
      await Promise.race([failures, guest.ready(() => counts.acknowledged >= found + 4 * DEPTH)]);
      await wait(systemRandom.below(1500));
      await guest.kill();
      expect(await failures).toEqual(new Set(['ERR_HOLDFAST_PEER_LOST']));
      expect(counts.sent - counts.acknowledged).toBe(DEPTH);
    }
  },
);
