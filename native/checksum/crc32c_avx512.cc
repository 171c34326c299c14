// The kernel for x86-64 with AVX-512 (F, VL) and VPCLMULQDQ: folding (Gopal et al., "Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ Instruction", Intel, 2009), four registers of 64 bytes wide.
//
// A 16-byte lane holds the polynomial L·x^64 + H, L its first eight bytes. To fold it over D bits is to replace it by
// L·(x^(D+64) mod P) + H·(x^D mod P), which has 96 bits and is congruent to the lane times x^D, and to add the lane
// that stands D bits further on. The product of two reflected 64-bit polynomials comes out as x times the product,
// reflected in 128 bits; hence the exponents less one. The last 16 bytes go through the CRC32 instruction, which
// multiplies by x^32 and reduces, as the definition of the CRC wants it.
#include "checksum/crc32c_kernels.h"
#include "checksum/crc32c_sse42_inline.h"

namespace holdfast::checksum {
namespace {

// A factor of degree < 32, reflected in 64 bits.
static constexpr int64_t Factor(uint64_t exponent) {
  return static_cast<int64_t>(static_cast<uint64_t>(PowerOfX(exponent)) << 32);
}

template <size_t kDistanceBytes>
static inline __m128i FoldFactors() {
  constexpr int64_t kFirst = Factor(8 * kDistanceBytes + 64 - 1);
  constexpr int64_t kSecond = Factor(8 * kDistanceBytes - 1);
  return _mm_set_epi64x(kSecond, kFirst);
}

static inline __m512i Fold(__m512i lanes, __m512i factors, __m512i next) {
  constexpr int kXorOfThree = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, factors, 0x00),
                                   _mm512_clmulepi64_epi128(lanes, factors, 0x11), next, kXorOfThree);
}

static inline __m128i Fold(__m128i lane, __m128i factors, __m128i next) {
  constexpr int kXorOfThree = 0x96;
  return _mm_ternarylogic_epi64(_mm_clmulepi64_si128(lane, factors, 0x00), _mm_clmulepi64_si128(lane, factors, 0x11),
                                next, kXorOfThree);
}

static inline __m512i Load(const uint8_t* data) { return _mm512_loadu_si512(data); }

// 64 bytes to the 16 that are congruent to them.
static inline __m128i FoldToOneLane(__m512i lanes) {
  const __m128i factors = FoldFactors<16>();
  __m128i lane = _mm512_castsi512_si128(lanes);
  lane = Fold(lane, factors, _mm512_extracti32x4_epi32(lanes, 1));
  lane = Fold(lane, factors, _mm512_extracti32x4_epi32(lanes, 2));
  return Fold(lane, factors, _mm512_extracti32x4_epi32(lanes, 3));
}

constexpr size_t kWidth = 64;
constexpr size_t kStep = 4 * kWidth;

// Needs length ≥ kStep; leaves less than kWidth bytes.
static inline uint64_t ExtendFolding(uint32_t reg, const uint8_t** at, size_t* left) {
  const uint8_t* data = *at;
  size_t length = *left;
  __m512i a = _mm512_xor_si512(Load(data), _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(reg))));
  __m512i b = Load(data + kWidth), c = Load(data + 2 * kWidth), d = Load(data + 3 * kWidth);
  data += kStep, length -= kStep;
  const __m512i step_factors = _mm512_broadcast_i32x4(FoldFactors<kStep>());
  for (; length >= kStep; data += kStep, length -= kStep) {
    a = Fold(a, step_factors, Load(data));
    b = Fold(b, step_factors, Load(data + kWidth));
    c = Fold(c, step_factors, Load(data + 2 * kWidth));
    d = Fold(d, step_factors, Load(data + 3 * kWidth));
  }
  const __m512i factors = _mm512_broadcast_i32x4(FoldFactors<kWidth>());
  a = Fold(a, factors, b);
  a = Fold(a, factors, c);
  a = Fold(a, factors, d);
  for (; length >= kWidth; data += kWidth, length -= kWidth) a = Fold(a, factors, Load(data));
  *at = data, *left = length;
  const __m128i lane = FoldToOneLane(a);
  const uint64_t half = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(lane)));
  return _mm_crc32_u64(half, static_cast<uint64_t>(_mm_extract_epi64(lane, 1)));
}

}  // namespace

uint32_t ExtendAvx512(uint32_t reg32, const uint8_t* data, size_t length) {
  uint64_t reg = reg32;
  if (length >= 2 * kStep) reg = ExtendFolding(reg32, &data, &length);
  ExtendWhilePossible<64>(&reg, &data, &length);
  return ExtendOneStream(reg, data, length);
}

}  // namespace holdfast::checksum
