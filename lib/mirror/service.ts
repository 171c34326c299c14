/**
 * MirrorService: one per peer node. It answers the mirror's methods and hands each request to the volume that it names.
 */
import { HoldfastError } from '../base/errors.ts';
import type { PeerNode, PeerSession, Reply } from '../peer/peer.ts';
import {
  accessMethod,
  adoptMethod,
  attachMethod,
  flushMethod,
  forwardFlushMethod,
  forwardReadMethod,
  forwardWriteMethod,
  forwardZeroMethod,
  joinMethod,
  leaveMethod,
  leftMethod,
  readyMethod,
  writeMethod,
  zeroMethod,
} from './protocol.ts';
import type { ForwardedFrom, MirroredVolume } from './volume.ts';

const DONE: Reply<undefined> = { control: undefined };

export class MirrorService {
  static readonly #services = new WeakMap<PeerNode, MirrorService>();
  readonly #node: PeerNode;
  readonly #volumes = new Map<string, MirroredVolume>();

  static of(node: PeerNode): MirrorService {
    let service = MirrorService.#services.get(node);
    if (service === undefined) {
      service = new MirrorService(node);
      MirrorService.#services.set(node, service);
    }
    return service;
  }

  private constructor(node: PeerNode) {
    this.#node = node;
    this.#handleMeetings();
    this.#handleMirroring();
    this.#handleForwarding();
    node.subscribe({
      onSessionUp: (session) => this.#each(session, (volume) => volume.controller.sessionUp(session)),
      onSessionDown: (session) => this.#each(session, (volume) => volume.controller.sessionDown(session)),
    });
  }

  add(volume: MirroredVolume): void {
    if (this.#volumes.has(volume.volumeId)) {
      throw new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', `volume ${volume.name} is open already in this process`);
    }
    this.#volumes.set(volume.volumeId, volume);
  }

  remove(volume: MirroredVolume): void {
    if (this.#volumes.get(volume.volumeId) === volume) this.#volumes.delete(volume.volumeId);
  }

  #each(session: PeerSession, action: (volume: MirroredVolume) => void): void {
    for (const volume of this.#volumes.values()) if (volume.peerName === session.peer.name) action(volume);
  }

  /** The volume, if the peer at the other end is its other member. */
  #volume(id: string, session: PeerSession): MirroredVolume {
    const volume = this.#volumes.get(id);
    if (volume === undefined || volume.peerName !== session.peer.name) {
      throw new HoldfastError(
        'ERR_HOLDFAST_NO_SUCH_VOLUME',
        `${this.#node.name} has no open volume ${id} that it shares with ${session.peer.name}; check the volume's id and members on both`,
      );
    }
    return volume;
  }

  #handleMeetings(): void {
    const node = this.#node;
    node.handle(readyMethod, async ({ control }, session) => {
      this.#volume(control.volume, session).controller.meetAgain(session);
      return DONE;
    });
    node.handle(attachMethod, async (message, session) =>
      this.#volume(message.control.volume, session).controller.attach(message, session),
    );
    node.handle(adoptMethod, async ({ control }, session) =>
      this.#volume(control.volume, session).controller.adopt(control.view, control.scope, session),
    );
    node.handle(joinMethod, async ({ control }, session) =>
      this.#volume(control.volume, session).controller.join(control.view, session),
    );
    node.handle(leaveMethod, async ({ control }, session) =>
      this.#volume(control.volume, session).controller.leaveAsked(session),
    );
    node.handle(leftMethod, async ({ control }, session) =>
      this.#volume(control.volume, session).controller.left(control.view, control.flushed, session),
    );
  }

  #handleMirroring(): void {
    const node = this.#node;
    const done = () => DONE;
    node.handle(writeMethod, ({ control: { volume, view, offset, fua }, data }, session) =>
      this.#volume(volume, session)
        .applyWrite({ session, view }, offset, data.length, (device) =>
          device.write(offset, data, { fua, stable: true }),
        )
        .then(done),
    );
    node.handle(zeroMethod, async ({ control: { volume, view, offset, length, fua, mayUnmap } }, session) => {
      const origin = { session, view };
      await this.#volume(volume, session).applyWrite(origin, offset, length, (device) =>
        device.writeZeroes(offset, length, { fua, mayUnmap }),
      );
      return DONE;
    });
    node.handle(flushMethod, async ({ control: { volume, view } }, session) => {
      await this.#volume(volume, session).applyFlush({ session, view });
      return DONE;
    });
    node.handle(accessMethod, async ({ control: { volume, view, messages } }, session) => {
      await this.#volume(volume, session).police({ session, view }, messages);
      return DONE;
    });
  }

  #handleForwarding(): void {
    const node = this.#node;
    node.handle(forwardReadMethod, async ({ control: { volume, offset, length } }, session) => {
      const data = await this.#volume(volume, session).peerRead(session, offset, length);
      return { control: undefined, data: [data] };
    });
    node.handle(forwardWriteMethod, async ({ control, data }, session) => {
      const { volume, offset, fua } = control;
      await this.#volume(volume, session).peerWrite(forwardedFrom(control, session), offset, data, fua);
      return DONE;
    });
    node.handle(forwardZeroMethod, async ({ control }, session) => {
      const { volume, offset, length, fua, mayUnmap } = control;
      const from = forwardedFrom(control, session);
      await this.#volume(volume, session).peerWriteZeroes(from, offset, length, fua, mayUnmap);
      return DONE;
    });
    node.handle(forwardFlushMethod, async ({ control: { volume } }, session) => {
      await this.#volume(volume, session).peerFlush(session);
      return DONE;
    });
  }
}

function forwardedFrom(control: { request: number; doneBelow: number }, session: PeerSession): ForwardedFrom {
  return { session, request: control.request, doneBelow: control.doneBelow };
}
