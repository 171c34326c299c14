/** Addresses as people write them: `HOST:PORT`, `[IPV6]:PORT`, `unix:PATH`. The inverse of `formatAddress`. */
import type { Address } from '../base/network.ts';

const SOCKET_PATH_BYTES_MAX = 107;

/** Linux keeps 108 bytes for a socket's path, the closing zero included. Says what is wrong, or undefined. */
export function socketPathProblem(path: string): string | undefined {
  if (path.length === 0) return 'the path of the socket is empty';
  if (path.includes('\0')) return 'the path of the socket holds a zero byte';
  const length = Buffer.byteLength(path);
  if (length <= SOCKET_PATH_BYTES_MAX) return undefined;
  return `the path of the socket has ${length} bytes, Linux takes ${SOCKET_PATH_BYTES_MAX}; choose a shorter one`;
}

/** Parses an address; a string instead of an address says what is wrong with it. */
export function parseAddress(text: string): Address | string {
  if (text.startsWith('unix:')) return { kind: 'unix', path: text.slice('unix:'.length) };
  const match = /^(?:\[([^\]]+)\]|([^:[\]/\s]+)):(\d{1,5})$/.exec(text);
  if (!match) return `"${text}" is not an address; write HOST:PORT, [IPV6]:PORT or unix:PATH`;
  const port = Number(match[3]);
  if (port < 1 || port > 65_535) return `port ${match[3]} does not exist; choose one from 1 to 65535`;
  return { kind: 'tcp', host: (match[1] ?? match[2])!, port };
}

/** True if only processes of this machine can reach the address. */
export function isLocalAddress(address: Address): boolean {
  if (address.kind === 'unix') return true;
  return address.host === 'localhost' || address.host === '::1' || /^127(\.\d{1,3}){3}$/.test(address.host);
}
