// Runs the tests of the addon on other Nodes than the one it was built by: the binary is the same for all (Node-API 8).
//
//   npm run test:nodes -- [VERSION …]    the oldest supported one, 22, 24 and 26 if none is named
//
// The Nodes come from npm, in a folder of their own, as bare binaries: no install script has to run for them.
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const nodes = join(root, 'build', 'nodes');
const versions = process.argv.length > 2 ? process.argv.slice(2) : ['20.19.0', '22', '24', '26'];

function run(command, arguments_, cwd) {
  console.log(`> ${command} ${arguments_.join(' ')}`);
  const { status, signal, error } = spawnSync(command, arguments_, { cwd, stdio: 'inherit' });
  if (status === 0) return;
  console.error(error?.message ?? `${command} failed (${signal ?? status})`);
  process.exit(1);
}

mkdirSync(nodes, { recursive: true });
writeFileSync(join(nodes, 'package.json'), JSON.stringify({ private: true }));
const packages = versions.map((version) => `node${version}@npm:node-linux-${process.arch}@${version}`);
run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', ...packages], nodes);
const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
for (const version of versions) {
  const node = join(nodes, 'node_modules', `node${version}`, 'bin', 'node');
  run(node, ['--version'], root);
  run(node, [vitest, 'run', '--project', 'unit', 'test/storage', 'test/native'], root);
}
