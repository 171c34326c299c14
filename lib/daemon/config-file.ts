/** Reads a configuration and the key of the cluster from their files. The one place of the daemon that reads files. */
import { open } from 'node:fs/promises';
import { HoldfastError } from '../base/errors.ts';
import { type NodeConfig, nodeConfig, parseClusterConfig } from './config.ts';

const CONFIG_BYTES_MAX = 1024 * 1024;
const KEY_BYTES = 32;
const KEY_FILE_BYTES_MAX = 4096;

/** Reads, parses and checks a configuration for one of its nodes. Throws ERR_HOLDFAST_CONFIG. */
export async function loadNodeConfig(path: string, nodeName?: string): Promise<NodeConfig> {
  const { bytes } = await readSmallFile(path, CONFIG_BYTES_MAX, 'the configuration');
  return nodeConfig(path, parseClusterConfig(path, bytes.toString('utf8')), nodeName);
}

/**
 * Reads the cluster's key: 64 hexadecimal digits in a file that only its owner can read.
 * Throws ERR_HOLDFAST_CONFIG if it is not there, is not a key, or can be read by others.
 */
export async function loadKey(path: string): Promise<Uint8Array> {
  const { bytes, mode } = await readSmallFile(path, KEY_FILE_BYTES_MAX, 'the key');
  if ((mode & 0o077) !== 0) {
    const shown = (mode & 0o777).toString(8).padStart(4, '0');
    throw configError(`${path}: others may read the key (mode ${shown}); run: chmod 600 ${path}`);
  }
  const text = bytes.toString('latin1').trim();
  if (!/^[0-9a-f]{64}$/i.test(text))
    throw configError(
      `${path}: is not a key of ${KEY_BYTES} bytes in hexadecimal; make one by \`holdfast make-key FILE\``,
    );
  return Uint8Array.from(Buffer.from(text, 'hex'));
}

/** Writes a new key to a file that does not exist yet. Throws ERR_HOLDFAST_CONFIG if it does. */
export async function makeKey(path: string, key: Uint8Array): Promise<void> {
  const file = await open(path, 'wx', 0o600).catch((error: NodeJS.ErrnoException) => {
    const mend = error.code === 'EEXIST' ? 'exists already; remove it first if no server needs it' : error.message;
    throw new HoldfastError('ERR_HOLDFAST_CONFIG', `${path}: ${mend}`, { cause: error });
  });
  try {
    await file.writeFile(`${Buffer.from(key).toString('hex')}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function readSmallFile(path: string, limitBytes: number, what: string): Promise<{ bytes: Buffer; mode: number }> {
  const file = await open(path, 'r').catch((error: NodeJS.ErrnoException) => {
    throw configError(
      `${path}: ${what} cannot be read (${error.code ?? error.message}); ${openMend(error.code)}`,
      error,
    );
  });
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw configError(`${path}: ${what} is not a regular file; give the path of one`);
    if (stat.size > limitBytes)
      throw configError(`${path}: has ${stat.size} bytes, ${what} has at most ${limitBytes}; is it the right file?`);
    return { bytes: await file.readFile(), mode: stat.mode };
  } finally {
    await file.close();
  }
}

function openMend(errno: string | undefined): string {
  if (errno === 'ENOENT') return 'check the path';
  return errno === 'EACCES' ? 'run as the user that owns it' : 'see the reason in brackets';
}

function configError(message: string, cause?: unknown): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_CONFIG', message, cause === undefined ? {} : { cause });
}
