import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import type { RegionAccess } from '../../lib/checkpoint/one-sided.ts';
import * as holdfast from '../../lib/index.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';

test('the example of docs/checkpoints.md runs: the backup has what the primary was told is safe', async () => {
  const doc = readFileSync(new URL('../../docs/checkpoints.md', import.meta.url), 'utf8');
  const example = /```js\n([\s\S]*?)```/.exec(doc)![1]!;
  const imported = /import \{([^}]*)\} from 'holdfast';/.exec(example)!;
  const names = imported[1]!.split(',').map((name) => name.trim());
  const body = `${example.replace(imported[0], '')}\nreturn { seats, primary, successor };`;
  const AsyncFunction = (async () => {}).constructor as new (
    ...names: string[]
  ) => (...given: unknown[]) => Promise<{ seats: Map<string, string>; primary: Writer; successor: Writer }>;
  type Writer = holdfast.CheckpointWriter<unknown>;
  const region: RegionAccess = new StoreRecorder(new Uint8Array(256 * 1024)).access();
  const run = new AsyncFunction('region', ...names, body);
  const { seats, primary, successor } = await run(region, ...names.map((name) => Reflect.get(holdfast, name)));
  expect([...seats]).toEqual([
    ['12a', 'Ada'],
    ['12b', 'Grace'],
  ]);
  expect(successor.durableSequence).toBe(3);
  await expect(primary.append({})).rejects.toMatchObject({ code: 'ERR_HOLDFAST_FENCED' });
});
