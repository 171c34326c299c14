import { expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { Forwarder } from '../../lib/mirror/forwarder.ts';
import type { PeerSession, RequestOptions } from '../../lib/peer/peer.ts';

/** The other member waits, too: it answers nothing until the waiting is given up. */
const silent = {
  peer: { name: 'b', incarnation: 'one', features: [] },
  request: (_method: unknown, _control: unknown, _data: unknown, { signal }: RequestOptions) =>
    new Promise((_, reject) => {
      const abort = () => reject(new HoldfastError('ERR_HOLDFAST_ABORTED', 'cancelled'));
      if (signal?.aborted) abort();
      else signal?.addEventListener('abort', abort);
    }),
} as unknown as PeerSession;

test('a volume that closed waited for ever for what it had forwarded to a member that served nothing', async () => {
  const forwarder = new Forwarder('ab'.repeat(16), 2);
  const requests = [
    forwarder.write(silent, await forwarder.begin(), 0, new Uint8Array(4096), false),
    forwarder.read(silent, 0, new Uint8Array(4096)),
    // Beyond the window: it has not been sent yet.
    forwarder.flush(silent),
  ];
  const ended = Promise.allSettled(requests);
  forwarder.close();
  for (const result of await ended) {
    expect(result).toMatchObject({ status: 'rejected', reason: { code: 'ERR_HOLDFAST_OUTCOME_UNKNOWN' } });
  }
});

test('a full window of requests that end together is no leak of listeners', async () => {
  const warnings: string[] = [];
  const onWarning = ({ name }: Error) => void warnings.push(name);
  process.on('warning', onWarning);
  const window = 128;
  const forwarder = new Forwarder('ab'.repeat(16), window);
  const requests = Array.from({ length: window + 5 }, () => forwarder.flush(silent));
  await new Promise((resolve) => setTimeout(resolve, 5));
  process.off('warning', onWarning);
  forwarder.close();
  await Promise.allSettled(requests);
  expect(warnings).toEqual([]);
});
