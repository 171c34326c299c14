// Folding (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009) in
// registers of 64 bytes, for inclusion by kernels that are compiled with AVX-512 (F, VL) and VPCLMULQDQ.
//
// A 16-byte lane holds the polynomial L·x^64 + H, L its first eight bytes. To move it D bytes on is to replace it by
// L·(x^(8·D+64) mod P) + H·(x^(8·D) mod P), which has 96 bits and is congruent to the lane times x^(8·D). To fold is
// to move it and to add the lane that stands there. The product of two reflected 64-bit polynomials comes out as x
// times the product, reflected in 128 bits; hence the exponents less one. The last 16 bytes go through the CRC32
// instruction, which multiplies by x^32 and reduces, as the definition of the CRC wants it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "checksum/crc32c_sse42_inline.h"

namespace holdfast::checksum {
namespace {

constexpr int64_t kLaneBytes = 16;
constexpr int64_t kWidth = 64;
constexpr size_t kStep = 4 * kWidth;

// Long sources are fetched ahead: the processor does not see early enough which lines will be needed, least of all when
// each register lies across two. What is fetched beyond the end, for nothing, is at most a quarter of the length.
constexpr size_t kLine = 64;
constexpr size_t kFar = 4096;
constexpr size_t kFarFrom = 4 * kFar;

// By address: a pointer beyond the end of its object is not allowed.
static inline void Prefetch(const uint8_t* from, size_t ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + ahead));
}

// The least n > 0 with x^n = 1: powers of x may be negative.
constexpr int64_t kOrder = 0x7FFFFFFF;
static_assert(PowerOfX(kOrder) == kOne);

// A factor of degree < 32, reflected in 64 bits.
static constexpr int64_t Factor(int64_t exponent) {
  const uint64_t positive = static_cast<uint64_t>(exponent < 0 ? exponent + kOrder : exponent);
  return static_cast<int64_t>(static_cast<uint64_t>(PowerOfX(positive)) << 32);
}

struct Factors {
  alignas(64) int64_t of[8];

  __m512i Load() const {
    __m512i factors;
    memcpy(&factors, of, sizeof factors);
    return factors;
  }

  constexpr void MoveLane(size_t lane, int64_t bytes) {
    of[2 * lane] = Factor(8 * bytes + 64 - 1);
    of[2 * lane + 1] = Factor(8 * bytes - 1);
  }
};

// Moves each lane by as many bytes.
static constexpr Factors MoveAll(int64_t bytes) {
  Factors factors{};
  for (size_t lane = 0; lane < 4; lane++) factors.MoveLane(lane, bytes);
  return factors;
}

// Moves all lanes to one, which begins as many bytes after the end of the four.
static constexpr Factors MoveToOne(int64_t bytes) {
  Factors factors{};
  for (size_t lane = 0; lane < 4; lane++) factors.MoveLane(lane, bytes + kLaneBytes * static_cast<int64_t>(4 - lane));
  return factors;
}

static inline __m512i Fold(__m512i lanes, __m512i factors, __m512i next) {
  constexpr int kXorOfThree = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, factors, 0x00),
                                   _mm512_clmulepi64_epi128(lanes, factors, 0x11), next, kXorOfThree);
}

// The lane that the sum of four lanes of `sum` makes, as the last 16 bytes, to the register.
static inline uint64_t RegisterOfSum(__m512i sum) {
  const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
  const __m128i lane = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const uint64_t reg = CrcQword(0, static_cast<uint64_t>(_mm_cvtsi128_si64(lane)));
  return CrcQword(reg, static_cast<uint64_t>(_mm_extract_epi64(lane, 1)));
}

// Four registers, as many bytes as are taken in at once.
struct Step {
  __m512i a, b, c, d;
};

template <typename Source>
static inline Step TakeStep(const Source& source, uint32_t reg) {
  const auto lanes = [&source](size_t at) { return source.template Take<__m512i>(at); };
  const __m512i before = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(reg)));
  return {_mm512_xor_si512(lanes(0), before), lanes(kWidth), lanes(2 * kWidth), lanes(3 * kWidth)};
}

template <typename Source>
static inline Step FoldStep(const Step& step, __m512i factors, const Source& source, size_t at) {
  const auto fold = [&](__m512i lanes, size_t offset) {
    return Fold(lanes, factors, source.template Take<__m512i>(at + offset));
  };
  return {fold(step.a, 0), fold(step.b, kWidth), fold(step.c, 2 * kWidth), fold(step.d, 3 * kWidth)};
}

// A step as a sum of lanes that all stand for the last 16 bytes, `kAfter` bytes after the step's end.
template <int64_t kAfter>
static inline __m512i SumOfStep(const Step& step) {
  static constexpr Factors kA = MoveToOne(kAfter - kLaneBytes + 3 * kWidth);
  static constexpr Factors kB = MoveToOne(kAfter - kLaneBytes + 2 * kWidth);
  static constexpr Factors kC = MoveToOne(kAfter - kLaneBytes + kWidth);
  static constexpr Factors kD = MoveToOne(kAfter - kLaneBytes);
  const __m512i two = Fold(step.a, kA.Load(), Fold(step.b, kB.Load(), _mm512_setzero_si512()));
  return Fold(step.c, kC.Load(), Fold(step.d, kD.Load(), two));
}

// Needs kStep bytes; leaves less.
template <typename Source>
static inline uint64_t ExtendFolding(uint32_t reg, Source* source) {
  static constexpr Factors kNextStep = MoveAll(kStep);
  const __m512i factors = kNextStep.Load();
  const bool far = source->left >= kFarFrom;
  Step step = TakeStep(*source, reg);
  for (source->Advance(kStep); source->left >= kStep; source->Advance(kStep)) {
    if (far) {
      for (size_t line = 0; line < kStep / kLine; line++) Prefetch(source->from, kFar + line * kLine);
    }
    step = FoldStep(step, factors, *source, 0);
  }
  return RegisterOfSum(SumOfStep<0>(step));
}

// Whatever the wider ways have left.
template <typename Source>
static inline uint32_t ExtendRest(uint64_t reg, Source source) {
  if (source.left >= 2 * kStep) reg = ExtendFolding(static_cast<uint32_t>(reg), &source);
  ExtendWhilePossible<64>(&reg, &source);
  return ExtendOneStream(reg, source);
}

}  // namespace
}  // namespace holdfast::checksum
