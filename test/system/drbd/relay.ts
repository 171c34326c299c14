/** A cable between two guests: datagrams that carry Ethernet frames, dropped where it is cut. */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import type { NodeName } from '../cluster.ts';
import { otherNode } from './lab.ts';

const RECEIVE_BUFFER_BYTES = 4 * 2 ** 20;

export class Relay {
  /** Where each guest sends to. */
  readonly ports: Readonly<Record<NodeName, number>>;
  /** Where each guest receives. */
  readonly guestPorts: Readonly<Record<NodeName, number>>;
  readonly #sockets: Readonly<Record<NodeName, Socket>>;
  readonly #cut = new Set<NodeName>();

  private constructor(sockets: Record<NodeName, Socket>, guestPorts: Record<NodeName, number>) {
    this.#sockets = sockets;
    this.guestPorts = guestPorts;
    this.ports = { a: portOf(sockets.a), b: portOf(sockets.b) };
    for (const node of ['a', 'b'] as const) {
      sockets[node].on('message', (frame) => {
        if (!this.#cut.has(node)) sockets[node].send(frame, guestPorts[otherNode(node)], '127.0.0.1');
      });
      // Nobody receives there while a guest is down.
      sockets[node].on('error', () => {});
    }
  }

  static async make(): Promise<Relay> {
    const guests = { a: await bound(), b: await bound() };
    const guestPorts = { a: portOf(guests.a), b: portOf(guests.b) };
    const sockets = { a: await bound(), b: await bound() };
    for (const socket of [guests.a, guests.b]) socket.close();
    return new Relay(sockets, guestPorts);
  }

  /** Drops what comes from that guest. */
  cut(from: NodeName): void {
    this.#cut.add(from);
  }

  heal(): void {
    this.#cut.clear();
  }

  close(): void {
    for (const socket of Object.values(this.#sockets)) socket.close();
  }
}

async function bound(): Promise<Socket> {
  const socket = createSocket({ type: 'udp4', recvBufferSize: RECEIVE_BUFFER_BYTES });
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  return socket;
}

function portOf(socket: Socket): number {
  return (socket.address() as AddressInfo).port;
}
