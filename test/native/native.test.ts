import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type NativeRingHandle, native } from '../../lib/native.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-native-'));
  cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true });
  cpSync(join(root, 'package.json'), join(folder, 'package.json'));
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function loadThere(environment: Readonly<Record<string, string>> = {}): string {
  const script = `import { native } from ${JSON.stringify(join(folder, 'dist', 'native.js'))};
    try { console.log(native().checksum.selectedKernel().length > 0); }
    catch (error) { console.log(error.code, error.message, String(error.cause)); }`;
  const env = { ...process.env, ...environment };
  return spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8', env }).stdout.trim();
}

test('without an addon the error names the command that builds it', () => {
  expect(loadThere()).toMatch(/^ERR_HOLDFAST_NATIVE_MISSING .*holdfast build-native/);
});

test('under musl an addon that was built for glibc is not loaded, and the error names the command that builds one', () => {
  const prebuilds = join(folder, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  cpSync(join(root, 'build', 'Release', 'holdfast.node'), join(prebuilds, 'holdfast.glibc.node'));
  expect(loadThere()).toBe('true');
  expect(loadThere({ LIBC: 'musl' })).toMatch(/^ERR_HOLDFAST_NATIVE_MISSING .*holdfast build-native.*libc=musl/s);
  rmSync(prebuilds, { recursive: true });
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

test('a handle is taken only by the folder that it comes from', async () => {
  const { region, ring } = native();
  const memory = new Uint8Array(new SharedArrayBuffer(64 + 32 + 68 * 16 + 8));
  const { handle: ringHandle } = ring.create(memory, 1, 0, 1, 0, () => {});
  const { handle: regionHandle } = await region.open(join(folder, 'region'), 4096, 4096, true, 'auto');
  const refused = expect.objectContaining({ code: 'ERR_INVALID_ARG_TYPE' });
  for (const wrong of [regionHandle, {}, undefined, 1] as NativeRingHandle[]) {
    expect(() => ring.submit(wrong)).toThrow(refused);
    expect(() => ring.submitAndPoll(wrong)).toThrow(refused);
    expect(() => ring.cancel(wrong, 0)).toThrow(refused);
    expect(() => ring.addFile(wrong, 0)).toThrow(refused);
    expect(() => ring.close(wrong)).toThrow(refused);
  }
  for (const wrong of [ringHandle, {}, undefined, 1] as object[]) {
    expect(() => region.persistDirect(wrong, 0, 1)).toThrow(refused);
    expect(() => region.close(wrong)).toThrow(refused);
  }
  region.close(regionHandle);
  ring.close(ringHandle!);
  expect(() => ring.submit(ringHandle!)).toThrow(/closed/);
});
