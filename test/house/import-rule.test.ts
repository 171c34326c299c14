/**
 * The house rules that a machine can hold: a file imports from its own floor's folder or from floors below, and what
 * comes in from outside (clock, random, network, files) comes in through the seam.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, test } from 'vitest';

const libFolder = fileURLToPath(new URL('../../lib', import.meta.url));

/** Ground first. Folders of one floor do not see each other, but `base` and `native.ts` are one. */
const floors = [
  ['base'],
  ['storage', 'peer'],
  ['coherency'],
  ['mirror', 'points', 'checkpoint', 'paging', 'nbd'],
  ['daemon'],
  ['cli', 'console'],
];

/** Stand outside the floors: the public face shows all of them; what tests need may use all of them. */
const roof = ['index.ts', 'testing'];

/** Who may reach outside, and for what. Anything else goes through lib/base (Clock, Random, Network) or a device. */
const allowedOutside: readonly { readonly path: string; readonly reach: readonly string[]; readonly why: string }[] = [
  { path: 'base/clock.ts', reach: ['time'], why: 'the real clock' },
  { path: 'base/random.ts', reach: ['node:crypto random'], why: 'the real randomness' },
  { path: 'base/system-network.ts', reach: ['node:net', 'node:tls', 'node:fs', 'time'], why: 'the real network' },
  { path: 'native.ts', reach: ['node:fs'], why: 'finds the addon' },
  { path: 'storage/copy-end.ts', reach: ['node:fs'], why: 'asks what a file or disk is' },
  { path: 'storage/direct-device.ts', reach: ['node:fs'], why: 'opens devices' },
  { path: 'storage/ring.ts', reach: ['node:fs'], why: 'reads the sysctl that explains a refusal of io_uring' },
  { path: 'storage/open-device.ts', reach: ['node:fs'], why: 'opens devices' },
  { path: 'storage/guard.ts', reach: ['node:fs'], why: 'looks at devices before they are overwritten' },
  { path: 'storage/identity.ts', reach: ['node:fs'], why: 'reads /sys' },
  { path: 'storage/region.ts', reach: ['node:fs'], why: 'opens what it maps' },
  { path: 'storage/signatures.ts', reach: ['node:fs'], why: 'opens what it probes' },
  { path: 'mirror/meeting.ts', reach: ['time'], why: 'writes a time that it was given for people to read' },
  { path: 'daemon/', reach: ['node:fs'], why: 'configuration and sockets are files' },
  { path: 'cli/', reach: ['node:fs', 'node:child_process', 'time'], why: 'the outermost edge: people and processes' },
  { path: 'cli/pair-demo-service.ts', reach: ['node:http'], why: 'it is an HTTP service' },
  { path: 'testing/', reach: ['node:fs', 'node:child_process'], why: 'temporary devices' },
];

const watchedModules = new Set(
  ['net', 'tls', 'dgram', 'dns', 'http', 'https', 'http2', 'fs', 'fs/promises', 'timers', 'timers/promises'].concat([
    'child_process',
    'cluster',
  ]),
);
const timeGlobals = new Set(['setTimeout', 'setInterval', 'performance', 'Date']);
const randomNames = new Set([
  'randomBytes',
  'randomFill',
  'randomFillSync',
  'randomInt',
  'randomUUID',
  'getRandomValues',
]);

interface SourceFile {
  /** Inside lib/, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

function sourceFiles(): SourceFile[] {
  return readdirSync(libFolder, { recursive: true, encoding: 'utf8' })
    .filter((path) => /\.(ts|mts|js|mjs)$/.test(path))
    .sort()
    .map((path) => ({ path, text: readFileSync(join(libFolder, path), 'utf8') }));
}

function importsOf(file: SourceFile): string[] {
  return ts.preProcessFile(file.text, true, true).importedFiles.map((imported) => imported.fileName);
}

function folderOf(path: string): string {
  const folder = path.split('/')[0]!;
  return folder === 'native.ts' ? 'base' : folder;
}

/** What is wrong with one file's imports, in words. */
function importProblems(file: SourceFile): string[] {
  const problems: string[] = [];
  const from = folderOf(file.path);
  const fromFloor = floors.findIndex((floor) => floor.includes(from));
  if (fromFloor < 0 && !roof.includes(from)) return [`${file.path}: the folder ${from} is on no floor`];
  for (const imported of importsOf(file)) {
    if (!imported.startsWith('.')) continue;
    const target = normalize(join(dirname(file.path), imported));
    const to = folderOf(target);
    if (!imported.endsWith('.ts')) problems.push(`${file.path}: ${imported} carries no .ts`);
    if (target.startsWith('..')) problems.push(`${file.path}: ${imported} is outside lib`);
    else if (to === 'testing' && from !== 'testing') problems.push(`${file.path}: imports testing (${imported})`);
    else if (to === 'index.ts') problems.push(`${file.path}: imports the public face`);
    else if (to !== from && !roof.includes(from)) {
      const toFloor = floors.findIndex((floor) => floor.includes(to));
      if (toFloor >= fromFloor) problems.push(`${file.path}: ${imported} is not below ${from}`);
    }
  }
  return problems;
}

function reachesOf(file: SourceFile): Set<string> {
  const reaches = new Set<string>();
  for (const imported of importsOf(file)) {
    const module = imported.replace(/^node:/, '');
    if (watchedModules.has(module)) reaches.add(`node:${module.split('/')[0]}`);
  }
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) {
      const names = node.importClause?.namedBindings;
      if (names !== undefined && ts.isNamedImports(names)) {
        for (const element of names.elements) {
          if (randomNames.has((element.propertyName ?? element.name).text)) reaches.add('node:crypto random');
        }
      }
      return;
    }
    if (ts.isTypeNode(node)) return;
    if (ts.isIdentifier(node)) {
      const isMember = ts.isPropertyAccessExpression(node.parent) && node.parent.name === node;
      if (timeGlobals.has(node.text) && !isMember) reaches.add('time');
      if (node.text === 'hrtime' && isMember) reaches.add('time');
      if (node.text === 'random' && isMember && node.parent.getText().startsWith('Math.')) reaches.add('Math.random');
      if (randomNames.has(node.text) && isMember) reaches.add('node:crypto random');
    }
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(file.path, file.text, ts.ScriptTarget.ESNext, true));
  return reaches;
}

function reachProblems(file: SourceFile): string[] {
  const allowed = allowedOutside.filter(
    ({ path }) => file.path === path || (path.endsWith('/') && file.path.startsWith(path)),
  );
  return [...reachesOf(file)]
    .filter((reach) => !allowed.some((entry) => entry.reach.includes(reach)))
    .map((reach) => `${file.path}: reaches for ${reach}; take it through lib/base, or explain it in the allow-list`);
}

test('every file imports from its own floor or from below', () => {
  const files = sourceFiles();
  expect(files.length).toBeGreaterThan(10);
  expect(files.flatMap(importProblems)).toEqual([]);
});

test('clock, random, network and files come in through the seam', () => {
  expect(sourceFiles().flatMap(reachProblems)).toEqual([]);
});

describe('the rule itself', () => {
  const problems = (path: string, text: string) => importProblems({ path, text });
  const reaches = (text: string) => [...reachesOf({ path: 'mirror/x.ts', text })];

  test.each([
    ['storage/x.ts', `import '../mirror/y.ts'`],
    ['storage/x.ts', `import type { Y } from '../peer/y.ts'`],
    ['mirror/x.ts', `export * from '../nbd/y.ts'`],
    ['mirror/x.ts', `await import('../points/y.ts')`],
    ['base/x.ts', `import '../storage/y.ts'`],
    ['daemon/x.ts', `import '../testing/y.ts'`],
    ['daemon/x.ts', `import '../index.ts'`],
    ['daemon/x.ts', `import '../../test/y.ts'`],
    ['base/x.ts', `import './y'`],
    ['cellar/x.ts', ''],
  ])('%s may not hold: %s', (path, text) => {
    expect(problems(path, text)).toHaveLength(1);
  });

  test.each([
    ['mirror/x.ts', `import '../coherency/y.ts'; import '../native.ts'; import '../base/y.ts'; import './y.ts'`],
    ['testing/x.ts', `import '../mirror/y.ts'`],
    ['index.ts', `export * from './storage/y.ts'`],
    ['storage/x.ts', `import { z } from 'zod'`],
  ])('%s may hold: %s', (path, text) => {
    expect(problems(path, text)).toEqual([]);
  });

  test.each([
    [`import { connect } from 'node:net'`, 'node:net'],
    [`import { readFile } from 'fs/promises'`, 'node:fs'],
    [`import { setTimeout } from 'node:timers/promises'`, 'node:timers'],
    [`import { randomBytes as bytes } from 'node:crypto'`, 'node:crypto random'],
    ['crypto.randomUUID()', 'node:crypto random'],
    ['Math.random()', 'Math.random'],
    ['Date.now()', 'time'],
    ['new Date()', 'time'],
    ['performance.now()', 'time'],
    ['process.hrtime.bigint()', 'time'],
    ['setTimeout(f, 1)', 'time'],
  ])('a file that says %s reaches for %s', (text, reach) => {
    expect(reaches(text)).toContain(reach);
  });

  test.each([
    `// Math.random()`,
    `'Date.now()'`,
    `import { createHash } from 'node:crypto'`,
    'clock.setTimer(1, f)',
    'let x: Date',
  ])('a file that says %s reaches for nothing', (text) => {
    expect(reaches(text)).toEqual([]);
  });
});
