import { systemEnvironment } from '../lib/base/system-environment.ts';
import { freeAddresses } from '../lib/cli/free-addresses.ts';

/** A port of loopback that nobody listens at, and that no connection is given. */
export async function freePort(): Promise<number> {
  const [address] = await freeAddresses(systemEnvironment, 1);
  return address!.port;
}
