#include <cstdio>

#include "test/check.h"

int main() {
  using namespace holdfast::test;
  for (const Test& test : Tests()) {
    const int before = Failures();
    test.body();
    printf("%s %s\n", Failures() == before ? "ok    " : "FAILED", test.name);
  }
  printf("%zu tests, %d failed checks\n", Tests().size(), Failures());
  return Failures() == 0 && !Tests().empty() ? 0 : 1;
}
