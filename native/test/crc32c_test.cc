// Every length and alignment in heap blocks of exactly that size, so that the address sanitizer sees any byte that a
// kernel reads too much. (test/storage/checksum.test.ts has the published vectors and the properties.)
#include "checksum/crc32c.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "checksum/polynomial.h"
#include "test/check.h"

using namespace holdfast::checksum;

namespace {

uint32_t Reference(uint32_t reg, const uint8_t* data, size_t length) {
  for (size_t i = 0; i < length; i++) {
    reg ^= data[i];
    for (int bit = 0; bit < 8; bit++) reg = TimesX(reg);
  }
  return reg;
}

bool Agrees(const Kernel& kernel, size_t length, size_t alignment) {
  std::unique_ptr<uint8_t[]> block(new uint8_t[length + alignment]);
  uint32_t state = static_cast<uint32_t>(length * 65537 + alignment + 1);
  for (size_t i = 0; i < length + alignment; i++) {
    state = state * 1664525 + 1013904223;
    block[i] = static_cast<uint8_t>(state >> 24);
  }
  const uint8_t* data = block.get() + alignment;
  return kernel.extend(state, data, length) == Reference(state, data, length);
}

template <typename Body>
void ForEachKernel(Body body) {
  size_t count;
  const Kernel* kernels = Kernels(&count);
  for (size_t i = 0; i < count; i++) {
    if (kernels[i].supported) {
      body(kernels[i]);
    } else {
      printf("       this processor has no %s kernel\n", kernels[i].name);
    }
  }
}

}  // namespace

TEST("every kernel reads exactly the bytes that it is given, at every short length") {
  ForEachKernel([](const Kernel& kernel) {
    for (size_t length = 0; length <= 1100; length++) CHECK(Agrees(kernel, length, length % 65));
  });
}

TEST("every kernel is right around the lengths where its steps change") {
  constexpr size_t kSteps[] = {192, 256, 512, 1536, 4096, 12288, 65536};
  ForEachKernel([&](const Kernel& kernel) {
    for (const size_t step : kSteps) {
      for (size_t length = step - 9; length <= step + 9; length++) CHECK(Agrees(kernel, length, step % 63));
    }
  });
}

TEST("a kernel that does not exist cannot be selected, and the selection stays") {
  const char* before = SelectedKernel().name;
  CHECK(!SelectKernel("mmx"));
  CHECK(strcmp(SelectedKernel().name, before) == 0);
  CHECK(SelectKernel("portable"));
  CHECK(strcmp(SelectedKernel().name, "portable") == 0);
  CHECK(SelectKernel(before));
}

TEST("powers of x add up in the exponent") {
  for (uint64_t a = 1; a < (1ull << 60); a = a * 3 + 1) {
    CHECK(MultiplyModulo(PowerOfX(a), PowerOfX(a + 7)) == PowerOfX(2 * a + 7));
  }
}
