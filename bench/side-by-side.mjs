// Two or more ways to do one thing, measured in one run, in turns, so that a machine that gets slower or busier in the
// middle does not favour one of them. Reported as medians and as a ratio to the first.

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * @template T
 * @param {Record<string, () => T | Promise<T>>} ways Each returns one measurement.
 * @param {number} rounds
 * @returns {Promise<Record<string, T[]>>} What each measured, round by round.
 */
export async function alternate(ways, rounds) {
  const measured = Object.fromEntries(Object.keys(ways).map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [name, measure] of Object.entries(ways)) measured[name].push(await measure());
  }
  return measured;
}

/**
 * @param {Record<string, () => number | Promise<number>>} ways Each returns one measurement.
 * @param {number} rounds
 * @returns {Promise<Record<string, number>>} The median of each.
 */
export async function sideBySide(ways, rounds = 5) {
  const measured = await alternate(ways, rounds);
  return Object.fromEntries(Object.entries(measured).map(([name, values]) => [name, median(values)]));
}
