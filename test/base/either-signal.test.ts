import { getEventListeners } from 'node:events';
import { expect, test } from 'vitest';
import { EitherSignal } from '../../lib/base/either-signal.ts';

test('fires with the first of them, for its reason', () => {
  const [first, second] = [new AbortController(), new AbortController()];
  const either = new EitherSignal(first.signal, undefined, second.signal);
  expect(either.signal.aborted).toBe(false);
  second.abort('the second one');
  first.abort('the first one');
  expect([either.signal.aborted, either.signal.reason]).toEqual([true, 'the second one']);
});

test('has fired if one of them has', () => {
  const either = new EitherSignal(new AbortController().signal, AbortSignal.abort('before'));
  expect([either.signal.aborted, either.signal.reason]).toEqual([true, 'before']);
});

test('once disposed of, it does not fire, and nothing is left at any of them', () => {
  const controller = new AbortController();
  for (let each = 0; each < 20; each += 1) {
    using either = new EitherSignal(controller.signal);
    expect(getEventListeners(controller.signal, 'abort').length).toBe(1);
    void either;
  }
  const disposed = new EitherSignal(controller.signal);
  disposed[Symbol.dispose]();
  expect(getEventListeners(controller.signal, 'abort').length).toBe(0);
  controller.abort();
  expect(disposed.signal.aborted).toBe(false);
});
