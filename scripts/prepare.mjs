// Runs after `npm ci` in a checkout (and before packing). Builds the addon and the TypeScript once.
// With `npm ci --omit=dev` the compilers are not there and there is nothing to do.

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);

function installed(name) {
  try {
    require.resolve(`${name}/package.json`);
    return true;
  } catch {
    return false;
  }
}

if (!existsSync(`${root}/lib`) || !installed('typescript') || !installed('node-gyp')) {
  console.log('holdfast: development packages are not installed, nothing is built');
  process.exit(0);
}
for (const script of ['build-native.mjs', 'build-ts.mjs']) {
  const { status } = spawnSync(process.execPath, [`${root}/scripts/${script}`], { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}
