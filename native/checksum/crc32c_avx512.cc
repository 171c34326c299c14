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

// Needs kStep bytes; leaves less than kWidth.
template <typename Source>
static inline uint64_t ExtendFolding(uint32_t reg, Source* source) {
  const auto lanes = [source](size_t at) { return source->template Take<__m512i>(at); };
  __m512i a = _mm512_xor_si512(lanes(0), _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(reg))));
  __m512i b = lanes(kWidth), c = lanes(2 * kWidth), d = lanes(3 * kWidth);
  source->Advance(kStep);
  const __m512i step_factors = _mm512_broadcast_i32x4(FoldFactors<kStep>());
  for (; source->left >= kStep; source->Advance(kStep)) {
    a = Fold(a, step_factors, lanes(0));
    b = Fold(b, step_factors, lanes(kWidth));
    c = Fold(c, step_factors, lanes(2 * kWidth));
    d = Fold(d, step_factors, lanes(3 * kWidth));
  }
  const __m512i factors = _mm512_broadcast_i32x4(FoldFactors<kWidth>());
  a = Fold(a, factors, b);
  a = Fold(a, factors, c);
  a = Fold(a, factors, d);
  for (; source->left >= kWidth; source->Advance(kWidth)) a = Fold(a, factors, lanes(0));
  const __m128i lane = FoldToOneLane(a);
  const uint64_t half = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(lane)));
  return _mm_crc32_u64(half, static_cast<uint64_t>(_mm_extract_epi64(lane, 1)));
}

template <typename Source>
static uint32_t Extend(uint32_t reg32, Source source) {
  uint64_t reg = reg32;
  if (source.left >= 2 * kStep) reg = ExtendFolding(reg32, &source);
  ExtendWhilePossible<64>(&reg, &source);
  return ExtendOneStream(reg, source);
}

}  // namespace

uint32_t ExtendAvx512(uint32_t reg, const uint8_t* data, size_t length) { return Extend(reg, Reader{data, length}); }

uint32_t CopyAvx512(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length) {
  return Extend(reg, Copier{from, length, to});
}

}  // namespace holdfast::checksum
