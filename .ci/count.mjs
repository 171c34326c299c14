// A vitest reporter for `.ci/run`: writes `PASSED FAILED` to the file named by HOLDFAST_COUNTS and tells each skipped
// test. A skipped test counts as failed unless its note says that the kernel lacks something; so do errors outside of
// tests (a file that does not load, a hook that throws).
import { writeFileSync } from 'node:fs';

export default class Count {
  onTestRunEnd(modules, unhandledErrors) {
    let passed = 0;
    let failed = unhandledErrors.length;
    for (const module of modules) {
      failed += module.errors().length;
      for (const suite of module.children.allSuites()) failed += suite.errors().length;
      for (const test of module.children.allTests()) {
        const { state, note } = test.result();
        const excused = state === 'skipped' && note?.startsWith('the kernel');
        if (state === 'passed') passed += 1;
        else if (!excused) failed += 1;
        if (state !== 'passed' && state !== 'failed')
          console.log(
            `${state}: ${module.relativeModuleId} > ${test.fullName}: ${note ?? 'no reason given, so failed'}`,
          );
      }
    }
    writeFileSync(process.env.HOLDFAST_COUNTS, `${passed} ${failed}\n`);
  }
}
