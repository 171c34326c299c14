// Builds the addon and the native unit tests for arm64 with a cross compiler, warnings being errors, and runs the tests of
// the checksum kernels in an emulator. Without sanitizers: those of arm64 do not run there.
//
// Needs Debian's g++-aarch64-linux-gnu and qemu-user-static.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { buildWithCMake } from './cmake-js.mjs';

const build = fileURLToPath(new URL('../build/arm64', import.meta.url));
const triplet = 'aarch64-linux-gnu';

buildWithCMake(build, 'RelWithDebInfo', {
  CMAKE_SYSTEM_NAME: 'Linux',
  CMAKE_SYSTEM_PROCESSOR: 'aarch64',
  CMAKE_CXX_COMPILER: `${triplet}-g++`,
  CMAKE_CROSSCOMPILING_EMULATOR: `qemu-aarch64-static;-L;/usr/${triplet}`,
});
// Named, so that an emulator without its instructions fails instead of leaving it out.
const { status } = spawnSync(
  'ctest',
  ['--test-dir', build, '--output-on-failure', '--no-tests=error', '--tests-regex', '^checksum$'],
  { stdio: 'inherit', env: { ...process.env, HOLDFAST_CRC32C: 'armv8' } },
);
process.exit(status ?? 1);
