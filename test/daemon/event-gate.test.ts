import { expect, it } from 'vitest';
import { EventGate } from '../../lib/daemon/event-gate.ts';

it('lets a burst pass, then ten a second, and counts what it left out', () => {
  let nowMs = 0;
  const passed: unknown[] = [];
  const clock = { nowMs: () => nowMs, wallMs: () => 0, setTimer: () => ({ cancel: () => {} }) };
  const gate = new EventGate(clock, (event) => passed.push(event));
  for (let number = 0; number < 1000; number++) gate.tell({ kind: 'refused', number });
  expect(passed).toHaveLength(100);
  expect(passed.at(-1)).toEqual({ kind: 'refused', number: 99 });
  nowMs = 100;
  gate.tell({ kind: 'refused', number: 1000 });
  gate.tell({ kind: 'refused', number: 1001 });
  expect(passed.slice(100)).toEqual([{ kind: 'refused', number: 1000, omitted: 900 }]);
  nowMs = 3_600_000;
  for (let number = 0; number < 1000; number++) gate.tell({ kind: 'refused', number });
  expect(passed).toHaveLength(201);
  expect(passed[101]).toEqual({ kind: 'refused', number: 0, omitted: 1 });
});
