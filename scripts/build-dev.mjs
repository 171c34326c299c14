// The development build of the native code: warnings are errors, nothing is optimised, the unit tests are built too.
// Leaves build/compile_commands.json, where clangd looks for it. The addon is build/development/Debug/holdfast.node
// (HOLDFAST_ADDON names it to a run). CXX chooses the compiler of the first run.
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildWithCMake } from './cmake-js.mjs';

const build = fileURLToPath(new URL('../build', import.meta.url));
buildWithCMake(join(build, 'development'), 'Debug');
copyFileSync(join(build, 'development', 'compile_commands.json'), join(build, 'compile_commands.json'));
