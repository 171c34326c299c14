// Runs the native code under the address and undefined-behaviour sanitizers:
//
//   1. cmake-js builds the addon and the native unit tests with them; ctest runs the unit tests (with leak detection).
//   2. The tests in test/storage, and those of the data plane, run on that addon, inside of Node, with the sanitizers'
//      libraries loaded first.
//
// Needs cmake, and a GCC with its sanitizers. Run it after `npm run build` (npm run test:native does).
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildWithCMake } from './cmake-js.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const build = join(root, 'build', 'sanitized');
const config = 'RelWithDebInfo';

function run(command, arguments_, environment = {}) {
  console.log(`> ${command} ${arguments_.join(' ')}`);
  const { status, signal, error } = spawnSync(command, arguments_, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...environment },
  });
  if (status === 0) return;
  console.error(error?.message ?? `${command} failed (${signal ?? status})`);
  process.exit(1);
}

/** The path of a runtime library of the compiler that CMake uses. */
function libraryPath(name) {
  const { stdout } = spawnSync(process.env.CXX ?? 'c++', [`-print-file-name=${name}`], { encoding: 'utf8' });
  const path = stdout?.trim() ?? '';
  if (path.startsWith('/')) return path;
  console.error(`${name} was not found; install GCC with its sanitizers`);
  return process.exit(1);
}

buildWithCMake(build, config, { HOLDFAST_SANITIZE: 'address,undefined' });
const undefinedBehaviour = { UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1' };
run('ctest', ['--test-dir', build, '--output-on-failure', '--no-tests=error'], undefinedBehaviour);

// Node itself leaks at exit by design, so leaks are looked for in the unit tests only.
const folders = ['test/storage', 'test/checkpoint/plane'];
const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
run(process.execPath, [vitest, 'run', '--project', 'unit', ...folders, ...process.argv.slice(2)], {
  ...undefinedBehaviour,
  ASAN_OPTIONS: 'detect_leaks=0:halt_on_error=1:abort_on_error=1',
  LD_PRELOAD: `${libraryPath('libasan.so')} ${libraryPath('libubsan.so')}`,
  HOLDFAST_ADDON: join(build, config, 'holdfast.node'),
});
