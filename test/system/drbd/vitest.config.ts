import { defineConfig } from 'vitest/config';

// Not one of the projects: guests take minutes, and this is run by hand.
export default defineConfig({
  test: { include: ['test/system/drbd/verdicts.ts'], pool: 'forks', disableConsoleIntercept: true },
});
