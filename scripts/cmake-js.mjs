// Drives CMakeLists.txt with cmake-js: the development build and the sanitizers' build. Never goes to the network:
// cmake-js takes `npm_config_nodedir` for its store of headers, and there they are.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requireNodeDirectory } from './node-headers.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const cmakeJs = join(dirname(createRequire(import.meta.url).resolve('cmake-js/package.json')), 'bin', 'cmake-js');

/**
 * Configures and builds all targets in the folder `out`; the addon is `out`/`config`/holdfast.node. `definitions` are
 * CMake's. Ends the process if that fails.
 */
export function buildWithCMake(out, config, definitions = {}) {
  const options = ['--directory', root, '--out', out, '--config', config, '--prefer-make'];
  const custom = Object.entries(definitions).map(([name, value]) => `--CD${name}=${value}`);
  for (const command of [
    ['configure', ...custom],
    ['build', '--parallel', String(cpus().length)],
  ]) {
    const { status } = spawnSync(process.execPath, [cmakeJs, ...command, ...options], {
      cwd: root,
      stdio: 'inherit',
      env: { ...process.env, npm_config_nodedir: requireNodeDirectory() },
    });
    if (status === 0) continue;
    console.error('ERR_HOLDFAST_BUILD_FAILED: the development build failed; it needs cmake, make and g++ (C++20)');
    process.exit(status ?? 1);
  }
}
