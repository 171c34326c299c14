import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-native-'));
  cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true });
  cpSync(join(root, 'package.json'), join(folder, 'package.json'));
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function loadThere(): string {
  const script = `import { native } from ${JSON.stringify(join(folder, 'dist', 'native.js'))};
    try { console.log(native().checksum.selectedKernel().length > 0); }
    catch (error) { console.log(error.code, error.message, String(error.cause)); }`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' }).stdout.trim();
}

test('without an addon the error names the command that builds it', () => {
  expect(loadThere()).toMatch(/^ERR_HOLDFAST_NATIVE_MISSING .*holdfast build-native/);
});

test('a prebuilt addon is loaded, and a local build goes before it', () => {
  const prebuilds = join(folder, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  cpSync(join(root, 'build', 'Release', 'holdfast.node'), join(prebuilds, 'holdfast.node'));
  expect(loadThere()).toBe('true');

  const local = join(folder, 'build', 'Release');
  mkdirSync(local, { recursive: true });
  cpSync(join(root, 'package.json'), join(local, 'holdfast.node'));
  expect(loadThere()).toMatch(/^ERR_HOLDFAST_NATIVE_MISSING .*build\/Release\/holdfast\.node/);
});
