// Shows that the package, as it would be published, installs without running any script and loads its prebuilt addon:
// packs it, installs the tarball in an empty project (with the registry's copies of its dependencies), and uses it.
// Run it after `npm run build` and `npm run prebuildify`.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'holdfast-package-'));

const use = `
  import { realpathSync } from 'node:fs';
  import { createRequire } from 'node:module';
  import { join } from 'node:path';
  import { crc32c, crc32cKernel, openRegion, probeSignatures } from 'holdfast';

  if (crc32c(Buffer.from('123456789')) !== 0xe3069283) throw new Error('wrong checksum');
  const region = await openRegion('region', { sizeBytes: 4096, create: true });
  region.bytes.fill(1);
  await region.persist();
  await region.close();
  await probeSignatures('region');
  const addons = Object.keys(createRequire(import.meta.url).cache ?? {}).filter((path) => path.endsWith('.node'));
  if (!addons.some((path) => path.includes(join('holdfast', 'prebuilds')))) throw new Error('not the prebuilt: ' + addons);
  console.log('the package works: CRC-32C by ' + crc32cKernel() + ', a region persisted by ' + region.means);
`;

function run(command, arguments_, cwd) {
  return execFileSync(command, arguments_, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
}

try {
  run('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], root);
  const tarball = readdirSync(folder).find((name) => name.endsWith('.tgz'));
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'empty', private: true, type: 'module' }));
  run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', `./${tarball}`], folder);
  if (existsSync(join(folder, 'node_modules', 'holdfast', 'build')))
    throw new Error('the package brings a local build');
  writeFileSync(join(folder, 'use.mjs'), use);
  process.stdout.write(run(process.execPath, ['use.mjs'], folder));
} finally {
  rmSync(folder, { recursive: true, force: true });
}
