// CRC-32C with the CRC32 instruction, for inclusion by kernels that are compiled with SSE4.2 and PCLMULQDQ.
//
// The instruction takes eight bytes a cycle but has a latency of three cycles, so three independent streams run at
// once. Their registers are joined by one carry-less multiplication each (Gopal et al., "Fast CRC Computation for
// iSCSI Polynomial Using CRC32 Instruction", Intel, 2011): a register r that stands `bytes` before the end
// contributes r · x^(8·bytes). The product of two reflected 32-bit polynomials is x times their product, reflected in
// 64 bits, and the instruction itself multiplies by x^32 and reduces; hence the exponent less 33.
//
// Everything is `static`, never `inline` with external linkage: the linker must not replace one file's copy, compiled
// for one instruction set, by another's.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "checksum/polynomial.h"

namespace holdfast::checksum {
namespace {

static inline uint64_t LoadQword(const uint8_t* data) {
  uint64_t word;
  memcpy(&word, data, sizeof word);
  return word;
}

static inline uint64_t ShiftProduct(uint64_t reg, uint32_t factor) {
  const __m128i product =
      _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(reg)), _mm_cvtsi32_si128(static_cast<int>(factor)), 0);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(product));
}

// Takes in 3 · kStreamBytes bytes.
template <size_t kStreamBytes>
static inline uint64_t ExtendThreeStreams(uint64_t reg, const uint8_t* data) {
  static_assert(kStreamBytes % 8 == 0 && kStreamBytes >= 16);
  constexpr uint32_t kOneStream = PowerOfX(8 * kStreamBytes - 33);
  constexpr uint32_t kTwoStreams = PowerOfX(16 * kStreamBytes - 33);
  uint64_t a = reg, b = 0, c = 0;
  for (size_t i = 0; i < kStreamBytes - 8; i += 8) {
    a = _mm_crc32_u64(a, LoadQword(data + i));
    b = _mm_crc32_u64(b, LoadQword(data + kStreamBytes + i));
    c = _mm_crc32_u64(c, LoadQword(data + 2 * kStreamBytes + i));
  }
  // The last word of the third stream takes the other two streams' products in, and reduces them on the way.
  a = _mm_crc32_u64(a, LoadQword(data + kStreamBytes - 8));
  b = _mm_crc32_u64(b, LoadQword(data + 2 * kStreamBytes - 8));
  const uint64_t joined = ShiftProduct(a, kTwoStreams) ^ ShiftProduct(b, kOneStream);
  return _mm_crc32_u64(c, LoadQword(data + 3 * kStreamBytes - 8) ^ joined);
}

static inline uint32_t ExtendOneStream(uint64_t reg, const uint8_t* data, size_t length) {
  for (; length >= 8; data += 8, length -= 8) reg = _mm_crc32_u64(reg, LoadQword(data));
  uint32_t narrow = static_cast<uint32_t>(reg);
  if ((length & 4) != 0) {
    uint32_t word;
    memcpy(&word, data, sizeof word);
    narrow = _mm_crc32_u32(narrow, word);
    data += 4;
  }
  if ((length & 2) != 0) {
    uint16_t word;
    memcpy(&word, data, sizeof word);
    narrow = _mm_crc32_u16(narrow, word);
    data += 2;
  }
  if ((length & 1) != 0) narrow = _mm_crc32_u8(narrow, *data);
  return narrow;
}

template <size_t kStreamBytes>
static inline void ExtendWhilePossible(uint64_t* reg, const uint8_t** data, size_t* length) {
  while (*length >= 3 * kStreamBytes) {
    *reg = ExtendThreeStreams<kStreamBytes>(*reg, *data);
    *data += 3 * kStreamBytes;
    *length -= 3 * kStreamBytes;
  }
}

}  // namespace
}  // namespace holdfast::checksum
