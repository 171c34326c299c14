/** Addresses of loopback for servers that are started, and started again at the same place. */
import type { Environment } from '../base/environment.ts';
import { isHoldfastError } from '../base/errors.ts';
import type { Address } from '../base/network.ts';

type TcpAddress = Extract<Address, { kind: 'tcp' }>;

/**
 * Below the ports that Linux gives to who connects (from 32768 on): none of them takes a server's place while that is
 * away, nor meets itself there.
 */
const [FIRST, END] = [20_000, 32_768];

/** Different ones, that nothing listens on at the moment. */
export async function freeAddresses(environment: Environment, count: number): Promise<TcpAddress[]> {
  const addresses = new Map<number, TcpAddress>();
  while (addresses.size < count) {
    const address = { kind: 'tcp', host: '127.0.0.1', port: FIRST + environment.random.below(END - FIRST) } as const;
    if (await isFree(environment, address)) addresses.set(address.port, address);
  }
  return [...addresses.values()];
}

async function isFree({ network }: Environment, address: Address): Promise<boolean> {
  try {
    await (await network.listen(address, {}, (connection) => connection.destroy())).close();
    return true;
  } catch (error) {
    if (isHoldfastError(error, 'ERR_HOLDFAST_ADDRESS_IN_USE')) return false;
    throw error;
  }
}
