// Every length and alignment in heap blocks of exactly that size, so that the address sanitizer sees any byte that a
// kernel reads or writes too much.
#include "checksum/crc32c.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

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

std::vector<uint8_t> RandomBytes(size_t length, uint32_t state) {
  std::vector<uint8_t> bytes(length);
  for (uint8_t& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

// The register of the reference after every number of bytes.
std::vector<uint32_t> ReferenceOfEveryLength(uint32_t reg, const std::vector<uint8_t>& bytes) {
  std::vector<uint32_t> regs{reg};
  for (const uint8_t& byte : bytes) regs.push_back(reg = Reference(reg, &byte, 1));
  return regs;
}

// Memory that ends where its bytes end, and begins `alignment` bytes after a multiple of 64.
class Block {
 public:
  Block(size_t length, size_t alignment) : memory_(new (std::align_val_t{64}) uint8_t[length + alignment]) {
    data = memory_.get() + alignment;
  }
  uint8_t* data;

 private:
  struct Delete {
    void operator()(uint8_t* memory) const { operator delete[](memory, std::align_val_t{64}); }
  };
  std::unique_ptr<uint8_t[], Delete> memory_;
};

void CheckKernel(const Kernel& kernel, const uint8_t* bytes, size_t length, size_t alignment, uint32_t reg,
                 uint32_t expected) {
  const Block source(length, alignment), target(length, alignment * 29 % 64);
  std::copy_n(bytes, length, source.data);
  CHECK(kernel.extend(reg, source.data, length) == expected);
  CHECK(kernel.copy(reg, target.data, source.data, length) == expected);
  CHECK(std::equal(bytes, bytes + length, target.data));
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

TEST("every kernel gives the checksums of RFC 3720, B.4") {
  std::vector<uint8_t> zeros(32, 0), ones(32, 0xFF), up(32), down(32);
  for (uint8_t i = 0; i < 32; i++) up[i] = i, down[i] = 31 - i;
  const std::vector<uint8_t> read_command = {
      0x01, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,    0, 0x14, 0, 0, 0, 0, 0, 0x04, 0,
      0,    0,    0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0,    0};
  ForEachKernel([&](const Kernel& kernel) {
    const auto checksum = [&](const std::vector<uint8_t>& bytes) {
      return ~kernel.extend(~0u, bytes.data(), bytes.size());
    };
    CHECK(checksum(zeros) == 0x8A9136AA);
    CHECK(checksum(ones) == 0x62A8AB43);
    CHECK(checksum(up) == 0x46DD794E);
    CHECK(checksum(down) == 0x113FDB5C);
    CHECK(checksum(read_command) == 0xD9963A56);
  });
}

TEST("every kernel reads and copies exactly the bytes that it is given, at every short length and alignment") {
  constexpr uint32_t kReg = 0x12345678;
  const std::vector<uint8_t> bytes = RandomBytes(1100, 1);
  const std::vector<uint32_t> expected = ReferenceOfEveryLength(kReg, bytes);
  ForEachKernel([&](const Kernel& kernel) {
    for (size_t length = 0; length <= bytes.size(); length++) {
      for (size_t alignment = 0; alignment < 64; alignment++) {
        CheckKernel(kernel, bytes.data(), length, alignment, kReg, expected[length]);
      }
    }
  });
}

TEST("every kernel is right around the lengths where its steps change") {
  constexpr uint32_t kReg = 0x9ABCDEF0;
  constexpr size_t kSteps[] = {1536, 2048, 4096, 5120, 6656, 8192, 12288, 16384, 65536, 262144};
  const std::vector<uint8_t> bytes = RandomBytes(262144 + 9, 2);
  const std::vector<uint32_t> expected = ReferenceOfEveryLength(kReg, bytes);
  ForEachKernel([&](const Kernel& kernel) {
    for (const size_t step : kSteps) {
      for (size_t length = step - 9; length <= step + 9; length++) {
        CheckKernel(kernel, bytes.data(), length, length % 64, kReg, expected[length]);
      }
    }
  });
}

TEST("the checksums of two parts combine to that of the whole, wherever it is cut") {
  const std::vector<uint8_t> bytes = RandomBytes(700, 3);
  const uint32_t whole = ~Reference(~0u, bytes.data(), bytes.size());
  for (size_t cut = 0; cut <= bytes.size(); cut++) {
    const uint32_t head = Crc32c(0, bytes.data(), cut);
    const uint32_t tail = Crc32c(0, bytes.data() + cut, bytes.size() - cut);
    CHECK(Crc32cCombine(head, tail, bytes.size() - cut) == whole);
    CHECK(Crc32c(head, bytes.data() + cut, bytes.size() - cut) == whole);
  }
}

TEST("combining is the same whichever two of three parts are combined first, at any length") {
  for (uint64_t length = 1; length < (1ull << 60); length = length * 3 + 1) {
    const uint32_t a = static_cast<uint32_t>(length * 2654435761), b = ~a, c = a * 31 + 7;
    const uint32_t left = Crc32cCombine(Crc32cCombine(a, b, length), c, length + 5);
    const uint32_t right = Crc32cCombine(a, Crc32cCombine(b, c, length + 5), 2 * length + 5);
    CHECK(left == right);
  }
}

TEST("each block has its own checksum; the last may be short, or the only one") {
  const std::vector<uint8_t> bytes = RandomBytes(5000, 4);
  for (const size_t block_bytes : {1, 7, 512, 1000, 4096, 5000, 5001, 1 << 20}) {
    const size_t count = (bytes.size() + block_bytes - 1) / block_bytes;
    const std::unique_ptr<uint32_t[]> checksums(new uint32_t[count]);
    Crc32cBlocks(bytes.data(), bytes.size(), block_bytes, checksums.get());
    for (size_t i = 0; i < count; i++) {
      const size_t offset = i * block_bytes;
      const size_t length = std::min(block_bytes, bytes.size() - offset);
      CHECK(checksums[i] == ~Reference(~0u, bytes.data() + offset, length));
    }
  }
  Crc32cBlocks(nullptr, 0, 512, nullptr);
}

TEST("a copy may overlap its source on either side") {
  const std::vector<uint8_t> before = RandomBytes(3000, 5);
  const uint32_t expected = ~Reference(~0u, before.data() + 1000, 1000);
  for (const ptrdiff_t by : {-1000, -999, -64, -1, 0, 1, 64, 999, 1000}) {
    std::vector<uint8_t> memory = before;
    CHECK(Crc32cCopy(0, memory.data() + 1000 + by, memory.data() + 1000, 1000) == expected);
    CHECK(std::equal(before.begin() + 1000, before.begin() + 2000, memory.begin() + 1000 + by));
  }
  CHECK(Crc32cCopy(7, nullptr, nullptr, 0) == 7);
}

TEST("the kernel that the environment names is here") {
  const char* name = getenv("HOLDFAST_CRC32C");
  CHECK(name == nullptr || SelectKernel(name));
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
