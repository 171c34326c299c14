/** Devices for a test: a file in a folder of its own, gone when the test is over. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type OpenDeviceOptions, type OpenedDevice, openDevice } from '../storage/open-device.ts';

/** A device over a file in a folder of its own, which goes with it. */
export interface TemporaryDevice extends AsyncDisposable {
  readonly device: OpenedDevice;
  /** The file; to be opened again once `device` is closed. */
  readonly path: string;
}

/** Size and place of a temporary device, and how it is opened. */
export interface TemporaryDeviceOptions extends Omit<OpenDeviceOptions, 'create' | 'readOnly'> {
  /** A multiple of 4096. Sparse: only what is written takes space. */
  readonly sizeBytes: number;
  /** Where the folder is made; default the system's place for temporary files. */
  readonly parent?: string;
}

/**
 * Makes a file-backed device. Disposing of it closes the device and removes the file.
 *
 * ```ts
 * await using temporary = await temporaryDevice({ sizeBytes: 64 * 1024 * 1024 });
 * await temporary.device.write(0, bytes);
 * ```
 */
export async function temporaryDevice(options: TemporaryDeviceOptions): Promise<TemporaryDevice> {
  const { sizeBytes, parent = tmpdir(), ...open } = options;
  const folder = await mkdtemp(join(parent, 'holdfast-'));
  const path = join(folder, 'device');
  try {
    const device = await openDevice(path, { ...open, create: { sizeBytes } });
    return {
      device,
      path,
      async [Symbol.asyncDispose]() {
        await device.close();
        await rm(folder, { recursive: true });
      },
    };
  } catch (error) {
    await rm(folder, { recursive: true });
    throw error;
  }
}
