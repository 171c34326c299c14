/** The engines that can be tested here; says why if io_uring is not one of them. */
import { type EngineName, openRing } from '../../lib/storage/ring.ts';

function ioUringIsDenied(): string | undefined {
  const ring = openRing();
  const { engine, reason } = ring.report();
  ring.close();
  return engine === 'io_uring' ? undefined : reason;
}

const denied = ioUringIsDenied();
if (denied !== undefined) console.log(`io_uring is not tested here: ${denied}`);

export const engines: EngineName[] = denied === undefined ? ['io_uring', 'threads'] : ['threads'];
