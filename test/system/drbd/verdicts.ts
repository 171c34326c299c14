/**
 * Holdfast beside DRBD 8.4: the same faults, the same clients, the same judge. Run by hand (docs/drbd.md says how); it
 * prints a table. HOLDFAST_SIDE: which sides, default all; HOLDFAST_SCENARIO: only those whose names hold this text.
 */
import { beforeAll, describe, expect, test } from 'vitest';
import { DrbdLab, type DrbdSetup } from './drbd-lab.ts';
import { HoldfastLab } from './holdfast-lab.ts';
import { judge, SCENARIOS, type Verdict } from './scenarios.ts';

const sides = (process.env.HOLDFAST_SIDE ?? 'holdfast,automatic,fenced,both,apart').split(',');
const scenarios = SCENARIOS.filter(({ name }) => name.includes(process.env.HOLDFAST_SCENARIO ?? ''));
const SCENARIO_LIMIT_MS = 300_000;

const HEADS = [
  'side',
  'scenario',
  'writes went on after',
  'possible on one device',
  'blocks with an older write',
  'acknowledged writes given up',
  'by hand',
  'copies identical',
  'writes acknowledged by a + b',
  'remarks',
];

beforeAll(() => console.log(`| ${HEADS.join(' | ')} |\n|${' --- |'.repeat(HEADS.length)}`));

function row(side: string, name: string, verdict: Verdict): string {
  const { wentOnMs, linearizable, blocksLost, discarded, byHand, identical, acknowledged, remarks } = verdict;
  const cells = [
    side,
    name,
    typeof wentOnMs === 'number' ? `${(wentOnMs / 1000).toFixed(1)} s` : (wentOnMs ?? ''),
    linearizable === true ? 'yes' : `no (${linearizable})`,
    `${blocksLost}`,
    `${discarded}`,
    byHand ?? 'no',
    identical ? 'yes' : 'no',
    `${acknowledged.a} + ${acknowledged.b}`,
    remarks.join('; '),
  ];
  return `| ${cells.join(' | ')} |`;
}

async function verdictOf(side: string, scenario: (typeof SCENARIOS)[number], lab: HoldfastLab | DrbdLab) {
  const verdict = await judge(lab, scenario);
  console.log(row(side, scenario.name, verdict));
  return verdict;
}

describe.runIf(sides.includes('holdfast'))('Holdfast', () => {
  test.each(scenarios)('$name', { timeout: SCENARIO_LIMIT_MS }, async (scenario) => {
    await using lab = await HoldfastLab.start();
    const verdict = await verdictOf('Holdfast', scenario, lab);
    expect(verdict).toMatchObject({
      linearizable: true,
      blocksLost: 0,
      discarded: 0,
      byHand: undefined,
      identical: true,
    });
  });
});

const drbdSides: readonly DrbdSetup[] = ['automatic', 'fenced', 'both', 'apart'];
for (const side of drbdSides.filter((name) => sides.includes(name)))
  describe(`DRBD, ${side}`, () => {
    let lab: DrbdLab | undefined;
    // Two primaries with clients that do not keep apart: they need no fault to part.
    const played = side === 'both' ? scenarios.filter(({ name }) => name === 'no fault') : scenarios;
    test.each(played)('$name', { timeout: SCENARIO_LIMIT_MS }, async (scenario) => {
      try {
        if (lab === undefined) {
          lab = await DrbdLab.boot(side);
          console.log(await lab.version());
        }
        await lab.fresh();
        await verdictOf(`DRBD ${side}`, scenario, lab);
      } catch (error) {
        // What is left of it would spoil the next one.
        await lab?.[Symbol.asyncDispose]();
        lab = undefined;
        throw error;
      }
    });
    test('ends', async () => {
      await lab?.[Symbol.asyncDispose]();
    });
  });
