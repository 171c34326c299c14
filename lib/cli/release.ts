/** What the package says about itself. */
import { readFileSync } from 'node:fs';

/** The folder that holds package.json, in a checkout and where it is installed. */
export const packageRoot = new URL('../../', import.meta.url);

export function release(): string {
  const text = readFileSync(new URL('package.json', packageRoot), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
