// What the processes of a series of checkpoints have in common: record n is made of its number, and the one after n is
// n + 1; a primary says `sN` before record N is given to the writer, and `aN` when it is acknowledged; `wrong …`.
import { writeSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';
import { systemRandom } from '../../dist/base/random.js';

const DEPTH = 16;
const RECORD_BYTES = 4096;

/** At once, so that what was said before a SIGKILL has been said. */
export function say(text) {
  writeSync(1, `${text}\n`);
}

export function expectThat(isTrue, text) {
  if (isTrue) return;
  say(`wrong ${text}`);
  process.exit(1);
}

function record(number) {
  return Buffer.alloc(RECORD_BYTES, `record ${number} `);
}

/** Checks a checkpoint that comes after `applied`, which is undefined before the first one. */
export function expectNext({ sequence, value }, applied) {
  expectThat(applied === undefined || sequence === applied + 1, `${sequence} comes after ${applied}`);
  expectThat(record(sequence).equals(value), `record ${sequence} holds something else`);
}

/** Appends records from the one after `applied` on, so many at once, until one fails; throws its error then. */
export async function append(writer, applied, { onAcknowledged = () => {}, pauseMsMax = 0 } = {}) {
  let failure;
  let number = applied;
  const keepOneInFlight = async () => {
    while (failure === undefined) {
      const own = ++number;
      say(`s${own}`);
      try {
        const sequence = await writer.append(record(own));
        expectThat(sequence === own, `record ${own} is checkpoint ${sequence}`);
        onAcknowledged(own);
        say(`a${own}`);
      } catch (error) {
        failure ??= error;
      }
      if (pauseMsMax > 0) await wait(systemRandom.below(pauseMsMax));
    }
  };
  await Promise.all(Array.from({ length: DEPTH }, keepOneInFlight));
  throw failure;
}
