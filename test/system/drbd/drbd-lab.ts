/**
 * DRBD 8.4 in two guests with Debian's kernel. Each exports its device by qemu-nbd while it is primary. Killing the
 * emulator is a power cut. The link between them goes through a relay that can be cut; the way to the clients, and to
 * the one who decides about fencing, does not.
 *
 * Needs the Debian packages that guest.sh names, and drbd-utils, qemu-utils, python3.
 */
import { copyFile, mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, connect as connectTcp } from 'node:net';
import { text } from 'node:stream/consumers';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { systemEnvironment } from '../../../lib/base/system-environment.ts';
import { connectNbd } from '../../../lib/nbd/nbd-device.ts';
import type { BlockDevice } from '../../../lib/storage/block-device.ts';
import { freePort } from '../../free-port.ts';
import { firstDifference, MIB, NODES, type NodeName } from '../cluster.ts';
import { within } from '../faults.ts';
import { Child, TemporaryFolder } from '../processes.ts';
import { type Lab, otherNode } from './lab.ts';
import { Relay } from './relay.ts';

/**
 * `automatic`: one primary, and a script that promotes. `fenced`: the same with fencing. `both`: two primaries. `apart`:
 * the same, with clients that keep apart as those of a cluster file system do.
 */
export type DrbdSetup = 'automatic' | 'fenced' | 'both' | 'apart';

function hasTwoPrimaries(setup: DrbdSetup): boolean {
  return setup === 'both' || setup === 'apart';
}

const SIZE_BYTES = 32 * MIB;
/** With room for DRBD's metadata. */
const DISK_MIB = 36;
const BOOT_LIMIT_MS = 90_000;
const COMMAND_LIMIT_MS = 90_000;
/** For the two guests together; they end by themselves after it, whatever happens here. */
const GUEST_LIMIT_S = 1200;
/** Seconds without a primary after which each becomes one. */
const PROMOTES_AFTER = { a: 2, b: 5 };
/** Seconds that a server waits for the other one when it has started. */
const START_WAIT_S = 15;

const guest = fileURLToPath(new URL('../guest.sh', import.meta.url));
const ours = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** All that differs from DRBD's defaults. */
export function drbdConfiguration(setup: DrbdSetup): string {
  const two = hasTwoPrimaries(setup) ? ' allow-two-primaries yes;' : '';
  const fencing = setup === 'fenced' ? ' fencing resource-and-stonith;' : '';
  const fence = '/usr/bin/python3 /share/fence.py';
  const handlers =
    setup === 'fenced'
      ? `  handlers { fence-peer "${fence} fence"; unfence-peer "${fence} unfence"; after-resync-target "${fence} unfence"; }\n`
      : '';
  return `global { usage-count no; }
resource r0 {
  net { protocol C; ping-int 3; ping-timeout 20; timeout 25; connect-int 3;${two} }
  disk { resync-rate 100M;${fencing} }
${handlers}  volume 0 { device minor 0; disk /dev/vda; meta-disk internal; }
  on a { address 10.9.0.1:7789; }
  on b { address 10.9.0.2:7789; }
}
`;
}

class Guest {
  readonly node: NodeName;
  readonly share: string;
  readonly disk: string;
  readonly #setup: { readonly relay: Relay; readonly commandPort: number; readonly nbdPort: number };
  #child: Child | undefined;
  #pid = 0;

  constructor(node: NodeName, folder: TemporaryFolder, setup: Guest['setup']) {
    this.node = node;
    this.share = folder.file(node);
    this.disk = folder.file(`${node}.img`);
    this.#setup = setup;
  }

  get setup(): { readonly relay: Relay; readonly commandPort: number; readonly nbdPort: number } {
    return this.#setup;
  }

  get up(): boolean {
    return this.#child !== undefined && !this.#child.ended;
  }

  async boot(): Promise<void> {
    const { relay, commandPort, nbdPort } = this.#setup;
    const number = this.node === 'a' ? 1 : 2;
    const link = `local.type=inet,local.host=127.0.0.1,local.port=${relay.guestPorts[this.node]},remote.type=inet,remote.host=127.0.0.1,remote.port=${relay.ports[this.node]}`;
    const ways = `hostfwd=tcp:127.0.0.1:${commandPort}-:10800,hostfwd=tcp:127.0.0.1:${nbdPort}-:10809`;
    const more = [
      `-drive if=none,id=disk,file=${this.disk},format=raw,cache=writeback -device virtio-blk-pci,drive=disk`,
      `-netdev dgram,id=link,${link} -device virtio-net-pci,netdev=link,mac=52:54:00:aa:00:0${number},romfile=`,
      `-netdev user,id=way,net=10.9.1.0/24,${ways} -device virtio-net-pci,netdev=way,mac=52:54:00:bb:00:0${number},romfile=`,
    ].join(' ');
    // When this process ends, so does the guest with all of its own: they have a process namespace of their own.
    const ends = ['--pdeathsig', 'KILL', 'unshare', '--pid', '--fork', '--kill-child=KILL'];
    const quiet = ['sh', '-c', 'exec "$@" 2> "$SHARE/errors"', 'sh'];
    const words = [
      ...ends,
      ...quiet,
      guest,
      '-m',
      '512M',
      '-t',
      `${GUEST_LIMIT_S}`,
      '-x',
      more,
      ours('node.sh'),
      this.node,
    ];
    const child = new Child('setpriv', words, { env: { ...process.env, SHARE: this.share } });
    this.#child = child;
    const ready = child.ready(() => child.output.includes('agent ready'));
    await within(BOOT_LIMIT_MS, `guest ${this.node} boots`, ready);
    this.#pid = await emulatorOf(this.disk);
  }

  async powerCut(): Promise<void> {
    if (!this.up) return;
    process.kill(this.#pid || (await emulatorOf(this.disk)), 'SIGKILL');
    await this.#child!.exit();
  }

  signal(signal: 'SIGSTOP' | 'SIGCONT'): void {
    process.kill(this.#pid, signal);
  }

  /** Runs a script in the guest; what it prints. */
  async tell(script: string): Promise<string> {
    const socket = connectTcp({ host: '127.0.0.1', port: this.#setup.commandPort, allowHalfOpen: true });
    socket.end(script);
    const said = await within(COMMAND_LIMIT_MS, `guest ${this.node} does: ${script}`, text(socket));
    const { output = '', status } = /^(?<output>.*)\nstatus (?<status>\d+)\n$/s.exec(said)?.groups ?? {};
    if (status !== '0') throw new Error(`guest ${this.node}: ${script}: status ${status}: ${output}`);
    return output.trim();
  }
}

/** The process that has the disk's path in its command line. */
async function emulatorOf(disk: string): Promise<number> {
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const line = await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '');
    if (line.startsWith('qemu-system-x86_64\0') && line.includes(`file=${disk},`)) return Number(name);
  }
  throw new Error(`no emulator has ${disk}`);
}

/**
 * Who decides about fencing: switches the one off against whom it is asked first, and lets nobody else go on until that
 * one's copy has been brought up to date. What DRBD's crm-fence-peer.sh and a power switch do together.
 */
class Fence {
  readonly #server: Server;
  readonly #powerCut: (node: NodeName) => Promise<void>;
  #goesOn: NodeName | undefined;

  private constructor(powerCut: (node: NodeName) => Promise<void>) {
    this.#powerCut = powerCut;
    this.#server = createServer((request, response) => {
      const [, what, who] = (request.url ?? '').split('/');
      this.#decide(what, who === 'a' ? 'a' : 'b').then(
        (yes) => response.end(yes ? 'yes' : 'no'),
        () => response.destroy(),
      );
    });
  }

  static async start(powerCut: (node: NodeName) => Promise<void>): Promise<Fence> {
    const fence = new Fence(powerCut);
    await new Promise<void>((resolve) => fence.#server.listen(0, '127.0.0.1', resolve));
    return fence;
  }

  /** As a guest sees it. */
  get address(): string {
    return `10.9.1.2:${(this.#server.address() as AddressInfo).port}`;
  }

  async #decide(what: string | undefined, who: NodeName): Promise<boolean> {
    if (what === 'unfence') {
      this.#goesOn = undefined;
      return true;
    }
    this.#goesOn ??= who;
    if (this.#goesOn !== who) return false;
    await this.#powerCut(otherNode(who));
    return true;
  }

  /** The other one goes on, and this one's copy is not up to date since. */
  keepsOut(node: NodeName): boolean {
    return this.#goesOn === otherNode(node);
  }

  reset(): void {
    this.#goesOn = undefined;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

export class DrbdLab implements Lab {
  readonly sizeBytes = SIZE_BYTES;
  readonly apart: boolean;
  readonly #setup: DrbdSetup;
  readonly #folder: TemporaryFolder;
  readonly #relay: Relay;
  readonly #fence: Fence;
  readonly #guests: Readonly<Record<NodeName, Guest>>;

  private constructor(
    setup: DrbdSetup,
    folder: TemporaryFolder,
    relay: Relay,
    fence: Fence,
    guests: DrbdLab['guests'],
  ) {
    this.#setup = setup;
    this.apart = setup === 'apart';
    this.#folder = folder;
    this.#relay = relay;
    this.#fence = fence;
    this.#guests = guests;
  }

  get guests(): Readonly<Record<NodeName, Guest>> {
    return this.#guests;
  }

  /** Two guests run; `fresh` gives them their volume. */
  static async boot(setup: DrbdSetup): Promise<DrbdLab> {
    const folder = await TemporaryFolder.make();
    const relay = await Relay.make();
    const guest = async (node: NodeName): Promise<Guest> =>
      new Guest(node, folder, { relay, commandPort: await freePort(), nbdPort: await freePort() });
    const guests = { a: await guest('a'), b: await guest('b') };
    const fence = await Fence.start((node) => guests[node].powerCut());
    const lab = new DrbdLab(setup, folder, relay, fence, guests);
    for (const node of NODES) await lab.#prepare(node);
    await Promise.all(NODES.map((node) => guests[node].boot()));
    return lab;
  }

  async #prepare(node: NodeName): Promise<void> {
    const { share, disk } = this.#guests[node];
    await mkdir(share);
    for (const name of ['agent.py', 'fence.py', 'functions.sh']) await copyFile(ours(name), `${share}/${name}`);
    await writeFile(`${share}/drbd.conf`, drbdConfiguration(this.#setup));
    await writeFile(`${share}/fence`, `${this.#fence.address} ${node}`);
    await writeFile(disk, '');
    await truncate(disk, DISK_MIB * MIB);
  }

  /** Versions of what runs, in the words of the guest. */
  version(): Promise<string> {
    return this.#guests.a.tell(
      'uname -r; head -1 /proc/drbd; drbdadm --version | grep ^DRBDADM_VERSION=; qemu-nbd --version | head -1',
    );
  }

  /** A new volume, all zero, equal on both sides, with its primaries. */
  async fresh(): Promise<void> {
    this.#fence.reset();
    this.#relay.heal();
    for (const node of NODES) if (!this.#guests[node].up) await this.#guests[node].boot();
    await Promise.all(NODES.map((node) => this.#guests[node].tell(`fresh ${DISK_MIB}`)));
    const { a } = this.#guests;
    await a.tell('timeout 60 drbdadm wait-connect r0 && drbdadm new-current-uuid --clear-bitmap r0/0 && promote');
    if (hasTwoPrimaries(this.#setup)) await this.#guests.b.tell('promote');
    for (const node of NODES) await this.#guests[node].tell(this.#promoter(node));
    const lack = await this.inOrder(20_000);
    if (lack !== undefined) throw new Error(`a new volume is not in order: ${lack}`);
  }

  #promoter(node: NodeName): string {
    return `promoter ${PROMOTES_AFTER[node]} ${hasTwoPrimaries(this.#setup) ? 'both' : ''}`;
  }

  connect(node: NodeName): Promise<BlockDevice> {
    const { nbdPort } = this.#guests[node].setup;
    return connectNbd({ kind: 'tcp', host: '127.0.0.1', port: nbdPort }, { environment: systemEnvironment });
  }

  kill(node: NodeName): Promise<void> {
    return this.#guests[node].powerCut();
  }

  async start(node: NodeName): Promise<void> {
    const guest = this.#guests[node];
    await guest.boot().catch((error: unknown) => {
      if (!this.#fence.keepsOut(node)) throw error;
      // The other one was up first and has had this one switched off.
      return guest.boot();
    });
    // In the background: clients need not wait for it, nor does the fault's end.
    const begin = `drbdadm up r0; timeout ${START_WAIT_S} drbdadm wait-connect r0; ${this.#promoter(node)}`;
    await guest.tell(`( ${begin} ) > /dev/null 2>&1 < /dev/null &`);
  }

  pause(node: NodeName): void {
    if (this.#guests[node].up) this.#guests[node].signal('SIGSTOP');
  }

  resume(node: NodeName): void {
    if (this.#guests[node].up) this.#guests[node].signal('SIGCONT');
  }

  async cut(from: NodeName): Promise<void> {
    this.#relay.cut(from);
  }

  async heal(): Promise<void> {
    this.#relay.heal();
    for (const node of NODES) if (!this.#guests[node].up) await this.start(node);
  }

  async #states(node: NodeName): Promise<string> {
    if (!this.#guests[node].up) return 'off';
    const ask = 'echo $(drbdadm cstate r0) $(drbdadm role r0) $(drbdadm dstate r0)';
    return this.#guests[node].tell(ask).catch(() => 'no answer');
  }

  async inOrder(limitMs: number): Promise<string | undefined> {
    const untilMs = Date.now() + limitMs;
    for (;;) {
      const states = await Promise.all(NODES.map((node) => this.#states(node)));
      const primaries = states.filter((state) => / Primary\//.test(state)).length;
      const equal = states.every((state) => /^Connected .* UpToDate\/UpToDate$/.test(state));
      if (equal && primaries === (hasTwoPrimaries(this.#setup) ? 2 : 1)) return undefined;
      const parted = states.some((state) => state.startsWith('StandAlone'));
      if (parted || Date.now() > untilMs) return NODES.map((node, index) => `${node}: ${states[index]}`).join('; ');
      await wait(300);
    }
  }

  async byHand(keep: NodeName): Promise<string> {
    const discarded = otherNode(keep);
    for (const node of NODES) console.log(node, await this.#guests[node].tell("dmesg | grep 'drbd r0' | tail -30"));
    const give = this.#guests[discarded];
    await give.tell('give_up');
    await this.#guests[keep].tell('drbdadm disconnect r0; drbdadm connect r0');
    await give.tell(`timeout ${START_WAIT_S} drbdadm wait-connect r0; ${this.#promoter(discarded)}`);
    return `\`secondary\` and \`connect --discard-my-data\` on ${discarded}, \`connect\` on ${keep}`;
  }

  async serving(): Promise<readonly NodeName[]> {
    const states = await Promise.all(NODES.map((node) => this.#states(node)));
    return NODES.filter((_node, index) => / Primary\//.test(states[index]!));
  }

  async rest(): Promise<void> {
    const down = 'quiet; drbdadm down r0; blockdev --flushbufs /dev/vda';
    await Promise.all(NODES.map((node) => (this.#guests[node].up ? this.#guests[node].tell(down) : undefined)));
  }

  firstDifference(): Promise<number | undefined> {
    return firstDifference(this.#guests.a.disk, this.#guests.b.disk, SIZE_BYTES);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const node of NODES) await this.#guests[node].powerCut().catch(() => {});
    this.#fence.close();
    this.#relay.close();
    await rm(this.#folder.path, { recursive: true, force: true });
  }
}
