// An NBD server process over memory, for tests with real clients: node nbd-server.mjs SOCKET SIZE_BYTES
// Prints `ready` once it listens, and its statistics as JSON when SIGTERM has closed it.
import { systemEnvironment } from '../../dist/base/system-environment.js';
import { NbdServer } from '../../dist/nbd/server.js';
import { MemoryDevice } from '../../dist/storage/memory-device.js';

const [path, sizeBytes] = process.argv.slice(2);
const server = new NbdServer({
  environment: systemEnvironment,
  address: { kind: 'unix', path },
  exports: new Map([
    [
      'memory',
      {
        device: new MemoryDevice({ sizeBytes: Number(sizeBytes) }),
        description: 'a device in memory',
        multiConnection: true,
      },
    ],
  ]),
  defaultExport: 'memory',
  onDropped: (remote, reason) => console.error(`dropped ${remote}: ${reason}`),
});
process.once('SIGTERM', async () => {
  const { exports, ...stats } = server.statistics();
  await server.close();
  console.log(JSON.stringify({ ...stats, exports: Object.fromEntries(exports) }));
  process.exit(0);
});
await server.listen();
console.log('ready');
