import { expect, test } from 'vitest';
import { HoldfastError } from '../../lib/base/errors.ts';
import { Once } from '../../lib/mirror/once.ts';

const fails = (code: 'ERR_HOLDFAST_OUTCOME_UNKNOWN' | 'ERR_HOLDFAST_REFUSED') => async () => {
  throw new HoldfastError(code, 'as told');
};

test('a request that comes again is not executed again', async () => {
  const once = new Once(10);
  let executed = 0;
  const action = async () => {
    executed += 1;
  };
  await once.run('process 1', 7, 7, action);
  await once.run('process 1', 7, 7, action);
  expect(executed).toBe(1);
  await once.run('process 2', 7, 7, action);
  expect(executed).toBe(2);
});

test('a write of unknown outcome that came again undid a later one', async () => {
  const once = new Once(10);
  const unknown = { code: 'ERR_HOLDFAST_OUTCOME_UNKNOWN' };
  await expect(once.run('process 1', 1, 1, fails('ERR_HOLDFAST_OUTCOME_UNKNOWN'))).rejects.toMatchObject(unknown);
  const again = once.run('process 1', 1, 1, async () => expect.fail('it must not be executed again'));
  await expect(again).rejects.toMatchObject(unknown);
});

test('what was refused has not been executed, and may be', async () => {
  const once = new Once(10);
  const refused = { code: 'ERR_HOLDFAST_REFUSED' };
  await expect(once.run('process 1', 1, 1, fails('ERR_HOLDFAST_REFUSED'))).rejects.toMatchObject(refused);
  await expect(once.run('process 1', 1, 1, async () => {})).resolves.toBeUndefined();
});

test('it remembers no more than it may, and forgets what is settled', async () => {
  const once = new Once(2);
  await once.run('process 1', 1, 1, async () => {});
  await once.run('process 1', 2, 1, async () => {});
  expect(() => once.run('process 1', 3, 1, async () => {})).toThrow(
    expect.objectContaining({ code: 'ERR_HOLDFAST_BUSY' }),
  );
  await once.run('process 1', 3, 3, async () => {});
});

test('a request of a process that is gone, when it was refused, made that of the next one be executed twice', async () => {
  const once = new Once(10);
  let refuse = () => {};
  const waiting = new Promise<void>((_, reject) => {
    refuse = () => reject(new HoldfastError('ERR_HOLDFAST_REFUSED', 'not here'));
  });
  const gone = once.run('first process', 1, 1, () => waiting);
  let executed = 0;
  const action = async () => {
    executed += 1;
  };
  await once.run('second process', 1, 1, action);
  refuse();
  await expect(gone).rejects.toMatchObject({ code: 'ERR_HOLDFAST_REFUSED' });
  await once.run('second process', 1, 1, action);
  expect(executed).toBe(1);
});
