// Makes prebuilds/PLATFORM-ARCH/holdfast.LIBC.node, which the package brings, so that an install needs no compiler and
// no install script. One binary serves every Node from the floor on (Node-API 8).
//
// Works on a copy of the sources, because prebuildify moves what it has built out of build/.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requireNodeDirectory } from './node-headers.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
const copy = join(root, 'build', 'prebuildify');

rmSync(copy, { recursive: true, force: true });
rmSync(join(root, 'prebuilds'), { recursive: true, force: true });
mkdirSync(copy, { recursive: true });
for (const name of ['native', 'binding.gyp', 'package.json']) {
  cpSync(join(root, name), join(copy, name), { recursive: true });
}

const prebuildify = join(dirname(require.resolve('prebuildify/package.json')), 'bin.js');
const nodeGyp = join(root, 'node_modules', '.bin', 'node-gyp');
const options = ['--napi', '--strip', '--tag-libc', '--cwd', copy, '--out', root, '--node-gyp', nodeGyp];
const { status } = spawnSync(process.execPath, [prebuildify, ...options], {
  cwd: root,
  stdio: 'inherit',
  // Headers of the running Node, never from the network.
  env: {
    ...process.env,
    npm_config_nodedir: requireNodeDirectory(),
    MAKEFLAGS: process.env.MAKEFLAGS ?? '-j2 --silent',
  },
});
process.exit(status ?? 1);
