/**
 * How a client comes from a session between peers to the data plane of the unit at its other end: it asks for a ticket,
 * connects, and shows it. The answer says where; its data are the ticket, 16 bytes, good once and for some seconds.
 */
import { z } from 'zod';
import type { Clock } from '../base/clock.ts';
import { HoldfastError } from '../base/errors.ts';
import type { Method, PeerSession } from '../peer/peer.ts';
import { KEY_BYTES } from './command-format.ts';
import { type PlaneSession, sharedPlaneClient } from './plane-client.ts';

const planePlace = z.strictObject({ host: z.string().min(1).max(64), port: z.int().min(1).max(65_535) });

export const planeTicketMethod: Method<void, z.infer<typeof planePlace>> = {
  id: 41,
  name: 'plane-ticket',
  channel: 'control',
  request: z.undefined(),
  response: planePlace,
  maxRequestDataBytes: 0,
  maxResponseDataBytes: KEY_BYTES,
};

export interface ConnectPlaneOptions {
  readonly clock: Clock;
  readonly signal?: AbortSignal;
  /** Default 5 s. */
  readonly timeoutMs?: number;
}

/**
 * A connection to the plane of the unit that the session leads to. It ends with the session. The keys are the session's:
 * each can be used over both.
 *
 * @throws HoldfastError ERR_HOLDFAST_UNKNOWN_METHOD (the unit has no plane: use the session), ERR_HOLDFAST_PEER_LOST,
 *   ERR_HOLDFAST_CONNECT_FAILED, ERR_HOLDFAST_REFUSED, ERR_HOLDFAST_TIMEOUT, ERR_HOLDFAST_ABORTED.
 */
export async function connectPlane(session: PeerSession, options: ConnectPlaneOptions): Promise<PlaneSession> {
  const { clock, signal, timeoutMs = 5000 } = options;
  const answer = await session.request(planeTicketMethod, undefined, [], signal === undefined ? {} : { signal });
  const { host, port } = answer.control;
  const ticket = answer.data;
  const unit = session.peer.name;
  if (ticket.length !== KEY_BYTES)
    throw new HoldfastError('ERR_HOLDFAST_BAD_FRAME', `${unit} gave a ticket of ${ticket.length} bytes`);
  return new Promise((resolve, reject) => {
    const stop = (code: 'ERR_HOLDFAST_TIMEOUT' | 'ERR_HOLDFAST_ABORTED', message: string): void => {
      reject(new HoldfastError(code, message, code === 'ERR_HOLDFAST_ABORTED' ? { cause: signal?.reason } : {}));
      connection.close();
    };
    const settled = (): void => {
      timer.cancel();
      signal?.removeEventListener('abort', aborted);
    };
    const aborted = (): void => stop('ERR_HOLDFAST_ABORTED', 'the connection to a plane was cancelled');
    const greeted = (): void => {
      settled();
      resolve(connection);
    };
    const ended = (error: HoldfastError): void => {
      settled();
      reject(error);
    };
    const connection = sharedPlaneClient().connect(unit, host, port, ticket, greeted, ended);
    const timer = clock.setTimer(timeoutMs, () =>
      stop('ERR_HOLDFAST_TIMEOUT', `the plane of ${unit} at ${host} port ${port} does not answer; check the network`),
    );
    signal?.addEventListener('abort', aborted);
  });
}
