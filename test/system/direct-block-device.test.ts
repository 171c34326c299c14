/** The suite of every block device, over a real one (loop over a file). Needs root and losetup. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import { ioMemory } from '../../lib/storage/io-memory.ts';
import { openDevice } from '../../lib/storage/open-device.ts';
import { conformance, conformanceSizeBytes } from '../conformance/block-device.ts';
import { engines } from '../storage/engines.ts';

function losetup(...parameters: string[]): string {
  const { status, stdout, stderr } = spawnSync('losetup', parameters, { encoding: 'utf8' });
  expect(status, `losetup ${parameters.join(' ')}: ${stderr}`).toBe(0);
  return stdout.trim();
}

for (const engine of engines) {
  for (const sectorBytes of [512, 4096]) {
    conformance(`a loop device with sectors of ${sectorBytes} bytes, by ${engine},`, async () => {
      const folder = mkdtempSync(join(tmpdir(), 'holdfast-block-'));
      const file = join(folder, 'image');
      writeFileSync(file, '');
      truncateSync(file, conformanceSizeBytes);
      const path = losetup('--find', '--show', '--sector-size', String(sectorBytes), file);
      const device = await openDevice(path, { engine });
      expect(device.geometry.logicalBlockBytes).toBe(sectorBytes);
      return {
        device,
        reopenReadOnly: () => openDevice(path, { engine, readOnly: true }),
        lease: async (lengthBytes: number) => ioMemory().lease(lengthBytes),
        cleanUp: async () => {
          losetup('--detach', path);
          rmSync(folder, { recursive: true });
        },
      };
    }, ['reopenReadOnly', 'lease']);
  }
}
