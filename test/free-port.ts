/** Ports for servers that tests start, and start again at the same place. */
import { randomInt } from 'node:crypto';
import { isHoldfastError } from '../lib/base/errors.ts';
import { systemEnvironment } from '../lib/base/system-environment.ts';

/** Below those that Linux gives to who connects (from 32768 on): none of them may take it while the server is away. */
const [FIRST, END] = [20_000, 32_768];

/** A port of loopback that nobody listens at. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(FIRST, END);
    try {
      const address = { kind: 'tcp', host: '127.0.0.1', port } as const;
      await (await systemEnvironment.network.listen(address, {}, (connection) => connection.destroy())).close();
      return port;
    } catch (error) {
      if (!isHoldfastError(error, 'ERR_HOLDFAST_ADDRESS_IN_USE')) throw error;
    }
  }
}
