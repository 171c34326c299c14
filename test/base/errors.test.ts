import { expect, test } from 'vitest';
import { assert, HoldfastError, isHoldfastError, throwIfAborted } from '../../lib/base/errors.ts';

test('an error carries its code, its cause and the name of the system error', () => {
  const cause = new Error('underneath');
  const error = new HoldfastError('ERR_HOLDFAST_IO', 'the disk failed', { cause, errno: 'EIO' });
  expect(error).toMatchObject({ name: 'HoldfastError', code: 'ERR_HOLDFAST_IO', errno: 'EIO', cause });
  expect(isHoldfastError(error)).toBe(true);
  expect(isHoldfastError(error, 'ERR_HOLDFAST_CLOSED')).toBe(false);
  expect(isHoldfastError(cause)).toBe(false);
});

test('a broken invariant is an internal error', () => {
  expect(() => assert(false, 'one is two')).toThrow(/one is two/);
  expect(() => assert(true, 'one is one')).not.toThrow();
});

test('an aborted signal is told apart', () => {
  expect(() => throwIfAborted(AbortSignal.abort(), 'the read')).toThrow(
    expect.objectContaining({ code: 'ERR_HOLDFAST_ABORTED' }),
  );
  expect(() => throwIfAborted(undefined, 'the read')).not.toThrow();
});
