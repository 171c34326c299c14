// Builds the native addon with node-gyp, in a checkout and in an installed package (`holdfast build-native`).
//
//   node scripts/build-native.mjs [--debug | --release] [--force]
//
// Builds only if a source is newer than the addon. Never goes to the network (node-headers.mjs).
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { requireNodeDirectory } from './node-headers.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));

/** node-gyp of this checkout, else the one that every npm brings. */
function findNodeGyp() {
  const require = createRequire(import.meta.url);
  const prefix = dirname(dirname(process.execPath));
  const npm = process.env.npm_execpath ? [dirname(dirname(process.env.npm_execpath))] : [];
  const places = [...npm, join(prefix, 'lib', 'node_modules', 'npm')];
  for (const paths of [undefined, ...places.map((place) => [place])]) {
    try {
      return require.resolve('node-gyp/bin/node-gyp.js', paths && { paths });
    } catch {
      // The next place.
    }
  }
  console.error('ERR_HOLDFAST_BUILD_TOOL_MISSING: node-gyp was not found; install npm, or add node-gyp to the project');
  return process.exit(1);
}

function newestSourceMs() {
  const sources = readdirSync(join(root, 'native'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.parentPath.startsWith(join(root, 'native', 'test')))
    .map((entry) => join(entry.parentPath, entry.name));
  const recipes = [join(root, 'binding.gyp'), fileURLToPath(import.meta.url)];
  return Math.max(...[...sources, ...recipes].map((path) => statSync(path).mtimeMs));
}

const { values: options } = parseArgs({
  options: { debug: { type: 'boolean' }, release: { type: 'boolean' }, force: { type: 'boolean' } },
});
const kind = options.debug ? 'Debug' : 'Release';
const addon = join(root, 'build', kind, 'holdfast.node');
if (!options.force && existsSync(addon) && statSync(addon).mtimeMs >= newestSourceMs()) process.exit(0);

const nodeDirectory = requireNodeDirectory();
const arguments_ = ['configure', 'build', `--${kind.toLowerCase()}`, `--nodedir=${nodeDirectory}`, '--loglevel=warn'];
const { status, error } = spawnSync(process.execPath, [findNodeGyp(), ...arguments_], {
  cwd: root,
  stdio: 'inherit',
  env: { ...process.env, MAKEFLAGS: process.env.MAKEFLAGS ?? '-j2 --silent' },
});
if (error) console.error(error.message);
if (status !== 0) {
  console.error('ERR_HOLDFAST_BUILD_FAILED: the native addon was not built; it needs python3, make and g++ (C++20)');
  process.exit(status ?? 1);
}
