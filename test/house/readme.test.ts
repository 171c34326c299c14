import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const readme = readFileSync(join(root, 'README.md'), 'utf8');

test('the library example of the README runs', () => {
  const example = /```js\n([\s\S]*?)```/.exec(readme)![1]!;
  // Inside the checkout, where the package's own name leads to dist/. Node 20 has no `await using`.
  const folder = join(root, 'build', 'readme-example');
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'example.mjs'), `${example.replace('await using', 'const')}\nawait device.close();\n`);
  const { stdout, stderr, status } = spawnSync(process.execPath, ['example.mjs'], { cwd: folder, encoding: 'utf8' });
  rmSync(folder, { recursive: true });
  expect(stderr).toBe('');
  expect(stdout).toMatch(/^hold fast (io_uring|threads)\n$/);
  expect(status).toBe(0);
});

test('what the README points at is there', () => {
  const links = [...readme.matchAll(/\]\(([^)#]+)\)/g)].map((match) => match[1]!);
  expect(links.length).toBeGreaterThan(3);
  expect(links.filter((link) => !existsSync(join(root, link)))).toEqual([]);
});

test('the scripts that the README names are there', () => {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: object };
  const named = [...readme.matchAll(/npm run ([a-z0-9:]+)/g)].map((match) => match[1]!);
  expect(named.filter((name) => !(name in scripts))).toEqual([]);
  const benches = [...readme.matchAll(/node (bench\/\S+?)`/g)].map((match) => match[1]!);
  expect(benches.filter((path) => !existsSync(join(root, path)))).toEqual([]);
});
