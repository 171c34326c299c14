// Where the running Node's own headers are. They come with every official Node (tarball, image, distribution's or
// NodeSource's package) under its prefix, so that no build ever needs the network for them.
import { existsSync, realpathSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

/** The folder that holds include/node, or undefined. `npm_config_nodedir` goes first, where the user has set it. */
export function findNodeDirectory() {
  const candidates = [
    process.env.npm_config_nodedir,
    dirname(dirname(realpathSync(process.execPath))),
    dirname(dirname(process.execPath)),
  ];
  return candidates
    .filter((candidate) => candidate)
    .map((candidate) => resolve(candidate))
    .find((candidate) => ['node_api.h', 'uv.h'].every((name) => existsSync(join(candidate, 'include', 'node', name))));
}

/** The same, or a message and the end of the process. */
export function requireNodeDirectory() {
  const directory = findNodeDirectory();
  if (directory !== undefined) return directory;
  console.error(
    `ERR_HOLDFAST_HEADERS_MISSING: the headers of Node ${process.version} (include/node/node_api.h, uv.h) are not ` +
      `beside ${process.execPath}; install Node from its official archive or your distribution's -dev package, or ` +
      'name the folder that holds include/node in npm_config_nodedir',
  );
  process.exit(1);
}
