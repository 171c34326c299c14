// CRC-32C with an instruction for it, for inclusion after the processor's own instructions: CrcQword, CrcDword,
// CrcWord, CrcByte (the register over eight, four, two bytes and one) and Product (carry-less, its lower 64 bits).
//
// The instruction takes eight bytes a cycle but has a latency of two or three cycles, so three independent streams run
// at once. Their registers are joined by one carry-less multiplication each (Gopal et al., "Fast CRC Computation for
// iSCSI Polynomial Using CRC32 Instruction", Intel, 2011): a register r that stands `bytes` before the end
// contributes r · x^(8·bytes). The product of two reflected 32-bit polynomials is x times their product, reflected in
// 64 bits, and the instruction itself multiplies by x^32 and reduces; hence the exponent less 33.
#pragma once

#include <cstddef>
#include <cstdint>

#include "checksum/polynomial.h"
#include "checksum/source_inline.h"

namespace holdfast::checksum {
namespace {

// Takes in 3 · kStreamBytes bytes.
template <size_t kStreamBytes, typename Source>
static inline uint64_t ExtendThreeStreams(uint64_t reg, const Source& source) {
  static_assert(kStreamBytes % 8 == 0 && kStreamBytes >= 16);
  constexpr uint32_t kOneStream = PowerOfX(8 * kStreamBytes - 33);
  constexpr uint32_t kTwoStreams = PowerOfX(16 * kStreamBytes - 33);
  const auto qword = [&source](size_t at) { return source.template Take<uint64_t>(at); };
  uint64_t a = reg, b = 0, c = 0;
  for (size_t i = 0; i < kStreamBytes - 8; i += 8) {
    a = CrcQword(a, qword(i));
    b = CrcQword(b, qword(kStreamBytes + i));
    c = CrcQword(c, qword(2 * kStreamBytes + i));
  }
  // The last word of the third stream takes the other two streams' products in, and reduces them on the way.
  a = CrcQword(a, qword(kStreamBytes - 8));
  b = CrcQword(b, qword(2 * kStreamBytes - 8));
  const uint64_t joined = Product(a, kTwoStreams) ^ Product(b, kOneStream);
  return CrcQword(c, qword(3 * kStreamBytes - 8) ^ joined);
}

template <size_t kStreamBytes, typename Source>
static inline void ExtendWhilePossible(uint64_t* reg, Source* source) {
  for (; source->left >= 3 * kStreamBytes; source->Advance(3 * kStreamBytes)) {
    *reg = ExtendThreeStreams<kStreamBytes>(*reg, *source);
  }
}

template <typename Source>
static inline uint32_t ExtendOneStream(uint64_t reg, Source source) {
  for (; source.left >= 8; source.Advance(8)) reg = CrcQword(reg, source.template Take<uint64_t>(0));
  uint32_t narrow = static_cast<uint32_t>(reg);
  if ((source.left & 4) != 0) {
    narrow = CrcDword(narrow, source.template Take<uint32_t>(0));
    source.Advance(4);
  }
  if ((source.left & 2) != 0) {
    narrow = CrcWord(narrow, source.template Take<uint16_t>(0));
    source.Advance(2);
  }
  if ((source.left & 1) != 0) narrow = CrcByte(narrow, source.template Take<uint8_t>(0));
  return narrow;
}

template <typename Source>
[[maybe_unused]] static uint32_t ExtendByStreams(uint32_t reg32, Source source) {
  uint64_t reg = reg32;
  ExtendWhilePossible<4096>(&reg, &source);
  ExtendWhilePossible<512>(&reg, &source);
  ExtendWhilePossible<64>(&reg, &source);
  return ExtendOneStream(reg, source);
}

}  // namespace
}  // namespace holdfast::checksum
