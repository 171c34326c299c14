/** A region of which a range lies elsewhere. */
import { expect, test } from 'vitest';
import { ComposedAccess, type ComposedPart } from '../../lib/checkpoint/composed-access.ts';
import { StoreRecorder } from '../../lib/testing/store-orders.ts';
import { settle } from './checkpoint-helpers.ts';

const PAGE = 4096;
/** The region's own pages are 0, 2 and 4; 1 and 3 lie elsewhere. */
function setUp() {
  const closed: string[] = [];
  const persisted: [string, number, number][] = [];
  const part = (name: string, lengthBytes: number): ComposedPart & { readonly recorder: StoreRecorder } => {
    const recorder = new StoreRecorder(new Uint8Array(lengthBytes));
    const persist = async (address: number, length: number) => void persisted.push([name, address, length]);
    return { ...recorder.access(), recorder, persist, close: async () => void closed.push(name) };
  };
  const [main, first, second] = [part('main', 5 * PAGE), part('first', PAGE), part('second', 2 * PAGE)] as const;
  const access = new ComposedAccess(main, [
    { address: 3 * PAGE, lengthBytes: PAGE, access: second },
    { address: PAGE, lengthBytes: PAGE, access: first },
  ]);
  return { closed, persisted, main, first, second, access };
}

const filled = (value: number, lengthBytes = PAGE) => new Uint8Array(lengthBytes).fill(value);

test('each range is stored and read where it lies', async () => {
  const { main, first, second, access } = setUp();
  for (let page = 0; page < 5; page += 1) await access.write(page * PAGE, [filled(page + 1)], { persist: true });
  expect([main, first, second].map(({ recorder }) => recorder.content.filter((_, at) => at % PAGE === 0))).toEqual([
    Uint8Array.of(1, 0, 3, 0, 5),
    Uint8Array.of(2),
    Uint8Array.of(4, 0),
  ]);
  const all = new Uint8Array(5 * PAGE - 16);
  await access.read(8, all);
  const expected = Buffer.concat([1, 2, 3, 4, 5].map((value) => filled(value))).subarray(8, 5 * PAGE - 8);
  expect(Buffer.compare(all, expected)).toBe(0);
  expect(await access.compareAndSwap(PAGE, 0x0202020202020202n, 7n)).toBe(0x0202020202020202n);
  expect(first.recorder.content[0]).toBe(7);
  expect(access.range).toEqual({ base: 0, lengthBytes: 5 * PAGE });
});

test('a store lies in one place, and so does the word that it is conditional on', async () => {
  const { access } = setUp();
  const refused = { code: 'ERR_HOLDFAST_BAD_ARGUMENT' };
  await expect(access.write(PAGE - 8, [filled(1, 16)])).rejects.toMatchObject(refused);
  const guard = { address: PAGE, expected: 0n };
  await expect(access.write(0, [filled(1, 8)], { guard })).rejects.toMatchObject(refused);
  await access.write(PAGE + 8, [filled(1, 8)], { guard });
  await access.write(0, [filled(1, 8)], { guard: { address: 2 * PAGE, expected: 0n } });
  await expect(access.read(5 * PAGE, new Uint8Array(1))).rejects.toMatchObject({ code: 'ERR_HOLDFAST_OUT_OF_RANGE' });
});

test('a persist makes durable what lies in each place', async () => {
  const { persisted, access } = setUp();
  await access.persist(PAGE + 100, 2 * PAGE);
  expect(persisted).toEqual([
    ['first', 100, PAGE - 100],
    ['main', 2 * PAGE, PAGE],
    ['second', 0, 100],
  ]);
});

test('a watch is told of a change in each place, until all are closed', async () => {
  const { closed, access } = setUp();
  const watch = (since: number) => access.watch(PAGE, 3 * PAGE, since);
  let number = 0;
  for (let places = 0; places < 3; places += 1) number = await watch(number);
  for (const page of [1, 2, 3]) {
    let isTold = false;
    const told = watch(number).then((next) => {
      isTold = true;
      return next;
    });
    await settle();
    expect(isTold).toBe(false);
    await access.write(page * PAGE, [filled(9, 8)]);
    number = await told;
  }
  const left = watch(number);
  await access.close();
  await expect(left).rejects.toMatchObject({ code: 'ERR_HOLDFAST_ABORTED' });
  expect(closed.sort()).toEqual(['first', 'main', 'second']);
});
