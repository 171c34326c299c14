// Makes prebuilds/PLATFORM-ARCH/holdfast.LIBC.node, which the package brings, so that an install needs no compiler and
// no install script: for this machine's processor, and for the other one of the two by Debian's cross compiler, which
// may be missing, except in CI. One binary serves every Node from the floor on (Node-API 8). What is built for another
// C library, elsewhere, stays in its place (docs/shipping.md).
//
// Works on a copy of the sources, because prebuildify moves what it has built out of build/.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requireNodeDirectory } from './node-headers.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
const copy = join(root, 'build', 'prebuildify');

/** GNU's names of the processors, which the names of cross compilers begin with. */
const machines = { x64: 'x86_64-linux-gnu', arm64: 'aarch64-linux-gnu' };

const musl = existsSync('/etc/alpine-release');

function runs(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

/** Leaves out what only a cross compiler could build if there is none. */
function architectures() {
  const others = Object.keys(machines).filter((arch) => arch !== process.arch && !musl);
  const missing = others.filter((arch) => !runs(`${machines[arch]}-g++`));
  for (const arch of missing) {
    const debian = `g++-${machines[arch].replaceAll('_', '-')}`;
    console.error(`not built for linux-${arch}: ${machines[arch]}-g++ is missing (Debian's package ${debian})`);
  }
  if (missing.length > 0 && process.env.CI) process.exit(1);
  return [process.arch, ...others.filter((arch) => !missing.includes(arch))];
}

/** What makes node-gyp build for another processor than this one's. */
function crossTools(arch) {
  if (arch === process.arch) return {};
  const prefix = machines[arch];
  return {
    CC: `${prefix}-gcc`,
    CXX: `${prefix}-g++`,
    LINK: `${prefix}-g++`,
    AR: `${prefix}-ar`,
    PREBUILD_STRIP_BIN: `${prefix}-strip`,
  };
}

function build(arch) {
  rmSync(join(root, 'prebuilds', `linux-${arch}`, `holdfast.${musl ? 'musl' : 'glibc'}.node`), { force: true });
  const prebuildify = join(dirname(require.resolve('prebuildify/package.json')), 'bin.js');
  const nodeGyp = join(root, 'node_modules', '.bin', 'node-gyp');
  const options = ['--napi', '--strip', '--tag-libc', '--arch', arch, '--cwd', copy, '--out', root];
  const { status } = spawnSync(process.execPath, [prebuildify, ...options, '--node-gyp', nodeGyp], {
    cwd: root,
    stdio: 'inherit',
    env: {
      ...process.env,
      ...crossTools(arch),
      // Headers of the running Node, never from the network. They are the same for every processor.
      npm_config_nodedir: requireNodeDirectory(),
      MAKEFLAGS: process.env.MAKEFLAGS ?? '-j2 --silent',
    },
  });
  if (status !== 0) process.exit(status ?? 1);
}

rmSync(copy, { recursive: true, force: true });
mkdirSync(copy, { recursive: true });
for (const name of ['native', 'binding.gyp', 'package.json']) {
  cpSync(join(root, name), join(copy, name), { recursive: true });
}
for (const arch of architectures()) build(arch);
