// The least that unit tests need: TEST defines one, CHECK counts a failure and goes on.
#pragma once

#include <cstdio>
#include <vector>

namespace holdfast::test {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

inline int& Failures() {
  static int failures = 0;
  return failures;
}

struct Registration {
  Registration(const char* name, void (*body)()) { Tests().push_back({name, body}); }
};

inline void Report(bool passed, const char* condition, const char* file, int line) {
  if (passed) return;
  Failures()++;
  fprintf(stderr, "%s:%d: not true: %s\n", file, line, condition);
}

}  // namespace holdfast::test

#define HOLDFAST_JOIN_(a, b) a##b
#define HOLDFAST_JOIN(a, b) HOLDFAST_JOIN_(a, b)
#define HOLDFAST_TEST_(name, body)                                                            \
  static void body();                                                                         \
  static const ::holdfast::test::Registration HOLDFAST_JOIN(body, _registration)(name, body); \
  static void body()
#define TEST(name) HOLDFAST_TEST_(name, HOLDFAST_JOIN(test_at_line_, __LINE__))
#define CHECK(condition) ::holdfast::test::Report((condition), #condition, __FILE__, __LINE__)
