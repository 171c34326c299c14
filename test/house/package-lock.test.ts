/**
 * `npm ci` refuses a lock that lacks an optional dependency of any platform, and `npm install` against a registry that
 * has only some platforms' packages leaves such a lock behind, without a word.
 */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

interface Locked {
  readonly integrity?: string;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const lock = JSON.parse(readFileSync(new URL('../../package-lock.json', import.meta.url), 'utf8')) as {
  packages: Record<string, Locked>;
};

test('the lock names every optional dependency, so that npm ci works on a fresh clone', () => {
  const missing = Object.entries(lock.packages).flatMap(([path, locked]) =>
    Object.keys(locked.optionalDependencies ?? {}).filter(
      (name) => !(`node_modules/${name}` in lock.packages) && !(`${path}/node_modules/${name}` in lock.packages),
    ),
  );
  expect(missing).toEqual([]);
});

test('the lock says of every package what its bytes must be', () => {
  const unproved = Object.entries(lock.packages).filter(([path, locked]) => path !== '' && !locked.integrity);
  expect(unproved).toEqual([]);
});
