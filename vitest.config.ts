import { defineConfig } from 'vitest/config';

// `npm test` runs unit, conformance and simulation tests. The system tests (real processes, real clients,
// Debian packages) are a project of their own, run by `.ci/run`.
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/system/**', 'test/simulation/**'],
          pool: 'forks',
          testTimeout: 30_000,
        },
      },
      { test: { name: 'simulation', include: ['test/simulation/**/*.test.ts'], pool: 'forks', testTimeout: 300_000 } },
      {
        test: {
          name: 'system',
          include: ['test/system/**/*.test.ts'],
          pool: 'forks',
          fileParallelism: false,
          testTimeout: 600_000,
        },
      },
    ],
  },
});
