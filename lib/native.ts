/**
 * The one door to the native addon: finds it, loads it once a thread, types it. Nothing else in lib/ loads native code.
 *
 * Order: a local build (`build/Release`, from a checkout or from `holdfast build-native`) goes before the prebuilt
 * binary that the package brings (`prebuilds/`, in prebuildify's layout). It is loaded at first use, not at import: the
 * command line must run without it, to be able to build it.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { HoldfastError } from './base/errors.ts';

/** native/checksum. Checksums are finished ones, as RFC 3720 prints them. */
export interface NativeChecksum {
  crc32c(bytes: Uint8Array, seed: number): number;
  /** By a named kernel, whichever is selected: for tests and benchmarks. */
  crc32cBy(kernel: string, bytes: Uint8Array, seed: number): number;
  /** Fills `checksums`, one entry a block; the last block may be short. */
  crc32cBlocks(bytes: Uint8Array, blockBytes: number, checksums: Uint32Array): void;
  crc32cCombine(crcA: number, crcB: number, lengthB: number): number;
  /** All kernels in the binary, slowest first. */
  kernels(): { name: string; supported: boolean }[];
  selectedKernel(): string;
  /** For the whole process. False if there is no such kernel, or not on this processor. */
  selectKernel(name: string): boolean;
}

/** native/ring. */
export type NativeRing = Record<string, never>;

export interface NativeAddon {
  readonly checksum: NativeChecksum;
  readonly ring: NativeRing;
}

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);

let loaded: NativeAddon | undefined;

/**
 * The addon.
 *
 * @throws HoldfastError ERR_HOLDFAST_NATIVE_MISSING if there is neither a local build nor a prebuilt binary for this
 *   platform, or if the one found does not load (`cause` says why).
 */
export function native(): NativeAddon {
  loaded ??= load();
  return loaded;
}

function load(): NativeAddon {
  try {
    return require(findAddon()) as NativeAddon;
  } catch (cause) {
    throw new HoldfastError(
      'ERR_HOLDFAST_NATIVE_MISSING',
      `no native addon for ${process.platform}-${process.arch} could be loaded; ` +
        'run `holdfast build-native` (it needs python3, make and g++)',
      { cause },
    );
  }
}

/** HOLDFAST_ADDON names one build and no other: how the sanitizers' build is exercised. */
function findAddon(): string {
  const named = process.env.HOLDFAST_ADDON;
  if (named !== undefined) return named;
  const local = join(root, 'build', 'Release', 'holdfast.node');
  if (existsSync(local)) return local;
  const { resolve } = require('node-gyp-build') as { resolve(directory: string): string };
  return resolve(root);
}
