// The CRC32 and PCLMULQDQ instructions, for inclusion by kernels that are compiled for them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace holdfast::checksum {
namespace {

static inline uint64_t CrcQword(uint64_t reg, uint64_t word) { return _mm_crc32_u64(reg, word); }
static inline uint32_t CrcDword(uint32_t reg, uint32_t word) { return _mm_crc32_u32(reg, word); }
static inline uint32_t CrcWord(uint32_t reg, uint16_t word) { return _mm_crc32_u16(reg, word); }
static inline uint32_t CrcByte(uint32_t reg, uint8_t byte) { return _mm_crc32_u8(reg, byte); }

static inline uint64_t Product(uint64_t a, uint32_t b) {
  const __m128i product =
      _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(a)), _mm_cvtsi32_si128(static_cast<int>(b)), 0);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(product));
}

}  // namespace
}  // namespace holdfast::checksum

#include "checksum/crc32c_streams_inline.h"
